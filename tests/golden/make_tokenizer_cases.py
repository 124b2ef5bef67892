"""Makes tests/golden/text/tokenizer_cases.json: small tokenizers that use each option of tokenizer.json, and what Hugging Face
`tokenizers` says with them.

    python tests/golden/make_tokenizer_cases.py [FULL.json]

{"bases": {name: tokenizer.json}, "texts": [...], "cases": [{"name", "base", "set": {top-level keys}, "model": {keys of the
model}, "add": {tokens to add to the vocabulary}, "remove": [tokens], "expected": [a digest for each text]}]}. The
digests are those of make_tokenizer.py.
"""
import copy
import importlib.util
import json
import os
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location("make_tokenizer", f"{HERE}/make_tokenizer.py")
big = importlib.util.module_from_spec(spec)
spec.loader.exec_module(big)

TEXTS = [
    "", " ", "a", "Hello world", "  Hello   world  ", "x1y22z333 4", "a b  c   d", "\n\n a\r\n\tb", "foo(bar, 12) -> {x: 'y'}", "I'm it's WE'LL",
    "e\u0301 caf\u00e9 A\u030a", "\u4f60\u597d world \u3053\u3093", "\u0661\u0662 \u00bd\u00b2 \u2167", "\U0001f600\U0001f468\u200d\U0001f469 ok", "\x00\x01\x7f", "xxx", "axxbx", "abab ab",
    "<x> <y> <z> a<x>b <y>  c  <z>  d", "  <x>  ", "<ab><abc><abcd>", "word words sword word.", "word", "the word", " word\u00e9 word", "<s>a</s> <s> b",
    "\u2581a \u2581", "\u00e9e\u0301", "E\u0301 CASE case Case", "_a-b_c \u203f", "a\u00a0b\u3000c\u180ed", "12345678 1234 123", "line one\nline two\n\nend\n", "\U0001fae8\U00031350x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "<0x41><0xE2>", "\u00ff\u00fe", "Stra\u00dfe \u01c4\u01c5", "</s>", "a<pad>b",
    "HTMLParser2Go fooBar", "$x^2$ & <b>", "tab\tsep", "<x><x> <x>", "<y>\n<y>", "\u00b9\u00b3\u0300", "\u0915\u094d\u0937 \u0e01\u0e33",
]


def added(content, id, **flags):
    token = dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    token.update(flags)
    return token


def bases():
    corpus = TEXTS * 3 + ["the word words hello world Hello World foo bar baz case " * 4]
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=340, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    characters = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    characters.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    characters.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                            decoders.Strip(" ", 1, 0)])
    characters.train_from_iterator(["the word words hello world case foo(bar) 123"] * 3, trainers.BpeTrainer(
        vocab_size=360, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]))
    result = {"byte_level": json.loads(byte_level.to_str()), "characters": json.loads(characters.to_str())}
    del result["characters"]["added_tokens"][3:]  # bytes are not special
    return result


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(**flags):
    return dict(dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False), **flags)


def sequence(*steps, key="pretokenizers"):
    return {"type": "Sequence", key: list(steps)}


def cases():
    out = []

    def case(name, base="byte_level", set=None, model=None, add=None, remove=None):
        out.append({"name": name, "base": base, "set": set or {}, "model": model or {}, "add": add or {}, "remove": remove or []})

    case("byte_level")
    case("prefix_space", set={"pre_tokenizer": byte_level(add_prefix_space=True, use_regex=True)})
    case("no_regex", set={"pre_tokenizer": byte_level()})
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            for kind, pattern in (("string", {"String": " "}), ("regex", {"Regex": r"\s+|\d"}), ("single", {"Regex": r"[^a-z]"})):
                case(f"split_{kind}_{behavior}_{invert}",
                     set={"pre_tokenizer": sequence(split(pattern, behavior, invert), byte_level())})
    for name, pattern in (
            ("empty", "x*"), ("lines", "^.|.$"), ("words", r"\w+|\W"), ("not_space", r"\S+"), ("lookbehind", r"(?<=a)b|(?<!a)c"),
            ("llama3", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            ("o200k", r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            ("han", r"[\p{Han}]+|\p{Hiragana}|\p{^L}"), ("hex", r"[\x{4e00}-\x{9fff}\u3040-\u30ff\x41]"), ("groups", r"(?:a(b))++|(?>x|xx)|\.|\(|\{|[\]\-\\]"),
            ("digits", r"\d+|\D"), ("punctuation", r"[\p{P}\p{S}]|\P{L}"), ("counts", r"a{2}|b{1,}|c{,2}d|[0-9]{3}(?=\s|$)")):
        case(f"pattern_{name}", set={"pre_tokenizer": sequence(split({"Regex": pattern}), byte_level())})
    for individual in (False, True):
        case(f"digits_{individual}", set={"pre_tokenizer": sequence({"type": "Digits", "individual_digits": individual},
                                                                   byte_level(add_prefix_space=individual, use_regex=True))})
    case("ignore_merges", model={"ignore_merges": True}, add={"word": 340, "\u0120words": 341, "\u00c3\u00a9": 342})
    case("no_decoder", set={"decoder": None})
    flags = [added("<x>", 340, lstrip=True), added("<y>", 341, rstrip=True), added("<z>", 342, lstrip=True, rstrip=True),
             added("word", 343, single_word=True, special=False), added("<ab>", 344), added("<abc>", 345, special=False),
             added(" b", 346, special=False), added("e\u0301", 347, special=False, normalized=True),
             added("Case", 348, special=False, normalized=True, single_word=True), added("<s>", 349), added("</s>", 350, rstrip=True)]
    case("added_tokens", set={"added_tokens": flags})
    case("added_tokens_nfc", set={"added_tokens": flags, "normalizer": {"type": "NFC"}})
    case("added_tokens_replace", set={"added_tokens": [dict(t, normalized=True) for t in flags], "normalizer": sequence(
        {"type": "Replace", "pattern": {"Regex": r"[ \t]+"}, "content": " "}, {"type": "Prepend", "prepend": " "}, {"type": "NFC"},
        key="normalizers")})
    case("added_in_vocabulary", set={"added_tokens": [added("a", 64), added("<pad>", 340)]})
    template = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "end", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [349], "tokens": ["<s>"]},
                           "end": {"id": "end", "ids": [350, 340], "tokens": ["</s>", "<x>"]}}}
    case("template", set={"added_tokens": flags, "post_processor": template})
    case("template_sequence", set={"added_tokens": flags, "post_processor": sequence(byte_level(), template, key="processors")})
    for name, normalizer in (("nfc", {"type": "NFC"}), ("replace_string", {"type": "Replace", "pattern": {"String": "ab"}, "content": ""}),
                             ("replace_regex", {"type": "Replace", "pattern": {"Regex": "x+|[aeiou](?=b)"}, "content": "--"}),
                             ("replace_wider", {"type": "Replace", "pattern": {"String": "a"}, "content": "e\u0301\u0323"}),
                             ("prepend", {"type": "Prepend", "prepend": "\u2581 "})):
        case(f"normalizer_{name}", set={"normalizer": normalizer})
    case("missing_bytes", remove=["\u0120", "\u00c3", "\u0122"])
    case("missing_bytes_unk", remove=["\u0120", "\u00c3"], model={"unk_token": "z", "fuse_unk": False})
    case("missing_bytes_fused", remove=["\u0120", "\u00c3"], model={"unk_token": "z", "fuse_unk": True})

    case("characters", base="characters")
    for fallback in (False, True):
        for fuse in (False, True):
            for unk in (None, "<unk>"):
                case(f"fallback_{fallback}_fuse_{fuse}_{unk}", base="characters", remove=["<0xE2>", "<0x41>"],
                     model={"byte_fallback": fallback, "fuse_unk": fuse, "unk_token": unk})
    case("characters_digits", base="characters", set={"pre_tokenizer": {"type": "Digits", "individual_digits": True}})
    case("characters_ignore_merges", base="characters", model={"ignore_merges": True}, add={"\u2581the\u2581word": 360, "xxx": 361})
    for name, steps in (("strip", [{"type": "Strip", "content": "a", "start": 2, "stop": 0}]),
                        ("strip_end", [{"type": "Fuse"}, {"type": "Strip", "content": "d", "start": 0, "stop": 1}]),
                        ("strip_wide", [{"type": "Fuse"}, {"type": "Strip", "content": "\u2581", "start": 3, "stop": 0}]),
                        ("replace", [{"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": "<>"}]),
                        ("bytes", [{"type": "ByteFallback"}]), ("fuse_first", [{"type": "Fuse"}, {"type": "ByteFallback"}]),
                        ("byte_level", [byte_level()])):
        case(f"decoder_{name}", base="characters", set={"decoder": sequence(*steps, key="decoders")})
    return out


def number(case, base):
    """Gives added tokens the ids that Hugging Face would."""
    tokens, vocab = case["set"].get("added_tokens", []), base["model"]["vocab"]
    case["set"]["added_tokens"] = tokens = copy.deepcopy(tokens)
    following = len(vocab)
    for token in tokens:
        token["id"] = vocab.get(token["content"], following)
        following = max(following, token["id"] + 1)
    ids = {token["content"]: token["id"] for token in tokens}
    special = case["set"].get("post_processor") or {}
    for processor in special.get("processors", [special]):
        for entry in processor.get("special_tokens", {}).values():
            entry["ids"] = [ids[name] for name in entry["tokens"]]


def build(base, case):
    """The tokenizer.json of a case; the C++ test does the same."""
    value = copy.deepcopy(base)
    value.update(case["set"])
    model = value["model"]
    model.update(case["model"])
    model["vocab"].update(case["add"])
    gone = set(case["remove"])
    for token in gone:
        del model["vocab"][token]
    model["merges"] = [[l, r] for l, r in model["merges"] if l in model["vocab"] and r in model["vocab"]
                       and l + r in model["vocab"]] if gone else model["merges"]
    return value


def main():
    result = {"bases": bases(), "texts": TEXTS, "cases": cases()}
    full = []
    for case in result["cases"]:
        if "added_tokens" in case["set"]:
            number(case, result["bases"][case["base"]])
        if case["remove"]:  # also what is made of a removed token
            vocab = result["bases"][case["base"]]["model"]["vocab"]
            if case["base"] == "byte_level":
                case["remove"] = [t for t in vocab if any(r in t for r in case["remove"])]
        tokenizer = Tokenizer.from_str(json.dumps(build(result["bases"][case["base"]], case)))
        case["expected"] = []
        for text in TEXTS:
            try:
                plain, ids = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text).ids
                decoded, skipped = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True))
            except BaseException as error:  # their Rust code panics: nothing to compare with
                if type(error).__name__ != "PanicException":
                    raise
                print(case["name"], repr(text), error)
                case["expected"].append("panic")
                continue
            case["expected"].append(big.digest(plain.ids, ids, decoded, skipped))
            full.append({"case": case["name"], "text": text, "ids": plain.ids, "special": ids, "decoded": decoded,
                         "tokens": plain.tokens})
    with open(f"{HERE}/text/tokenizer_cases.json", "w") as f:
        json.dump(result, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(len(result["cases"]), "cases")
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as f:
            json.dump(full, f, ensure_ascii=False)


if __name__ == "__main__":
    main()
