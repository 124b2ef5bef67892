// Job files, JSON specs and --set from strangers. Whatever is accepted must survive writing and reading, and resolving
// twice must equal resolving once. The first byte picks the door.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckAccepted(const hone::v1::JobSpec& spec) {
  const auto yaml = hone::SpecFromYaml(hone::SpecToYaml(spec), "again");
  Require(yaml.ok() && hone::SameResolvedSpec(*yaml, spec));
  const auto json = hone::SpecFromJson(hone::SpecToJson(spec));
  Require(json.ok() && hone::SameResolvedSpec(*json, spec));
  const auto resolved = hone::ResolveSpec(spec);
  if (!resolved.ok()) {
    Require(!hone::FieldOf(resolved.status()).empty());
    return;
  }
  const auto twice = hone::ResolveSpec(*resolved);
  Require(twice.ok() && hone::SameResolvedSpec(*resolved, *twice));
  hone::Advice(*resolved);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 4 == 1) {
    if (const auto spec = hone::SpecFromJson(text); spec.ok()) CheckAccepted(*spec);
  } else if (data[0] % 4 == 2) {
    hone::v1::JobSpec spec;
    spec.mutable_objective()->mutable_kto();
    if (hone::SetField(spec, text).ok()) CheckAccepted(spec);
  } else {
    if (const auto spec = hone::SpecFromYaml(text, "fuzz.yaml"); spec.ok()) CheckAccepted(*spec);
  }
  return 0;
}
