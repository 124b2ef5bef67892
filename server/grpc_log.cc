#include "server/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>
#include <cstring>

#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr int kMessagesAPeriod = 10;
// Above every severity: gRPC then does not even format its messages.
constexpr auto kSilent = static_cast<gpr_log_severity>(GPR_LOG_SEVERITY_ERROR + 1);

// gRPC's hook takes no argument of ours.
std::atomic<int> messages{0};

void Write(gpr_log_func_args* message) {
  const int count = ++messages;
  if (count > kMessagesAPeriod) return;
  const char* slash = std::strrchr(message->file, '/');
  spdlog::warn("gRPC: {}:{}: {}", slash == nullptr ? message->file : slash + 1, message->line, message->message);
  if (count < kMessagesAPeriod) return;
  spdlog::warn("gRPC has more to say; its messages are left out for some seconds");
  gpr_set_log_verbosity(kSilent);
}

}  // namespace

void RouteGrpcLog() {
  gpr_set_log_function(Write);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

void RefreshGrpcLog() {
  if (messages.exchange(0) >= kMessagesAPeriod) gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

}  // namespace hone
