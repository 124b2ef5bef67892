#include "engine/model/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "proto/base/status.h"

namespace hone {
namespace {

double UnitDraw(uint64_t seed, uint64_t counter) {
  uint64_t x = seed * 0x9e3779b97f4a7c15 + counter + 0x632be59bd9b4e019;
  for (int round = 0; round < 2; ++round) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1.0p-53;
}

// Tokens from the likeliest down, of equal ones the first before; ranked only as far as somebody asks.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : logits_(logits), order_(logits.size()) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  int32_t At(int64_t place) {
    if (place >= ranked_) Extend(std::max<int64_t>(16 * ranked_, 64));
    return order_[place];
  }

 private:
  void Extend(int64_t to) {
    const auto larger = [&](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    };
    to = std::min(to, static_cast<int64_t>(order_.size()));
    std::partial_sort(order_.begin() + ranked_, order_.begin() + to, order_.end(), larger);
    ranked_ = to;
  }

  std::span<const float> logits_;
  std::vector<int32_t> order_;
  int64_t ranked_ = 0;
};

struct Sequence {
  int64_t request = 0;
  int32_t cache0 = 0;  // first cache row
  int64_t length = 0;  // tokens in the cache
  int64_t produced = 0;
  int32_t next = -1;  // sampled, not yet in the cache
  bool active = true;
};

// A launch in the making: new tokens of several sequences, written behind what their cache holds.
struct Launch {
  PackedBatch batch;
  std::vector<int32_t> cache_rows;
  std::vector<size_t> wanted;  // sequence index of each logit row

  void Append(Sequence& sequence, const int32_t* ids, int64_t count, bool want_logits, size_t index) {
    const auto q0 = static_cast<int32_t>(batch.tokens());
    const auto n = static_cast<int32_t>(count);
    for (int32_t i = 0; i < n; ++i) {
      batch.ids.push_back(ids[i]);
      batch.positions.push_back(static_cast<int32_t>(sequence.length) + i);
      cache_rows.push_back(sequence.cache0 + static_cast<int32_t>(sequence.length) + i);
    }
    sequence.length += count;
    batch.segments.push_back({q0, n, sequence.cache0, static_cast<int32_t>(sequence.length), 0, 0});
    if (!want_logits) return;
    batch.logit_rows.push_back(q0 + n - 1);
    batch.targets.push_back(0);
    wanted.push_back(index);
  }
};

class Wave {
 public:
  Wave(Decoder& decoder, KvCache& cache, const GenerationLimits& limits, AdapterMode mode, std::span<const int32_t> eos,
       std::span<const GenerationRequest> requests, Arena& scratch, const OnToken& on_token,
       std::vector<FinishReason>& reasons)
      : decoder_(decoder),
        cache_(cache),
        limits_(limits),
        mode_(mode),
        eos_(eos),
        requests_(requests),
        scratch_(scratch),
        on_token_(on_token),
        reasons_(reasons) {}

  void Run(int64_t first, int64_t count) {
    sequences_.clear();
    for (int64_t i = 0; i < count; ++i) {
      sequences_.push_back({first + i, static_cast<int32_t>(i * limits_.context)});
    }
    Prefill();
    while (Decode()) {
    }
  }

 private:
  void Prefill() {
    Launch launch;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const std::vector<int32_t>& prompt = requests_[sequences_[s].request].prompt;
      for (size_t begin = 0; begin < prompt.size();) {
        const int64_t room = limits_.prefill_tokens - launch.batch.tokens();
        if (room == 0) {
          Execute(launch);
          launch = {};
          continue;
        }
        const int64_t take = std::min<int64_t>(room, static_cast<int64_t>(prompt.size() - begin));
        begin += take;
        launch.Append(sequences_[s], prompt.data() + begin - take, take, begin == prompt.size(), s);
      }
    }
    Execute(launch);
  }

  bool Decode() {
    Launch launch;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      Sequence& sequence = sequences_[s];
      if (sequence.active) launch.Append(sequence, &sequence.next, 1, true, s);
    }
    if (launch.batch.tokens() == 0) return false;
    Execute(launch);
    return true;
  }

  void Execute(const Launch& launch) {
    if (launch.batch.tokens() == 0) return;
    const auto greedy = [&](size_t s) { return requests_[sequences_[s].request].sampling.temperature <= 0; };
    if (std::all_of(launch.wanted.begin(), launch.wanted.end(), greedy)) {
      tokens_.resize(launch.wanted.size());
      decoder_.MostLikely(launch.batch, LaunchLimits(limits_), launch.cache_rows, cache_, mode_, scratch_, tokens_);
      for (size_t i = 0; i < launch.wanted.size(); ++i) Accept(sequences_[launch.wanted[i]], tokens_[i]);
      return;
    }
    decoder_.Logits(launch.batch, LaunchLimits(limits_), launch.cache_rows, cache_, mode_, scratch_, logits_);
    const size_t vocabulary = logits_.size() / launch.wanted.size();
    for (size_t i = 0; i < launch.wanted.size(); ++i) {
      Sequence& sequence = sequences_[launch.wanted[i]];
      const auto logits = std::span<const float>(logits_).subspan(i * vocabulary, vocabulary);
      Accept(sequence, SampleToken(logits, requests_[sequence.request].sampling, sequence.produced));
    }
  }

  void Accept(Sequence& sequence, int32_t token) {
    const GenerationRequest& request = requests_[sequence.request];
    if (request.sampling.max_new_tokens <= sequence.produced) return End(sequence, FinishReason::kLength);
    if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) return End(sequence, FinishReason::kStop);
    ++sequence.produced;
    sequence.next = token;
    if (!on_token_(sequence.request, token)) return End(sequence, FinishReason::kStop);
    if (sequence.produced == request.sampling.max_new_tokens) End(sequence, FinishReason::kLength);
  }

  void End(Sequence& sequence, FinishReason reason) {
    sequence.active = false;
    reasons_[sequence.request] = reason;
  }

  Decoder& decoder_;
  KvCache& cache_;
  const GenerationLimits& limits_;
  AdapterMode mode_;
  std::span<const int32_t> eos_;
  std::span<const GenerationRequest> requests_;
  Arena& scratch_;
  const OnToken& on_token_;
  std::vector<FinishReason>& reasons_;
  std::vector<Sequence> sequences_;
  std::vector<float> logits_;
  std::vector<int32_t> tokens_;
};

}  // namespace

BatchLimits LaunchLimits(const GenerationLimits& limits) {
  return {std::max(limits.prefill_tokens, limits.batch), limits.batch, std::max(limits.prefill_tokens, limits.batch)};
}

int64_t CacheRows(const GenerationLimits& limits) { return limits.batch * limits.context; }

absl::StatusOr<std::vector<FinishReason>> Generate(Decoder& decoder, KvCache& cache, const GenerationLimits& limits,
                                                   AdapterMode mode, std::span<const int32_t> eos,
                                                   std::span<const GenerationRequest> requests, Arena& scratch,
                                                   const OnToken& on_token) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto length = static_cast<int64_t>(requests[i].prompt.size());
    if (length == 0) return InvalidArgument("request ", i, ": the prompt has no token");
    if (length + requests[i].sampling.max_new_tokens > limits.context) {
      return InvalidArgument("request ", i, ": a prompt of ", length, " tokens and ",
                             requests[i].sampling.max_new_tokens, " new ones exceed the context of ", limits.context);
    }
  }
  std::vector<FinishReason> reasons(requests.size(), FinishReason::kLength);
  Wave wave(decoder, cache, limits, mode, eos, requests, scratch, on_token, reasons);
  const auto total = static_cast<int64_t>(requests.size());
  for (int64_t first = 0; first < total; first += limits.batch) wave.Run(first, std::min(limits.batch, total - first));
  return reasons;
}

int32_t SampleToken(std::span<const float> logits, const SamplingOptions& options, int64_t draw) {
  if (options.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  Ranking ranking(logits);
  const float largest = logits[ranking.At(0)];
  const auto weight = [&](int32_t token) {
    return std::exp((static_cast<double>(logits[token]) - largest) / options.temperature);
  };
  const auto size = static_cast<int64_t>(logits.size());
  const int64_t keep = options.top_k > 0 ? std::min(size, options.top_k) : size;
  double sum = 0;
  if (keep < size) {
    for (int64_t i = 0; i < keep; ++i) sum += weight(ranking.At(i));
  } else {
    for (int32_t token = 0; token < size; ++token) sum += weight(token);
  }
  // top_p: the shortest head whose probability reaches it.
  int64_t head = keep;
  double mass = sum;
  if (options.top_p < 1) {
    for (head = 0, mass = 0; head < keep && (head == 0 || mass < options.top_p * sum); ++head) {
      mass += weight(ranking.At(head));
    }
  }
  double target = UnitDraw(options.seed, static_cast<uint64_t>(draw)) * mass;
  for (int64_t i = 0; i < head; ++i) {
    target -= weight(ranking.At(i));
    if (target < 0) return ranking.At(i);
  }
  return ranking.At(head - 1);
}

}  // namespace hone
