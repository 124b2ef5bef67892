// `hone` against the real honed with the fake worker: start, run, follow, export, restart, stop.
#include "nlohmann/json.hpp"
#include "tests/client/cli_harness.h"

namespace hone {
namespace {

using ::testing::HasSubstr;

class WithDaemon : public ::testing::Test {
 protected:
  WithDaemon() {
    options_.home = folder_.path();
    std::filesystem::create_directory(folder_ / "model");
    folder_.Write("d.jsonl", "{\"text\": \"a\"}\n");
  }
  ~WithDaemon() override { Hone({"daemon", "stop"}); }
  Result Hone(const std::vector<std::string>& arguments) const { return RunHone(options_, arguments); }
  Result Start() const {
    return Hone({"daemon", "start", "--program", HONED_PROGRAM, "--metrics", "off", "--", "--worker", FAKE_WORKER});
  }
  // A job file whose name tells the fake worker what to do.
  std::string Job(const std::string& script) const {
    return folder_.Write("job.yaml", "name: " + script +
                                         "\nmodel: {source: ./model}\nobjective: {sft: {}}\ndata: {train: d.jsonl}\n"
                                         "batch: {examples: 2}\noptimizer: {learning_rate: 1e-4}\n");
  }

  TemporaryFolder folder_;
  RunOptions options_;
};

TEST_F(WithDaemon, StartsOnceRunsAJobAndStops) {
  const Result start = Start();
  ASSERT_EQ(start.code, 0) << start.err;
  EXPECT_THAT(start.err, HasSubstr("is ready"));
  EXPECT_THAT(Start().err, HasSubstr("already runs"));
  const auto status = nlohmann::json::parse(Hone({"daemon", "status", "-o", "json"}).out);
  EXPECT_EQ(status["state_dir"], folder_ / "state/hone");

  const Result submit = Hone({"submit", Job("steps=3"), "--watch"});
  EXPECT_EQ(submit.code, 0) << submit.err;
  const std::string id = submit.out.substr(0, submit.out.find('\n'));
  EXPECT_THAT(submit.err, HasSubstr("SUCCEEDED"));
  EXPECT_THAT(Hone({"ls"}).out, HasSubstr(id));
  EXPECT_EQ(Hone({"watch", id}).code, 0);
  const Result resolved = Hone({"get", id, "--resolved"});
  EXPECT_THAT(resolved.out, HasSubstr("lora_alpha: 16"));
  EXPECT_EQ(Hone({"get", id.substr(0, id.size() - 1)}).code, 0) << "a unique prefix is enough";

  const auto before = nlohmann::json::parse(Hone({"daemon", "status", "-o", "json"}).out);
  const Result stop = Hone({"daemon", "stop"});
  EXPECT_EQ(stop.code, 0) << stop.err;
  EXPECT_THAT(stop.err, HasSubstr("has stopped"));
  EXPECT_EQ(Hone({"ls"}).code, 5);
  ASSERT_EQ(Start().code, 0);
  EXPECT_THAT(Hone({"ls"}).out, HasSubstr(id)) << "the job outlived the daemon";
  EXPECT_NE(nlohmann::json::parse(Hone({"daemon", "status", "-o", "json"}).out)["pid"], before["pid"]);
}

TEST_F(WithDaemon, ExitCodes) {
  ASSERT_EQ(Start().code, 0);
  EXPECT_EQ(Hone({"submit", Job("fail-train"), "--watch"}).code, 1);
  EXPECT_EQ(Hone({"submit", Job("too-big"), "--watch"}).code, 6);
  EXPECT_EQ(Hone({"submit", Job("too-big")}).code, 6);
  EXPECT_EQ(Hone({"submit", Job("too-big"), "--validate-only"}).code, 6);
  EXPECT_EQ(Hone({"submit", Job("steps=1"), "--validate-only"}).code, 0);
  EXPECT_EQ(Hone({"plan", Job("too-big")}).code, 0);
  EXPECT_EQ(Hone({"get", "nope"}).code, 1);
  const Result wrong = Hone({"submit", Job("fail=data.train"), "--validate-only"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("`hone spec data.train` explains this field."));
}

TEST_F(WithDaemon, DetachThenCancel) {
  ASSERT_EQ(Start().code, 0);
  RunOptions options = options_;
  options.interrupt_after = "RUNNING";
  const Result detached = RunHone(options, {"submit", Job("steps=1000 sleep=20"), "--watch"});
  EXPECT_EQ(detached.code, 130);
  const std::string id = detached.out.substr(0, detached.out.find('\n'));
  EXPECT_EQ(Hone({"watch", id, "--timeout", "1"}).code, 7);
  EXPECT_EQ(Hone({"cancel", id}).code, 0);
  EXPECT_EQ(Hone({"watch", id}).code, 3);
}

TEST_F(WithDaemon, WatchGoesOnAcrossARestart) {
  ASSERT_EQ(Start().code, 0);
  const Result submit = Hone({"submit", Job("steps=60 sleep=50"), "-q"});
  ASSERT_EQ(submit.code, 0) << submit.err;
  const std::string id = submit.out.substr(0, submit.out.find('\n'));
  Result watched;
  std::thread watcher([&] { watched = Hone({"watch", id, "-o", "json"}); });
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_EQ(Hone({"daemon", "stop"}).code, 0);
  EXPECT_EQ(Start().code, 0);
  watcher.join();
  EXPECT_EQ(watched.code, 0) << watched.err;
  std::istringstream lines(watched.out);
  uint64_t next = 1;
  for (std::string line; std::getline(lines, line);) {
    const uint64_t sequence = nlohmann::json::parse(line)["sequence"];
    if (sequence != 0) {
      EXPECT_EQ(sequence, next++);
    }
  }
  EXPECT_GT(next, 4u);
}

TEST_F(WithDaemon, AProgramThatCannotStartSaysWhy) {
  const Result missing = Hone({"daemon", "start", "--program", "/nonexistent/honed"});
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.err, HasSubstr("--program names another"));
  const Result broken = Hone({"daemon", "start", "--program", HONED_PROGRAM, "--", "--log-level", "nonsense"});
  EXPECT_EQ(broken.code, 1);
  EXPECT_THAT(broken.err, HasSubstr("honed ended while starting"));
}

}  // namespace
}  // namespace hone
