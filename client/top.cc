// hone top: the daemon, its devices, what runs, what waits and what ended last, redrawn every second on a terminal;
// printed once elsewhere.
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <optional>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/watch.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

constexpr size_t kHistory = 240;
constexpr int kRecent = 5;

struct Snapshot {
  v1::DaemonStatus status;
  v1::ListDevicesResponse devices;
  std::vector<v1::Job> active;
  std::vector<v1::Job> recent;  // ended, paused or held
};

// Raw keys while it lives: q and Ctrl-C end it.
class Keys {
 public:
  Keys() {
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved_) != 0) return;
    termios raw = saved_;
    raw.c_lflag &= static_cast<tcflag_t>(~(ICANON | ECHO));
    active_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  ~Keys() {
    if (active_) tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
  }
  // True: q was pressed. Waits for the next key or the end of the interval.
  bool Quit(const Interrupt& interrupt, int milliseconds) const {
    for (int waited = 0; waited < milliseconds && !interrupt.interrupted(); waited += 50) {
      pollfd watched = {active_ ? STDIN_FILENO : -1, POLLIN, 0};
      if (poll(&watched, 1, 50) <= 0) continue;
      char key = 0;
      if (read(STDIN_FILENO, &key, 1) == 1 && (key == 'q' || key == 'Q')) return true;
      if (key == ' ') return false;
    }
    return interrupt.interrupted();
  }

 private:
  termios saved_{};
  bool active_ = false;
};

class Screen {
 public:
  explicit Screen(Context& context) : context_(context) {}

  std::string Draw(const Snapshot& now, size_t width, size_t height) {
    lines_.clear();
    width_ = width;
    Header(now);
    Devices(now);
    std::vector<v1::Job> running, waiting;
    for (const v1::Job& job : now.active) (job.state() == v1::QUEUED ? waiting : running).push_back(job);
    Title("RUNNING", running.size());
    for (const v1::Job& job : running) Running(job);
    if (running.empty()) Line("  nothing runs");
    const size_t used = lines_.size() + static_cast<size_t>(kRecent) + 5;
    Queue(waiting, height > used ? height - used : 3);
    Recent(now);
    std::string out;
    for (const std::string& line : lines_) out += line + "\n";
    return out;
  }
  void Remember(const Snapshot& now) {
    for (const v1::Job& job : now.active) {
      if (!job.has_last_step()) continue;
      History& history = histories_[job.id()];
      if (history.step == job.last_step().step()) continue;
      history.step = job.last_step().step();
      history.losses.push_back(job.last_step().loss());
      if (history.losses.size() > kHistory) history.losses.erase(history.losses.begin());
    }
  }

 private:
  struct History {
    uint64_t step = 0;
    std::vector<double> losses;
  };

  bool colours() const { return context_.terminal.out_colours; }
  void Line(const std::string& text) { lines_.push_back(Clip(text, width_)); }
  void Title(const std::string& name, size_t count) {
    lines_.push_back("");
    lines_.push_back(Paint(colours(), Colour::kBold, StrCat(name, " ", count)));
  }

  void Header(const Snapshot& now) {
    const std::time_t time = std::time(nullptr);
    char clock[16] = "";
    std::tm parts{};
    if (localtime_r(&time, &parts) != nullptr) std::strftime(clock, sizeof clock, "%H:%M:%S", &parts);
    Line(StrCat("hone top  ", clock, "  honed ", Printable(now.status.version()), " pid ", now.status.pid(),
                now.status.draining() ? ", draining" : "", "  disk ", FormatBytes(now.status.disk_free_bytes()),
                " free"));
    if (!now.status.problem().empty()) {
      lines_.push_back(Paint(colours(), Colour::kRed, Clip(Printable(now.status.problem()), width_)));
    }
  }

  void Devices(const Snapshot& now) {
    for (const v1::DeviceInfo& device : now.devices.devices()) {
      const double used = device.total_bytes() > 0 ? 1.0 - static_cast<double>(device.free_bytes()) /
                                                               static_cast<double>(device.total_bytes())
                                                   : 0;
      std::string line = StrCat("  ", Printable(device.name()), "  ");
      if (device.total_bytes() > 0) {
        line += StrCat(Bar(used, 20), "  ", FormatBytes(device.total_bytes() - device.free_bytes()), " of ",
                       FormatBytes(device.total_bytes()), " used  ");
      }
      Line(line + Printable(device.description()));
    }
  }

  void Running(const v1::Job& job) {
    const v1::StepRecord& step = job.last_step();
    lines_.push_back(StrCat("  ", job.id(), "  ", StateText(job.state(), colours()), "  ",
                            Clip(Printable(job.display_name()), width_ > 40 ? width_ - 40 : 10)));
    if (!job.has_last_step()) {
      const std::string early = StrCat("no step yet; what it does: hone watch ", job.id());
      return Line(StrCat("    ", job.state_message().empty() ? early : Printable(job.state_message())));
    }
    const double share = step.steps() > 0 ? static_cast<double>(step.step()) / static_cast<double>(step.steps()) : 0;
    const double left = static_cast<double>(step.steps() - std::min(step.step(), step.steps())) * step.seconds();
    Line(StrCat("    ", Bar(share, 24), " ", step.step(), "/", step.steps(), " ", static_cast<int>(share * 100),
                "%  loss ", FormatNumber(step.loss()), "  ", FormatCount(step.tokens_per_second()), " tok/s  ETA ",
                FormatDuration(left), "  ", Sparkline(histories_[job.id()].losses, width_ > 110 ? width_ - 100 : 10)));
    uint64_t planned = 0, actual = 0;
    for (const v1::ArenaUse& arena : job.memory().arenas()) {
      planned += arena.planned_bytes();
      actual += arena.actual_bytes();
    }
    std::string more = StrCat("    attempt ", job.attempts_size(), ", checkpoint of step ", job.checkpoint_step());
    if (planned > 0) more += StrCat(", memory ", FormatBytes(actual), " of ", FormatBytes(planned), " planned");
    if (step.has_rewards_margins()) more += StrCat(", margin ", FormatNumber(step.rewards_margins()));
    Line(more);
  }

  void Queue(const std::vector<v1::Job>& waiting, size_t room) {
    Title("QUEUE", waiting.size());
    size_t shown = 0;
    for (const v1::Job& job : waiting) {
      if (shown == room && waiting.size() > room + 1) {
        return Line(StrCat("  … and ", waiting.size() - shown, " more: hone queue"));
      }
      ++shown;
      std::string why = Printable(job.state_reason());
      if (job.options().after_size() > 0) why += StrCat(", after ", job.options().after(0));
      Line(StrCat("  ", shown, "  ", job.id(), "  p", job.priority(), "  ", Clip(Printable(job.display_name()), 40),
                  "  ", why));
    }
  }

  void Recent(const Snapshot& now) {
    Title("AT REST, newest first", now.recent.size());
    for (const v1::Job& job : now.recent) {
      lines_.push_back(StrCat("  ", job.id(), "  ", StateText(job.state(), colours()), "  ",
                              Clip(Printable(job.display_name()), 40), "  ",
                              Clip(Printable(job.state_message()), width_ > 90 ? width_ - 75 : 15)));
    }
  }

  Context& context_;
  size_t width_ = 80;
  std::vector<std::string> lines_;
  std::map<std::string, History> histories_;
};

absl::StatusOr<Snapshot> Take(Client& client) {
  Snapshot now;
  HONE_ASSIGN_OR_RETURN(now.status, client.GetStatus());
  HONE_ASSIGN_OR_RETURN(now.devices, client.ListDevices());
  HONE_ASSIGN_OR_RETURN(now.active, client.ListJobs({v1::VALIDATING, v1::QUEUED, v1::STARTING, v1::RUNNING,
                                                     v1::FINALIZING, v1::PAUSING, v1::CANCELLING},
                                                    500));
  SortAsQueue(now.active);
  HONE_ASSIGN_OR_RETURN(now.recent,
                        client.ListJobs({v1::SUCCEEDED, v1::FAILED, v1::CANCELLED, v1::PAUSED, v1::HELD}, kRecent));
  return now;
}

}  // namespace

int RunTop(Context& context, const TopOptions& options) {
  HONE_TRY(Client* const client, context.Connect());
  Screen screen(context);
  if (options.once || context.json() || !context.terminal.out_is_terminal) {
    HONE_TRY(const Snapshot now, Take(*client));
    if (context.json()) {
      Out(MessageToJson(now.status) + "\n");
      for (const v1::Job& job : now.active) Out(MessageToJson(job) + "\n");
      return kExitOk;
    }
    Out(screen.Draw(now, static_cast<size_t>(std::max(80, context.terminal.width)), 60));
    return kExitOk;
  }
  Interrupt interrupt;
  const Keys keys;
  Out("\x1b[?1049h\x1b[?25l");  // the other screen, no cursor
  std::optional<absl::Status> lost;
  while (true) {
    winsize size{};
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    const size_t width = known ? size.ws_col : 80, height = known ? size.ws_row : 24;
    const absl::StatusOr<Snapshot> now = Take(*client);
    std::string text;
    if (now.ok()) {
      screen.Remember(*now);
      text = screen.Draw(*now, width, height);
      lost.reset();
    } else {
      text = StrCat("hone top: ", Printable(ToStd(now.status().message())), "\ntrying again\n");
      lost = now.status();
    }
    std::string frame = "\x1b[H";
    size_t line = 0;
    for (size_t at = 0; at < text.size() && line + 1 < height; ++line) {
      const size_t end = std::min(text.find('\n', at), text.size());
      frame += text.substr(at, end - at) + "\x1b[K\r\n";
      at = end + 1;
    }
    Out(frame + Paint(context.terminal.out_colours, Colour::kDim, "q quits, jobs go on") + "\x1b[J");
    if (keys.Quit(interrupt, std::max(100, static_cast<int>(options.interval * 1000)))) break;
  }
  Out("\x1b[?25h\x1b[?1049l");
  return kExitOk;
}

}  // namespace hone
