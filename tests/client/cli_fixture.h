// The fixture of the command line's tests: a folder with a job file, a model and data, and the fake daemon.
#pragma once

#include <memory>
#include <sstream>

#include "nlohmann/json.hpp"
#include "tests/client/cli_harness.h"
#include "tests/client/fake_daemon.h"

namespace hone {

inline constexpr char kJob[] =
    "model: {source: m.gguf}\nobjective: {sft: {}}\ndata: {train: d.jsonl}\nbatch: {examples: 4}\n"
    "optimizer: {learning_rate: 1e-4}\n";

inline v1::JobEvent StateEvent(uint64_t sequence, v1::JobState to) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  event.mutable_state()->set_to(to);
  return event;
}

inline v1::JobEvent StepEvent(uint64_t step, uint64_t steps) {
  v1::JobEvent event;
  event.mutable_step()->set_step(step);
  event.mutable_step()->set_steps(steps);
  event.mutable_step()->set_loss(1.0 / static_cast<double>(step));
  event.mutable_step()->set_seconds(1);
  event.mutable_step()->set_tokens(100);
  return event;
}

inline std::vector<nlohmann::json> JsonLines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

class Cli : public ::testing::Test {
 protected:
  Cli() {
    options_.home = folder_.path();
    folder_.Write("m.gguf", "model");
    folder_.Write("d.jsonl", "{\"text\": \"a\"}\n");
    folder_.Write("job.yaml", kJob);
  }
  void StartDaemon(v1::JobState state = v1::SUCCEEDED) {
    daemon_ = std::make_unique<FakeDaemon>(folder_ / "run/hone/honed.sock");
    AddJob("abc123", state);
  }
  v1::Job& AddJob(const std::string& id, v1::JobState state) {
    v1::Job& job = daemon_->script.jobs[id];
    job.set_id(id);
    job.set_name("jobs/" + id);
    job.set_display_name("a name");
    job.set_state(state);
    return job;
  }
  Result Hone(const std::vector<std::string>& arguments) const { return RunHone(options_, arguments); }

  TemporaryFolder folder_;
  RunOptions options_;
  std::unique_ptr<FakeDaemon> daemon_;
};

}  // namespace hone
