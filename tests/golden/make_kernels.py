"""Golden values of stored weights as their own libraries decode them: bitsandbytes (NF4, plain and nested absmax) and gguf.

Run with the pinned environment of requirements.lock:  python tests/golden/make_kernels.py
Writes tests/golden/kernels/<case>.<part>, raw little-endian arrays.
"""
import pathlib

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch

OUT = pathlib.Path(__file__).parent / "kernels"


def save(name, array):
    (OUT / name).write_bytes(np.ascontiguousarray(array).tobytes())


def nf4(name, rows, cols, nested):
    torch.manual_seed(rows)
    weight = torch.randn(rows, cols) * torch.logspace(-3, 0, rows)[:, None]
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
    decoded = bnb.dequantize_4bit(codes, state)
    assert decoded.dtype == torch.float32
    save(f"{name}.codes", codes.numpy())
    save(f"{name}.decoded", decoded.numpy())
    save(f"{name}.bf16", bnb.dequantize_4bit(codes, with_dtype(state, torch.bfloat16)).view(torch.int16).numpy())
    if nested:
        save(f"{name}.absmax_codes", state.absmax.numpy())
        save(f"{name}.nested_code", state.state2.code.numpy())
        save(f"{name}.nested_absmax", state.state2.absmax.numpy())
        save(f"{name}.nested_offset", np.float32(state.offset.item()))
    else:
        save(f"{name}.absmax", state.absmax.numpy())


def with_dtype(state, dtype):
    state.dtype = dtype
    return state


def blocks(name, kind):
    rng = np.random.default_rng(7)
    weight = (rng.standard_normal((9, 96)) * np.logspace(-6, 1, 9)[:, None]).astype(np.float32)
    stored = gguf.quants.quantize(weight, kind)
    save(f"{name}.codes", stored)
    save(f"{name}.decoded", gguf.quants.dequantize(stored, kind).astype(np.float32))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    nf4("nf4_nested", 170, 110, True)  # 293 blocks: two nested blocks, the last block and row ends ragged
    nf4("nf4_plain", 9, 70, False)
    blocks("q8_0", gguf.GGMLQuantizationType.Q8_0)
    blocks("q4_0", gguf.GGMLQuantizationType.Q4_0)
    blocks("q4_1", gguf.GGMLQuantizationType.Q4_1)
    blocks("f16", gguf.GGMLQuantizationType.F16)
    blocks("bf16", gguf.GGMLQuantizationType.BF16)
