#include "engine/model/kept_layers.h"

#include <algorithm>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

// Layers with gate and up on the host that are so many layers apart need but one buffer for them.
constexpr int64_t kApart = 3;
constexpr int64_t kMostParts = 4;  // that a layer's gate and up leave in

// Tensors whose rows are so many times shorter than the residual stream's are not worth a transfer of their own.
constexpr uint64_t kSmallShare = 16;

constexpr int kInputSlot = 0, kRestSlot = 1, kWideSlot = 2;

uint64_t Aligned(uint64_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

uint64_t RowBytes(const Tensor& t) { return static_cast<uint64_t>(t.pitch * BlockBytes(t.dtype)); }

}  // namespace

KeptLayers::KeptLayers(Ops& ops, const Block& block, const Launch& launch, Options options, Arena& saved, Arena* pinned)
    : ops_(ops), block_(block), launch_(launch), options_(std::move(options)), layers_(options_.levels.size()) {
  static_assert(kTransferSlots > kWideSlot);
  const DType act = ops_.activation_dtype();
  const auto count = static_cast<int64_t>(layers_.size());
  const Tensor input{nullptr, act, launch_.rows, options_.hidden_size, options_.hidden_size};
  last_output_ = input;
  for (int64_t layer = options_.first; layer < count; ++layer) {
    Kept& kept = layers_[layer];
    Arena shapes = Arena::Dry("shapes");
    kept.activations = block_.Keep(layer, options_.levels[layer], launch_, shapes);
    kept.activations.x_in = input;
    if (options_.on_host[layer]) ListHostLayer(layer);
  }
  LayOutRings(saved, pinned);
  // Column by column: the forward-only rows of one layer lie where the next ones' rows will.
  std::vector<Column> column;
  auto lay_out = [&](const auto& tensor_of) {
    column.clear();
    for (int64_t layer = options_.first; layer < count; ++layer) {
      Tensor* tensor = tensor_of(layers_[layer].activations);
      if (!options_.on_host[layer] && (tensor->rows > 0)) column.push_back({tensor, RowBytes(*tensor)});
    }
  };
  for (const auto member : kKeptTensors) {
    lay_out([&](BlockActivations& a) { return &(a.*member); });
    LayOutColumn(column, saved);
  }
  lay_out([&](BlockActivations& a) { return &a.x_in; });
  if (inputs_.layers.empty()) column.push_back({&last_output_, RowBytes(last_output_)});
  LayOutColumn(column, saved);
}

// Gate and up, where they are kept: most of what is.
Tensor* KeptLayers::Wide(Kept& kept) const {
  return kept.activations.gate_up.empty() ? nullptr : &kept.activations.gate_up;
}

void KeptLayers::ListHostLayer(int64_t layer) {
  Kept& kept = layers_[layer];
  const auto capacity = static_cast<uint64_t>(launch_.capacity);
  kept.input = inputs_.count();
  inputs_.layers.push_back(layer);
  inputs_.bytes = capacity * RowBytes(kept.activations.x_in);
  if (const Tensor* wide = Wide(kept); wide != nullptr) {
    kept.wide = wides_.count();
    wides_.layers.push_back(layer);
    wides_.bytes = std::max(wides_.bytes, capacity * RowBytes(*wide));
  }
  uint64_t bytes = 0;
  for (const auto member : kKeptTensors) {
    const Tensor& t = kept.activations.*member;
    if (!t.empty() && &t != Wide(kept)) bytes += Aligned(capacity * RowBytes(t));
  }
  if (bytes == 0) return;
  kept.rest = rests_.count();
  rests_.layers.push_back(layer);
  rests_.bytes = std::max(rests_.bytes, bytes);
}

void KeptLayers::LayOutRings(Arena& saved, Arena* pinned) {
  if (inputs_.layers.empty()) return;
  HONE_CHECK(pinned != nullptr);
  for (size_t i = 1; i < wides_.layers.size(); ++i) {
    if (wides_.layers[i] - wides_.layers[i - 1] < kApart) wides_.size = 2;
  }
  for (Ring* ring : {&inputs_, &rests_, &wides_}) {
    const int64_t used = ring == &inputs_ ? 2 : std::min(ring->size, ring->count());
    for (int64_t i = 0; i < used; ++i) ring->buffer[i] = static_cast<char*>(saved.Allocate(ring->bytes));
  }
  for (const int64_t layer : inputs_.layers) LayOutHostLayer(layer, pinned);
  last_output_.data = inputs_.Buffer(inputs_.count());
  wide_here_ = std::max<int64_t>(0, wides_.count() - wides_.size);
}

void KeptLayers::LayOutHostLayer(int64_t layer, Arena* pinned) {
  Kept& kept = layers_[layer];
  const auto backward = static_cast<uint64_t>(launch_.backward_capacity);
  auto piece = [&](Tensor& t, char* data, bool moves) {
    t.data = data;
    return Piece{t.Rows(0, options_.backward_rows), moves ? pinned->Allocate(backward * RowBytes(t)) : nullptr};
  };
  kept.input_piece = piece(kept.activations.x_in, inputs_.Buffer(kept.input), InputMoves(kept));
  if (kept.wide >= 0) kept.wide_piece = piece(*Wide(kept), wides_.Buffer(kept.wide), WideMoves(kept));
  if (kept.rest >= 0) LayOutRest(kept, pinned);
}

// As few pieces as can be: all in one where every row is needed again, else one for each large tensor and one for the
// small ones (statistics), all rows of these.
void KeptLayers::LayOutRest(Kept& kept, Arena* pinned) {
  const auto rows = static_cast<uint64_t>(launch_.rows), needed = static_cast<uint64_t>(options_.backward_rows);
  std::vector<Tensor*> large, small;
  uint64_t host_bytes = 0;
  for (const auto member : kKeptTensors) {
    Tensor& t = kept.activations.*member;
    if (t.rows == 0 || (kept.wide >= 0 && &t == &kept.activations.gate_up)) continue;
    const bool is_small = kSmallShare * RowBytes(t) < RowBytes(kept.activations.x_in);
    (is_small ? small : large).push_back(&t);
    const int64_t most = is_small ? launch_.capacity : launch_.backward_capacity;
    host_bytes += Aligned(static_cast<uint64_t>(most) * RowBytes(t));
  }
  char* at = rests_.Buffer(kept.rest);
  char* host = RestMoves(kept) ? static_cast<char*>(pinned->Allocate(host_bytes)) : nullptr;
  auto add = [&](char* begin, uint64_t bytes) {
    const auto words = static_cast<int64_t>(bytes / sizeof(float));
    if (words > 0) kept.rest_pieces.push_back({{begin, DType::kF32, 1, words, words}, host});
    if (host != nullptr) host += Aligned(bytes);
  };
  auto place = [&](const std::vector<Tensor*>& tensors) {
    for (Tensor* t : tensors) t->data = std::exchange(at, at + Aligned(rows * RowBytes(*t)));
  };
  char* const begin = at;
  place(large);
  char* const small_begin = at;
  place(small);
  if (needed == rows) return add(begin, static_cast<uint64_t>(at - begin));
  for (const Tensor* t : large) add(static_cast<char*>(t->data), needed * RowBytes(*t));
  add(small_begin, static_cast<uint64_t>(at - small_begin));
}

void KeptLayers::LayOutColumn(const std::vector<Column>& column, Arena& saved) {
  // How far rows that are not to be kept reach beyond what is.
  uint64_t kept_bytes = 0, reach = 0;
  for (const Column& c : column) {
    reach = std::max(reach, kept_bytes + static_cast<uint64_t>(launch_.capacity) * c.row_bytes);
    kept_bytes += Aligned(static_cast<uint64_t>(launch_.backward_capacity) * c.row_bytes);
  }
  if (column.empty()) return;
  auto* at = static_cast<char*>(saved.Allocate(std::max(reach, kept_bytes)));
  for (const Column& c : column) {
    c.tensor->data = at;
    at += Aligned(static_cast<uint64_t>(launch_.backward_capacity) * c.row_bytes);
  }
}

void KeptLayers::Start(const Piece& piece, bool fetch, int slot) {
  if (!options_.transfers) return;
  fetch ? ops_.StartFetch(piece.host, piece.tensor, slot) : ops_.StartOffload(piece.tensor, piece.host, slot);
}

void KeptLayers::StartRest(const Kept& kept, bool fetch) {
  for (const Piece& piece : kept.rest_pieces) Start(piece, fetch, kRestSlot);
}

Tensor KeptLayers::Input(int64_t layer) {
  return layer == static_cast<int64_t>(layers_.size()) ? last_output_ : layers_[layer].activations.x_in;
}

// Each piece is started when the one before it has left: the buffer that the next one will be written to is that one's.

void KeptLayers::OffloadInput(int64_t layer) {
  if (layer == static_cast<int64_t>(layers_.size()) || layers_[layer].input < 0) return;
  ops_.FinishTransfer(kInputSlot);
  if (InputMoves(layers_[layer])) Start(layers_[layer].input_piece, false, kInputSlot);
}

void KeptLayers::StartWideParts(size_t count) {
  for (; count > 0 && !wide_parts_.empty(); --count, wide_parts_.pop_front()) {
    Start(wide_parts_.front(), false, kWideSlot);
  }
}

// A part with each layer up to the next owner, so that the smaller pieces of other layers do not wait behind it.
void KeptLayers::OffloadWide(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (kept.wide >= 0) {
    StartWideParts(wide_parts_.size());
    ops_.FinishTransfer(kWideSlot);
  }
  if (kept.wide >= 0 && WideMoves(kept)) {
    const int64_t gap = wides_.layers[kept.wide + 1] - layer - (wides_.size == 1 ? 1 : 0);
    const int64_t parts = std::clamp<int64_t>(gap, 1, kMostParts), rows = kept.wide_piece.tensor.rows;
    const int64_t step = (rows + parts - 1) / parts;
    for (int64_t begin = 0; begin < rows; begin += step) {
      const Tensor part = kept.wide_piece.tensor.Rows(begin, std::min(step, rows - begin));
      wide_parts_.push_back({part, static_cast<char*>(kept.wide_piece.host) + begin * RowBytes(part)});
    }
  }
  StartWideParts(1);
}

const BlockActivations& KeptLayers::BeginForward(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (layer == options_.first) OffloadInput(layer);
  if (kept.wide >= 1 && wides_.size == 1) {
    StartWideParts(wide_parts_.size());
    ops_.FinishTransfer(kWideSlot);
  }
  return kept.activations;
}

void KeptLayers::EndForward(int64_t layer) {
  const Kept& kept = layers_[layer];
  OffloadInput(layer + 1);
  if (kept.rest >= 0) ops_.FinishTransfer(kRestSlot);
  if (RestMoves(kept)) StartRest(kept, false);
  OffloadWide(layer);
}

// The next owner's gate and up, if the layer that had the buffer is above this one.
void KeptLayers::FetchWide(int64_t layer) {
  if (wide_here_ == 0 || wides_.layers[wide_here_ - 1 + wides_.size] <= layer) return;
  ops_.FinishTransfer(kWideSlot);
  Start(layers_[wides_.layers[--wide_here_]].wide_piece, true, kWideSlot);
}

const BlockActivations& KeptLayers::BeginBackward(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (kept.wide >= 0 && kept.wide < wide_here_) FetchWide(layer);  // the layer just above it had the buffer
  if (InputMoves(kept)) ops_.FinishTransfer(kInputSlot);
  if (RestMoves(kept)) ops_.FinishTransfer(kRestSlot);
  // Where the next owner's are on their way already these were waited for.
  if (WideMoves(kept) && kept.wide == wide_here_) ops_.FinishTransfer(kWideSlot);
  // The buffers that the layer before this one (in this order) used are free now.
  if (kept.input > 0) Start(layers_[inputs_.layers[kept.input - 1]].input_piece, true, kInputSlot);
  if (kept.rest > 0 && kept.rest + 1 < rests_.count()) StartRest(layers_[rests_.layers[kept.rest - 1]], true);
  FetchWide(layer);
  return kept.activations;
}

}  // namespace hone
