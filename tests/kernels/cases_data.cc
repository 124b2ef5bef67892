// Moving data and decoding stored weights: exact on every back end.
#include <cmath>
#include <numeric>

#include "kernels/reference/decode.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

Values Decoded(const WeightView& weight) {
  Values values(static_cast<size_t>(weight.rows * weight.cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = reference::DecodeElement(weight, static_cast<int64_t>(i));
  return values;
}

double StoredBytes(const WeightView& w) {
  return static_cast<double>(*StorageBytes(w.dtype, static_cast<uint64_t>(w.rows * w.cols)));
}

std::vector<int32_t> Distinct(CaseTensors& t, int64_t count, int64_t limit) {
  std::vector<int32_t> all(static_cast<size_t>(limit));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(all[i], all[i + t.Below(limit - i)]);
  all.resize(static_cast<size_t>(count));
  return all;
}

}  // namespace

OpCase FillCase(DType dtype, int64_t rows, int64_t cols, float value) {
  return {StrCat("fill/", DTypeName(dtype), ",", rows, "x", cols, ",", value), [=](CaseTensors& t) {
            const Tensor out = t.Output(dtype, rows, cols, 3);
            return PreparedCase{
                [=](Ops& ops) { ops.Fill(out, value); },
                [=](CaseTensors& c) { c.ExpectExactly("out", out, Values(static_cast<size_t>(rows * cols), value)); },
                0, static_cast<double>(rows * cols * BlockBytes(dtype))};
          }};
}

OpCase CopyCase(DType from, DType to, int64_t rows, int64_t cols) {
  return {StrCat("copy/", DTypeName(from), "_to_", DTypeName(to), ",", rows, "x", cols), [=](CaseTensors& t) {
            const Tensor in = t.Random(from, rows, cols, from == DType::kI32 ? 1000 : 1, 5);
            const Tensor out = t.Output(to, rows, cols, 2);
            return PreparedCase{[=](Ops& ops) { ops.Copy(in, out); },
                                [=](CaseTensors& c) { c.ExpectExactly("out", out, c.Before(in)); }, 0,
                                static_cast<double>(rows * cols * (BlockBytes(from) + BlockBytes(to)))};
          }};
}

OpCase DecodeCase(DType stored, bool nested, DType out_dtype, int64_t rows, int64_t cols, int64_t gap) {
  const std::string kind = StrCat(DTypeName(stored), stored == DType::kNf4 && nested ? "_nested" : "");
  return {StrCat("decode/", kind, "_to_", DTypeName(out_dtype), ",", rows, "x", cols, "+", gap), [=](CaseTensors& t) {
            const auto weight = t.RandomWeight(stored, rows, cols, nested);
            const Tensor out = t.Output(out_dtype, rows, cols, gap);
            return PreparedCase{[=](Ops& ops) { ops.DecodeWeight(weight.device, out); },
                                [=](CaseTensors& c) { c.ExpectExactly("out", out, Decoded(weight.host)); }, 0,
                                StoredBytes(weight.host) + static_cast<double>(rows * cols * BlockBytes(out_dtype))};
          }};
}

OpCase EmbeddingCase(DType stored, int64_t vocabulary, int64_t hidden, int64_t tokens) {
  return {StrCat("embedding/", DTypeName(stored), ",v=", vocabulary, ",h=", hidden, ",t=", tokens),
          [=](CaseTensors& t) {
            const auto table = t.RandomWeight(stored, vocabulary, hidden);
            std::vector<int32_t> ids;
            for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>(t.Below(vocabulary)));
            const Tensor id_tensor = t.Ints(ids);
            const Tensor out = t.Output(t.act(), tokens, hidden, 16);
            return PreparedCase{[=](Ops& ops) { ops.EmbeddingRows(table.device, id_tensor, out); },
                                [=](CaseTensors& c) {
                                  Values exact;
                                  for (int32_t id : ids) {
                                    for (int64_t j = 0; j < hidden; ++j) {
                                      exact.push_back(reference::DecodeElement(table.host, id * hidden + j));
                                    }
                                  }
                                  c.ExpectExactly("out", out, exact);
                                },
                                0, static_cast<double>(tokens * hidden * 8)};
          }};
}

OpCase GatherCase(int64_t rows, int64_t cols, int64_t picked) {
  return {StrCat("gather/", rows, "x", cols, ",", picked), [=](CaseTensors& t) {
            const Tensor in = t.Random(t.act(), rows, cols, 1, 4);
            std::vector<int32_t> ids;
            for (int64_t i = 0; i < picked; ++i) ids.push_back(static_cast<int32_t>(t.Below(rows)));
            const Tensor id_tensor = t.Ints(ids);
            const Tensor out = t.Output(t.act(), picked, cols, 1);
            return PreparedCase{[=](Ops& ops) { ops.GatherRows(in, id_tensor, out); },
                                [=](CaseTensors& c) {
                                  const auto source = c.MatrixBefore(in);
                                  Values exact;
                                  for (int32_t id : ids) {
                                    for (int64_t j = 0; j < cols; ++j) exact.push_back(source(id, j));
                                  }
                                  c.ExpectExactly("out", out, exact);
                                },
                                0, static_cast<double>(2 * picked * cols * BlockBytes(in.dtype))};
          }};
}

OpCase ScatterCase(int64_t rows, int64_t cols, int64_t placed) {
  return {StrCat("scatter/", rows, "x", cols, ",", placed), [=](CaseTensors& t) {
            const Tensor in = t.Random(t.act(), placed, cols, 1, 4);
            const std::vector<int32_t> ids = Distinct(t, placed, rows);
            const Tensor id_tensor = t.Ints(ids);
            const Tensor out = t.Output(t.act(), rows, cols, 1);
            return PreparedCase{[=](Ops& ops) { ops.ScatterRows(in, id_tensor, out); },
                                [=](CaseTensors& c) {
                                  const auto source = c.MatrixBefore(in);
                                  reference::Matrix<double> exact(rows, cols, NAN);
                                  for (int64_t i = 0; i < placed; ++i) {
                                    for (int64_t j = 0; j < cols; ++j) exact(ids[i], j) = source(i, j);
                                  }
                                  c.ExpectExactly("out", out, exact.values);
                                },
                                0, static_cast<double>(2 * placed * cols * BlockBytes(in.dtype))};
          }};
}

void AddDataCases(std::vector<OpCase>& cases) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI32}) {
    cases.push_back(FillCase(dtype, 5, 37, 3));
    cases.push_back(FillCase(dtype, 1, 1, 0));
  }
  cases.push_back(CopyCase(DType::kF32, DType::kF32, 7, 100));
  cases.push_back(CopyCase(DType::kF32, DType::kBF16, 70, 333));
  cases.push_back(CopyCase(DType::kBF16, DType::kF32, 7, 33));
  cases.push_back(CopyCase(DType::kBF16, DType::kBF16, 3, 17));
  cases.push_back(CopyCase(DType::kI32, DType::kI32, 1, 77));
  for (DType out : {DType::kF32, DType::kBF16}) {
    for (DType stored : {DType::kF32, DType::kF16, DType::kBF16}) {
      cases.push_back(DecodeCase(stored, false, out, 5, 77, 0));
      cases.push_back(DecodeCase(stored, false, out, 33, 576, 16));
    }
    for (DType stored : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
      cases.push_back(DecodeCase(stored, false, out, 3, 32, 0));
      cases.push_back(DecodeCase(stored, false, out, 37, 576, 64));
    }
    for (bool nested : {false, true}) {
      cases.push_back(DecodeCase(DType::kNf4, nested, out, 3, 22, 0));      // less than two blocks, rows cut them
      cases.push_back(DecodeCase(DType::kNf4, nested, out, 17, 94, 2));     // blocks that cross rows
      cases.push_back(DecodeCase(DType::kNf4, nested, out, 6, 33, 0));      // rows that begin in the low nibble
      cases.push_back(DecodeCase(DType::kNf4, nested, out, 100, 576, 64));  // several nested blocks
    }
  }
  cases.push_back(EmbeddingCase(DType::kF32, 11, 33, 7));
  cases.push_back(EmbeddingCase(DType::kBF16, 50, 64, 19));
  cases.push_back(EmbeddingCase(DType::kQ8_0, 97, 576, 130));
  cases.push_back(EmbeddingCase(DType::kQ4_1, 40, 96, 5));
  cases.push_back(EmbeddingCase(DType::kNf4, 40, 96, 5));
  cases.push_back(GatherCase(19, 33, 40));
  cases.push_back(GatherCase(300, 576, 120));
  cases.push_back(ScatterCase(40, 33, 19));
  cases.push_back(ScatterCase(300, 576, 120));
}

}  // namespace hone
