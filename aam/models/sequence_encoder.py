"""Samples to embeddings, with the self-supervised heads.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``D`` width, ``K`` clades,
``M`` ASVs with masked nucleotides, ``P`` masked nucleotides.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from aam.models.asv_encoder import VOCABULARY_SIZE, ASVEncoder
from aam.models.attention_pooling import AttentionPooling
from aam.models.distances import CladeHead, EuclideanHead
from aam.models.sample_sequence_encoder import CountEmbedding, SampleSequenceEncoder
from aam.models.transformer import Transformer

__all__ = ["DistanceHead", "EncodedSamples", "SampleBatch", "SequenceEncoder"]

DistanceHead = Literal["both", "clade", "euclidean"]


class SampleBatch(Protocol):
    """What the encoders read of a batch (`aam.data.batch.Batch` is one)."""

    @property
    def tokens(self) -> Tensor:
        """(U, L) of uint8."""

    @property
    def padded(self) -> bool:
        """Whether any token is PAD."""

    @property
    def asv_index(self) -> Tensor:
        """(B, S) of int: rows of `tokens`."""

    @property
    def counts(self) -> Tensor:
        """(B, S): reads, 0 at padding."""

    @property
    def depth(self) -> Tensor:
        """(B,): reads of each sample."""


class EncodedSamples(NamedTuple):
    """What `SequenceEncoder` makes of a batch."""

    asv_embeddings: Tensor  # (U, D)
    asvs_in_samples: Tensor  # (B, S, D)
    embedding: Tensor  # (B, D)
    presence: Tensor | None  # (B, K), with a clade head


class SequenceEncoder(nn.Module):
    """The base model: ASV encoder, sample encoder, a further transformer, attention pooling.

    Parameters
    ----------
    dim, heads, layers, feed_forward_factor : int
        Of each of the three transformers.
    max_bp : int
        Most bases of a sequence.
    dropout : float
        In the two transformers over samples.
    count_embedding : {"add", "concat", "film", "none"}
    distance_head : {"both", "clade", "euclidean"}
        The clade head trains the ASV encoder alone, the Euclidean one all of the base.
    clades : int
    gradient_checkpointing : bool
    asv_chunk_size : int, optional
    """

    def __init__(
        self,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        max_bp: int = 300,
        feed_forward_factor: int = 4,
        dropout: float = 0.0,
        count_embedding: CountEmbedding = "add",
        distance_head: DistanceHead = "both",
        clades: int = 256,
        gradient_checkpointing: bool = False,
        asv_chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.asv_encoder = ASVEncoder(
            dim, heads, layers, max_bp, feed_forward_factor, gradient_checkpointing, asv_chunk_size
        )
        self.sample_encoder = SampleSequenceEncoder(
            dim, heads, layers, feed_forward_factor, dropout, count_embedding, gradient_checkpointing
        )
        self.transformer = Transformer(dim, heads, layers, feed_forward_factor, dropout, gradient_checkpointing)
        self.pooling = AttentionPooling(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.nucleotide_head = nn.Linear(dim, VOCABULARY_SIZE)
        self.clade_head = CladeHead(dim, clades) if distance_head in ("clade", "both") else None
        self.presence_projection = nn.Linear(clades, dim) if self.clade_head is not None else None
        self.euclidean_head = EuclideanHead(dim) if distance_head in ("euclidean", "both") else None

    def forward(self, batch: SampleBatch) -> EncodedSamples:
        """Encode the samples of a batch."""
        return self.encode_samples(self.asv_encoder(batch.tokens, batch.padded), batch)

    def encode_samples(self, asv_embeddings: Tensor, batch: SampleBatch) -> EncodedSamples:
        """Encode samples whose ASVs are encoded already.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        batch : SampleBatch
        """
        present = batch.counts > 0  # (B, S)
        in_samples = self.sample_encoder(asv_embeddings, batch.asv_index, batch.counts, batch.depth)  # (B, S, D)
        pooled = self.pooling(self.transformer(in_samples, present), present)  # (B, D)
        presence = None
        if self.clade_head is not None and self.presence_projection is not None:
            presence = self.clade_head.presence(asv_embeddings, batch.asv_index, present)  # (B, K)
            pooled = pooled + self.presence_projection(presence.to(pooled.dtype))
        return EncodedSamples(asv_embeddings, in_samples, self.norm(pooled), presence)

    @torch.no_grad()
    def calibrate(self, batch: SampleBatch, mean_distance: float) -> None:
        """Let the distances of a fresh network start at the level of real ones.

        Parameters
        ----------
        batch : SampleBatch
            Training samples, at least two.
        mean_distance : float
            Mean distance between them; about 0.5 where none are known.
        """
        asv_embeddings = self.asv_encoder(batch.tokens, batch.padded)
        if self.clade_head is not None:
            self.clade_head.calibrate(asv_embeddings, batch.asv_index, batch.counts > 0, mean_distance)
        if self.euclidean_head is not None:
            self.euclidean_head.calibrate(self.encode_samples(asv_embeddings, batch).embedding, mean_distance)

    def restore_nucleotides(self, masked_tokens: Tensor, padded: bool, places: Tensor) -> Tensor:
        """Guess masked nucleotides from their context.

        Parameters
        ----------
        masked_tokens : Tensor (M, L) of uint8
        padded : bool
            Whether any token is PAD.
        places : Tensor (M, L) of bool
            The ``P`` masked ones; the head is applied to these alone.

        Returns
        -------
        Tensor (P, 8)
            Logits over tokens.
        """
        size = self.asv_encoder.chunk(masked_tokens)
        restored = [
            self.asv_encoder.encode_tokens(tokens, padded)[masked]
            for tokens, masked in zip(masked_tokens.split(size), places.split(size), strict=True)
        ]
        return self.nucleotide_head(torch.cat(restored))

    def distances(
        self,
        embedding: Tensor,
        presence: Tensor | None,
        reference_embedding: Tensor,
        reference_presence: Tensor | None,
    ) -> dict[str, Tensor]:
        """Distances between two sets of samples, as each head reads them.

        Parameters
        ----------
        embedding, presence : Tensor (N, D) and (N, K)
            From `forward`.
        reference_embedding, reference_presence : Tensor (M, D) and (M, K)

        Returns
        -------
        dict of str to Tensor (N, M)
            By head, the leading one first: ``clade`` where there is one.
        """
        read: dict[str, Tensor] = {}
        with torch.autocast(embedding.device.type, enabled=False):
            if self.clade_head is not None:
                assert presence is not None and reference_presence is not None
                read["clade"] = self.clade_head(presence, reference_presence)
            if self.euclidean_head is not None:
                dtype = self.euclidean_head.log_scale.dtype  # float32, whatever autocast made of the embeddings
                read["euclidean"] = self.euclidean_head(embedding.to(dtype), reference_embedding.to(dtype))
        return read
