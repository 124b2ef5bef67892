// The contract of the command line: listing, plans, data, models, answers, files, status, help and completion.
#include <algorithm>

#include "tests/client/cli_fixture.h"

namespace hone {
namespace {

using ::testing::HasSubstr;

TEST_F(Cli, ListPagesAndFormats) {
  StartDaemon();
  for (const char* id : {"bbb", "ccc", "ddd", "eee"}) AddJob(id, v1::RUNNING);
  const Result table = Hone({"ls"});
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, ::testing::StartsWith("ID      NAME    STATE"));
  EXPECT_EQ(std::count(table.out.begin(), table.out.end(), '\n'), 6);
  EXPECT_EQ(Hone({"ls", "-o", "name"}).out, "abc123\nbbb\nccc\nddd\neee\n");
  EXPECT_EQ(Hone({"ls", "-o", "name", "--limit", "3"}).out, "abc123\nbbb\nccc\n");
  const auto lines = JsonLines(Hone({"ls", "-o", "json"}).out);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0]["id"], "abc123");
  EXPECT_EQ(lines[0]["state"], "SUCCEEDED");
  EXPECT_EQ(lines[0]["last_sequence"], 0);
  EXPECT_EQ(Hone({"ls", "--state", "runing"}).code, 2);
}

TEST_F(Cli, GetShowsJobAndSpec) {
  StartDaemon();
  v1::Job& job = daemon_->script.jobs["abc123"];
  job.mutable_spec()->mutable_run()->set_precision(v1::PRECISION_BF16);
  job.mutable_create_time()->set_seconds(1764000000);
  EXPECT_THAT(Hone({"get", "abc123"}).out, HasSubstr("state         SUCCEEDED"));
  EXPECT_EQ(Hone({"get", "abc123", "--spec"}).out, "run:\n  precision: bf16\n");
  const auto json = JsonLines(Hone({"get", "abc123", "-o", "json"}).out)[0];
  EXPECT_EQ(json["spec"]["run"]["precision"], "bf16");
  EXPECT_EQ(json["create_time"], "2025-11-24T16:00:00.000Z");
}

TEST_F(Cli, LogsAndCancel) {
  if (!HaveTerminal()) GTEST_SKIP() << "this machine gives no pseudo-terminals";
  StartDaemon();
  EXPECT_EQ(Hone({"logs", "abc123"}).out, "line one\nline \x1b[31mtwo\n") << "a pipe gets the bytes as they are";
  options_.terminal = true;
  EXPECT_THAT(Hone({"logs", "abc123"}).out, HasSubstr("\\x1b[31mtwo"));
  options_.terminal = false;
  const Result cancel = Hone({"cancel", "abc123", "bbb"});
  EXPECT_EQ(cancel.code, 0);
  EXPECT_EQ(daemon_->script.cancels, 2);
  EXPECT_THAT(cancel.err, HasSubstr("Job bbb is CANCELLING; its last checkpoint is kept."));
}

TEST_F(Cli, PlanPrintsTheTableAndExitsZeroEvenIfItDoesNotFit) {
  StartDaemon();
  v1::Plan& plan = *daemon_->script.plan.mutable_plan();
  plan.set_fits(false);
  plan.set_device("cpu");
  plan.mutable_bytes()->set_weights(uint64_t{3} << 30);
  plan.mutable_bytes()->set_total(uint64_t{4} << 30);
  plan.set_reason("the smallest there is");
  plan.add_changes("data.max_length: 512");
  const Result table = Hone({"plan", "job.yaml", "--device", "rtx3090"});
  EXPECT_EQ(table.code, 0);
  EXPECT_EQ(daemon_->script.plan_device, "rtx3090");
  EXPECT_THAT(table.out, HasSubstr("weights    3221225472  3.00 GiB    75%"));
  EXPECT_THAT(table.out, HasSubstr("does not fit on cpu"));
  EXPECT_THAT(table.out, HasSubstr("why: the smallest there is"));
  EXPECT_THAT(table.out, HasSubstr("smallest changes that would fit:\n  data.max_length: 512"));
  const auto json = JsonLines(Hone({"plan", "job.yaml", "-o", "json"}).out)[0];
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["bytes"]["total"], uint64_t{4} << 30);
}

TEST_F(Cli, DataValidateAndUpload) {
  StartDaemon();
  EXPECT_THAT(Hone({"data", "validate", "job.yaml"}).out, HasSubstr("supervised_share:         0.5"));
  EXPECT_EQ(JsonLines(Hone({"data", "validate", "job.yaml", "-o", "json"}).out)[0]["examples"], 64);
  EXPECT_EQ(Hone({"data", "upload", "d.jsonl"}).out, "sha256:" + Sha256Hex("{\"text\": \"a\"}\n") + "\n");
}

TEST_F(Cli, UploadsInChunks) {
  StartDaemon();
  std::string big(5 << 20, 'x');
  for (size_t i = 0; i < big.size(); i += 97) big[i] = static_cast<char>(i);
  folder_.Write("big.jsonl", big);
  EXPECT_EQ(Hone({"data", "upload", "big.jsonl"}).code, 0);
  EXPECT_EQ(daemon_->script.blobs[Sha256Hex(big)], big);
}

TEST_F(Cli, ModelsQuantisedOnce) {
  StartDaemon();
  EXPECT_EQ(Hone({"models", "import", "m.gguf", "--quantize", "q5"}).code, 2);
  EXPECT_EQ(Hone({"models", "import", "m.gguf", "--output", "x"}).code, 2);  // nothing to write there
  const std::string base = std::string(HONE_GOLDEN) + "/model/llama";
  EXPECT_EQ(Hone({"models", "import", base + "/", "--quantize", "nf4", "--name", "tiny"}).code, 0);
  EXPECT_EQ(daemon_->script.imported_path, base);
  EXPECT_EQ(daemon_->script.imported_quantization, "nf4");  // the daemon's to write
  if (!std::filesystem::exists(std::filesystem::path(HONE_PROGRAM).parent_path() / "honed-worker")) {
    GTEST_SKIP() << "honed-worker is not built beside hone";
  }
  const Result bad = Hone({"models", "import", "m.gguf", "--quantize", "nf4", "--output", "bad"});
  EXPECT_EQ(bad.code, 1) << bad.err;
  EXPECT_THAT(bad.err, HasSubstr("m.gguf"));
  EXPECT_EQ(daemon_->script.imported_path, base);  // as before
  const Result mine = Hone({"models", "import", base, "--quantize", "nf4", "--output", "mine"});
  EXPECT_EQ(mine.code, 0) << mine.err;
  EXPECT_EQ(daemon_->script.imported_path, folder_ / "mine");
  EXPECT_EQ(daemon_->script.imported_quantization, "");
  EXPECT_THAT(Slurp(folder_ / "mine/config.json"), HasSubstr("bnb_4bit_use_double_quant"));
}

TEST_F(Cli, Models) {
  StartDaemon();
  EXPECT_EQ(Hone({"models", "import", "none"}).code, 2);
  EXPECT_EQ(Hone({"models", "import", "m.gguf", "--name", "tiny"}).code, 0);
  EXPECT_EQ(daemon_->script.imported_path, folder_ / "m.gguf");
  EXPECT_EQ(Hone({"models", "ls", "-o", "name"}).out, "tiny\n");
  EXPECT_THAT(Hone({"models", "ls"}).out, HasSubstr("1.00 MiB"));
  EXPECT_THAT(Hone({"models", "get", "tiny"}).out, HasSubstr("tensors:                  3"));
  EXPECT_EQ(JsonLines(Hone({"models", "get", "tiny", "-o", "json"}).out)[0]["path"], folder_ / "m.gguf");
  EXPECT_EQ(Hone({"models", "get", "other"}).code, 1);
  EXPECT_EQ(Hone({"models", "rm", "tiny"}).code, 0);
}

TEST_F(Cli, GenerateStreamsOneAndTablesMany) {
  StartDaemon();
  EXPECT_EQ(Hone({"generate", "--job", "abc123", "--ask", "What?"}).out, "ADAPTER 0\n");
  const v1::GenerateModelRequest& request = daemon_->script.generated.at(0);
  EXPECT_EQ(request.job(), "jobs/abc123");
  EXPECT_EQ(request.requests(0).messages_json(), R"([{"role":"user","content":"What?"}])");
  EXPECT_FALSE(request.requests(0).has_temperature());
  const Result compare = Hone({"generate", "--job", "abc123", "--ask", "What?", "--compare"});
  EXPECT_EQ(compare.out, "[1] What?\n  base: base 0\n  adapter: ADAPTER 0\n");
  EXPECT_EQ(Hone({"generate", "--job", "abc123", "--base", "--prompt", "x"}).out, "base 0\n");
  EXPECT_EQ(Hone({"generate", "--model", "m.gguf", "--prompt", "x"}).code, 0);
  EXPECT_EQ(daemon_->script.generated.back().model(), folder_ / "m.gguf");
  EXPECT_EQ(Hone({"generate", "--model", "tiny", "--prompt", "x", "--base"}).code, 2);
}

TEST_F(Cli, GenerateReadsFilesAndPrintsOneObjectAPrompt) {
  StartDaemon();
  folder_.Write("q.jsonl",
                "{\"messages\": [{\"role\": \"user\", \"content\": \"[a]\"}], \"max_new_tokens\": 64}\n\n"
                "{\"question\": \"b?\", \"temperature\": 0}\n{\"prompt\": \"c\"}\n{\"ids\": [1, 2]}\n");
  const Result result =
      Hone({"generate", "--job", "abc123", "--file", "q.jsonl", "--max-new-tokens", "8", "-o", "json"});
  EXPECT_EQ(result.code, 0) << result.err;
  const auto lines = JsonLines(result.out);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[1]["text"], "ADAPTER 1");
  EXPECT_EQ(lines[1]["ids"], nlohmann::json({1, 2}));
  EXPECT_EQ(lines[1]["finish_reason"], "stop");
  EXPECT_EQ(lines[2]["prompt"], "c");
  const v1::GenerateModelRequest& request = daemon_->script.generated.at(0);
  EXPECT_EQ(request.requests(0).max_new_tokens(), 64u) << "the row wins";
  EXPECT_EQ(request.requests(1).max_new_tokens(), 8u);
  EXPECT_TRUE(request.requests(1).has_temperature());
  EXPECT_EQ(request.requests(3).ids().ids_size(), 2);
  const auto compared =
      JsonLines(Hone({"generate", "--job", "abc123", "--file", "q.jsonl", "--compare", "-o", "json"}).out);
  EXPECT_EQ(compared.at(3)["base"]["text"], "base 3");
  EXPECT_EQ(compared.at(3)["adapter"]["text"], "ADAPTER 3");
}

TEST_F(Cli, GenerateTellsBadRowsAndFailedPrompts) {
  StartDaemon();
  folder_.Write("bad.jsonl", "{\"question\": \"a\"}\n{\"qestion\": \"b\"}\n");
  const Result bad = Hone({"generate", "--job", "abc123", "--file", "bad.jsonl"});
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("bad.jsonl:2: expected {\"messages\""));
  EXPECT_EQ(Hone({"generate", "--job", "abc123", "--messages", "[{\"role\": \"user\", \"content\": \"x\"}]"}).code, 0);
  EXPECT_EQ(Hone({"generate", "--job", "abc123", "--messages", "[oops"}).code, 2);
  EXPECT_EQ(Hone({"generate", "--job", "abc123", "--prompt", "[a, b]", "--stop", "[x]"}).code, 0);
  EXPECT_EQ(daemon_->script.generated.back().requests(0).prompt(), "[a, b]") << "brackets are text, not a list";
  EXPECT_EQ(daemon_->script.generated.back().requests(0).stop(0), "[x]");
  const Result failed = Hone({"generate", "--job", "abc123", "--prompt", "fail", "--prompt", "fine", "-o", "json"});
  EXPECT_EQ(failed.code, 1);
  EXPECT_EQ(JsonLines(failed.out).at(0)["error"]["message"], "as the script says");
  EXPECT_FALSE(JsonLines(failed.out).at(1).contains("error"));
}

TEST_F(Cli, GenerateSplitsWhatIsTooMuchForOneCall) {
  StartDaemon();
  std::string rows;
  for (int i = 0; i < 300; ++i) rows += "{\"prompt\": \"" + std::to_string(i) + "\"}\n";
  folder_.Write("many.jsonl", rows);
  const auto lines = JsonLines(Hone({"generate", "--job", "abc123", "--file", "many.jsonl", "-o", "json"}).out);
  ASSERT_EQ(lines.size(), 300u);
  EXPECT_EQ(daemon_->script.generated.size(), 2u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["prompt"], std::to_string(i));
    EXPECT_EQ(lines[i]["text"], "ADAPTER " + std::to_string(i % 256));  // the fake numbers within a call
  }
}

class Export : public Cli {
 protected:
  void Artifact(const std::string& path, const std::string& bytes, const std::string& digest = "") {
    v1::Artifact& artifact = daemon_->script.artifacts.emplace_back();
    artifact.set_path(path);
    artifact.set_bytes(bytes.size());
    artifact.set_sha256(digest.empty() ? Sha256Hex(bytes) : digest);
    daemon_->script.artifact_bytes[path] = bytes;
  }
};

TEST_F(Export, WritesAndVerifies) {
  StartDaemon();
  Artifact("adapter/adapter_config.json", "{}");
  Artifact("steps.jsonl", std::string(100, 's'));
  daemon_->script.artifact_break_at = 1;  // the first stream breaks and is continued
  const Result result = Hone({"export", "abc123", "--output", "out"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(Slurp(folder_ / "out/adapter/adapter_config.json"), "{}");
  EXPECT_EQ(Slurp(folder_ / "out/steps.jsonl"), std::string(100, 's'));
  EXPECT_THAT(result.err, HasSubstr("2 files"));
  const auto lines = JsonLines(Hone({"export", "abc123", "--output", "out2", "--only", "adapter", "-o", "json"}).out);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["path"], folder_ / "out2/adapter/adapter_config.json");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out2/steps.jsonl"));
  EXPECT_EQ(Hone({"export", "abc123", "--output", "out2", "--only", "nothing"}).code, 1);
}

TEST_F(Export, AWrongDigestLeavesNothing) {
  StartDaemon();
  Artifact("adapter/model.safetensors", "bytes", std::string(64, '0'));
  const Result result = Hone({"export", "abc123", "--output", "out"});
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("arrived with sha256"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/adapter/model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/adapter/model.safetensors.part"));
}

TEST_F(Export, SaysWhatCouldNotBeVerified) {
  StartDaemon();
  Artifact("steps.jsonl", "x");
  daemon_->script.artifacts[0].clear_sha256();
  const Result result = Hone({"export", "abc123", "--output", "out", "-o", "json"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(JsonLines(result.out).at(0)["verified"], false);
  EXPECT_THAT(result.err, HasSubstr("1 of them not verified"));
}

TEST_F(Export, StaysInsideTheFolder) {
  for (const char* path : {"../escape", "/etc/escape", "a/../../escape", ""}) {
    StartDaemon();
    Artifact(path, "x");
    EXPECT_NE(Hone({"export", "abc123", "--output", "out"}).code, 0) << path;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "escape"));
    daemon_.reset();
  }
}

TEST_F(Cli, StatusAsJson) {
  StartDaemon();
  const auto status = JsonLines(Hone({"status", "-o", "json"}).out).at(0);
  EXPECT_EQ(status["running"], true);
  EXPECT_EQ(status["jobs"]["QUEUED"], 2);
  EXPECT_EQ(status["devices"][0]["name"], "cpu");
  EXPECT_EQ(JsonLines(Hone({"daemon", "status", "-o", "json"}).out).at(0)["build_id"], std::string(BuildId()));
  EXPECT_THAT(Hone({"status"}).out, HasSubstr("4.00 GiB of 8.00 GiB free"));
}

TEST_F(Cli, SpecWithoutADaemon) {
  EXPECT_THAT(Hone({"spec", "optimizer.learning_rate"}).out, HasSubstr("required"));
  EXPECT_EQ(Hone({"spec", "optimiser"}).code, 2);
  const Result resolved = Hone({"spec", "--resolve", "job.yaml", "--set", "batch.examples=9"});
  EXPECT_THAT(resolved.out, HasSubstr("examples: 9"));
  EXPECT_THAT(resolved.out, HasSubstr("lora_alpha: 16"));
}

// What a shell would offer after these words.
std::string BashOffers(const std::string& home, const std::string& words) {
  RunOptions options;
  const std::string script = std::string("cd ") + home + "; source <(" HONE_PROGRAM " completion bash); COMP_WORDS=(" +
                             words + "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _hone; echo \"${COMPREPLY[@]}\"";
  FILE* pipe = popen(("bash -c '" + script + "' 2>&1").c_str(), "r");
  char buffer[4096];
  const size_t count = fread(buffer, 1, sizeof buffer, pipe);
  pclose(pipe);
  return std::string(buffer, count);
}

TEST_F(Cli, CompletionsParseAndOffer) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string path = folder_.Write(std::string("completion.") + shell, Hone({"completion", shell}).out);
    if (std::system((std::string("command -v ") + shell + " >/dev/null").c_str()) != 0) continue;
    EXPECT_EQ(std::system((std::string(shell) + " -n " + path).c_str()), 0) << shell;
  }
  EXPECT_EQ(BashOffers(folder_.path(), "hone sub"), "submit\n");
  EXPECT_EQ(BashOffers(folder_.path(), "hone models i"), "import\n");
  EXPECT_EQ(BashOffers(folder_.path(), "hone submit --val"), "--validate-only\n");
  EXPECT_EQ(BashOffers(folder_.path(), "hone ls -o j"), "json\n");
  EXPECT_EQ(BashOffers(folder_.path(), "hone submit job"), "job.yaml\n");
  EXPECT_EQ(Hone({"completion", "tcsh"}).code, 2);
}

}  // namespace
}  // namespace hone
