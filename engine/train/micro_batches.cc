#include "engine/train/micro_batches.h"

#include <algorithm>
#include <map>

namespace hone {
namespace {

// Sharing a few tokens is not worth a segment of its own.
constexpr int32_t kLeastShared = 8;

void AppendWhole(LaunchBatch& batch, uint32_t index, const Example& example) {
  const int32_t row = AppendDocument(batch.packed, example.ids.data(), example.length());
  LogitSlice slice{index, static_cast<int32_t>(batch.packed.targets.size()), 0};
  for (int32_t t = 1; t < example.length(); ++t) {
    if (!example.trained[t]) continue;
    batch.packed.logit_rows.push_back(row + t - 1);  // token t is predicted by the row before it
    batch.packed.targets.push_back(example.ids[t]);
    ++slice.count;
  }
  batch.slices.push_back(slice);
  batch.example_tokens += example.length();
}

// The first `shared` tokens lie at rows [shared_row, shared_row + shared); no token up to there is trained.
void AppendBehind(LaunchBatch& batch, uint32_t index, const Example& example, int32_t shared_row, int32_t shared) {
  const int32_t row =
      AppendCompletion(batch.packed, example.ids.data() + shared, example.length() - shared, shared_row, shared);
  LogitSlice slice{index, static_cast<int32_t>(batch.packed.targets.size()), 0};
  for (int32_t t = shared; t < example.length(); ++t) {
    if (!example.trained[t]) continue;
    batch.packed.logit_rows.push_back(t == shared ? shared_row + shared - 1 : row + t - shared - 1);
    batch.packed.targets.push_back(example.ids[t]);
    ++slice.count;
  }
  batch.slices.push_back(slice);
  batch.example_tokens += example.length();
}

// How many tokens come before the first trained one.
int32_t Untrained(const Example& example) {
  const auto first = std::find(example.trained.begin(), example.trained.end(), 1);
  return static_cast<int32_t>(first - example.trained.begin());
}

// Tokens that all examples begin with, short enough that every trained token's predicting row is an example's own. 0:
// none worth sharing.
int32_t CommonBeginning(std::span<const Example* const> examples) {
  if (examples.size() < 2) return 0;
  const Example& first = *examples.front();
  int32_t common = first.length();
  for (const Example* example : examples) {
    common = std::min(common, Untrained(*example) - 1);
    int32_t equal = 0;
    while (equal < common && example->ids[equal] == first.ids[equal]) ++equal;
    common = equal;
  }
  return common >= kLeastShared ? common : 0;
}

// Whether every trained token lies in a completion behind a prompt, so that the prompt can be another example's too.
bool HasPrompt(const Example& example) {
  return example.prompt_length > 0 && example.prompt_length < example.length() &&
         Untrained(example) >= example.prompt_length;
}

int64_t TotalTokens(const std::vector<LaunchBatch>& batches) {
  int64_t tokens = 0;
  for (const LaunchBatch& batch : batches) tokens += batch.packed.tokens();
  return tokens;
}

// All examples behind what all of them begin with, in the given packing.
std::vector<LaunchBatch> BatchesBehind(std::span<const Example* const> examples, int32_t shared,
                                       int32_t micro_batch_tokens, PackingMode packing) {
  std::vector<int32_t> lengths;
  for (const Example* example : examples) lengths.push_back(example->length() - shared);
  std::vector<LaunchBatch> batches;
  for (const MicroBatch& micro : PackDocuments(lengths, std::max(1, micro_batch_tokens - shared), packing)) {
    LaunchBatch batch;
    if (shared > 0) AppendDocument(batch.packed, examples.front()->ids.data(), shared);
    for (const DocumentRange& range : micro.documents) {
      const Example& example = *examples[range.document];
      if (shared > 0) {
        AppendBehind(batch, range.document, example, 0, shared);
      } else {
        AppendWhole(batch, range.document, example);
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

// In order, each run of equal prompts computing its prompt once a launch.
std::vector<LaunchBatch> BatchesByPrompt(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                         bool packing) {
  std::vector<LaunchBatch> batches;
  LaunchBatch batch;
  std::map<std::vector<int32_t>, int32_t> prompts;  // of this batch: prompt -> its first row
  auto flush = [&] {
    if (batch.packed.tokens() > 0) batches.push_back(std::move(batch));
    batch = {};
    prompts.clear();
  };
  for (uint32_t i = 0; i < examples.size(); ++i) {
    const Example& example = *examples[i];
    const bool shareable = packing && HasPrompt(example);
    std::vector<int32_t> prompt;
    if (shareable) prompt.assign(example.ids.begin(), example.ids.begin() + example.prompt_length);
    auto found = prompts.find(prompt);
    const bool shared = shareable && found != prompts.end();
    const int64_t cost = example.length() - (shared ? example.prompt_length : 0);
    if (!packing || batch.packed.tokens() + cost > micro_batch_tokens) {
      flush();
      found = prompts.end();
    }
    if (!shareable) {
      AppendWhole(batch, i, example);
      continue;
    }
    if (found == prompts.end()) {
      const int32_t row = AppendDocument(batch.packed, prompt.data(), example.prompt_length);
      found = prompts.emplace(std::move(prompt), row).first;
    }
    AppendBehind(batch, i, example, found->second, example.prompt_length);
  }
  flush();
  return batches;
}

// mismatched[i] behind example i's rows; `shared` rows begin all examples. The slices go to batch.mismatched.
void AppendMismatched(LaunchBatch& batch, std::span<const Example* const> examples,
                      std::span<const Example* const> mismatched, int32_t shared) {
  const auto policy_rows = static_cast<int32_t>(batch.packed.tokens());
  const auto policy_logits = static_cast<int64_t>(batch.packed.targets.size());
  const size_t first_segment = shared > 0 ? 1 : 0;
  LaunchBatch tail;
  tail.packed = std::move(batch.packed);
  for (uint32_t i = 0; i < mismatched.size(); ++i) {
    const Example& example = *examples[i];
    const Example& other = *mismatched[i];
    auto begins_as = [&](int32_t length) {
      return length > 0 && length <= other.prompt_length && HasPrompt(other) && length < example.length() &&
             std::equal(other.ids.begin(), other.ids.begin() + length, example.ids.begin());
    };
    // Slices, and behind the shared beginning segments, are in the order of examples.
    if (shared > 0 && begins_as(shared)) {
      AppendBehind(tail, i, other, 0, shared);
    } else if (shared == 0 && other.prompt_length == example.prompt_length && begins_as(other.prompt_length)) {
      AppendBehind(tail, i, other, tail.packed.segments[first_segment + i].q0, other.prompt_length);
    } else {
      AppendWhole(tail, i, other);
    }
  }
  batch.packed = std::move(tail.packed);
  batch.mismatched = std::move(tail.slices);
  batch.packed.tail_rows = batch.packed.tokens() - policy_rows;
  batch.packed.tail_logits = static_cast<int64_t>(batch.packed.targets.size()) - policy_logits;
}

}  // namespace

double SumOf(const LogitSlice& slice, std::span<const float> log_probs) {
  double sum = 0;
  for (const float log_prob : log_probs.subspan(slice.first, slice.count)) sum += log_prob;
  return sum;
}

std::optional<LaunchBatch> MakeCoupledBatch(std::span<const Example* const> examples,
                                            std::span<const Example* const> mismatched, int32_t micro_batch_tokens) {
  std::optional<LaunchBatch> best;
  for (const int32_t shared : {0, CommonBeginning(examples)}) {
    std::vector<LaunchBatch> policy = BatchesBehind(examples, shared, micro_batch_tokens, PackingMode::kInOrder);
    if (policy.size() != 1) continue;
    AppendMismatched(policy[0], examples, mismatched, shared);
    if (policy[0].packed.tokens() > micro_batch_tokens) continue;
    if (!best || policy[0].packed.tokens() < best->packed.tokens()) best = std::move(policy[0]);
  }
  return best;
}

std::vector<LaunchBatch> MakeTrainBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                          PackingMode packing) {
  const int32_t shared = packing == PackingMode::kOff ? 0 : CommonBeginning(examples);
  return BatchesBehind(examples, shared, micro_batch_tokens, packing);
}

std::vector<LaunchBatch> MakeForwardBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                            bool packing) {
  std::vector<LaunchBatch> by_prompt = BatchesByPrompt(examples, micro_batch_tokens, packing);
  const int32_t shared = packing ? CommonBeginning(examples) : 0;
  if (shared == 0) return by_prompt;
  std::vector<LaunchBatch> behind = BatchesBehind(examples, shared, micro_batch_tokens, PackingMode::kInOrder);
  return TotalTokens(behind) < TotalTokens(by_prompt) ? behind : by_prompt;
}

BatchLimits Cover(const BatchLimits& limits, const PackedBatch& batch) {
  return {std::max(limits.tokens, batch.tokens()),
          std::max(limits.logit_rows, static_cast<int64_t>(batch.logit_rows.size())),
          std::max(limits.segments, static_cast<int64_t>(batch.segments.size())),
          std::max(limits.backward_tokens, batch.tokens() - batch.tail_rows)};
}

}  // namespace hone
