// The bounds that keep one client from costing all others: frames of HTTP/2 as the relay sees them, files being read,
// watchers woken in turn.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "server/daemon.h"
#include "server/event_hub.h"
#include "server/readers.h"
#include "server/relay.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/hostile_attacks.h"

namespace hone {
namespace {

using hostile::Call;
using hostile::Frame;
using hostile::Number;
using std::chrono::milliseconds;

// What a scanner finds in these bytes, given to it `step` at a time.
FrameCounts ScanAll(const std::string& bytes, size_t step, bool* passed = nullptr) {
  FrameScanner scanner;
  FrameCounts counts;
  bool good = true;
  for (size_t at = 0; at < bytes.size() && good; at += step) {
    good = scanner.Scan(std::string_view(bytes).substr(at, step), &counts);
  }
  if (passed != nullptr) *passed = good;
  return counts;
}

TEST(FrameScanner, CountsWhereverTheBytesAreCut) {
  std::string bytes = hostile::Hello(true);
  for (uint32_t stream = 1; stream < 21; stream += 2) bytes += Call(stream, "/x", std::string(300, 'd'));
  bytes += Frame(hostile::kReset, 0, 1, Number(8)) + Frame(6, 0, 0, std::string(8, 'p')) + Frame(99, 0, 0, "what?");
  for (const size_t step : {1, 2, 3, 7, 9, 10, 64, 1 << 20}) {
    bool passed = false;
    const FrameCounts counts = ScanAll(bytes, step, &passed);
    EXPECT_TRUE(passed) << step;
    EXPECT_EQ(counts.streams, 10u) << step;
    EXPECT_EQ(counts.resets, 1u) << step;
    EXPECT_EQ(counts.chatter, 3u) << step;  // settings, a ping, and what nobody knows
    EXPECT_FALSE(counts.violation);
  }
}

// A payload that looks like frames is none.
TEST(FrameScanner, DoesNotLookIntoPayloads) {
  std::string evil;
  for (int i = 0; i < 100; ++i) evil += Frame(hostile::kReset, 0, 1, Number(8));
  EXPECT_EQ(ScanAll(hostile::Hello() + Call(1, "/x", evil), 13).resets, 0u);
}

TEST(FrameScanner, CutsHeadersWithoutAnEnd) {
  const std::string piece(1000, 'h');
  const std::string begin = hostile::Hello() + Frame(hostile::kHeaders, 0, 1, piece);
  const auto more = [&](int frames, const std::string& payload, bool end) {
    std::string bytes = begin;
    for (int i = 0; i < frames; ++i) {
      bytes += Frame(hostile::kContinuation, end && i + 1 == frames ? hostile::kEndHeaders : 0, 1, payload);
    }
    bool passed = false;
    ScanAll(bytes, 4096, &passed);
    return passed;
  };
  EXPECT_TRUE(more(2, std::string(8000, 'h'), true));    // what gRPC's own limit lets through
  EXPECT_FALSE(more(3, std::string(16000, 'h'), true));  // too long
  EXPECT_TRUE(more(7, piece, true));
  EXPECT_FALSE(more(8, piece, true));   // too many pieces
  EXPECT_FALSE(more(1000, "", false));  // empty ones cost, too
  // A new block starts from nothing.
  std::string bytes = hostile::Hello();
  for (uint32_t stream = 1; stream < 200; stream += 2) {
    bytes += Frame(hostile::kHeaders, hostile::kEndHeaders, stream, std::string(16000, 'h'));
  }
  bool passed = false;
  ScanAll(bytes, 4096, &passed);
  EXPECT_TRUE(passed);
}

class RelayTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(relay_.Start().ok());
    int outer[2], inner[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, outer), 0);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, inner), 0);
    client_ = outer[0];
    server_ = inner[0];
    relay_.Add(outer[1], inner[1], 77);
  }
  void TearDown() override {
    if (client_ >= 0) close(client_);
    if (server_ >= 0) close(server_);
  }
  // What comes within a second; `ended`: whether the end came, too.
  std::string Receive(int fd, size_t wanted, bool* ended = nullptr) {
    std::string all;
    for (int i = 0; i < 1000 && (all.size() < wanted || ended != nullptr); ++i) {
      char bytes[65536];
      const ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
      if (got > 0) all.append(bytes, static_cast<size_t>(got));
      if (got == 0 || (got < 0 && errno != EAGAIN)) {
        if (ended != nullptr) *ended = true;
        return all;
      }
      if (got < 0) std::this_thread::sleep_for(milliseconds(1));
    }
    return all;
  }

  std::atomic<bool> allow_{true};
  std::atomic<uint64_t> streams_{0};
  Relay relay_{[this](int fd, const FrameCounts& counts) {
    EXPECT_EQ(fd, 77);
    streams_ += counts.streams;
    return allow_.load();
  }};
  int client_ = -1, server_ = -1;
};

// Megabytes both ways at once, through buffers that are soon full, arrive as they were sent.
TEST_F(RelayTest, PassesOnEverythingBothWays) {
  std::string up = hostile::Hello(), down;
  for (uint32_t i = 0; i < 200; ++i) {
    up += Frame(hostile::kData, 0, 1, std::string(16000, static_cast<char>('a' + i % 26)));
    down += std::string(20000, static_cast<char>('A' + i % 26));
  }
  const auto send_all = [](int fd, const std::string& bytes) {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent > 0) at += static_cast<size_t>(sent);
      if (sent < 0) std::this_thread::sleep_for(milliseconds(1));
    }
  };
  std::thread sender([&] { send_all(client_, up); });
  std::thread answerer([&] { send_all(server_, down); });
  std::string got_up;
  std::thread reader([&] { got_up = Receive(server_, up.size()); });
  const std::string got_down = Receive(client_, down.size());
  for (std::thread* thread : {&sender, &answerer, &reader}) thread->join();
  EXPECT_TRUE(got_up == up);
  EXPECT_TRUE(got_down == down);
}

TEST_F(RelayTest, TheLastWordsOfTheServerArrive) {
  const std::string words(300000, 'w');
  size_t sent = 0;
  while (sent < words.size()) {
    const ssize_t now = send(server_, words.data() + sent, words.size() - sent, MSG_NOSIGNAL);
    if (now > 0) sent += static_cast<size_t>(now);
    if (now < 0) break;  // the rest would wait for a reader
  }
  close(std::exchange(server_, -1));
  bool ended = false;
  EXPECT_EQ(Receive(client_, sent, &ended).size(), sent);
  EXPECT_TRUE(ended);
}

// The server has gone, the client does not take what is left, and nobody turns in circles over that.
TEST_F(RelayTest, WaitsWithoutWorkForAClientThatDoesNotTakeTheRest) {
  const std::string words(1 << 20, 'w');
  for (size_t sent = 0, idle = 0; sent < words.size() && idle < 50;) {
    const ssize_t now = send(server_, words.data() + sent, words.size() - sent, MSG_NOSIGNAL);
    if (now > 0) sent += static_cast<size_t>(now);
    idle = now > 0 ? 0 : idle + 1;
    if (now < 0) std::this_thread::sleep_for(milliseconds(1));
  }
  close(std::exchange(server_, -1));
  std::this_thread::sleep_for(milliseconds(50));
  const std::clock_t begin = std::clock();  // the whole process
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 0.1);
}

TEST_F(RelayTest, CutsOffWhoIsNotAllowed) {
  allow_ = false;
  hostile::Done done;
  hostile::Send(client_, hostile::Hello() + Call(1, "/x", ""), &done, false);
  bool client_ended = false, server_ended = false;
  Receive(client_, 1, &client_ended);
  Receive(server_, 1, &server_ended);
  EXPECT_TRUE(client_ended && server_ended);
  EXPECT_EQ(streams_, 1u);
}

TEST_F(RelayTest, HeadersWithoutAnEndDoNotReachTheServer) {
  hostile::Done done;
  hostile::Send(client_, hostile::Hello() + Frame(hostile::kHeaders, 0, 1, std::string(100, 'h')), &done, false);
  for (int i = 0; i < 1000; ++i) {
    if (!hostile::Send(client_, Frame(hostile::kContinuation, 0, 1, std::string(16000, 'h')), &done, false)) break;
  }
  bool ended = false;
  EXPECT_LT(Receive(server_, 1 << 30, &ended).size(), 3 * FrameScanner::kMaxHeaderBytes);
  EXPECT_TRUE(ended);
}

TEST(ReadersTest, AreBoundedInAllAndPerClient) {
  Readers readers({5, 3});
  std::atomic<int> checked{0};
  const auto check = [&](Readers::Clock::time_point) { ++checked; };
  uint64_t first = 0, number = 0;
  ASSERT_TRUE(readers.Enter({1, 1}, check, &first).ok());
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(readers.Enter({1, 1}, check, &number).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(readers.Enter({1, 1}, check, &number)));
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(readers.Enter({1, 2}, check, &number).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(readers.Enter({2, 0}, check, &number)));
  readers.CheckAll();
  EXPECT_EQ(checked, 5);
  readers.Leave(first);
  readers.Leave(first);
  EXPECT_EQ(readers.open(), 4u);
  EXPECT_TRUE(readers.Enter({1, 1}, check, &number).ok());
}

// One process has so many uploads and watches and no more; others go on, and so does it once it ends some.
TEST(ClientLimits, UploadsAndWatches) {
  Folder folder;
  DaemonOptions options;
  options.state_dir = folder / "state";
  options.socket = folder / "s";
  options.metrics_address = "off";
  options.worker_program = FAKE_WORKER;
  options.scheduler.free_memory = [] { return uint64_t{1} << 40; };
  options.slow_reader = milliseconds(50);
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  Client client(folder / "s");
  v1::UploadBlobRequest request;
  request.set_digest(std::string(64, 'a'));
  request.set_total_bytes(1000);
  struct Upload {
    grpc::ClientContext context;
    v1::UploadBlobResponse response;
    std::unique_ptr<grpc::ClientWriter<v1::UploadBlobRequest>> writer;
  };
  std::vector<std::unique_ptr<Upload>> uploads;
  const auto begin = [&] {
    auto upload = std::make_unique<Upload>();
    Client::Deadline(&upload->context);
    upload->writer = client.datasets->UploadBlob(&upload->context, &upload->response);
    upload->writer->Write(request);
    return upload;
  };
  for (int i = 0; i < 16; ++i) uploads.push_back(begin());
  std::this_thread::sleep_for(milliseconds(100));  // they have begun
  const grpc::Status refused = begin()->writer->Finish();
  EXPECT_EQ(RichError(refused).first, "TOO_MANY_UPLOADS") << refused.error_message();
  // None brings anything more: they are ended.
  std::this_thread::sleep_for(milliseconds(550));
  (*daemon)->Tick();
  for (const auto& upload : uploads) EXPECT_EQ(upload->writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  const auto next = begin();
  next->writer->WritesDone();
  EXPECT_EQ(RichError(next->writer->Finish()).second, "total_bytes");

  const std::string id = client.MustCreate(FakeSpec(folder, "steps=100000 sleep=20"));
  const std::string message = [&] {
    v1::WatchJobRequest watch;
    watch.set_name(id);
    return watch.SerializeAsString();
  }();
  const int other = hostile::Connect(folder / "s");
  hostile::Done done;
  for (int c = 0; c < 6; ++c) {
    const int fd = c == 0 ? other : hostile::Connect(folder / "s");
    std::string frames = hostile::Hello(true);
    for (uint32_t s = 0; s < 200; ++s) frames += Call(2 * s + 1, "/hone.v1.Jobs/WatchJob", message);
    hostile::Send(fd, frames, &done);
  }
  for (int i = 0; i < 500 && (*daemon)->watchers() < 1024; ++i) std::this_thread::sleep_for(milliseconds(10));
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ((*daemon)->watchers(), 1024u);
  grpc::Status status;
  client.Watch(id, 0, &status);
  EXPECT_EQ(RichError(status).first, "TOO_MANY_WATCHES") << status.error_message();
  v1::Job cancelled;
  client.Cancel(id, &cancelled);
}

// Many watchers of one job are woken in turn; what comes meanwhile is coalesced, nothing durable is lost.
TEST(HubPace, ManyWatchersAreWokenInTurnWithTheNewest) {
  EventHub hub({4, 1000});
  std::atomic<int> woken{0};
  std::vector<std::shared_ptr<Subscription>> watchers;
  for (int i = 0; i < 40; ++i) watchers.push_back(hub.Subscribe("j", [&] { ++woken; }));
  for (const auto& watcher : watchers) EXPECT_TRUE(watcher->TakeAnnounced());
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t step = 1; step <= 500; ++step) {
    Transient transient;
    transient.event.mutable_step()->set_step(step);
    hub.Publish("j", transient);
  }
  Transient progress;
  progress.event.mutable_progress();
  hub.Publish("j", progress);
  hub.Announce("j");
  for (int i = 0; i < 2000 && woken < 40; ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_GE(woken, 40);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(20));
  for (const auto& watcher : watchers) {
    v1::JobEvent event;
    ASSERT_TRUE(watcher->Take(0, &event));
    EXPECT_EQ(event.step().step(), 500u);
    ASSERT_TRUE(watcher->Take(0, &event));
    EXPECT_TRUE(event.has_progress());
    EXPECT_FALSE(watcher->Take(0, &event));
    EXPECT_TRUE(watcher->TakeAnnounced());
    hub.Unsubscribe("j", watcher);
  }
}

}  // namespace
}  // namespace hone
