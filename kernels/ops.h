// The one list of operations that the engine trains and generates with. Views in, views out: an operation allocates
// nothing, keeps nothing and never fails for a reason a user can cause; wrong shapes are broken invariants. Three back
// ends: CpuOps (fp32), CudaOps (fp32, bf16), DryOps (counts). Not here: models, adapters, objectives.
//
// T rows of packed tokens, H hidden, D head_dim, V vocabulary. "act" is activation_dtype() (fp32 or bf16). Sums and
// statistics are fp32 whatever the storage. Unless said otherwise an output must not overlap an input. All operations
// of one Ops run in order; results are visible to the host after Download or Synchronize. Equal inputs give equal bits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace hone {

enum class BackendKind : uint8_t { kCpu, kCuda, kDry };
constexpr const char* BackendKindName(BackendKind kind) {
  return kind == BackendKind::kCpu ? "cpu" : kind == BackendKind::kCuda ? "cuda" : "dry";
}
enum class Activation : uint8_t { kSilu, kGelu /* erf */, kGeluTanh };
enum class Transpose : uint8_t { kNo, kYes };
enum class RopeDirection : uint8_t { kForward, kBackward };
enum class LogProbMode : uint8_t { kLogProbOnly, kUnitGradient };

// One run of queries against keys and values, rows in packed order. Query i (0 <= i < q_len, packed row q0 + i) sees
//   rows [prefix0, prefix0 + prefix_len) of k and v, all of them, then
//   rows kv0 + j for 0 <= j <= kv_len - q_len + i      (causal; kv_len >= q_len)
// A document is {t, n, t, n, 0, 0}; completions that share a prompt name it as prefix; decoding with a cache has q_len
// = 1.
struct Segment {
  int32_t q0 = 0, q_len = 0;
  int32_t kv0 = 0, kv_len = 0;
  int32_t prefix0 = 0, prefix_len = 0;
};
static_assert(sizeof(Segment) == 24);

struct Segments {
  std::span<const Segment> host;  // for planning and for CpuOps
  Tensor device;                  // the same as kI32 [count, 6] where the back end computes
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;     // on q . k
  float softcap = 0;   // s <- softcap * tanh(s / softcap); 0: none
  int64_t window = 0;  // a query sees at most the `window` latest positions, itself included; 0: all
};

// How raw logits z become those of the model: z <- softcap * tanh(scale * z / softcap), softcap 0: scale * z.
struct LogitTransform {
  float scale = 1;
  float softcap = 0;
};

// What varies from step to step, kept on the device so that recorded work can be replayed.
struct StepParams {
  float learning_rate = 0;
  float bias_correction1 = 1;  // 1 - beta1^t
  float bias_correction2 = 1;  // 1 - beta2^t
  float max_grad_norm = 0;     // 0: no clipping
};
static_assert(sizeof(StepParams) == 16);

// One linear of an adapter-folded group (AugmentWeight): its frozen weight, and where B [n, r] (fp32; empty: no
// adapter) goes among the spare columns.
struct AugmentPart {
  WeightView weight;
  Tensor b;
  int64_t column = 0;
};

// What RefreshAdapters writes of one augmented weight: B of its parts and A, as AugmentWeight.
struct AdapterRefresh {
  std::span<const AugmentPart> parts;
  Tensor a, out;
};

// The same in the backward pass (AdapterBackward): so many columns of dY, and the gradient dB [rows, r] (fp32; empty:
// no adapter), whose adapter has the columns [column, column + r) of B, u and du.
struct AdapterPart {
  int64_t rows = 0;
  Tensor db;
  int64_t column = 0;
};

// Where EncodeNf4 writes: device memory for Nf4SizesOf(elements), double-quantised as bitsandbytes.
struct Nf4Buffers {
  uint8_t* codes = nullptr;         // elements / 2
  uint8_t* absmax_codes = nullptr;  // ceil(elements / kNf4BlockSize)
  float* nested_absmax = nullptr;   // ceil(blocks / kNf4NestedBlockSize)
};

// Transfers between device and pinned host memory that may run beside later operations.
inline constexpr int kTransferSlots = 4;
// WeightMatmul takes at most so many rows, and so many weights.
inline constexpr int64_t kWeightMatmulRows = 64;
inline constexpr int kWeightMatmulParts = 3;
// Elements that share a scale in 8-bit optimiser states, as bitsandbytes.
inline constexpr int64_t kOptimizerBlockSize = 256;

struct AdamWConstants {
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual BackendKind backend() const = 0;
  virtual DType activation_dtype() const = 0;
  // Spare columns beside a weight or an activation for adapters of summed rank r (DESIGN: "adapter folded into the
  // GEMM").
  virtual int64_t AdapterColumns(int64_t sum_r) const = 0;

  // --- Moving data -------------------------------------------------------------------------------------------------
  virtual void Fill(Tensor out, float value) = 0;  // fp32, fp16, bf16, i32
  // out <- in, rounding to nearest even where dtypes (fp32, bf16, i32 to itself) differ; in place allowed when equal.
  virtual void Copy(Tensor in, Tensor out) = 0;
  // Host <-> device, `bytes` of densely stored elements; Download waits for all earlier operations.
  virtual void Upload(const void* host, Tensor out) = 0;  // out.pitch == out.cols
  virtual void Download(Tensor in, void* host) = 0;       // in.pitch == in.cols
  virtual void Synchronize() = 0;
  // Dense copies to and from pinned host memory (Backend::ReservePinned), in the order they are started. Each begins
  // when all earlier operations have ended and may run beside later ones; FinishTransfer(slot) makes later operations
  // (not the host) wait for the slot's last one. Until then later operations must not write StartOffload's `in` nor
  // touch StartFetch's `out`. 0 <= slot < kTransferSlots.
  virtual void StartOffload(Tensor in, void* pinned, int slot) = 0;
  virtual void StartFetch(const void* pinned, Tensor out, int slot) = 0;
  virtual void FinishTransfer(int slot) = 0;
  // out[n, k] <- weight decoded in fp32, rounded once to out.dtype (fp32, bf16).
  virtual void DecodeWeight(const WeightView& weight, Tensor out) = 0;
  // A linear group's W' (engine/model/linear.h) in one launch. out act [N + R, K + R], N = sum of the parts' rows:
  //   rows of part i:  weight decoded to columns [0, K); columns [K, K + R) zero but for B at K + column
  //   rows [N, N + R): `a` (fp32 [sum r, K]; empty: none) then zero rows, columns [0, K) only; the rest is left alone
  // R = out.cols - K may be 0 (a empty, no B); then out has N rows.
  virtual void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out) = 0;
  // New values of A and B for weights that AugmentWeight made of the same shapes; decoded columns are left alone, and
  // of the parts' weights only the shapes count.
  virtual void RefreshAdapters(std::span<const AdapterRefresh> weights) = 0;
  // NF4 with double quantisation, bit-equal to engine/io/nf4.h's. in fp32, bf16 or fp16, dense, elements even; scratch
  // fp32 [1, blocks] for the largest magnitudes. Returns the nested offset: waits for the device. nested_code is
  // Nf4DynamicMap().
  virtual float EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch) = 0;
  // out[t] <- row ids[t] of a table [V, H], decoded. ids kI32 [1, T], each in [0, V). The table may lie in pinned host
  // memory.
  virtual void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) = 0;
  virtual void GatherRows(Tensor in, Tensor row_ids, Tensor out) = 0;  // out[i] <- in[row_ids[i]]
  virtual void ScatterRows(Tensor in, Tensor row_ids,
                           Tensor out) = 0;  // out[row_ids[i]] <- in[i], ids distinct; others kept

  // --- Linear algebra ----------------------------------------------------------------------------------------------
  // c[m, n] <- alpha * op(a)[m, k] * op(b)[k, n] + beta * c.  a and b share a dtype (fp32, bf16); c is that or fp32.
  // fp32 sums, no split of k. beta == 0 ignores what c held (NaN too). c may lie beside a or b in one buffer (other
  // columns).
  virtual void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha = 1, float beta = 0) = 0;
  // c <- alpha * op(a) op(b) + addend; addend as c in shape and dtype, elsewhere in memory.
  virtual void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha = 1) = 0;
  // y[m, N] <- x[m, K] W^T (+ addend), 1 <= m <= kWeightMatmulRows; W: at most kWeightMatmulParts weights [N_i, K] one
  // under the other, of one dtype, read in their stored form: decoded values as act, fp32 sums in an order that depends
  // neither on m nor on what stands beside a row. x act; y act or fp32; addend as y, and may be y. For generation.
  virtual void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend = {}) = 0;
  // The adapters' products with the gradient of a linear group's output, in one pass over it. dy act [m, N], N = sum of
  // the parts' rows; b act [N, R] block diagonal (W''s spare columns: zero outside the parts' own), u act [m, R] (x's):
  //   du[m, R] <- alpha * dy b + beta * du;   part i, its columns of dy and of u:  dB_i += dy_i^T u_i   (fp32 sums)
  // u or du may be empty: that half is left out, and the other has the same bits as with both. A row of du depends on
  // its row of dy and on b alone. du may lie beside dy in one buffer.
  virtual void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha,
                               float beta, Tensor du) = 0;
  // out act [m, F] <- Glu of WeightMatmul with {gate, up}, to the same bits. gate_up act [m, 2F] is scratch.
  virtual void WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor gate_up,
                               Tensor out) = 0;
  virtual void Add(Tensor x, Tensor y) = 0;                                // y <- y + x
  virtual void AddBias(Tensor bias /* [1, n] */, Tensor y) = 0;            // y[t] <- y[t] + bias
  virtual void ScaleRows(Tensor x, Tensor factors /* fp32 [1, m] */) = 0;  // x[i] <- factors[i] * x[i]

  // --- Norm, rotary position, gated unit
  // --------------------------------------------------------------------------------- Per group of `weight.cols`
  // columns (whole rows for a block's norm, heads for qk-norm): rstd = 1/sqrt(mean(x^2) + eps), y = x * rstd * w.  x, y
  // act [T, G*W]; w fp32 [1, W]; rstd fp32 [T, G]. y may be x.   (RMSNorm, arXiv 1910.07467)
  virtual void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd) = 0;
  // dx <- beta * dx + rstd * (w*dy - x * rstd^2 * mean(w * dy * x)). beta is 0 or 1. dx may be dy when beta is 0.
  virtual void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) = 0;
  // cos/sin fp32 [T, D/2] <- scaling * cos/sin(positions[t] * inv_freq[i]); positions kI32 [1, T], inv_freq fp32 [1,
  // D/2].
  virtual void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin) = 0;
  // Per head of D columns, halves x1 x2 (Hugging Face's half-split order), in place:
  //   x1' = x1 cos - x2 sin;  x2' = x2 cos + x1 sin.   Backward: sin negated.
  virtual void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction) = 0;
  // Rope of q | k, the first columns of qkv act [T, q | k | v]; then cache[row_ids[i]] <- k | v of row i (ScatterRows).
  // cache act [S, k | v].
  virtual void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache) = 0;
  // out[T, F] <- act(gate) * up, gate_up [T, 2F] = gate | up.
  virtual void Glu(Tensor gate_up, Activation activation, Tensor out) = 0;
  // d_gate_up <- [d_out * up * act'(gate) | d_out * act(gate)]. d_gate_up may be gate_up. out (may be empty) <-
  // Glu(gate_up) in the same pass, where the forward's result was not kept; d_out and out may not overlap.
  virtual void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out = {}) = 0;

  // --- Attention ---------------------------------------------------------------------------------------------------
  // q [T, heads*D]; k, v [S, kv_heads*D]; out [T, heads*D]; lse fp32 [T, heads] = log sum exp of the scaled scores
  // (natural log). Rows of out and lse that no segment names are left alone. Head h reads kv head h / (heads /
  // kv_heads).
  virtual void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape,
                         Tensor out, Tensor lse) = 0;
  // dq, dk, dv overwritten for rows that segments name (sums over segments that share a prefix), zero elsewhere. delta:
  // fp32 [T, heads] scratch.  (FlashAttention-2's backward, arXiv 2307.08691.)
  virtual void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                                 const Segments& segments, const AttentionShape& shape, Tensor delta, Tensor dq,
                                 Tensor dk, Tensor dv) = 0;

  // --- Head --------------------------------------------------------------------------------------------------------
  // log_probs[i] (fp32 [1, m]) <- log softmax(transform(logits[i]))[targets[i]]; targets kI32 [1, m]. kUnitGradient
  // also overwrites logits with d log_probs[i] / d logits[i] (before the transform): onehot - softmax, chained through
  // it.
  virtual void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode,
                       Tensor log_probs) = 0;

  // out[i] (kI32 [1, m]) <- the first place of the largest of logits[i], fp32 [m, V]; NaN is never the largest.
  virtual void ArgMax(Tensor logits, Tensor out) = 0;

  // --- Optimiser: flat fp32 vectors
  // ------------------------------------------------------------------------------------------
  virtual void SumSquares(Tensor x, Tensor out /* fp32 [1, 1] */) = 0;  // one fixed order
  // AdamW (arXiv 1711.05101, as PyTorch): g' = g * min(1, max_grad_norm / (sqrt(sum_squares) + 1e-6)) (max_grad_norm 0:
  // g' = g); p -= lr*wd*p; m, v updated; p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps).   step: StepParams as
  // fp32 [1, 4].
  virtual void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
                     const AdamWConstants& constants) = 0;
  // The same with m and v as 8-bit codes (kU8 [1, n]) of bitsandbytes' dynamic maps (m signed, v unsigned), one scale
  // (absmax, fp32 [1, ceil(n / kOptimizerBlockSize)]) a block; decoded, updated in fp32, encoded to the nearest code.
  virtual void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax,
                         Tensor sum_squares, Tensor step, const AdamWConstants& constants) = 0;
};

}  // namespace hone
