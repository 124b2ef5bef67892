// Instantiates attention's kernels for Hopper; compiled for sm_90a alone (kernels/cuda/CMakeLists.txt).
#include "kernels/cuda/attention_hopper_dkv.cuh"
#include "kernels/cuda/attention_hopper_dq.cuh"
#include "kernels/cuda/attention_hopper_forward.cuh"

namespace hone::cuda::mma {
namespace {

bool Takes(const Problem& problem, AttentionProfile profile) {
  return profile == AttentionProfile::kHopper && problem.cap_scale == 0;
}

}  // namespace

bool ForwardOnHopper(const ForwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (!Takes(args.problem, profile)) return false;
  const int queries = hopper::kRows / args.problem.pack, decode_most = args.problem.decode_most;
  LaunchTiles(
      hopper::ForwardHopper, args, host, args.problem.heads / args.problem.pack,
      [=](const Segment& s) { return ForwardLevels(s, queries, decode_most); }, hopper::kThreads,
      hopper::ForwardShared::kSharedBytes, stream);
  return true;
}

bool QueryGradientOnHopper(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (!Takes(args.problem, profile)) return false;
  const int queries = hopper::kRows / args.problem.pack;
  LaunchTiles(
      hopper::QueryGradientHopper, args, host, args.problem.heads / args.problem.pack,
      [=](const Segment& s) { return QueryLevels(s, queries); }, hopper::kThreads, hopper::QueryTiles::kSharedBytes,
      stream);
  return true;
}

bool KeyGradientOnHopper(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream) {
  if (!Takes(args.problem, profile)) return false;
  LaunchTiles(
      hopper::KeyGradientHopper, args, host, args.problem.heads / args.problem.group,
      [](const Segment& s) { return KeyLevels(s, hopper::kRows); }, hopper::kThreads, hopper::KeyTiles::kSharedBytes,
      stream);
  return true;
}

}  // namespace hone::cuda::mma
