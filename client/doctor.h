// hone doctor: what stands in the way of a job on this machine, each finding with its fix. The parts that read the
// machine are apart from the parts that judge, so that tests can give other machines.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "client/context.h"

namespace hone {

enum class Level { kOk, kInfo, kWarning, kProblem };

struct Finding {
  Level level = Level::kOk;
  std::string subject;  // "driver", "socket", ...
  std::string text;
  std::string fix;  // "" where nothing needs mending
};

// "580.95.05" from /proc/driver/nvidia/version or `nvidia-smi --query-gpu=driver_version`; "" if there is none.
std::string DriverVersion(std::string_view text);
// CUDA 13 needs driver 580 or newer (its release notes' table of minimum drivers).
Finding JudgeDriver(const std::string& version, bool card_on_the_bus);
Finding JudgeDisk(const std::string& path, uint64_t free_bytes);
Finding JudgeSocket(const std::string& path, SocketState state, const std::string& owner, const std::string& group,
                    unsigned mode);
std::string RenderFindings(const std::vector<Finding>& findings, bool colours);

}  // namespace hone
