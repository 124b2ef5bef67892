// Log-probabilities and the optimiser.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/reference/head.h"
#include "kernels/reference/optim.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {

OpCase LogProbCase(int64_t rows, int64_t vocabulary, LogitTransform transform, LogProbMode mode, bool fp32_logits) {
  const bool unit = mode == LogProbMode::kUnitGradient;
  return {StrCat("log_prob/m=", rows, ",v=", vocabulary, ",scale=", transform.scale, ",softcap=", transform.softcap,
                 unit ? ",unit" : "", fp32_logits ? ",f32" : ""),
          [=](CaseTensors& t) {
            const Tensor logits = t.Random(fp32_logits ? DType::kF32 : t.act(), rows, vocabulary, 4, 8);
            std::vector<int32_t> targets;
            for (int64_t i = 0; i < rows; ++i) targets.push_back(static_cast<int32_t>(t.Below(vocabulary)));
            const Tensor target_tensor = t.Ints(targets);
            const Tensor log_probs = t.Output(DType::kF32, 1, rows);
            return PreparedCase{[=](Ops& ops) { ops.LogProb(logits, target_tensor, transform, mode, log_probs); },
                                [=](CaseTensors& c) {
                                  const auto before = c.MatrixBefore(logits);
                                  c.Expect("log_probs", log_probs, reference::LogProb(before, targets, transform));
                                  if (!unit) return;
                                  c.Expect("gradient", logits,
                                           reference::LogProbUnitGradient(before, targets, transform).values,
                                           kGradient);
                                },
                                0, static_cast<double>((unit ? 2 : 1) * rows * vocabulary * BlockBytes(logits.dtype))};
          }};
}

// Both modes give the same log p, bit for bit: a policy that is still its reference has a reward of exactly 0.
OpCase LogProbModesCase(int64_t rows, int64_t vocabulary, LogitTransform transform) {
  return {StrCat("log_prob_modes/m=", rows, ",v=", vocabulary, ",softcap=", transform.softcap), [=](CaseTensors& t) {
            const Tensor logits = t.Random(t.act(), rows, vocabulary, 4);
            std::vector<int32_t> targets;
            for (int64_t i = 0; i < rows; ++i) targets.push_back(static_cast<int32_t>(t.Below(vocabulary)));
            const Tensor target_tensor = t.Ints(targets);
            const Tensor alone = t.Output(DType::kF32, 1, rows), with_gradient = t.Output(DType::kF32, 1, rows);
            const Tensor differences = t.Output(DType::kF32, 1, rows);
            const auto a = std::make_shared<std::vector<float>>(rows), b = std::make_shared<std::vector<float>>(rows);
            return PreparedCase{
                [=](Ops& ops) {
                  ops.LogProb(logits, target_tensor, transform, LogProbMode::kLogProbOnly, alone);
                  ops.LogProb(logits, target_tensor, transform, LogProbMode::kUnitGradient, with_gradient);
                  ops.Download(alone, a->data());
                  ops.Download(with_gradient, b->data());
                  for (int64_t i = 0; i < rows; ++i) (*a)[i] -= (*b)[i];
                  ops.Upload(a->data(), differences);
                  ops.Synchronize();
                },
                [=](CaseTensors& c) {
                  const auto before = c.MatrixBefore(logits);
                  const auto exact = reference::LogProb(before, targets, transform);
                  c.Expect("alone", alone, exact);
                  c.Expect("with gradient", with_gradient, exact);
                  c.Expect("gradient", logits, reference::LogProbUnitGradient(before, targets, transform).values,
                           kGradient);
                  c.ExpectExactly("differences", differences, Values(static_cast<size_t>(rows), 0));
                },
                0, static_cast<double>(3 * rows * vocabulary * BlockBytes(logits.dtype))};
          }};
}

// Rows of few distinct values: the largest stands in several places, and the first counts.
OpCase ArgMaxCase(int64_t rows, int64_t vocabulary, bool with_nan) {
  return {StrCat("argmax/m=", rows, ",v=", vocabulary, with_nan ? ",nan" : ""), [=](CaseTensors& t) {
            Values values(static_cast<size_t>(rows * vocabulary));
            for (double& v : values) {
              v = -3.5 + static_cast<double>(t.Below(8)) * 0.5;
              if (with_nan && t.Below(3) == 0) v = NAN;
            }
            if (with_nan) std::fill_n(values.begin(), vocabulary, NAN);
            if (rows > 1) std::fill_n(values.end() - vocabulary, vocabulary, -INFINITY);
            const Tensor logits = t.From(DType::kF32, rows, vocabulary, values, vocabulary % 8 == 0 ? 8 : 1);
            const Tensor out = t.Output(DType::kI32, 1, rows);
            Values exact;
            for (int64_t i = 0; i < rows; ++i) {
              int64_t best = -1;
              for (int64_t j = 0; j < vocabulary; ++j) {
                const double v = values[i * vocabulary + j];
                if (!std::isnan(v) && (best < 0 || v > values[i * vocabulary + best])) best = j;
              }
              exact.push_back(static_cast<double>(std::max<int64_t>(best, 0)));
            }
            return PreparedCase{[=](Ops& ops) { ops.ArgMax(logits, out); },
                                [=](CaseTensors& c) { c.ExpectExactly("out", out, exact); }, 0,
                                static_cast<double>(rows * vocabulary * 4)};
          }};
}

OpCase SumSquaresCase(int64_t count) {
  return {StrCat("sum_squares/n=", count), [=](CaseTensors& t) {
            const Tensor x = t.Random(DType::kF32, 1, count), out = t.Output(DType::kF32, 1, 1);
            return PreparedCase{[=](Ops& ops) { ops.SumSquares(x, out); },
                                [=](CaseTensors& c) {
                                  double sum = 0;
                                  for (double v : c.Before(x)) sum += v * v;
                                  c.Expect("out", out, {sum});
                                },
                                0, static_cast<double>(count * 4)};
          }};
}

OpCase AdamWCase(int64_t count, float max_grad_norm, float weight_decay) {
  return {
      StrCat("adamw/n=", count, ",clip=", max_grad_norm, ",decay=", weight_decay), [=](CaseTensors& t) {
        const auto n = static_cast<size_t>(count);
        Values second(n);
        for (double& v : second) v = t.Normal() * t.Normal() * 1e-3, v *= v;
        const Tensor param = t.Random(DType::kF32, 1, count), grad = t.Random(DType::kF32, 1, count, 0.1);
        const Tensor m = t.Random(DType::kF32, 1, count, 0.1), v = t.From(DType::kF32, 1, count, second);
        double squares = 0;
        for (double g : t.Before(grad)) squares += g * g;
        const Tensor sum_squares = t.From(DType::kF32, 1, 1, {squares});
        const StepParams step{1e-2f, 0.271f, 0.002997f, max_grad_norm};
        const AdamWConstants constants{0.9f, 0.999f, 1e-8f, weight_decay};
        const Tensor step_tensor = t.From(
            DType::kF32, 1, 4, {step.learning_rate, step.bias_correction1, step.bias_correction2, step.max_grad_norm});
        return PreparedCase{[=](Ops& ops) { ops.AdamW(param, grad, m, v, sum_squares, step_tensor, constants); },
                            [=](CaseTensors& c) {
                              Values p = c.Before(param), mm = c.Before(m), vv = c.Before(v);
                              reference::AdamW(p, c.Before(grad), mm, vv, c.Before(sum_squares)[0], step, constants);
                              c.Expect("param", param, p);
                              c.Expect("m", m, mm);
                              c.Expect("v", v, vv);
                            },
                            0, static_cast<double>(count * 7 * 4)};
      }};
}

void AddHeadCases(std::vector<OpCase>& cases) {
  for (LogProbMode mode : {LogProbMode::kLogProbOnly, LogProbMode::kUnitGradient}) {
    for (LogitTransform transform :
         {LogitTransform{}, LogitTransform{0.5f, 0}, LogitTransform{1, 10}, LogitTransform{0.25f, 3}}) {
      cases.push_back(LogProbCase(1, 1, transform, mode, false));
      cases.push_back(LogProbCase(3, 33, transform, mode, false));
      cases.push_back(LogProbCase(9, 1000, transform, mode, false));
    }
    cases.push_back(LogProbCase(5, 49152, {}, mode, false));
    cases.push_back(LogProbCase(3, 101, {}, mode, true));
  }
  for (int64_t vocabulary : {101, 1000, 49152, 128256, 151936}) cases.push_back(LogProbModesCase(2, vocabulary, {}));
  cases.push_back(LogProbModesCase(2, 128256, {1, 30}));
  for (bool with_nan : {false, true}) {
    cases.push_back(ArgMaxCase(1, 1, with_nan));
    cases.push_back(ArgMaxCase(7, 33, with_nan));
    cases.push_back(ArgMaxCase(3, 128256, with_nan));
    cases.push_back(ArgMaxCase(33, 1000, with_nan));
  }
  for (int64_t n : {1, 63, 1000, 300001}) cases.push_back(SumSquaresCase(n));
  cases.push_back(AdamWCase(1, 0, 0));
  cases.push_back(AdamWCase(1001, 1, 0.01f));
  cases.push_back(AdamWCase(70001, 0, 0.1f));
}

}  // namespace hone
