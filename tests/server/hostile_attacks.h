// Hostile clients of the daemon's Unix socket, written on raw HTTP/2 frames: each attacks for some seconds and returns
// what it did. They run as processes of their own (hostile_test starts itself). Discard() is a server that throws
// everything away: what an attacker costs a machine where nobody answers it.
#pragma once

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "proto/base/status.h"

namespace hone::hostile {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct Done {
  uint64_t actions = 0;     // requests, connections or messages, as the attack's name says
  uint64_t cut = 0;         // connections that the server closed or refused
  uint64_t read_bytes = 0;  // that came back
};

inline void RaiseDescriptorLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// -1: refused.
inline int Connect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", path.c_str());
  for (int i = 0; i < 200; ++i) {
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
    std::this_thread::sleep_for(milliseconds(1));  // the backlog is full
  }
  close(fd);
  return -1;
}

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum Type : uint8_t { kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kWindowUpdate = 8, kContinuation = 9 };
constexpr uint8_t kEndStream = 1, kEndHeaders = 4;

inline std::string Number(uint32_t value) {
  std::string bytes;
  for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(value >> shift));
  return bytes;
}

inline std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  std::string frame;
  for (const int shift : {16, 8, 0}) frame.push_back(static_cast<char>(payload.size() >> shift));
  frame.push_back(static_cast<char>(type));
  frame.push_back(static_cast<char>(flags));
  return frame + Number(stream) + payload;
}

// A literal header without indexing, short enough for one-byte lengths.
inline std::string Header(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + static_cast<char>(name.size()) + name + static_cast<char>(value.size()) + value;
}

inline std::string CallHeaders(const std::string& path, const std::string& te = "trailers") {
  return Header(":method", "POST") + Header(":scheme", "http") + Header(":path", path) + Header(":authority", "x") +
         Header("content-type", "application/grpc") + Header("te", te);
}

// A whole server-streaming or unary call whose request is `message`.
inline std::string Call(uint32_t stream, const std::string& path, const std::string& message) {
  return Frame(kHeaders, kEndHeaders, stream, CallHeaders(path)) +
         Frame(kData, kEndStream, stream,
               std::string(1, '\0') + Number(static_cast<uint32_t>(message.size())) + message);
}

// Preface and settings; `greedy`: windows so wide that the server may send all it has.
inline std::string Hello(bool greedy = false) {
  if (!greedy) return std::string(kPreface) + Frame(kSettings, 0, 0, "");
  return std::string(kPreface) + Frame(kSettings, 0, 0, std::string("\0\x04", 2) + Number(0x7fffffff)) +
         Frame(kWindowUpdate, 0, 0, Number(0x7fffffff - 65535));
}

// Throws away what has come; false: the connection is gone.
inline bool Drain(int fd, Done* done) {
  char waste[65536];
  while (true) {
    const ssize_t got = recv(fd, waste, sizeof(waste), MSG_DONTWAIT);
    if (got > 0) {
      done->read_bytes += static_cast<uint64_t>(got);
      continue;
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR);
  }
}

// False: cut, or not taken for two seconds.
inline bool Send(int fd, std::string_view bytes, Done* done, bool drain = true) {
  const auto end = Clock::now() + std::chrono::seconds(2);
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) bytes.remove_prefix(static_cast<size_t>(sent));
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent <= 0) {
      if (Clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(1));
    }
    if (drain && !Drain(fd, done)) return false;
  }
  return true;
}

// Opens connections one after the other; `step(fd, n)` does the next thing with it, false when it was cut.
template <typename Step>
void OnConnections(const std::string& socket, Clock::time_point end, Done* done, const std::string& hello, Step step) {
  while (Clock::now() < end) {
    const int fd = Connect(socket);
    bool open = fd >= 0 && Send(fd, hello, done);
    for (uint32_t n = 0; open && Clock::now() < end; ++n) open = step(fd, n);
    if (!open) ++done->cut;
    if (fd >= 0) close(fd);
    if (!open) std::this_thread::sleep_for(milliseconds(1));
  }
}

// Calls with 64 KiB of headers over CONTINUATION frames, and now and then headers without an end.
inline Done OversizedHeaders(const std::string& socket, Clock::time_point end) {
  Done done;
  std::string kilobyte;
  for (int h = 0; h < 8; ++h) kilobyte += Header(StrCat("x-", h), std::string(120, 'v'));
  std::string block;
  for (int k = 0; k < 63; ++k) block += Frame(kContinuation, 0, 0, kilobyte);
  OnConnections(socket, end, &done, Hello(), [&](int fd, uint32_t n) {
    const uint32_t stream = 2 * n + 1;
    std::string frames = Frame(kHeaders, kEndStream, stream, CallHeaders("/hone.v1.Daemon/GetStatus"));
    for (int k = 0; k < 63; ++k) frames += Frame(kContinuation, 0, stream, kilobyte);
    const bool endless = n % 16 == 15;
    if (!endless) frames += Frame(kContinuation, kEndHeaders, stream, kilobyte);
    ++done.actions;
    if (n % 4 == 3) std::this_thread::sleep_for(milliseconds(1));
    return Send(fd, frames, &done);
  });
  return done;
}

// One block of headers after the other that never ends: up to 32 MiB of it on a connection.
inline Done EndlessHeaders(const std::string& socket, Clock::time_point end) {
  Done done;
  std::string piece;
  for (int h = 0; h < 120; ++h) piece += Header(StrCat("x-", h), std::string(120, 'v'));
  const std::string hello = Hello() + Frame(kHeaders, kEndStream, 1, CallHeaders("/hone.v1.Daemon/GetStatus"));
  const std::string frame = Frame(kContinuation, 0, 1, piece);
  OnConnections(socket, end, &done, hello, [&](int fd, uint32_t n) {
    ++done.actions;
    if (n % 16 == 15) std::this_thread::sleep_for(milliseconds(1));
    return n < (32 << 20) / frame.size() && Send(fd, frame, &done);
  });
  return done;
}

inline Done InvalidTe(const std::string& socket, Clock::time_point end) {
  Done done;
  OnConnections(socket, end, &done, Hello(), [&](int fd, uint32_t n) {
    ++done.actions;
    if (n % 32 == 31) std::this_thread::sleep_for(milliseconds(1));
    return Send(
        fd, Frame(kHeaders, kEndHeaders | kEndStream, 2 * n + 1, CallHeaders("/hone.v1.Daemon/GetStatus", "nonsense")),
        &done);
  });
  return done;
}

inline Done StreamResets(const std::string& socket, Clock::time_point end) {
  Done done;
  OnConnections(socket, end, &done, Hello(), [&](int fd, uint32_t n) {
    const uint32_t stream = 2 * n + 1;
    ++done.actions;
    if (n % 32 == 31) std::this_thread::sleep_for(milliseconds(1));
    return Send(fd,
                Frame(kHeaders, kEndHeaders, stream, CallHeaders("/hone.v1.Daemon/GetStatus")) +
                    Frame(kReset, 0, stream, Number(8)),
                &done);
  });
  return done;
}

// Opens 10,000 connections that say nothing, half a preface, or something else, and opens again those that are closed.
inline Done HalfOpen(const std::string& socket, Clock::time_point end) {
  Done done;
  RaiseDescriptorLimit();
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const size_t wanted = std::min<size_t>(10000, static_cast<size_t>(limit.rlim_cur) - 100);
  std::vector<int> fds;
  size_t next = 0;
  while (Clock::now() < end) {
    for (int burst = 0; burst < 100 && Clock::now() < end; ++burst) {
      if (fds.size() == wanted) {  // then in turn those that the server has closed
        const int fd = fds[next];
        char byte;
        const ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
        const bool open = got > 0 || (got < 0 && errno == EAGAIN);
        if (open) {
          next = (next + 1) % wanted;
          continue;
        }
        close(fd);
        ++done.cut;
      }
      const int fd = Connect(socket);
      if (fd < 0) continue;
      if (fds.size() < wanted) {
        fds.push_back(fd);
      } else {
        fds[next] = fd;
        next = (next + 1) % wanted;
      }
      ++done.actions;
      if (next % 3 == 1 || fds.size() % 3 == 1) Send(fd, "PRI * HT", &done, false);
      if (next % 3 == 2 || fds.size() % 3 == 2) Send(fd, "GET / HTTP/1.1\r\n", &done, false);
    }
    std::this_thread::sleep_for(milliseconds(fds.size() < wanted ? 1 : 20));
  }
  for (const int fd : fds) close(fd);
  return done;
}

// Many streaming calls over a few connections. `read`: whether it takes what comes.
inline Done Streams(const std::string& socket, Clock::time_point end, int connections, int streams,
                    const std::string& path, const std::string& message, bool read) {
  Done done;
  std::vector<int> fds;
  for (int c = 0; c < connections; ++c) {
    const int fd = Connect(socket);
    if (fd < 0) continue;
    std::string frames = Hello(true);
    for (int s = 0; s < streams; ++s) frames += Call(static_cast<uint32_t>(2 * s + 1), path, message);
    if (!Send(fd, frames, &done, read)) ++done.cut;
    done.actions += static_cast<uint64_t>(streams);
    fds.push_back(fd);
  }
  std::vector<bool> open(fds.size(), true);
  while (Clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(10));
    for (size_t i = 0; read && i < fds.size(); ++i) {
      if (!open[i] || Drain(fds[i], &done)) continue;
      open[i] = false;
      ++done.cut;
    }
  }
  for (const int fd : fds) close(fd);
  return done;
}

// Takes every connection and throws away what comes, until it is killed.
inline int Discard(const std::string& path) {
  RaiseDescriptorLimit();
  const int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", path.c_str());
  if (bind(door, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 || listen(door, 1024) != 0)
    return 1;
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  const auto add = [&](int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  };
  add(door);
  epoll_event events[64];
  Done done;
  while (true) {
    const int count = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == door) {
        const int guest = accept4(door, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (guest >= 0) add(guest);
      } else if (!Drain(fd, &done)) {
        close(fd);
      }
    }
  }
}

// `message` is the request of streaming attacks. The program that hostile_test starts.
inline int Attack(const std::string& kind, const std::string& socket, double seconds, const std::string& message) {
  if (kind == "discard") return Discard(socket);
  setpriority(PRIO_PROCESS, 0, 19);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const std::string watch = "/hone.v1.Jobs/WatchJob", artifact = "/hone.v1.Jobs/ReadArtifact";
  Done done;
  if (kind == "headers") done = OversizedHeaders(socket, end);
  if (kind == "endless") done = EndlessHeaders(socket, end);
  if (kind == "te") done = InvalidTe(socket, end);
  if (kind == "halfopen") done = HalfOpen(socket, end);
  if (kind == "resets") done = StreamResets(socket, end);
  if (kind == "deaf") done = Streams(socket, end, 8, 200, artifact, message, false);
  if (kind == "watchers") done = Streams(socket, end, 10, 100, watch, message, true);
  if (kind == "deafwatchers") done = Streams(socket, end, 10, 100, watch, message, false);
  std::printf("%llu %llu %llu\n", static_cast<unsigned long long>(done.actions),
              static_cast<unsigned long long>(done.cut), static_cast<unsigned long long>(done.read_bytes));
  return 0;
}

}  // namespace hone::hostile
