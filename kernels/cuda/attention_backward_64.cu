// attention_dq.cuh and attention_dkv.cuh for tiles 64 wide.
#include "kernels/cuda/attention_dkv.cuh"
#include "kernels/cuda/attention_dq.cuh"

namespace hone::cuda::mma {

template <>
void RunQueryGradient<64>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (profile != AttentionProfile::kSmall)
    return LaunchQueryGradient<QueryGradientTiles<64, 2, 4, 64, 2>>(args, host, stream);
  LaunchQueryGradient<QueryGradientTiles<64, 1, 8, 32, 1>>(args, host, stream);
}

template <>
void RunKeyGradient<64>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (profile != AttentionProfile::kSmall)
    return LaunchKeyGradient<KeyGradientTiles<64, 2, 2, 64, 1, 2>>(args, host, stream);
  LaunchKeyGradient<KeyGradientTiles<64, 1, 4, 32, 1, 1>>(args, host, stream);
}

}  // namespace hone::cuda::mma
