#include "server/relay.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kBuffer = 64 << 10;
constexpr int kTurns = 4;  // buffers of one connection before others have their turn
constexpr std::chrono::milliseconds kLastWords(500);
constexpr std::chrono::seconds kTakeTheRest(10);
enum FrameType : uint8_t { kData = 0, kHeaders = 1, kReset = 3, kWindowUpdate = 8, kContinuation = 9 };
constexpr uint8_t kEndHeaders = 4;

}  // namespace

// ---- frames

bool FrameScanner::Scan(std::string_view bytes, FrameCounts* counts) {
  while (!bytes.empty()) {
    const size_t skipped = std::min(skip_, bytes.size());
    skip_ -= skipped;
    bytes.remove_prefix(skipped);
    const size_t taken = std::min(sizeof(head_) - head_size_, bytes.size());
    std::memcpy(head_ + head_size_, bytes.data(), taken);
    head_size_ += taken;
    bytes.remove_prefix(taken);
    if (head_size_ < sizeof(head_)) return true;
    head_size_ = 0;
    skip_ = size_t{head_[0]} << 16 | size_t{head_[1]} << 8 | head_[2];
    if (!Frame(counts)) {
      counts->violation = true;
      return false;
    }
  }
  return true;
}

bool FrameScanner::Frame(FrameCounts* counts) {
  const uint8_t type = head_[3];
  switch (type) {
    case kData:
    case kWindowUpdate:
      return true;
    case kReset:
      ++counts->resets;
      return true;
    case kHeaders:
      ++counts->streams;
      block_bytes_ = block_frames_ = 0;
      [[fallthrough]];
    case kContinuation:
      block_bytes_ += skip_;
      ++block_frames_;
      if (block_bytes_ > kMaxHeaderBytes || block_frames_ > kMaxHeaderFrames) return false;
      if ((head_[4] & kEndHeaders) != 0) block_bytes_ = block_frames_ = 0;
      return true;
    default:
      ++counts->chatter;
      return true;
  }
}

// ---- passing on

Relay::Relay(Judge judge) : judge_(std::move(judge)), buffer_(kBuffer) {}

Relay::~Relay() {
  if (thread_.joinable()) {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
    thread_.join();
  }
  for (const auto& list : {&new_}) {
    for (const auto& pipe : *list) {
      close(pipe->client);
      close(pipe->inner);
    }
  }
  for (const auto& [number, pipe] : pipes_) {
    close(pipe->client);
    close(pipe->inner);
  }
  if (epoll_ >= 0) close(epoll_);
  if (wake_ >= 0) close(wake_);
}

absl::Status Relay::Start() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_ < 0 || wake_ < 0) return absl::UnavailableError(ToAbsl(StrCat("cannot poll: ", std::strerror(errno))));
  Watch(wake_, 0, true, false, true);
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

void Relay::Add(int client, int inner, int grpc_fd) {
  auto pipe = std::make_unique<Pipe>();
  pipe->client = client;
  pipe->inner = inner;
  pipe->grpc_fd = grpc_fd;
  {
    std::lock_guard lock(mutex_);
    new_.push_back(std::move(pipe));
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
}

void Relay::CloseAllAfter(std::chrono::milliseconds time) {
  {
    std::lock_guard lock(mutex_);
    close_all_ = std::chrono::steady_clock::now() + time;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
}

void Relay::Watch(int fd, uint64_t key, bool in, bool out, bool add) {
  epoll_event event{};
  event.events = (in ? static_cast<uint32_t>(EPOLLIN) : 0u) | (out ? static_cast<uint32_t>(EPOLLOUT) : 0u);
  event.data.u64 = key;
  epoll_ctl(epoll_, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
}

void Relay::TakeNew() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = read(wake_, &count, sizeof(count));
  std::vector<std::unique_ptr<Pipe>> taken;
  {
    std::lock_guard lock(mutex_);
    taken.swap(new_);
  }
  for (auto& pipe : taken) {
    pipe->number = next_++;
    Watch(pipe->client, pipe->number, true, false, true);
    Watch(pipe->inner, pipe->number, true, false, true);
    pipes_[pipe->number] = std::move(pipe);
  }
}

void Relay::Loop() {
  epoll_event events[64];
  auto end = std::chrono::steady_clock::time_point::max(), close_all = end;
  while (std::chrono::steady_clock::now() < end) {
    const bool stops = end != std::chrono::steady_clock::time_point::max();
    const int count = epoll_wait(epoll_, events, 64, stops ? 10 : close_all < end ? 50 : ending_.empty() ? -1 : 1000);
    for (int i = 0; i < count; ++i) {
      const uint64_t number = events[i].data.u64;  // a copy: the event is packed
      if (number == 0) {
        TakeNew();
        std::lock_guard lock(mutex_);
        close_all = close_all_;
        if (stopping_) end = std::min(end, std::chrono::steady_clock::now() + kLastWords);
        continue;
      }
      const auto found = pipes_.find(number);
      if (found != pipes_.end()) Serve(found->second.get());
    }
    if (!ending_.empty()) CloseLate();
    while (!pipes_.empty() && std::chrono::steady_clock::now() >= close_all) Close(pipes_.begin()->second.get());
    if (end != std::chrono::steady_clock::time_point::max() && pipes_.empty()) return;
  }
}

void Relay::Serve(Pipe* pipe) {
  Pass(pipe, pipe->client, pipe->inner, &pipe->up, true);
  if (!pipe->broken) Pass(pipe, pipe->inner, pipe->client, &pipe->down, false);
  // Once one of them has gone and has got what was for the other, there is nobody to talk to.
  const bool over = (pipe->up.ended && pipe->up.waiting.empty()) || (pipe->down.ended && pipe->down.waiting.empty());
  if (pipe->broken || over) return Close(pipe);
  if ((pipe->up.ended || pipe->down.ended) && ending_.emplace(pipe->number, pipe).second) {
    pipe->until = std::chrono::steady_clock::now() + kTakeTheRest;
  }
  Rewatch(pipe->client, pipe->number, !pipe->up.ended && pipe->up.waiting.empty(), !pipe->down.waiting.empty(),
          &pipe->client_watched);
  Rewatch(pipe->inner, pipe->number, !pipe->down.ended && pipe->down.waiting.empty(), !pipe->up.waiting.empty(),
          &pipe->inner_watched);
}

// Where there is nothing to wait for a descriptor is not watched at all: that its other end has gone would be told
// again and again.
void Relay::Rewatch(int fd, uint64_t key, bool in, bool out, bool* watched) {
  if (in || out) {
    Watch(fd, key, in, out, !*watched);
  } else if (*watched) {
    epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  }
  *watched = in || out;
}

void Relay::CloseLate() {
  std::vector<Pipe*> late;
  const auto now = std::chrono::steady_clock::now();
  for (const auto& [number, pipe] : ending_) {
    if (now >= pipe->until) late.push_back(pipe);
  }
  for (Pipe* pipe : late) Close(pipe);
}

void Relay::Pass(Pipe* pipe, int from, int to, Way* way, bool up) {
  if (!way->waiting.empty()) {
    const std::string waiting = std::exchange(way->waiting, {});
    Send(pipe, to, way, waiting);
  }
  FrameCounts counts;
  for (int turn = 0; turn < kTurns && way->waiting.empty() && !way->ended && !pipe->broken; ++turn) {
    const ssize_t got = recv(from, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (got <= 0) {
      way->ended = true;
      break;
    }
    const std::string_view bytes(buffer_.data(), static_cast<size_t>(got));
    if (up && !pipe->scanner.Scan(bytes, &counts)) break;
    Send(pipe, to, way, bytes);
    if (bytes.size() < buffer_.size()) break;  // that was all
  }
  if (!up || (counts.streams + counts.resets + counts.chatter == 0 && !counts.violation)) return;
  if (!judge_(pipe->grpc_fd, counts) || counts.violation) pipe->broken = true;
}

void Relay::Send(Pipe* pipe, int to, Way* way, std::string_view bytes) {
  const ssize_t sent = send(to, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    pipe->broken = true;
    return;
  }
  bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
  way->waiting.assign(bytes);
}

void Relay::Close(Pipe* pipe) {
  close(pipe->client);
  close(pipe->inner);
  ending_.erase(pipe->number);
  pipes_.erase(pipe->number);
}

}  // namespace hone
