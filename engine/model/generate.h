// Batched generation with a KV cache: prompts in, new tokens out, token by token through a callback. Greedy on the
// device or sampled on the host. Not here: text (stop strings and detokenising are the worker's), loading.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/decoder.h"

namespace hone {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: all
  double top_p = 1;
  int64_t max_new_tokens = 128;
  uint64_t seed = 0;  // a request's draws depend on its seed and position alone, not on its neighbours
};

struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  SamplingOptions sampling;
};

struct GenerationLimits {
  int64_t batch = 16;            // sequences decoded together
  int64_t prefill_tokens = 512;  // prompt tokens of one launch
  int64_t context = 0;           // longest prompt + new tokens
};

// The decoder's limits for one launch, and the cache's rows: what a plan of generation lays out.
BatchLimits LaunchLimits(const GenerationLimits& limits);
int64_t CacheRows(const GenerationLimits& limits);

// token < 0 never occurs. Return false to end this sequence (a stop string was seen).
using OnToken = std::function<bool(int64_t request, int32_t token)>;
enum class FinishReason : uint8_t { kStop, kLength };

// Runs all requests, `limits.batch` at a time, in order. Tokens in `eos` end a sequence and are not reported.
// An over-long prompt is an error naming the request and the limit.
absl::StatusOr<std::vector<FinishReason>> Generate(Decoder& decoder, KvCache& cache, const GenerationLimits& limits,
                                                   AdapterMode mode, std::span<const int32_t> eos,
                                                   std::span<const GenerationRequest> requests, Arena& scratch,
                                                   const OnToken& on_token);

// One draw from logits (fp32, any order); exposed for tests. `draw` is the index of the new token.
int32_t SampleToken(std::span<const float> logits, const SamplingOptions& options, int64_t draw);

}  // namespace hone
