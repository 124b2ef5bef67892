// Parts of the daemon by themselves: frames, errors, metrics, places, executor, hub, files.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "prometheus/text_serializer.h"
#include "proto/base/frame.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/event_hub.h"
#include "server/executor.h"
#include "server/faults.h"
#include "server/file_access.h"
#include "server/metrics.h"
#include "server/models_service.h"
#include "server/places.h"

namespace hone {
namespace {

class FrameTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds_), 0); }
  void TearDown() override {
    close(fds_[0]);
    if (fds_[1] >= 0) close(fds_[1]);
  }
  void Raw(const std::string& bytes) {
    ASSERT_EQ(write(fds_[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    close(fds_[1]);
    fds_[1] = -1;
  }
  int fds_[2];
};

TEST_F(FrameTest, RoundTrips) {
  std::string big(3 << 20, 'x');
  big[12345] = '\0';
  std::thread writer([&] {
    EXPECT_TRUE(WriteFrame(fds_[1], "").ok());
    EXPECT_TRUE(WriteFrame(fds_[1], "abc").ok());
    EXPECT_TRUE(WriteFrame(fds_[1], big).ok());
    close(fds_[1]);
    fds_[1] = -1;
  });
  std::string bytes = "old";
  EXPECT_TRUE(*ReadFrame(fds_[0], &bytes));
  EXPECT_EQ(bytes, "");
  EXPECT_TRUE(*ReadFrame(fds_[0], &bytes));
  EXPECT_EQ(bytes, "abc");
  EXPECT_TRUE(*ReadFrame(fds_[0], &bytes));
  EXPECT_EQ(bytes, big);
  EXPECT_FALSE(*ReadFrame(fds_[0], &bytes));
  writer.join();
}

TEST_F(FrameTest, RefusesATornOrLyingFrame) {
  std::string bytes;
  Raw(std::string("\x05\0\0\0ab", 6));
  EXPECT_TRUE(absl::IsDataLoss(ReadFrame(fds_[0], &bytes).status()));
}

TEST_F(FrameTest, RefusesATornLength) {
  std::string bytes;
  Raw(std::string("\x05\0", 2));
  EXPECT_TRUE(absl::IsDataLoss(ReadFrame(fds_[0], &bytes).status()));
}

TEST_F(FrameTest, RefusesAHugeLengthWithoutAllocatingIt) {
  std::string bytes;
  Raw("\xff\xff\xff\xff");
  EXPECT_TRUE(absl::IsDataLoss(ReadFrame(fds_[0], &bytes).status()));
  EXPECT_LT(bytes.capacity(), size_t{1} << 20);
  EXPECT_TRUE(absl::IsInvalidArgument(WriteFrame(fds_[0], std::string(kMaxFrameBytes + 1, 'x'))));
}

TEST_F(FrameTest, AGonePeerIsAnErrorNotASignal) {
  close(fds_[1]);
  fds_[1] = -1;
  EXPECT_TRUE(absl::IsUnavailable(WriteFrame(fds_[0], "abc")));
}

TEST(Errors, EveryErrorHasOneErrorInfoAndBoundedValidText) {
  const absl::Status status =
      WithField(WithReason(InvalidArgument(std::string(100000, 'x'), "\xff\xfe"), "SOME_REASON"), "a.b\xff");
  const grpc::Status mapped = ToGrpcStatus(status);
  EXPECT_LE(mapped.error_message().size(), 2000u);
  EXPECT_LE(mapped.error_details().size(), 5000u);  // clients take 8 KiB of metadata
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(mapped.error_details()));
  ASSERT_EQ(rich.details_size(), 2);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(rich.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "SOME_REASON");
  google::rpc::BadRequest bad;
  ASSERT_TRUE(rich.details(1).UnpackTo(&bad));
  EXPECT_EQ(bad.field_violations(0).field(), "a.b\xef\xbf\xbd");
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status plain = ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "m"));
    EXPECT_EQ(static_cast<int>(plain.error_code()), code);
    ASSERT_TRUE(rich.ParseFromString(plain.error_details()));
    EXPECT_EQ(rich.details_size(), 1);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(Errors, Utf8) {
  EXPECT_EQ(ToValidUtf8("a\xc3\xa4\xf0\x9f\x98\x80", 100), "a\xc3\xa4\xf0\x9f\x98\x80");
  EXPECT_EQ(ToValidUtf8("\xc3", 100), "\xef\xbf\xbd");
  EXPECT_EQ(ToValidUtf8("\xc0\xaf", 100), "\xef\xbf\xbd\xef\xbf\xbd");
}

std::string Scrape(const Metrics& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
}

size_t CountSeries(const std::string& text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) count += text[at] != '#';
  return count;
}

TEST(MetricsTest, SeriesOfAJobAreBounded) {
  Metrics metrics(std::chrono::seconds(0));
  const size_t before = CountSeries(Scrape(metrics));
  for (int i = 0; i < 2000; ++i) {
    v1::Job job;
    job.set_id(StrCat("job", i));
    job.set_display_name("name");
    metrics.StartJob(job);
    v1::StepRecord step;
    step.set_step(3);
    step.set_steps(4);
    step.set_loss(0.5);
    step.set_tokens(7);
    step.set_kl(1);
    metrics.Step(job.id(), step);
    metrics.Step(job.id(), step);
    v1::MemoryUse memory;
    memory.add_arenas()->set_name("weights");
    metrics.Memory(job.id(), memory);
    if (i == 0) {
      const std::string text = Scrape(metrics);
      EXPECT_NE(text.find("hone_job_step{job_id=\"job0\"} 3"), std::string::npos) << text;
      EXPECT_NE(text.find("hone_job_tokens_total{job_id=\"job0\"} 14"), std::string::npos);
      EXPECT_NE(text.find("hone_job_progress_ratio{job_id=\"job0\"} 0.75"), std::string::npos);
      EXPECT_NE(text.find("hone_job_loss{job_id=\"job0\",split=\"train\"} 0.5"), std::string::npos);
      EXPECT_LE(CountSeries(text) - before, 60u);
    }
    metrics.EndJob(job.id());
  }
  metrics.Prune();
  EXPECT_EQ(CountSeries(Scrape(metrics)), before);
}

CardDetail Card(double joules, std::vector<ForeignProcess> foreign = {}) {
  CardDetail card;
  card.reading.name = "card";
  card.energy_joules = joules;
  card.slowdowns = NvmlDevice::kThermal;
  card.foreign = std::move(foreign);
  return card;
}

double ValueOf(const std::string& text, const std::string& series) {
  const size_t at = text.find("\n" + series + " ");
  EXPECT_NE(at, std::string::npos) << series << " is not in\n" << text;
  return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
}

TEST(MetricsTest, EnergyIsSharedAmongTheJobsOfTheCard) {
  Metrics metrics(std::chrono::hours(1));
  metrics.SetCards({Card(1000)});
  for (const char* id : {"a", "b", "c"}) {
    v1::Job job;
    job.set_id(id);
    job.mutable_plan()->set_device(id[0] == 'c' ? "cpu" : "NVIDIA Fake");
    metrics.StartJob(job);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  metrics.EndJob("b");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  metrics.SetCards({Card(1300)});
  const std::string text = Scrape(metrics);
  EXPECT_DOUBLE_EQ(ValueOf(text, "hone_gpu_energy_joules_total{gpu=\"0\",name=\"card\"}"), 300);
  const double a = ValueOf(text, "hone_job_energy_joules_total{job_id=\"a\"}");
  const double b = ValueOf(text, "hone_job_energy_joules_total{job_id=\"b\"}");
  EXPECT_NEAR(a + b, 300, 5);  // the moment before the jobs started is nobody's
  EXPECT_GT(a, 1.2 * b);       // twice as long, but for what a busy machine adds
  EXPECT_EQ(ValueOf(text, "hone_job_energy_joules_total{job_id=\"c\"}"), 0);
  // A counter that begins anew adds nothing, and nothing is shared once no job runs.
  metrics.EndJob("a");
  metrics.SetCards({Card(5)});
  metrics.SetCards({Card(25)});
  const std::string later = Scrape(metrics);
  EXPECT_DOUBLE_EQ(ValueOf(later, "hone_gpu_energy_joules_total{gpu=\"0\",name=\"card\"}"), 320);
  EXPECT_NEAR(ValueOf(later, "hone_job_energy_joules_total{job_id=\"a\"}"), a, 1e-9);
}

TEST(MetricsTest, ACardWithoutACounterTakesPowerTimesTime) {
  Metrics metrics;
  CardDetail card;
  card.reading.name = "old";
  card.reading.power_watts = 100;
  metrics.SetCards({card});
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  metrics.SetCards({card});
  const double joules = ValueOf(Scrape(metrics), "hone_gpu_energy_joules_total{gpu=\"0\",name=\"old\"}");
  EXPECT_GE(joules, 10);
  EXPECT_LT(joules, 100);
}

TEST(MetricsTest, ForeignProcessesComeAndGoAndAreBounded) {
  Metrics metrics;
  metrics.SetCards({Card(0)});
  const size_t before = CountSeries(Scrape(metrics));
  std::vector<ForeignProcess> many;
  for (unsigned int i = 0; i < 100; ++i) many.push_back({1000 + i, "python3", 1000 - i});
  metrics.SetCards({Card(0, many)});
  std::string text = Scrape(metrics);
  EXPECT_EQ(CountSeries(text), before + CardMetrics::kMaxForeign + 1);
  const std::string of = "hone_gpu_foreign_memory_bytes{command=\"";
  EXPECT_EQ(ValueOf(text, of + "python3\",gpu=\"0\",name=\"card\",pid=\"1000\"}"), 1000);
  EXPECT_EQ(ValueOf(text, of + "others\",gpu=\"0\",name=\"card\",pid=\"\"}"), 92 * 1000 - (8 + 99) * 92 / 2);
  EXPECT_EQ(ValueOf(text, "hone_gpu_throttled{gpu=\"0\",name=\"card\",reason=\"thermal\"}"), 1);
  EXPECT_EQ(ValueOf(text, "hone_gpu_throttled{gpu=\"0\",name=\"card\",reason=\"power-cap\"}"), 0);
  metrics.SetCards({Card(0, {{1000, "another", 7}})});  // the same id, another program
  text = Scrape(metrics);
  EXPECT_EQ(CountSeries(text), before + 1);
  EXPECT_EQ(ValueOf(text, of + "another\",gpu=\"0\",name=\"card\",pid=\"1000\"}"), 7);
  metrics.SetCards({Card(0)});
  EXPECT_EQ(CountSeries(Scrape(metrics)), before);
}

TEST(MetricsTest, CallsAreCountedByOurMethods) {
  Metrics metrics;
  const size_t before = CountSeries(Scrape(metrics));
  metrics.CountCall("/hone.v1.Jobs/GetJob", 0.003);
  metrics.CountCall("/some.Other/Method", 1);
  metrics.CountCall("/an.Other/Method", 1);
  const std::string text = Scrape(metrics);
  EXPECT_EQ(ValueOf(text, "hone_rpc_seconds_count{method=\"Jobs/GetJob\"}"), 1);
  EXPECT_EQ(ValueOf(text, "hone_rpc_seconds_bucket{method=\"Jobs/GetJob\",le=\"0.0025\"}"), 0);
  EXPECT_EQ(ValueOf(text, "hone_rpc_seconds_bucket{method=\"Jobs/GetJob\",le=\"0.005\"}"), 1);
  EXPECT_EQ(ValueOf(text, "hone_rpc_seconds_count{method=\"other\"}"), 2);
  EXPECT_EQ(text.find("Jobs/WatchJob"), std::string::npos);
  EXPECT_EQ(CountSeries(text), before);
}

TEST(MetricsTest, EndedJobsStayForALastScrapeButNotMoreThanTheLimit) {
  Metrics metrics(std::chrono::hours(1));
  for (int i = 0; i < 100; ++i) {
    v1::Job job;
    job.set_id(StrCat("job", i));
    metrics.StartJob(job);
    metrics.EndJob(job.id());
  }
  const std::string text = Scrape(metrics);
  EXPECT_NE(text.find("job99"), std::string::npos);
  EXPECT_EQ(text.find("job_id=\"job10\""), std::string::npos);
}

TEST(Hub, KeepsTheNewestRecordsAndTheirPlaceAmongEvents) {
  EventHub hub;
  std::atomic<int> woken{0};
  auto subscription = hub.Subscribe("j", [&] { ++woken; });
  for (uint64_t i = 1; i <= 1000; ++i) {
    Transient transient;
    transient.after_sequence = 5;
    transient.event.mutable_step()->set_step(i);
    hub.Publish("j", transient);
  }
  EXPECT_EQ(woken, 1000);
  v1::JobEvent event;
  EXPECT_FALSE(subscription->Take(4, &event));  // event 5 must be sent first
  ASSERT_TRUE(subscription->Take(5, &event));
  EXPECT_EQ(event.step().step(), 1000 - Subscription::kMaxPending + 1);
  hub.Unsubscribe("j", subscription);
  EXPECT_EQ(hub.subscriptions(), 0u);
}

TEST(ExecutorTest, IsBounded) {
  Executor executor(1, 2);
  std::atomic<bool> go{false};
  std::atomic<int> done{0};
  const auto work = [&] {
    while (!go) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++done;
  };
  int accepted = 0;
  for (int i = 0; i < 10; ++i) accepted += executor.Post(work);
  EXPECT_LE(accepted, 3);
  EXPECT_GE(accepted, 2);
  go = true;
  executor.Stop();
  EXPECT_EQ(done, accepted);
  EXPECT_FALSE(executor.Post(work));
}

TEST(PlacesTest, FollowTheContract) {
  setenv("HOME", "/home/u", 1);
  setenv("XDG_STATE_HOME", "/home/u/state", 1);
  setenv("XDG_RUNTIME_DIR", "/run/user/1", 1);
  EXPECT_EQ(DefaultPlaces(false, "").state_dir, "/home/u/state/hone");
  EXPECT_EQ(DefaultPlaces(false, "").socket, "/run/user/1/hone/honed.sock");
  setenv("XDG_STATE_HOME", "relative", 1);
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(DefaultPlaces(false, "").state_dir, "/home/u/.local/state/hone");
  EXPECT_EQ(DefaultPlaces(false, "").socket, "/home/u/.local/state/hone/honed.sock");
  EXPECT_EQ(DefaultPlaces(true, "").socket, "/run/honed/honed.sock");
}

TEST(ModelIds, FromPaths) {
  EXPECT_EQ(ModelIdFromPath("/m/SmolLM2-135M-Instruct.Q4_1.gguf"), "smollm2-135m-instruct.q4_1");
  EXPECT_EQ(ModelIdFromPath("/m/Qwen 2.5/"), "qwen-2.5");
  EXPECT_TRUE(IsModelId(ModelIdFromPath("/m/" + std::string(500, 'a'))));
  EXPECT_FALSE(IsModelId(ModelIdFromPath("/m/...")));
  for (const char* bad : {"", "A", "-a", "a/b", "../a", "a b"}) EXPECT_FALSE(IsModelId(bad)) << bad;
}

// What an error means for a job follows from what real back ends and file systems say.
TEST(Faults, AreToldApart) {
  EXPECT_EQ(FaultOf(absl::ErrnoToStatus(ENOSPC, "cannot write x")), Fault::kDiskFull);
  EXPECT_EQ(FaultOf(absl::ErrnoToStatus(EDQUOT, "cannot write x")), Fault::kDiskFull);
  EXPECT_EQ(FaultOf(WithReason(ResourceExhausted("x"), "DISK_FULL")), Fault::kDiskFull);
  EXPECT_EQ(FaultOf(Internal("gemm: cudaErrorIllegalAddress: an illegal memory access")), Fault::kDeviceError);
  EXPECT_EQ(FaultOf(FailedPrecondition("CUDA device 0: cudaErrorDevicesUnavailable: busy")), Fault::kDeviceLost);
  EXPECT_EQ(FaultOf(FailedPrecondition("step 3: the loss is nan and the gradient's norm nan; lower it")),
            Fault::kNotFinite);
  EXPECT_EQ(FaultOf(FailedPrecondition("step 3: the loss is inf and")), Fault::kNotFinite);
  EXPECT_EQ(FaultOf(InvalidArgument("data.train: line 3: no label")), Fault::kOther);
  EXPECT_EQ(FaultOf(ResourceExhausted("the plan needs 3 GiB")), Fault::kOther);
}

TEST(Faults, ADeviceErrorIsToldWithoutThePlaceInOurSource) {
  const std::string text = DeviceErrorText(
      "../kernels/cuda/cuda_ops.cc:15: invariant broken: error == cudaSuccess: Upload: cudaErrorIllegalAddress: an "
      "illegal memory access was encountered");
  EXPECT_EQ(text.find("the card reported an error: Upload: cudaErrorIllegalAddress: an illegal memory access"), 0u)
      << text;
  EXPECT_EQ(DeviceErrorText("gemm: cudaErrorUnknown").find("the card reported an error: gemm: cudaErrorUnknown"), 0u);
}

TEST(Faults, MissingInputsAreNamed) {
  v1::JobSpec spec;
  spec.mutable_model()->set_source("random:/nonexistent/config.json");
  spec.mutable_data()->set_train("/dev/null");
  const auto cause = MissingInput(spec);
  ASSERT_TRUE(cause.has_value());
  EXPECT_EQ(cause->reason, kModelMissing);
  EXPECT_NE(cause->message.find("/nonexistent/config.json"), std::string::npos);
  spec.mutable_model()->set_source("/dev/null");
  EXPECT_FALSE(MissingInput(spec).has_value());
  spec.mutable_data()->set_eval("/nonexistent");
  EXPECT_EQ(MissingInput(spec)->reason, kDataMissing);
}

}  // namespace
}  // namespace hone
