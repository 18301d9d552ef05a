"""Pre-norm transformer blocks on ``scaled_dot_product_attention``.

Shapes: ``N`` sequences, ``T`` elements of a sequence, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aam.models.attention import SelfAttention

__all__ = ["Transformer", "TransformerBlock", "through"]


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added after.

    Parameters
    ----------
    dim, heads : int
        Width and number of heads.
    feed_forward_factor : int
        Width of the feed-forward network in multiples of ``dim``.
    dropout : float
        Dropout on attention weights and on both branches.
    """

    def __init__(self, dim: int, heads: int, feed_forward_factor: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feed_forward_factor * dim)
        self.contract = nn.Linear(feed_forward_factor * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x), mask))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.norm_feed_forward(x)))))


def through(blocks: Sequence[nn.Module], x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (N, T, D) after some blocks, one after the other."""
    for block in blocks:
        x = block(x, mask)
    return x


class Transformer(nn.Module):
    """A stack of blocks and a final normalisation.

    Parameters
    ----------
    dim, heads, layers, feed_forward_factor : int
        Width, heads, number of blocks, and relative width of their feed-forward networks.
    dropout : float
        See `TransformerBlock`.
    gradient_checkpointing : bool
        Keep a block's input alone and recompute the rest in the backward pass.

    Attributes
    ----------
    fewest_sequences : int
        Fewer are repeated to so many, for the sake of compiled blocks, to which a size of 1 is a case of its own.
    elements_of : int
        Masked sequences are lengthened to a multiple of this, which attention with a mask asks for on a GPU.
    blocks_at_once : int
        How many blocks one call of ``through`` takes, which compiled is one graph.
    through : callable
        `through`, or compiled.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        feed_forward_factor: int = 4,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, feed_forward_factor, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.gradient_checkpointing = gradient_checkpointing
        self.draws = dropout > 0  # and must draw the same when a block is computed again
        self.fewest_sequences = 1
        self.elements_of = 1
        self.blocks_at_once = 1
        self.through = through
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform sequences.

        Parameters
        ----------
        x : Tensor (N, T, D)
        mask : Tensor (N, T) of bool, optional
            True where an element is real; None where all are.

        Returns
        -------
        Tensor (N, T, D)
            What stands at padded places is not defined.
        """
        n, t, _ = x.shape
        if mask is not None and t % self.elements_of:
            more = self.elements_of - t % self.elements_of
            x, mask = F.pad(x, (0, 0, 0, more)), F.pad(mask, (0, more))
        if n < self.fewest_sequences:  # repeated ones are computed beside the others and left out again
            x = x.repeat(self.fewest_sequences, 1, 1)
            mask = None if mask is None else mask.repeat(self.fewest_sequences, 1)
        blocks = list(self.blocks)
        for start in range(0, len(blocks), self.blocks_at_once):
            some = blocks[start : start + self.blocks_at_once]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.through, some, x, mask, use_reentrant=False, preserve_rng_state=self.draws)
            else:
                x = self.through(some, x, mask)
        return self.norm(x)[:n, :t]
