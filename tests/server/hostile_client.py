#!/usr/bin/python3
"""Bad input through the daemon's front door: each must be a clear error, nothing may be stored, and the daemon must serve on.

    hostile_client.py --socket /path/honed.sock [--model /path/to/a/good/model] [--hostile FOLDER]

Learns the services by reflection, as reflection_client.py does. Prints each error as a client sees it; exits 1 if anything was
accepted, crashed a worker, or stopped the daemon.
"""
import argparse
import copy
import json
import os
import struct
import sys
import tempfile

import grpc
from google.protobuf import json_format

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from reflection_client import Reflected  # noqa: E402


def lying_files(folder):
    """Model folders and files whose headers lie; (name, path) pairs."""
    def write(path, data):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def tensors(name, header, config=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        where = os.path.join(folder, name)
        write(os.path.join(where, "model.safetensors"), struct.pack("<Q", len(text)) + text + b"\0" * 64)
        write(os.path.join(where, "config.json"), json.dumps(config or {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True}).encode())
        return where

    f32 = {"dtype": "F32", "shape": [4, 4]}
    big = 2 ** 63
    yield "overlapping tensors", tensors("overlap", {"a": dict(f32, data_offsets=[0, 64]), "b": dict(f32, data_offsets=[0, 64])})
    yield "offset past the end", tensors("past", {"a": dict(f32, data_offsets=[0, 2 ** 62])})
    yield "overflowing shape", tensors("shape", {"a": {"dtype": "F32", "shape": [big, big], "data_offsets": [0, 64]}})
    yield "header that is no JSON", tensors("junk", b"{" * 1000)
    where = os.path.join(folder, "huge")
    write(os.path.join(where, "model.safetensors"), struct.pack("<Q", 2 ** 60))
    write(os.path.join(where, "config.json"), open(os.path.join(folder, "overlap", "config.json"), "rb").read())
    yield "header of 2^60 bytes", where
    yield "unknown model type", tensors("type", {"a": dict(f32, data_offsets=[0, 64])}, {"model_type": "nobody"})
    yield "GGUF with 10^9 tensors", write(os.path.join(folder, "many.gguf"), b"GGUF" + struct.pack("<IQQ", 3, 10 ** 9, 0))
    yield "GGUF with 2^63 keys", write(os.path.join(folder, "keys.gguf"), b"GGUF" + struct.pack("<IQQ", 3, 1, big))
    yield "GGUF string of 2^62 bytes", write(os.path.join(folder, "string.gguf"),
                                             b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2 ** 62))
    yield "GGUF cut short", write(os.path.join(folder, "short.gguf"), b"GGUF\x03")
    # Sizes that fit one by one and whose sum wraps around (the class of CVE-2025-53630).
    tensor = lambda name, elements, offset: struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, elements, 0, offset)
    yield "GGUF sizes whose sum wraps", write(os.path.join(folder, "sum.gguf"), b"GGUF" + struct.pack("<IQQ", 3, 3, 0) +
                                              tensor(b"a", 2 ** 61, 0) + tensor(b"b", 2 ** 61, 2 ** 63) + tensor(b"c", 8, 0) + b"\0" * 96)
    # Weights as a pickle: never opened (CVE-2025-32434 and its like). It would make a file that main() looks for.
    for name in ("pytorch_model.bin", "model.pt"):
        where = os.path.join(folder, "pickle-" + name)
        write(os.path.join(where, name), b"cos\nsystem\n(S'touch " + os.path.join(folder, "EXECUTED").encode() + b"'\ntR.")
        write(os.path.join(where, "config.json"), open(os.path.join(folder, "overlap", "config.json"), "rb").read())
        yield "a pickle " + name, where
        yield "a pickle " + name + ", by its path", os.path.join(where, name)
    # A configuration that names code (CVE-2026-4372): a name that nobody knows, and nothing is fetched or run.
    where = tensors("code", {"a": dict(f32, data_offsets=[0, 64])}, {
        "model_type": "mine", "architectures": ["MineForCausalLM"], "trust_remote_code": True,
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}})
    write(os.path.join(where, "evil.py"), f"open({os.path.join(folder, 'EXECUTED')!r}, 'w')".encode())
    yield "a configuration that names code", where
    yield "an empty folder", os.path.dirname(write(os.path.join(folder, "empty", "x"), b""))


def bad_rows(folder):
    """Data files that no job can use; (name, objective, path) triples."""
    def rows(name, text):
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(text)
        return path

    yield "a missing label", "kto", rows("label.jsonl", b'{"prompt": "a", "completion": "b", "label": true}\n{"prompt": "a", "completion": "b"}\n')
    yield "a line that is no JSON", "sft", rows("json.jsonl", b'{"text": "a"}\n{"text": \n')
    yield "invalid UTF-8", "sft", rows("utf8.jsonl", b'{"text": "a"}\n{"text": "\xff\xfe"}\n')
    yield "nothing to learn", "sft", rows("none.jsonl", b'{"ids": [5, 6, 7], "trained": []}\n')
    yield "an empty file", "sft", rows("empty.jsonl", b"")
    yield "wrong types", "sft", rows("types.jsonl", b'{"text": 7}\n')
    yield "deep nesting", "sft", rows("deep.jsonl", b'{"messages": ' + b"[" * 100000 + b"\n")


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--socket", required=True)
    flags.add_argument("--model", help="default: a small random one")
    flags.add_argument("--hostile")
    flags = flags.parse_args()
    channel = grpc.insecure_channel("unix:" + flags.socket)
    server = Reflected(channel)
    create, create_request = server.method("hone.v1.Jobs", "CreateJob")
    listing, list_request = server.method("hone.v1.Jobs", "ListJobs")
    inspect, import_request = server.method("hone.v1.Models", "ImportModel")
    models, models_request = server.method("hone.v1.Models", "ListModels")
    problems = []

    def expect_error(name, call):
        try:
            call()
            problems.append(name + ": accepted")
            print(f"{name}: ACCEPTED")
        except grpc.RpcError as error:
            details = b"".join(v for k, v in error.trailing_metadata() or () if k == "grpc-status-details-bin")
            crashed = b"WORKER_CRASHED" in details
            if crashed or error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
                problems.append(f"{name}: {error.code().name} {error.details()}")
            print(f"{name}: {error.code().name}: {error.details()}")

    with tempfile.TemporaryDirectory() as folder:
        good = os.path.join(folder, "good.jsonl")
        with open(good, "w") as file:
            file.write('{"text": "Once upon a time"}\n' * 8)
        lying = list(lying_files(folder))
        model = flags.model or "random:" + os.path.join(folder, "overlap", "config.json")
        spec = {"model": {"source": model}, "objective": {"sft": {}}, "data": {"train": good},
                "batch": {"examples": 2}, "optimizer": {"learningRate": 1e-4}, "run": {"maxSteps": 1}}

        def submit(change):
            wanted = copy.deepcopy(spec)
            change(wanted)
            request = create_request()
            json_format.ParseDict(wanted, request.spec)
            return create(request, timeout=120)

        for name, path in lying:
            expect_error(name, lambda path=path: inspect(import_request(path=path), timeout=60))
            expect_error(name + ", as a job's model", lambda path=path: submit(lambda s: s["model"].update(source=path)))
        for name, objective, path in bad_rows(folder):
            expect_error(name, lambda path=path, objective=objective: submit(
                lambda s: (s["data"].update(train=path), s.update(objective={objective: {}}))))
        expect_error("lr = NaN", lambda: submit(lambda s: s["optimizer"].update(learningRate="NaN")))
        expect_error("r = 0", lambda: submit(lambda s: s.update(adapter={"lora": {"r": 0}})))
        expect_error("an unknown target", lambda: submit(lambda s: s.update(adapter={"lora": {"targetModules": ["nobody"]}})))
        expect_error("an unknown export", lambda: submit(lambda s: s.update(export=["onnx"])))
        expect_error("a relative path", lambda: submit(lambda s: s["data"].update(train="rows.jsonl")))
        if os.path.exists(os.path.join(folder, "EXECUTED")):
            problems.append("code from a file was run")
        if flags.hostile:
            for root, _, names in os.walk(flags.hostile):
                for name in sorted(names):
                    if name.endswith(".safetensors"):
                        path = os.path.join(root, name)
                        expect_error(name + " alone", lambda path=path: inspect(import_request(path=path), timeout=60))
        if len(listing(list_request(), timeout=10).jobs) or len(models(models_request(), timeout=10).models):
            problems.append("something was stored")
        job = submit(lambda s: None)
        print("and a good job is still taken:", job.name)
    for problem in problems:
        print("PROBLEM", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
