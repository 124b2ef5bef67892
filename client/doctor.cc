#include "client/doctor.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <filesystem>

#include "client/commands.h"
#include "nlohmann/json.hpp"
#include "proto/base/build_info.h"
#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kMinimumDriver = 580;
constexpr uint64_t kLowDisk = uint64_t{5} << 30;
constexpr uint64_t kNoDisk = uint64_t{1} << 30;

std::string SmallFile(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, 1 << 20);
  return text.ok() ? *text : "";
}

// First 4 KiB of what a command prints; "" if it cannot run or takes longer than five seconds.
std::string CommandOutput(const std::string& command) {
  FILE* pipe = popen(StrCat("timeout 5 ", command, " 2>&1").c_str(), "r");
  if (pipe == nullptr) return "";
  std::array<char, 4096> buffer{};
  const size_t count = fread(buffer.data(), 1, buffer.size(), pipe);
  const int status = pclose(pipe);
  return status == 0 ? std::string(buffer.data(), count) : "";
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string UserName(uid_t uid) {
  const passwd* entry = getpwuid(uid);
  return entry != nullptr ? entry->pw_name : StrCat(static_cast<uint64_t>(uid));
}
std::string GroupName(gid_t gid) {
  const group* entry = getgrgid(gid);
  return entry != nullptr ? entry->gr_name : StrCat(static_cast<uint64_t>(gid));
}

bool NvidiaCardOnBus() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/bus/pci/devices", error)) {
    const std::string vendor = SmallFile(entry.path().string() + "/vendor");
    const std::string kind = SmallFile(entry.path().string() + "/class");
    if (vendor.rfind("0x10de", 0) == 0 && kind.rfind("0x03", 0) == 0) return true;
  }
  return false;
}

std::string InstalledDriver() {
  const std::string version = DriverVersion(SmallFile("/proc/driver/nvidia/version"));
  return !version.empty()
             ? version
             : DriverVersion(FirstLine(CommandOutput("nvidia-smi --query-gpu=driver_version --format=csv,noheader")));
}

void CheckCards(std::vector<Finding>& findings) {
  const std::string list = CommandOutput("nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv,noheader");
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find('\n', at), list.size());
    findings.push_back({Level::kOk, "card", Printable(list.substr(at, end - at)), ""});
    at = end + 1;
  }
  for (const char* device : {"/dev/nvidiactl", "/dev/nvidia0"}) {
    struct stat info {};
    if (stat(device, &info) != 0 || access(device, R_OK | W_OK) == 0) continue;
    findings.push_back({Level::kProblem, "card", StrCat(device, " may not be opened by ", UserName(geteuid())),
                        StrCat("add the user to group ", GroupName(info.st_gid), ": sudo usermod -aG ",
                               GroupName(info.st_gid), " ", UserName(geteuid()), ", then log in again")});
  }
}

// True if one answers.
bool CheckSockets(const Context& context, std::vector<Finding>& findings) {
  bool answers = false;
  for (const std::string& path : SocketCandidates(context.environment, context.socket_flag)) {
    struct stat info {};
    const bool there = stat(path.c_str(), &info) == 0;
    const SocketState state = ProbeSocket(path);
    answers = answers || state == SocketState::kAnswers;
    findings.push_back(JudgeSocket(path, state, there ? UserName(info.st_uid) : "", there ? GroupName(info.st_gid) : "",
                                   there ? info.st_mode & 07777 : 0));
  }
  return answers;
}

void CheckDaemon(Context& context, std::vector<Finding>& findings) {
  const absl::StatusOr<Client*> client = context.Connect();
  if (!client.ok()) return;
  const absl::StatusOr<v1::DaemonStatus> status = (*client)->GetStatus();
  if (!status.ok()) {
    findings.push_back({Level::kProblem, "daemon", StrCat("does not answer: ", status.status().message()),
                        "hone daemon restart, then look into honed.log"});
    return;
  }
  const bool same = status->build_id() == BuildId();
  findings.push_back({same ? Level::kOk : Level::kWarning, "daemon",
                      StrCat("honed ", status->version(), ", build ", status->build_id(),
                             same ? "" : StrCat("; this client is build ", BuildId())),
                      same ? "" : "hone daemon restart"});
  const absl::StatusOr<v1::ListDevicesResponse> devices = (*client)->ListDevices();
  if (!devices.ok()) return;
  for (const v1::DeviceInfo& device : devices->devices()) {
    findings.push_back(
        {device.usable() ? Level::kOk : Level::kInfo, "device",
         StrCat(Printable(device.name()), ": ", Printable(device.description()), ", ", FormatBytes(device.free_bytes()),
                " free", device.note().empty() ? "" : StrCat(" (", Printable(device.note()), ")")),
         ""});
  }
}

void CheckPrograms(std::vector<Finding>& findings) {
  for (const char* name : {"honed", "honed-worker"}) {
    const std::string path = StrCat(ProgramDirectory(), "/", name);
    if (access(path.c_str(), X_OK) == 0) {
      findings.push_back({Level::kOk, "program", path, ""});
    } else {
      findings.push_back(
          {Level::kProblem, "program", StrCat("no ", path), "build or install all three programs into one folder"});
    }
  }
}

// Every start of the worker checks OpenBLAS's products and falls back to a safe core type, saying so on stderr.
void CheckWorker(std::vector<Finding>& findings) {
  const std::string path = ProgramDirectory() + "/honed-worker";
  if (access(path.c_str(), X_OK) != 0) return;
  std::string quoted = "'";
  for (char c : path) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  const std::string output = CommandOutput(quoted + "' --version");
  if (output.empty()) {
    findings.push_back({Level::kProblem, "worker", "honed-worker --version failed",
                        "run it by hand to see why; a missing library is the usual cause: ldd " + path});
  }
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    const std::string line = Printable(output.substr(at, end - at));
    at = end + 1;
    const bool version = line.rfind("honed-worker ", 0) == 0 && line.rfind("honed-worker: ", 0) != 0;
    findings.push_back({version ? Level::kOk : Level::kInfo, "worker", line, ""});
  }
}

std::string CheckedStateDir(const Context& context, std::vector<Finding>& findings) {
  std::string dir = UserStateDir(context.environment);
  struct stat info {};
  if (stat(dir.c_str(), &info) == 0) {
    if (access(dir.c_str(), W_OK) != 0) {
      findings.push_back({Level::kProblem, "state",
                          StrCat(dir, " belongs to ", UserName(info.st_uid), " and may not be written"),
                          StrCat("sudo chown -R ", UserName(geteuid()), " ", dir)});
    } else {
      findings.push_back({Level::kOk, "state", dir, ""});
    }
    return dir;
  }
  findings.push_back({Level::kInfo, "state", StrCat(dir, " does not exist yet; the daemon makes it"), ""});
  while (dir.size() > 1 && stat(dir.c_str(), &info) != 0) dir = std::filesystem::path(dir).parent_path().string();
  return dir;
}

const char* LevelName(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kInfo:
      return "info";
    case Level::kWarning:
      return "warning";
    case Level::kProblem:
      return "problem";
  }
  return "";
}

}  // namespace

std::string DriverVersion(std::string_view text) {
  // Three digits or more, a dot, digits: "580.95.05". Kernel module lines hold other numbers, but none of that form.
  for (size_t at = 0; at < text.size(); ++at) {
    if (!std::isdigit(static_cast<unsigned char>(text[at])) ||
        (at > 0 && (std::isalnum(static_cast<unsigned char>(text[at - 1])) || text[at - 1] == '.')))
      continue;
    size_t end = at;
    while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) || text[end] == '.')) ++end;
    const std::string_view word = text.substr(at, end - at);
    const size_t dot = word.find('.');
    if (dot != std::string_view::npos && dot >= 3 && dot + 1 < word.size()) return std::string(word);
    at = end;
  }
  return "";
}

Finding JudgeDriver(const std::string& version, bool card_on_the_bus) {
  if (version.empty() && card_on_the_bus) {
    return {
        Level::kProblem, "driver", "an NVIDIA card is there, its driver is not",
        "install NVIDIA driver 580 or newer (Debian: from NVIDIA's CUDA repository, package nvidia-open), then reboot"};
  }
  if (version.empty()) return {Level::kInfo, "driver", "no NVIDIA card; jobs run on the CPU", ""};
  const int major = std::atoi(version.c_str());
  if (major >= kMinimumDriver) return {Level::kOk, "driver", StrCat("NVIDIA ", version), ""};
  return {Level::kProblem, "driver", StrCat("NVIDIA ", version, "; CUDA 13 needs ", kMinimumDriver, " or newer"),
          StrCat("install NVIDIA driver ", kMinimumDriver, " or newer, then reboot; until then use run.device: cpu")};
}

Finding JudgeDisk(const std::string& path, uint64_t free_bytes) {
  const std::string text = StrCat(FormatBytes(free_bytes), " free at ", path);
  if (free_bytes >= kLowDisk) return {Level::kOk, "disk", text, ""};
  return {free_bytes < kNoDisk ? Level::kProblem : Level::kWarning, "disk", text,
          StrCat("free some space, or keep the state elsewhere: hone daemon start --state-dir DIR; a merged model "
                 "needs its own size")};
}

Finding JudgeSocket(const std::string& path, SocketState state, const std::string& owner, const std::string& group,
                    unsigned mode) {
  char octal[16];
  std::snprintf(octal, sizeof octal, "%04o", mode);
  const std::string text = StrCat(path, ": ", Describe(state));
  const std::string who = owner.empty() ? "" : StrCat(" (", owner, ":", group, " ", octal, ")");
  switch (state) {
    case SocketState::kAnswers:
      return {Level::kOk, "socket", text + who, ""};
    case SocketState::kMissing:
      return {Level::kInfo, "socket", text, ""};
    case SocketState::kRefused:
      return {Level::kWarning, "socket", text + who, "hone daemon start"};
    case SocketState::kDenied:
      return {Level::kProblem, "socket", text + who,
              group.empty()
                  ? "the folder may not be entered; ask its owner, or use a daemon of your own: hone daemon start"
                  : StrCat("join its group: sudo usermod -aG ", group, " $USER, then log in again")};
    case SocketState::kNotASocket:
      return {Level::kProblem, "socket", text + who, StrCat("move the file away: mv ", path, " ", path, ".old")};
    case SocketState::kTooLong:
      return {Level::kProblem, "socket", text, "choose a shorter one: --socket /tmp/hone.sock"};
  }
  return {};
}

std::string RenderFindings(const std::vector<Finding>& findings, bool colours) {
  std::string out;
  for (const Finding& finding : findings) {
    Colour colour = Colour::kGreen;
    if (finding.level == Level::kInfo) colour = Colour::kDim;
    if (finding.level == Level::kWarning) colour = Colour::kYellow;
    if (finding.level == Level::kProblem) colour = Colour::kRed;
    std::string level = LevelName(finding.level);
    level.resize(9, ' ');
    std::string subject = finding.subject;
    subject.resize(std::max<size_t>(9, subject.size() + 1), ' ');
    out += StrCat(Paint(colours, colour, level), subject, finding.text, "\n");
    if (!finding.fix.empty()) out += StrCat(std::string(18, ' '), "fix: ", finding.fix, "\n");
  }
  return out;
}

int RunDoctor(Context& context) {
  std::vector<Finding> findings;
  CheckPrograms(findings);
  CheckWorker(findings);
  const bool answers = CheckSockets(context, findings);
  if (answers) {
    CheckDaemon(context, findings);
  } else {
    findings.push_back({Level::kWarning, "daemon", "none is running", "hone daemon start"});
  }
  const std::string state_dir = CheckedStateDir(context, findings);
  struct statvfs disk {};
  if (statvfs(state_dir.c_str(), &disk) == 0)
    findings.push_back(JudgeDisk(state_dir, static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize));
  const std::string driver = InstalledDriver();
  findings.push_back(JudgeDriver(driver, NvidiaCardOnBus()));
  if (!driver.empty()) CheckCards(findings);

  bool problem = false;
  for (const Finding& finding : findings) {
    problem = problem || finding.level == Level::kProblem;
    if (!context.json()) continue;
    nlohmann::ordered_json row = {{"level", LevelName(finding.level)},
                                  {"subject", finding.subject},
                                  {"text", finding.text},
                                  {"fix", finding.fix}};
    Out(row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  if (!context.json()) Out(RenderFindings(findings, context.terminal.out_colours));
  Note(context, problem ? "What is called a problem keeps jobs from running; the fix is beside it."
                        : "Jobs can run. Submit one: hone submit job.yaml --watch");
  return problem ? kExitFailed : kExitOk;
}

}  // namespace hone
