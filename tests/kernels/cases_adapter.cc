// The adapters' products in the backward pass (Ops::AdapterBackward).
#include <algorithm>

#include "kernels/reference/adapter.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

struct PartShape {
  int64_t rows, rank, column;  // rank 0: no adapter
};

struct AdapterShape {
  std::string name;
  std::vector<PartShape> parts;
  int64_t m, spare;
  float beta = 0;
  bool with_du = true, with_db = true;
  int64_t gap = 0;  // of dB
};

OpCase AdapterBackwardCase(const AdapterShape& s) {
  return {
      StrCat("adapter_backward/", s.name, ",m=", s.m, s.beta == 0 ? "" : ",add", s.with_du ? "" : ",dB",
             s.with_db ? "" : ",du"),
      [=](CaseTensors& t) {
        int64_t n = 0;
        for (const PartShape& part : s.parts) n += part.rows;
        // Columns that no part may read are not zero in u and dy.
        const Tensor dy = t.Random(t.act(), s.m, n, 1, 16);
        Values diagonal(static_cast<size_t>(n * s.spare), 0);
        std::vector<AdapterPart> parts;
        int64_t row = 0;
        double flops = 0;
        for (const PartShape& part : s.parts) {
          for (int64_t i = 0; i < part.rows * part.rank; ++i) {
            diagonal[(row + i / part.rank) * s.spare + part.column + i % part.rank] = 0.1 * t.Normal();
          }
          const Tensor db = part.rank == 0 ? Tensor{} : t.Random(DType::kF32, part.rows, part.rank, 1, s.gap);
          parts.push_back({part.rows, db, part.column});
          row += part.rows;
          flops += 2.0 * static_cast<double>(s.m * part.rows * part.rank) * (s.with_du + s.with_db);
        }
        const Tensor b = t.From(t.act(), n, s.spare, diagonal, 8);
        const Tensor u = s.with_db ? t.Random(t.act(), s.m, s.spare, 0.1, 24) : Tensor{};
        const Tensor du = !s.with_du    ? Tensor{}
                          : s.beta == 0 ? t.Output(t.act(), s.m, s.spare, 40)
                                        : t.Random(t.act(), s.m, s.spare, 1, 40);
        const auto check = [=](CaseTensors& c) {
          const Bound bound{std::max(kUsual.nmse, 5e-16 * static_cast<double>(std::max(n, s.m))), 2};
          const auto exact_dy = c.MatrixBefore(dy);
          if (s.with_du) {
            auto exact = c.MatrixBefore(du);
            reference::AdapterInputGradient(exact_dy, c.MatrixBefore(b), exact, 2.0, s.beta);
            c.Expect("du", du, exact.values, bound);
          }
          if (!s.with_db) return;
          int64_t column = 0;
          for (const AdapterPart& part : parts) {
            if (!part.db.empty()) {
              auto exact = c.MatrixBefore(part.db);
              reference::AdapterWeightGradient(exact_dy, column, c.MatrixBefore(u), part.column, exact);
              c.Expect(StrCat("dB at ", column), part.db, exact.values, bound);
            }
            column += part.rows;
          }
        };
        return PreparedCase{[=](Ops& ops) { ops.AdapterBackward(parts, dy, b, u, 2, s.beta, du); }, check, flops, 0};
      }};
}

}  // namespace

void AddAdapterCases(std::vector<OpCase>& cases) {
  const auto add = [&](const AdapterShape& s) { cases.push_back(AdapterBackwardCase(s)); };
  for (int64_t m : {1, 63, 64, 200}) {
    add({"one", {{96, 16, 0}}, m, 64});
    add({"three", {{264, 16, 0}, {136, 16, 16}, {128, 16, 32}}, m, 64});
  }
  add({"halves", {{1032, 16, 0}, {1032, 16, 16}}, 130, 64});
  add({"halves", {{1032, 16, 0}, {1032, 16, 16}}, 130, 64, 1});
  add({"halves", {{1032, 16, 0}, {1032, 16, 16}}, 130, 64, 0, false, true});
  add({"halves", {{1032, 16, 0}, {1032, 16, 16}}, 130, 64, 0, true, false});
  add({"long", {{200, 16, 0}}, 2100, 64, 1});
  add({"wide", {{8200, 16, 0}}, 70, 64});
  add({"member", {{320, 16, 16}}, 77, 64, 1});
  for (int64_t rank : {8, 24, 32, 40, 64}) {
    add({StrCat("r", rank), {{400, rank, 0}, {128, rank, rank}}, 150, 128, 0, true, true, 8});
  }
  add({"ranks", {{136, 8, 0}, {128, 0, 0}, {264, 32, 8}}, 99, 64, 1});
  add({"off_16_bytes", {{33, 6, 0}, {31, 6, 6}}, 21, 16, 1, true, true, 3});
  add({"no_adapter", {{64, 0, 0}}, 17, 16});
}

}  // namespace hone
