#include "kernels/adapter_pieces.h"

namespace hone {

void AdapterBackwardInPieces(Ops& ops, std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha,
                             float beta, Tensor du) {
  // The block diagonal's zeros keep the parts apart.
  if (!du.empty()) ops.Matmul(dy, Transpose::kNo, b, Transpose::kNo, du, alpha, beta);
  if (u.empty()) return;
  int64_t column = 0;
  for (const AdapterPart& part : parts) {
    if (!part.db.empty()) {
      ops.Matmul(dy.Cols(column, part.rows), Transpose::kYes, u.Cols(part.column, part.db.cols), Transpose::kNo,
                 part.db, 1, 1);
    }
    column += part.rows;
  }
}

}  // namespace hone
