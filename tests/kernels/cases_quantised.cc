// What writes quantised forms (NF4, 8-bit optimiser states), and transfers to and from pinned host memory.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/nf4.h"
#include "kernels/reference/optim.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

constexpr int64_t Blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Weights with what encoders get wrong: a block of zeros, an outlier, values on thresholds, the smallest numbers.
Values TrickyWeights(CaseTensors& t, int64_t n) {
  Values values(static_cast<size_t>(n));
  for (double& v : values) v = t.Normal() * 0.02;
  for (int64_t i = 64; i < std::min<int64_t>(128, n); ++i) values[i] = 0;
  if (n > 200) values[130] = 7;
  if (n > 300) {
    values[192] = 1;  // absmax 1: the block is compared as it is
    for (int i = 0; i < 15; ++i) values[193 + i] = kNf4Codes.thresholds[i];
    for (int i = 0; i < 15; ++i) values[208 + i] = std::nextafter(kNf4Codes.thresholds[i], 2.0f);
    for (int i = 256; i < 300; ++i) values[i] = 1e-40 * (i - 270);
  }
  return values;
}

}  // namespace

OpCase EncodeNf4Case(DType dtype, int64_t rows, int64_t cols) {
  return {StrCat("encode_nf4/", DTypeName(dtype), ",", rows, "x", cols), [=](CaseTensors& t) {
            const int64_t n = rows * cols, blocks = Blocks(n, kNf4BlockSize);
            const Tensor in = t.From(dtype, rows, cols, TrickyWeights(t, n));
            const Tensor codes = t.Output(DType::kU8, 1, n / 2), absmax_codes = t.Output(DType::kU8, 1, blocks);
            const Tensor nested = t.Output(DType::kF32, 1, Blocks(blocks, kNf4NestedBlockSize));
            const Tensor scratch = t.Output(DType::kF32, 1, blocks), offset = t.Output(DType::kF32, 1, 1);
            const Nf4Buffers out{codes.as<uint8_t>(), absmax_codes.as<uint8_t>(), nested.as<float>()};
            return PreparedCase{
                [=](Ops& ops) {
                  const float value = ops.EncodeNf4(in, out, scratch);
                  ops.Upload(&value, offset);
                  ops.Synchronize();
                },
                [=](CaseTensors& c) {
                  const Values before = c.Before(in);
                  const std::vector<float> x(before.begin(), before.end());
                  std::vector<uint8_t> code(codes.cols), absmax_code(blocks);
                  std::vector<float> absmax(blocks), nested_absmax(nested.cols);
                  Nf4Parts parts{code.data(), absmax_code.data(), nested_absmax.data(), 0};
                  EncodeNf4(x.data(), x.size(), parts);
                  EncodeNf4Plain(x.data(), x.size(), code.data(), absmax.data());
                  c.ExpectExactly("codes", codes, Values(code.begin(), code.end()));
                  c.ExpectExactly("absmax", scratch, Values(absmax.begin(), absmax.end()));
                  c.ExpectExactly("offset", offset, {parts.nested_offset});
                  c.ExpectExactly("absmax codes", absmax_codes, Values(absmax_code.begin(), absmax_code.end()));
                  c.ExpectExactly("nested absmax", nested, Values(nested_absmax.begin(), nested_absmax.end()));
                },
                0, static_cast<double>(n * BlockBytes(dtype) + n / 2)};
          }};
}

namespace {

// Codes and scales of a state vector, as an earlier step left them, and what they stand for.
struct States {
  Tensor codes, absmax;
  Values Decoded(CaseTensors& c, const DynamicMap& map) const {
    const Values code = c.Before(codes), scale = c.Before(absmax);
    Values values(code.size());
    for (size_t i = 0; i < code.size(); ++i) {
      values[i] = static_cast<double>(map[static_cast<size_t>(code[i])]) * scale[i / kOptimizerBlockSize];
    }
    return values;
  }
};

States RandomStates(CaseTensors& t, int64_t n, double scale) {
  Values codes(static_cast<size_t>(n)), absmax(static_cast<size_t>(Blocks(n, kOptimizerBlockSize)));
  for (double& c : codes) c = static_cast<double>(t.Below(256));
  for (double& a : absmax) a = scale * (1 + static_cast<double>(t.Below(100)));
  if (absmax.size() > 1) absmax[1] = 0;  // as before the first step
  return {t.From(DType::kU8, 1, n, codes), t.From(DType::kF32, 1, static_cast<int64_t>(absmax.size()), absmax)};
}

// The nearest code of each exact value, but for values that lie within rounding of the middle of two.
void ExpectNearest(CaseTensors& c, const std::string& what, const States& states, const Values& exact,
                   const DynamicMap& map) {
  Values absmax(static_cast<size_t>(states.absmax.cols), 0);
  for (size_t i = 0; i < exact.size(); ++i) {
    double& largest = absmax[i / kOptimizerBlockSize];
    largest = std::max(largest, std::fabs(exact[i]));
  }
  c.Expect(what + " absmax", states.absmax, absmax);
  c.ExpectEach(what, states.codes, [&](size_t i, double code) {
    const double scale = absmax[i / kOptimizerBlockSize];
    if (scale == 0) return map[static_cast<size_t>(code)] == 0;
    const auto distance = [&](size_t candidate) { return std::fabs(map[candidate] - exact[i] / scale); };
    double best = 2;
    for (size_t candidate = 0; candidate < 256; ++candidate) best = std::min(best, distance(candidate));
    return distance(static_cast<size_t>(code)) <= best + 1e-6 * std::fabs(exact[i] / scale);
  });
}

}  // namespace

OpCase AdamW8bitCase(int64_t count, float max_grad_norm, float weight_decay) {
  return {StrCat("adamw8bit/n=", count, ",clip=", max_grad_norm, ",decay=", weight_decay), [=](CaseTensors& t) {
            const Tensor param = t.Random(DType::kF32, 1, count);
            Values gradient(static_cast<size_t>(count));
            for (double& g : gradient) g = 0.1 * t.Normal();
            if (count > 1000) std::fill(gradient.begin() + 256, gradient.begin() + 512, 0);  // a block that stays zero
            const Tensor grad = t.From(DType::kF32, 1, count, gradient);
            const States m = RandomStates(t, count, 1e-3), v = RandomStates(t, count, 1e-6);
            double squares = 0;
            for (double g : t.Before(grad)) squares += g * g;
            const Tensor sum_squares = t.From(DType::kF32, 1, 1, {squares});
            const StepParams step{1e-2f, 0.271f, 0.002997f, max_grad_norm};
            const AdamWConstants constants{0.9f, 0.999f, 1e-8f, weight_decay};
            const Tensor step_tensor =
                t.From(DType::kF32, 1, 4,
                       {step.learning_rate, step.bias_correction1, step.bias_correction2, step.max_grad_norm});
            return PreparedCase{
                [=](Ops& ops) {
                  ops.AdamW8bit(param, grad, m.codes, m.absmax, v.codes, v.absmax, sum_squares, step_tensor, constants);
                },
                [=](CaseTensors& c) {
                  Values p = c.Before(param);
                  Values mm = m.Decoded(c, SignedDynamicMap()), vv = v.Decoded(c, UnsignedDynamicMap());
                  reference::AdamW(p, c.Before(grad), mm, vv, c.Before(sum_squares)[0], step, constants);
                  c.Expect("param", param, p);
                  ExpectNearest(c, "m", m, mm, SignedDynamicMap());
                  ExpectNearest(c, "v", v, vv, UnsignedDynamicMap());
                },
                0, static_cast<double>(count * 16)};
          }};
}

// Out to pinned memory, over the original, and back elsewhere: what comes back is what was there when it was sent.
OpCase TransferCase(int64_t rows, int64_t cols) {
  return {StrCat("transfer/", rows, "x", cols), [=](CaseTensors& t) {
            const Tensor first = t.Random(t.act(), rows, cols), second = t.Random(t.act(), rows, cols);
            const Tensor back = t.Output(t.act(), rows, cols), again = t.Output(t.act(), rows, cols);
            const auto bytes = static_cast<uint64_t>(rows * cols * BlockBytes(t.act()));
            auto reserved = t.backend().ReservePinned(2 * bytes);
            HONE_CHECK(reserved.ok(), reserved.status().ToString());
            const std::shared_ptr<MemoryBlock> pinned = *std::move(reserved);
            char* const memory = static_cast<char*>(pinned->data());
            return PreparedCase{[=, kept = pinned](Ops& ops) {
                                  ops.Add(first, second);  // the transfer must wait for it
                                  ops.StartOffload(second, memory, 0);
                                  ops.StartOffload(first, memory + bytes, 1);
                                  ops.FinishTransfer(0);
                                  ops.Fill(second, 5);
                                  ops.StartFetch(memory, back, 2);
                                  ops.StartFetch(memory + bytes, again, 0);
                                  ops.FinishTransfer(1);
                                  ops.Fill(first, 3);
                                  ops.FinishTransfer(2);
                                  ops.FinishTransfer(0);
                                  ops.FinishTransfer(3);  // never used: nothing to wait for
                                  ops.Add(again, back);
                                },
                                [=](CaseTensors& c) {
                                  const Values x = c.Before(first), y = c.Before(second);
                                  Values sum(x.size());
                                  for (size_t i = 0; i < x.size(); ++i) {
                                    const auto round = [&](double v) {
                                      const auto f = static_cast<float>(v);
                                      return back.dtype == DType::kBF16 ? reference::RoundToBf16(f) : f;
                                    };
                                    sum[i] = round(round(x[i] + y[i]) + x[i]);
                                  }
                                  c.ExpectExactly("back", back, sum);
                                  c.ExpectExactly("again", again, x);
                                  c.ExpectExactly("first", first, Values(x.size(), 3));
                                  c.ExpectExactly("second", second, Values(x.size(), 5));
                                },
                                0, static_cast<double>(rows * cols * 16)};
          }};
}

void AddQuantisedCases(std::vector<OpCase>& cases) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    cases.push_back(EncodeNf4Case(dtype, 1, 2));
    cases.push_back(EncodeNf4Case(dtype, 3, 22));     // a last block that is not whole
    cases.push_back(EncodeNf4Case(dtype, 7, 100));    // rows that cut blocks
    cases.push_back(EncodeNf4Case(dtype, 576, 576));  // several nested blocks
  }
  cases.push_back(EncodeNf4Case(DType::kBF16, 1030, 576));  // more blocks than lanes of the mean
  cases.push_back(AdamW8bitCase(1, 0, 0));
  cases.push_back(AdamW8bitCase(1001, 1, 0.01f));
  cases.push_back(AdamW8bitCase(70001, 0, 0.1f));
  cases.push_back(TransferCase(1, 1));
  cases.push_back(TransferCase(1000, 1000));
}

}  // namespace hone
