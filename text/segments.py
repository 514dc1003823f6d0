"""One sample as segments: what of it is learned, and where an end token stands.

<|endoftext|> in a text, a line, a row or a prompt is the end token, not 13 characters, where it stands at the
beginning or end of a line, or directly between two sentences ("one.<|endoftext|>Two"). Files such as
TinyStories are documents again. All else stays, line breaks, too; only documents without a visible character
are left out. Inside a line ("the <|endoftext|> token") it is a quotation, and read as characters.

A tokenizer may have a chat template (those of instruction-tuned models do). Then conversations are written
with its special tokens, and what people say in them is always plain text: nobody ends a turn by typing.
"""

import functools
import re

from config._special import pattern_of
from tokenizer import END, Tokenizer

_END = re.escape(END)
BORDER = re.compile(  # where END ends a document; the docstring above says it in words
    rf"""
      ^ {_END} (?=[^\s.,;:!?)`])            # at the beginning of a line, no blank or punctuation follows
    | (?:^|(?<=\S)) {_END} (?=[ \t]*\r?$)  # at the end of a line, or alone on it
    | (?<=[.!?…。！？।۔]) {_END} (?=\w)     # directly between two sentences
    | (?<=[.!?…。！？]["'”’」)]) {_END} (?=\w) # the same behind a quotation mark or a bracket
    """,
    re.MULTILINE | re.VERBOSE,
)
REPLY = re.compile(r"^assistant: ", re.MULTILINE)
TURN = re.compile(r"^assistant: .*?(?=\n(?:system|user|tool|assistant): )", re.MULTILINE | re.DOTALL)
# What a segment is, as a sum; and what a token is, in *_mask.bin.
LEARNED = 1  # it counts in the loss
GOES_ON = 2  # of a segment: an end token follows it, and the sample goes on; of a token: that end token
SPECIAL = 4  # of a segment: it is the name of a special token; all other segments are plain text
SAID = 8  # of a segment that by_template is making: the assistant's words
Segments = list[tuple[str, int]]  # [(text, what), ...]: a stretch of a text, or one sample
MESSAGES, PAIR, TEXT = ("messages",), ("prompt", "response"), ("text",)  # the kinds of rows, by their keys


def segments_of(row, tokenizer: Tokenizer | None = None) -> Segments:
    r"""Turn a JSON row into [(text, what), ...]. ValueError if it is none of the three kinds.

    {"text"}: everything is learned. {"prompt", "response"}: the response is. {"messages"}: they become lines
    "role: content", such as "user: 2+2?\nassistant: 4"; what the assistant says is learned, except messages
    with "weight": 0 or "train": false, which are context. tokenizer: if it has a chat template, that writes
    the messages, a prompt as the user's and a response as the assistant's: see by_template.

    The end token closes every sample and, inside it, every message of the assistant, as in DialoGPT (Zhang
    et al. 2020): generation stops there, so it is learned wherever the text before it is. The next turn
    begins on a new line: "user: a?\nassistant: b<|endoftext|>\nuser: c?\nassistant: d<|endoftext|>". No
    second special token is needed, and any tokenizer that can close a sample can close a turn.

    Segments are encoded one by one. So no token spans a border: the mask is exact, and a prompt has the same
    ids when text is generated (see prompt_segments).
    """
    kind = kind_of(row)
    has_template = tokenizer is not None and tokenizer.chat
    if kind == TEXT:
        segments = [(row["text"], LEARNED)]  # which may be many documents
    elif has_template and kind == PAIR:
        pair = [("user", row["prompt"]), ("assistant", row["response"])]
        segments = by_template([{"role": role, "content": content} for role, content in pair], tokenizer)
    elif has_template:
        segments = by_template(row["messages"], tokenizer)
    elif kind == PAIR:
        segments = with_ends([(row["prompt"], 0), (row["response"], LEARNED)])
    else:
        segments = with_ends(by_lines(row["messages"]))
    learned = [text for text, what in segments if what & LEARNED and not what & SPECIAL]
    only_ends = END in "".join(learned) and not "".join(learned).replace(END, "").strip()
    if "" in learned or not learned or only_ends:
        raise ValueError(f"there is nothing to learn: {row!r:.60}")
    for text, _ in segments:
        text.encode("utf-8")  # UnicodeEncodeError, a ValueError, for half a surrogate pair such as "\ud83d"
    return segments


def kind_of(row) -> tuple[str, ...]:
    """Which kind a row is, as the keys that are read. null is no key: mixed datasets fill columns with it."""
    match without_null(row):
        case {"messages": [*_, {"role": "assistant"}]}:
            return MESSAGES
        case {"messages": _}:
            raise ValueError(f"expected a list of messages that ends with the assistant's: {row!r:.60}")
        case {"prompt": str(), "response": str()}:
            return PAIR
        case {"text": str()}:
            return TEXT
    raise ValueError(f"expected text, prompt and response, or messages: {row!r:.60}")


def without_null(value):
    """A JSON object without the keys whose value is null; any other value as it is."""
    return {key: v for key, v in value.items() if v is not None} if isinstance(value, dict) else value


def conversation(messages: list, tokenizer: Tokenizer) -> Segments:
    """The segments of a conversation, as the tokenizer writes it. If the assistant has not answered yet, they
    are a prompt: the assistant's turn is opened at their end."""
    return by_template(messages, tokenizer) if tokenizer.chat else by_lines(messages)


def by_lines(messages: list) -> Segments:
    """A conversation as lines "role: content": what the assistant says, and between that all other lines."""
    segments, context = [], ""
    for message in messages:
        role, content, what = parts_of(message)
        if role == "assistant":
            segments += [(f"{context}assistant: ", 0), (content, what | GOES_ON)]
            context = "\n"
        else:
            context += f"{role}: {content}\n"
    if messages[-1]["role"] != "assistant":
        return [*segments, (f"{context}assistant: ", 0)]
    text, what = segments[-1]
    return [*segments[:-1], (text, what & ~GOES_ON)]  # the sample's own end token closes the last message


def by_template(messages: list, tokenizer: Tokenizer) -> Segments:
    """A conversation in the tokenizer's chat template (see config/_special.py).

    Learned are the assistant's words and the special token behind them, which ends the turn. Plain text of
    the template and what others say are one segment, so that they are cut into the tokens that the model has
    met; a reply is one by itself, learned or not, as when it was generated. A blank at the end of the text
    before a reply belongs to the reply: its first token has it. The sample's own end token takes the place of
    the last turn's if it is the same, else it is context.
    ValueError for a role that the template does not have.
    """
    template = tokenizer.chat
    default = template.get("default_system", "")
    if default and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": default}, *messages]
    segments, instructions = [], []  # instructions: what the system says inside a user's turn
    for message in messages:
        role, content, what = parts_of(message)
        if role not in template:
            raise ValueError(f"this tokenizer's chat template has no role {role!r}: {message!r:.60}")
        content = content.strip() if template.get("trim") else content
        before, after = (cut_names(tokenizer, text) for text in template[role])
        if role == "system" and template.get("system_in_user"):
            instructions = [*before, (content, 0), *after]
        elif role == "assistant":
            opening, blank = opening_of(tokenizer)
            at = [kind for _, kind in after].index(SPECIAL) + 1  # the first special token ends the turn
            reply = [
                (blank + content, what | SAID),
                *((text, kind | what | SAID) for text, kind in after[:at]),
            ]
            segments += [*opening, *reply, *after[at:]]
        else:
            segments += [*before, *(instructions if role == "user" else ()), (content, 0), *after]
            instructions = [] if role == "user" else instructions
    if instructions:
        raise ValueError("this tokenizer's chat template puts what the system says before a user's message")
    if role != "assistant":
        segments += opening_of(tokenizer)[0]
    elif tokenizer.special_tokens[after[at - 1][0]] == tokenizer.end_id:
        segments = segments[: len(segments) - len(after) + at - 1]
    else:
        segments.append(("", 0))  # so the sample's end token is context
    return joined(segments)


def opening_of(tokenizer: Tokenizer) -> tuple[Segments, str]:
    """(what the template puts before a reply, the blanks at its end, which belong to the reply)."""
    text = tokenizer.chat["assistant"][0]
    return cut_names(tokenizer, text.rstrip(" ")), text[len(text.rstrip(" ")) :]


@functools.lru_cache(maxsize=64)
def cut_names(tokenizer: Tokenizer, text: str) -> Segments:
    """A text of the template, cut into special tokens and what stands between them."""
    parts = re.split(f"({pattern_of(tokenizer.special_tokens)})", text)
    return [(part, SPECIAL * (i % 2)) for i, part in enumerate(parts) if part]


def joined(segments: Segments) -> Segments:
    """The same with neighbours made one that are plain text of the same kind. SAID has done its work then."""
    result: Segments = []
    for text, what in segments:
        if result and what == result[-1][1] and not what & SPECIAL:
            result[-1] = (result[-1][0] + text, what)
        else:
            result.append((text, what))
    return [(text, what & ~SAID) for text, what in result]


def begin(segments: Segments, tokenizer: Tokenizer) -> Segments:
    """Put the token that begins every document and conversation before one, if the tokenizer has it and the
    template has not put it there. It is learned if what follows is. (An end token that begins documents, too,
    stands there already: it has closed the document before.)"""
    if tokenizer.begin_id in (-1, tokenizer.end_id):
        return segments
    (name,) = (name for name, i in tokenizer.special_tokens.items() if i == tokenizer.begin_id)
    text, what = segments[0]
    return segments if text == name and what & SPECIAL else [(name, SPECIAL | what & LEARNED), *segments]


def ids_of(segments: Segments, tokenizer: Tokenizer, unknown: str = "error") -> list[int]:
    """The ids of some segments, as they stand in the token files."""
    ids = []
    for text, what in segments:
        ids += tokenizer.encode(text, allow_special=bool(what & SPECIAL), unknown=unknown).tolist()
        ids += [tokenizer.end_id] * bool(what & GOES_ON)
    return ids


def parts_of(message) -> tuple[str, str, int]:
    """(role, content, LEARNED or 0) of a message. ValueError if it has another form."""
    match message:
        case {"role": "assistant", "content": str(content)}:
            return "assistant", content, weight(message)
        case {"role": "system" | "user" | "tool" as role, "content": str(content)}:
            if weight(message, 0):
                raise ValueError(f"only what the assistant says can have a weight: {message!r:.60}")
            return role, content, 0
    raise ValueError(f"expected system, user, assistant or tool with content: {message!r:.60}")


def weight(message: dict, default=LEARNED) -> int:
    """Whether a message is learned, 1 or 0: its "weight" and "train", which may both be missing or null."""
    values = {key: value for key, value in without_null(message).items() if key in ("weight", "train")}
    for key, value in values.items():
        if value not in (0, 1):
            raise ValueError(f"{key!r} is {value!r:.20}; expected 1 (learned) or 0 (not): {message!r:.60}")
    return int(min(values.values(), default=default))


def unused_keys(row: dict) -> set[str]:
    """The keys of a row and of its messages that segments_of does not look at. null counts as no key."""
    kind = kind_of(row)
    unused = without_null(row).keys() - kind
    for message in row["messages"] if kind == MESSAGES else []:
        unused |= without_null(message).keys() - {"role", "content", "weight", "train"}
    return unused


def with_ends(segments: Segments) -> Segments:
    """Cut the segments of a sample where END stands in them (see BORDER). At the very end of one that an end
    token closes anyway it adds none."""
    cut = []
    for i, (text, what) in enumerate(segments):
        *before, rest = BORDER.split(text)
        cut += [(part, what | GOES_ON) for part in before]
        if before and not rest.strip() and (what & GOES_ON or i == len(segments) - 1):
            cut[-1] = (before[-1], what)
        else:
            cut.append((rest, what))
    return cut


def prompt_segments(text: str, turns: bool = False) -> Segments:
    r"""Cut a prompt as the samples were cut: where END stands, and before a reply that END closes.

    turns: the model has learned to close replies. Then those that another turn follows are closed if END does
    not stand there already: "assistant: b\nuser: c?\n" goes on as "assistant: b<|endoftext|>\nuser: c?\n".
    So a conversation to be continued has the ids of training, whether END is written or not.
    """
    if turns:
        text = TURN.sub(lambda turn: turn[0] if turn[0].endswith(END) else turn[0] + END, text)
    *before, rest = BORDER.split(text)
    segments = []
    for part in before:
        name = REPLY.search(part)
        at = name.end() if name else 0
        segments += [(part[:at], 0), (part[at:], GOES_ON)]
    return [*segments, (rest, 0)]
