"""Makes tests/golden/model: two-layer random models with a tiny tokenizer, LoRA gradients by transformers + PEFT in fp32, and
20-step loss curves by TRL 0.24. Run with the pinned environment: python make_model.py WORKER, WORKER a built honed-worker, which
gives the initial adapters that the curves start from (so that both sides start alike)."""
import json, os, shutil, subprocess, sys, tempfile
import numpy as np
import torch
import tokenizers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM, MistralConfig, MistralForCausalLM)
from trl import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = ("the quick brown fox jumps over a lazy dog while seven small birds sing about rain and sun in an old garden near "
         "the sea where people walk slowly and talk of ships stars bread paper stone light").split()


def make_tokenizer(folder):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>", "<pad>"],
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([" ".join(WORDS)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    return len(bpe.get_vocab())


def tiny(family, vocab):
    common = dict(vocab_size=vocab, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=1,
                  pad_token_id=2, torch_dtype="float32", initializer_range=0.08, attn_implementation="eager")
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, rope_theta=10000.0, head_dim=12))
    if family == "llama3rope":
        return LlamaForCausalLM(LlamaConfig(**common, rope_theta=10000.0, tie_word_embeddings=True, rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**common, rope_theta=1000000.0, tie_word_embeddings=True))
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**common, rope_theta=10000.0, sliding_window=8))
    return Qwen3ForCausalLM(Qwen3Config(**common, rope_theta=1000000.0, head_dim=16))


def save_family(family, vocab):
    folder = os.path.join(HERE, family)
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(7)
    model = tiny(family, vocab).float().eval()
    for name, p in model.named_parameters():  # biases and norms are 0 and 1 by default: give them something to get wrong
        if name.endswith("bias") or "norm" in name:
            p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(folder)
    for name in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    gradients(family, model)


def gradients(family, model):
    """Loss = -mean log p of all next tokens of three documents; r = 4, alpha 8; A and B random."""
    folder = os.path.join(HERE, family)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, bias="none"))
    torch.manual_seed(11)
    for name, p in peft.named_parameters():
        if "lora_" in name:
            p.data = 0.1 * torch.randn_like(p)
    peft.save_pretrained(os.path.join(folder, "adapter"))
    config = json.load(open(os.path.join(folder, "adapter", "adapter_config.json")))
    config["target_modules"].sort()  # a set in PEFT: its order would differ from run to run
    json.dump(config, open(os.path.join(folder, "adapter", "adapter_config.json"), "w"), indent=1)
    os.remove(os.path.join(folder, "adapter", "README.md"))
    rng = np.random.default_rng(3)
    documents = [rng.integers(3, model.config.vocab_size, n).tolist() for n in (5, 23, 12)]
    total, log_probs, logits0 = 0.0, [], None
    count = sum(len(d) - 1 for d in documents)
    for ids in documents:
        x = torch.tensor([ids])
        logits = peft(input_ids=x).logits[0]
        lp = torch.log_softmax(logits[:-1], -1).gather(1, x[0, 1:, None])[:, 0]
        log_probs.append([float(v) for v in lp.detach()])
        if logits0 is None:
            logits0 = [float(v) for v in logits[-1].detach()]
        total = total - lp.sum() / count
    total.backward()
    tensors = {n.replace(".default", ""): p.grad.contiguous() for n, p in peft.named_parameters() if "lora_" in n}
    save_file(tensors, os.path.join(folder, "gradients.safetensors"))
    with peft.disable_adapter():
        base = []
        for ids in documents:
            x = torch.tensor([ids])
            lp = torch.log_softmax(peft(input_ids=x).logits[0, :-1], -1).gather(1, x[0, 1:, None])[:, 0]
            base.append([float(v) for v in lp.detach()])
        greedy = peft.generate(torch.tensor([documents[1]]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
    json.dump(dict(documents=documents, loss=float(total.detach()), log_probs=log_probs, base_log_probs=base, last_logits=logits0,
                   greedy=greedy[len(documents[1]):]), open(os.path.join(folder, "expected.json"), "w"))


def rows(kto):
    rng = np.random.default_rng(5)
    out = []
    for i in range(20):  # the last batch of an epoch is short, but no KL group is of one row (there Hone differs from TRL on purpose)
        prompt = " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))
        completion = " " + " ".join(rng.choice(WORDS, int(rng.integers(1, 12))))
        out.append(dict(prompt=prompt, completion=completion, **(dict(label=bool(i % 2 == 0)) if kto else {})))
    return out


def spec(kto, data, model):
    objective = "kto: {beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.2, kl_group_size: 4}" if kto else "sft: {}"
    return f"""model: {{source: {model}}}
adapter: {{lora: {{r: 4, lora_alpha: 8}}}}
objective: {{{objective}}}
data: {{train: {data}, max_length: 64, max_prompt_length: 32, order: sequential}}
batch: {{examples: {8 if kto else 4}}}
optimizer: {{learning_rate: 5e-3, max_grad_norm: {0.05 if kto else 0.5}}}
schedule: {{name: {'linear' if kto else 'cosine'}, warmup_ratio: 0.1}}
run: {{max_steps: 20, seed: 42}}
"""


def curve(kto, worker):
    name = "kto" if kto else "sft"
    model_dir = os.path.join(HERE, "llama")
    data = os.path.join(HERE, f"{name}.jsonl")
    with open(data, "w") as f:
        for row in rows(kto):
            f.write(json.dumps(row) + "\n")
    with tempfile.TemporaryDirectory() as tmp:
        open(f"{tmp}/spec.yaml", "w").write(spec(kto, data, model_dir))
        subprocess.run([worker, "train", "--spec", f"{tmp}/spec.yaml", "--output", f"{tmp}/out", "--save-gradients", "1"], check=True,
                       stdout=subprocess.DEVNULL)
        initial = load_file(f"{tmp}/out/initial.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        base = LlamaForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32, attn_implementation="eager")
        peft = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM"))
        state = {n: p for n, p in peft.named_parameters() if "lora_" in n}
        for n, p in state.items():
            p.data = initial[n.replace(".default", "")].clone()
        losses = {}  # by optimiser step; the trainer gives each micro-batch's loss divided by their number

        def recorded(base_class):
            class Recorded(base_class):
                def training_step(self, *args, **kwargs):
                    loss = super().training_step(*args, **kwargs)
                    losses[self.state.global_step] = losses.get(self.state.global_step, 0.0) + float(loss)
                    return loss

                def _get_train_sampler(self, *args, **kwargs):
                    return torch.utils.data.SequentialSampler(self.train_dataset)
            return Recorded

        common = dict(output_dir=f"{tmp}/trl", max_steps=20, learning_rate=5e-3, warmup_ratio=0.1, per_device_train_batch_size=4,
                      optim="adamw_torch", report_to=[], save_strategy="no", use_cpu=True, logging_steps=1, seed=42, bf16=False,
                      fp16=False, gradient_checkpointing=False)
        dataset = Dataset.from_list(rows(kto))
        if kto:
            args = KTOConfig(**common, gradient_accumulation_steps=2, max_grad_norm=0.05, lr_scheduler_type="linear", beta=0.1,
                             desirable_weight=1.0, undesirable_weight=1.2, max_length=64, max_prompt_length=32)
            trainer = recorded(KTOTrainer)(model=peft, args=args, train_dataset=dataset, processing_class=tokenizer)
        else:
            args = SFTConfig(**common, gradient_accumulation_steps=1, max_grad_norm=0.5, lr_scheduler_type="cosine", max_length=64,
                             packing=False)
            trainer = recorded(SFTTrainer)(model=peft, args=args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        logs = [h for h in trainer.state.log_history if "loss" in h]
        json.dump(dict(losses=[losses[i] for i in range(20)], logged=[h["loss"] for h in logs], grad_norm=[float(h["grad_norm"]) for h in logs],
                       learning_rate=[h["learning_rate"] for h in logs],
                       kl=[h.get("kl") for h in logs], rewards_chosen=[h.get("rewards/chosen") for h in logs],
                       rewards_rejected=[h.get("rewards/rejected") for h in logs]),
                  open(os.path.join(HERE, f"{name}_curve.json"), "w"))


def main():
    os.makedirs(HERE, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        vocab = make_tokenizer(tmp)
        for family in ("llama", "llama3rope", "qwen2", "mistral", "qwen3"):
            save_family(family, vocab)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(f"{tmp}/{name}", os.path.join(HERE, "llama", name))
    if len(sys.argv) > 1:
        curve(True, sys.argv[1])
        curve(False, sys.argv[1])


main()
