"""Chat templates of other people's models as plain texts (see config/_special.py), and back. Two usual forms:

    ChatML (SmolLM2, Qwen)   <|im_start|>user\\nhello<|im_end|>\\n<|im_start|>assistant\\n
    Llama 3                  <|start_header_id|>user<|end_header_id|>\\n\\nhello<|eot_id|>...
    Llama 2, Mistral         [INST] hello [/INST]

A template is a program in Jinja, which a stranger wrote. It is never run here: read() looks for the marks of
a form that it knows. Tools, thinking and pictures are left out. write() goes the other way: its Jinja makes
the text that text/segments.py makes. https://huggingface.co/docs/transformers/chat_templating
"""

import json
import re

from config._special import end_of_turn, pattern_of
from tokenizer import Tokenizer

# Llama 3.1 begins what the system says with this, also where a conversation has no such message.
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def read(template: str, special_tokens: dict, end: str, begin: str, prefix: bool) -> dict | None:
    """The fields of a template, None if it is of no known form. end, begin: names of those tokens.

    prefix: whether the tokenizer puts a blank before every text, as SentencePiece's do. Then the reply's own
    blank is that one. Known forms whose tokens the vocabulary lacks do not count.
    """
    roles = ("system", "user", "assistant")
    chat = None
    if "<|im_start|>" in template and {"<|im_start|>", "<|im_end|>"} <= special_tokens.keys():
        chat = {role: [f"<|im_start|>{role}\n", "<|im_end|>\n"] for role in roles}
        chat["tool"] = ["<|im_start|>tool\n", "<|im_end|>\n"]
        if "<tool_response>" in template:  # Qwen: what a tool answers is said by the user
            chat["tool"] = ["<|im_start|>user\n<tool_response>\n", "\n</tool_response><|im_end|>\n"]
        default = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+)<\|im_end\|>", template)
        chat |= {"default_system": default[1].replace("\\n", "\n")} if default else {}
    elif "<|start_header_id|>" in template and {"<|start_header_id|>", "<|eot_id|>"} <= special_tokens.keys():
        header = "<|start_header_id|>{}<|end_header_id|>\n\n"
        chat = {role: [header.format(role), "<|eot_id|>"] for role in roles}
        chat["tool"] = [header.format("ipython"), "<|eot_id|>"]
        if "Cutting Knowledge Date" in template:
            chat["system"][0] += DATES
            chat["default_system"] = " "  # which is trimmed to nothing: the turn is there all the same
    elif "[INST]" in template and end in special_tokens:
        llama = "<<SYS>>" in template
        before = "[INST] " if "[INST] " in template else "[INST]"
        after = " [/INST]" if " [/INST]" in template else "[/INST]"
        chat = {
            "system": ["<<SYS>>\n", "\n<</SYS>>\n\n"] if llama else ["", "\n\n"],
            "user": [before, after],
            "assistant": ["" if prefix or not llama else " ", f" {end}{begin}" if llama else end],
            "system_in_user": True,
        }
    if chat and re.search(r"content['\"\]]*\s*\|\s*trim|content['\"\]]*\.strip\(\)", template):
        chat["trim"] = True
    return chat


def write(tokenizer: Tokenizer, prefix: bool = False) -> str:
    """A template in Jinja that makes the text of our fields, so that transformers and llama.cpp make it, too.

    prefix: see read(). Nothing follows the last reply's end token if that is the one that ends documents.
    """
    chat, quote = tokenizer.chat, lambda text: json.dumps(text, ensure_ascii=False)
    name = end_of_turn(chat, pattern_of(tokenizer.special_tokens))
    ends = tokenizer.special_tokens[name] == tokenizer.end_id
    before, after = chat["assistant"]
    last = after[: after.index(name) + len(name)] if ends else after
    content = 'message["content"]' + (" | trim" if chat.get("trim") else "")
    start, stop = ("{% set ns.held = ", " %}") if chat.get("system_in_user") else ("{{ ", " }}")
    parts = ['{% set ns = namespace(held="") %}', "{{ " + quote(tokenizer.fields["begin"]) + " }}"]
    if chat.get("default_system") and "system" in chat:
        default = chat["default_system"].strip() if chat.get("trim") else chat["default_system"]
        text = quote(chat["system"][0] + default + chat["system"][1])
        parts.append('{% if messages[0]["role"] != "system" %}' + start + text + stop + "{% endif %}")
    parts.append("{% for message in messages %}{% set content = " + content + " %}")
    for role in ("system", "user", "tool"):
        if role in chat:
            inner = " + ns.held + content + " if role == "user" else " + content + "
            text = quote(chat[role][0]) + inner + quote(chat[role][1])
            parts.append('{% if message["role"] == ' + quote(role) + " %}")
            parts.append(start + text + stop if role == "system" else "{{ " + text + " }}")
            parts.append('{% set ns.held = "" %}' * (role == "user") + "{% endif %}")
    said = quote(before + " " * prefix) + " + content + "
    parts.append('{% if message["role"] == "assistant" %}{% if loop.last %}')
    parts.append("{{ " + said + quote(last) + " }}{% else %}{{ " + said + quote(after) + " }}")
    parts.append("{% endif %}{% endif %}{% endfor %}")
    parts.append("{% if add_generation_prompt %}{{ " + quote(before.rstrip(" ")) + " }}{% endif %}")
    return "".join(parts)
