#include "engine/train/micro_batches.h"

#include <algorithm>
#include <map>

namespace hone {
namespace {

// Token t of a document at `row` is predicted by the row before it.
void AppendTargets(LaunchBatch& batch, uint32_t index, const Example& example, int32_t row) {
  LogitSlice slice{index, static_cast<int32_t>(batch.packed.targets.size()), 0};
  for (int32_t t = 1; t < example.length(); ++t) {
    if (!example.trained[t]) continue;
    batch.packed.logit_rows.push_back(row + t - 1);
    batch.packed.targets.push_back(example.ids[t]);
    ++slice.count;
  }
  batch.slices.push_back(slice);
}

void AppendWhole(LaunchBatch& batch, uint32_t index, const Example& example) {
  const int32_t row = AppendDocument(batch.packed, example.ids.data(), example.length());
  AppendTargets(batch, index, example, row);
}

// Whether every trained token lies in a completion behind a prompt, so that the prompt can be another example's too.
bool HasPrompt(const Example& example) {
  if (example.prompt_length <= 0 || example.prompt_length >= example.length()) return false;
  return std::none_of(example.trained.begin(), example.trained.begin() + example.prompt_length,
                      [](uint8_t trained) { return trained != 0; });
}

void AppendShared(LaunchBatch& batch, uint32_t index, const Example& example, int32_t prompt_row) {
  const int32_t prompt = example.prompt_length;
  const int32_t row =
      AppendCompletion(batch.packed, example.ids.data() + prompt, example.length() - prompt, prompt_row, prompt);
  LogitSlice slice{index, static_cast<int32_t>(batch.packed.targets.size()), 0};
  for (int32_t t = prompt; t < example.length(); ++t) {
    if (!example.trained[t]) continue;
    batch.packed.logit_rows.push_back(t == prompt ? prompt_row + prompt - 1 : row + t - prompt - 1);
    batch.packed.targets.push_back(example.ids[t]);
    ++slice.count;
  }
  batch.slices.push_back(slice);
}

}  // namespace

std::vector<LaunchBatch> MakeTrainBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                          PackingMode packing) {
  std::vector<int32_t> lengths;
  for (const Example* example : examples) lengths.push_back(example->length());
  std::vector<LaunchBatch> batches;
  for (const MicroBatch& micro : PackDocuments(lengths, micro_batch_tokens, packing)) {
    LaunchBatch batch;
    for (const DocumentRange& range : micro.documents) AppendWhole(batch, range.document, *examples[range.document]);
    batches.push_back(std::move(batch));
  }
  return batches;
}

std::vector<LaunchBatch> MakeForwardBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
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
    AppendShared(batch, i, example, found->second);
  }
  flush();
  return batches;
}

BatchLimits Cover(const BatchLimits& limits, const PackedBatch& batch) {
  return {std::max(limits.tokens, batch.tokens()),
          std::max(limits.logit_rows, static_cast<int64_t>(batch.logit_rows.size())),
          std::max(limits.segments, static_cast<int64_t>(batch.segments.size()))};
}

}  // namespace hone
