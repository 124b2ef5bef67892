// What `validate` says of a data set before anything trains: counts, shares, label balance, lengths, and how masks fall
// on tokens.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/data/dataset.h"
#include "nlohmann/json.hpp"

namespace hone {

struct WeightRange {
  double low = 0, high = 0;
};

// KTO paper (arXiv 2402.01306) eq. 8, as TRL 0.24 rounds it: advice, never applied.
struct LabelBalance {
  uint64_t desirable = 0, undesirable = 0;
  double desirable_weight = 1, undesirable_weight = 1;  // as configured
  bool advised = false;                                 // TRL would warn: neither weight lies in its range
  WeightRange desirable_range, undesirable_range;       // what one of the two should lie in
};

struct PreviewToken {
  int32_t id = 0;
  std::string text;
  bool trained = false;
};

struct ExamplePreview {
  uint64_t row = 0;
  std::optional<bool> label;
  std::vector<PreviewToken> tokens;
  bool shortened = false;  // only the first tokens are shown
};

struct DataReport {
  uint64_t rows = 0, train_examples = 0, eval_examples = 0;
  std::map<std::string, uint64_t> row_kinds;
  uint64_t tokens = 0, supervised_tokens = 0;  // of train and eval examples, KL examples not counted
  uint64_t truncated_examples = 0, cut_prompt_tokens = 0, cut_completion_tokens = 0;
  int32_t shortest = 0, longest = 0;
  double mean_length = 0;
  // histogram[k]: examples with length in (2^(k-1), 2^k]; [0]: length 1.
  std::vector<uint64_t> histogram;
  uint64_t duplicate_examples = 0;  // equal ids, mask and label as an earlier example
  std::optional<LabelBalance> labels;
  uint64_t kl_examples = 0;
  std::vector<ExamplePreview> previews;
  std::vector<std::string> warnings;
};

struct ReportOptions {
  bool kto = false;
  double desirable_weight = 1, undesirable_weight = 1;
  int previews = 3;
  int preview_tokens = 256;
};

LabelBalance AdviseWeights(uint64_t desirable, uint64_t undesirable, double desirable_weight,
                           double undesirable_weight);

// tokenizer may be null (ids rows without one): previews then have empty texts.
DataReport MakeReport(const std::vector<Row>& rows, const TrainEvalData& data, const Tokenizer* tokenizer,
                      const ReportOptions& options);
nlohmann::ordered_json ReportToJson(const DataReport& report);

}  // namespace hone
