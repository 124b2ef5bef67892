// `random:DIR/config.json`: a model's shape with weights that depend only on their names. For tests and benches: no
// file but the configuration is needed. Matrices and biases are N(0, 0.02), norms 1 + N(0, 0.02), where N is the sum of
// four uniform 16-bit numbers, scaled: close to normal (|z| < 3.5) and made of integers, so equal on every machine.
#include <algorithm>
#include <bit>

#include "engine/io/hf_config.h"
#include "engine/io/model_source.h"
#include "proto/base/checked.h"
#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr float kDeviation = 0.02f;

// Counter-based: value i of a weight needs no other value. The mixer is splitmix64's finaliser.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

uint64_t KeyOf(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325ull;  // FNV-1a
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ull;
  return Mix(hash);
}

// N for `count` values from `first` on, times kDeviation, plus the mean; what the others are does not matter. Written
// for the compiler to vectorise: one copy for each instruction set below.
template <typename T, typename Convert>
inline __attribute__((always_inline)) void Generate(uint64_t key, float mean, uint64_t first, uint64_t count, T* out,
                                                    Convert convert) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t bits = Mix(key ^ Mix(first + i));
    const auto sum =
        static_cast<int32_t>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48));
    // Mean 2 * 65535; one uniform of 65536 values has variance (65536^2 - 1) / 12, four have a deviation of 37837.2...
    const float normal = static_cast<float>(sum - 131070) * (1.0f / 37837.227f);
    out[i] = convert(mean + kDeviation * normal);
  }
}

struct Range {
  uint64_t key;
  float mean;
  uint64_t first, count;
};

inline __attribute__((always_inline)) void GenerateAs(DType dtype, const Range& r, void* out) {
  if (dtype == DType::kF32) {
    Generate(r.key, r.mean, r.first, r.count, static_cast<float*>(out), [](float x) { return x; });
  } else {
    Generate(r.key, r.mean, r.first, r.count, static_cast<uint16_t*>(out), [](float x) {
      const uint32_t bits = std::bit_cast<uint32_t>(x);  // finite: no NaN to keep
      return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    });
  }
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) void GenerateAvx512(DType dtype, const Range& r,
                                                                                  void* out) {
  GenerateAs(dtype, r, out);
}
__attribute__((target("avx2"))) void GenerateAvx2(DType dtype, const Range& r, void* out) { GenerateAs(dtype, r, out); }
#endif

void GenerateBest(DType dtype, const Range& r, void* out) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    return GenerateAvx512(dtype, r, out);
  }
  if (__builtin_cpu_supports("avx2")) return GenerateAvx2(dtype, r, out);
#endif
  GenerateAs(dtype, r, out);
}

class RandomModel : public ModelFiles {
 public:
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& source, const std::string& config_path) {
    auto model = std::make_unique<RandomModel>();
    model->source_ = source;
    const size_t slash = config_path.find_last_of('/');
    model->directory_ = slash == std::string::npos ? "." : config_path.substr(0, std::max<size_t>(slash, 1));
    HONE_RETURN_IF_ERROR(model->Load(config_path));
    return model;
  }

  ModelSourceKind kind() const override { return ModelSourceKind::kRandom; }
  bool Has(std::string_view name) const override {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  }

  absl::StatusOr<StoredWeight> Describe(std::string_view name) const override {
    if (!Has(name)) return NotFound(source_, ": the model has no weight ", name);
    const WeightShape shape = ExpectedShape(config_, name);
    const auto elements = CheckedMul(static_cast<uint64_t>(shape.rows), static_cast<uint64_t>(shape.cols));
    const auto bytes = elements ? StorageBytes(dtype_, *elements) : std::nullopt;
    if (!bytes) return InvalidArgument(source_, ": the weight ", name, " is too large");
    return StoredWeight{.dtype = dtype_, .rows = shape.rows, .cols = shape.cols, .bytes = *bytes};
  }

  absl::Status Read(std::string_view name, const WeightDestination& destination) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    HONE_CHECK(destination.data != nullptr, "a weight has no destination");
    return ReadPart(name, 0, weight.bytes, destination.data);
  }

  absl::Status ReadScales(std::string_view, const WeightDestination&) const override { return absl::OkStatus(); }

  absl::Status ReadPart(std::string_view name, uint64_t offset, uint64_t bytes, void* out) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    const auto size = static_cast<uint64_t>(BlockBytes(weight.dtype));
    HONE_CHECK(offset <= weight.bytes && bytes <= weight.bytes - offset && offset % size == 0 && bytes % size == 0,
               name, ": part outside, or not of whole values");
    const float mean = name.ends_with("norm.weight") ? 1.0f : 0.0f;
    GenerateBest(weight.dtype, {KeyOf(name), mean, offset / size, bytes / size}, out);
    return absl::OkStatus();
  }

  std::vector<ListedTensor> Tensors() const override {
    std::vector<ListedTensor> out;
    for (const std::string& name : names_) {
      const auto weight = Describe(name);
      if (!weight.ok()) continue;
      std::vector<int64_t> shape = {weight->cols};
      if (!IsVector(name)) shape.insert(shape.begin(), weight->rows);
      out.push_back({name, dtype_ == DType::kF32 ? "F32" : "BF16", std::move(shape), weight->bytes});
    }
    return out;
  }

  absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer() const override {
    if (has_tokenizer_) return OpenTokenizerOnly(directory_);
    return Tokenizer::Bytes(static_cast<int>(config_.vocab_size));
  }

 private:
  absl::Status Load(const std::string& config_path) {
    HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path, uint64_t{4} << 20));
    auto parsed = ParseHfConfig(text);
    if (!parsed.ok()) return Annotate(parsed.status(), source_);
    config_ = parsed->decoder;
    dtype_ = parsed->dtype.value_or(DType::kF32) == DType::kF32 ? DType::kF32 : DType::kBF16;
    names_ = RequiredWeights(config_);
    for (const std::string& name : names_) HONE_RETURN_IF_ERROR(Describe(name).status());
    HONE_ASSIGN_OR_RETURN(const TextFiles files, ReadTextFiles(directory_));
    has_tokenizer_ = !files.tokenizer_json.empty();
    chat_template_ = files.chat_template;
    HONE_ASSIGN_OR_RETURN(template_tokens_, TokensOf(files));
    Sha256 sha;
    for (std::string_view part : {std::string_view("random"), std::string_view(text),
                                  std::string_view(files.tokenizer_json), std::string_view(files.chat_template)}) {
      DigestText(sha, part);
    }
    digest_ = sha.FinishHex();
    return absl::OkStatus();
  }

  std::string directory_;
  DType dtype_ = DType::kF32;
  bool has_tokenizer_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenRandom(const std::string& source, const std::string& config_path) {
  return RandomModel::Open(source, config_path);
}

}  // namespace hone
