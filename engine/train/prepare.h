// A spec made ready: model opened, rows read and made into examples, steps counted. What validate, plan and train
// share.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/dataset.h"
#include "engine/data/order.h"
#include "engine/io/model_files.h"
#include "engine/objective/objective.h"
#include "hone/v1/spec.pb.h"

namespace hone {

inline constexpr int64_t kMostRewinds = 3;  // of a run, run.on_nan: rewind

struct PreparedRun {
  v1::JobSpec spec;  // resolved, and now also run.max_steps, run.save_steps, model-dependent fields
  std::unique_ptr<ModelFiles> files;
  std::unique_ptr<Tokenizer> tokenizer;         // null: pre-tokenised rows and no tokenizer
  std::unique_ptr<ChatTemplate> chat_template;  // null: none
  std::vector<Row> rows;                        // train rows, then those of data.eval
  TrainEvalData data;
  ObjectiveNeeds needs;
  int64_t steps = 0;

  // One a step, and those that run.on_nan: rewind may go on with instead of the ones before; the plan covers them all.
  int64_t batches() const;
  BatchOrder Order() const;
  int64_t kl_group_size() const;
};

// Every distinct sequence whose reference log-probability the run needs (policy and mismatched, train and eval),
// sequences of one prompt next to each other so that a launch computes it once. Empty without a reference. The plan and
// the pass share this order.
std::vector<const Example*> ReferenceExamples(const PreparedRun& run);

// A digest of what a spec says of the run: a folder's run may be resumed only by an equal one. Where files lie, the
// name and the exports do not matter, nor that run.on_nan is left at its default; what is in the files the checkpoint's
// own digests see to.
std::string SpecIdentity(v1::JobSpec spec);

absl::StatusOr<PreparedRun> Prepare(const v1::JobSpec& spec);

}  // namespace hone
