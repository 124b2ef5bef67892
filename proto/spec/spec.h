// The job spec between people and programs: YAML and JSON <-> hone.v1.JobSpec, `--set`, defaults, validation, help.
// Everything follows from the descriptors and their (hone.v1.field) and (hone.v1.value) options: a field added to
// spec.proto needs no code here unless it has a computed default or a rule that joins it to another field.
// Not here: files and paths (the client makes them absolute and uploads data), memory plans, models, data.
//
// Errors are InvalidArgument; where one field is at fault its path ("optimizer.learning_rate") travels as a payload
// that FieldOf() reads. Messages open with what is known of the place: "job.yaml:7:3: optimizer.learing_rate: unknown
// field; ...".
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/spec.pb.h"

namespace hone {

// Payload of a status: the path of the field at fault, as users write it.
inline constexpr std::string_view kFieldPayload = "hone.dev/field";

// InvalidArgument "path: message" with the payload. An empty path gives a plain InvalidArgument.
absl::Status FieldError(std::string_view path, std::string_view message);
// The path in the payload, or "".
std::string FieldOf(const absl::Status& status);

// Where fields stand in the file they were read from; lines and columns count from 1.
struct SpecPositions {
  std::string file_name;
  std::map<std::string, std::pair<int, int>, std::less<>> fields;
  // The same status with "file:line:column: " in front, if its field (or the nearest parent of it) is known.
  absl::Status Locate(const absl::Status& status) const;
};

// Reads a job file; `file_name` is for messages only. At most 1 MiB, 16 levels, 10,000 nodes after aliases. Ranges of
// single fields are checked; what needs defaults or other fields is ResolveSpec's. YAML null means "not set".
absl::StatusOr<v1::JobSpec> SpecFromYaml(std::string_view yaml, std::string_view file_name,
                                         SpecPositions* positions = nullptr);
// The same from strict JSON (RFC 8259); messages name the field, not the line. Also reads protobuf's own JSON enum
// names.
absl::StatusOr<v1::JobSpec> SpecFromJson(std::string_view json, std::string_view file_name = "spec");

// `--set optimizer.learning_rate=5e-5`. Lists: "[a, b]" or "a,b"; messages: "{r: 8}"; an empty value or null unsets.
absl::Status SetField(v1::JobSpec& spec, std::string_view path_equals_value);

// Only what is set, in field order; short enum names; sizes as numbers of bytes. Both read back equal.
std::string SpecToYaml(const v1::JobSpec& spec);
std::string SpecToJson(const v1::JobSpec& spec, bool pretty = false);

// Fills every default that can be known without the model, the data and the device, and checks everything that can be
// checked without them. Idempotent. Left open: run.precision and run.device "auto", save_steps when max_steps is not
// given, eval_steps, memory.vram_budget, memory.micro_batch_tokens, layers_to_transform (empty: all layers).
absl::StatusOr<v1::JobSpec> ResolveSpec(const v1::JobSpec& spec);

// Warnings for people, one sentence each; they never change anything.
std::vector<std::string> Advice(const v1::JobSpec& resolved);

// Deterministic serialisation, equal if and only if the specs are; good for digests and comparisons on one machine.
std::string CanonicalSpecBytes(const v1::JobSpec& spec);
bool SameResolvedSpec(const v1::JobSpec& a, const v1::JobSpec& b);

// Whether model.source names files (a slash, .gguf at the end, or random:) rather than a model in the registry.
bool IsModelPath(std::string_view source);

// Help for one field ("optimizer", "optimizer.learning_rate") or, for "", the whole spec as an annotated outline.
absl::StatusOr<std::string> SpecHelp(std::string_view field_path);
// The reference page, proto/spec/REFERENCE.md.
std::string SpecReferenceMarkdown();

}  // namespace hone
