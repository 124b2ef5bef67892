// Whole models out of a base model and an adapter: a Hugging Face folder or a GGUF file. The delta s B A is computed
// and added in fp32 to the base's weight, which is its own 16-bit (or 32-bit) form or, for a quantised base, its
// decoded blocks; then rounded once to the output type. Comparing logits before an export is called done is the
// worker's part (engine/worker).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/io/model_files.h"
#include "engine/io/peft.h"
#include "engine/io/receipt.h"

namespace hone {

// Called with finished and total weights; returning false cancels (the export returns Cancelled and leaves no output).
using ExportProgress = std::function<bool(int64_t done, int64_t total)>;

// dtype kBF16 (`merged`) or kF32 (`merged:f32`). Writes config.json, generation_config.json, model.safetensors (shards
// of at most 5 GB), tokenizer.json, tokenizer_config.json and chat_template.jinja. From a folder the tokenizer files
// are copied; from a GGUF all are written from its metadata. adapter may be null.
absl::StatusOr<std::vector<FileReceipt>> ExportMerged(const ModelFiles& model, const LoraAdapter* adapter, DType dtype,
                                                      const std::string& directory,
                                                      const ExportProgress& progress = {});

// The base itself with its linears as double-quantised NF4 in bitsandbytes' form (`nf4`), to the bits that quantising
// at load gives; everything else as it is stored. For folders of plain weights.
absl::StatusOr<std::vector<FileReceipt>> ExportNf4(const ModelFiles& model, const std::string& directory,
                                                   const ExportProgress& progress = {});

// dtype kF16 (`gguf:f16`) or kQ8_0 (`gguf:q8_0`: matrices in blocks, norms and biases fp32).
absl::StatusOr<FileReceipt> ExportGguf(const ModelFiles& model, const LoraAdapter* adapter, DType dtype,
                                       const std::string& path, const ExportProgress& progress = {});

// The base weight with its delta, fp32 [rows, cols]: what both exports round.
absl::Status ReadMergedWeight(const ModelFiles& model, const LoraAdapter* adapter, const std::string& name,
                              std::vector<float>* out);

}  // namespace hone
