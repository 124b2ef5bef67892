#include "engine/data/dataset.h"

#include <algorithm>

#include "engine/data/kl_pairs.h"
#include "engine/data/split.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {

int32_t Dataset::longest() const {
  int32_t longest = 0;
  for (const Example& example : examples) longest = std::max(longest, example.length());
  for (const Example& example : kl) longest = std::max(longest, example.length());
  return longest;
}

namespace {

absl::Status CheckOptions(const DataOptions& options) {
  if (options.example.max_length < 2)
    return InvalidArgument("data.max_length: must be at least 2, got ", options.example.max_length);
  if (options.example.max_prompt_length < 1) {
    return InvalidArgument("data.max_prompt_length: must be at least 1, got ", options.example.max_prompt_length);
  }
  return absl::OkStatus();
}

absl::Status CheckVocabulary(const Example& example, int32_t vocab_size) {
  if (vocab_size <= 0) return absl::OkStatus();
  for (int32_t id : example.ids) {
    if (id >= 0 && id < vocab_size) continue;
    return InvalidArgument("row ", example.row, ": token id ", id, " is outside the model's vocabulary of ",
                           vocab_size);
  }
  return absl::OkStatus();
}

absl::Status BuildKto(const std::vector<const Row*>& rows, const TextTools& tools, const DataOptions& options,
                      Dataset* dataset) {
  std::vector<KtoParts> parts;
  for (const Row* row : rows) {
    HONE_ASSIGN_OR_RETURN(KtoParts one, MakeKtoParts(*row, tools));
    HONE_ASSIGN_OR_RETURN(Example example, MakeKtoExample(one, options.example));
    parts.push_back(std::move(one));
    dataset->examples.push_back(std::move(example));
  }
  HONE_ASSIGN_OR_RETURN(dataset->kl_partner, KlPartners(static_cast<uint32_t>(rows.size()), options.kl_group_size));
  for (size_t i = 0; i < parts.size(); ++i) {
    HONE_ASSIGN_OR_RETURN(
        Example kl, MakeKlExample(parts[i], dataset->examples[i], parts[dataset->kl_partner[i]], options.example));
    dataset->kl.push_back(std::move(kl));
  }
  return absl::OkStatus();
}

absl::StatusOr<Dataset> Build(const std::vector<const Row*>& rows, const TextTools& tools, const DataOptions& options,
                              int32_t vocab_size) {
  if (rows.empty()) return InvalidArgument("the data set has no rows");
  Dataset dataset;
  if (options.example.objective == DataObjective::kKto) {
    HONE_RETURN_IF_ERROR(BuildKto(rows, tools, options, &dataset));
  } else {
    for (const Row* row : rows) {
      HONE_ASSIGN_OR_RETURN(Example example, MakeSftExample(*row, tools, options.example));
      dataset.examples.push_back(std::move(example));
    }
  }
  for (const Example& example : dataset.examples) HONE_RETURN_IF_ERROR(CheckVocabulary(example, vocab_size));
  return dataset;
}

}  // namespace

absl::StatusOr<Dataset> BuildDataset(const std::vector<Row>& rows, const TextTools& tools, const DataOptions& options,
                                     int32_t vocab_size) {
  HONE_RETURN_IF_ERROR(CheckOptions(options));
  std::vector<const Row*> all;
  for (const Row& row : rows) all.push_back(&row);
  return Build(all, tools, options, vocab_size);
}

absl::StatusOr<TrainEvalData> BuildTrainEval(const std::vector<Row>& rows, const TextTools& tools,
                                             const DataOptions& options, int32_t vocab_size) {
  HONE_RETURN_IF_ERROR(CheckOptions(options));
  const uint32_t minimum = options.example.objective == DataObjective::kKto ? 2 : 1;
  HONE_ASSIGN_OR_RETURN(const Split split,
                        SplitRows(static_cast<uint32_t>(rows.size()), options.eval_fraction, options.seed, minimum));
  const auto pick = [&](const std::vector<uint32_t>& indices) {
    std::vector<const Row*> picked;
    for (uint32_t i : indices) picked.push_back(&rows[i]);
    return picked;
  };
  TrainEvalData data;
  HONE_ASSIGN_OR_RETURN(data.train, Build(pick(split.train), tools, options, vocab_size));
  if (split.eval.empty()) return data;
  auto eval = Build(pick(split.eval), tools, options, vocab_size);
  if (!eval.ok())
    return Annotate(eval.status(), StrCat("evaluation part (", split.eval.size(), " rows by data.eval_fraction)"));
  data.eval = *std::move(eval);
  return data;
}

namespace {

template <typename T>
void Digest(Sha256* sha, const T* data, size_t count) {
  sha->Update({reinterpret_cast<const char*>(data), count * sizeof(T)});
}

void DigestExamples(Sha256* sha, const std::vector<Example>& examples) {
  const uint64_t count = examples.size();
  Digest(sha, &count, 1);
  for (const Example& example : examples) {
    const uint64_t header[] = {example.ids.size(), static_cast<uint64_t>(example.prompt_length), example.label};
    Digest(sha, header, 3);
    Digest(sha, example.ids.data(), example.ids.size());
    Digest(sha, example.trained.data(), example.trained.size());
  }
}

}  // namespace

std::string DatasetDigest(const Dataset& dataset) {
  Sha256 sha;
  DigestExamples(&sha, dataset.examples);
  DigestExamples(&sha, dataset.kl);
  Digest(&sha, dataset.kl_partner.data(), dataset.kl_partner.size());
  return sha.FinishHex();
}

}  // namespace hone
