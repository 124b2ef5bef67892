// attention_forward.cuh and attention_decode.cuh for tiles 256 wide.
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_forward.cuh"

namespace hone::cuda::mma {

template <>
void RunForward<256>(const ForwardArgs& args, HostSegments host, AttentionProfile /* profile */, cudaStream_t stream) {
  LaunchForward<ForwardTiles<256, 1, 4, 32, 1>>(args, host, stream);  // 96 KiB: for every card
}

template <>
int RunDecode<256>(const DecodeArgs& args, HostSegments host, int64_t partial_floats, cudaStream_t stream) {
  return LaunchDecode<DecodeTiles<256>>(args, host, partial_floats, stream);
}

}  // namespace hone::cuda::mma
