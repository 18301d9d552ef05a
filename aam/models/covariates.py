"""What else is known of a sample joins its embedding, for the target head alone to read.

Every way of joining starts near the embedding as it is, so that a pre-trained encoder starts as it was.

Shapes: ``B`` samples, ``C`` categorical and ``K`` numeric covariates, ``D`` width, ``H`` heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aam.models.precision import at_least_float32, without_autocast

__all__ = [
    "FUSIONS",
    "AddFusion",
    "ConcatFusion",
    "CovariateFusion",
    "CovariateTokens",
    "CrossAttention",
    "GatedFusion",
]

_START = 0.02  # of the size of what covariates say, as it joins at first
_GATE_START = 3.0  # 95% of the sample at first


class CovariateTokens(nn.Module):
    """A vector for each covariate: that of its category, or a linear map of its number and of whether it is known.

    Parameters
    ----------
    dim : int
    sizes : sequence of int
        Categories of each categorical covariate, the unknown one left out.
    numbers : int
        ``K``.
    """

    def __init__(self, dim: int, sizes: Sequence[int], numbers: int) -> None:
        super().__init__()
        self.categories = nn.ModuleList(nn.Embedding(size + 1, dim) for size in sizes)
        self.numbers = nn.ModuleList(nn.Linear(2, dim) for _ in range(numbers))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Places (B, C), 0 where unknown, and numbers (B, K), NaN where unknown, to (B, C + K, D)."""
        unknown = numbers.isnan()
        read = torch.stack([numbers.masked_fill(unknown, 0), unknown.to(numbers.dtype)], dim=-1)  # (B, K, 2)
        tokens = [embedding(categories[:, place]) for place, embedding in enumerate(self.categories)]
        for place, linear in enumerate(self.numbers):
            assert isinstance(linear, nn.Linear)
            tokens.append(linear(read[:, place].to(linear.weight.dtype)))
        return torch.stack(tokens, dim=1)


def _small(linear: nn.Linear) -> nn.Linear:
    """A linear map whose output is small at first."""
    nn.init.normal_(linear.weight, std=_START / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
    return linear


class ConcatFusion(nn.Module):
    """A linear map of the sample and the mean of its covariates side by side.

    Parameters
    ----------
    dim, heads : int
        Width; heads are not for this one.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.linear = _small(nn.Linear(2 * dim, dim))
        with torch.no_grad():
            self.linear.weight[:, :dim] = torch.eye(dim)

    def forward(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, D) and (B, C + K, D) to (B, D)."""
        joined: Tensor = self.linear(torch.cat([embedding, tokens.mean(dim=1)], dim=-1))
        return joined


class AddFusion(nn.Module):
    """The sample plus a linear map of the mean of its covariates.

    Parameters
    ----------
    dim, heads : int
        Width; heads are not for this one.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.linear = _small(nn.Linear(dim, dim))

    def forward(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, D) and (B, C + K, D) to (B, D)."""
        return embedding + self.linear(tokens.mean(dim=1))


class GatedFusion(nn.Module):
    """A gated multimodal unit (Arevalo et al. 2017): each channel takes a share of the sample, the rest of covariates.

    Unlike theirs, what it reads of the sample has no tanh, so that it can start as the sample is.

    Parameters
    ----------
    dim, heads : int
        Width; heads are not for this one.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.sample = nn.Linear(dim, dim)
        self.covariates = nn.Linear(dim, dim)
        self.gate = _small(nn.Linear(2 * dim, dim))
        nn.init.eye_(self.sample.weight)
        nn.init.zeros_(self.sample.bias)
        nn.init.constant_(self.gate.bias, _GATE_START)

    def forward(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, D) and (B, C + K, D) to (B, D)."""
        said = tokens.mean(dim=1)
        share = self.gate(torch.cat([embedding, said], dim=-1)).sigmoid()
        return share * self.sample(embedding) + (1 - share) * self.covariates(said).tanh()


class CrossAttention(nn.Module):
    """The sample plus what it reads, by attention, of its covariates.

    Parameters
    ----------
    dim, heads : int
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.keys_values = nn.Linear(dim, 2 * dim)
        self.out = _small(nn.Linear(dim, dim))

    def forward(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """(B, D) and (B, C + K, D) to (B, D)."""
        b, t, d = tokens.shape
        of_head = d // self.heads
        q = self.query(embedding).view(b, 1, self.heads, of_head).transpose(1, 2)  # (B, H, 1, D/H)
        k, v = self.keys_values(tokens).view(b, t, 2, self.heads, of_head).permute(2, 0, 3, 1, 4)  # (B, H, C + K, D/H)
        return embedding + self.out(F.scaled_dot_product_attention(q, k, v).reshape(b, d))


FUSIONS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "add": AddFusion,
    "gmu": GatedFusion,
    "cross-attention": CrossAttention,
}


class CovariateFusion(nn.Module):
    """Sample embeddings joined with what else is known of the samples.

    Parameters
    ----------
    dim : int
    heads : int
        Of cross-attention.
    sizes, numbers
        See `CovariateTokens`.
    fusion : str
        One of `FUSIONS`.
    """

    def __init__(self, dim: int, heads: int, sizes: Sequence[int], numbers: int, fusion: str = "concat") -> None:
        super().__init__()
        assert len(sizes) + numbers > 0
        self.tokens = CovariateTokens(dim, sizes, numbers)
        self.join = FUSIONS[fusion](dim, heads)

    def forward(self, embedding: Tensor, categories: Tensor, numbers: Tensor) -> Tensor:
        """Embeddings (B, D), places (B, C) and numbers (B, K) to (B, D), in float32 at least."""
        embedding = at_least_float32(embedding)
        with without_autocast(embedding):
            joined: Tensor = self.join(embedding, self.tokens(categories, numbers))
        return joined
