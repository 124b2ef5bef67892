#include "kernels/dtype.h"

#include "proto/base/checked.h"
#include "proto/base/status.h"

namespace hone {
namespace {

struct DTypeRow {
  std::string_view name;
  int64_t block_elements;
  int64_t block_bytes;
};

const DTypeRow& Row(DType dtype) {
  static constexpr DTypeRow kRows[] = {
      {"f32", 1, 4}, {"f16", 1, 2},    {"bf16", 1, 2},   {"i32", 1, 4},    {"u8", 1, 1},
      {"nf4", 2, 1}, {"q8_0", 32, 34}, {"q4_0", 32, 18}, {"q4_1", 32, 20},
  };
  const auto index = static_cast<size_t>(dtype);
  HONE_CHECK(index < std::size(kRows), "dtype ", index);
  return kRows[index];
}

}  // namespace

std::string_view DTypeName(DType dtype) { return Row(dtype).name; }
int64_t BlockElements(DType dtype) { return Row(dtype).block_elements; }
int64_t BlockBytes(DType dtype) { return Row(dtype).block_bytes; }

std::optional<uint64_t> StorageBytes(DType dtype, uint64_t elements) {
  const auto block = static_cast<uint64_t>(BlockElements(dtype));
  if (elements % block != 0) return std::nullopt;
  return CheckedMul(elements / block, static_cast<uint64_t>(BlockBytes(dtype)));
}

}  // namespace hone
