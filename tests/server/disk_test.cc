// A full disk, for real: the daemon's state lies on a tmpfs of a few MiB that is filled up at the moment in question.
// At a submit, a checkpoint, an export, a commit of the store and a line of a log: what cannot be done is refused
// clearly or the job is HELD, and goes on by itself when there is space. Nothing that was acknowledged is lost. Needs
// the right to mount (root); skips without.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "proto/base/file.h"
#include "server/blobs.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

using std::chrono::milliseconds;

class DiskTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(folder_ / "disk");
    if (mount("tmpfs", (folder_ / "disk").c_str(), "tmpfs", 0, "size=24m") != 0) {
      GTEST_SKIP() << "no tmpfs can be mounted here: " << std::strerror(errno);
    }
    mounted_ = true;
    Start();
  }
  void Start() {
    honed_.Start();
    client_ = std::make_unique<Client>(folder_ / "s");
    grpc::ClientContext context;
    Client::Deadline(&context);
    v1::DaemonStatus status;
    ASSERT_TRUE(client_->daemon->GetStatus(&context, {}, &status).ok()) << Log();
  }
  void TearDown() override {
    client_.reset();
    if (!mounted_) return;
    honed_.Kill(SIGKILL);
    std::this_thread::sleep_for(milliseconds(100));
    umount2((folder_ / "disk").c_str(), MNT_DETACH);
  }
  // Takes all space but `leave` bytes, by many small files so that some can be given back.
  void FillDisk(uint64_t leave) {
    const std::string path = folder_ / "disk/filler";
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ASSERT_GE(fd, 0);
    const std::string block(4096, 'x');
    while (DiskFree(folder_ / "disk") > leave && write(fd, block.data(), block.size()) > 0) {
    }
    close(fd);
  }
  void FreeDisk() { unlink((folder_ / "disk/filler").c_str()); }
  void AwaitStep(const std::string& id, uint64_t step) {
    client_->Watch(id, 0, nullptr, [step](const v1::JobEvent& event) { return event.step().step() < step; });
  }
  std::string Log() { return ReadFile(folder_ / "honed.log", 1 << 24).value_or(""); }
  // Ends well, with an unbroken history, and the steps of its records are each there once in the last attempt's order.
  void ExpectGoesOn(const std::string& id, uint64_t steps) {
    ASSERT_TRUE(client_->AwaitState(id, v1::SUCCEEDED)) << client_->Get(id).state_message();
    const v1::Job job = client_->Get(id);
    ExpectGapless(client_->Watch(id));
    EXPECT_EQ(job.last_step().step(), steps);
    EXPECT_EQ(ReadFile(folder_ / "disk/state/jobs/" + id + "/output/adapter/adapter_model.safetensors", 1000).value(),
              StrCat("weights after ", steps, " steps\n"));
  }

  Folder folder_;
  bool mounted_ = false;
  HonedProcess honed_{folder_,
                      FAKE_WORKER,
                      folder_ / "disk/state",
                      {"--min-free-disk", "1000000", "--reserve", "1000000", "--hold-poll", "1"}};
  std::unique_ptr<Client> client_;
};

TEST_F(DiskTest, ASubmitIsRefusedClearlyAndWhatWasAcknowledgedStays) {
  const std::string before = client_->MustCreate(FakeSpec(folder_, "steps=2"));
  EXPECT_EQ(client_->Await(before).state(), v1::SUCCEEDED);
  FillDisk(400000);
  // Sooner or later the store's file cannot grow; until then jobs may be accepted, and those must stay.
  std::vector<std::string> accepted;
  grpc::Status status;
  v1::Job job;
  for (int i = 0; i < 3000; ++i) {
    v1::JobSpec spec = FakeSpec(folder_, "steps=2");
    spec.set_name(StrCat("steps=2 ", std::string(2000, 'n')));
    status = client_->Create(spec, &job);
    if (!status.ok()) break;
    accepted.push_back(job.id());
  }
  EXPECT_EQ(RichError(status).first, "DISK_FULL") << status.error_message();
  EXPECT_NE(status.error_message().find("free some disk space"), std::string::npos) << status.error_message();
  // Reading goes on, and after a kill, too.
  EXPECT_EQ(client_->Get(before).state(), v1::SUCCEEDED);
  honed_.Kill(SIGKILL);
  FreeDisk();
  Start();
  for (const std::string& id : accepted) EXPECT_TRUE(client_->AwaitState(id, v1::SUCCEEDED)) << id;
  EXPECT_EQ(client_->Await(client_->MustCreate(FakeSpec(folder_, "steps=2"))).state(), v1::SUCCEEDED);
  std::printf("disk full at submit: %zu accepted before the refusal, all of them ended well\n", accepted.size());
}

TEST_F(DiskTest, AFullDiskWhileItTrainsHoldsTheJobAndItGoesOn) {
  const std::string id = client_->MustCreate(FakeSpec(folder_, "steps=60 sleep=50 say=1000"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  AwaitStep(id, 5);
  FillDisk(0);
  ASSERT_TRUE(client_->AwaitState(id, v1::HELD)) << client_->Get(id).state_message() << Log();
  v1::Job job = client_->Get(id);
  EXPECT_EQ(job.state_reason(), "DISK_FULL");
  EXPECT_EQ(job.attempts(0).exit(), "held");
  const uint64_t kept = job.checkpoint_step();
  EXPECT_GT(kept, 0u);
  std::this_thread::sleep_for(milliseconds(2500));
  EXPECT_EQ(client_->Get(id).state(), v1::HELD);  // no space, no second try
  EXPECT_EQ(client_->Get(id).attempts_size(), 1);
  grpc::ClientContext context;
  v1::DaemonStatus status;
  ASSERT_TRUE(client_->daemon->GetStatus(&context, {}, &status).ok());
  FreeDisk();
  ExpectGoesOn(id, 60);
  job = client_->Get(id);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_LE(job.attempts(1).first_step(), job.attempts(0).last_step() + 1);
  EXPECT_GE(job.attempts(1).first_step(), kept + 1);
}

TEST_F(DiskTest, AFullDiskAtTheExportHoldsTheJobAndItGoesOn) {
  // A disk that is full once the last step is done: the export's file cannot be written.
  const std::string id = client_->MustCreate(FakeSpec(folder_, "steps=4 save=100 fill-at-export"));
  ASSERT_TRUE(client_->AwaitState(id, v1::HELD)) << client_->Get(id).state_message();
  EXPECT_EQ(client_->Get(id).state_reason(), "DISK_FULL");
  unlink((folder_ / "disk/state/jobs/" + id + "/output/fill").c_str());
  ExpectGoesOn(id, 4);
}

TEST_F(DiskTest, TheEndOfAJobIsRecordedAlthoughTheStoreCannotGrow) {
  // The disk fills up while the job sleeps in its last step; its end needs a commit.
  const std::string id = client_->MustCreate(FakeSpec(folder_, "steps=3 sleep=1200 save=100"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  AwaitStep(id, 2);
  FillDisk(0);
  // Either what it must write fails and it is held, or it ends; what it is, is on disk after a kill.
  bool rests = false;
  for (int i = 0; i < 400 && !rests; ++i) {
    const v1::JobState state = client_->Get(id).state();
    rests = state == v1::HELD || state == v1::SUCCEEDED;
    std::this_thread::sleep_for(milliseconds(25));
  }
  ASSERT_TRUE(rests) << Log();
  const v1::JobState state = client_->Get(id).state();
  honed_.Kill(SIGKILL);
  Start();  // on a full disk, too
  EXPECT_EQ(client_->Get(id).state(), state);
  FreeDisk();
  ExpectGoesOn(id, 3);
}

TEST_F(DiskTest, AnUploadIsRefusedClearly) {
  FillDisk(500000);
  grpc::ClientContext context;
  v1::UploadBlobResponse response;
  auto writer = client_->datasets->UploadBlob(&context, &response);
  v1::UploadBlobRequest message;
  message.set_digest(std::string(64, 'a'));
  message.set_total_bytes(2 << 20);
  writer->Write(message);
  writer->WritesDone();
  EXPECT_EQ(RichError(writer->Finish()).first, "DISK_FULL");
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "disk/state/blobs"));
}

}  // namespace
}  // namespace hone
