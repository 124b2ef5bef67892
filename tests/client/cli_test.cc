// The contract of the command line: help, usage, submitting and watching. Exit codes, what goes to which stream,
// retries, resumption, no escape codes.
#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "tests/client/cli_fixture.h"

namespace hone {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::vector<std::string>> kCommands = {{},
                                                         {"submit"},
                                                         {"ls"},
                                                         {"get"},
                                                         {"watch"},
                                                         {"logs"},
                                                         {"cancel"},
                                                         {"plan"},
                                                         {"data"},
                                                         {"data", "validate"},
                                                         {"data", "upload"},
                                                         {"models"},
                                                         {"models", "import"},
                                                         {"models", "ls"},
                                                         {"models", "get"},
                                                         {"models", "rm"},
                                                         {"generate"},
                                                         {"export"},
                                                         {"spec"},
                                                         {"status"},
                                                         {"doctor"},
                                                         {"completion"},
                                                         {"daemon"},
                                                         {"daemon", "start"},
                                                         {"daemon", "stop"},
                                                         {"daemon", "restart"},
                                                         {"daemon", "status"}};

TEST_F(Cli, EveryCommandHasHelpWithExamples) {
  for (std::vector<std::string> command : kCommands) {
    std::string usage = "Usage: hone";
    for (const std::string& word : command) usage += " " + word;
    command.push_back("--help");
    const Result result = Hone(command);
    EXPECT_EQ(result.code, 0) << usage;
    EXPECT_THAT(result.out, HasSubstr(usage));
    EXPECT_THAT(result.out, ::testing::ContainsRegex("Examples:\n  [^\n]*hone ")) << usage;
    EXPECT_EQ(result.err, "");
  }
}

TEST_F(Cli, HelpDocumentsTheExitCodes) {
  const std::string help = Hone({"--help"}).out;
  for (const char* code : {"\n  0  ", "\n  1  ", "\n  2  ", "\n  3  ", " 4  ", " 5  ", " 6  ", " 7  ", " 130  "})
    EXPECT_THAT(help, HasSubstr(code));
}

TEST_F(Cli, HelpIsFast) {
  // Processor time, not wall time: other tests may run beside this one. The best of several is what the program needs.
  double best = 1e9;
  for (int i = 0; i < 10; ++i) {
    rusage before{}, after{};
    getrusage(RUSAGE_CHILDREN, &before);
    Hone({"--help"});
    getrusage(RUSAGE_CHILDREN, &after);
    const auto milliseconds = [](const rusage& use) {
      return 1e3 * static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
             1e-3 * static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    };
    best = std::min(best, milliseconds(after) - milliseconds(before));
  }
  RecordProperty("best_ms", std::to_string(best));
  EXPECT_LT(best, 20.0);
}

TEST_F(Cli, UsageErrorsExitTwo) {
  EXPECT_EQ(Hone({"submit"}).code, 2);
  EXPECT_EQ(Hone({"ls", "--nonsense"}).code, 2);
  EXPECT_EQ(Hone({"ls", "-o", "xml"}).code, 2);
  const Result typo = Hone({"sumbit", "job.yaml"});
  EXPECT_EQ(typo.code, 2);
  EXPECT_THAT(typo.err, HasSubstr("did you mean submit?"));
  EXPECT_EQ(typo.out, "");
  EXPECT_EQ(Hone({"generate", "--ask", "x"}).code, 2);
  EXPECT_EQ(Hone({"generate", "--job", "a", "--model", "b", "--ask", "x"}).code, 2);
  EXPECT_EQ(Hone({"get", "a", "b"}).code, 2);
}

TEST_F(Cli, NoDaemonExitsFiveAndSaysWhere) {
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"ls"}, {"status"}, {"watch", "x"}, {"submit", "job.yaml"}}) {
    const Result result = Hone(command);
    EXPECT_EQ(result.code, 5) << command[0];
    EXPECT_THAT(result.err, HasSubstr(folder_ / "run/hone/honed.sock: not there"));
    EXPECT_THAT(result.err, HasSubstr("hone daemon start"));
  }
  EXPECT_EQ(JsonLines(Hone({"daemon", "status", "-o", "json"}).out)[0]["running"], false);
  EXPECT_EQ(Hone({"daemon", "stop"}).code, 0);
}

TEST_F(Cli, SubmitUploadsAndSendsWhatTheDaemonCanUse) {
  StartDaemon(v1::QUEUED);
  const Result result =
      Hone({"submit", "job.yaml", "--set", "run.max_steps=3", "--set", "export=[peft,merged]", "--priority", "7"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "abc123\n");
  EXPECT_THAT(result.err, HasSubstr("hone watch abc123"));
  ASSERT_EQ(daemon_->script.created.size(), 1u);
  const v1::CreateJobRequest& request = daemon_->script.created[0];
  const std::string digest = Sha256Hex("{\"text\": \"a\"}\n");
  EXPECT_EQ(request.spec().data().train(), "sha256:" + digest);
  EXPECT_EQ(daemon_->script.blobs[digest], "{\"text\": \"a\"}\n");
  EXPECT_EQ(request.spec().model().source(), folder_ / "m.gguf");
  EXPECT_EQ(request.spec().run().max_steps(), 3u);
  EXPECT_EQ(request.spec().export__size(), 2);
  EXPECT_FALSE(request.spec().run().has_seed()) << "defaults are the daemon's";
  EXPECT_EQ(request.priority(), 7);
  EXPECT_EQ(request.request_id().size(), 36u);
  Hone({"submit", "job.yaml", "-o", "json"});
  EXPECT_EQ(daemon_->script.uploads, 1) << "the daemon already had it";
  ASSERT_EQ(daemon_->script.created.size(), 2u);
  EXPECT_NE(daemon_->script.created[0].request_id(), daemon_->script.created[1].request_id());
}

TEST_F(Cli, SubmitFindsDataBesideTheJobFile) {
  StartDaemon(v1::QUEUED);
  std::filesystem::create_directory(folder_ / "elsewhere");
  options_.directory = folder_ / "elsewhere";
  EXPECT_EQ(Hone({"submit", "../job.yaml"}).code, 0);
  EXPECT_EQ(daemon_->script.created.at(0).spec().model().source(), folder_ / "m.gguf");
}

TEST_F(Cli, SubmitReadsStdin) {
  StartDaemon(v1::QUEUED);
  options_.input = kJob;
  EXPECT_EQ(Hone({"submit", "-"}).code, 0);
}

TEST_F(Cli, SubmitRepeatsWithTheSameRequestId) {
  StartDaemon(v1::QUEUED);
  daemon_->script.create_unavailable = 3;
  EXPECT_EQ(Hone({"submit", "job.yaml"}).code, 0);
  ASSERT_EQ(daemon_->script.created.size(), 4u);
  for (const v1::CreateJobRequest& request : daemon_->script.created)
    EXPECT_EQ(request.request_id(), daemon_->script.created[0].request_id());
}

TEST_F(Cli, SubmitTellsMistakesByLine) {
  folder_.Write("bad.yaml", std::string(kJob) + "run:\n  max_stps: 4\n");
  const Result result = Hone({"submit", "bad.yaml"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("bad.yaml:7:3: run.max_stps: unknown field; did you mean max_steps?"));
  EXPECT_EQ(result.out, "");
  folder_.Write("one.yaml",
                "model: {source: m.gguf}\nobjective:\n  kto: {}\ndata: {train: d.jsonl}\nbatch: {examples: "
                "1}\noptimizer: {learning_rate: 1e-4}\n");
  EXPECT_THAT(Hone({"submit", "one.yaml"}).err, HasSubstr("one.yaml:3:8: objective.kto.kl_group_size: a batch of one"));
  EXPECT_THAT(Hone({"submit", "job.yaml", "--set", "batch.examples=0"}).err,
              HasSubstr("--set: batch.examples: must be at least 1"));
  EXPECT_EQ(Hone({"submit", "none.yaml"}).code, 2);
}

TEST_F(Cli, SubmitNamesAMissingFileByItsField) {
  StartDaemon();
  const Result data = Hone({"submit", "job.yaml", "--set", "data.train=none.jsonl"});
  EXPECT_EQ(data.code, 2);
  EXPECT_THAT(data.err, HasSubstr("data.train: no file " + (folder_ / "none.jsonl")));
  EXPECT_THAT(Hone({"submit", "job.yaml", "--set", "model.source=./none.gguf"}).err,
              HasSubstr("model.source: nothing at"));
}

TEST_F(Cli, AdviceWarnsAndGoesOn) {
  StartDaemon(v1::QUEUED);
  const Result result = Hone({"submit", "job.yaml", "--set", "optimizer.learning_rate=1e-6"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("warning: optimizer.learning_rate 1e-06 is low for LoRA"));
  EXPECT_EQ(daemon_->script.created.at(0).spec().optimizer().learning_rate(), 1e-6);
}

TEST_F(Cli, ErrorsOfTheDaemonShowFieldAndHint) {
  StartDaemon();
  daemon_->script.create_status =
      RichStatus(grpc::StatusCode::INVALID_ARGUMENT, "run.device: no card here", "NO_CARD", "run.device");
  const Result result = Hone({"submit", "job.yaml"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("error: run.device: no card here (NO_CARD)"));
  EXPECT_THAT(result.err, HasSubstr("hint: `hone spec run.device` explains this field."));
  daemon_->script.create_status = RichStatus(grpc::StatusCode::PERMISSION_DENIED, "not you", "DENIED");
  EXPECT_EQ(Hone({"submit", "job.yaml"}).code, 4);
  daemon_->script.create_status = RichStatus(grpc::StatusCode::UNAUTHENTICATED, "who?", "DENIED");
  EXPECT_EQ(Hone({"submit", "job.yaml"}).code, 4);
}

TEST_F(Cli, OnlySubmitExitsSix) {
  StartDaemon(v1::FAILED);
  daemon_->script.jobs["abc123"].set_state_reason("PLAN_DOES_NOT_FIT");
  daemon_->script.jobs["abc123"].set_state_message("9 GiB are needed");
  daemon_->script.events = {StateEvent(1, v1::FAILED)};
  const Result accepted = Hone({"submit", "job.yaml"});
  EXPECT_EQ(accepted.code, 6);
  EXPECT_THAT(accepted.err, HasSubstr("9 GiB are needed"));
  EXPECT_EQ(Hone({"submit", "job.yaml", "--watch"}).code, 6);
  EXPECT_EQ(Hone({"watch", "abc123"}).code, 1);
  daemon_->script.create_status =
      RichStatus(grpc::StatusCode::FAILED_PRECONDITION, "9 GiB are needed", "PLAN_DOES_NOT_FIT");
  EXPECT_EQ(Hone({"submit", "job.yaml", "--validate-only"}).code, 6);
  EXPECT_TRUE(daemon_->script.created.back().validate_only());
}

TEST_F(Cli, WatchExitsAsTheJobEnded) {
  StartDaemon();
  const std::map<v1::JobState, int> codes = {{v1::SUCCEEDED, 0}, {v1::FAILED, 1}, {v1::CANCELLED, 3}, {v1::PAUSED, 3}};
  for (const auto& [state, code] : codes) {
    daemon_->script.jobs["abc123"].set_state(state);
    daemon_->script.events = {StateEvent(1, v1::QUEUED), StateEvent(2, state)};
    const Result result = Hone({"watch", "abc123"});
    EXPECT_EQ(result.code, code) << v1::JobState_Name(state);
    EXPECT_THAT(result.err, HasSubstr(v1::JobState_Name(state)));
    EXPECT_EQ(result.out, "") << "progress belongs on stderr";
  }
  const Result missing = Hone({"watch", "nope"});
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.err, HasSubstr("no job"));
}

TEST_F(Cli, WatchWaitsWhileAJobIsHeldAndSaysWhy) {
  StartDaemon();
  daemon_->script.jobs["abc123"].set_state(v1::HELD);
  daemon_->script.events = {StateEvent(1, v1::QUEUED), StateEvent(2, v1::HELD)};
  daemon_->script.events.back().mutable_state()->set_message("the disk is full");
  const Result waits = Hone({"watch", "abc123", "--timeout", "2"});
  EXPECT_EQ(waits.code, 7);
  EXPECT_THAT(waits.err, HasSubstr("HELD: the disk is full"));
  const size_t hint = waits.err.find("hone release abc123");
  EXPECT_NE(hint, std::string::npos) << waits.err;
  EXPECT_EQ(waits.err.find("hone release", hint + 1), std::string::npos) << "said once";
  std::thread mended([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    const std::lock_guard lock(daemon_->script.mutex);
    daemon_->script.jobs["abc123"].set_state(v1::SUCCEEDED);
    daemon_->script.events.push_back(StateEvent(3, v1::QUEUED));
    daemon_->script.events.push_back(StateEvent(4, v1::SUCCEEDED));
  });
  const Result ends = Hone({"watch", "abc123", "--timeout", "20"});
  mended.join();
  EXPECT_EQ(ends.code, 0) << ends.err;
  EXPECT_THAT(ends.err, HasSubstr("SUCCEEDED"));
}

TEST_F(Cli, WatchResumesWhereTheStreamBroke) {
  StartDaemon();
  for (uint64_t i = 1; i <= 10; ++i)
    daemon_->script.events.push_back(StateEvent(i, i == 10 ? v1::SUCCEEDED : v1::RUNNING));
  daemon_->script.break_after = 3;
  const Result result = Hone({"watch", "abc123", "-o", "json"});
  EXPECT_EQ(result.code, 0) << result.err;
  std::vector<uint64_t> sequences;
  for (const auto& line : JsonLines(result.out)) sequences.push_back(line["sequence"]);
  EXPECT_THAT(sequences, ::testing::ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
  EXPECT_THAT(daemon_->script.watched_after, ::testing::ElementsAre(0, 3, 6, 9));
}

TEST_F(Cli, WatchSaysThatTheConnectionWasLost) {
  StartDaemon();
  daemon_->script.events = {StateEvent(1, v1::RUNNING), StateEvent(2, v1::SUCCEEDED)};
  daemon_->script.break_after = 1;
  const Result result = Hone({"watch", "abc123"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("connection lost; trying again\nconnected again\n"));
}

TEST_F(Cli, CtrlCDetaches) {
  StartDaemon(v1::RUNNING);
  daemon_->script.events = {StateEvent(1, v1::RUNNING)};
  daemon_->script.hold_open = true;
  options_.interrupt_after = "RUNNING";
  const Result result = Hone({"watch", "abc123"});
  EXPECT_EQ(result.code, 130);
  EXPECT_THAT(result.err, HasSubstr("Detached; job abc123 goes on."));
  EXPECT_THAT(result.err, HasSubstr("hone watch abc123"));
  EXPECT_EQ(daemon_->script.cancels, 0);
  const Result submit = Hone({"submit", "job.yaml", "--watch"});
  EXPECT_EQ(submit.code, 130);
  EXPECT_EQ(submit.out, "abc123\n");
}

TEST_F(Cli, WatchTimesOut) {
  StartDaemon(v1::RUNNING);
  daemon_->script.events = {StateEvent(1, v1::RUNNING)};
  daemon_->script.hold_open = true;
  const Result result = Hone({"watch", "abc123", "--timeout", "1"});
  EXPECT_EQ(result.code, 7);
  EXPECT_THAT(result.err, HasSubstr("goes on"));
}

TEST_F(Cli, WatchOnAPipeIsPlainLines) {
  StartDaemon();
  daemon_->script.events = {StateEvent(1, v1::RUNNING)};
  for (uint64_t i = 1; i <= 40; ++i) daemon_->script.events.push_back(StepEvent(i, 40));
  daemon_->script.events.push_back(StateEvent(2, v1::SUCCEEDED));
  const Result result = Hone({"watch", "abc123"});
  EXPECT_THAT(result.err, Not(HasSubstr("\r")));
  EXPECT_THAT(result.err, Not(HasSubstr("\x1b")));
  EXPECT_THAT(result.err, HasSubstr("a name: step 1/40, loss 1, 100 tok/s"));
  EXPECT_THAT(result.err, HasSubstr("a name: step 40/40, loss 0.025"));
  EXPECT_THAT(result.err, Not(HasSubstr("step 20/40"))) << "at most a line every ten seconds";
  EXPECT_THAT(result.err, HasSubstr("hone export abc123"));
}

TEST_F(Cli, QuietWatchSpeaksOnlyOfTrouble) {
  StartDaemon();
  daemon_->script.events = {StateEvent(1, v1::RUNNING), StepEvent(1, 1), StateEvent(2, v1::SUCCEEDED)};
  EXPECT_EQ(Hone({"watch", "abc123", "-q"}).err, "");
  daemon_->script.jobs["abc123"].set_state(v1::FAILED);
  EXPECT_THAT(Hone({"watch", "abc123", "-q"}).err, HasSubstr("FAILED"));
}

TEST_F(Cli, WatchOnATerminalRedrawsWithBarAndSparkline) {
  if (!HaveTerminal()) GTEST_SKIP() << "this machine gives no pseudo-terminals";
  StartDaemon();
  for (uint64_t i = 1; i <= 40; ++i) daemon_->script.events.push_back(StepEvent(i, 40));
  options_.terminal = true;
  const Result coloured = Hone({"watch", "abc123"});
  EXPECT_THAT(coloured.out, HasSubstr("\r"));
  EXPECT_THAT(coloured.out, HasSubstr("20/40 50%"));
  EXPECT_THAT(coloured.out, HasSubstr("ETA 20s"));
  EXPECT_THAT(coloured.out, HasSubstr("█"));
  EXPECT_THAT(coloured.out, HasSubstr("▁"));
  EXPECT_THAT(coloured.out, HasSubstr("\x1b[32mSUCCEEDED\x1b[0m"));
  options_.environment = {"NO_COLOR=1"};
  EXPECT_THAT(Hone({"watch", "abc123"}).out, Not(HasSubstr("\x1b[32m")));
  options_.environment = {"TERM=dumb"};
  EXPECT_THAT(Hone({"watch", "abc123"}).out, Not(HasSubstr("\x1b")));
}

TEST_F(Cli, NoEscapeCodesOnPipes) {
  StartDaemon();
  AddJob("evil", v1::FAILED).set_display_name("\x1b]0;gotcha\x07");
  daemon_->script.jobs["evil"].set_state_message("\x1b[2J");
  daemon_->script.plan.mutable_plan()->set_reason("\x1b[2J");
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"ls"},
                                             {"get", "evil"},
                                             {"watch", "evil"},
                                             {"status"},
                                             {"doctor"},
                                             {"plan", "job.yaml"},
                                             {"data", "validate", "job.yaml"},
                                             {"models", "ls"},
                                             {"generate", "--job", "evil", "--ask", "x", "--compare"},
                                             {"spec"},
                                             {"ls", "-o", "json"},
                                             {"get", "evil", "-o", "json"}}) {
    const Result result = Hone(command);
    EXPECT_THAT(result.out + result.err, Not(HasSubstr("\x1b"))) << command[0];
    EXPECT_THAT(result.out + result.err, Not(HasSubstr("\x07"))) << command[0];
  }
}

}  // namespace
}  // namespace hone
