"""Nucleotides to ASV embeddings.

Shapes: ``U`` distinct ASVs, ``L`` tokens of the longest, ``D`` width, ``M`` ASVs with masked nucleotides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aam.models.attention_pooling import AttentionPooling
from aam.models.transformer import Transformer

__all__ = ["PAD", "VOCABULARY_SIZE", "ASVEncoder"]

VOCABULARY_SIZE = 8  # PAD 0, A 1, C 2, G 3, T 4, START 5, MASK 6, N 7: see aam.data.tokenizer
PAD = 0

# Tokens x width whose widest activation stays in a processor's cache. On two cores a whole batch at once reaches
# 35% of the matrix rate, pieces of this size 50 to 55%.
_CPU_CHUNK_ELEMENTS = 2**19


class ASVEncoder(nn.Module):
    """Token and position embedding, transformer, attention pooling.

    Parameters
    ----------
    dim, heads, layers, feed_forward_factor : int
        Of the transformer.
    max_bp : int
        Most bases of a sequence; one more place holds START.
    gradient_checkpointing : bool
        Recompute activations in the backward pass.
    chunk_size : int, optional
        Encode at most so many ASVs at a time. By default all at once, but on a CPU as many as its cache holds. The
        result is the same.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        max_bp: int,
        feed_forward_factor: int = 4,
        gradient_checkpointing: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, dim)
        self.position_scale = nn.Embedding(max_bp + 1, dim)
        self.position_shift = nn.Embedding(max_bp + 1, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_scale.weight, mean=1.0, std=1.0)
        nn.init.normal_(self.position_shift.weight, std=0.5)
        # No dropout over nucleotides: an ASV must mean the same in every sample of a batch.
        self.transformer = Transformer(
            dim, heads, layers, feed_forward_factor, gradient_checkpointing=gradient_checkpointing
        )
        self.pooling = AttentionPooling(dim, heads)
        self.shift = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.ones(dim))

    def encode_tokens(self, tokens: Tensor, padded: bool) -> Tensor:
        """Embed every nucleotide in its context.

        Parameters
        ----------
        tokens : Tensor (U, L) of uint8
        padded : bool
            Whether any token is PAD; a mask is built only then.

        Returns
        -------
        Tensor (U, L, D)
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        # A position scales the token and does not only add to it: so the mean over positions, which is about what a
        # fresh network gives, already tells apart sequences that differ in where their bases stand.
        x = self.token_embedding(tokens.int()) * self.position_scale(positions) + self.position_shift(positions)
        return self.transformer(x, tokens != PAD if padded else None)  # (U, L, D)

    def forward(self, tokens: Tensor, padded: bool) -> Tensor:
        """Embed ASVs.

        Parameters
        ----------
        tokens : Tensor (U, L) of uint8
        padded : bool
            Whether any token is PAD.

        Returns
        -------
        Tensor (U, D)
        """
        return torch.cat([self._encode(chunk, padded) for chunk in tokens.split(self.chunk(tokens))])

    def _encode(self, tokens: Tensor, padded: bool) -> Tensor:
        pooled = self.pooling(self.encode_tokens(tokens, padded), tokens != PAD if padded else None)  # (U, D)
        return (pooled - self.shift) * self.scale

    @torch.no_grad()
    def calibrate(self, tokens: Tensor, padded: bool) -> None:
        """Centre and scale the embeddings of these ASVs (U, L), where a fresh network starts from.

        What tells ASVs apart is at first a tenth of what they share. Without this, learning begins on a plateau.
        """
        pooled = self(tokens, padded)
        self.shift.add_(pooled.mean(dim=0) / self.scale)
        self.scale.div_(pooled.std(dim=0, correction=0).clamp(min=1e-4))

    def chunk(self, tokens: Tensor) -> int:
        """How many of these ASVs (U, L) to encode at a time."""
        if self.chunk_size is not None:
            return self.chunk_size
        if tokens.device.type != "cpu":
            return max(1, len(tokens))
        elements_per_asv = tokens.shape[1] * self.token_embedding.embedding_dim
        return max(1, _CPU_CHUNK_ELEMENTS // elements_per_asv)
