// attention_forward.cuh and attention_decode.cuh for tiles 128 wide.
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_forward.cuh"

namespace hone::cuda::mma {

template <>
void RunForward<128>(const ForwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (ForwardOnHopper(args, host, profile, stream)) return;
  if (profile != AttentionProfile::kSmall) return LaunchForward<ForwardTiles<128, 2, 4, 64, 2>>(args, host, stream);
  LaunchForward<ForwardTiles<128, 1, 4, 32, 2>>(args, host, stream);
}

template <>
int RunDecode<128>(const DecodeArgs& args, HostSegments host, int64_t partial_floats, cudaStream_t stream) {
  return LaunchDecode<DecodeTiles<128>>(args, host, partial_floats, stream);
}

}  // namespace hone::cuda::mma
