"""The part of OpenAI's HTTP API that ordinary clients use: completions and chat completions, also streamed.

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.completions.create(model="out-shakespeare-char", prompt="ROMEO:", max_tokens=100)

A model's name is that of its run. max_tokens, temperature, top_p, seed, stop, n and stream are understood.
"""

import time
import uuid

from config import require
from play import runs, views
from sample import prompt_ids, stream_text
from text.chat import Conversation

PROMPTS = 8  # texts that one request may ask for


class Counted:
    """A model that counts the tokens it draws."""

    def __init__(self, model):
        self.model, self.tokens = model, 0

    def stream(self, *arguments):
        for ids in self.model.stream(*arguments):
            self.tokens += 1
            yield ids


def models(desk, query: dict) -> dict:
    """The runs that have a checkpoint."""
    names = [run["name"] for run in runs.list_runs(desk.home) if run["files"]]
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "owned_by": "tinylm"} for name in names],
    }


def complete(desk, request: dict):
    """POST /v1/completions: prompt is a text, or a list of them."""
    model, tokenizer, _ = desk.model(views.take(request, "model", ""))
    given = request.get("prompt", "")
    texts = given if isinstance(given, list) else [given]
    prompts = [prompt_ids(tokenizer, views.take({"prompt": text}, "prompt", "")) for text in texts]
    return answer(desk, request, (model, tokenizer), prompts, limit(request, 16))


def chat(desk, request: dict):
    """POST /v1/chat/completions: messages are a conversation whose last one is the user's."""
    model, tokenizer, _ = desk.model(views.take(request, "model", ""))
    block_size = model.config.block_size
    messages = [checked(message) for message in views.take(request, "messages", [])]
    require([m["role"] for m in messages[-1:]] == ["user"], "messages must end with one of the user")
    wanted = limit(request, block_size // 2)
    conversation = Conversation(tokenizer, block_size, min(wanted, block_size // 4))
    conversation.messages = messages[:-1]
    prompt = conversation.ask(messages[-1]["content"])
    most = min(wanted, block_size + 1 - len(prompt))  # the last token is not read
    return answer(desk, request, (model, tokenizer), [prompt], most, is_chat=True)


def limit(request: dict, default: int) -> int:
    """How many tokens a request asks for, under the name of either API."""
    name = "max_completion_tokens" if "max_completion_tokens" in request else "max_tokens"
    return views.take({"max_new_tokens": request.get(name, default)}, "max_new_tokens", 0)


def checked(message) -> dict:
    """A message as text/chat.py knows it. ValueError for one that is not a role and a text."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # parts: [{"type": "text", "text": "..."}]
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    role = message.get("role") if isinstance(content, str) else None
    require(isinstance(role, str), f"expected a message of role and content, not {message!r:.60}")
    return {"role": role, "content": views.take({"content": content}, "content", "")}


def answer(desk, request: dict, loaded: tuple, prompts: list, most: int, is_chat: bool = False):
    """The answer to a request as a dict, or as a stream of chunks. most: tokens of each text."""
    n, stop = views.take(request, "n", 1), request.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    legal = isinstance(stop, list) and len(stop) <= 4 and all(isinstance(text, str) for text in stop)
    require(legal, f"stop={stop!r:.60} is not understood; expected a text, or up to four of them")
    legal = n >= 1 and 1 <= n * len(prompts) <= PROMPTS
    wrong = f"n={n!r:.40} of {len(prompts)} prompts is too much or nothing"
    require(legal, f"{wrong}; expected 1 to {PROMPTS} texts")
    kind = "chat.completion" if is_chat else "text_completion"
    head = {"id": f"tinylm-{uuid.uuid4().hex[:12]}", "object": kind, "created": int(time.time())}
    head["model"] = request["model"]
    rows = [(prompt, seed) for prompt in prompts for seed in range(n)]
    if views.take(request, "stream", False):
        return desk.in_turns(chunks(desk, head, request, loaded, rows, most, stop, is_chat))
    choices, tokens = [], 0
    for i, row in enumerate(rows):
        counted, texts = written(desk, request, loaded, *row, most, stop)
        text = "".join(texts).lstrip(" " * is_chat)  # a template may begin a reply with a blank
        body = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choices.append({"index": i, **body, "finish_reason": reason(counted, most), "logprobs": None})
        tokens += counted.tokens
    read = sum(map(len, prompts))
    usage = {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
    return {**head, "choices": choices, "usage": usage}


def chunks(desk, head: dict, request: dict, loaded: tuple, rows: list, most: int, stop: list, is_chat: bool):
    """Yield the events of a streamed answer: each text in pieces, then why it has ended."""
    if is_chat:
        head = {**head, "object": "chat.completion.chunk"}
    for i, row in enumerate(rows):
        counted, texts = written(desk, request, loaded, *row, most, stop)
        begun = False
        for piece in texts:
            piece = piece if begun or not is_chat else piece.lstrip(" ")
            begun = begun or piece != ""
            body = {"delta": {"role": "assistant", "content": piece}} if is_chat else {"text": piece}
            yield [("", {**head, "choices": [{"index": i, **body, "finish_reason": None}]})]
        body = {"delta": {}} if is_chat else {"text": ""}
        yield [("", {**head, "choices": [{"index": i, **body, "finish_reason": reason(counted, most)}]})]


def written(desk, request: dict, loaded: tuple, prompt: list, seed: int, most: int, stop: list) -> tuple:
    """(what counts its tokens, its pieces) of one text. seed is added to the request's."""
    model, tokenizer = Counted(loaded[0]), loaded[1]
    _, temperature, top_p, first = views.sampling({"temperature": 1.0, **request})
    texts = stream_text(model, tokenizer, prompt, most, temperature, 0, top_p, first + seed, stop)
    return model, desk.while_asked(texts)


def reason(counted: Counted, most: int) -> str:
    """Why a text has ended: by itself or at a stop, or at the limit."""
    return "stop" if counted.tokens < most else "length"
