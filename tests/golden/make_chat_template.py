"""Writes text/chat_template_*.json: what transformers' chat-template environment renders, for tests/text/chat_template_*_test.cc.

    python tests/golden/make_chat_template.py TEMPLATE_DIR SMOLLM2_GGUF

TEMPLATE_DIR holds the .jinja files of llama.cpp's models/templates; their text is not stored here, only their digest.
"""
import datetime
import hashlib
import json
import os
import sys

import transformers.utils.chat_template_utils as utils

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")
DATE = "2025-03-04T05:06:07"


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DATE)


utils.datetime = FixedDate

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Current weather <now> & later",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "The city, e.g. \"Zürich\""},
        "days": {"type": "integer", "description": "How many days"},
        "units": {"type": "string", "enum": ["C", "F"], "description": "Unit"}}, "required": ["city"]}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds numbers", "parameters": {"type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "number"}, "description": "Numbers"}}, "required": ["values"]}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, identity="abcdef123"):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "simple": dict(messages=[user("What is a lake?"), assistant("A body of water.")]),
    "generation prompt": dict(messages=[user("Hi")], add_generation_prompt=True),
    "system and turns": dict(messages=[{"role": "system", "content": "Be brief."}, user("One?"), assistant("1"), user("Two?"),
                                       assistant("2"), user("Three?"), assistant("3")]),
    "empty answer": dict(messages=[user("Say nothing."), assistant("")]),
    "empty question": dict(messages=[user(""), assistant("You said nothing.")]),
    "no messages": dict(messages=[]),
    "unicode": dict(messages=[{"role": "system", "content": "Réponds. 日本語 العربية"}, user("👩‍👩‍👧 e\u0301 \u00a0x\u3000"),
                              assistant("\u2028Ω≈ç 한국어 \U0001f600\u00a0")]),
    "white space": dict(messages=[user("\n\n  indented\n\ttab  \n"), assistant("  \n answer \r\n\n "), user(" "), assistant("  ")]),
    "quotes": dict(messages=[user("He said \"it's\" <b>&amp;</b> \\ {{ x }} {% y %}"), assistant("'quoted' \"twice\" \\n </s>")]),
    "thinking": dict(messages=[user("2+2?"), assistant("<think>\nTwo and two.\n</think>\n\nFour."), user("And 3+3?"),
                               assistant("<think>\nEasy.\n</think>\n\nSix.")]),
    "tools offered": dict(messages=[user("Weather in Bern?")], tools=[WEATHER, ADD], add_generation_prompt=True),
    "tool use": dict(messages=[{"role": "system", "content": "Use tools."}, user("Weather in Bern?"),
                               {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"city": "Bern", "days": 2})]},
                               {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"t\": 7}"},
                               assistant("It is 7 degrees."), user("Thanks"), assistant("Welcome.")], tools=[WEATHER]),
    "two tool calls": dict(messages=[user("Add and tell."), {"role": "assistant", "content": "Working.", "tool_calls": [
        call("add", {"values": [1, 2.5, -3e20], "note": "ü\n", "flag": True, "none": None}), call("get_weather", {"city": "Genève"}, "abcdef124")]},
        {"role": "tool", "name": "add", "tool_call_id": "abcdef123", "content": "0.5"},
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef124", "content": "rain"}, assistant("Half, and rain.")], tools=[WEATHER, ADD]),
    "two users": dict(messages=[user("a"), user("b"), assistant("c")]),
    "long": dict(messages=[m for i in range(12) for m in (user(f"Question {i}?"), assistant(f"Answer {i}. " * (i + 1)))]),
}

# name: (file or None, bos, eos, further special tokens, template variables)
TEMPLATES = {
    "smollm2": (None, "<|im_start|>", "<|im_end|>", ["<|endoftext|>"], {}),
    "qwen2.5": ("Qwen-Qwen2.5-7B-Instruct.jinja", "", "<|im_end|>", ["<|im_start|>", "<|endoftext|>"], {}),
    "llama-3.1": ("meta-llama-Llama-3.1-8B-Instruct.jinja", "<|begin_of_text|>", "<|eot_id|>",
                  ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"], {}),
    "qwen3": ("Qwen-Qwen3-0.6B.jinja", "", "<|im_end|>", ["<|im_start|>", "<|endoftext|>"], {}),
    "mistral-nemo": ("mistralai-Mistral-Nemo-Instruct-2407.jinja", "<s>", "</s>", ["[INST]", "[/INST]", "[TOOL_CALLS]"], {}),
    "smollm3": ("HuggingFaceTB-SmolLM3-3B.jinja", "<|im_start|>", "<|im_end|>", [], {}),
    "phi-3.5": ("microsoft-Phi-3.5-mini-instruct.jinja", "<s>", "<|endoftext|>", ["<|end|>", "<|user|>", "<|assistant|>"], {}),
    "gemma-2": ("google-gemma-2-2b-it.jinja", "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], {}),
    "granite-3.3": ("ibm-granite-granite-3.3-2B-Instruct.jinja", "<|end_of_text|>", "<|end_of_text|>",
                    ["<|start_of_role|>", "<|end_of_role|>"], {"thinking": True}),
    "hermes-3": ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "<|begin_of_text|>", "<|im_end|>", ["<|im_start|>"], {}),
    "gpt-oss": ("openai-gpt-oss-120b.jinja", "<|startoftext|>", "<|return|>", ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"],
                {"builtin_tools": ["browser", "python"]}),
}


def render(source, bos, eos, conversation, variables, tools=None):
    tokens = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
    try:
        texts, _ = utils.render_jinja_template([conversation["messages"]], tools=conversation.get("tools", tools), chat_template=source,
                                               add_generation_prompt=conversation.get("add_generation_prompt", False),
                                               **tokens, **variables)
        return {"text": texts[0]}
    except Exception as e:  # whatever jinja2 raises, Hone must refuse too
        return {"error": f"{type(e).__name__}: {e}"}


def smollm2_template(path):
    from gguf import GGUFReader
    field = GGUFReader(path).fields["tokenizer.chat_template"]
    return bytes(field.parts[field.data[0]]).decode()


def write(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


def main():
    directory, gguf = sys.argv[1:3]
    results = {}
    for name, (file, bos, eos, special, variables) in TEMPLATES.items():
        source = open(os.path.join(directory, file), newline="").read() if file else smollm2_template(gguf)
        tools = [] if name == "hermes-3" else None  # which iterates over them unasked
        entry = {"file": file, "sha256": hashlib.sha256(source.encode()).hexdigest(), "bos_token": bos, "eos_token": eos,
                 "special_tokens": special, "variables": variables, "tools": tools,
                 "rendered": {key: render(source, bos, eos, c, variables, tools) for key, c in CONVERSATIONS.items()}}
        if not file:
            entry["source"] = source
        results[name] = entry
    write("chat_template_models.json", {"date": DATE, "conversations": CONVERSATIONS, "templates": results})
    from chat_template_snippets import SNIPPETS, VARIABLES
    snippets = []
    for source in SNIPPETS:
        snippets.append({"source": source, **render(source, "<s>", "</s>", {"messages": []}, VARIABLES)})
    write("chat_template_snippets.json", {"date": DATE, "variables": VARIABLES, "snippets": snippets})


main()
