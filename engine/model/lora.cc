#include "engine/model/lora.h"

#include <algorithm>
#include <cmath>

#include "proto/base/status.h"

namespace hone {
namespace {

bool Contains(const auto& list, const auto& value) { return std::find(list.begin(), list.end(), value) != list.end(); }

// SplitMix64 of a counter: any element can be drawn alone, so that the start does not depend on order.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

Tensor Flat(Tensor vector, int64_t offset, int64_t rows, int64_t cols) {
  Tensor view = vector.Cols(offset, rows * cols);
  view.rows = rows;
  view.cols = cols;
  view.pitch = cols;
  return view;
}

}  // namespace

float LoraConfig::scale() const {
  return static_cast<float>(alpha / (use_rslora ? std::sqrt(static_cast<double>(r)) : static_cast<double>(r)));
}

absl::StatusOr<LoraLayout> LoraLayout::Create(const DecoderConfig& decoder, const LoraConfig& config) {
  if (config.r < 1) return InvalidArgument("adapter.lora.r: ", config.r, " is not a rank; give at least 1");
  for (int64_t layer : config.layers) {
    if (layer < 0 || layer >= decoder.num_layers) {
      return InvalidArgument("adapter.lora.layers_to_transform: there is no layer ", layer,
                             "; the model has layers 0 to ", decoder.num_layers - 1);
    }
  }
  LoraLayout layout;
  layout.config_ = config;
  layout.groups_.resize(decoder.num_layers * kGroupKinds);
  for (int64_t layer = 0; layer < decoder.num_layers; ++layer) {
    if (!config.layers.empty() && !Contains(config.layers, layer)) continue;
    for (int g = 0; g < kGroupKinds; ++g) {
      LoraGroup& group = layout.groups_[layer * kGroupKinds + g];
      group.a_offset = layout.elements_;
      const auto members = MembersOf(static_cast<GroupKind>(g));
      const int first = static_cast<int>(layout.matrices_.size());
      for (size_t i = 0; i < members.size(); ++i) {
        if (!config.targets.empty() && !Contains(config.targets, members[i])) continue;
        const LinearShape shape = ShapeOf(decoder, members[i]);
        group.member[i] = static_cast<int>(layout.matrices_.size());
        group.sum_r += config.r;
        layout.matrices_.push_back({layer, members[i], config.r, shape.in, shape.out, layout.elements_, 0});
        layout.elements_ += config.r * shape.in;
      }
      for (size_t i = first; i < layout.matrices_.size(); ++i) {
        layout.matrices_[i].b_offset = layout.elements_;
        layout.elements_ += config.r * layout.matrices_[i].out;
      }
    }
  }
  if (layout.matrices_.empty()) return InvalidArgument("adapter.lora: no linear of this model is selected");
  return layout;
}

int64_t LoraLayout::first_layer() const { return matrices_.front().layer; }

Tensor Lora::A(const LoraMatrix& m) const { return Flat(values, m.a_offset, m.r, m.in); }
Tensor Lora::B(const LoraMatrix& m) const { return Flat(values, m.b_offset, m.out, m.r); }
Tensor Lora::StackedA(const LoraGroup& g, int64_t in) const { return Flat(values, g.a_offset, g.sum_r, in); }
Tensor Lora::GradB(const LoraMatrix& m) const { return Flat(gradients, m.b_offset, m.out, m.r); }
Tensor Lora::GradStackedA(const LoraGroup& g, int64_t in) const { return Flat(gradients, g.a_offset, g.sum_r, in); }

std::vector<float> InitialLoraValues(const LoraLayout& layout, uint64_t seed) {
  std::vector<float> values(layout.elements(), 0.0f);
  for (const LoraMatrix& m : layout.matrices()) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(m.in));
    const uint64_t stream = Mix(Mix(seed) ^ Mix(static_cast<uint64_t>(m.layer * kLinearKinds + int(m.kind)) + 1));
    for (int64_t i = 0; i < m.r * m.in; ++i) {
      const double unit = static_cast<double>(Mix(stream + static_cast<uint64_t>(i)) >> 11) * 0x1.0p-53;
      values[m.a_offset + i] = static_cast<float>(bound * (2 * unit - 1));
    }
  }
  return values;
}

}  // namespace hone
