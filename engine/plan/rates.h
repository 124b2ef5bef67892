// How fast a machine computes, copies and transfers: what plans are ranked and predicted with. Measured once on the
// opened back end (about a second) and kept in a file per card and driver; a table's for a named card (cards.h). Memory
// never depends on rates.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "hone/v1/plan.pb.h"
#include "kernels/backend.h"
#include "kernels/dry/dry_ops.h"

namespace hone {

// Attention over documents of L tokens was measured on an H100 (forward and backward, 390 to 8,192 tokens) to run
// within 10% at L / (L + 600) and L / (L + 780) of what it does over long ones.
inline constexpr double kHalfRateLength = 650;

struct Rates {
  bool measured = false;
  double gemm_flops = 1e11;               // per second, as all below, at large shapes
  double attention_forward_flops = 3e10;  // over long documents
  double attention_backward_flops = 3e10;
  double copy_bytes = 1e10;     // read plus written
  double link_bytes = 1e10;     // device <-> pinned host, one direction
  double half_rate_tiles = 0;   // DryRates
  double half_rate_length = 0;  // DryRates
  double launch_seconds = 0;    // what a launch adds to the rest
};

v1::PlanRates ToProto(const Rates& rates);
DryRates ToDryRates(const Rates& rates);

// Times products, copies, attention and transfers, in device memory that is given back (256 MiB).
absl::StatusOr<Rates> MeasureRates(Backend& backend);

// What is known of a card and its driver. opened_bytes: what a process holds of it once a back end is open, by the
// driver; 0: unknown.
struct KnownCard {
  Rates rates;
  uint64_t opened_bytes = 0;
};
// What was kept of an earlier time; NotFound, or DataLoss where it is damaged.
absl::StatusOr<KnownCard> KeptCard(const std::string& name, const std::string& driver, const std::string& cache_folder);
// Kept, else measured and kept (folder empty: not kept). A card too full to be measured, or computing in fp32, has the
// table's rates.
KnownCard CardOf(Backend& backend, const std::string& cache_folder);

}  // namespace hone
