// Runs the real `hone` program: arguments in, exit code, stdout and stderr out; on pipes or on a pseudo-terminal.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/status.h"

namespace hone {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/hone-cli-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TemporaryFolder() {
    if (!testing::Test::HasFailure()) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

struct Result {
  int code = -1;  // 128 + signal where one ended it
  std::string out;
  std::string err;
};

struct RunOptions {
  std::string home;                      // HOME, XDG_STATE_HOME and XDG_RUNTIME_DIR lie in it
  std::string directory;                 // working folder; "": home
  std::string input;                     // stdin
  std::vector<std::string> environment;  // more "NAME=value"
  bool terminal = false;                 // stdout and stderr on a pseudo-terminal, both in `out`
  std::string interrupt_after;           // SIGINT once this was printed
  std::function<void()> on_interrupt;    // called right before it
};

// Whether this machine gives pseudo-terminals (a chroot without /dev/pts does not); tests of a terminal skip without.
inline bool HaveTerminal() {
  int master = -1, slave = -1;
  if (openpty(&master, &slave, nullptr, nullptr, nullptr) != 0) return false;
  close(master);
  close(slave);
  return true;
}

inline Result RunHone(const RunOptions& options, const std::vector<std::string>& arguments) {
  int in[2], out[2], err[2], master = -1, slave = -1;
  EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
  EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
  EXPECT_EQ(pipe2(err, O_CLOEXEC), 0);
  if (options.terminal) {
    winsize size{};
    size.ws_col = 120;
    size.ws_row = 40;
    EXPECT_EQ(openpty(&master, &slave, nullptr, nullptr, &size), 0);
  }
  std::vector<std::string> words = {HONE_PROGRAM};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<std::string> variables = {"HOME=" + options.home,
                                        "XDG_STATE_HOME=" + options.home + "/state",
                                        "XDG_RUNTIME_DIR=" + options.home + "/run",
                                        "PATH=/usr/bin:/bin",
                                        "TERM=xterm",
                                        "LC_ALL=C.UTF-8"};
  for (const std::string& variable : options.environment) {  // the first of a name counts
    variables.insert(variables.begin(), variable);
  }
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);
  const std::string directory = options.directory.empty() ? options.home : options.directory;

  const pid_t pid = fork();
  if (pid == 0) {
    dup2(in[0], 0);
    dup2(options.terminal ? slave : out[1], 1);
    dup2(options.terminal ? slave : err[1], 2);
    if (chdir(directory.c_str()) != 0) _exit(126);
    execve(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  if (slave >= 0) close(slave);
  size_t given = 0;
  while (given < options.input.size()) {
    const ssize_t count = write(in[1], options.input.data() + given, options.input.size() - given);
    if (count <= 0) break;
    given += static_cast<size_t>(count);
  }
  close(in[1]);

  Result result;
  bool interrupted = options.interrupt_after.empty();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  pollfd files[3] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}, {master, POLLIN, 0}};
  int open_files = options.terminal ? 3 : 2;
  while (open_files > 0 && std::chrono::steady_clock::now() < deadline) {
    if (poll(files, 3, 100) < 0) break;
    for (int i = 0; i < 3; ++i) {
      if (files[i].fd < 0 || files[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t count = read(files[i].fd, buffer, sizeof buffer);
      if (count <= 0) {
        files[i].fd = -1;
        --open_files;
        continue;
      }
      (i == 1 ? result.err : result.out).append(buffer, static_cast<size_t>(count));
    }
    if (!interrupted && (result.out + result.err).find(options.interrupt_after) != std::string::npos) {
      interrupted = true;
      if (options.on_interrupt) options.on_interrupt();
      kill(pid, SIGINT);
    }
  }
  if (open_files > 0) kill(pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  for (int fd : {out[0], err[0], master}) {
    if (fd >= 0) close(fd);
  }
  return result;
}

}  // namespace hone
