// A job's data, ready to train on: rows read, split, made into examples, KL pairs built. Not here: batches in time
// (order.h), micro-batches (packing.h), the report (report.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/examples.h"
#include "engine/data/records.h"

namespace hone {

struct Dataset {
  std::vector<Example> examples;  // in the order of the file
  std::vector<Example> kl;        // KTO: kl[i] = prompt of examples[i] with the completion of examples[kl_partner[i]]
  std::vector<uint32_t> kl_partner;  // KTO
  int32_t longest() const;           // largest length among examples and kl; 0 if empty
};

struct DataOptions {
  ExampleOptions example;
  uint32_t kl_group_size = 8;  // KTO
  double eval_fraction = 0;
  uint64_t seed = 42;
};

struct TrainEvalData {
  Dataset train, eval;
};

// Splits (split.h), makes examples, builds KL pairs inside each part. vocab_size > 0: ids must be below it.
// Errors name the row: see examples.h; also no rows at all, KTO with fewer than 2 rows in a part.
absl::StatusOr<Dataset> BuildDataset(const std::vector<Row>& rows, const TextTools& tools, const DataOptions& options,
                                     int32_t vocab_size = 0);
absl::StatusOr<TrainEvalData> BuildTrainEval(const std::vector<Row>& rows, const TextTools& tools,
                                             const DataOptions& options, int32_t vocab_size = 0);

// SHA-256 of everything that training reads from the data set, in order: two data sets with one digest train alike.
std::string DatasetDigest(const Dataset& dataset);

}  // namespace hone
