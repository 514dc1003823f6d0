"""What the wrong answers of lesson 11 look like, as the course says."""

import pytest
import torch

from generate import Cache, Past
from lessons import course
from lessons.checks.grouped_query import exercises, predictions, seen_working, who_reads_whom
from lessons.checks.heads import bare
from lessons.grader import RIGHT, judge
from model import GPT, GPTConfig

course.checks(11)  # its words are put to it

SHARED = {  # which key head each of 6 query heads reads
    ("", 3): [0, 0, 1, 1, 2, 2],
    ("", 2): [0, 0, 0, 1, 1, 1],
    ("tiled", 3): [0, 1, 2, 0, 1, 2],
    ("tiled", 2): [0, 1, 0, 1, 0, 1],
    ("tiled", 1): [0] * 6,  # as it has to be: with one head, or one each, this mistake cannot be seen
    ("tiled", 6): [0, 1, 2, 3, 4, 5],
}


def answer(name: str, mistake: str):
    return exercises[name]["wrong"][mistake][0] if mistake else exercises[name]["reference"]


@pytest.mark.parametrize(("mistake", "n_kv"), SHARED)
def test_which_heads_are_shared(mistake, n_kv):
    found = who_reads_whom(lambda kv: answer("11a", mistake)(kv, 6), n_kv)
    assert [row.index("x") for row in found] == SHARED[mistake, n_kv]
    assert "".join(found).count("x") == 6


def test_the_text_doubles_if_its_axis_is_repeated():
    k, n_head = exercises["11a"]["inputs"](1)[0]
    assert answer("11a", "time repeated")(k, n_head).size(2) == 2 * k.size(2)
    assert answer("11a", "batch repeated")(k, n_head).size(0) == 2 * k.size(0)


@pytest.mark.parametrize(
    ("mistake", "stated"),
    [("", 131_072), ("half", 65_536), ("one layer", 32_768), ("all heads", 262_144), ("bits", 1_048_576)],
)
def test_bytes_of_the_cache(mistake, stated):
    config = GPTConfig(n_layer=4, n_head=4, n_kv_head=2, n_embd=128)
    assert answer("11b", mistake)(config, 64) == stated
    assert stated in [predictions["11.1"]["answer"], *predictions["11.1"]["wrong"]]


def test_a_model_fills_caches_of_that_size():
    config, T = exercises["11b"]["inputs"](1)[0]
    network = GPT(config)
    caches = [Cache(T) for _ in network.blocks]
    network.next_logits(torch.zeros(1, T, dtype=torch.long), caches, None)
    assert sum(cache.kv.nbytes for cache in caches) == answer("11b", "")(config, T)


def test_a_new_token_attends_as_in_the_project():
    q, k, v = exercises["11c"]["inputs"](1)[0]
    (B, H, hs), K, T = q.shape, k.size(1), k.size(2)
    attention, cache = bare(H * hs, H, K), Cache(T)
    cache.append(k[:, :, :-1], v[:, :, :-1])
    new = {"q": q, "k": k[:, :, -1], "v": v[:, :, -1]}  # (B,heads,hs)
    for name, part in new.items():
        getattr(attention, name).forward = lambda x, part=part: part.flatten(1)[:, None]
    found = attention(torch.zeros(B, 1, H * hs), past=Past(cache, None, None))
    assert torch.allclose(found.view(B, H, hs), answer("11c", "")(q, k, v), atol=1e-5)


def test_only_the_copies_are_seen_as_copies():
    args = exercises["11c"]["inputs"](1)[0]
    copies = {
        mistake: seen_working(f, *args)["copies"] for mistake, (f, _) in exercises["11c"]["wrong"].items()
    }
    assert [mistake for mistake, copied in copies.items() if copied] == ["k and v copied"]


def by_broadcast(q, k, v):
    """No line repeats k, but matmul has to fit it to q, and copies it there."""
    q = q.unflatten(1, (k.size(1), -1))[:, :, :, None]  # (B,K,H/K,1,hs)
    weights = torch.softmax(q @ k[:, :, None].mT / q.size(4) ** 0.5, dim=-1)
    return (weights @ v[:, :, None]).flatten(1, 3)


def by_einsum(q, k, v):
    q = q.unflatten(1, (k.size(1), -1))
    weights = torch.softmax(torch.einsum("bkgd,bktd->bkgt", q, k) / q.size(3) ** 0.5, dim=-1)
    return torch.einsum("bkgt,bktd->bkgd", weights, v).flatten(1, 2)


@pytest.mark.parametrize(("answer", "mistake"), [(by_broadcast, "k and v copied"), (by_einsum, "")])
def test_a_copy_within_matmul_is_seen(answer, mistake):
    found = judge(exercises["11c"], answer)
    assert (found["status"] == RIGHT, found["mistake"]) == (not mistake, mistake)


def test_queries_cut_are_missing_in_the_output():
    q, k, v = exercises["11c"]["inputs"](1)[0]
    assert answer("11c", "queries cut")(q, k, v).shape == (2, 3, 5)
