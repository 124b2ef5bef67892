#include "tests/bench/noise_model.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "engine/io/gguf_quant.h"
#include "engine/io/model_source.h"
#include "engine/io/nf4.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kPool = size_t{1} << 24;
constexpr float kScale = 0.05f;

class NoiseModel : public ModelFiles {
 public:
  explicit NoiseModel(std::unique_ptr<ModelFiles> shape) : shape_(std::move(shape)) {
    source_ = shape_->source();
    config_ = shape_->config();
    names_ = shape_->names();
    digest_ = shape_->digest() + "-noise";
    std::mt19937_64 random(1);
    codes_.resize(kPool);
    for (size_t i = 0; i < kPool; i += 8) {
      const uint64_t bits = random();
      std::memcpy(codes_.data() + i, &bits, 8);
    }
    values_.resize(kPool / 2);
    for (size_t i = 0; i < values_.size(); ++i) {
      const float sum = static_cast<float>(codes_[2 * i]) + codes_[2 * i + 1] - 255.0f;  // a triangle, deviation 104
      values_[i] = FloatToBf16(0.02f / 104.0f * sum);
    }
  }

  ModelSourceKind kind() const override { return shape_->kind(); }
  bool Has(std::string_view name) const override { return shape_->Has(name); }

  absl::StatusOr<StoredWeight> Describe(std::string_view name) const override {
    HONE_ASSIGN_OR_RETURN(StoredWeight weight, shape_->Describe(name));
    const auto elements = static_cast<uint64_t>(weight.rows) * static_cast<uint64_t>(weight.cols);
    if (!IsLinearWeight(name)) {
      weight.dtype = DType::kBF16;
      weight.bytes = elements * 2;
      return weight;
    }
    const Nf4Sizes sizes = Nf4SizesOf(elements);
    weight.dtype = DType::kNf4;
    weight.bytes = sizes.code_bytes;
    weight.blocks = sizes.blocks;
    weight.nested = true;
    weight.nested_blocks = sizes.nested_blocks;
    return weight;
  }

  absl::Status Read(std::string_view name, const WeightDestination& to) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    if (IsVector(name)) {
      auto* out = static_cast<uint16_t*>(to.data);
      std::fill_n(out, weight.cols, FloatToBf16(name.ends_with("norm.weight") ? 1.0f : 0.01f));
      return absl::OkStatus();
    }
    const bool nf4 = weight.dtype == DType::kNf4;
    Repeat(nf4 ? static_cast<const void*>(codes_.data()) : values_.data(), kPool, to.data, weight.bytes);
    return ReadScales(name, to);
  }

  absl::Status ReadPart(std::string_view name, uint64_t offset, uint64_t bytes, void* out) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    (void)offset;  // noise anywhere
    Repeat(weight.dtype == DType::kNf4 ? static_cast<const void*>(codes_.data()) : values_.data(), kPool, out, bytes);
    return absl::OkStatus();
  }

  absl::Status ReadScales(std::string_view name, const WeightDestination& to) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    if (weight.dtype != DType::kNf4) return absl::OkStatus();
    Repeat(codes_.data(), kPool, to.absmax_codes, weight.blocks);
    std::copy(Nf4DynamicMap().begin(), Nf4DynamicMap().end(), to.nested_code);
    std::fill_n(to.nested_absmax, weight.nested_blocks, 0.1f * kScale);
    *to.nested_offset = kScale;
    return absl::OkStatus();
  }

  std::vector<ListedTensor> Tensors() const override { return shape_->Tensors(); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer() const override { return shape_->OpenTokenizer(); }

 private:
  static void Repeat(const void* pool, size_t size, void* out, size_t bytes) {
    for (size_t at = 0; at < bytes; at += size)
      std::memcpy(static_cast<char*>(out) + at, pool, std::min(size, bytes - at));
  }

  std::unique_ptr<ModelFiles> shape_;
  std::vector<uint8_t> codes_;
  std::vector<uint16_t> values_;
};

}  // namespace

std::unique_ptr<ModelFiles> MakeNoiseModel(std::unique_ptr<ModelFiles> shape) {
  return std::make_unique<NoiseModel>(std::move(shape));
}

}  // namespace hone
