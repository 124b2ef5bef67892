// Filling, copying and moving rows. Moves between equal dtypes keep every bit, NaN payloads included.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

template <typename T>
struct FillBody {
  View<T> out;
  T value;
  void Shift(int64_t rows) { out.data += rows * out.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    T* target = out.At(row, col);
    if constexpr (V * sizeof(T) == 16) {
      uint4 raw;
#pragma unroll
      for (int i = 0; i < V; ++i) reinterpret_cast<T*>(&raw)[i] = value;
      *reinterpret_cast<uint4*>(target) = raw;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) target[i] = value;
    }
  }
};

template <typename In, typename Out>
struct ConvertBody {
  View<In> in;
  View<Out> out;
  void Shift(int64_t rows) { in.data += rows * in.pitch, out.data += rows * out.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float x[V];
    Load<V>(in.At(row, col), x);
    Store<V>(out.At(row, col), x);
  }
};

// Rows of raw elements: out[to ? to[i] : i] <- in[from ? from[i] : i].
template <typename U>
struct MoveBody {
  View<U> in, out;
  const int32_t *from, *to;
  void Shift(int64_t rows) {
    if (from != nullptr)
      from += rows;
    else
      in.data += rows * in.pitch;
    if (to != nullptr)
      to += rows;
    else
      out.data += rows * out.pitch;
  }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    const U* source = in.At(from != nullptr ? from[row] : row, col);
    U* target = out.At(to != nullptr ? to[row] : row, col);
    if constexpr (V * sizeof(U) % 16 == 0) {
#pragma unroll
      for (size_t i = 0; i < V * sizeof(U) / 16; ++i) {
        reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(source)[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) target[i] = source[i];
    }
  }
};

template <typename U>
void MoveAs(Tensor in, const int32_t* from, Tensor out, const int32_t* to, int64_t rows, cudaStream_t stream) {
  MoveBody<U> body;
  body.in = View<U>(in), body.out = View<U>(out), body.from = from, body.to = to;
  LaunchRows<16 / sizeof(U) < 8 ? 16 / sizeof(U) : 8>(rows, in.cols, Vectorises(in) && Vectorises(out), body, stream);
}

void Move(Tensor in, const int32_t* from, Tensor out, const int32_t* to, int64_t rows, cudaStream_t stream) {
  switch (BlockBytes(in.dtype)) {
    case 1:
      return MoveAs<uint8_t>(in, from, out, to, rows, stream);
    case 2:
      return MoveAs<uint16_t>(in, from, out, to, rows, stream);
    default:
      return MoveAs<uint32_t>(in, from, out, to, rows, stream);
  }
}

template <typename T>
void FillAs(Tensor out, T value, cudaStream_t stream) {
  FillBody<T> body;
  body.out = View<T>(out), body.value = value;
  LaunchRows<kVector<T>>(out.rows, out.cols, Vectorises(out), body, stream);
}

}  // namespace

void Fill(Tensor out, float value, cudaStream_t stream) {
  switch (out.dtype) {
    case DType::kF16:
      return FillAs<__half>(out, __float2half_rn(value), stream);
    case DType::kBF16:
      return FillAs<bf16>(out, __float2bfloat16_rn(value), stream);
    case DType::kI32:
      return FillAs<int32_t>(out, static_cast<int32_t>(value), stream);
    default:
      return FillAs<float>(out, value, stream);
  }
}

void Copy(Tensor in, Tensor out, cudaStream_t stream) {
  if (in.dtype == out.dtype) return Move(in, nullptr, out, nullptr, in.rows, stream);
  WithType(in.dtype, [&](auto from) {
    WithType(out.dtype, [&](auto to) {
      ConvertBody<decltype(from), decltype(to)> body;
      body.in = View<decltype(from)>(in), body.out = View<decltype(to)>(out);
      LaunchRows<kVector<decltype(from), decltype(to)>>(in.rows, in.cols, Vectorises(in) && Vectorises(out), body,
                                                        stream);
    });
  });
}

void GatherRows(Tensor in, Tensor row_ids, Tensor out, cudaStream_t stream) {
  Move(in, row_ids.as<int32_t>(), out, nullptr, out.rows, stream);
}

void ScatterRows(Tensor in, Tensor row_ids, Tensor out, cudaStream_t stream) {
  Move(in, nullptr, out, row_ids.as<int32_t>(), in.rows, stream);
}

}  // namespace hone::cuda
