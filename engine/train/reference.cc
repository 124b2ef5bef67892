#include "engine/train/reference.h"

#include <algorithm>

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
    for (const LogitSlice& slice : batch.slices) sums[slice.example] = SumOf(slice, log_probs);
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
  const std::string model =
      StrCat(run.files->digest(), "/", v1::Quantization_Name(run.spec.model().quantization()), "/", numerics);
  auto cache = ReferenceCache::Load(cache_path);
  if (!cache.ok()) cache = ReferenceCache();  // damaged: computed again and written anew

  // Launches are those of the whole list, as the plan laid them out; one of which everything is cached is left out.
  const std::vector<const Example*> examples = ReferenceExamples(run);
  std::vector<ReferenceKey> keys;
  for (const Example* example : examples) keys.push_back(MakeReferenceKey(model, *example));
  std::vector<float> log_probs;
  const auto total = static_cast<int64_t>(examples.size());
  int64_t done = 0;
  bool computed = false;
  for (const LaunchBatch& batch :
       MakeForwardBatches(examples, static_cast<int32_t>(plan.micro_batch_tokens()), plan.packing())) {
    done += static_cast<int64_t>(batch.slices.size());
    const bool cached = std::all_of(batch.slices.begin(), batch.slices.end(), [&](const LogitSlice& slice) {
      return cache->Find(keys[slice.example]).has_value();
    });
    if (!cached) {
      log_probs.resize(batch.packed.targets.size());
      session.LogProbs(batch.packed, AdapterMode::kOff, log_probs);
      for (const LogitSlice& slice : batch.slices) cache->Put(keys[slice.example], SumOf(slice, log_probs));
      computed = true;
    }
    if (progress) HONE_RETURN_IF_ERROR(progress(done, total));
  }
  if (computed) HONE_RETURN_IF_ERROR(cache->Save(cache_path));

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
