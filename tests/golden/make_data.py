"""Writes data/kto_trl.json and data/sft_trl.json: ids, masks and KL ids that TRL 0.24's own functions make of string rows.

    python tests/golden/make_data.py STORIES260K_DIR

STORIES260K_DIR/tokenizer.json is the tokenizer (512 ids, BOS 1, EOS 2); it is not stored here.
"""
import json
import os
import sys

from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl.data_utils import truncate_dataset  # noqa: F401  (SFT truncates by slicing to max_length)
from trl.trainer.kto_trainer import _get_kl_dataset, _process_tokens, _tokenize

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
LONG = "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her red ball. "

ROWS = [
    ("Once upon a time", " there was a cat.", True),
    ("Q: What is a dog? A:", " An animal.", False),
    ("Lily saw", "", True),                              # empty completion
    ("", "The end.", False),                             # empty prompt
    (LONG * 2, "She was happy.", True),                  # long prompt, short answer
    ("Tell a story.", LONG * 3, False),                  # short prompt, long answer
    (LONG * 2, LONG * 2, True),                          # both long
    ("no space", "after the prompt", False),             # merges across the border
    ("ends with space ", "word", True),
    ("ünïcode 日本", "👍 é", False),
    ("line\n\n", "\n\nbreaks\n", True),
    ("<s> begins with BOS", " and ends with EOS</s>", True),
    ("Tom and", " Sam", False),
    ("a", "b", True),
    ("th", "e", False),                                  # one token together
    (LONG, " ok", True),
    ("Mia", LONG, False),
    ("one", " 1", True),
    ("two", " 2", False),
    ("three", " 3", True),
    ("four", " 4", False),
]

SFT_ROWS = [
    {"prompt": "Once upon a time", "completion": " there was a cat."},
    {"prompt": "no space", "completion": "after the prompt"},
    {"prompt": "ends with EOS", "completion": " yes</s>"},
    {"prompt": "Tell a story. ", "completion": LONG},
    {"prompt": "", "completion": "Only this."},
    {"text": "The end."},
    {"text": "The end.</s>"},
    {"text": LONG * 2},
    {"text": "ünïcode 日本 👍\n"},
]


def kto(tokenizer, max_length, max_prompt_length, group):
    fn_kwargs = {"prefix": "", "is_encoder_decoder": False, "tokenizer": tokenizer, "max_length": max_length, "truncation_mode": "keep_end",
                 "label_pad_token_id": -100, "max_prompt_length": max_prompt_length, "max_completion_length": None}
    data = Dataset.from_list([{"prompt": p, "completion": c, "label": l} for p, c, l in ROWS])
    data = data.map(_tokenize, batched=True, fn_kwargs={"tokenizer": tokenizer})
    data = data.map(_process_tokens, fn_kwargs=fn_kwargs)
    kl = data.map(_get_kl_dataset, batched=True, batch_size=group)
    kl = kl.map(_process_tokens, fn_kwargs={**fn_kwargs, "prefix": "KL_"})
    return {"max_length": max_length, "max_prompt_length": max_prompt_length, "kl_group_size": group,
            "examples": [{"ids": r["completion_input_ids"], "labels": r["completion_labels"]} for r in data],
            "kl": [{"ids": r["KL_completion_input_ids"], "labels": r["KL_completion_labels"]} for r in kl]}


def sft(tokenizer, max_length):
    """trl/trainer/sft_trainer.py: add_eos, tokenize_fn and truncate_dataset, for rows that are no conversations."""
    examples = []
    for row in SFT_ROWS:
        key = "text" if "text" in row else "completion"
        text = row[key] if row[key].endswith(tokenizer.eos_token) else row[key] + tokenizer.eos_token
        prompt = row.get("prompt", "")
        ids = tokenizer(text=prompt + text)["input_ids"]
        mask = [1] * len(ids)
        if "prompt" in row:
            n = len(tokenizer(text=prompt)["input_ids"])
            mask = [0] * n + [1] * (len(ids) - n)
        examples.append({"ids": ids[:max_length], "mask": mask[:max_length]})
    return {"max_length": max_length, "examples": examples}


def write(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, ensure_ascii=False)
        f.write("\n")


def main():
    path = os.path.join(sys.argv[1], "tokenizer.json")
    with_bos = PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    without_bos = PreTrainedTokenizerFast(tokenizer_file=path, eos_token="</s>", unk_token="<unk>")
    rows = [{"prompt": p, "completion": c, "label": l} for p, c, l in ROWS]
    write("kto_trl.json", {"rows": rows, "cases": [
        {"bos": True, **kto(with_bos, 1024, 512, 8)},
        {"bos": True, **kto(with_bos, 64, 32, 4)},
        {"bos": True, **kto(with_bos, 96, 20, 5)},   # the last group has one row
        {"bos": False, **kto(without_bos, 64, 32, 3)},
    ]})
    write("sft_trl.json", {"rows": SFT_ROWS, "cases": [sft(with_bos, 1024), sft(with_bos, 40)]})


main()
