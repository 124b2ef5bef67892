// JSON reports of the worker (data report, inspection) as indented text, and a plan's levels in words. Not here: what
// they mean.
#pragma once

#include <string>
#include <string_view>

namespace hone {

// Keys as written, nested objects indented, short lists on one line; lists of {"up_to", "examples"} are drawn as bars
// and lists of {"text", "trained"} as text, what is trained between « and ». Text that is no JSON comes back as it is.
std::string RenderReport(std::string_view json, bool colours = false);
// One line of JSON; text that is no JSON becomes a JSON string.
std::string OneLineJson(std::string_view json);
// A plan's recompute levels (proto/hone/v1/plan.proto) as counts: "block:1,none:2,block:1" is "block on 2 layers, none
// on 2". What has no counts comes back as it is.
std::string LevelsInWords(std::string_view recompute);

}  // namespace hone
