#include "engine/data/report.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {

namespace {

double RoundTo2(double value) { return std::nearbyint(value * 100) / 100; }

size_t HistogramBin(int32_t length) {
  return static_cast<size_t>(std::bit_width(static_cast<uint32_t>(std::max(1, length) - 1)));
}

// Counts all examples of one part; returns how many repeat an earlier one.
void CountPart(const Dataset& part, std::set<std::string>* seen, DataReport* report) {
  for (const Example& example : part.examples) {
    const int32_t length = example.length();
    report->tokens += static_cast<uint64_t>(length);
    report->supervised_tokens += static_cast<uint64_t>(example.supervised());
    report->truncated_examples += example.cut_prompt + example.cut_completion > 0;
    report->cut_prompt_tokens += example.cut_prompt;
    report->cut_completion_tokens += example.cut_completion;
    report->shortest = report->shortest == 0 ? length : std::min(report->shortest, length);
    report->longest = std::max(report->longest, length);
    const size_t bin = HistogramBin(length);
    if (report->histogram.size() <= bin) report->histogram.resize(bin + 1);
    ++report->histogram[bin];
    Sha256 sha;
    sha.Update({reinterpret_cast<const char*>(example.ids.data()), example.ids.size() * sizeof(int32_t)});
    sha.Update({reinterpret_cast<const char*>(example.trained.data()), example.trained.size()});
    sha.Update(example.label ? "1" : "0");
    report->duplicate_examples += !seen->insert(sha.FinishHex()).second;
  }
}

ExamplePreview Preview(const Example& example, const Tokenizer* tokenizer, const ReportOptions& options) {
  ExamplePreview preview;
  preview.row = example.row;
  if (options.kto) preview.label = example.label;
  const auto shown = std::min<size_t>(example.ids.size(), static_cast<size_t>(std::max(0, options.preview_tokens)));
  preview.shortened = shown < example.ids.size();
  for (size_t i = 0; i < shown; ++i) {
    PreviewToken token{example.ids[i], "", example.trained[i] != 0};
    if (tokenizer != nullptr) token.text = tokenizer->Decode(std::span<const int32_t>(&example.ids[i], 1));
    preview.tokens.push_back(std::move(token));
  }
  return preview;
}

void Warn(DataReport* report) {
  const uint64_t examples = report->train_examples + report->eval_examples;
  const auto share = [&](uint64_t part, uint64_t whole) {
    return std::nearbyint(1000.0 * static_cast<double>(part) / static_cast<double>(whole)) / 10;
  };
  if (report->truncated_examples > 0) {
    report->warnings.push_back(StrCat(report->truncated_examples, " of ", examples, " examples (",
                                      share(report->truncated_examples, examples), "%) were cut to data.max_length; ",
                                      report->cut_prompt_tokens, " prompt and ", report->cut_completion_tokens,
                                      " completion tokens are gone"));
  }
  if (report->duplicate_examples > 0) {
    report->warnings.push_back(StrCat(report->duplicate_examples, " examples are exact copies of earlier ones"));
  }
  if (!report->labels) return;
  const LabelBalance& labels = *report->labels;
  if (labels.desirable == 0 || labels.undesirable == 0) {
    report->warnings.push_back(StrCat("all labels are ", labels.desirable == 0 ? "false" : "true",
                                      ": one-sided data is known to end in garbage"));
  } else if (labels.advised) {
    report->warnings.push_back(
        StrCat("desirable and undesirable rows are out of balance: set desirable_weight within [",
               labels.desirable_range.low, ", ", labels.desirable_range.high, "] or undesirable_weight within [",
               labels.undesirable_range.low, ", ", labels.undesirable_range.high, "]"));
  }
}

}  // namespace

LabelBalance AdviseWeights(uint64_t desirable, uint64_t undesirable, double desirable_weight,
                           double undesirable_weight) {
  LabelBalance balance{desirable, undesirable, desirable_weight, undesirable_weight, false, {}, {}};
  const double d = static_cast<double>(std::max<uint64_t>(1, desirable)),
               u = static_cast<double>(std::max<uint64_t>(1, undesirable));
  const double for_desirable = u * undesirable_weight / d, for_undesirable = d * desirable_weight / u;
  balance.desirable_range = {RoundTo2(for_desirable), RoundTo2(for_desirable * 1.33)};
  balance.undesirable_range = {RoundTo2(for_undesirable / 1.33), RoundTo2(for_undesirable)};
  const auto inside = [](double value, const WeightRange& range) { return range.low <= value && value <= range.high; };
  balance.advised = d != u && !inside(desirable_weight, balance.desirable_range) &&
                    !inside(undesirable_weight, balance.undesirable_range);
  return balance;
}

DataReport MakeReport(const std::vector<Row>& rows, const TrainEvalData& data, const Tokenizer* tokenizer,
                      const ReportOptions& options) {
  DataReport report;
  report.rows = rows.size();
  report.train_examples = data.train.examples.size();
  report.eval_examples = data.eval.examples.size();
  report.kl_examples = data.train.kl.size() + data.eval.kl.size();
  for (const Row& row : rows) ++report.row_kinds[std::string(RowKindName(row.kind))];
  std::set<std::string> seen;
  CountPart(data.train, &seen, &report);
  CountPart(data.eval, &seen, &report);
  const uint64_t examples = report.train_examples + report.eval_examples;
  if (examples > 0) report.mean_length = static_cast<double>(report.tokens) / static_cast<double>(examples);
  if (options.kto) {
    const auto& train = data.train.examples;
    const auto desirable =
        static_cast<uint64_t>(std::count_if(train.begin(), train.end(), [](const Example& e) { return e.label; }));
    report.labels =
        AdviseWeights(desirable, train.size() - desirable, options.desirable_weight, options.undesirable_weight);
  }
  for (size_t i = 0; i < data.train.examples.size() && i < static_cast<size_t>(std::max(0, options.previews)); ++i) {
    report.previews.push_back(Preview(data.train.examples[i], tokenizer, options));
  }
  Warn(&report);
  return report;
}

namespace {

nlohmann::ordered_json PreviewToJson(const ExamplePreview& preview) {
  nlohmann::ordered_json json = {{"row", preview.row}};
  if (preview.label) json["label"] = *preview.label;
  json["shortened"] = preview.shortened;
  json["tokens"] = nlohmann::ordered_json::array();
  for (const PreviewToken& token : preview.tokens) {
    json["tokens"].push_back({{"id", token.id}, {"text", token.text}, {"trained", token.trained}});
  }
  return json;
}

}  // namespace

nlohmann::ordered_json ReportToJson(const DataReport& report) {
  const auto share = [](uint64_t part, uint64_t whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  nlohmann::ordered_json json = {
      {"rows", report.rows},
      {"row_kinds", report.row_kinds},
      {"train_examples", report.train_examples},
      {"eval_examples", report.eval_examples},
      {"kl_examples", report.kl_examples},
      {"tokens", report.tokens},
      {"supervised_tokens", report.supervised_tokens},
      {"supervised_share", share(report.supervised_tokens, report.tokens)},
      {"truncated_examples", report.truncated_examples},
      {"truncated_share", share(report.truncated_examples, report.train_examples + report.eval_examples)},
      {"cut_prompt_tokens", report.cut_prompt_tokens},
      {"cut_completion_tokens", report.cut_completion_tokens},
      {"duplicate_examples", report.duplicate_examples},
      {"length", {{"shortest", report.shortest}, {"mean", report.mean_length}, {"longest", report.longest}}},
  };
  json["histogram"] = nlohmann::ordered_json::array();
  for (size_t bin = 0; bin < report.histogram.size(); ++bin) {
    if (report.histogram[bin] > 0)
      json["histogram"].push_back({{"up_to", uint64_t{1} << bin}, {"examples", report.histogram[bin]}});
  }
  if (report.labels) {
    const LabelBalance& labels = *report.labels;
    json["labels"] = {{"desirable", labels.desirable},
                      {"undesirable", labels.undesirable},
                      {"desirable_weight", labels.desirable_weight},
                      {"undesirable_weight", labels.undesirable_weight},
                      {"desirable_weight_range", {labels.desirable_range.low, labels.desirable_range.high}},
                      {"undesirable_weight_range", {labels.undesirable_range.low, labels.undesirable_range.high}}};
  }
  json["preview"] = nlohmann::ordered_json::array();
  for (const ExamplePreview& preview : report.previews) json["preview"].push_back(PreviewToJson(preview));
  json["warnings"] = report.warnings;
  return json;
}

}  // namespace hone
