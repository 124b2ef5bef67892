// Who may come in: the admin socket, other users, TLS with and without certificates and tokens; and readers that are
// too slow. What those cost who do not behave is hostile_test.cc's.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmath>
#include <set>

#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "server/admission.h"
#include "server/daemon.h"
#include "tests/server/certificates.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

DaemonOptions Options(const Folder& folder) {
  DaemonOptions options;
  options.state_dir = folder / "state";
  options.socket = folder / "s";
  options.metrics_address = "off";
  options.worker_program = FAKE_WORKER;
  options.scheduler.free_memory = [] { return uint64_t{1} << 40; };
  return options;
}

std::string Write(const std::string& path, const std::string& text, mode_t mode = 0600) {
  EXPECT_TRUE(WriteFileDurably(path, text).ok());
  chmod(path.c_str(), mode);
  return path;
}

// ---- Unix sockets

TEST(Access, AdminSocketAndModes) {
  Folder folder;
  DaemonOptions options = Options(folder);
  options.admin_socket = folder / "admin";
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  struct stat info;
  ASSERT_EQ(stat((folder / "s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
  ASSERT_EQ(stat((folder / "admin").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  Client client(folder / "admin");
  grpc::ClientContext context;
  v1::DaemonStatus status;
  ASSERT_TRUE(client.daemon->GetStatus(&context, {}, &status).ok());
  EXPECT_TRUE(status.caller_is_admin());
  // A file that is no socket is not taken away.
  DaemonOptions other = Options(folder);
  other.state_dir = folder / "state2";
  other.socket = folder / "data.jsonl";
  EXPECT_FALSE(Daemon::Start(other).ok());
  EXPECT_TRUE(std::filesystem::exists(folder / "data.jsonl"));
}

TEST(Access, AnotherUserSeesButDoesNotTouch) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can act as another user";
  if (access("/usr/bin/setpriv", X_OK) != 0) GTEST_SKIP() << "no setpriv here";
  Folder folder;
  chmod(folder.path().c_str(), 0755);
  std::filesystem::copy_file(HONE_PROGRAM, folder / "hone");
  DaemonOptions options = Options(folder);
  options.socket_mode = 0666;
  options.max_jobs_per_user = 1;
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  Client client(folder / "s");
  const std::string id = client.MustCreate(FakeSpec(folder, "steps=100000 sleep=10"));
  const auto as_nobody = [&](const std::string& words) {
    const std::string command = StrCat("HOME=/tmp setpriv --reuid=65534 --regid=65534 --clear-groups ", folder / "hone",
                                       " --socket ", folder / "s", " ", words, " > ", folder / "out", " 2>&1");
    return WEXITSTATUS(system(command.c_str()));
  };
  EXPECT_EQ(as_nobody("get " + id), 0);
  EXPECT_EQ(as_nobody("cancel " + id), 4) << ReadFile(folder / "out").value_or("");
  EXPECT_NE(ReadFile(folder / "out")->find("NOT_OWNER"), std::string::npos);
  EXPECT_EQ(as_nobody("pause " + id), 4);
  EXPECT_EQ(as_nobody("daemon stop"), 4);
  EXPECT_EQ(client.Get(id).state() == v1::CANCELLED, false);
  // Its own jobs it may have, and end, within its quota.
  const std::string job = folder / "job.yaml";
  Write(job,
        "name: steps=1\nmodel: {source: " + (folder / "model") +
            "}\nobjective: {sft: {}}\ndata: {train: d.jsonl}\nbatch: {examples: 2}\noptimizer: {learning_rate: 1e-4}\n",
        0644);
  Write(folder / "d.jsonl", "{\"text\": \"a\"}\n", 0644);
  EXPECT_EQ(as_nobody("submit -q " + job), 0) << ReadFile(folder / "out").value_or("");
  const std::string own = ReadFile(folder / "out")->substr(0, 10);
  EXPECT_EQ(client.Get(own).owner_uid(), 65534);
  EXPECT_EQ(as_nobody("submit -q " + job), 1);
  EXPECT_NE(ReadFile(folder / "out")->find("QUOTA_EXCEEDED"), std::string::npos);
  EXPECT_EQ(as_nobody("cancel " + own), 0);
  // A model that only root may read is not read for nobody.
  chmod((folder / "model").c_str(), 0700);
  EXPECT_EQ(as_nobody("submit -q " + job), 4);
  EXPECT_NE(ReadFile(folder / "out")->find("NOT_READABLE"), std::string::npos) << *ReadFile(folder / "out");
  v1::Job cancelled;
  client.Cancel(id, &cancelled);
}

TEST(Access, UserMayRead) {
  if (geteuid() != 0) GTEST_SKIP() << "as another user everything is the daemon's own";
  Folder folder;
  chmod(folder.path().c_str(), 0755);
  const std::string file = Write(folder / "f", "x", 0640);
  EXPECT_FALSE(UserMayRead(65534, file));
  chmod(file.c_str(), 0644);
  EXPECT_TRUE(UserMayRead(65534, file));
  std::filesystem::create_symlink(file, folder / "link");
  EXPECT_TRUE(UserMayRead(65534, folder / "link"));
  chmod(folder.path().c_str(), 0700);
  EXPECT_FALSE(UserMayRead(65534, file));
  EXPECT_TRUE(UserMayRead(0, file));
  EXPECT_TRUE(UserMayRead(-1, file));
}

// ---- TCP

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    Install("server", authority_.Issue("localhost"));
    Write(folder_ / "ca.pem", authority_.pem());
    options_ = Options(folder_);
    options_.tcp.listen = "127.0.0.1:0";
    options_.tcp.certificate = folder_ / "server.pem";
    options_.tcp.key = folder_ / "server.key";
    options_.tcp.refresh_seconds = 1;
  }
  void Install(const std::string& name, const Pem& pem) {
    Write(folder_ / (name + ".key"), pem.key);
    Write(folder_ / (name + ".pem"), pem.certificate);
  }
  std::string Refusal() {
    const auto daemon = Daemon::Start(options_);
    return std::string(daemon.status().message());
  }
  void Start() {
    auto daemon = Daemon::Start(options_);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    ASSERT_GT(daemon_->tcp_port(), 0);
  }
  // How a fresh connection with these credentials is answered; the server's certificate in *shown.
  grpc::Status Ask(const Pem& pem, const std::string& token = "", const std::string& ca = "",
                   std::string* shown = nullptr) {
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = ca.empty() ? authority_.pem() : ca;
    tls.pem_cert_chain = pem.certificate;
    tls.pem_private_key = pem.key;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel =
        grpc::CreateCustomChannel(StrCat("127.0.0.1:", daemon_->tcp_port()), grpc::SslCredentials(tls), arguments);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    v1::DaemonStatus status;
    grpc::Status answer = v1::Daemon::NewStub(channel)->GetStatus(&context, {}, &status);
    if (shown != nullptr && answer.ok()) {
      for (const auto& value : context.auth_context()->FindPropertyValues("x509_pem_cert")) {
        shown->assign(value.data(), value.length());
      }
    }
    return answer;
  }

  Folder folder_;
  Authority authority_{"hone test authority"};
  DaemonOptions options_;
  std::unique_ptr<Daemon> daemon_;
};

TEST_F(TlsTest, TheDaemonRefusesToStartUnsafe) {
  EXPECT_NE(Refusal().find("--tls-client-ca"), std::string::npos) << Refusal();
  options_.tcp.client_ca = folder_ / "ca.pem";
  options_.tcp.certificate.clear();
  EXPECT_NE(Refusal().find("TLS only"), std::string::npos);
  options_.tcp.certificate = folder_ / "nothing.pem";
  EXPECT_NE(Refusal().find("nothing.pem"), std::string::npos);
  options_.tcp.certificate = folder_ / "server.pem";
  chmod((folder_ / "server.key").c_str(), 0644);
  EXPECT_NE(Refusal().find("chmod 600"), std::string::npos);
  chmod((folder_ / "server.key").c_str(), 0600);
  options_.tcp.token_file = Write(folder_ / "tokens", "not a digest\n");
  EXPECT_NE(Refusal().find("line 1"), std::string::npos) << Refusal();
}

TEST_F(TlsTest, OnlyAValidCertificateComesInAndANewOneIsUsedWithoutARestart) {
  options_.tcp.client_ca = folder_ / "ca.pem";
  Start();
  const Pem good = authority_.Issue("client");
  std::string first;
  const grpc::Status answer = Ask(good, "", "", &first);
  EXPECT_TRUE(answer.ok()) << answer.error_message();
  EXPECT_EQ(Ask({}).error_code(), grpc::StatusCode::UNAVAILABLE);                                        // none
  EXPECT_EQ(Ask(authority_.Issue("client", -7200, -3600)).error_code(), grpc::StatusCode::UNAVAILABLE);  // expired
  EXPECT_EQ(Ask(Authority("somebody else").Issue("client")).error_code(), grpc::StatusCode::UNAVAILABLE);
  // Plain HTTP/2 on that port gets nowhere.
  const auto plain = grpc::CreateChannel(StrCat("127.0.0.1:", daemon_->tcp_port()), grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  v1::DaemonStatus status;
  EXPECT_FALSE(v1::Daemon::NewStub(plain)->GetStatus(&context, {}, &status).ok());
  // Who comes over TCP is nobody's admin.
  ASSERT_TRUE(Ask(good).ok());

  Install("server", authority_.Issue("localhost"));
  std::string second = first;
  for (int i = 0; i < 60 && second == first; ++i) {
    std::this_thread::sleep_for(milliseconds(100));
    Ask(good, "", "", &second);
  }
  EXPECT_NE(second, first);
  EXPECT_TRUE(Ask(good).ok());
}

TEST_F(TlsTest, OnlyAKnownTokenComesIn) {
  const std::string tokens = Write(folder_ / "tokens", "# ours\n" + Sha256Hex("open sesame") + "\n");
  options_.tcp.token_file = tokens;
  Start();
  EXPECT_TRUE(Ask({}, "open sesame").ok()) << Ask({}, "open sesame").error_message();
  EXPECT_EQ(Ask({}, "open barley").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask({}).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask({}, Sha256Hex("open sesame")).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);  // the digest is no token
  // A daemon with another certificate is not trusted by the client.
  EXPECT_FALSE(Ask({}, "open sesame", Authority("somebody else").pem()).ok());
  // Replaced on disk: the old one is out, the new one in.
  std::this_thread::sleep_for(milliseconds(20));
  Write(tokens, Sha256Hex("new") + "\n");
  EXPECT_EQ(Ask({}, "open sesame").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Ask({}, "new").ok());
}

// ---- slow readers

// A window of a few KiB, so that a client that does not read is noticed soon.
std::shared_ptr<grpc::Channel> SmallWindow(const std::string& socket) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  return grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), arguments);
}

// A reader that is too slow is cut with the number to go on from; what it then gets has no gap.
TEST(SlowReader, IsCutAndGoesOnWhereItWas) {
  Folder folder;
  DaemonOptions options = Options(folder);
  options.slow_reader = milliseconds(300);
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const auto channel = SmallWindow(folder / "s");
  const auto jobs = v1::Jobs::NewStub(channel);
  Client client(folder / "s");
  const std::string id = client.MustCreate(FakeSpec(folder, "steps=1500 save=1"));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::WatchJobRequest request;
  request.set_name(id);
  auto reader = jobs->WatchJob(&context, request);
  std::vector<v1::JobEvent> events;
  v1::JobEvent event;
  while (events.size() < 3 && reader->Read(&event)) events.push_back(event);
  // Not a word for longer than the limit; then it reads again what is under way.
  for (int i = 0; i < 12; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  while (reader->Read(&event)) events.push_back(event);
  const grpc::Status status = reader->Finish();
  ASSERT_EQ(status.error_code(), grpc::StatusCode::ABORTED) << status.error_message();
  EXPECT_EQ(RichError(status).first, "SLOW_READER");
  ExpectGapless(events);
  uint64_t last = 0;
  for (const v1::JobEvent& one : events) last = std::max<uint64_t>(last, one.sequence());
  EXPECT_NE(status.error_message().find(StrCat("after event ", last)), std::string::npos) << status.error_message();
  const auto rest = client.Watch(id, last);
  ExpectGapless(rest, last);
  EXPECT_EQ(client.Get(id).state(), v1::SUCCEEDED);
}

// One that never reads again is ended by force.
TEST(SlowReader, IsEndedIfItNeverReads) {
  Folder folder;
  DaemonOptions options = Options(folder);
  options.slow_reader = milliseconds(200);
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  Client client(folder / "s");
  const auto channel = SmallWindow(folder / "s");
  const auto jobs = v1::Jobs::NewStub(channel);
  const std::string id = client.MustCreate(FakeSpec(folder, "steps=100000 save=1"));
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_name(id);
  auto reader = jobs->WatchJob(&context, request);
  bool ended = false;
  for (int i = 0; i < 200 && !ended; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
    (*daemon)->Tick();
    ended = (*daemon)->watchers() == 0;
  }
  EXPECT_TRUE(ended);
  context.TryCancel();
  v1::JobEvent event;
  while (reader->Read(&event)) {
  }
  reader->Finish();
  v1::Job job;
  client.Cancel(id, &job);
}

}  // namespace
}  // namespace hone
