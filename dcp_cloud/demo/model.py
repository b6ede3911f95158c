"""The transformer that the demo trains, and the data it learns.

Every size is a multiple of 64, so that each shard on 1, 2 or 4 ranks is processed by whole vector instructions. The
last few elements of a vector loop may be rounded otherwise, and the demo compares bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

VOCABULARY = 256
CONTEXT = 32
MICROBATCHES = 4
"""Sequences in a step. Each is a batch of its own, on however many ranks, so its gradient is always the same."""

_DROPOUT = 0.1
_SYMBOLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How large the model is.

    Args:
        width: Features of a token.
        layers: Number of blocks.
        heads: Attention heads of a block.
    """

    width: int
    layers: int
    heads: int


SIZES: Mapping[str, ModelSize] = MappingProxyType(
    {
        "small": ModelSize(width=256, layers=2, heads=4),  # 1.7 million parameters
        "default": ModelSize(width=512, layers=7, heads=8),  # 22 million parameters
    }
)


class Block(nn.Module):
    """Causal attention and a feed-forward net, both with a residual connection."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1 = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm2 = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features of shape (batch, tokens, width) to the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(attended), _DROPOUT, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), _DROPOUT, self.training)


class Transformer(nn.Module):
    """A small language model.

    Args:
        size: How large.
    """

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(CONTEXT, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give the loss of predicting ``targets`` from ``tokens``."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def sequence(position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the sequence at a position of the endless data set: symbols that go up by a constant stride.

    Args:
        position: Which one; the same position always gives the same sequence.

    Returns:
        Tokens and the tokens that follow them, each of shape (1, CONTEXT).
    """
    generator = torch.Generator().manual_seed(position)
    start, stride = (int(torch.randint(1, limit, (), generator=generator)) for limit in (_SYMBOLS, 4))
    symbols = (start + stride * torch.arange(CONTEXT + 1)) % _SYMBOLS
    return symbols[:-1].unsqueeze(0), symbols[1:].unsqueeze(0)
