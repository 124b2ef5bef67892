#!/usr/bin/env python3
"""The yardstick for the CPU speed of a KTO job: plain PyTorch + PEFT in fp32, computing what TRL 0.24's KTOTrainer computes.

A step is TRL's: four forwards (the KL rows and the rows, each with the adapter and with it disabled) and one backward, on
batches padded to their longest row, logits of every position. What TRL adds around that (Trainer, collators, logging of
logits) is left out, so this is a little faster than TRL itself. Tokens per second counts the rows' own tokens (prompt and
completion, neither padding nor KL rows) over the whole training time.

The quickstart's job (deploy/quickstart/job.yaml):

  python tests/bench/pytorch_kto.py --model FOLDER/FILE.gguf --data deploy/quickstart/train.jsonl --steps 18 \\
    --layers 15-29 --beta 0.5 --undesirable-weight 0.2 --learning-rate 3e-4

Needs the packages of tests/golden/requirements.lock. Prints one JSON line per step and a summary line.
"""
import argparse
import json
import os
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    if path.endswith(".gguf"):
        folder, file = os.path.split(path)
        arguments = dict(pretrained_model_name_or_path=folder or ".", gguf_file=file)
    else:
        arguments = dict(pretrained_model_name_or_path=path)
    model = AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(**arguments)


def encode(tokenizer, row, max_length):
    """Token ids of prompt and completion; of a chat completion the content and its end-of-turn are trained."""
    if "prompt_ids" in row:
        prompt, completion = row["prompt_ids"], row["completion_ids"]
    else:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)
        text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        start = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        assert text.startswith(start)
        completion = tokenizer(text[len(start):].rstrip("\n"), add_special_tokens=False).input_ids
    assert len(prompt) + len(completion) <= max_length, "this yardstick does not truncate"
    return prompt, completion, row["label"]


def pad(pairs):
    width = max(len(p) + len(c) for p, c in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, (p, c) in enumerate(pairs):
        n = len(p) + len(c)
        ids[i, :n] = torch.tensor(p + c)
        attention[i, :n] = 1
        labels[i, len(p):n] = torch.tensor(c)
    return ids, attention, labels


def log_probs(model, batch):
    ids, attention, labels = batch
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    mask = targets != -100
    picked = torch.gather(logits.log_softmax(-1), 2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (picked * mask).sum(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--layers", help="FIRST-LAST: only these layers get adapters (default: all)")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--desirable-weight", type=float, default=1.0)
    parser.add_argument("--undesirable-weight", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--save", help="folder; the adapter is saved there at the end")
    parser.add_argument("--save-at", type=int, nargs="*", default=[], help="also after these steps, in FOLDER-<step>")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    base, tokenizer = load(arguments.model)
    layers = None
    if arguments.layers:
        first, last = arguments.layers.split("-")
        layers = list(range(int(first), int(last) + 1))
    config = LoraConfig(r=arguments.rank, lora_alpha=arguments.alpha, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                        layers_to_transform=layers, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with open(arguments.data) as file:
        rows = [encode(tokenizer, json.loads(line), 1024) for line in file]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.learning_rate,
                                  betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = int(arguments.warmup_ratio * arguments.steps + 0.999999)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / warmup if step < warmup else max(
        0.0, (arguments.steps - step) / max(1, arguments.steps - warmup)))

    tokens = padded = 0
    begin = time.monotonic()
    for step in range(arguments.steps):
        n = arguments.examples
        batch = [rows[(step * n + i) % len(rows)] for i in range(n)]
        own = pad([(p, c) for p, c, _ in batch])
        mismatched = pad([(batch[i][0], batch[i - 1][1]) for i in range(n)])
        label = torch.tensor([good for _, _, good in batch])
        with torch.no_grad():
            policy_kl = log_probs(model, mismatched)
        policy = log_probs(model, own)
        with torch.no_grad(), model.disable_adapter():
            reference = log_probs(model, own)
            reference_kl = log_probs(model, mismatched)
        kl = (policy_kl - reference_kl).mean().clamp(min=0)
        ratio = policy - reference
        loss = torch.where(label, arguments.desirable_weight * (1 - torch.sigmoid(arguments.beta * (ratio - kl))),
                           arguments.undesirable_weight * (1 - torch.sigmoid(arguments.beta * (kl - ratio)))).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate = schedule.get_last_lr()[0]
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(p) + len(c) for p, c, _ in batch)
        padded += own[0].numel()
        rewards = arguments.beta * ratio.detach()
        print(json.dumps({
            "step": step + 1, "loss": loss.item(), "kl": kl.item(), "grad_norm": norm.item(), "learning_rate": rate,
            "rewards_chosen": rewards[label].mean().item(), "rewards_rejected": rewards[~label].mean().item(),
            "seconds": time.monotonic() - begin}), flush=True)
        if step + 1 in arguments.save_at:
            model.save_pretrained(f"{arguments.save}-{step + 1}")
    seconds = time.monotonic() - begin
    if arguments.save:
        model.save_pretrained(arguments.save)
    print(json.dumps({"steps": arguments.steps, "tokens": tokens, "padded_tokens": padded, "training_seconds": seconds,
                      "tokens_per_second": tokens / seconds, "threads": arguments.threads, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
