// attention_forward.cuh and attention_decode.cuh for tiles 96 wide.
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_forward.cuh"

namespace hone::cuda::mma {

template <>
void RunForward<96>(const ForwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (profile != AttentionProfile::kSmall) return LaunchForward<ForwardTiles<96, 2, 4, 64, 2>>(args, host, stream);
  LaunchForward<ForwardTiles<96, 1, 4, 32, 2>>(args, host, stream);
}

template <>
int RunDecode<96>(const DecodeArgs& args, HostSegments host, int64_t partial_floats, cudaStream_t stream) {
  return LaunchDecode<DecodeTiles<96>>(args, host, partial_floats, stream);
}

}  // namespace hone::cuda::mma
