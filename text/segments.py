"""One sample as segments: what of it is learned, and where an end token stands.

<|endoftext|> in a text, a line, a row or a prompt is the end token, not 13 characters, where it stands at the
beginning or end of a line, or directly between two sentences ("one.<|endoftext|>Two"). Files such as
TinyStories are documents again. All else stays, line breaks, too; only documents without a visible character
are left out. Inside a line ("the <|endoftext|> token") it is a quotation, and read as characters.
"""

import re

from tokenizer import END

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
TURN = re.compile(r"^assistant: .*?(?=\n(?:system|user|assistant): )", re.MULTILINE | re.DOTALL)
# What a segment is, as a sum; and what a token is, in *_mask.bin.
LEARNED = 1  # it counts in the loss
GOES_ON = 2  # of a segment: an end token follows it, and the sample goes on; of a token: that end token
Segments = list[tuple[str, int]]  # [(text, what), ...]: a stretch of a text, or one sample
MESSAGES, PAIR, TEXT = ("messages",), ("prompt", "response"), ("text",)  # the kinds of rows, by their keys


def segments_of(row) -> Segments:
    r"""Turn a JSON row into [(text, what), ...]. ValueError if it is none of the three kinds.

    {"text"}: everything is learned. {"prompt", "response"}: the response is. {"messages"}: they become lines
    "role: content", such as "user: 2+2?\nassistant: 4"; what the assistant says is learned, except messages
    with "weight": 0 or "train": false, which are context.

    The end token closes every sample and, inside it, every message of the assistant, as in DialoGPT (Zhang
    et al. 2020): generation stops there, so it is learned wherever the text before it is. The next turn
    begins on a new line: "user: a?\nassistant: b<|endoftext|>\nuser: c?\nassistant: d<|endoftext|>". No
    second special token is needed, and any tokenizer that can close a sample can close a turn.

    Segments are encoded one by one. So no token spans a border: the mask is exact, and a prompt has the same
    ids when text is generated (see prompt_segments).
    """
    kind = kind_of(row)
    if kind == MESSAGES:
        segments = chat(row["messages"])
    elif kind == PAIR:
        segments = [(row["prompt"], 0), (row["response"], LEARNED)]
    else:
        segments = [(row["text"], LEARNED)]
    segments = with_ends(segments) if len(segments) > 1 else segments  # a text may be many documents
    learned = [text for text, what in segments if what & LEARNED]
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


def chat(messages: list) -> Segments:
    """The segments of a conversation: those of the assistant, and between them all lines of the others."""
    segments, context = [], ""
    for message in messages:
        match message:
            case {"role": "assistant", "content": str(content)}:
                segments += [(f"{context}assistant: ", 0), (content, weight(message) | GOES_ON)]
                context = "\n"
            case {"role": "system" | "user" as role, "content": str(content)}:
                if weight(message, 0):
                    raise ValueError(f"only what the assistant says can have a weight: {message!r:.60}")
                context += f"{role}: {content}\n"
            case _:
                raise ValueError(f"expected system, user or assistant with content: {message!r:.60}")
    text, what = segments[-1]
    return [*segments[:-1], (text, what & ~GOES_ON)]  # the sample's own end token closes the last message


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
