// Any bytes as a data file, then through examples and the report with a tokenizer of bytes.
#include <cstdint>
#include <string_view>

#include "engine/data/dataset.h"
#include "engine/data/report.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hone::RowLimits limits;
  limits.max_rows = 64;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto rows = hone::ParseRows(bytes, "fuzz", limits);
  if (!rows.ok()) return 0;
  static const auto tokenizer = hone::Tokenizer::Bytes(256);
  static const auto chat = *hone::ChatTemplate::Parse(
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{{ tools | tojson if tools else '' }}",
      {"", "", {"<end>"}});
  for (const auto objective : {hone::DataObjective::kSft, hone::DataObjective::kKto}) {
    hone::DataOptions options;
    options.example = {objective, 24, 8};
    options.kl_group_size = 3;
    options.eval_fraction = 0.3;
    auto built = hone::BuildTrainEval(*rows, {tokenizer.get(), chat.get()}, options, 256);
    if (!built.ok()) continue;
    hone::ReportOptions report;
    report.kto = objective == hone::DataObjective::kKto;
    (void)hone::ReportToJson(hone::MakeReport(*rows, *built, tokenizer.get(), report)).dump();
    for (const auto* part : {&built->train, &built->eval}) {
      for (const hone::Example& example : part->examples) {
        if (example.ids.size() != example.trained.size() || example.supervised() == 0) __builtin_trap();
      }
    }
  }
  return 0;
}
