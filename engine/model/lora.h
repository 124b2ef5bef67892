// LoRA adapters (arXiv 2106.09685): y += s * (x A^T) B^T with A [r, in], B [out, r], s = alpha / r (rsLoRA: alpha /
// sqrt(r)). All matrices of an adapter live in one flat fp32 vector, and so do their gradients; this file says where.
// Linears that share an input form a group whose A matrices are stacked ([sum r, in], contiguous), so that one product
// serves them all. Not here: how they are applied (linear.h), how they are stored on disk (engine/io/peft.h).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder_config.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

struct LoraConfig {
  int64_t r = 16;
  double alpha = 16;
  bool use_rslora = false;
  std::vector<LinearKind> targets;  // empty: all
  std::vector<int64_t> layers;      // empty: all
  float scale() const;
};

struct LoraMatrix {
  int64_t layer = 0;
  LinearKind kind = LinearKind::kQ;
  int64_t r = 0, in = 0, out = 0;
  int64_t a_offset = 0;  // in elements of the flat vector; A is [r, in]
  int64_t b_offset = 0;  // B is [out, r]
};

// One group's adapters: indices into LoraLayout::matrices(), -1 where a member has none.
struct LoraGroup {
  std::array<int, 3> member = {-1, -1, -1};
  int64_t a_offset = 0;  // of the stacked A
  int64_t sum_r = 0;
};

class LoraLayout {
 public:
  static absl::StatusOr<LoraLayout> Create(const DecoderConfig& decoder, const LoraConfig& config);
  const LoraConfig& config() const { return config_; }
  std::span<const LoraMatrix> matrices() const { return matrices_; }
  int64_t elements() const { return elements_; }
  const LoraGroup& group(int64_t layer, GroupKind kind) const { return groups_[layer * kGroupKinds + int(kind)]; }
  int64_t first_layer() const;  // lowest layer with an adapter: gradients stop there

 private:
  LoraConfig config_;
  std::vector<LoraMatrix> matrices_;
  std::vector<LoraGroup> groups_;
  int64_t elements_ = 0;
};

// The values, and where training has them, the gradients: both fp32 [1, elements].
struct Lora {
  const LoraLayout* layout = nullptr;
  Tensor values;
  Tensor gradients;  // empty when only applied

  Tensor A(const LoraMatrix& m) const;  // [r, in]
  Tensor B(const LoraMatrix& m) const;  // [out, r]
  Tensor StackedA(const LoraGroup& g, int64_t in) const;
  Tensor GradB(const LoraMatrix& m) const;
  Tensor GradStackedA(const LoraGroup& g, int64_t in) const;
};

// PEFT's default start: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt(5)), B zero. From the seed alone, matrix by
// matrix.
std::vector<float> InitialLoraValues(const LoraLayout& layout, uint64_t seed);

}  // namespace hone
