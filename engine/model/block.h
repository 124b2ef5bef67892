// One block of the decoder (attention and gated unit, both behind a norm): forward, what it keeps, recomputation and
// backward, as plain call sequences over Ops. Holds no weights and no memory: weights come with each call, buffers from
// arenas. Not here: embedding, head, order of layers, transfers (decoder.h).
#pragma once

#include "engine/model/decoder_options.h"
#include "engine/model/launch.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

// What the forward pass of a layer leaves for its backward pass. Empty: not kept, computed again. R is the spare of the
// group that reads or (gate_up) writes the buffer.
struct BlockActivations {
  Tensor x_in;     // act [T, H]            always
  Tensor n1;       // act [T, H + R]        normed input of q, k, v
  Tensor rstd1;    // fp32 [T, 1]
  Tensor qkv;      // act [T, Nq + 2 Nk]    after rotary; with qk-norm before both
  Tensor qk;       // act [T, Nq + Nk]      with qk-norm: after it and rotary
  Tensor q_rstd;   // fp32 [T, heads]       with qk-norm
  Tensor k_rstd;   // fp32 [T, kv_heads]
  Tensor attn;     // act [T, Nq + R]       input of o
  Tensor lse;      // fp32 [T, heads]
  Tensor x_mid;    // act [T, H]            after attention's residual
  Tensor n2;       // act [T, H + R]        normed input of gate, up
  Tensor rstd2;    // fp32 [T, 1]
  Tensor gate_up;  // act [T, 2F + R]      its gradient replaces it; without h its spare columns keep those of h
  Tensor h;        // act [T, F + R]       input of down
};

// All but x_in.
inline constexpr Tensor BlockActivations::*kKeptTensors[] = {
    &BlockActivations::n1,     &BlockActivations::rstd1,  &BlockActivations::qkv,   &BlockActivations::qk,
    &BlockActivations::q_rstd, &BlockActivations::k_rstd, &BlockActivations::attn,  &BlockActivations::lse,
    &BlockActivations::x_mid,  &BlockActivations::n2,     &BlockActivations::rstd2, &BlockActivations::gate_up,
    &BlockActivations::h};

// Where keys and values of earlier tokens lie, for generation.
struct CacheSlot {
  Tensor k, v;  // act [cache rows, Nk], v right of k in one buffer
  Tensor rows;  // kI32 [1, T]  where this launch's go
};

struct BlockCall {
  int64_t layer = 0;
  const LayerWeights* weights = nullptr;
  const Launch* launch = nullptr;
  AdapterMode mode = AdapterMode::kOn;
  const CacheSlot* cache = nullptr;  // null: keys and values are the launch's own
  bool refresh = true;               // put the adapter's values into weights that are kept decoded; else they are there
  const Lora* stored = nullptr;      // its values as act; given: weights are used as stored (StoredProduct)
};

class Block {
 public:
  Block(Ops& ops, const DecoderConfig& config, const Lora* lora, const DecoderOptions& options)
      : ops_(ops), config_(config), lora_(lora), options_(options) {}

  // Buffers in `arena` for what a forward pass at `level` keeps, without x_in.
  BlockActivations Keep(int64_t layer, Recompute level, const Launch& launch, Arena& arena) const;
  // attn and lse alone, for kBlock.
  BlockActivations KeepAttention(int64_t layer, const Launch& launch, Arena& arena) const;

  // x_out [T, H] <- the block of kept.x_in; both may be one where nothing is kept.
  void Forward(const BlockCall& call, const BlockActivations& kept, Tensor x_out, Arena& scratch);
  // dx_aug act [T, H + OutputSpare]: the gradient of the output, replaced by that of the input (where
  // `input_gradient`). Adds to the adapter's gradients. The launch may have fewer rows than the forward pass had.
  void Backward(const BlockCall& call, const BlockActivations& kept, Tensor dx_aug, bool input_gradient,
                Arena& scratch);

  // Spare columns beside the gradient of the residual stream: o and down write to it.
  int64_t OutputSpare(int64_t layer) const;
  int64_t Spare(int64_t layer, GroupKind kind) const { return SpareColumns(ops_, lora_, layer, kind); }

 private:
  struct Sizes {
    int64_t h, f, d, nq, nk;
  };
  struct Shared;  // decoded weights that outlive one use
  Sizes sizes() const;
  AttentionShape attention() const;
  LinearGroup Group(const BlockCall& call, GroupKind kind) const;
  int64_t ChunkRows(const BlockActivations& kept, int64_t rows) const;
  bool Apart(const LinearGroup& gate_up) const { return options_.decode_apart && gate_up.decoded.empty(); }

  void LayOutDecoded(const BlockCall& call, const LinearGroup& group, Arena& scratch);
  bool JoinsGlu(const BlockCall& call, const LinearGroup& gate_up) const;

  Tensor Qk(const BlockActivations& a) const { return config_.qk_norm ? a.qk : a.qkv.Cols(0, sizes().nq + sizes().nk); }

  void NormedQkv(const BlockCall& call, BlockActivations a, const Shared& shared, Arena& scratch);
  void QkNorm(const BlockCall& call, const BlockActivations& a);
  void Qkv(const BlockCall& call, BlockActivations& a, const Shared& shared, Arena& scratch);
  void AttentionOutput(const BlockCall& call, const BlockActivations& a);
  void GateUp(const BlockCall& call, Tensor x_mid, Tensor n2, Tensor rstd2, Tensor gate_up, Tensor shared,
              Arena& scratch);
  Tensor DownColumns(const LinearGroup& down, const BlockActivations& a) const;
  void MlpForward(const BlockCall& call, const BlockActivations& kept, Tensor x_mid, Tensor x_out, Arena& scratch);

  void MlpBackward(const BlockCall& call, const BlockActivations& a, Tensor x_mid, Tensor dx_aug, Arena& scratch);
  void MlpBackwardRows(const BlockCall& call, BlockActivations a, Tensor x_mid, Tensor dx_aug, int64_t capacity,
                       const Shared& shared, Arena& scratch);
  void DownBackward(const BlockCall& call, const BlockActivations& a, bool gate_up_kept, Tensor dx_aug,
                    int64_t capacity, Tensor shared, Arena& scratch);
  void GateUpBackward(const BlockCall& call, BlockActivations a, Tensor d_n2, int64_t capacity, Tensor shared,
                      Arena& scratch);
  void AttentionBackward(const BlockCall& call, BlockActivations a, Tensor dx_aug, bool input_gradient,
                         const Shared& shared, Arena& scratch);
  void QkvBackward(const BlockCall& call, BlockActivations a, Tensor d_qkv, Tensor dx, bool input_gradient,
                   const Shared& shared, Arena& scratch);

  // Forward: y <- x' W'^T (+ addend), and the spare columns of x' before it.
  void Product(const BlockCall& call, GroupKind kind, Tensor shared, Tensor x_aug, Tensor addend, Tensor y,
               Arena& scratch);

  // f(W') with W' in scratch for the call unless it is shared already.
  template <typename F>
  void WithWeight(const LinearGroup& group, AdapterMode mode, Tensor shared, Arena& scratch, const F& f) {
    ArenaScope scope(scratch);
    f(shared.empty() ? DecodedWeight(ops_, group, mode, scratch) : shared);
  }

  Ops& ops_;
  const DecoderConfig& config_;
  const Lora* lora_;
  DecoderOptions options_;
};

struct Block::Shared {
  Tensor qkv, o, gate_up, down;
};

}  // namespace hone
