// JSON reports of the worker (data report, inspection) as indented text. Not here: what they mean.
#pragma once

#include <string>
#include <string_view>

namespace hone {

// Keys as written, nested objects indented, short lists on one line; lists of {"up_to", "examples"} are drawn as bars
// and lists of {"text", "trained"} as text, what is trained between « and ». Text that is no JSON comes back as it is.
std::string RenderReport(std::string_view json, bool colours = false);
// One line of JSON; text that is no JSON becomes a JSON string.
std::string OneLineJson(std::string_view json);

}  // namespace hone
