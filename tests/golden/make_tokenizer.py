"""Makes tests/golden/text/tokenizer_*: what Hugging Face `tokenizers` says to the same strings.

    python tests/golden/make_tokenizer.py SMOLLM2.gguf DATA [FULL]

tokenizer_strings.jsonl: the strings. tokenizer_<name>.txt: a digest for each string, of the ids without and with special
tokens, of the text decoded from the latter, and of that without special tokens: FNV-1a (64 bits, 12 hex digits of it) of
both lists as little-endian int32, each followed by -1, and of both texts as UTF-8, each followed by a byte 255.
tokenizer_<name>_ids.json: the ids themselves of the first strings. With FULL, a folder, everything is written there in full as
well, to see differences.
"""
import json
import os
import random
import struct
import sys
import unicodedata

import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

COUNT = 2100
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")

ATOMS = {
    "prose": ["The capital of France is Paris.", "What is a quark?", "I'm sure they've said it'll do; you'd know, she's here.",
              "IT'S FINE, I'LL GO, WE'VE WON, THEY'D", "it\u2019s", "hello world", "Hello, World!", "e.g. 3.14 and 1,000,000",
              "antidisestablishmentarianism", "a", " ", "the", " the", "re-use", "O'Neill's", "'s", "'S", "'\u017f", "I'\u017f x"],
    "code": ["int main(int argc, char** argv) {\n  return argc > 1 ? 0 : -1;\n}\n", "def f(x):\n    return x**2  # square\n",
             "for (auto& [k, v] : map) std::cout << k << '\\n';", "<div class=\"a-b\">&nbsp;</div>", "SELECT * FROM t WHERE a <> 'b';",
             "\tif err != nil {\n\t\treturn err\n\t}", "x = {'a': [1, 2, 3], \"b\": None}", "#include <vector>", "a->b.c()[0] &= ~0xFFu;",
             "```python\nprint(\"hi\")\n```", "https://example.org/a?b=c&d=%20#e", "foo_bar = fooBar + FOO_BAR1;", "/* a */ // b", "$x^2$"],
    "numbers": ["0", "7", "42", "1234", "12345678901234567890", "3.14159", "1e-5", "2024-02-29", "0x1F", "10%", "\u0663\u0664\u0665",
                "\u00bd", "\u00b2", "\u2167", "\u096a\u096b", "\uff11\uff12", "x86_64", "\u4e8c\u5341", "\u2460", "1\u00a0000"],
    "spaces": [" " * n for n in (1, 2, 3, 4, 7, 16, 33)] + ["\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\t", "\t\t \t", " \n", "\n ",
               "  \n  ", "   \r\n\t", "\u00a0", "\u2003", "\u3000", "\u2028", "\u2029", "\u0085", "\u200b", "\u180e", "\u1680", "\ufeff",
               "\x0b", "\x0c", "\u202f", "\u205f"],
    "emoji": ["\U0001f600", "\U0001f999.cpp", "\u2764\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd",
              "\U0001f1e9\U0001f1ea", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "1\ufe0f\u20e3", "\u263a", "\U0001fae8", "\U0001f9d1\u200d\U0001f4bb",
              "\U0001f680 \U0001f926\U0001f3fc\u200d\u2642\ufe0f"],
    "cjk": ["\u4f60\u597d\u4e16\u754c", "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e", "\u3053\u3093\u306b\u3061\u306f", "\u30ab\u30bf\u30ab\u30ca\u30fc",
            "\uc548\ub155\ud558\uc138\uc694", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u3002\u300c\u300d", "\ufa12\uf900", "\U00020000\U0002a6d6", "\u9f98", "\u304c\u304b\u3099",
            "\uff8a\uff9f", "\U00031350", "\u31ef", "\U0002ebf0x"],
    "arabic": ["\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0627\u0644\u0633\u0651\u064e\u0644\u0627\u0645\u064f", "\ufefb", "\u0644\u0627", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u202e\u05d0\u202c",
               "\u0622\u0627\u0653", "\u06cc\u06a9"],
    "other": ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5", "\u00c4pfel", "na\u00efve caf\u00e9", "Ti\u1ebfng Vi\u1ec7t",
              "\u0531\u0575\u0562", "\u10d2\u10d0", "\u1200\u1208", "\u1780\u17d2\u179a", "Stra\u00dfe", "\u01c4\u01c5\u01c6", "\U0001d54f\U0001d7d8", "\U00010400"],
    "marks": ["e\u0301", "A\u030a", "\u212b", "\u2126", "a\u0323\u0307", "a\u0307\u0323", "q\u0307\u0323", "\u0344", "\u0958", "\u1e9b\u0323", "o\u0302\u0301", "\u0301",
              " \u0301x", "n\u0303o", "\u0f73", "\u0cca\u0cd5", "\u09c7\u09be", "\u1b05\u1b35", "\u110b\u1175\u11ab", "\uac00\u11a8", "\u2adc", "\ufb1d", "\u0340", "\u0374",
              "\u1f71", "\U0001d15e", "\U00011131\U00011127", "s\u0323\u0307\u0301", "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d"],
    "control": ["\x00", "\x01\x02", "\x1b[31mred\x1b[0m", "\x7f", "\x80", "\x9f", "\x1c\x1d\x1e\x1f", "a\x00b", "\x08", "\u200d", "\u200c", "\u2060",
                "\ufffd", "\ufffe", "\uffff", "\ue000", "\U000f0000", "\U0010ffff", "\u0378", "\u2581", "\u2581\u2581a", "a\u2581b", "\u0100\u0120"],
    "special": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<think>", "</think>", "<tool_call>", "<repo_name>",
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<s>[INST] a [/INST]", "<|im_end|", "<|im_start|><|im_start|>", "<0x0A>",
                " <|im_end|> ", "<s> a", "<|vision_start|>", "<file_sep>", "<|fim_prefix|>", "< s>", "<|IM_START|>", "<0xE2>", "<|im_sta"],
    "runs": ["a" * 60, "ab" * 30, "=" * 50, "-" * 17, "!?" * 9, "\u2581" * 5, "ha" * 20, "0" * 40, "\U0001f600" * 8, "\u4e00" * 20, "." * 33, "_" * 21,
             "\n" * 9, "\t" * 11, "e\u0301" * 6, "A" * 31],
}


def random_characters(rng):
    out = []
    for _ in range(rng.randint(1, 6)):
        plane = rng.choice(((0x20, 0x7F), (0x80, 0x250), (0x250, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000),
                            (0x20000, 0x32400)))
        out.append(chr(rng.randrange(*plane)))
    return "".join(out)


def make_strings():
    rng = random.Random(20261124)
    kinds = list(ATOMS)
    strings = ["", "\u00e9", "e\u0301"]
    for kind in kinds:
        strings += ATOMS[kind]
    strings += [" " * n for n in range(5, 40)] + [" " * n + "x" for n in range(1, 20)] + ["x" + " " * 129 + "\n y"]
    strings += [chr(c) for c in range(0x180)]
    strings = list(dict.fromkeys(strings))
    while len(strings) < COUNT:
        atoms = []
        for _ in range(rng.randint(2, 5)):
            kind = rng.choice(kinds + ["random", "random"])
            atoms.append(random_characters(rng) if kind == "random" else rng.choice(ATOMS[kind]))
        text = rng.choice(("", "", " ")).join(atoms)
        if len(text.encode()) <= 120 and text not in strings:
            strings.append(text)
    return strings


def smollm2(path):
    """The tokenizer this vocabulary was made for; transformers' own conversion forgets Digits."""
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tokens[i], normalized=False, special=True)
                                  for i, kind in enumerate(fields["tokenizer.ggml.token_type"].contents()) if kind == 3])
    return tokenizer


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def digest(plain, special, decoded, skipped):
    lists = b"".join(struct.pack(f"<{len(ids) + 1}i", *ids, -1) for ids in (plain, special))
    return fnv(lists + decoded.encode() + b"\xff" + skipped.encode() + b"\xff")[:12]


def check_round_trip(name, text, decoded):
    if name in ("mistral", "stories260k"):
        return  # what they decode to is in the fixture
    expected = text if name == "smollm2" else unicodedata.normalize("NFC", text)
    assert decoded == expected, (name, text, decoded)


def write(name, tokenizer, strings, full):
    lines, everything = [], []
    lossy = 0
    for text in strings:
        plain = tokenizer.encode(text, add_special_tokens=False)
        ids = tokenizer.encode(text).ids
        decoded, skipped = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True))
        try:
            check_round_trip(name, text, tokenizer.decode(plain.ids, skip_special_tokens=False))
        except AssertionError:
            lossy += 1
        lines.append(digest(plain.ids, ids, decoded, skipped))
        everything.append({"text": text, "ids": plain.ids, "special": ids, "decoded": decoded, "skipped": skipped,
                           "offsets": plain.offsets})
    print(name, "lossy strings:", lossy)
    with open(f"{OUT}/tokenizer_{name}.txt", "w") as f:
        f.write("\n".join(lines) + "\n")
    with open(f"{OUT}/tokenizer_{name}_ids.json", "w") as f:
        f.write("[" + ",\n".join(json.dumps(e["ids"], separators=(",", ":")) for e in everything[3:60]) + "]\n")
    if full:
        with open(f"{full}/tokenizer_{name}.json", "w") as f:
            json.dump(everything, f, ensure_ascii=False)


def main():
    gguf, data = sys.argv[1:3]
    full = sys.argv[3] if len(sys.argv) > 3 else None
    print("tokenizers", tokenizers.__version__)
    os.makedirs(OUT, exist_ok=True)
    strings = make_strings()
    with open(f"{OUT}/tokenizer_strings.jsonl", "w") as f:
        f.writelines(json.dumps(s, ensure_ascii=False) + "\n" for s in strings)
    write("smollm2", smollm2(gguf), strings, full)
    for name, path in (("qwen2", "tokenizers/qwen2"), ("qwen3", "tokenizers/qwen3"), ("stories260k", "models/stories260K"),
                       ("mistral", "tokenizers/mistral-7b-instruct-v0.2")):
        write(name, Tokenizer.from_file(f"{data}/{path}/tokenizer.json"), strings, full)


if __name__ == "__main__":
    main()
