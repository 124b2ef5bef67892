#include "engine/worker/exports.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/io/export_model.h"
#include "engine/worker/inference.h"
#include "engine/worker/job.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::string_view kProbeTexts[] = {
    "What is the capital of France? The capital of France is Paris.",
    "def add(a, b):\n    return a + b\n",
    "In 1969 people first walked on the moon; they stayed for 21 hours.",
};

// merged:f32 holds the same numbers in another order of additions: below 1e-4 for adapters as training leaves them, and
// up to 1.3e-4 was seen with a violent one on 30 layers. More than this is a mistake.
constexpr double kExactTolerance = 1e-3;

struct Format {
  std::string_view name;
  DType dtype;
  bool gguf;
  std::string_view base;  // what the base's weights become
};

constexpr Format kFormats[] = {
    {"merged", DType::kBF16, false, "bf16"}, {"merged:f32", DType::kF32, false, "f32"},
    {"gguf:f16", DType::kF16, true, "f16"},  {"gguf:q8_0", DType::kQ8_0, true, "q8_0"},
    {"nf4", DType::kNf4, false, "nf4"},
};

nlohmann::ordered_json FileRow(const FileReceipt& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
}

absl::StatusOr<double> LargestLogitDifference(InferenceSession& a, InferenceSession& b, const ModelFiles& files) {
  double largest = 0;
  for (const std::vector<int32_t>& ids : ProbeSequences(files)) {
    HONE_ASSIGN_OR_RETURN(const std::vector<float> expected, a.Logits(ids));
    HONE_ASSIGN_OR_RETURN(const std::vector<float> actual, b.Logits(ids));
    if (expected.size() != actual.size()) return Internal("the exported model has another vocabulary");
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::abs(static_cast<double>(expected[i]) - actual[i]);
      if (!std::isfinite(difference)) return Internal("the exported model gives a logit that is not a number");
      largest = std::max(largest, difference);
    }
  }
  return largest;
}

}  // namespace

std::vector<std::vector<int32_t>> ProbeSequences(const ModelFiles& files) {
  std::vector<std::vector<int32_t>> sequences;
  const auto tokenizer = files.OpenTokenizer();
  const auto vocabulary = files.config().vocab_size;
  for (std::string_view text : kProbeTexts) {
    std::vector<int32_t> ids;
    if (tokenizer.ok()) {
      if (auto encoding = (*tokenizer)->Encode(text, true); encoding.ok()) ids = std::move(encoding->ids);
    }
    std::erase_if(ids, [&](int32_t id) { return id >= vocabulary; });
    if (ids.empty()) {
      for (unsigned char c : text) ids.push_back(static_cast<int32_t>((c * 7919u) % vocabulary));
    }
    sequences.push_back(std::move(ids));
  }
  return sequences;
}

absl::StatusOr<nlohmann::ordered_json> ExportJob(const ModelFiles& files, const std::string& adapter_dir,
                                                 const std::string& format, const std::string& output, Backend& backend,
                                                 std::optional<WeightQuantization> quantization) {
  const Format* chosen = nullptr;
  std::string known = "peft";
  for (const Format& row : kFormats) {
    known += StrCat(", ", row.name);
    if (row.name == format) chosen = &row;
  }
  if (chosen == nullptr && format != "peft") return InvalidArgument("format: '", format, "' is not one of ", known);
  std::optional<LoraAdapter> adapter;
  if (!adapter_dir.empty()) {
    HONE_ASSIGN_OR_RETURN(adapter, ReadPeftAdapter(adapter_dir, files.config()));
  }
  nlohmann::ordered_json receipt;
  receipt["format"] = format;
  receipt["output"] = output;
  if (chosen == nullptr) {
    if (!adapter.has_value()) return InvalidArgument("--adapter: peft needs one");
    HONE_ASSIGN_OR_RETURN(const auto written, WritePeftAdapter(output, *adapter, files.config()));
    for (const FileReceipt& file : written) receipt["files"].push_back(FileRow(file));
    return receipt;
  }
  const LoraAdapter* delta = adapter.has_value() ? &*adapter : nullptr;
  if (chosen->dtype == DType::kNf4) {
    if (delta != nullptr) return InvalidArgument("--adapter: nf4 quantises a base alone; export merged, then that");
    HONE_ASSIGN_OR_RETURN(const auto written, ExportNf4(files, output));
    for (const FileReceipt& file : written) receipt["files"].push_back(FileRow(file));
  } else if (chosen->gguf) {
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(output).parent_path(), ignored);
    HONE_ASSIGN_OR_RETURN(const FileReceipt file, ExportGguf(files, delta, chosen->dtype, output));
    receipt["files"].push_back(FileRow(file));
  } else {
    HONE_ASSIGN_OR_RETURN(const auto written, ExportMerged(files, delta, chosen->dtype, output));
    for (const FileReceipt& file : written) receipt["files"].push_back(FileRow(file));
  }
  // Compared with the base as it was trained on, except that a merge of a base quantised at load starts from its 16-bit
  // form.
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<ModelFiles> exported, ModelFiles::Open(output));
  const auto at_load = chosen->dtype == DType::kNf4 ? WeightQuantization::kNf4 : WeightQuantization::kNone;
  HONE_ASSIGN_OR_RETURN(const auto expected, InferenceSession::Open(backend, files, delta, at_load));
  HONE_ASSIGN_OR_RETURN(const auto actual, InferenceSession::Open(backend, *exported, nullptr));
  HONE_ASSIGN_OR_RETURN(const double difference, LargestLogitDifference(*expected, *actual, files));
  receipt["base"] = files.Quantization() == "none" ? StrCat("stored weights as ", chosen->base)
                                                   : StrCat(files.Quantization(), " decoded, then ", chosen->base);
  if (quantization == WeightQuantization::kNf4) {
    receipt["note"] =
        "trained on NF4 of this base; merged into its weights as stored, so it differs from training by NF4's error";
  }
  receipt["largest_logit_difference"] = difference;
  if (chosen->dtype == DType::kNf4 && difference != 0) {
    return Internal("export nf4: its logits differ from those of the base quantised at load by ", difference,
                    "; the files in ", output, " are not to be used");
  }
  if (chosen->dtype == DType::kF32 && difference > kExactTolerance && backend.ops().activation_dtype() == DType::kF32) {
    return Internal("export ", format, ": its logits differ from base + adapter by ", difference, ", more than ",
                    kExactTolerance, "; the files in ", output, " are not to be used");
  }
  return receipt;
}

}  // namespace hone
