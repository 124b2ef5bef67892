"""Makes tests/golden/io: what transformers, gguf-py, PEFT and bitsandbytes write, and what they read back from it.

Run with the pinned versions of requirements.lock: python tests/golden/make_io.py. CI never runs it.
"""
import json
import os
import shutil

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "io")


def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=50000.0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False))


def qwen2():
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_theta=1000000.0, eos_token_id=[3, 4],
        tie_word_embeddings=True))
    with torch.no_grad():  # fresh biases are zero and fresh norms one: no test could tell them from a bug
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def perturb_norms(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p) * 0.1)


def permute(w, heads):
    """The rotary permutation of llama.cpp's converter."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


T = gguf.GGMLQuantizationType
TYPES = {"self_attn.q_proj": T.Q8_0, "self_attn.k_proj": T.Q4_0, "self_attn.v_proj": T.Q4_1, "self_attn.o_proj": T.F16,
         "mlp.gate_proj": T.BF16, "mlp.up_proj": T.Q4_1, "mlp.down_proj": T.Q4_0, "embed_tokens": T.Q8_0,
         "lm_head": T.F16}


def make_gguf(model, path, expected_path):
    config = model.config
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny")
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_theta)
    w.add_rope_dimension_count(8)
    w.add_uint64("test.u64", 2**63)
    w.add_int8("test.i8", -5)
    w.add_array("test.floats", [0.5, -1.5])
    w.add_array("test.bools", [True, False])
    tokens = [f"t{i}" for i in range(48)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([3 if i < 3 else 1 for i in range(48)])
    w.add_token_merges(["a b"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template("{{ messages[0].content }}")
    expected = {}
    for name, p in model.state_dict().items():
        x = p.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        module = next((m for m in heads if m in name), None)
        stored = permute(x, heads[module]) if module else x
        kind = next((t for m, t in TYPES.items() if m in name), T.F32)
        data = quantize(np.ascontiguousarray(stored), kind) if kind != T.F32 else stored
        w.add_tensor(gguf_name(name), data, raw_dtype=kind)
        back = dequantize(data, kind) if kind != T.F32 else stored
        if module:  # and back, as transformers' loader does
            dim = back.shape[0] // heads[module] // 2
            back = back.reshape(heads[module], dim, 2, *back.shape[1:]).swapaxes(2, 1).reshape(back.shape)
        expected[name] = torch.from_numpy(np.ascontiguousarray(back.astype(np.float32)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(expected, expected_path)


def quant_cases():
    torch.manual_seed(3)
    x = torch.randn(6, 64)
    x[1] *= 1e-6   # subnormal fp16 scales
    x[2, :32] = 0  # a block of zeros
    x[3] = x[3].round() / 2
    x[4] *= 5e3
    x[5] = torch.arange(-32, 32) * 0.5  # ties
    out = {"x": x}
    for name, kind in (("q8_0", T.Q8_0), ("q4_0", T.Q4_0), ("q4_1", T.Q4_1), ("f16", T.F16), ("bf16", T.BF16)):
        q = quantize(x.numpy(), kind)
        out[name] = torch.from_numpy(q.view(np.uint8).copy())
        out[name + ".decoded"] = torch.from_numpy(dequantize(q, kind).astype(np.float32).copy())
    save_file(out, f"{OUT}/quant_cases.safetensors")


def nf4_cases():
    torch.manual_seed(4)
    out = {"dynamic_map": bnb.create_dynamic_map()}
    cases = {"wide": torch.randn(136, 128) * 0.02, "odd": torch.randn(5, 50), "zeros": torch.zeros(2, 64),
             "outliers": torch.randn(4, 64) * torch.tensor([1e-3, 1.0, 50.0, 1e-7]).unsqueeze(1)}
    for name, x in cases.items():
        x = x.to(torch.bfloat16).float()
        out[f"{name}.x"] = x.to(torch.bfloat16)
        q, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
        plain, plain_state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=False)
        assert torch.equal(q, plain)
        out[f"{name}.codes"] = q.flatten()
        out[f"{name}.absmax"] = plain_state.absmax
        out[f"{name}.absmax_codes"] = state.absmax
        out[f"{name}.nested_absmax"] = state.state2.absmax
        out[f"{name}.offset"] = state.offset.reshape(1)
        out[f"{name}.decoded"] = bnb.dequantize_4bit(q, state)
        out[f"{name}.decoded_plain"] = bnb.dequantize_4bit(plain, plain_state)
    save_file({k: v.contiguous() for k, v in out.items()}, f"{OUT}/nf4_cases.safetensors")


def nf4_model():
    # Rows of whole blocks: bitsandbytes 0.50.2 decodes [32, 32] wrongly on the CPU (every block with the first one's scale).
    torch.manual_seed(6)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=24, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True))
    folder = f"{OUT}/llama_nf4"
    os.makedirs(folder)
    state, expected = {}, {}
    for name, p in model.state_dict().items():
        x = p.detach().to(torch.bfloat16)
        if "_proj" not in name:
            state[name] = x
            continue
        nested = "down_proj" not in name  # both forms in one model
        q, quant = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=nested)
        state[name] = q
        for key, value in quant.as_dict(packed=True).items():
            state[f"{name}.{key}"] = value
        quant.dtype = torch.float32
        expected[name] = bnb.dequantize_4bit(q, quant)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, f"{folder}/model.safetensors", {"format": "pt"})
    save_file({k: v.contiguous() for k, v in expected.items()}, f"{OUT}/llama_nf4_expected.safetensors")
    config = json.loads(model.config.to_json_string())
    config["torch_dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=2)


def peft_adapter(model):
    torch.manual_seed(5)
    peft = get_peft_model(model, LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"], rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 3}, task_type="CAUSAL_LM"))
    expected = {}
    with torch.no_grad():
        for name, module in peft.named_modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.normal_(0, 0.1)
                expected[name.removeprefix("base_model.model.") + ".weight"] = module.get_delta_weight("default")
    peft.save_pretrained(f"{OUT}/adapter")
    os.remove(f"{OUT}/adapter/README.md")
    save_file({k: v.detach().contiguous() for k, v in expected.items()}, f"{OUT}/adapter_deltas.safetensors")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    model = llama()
    perturb_norms(model)
    model.to(torch.bfloat16).save_pretrained(f"{OUT}/llama")
    model.float()
    make_gguf(model, f"{OUT}/llama.gguf", f"{OUT}/llama_gguf_expected.safetensors")
    qwen2().to(torch.bfloat16).save_pretrained(f"{OUT}/qwen2_sharded", max_shard_size="16KB")
    quant_cases()
    nf4_cases()
    nf4_model()
    peft_adapter(model)


if __name__ == "__main__":
    main()
