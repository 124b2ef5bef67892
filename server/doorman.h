// Who comes in: accepts connections on the daemon's Unix sockets, learns the peer's user (SO_PEERCRED), and hands a
// connection to gRPC only after it has sent HTTP/2's preface, so that half-open and foreign connections cost a
// descriptor for a few seconds and nothing else. Bounded: in all, per user, and of those that have not spoken yet.
// What gRPC gets is one end of a pair whose other end the relay (relay.h) holds, with the client's own socket. gRPC
// names the peer after its descriptor; Who() turns that name into the user.
// Calls are counted as they come and end: a connection with more of them under way than it may have streams open must
// be opening and resetting them (gRPC 1.51 pays dearly for that). It is shut, and whoever made it stays out for a
// while: the user or, where that is the daemon's own, the process. The same happens to whoever breaks the relay's rules
// and, more often than goes on by accident, resets streams, opens some that no call comes of (gRPC refuses their
// headers), chatters, or connects without a single call.
// Not here: what a user may do (services.h), TCP (daemon.cc).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/grpcpp.h"
#include "server/relay.h"

namespace hone {

struct Caller {
  int64_t uid = -1;    // -1: unknown (not a Unix socket)
  bool admin = false;  // may act on everybody's jobs and stop the daemon
  int64_t pid = -1;    // the process; only where the user is the daemon's own
};

class Doorman {
 public:
  struct Options {
    size_t max_connections = 2048;
    size_t max_per_user = 1024;
    size_t max_unproven = 256;  // more: the oldest goes
    std::chrono::milliseconds unproven_limit = std::chrono::seconds(10);
    size_t max_calls = 600;            // of one connection at a time; HTTP/2 lets it have 300 streams
    double max_bad = 300;              // streams of one user or process that came to nothing ...
    double forgiven_per_second = 100;  // ... forgotten with time
    double fruitless_connection = 50;  // one without a call counts as so many,
    double chatter = 0.25;             // and a frame of chatter as so many
    std::chrono::milliseconds penalty = std::chrono::seconds(10);
  };
  explicit Doorman(Options options);
  ~Doorman();

  // Binds; a file left at `path` is replaced. Users of an admin socket are admins.
  absl::Status Listen(const std::string& path, mode_t mode, bool admin);
  absl::Status Start(grpc::Server* server);
  // Accepts nothing more and removes the sockets' files. Open connections go on until gRPC or the destructor ends them.
  void Stop();
  // Ends open connections then: gRPC's shutdown waits for ever for what a client that does not read has not taken.
  void CloseAllAfter(std::chrono::milliseconds time) { relay_->CloseAllAfter(time); }
  // By grpc::ServerContext::peer(). The daemon's own user and root are admins, too.
  Caller Who(const std::string& peer) const;
  // A call has come in on this peer's connection; NoteEnd when it is over.
  struct Ticket {
    int fd = -1;
    uint64_t inode = 0;
  };
  Ticket NoteCall(const std::string& peer);
  void NoteEnd(const Ticket& ticket);

  struct Counts {
    uint64_t accepted = 0, handed_over = 0, refused = 0, ejected = 0;
    size_t open = 0;
  };
  Counts counts() const;

 private:
  struct Door {
    int fd;
    bool admin;
    std::string path;
  };
  struct Guest {
    int64_t uid;
    bool admin;
    uint64_t inode;  // tells whether the descriptor is still this connection
    std::chrono::steady_clock::time_point since;
    int64_t pid = 0;
    size_t calls = 0;           // under way
    uint64_t calls_of_all = 0;  // since it came in
    uint64_t streams = 0;       // the same
    uint64_t uncalled = 0;      // of them, those charged for
    bool shut = false;
  };
  // Who pays for a connection's sins: a user, or a process of the daemon's own user (else 0).
  using Culprit = std::pair<int64_t, int64_t>;

  void Loop();
  void Accept(const Door& door);
  void Hear(int fd);
  void HandOver(int fd);
  void Dismiss(int fd);
  void Sweep();
  size_t OpenOf(int64_t uid) const;
  void Forget();
  // The relay's question.
  bool Judge(int fd, const FrameCounts& counts);
  // These are under mutex_. Charge: whether it is too much now.
  bool Charge(const Culprit& culprit, double bad);
  void Punish(const Culprit& culprit, std::string_view why);
  void Eject(int fd, Guest* guest, std::string_view why);
  static Culprit CulpritOf(const Guest& guest);
  bool IsPunished(const Guest& guest);

  const Options options_;
  grpc::Server* server_ = nullptr;
  std::vector<Door> doors_;
  int epoll_ = -1;
  int wake_ = -1;
  std::thread thread_;
  std::map<int, Guest> unproven_;               // the loop's own
  std::deque<std::pair<int, uint64_t>> order_;  // of unproven_, by arrival: descriptor and inode
  int next_fd_ = 0;
  mutable std::mutex mutex_;
  std::map<int, Guest> inside_;
  std::map<Culprit, std::chrono::steady_clock::time_point> punished_;  // until when
  struct Account {
    double bad = 0;
    std::chrono::steady_clock::time_point when;
  };
  std::map<Culprit, Account> accounts_;
  Counts counts_;
  std::unique_ptr<Relay> relay_;  // last: its thread asks Judge
};

}  // namespace hone
