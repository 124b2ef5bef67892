#include "engine/train/prepare.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

bool NeedsText(const std::vector<Row>& rows) {
  return std::any_of(rows.begin(), rows.end(), [](const Row& row) {
    return row.kind != RowKind::kIds && row.kind != RowKind::kPromptCompletionIds;
  });
}

absl::Status OpenText(PreparedRun& run) {
  auto tokenizer = run.files->OpenTokenizer();
  if (!tokenizer.ok()) {
    if (NeedsText(run.rows)) return Annotate(tokenizer.status(), "model.source");
    return absl::OkStatus();
  }
  run.tokenizer = *std::move(tokenizer);
  if (run.files->chat_template().empty()) return absl::OkStatus();
  auto parsed = ChatTemplate::Parse(run.files->chat_template(), run.files->template_tokens());
  if (!parsed.ok()) {
    const bool wanted = std::any_of(run.rows.begin(), run.rows.end(), [](const Row& row) {
      return row.kind == RowKind::kMessages || row.kind == RowKind::kPromptCompletionMessages;
    });
    if (wanted) return Annotate(parsed.status(), "model.source: the chat template");
    return absl::OkStatus();
  }
  run.chat_template = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status CountSteps(PreparedRun& run) {
  v1::RunSpec& spec = *run.spec.mutable_run();
  const BatchOrder order = run.Order();
  run.steps =
      spec.has_max_steps()
          ? spec.max_steps()
          : static_cast<int64_t>(std::ceil(spec.num_train_epochs() * static_cast<double>(order.steps_per_epoch())));
  if (run.steps < 1) return InvalidArgument("run.num_train_epochs: ", spec.num_train_epochs(), " gives no step");
  spec.set_max_steps(static_cast<uint32_t>(run.steps));
  if (!spec.has_save_steps()) spec.set_save_steps(static_cast<uint32_t>(std::max<int64_t>(1, run.steps / 10)));
  return absl::OkStatus();
}

}  // namespace

int64_t PreparedRun::batches() const {
  if (spec.run().on_nan() != v1::ON_NAN_REWIND) return steps;
  return steps + kMostRewinds * std::min<int64_t>(steps, spec.run().save_steps());
}

BatchOrder PreparedRun::Order() const {
  return BatchOrder(static_cast<uint32_t>(data.train.examples.size()), spec.batch().examples(),
                    spec.data().order() == v1::ORDER_SEQUENTIAL ? EpochOrder::kSequential : EpochOrder::kShuffled,
                    spec.run().seed());
}

int64_t PreparedRun::kl_group_size() const { return spec.objective().kto().kl_group_size(); }

std::vector<const Example*> ReferenceExamples(const PreparedRun& run) {
  std::vector<const Example*> ordered;
  if (!run.needs.reference) return ordered;
  std::set<std::pair<std::vector<int32_t>, std::vector<uint8_t>>> seen;
  std::map<std::vector<int32_t>, size_t> prompts;
  std::vector<std::vector<const Example*>> by_prompt;  // in order of first appearance
  for (const std::vector<Example>* part :
       {&run.data.train.examples, &run.data.train.kl, &run.data.eval.examples, &run.data.eval.kl}) {
    for (const Example& example : *part) {
      if (!seen.emplace(example.ids, example.trained).second) continue;
      const auto [it, added] =
          prompts.try_emplace({example.ids.begin(), example.ids.begin() + example.prompt_length}, by_prompt.size());
      if (added) by_prompt.emplace_back();
      by_prompt[it->second].push_back(&example);
    }
  }
  for (const auto& group : by_prompt) ordered.insert(ordered.end(), group.begin(), group.end());
  return ordered;
}

std::string SpecIdentity(v1::JobSpec spec) {
  spec.clear_export_();
  spec.clear_name();
  spec.mutable_model()->clear_source();
  spec.mutable_data()->clear_train();
  spec.mutable_data()->clear_eval();
  // Folders from before the field was there resume.
  if (spec.run().on_nan() == v1::ON_NAN_STOP) spec.mutable_run()->clear_on_nan();
  return Sha256Hex(CanonicalSpecBytes(spec));
}

absl::StatusOr<PreparedRun> Prepare(const v1::JobSpec& spec) {
  PreparedRun run;
  HONE_ASSIGN_OR_RETURN(run.spec, ResolveSpec(spec));
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Objective> objective, MakeObjective(run.spec));
  run.needs = objective->needs();
  auto files = ModelFiles::Open(run.spec.model().source());
  if (!files.ok()) return Annotate(files.status(), "model.source");
  run.files = *std::move(files);
  HONE_ASSIGN_OR_RETURN(run.rows, ReadRows(run.spec.data().train()));
  const size_t train_rows = run.rows.size();
  if (run.spec.data().has_eval()) {
    HONE_ASSIGN_OR_RETURN(std::vector<Row> eval, ReadRows(run.spec.data().eval()));
    std::move(eval.begin(), eval.end(), std::back_inserter(run.rows));
  }
  HONE_RETURN_IF_ERROR(OpenText(run));

  DataOptions options;
  options.example.objective = run.needs.mismatched ? DataObjective::kKto : DataObjective::kSft;
  options.example.max_length = static_cast<int32_t>(run.spec.data().max_length());
  options.example.max_prompt_length = static_cast<int32_t>(run.spec.data().max_prompt_length());
  if (run.needs.mismatched) options.kl_group_size = static_cast<uint32_t>(run.kl_group_size());
  options.eval_fraction = run.spec.data().eval_fraction();
  options.seed = run.spec.run().seed();
  const TextTools tools{run.tokenizer.get(), run.chat_template.get()};
  const auto vocabulary = static_cast<int32_t>(run.files->config().vocab_size);
  if (run.spec.data().has_eval()) {
    const std::vector<Row> train(run.rows.begin(), run.rows.begin() + static_cast<std::ptrdiff_t>(train_rows));
    const std::vector<Row> eval(run.rows.begin() + static_cast<std::ptrdiff_t>(train_rows), run.rows.end());
    HONE_ASSIGN_OR_RETURN(run.data.train, BuildDataset(train, tools, options, vocabulary));
    HONE_ASSIGN_OR_RETURN(run.data.eval, BuildDataset(eval, tools, options, vocabulary));
  } else {
    auto data = BuildTrainEval(run.rows, tools, options, vocabulary);
    if (!data.ok() && data.status().code() != absl::StatusCode::kInvalidArgument) return data.status();
    if (!data.ok()) return FieldError("data.train", StrCat(run.spec.data().train(), ": ", data.status().message()));
    run.data = *std::move(data);
  }
  HONE_RETURN_IF_ERROR(CountSteps(run));
  return run;
}

}  // namespace hone
