// What the client computes without a daemon: text, findings, progress, completion.
#include <sys/socket.h>
#include <sys/un.h>

#include "client/app.h"
#include "client/doctor.h"
#include "client/report.h"
#include "client/watch.h"
#include "tests/client/cli_harness.h"

namespace hone {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Terminal, Formats) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.50 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{20} << 30), "20.0 GiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "16777216 TiB");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-1234), "-1,234");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(12.34), "12.3");
  EXPECT_EQ(FormatDuration(4.24), "4.2s");
  EXPECT_EQ(FormatDuration(59.6), "1m00s");
  EXPECT_EQ(FormatDuration(83), "1m23s");
  EXPECT_EQ(FormatDuration(3720), "1h02m");
  EXPECT_EQ(FormatDuration(90000), "1d01h");
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatNumber(0.41237), "0.4124");
  EXPECT_EQ(FormatNumber(std::nan("")), "-");
}

TEST(Report, LevelsAreCountedByKind) {
  EXPECT_EQ(LevelsInWords("none"), "none");
  EXPECT_EQ(LevelsInWords("none:20,full:12"), "none on 20 layers, full on 12");
  EXPECT_EQ(LevelsInWords("mlp host:3,activation host:1,mlp host:3,activation host:1"),
            "mlp host on 6 layers, activation host on 2");
  EXPECT_EQ(LevelsInWords("full:1 apart"), "full on 1 layer, weights decoded for each use");
  EXPECT_EQ(LevelsInWords("full:x"), "full:x");
  EXPECT_EQ(LevelsInWords(""), "");
}

TEST(Terminal, SparklineAndBar) {
  EXPECT_EQ(Sparkline({0, 1, 2, 3, 4, 5, 6, 7}, 8), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(Sparkline({9, 9, 0, 7}, 2), "▁█");
  EXPECT_EQ(Sparkline({5, 5}, 4), "▅▅");
  EXPECT_EQ(Sparkline({}, 4), "");
  EXPECT_EQ(Sparkline({1, std::nan(""), 2}, 4), "▁ █");
  EXPECT_EQ(Bar(0.5, 4), "██░░");
  EXPECT_EQ(Bar(7, 2), "██");
  EXPECT_EQ(Bar(std::nan(""), 2), "░░");
}

TEST(Terminal, ClipNeverCutsACharacter) {
  EXPECT_EQ(Clip("äöü", 3), "äöü");
  EXPECT_EQ(Clip("äöüß", 3), "äö…");
  EXPECT_EQ(DisplayWidth("äö…"), 3u);
}

TEST(Terminal, PrintableDisarmsTerminals) {
  EXPECT_EQ(Printable("a\x1b[31mb\r\x07"), "a\\x1b[31mb\\x0d\\x07");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m");
  EXPECT_EQ(Printable("ä\n\t"), "ä\n\t");
}

TEST(Terminal, TableAligns) {
  Table table({"A", "NUMBER"});
  table.AlignRight(1);
  table.Add({"längst", "1"});
  EXPECT_EQ(table.Render(false), "A       NUMBER\nlängst       1\n");
}

TEST(Doctor, DriverVersions) {
  EXPECT_EQ(DriverVersion("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
                          "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"),
            "535.183.01");
  EXPECT_EQ(DriverVersion("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"),
            "580.95.05");
  EXPECT_EQ(DriverVersion("580.65.06"), "580.65.06");
  EXPECT_EQ(DriverVersion("nvidia-smi: command not found"), "");
  EXPECT_EQ(DriverVersion(""), "");
}

TEST(Doctor, JudgesDriver) {
  EXPECT_EQ(JudgeDriver("580.65.06", true).level, Level::kOk);
  EXPECT_EQ(JudgeDriver("590.10", true).level, Level::kOk);
  const Finding old = JudgeDriver("575.57.08", true);
  EXPECT_EQ(old.level, Level::kProblem);
  EXPECT_THAT(old.text, HasSubstr("CUDA 13 needs 580 or newer"));
  EXPECT_THAT(old.fix, HasSubstr("install NVIDIA driver 580"));
  EXPECT_EQ(JudgeDriver("", true).level, Level::kProblem);
  EXPECT_EQ(JudgeDriver("", false).level, Level::kInfo);
}

TEST(Doctor, EveryProblemNamesItsFix) {
  EXPECT_EQ(JudgeDisk("/x", uint64_t{100} << 30).level, Level::kOk);
  EXPECT_EQ(JudgeDisk("/x", uint64_t{2} << 30).level, Level::kWarning);
  EXPECT_EQ(JudgeDisk("/x", 1000).level, Level::kProblem);
  EXPECT_THAT(JudgeDisk("/x", 1000).fix, HasSubstr("--state-dir"));
  const Finding denied = JudgeSocket("/run/honed/honed.sock", SocketState::kDenied, "root", "hone", 0660);
  EXPECT_THAT(denied.text, HasSubstr("root:hone 0660"));
  EXPECT_THAT(denied.fix, HasSubstr("usermod -aG hone"));
  for (SocketState state :
       {SocketState::kRefused, SocketState::kDenied, SocketState::kNotASocket, SocketState::kTooLong}) {
    EXPECT_FALSE(JudgeSocket("/s", state, "", "", 0).fix.empty());
  }
  EXPECT_THAT(RenderFindings({denied}, false), Not(HasSubstr("\x1b")));
}

TEST(Places, SocketStates) {
  TemporaryFolder folder;
  EXPECT_EQ(ProbeSocket(folder / "none"), SocketState::kMissing);
  EXPECT_EQ(ProbeSocket(folder.Write("file", "x")), SocketState::kNotASocket);
  const std::string path = folder / "s.sock";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(ProbeSocket(path), SocketState::kRefused);
  ASSERT_EQ(listen(fd, 1), 0);
  EXPECT_EQ(ProbeSocket(path), SocketState::kAnswers);
  close(fd);
}

TEST(Places, SocketOrder) {
  Environment environment;
  environment.home = "/home/u";
  EXPECT_THAT(SocketCandidates(environment, ""),
              ::testing::ElementsAre("/home/u/.local/state/hone/honed.sock", "/run/honed/honed.sock"));
  environment.xdg_state_home = "/s";
  environment.xdg_runtime_dir = "/r";
  EXPECT_THAT(SocketCandidates(environment, ""),
              ::testing::ElementsAre("/r/hone/honed.sock", "/s/hone/honed.sock", "/run/honed/honed.sock"));
  EXPECT_THAT(SocketCandidates(environment, "/x/y"), ::testing::ElementsAre("/x/y"));
  EXPECT_EQ(AbsolutePath(environment, "~/m/../n"), "/home/u/n");
}

v1::JobEvent Step(uint64_t step, uint64_t steps, double loss, double seconds, uint64_t tokens) {
  v1::JobEvent event;
  event.mutable_step()->set_step(step);
  event.mutable_step()->set_steps(steps);
  event.mutable_step()->set_loss(loss);
  event.mutable_step()->set_seconds(seconds);
  event.mutable_step()->set_tokens(tokens);
  return event;
}

TEST(WatchView, ProgressLine) {
  WatchView view("job");
  EXPECT_FALSE(view.has_progress());
  for (uint64_t i = 1; i <= 24; ++i) EXPECT_EQ(view.Take(Step(i, 48, 1.0 / static_cast<double>(i), 2, 2000)), "");
  const std::string line = view.ProgressLine(119);
  EXPECT_THAT(line, HasSubstr("24/48 50%"));
  EXPECT_THAT(line, HasSubstr("loss 0.04167"));
  EXPECT_THAT(line, HasSubstr("1,000 tok/s"));
  EXPECT_THAT(line, HasSubstr("ETA 48s"));
  EXPECT_THAT(line, HasSubstr("█"));
  EXPECT_LE(DisplayWidth(line), 119u);
  for (size_t width : {20u, 40u, 60u, 80u}) EXPECT_LE(DisplayWidth(view.ProgressLine(width)), width);
  EXPECT_EQ(view.PlainLine(), "job: step 24/48, loss 0.04167, 1,000 tok/s, ETA 48s");
}

TEST(WatchView, AResumedAttemptReplacesWhatWasLost) {
  WatchView view("job");
  for (uint64_t i = 1; i <= 10; ++i) view.Take(Step(i, 20, 5, 1, 10));
  view.Take(Step(6, 20, 1, 1, 10));
  EXPECT_THAT(view.PlainLine(), HasSubstr("step 6/20"));
}

TEST(WatchView, LastingEvents) {
  WatchView view("job");
  v1::JobEvent event;
  event.mutable_state()->set_to(v1::FAILED);
  event.mutable_state()->set_message("bad\x1b[31m");
  EXPECT_EQ(view.Take(event), "FAILED: bad\\x1b[31m");
  event.mutable_eval()->set_loss(0.5);
  EXPECT_THAT(view.Take(event), HasSubstr("loss 0.5"));
  event.set_warning("careful");
  EXPECT_EQ(view.Take(event), "warning: careful");
  EXPECT_EQ(view.Take(event), "") << "every attempt says it again";
}

TEST(Report, RendersJsonAndSurvivesOther) {
  EXPECT_EQ(RenderReport(R"({"a": {"b": [1, 2]}, "t": "x\u001b"})"),
            "a:\n  b: 1, 2\nt:                        x\\x1b\n");
  EXPECT_EQ(RenderReport("not json"), "not json\n");
  EXPECT_EQ(RenderReport(R"({"t": "one\ntwo"})"), "t:\n  | one\n  | two\n");
  EXPECT_EQ(OneLineJson("{\"a\":\n1}"), "{\"a\":1}");
}

TEST(Report, ShowsMasksAndHistograms) {
  const std::string json =
      R"({"tokens": [{"text": "<u>\n", "trained": false}, {"text": "a", "trained": true}, {"text": "b", "trained": true}]})";
  EXPECT_EQ(RenderReport(json), "tokens:\n  | <u>\n  | «ab»\n");
  EXPECT_THAT(RenderReport(json, true), HasSubstr("\x1b[32m«ab»\x1b[0m"));
  EXPECT_EQ(RenderReport(R"({"h": [{"up_to": 64, "examples": 2}, {"up_to": 128, "examples": 1}]})"),
            "h:\n  up to 64      ████████████████████ 2\n  up to 128     ██████████░░░░░░░░░░ 1\n");
  // Foreign types never throw.
  EXPECT_THAT(RenderReport(R"({"h": [{"up_to": [], "examples": "x"}], "t": [{"text": 1, "trained": "y"}]})"),
              HasSubstr("up to"));
}

TEST(Completion, NamesEveryCommandAndFlag) {
  Context context;
  CommandLine line(context);
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = CompletionScript(line.app(), shell);
    for (const char* word : {"submit", "watch", "generate", "validate-only", "max-new-tokens", "upload", "restart"}) {
      EXPECT_THAT(script, HasSubstr(word)) << shell;
    }
  }
}

}  // namespace
}  // namespace hone
