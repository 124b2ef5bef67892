// Views that operations take: a plain matrix, and a frozen weight in its stored form. A view owns nothing.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace hone {

// A row-major [rows, cols] matrix of a plain dtype; row i starts at element i * pitch. Vectors are one row.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t pitch = 0;

  bool empty() const { return rows == 0 || cols == 0; }
  int64_t elements() const { return rows * cols; }
  Tensor Rows(int64_t begin, int64_t count) const { return Sub(begin, count, 0, cols); }
  Tensor Cols(int64_t begin, int64_t count) const { return Sub(0, rows, begin, count); }
  Tensor Sub(int64_t row, int64_t row_count, int64_t col, int64_t col_count) const {
    Tensor view = *this;
    view.data = static_cast<char*>(data) + (row * pitch + col) * BlockBytes(dtype);
    view.rows = row_count;
    view.cols = col_count;
    return view;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A frozen weight [rows = out features, cols = in features], row-major without padding, in its stored form.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  // kNf4 only. Flat blocks of kNf4BlockSize elements; block b has absmax
  //   nested: nested_code[absmax_codes[b]] * nested_absmax[b / kNf4NestedBlockSize] + nested_offset
  //   plain:  absmax[b]                     (absmax_codes == nullptr)
  const uint8_t* absmax_codes = nullptr;
  const float* nested_code = nullptr;  // 256 values
  const float* nested_absmax = nullptr;
  const float* absmax = nullptr;
  float nested_offset = 0;

  bool empty() const { return rows == 0; }
};

}  // namespace hone
