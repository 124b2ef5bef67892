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

std::string FirstLine(const Result& result) { return result.out.substr(0, result.out.find('\n')); }

TEST_F(WithDaemon, PauseResumeHoldReleaseAndWait) {
  ASSERT_EQ(Start().code, 0);
  const std::string id = FirstLine(Hone({"submit", Job("steps=200 sleep=20"), "-q"}));
  ASSERT_EQ(Hone({"wait", id, "--for", "running", "--timeout", "20"}).code, 0);
  const Result pause = Hone({"pause", id});
  EXPECT_EQ(pause.code, 0);
  EXPECT_THAT(pause.err, HasSubstr("hone wait " + id + " --for paused"));
  const Result waited = Hone({"wait", id, "--for", "paused", "--timeout", "20"});
  EXPECT_EQ(waited.code, 0);
  EXPECT_THAT(waited.err, HasSubstr("is PAUSED. Go on: hone resume " + id));
  EXPECT_EQ(waited.out, "");
  EXPECT_THAT(Hone({"get", id}).out, HasSubstr("next          Go on: hone resume " + id));
  const Result watched = Hone({"watch", id});
  EXPECT_EQ(watched.code, 3);
  EXPECT_THAT(watched.err, HasSubstr("hone resume " + id));
  EXPECT_EQ(Hone({"wait", id, "--timeout", "1"}).code, 7);
  const std::string held = FirstLine(Hone({"submit", Job("steps=1"), "--hold", "-q"}));
  EXPECT_THAT(Hone({"ls", "--state", "held"}).out, HasSubstr(held));
  EXPECT_EQ(Hone({"release", held}).code, 0);
  EXPECT_EQ(Hone({"wait", held, "--timeout", "20"}).code, 0);
  EXPECT_EQ(Hone({"resume", id}).code, 0);
  const std::string waits = FirstLine(Hone({"submit", Job("steps=1"), "-q", "--after", id, "--label", "team=blue"}));
  EXPECT_THAT(Hone({"queue"}).out, HasSubstr("after " + id));
  EXPECT_EQ(Hone({"hold", waits, "-m", "not yet"}).code, 0);
  EXPECT_THAT(Hone({"get", waits}).out, HasSubstr("not yet"));
  EXPECT_THAT(Hone({"ls", "--label", "team=blue", "-o", "name"}).out, HasSubstr(waits));
  const Result labels = Hone({"label", waits, "team-", "new=1"});
  EXPECT_EQ(labels.code, 0);
  EXPECT_THAT(labels.err, HasSubstr("has the labels new=1"));
  EXPECT_THAT(Hone({"ls", "--label", "team=blue"}).err, HasSubstr("No job matches"));
  EXPECT_EQ(Hone({"ls", "--label", "team=blue", "-o", "name"}).out, "");
  EXPECT_EQ(Hone({"cancel", id, waits}).code, 0);
  EXPECT_EQ(Hone({"wait", id, "--for", "succeeded", "--timeout", "20"}).code, 3);
  const Result again = Hone({"pause", id});
  EXPECT_EQ(again.code, 1);
  EXPECT_THAT(again.err, HasSubstr("JOB_FINISHED"));
  EXPECT_THAT(again.err, HasSubstr("hone submit --from JOB"));
  EXPECT_THAT(Hone({"cancel", id}).err, HasSubstr("is CANCELLED. Run it again: hone submit --from " + id));
  EXPECT_THAT(Hone({"get", "nothing"}).err, HasSubstr("`hone ls` lists jobs"));
}

TEST_F(WithDaemon, CloneSweepMoveTopAndReport) {
  ASSERT_EQ(Start().code, 0);
  const std::string id = FirstLine(Hone({"submit", Job("steps=3"), "-q", "--label", "kind=first"}));
  ASSERT_EQ(Hone({"wait", id, "--timeout", "20"}).code, 0);
  const std::string clone = FirstLine(Hone({"submit", "--from", id, "--set", "optimizer.learning_rate=5e-5", "-q"}));
  const auto job = nlohmann::json::parse(Hone({"get", clone, "-o", "json"}).out);
  EXPECT_EQ(job["spec"]["optimizer"]["learning_rate"], 5e-5);
  EXPECT_EQ(job["options"]["labels"]["kind"], "first");
  EXPECT_EQ(Hone({"wait", clone, "--timeout", "20"}).code, 0);
  EXPECT_EQ(Hone({"submit"}).code, 2);
  EXPECT_EQ(Hone({"submit", Job("steps=1"), "--from", id}).code, 2);

  const Result sweep = Hone({"submit", Job("steps=1"), "--matrix", "optimizer.learning_rate=1e-4,2e-4", "--matrix",
                             "run.seed=1,2", "--label", "sweep=s1", "--hold"});
  EXPECT_EQ(sweep.code, 0) << sweep.err;
  EXPECT_EQ(std::count(sweep.out.begin(), sweep.out.end(), '\n'), 4);
  EXPECT_THAT(Hone({"ls", "--label", "sweep=s1"}).out, HasSubstr("learning_rate=2e-4 seed=1"));
  const Result wrong = Hone({"submit", Job("steps=1"), "--matrix", "optimizer.learning_rat=1,2"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("did you mean learning_rate"));
  const std::string last = sweep.out.substr(sweep.out.rfind('\n', sweep.out.size() - 2) + 1);
  EXPECT_EQ(Hone({"move", last.substr(0, last.size() - 1), "--first"}).code, 0);
  EXPECT_EQ(Hone({"move", id}).code, 2);

  const Result top = Hone({"top", "--once"});
  EXPECT_EQ(top.code, 0);
  EXPECT_THAT(top.out, HasSubstr("RUNNING 0"));
  EXPECT_THAT(top.out, HasSubstr(clone));
  EXPECT_EQ(top.out.find('\x1b'), std::string::npos);

  const Result report = Hone({"report", id});
  EXPECT_EQ(report.code, 0) << report.err;
  const std::string html = Slurp(folder_ / ("report-" + id + ".html"));
  EXPECT_THAT(html, HasSubstr("adapter_model.safetensors"));
  EXPECT_THAT(html, HasSubstr("SUCCEEDED"));
  EXPECT_THAT(Hone({"report", id, "--output", "-", "--no-data", "--ask", "What?"}).out, HasSubstr("Before and after"));
}

TEST_F(WithDaemon, TopRedrawsAndLeavesTheTerminalAsItWas) {
  if (!HaveTerminal()) GTEST_SKIP() << "no pseudo-terminals here";
  ASSERT_EQ(Start().code, 0);
  const std::string id = FirstLine(Hone({"submit", Job("steps=400 sleep=20"), "-q"}));
  ASSERT_EQ(Hone({"wait", id, "--for", "running", "--timeout", "20"}).code, 0);
  RunOptions options = options_;
  options.terminal = true;
  options.interrupt_after = "tok/s";
  const Result top = RunHone(options, {"top", "--interval", "0.2"});
  EXPECT_EQ(top.code, 0);
  EXPECT_THAT(top.out, HasSubstr("\x1b[?1049h"));
  EXPECT_THAT(top.out, HasSubstr("q quits"));
  EXPECT_EQ(top.out.substr(top.out.size() - 14), "\x1b[?25h\x1b[?1049l");
  EXPECT_EQ(nlohmann::json::parse(Hone({"get", id, "-o", "json"}).out)["state"], "RUNNING");
  EXPECT_EQ(Hone({"cancel", id}).code, 0);
}

TEST_F(WithDaemon, ContextsNameDaemons) {
  ASSERT_EQ(Start().code, 0);
  EXPECT_EQ(Hone({"config", "set", "mine", "--at-socket", folder_ / "run/hone/honed.sock"}).code, 0);
  EXPECT_EQ(Hone({"config", "set", "gone", "--at-socket", "/nonexistent/s"}).code, 0);
  EXPECT_EQ(Hone({"config", "use", "gone"}).code, 0);
  EXPECT_EQ(Hone({"ls"}).code, 5);
  EXPECT_EQ(Hone({"--context", "mine", "ls"}).code, 0);
  EXPECT_THAT(Hone({"config", "ls"}).out, HasSubstr("gone"));
  EXPECT_EQ(Hone({"--context", "mine", "daemon", "stop"}).code, 2);
  EXPECT_EQ(Hone({"--context", "mine", "ls"}).code, 0);
  EXPECT_EQ(Hone({"config", "use", "nobody"}).code, 1);
  EXPECT_EQ(Hone({"config", "use", "-"}).code, 0);
  EXPECT_EQ(Hone({"ls"}).code, 0);
  EXPECT_EQ(Hone({"config", "rm", "gone"}).code, 0);
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
