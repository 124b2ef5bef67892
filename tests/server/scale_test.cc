// Ten thousand jobs on a small machine: what a submit, a page of the list, the choice of the next job, a restart and
// the memory cost, and that the number of metric series does not grow with finished jobs. Prints the figures; the
// limits are the issue's, with room for a machine that does other things, too (HONE_STRICT=1: without).
#include <signal.h>

#include <cmath>

#include "proto/base/file.h"
#include "server/daemon.h"
#include "server/store/states.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

using std::chrono::steady_clock;

constexpr int kJobs = 10000;

double Milliseconds(steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(steady_clock::now() - begin).count();
}

double Percentile(std::vector<double> times, double share) {
  std::sort(times.begin(), times.end());
  return times[std::min(times.size() - 1, static_cast<size_t>(static_cast<double>(times.size()) * share))];
}

double Room() { return getenv("HONE_STRICT") != nullptr ? 1 : 5; }

uint64_t ResidentMiB(pid_t pid) {
  std::ifstream in(StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) >> 10;
  }
  return 0;
}

// As large as real ones.
NewJob RealisticJob(const Folder& folder, int n) {
  NewJob job;
  job.spec = FakeSpec(folder, StrCat("job ", n));
  job.resolved_spec = job.spec;
  for (int i = 0; i < 7; ++i)
    job.resolved_spec.mutable_adapter()->mutable_lora()->add_target_modules(StrCat("m", i, "_proj"));
  job.plan.set_fits(true);
  job.plan.set_device("cpu");
  job.plan.set_reason(std::string(200, 'r'));
  job.plan.mutable_bytes()->set_total(uint64_t{1} << 60);  // never starts
  job.display_name = job.spec.name();
  job.request_id = StrCat("00000000-0000-4000-8000-", 100000000000 + n);
  job.fingerprint = "f";
  job.owner_uid = 1000 + n % 3;
  job.max_unfinished = 20000;
  job.max_unfinished_of_owner = 10000;
  (*job.options.mutable_labels())["batch"] = StrCat("b", n % 100);
  return job;
}

TEST(Scale, TenThousandQueuedJobs) {
  Folder folder;
  std::filesystem::create_directories(folder / "state");
  std::vector<double> submits, picks, ages;
  {
    auto store = Store::Open(folder / "state/hone.db");
    ASSERT_TRUE(store.ok());
    for (int n = 0; n < kJobs; ++n) {
      const auto begin = steady_clock::now();
      ASSERT_TRUE((*store)->CreateJob(RealisticJob(folder, n)).ok());
      if (n >= kJobs - 2000) submits.push_back(Milliseconds(begin));
    }
    for (int n = 0; n < 1000; ++n) {
      const auto begin = steady_clock::now();
      ASSERT_TRUE((*(*store)->NextQueued()).has_value());
      picks.push_back(Milliseconds(begin));
    }
    for (int n = 0; n < 20; ++n) {
      const auto begin = steady_clock::now();
      ASSERT_TRUE((*(*store)->OldestWait()).has_value());
      ages.push_back(Milliseconds(begin));
    }
  }
  HonedProcess honed(folder, FAKE_WORKER, "", {"--max-jobs", "20000"});
  const auto begin = steady_clock::now();
  honed.Start();
  Client client(folder / "s");
  grpc::ClientContext context;
  Client::Deadline(&context);
  v1::DaemonStatus status;
  ASSERT_TRUE(client.daemon->GetStatus(&context, {}, &status).ok());
  const double ready = Milliseconds(begin);
  EXPECT_EQ(status.jobs().at("QUEUED"), static_cast<uint64_t>(kJobs));

  std::vector<double> pages, filtered;
  std::string token;
  for (int i = 0; i < 200; ++i) {
    grpc::ClientContext call;
    v1::ListJobsRequest request;
    request.set_page_size(50);
    request.set_page_token(token);
    v1::ListJobsResponse page;
    const auto start = steady_clock::now();
    ASSERT_TRUE(client.jobs->ListJobs(&call, request, &page).ok());
    pages.push_back(Milliseconds(start));
    ASSERT_EQ(page.jobs_size(), 50);
    token = page.next_page_token();
  }
  for (int i = 0; i < 50; ++i) {
    grpc::ClientContext call;
    v1::ListJobsRequest request;
    (*request.mutable_labels())["batch"] = StrCat("b", i);
    v1::ListJobsResponse page;
    const auto start = steady_clock::now();
    ASSERT_TRUE(client.jobs->ListJobs(&call, request, &page).ok());
    filtered.push_back(Milliseconds(start));
    EXPECT_EQ(page.jobs_size(), 50);
  }
  // Over the socket: with the plan that a worker process makes.
  std::vector<double> rpc;
  for (int i = 0; i < 200; ++i) {
    v1::Job job;
    const auto start = steady_clock::now();
    ASSERT_TRUE(client.Create(FakeSpec(folder, "steps=1"), &job).ok());
    rpc.push_back(Milliseconds(start));
  }
  const uint64_t rss = ResidentMiB(honed.pid());
  std::printf(
      "%d queued jobs: submit with fsync p50 %.2f p99 %.2f ms (over RPC with a worker's plan p50 %.1f p99 %.1f ms), "
      "list page p99 %.2f ms (by label %.2f ms), pick-next p99 %.3f ms, the queue's age %.2f ms, restart to READY %.0f "
      "ms, memory %llu MiB\n",
      kJobs, Percentile(submits, 0.5), Percentile(submits, 0.99), Percentile(rpc, 0.5), Percentile(rpc, 0.99),
      Percentile(pages, 0.99), Percentile(filtered, 0.99), Percentile(picks, 0.99), Percentile(ages, 0.5), ready,
      static_cast<unsigned long long>(rss));
  EXPECT_LT(Percentile(submits, 0.99), 10 * Room());
  EXPECT_LT(Percentile(pages, 0.99), 20 * Room());
  EXPECT_LT(Percentile(picks, 0.99), 1 * Room());
  EXPECT_LT(ready, 2000 * Room());
  EXPECT_LT(rss, 150u);
}

TEST(Scale, TheNumberOfSeriesIsFlatAfterManyFinishedJobs) {
  Metrics metrics(std::chrono::seconds(0));
  const auto series = [&] {
    size_t count = 0;
    for (const auto& family : metrics.registry()->Collect()) count += family.metric.size();
    return count;
  };
  size_t first = 0;
  for (int n = 0; n < kJobs; ++n) {
    v1::Job job;
    job.set_id(StrCat("job", n));
    job.set_display_name(StrCat("name ", n));
    metrics.StartJob(job);
    v1::StepRecord step;
    step.set_step(1);
    step.set_steps(1);
    metrics.Step(job.id(), step);
    CardDetail card;
    card.reading.name = "card";
    card.energy_joules = n;
    card.foreign = {{static_cast<unsigned int>(n), StrCat("p", n), 1}};
    metrics.SetCards({card});
    metrics.CountCall(StrCat("/none/", n), 0.001);
    metrics.CountTransition(v1::QUEUED, v1::STARTING);
    metrics.EndJob(job.id());
    metrics.Prune();
    if (n == 10) first = series();
  }
  std::printf("%zu series after 11 jobs, %zu after %d\n", first, series(), kJobs);
  EXPECT_LE(series(), first);
}

}  // namespace
}  // namespace hone
