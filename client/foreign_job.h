// A training file of axolotl or LLaMA-Factory as a job file of ours. Pure: text in, a spec and a list of what became of
// every key out; nothing is dropped silently.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "hone/v1/spec.pb.h"

namespace hone {

enum class ForeignFormat { kAxolotl, kLlamaFactory };

struct ForeignJob {
  ForeignFormat format = ForeignFormat::kAxolotl;
  v1::JobSpec spec;
  std::vector<std::string> mapped;      // "lora_r: 16 -> adapter.lora.r"
  std::vector<std::string> not_needed;  // "flash_attention: the plan decides"
  std::vector<std::string> not_mapped;  // "deepspeed: zero3.json: there is nothing like it here"
};

// InvalidArgument if it is no YAML, or it is neither and `format_name` ("axolotl", "llama-factory") does not say.
absl::StatusOr<ForeignJob> ReadForeignJob(std::string_view yaml, std::string_view file_name,
                                          std::string_view format_name);
// A job file with comments that say what could not be mapped.
std::string ForeignJobYaml(const ForeignJob& job, std::string_view file_name);

}  // namespace hone
