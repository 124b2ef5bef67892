#include "engine/train/reference.h"

#include "engine/data/reference_cache.h"
#include "engine/train/micro_batches.h"
#include "proto/base/status.h"

namespace hone {

absl::Status ForwardSums(TrainSession& session, std::span<const Example* const> examples, const v1::Plan& plan,
                         AdapterMode mode, std::span<double> sums,
                         const std::function<absl::Status(int64_t done)>& progress) {
  std::vector<float> log_probs;
  int64_t done = 0;
  for (const LaunchBatch& batch :
       MakeForwardBatches(examples, static_cast<int32_t>(plan.micro_batch_tokens()), plan.packing())) {
    log_probs.resize(batch.packed.targets.size());
    session.LogProbs(batch.packed, mode, log_probs);
    for (const LogitSlice& slice : batch.slices) {
      double sum = 0;
      for (int32_t i = 0; i < slice.count; ++i) sum += log_probs[slice.first + i];
      sums[slice.example] = sum;
    }
    done += static_cast<int64_t>(batch.slices.size());
    if (progress) HONE_RETURN_IF_ERROR(progress(done));
  }
  return absl::OkStatus();
}

absl::StatusOr<ReferenceValues> ReferenceLogProbs(const PreparedRun& run, TrainSession& session, const v1::Plan& plan,
                                                  const std::string& numerics, const std::string& cache_path,
                                                  const std::function<absl::Status(int64_t, int64_t)>& progress) {
  ReferenceValues values;
  struct Part {
    const std::vector<Example>* examples;
    std::vector<double>* out;
  };
  const Part parts[] = {{&run.data.train.examples, &values.train},
                        {&run.data.train.kl, &values.train_kl},
                        {&run.data.eval.examples, &values.eval},
                        {&run.data.eval.kl, &values.eval_kl}};
  const std::string model = StrCat(run.files->digest(), "/", v1::Quantization_Name(run.spec.model().quantization()), "/", numerics);
  auto cache = ReferenceCache::Load(cache_path);
  if (!cache.ok()) cache = ReferenceCache();  // damaged: computed again and written anew

  // Each distinct sequence once; a question's answers share its prompt, so all parts are launched together.
  std::vector<const Example*> missing;
  std::vector<ReferenceKey> keys;
  std::map<ReferenceKey, bool> queued;
  for (const Part& part : parts) {
    for (const Example& example : *part.examples) {
      const ReferenceKey key = MakeReferenceKey(model, example);
      if (cache->Find(key).has_value() || !queued.emplace(key, true).second) continue;
      missing.push_back(&example);
      keys.push_back(key);
    }
  }
  // Same prompts next to each other, in the order of first appearance.
  std::map<std::vector<int32_t>, std::vector<size_t>> by_prompt;
  std::vector<const std::vector<size_t>*> prompt_order;
  for (size_t i = 0; i < missing.size(); ++i) {
    const Example& example = *missing[i];
    auto [it, inserted] = by_prompt.try_emplace({example.ids.begin(), example.ids.begin() + example.prompt_length});
    if (inserted) prompt_order.push_back(&it->second);
    it->second.push_back(i);
  }
  std::vector<const Example*> ordered;
  std::vector<size_t> origin;
  for (const std::vector<size_t>* group : prompt_order) {
    for (size_t i : *group) ordered.push_back(missing[i]), origin.push_back(i);
  }
  std::vector<double> sums(ordered.size());
  const auto total = static_cast<int64_t>(ordered.size());
  HONE_RETURN_IF_ERROR(ForwardSums(session, ordered, plan, AdapterMode::kOff, sums, [&](int64_t done) {
    return progress ? progress(done, total) : absl::OkStatus();
  }));
  for (size_t i = 0; i < sums.size(); ++i) cache->Put(keys[origin[i]], sums[i]);
  if (!missing.empty()) HONE_RETURN_IF_ERROR(cache->Save(cache_path));

  for (const Part& part : parts) {
    for (const Example& example : *part.examples) {
      const auto found = cache->Find(MakeReferenceKey(model, example));
      HONE_CHECK(found.has_value());
      part.out->push_back(*found);
    }
  }
  return values;
}

}  // namespace hone
