#include "engine/data/kl_pairs.h"

#include <algorithm>

#include "proto/base/status.h"

namespace hone {

absl::StatusOr<std::vector<uint32_t>> KlPartners(uint32_t count, uint32_t group_size) {
  if (group_size < 2) return InvalidArgument("objective.kto.kl_group_size: must be at least 2, got ", group_size);
  if (count < 2)
    return InvalidArgument(
        "KTO needs at least 2 rows (its KL estimate pairs each prompt with another row's completion), got ", count);
  std::vector<uint32_t> partner(count);
  for (uint32_t begin = 0; begin < count;) {
    const uint32_t end = count - begin < group_size ? count : begin + group_size;
    partner[begin] = end - 1;
    for (uint32_t i = begin + 1; i < end; ++i) partner[i] = i - 1;
    if (end - begin == 1) partner[begin] = begin - 1;  // not the first group: count and group_size are at least 2
    begin = end;
  }
  return partner;
}

absl::StatusOr<Example> MakeKlExample(const KtoParts& parts, const Example& example, const KtoParts& partner,
                                      const ExampleOptions& options) {
  KtoParts mixed;
  mixed.prompt.assign(example.ids.begin(), example.ids.begin() + example.prompt_length);
  mixed.answer = partner.answer;
  mixed.answer_trained = partner.answer_trained;
  mixed.raw_text = parts.raw_text;
  mixed.bos = parts.bos;
  mixed.eos = parts.eos;
  mixed.label = parts.label;
  mixed.row = parts.row;
  mixed.line = parts.line;
  auto kl = MakeKtoExample(mixed, options);
  if (!kl.ok()) return Annotate(kl.status(), StrCat("with the completion of row ", partner.row));
  return kl;
}

}  // namespace hone
