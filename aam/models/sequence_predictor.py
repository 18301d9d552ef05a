"""The base model with the heads that a metadata column needs.

Shapes: ``B`` samples, ``S`` most ASVs of a sample, ``D`` width, ``C`` outputs.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from aam.models.precision import in_float32
from aam.models.sequence_encoder import EncodedSamples, SampleBatch, SequenceEncoder

__all__ = ["Predictions", "SequencePredictor", "TargetHead"]


class Predictions(NamedTuple):
    """What `SequencePredictor` makes of a batch."""

    encoded: EncodedSamples
    target: Tensor  # (B, C)


class TargetHead(nn.Module):
    """Sample embedding to the target: one hidden layer.

    Parameters
    ----------
    dim : int
        Width of the sample embedding.
    outputs : int
        1 for a number, the number of classes for classes.
    dropout : float
    """

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, outputs))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return in_float32(self.layers, embedding)


class SequencePredictor(nn.Module):
    """A `SequenceEncoder`, a target head and a count head.

    Parameters
    ----------
    encoder : SequenceEncoder
        Composed, so that a pre-trained one is loaded and frozen as one piece.
    outputs : int
        See `TargetHead`.
    dropout : float
        In the target head.
    """

    def __init__(self, encoder: SequenceEncoder, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.target_head = TargetHead(encoder.dim, outputs, dropout)
        self.count_head = nn.Linear(encoder.dim, 1)

    def forward(self, batch: SampleBatch) -> Predictions:
        """Encode a batch and predict its target."""
        encoded = self.encoder(batch)
        return Predictions(encoded, self.target_head(encoded.embedding))

    def restore_counts(self, asv_embeddings: Tensor, batch: SampleBatch, hidden: Tensor) -> Tensor:
        """Guess withheld abundances from the rest of the sample.

        A pass of its own over the samples: the one that predicts the target sees every abundance.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        batch : SampleBatch
        hidden : Tensor (B, S) of bool
            Abundances that are withheld.

        Returns
        -------
        Tensor (B, S)
            Standardised log abundances.
        """
        in_samples = self.encoder.sample_encoder(
            asv_embeddings, batch.asv_index, batch.counts, batch.depth, hidden, ragged=batch.ragged
        )
        return in_float32(self.count_head, in_samples).squeeze(-1)
