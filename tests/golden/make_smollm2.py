"""Makes tests/golden/smollm2/expected.json and gradients.safetensors: SmolLM2-135M-Instruct from its GGUF as transformers reads it
(dequantised, fp32): log-probabilities of 20 texts, greedy answers to 20 questions, LoRA gradients of four texts.

    python make_smollm2.py SMOLLM2.gguf DATA WORKER

DATA: a folder with datasets/alpaca_en_demo.json and kto_en_demo.json (the texts' beginnings). Token ids come from WORKER's tokenizer,
which is held against Hugging Face's own in another test; transformers reads this GGUF's tokenizer wrongly.
"""
import json, os, subprocess, sys
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GGUF, DATA, WORKER = sys.argv[1:4]
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "smollm2")
QUESTIONS = ["What is gravity?", "What is the capital of France?", "Name three colours.", "What is 12 plus 30?", "Who wrote Hamlet?",
             "What is a haiku?", "Translate 'good morning' into Spanish.", "What is the largest planet?", "Why is the sky blue?",
             "What do bees make?", "What is photosynthesis?", "How many days has a leap year?", "What is a prime number?",
             "Write one sentence about rain.", "What is the opposite of cold?", "Which animal barks?", "What is Python?",
             "What is the boiling point of water?", "What is an island?", "Say hello."]


def worker(verb, lines, *args):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    out = subprocess.run([WORKER, verb, "--model", GGUF, *args], input=text, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def main():
    os.makedirs(HERE, exist_ok=True)
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(GGUF), gguf_file=os.path.basename(GGUF), torch_dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    alpaca = json.load(open(f"{DATA}/datasets/alpaca_en_demo.json"))
    texts = [(row["instruction"] + "\n" + row["output"])[:220] for row in alpaca[3:23]]
    ids = [line["ids"][:48] for line in worker("tokenize", [{"text": t} for t in texts])]

    def log_probs(m, one):
        x = torch.tensor([one])
        return torch.log_softmax(m(input_ids=x).logits[0, :-1], -1).gather(1, x[0, 1:, None])[:, 0]

    with torch.no_grad():
        scores = [[round(float(v), 6) for v in log_probs(model, one)] for one in ids]
    rendered = worker("render", [{"messages": [{"role": "user", "content": q}], "add_generation_prompt": True} for q in QUESTIONS])
    prompts = [line["ids"] for line in worker("tokenize", [{"text": r["text"]} for r in rendered], "--no-special-tokens")]
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            out = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2)
            new = out[0, len(prompt):].tolist()
            answers.append(new[:new.index(2)] if 2 in new else new)

    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, bias="none", layers_to_transform=[0, 17, 29], target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    torch.manual_seed(1)
    adapter = {}
    for name, p in peft.named_parameters():
        if "lora_" in name:
            p.data = 0.02 * torch.randn_like(p)
            adapter[name.replace(".default", "")] = p.data.clone()
    # In double: torch's fp32 softmax over this vocabulary is itself off by 4e-4 in some of these gradients.
    peft = peft.double()
    count = sum(len(one) - 1 for one in ids[:4])
    loss = 0
    for one in ids[:4]:
        loss = loss - log_probs(peft, one).sum() / count
    loss.backward()
    save_file({n.replace(".default", ""): p.grad.float().contiguous() for n, p in peft.named_parameters() if "lora_" in n},
              f"{HERE}/gradients.safetensors")
    peft.float().save_pretrained(f"{HERE}/adapter")
    os.remove(f"{HERE}/adapter/README.md")
    json.dump({"documents": ids, "log_probs": scores, "prompts": prompts, "answers": answers, "loss": float(loss)},
              open(f"{HERE}/expected.json", "w"))


main()
