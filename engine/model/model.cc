#include "engine/model/model.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/model_files.h"
#include "engine/io/nf4.h"
#include "engine/model/weight_stream.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// What one reader fetches at once: large enough for a disk and a link, small enough that all of them have work within
// one weight. Multiples of every element's size.
constexpr uint64_t kPartBytes = uint64_t{8} << 20, kSmallPartBytes = uint64_t{2} << 20;

Tensor BytesTensor(void* data, uint64_t bytes) {
  const auto count = static_cast<int64_t>(bytes);
  return {data, DType::kU8, 1, count, count};
}

}  // namespace

// One pass over the model's weights in the order of the forward pass. On a dry arena nothing is read.
class ModelLoader {
 public:
  ModelLoader(const ModelFiles& files, const ModelPlacement& placement, Ops& ops, const ModelArenas& arenas,
              const Model::LoadProgress& progress)
      : files_(files),
        placement_(placement),
        quantization_(placement.quantization),
        ops_(ops),
        arena_(*arenas.weights),
        pinned_(arenas.pinned),
        staging_(arenas.staging != nullptr ? *arenas.staging : *arenas.weights),
        ring_(arenas.ring),
        progress_(progress) {}

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    auto model = LoadAll();
    if (parts_out_ > 0) ops_.Synchronize();  // after a failure: the ring is about to go
    return model;
  }

 private:
  absl::StatusOr<std::unique_ptr<Model>> LoadAll() {
    auto model = std::make_unique<Model>();
    const DecoderConfig& config = model->config_ = files_.config();
    if (!arena_.dry()) HONE_RETURN_IF_ERROR(StartReading(config));
    if (placement_.embedding_on_host && !config.tie_word_embeddings) {
      HONE_ASSIGN_OR_RETURN(model->embedding_, OnHost("model.embed_tokens.weight"));
    } else {
      HONE_ASSIGN_OR_RETURN(model->embedding_, Stored("model.embed_tokens.weight", false));
    }
    model->layers_.resize(config.num_layers);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      HONE_RETURN_IF_ERROR(layer < placement_.decoded_layers ? LoadDecodedLayer(layer, config, model->layers_[layer])
                                                             : LoadLayer(layer, config, model->layers_[layer]));
      if (progress_) progress_(layer + 1, config.num_layers);
    }
    HONE_ASSIGN_OR_RETURN(model->final_norm_, Vector({"model.norm.weight"}));
    if (config.tie_word_embeddings) {
      model->head_ = model->embedding_;
    } else {
      HONE_ASSIGN_OR_RETURN(model->head_, Stored("lm_head.weight", false));
    }
    const std::vector<float> frequencies = RopeInverseFrequencies(config);
    model->inv_freq_ = Put(frequencies);
    model->parameters_ = parameters_;
    return model;
  }

  // Starts the readers on every weight that goes to the device, in the order in which Stored asks for them.
  absl::Status StartReading(const DecoderConfig& config) {
    std::vector<std::string> names;
    if (!placement_.embedding_on_host || config.tie_word_embeddings) names.push_back("model.embed_tokens.weight");
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      for (int kind = 0; kind < kLinearKinds; ++kind) {  // also the order of the groups
        names.push_back(LinearModuleName(layer, static_cast<LinearKind>(kind)) + ".weight");
      }
    }
    if (!config.tie_word_embeddings) names.push_back("lm_head.weight");
    std::vector<WeightStream::Item> items;
    for (const std::string& name : names) {
      HONE_ASSIGN_OR_RETURN(const StoredWeight stored, files_.Describe(name));
      items.push_back({name, stored.bytes});
    }
    const int threads = ReaderThreads();
    uint64_t part_bytes = kPartBytes;
    if (ring_.empty()) {
      part_bytes = kSmallPartBytes;
      own_ring_.resize(part_bytes * (static_cast<size_t>(threads) + 3));
      ring_ = own_ring_;
    }
    stream_ = std::make_unique<WeightStream>(files_, std::move(items), ring_, part_bytes, threads);
    return absl::OkStatus();
  }

  // The elements of the next weight of the stream to the device. They are there when the device comes to it; the parts
  // they came in are given back when it has.
  absl::Status FromStream(const std::string& name, uint64_t bytes, void* out) {
    for (uint64_t at = 0; at < bytes;) {
      if (parts_out_ >= stream_->slots() / 2 || (parts_out_ > 0 && !stream_->Ready())) {
        ops_.Synchronize();
        ReleaseParts();
      }
      HONE_ASSIGN_OR_RETURN(const WeightStream::Part part, stream_->Next());
      HONE_CHECK(stream_->items()[part.item].name == name && part.offset == at, "the stream is at ",
                 stream_->items()[part.item].name, ", the loader at ", name);
      ops_.Upload(part.bytes.data(), BytesTensor(static_cast<char*>(out) + at, part.bytes.size()));
      at += part.bytes.size();
      ++parts_out_;
    }
    return absl::OkStatus();
  }

  void ReleaseParts() { stream_->Release(std::exchange(parts_out_, 0)); }

  absl::Status LoadLayer(int64_t layer, const DecoderConfig& config, LayerWeights& weights) {
    for (int kind = 0; kind < kLinearKinds; ++kind) {
      const std::string name = LinearModuleName(layer, static_cast<LinearKind>(kind)) + ".weight";
      HONE_ASSIGN_OR_RETURN(weights.linear[kind], Stored(name, true));
    }
    return LoadVectors(layer, config, weights);
  }

  absl::Status LoadVectors(int64_t layer, const DecoderConfig& config, LayerWeights& weights) {
    const std::string prefix = StrCat("model.layers.", layer, ".");
    HONE_ASSIGN_OR_RETURN(weights.input_norm, Vector({prefix + "input_layernorm.weight"}));
    if (config.qkv_bias) {
      HONE_ASSIGN_OR_RETURN(weights.qkv_bias,
                            Vector({prefix + "self_attn.q_proj.bias", prefix + "self_attn.k_proj.bias",
                                    prefix + "self_attn.v_proj.bias"}));
    }
    if (config.qk_norm) {
      HONE_ASSIGN_OR_RETURN(weights.q_norm, Vector({prefix + "self_attn.q_norm.weight"}));
      HONE_ASSIGN_OR_RETURN(weights.k_norm, Vector({prefix + "self_attn.k_norm.weight"}));
    }
    HONE_ASSIGN_OR_RETURN(weights.post_attention_norm, Vector({prefix + "post_attention_layernorm.weight"}));
    return absl::OkStatus();
  }

  // W' of every group first, then the layer in its stored form behind them; of that only norms and biases stay.
  absl::Status LoadDecodedLayer(int64_t layer, const DecoderConfig& config, LayerWeights& weights) {
    for (int g = 0; g < kGroupKinds; ++g) {
      const size_t index = layer * kGroupKinds + g;
      const int64_t spare = placement_.spare.empty() ? 0 : placement_.spare[index];
      int64_t n = 0, k = 0;
      for (LinearKind kind : MembersOf(static_cast<GroupKind>(g))) {
        n += ShapeOf(config, kind).out;
        k = ShapeOf(config, kind).in;
      }
      weights.decoded[g] = arena_.AllocateTensor(ops_.activation_dtype(), n + spare, k + spare);
    }
    {
      ArenaScope stored(arena_);
      const float* kept_code = nested_code_;
      for (int g = 0; g < kGroupKinds; ++g) {
        std::vector<AugmentPart> parts;
        for (LinearKind kind : MembersOf(static_cast<GroupKind>(g))) {
          const std::string name = LinearModuleName(layer, kind) + ".weight";
          HONE_ASSIGN_OR_RETURN(const WeightView view, Stored(name, true));
          parts.push_back({view, {}, 0});
          WeightView& shape = weights.linear[static_cast<int>(kind)];
          shape.dtype = view.dtype;
          shape.rows = view.rows;
          shape.cols = view.cols;
        }
        ops_.AugmentWeight(parts, {}, weights.decoded[g]);
      }
      ops_.Synchronize();
      nested_code_ = kept_code;  // a table that began in this scope ends with it
    }
    return LoadVectors(layer, config, weights);
  }

  void* Upload(const void* host, uint64_t bytes) {
    void* data = arena_.Allocate(bytes);
    if (!arena_.dry() && bytes > 0) ops_.Upload(host, BytesTensor(data, bytes));
    return data;
  }

  Tensor Put(const std::vector<float>& values) {
    const auto count = static_cast<int64_t>(values.size());
    return {Upload(values.data(), values.size() * sizeof(float)), DType::kF32, 1, count, count};
  }

  // Vectors laid one after the other, fp32.
  absl::StatusOr<Tensor> Vector(const std::vector<std::string>& names) {
    std::vector<float> values;
    for (const std::string& name : names) {
      HONE_ASSIGN_OR_RETURN(const StoredWeight stored, files_.Describe(name));
      const size_t begin = values.size();
      values.resize(begin + stored.rows * stored.cols);
      parameters_ += stored.rows * stored.cols;
      if (arena_.dry()) continue;
      HONE_RETURN_IF_ERROR(files_.ReadAsFloat(name, values.data() + begin));
    }
    return Put(values);
  }

  absl::StatusOr<WeightView> OnHost(const std::string& name) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight stored, files_.Describe(name));
    HONE_CHECK(pinned_ != nullptr && stored.dtype != DType::kNf4, name, " cannot lie on the host");
    parameters_ += stored.rows * stored.cols;
    WeightView view;
    view.dtype = stored.dtype;
    view.rows = stored.rows;
    view.cols = stored.cols;
    void* data = pinned_->Allocate(stored.bytes);
    view.data = data;
    if (!pinned_->dry()) HONE_RETURN_IF_ERROR(ReadInParallel(files_, name, stored.bytes, data, ReaderThreads()));
    return view;
  }

  absl::StatusOr<WeightView> Stored(const std::string& name, bool linear) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight stored, files_.Describe(name));
    parameters_ += stored.rows * stored.cols;
    if (linear && quantization_ == WeightQuantization::kNf4 && stored.dtype != DType::kNf4)
      return Quantised(name, stored);
    WeightView view;
    view.dtype = stored.dtype;
    view.rows = stored.rows;
    view.cols = stored.cols;
    void* data = arena_.Allocate(stored.bytes);
    view.data = data;
    if (!arena_.dry()) HONE_RETURN_IF_ERROR(FromStream(name, stored.bytes, data));
    if (stored.dtype == DType::kNf4) HONE_RETURN_IF_ERROR(Scales(name, stored, view));
    return view;
  }

  absl::Status Scales(const std::string& name, const StoredWeight& stored, WeightView& view) {
    std::vector<uint8_t> absmax_codes;
    std::vector<float> nested_code, nested_absmax, absmax;
    if (!arena_.dry()) {
      absmax_codes.resize(stored.nested ? stored.blocks : 0);
      nested_code.resize(stored.nested ? 256 : 0);
      nested_absmax.resize(stored.nested_blocks);
      absmax.resize(stored.nested ? 0 : stored.blocks);
      HONE_RETURN_IF_ERROR(files_.ReadScales(name, {.absmax_codes = absmax_codes.data(),
                                                    .nested_code = nested_code.data(),
                                                    .nested_absmax = nested_absmax.data(),
                                                    .nested_offset = &view.nested_offset,
                                                    .absmax = absmax.data()}));
    }
    if (stored.nested) {
      view.absmax_codes = static_cast<const uint8_t*>(Upload(absmax_codes.data(), stored.blocks));
      view.nested_code = static_cast<const float*>(Upload(nested_code.data(), 256 * sizeof(float)));
      view.nested_absmax =
          static_cast<const float*>(Upload(nested_absmax.data(), stored.nested_blocks * sizeof(float)));
    } else {
      view.absmax = static_cast<const float*>(Upload(absmax.data(), stored.blocks * sizeof(float)));
    }
    return absl::OkStatus();
  }

  // Encoded on the device, from the stored form where that is plain, else from its decoded values.
  absl::StatusOr<WeightView> Quantised(const std::string& name, const StoredWeight& stored) {
    const auto elements = static_cast<uint64_t>(stored.rows * stored.cols);
    const Nf4Sizes sizes = Nf4SizesOf(elements);
    if (nested_code_ == nullptr) {  // one table for all weights
      nested_code_ = static_cast<const float*>(Upload(Nf4DynamicMap().data(), 256 * sizeof(float)));
    }
    Nf4Buffers out;
    out.codes = static_cast<uint8_t*>(arena_.Allocate(sizes.code_bytes));
    out.absmax_codes = static_cast<uint8_t*>(arena_.Allocate(sizes.blocks));
    out.nested_absmax = static_cast<float*>(arena_.Allocate(sizes.nested_blocks * sizeof(float)));
    WeightView view;
    view.dtype = DType::kNf4;
    view.rows = stored.rows;
    view.cols = stored.cols;
    view.data = out.codes;
    view.absmax_codes = out.absmax_codes;
    view.nested_code = nested_code_;
    view.nested_absmax = out.nested_absmax;

    ArenaScope staged(staging_);
    const Tensor scratch = staging_.AllocateTensor(DType::kF32, 1, static_cast<int64_t>(sizes.blocks));
    void* raw = staging_.Allocate(stored.bytes);
    const bool plain = BlockElements(stored.dtype) == 1;
    Tensor values{raw, stored.dtype, stored.rows, stored.cols, stored.cols};
    if (!plain) values = staging_.AllocateTensor(DType::kF32, stored.rows, stored.cols);
    if (arena_.dry()) return view;
    HONE_RETURN_IF_ERROR(FromStream(name, stored.bytes, raw));
    if (!plain) {
      WeightView blocks;
      blocks.data = raw, blocks.dtype = stored.dtype, blocks.rows = stored.rows, blocks.cols = stored.cols;
      ops_.DecodeWeight(blocks, values);
    }
    view.nested_offset = ops_.EncodeNf4(values, out, scratch);
    ReleaseParts();  // EncodeNf4 waited for the device
    return view;
  }

  const ModelFiles& files_;
  const ModelPlacement& placement_;
  WeightQuantization quantization_;
  Ops& ops_;
  Arena& arena_;
  Arena* pinned_;
  Arena& staging_;
  std::span<std::byte> ring_;
  std::vector<std::byte> own_ring_;
  std::unique_ptr<WeightStream> stream_;  // after the ring it reads into
  size_t parts_out_ = 0;                  // taken, and perhaps still on their way to the device
  const Model::LoadProgress& progress_;
  const float* nested_code_ = nullptr;
  int64_t parameters_ = 0;
};

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ModelFiles& files, const ModelPlacement& placement, Ops& ops,
                                                   const ModelArenas& arenas, const LoadProgress& progress) {
  return ModelLoader(files, placement, ops, arenas, progress).Load();
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ModelFiles& files, WeightQuantization quantization, Ops& ops,
                                                   Arena& arena, const LoadProgress& progress) {
  ModelPlacement placement;
  placement.quantization = quantization;
  return Load(files, placement, ops, ModelArenas{&arena}, progress);
}

}  // namespace hone
