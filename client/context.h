// What every command of `hone` gets: the environment, the terminal, the global flags, and a connection made when first
// asked for (so that --help and spec never touch gRPC).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/errors.h"
#include "client/places.h"
#include "client/terminal.h"

namespace hone {

struct Context {
  Environment environment;
  Terminal terminal;
  std::string socket_flag;
  std::string context_flag;     // --context: a name in the contexts' file
  std::string format = "text";  // -o: text, json, name
  bool quiet = false;
  std::unique_ptr<Client> client;
  std::string socket;  // where `client` is connected to

  bool json() const { return format == "json"; }
  absl::StatusOr<Client*> Connect() {
    if (client != nullptr) return client.get();
    const absl::Status connected = ConnectNow();
    if (!connected.ok()) return connected;
    return client.get();
  }
  // --socket, else --context, $HONE_CONTEXT or the current context, else this user's daemon, else the system's.
  absl::Status ConnectNow();
};

// Prints "hone: ..." with the hint to stderr and returns the exit code.
int Fail(const Context& context, const absl::Status& status);
// A remark on stderr, unless --quiet.
void Note(const Context& context, std::string_view text);
void Warn(const Context& context, std::string_view text);

// Early return for commands: `HONE_TRY(Client* const client, context.Connect())`.
#define HONE_TRY(declaration, expression) HONE_TRY_INNER_(HONE_CONCAT_(hone_try_, __LINE__), declaration, expression)
#define HONE_TRY_INNER_(temporary, declaration, expression)      \
  auto temporary = (expression);                                 \
  if (!temporary.ok()) return Fail(context, temporary.status()); \
  declaration = *std::move(temporary)

}  // namespace hone
