#include "engine/model/model.h"

#include <cstring>
#include <string>

#include "engine/io/model_files.h"
#include "engine/io/nf4.h"
#include "proto/base/status.h"

namespace hone {
namespace {

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
        progress_(progress) {}

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    auto model = std::make_unique<Model>();
    const DecoderConfig& config = model->config_ = files_.config();
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

 private:
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
    if (!pinned_->dry()) HONE_RETURN_IF_ERROR(files_.Read(name, {data}));
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
    // The stored form goes through host memory once; where arena memory is the host's this is one extra copy at load.
    std::vector<uint8_t> bytes, absmax_codes;
    std::vector<float> nested_code, nested_absmax, absmax;
    if (!arena_.dry()) {
      bytes.resize(stored.bytes);
      absmax_codes.resize(stored.nested ? stored.blocks : 0);
      nested_code.resize(stored.nested ? 256 : 0);
      nested_absmax.resize(stored.nested_blocks);
      absmax.resize(stored.nested ? 0 : stored.blocks);
      WeightDestination destination{bytes.data(),         absmax_codes.data(), nested_code.data(),
                                    nested_absmax.data(), &view.nested_offset, absmax.data()};
      HONE_RETURN_IF_ERROR(files_.Read(name, destination));
    }
    view.data = Upload(bytes.data(), stored.bytes);
    if (stored.dtype != DType::kNf4) return view;
    if (stored.nested) {
      view.absmax_codes = static_cast<const uint8_t*>(Upload(absmax_codes.data(), stored.blocks));
      view.nested_code = static_cast<const float*>(Upload(nested_code.data(), 256 * sizeof(float)));
      view.nested_absmax =
          static_cast<const float*>(Upload(nested_absmax.data(), stored.nested_blocks * sizeof(float)));
    } else {
      view.absmax = static_cast<const float*>(Upload(absmax.data(), stored.blocks * sizeof(float)));
    }
    return view;
  }

  absl::StatusOr<WeightView> Quantised(const std::string& name, const StoredWeight& stored) {
    const auto elements = static_cast<uint64_t>(stored.rows * stored.cols);
    const Nf4Sizes sizes = Nf4SizesOf(elements);
    WeightView view;
    view.dtype = DType::kNf4;
    view.rows = stored.rows;
    view.cols = stored.cols;
    std::vector<uint8_t> codes, absmax_codes;
    std::vector<float> nested_absmax;
    if (!arena_.dry()) {
      std::vector<float> values(elements);
      HONE_RETURN_IF_ERROR(files_.ReadAsFloat(name, values.data()));
      codes.resize(sizes.code_bytes);
      absmax_codes.resize(sizes.blocks);
      nested_absmax.resize(sizes.nested_blocks);
      Nf4Parts parts{codes.data(), absmax_codes.data(), nested_absmax.data(), 0};
      EncodeNf4(values.data(), elements, parts);
      view.nested_offset = parts.nested_offset;
    }
    if (nested_code_ == nullptr) {  // one table for all weights
      nested_code_ = static_cast<const float*>(Upload(Nf4DynamicMap().data(), 256 * sizeof(float)));
    }
    view.nested_code = nested_code_;
    view.data = Upload(codes.data(), sizes.code_bytes);
    view.absmax_codes = static_cast<const uint8_t*>(Upload(absmax_codes.data(), sizes.blocks));
    view.nested_absmax = static_cast<const float*>(Upload(nested_absmax.data(), sizes.nested_blocks * sizeof(float)));
    return view;
  }

  const ModelFiles& files_;
  const ModelPlacement& placement_;
  WeightQuantization quantization_;
  Ops& ops_;
  Arena& arena_;
  Arena* pinned_;
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
