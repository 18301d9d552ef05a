"""ASV embeddings to samples: gathered, joined with abundance, attended.

Shapes: ``U`` distinct ASVs, ``B`` samples, ``S`` most ASVs of a sample, ``D`` width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aam.models.transformer import Transformer

__all__ = ["AbundanceEmbedding", "CountEmbedding", "SampleSequenceEncoder", "log_abundance"]

CountEmbedding = Literal["add", "concat", "film", "none"]


def log_abundance(counts: Tensor, depth: Tensor) -> Tensor:
    """Natural logarithm of relative abundance, 0 where an ASV is absent.

    Parameters
    ----------
    counts : Tensor (B, S)
        Reads of each ASV of a sample; 0 at padding.
    depth : Tensor (B,)
        Reads of the sample, those of ASVs beyond the token limit included.

    Returns
    -------
    Tensor (B, S)
    """
    return torch.where(counts > 0, (counts.clamp(min=1e-12) / depth[:, None]).log(), 0.0)


class AbundanceEmbedding(nn.Module):
    """Joins the abundance of an ASV with its embedding.

    Log abundances are standardised by the mean and standard deviation of the training split, kept as buffers so that
    they travel with the weights.

    Parameters
    ----------
    dim : int
    mode : {"add", "concat", "film", "none"}
        ``film`` scales and shifts each channel (Perez et al. 2018); ``none`` leaves abundance out.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, dim: int, mode: CountEmbedding) -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("mean", torch.tensor(-6.0))
        self.register_buffer("sd", torch.tensor(2.0))
        self.masked = nn.Parameter(torch.zeros(dim))
        if mode != "none":
            self.embed = nn.Sequential(nn.Linear(1, dim), nn.GELU(), nn.Linear(dim, dim))
        if mode == "concat":
            self.join: nn.Module = nn.Linear(2 * dim, dim)
        elif mode == "film":
            self.join = nn.Linear(dim, 2 * dim)

    def standardise(self, log_abundances: Tensor) -> Tensor:
        """Log abundances in standard deviations of the training split."""
        return (log_abundances - self.mean) / self.sd

    def forward(self, x: Tensor, log_abundances: Tensor, hidden: Tensor | None) -> Tensor:
        """Join.

        Parameters
        ----------
        x : Tensor (B, S, D)
        log_abundances : Tensor (B, S)
            From `log_abundance`.
        hidden : Tensor (B, S) of bool, optional
            True where the abundance is withheld.

        Returns
        -------
        Tensor (B, S, D)
        """
        if self.mode == "none":
            return x
        abundance = self.embed(self.standardise(log_abundances)[:, :, None].to(x.dtype))  # (B, S, D)
        if hidden is not None:
            abundance = torch.where(hidden[:, :, None], self.masked.to(abundance.dtype), abundance)
        if self.mode == "add":
            return x + abundance
        if self.mode == "concat":
            return self.join(torch.cat([x, abundance], dim=-1))
        scale, shift = self.join(abundance).chunk(2, dim=-1)
        return x * (1 + scale) + shift


class SampleSequenceEncoder(nn.Module):
    """Each ASV of a sample in the company of the others.

    There is no position embedding: the order of ASVs in a table means nothing.

    Parameters
    ----------
    dim, heads, layers, feed_forward_factor : int
    dropout : float
    count_embedding : {"add", "concat", "film", "none"}
    gradient_checkpointing : bool
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        feed_forward_factor: int = 4,
        dropout: float = 0.0,
        count_embedding: CountEmbedding = "add",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.abundance = AbundanceEmbedding(dim, count_embedding)
        self.transformer = Transformer(dim, heads, layers, feed_forward_factor, dropout, gradient_checkpointing)

    def forward(
        self,
        asv_embeddings: Tensor,
        asv_index: Tensor,
        counts: Tensor,
        depth: Tensor,
        hidden: Tensor | None = None,
        ragged: bool = True,
    ) -> Tensor:
        """Encode samples.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        asv_index : Tensor (B, S) of int
            Rows of ``asv_embeddings``; any row at padding.
        counts : Tensor (B, S)
            0 at padding.
        depth : Tensor (B,)
        hidden : Tensor (B, S) of bool, optional
            Abundances to withhold.
        ragged : bool
            Whether any place is padding; a mask is built only then.

        Returns
        -------
        Tensor (B, S, D)
        """
        # Not asv_embeddings[asv_index], whose gradient is summed one row at a time on a CPU.
        x = F.embedding(asv_index, asv_embeddings)  # (B, S, D)
        x = self.abundance(x, log_abundance(counts, depth), hidden)
        return self.transformer(x, counts > 0 if ragged else None)
