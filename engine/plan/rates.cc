#include "engine/plan/rates.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <functional>
#include <vector>

#include "engine/plan/cards.h"
#include "kernels/arena.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kBytes = uint64_t{288} << 20;
constexpr uint64_t kPinnedBytes = uint64_t{64} << 20;
constexpr double kCudaLaunchSeconds = 2.5e-6;
constexpr int kVersion = 5;  // of the file

// The best of three rounds of `count` runs, seconds each.
double Time(Ops& ops, int count, const std::function<void()>& work) {
  double best = 1e30;
  for (int round = 0; round < 3; ++round) {
    ops.Synchronize();
    const auto begin = Clock::now();
    for (int i = 0; i < count; ++i) work();
    ops.Synchronize();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / count);
  }
  return best;
}

// Values as a model's might be: a product of constants draws less power and runs faster than any real one. The first
// rows are drawn, the rest are copies of them.
void FillWithNoise(Ops& ops, Tensor out) {
  constexpr int64_t kDrawn = 256;
  const int64_t drawn = std::min(kDrawn, out.rows);
  std::vector<uint16_t> host(drawn * out.cols);
  uint32_t state = 1;
  for (uint16_t& value : host) {
    state = state * 1664525u + 1013904223u;                          // Numerical Recipes' generator
    value = static_cast<uint16_t>(0x3C00 | (state >> 16 & 0x80FF));  // either sign, 2^-7 to 2^-5
  }
  ops.Upload(host.data(), out.Rows(0, drawn));
  for (int64_t begin = drawn; begin < out.rows; begin += drawn) {
    const int64_t count = std::min(drawn, out.rows - begin);
    ops.Copy(out.Rows(0, count), out.Rows(begin, count));
  }
}

double ProductSeconds(Ops& ops, Arena arena, int64_t m, int64_t n, int64_t k, int count) {
  const Tensor a = arena.AllocateTensor(DType::kBF16, m, k), b = arena.AllocateTensor(DType::kBF16, n, k);
  const Tensor c = arena.AllocateTensor(DType::kBF16, m, n);
  FillWithNoise(ops, a);
  FillWithNoise(ops, b);
  return Time(ops, count, [&] { ops.Matmul(a, Transpose::kNo, b, Transpose::kYes, c); });
}

// As an 8B's: 2 documents of 2,048 tokens, 32 heads on 8 of 128.
struct AttentionCase {
  static constexpr int64_t kDocument = 2048, kTokens = 4096, kHeads = 32, kKvHeads = 8, kHeadDim = 128;
  Tensor q, k, v, out, lse, d_out, delta, dq, dk, dv, device_segments;
  std::vector<Segment> segments;
  AttentionShape shape{kHeads, kKvHeads, kHeadDim, 0.088388f, 0, 0};

  AttentionCase(Ops& ops, Arena& arena) {
    for (Tensor* t : {&q, &out, &d_out, &dq}) *t = arena.AllocateTensor(DType::kBF16, kTokens, kHeads * kHeadDim);
    for (Tensor* t : {&k, &v, &dk, &dv}) *t = arena.AllocateTensor(DType::kBF16, kTokens, kKvHeads * kHeadDim);
    for (Tensor* t : {&lse, &delta}) *t = arena.AllocateTensor(DType::kF32, kTokens, kHeads);
    for (Tensor t : {q, k, v, d_out}) FillWithNoise(ops, t);
    for (int32_t begin = 0; begin < kTokens; begin += kDocument) {
      segments.push_back({begin, kDocument, begin, kDocument, 0, 0});
    }
    device_segments = arena.AllocateTensor(DType::kI32, static_cast<int64_t>(segments.size()), 6);
    ops.Upload(segments.data(), device_segments);
  }
  Segments view() const { return {segments, device_segments}; }
  double pairs() const { return static_cast<double>(segments.size()) * kHeads * 0.5 * kDocument * (kDocument + 1.0); }
};

void MeasureAttention(Ops& ops, Arena arena, Rates& rates) {
  AttentionCase c(ops, arena);
  const double forward = Time(ops, 4, [&] { ops.Attention(c.q, c.k, c.v, c.view(), c.shape, c.out, c.lse); });
  const double backward = Time(ops, 4, [&] {
    ops.AttentionBackward(c.d_out, c.q, c.k, c.v, c.out, c.lse, c.view(), c.shape, c.delta, c.dq, c.dk, c.dv);
  });
  rates.half_rate_length = kHalfRateLength;
  const double to_long = 1 + kHalfRateLength / AttentionCase::kDocument;
  rates.attention_forward_flops = to_long * 4 * AttentionCase::kHeadDim * c.pairs() / forward;
  rates.attention_backward_flops = to_long * 10 * AttentionCase::kHeadDim * c.pairs() / backward;
}

std::string FileOf(const std::string& card, const std::string& driver, const std::string& folder) {
  std::string name = StrCat(card, "-", driver);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return StrCat(folder, "/rates-", name, ".json");
}

// Each rate by its name in the file.
template <typename Visit>
void VisitRates(Rates& rates, const Visit& visit) {
  visit("gemm_flops", rates.gemm_flops);
  visit("attention_forward_flops", rates.attention_forward_flops);
  visit("attention_backward_flops", rates.attention_backward_flops);
  visit("copy_bytes", rates.copy_bytes);
  visit("link_bytes", rates.link_bytes);
  visit("half_rate_tiles", rates.half_rate_tiles);
  visit("half_rate_length", rates.half_rate_length);
  visit("launch_seconds", rates.launch_seconds);
}

}  // namespace

v1::PlanRates ToProto(const Rates& rates) {
  v1::PlanRates out;
  out.set_measured(rates.measured);
  out.set_gemm_flops(rates.gemm_flops);
  out.set_attention_forward_flops(rates.attention_forward_flops);
  out.set_attention_backward_flops(rates.attention_backward_flops);
  out.set_copy_bytes(rates.copy_bytes);
  out.set_link_bytes(rates.link_bytes);
  return out;
}

DryRates ToDryRates(const Rates& rates) {
  return {rates.gemm_flops,
          rates.copy_bytes,
          rates.half_rate_tiles,
          rates.attention_forward_flops,
          rates.attention_backward_flops,
          rates.half_rate_length};
}

absl::StatusOr<Rates> MeasureRates(Backend& backend) {
  Ops& ops = backend.ops();
  HONE_ASSIGN_OR_RETURN(const auto block, backend.Reserve(kBytes));
  HONE_ASSIGN_OR_RETURN(const auto pinned, backend.ReservePinned(kPinnedBytes));
  const Arena arena("rates", block->data(), kBytes);
  Rates rates;
  rates.measured = true;
  rates.launch_seconds = kCudaLaunchSeconds;
  auto measure = [&] {
    constexpr int64_t kSide = 4096, kWide = 14336, kSmall = 256, kTile = 128;
    rates.gemm_flops = 2.0 * kSide * kSide * kWide / ProductSeconds(ops, arena, kSide, kWide, kSide, 4);
    // A small product's share of the rate says how many tiles fill the card: rate / (1 + half / tiles).
    const double small = ProductSeconds(ops, arena, kSmall, kSide, kSide, 20);
    const double share = 2.0 * kSmall * kSide * kSide / small / rates.gemm_flops;
    const double tiles = static_cast<double>(kSmall / kTile * (kSide / kTile));
    rates.half_rate_tiles = std::clamp(tiles * (1 / share - 1), 0.0, 1000.0);

    Arena copies = arena;
    const Tensor from = copies.AllocateTensor(DType::kF32, 1 << 14, 1 << 11);
    const Tensor to = copies.AllocateTensor(DType::kF32, 1 << 14, 1 << 11);
    ops.Fill(from, 1);
    const double bytes = 4.0 * static_cast<double>(from.elements());
    rates.copy_bytes = 2 * bytes / Time(ops, 5, [&] { ops.Copy(from, to); });
    const Tensor part = from.Rows(0, static_cast<int64_t>(kPinnedBytes) / 4 / from.cols);
    const double transfer = Time(ops, 2, [&] {
      ops.StartOffload(part, pinned->data(), 0);
      ops.FinishTransfer(0);
    });
    rates.link_bytes = static_cast<double>(kPinnedBytes) / transfer;
    MeasureAttention(ops, arena, rates);
  };
  backend.BeginWarmUp();
  measure();
  backend.EndWarmUp();
  measure();
  return rates;
}

absl::StatusOr<KnownCard> KeptCard(const std::string& name, const std::string& driver, const std::string& folder) {
  if (folder.empty()) return NotFound("nothing is kept");
  const std::string path = FileOf(name, driver, folder);
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 16));
  HONE_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text));
  const auto number = [&](const char* key, double* out) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_number()) return false;
    *out = found->get<double>();
    return *out >= 0 && *out < 1e18;
  };
  double version = 0, opened = 0;
  if (!json.is_object() || !number("version", &version) || version != kVersion || !number("opened_bytes", &opened)) {
    return DataLoss(path, ": of another version");
  }
  KnownCard card;
  card.rates.measured = true;
  card.opened_bytes = static_cast<uint64_t>(opened);
  bool valid = true;
  VisitRates(card.rates, [&](const char* key, double& rate) { valid = number(key, &rate) && valid; });
  if (!valid || card.rates.gemm_flops <= 0 || card.rates.copy_bytes <= 0 || card.rates.link_bytes <= 0 ||
      card.rates.attention_forward_flops <= 0 || card.rates.attention_backward_flops <= 0) {
    return DataLoss(path, ": damaged");
  }
  return card;
}

KnownCard CardOf(Backend& backend, const std::string& cache_folder) {
  const DType dtype = backend.ops().activation_dtype();
  const KnownCard unmeasured{TableRates(backend.name(), dtype), backend.ProcessBytes()};
  if (dtype != DType::kBF16) return unmeasured;
  if (auto kept = KeptCard(backend.name(), backend.driver(), cache_folder); kept.ok()) return *kept;
  KnownCard card = unmeasured;
  const absl::StatusOr<Rates> measured = MeasureRates(backend);
  if (!measured.ok()) return unmeasured;
  card.rates = *measured;
  if (cache_folder.empty()) return card;
  nlohmann::ordered_json json = {{"version", kVersion}, {"opened_bytes", card.opened_bytes}};
  VisitRates(card.rates, [&](const char* name, double& rate) { json[name] = rate; });
  // If it cannot be written it is measured another time.
  (void)WriteFileDurably(FileOf(backend.name(), backend.driver(), cache_folder), json.dump(2) + "\n");
  return card;
}

}  // namespace hone
