#include "server/worker_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <thread>

#include "proto/base/frame.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kChannelFd = 3;  // what the worker is told
constexpr int kLockFd = 4;
constexpr int kErrorFd = 5;  // reports a failed exec, closed by a successful one
constexpr int kFirstSafeFd = 16;
constexpr timeval kSendTimeout = {30, 0};

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_;
};

absl::Status Errno(std::string_view action) {
  return absl::UnavailableError(ToAbsl(StrCat("cannot ", action, ": ", std::strerror(errno))));
}

// Moves a descriptor above those the child will overwrite with dup2.
absl::Status MoveUp(Fd* fd) {
  if (fd->get() >= kFirstSafeFd || fd->get() < 0) return absl::OkStatus();
  const int moved = fcntl(fd->get(), F_DUPFD_CLOEXEC, kFirstSafeFd);
  if (moved < 0) return Errno("duplicate a descriptor");
  fd->reset(moved);
  return absl::OkStatus();
}

struct ChildPlan {
  const char* const* argv;
  int channel;
  int log;
  int input;
  int lock;
  int error;
  pid_t parent;
};

// Between fork and exec: only async-signal-safe calls.
[[noreturn]] void RunChild(const ChildPlan& plan) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != plan.parent) _exit(127);  // the daemon died before the line above
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal : {SIGPIPE, SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::signal(signal, SIG_DFL);
  // If memory runs out, the worker should go, not the daemon.
  if (const int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); oom >= 0) {
    [[maybe_unused]] const ssize_t written = write(oom, "500", 3);
  }
  const bool wired = dup2(plan.input, 0) >= 0 && dup2(plan.log, 1) >= 0 && dup2(plan.log, 2) >= 0 &&
                     dup2(plan.channel, kChannelFd) >= 0 && (plan.lock < 0 || dup2(plan.lock, kLockFd) >= 0) &&
                     dup3(plan.error, kErrorFd, O_CLOEXEC) >= 0;
  if (wired) {
    if (plan.lock < 0) close(kLockFd);
    close_range(kErrorFd + 1, ~0U, 0);
    execv(plan.argv[0], const_cast<char* const*>(plan.argv));
  }
  const int error = errno;
  [[maybe_unused]] const ssize_t written = write(wired ? kErrorFd : plan.error, &error, sizeof(error));
  _exit(127);
}

std::string DescribeExit(const WorkerExit& exit) {
  if (exit.signal == 0) return StrCat("exited with status ", exit.status);
  const char* name = strsignal(exit.signal);
  return StrCat("was killed by signal ", exit.signal, " (", name ? name : "unknown", ")");
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerProcess>> WorkerProcess::Start(const WorkerOptions& options) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return Errno("make a channel");
  Fd ours(pair[0]), theirs(pair[1]);
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) return Errno("make a pipe");
  Fd error_read(pipe_ends[0]), error_write(pipe_ends[1]);
  Fd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (wake.get() < 0) return Errno("make an eventfd");
  Fd input(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (input.get() < 0) return Errno("open /dev/null");
  Fd log(options.log_path.empty() ? fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, kFirstSafeFd)
                                  : open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
  if (log.get() < 0 && options.log_path.empty()) log.reset(open("/dev/null", O_WRONLY | O_CLOEXEC));
  if (log.get() < 0) return Errno(StrCat("open ", options.log_path));
  Fd lock(options.lock_fd < 0 ? -1 : fcntl(options.lock_fd, F_DUPFD_CLOEXEC, kFirstSafeFd));
  if (options.lock_fd >= 0 && lock.get() < 0) return Errno("duplicate the lock");
  for (Fd* fd : {&theirs, &error_write, &input, &log}) HONE_RETURN_IF_ERROR(MoveUp(fd));
  setsockopt(ours.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof(kSendTimeout));

  const char* const argv[] = {options.program.c_str(), "serve", "--fd", "3", nullptr};
  const ChildPlan plan = {argv, theirs.get(), log.get(), input.get(), lock.get(), error_write.get(), getpid()};
  const pid_t pid = fork();
  if (pid < 0) return Errno("fork");
  if (pid == 0) RunChild(plan);

  std::unique_ptr<WorkerProcess> worker(new WorkerProcess(pid, ours.release(), wake.release()));
  error_write.reset(-1);
  int error = 0;
  ssize_t got;
  do {
    got = read(error_read.get(), &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got > 0) {
    return FailedPrecondition("cannot start ", options.program, ": ", std::strerror(error),
                              "; honed-worker must lie beside honed");
  }
  return worker;
}

WorkerProcess::~WorkerProcess() {
  if (!reaped_) Wait(std::chrono::milliseconds(0));
  close(channel_);
  close(wake_);
}

absl::Status WorkerProcess::Send(const v1::ToWorker& message) {
  const std::string bytes = message.SerializeAsString();
  std::lock_guard lock(send_mutex_);
  return WriteFrame(channel_, bytes);
}

void WorkerProcess::CloseSending() {
  std::lock_guard lock(send_mutex_);
  shutdown(channel_, SHUT_WR);
}

absl::StatusOr<WorkerProcess::ReadResult> WorkerProcess::Read(std::chrono::milliseconds timeout,
                                                              v1::FromWorker* message) {
  pollfd watched[2] = {{channel_, POLLIN, 0}, {wake_, POLLIN, 0}};
  const int ready = poll(watched, 2, static_cast<int>(std::min<int64_t>(timeout.count(), INT_MAX)));
  if (ready < 0 && errno != EINTR) return Errno("wait for the worker");
  if (ready > 0 && watched[1].revents != 0) {
    uint64_t ignored;
    [[maybe_unused]] const ssize_t got = read(wake_, &ignored, sizeof(ignored));
  }
  if (ready <= 0 || watched[0].revents == 0) return ReadResult::kNothing;
  std::string bytes;
  HONE_ASSIGN_OR_RETURN(const bool more, ReadFrame(channel_, &bytes));
  if (!more) return ReadResult::kEnd;
  if (!message->ParseFromString(bytes)) return DataLoss("the worker sent bytes that are no message");
  return ReadResult::kMessage;
}

void WorkerProcess::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
}

void WorkerProcess::Signal(int signal) {
  // Its group exists once the child has run setpgid; until then the process alone is meant.
  if (kill(-pid_, signal) != 0) kill(pid_, signal);
}

WorkerExit WorkerProcess::Wait(std::chrono::milliseconds grace) {
  WorkerExit exit;
  int status = 0;
  const auto deadline = std::chrono::steady_clock::now() + grace;
  pid_t got;
  while ((got = waitpid(pid_, &status, WNOHANG)) == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  if (got == 0) {
    Signal(SIGKILL);
    while ((got = waitpid(pid_, &status, 0)) < 0 && errno == EINTR) {
    }
  } else {
    kill(-pid_, SIGKILL);  // what it may have left behind in its group
  }
  reaped_ = true;
  if (got == pid_ && WIFSIGNALED(status)) {
    exit.signal = WTERMSIG(status);
  } else if (got == pid_) {
    exit.status = WEXITSTATUS(status);
  }
  exit.text = DescribeExit(exit);
  return exit;
}

std::string ProgramBeside(const std::string& name) {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return name;
  const std::string self(path, static_cast<size_t>(length));
  return self.substr(0, self.find_last_of('/') + 1) + name;
}

}  // namespace hone
