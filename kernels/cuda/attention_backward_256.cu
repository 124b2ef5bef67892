// attention_dq.cuh and attention_dkv.cuh for tiles 256 wide.
#include "kernels/cuda/attention_dkv.cuh"
#include "kernels/cuda/attention_dq.cuh"

namespace hone::cuda::mma {

template <>
void RunQueryGradient<256>(const BackwardArgs& args, HostSegments host, AttentionProfile /* profile */,
                           cudaStream_t stream) {
  LaunchQueryGradient<QueryGradientTiles<256, 1, 4, 16, 1>>(args, host, stream);  // 96 KiB: for every card
}

template <>
void RunKeyGradient<256>(const BackwardArgs& args, HostSegments host, AttentionProfile /* profile */,
                         cudaStream_t stream) {
  LaunchKeyGradient<KeyGradientTiles<256, 1, 2, 16, 1, 1>>(args, host, stream);  // 90 KiB: for every card
}

}  // namespace hone::cuda::mma
