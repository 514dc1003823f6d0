"""Multi-token prediction: further heads learn the tokens after the next one (Gloeckle et al., 2024).

    python train.py config/small.py --multi_token=1 --multi_token_weight=0.3      or --technique=multi_token

From the hidden states h that predict token t + 1, n further blocks, each by itself, predict tokens t + 2,
..., t + n + 1, with the model's own head (as in the paper; DeepSeek-V3 chains such blocks):

    loss = nats of the next token + weight x sum over i = 1 ... n of the nats of the token i later

Each is summed over its targets. Targets beyond the window, and those that are masked (-1), are not scored.
The sum is divided by the number of next tokens, as always: so the loss of progress lines is larger than
without. Evaluation scores the next token alone: val losses can be compared. Generation does not use the
further blocks: text, speed and cache are those of the model without them.

In training n blocks (12 C^2 for arch=modern) and norms come on top, and the logits of n more predictions a
token, in operations and in memory: 6 (12 C^2 + V C) n operations a token, and 4 n B T V bytes of logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import require
from model import GPT, Block, build_norm, rope_tables, summed_nats

# -----------------------------------------------------------------------------
multi_token = 1  # how many tokens after the next one are predicted, too
multi_token_weight = 0.3  # of the nats of each of them; those of the next token count 1
# -----------------------------------------------------------------------------


class Further(Block):
    """A block and its norm, which predict one later token from the trunk's hidden states (B,T,C)."""

    def __init__(self, config):
        super().__init__(config)
        self.norm = build_norm(config, config.n_embd)

    def forward(self, x: Tensor, rope=None) -> Tensor:
        return self.norm(super().forward(x, rope))


class Ahead(nn.Module):
    """The blocks that look further ahead. Their names have "blocks", too, so Muon trains their matrices."""

    def __init__(self, config, count: int, weight: float):
        super().__init__()
        self.weight = weight
        self.blocks = nn.ModuleList(Further(config) for _ in range(count))


class MultiTokenGPT(GPT):
    """A GPT whose loss has further terms."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """As GPT.forward. With targets (B,T): their nats, and the weighted nats of those further ahead."""
        if targets is None:
            return super().forward(idx)
        config, T = self.config, idx.size(1)
        x, rope = self.trunk(idx), None  # (B,T,C)
        if config.position == "rope":
            positions = torch.arange(T, device=idx.device)[None]  # (1,T)
            rope = rope_tables(positions, config.head_size, config.rope_theta, config.rope_scaling)
        nats = summed_nats(self.to_logits(x), targets)
        for i, block in enumerate(self.ahead.blocks, start=1):
            later = F.pad(targets[:, i:], (0, i), value=-1)  # (B,T): token t + 1 + i at t; none at the end
            nats = nats + self.ahead.weight * summed_nats(self.to_logits(block(x, rope)), later)
        return nats


def change_model(model, config: dict):
    """Put the further blocks beside the model's own. ValueError for settings that make no sense."""
    count, weight, block_size = config["multi_token"], config["multi_token_weight"], model.config.block_size
    possible = 1 <= count < block_size
    require(
        possible, f"multi_token={count} makes no sense; expected 1 or more, below block_size={block_size}"
    )
    require(weight > 0, f"multi_token_weight={weight} makes no sense; expected above 0, such as 0.3")
    with torch.device(model.norm.weight.device):
        model.ahead = Ahead(model.config, count, weight).train(model.training)
    model.init_weights(model.ahead)
    model.__class__ = MultiTokenGPT
    return model


def loss(model, x: Tensor, y: Tensor, config: dict) -> Tensor:
    """Ids x and targets y (B,T) -> summed nats of all predictions. model: wrapped, where ranks share."""
    return model(x, y)
