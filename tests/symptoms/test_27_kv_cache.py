"""Lesson 27: what its wrong answers look like, in numbers."""

import pytest
import torch

from generate import Cache
from lessons import course
from lessons.common import changed

checks = course.checks(27)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def seen(mistake: str, *args) -> list[dict]:
    return checks.seen_of_write(wrong("27a", mistake) if mistake else checks.reference_write, *args)


def test_fifty_tokens_are_the_same_with_logits_to_1e_5():
    args = 7, 2, 5, 50
    gpt, ids = checks.small_gpt(7), checks.two_prompts(7, 2, 5)[0]
    for function in (checks.reference_write, checks.twin_write):
        found = checks.seen_of_write(function, *args)[0]
        with torch.no_grad():
            logits = gpt(found["ids"])[:, 4:-1].transpose(0, 1)
        assert checks.same_as_uncached(function, *args) is None
        torch.testing.assert_close(found["logits"], logits, rtol=1e-5, atol=1e-5 * logits.abs().max().item())
        assert ids.shape == (2, 5)


def test_position_0_gives_a_first_token_that_is_right_and_the_rest_drifts():
    found, right = (seen(mistake, 7, 2, 5, 30)[0] for mistake in ("position always 0", ""))
    torch.testing.assert_close(found["logits"][0], right["logits"][0])
    assert torch.equal(found["ids"][:, :6], right["ids"][:, :6])
    assert ((found["logits"] - right["logits"]).abs().amax((1, 2))[1:] > 0.01).all()


@pytest.mark.parametrize(
    ("mistake", "rows"),
    [
        ("", ["xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxxxxx"]),
        ("sees only itself", ["xxxx....", "....x...", ".....x..", "......x.", ".......x"]),
        ("sees only the first token", ["xxxx....", "x...x...", "x....x..", "x.....x.", "x......x"]),
        ("new ones not kept", ["xxxx....", "xxxxx...", "xxxx.x..", "xxxx..x.", "xxxx...x"]),
        ("recomputes everything", ["xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxxxxx"]),
    ],
)
def test_who_sees_whom(mistake, rows):
    write = wrong("27a", mistake) if mistake else checks.reference_write
    assert checks.who_sees_whom(write, *checks.inputs_write(1)[0]) == rows


def test_without_a_reset_the_second_text_depends_on_the_first():
    found, right = (seen(mistake, 7, 2, 5, 9) for mistake in ("not reset between prompts", ""))
    assert torch.equal(found[0]["ids"], right[0]["ids"])
    torch.testing.assert_close(found[0]["logits"], right[0]["logits"])
    assert (found[1]["logits"] - right[1]["logits"]).abs().max() > 0.1


def test_who_recomputes_everything_is_right_and_reads_more():
    found, right = (seen(mistake, 7, 2, 5, 9)[0] for mistake in ("recomputes everything", ""))
    assert torch.equal(found["ids"], right["ids"])
    assert (found["tokens read"], right["tokens read"]) == (sum(range(5, 14)), 14)


@pytest.mark.parametrize("mistake", ["joined along heads", "joined along features", "values not kept"])
def test_a_wrong_axis_fails(mistake):
    with pytest.raises(RuntimeError):
        seen(mistake, 7, 2, 5, 3)


def test_newest_first_is_the_same_text():
    reversed_ = changed(
        checks.twin_write, "(past[i][0], k)", "(k, past[i][0])", "(past[i][1], v)", "(v, past[i][1])"
    )
    assert checks.same_as_uncached(reversed_, 7, 2, 5, 20) is None


@pytest.mark.parametrize(("number", "n"), [("27.1", 64), ("27.2", 1024)])
def test_the_predictions_are_those_of_the_costs(number, n):
    found = checks.reference_costs(checks.CONFIG, 1, n, 4)
    assert found["plain"] / found["cached"] == checks.predictions[number]["answer"] == (n + 1) / 2


def test_the_costs_are_what_generate_reads_and_keeps(monkeypatch):
    caches, append = {}, Cache.append

    def noted(self, *tensors):
        out = append(self, *tensors)
        caches[id(self)] = sum(part.numel() * part.element_size() for part in out) // len(out[0])
        return out

    monkeypatch.setattr(Cache, "append", noted)
    gpt, ids, read = checks.small_gpt(3), checks.two_prompts(3, 2, 5)[0], []
    gpt.blocks[0].mlp.register_forward_hook(lambda m, args, out: read.append(args[0].size(1)))
    checks.reference_write(gpt, ids, 9)
    found = checks.reference_costs(gpt.config, 5, 9, 4)
    assert (sum(read), sum(caches.values())) == (found["cached"], found["bytes"])
    read.clear()
    wrong("27a", "recomputes everything")(gpt, ids, 9)
    assert sum(read) == found["plain"]
