#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/adapter_pieces.h"
#include "kernels/augment_pieces.h"
#include "kernels/checks.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/gemm.h"
#include "kernels/half.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// What one thread should have to do at least, in elements of a row loop (about 10 microseconds).
constexpr int64_t kGrainElements = 32768;
// SumSquares adds this many partial sums in order, whatever the number of threads.
constexpr int64_t kPartialSums = 64;

RowsF32 Rows32(Tensor t) { return {t.as<float>(), t.pitch}; }

char* RowAddress(Tensor t, int64_t row) { return static_cast<char*>(t.data) + row * t.pitch * BlockBytes(t.dtype); }

int64_t RowBytes(Tensor t) { return t.cols * BlockBytes(t.dtype); }

void CheckIds(const int32_t* ids, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i)
    HONE_CHECK(ids[i] >= 0 && ids[i] < limit, "row id ", ids[i], " at ", i, " of ", limit);
}

}  // namespace

CpuOps::CpuOps(int threads) : CpuOps(threads, BestCpuKernels()) {}

CpuOps::CpuOps(int threads, const CpuKernels& kernels)
    : pool_(threads),
      kernels_(kernels),
      scratch_(static_cast<float*>(::operator new (WorkspaceBytes(threads), std::align_val_t{kScratchAlignment}))) {
  UseOneBlasThread();
}

CpuOps::~CpuOps() { ::operator delete (scratch_, std::align_val_t{kScratchAlignment}); }

uint64_t CpuOps::WorkspaceBytes(int threads) { return static_cast<uint64_t>(threads) * kScratchFloats * sizeof(float); }

float* CpuOps::Scratch(int part) const { return scratch_ + part * kScratchFloats; }

int64_t CpuOps::AdapterColumns(int64_t sum_r) const { return checks::AdapterColumns(BackendKind::kCpu, sum_r); }

template <typename F>
void CpuOps::Rows(Tensor t, F&& f) {
  pool_.Ranges(t.rows, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(t.cols, 1)), f);
}

// --- Moving data ---------------------------------------------------------------------------------------------------

void CpuOps::Fill(Tensor out, float value) {
  checks::Fill(out);
  uint32_t pattern = 0;
  const int64_t width = BlockBytes(out.dtype);
  if (out.dtype == DType::kI32) {
    const auto integer = static_cast<int32_t>(value);
    std::memcpy(&pattern, &integer, 4);
  } else if (out.dtype == DType::kBF16) {
    uint16_t half;
    kernels_.f32_to_bf16(&value, 1, &half);
    pattern = half;
  } else if (out.dtype == DType::kF16) {
    pattern = FloatToHalf(value);
  } else {
    std::memcpy(&pattern, &value, 4);
  }
  Rows(out, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* row = RowAddress(out, r);
      if (width == 4) {
        std::fill_n(reinterpret_cast<uint32_t*>(row), out.cols, pattern);
      } else {
        std::fill_n(reinterpret_cast<uint16_t*>(row), out.cols, static_cast<uint16_t>(pattern));
      }
    }
  });
}

void CpuOps::Copy(Tensor in, Tensor out) {
  checks::Copy(in, out);
  if (in.data == out.data && in.dtype == out.dtype && in.pitch == out.pitch) return;
  Rows(out, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (in.dtype == out.dtype) {
        std::memcpy(RowAddress(out, r), RowAddress(in, r), RowBytes(in));
      } else if (in.dtype == DType::kF32) {
        kernels_.f32_to_bf16(in.as<float>() + r * in.pitch, in.cols, out.as<uint16_t>() + r * out.pitch);
      } else {
        kernels_.bf16_to_f32(in.as<uint16_t>() + r * in.pitch, in.cols, out.as<float>() + r * out.pitch);
      }
    }
  });
}

void CpuOps::Upload(const void* host, Tensor out) {
  checks::Dense(out);
  std::memcpy(out.data, host, out.rows * RowBytes(out));
}

void CpuOps::Download(Tensor in, void* host) {
  checks::Dense(in);
  std::memcpy(host, in.data, in.rows * RowBytes(in));
}

namespace {

// One row of a stored weight, rounded to bf16 where the output is.
void DecodeRow(const CpuKernels& kernels, const WeightView& weight, int64_t row, Tensor out, int64_t out_row) {
  const int64_t first = row * weight.cols;
  if (out.dtype == DType::kF32)
    return kernels.decode(weight, first, weight.cols, out.as<float>() + out_row * out.pitch);
  constexpr int64_t kChunk = 2048;  // a multiple of every block
  float chunk[kChunk];
  for (int64_t c = 0; c < weight.cols; c += kChunk) {
    const int64_t count = std::min(kChunk, weight.cols - c);
    kernels.decode(weight, first + c, count, chunk);
    kernels.f32_to_bf16(chunk, count, out.as<uint16_t>() + out_row * out.pitch + c);
  }
}

}  // namespace

void CpuOps::DecodeWeight(const WeightView& weight, Tensor out) {
  checks::DecodeWeight(weight, out);
  checks::HasData(weight);
  Rows(out, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) DecodeRow(kernels_, weight, r, out, r);
  });
}

void CpuOps::EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) {
  checks::EmbeddingRows(table, ids, out);
  checks::HasData(table);
  const auto* id = ids.as<int32_t>();
  CheckIds(id, ids.cols, table.rows);
  Rows(out, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) DecodeRow(kernels_, table, id[r], out, r);
  });
}

void CpuOps::GatherRows(Tensor in, Tensor row_ids, Tensor out) {
  checks::GatherRows(in, row_ids, out);
  const auto* id = row_ids.as<int32_t>();
  CheckIds(id, row_ids.cols, in.rows);
  Rows(out, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::memcpy(RowAddress(out, r), RowAddress(in, id[r]), RowBytes(in));
  });
}

void CpuOps::ScatterRows(Tensor in, Tensor row_ids, Tensor out) {
  checks::ScatterRows(in, row_ids, out);
  const auto* id = row_ids.as<int32_t>();
  CheckIds(id, row_ids.cols, out.rows);
  Rows(in, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::memcpy(RowAddress(out, id[r]), RowAddress(in, r), RowBytes(in));
  });
}

// --- Linear algebra ------------------------------------------------------------------------------------------------

void CpuOps::Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) {
  checks::Matmul(a, ta, b, tb, c);
  HONE_CHECK(a.dtype == DType::kF32, "the CPU back end multiplies fp32 only");
  const GemmShape shape{ta == Transpose::kYes, tb == Transpose::kYes, c.rows, c.cols,
                        ta == Transpose::kYes ? a.rows : a.cols};
  if (ParallelSkinny(pool_, kernels_, scratch_, kScratchFloats, shape, alpha, a.as<float>(), a.pitch, b.as<float>(),
                     b.pitch, beta, c.as<float>(), c.pitch)) {
    return;
  }
  ParallelSgemm(pool_, shape, alpha, a.as<float>(), a.pitch, b.as<float>(), b.pitch, beta, c.as<float>(), c.pitch);
}

void CpuOps::Add(Tensor x, Tensor y) {
  checks::Add(x, y, DType::kF32);
  Rows(y, [&](int64_t begin, int64_t end) { kernels_.add(Rows32(x), Rows32(y), y.cols, begin, end); });
}

void CpuOps::AddBias(Tensor bias, Tensor y) {
  checks::AddBias(bias, y, DType::kF32);
  Rows(y, [&](int64_t begin, int64_t end) { kernels_.add({bias.as<float>(), 0}, Rows32(y), y.cols, begin, end); });
}

void CpuOps::ScaleRows(Tensor x, Tensor factors) {
  checks::ScaleRows(x, factors, DType::kF32);
  Rows(x, [&](int64_t begin, int64_t end) { kernels_.scale_rows(Rows32(x), factors.as<float>(), x.cols, begin, end); });
}

// --- Norm, rotary position, gated unit -----------------------------------------------------------------------------

void CpuOps::RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd) {
  checks::RmsNorm(x, weight, y, rstd, DType::kF32);
  Rows(x, [&](int64_t begin, int64_t end) {
    kernels_.rms_norm(Rows32(x), weight.as<float>(), weight.cols, rstd.cols, eps, Rows32(y), Rows32(rstd), begin, end);
  });
}

void CpuOps::RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) {
  checks::RmsNormBackward(dy, x, weight, rstd, dx, beta, DType::kF32);
  Rows(x, [&](int64_t begin, int64_t end) {
    kernels_.rms_norm_backward(Rows32(dy), Rows32(x), weight.as<float>(), weight.cols, rstd.cols, Rows32(rstd),
                               Rows32(dx), beta, begin, end);
  });
}

void CpuOps::RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin) {
  checks::RopeTable(positions, inv_freq, cos, sin);
  // The angle is an fp32 product, as Hugging Face computes it; its cosine and sine are exact to fp32.
  pool_.Ranges(cos.rows, std::max<int64_t>(1, 512 / std::max<int64_t>(cos.cols, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto position = static_cast<float>(positions.as<int32_t>()[t]);
      for (int64_t i = 0; i < cos.cols; ++i) {
        const double angle = position * inv_freq.as<float>()[i];
        cos.as<float>()[t * cos.pitch + i] = static_cast<float>(scaling * std::cos(angle));
        sin.as<float>()[t * sin.pitch + i] = static_cast<float>(scaling * std::sin(angle));
      }
    }
  });
}

void CpuOps::Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction) {
  checks::Rope(x, head_dim, cos, sin, DType::kF32);
  const float sign = direction == RopeDirection::kForward ? 1.0f : -1.0f;
  Rows(x, [&](int64_t begin, int64_t end) {
    kernels_.rope(Rows32(x), x.cols / head_dim, head_dim, Rows32(cos), Rows32(sin), sign, begin, end);
  });
}

void CpuOps::RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache) {
  checks::RopeToCache(qkv, head_dim, cos, sin, row_ids, cache, DType::kF32);
  Rope(qkv.Cols(0, qkv.cols - cache.cols / 2), head_dim, cos, sin, RopeDirection::kForward);
  ScatterRows(qkv.Cols(qkv.cols - cache.cols, cache.cols), row_ids, cache);
}

void CpuOps::Glu(Tensor gate_up, Activation activation, Tensor out) {
  checks::Glu(gate_up, out, DType::kF32);
  Rows(out, [&](int64_t begin, int64_t end) {
    kernels_.glu(Rows32(gate_up), out.cols, static_cast<int>(activation), Rows32(out), begin, end);
  });
}

void CpuOps::GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out) {
  checks::GluBackward(d_out, gate_up, d_gate_up, out, DType::kF32);
  if (!out.empty()) Glu(gate_up, activation, out);
  Rows(d_out, [&](int64_t begin, int64_t end) {
    kernels_.glu_backward(Rows32(d_out), Rows32(gate_up), d_out.cols, static_cast<int>(activation), Rows32(d_gate_up),
                          begin, end);
  });
}

// --- Attention -----------------------------------------------------------------------------------------------------

void CpuOps::Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                       Tensor lse) {
  checks::Attention(q, k, v, segments, shape, out, lse, DType::kF32);
  const AttentionCall call{Rows32(q), Rows32(k), Rows32(v), Rows32(out), Rows32(lse), segments.host, shape};
  pool_.Parts([&](int part) { AttentionPart(kernels_, call, part, pool_.threads(), Scratch(part)); });
}

void CpuOps::AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                               const Segments& segments, const AttentionShape& shape, Tensor delta, Tensor dq,
                               Tensor dk, Tensor dv) {
  checks::AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv, DType::kF32);
  Fill(dq, 0);
  Fill(dk, 0);
  Fill(dv, 0);
  const AttentionCall call{Rows32(q), Rows32(k), Rows32(v), Rows32(out), Rows32(lse), segments.host, shape};
  const AttentionGradients gradients{Rows32(d_out), Rows32(delta), Rows32(dq), Rows32(dk), Rows32(dv)};
  pool_.Parts(
      [&](int part) { AttentionBackwardPart(kernels_, call, gradients, part, pool_.threads(), Scratch(part)); });
}

// --- Head ----------------------------------------------------------------------------------------------------------

void CpuOps::ArgMax(Tensor logits, Tensor out) {
  checks::ArgMax(logits, out);
  for (int64_t i = 0; i < logits.rows; ++i) {
    const float* row = logits.as<float>() + i * logits.pitch;
    int64_t best = -1;
    for (int64_t j = 0; j < logits.cols; ++j) {
      if (best < 0 ? !std::isnan(row[j]) : row[j] > row[best]) best = j;
    }
    out.as<int32_t>()[i] = static_cast<int32_t>(std::max<int64_t>(best, 0));
  }
}

void CpuOps::LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode,
                     Tensor log_probs) {
  checks::LogProb(logits, targets, log_probs, DType::kF32);
  CheckIds(targets.as<int32_t>(), targets.cols, logits.cols);
  Rows(logits, [&](int64_t begin, int64_t end) {
    kernels_.log_prob(Rows32(logits), logits.cols, targets.as<int32_t>(), transform.scale, transform.softcap,
                      mode == LogProbMode::kUnitGradient, log_probs.as<float>(), begin, end);
  });
}

// --- Optimiser -----------------------------------------------------------------------------------------------------

void CpuOps::SumSquares(Tensor x, Tensor out) {
  checks::SumSquares(x, out);
  const int64_t n = x.elements();
  float partial[kPartialSums];
  pool_.Ranges(kPartialSums, std::max<int64_t>(1, kGrainElements * kPartialSums / std::max<int64_t>(n, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t from = n * i / kPartialSums, to = n * (i + 1) / kPartialSums;
                   partial[i] = kernels_.sum_squares(x.as<float>() + from, to - from);
                 }
               });
  double sum = 0;
  for (float p : partial) sum += p;
  *out.as<float>() = static_cast<float>(sum);
}

AdamWScalars CpuOps::Scalars(Tensor sum_squares, Tensor step, const AdamWConstants& constants) {
  StepParams p;
  std::memcpy(&p, step.data, sizeof(p));
  const float norm = std::sqrt(*sum_squares.as<float>());
  const float clip = p.max_grad_norm == 0 ? 1.0f : std::min(1.0f, p.max_grad_norm / (norm + 1e-6f));
  return {clip,
          constants.beta1,
          constants.beta2,
          constants.eps,
          p.learning_rate,
          constants.weight_decay,
          p.bias_correction1,
          p.bias_correction2};
}

void CpuOps::AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
                   const AdamWConstants& constants) {
  checks::AdamW(param, grad, m, v, sum_squares, step);
  const AdamWScalars scalars = Scalars(sum_squares, step, constants);
  pool_.Ranges(param.elements(), kGrainElements, [&](int64_t begin, int64_t end) {
    kernels_.adamw(param.as<float>() + begin, grad.as<float>() + begin, m.as<float>() + begin, v.as<float>() + begin,
                   end - begin, scalars);
  });
}

void CpuOps::StartOffload(Tensor in, void* pinned, int slot) {
  checks::Transfer(in, pinned, slot);
  Download(in, pinned);
}

void CpuOps::StartFetch(const void* pinned, Tensor out, int slot) {
  checks::Transfer(out, pinned, slot);
  Upload(pinned, out);
}

void CpuOps::FinishTransfer(int slot) { HONE_CHECK(slot >= 0 && slot < kTransferSlots, "transfer slot ", slot); }

void CpuOps::AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out) {
  checks::AugmentWeight(parts, a, out, activation_dtype());
  AugmentInPieces(*this, parts, a, out);
}

void CpuOps::RefreshAdapters(std::span<const AdapterRefresh> weights) {
  for (const AdapterRefresh& w : weights) {
    checks::AugmentWeight(w.parts, w.a, w.out, activation_dtype());
    RefreshInPieces(*this, w);
  }
}

void CpuOps::MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) {
  checks::MatmulAdd(a, ta, b, tb, addend, c);
  Copy(addend, c);
  Matmul(a, ta, b, tb, c, alpha, 1);
}

void CpuOps::AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                             Tensor du) {
  checks::AdapterBackward(parts, dy, b, u, du, activation_dtype());
  AdapterBackwardInPieces(*this, parts, dy, b, u, alpha, beta, du);
}

// A row of the weight is decoded a piece at a time and met by every row of x; a sum runs over columns of partial sums,
// in an order that K alone decides.
void CpuOps::WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend) {
  checks::WeightMatmul(x, weights, y, addend, activation_dtype());
  int64_t column = 0;
  for (const WeightView& weight : weights) {
    const int64_t n = weight.rows;
    WeightProduct(x, weight, y.Cols(column, n), addend.empty() ? addend : addend.Cols(column, n));
    column += n;
  }
}

void CpuOps::WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor gate_up,
                             Tensor out) {
  checks::WeightMatmulGlu(x, weights, gate_up, out, activation_dtype());
  WeightMatmul(x, weights, gate_up, {});
  Glu(gate_up, activation, out);
}

void CpuOps::WeightProduct(Tensor x, const WeightView& weight, Tensor y, Tensor addend) {
  constexpr int64_t kPiece = 512;  // whole blocks of every stored form
  constexpr int64_t kMostSums = 32;
  const int64_t columns = 2 * kernels_.lanes;
  HONE_CHECK(columns <= kMostSums, columns);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(weight.cols * x.rows, 1));
  pool_.Ranges(weight.rows, grain, [&](int64_t begin, int64_t end) {
    float piece[kPiece];
    float sums[kWeightMatmulRows * kMostSums];
    for (int64_t row = begin; row < end; ++row) {
      std::fill_n(sums, x.rows * columns, 0.0f);
      for (int64_t k = 0; k < weight.cols; k += kPiece) {
        const int64_t count = std::min(kPiece, weight.cols - k);
        kernels_.decode(weight, row * weight.cols + k, count, piece);
        kernels_.piece_dots(piece, count, {x.as<float>() + k, x.pitch}, x.rows, sums);
      }
      for (int64_t i = 0; i < x.rows; ++i) {
        float sum = 0;
        for (int64_t c = 0; c < columns; ++c) sum += sums[i * columns + c];
        if (!addend.empty()) sum += addend.as<float>()[i * addend.pitch + row];
        y.as<float>()[i * y.pitch + row] = sum;
      }
    }
  });
}

}  // namespace hone
