// KTO's mismatched pairs (prompt i with another row's completion), built once, at ingest, and stored with the example.
// Not here: the KL estimate itself (engine/objective).
//
// As TRL 0.24: rows in data-set order, consecutive groups of group_size, completions rotated by one inside a group: row
// i gets the completion of row i - 1, a group's first row that of its last. The one deliberate difference: a last group
// of one, which TRL pairs with itself, takes the previous row's completion (a data set of one row is refused).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/examples.h"

namespace hone {

// partner[i]: the row whose completion row i's KL example has; never i. Errors: count < 2, group_size < 2.
absl::StatusOr<std::vector<uint32_t>> KlPartners(uint32_t count, uint32_t group_size);

// The KL example of `parts`: as TRL, its prompt as already truncated and with BOS (examples[i]'s), followed by the
// partner's completion before truncation; then truncated again by the same rule and EOS added. label and row are
// `parts`'.
absl::StatusOr<Example> MakeKlExample(const KtoParts& parts, const Example& example, const KtoParts& partner,
                                      const ExampleOptions& options);

}  // namespace hone
