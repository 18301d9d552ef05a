"""How values and compositions of a sample are read: one small class per head.

Shapes: ``B`` samples, ``D`` width, ``T`` parts of a composition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CladeValueHead", "CompositionHead", "ValueHead"]

_ONE = math.log(math.expm1(1.0))  # softplus of this is 1


class CladeValueHead(nn.Module):
    """A value in proportion to what is read from the clades, whose branch lengths have no unit of their own."""

    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        # In units of the calibrated one, so that a step of the optimizer means the same for every tree.
        self.log_scale = nn.Parameter(torch.tensor([_ONE]))  # not (), which cannot be sharded
        self.register_buffer("unit", torch.tensor(1.0))

    def forward(self, from_clades: Tensor) -> Tensor:
        """(B,) to (B,)."""
        return self.unit * F.softplus(self.log_scale) * from_clades

    @torch.no_grad()
    def calibrate(self, from_clades: Tensor, mean: float) -> None:
        """Start at a mean value; ``from_clades`` (B,) is that of some samples."""
        level = float(from_clades.mean())
        if level > 0 and mean > 0:
            self.log_scale.fill_(_ONE)
            self.unit.fill_(mean / level)


class ValueHead(nn.Module):
    """A linear map of the sample embedding, in standard deviations of the training samples.

    Parameters
    ----------
    dim : int
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("sd", torch.tensor(1.0))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) to (B,)."""
        return self.mean + self.sd * self.linear(embedding).squeeze(-1)

    @torch.no_grad()
    def calibrate(self, mean: float, sd: float) -> None:
        """Take over mean and standard deviation of the training samples."""
        self.mean.fill_(mean)
        self.sd.fill_(sd)


class CompositionHead(nn.Module):
    """Logarithms of shares that sum to 1, from the sample embedding.

    Parameters
    ----------
    dim : int
    parts : int
        ``T``.
    """

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, parts)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) to (B, T)."""
        return self.linear(embedding).log_softmax(dim=-1)

    @torch.no_grad()
    def calibrate(self, mean: Tensor) -> None:
        """Start at the mean composition (T,)."""
        self.linear.bias.copy_(mean.clamp(min=1e-6).log())
