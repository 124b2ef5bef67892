// Stands between the clients of the Unix sockets and gRPC, and passes on what they say to each other, looking at what a
// client sends frame by frame: a block of headers that does not end, or comes in too many pieces, is cut off (gRPC 1.51
// bounds the size of each piece, not of the block, and would keep all of it), and streams, resets and chatter are
// counted for the doorman. One thread, a bounded buffer a connection, back-pressure both ways. Not here: who a client
// is and what it may do (doorman.h), TCP.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"

namespace hone {

// What a client has sent since the last report.
struct FrameCounts {
  uint64_t streams = 0;    // opened
  uint64_t resets = 0;     // of streams
  uint64_t chatter = 0;    // settings, pings, priorities, and what nobody knows
  bool violation = false;  // to be cut off
};

// Reads the frames' headers out of a client's bytes, which may be cut anywhere.
class FrameScanner {
 public:
  // Of one block of headers. gRPC's limit on metadata is half of that, which fits into two frames.
  static constexpr size_t kMaxHeaderBytes = 32 << 10;
  static constexpr size_t kMaxHeaderFrames = 8;

  // False: nothing more may be passed on.
  bool Scan(std::string_view bytes, FrameCounts* counts);

 private:
  bool Frame(FrameCounts* counts);

  size_t skip_ = 24;  // bytes to the next frame; first the preface
  unsigned char head_[9] = {};
  size_t head_size_ = 0;
  size_t block_bytes_ = 0, block_frames_ = 0;  // of the block of headers under way
};

class Relay {
 public:
  // Told, on the relay's thread, what the client of a connection has sent; false: cut it off.
  using Judge = std::function<bool(int grpc_fd, const FrameCounts& counts)>;
  explicit Relay(Judge judge);
  // Passes on what is left for a moment.
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  absl::Status Start();
  // Takes `client` and `inner`, the other end of gRPC's descriptor `grpc_fd`, which is only a name here. Thread-safe.
  void Add(int client, int inner, int grpc_fd);
  // Closes all connections, those to come included, when so much time has passed. Thread-safe.
  void CloseAllAfter(std::chrono::milliseconds time);

 private:
  struct Way {
    std::string waiting;  // could not be sent yet; then nothing more is read
    bool ended = false;   // nothing more comes
  };
  struct Pipe {
    uint64_t number;
    int client, inner, grpc_fd;
    Way up, down;  // to gRPC, to the client
    FrameScanner scanner;
    bool broken = false;
    bool client_watched = true, inner_watched = true;
    std::chrono::steady_clock::time_point until;  // where one side has gone: so long the other may take what is left
  };

  void Loop();
  void TakeNew();
  void Serve(Pipe* pipe);
  void Pass(Pipe* pipe, int from, int to, Way* way, bool up);
  void Send(Pipe* pipe, int to, Way* way, std::string_view bytes);
  void Watch(int fd, uint64_t key, bool in, bool out, bool add);
  void Rewatch(int fd, uint64_t key, bool in, bool out, bool* watched);
  void CloseLate();
  void Close(Pipe* pipe);

  const Judge judge_;
  int epoll_ = -1, wake_ = -1;
  std::vector<char> buffer_;
  std::map<uint64_t, std::unique_ptr<Pipe>> pipes_;
  uint64_t next_ = 1;
  std::map<uint64_t, Pipe*> ending_;  // one side of these has gone
  std::mutex mutex_;
  std::vector<std::unique_ptr<Pipe>> new_;
  bool stopping_ = false;
  std::chrono::steady_clock::time_point close_all_ = std::chrono::steady_clock::time_point::max();
  std::thread thread_;
};

}  // namespace hone
