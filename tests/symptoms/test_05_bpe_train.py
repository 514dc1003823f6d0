"""What the course says about lesson 5's wrong answers, as they are seen."""

from collections import Counter

import pytest

from lessons import course
from tokenizer import BPETokenizer

TEXT = "the low lower lowest 안녕 \U0001f600 the other\nof the lot to the other\n" * 3
bpe_train = course.checks(5)
WRONG = {
    name: {mistake: f for mistake, (f, _) in e["wrong"].items()} for name, e in bpe_train.exercises.items()
}


def first_merge(count, text: str) -> bytes:
    counts = count(Counter(tuple(word.encode()) for word in text.split()))
    return bytes(min(counts, key=lambda pair: (-counts[pair], pair)))


def tokens(mistake: str, text: str = TEXT, vocab_size: int = 276) -> list[bytes]:
    return bpe_train.tokens_of(WRONG["5c"][mistake](text, vocab_size))[256:]


@pytest.mark.parametrize(
    ("text", "right", "once"),
    [("low low low lowest", b"lo", b"lo"), ("low low low lowest newest widest", b"lo", b"es")],
)
def test_a_word_counted_once_may_change_the_first_merge(text, right, once):
    """In the shorter text `low` is in both words, so that each of its pairs leads either way."""
    assert first_merge(bpe_train.reference_count_pairs, text) == right
    assert first_merge(WRONG["5a"]["word counted once"], text) == once


def test_pairs_across_borders_make_tokens_with_inner_blanks():
    assert any(b" " in token.strip() for token in tokens("no word borders"))
    right = bpe_train.tokens_of(bpe_train.reference_train(TEXT, 276))[256:]
    assert not any(b" " in token.strip() for token in right)


def test_overlaps_of_a_run_are_three_and_two_can_merge():
    run = {(97,) * 4: 1}
    assert bpe_train.reference_count_pairs(run) == {(97, 97): 3}
    assert WRONG["5a"]["overlaps skipped"](run) == {(97, 97): 2}
    assert bpe_train.reference_merge([97] * 4, (97, 97), 256) == [256, 256]


@pytest.mark.parametrize(
    ("mistake", "sample", "found"),
    [
        ("overlaps replaced", "aaa", [256, 256]),
        ("first place only", "aaaa", [256, 97, 97]),
        ("places have moved", "aabaab", [256, 98, 97, 256]),
        ("last id lost", "aab", [256]),
    ],
)
def test_a_wrong_merge(mistake, sample, found):
    assert WRONG["5b"][mistake]([*sample.encode()], (97, 97), 256) == found


def test_after_a_merge_in_either_order_decoding_gives_another_text():
    ids = WRONG["5b"]["either order"]([*b"abba"], (97, 98), 256)
    assert BPETokenizer([bytes([byte]) for byte in range(256)] + [b"ab"]).decode(ids) == "abab"


def test_our_merge_is_that_of_the_project():
    """The twin of 5b merges as the project encodes, with a vocabulary of one merge."""
    one = BPETokenizer([bytes([byte]) for byte in range(256)] + [b"aa"])
    for text in ("aaaa", "aaa", "baab", "a", ""):
        assert bpe_train.reference_merge([*text.encode()], (97, 97), 256) == one.encode(text).tolist()


def test_counts_of_the_bytes_alone_make_no_token_longer_than_two():
    assert max(map(len, tokens("counted only once"))) == 2
    assert max(map(len, bpe_train.tokens_of(bpe_train.reference_train(TEXT, 276)))) > 3


def test_first_met_ties_depend_on_the_order_of_the_text():
    turned = " ".join(reversed("ab cd ef ab cd ef".split()))
    found = [WRONG["5c"]["first met wins ties"](text, 259) for text in ("ab cd ef ab cd ef", turned)]
    assert found[0] != found[1]


def test_vocab_size_merges_are_256_too_many():
    assert len(WRONG["5c"]["256 too many"](TEXT * 9 + WORDS, 276)) == 276
    assert len(bpe_train.reference_train(TEXT * 9 + WORDS, 276)) == 20


WORDS = " ".join(f"{n * n:x}{n * 77:x}" for n in range(900))  # enough different pairs for so many merges


def test_letters_make_ids_outside_of_the_bytes():
    merges = WRONG["5c"]["letters, not bytes"]("\U0001f600\U0001f601 " * 3, 260)
    assert merges[0] == (0x1F600, 0x1F601)
    assert len("\U0001f600".encode()) == 4
