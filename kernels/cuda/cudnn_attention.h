// bf16 causal attention of packed documents through cuDNN's deterministic ragged graph, where the library is there and
// the card is one it was measured on (compute capability 9.0). A document's results depend on nothing but the document:
// not on what it is packed with, nor on how documents are cut into calls. Not here: prefixes, windows, softcap, a cache,
// other cards (kernels/cuda/attention*.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <compare>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/cuda/cudnn_budget.h"
#include "kernels/cuda/cudnn_library.h"
#include "kernels/ops.h"

namespace hone::cuda {

class CudnnAttention {
 public:
  // Loads cuDNN for the current device. An error says why attention does not go through it. `cudnn_bytes`: what one
  // call's plan may take (cudnn_budget.h). cuDNN compiles attention's kernels when a plan is made (through NVRTC, about
  // a second each); finished plans are kept in a folder of `cache` (empty: nowhere), from where they load in
  // milliseconds without a compiler.
  static absl::StatusOr<std::unique_ptr<CudnnAttention>> Open(uint64_t cudnn_bytes, std::string_view cache);

  // Whether the documents are bf16, causal, whole, packed from row 0 on in order, and none too long.
  bool Supports(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape) const;
  uint64_t WorkspaceBytes(const Segments& segments, const AttentionShape& shape, int64_t tokens) const;

  // As Ops::Attention and AttentionBackward. The first call with a new set of pitches, class and batch builds its plan
  // (host milliseconds). An error is cuDNN's.
  absl::Status Forward(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                       Tensor lse, void* workspace, uint64_t workspace_bytes, cudaStream_t stream);
  absl::Status Backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                        const AttentionShape& shape, Tensor dq, Tensor dk, Tensor dv, void* workspace,
                        uint64_t workspace_bytes, cudaStream_t stream);

  int64_t version() const { return library_->version(); }
  int64_t compiled() const { return compiled_; }          // plans that were made, not loaded
  void set_float_full(bool on) { float_full_ = on; }      // an experiment: full-head dk and dv in fp32

  void set_least_batch(int64_t n) { least_batch_ = n; }  // another: more empty documents

  // A plan's identity.
  struct PlanKey {
    bool backward = false;
    int64_t batch = 0, length = 0, kv_heads = 0, group = 0, head_dim = 0;
    std::array<int64_t, 8> pitches{};  // q, kv, out, d_out, lse, dq, dkv, full-head dkv
    bool float_full = false;
    auto operator<=>(const PlanKey&) const = default;
  };
  absl::StatusOr<const CudnnPlan*> PlanFor(const PlanKey& key);

 private:
  CudnnAttention(std::unique_ptr<CudnnLibrary> library, uint64_t cudnn_bytes, std::string folder)
      : library_(std::move(library)), cudnn_bytes_(cudnn_bytes), folder_(std::move(folder)) {}
  std::string PathOf(const PlanKey& key) const;

  std::unique_ptr<CudnnLibrary> library_;
  uint64_t cudnn_bytes_;
  std::string folder_;
  bool float_full_ = false;
  int64_t least_batch_ = 1;
  int64_t compiled_ = 0;
  std::map<PlanKey, std::unique_ptr<CudnnPlan>> plans_;
};

// cudnn_offsets.cu: writes each call's offsets (elements, by pitch: q, kv, out, d_out, lse, dq, dkv, full) and lengths.
void CudnnOffsets(Tensor segments, std::span<const CudnnCall> calls, const std::array<int64_t, 8>& pitches,
                  void* workspace, cudaStream_t stream);

}  // namespace hone::cuda
