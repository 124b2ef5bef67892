#include "server/doorman.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "grpcpp/server_posix.h"
#include "proto/base/status.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr int kBacklog = 1024;
constexpr int kTickMs = 1000;
constexpr int kFirstFd = 256;
constexpr std::string_view kPeerPrefix = "fd:";

absl::Status Errno(std::string_view action, const std::string& path) {
  return absl::UnavailableError(ToAbsl(StrCat("cannot ", action, " ", path, ": ", std::strerror(errno))));
}

uint64_t InodeOf(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? static_cast<uint64_t>(info.st_ino) : 0;
}

// Descriptors of connections are dealt out in turn, so that a number comes back only after many others: a call that is
// just ending never finds another user behind its number.
int MoveToFreshNumber(int fd, int* next) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const int range = std::max(1, static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1 << 16)) - kFirstFd - 64);
  *next = (*next + 1) % range;
  int moved = fcntl(fd, F_DUPFD_CLOEXEC, kFirstFd + *next);
  if (moved < 0) moved = fcntl(fd, F_DUPFD_CLOEXEC, kFirstFd);
  if (moved >= 0) *next = std::max(0, moved - kFirstFd);
  close(fd);
  return moved;
}

}  // namespace

Doorman::Doorman(Options options)
    : options_(options),
      relay_(std::make_unique<Relay>([this](int fd, const FrameCounts& counts) { return Judge(fd, counts); })) {}

Doorman::~Doorman() {
  Stop();
  relay_.reset();
}

absl::Status Doorman::Listen(const std::string& path, mode_t mode, bool admin) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return InvalidArgument(path, " is longer than the ", sizeof(address.sun_path) - 1,
                           " bytes that a Unix socket may have; choose a shorter one");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  struct stat info;
  if (lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) return FailedPrecondition(path, " is there and is not a socket; move it away");
    unlink(path.c_str());
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Errno("make a socket for", path);
  // Nobody can connect before the mode is set: binding makes the file with the umask's bits, listening comes last.
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 || chmod(path.c_str(), mode) != 0 ||
      listen(fd, kBacklog) != 0) {
    absl::Status status = Errno("listen on", path);
    close(fd);
    return status;
  }
  doors_.push_back({fd, admin, path});
  return absl::OkStatus();
}

absl::Status Doorman::Start(grpc::Server* server) {
  HONE_RETURN_IF_ERROR(relay_->Start());
  server_ = server;
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const auto watch = [this](int fd, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  };
  watch(wake_, EPOLLIN);
  for (const Door& door : doors_) watch(door.fd, EPOLLIN);
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

void Doorman::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
    thread_.join();
  }
  for (const Door& door : doors_) {
    close(door.fd);
    unlink(door.path.c_str());
  }
  doors_.clear();
  for (const auto& [fd, guest] : unproven_) close(fd);
  unproven_.clear();
  for (int* fd : {&epoll_, &wake_}) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
}

void Doorman::Loop() {
  epoll_event events[64];
  auto sweep = std::chrono::steady_clock::now();
  while (true) {
    const int count = epoll_wait(epoll_, events, 64, kTickMs);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == wake_) return;
      const auto door = std::find_if(doors_.begin(), doors_.end(), [fd](const Door& d) { return d.fd == fd; });
      door != doors_.end() ? Accept(*door) : Hear(fd);
    }
    const auto now = std::chrono::steady_clock::now();
    if (now - sweep < std::chrono::milliseconds(kTickMs)) continue;
    sweep = now;
    Sweep();
  }
}

void Doorman::Accept(const Door& door) {
  for (int i = 0; i < 64; ++i) {  // then the others have their turn
    int fd = accept4(door.fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      // No descriptor is free: the silent ones go first.
      if ((errno == EMFILE || errno == ENFILE) && !order_.empty()) {
        Dismiss(order_.front().first);
        continue;
      }
      return;
    }
    ucred peer{};
    socklen_t size = sizeof(peer);
    const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
    fd = MoveToFreshNumber(fd, &next_fd_);
    if (fd < 0) continue;
    {
      std::lock_guard lock(mutex_);
      ++counts_.accepted;
    }
    while (unproven_.size() >= options_.max_unproven && !order_.empty()) Dismiss(order_.front().first);
    const Guest guest = {known ? static_cast<int64_t>(peer.uid) : -1, door.admin, InodeOf(fd),
                         std::chrono::steady_clock::now(), known ? peer.pid : 0};
    if (IsPunished(guest)) {
      close(fd);
      continue;
    }
    unproven_[fd] = guest;
    order_.emplace_back(fd, guest.inode);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    event.data.fd = fd;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }
}

// An unproven connection has said something, or has gone.
void Doorman::Hear(int fd) {
  if (!unproven_.contains(fd)) return;
  char bytes[kPreface.size()];
  const ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return Dismiss(fd);
  if (kPreface.substr(0, static_cast<size_t>(got)) != std::string_view(bytes, static_cast<size_t>(got))) {
    return Dismiss(fd);
  }
  if (static_cast<size_t>(got) == kPreface.size()) HandOver(fd);
}

void Doorman::HandOver(int fd) {
  const Guest guest = unproven_.at(fd);
  bool full = false;
  {
    std::lock_guard lock(mutex_);
    full = inside_.size() >= options_.max_connections || OpenOf(guest.uid) >= options_.max_per_user;
  }
  if (full) {
    Sweep();
    std::lock_guard lock(mutex_);
    full = inside_.size() >= options_.max_connections || OpenOf(guest.uid) >= options_.max_per_user;
  }
  if (full) {
    spdlog::warn("a connection of user {} is refused: too many are open", guest.uid);
    return Dismiss(fd);
  }
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) return Dismiss(fd);
  const int inner = MoveToFreshNumber(pair[1], &next_fd_);
  if (inner < 0) {
    close(pair[0]);
    return Dismiss(fd);
  }
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  unproven_.erase(fd);
  std::erase(order_, std::pair<int, uint64_t>(fd, guest.inode));
  {
    std::lock_guard lock(mutex_);
    inside_[inner] = guest;
    inside_[inner].inode = InodeOf(inner);
    ++counts_.handed_over;
  }
  grpc::AddInsecureChannelFromFd(server_, inner);  // takes the descriptor
  relay_->Add(fd, pair[0], inner);
}

void Doorman::Dismiss(int fd) {
  const auto found = unproven_.find(fd);
  if (found == unproven_.end()) return;
  std::erase(order_, std::pair<int, uint64_t>(fd, found->second.inode));
  unproven_.erase(found);
  close(fd);
  std::lock_guard lock(mutex_);
  ++counts_.refused;
}

// Those that stay silent go; those that have left are forgotten.
void Doorman::Sweep() {
  const auto now = std::chrono::steady_clock::now();
  while (!order_.empty()) {
    const auto found = unproven_.find(order_.front().first);
    if (found != unproven_.end() && now - found->second.since < options_.unproven_limit) break;
    if (found == unproven_.end()) {
      order_.pop_front();
    } else {
      Dismiss(order_.front().first);
    }
  }
  Forget();
}

// Those that have left. A connection that came and went without a call was of no use to anybody.
void Doorman::Forget() {
  std::lock_guard lock(mutex_);
  std::erase_if(inside_, [&](const auto& entry) {
    const auto& [fd, guest] = entry;
    if (InodeOf(fd) == guest.inode) return false;
    if (guest.calls_of_all == 0 && !guest.shut && Charge(CulpritOf(guest), options_.fruitless_connection)) {
      Punish(CulpritOf(guest), "makes connections in masses that no call comes of");
    }
    return true;
  });
}

bool Doorman::Judge(int fd, const FrameCounts& counts) {
  std::lock_guard lock(mutex_);
  const auto found = inside_.find(fd);
  if (found == inside_.end()) return false;
  Guest& guest = found->second;
  guest.streams += counts.streams;
  // The newest have just come in: their calls will.
  const uint64_t called = guest.calls_of_all + options_.max_calls / 2;
  const uint64_t uncalled = std::max(guest.uncalled, guest.streams - std::min(guest.streams, called));
  const double bad = static_cast<double>(uncalled - std::exchange(guest.uncalled, uncalled)) +
                     static_cast<double>(counts.resets) + options_.chatter * static_cast<double>(counts.chatter);
  const bool too_much = bad > 0 && Charge(CulpritOf(guest), bad);
  if (!too_much && !counts.violation) return true;
  if (!std::exchange(guest.shut, true)) ++counts_.ejected;
  Punish(CulpritOf(guest), counts.violation ? "sends headers without an end" : "opens streams in masses for nothing");
  return false;
}

bool Doorman::Charge(const Culprit& culprit, double bad) {
  const auto now = std::chrono::steady_clock::now();
  const auto forgiven = [&](const Account& account) {
    return std::chrono::duration<double>(now - account.when).count() * options_.forgiven_per_second;
  };
  if (accounts_.size() >= options_.max_connections) {
    std::erase_if(accounts_, [&](const auto& entry) { return forgiven(entry.second) >= entry.second.bad; });
  }
  Account& account = accounts_.try_emplace(culprit, Account{0, now}).first->second;
  account.bad = std::max(0.0, account.bad - forgiven(account)) + bad;
  account.when = now;
  return account.bad > options_.max_bad;
}

void Doorman::Punish(const Culprit& culprit, std::string_view why) {
  if (punished_.size() >= options_.max_connections) return;
  const auto until = std::chrono::steady_clock::now() + options_.penalty;
  const bool news = punished_.insert_or_assign(culprit, until).second;
  if (!news) return;
  const std::string process = culprit.second == 0 ? "" : StrCat(" (process ", culprit.second, ")");
  spdlog::warn("user {}{} {} and stays out for {} s", culprit.first, process, std::string(why),
               options_.penalty.count() / 1000);
}

void Doorman::Eject(int fd, Guest* guest, std::string_view why) {
  guest->shut = true;
  shutdown(fd, SHUT_RDWR);  // gRPC owns the descriptor and sees its end
  ++counts_.ejected;
  Punish(CulpritOf(*guest), why);
}

Doorman::Culprit Doorman::CulpritOf(const Guest& guest) {
  const bool own = guest.uid == static_cast<int64_t>(geteuid());
  return {guest.uid, own ? guest.pid : 0};
}

bool Doorman::IsPunished(const Guest& guest) {
  std::lock_guard lock(mutex_);
  const auto found = punished_.find(CulpritOf(guest));
  if (found == punished_.end()) return false;
  if (std::chrono::steady_clock::now() < found->second) {
    ++counts_.refused;
    return true;
  }
  punished_.erase(found);
  return false;
}

Doorman::Ticket Doorman::NoteCall(const std::string& peer) {
  if (peer.rfind(kPeerPrefix, 0) != 0) return {};
  const int fd = std::atoi(peer.c_str() + kPeerPrefix.size());
  std::lock_guard lock(mutex_);
  const auto found = inside_.find(fd);
  if (found == inside_.end()) return {};
  Guest& guest = found->second;
  const Ticket ticket = {fd, guest.inode};
  ++guest.calls_of_all;
  if (++guest.calls != options_.max_calls || guest.shut || InodeOf(fd) != guest.inode) return ticket;
  Eject(fd, &guest, "opens and resets calls in masses");
  return ticket;
}

void Doorman::NoteEnd(const Ticket& ticket) {
  if (ticket.fd < 0) return;
  std::lock_guard lock(mutex_);
  const auto found = inside_.find(ticket.fd);
  if (found != inside_.end() && found->second.inode == ticket.inode && found->second.calls > 0) --found->second.calls;
}

size_t Doorman::OpenOf(int64_t uid) const {
  return static_cast<size_t>(
      std::count_if(inside_.begin(), inside_.end(), [uid](const auto& entry) { return entry.second.uid == uid; }));
}

Caller Doorman::Who(const std::string& peer) const {
  if (peer.rfind(kPeerPrefix, 0) != 0) return {};
  const int fd = std::atoi(peer.c_str() + kPeerPrefix.size());
  std::lock_guard lock(mutex_);
  const auto found = inside_.find(fd);
  if (found == inside_.end()) return {};
  const auto [uid, pid] = CulpritOf(found->second);
  return {uid, found->second.admin || uid == 0 || uid == static_cast<int64_t>(geteuid()), pid};
}

Doorman::Counts Doorman::counts() const {
  std::lock_guard lock(mutex_);
  Counts counts = counts_;
  counts.open = inside_.size();
  return counts;
}

}  // namespace hone
