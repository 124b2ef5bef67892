"""Holds a built honed-worker against transformers, PEFT and gguf directly, where the files are too large to commit. Prints one line a
check with its figure; exits 1 if any fails.

    python oracle.py WORKER SMOLLM2.gguf DATA

DATA holds datasets/alpaca_en_demo.json; its first four answers of 500 to 900 characters are the gradients' texts. (One set of four
short texts, of 44 to 48 tokens, gave 2.9e-4; there transformers' own fp32 is 2.6e-4 from its float64.)
"""
import json, os, subprocess, sys, tempfile
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

WORKER, GGUF, DATA = sys.argv[1:4]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
failed = []


def check(name, value, limit):
    ok = value <= limit
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {value:.3g} (at most {limit:g})", flush=True)
    if not ok:
        failed.append(name)


def worker(*args, lines=None):
    text = None if lines is None else "".join(json.dumps(line) + "\n" for line in lines)
    out = subprocess.run([WORKER, *args], input=text, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"honed-worker {args[0]}: {out.stderr}")
    return [json.loads(line) for line in out.stdout.splitlines()]


def torch_base():
    return AutoModelForCausalLM.from_pretrained(os.path.dirname(GGUF), gguf_file=os.path.basename(GGUF), torch_dtype=torch.float32,
                                                attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def scores(model, ids):
    z = logits(model, ids)[:-1]
    return torch.log_softmax(z, -1).gather(1, torch.tensor(ids)[1:, None])[:, 0]


def main():
    torch.set_num_threads(2)
    expected = json.load(open(f"{ROOT}/tests/golden/smollm2/expected.json"))
    documents = expected["documents"]
    rows = json.load(open(f"{DATA}/datasets/alpaca_en_demo.json"))
    texts = [r["instruction"] + "\n" + r["output"] for r in rows if 500 < len(r["output"]) < 900][:4]
    training = [line["ids"][:180] for line in worker("tokenize", "--model", GGUF, lines=[{"text": t} for t in texts])]
    with tempfile.TemporaryDirectory() as tmp:
        # One SFT step on four texts, r = 16 on all linears of all layers: every gradient, before clipping.
        rows = [{"ids": one, "trained": [[0, len(one)]]} for one in training]
        open(f"{tmp}/rows.jsonl", "w").write("".join(json.dumps(r) + "\n" for r in rows))
        spec = f"""model: {{source: {GGUF}}}
adapter: {{lora: {{r: 16, lora_alpha: 32}}}}
objective: {{sft: {{}}}}
data: {{train: {tmp}/rows.jsonl, order: sequential}}
batch: {{examples: 4}}
optimizer: {{learning_rate: 1e-4}}
run: {{max_steps: 3}}
export: [peft, merged, "gguf:f16", "gguf:q8_0"]
"""
        open(f"{tmp}/spec.yaml", "w").write(spec)
        events = worker("train", "--spec", f"{tmp}/spec.yaml", "--output", f"{tmp}/out", "--save-gradients", "2")
        initial, grads = load_file(f"{tmp}/out/initial.safetensors"), load_file(f"{tmp}/out/gradients-0.safetensors")
        peft = get_peft_model(torch_base(), LoraConfig(r=16, lora_alpha=32, bias="none", target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        for n, p in peft.named_parameters():
            if "lora_" in n:
                p.data = initial[n.replace(".default", "")].clone()
        count = sum(len(one) - 1 for one in training)
        loss = 0
        for one in training:
            x = torch.tensor([one])
            lp = torch.log_softmax(peft(input_ids=x).logits[0, :-1], -1).gather(1, x[0, 1:, None])
            loss = loss - lp.sum() / count
        loss.backward()
        worst = 0.0
        for n, p in peft.named_parameters():
            if "lora_" not in n:
                continue
            g, h = p.grad, grads[n.replace(".default", "")]
            norm = g.norm().item()
            worst = max(worst, (g - h).norm().item() / norm if norm > 0 else h.norm().item())
        check("SmolLM2: worst relative error of a LoRA gradient over all 210 pairs", worst, 1e-4)
        first = [e for e in events if "step" in e][0]["step"]["loss"]
        check("SmolLM2: loss of the first step", abs(first - loss.item()), 1e-4)
        del peft

        worker("export", "--model", GGUF, "--adapter", f"{tmp}/out/adapter", "--format", "merged:f32", "--output", f"{tmp}/out/merged-f32")
        # What was exported, read by others.
        ids = documents[5]
        tuned = PeftModel.from_pretrained(torch_base(), f"{tmp}/out/adapter").eval()
        wanted = logits(tuned, ids)
        ours = worker("score", "--model", GGUF, "--adapter", f"{tmp}/out/adapter", lines=[{"ids": ids}])[0]["log_probs"]
        check("adapter in PEFT against honed-worker: log p", (scores(tuned, ids) - torch.tensor(ours)).abs().max().item(), 1e-4)
        merged32 = AutoModelForCausalLM.from_pretrained(f"{tmp}/out/merged-f32", torch_dtype=torch.float32, attn_implementation="eager").eval()
        own = logits(PeftModel.from_pretrained(torch_base(), f"{tmp}/out/adapter").merge_and_unload().eval(), ids)
        print(f"     for comparison, in fp32 and by the order of additions alone: PEFT's own merge differs from PEFT by "
              f"{(own - wanted).abs().max().item():.3g}, ours by {(logits(merged32, ids) - wanted).abs().max().item():.3g}, logits up to "
              f"{wanted.abs().max().item():.3g}")
        check("merged:f32 in transformers against PEFT, both in fp64: logits",
              (logits(merged32.double(), ids) - logits(tuned.double(), ids)).abs().max().item(), 1e-4)
        merged = AutoModelForCausalLM.from_pretrained(f"{tmp}/out/merged", torch_dtype=torch.float32, attn_implementation="eager").eval()
        m_scores = worker("score", "--model", f"{tmp}/out/merged", lines=[{"ids": ids}])[0]["log_probs"]
        check("merged (bf16) in transformers against honed-worker: log p", (scores(merged, ids) - torch.tensor(m_scores)).abs().max().item(), 1e-4)
        check("merged (bf16) against base + adapter: logits", (logits(merged, ids) - wanted).abs().max().item(), 1.0)
        from gguf import GGUFReader
        for kind in ("f16", "q8_0"):
            path = f"{tmp}/out/gguf/model-{kind}.gguf"
            check(f"gguf:{kind}: tensors that gguf misses", abs(len(GGUFReader(path).tensors) - 272), 0)
            back = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path), torch_dtype=torch.float32,
                                                        attn_implementation="eager").eval()
            again = worker("score", "--model", path, lines=[{"ids": ids}])[0]["log_probs"]
            check(f"gguf:{kind} in transformers against honed-worker: log p", (scores(back, ids) - torch.tensor(again)).abs().max().item(), 1e-3)
    sys.exit(1 if failed else 0)


main()
