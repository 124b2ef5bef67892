// The real honed as a process of its own, to be killed.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/server/daemon_harness.h"

namespace hone {

class HonedProcess {
 public:
  // `state` is where its state lies; empty: in `folder`. `more` are further flags.
  HonedProcess(const Folder& folder, std::string worker, std::string state = "", std::vector<std::string> more = {})
      : folder_(folder),
        worker_(std::move(worker)),
        state_(state.empty() ? folder / "state" : std::move(state)),
        more_(std::move(more)) {}
  ~HonedProcess() {
    if (pid_ > 0) Kill(SIGKILL);
  }
  std::string program = HONED;
  pid_t pid() const { return pid_; }
  void Start() {
    std::vector<std::string> words = {program,     "--state-dir", state_,     "--socket", folder_ / "s",
                                      "--metrics", "off",         "--worker", worker_};
    words.insert(words.end(), more_.begin(), more_.end());
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    const std::string log = folder_ / "honed.log";
    pid_ = fork();
    if (pid_ != 0) return;
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, 2);
    execv(argv[0], argv.data());
    _exit(127);
  }
  // Sends a signal and waits for the end; the status as waitpid gives it.
  int Kill(int signal) {
    kill(pid_, signal);
    return Wait();
  }
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return status;
  }

 private:
  const Folder& folder_;
  const std::string worker_;
  const std::string state_;
  const std::vector<std::string> more_;
  pid_t pid_ = 0;
};

}  // namespace hone
