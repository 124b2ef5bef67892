#include "engine/plan/levels.h"

#include <algorithm>
#include <charconv>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::string_view kApart = " apart", kHost = " host";

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

std::string RecomputeText(const RecomputePlan& plan) {
  const std::vector<Recompute>& levels = plan.levels;
  std::string text;
  for (size_t begin = 0, end = 0; begin < levels.size(); begin = end) {
    auto like_first = [&](size_t layer) {
      return levels[layer] == levels[begin] && plan.on_host[layer] == plan.on_host[begin];
    };
    for (end = begin + 1; end < levels.size() && like_first(end);) ++end;
    text += StrCat(text.empty() ? "" : ",", RecomputeName(levels[begin]), plan.on_host[begin] ? kHost : "");
    if (end - begin < levels.size()) text += StrCat(":", end - begin);
  }
  return plan.decode_apart ? text + std::string(kApart) : text;
}

absl::StatusOr<RecomputePlan> ParseRecompute(std::string_view text, int64_t layers) {
  RecomputePlan plan;
  if (text.ends_with(kApart)) {
    plan.decode_apart = true;
    text.remove_suffix(kApart.size());
  }
  auto add = [&](std::string_view kind, int64_t count) -> absl::Status {
    const bool on_host = kind.ends_with(kHost);
    if (on_host) kind.remove_suffix(kHost.size());
    HONE_ASSIGN_OR_RETURN(const Recompute level, LevelOf(kind));
    plan.levels.insert(plan.levels.end(), count, level);
    plan.on_host.insert(plan.on_host.end(), count, on_host);
    return absl::OkStatus();
  };
  if (text.find(':') == std::string_view::npos) {
    HONE_RETURN_IF_ERROR(add(text, layers));
    return plan;
  }
  while (!text.empty()) {
    const std::string_view run = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), run.size() + 1));
    const size_t colon = run.find(':');
    if (colon == std::string_view::npos) return InvalidArgument("plan.recompute: '", run, "' has no ':' and a count");
    int64_t count = 0;
    const std::string_view number = run.substr(colon + 1);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), count);
    const auto left = layers - static_cast<int64_t>(plan.levels.size());
    if (error != std::errc() || end != number.data() + number.size() || count < 1 || count > left) {
      return InvalidArgument("plan.recompute: '", run, "': expected a count of layers from 1 to ", left);
    }
    HONE_RETURN_IF_ERROR(add(run.substr(0, colon), count));
  }
  if (static_cast<int64_t>(plan.levels.size()) != layers) {
    return InvalidArgument("plan.recompute: ", plan.levels.size(), " layers, the model has ", layers);
  }
  return plan;
}

}  // namespace hone
