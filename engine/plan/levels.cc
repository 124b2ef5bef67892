#include "engine/plan/levels.h"

#include <algorithm>
#include <charconv>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::string_view kApart = " apart";

absl::StatusOr<Recompute> LevelOf(std::string_view name) {
  for (const Recompute level : kRecomputeLevels) {
    if (RecomputeName(level) == name) return level;
  }
  return InvalidArgument("plan.recompute: '", name, "' is not none, activation, mlp, block or full");
}

}  // namespace

std::string_view RecomputeName(Recompute level) {
  switch (level) {
    case Recompute::kNone:
      return "none";
    case Recompute::kActivation:
      return "activation";
    case Recompute::kMlp:
      return "mlp";
    case Recompute::kBlock:
      return "block";
    case Recompute::kFull:
      return "full";
  }
  FailInvariant(__FILE__, __LINE__, "recompute level", "");
}

std::string RecomputeText(const std::vector<Recompute>& levels, bool decode_apart) {
  std::string text;
  for (auto run = levels.begin(); run != levels.end();) {
    const auto end = std::find_if(run, levels.end(), [&](Recompute level) { return level != *run; });
    if (run == levels.begin() && end == levels.end()) {
      text = RecomputeName(*run);
    } else {
      text += StrCat(text.empty() ? "" : ",", RecomputeName(*run), ":", end - run);
    }
    run = end;
  }
  return decode_apart ? text + std::string(kApart) : text;
}

absl::StatusOr<RecomputePlan> ParseRecompute(std::string_view text, int64_t layers) {
  RecomputePlan plan;
  if (text.ends_with(kApart)) {
    plan.decode_apart = true;
    text.remove_suffix(kApart.size());
  }
  if (text.find(':') == std::string_view::npos) {
    HONE_ASSIGN_OR_RETURN(const Recompute level, LevelOf(text));
    plan.levels.assign(layers, level);
    return plan;
  }
  while (!text.empty()) {
    const std::string_view run = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), run.size() + 1));
    const size_t colon = run.find(':');
    if (colon == std::string_view::npos) return InvalidArgument("plan.recompute: '", run, "' has no ':' and a count");
    HONE_ASSIGN_OR_RETURN(const Recompute level, LevelOf(run.substr(0, colon)));
    int64_t count = 0;
    const std::string_view number = run.substr(colon + 1);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), count);
    const auto left = layers - static_cast<int64_t>(plan.levels.size());
    if (error != std::errc() || end != number.data() + number.size() || count < 1 || count > left) {
      return InvalidArgument("plan.recompute: '", run, "': expected a count of layers from 1 to ", left);
    }
    plan.levels.insert(plan.levels.end(), count, level);
  }
  if (static_cast<int64_t>(plan.levels.size()) != layers) {
    return InvalidArgument("plan.recompute: ", plan.levels.size(), " layers, the model has ", layers);
  }
  return plan;
}

}  // namespace hone
