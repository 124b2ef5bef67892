// The one exception of the template engine. It never leaves this room: ChatTemplate::Parse and Render turn it into a
// Status.
#pragma once

#include <stdexcept>
#include <string>

#include "proto/base/status.h"

namespace hone::jinja {

enum class Fault { kInvalid, kTooMuch };

// line 0: not known yet; whoever knows the node fills it in.
struct TemplateFault : std::runtime_error {
  TemplateFault(Fault fault, int line, const std::string& message)
      : std::runtime_error(message), fault(fault), line(line) {}
  Fault fault;
  int line;
};

template <typename... Args>
[[noreturn]] void Fail(const Args&... args) {
  throw TemplateFault(Fault::kInvalid, 0, StrCat(args...));
}
template <typename... Args>
[[noreturn]] void FailTooMuch(const Args&... args) {
  throw TemplateFault(Fault::kTooMuch, 0, StrCat(args...));
}

}  // namespace hone::jinja
