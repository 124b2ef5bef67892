// attention_dq.cuh and attention_dkv.cuh for tiles 96 wide.
#include "kernels/cuda/attention_dkv.cuh"
#include "kernels/cuda/attention_dq.cuh"

namespace hone::cuda::mma {

template <>
void RunQueryGradient<96>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (profile != AttentionProfile::kSmall)
    return LaunchQueryGradient<QueryGradientTiles<96, 2, 4, 32, 2>>(args, host, stream);
  LaunchQueryGradient<QueryGradientTiles<96, 1, 8, 32, 1>>(args, host, stream);
}

template <>
void RunKeyGradient<96>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (profile != AttentionProfile::kSmall)
    return LaunchKeyGradient<KeyGradientTiles<96, 2, 4, 32, 1, 1>>(args, host, stream);
  LaunchKeyGradient<KeyGradientTiles<96, 1, 4, 32, 1, 1>>(args, host, stream);
}

}  // namespace hone::cuda::mma
