#include "kernels/augment_pieces.h"

namespace hone {

void AugmentInPieces(Ops& ops, std::span<const AugmentPart> parts, Tensor a, Tensor out) {
  const int64_t k = parts[0].weight.cols, spare = out.cols - k;
  int64_t row = 0;
  for (const AugmentPart& part : parts) {
    ops.DecodeWeight(part.weight, out.Sub(row, part.weight.rows, 0, k));
    if (spare > 0) ops.Fill(out.Sub(row, part.weight.rows, k, spare), 0);
    if (!part.b.empty()) ops.Copy(part.b, out.Sub(row, part.weight.rows, k + part.column, part.b.cols));
    row += part.weight.rows;
  }
  if (!a.empty()) ops.Copy(a, out.Sub(row, a.rows, 0, k));
  if (a.rows < spare) ops.Fill(out.Sub(row + a.rows, spare - a.rows, 0, k), 0);
}

void RefreshInPieces(Ops& ops, const AdapterRefresh& weight) {
  const int64_t k = weight.parts[0].weight.cols;
  int64_t row = 0;
  for (const AugmentPart& part : weight.parts) {
    if (!part.b.empty()) ops.Copy(part.b, weight.out.Sub(row, part.weight.rows, k + part.column, part.b.cols));
    row += part.weight.rows;
  }
  if (!weight.a.empty()) ops.Copy(weight.a, weight.out.Sub(row, weight.a.rows, 0, k));
}

}  // namespace hone
