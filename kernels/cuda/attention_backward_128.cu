// attention_dq.cuh and attention_dkv.cuh for tiles 128 wide.
#include "kernels/cuda/attention_dkv.cuh"
#include "kernels/cuda/attention_dq.cuh"

namespace hone::cuda::mma {

template <>
void RunQueryGradient<128>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (QueryGradientOnHopper(args, host, profile, stream)) return;
  if (profile != AttentionProfile::kSmall)
    return LaunchQueryGradient<QueryGradientTiles<128, 2, 4, 32, 2>>(args, host, stream);
  LaunchQueryGradient<QueryGradientTiles<128, 1, 8, 32, 1>>(args, host, stream);
}

template <>
void RunKeyGradient<128>(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (KeyGradientOnHopper(args, host, profile, stream)) return;
  if (profile != AttentionProfile::kSmall)
    return LaunchKeyGradient<KeyGradientTiles<128, 2, 2, 32, 1, 2>>(args, host, stream);
  LaunchKeyGradient<KeyGradientTiles<128, 1, 4, 32, 1, 1>>(args, host, stream);
}

}  // namespace hone::cuda::mma
