// Generation on the card with a real model's shape and noise for weights (NF4 linears, bf16 embedding and head): tokens
// per second while decoding, by the number of sequences at once, beside the floor of reading every weight once a token
// at the rate of a large device copy measured in this run.
//   cuda_generate_bench --shape tests/bench/shapes/llama-3.1-8b [--batch 1,8,32] [--prompt 128] [--new 128]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/worker/inference.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/cuda/cuda_ops.h"
#include "proto/base/status.h"
#include "tests/bench/noise_model.h"
#include "tests/bench/timed_backend.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string shape;
  std::vector<int64_t> batch = {1, 8, 32};
  int64_t prompt = 128, tokens = 128;
  bool bf16 = false;
};

absl::StatusOr<double> CopyRate(Backend& backend) {
  constexpr uint64_t kHalf = uint64_t{1} << 30;
  HONE_ASSIGN_OR_RETURN(const auto block, backend.Reserve(2 * kHalf));
  const cudaStream_t stream = static_cast<CudaOps&>(backend.ops()).stream();
  auto* base = static_cast<char*>(block->data());
  double best = 1e9;
  for (int i = 0; i < 8; ++i) {
    backend.ops().Synchronize();
    const auto begin = Clock::now();
    for (int j = 0; j < 4; ++j) cudaMemcpyAsync(base + kHalf, base, kHalf, cudaMemcpyDeviceToDevice, stream);
    backend.ops().Synchronize();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / 4);
  }
  return 2.0 * kHalf / best;
}

// What a token reads: every linear as stored and the head.
double WeightBytes(const ModelFiles& files) {
  double bytes = 0;
  for (const std::string& name : files.names()) {
    if (name == "model.embed_tokens.weight" && !files.config().tie_word_embeddings) continue;
    const auto weight = files.Describe(name);
    if (weight.ok()) bytes += static_cast<double>(weight->TotalBytes());
  }
  return bytes;
}

// One step by operation, the longest first, and what lies between them.
void PrintOps(const std::vector<OpRecord>& records) {
  if (records.empty()) return;
  std::map<std::string, std::pair<int64_t, double>> rows;
  double busy = 0;
  for (const OpRecord& r : records) {
    auto& [calls, seconds] = rows[r.name];
    ++calls, seconds += r.end - r.begin, busy += r.end - r.begin;
  }
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [name, row] : rows) order.emplace_back(row.second, name);
  std::sort(order.rbegin(), order.rend());
  const double span = records.back().end - records.front().begin;
  std::printf("  one step: %zu operations in %.3f ms, %.3f ms between them;", records.size(), 1e3 * span,
              1e3 * (span - busy));
  for (size_t i = 0; i < std::min<size_t>(8, order.size()); ++i)
    std::printf(" %s %lld x %.3f ms;", order[i].second.c_str(), static_cast<long long>(rows[order[i].second].first),
                1e3 * order[i].first);
  std::printf("\n");
}

absl::Status Run(const Options& options) {
  HONE_ASSIGN_OR_RETURN(auto files, ModelFiles::Open("random:" + options.shape + "/config.json"));
  if (!options.bf16) files = MakeNoiseModel(std::move(files));
  HONE_ASSIGN_OR_RETURN(const auto backend, OpenCuda({.device = 0, .activation_dtype = DType::kBF16}));
  HONE_ASSIGN_OR_RETURN(const double rate, CopyRate(*backend));
  auto begin = Clock::now();
  EventClock clock(static_cast<CudaOps&>(backend->ops()).stream());
  clock.Grow(20000);
  TimedBackend timed(*backend, clock, files->config().vocab_size);
  HONE_ASSIGN_OR_RETURN(const auto session, InferenceSession::Open(timed, *files, nullptr));
  const double bytes = WeightBytes(*files), floor = bytes / rate;
  std::printf("card %s; copy %.0f GB/s; weights %.0f MB a token: at most %.1f steps/s; loaded in %.1f s\n",
              backend->name().c_str(), rate / 1e9, bytes / 1e6, 1 / floor,
              std::chrono::duration<double>(Clock::now() - begin).count());
  std::vector<int32_t> alone;  // what the first request gave in the first batch
  for (const int64_t batch : options.batch) {
    std::mt19937 random(1);
    std::vector<GenerationRequest> requests(batch);
    for (GenerationRequest& request : requests) {
      for (int64_t i = 0; i < options.prompt; ++i)
        request.prompt.push_back(static_cast<int32_t>(3 + random() % (files->config().vocab_size - 3)));
      request.sampling.max_new_tokens = options.tokens;
    }
    for (const int round : {0, 1, 2}) {  // warming up, timed, timed by operation
      // Times of the steps that gave every sequence a token: the first are the prompts'.
      std::vector<Clock::time_point> steps;
      int64_t tokens = 0;
      std::vector<int32_t> ids;
      begin = Clock::now();
      const auto reasons = session->Run(requests, AdapterMode::kOff, [&](int64_t request, int32_t token) {
        ++tokens;
        if (request == 0) ids.push_back(token);
        if (request == 0) steps.push_back(Clock::now());
        if (round == 2 && request == 0 && steps.size() == 20) timed.timed().Record(true);
        if (round == 2 && request == 0 && steps.size() == 21) timed.timed().Record(false);
        return true;
      });
      HONE_RETURN_IF_ERROR(reasons.status());
      const double total = std::chrono::duration<double>(Clock::now() - begin).count();
      if (round == 2) PrintOps(timed.timed().Take());
      if (alone.empty()) alone = ids;
      const auto same = std::mismatch(ids.begin(), ids.end(), alone.begin(), alone.end()).first - ids.begin();
      if (round != 1 || steps.size() < 8) continue;
      std::vector<double> seconds;
      for (size_t i = 1; i < steps.size(); ++i)
        seconds.push_back(std::chrono::duration<double>(steps[i] - steps[i - 1]).count());
      std::sort(seconds.begin(), seconds.end());
      const double step = seconds[seconds.size() / 2];
      const double rest = std::chrono::duration<double>(steps.back() - steps.front()).count();
      std::printf(
          "batch %3lld: step %.3f ms, %.0f tok/s decoding; %.1f%% of the floor of its weights; first token %.1f ms; "
          "%lld tokens in %.2f s; the first request's first %lld tokens as in the first batch\n",
          static_cast<long long>(batch), 1e3 * step, static_cast<double>(tokens - batch) / rest, 100 * floor / step,
          1e3 * std::chrono::duration<double>(steps[0] - begin).count(), static_cast<long long>(tokens), total,
          static_cast<long long>(same));
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  if (const absl::Status blas = hone::EnsureSafeBlas(argv); !blas.ok()) return 1;
  CLI::App app("Generation on the card: tokens per second beside the floor of reading the weights");
  hone::Options o;
  app.add_option("--shape", o.shape, "Folder with a config.json")->required();
  app.add_option("--batch", o.batch, "Sequences at once")->delimiter(',');
  app.add_option("--prompt", o.prompt, "Tokens of each prompt");
  app.add_option("--new", o.tokens, "Tokens to generate");
  app.add_flag("--unquantised", o.bf16, "Weights as `random:` has them");
  CLI11_PARSE(app, argc, argv);
  try {
    const absl::Status status = hone::Run(o);
    if (!status.ok()) std::printf("cuda_generate_bench: %s\n", std::string(status.message()).c_str());
    return status.ok() ? 0 : 1;
  } catch (const std::exception& e) {
    std::printf("cuda_generate_bench: %s\n", e.what());
    return 1;
  }
}
