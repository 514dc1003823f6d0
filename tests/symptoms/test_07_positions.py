"""Lesson 7: what its wrong answers do to a model."""

import torch

from lessons import course
from lessons.checks.positions import exercises
from model import Block, GPTConfig

course.checks(7)  # its words are put to it


def vectors(mistake: str, *args):
    exercise = exercises["7c"]
    return (exercise["wrong"][mistake][0] if mistake else exercise["reference"])(*args)


def test_without_positions_a_block_cannot_tell_the_order_of_the_past():
    """The last output is unchanged, but for rounding, when all before it is permuted."""
    torch.manual_seed(7)
    block = Block(GPTConfig(arch="gpt2", n_head=2, n_embd=32)).requires_grad_(False)
    for weight in block.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape))
    tokens, positions, past = torch.randn(65, 32), torch.randn(64, 32), torch.randperm(65)[:20]
    ids = torch.stack((torch.cat((past, past[:1])), torch.cat((past.flip(0), past[:1]))))

    def moved(mistake: str) -> float:
        first, second = block(vectors(mistake, ids, tokens, positions))[:, -1]
        return (first - second).abs().max().item()

    assert moved("none added") < 1e-5
    assert moved("one row for all") < 1e-5
    assert moved("") > 0.1


def test_positions_cut_to_the_batch_are_silent_in_a_square_batch():
    g = torch.Generator().manual_seed(7)
    ids, tokens, positions = torch.randint(9, (7, 7), generator=g), torch.randn(9, 12), torch.randn(16, 12)
    assert torch.equal(vectors("cut to B", ids, tokens, positions), vectors("", ids, tokens, positions))
    assert not torch.equal(
        vectors("along the batch", ids, tokens, positions), vectors("", ids, tokens, positions)
    )
