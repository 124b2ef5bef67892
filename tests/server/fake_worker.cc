// A worker that trains nothing: it speaks worker.proto on descriptor 3 and does what the spec's name says, so that the
// daemon is tested in milliseconds. A name is words joined by spaces:
//   steps=N        optimiser steps (default 4), a checkpoint every save_steps (default 2)
//   crash=N        killed by SIGKILL right after step N, once
//   crash-always=N the same on every attempt
//   sleep=MS       per step
//   hang=N         after step N it neither works nor listens, and ignores SIGTERM with hang-hard=N
//   fail=FIELD     Done with INVALID_ARGUMENT and that field, when planning
//   fail-train     Done with INVALID_ARGUMENT when training
//   too-big        a plan that does not fit
//   garbage=N      sends bytes that are no frame after step N
//   plan-sleep=MS  planning takes that long
//   big-plan       a plan of 2^60 bytes that "fits"
//   deaf           does not hear that it is to stop
//   cuda=N         Done with a CUDA error after step N; with linger the process then does not end
//   cuda-lost=N    Done with an error that says the device is gone, once
//   card=N         a plan of N bytes on a card, of which the driver then counts N
//   pinned=N       the plan page-locks N bytes of host memory
//   memory-taken=N the first N attempts end while starting for want of memory that a plan had counted on
//   say=N          N bytes to stderr (the log) at each step
//   fill-at-export fills the disk before it writes its results, once
// A full disk under the output folder is an error RESOURCE_EXHAUSTED, as a real worker's.
// Its state is one line in <output>/progress, written before the checkpoint is reported, as a real worker's would be.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#include "hone/v1/worker.pb.h"
#include "proto/base/file.h"
#include "proto/base/frame.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kChannel = 3;

void Send(const v1::FromWorker& message) {
  if (!WriteFrame(kChannel, message.SerializeAsString()).ok()) _exit(9);  // the daemon is gone
}

void SendDone(int code, const std::string& text, const std::string& field = "") {
  v1::FromWorker message;
  message.mutable_done()->set_code(code);
  message.mutable_done()->set_message(text);
  message.mutable_done()->set_field(field);
  Send(message);
}

struct Script {
  std::map<std::string, std::string> words;
  explicit Script(const std::string& name) {
    std::istringstream in(name);
    for (std::string word; in >> word;) {
      const size_t equals = word.find('=');
      words[word.substr(0, equals)] = equals == std::string::npos ? "1" : word.substr(equals + 1);
    }
  }
  bool Has(const std::string& key) const { return words.count(key) > 0; }
  uint64_t Number(const std::string& key, uint64_t otherwise) const {
    return Has(key) ? std::strtoull(words.at(key).c_str(), nullptr, 10) : otherwise;
  }
};

void Sleep(uint64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// What the daemon has said since the last look. False: it is gone.
bool Look(bool* cancel) {
  pollfd watched = {kChannel, POLLIN, 0};
  while (poll(&watched, 1, 0) > 0) {
    std::string bytes;
    const auto more = ReadFrame(kChannel, &bytes);
    if (!more.ok() || !*more) return false;
    v1::ToWorker message;
    if (message.ParseFromString(bytes) && message.has_cancel()) *cancel = true;
  }
  return true;
}

uint64_t ReadProgress(const std::string& path) {
  std::ifstream in(path);
  uint64_t step = 0;
  in >> step;
  return step;
}

void Plan(const v1::Run& run, const Script& script) {
  Sleep(script.Number("plan-sleep", 0));
  if (script.Has("fail")) return SendDone(3, script.words.at("fail") + ": as the script says", script.words.at("fail"));
  v1::FromWorker message;
  message.mutable_plan()->set_fits(!script.Has("too-big"));
  message.mutable_plan()->set_device(run.device().empty() ? "cpu" : run.device());
  message.mutable_plan()->set_steps(static_cast<uint32_t>(script.Number("steps", 4)));
  message.mutable_plan()->mutable_bytes()->set_total(script.Has("big-plan") ? uint64_t{1} << 60 : 1 << 20);
  const auto pinned = static_cast<uint64_t>(script.Number("pinned", 0));
  message.mutable_plan()->set_host_bytes(pinned);  // as a real plan: pinned memory is part of the host's
  message.mutable_plan()->set_pinned_bytes(pinned);
  if (const auto bytes = script.Number("card", 0); bytes > 0) {
    message.mutable_plan()->set_device("NVIDIA Fake");
    message.mutable_plan()->mutable_bytes()->set_total(static_cast<uint64_t>(bytes));
  }
  if (script.Has("too-big")) message.mutable_plan()->add_changes("data.max_length: 16");
  Send(message);
  message.set_report_json("{\"rows\": 1, \"train\": \"" + run.spec().data().train() + "\"}");
  Send(message);
  SendDone(0, "");
}

// A checkpoint is kCheckpointBytes long, so that a small disk fills up.
constexpr size_t kCheckpointBytes = 64 << 10;

void SaveCheckpoint(const v1::Run& run, uint64_t step) {
  const std::string text = std::to_string(step) + "\n" + std::string(kCheckpointBytes, ' ');
  if (const absl::Status written = WriteFileDurably(run.output_dir() + "/progress", text); !written.ok()) {
    SendDone(static_cast<int>(written.code()), std::string(written.message()));
    _exit(1);
  }
  v1::FromWorker message;
  message.mutable_checkpoint()->set_step(step);
  message.mutable_checkpoint()->set_path(run.output_dir() + "/progress");
  Send(message);
}

void SendStep(uint64_t step, uint64_t steps) {
  v1::FromWorker message;
  v1::StepRecord* record = message.mutable_step();
  record->set_step(step);
  record->set_steps(steps);
  record->set_loss(1.0 / static_cast<double>(step));
  record->set_learning_rate(1e-4);
  record->set_grad_norm(0.5);
  record->set_tokens(100);
  record->set_seconds(0.01);
  record->set_tokens_per_second(10000);
  record->set_kl(0.125);
  record->set_rewards_chosen(0.25);
  record->set_rewards_rejected(-0.25);
  record->set_rewards_margins(0.5);
  Send(message);
}

void SendProgress(v1::Phase phase) {
  v1::FromWorker message;
  message.mutable_progress()->set_phase(phase);
  Send(message);
}

// Misbehaves after a step if the script says so.
void Misbehave(const v1::Run& run, const Script& script, uint64_t step) {
  const std::string mark = run.output_dir() + "/crashed";
  const bool once = script.Number("crash", 0) == step && access(mark.c_str(), F_OK) != 0;
  if (once) std::ofstream(mark) << "1";
  if (once || script.Number("crash-always", 0) == step) kill(getpid(), SIGKILL);
  if (script.Number("garbage", 0) == step) {
    [[maybe_unused]] const ssize_t written = write(kChannel, "\xff\xff\xff\xff", 4);
    Sleep(60000);
  }
  const std::string lost = run.output_dir() + "/lost";
  if (script.Number("cuda", 0) == step) {
    SendDone(13, "gemm: cudaErrorIllegalAddress: an illegal memory access was encountered");
    if (script.Has("linger")) Sleep(60000);
    _exit(1);
  }
  if (script.Number("cuda-lost", 0) == step && access(lost.c_str(), F_OK) != 0) {
    std::ofstream(lost) << "1";
    SendDone(9, "CUDA device 0: cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable");
    _exit(1);
  }
  if (script.Has("say")) std::fprintf(stderr, "%s\n", std::string(script.Number("say", 0), 'x').c_str());
  if (script.Number("hang-hard", 0) == step) signal(SIGTERM, SIG_IGN);
  if (script.Number("hang", 0) == step || script.Number("hang-hard", 0) == step) Sleep(60000);
}

void FillDisk(const std::string& path) {
  if (access(path.c_str(), F_OK) == 0) return;
  std::ofstream(path + ".mark") << "1";
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0640);
  const std::string block(4096, 'x');
  while (write(fd, block.data(), block.size()) > 0) {
  }
  close(fd);
}

void Finish(const v1::Run& run, const Script& script, uint64_t steps) {
  SendProgress(v1::PHASE_FINALIZING);
  const std::string fill = run.output_dir() + "/fill";
  if (script.Has("fill-at-export") && access((fill + ".mark").c_str(), F_OK) != 0) FillDisk(fill);
  mkdir((run.output_dir() + "/adapter").c_str(), 0750);
  const std::string weights = "weights after " + std::to_string(steps) + " steps\n";
  const auto written = WriteFileDurably(run.output_dir() + "/adapter/adapter_model.safetensors", weights);
  if (!written.ok()) {
    SendDone(static_cast<int>(written.code()), std::string(written.message()));
    _exit(1);
  }
  v1::FromWorker message;
  v1::Done* done = message.mutable_done();
  done->set_last_step(steps);
  done->set_result_json("{\"steps\": " + std::to_string(steps) + "}");
  v1::Artifact* artifact = done->add_artifacts();
  artifact->set_path("adapter/adapter_model.safetensors");
  artifact->set_bytes(weights.size());
  Send(message);
}

void Train(const v1::Run& run, const Script& script) {
  if (script.Has("fail-train")) return SendDone(3, "data.train: line 3: no label", "data.train");
  // A second copy would find the file locked by the first.
  const int guard = open((run.output_dir() + "/only-one").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
  if (flock(guard, LOCK_EX | LOCK_NB) != 0) return SendDone(13, "a second copy runs");
  if (run.attempt() <= script.Number("memory-taken", 0)) {
    return SendDone(8, "reserving 100 bytes for weights: somebody else took memory since the plan was made");
  }
  const uint64_t steps = script.Number("steps", 4);
  const uint64_t save = script.Number("save", 2);
  SendProgress(v1::PHASE_LOADING);
  v1::FromWorker memory;
  v1::ArenaUse* arena = memory.mutable_memory()->add_arenas();
  arena->set_name("weights");
  arena->set_planned_bytes(1000);
  arena->set_actual_bytes(900);
  if (const uint64_t bytes = script.Number("card", 0); bytes > 0) {
    memory.mutable_memory()->set_planned_bytes(bytes);
    memory.mutable_memory()->set_process_bytes(bytes);
    memory.mutable_memory()->set_pinned_bytes(script.Number("pinned", 0));
  }
  Send(memory);
  SendProgress(v1::PHASE_TRAINING);
  std::ofstream log(run.output_dir() + "/steps.jsonl", std::ios::app);
  bool cancel = false;
  for (uint64_t step = ReadProgress(run.output_dir() + "/progress") + 1; step <= steps; ++step) {
    Sleep(script.Number("sleep", 0));
    SendStep(step, steps);
    log << "{\"step\": " << step << ", \"attempt\": " << run.attempt() << "}" << std::endl;
    if (step % save == 0) SaveCheckpoint(run, step);
    Misbehave(run, script, step);
    if (!Look(&cancel)) _exit(9);
    if (!cancel || script.Has("deaf")) continue;
    SaveCheckpoint(run, step);
    v1::FromWorker message;
    message.mutable_done()->set_cancelled(true);
    message.mutable_done()->set_last_step(step);
    return Send(message);
  }
  v1::FromWorker eval;
  eval.mutable_eval()->set_step(steps);
  eval.mutable_eval()->set_loss(0.5);
  Send(eval);
  Finish(run, script, steps);
}

void Inspect(const v1::Run& run) {
  if (run.model_path().find("bad") != std::string::npos) {
    return SendDone(3, run.model_path() + ": tensor count 1000000000 at byte 8 cannot be");
  }
  v1::FromWorker message;
  message.set_report_json("{\"family\": \"llama\", \"bytes\": 123}");
  Send(message);
  SendDone(0, "");
}

void Export(const v1::Run& run) {
  if (run.model_path().find("bad") != std::string::npos) {
    return SendDone(3, run.model_path() + ": nf4 is written of Hugging Face folders");
  }
  mkdir(run.output_dir().c_str(), 0750);
  std::ofstream(run.output_dir() + "/" + run.format()) << run.model_path();
  v1::FromWorker message;
  message.set_report_json("{\"format\": \"" + run.format() + "\"}");
  Send(message);
  SendDone(0, "");
}

void Generate(const v1::Run& run) {
  std::string bytes;
  v1::ToWorker message;
  while (true) {
    const auto more = ReadFrame(kChannel, &bytes);
    if (!more.ok()) _exit(9);
    if (!*more) return SendDone(0, "");
    if (!message.ParseFromString(bytes) || !message.has_generate()) continue;
    const std::string who = message.generate().use_adapter() ? "adapter" : "base";
    for (int i = 0; i < 3; ++i) {
      v1::FromWorker out;
      out.mutable_chunk()->set_request(message.generate().request());
      out.mutable_chunk()->set_text(i == 0 ? who : " word");
      out.mutable_chunk()->set_done(i == 2);
      Send(out);
    }
    if (run.adapter_path().empty() && message.generate().use_adapter()) _exit(7);
  }
}

int Main() {
  std::string bytes;
  const auto more = ReadFrame(kChannel, &bytes);
  v1::ToWorker message;
  if (!more.ok() || !*more || !message.ParseFromString(bytes) || !message.has_assign()) return 3;
  v1::FromWorker hello;
  hello.mutable_hello()->set_device("fake");
  hello.mutable_hello()->set_pid(getpid());
  Send(hello);
  const v1::Run& run = message.assign().runs(0);
  const Script script(run.spec().name());
  std::fprintf(stderr, "fake worker, pid %d: verb %d, attempt %u\n", getpid(), message.assign().verb(), run.attempt());
  switch (message.assign().verb()) {
    case v1::VERB_PLAN:
      Plan(run, script);
      break;
    case v1::VERB_TRAIN:
      Train(run, script);
      break;
    case v1::VERB_VALIDATE: {
      v1::FromWorker report;
      report.set_report_json("{\"rows\": 7}");
      Send(report);
      SendDone(0, "");
      break;
    }
    case v1::VERB_INSPECT:
      Inspect(run);
      break;
    case v1::VERB_GENERATE:
      Generate(run);
      break;
    case v1::VERB_EXPORT:
      Export(run);
      break;
    default:
      SendDone(12, "the fake worker does not know this verb");
  }
  return 0;
}

}  // namespace
}  // namespace hone

int main() { return hone::Main(); }
