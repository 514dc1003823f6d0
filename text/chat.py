"""A conversation that fits the model's window: the oldest turns are dropped, the system prompt never."""

import bisect
import functools

from text.segments import begin, conversation, ids_of
from tokenizer import Tokenizer


class Conversation:
    """Messages, and the prompt that they make for the next reply.

    block_size: tokens that the model's window has. room: tokens that are kept free in it for a reply. system:
    the system prompt; "": the default of the tokenizer's chat template. unknown: what happens to
    characters that the tokenizer does not know, "error" or "skip". ValueError if no reply could end.
    """

    def __init__(self, tokenizer: Tokenizer, block_size: int, room: int, system="", unknown="error"):
        if not tokenizer.stop_ids:
            raise ValueError(
                "this run's tokenizer has no token to end a reply with; train on rows of messages"
            )
        self.tokenizer, self.block_size, self.room, self.unknown = tokenizer, block_size, room, unknown
        self.messages = [{"role": "system", "content": system}] if system else []
        self.forgotten = 0  # turns, by the last call of ask()
        empty = conversation([*self.messages, {"role": "user", "content": ""}], tokenizer)
        used = len(ids_of(begin(empty, tokenizer), tokenizer, "skip"))
        if used + room > block_size:
            raise ValueError(
                f"the system prompt takes {used} of the window's {block_size} tokens, which leaves less than "
                f"{room} for a reply; write a shorter --system"
            )

    def ask(self, text: str) -> list[int]:
        """Add what the user says, and return the ids of the prompt. Forgets the oldest turns if they do not
        fit. ValueError, with the conversation as it was, if the message has no room or cannot be encoded."""
        messages = [*self.messages, {"role": "user", "content": text}]
        system = messages[:1] if messages[0]["role"] == "system" else []
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]

        @functools.cache
        def without(forgotten: int) -> tuple[list, list[int]]:  # that many turns: (messages, ids)
            kept = [*system, *messages[users[forgotten] :]] if forgotten else messages
            segments = begin(conversation(kept, self.tokenizer), self.tokenizer)
            return kept, ids_of(segments, self.tokenizer, self.unknown)

        def fits(forgotten: int) -> bool:
            return len(without(forgotten)[1]) + self.room <= self.block_size

        last = len(users) - 1
        forgotten = bisect.bisect_left(range(last), True, key=fits)  # at least; the last turn has to stay
        kept, ids = without(forgotten)
        if len(ids) + self.room > self.block_size:
            raise ValueError(
                f"this message makes a prompt of {len(ids)} tokens, which leaves less than {self.room} "
                f"for a reply in a window of {self.block_size}; write a shorter one"
            )
        self.messages, self.forgotten = kept, forgotten
        return ids

    def answer(self, text: str) -> None:
        """Add what the assistant has said."""
        self.messages.append({"role": "assistant", "content": text})
