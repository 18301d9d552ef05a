"""The base model with the heads that a metadata column needs.

Shapes: ``B`` samples, ``S`` most ASVs of a sample, ``D`` width, ``F`` features of a linear head, ``C`` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aam.models.covariates import CovariateFusion
from aam.models.precision import in_float32
from aam.models.sequence_encoder import EncodedSamples, SampleBatch, SequenceEncoder, abundance_means

__all__ = ["LinearHead", "Predictions", "ResidualLayer", "SequencePredictor", "TargetHead"]


class Predictions(NamedTuple):
    """What `SequencePredictor` makes of a batch."""

    encoded: EncodedSamples
    target: Tensor  # (B, C)


class TargetHead(nn.Module):
    """Sample embedding to the target: one hidden layer, or residual ones of stated widths.

    Parameters
    ----------
    dim : int
        Width of the sample embedding.
    outputs : int
        1 for a number, the number of classes for classes.
    dropout : float
    widths : sequence of int
        Of residual layers; none for one plain hidden layer as wide as the embedding.
    """

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0, widths: Sequence[int] = ()) -> None:
        super().__init__()
        if widths:
            steps = zip([dim, *widths], widths, strict=False)
            blocks = [ResidualLayer(before, after, dropout) for before, after in steps]
            self.layers = nn.Sequential(*blocks, nn.Linear(widths[-1], outputs))
        else:
            self.layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, outputs))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return in_float32(self.layers, embedding)


class LinearHead(nn.Module):
    """What the base knows of a sample to the target, linearly.

    It is not learnt by gradient steps, and nothing of it reaches the base: see `aam.linear_head`. Until it is fitted it
    gives 0.

    Parameters
    ----------
    dim : int
        Width of the sample embedding and of ASV embeddings.
    outputs : int
        See `TargetHead`.
    """

    BLOCKS = 3  # of features: the sample embedding, and two means of ASV embeddings

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(self.BLOCKS * dim, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, C)."""
        return in_float32(self.linear, features)


class ResidualLayer(nn.Module):
    """What comes in, plus a hidden layer of it (He et al. 2016); projected where the width changes.

    Parameters
    ----------
    before, after : int
        Widths.
    dropout : float
    """

    def __init__(self, before: int, after: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(before), nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout), nn.Linear(after, after)
        )
        self.skip = nn.Identity() if before == after else nn.Linear(before, after, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(B, before) to (B, after)."""
        return self.skip(states) + self.layers(states)


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
    head_widths : sequence of int
        See `TargetHead`.
    fusion : CovariateFusion, optional
        Of covariates, where batches have them. The target head alone reads what it gives.
    linear : bool
        With a `LinearHead`, which reads `features` and knows nothing of covariates.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        outputs: int,
        dropout: float = 0.0,
        head_widths: Sequence[int] = (),
        fusion: CovariateFusion | None = None,
        linear: bool = False,
    ) -> None:
        super().__init__()
        assert not (linear and fusion is not None)
        self.encoder = encoder
        self.linear = linear
        self.target_head: nn.Module = (
            LinearHead(encoder.dim, outputs) if linear else TargetHead(encoder.dim, outputs, dropout, head_widths)
        )
        self.count_head = nn.Linear(encoder.dim, 1)
        self.fusion = fusion

    def forward(self, batch: SampleBatch) -> Predictions:
        """Encode a batch and predict its target."""
        encoded = self.encoder(batch)
        if self.linear:
            features = self.features(encoded, batch)
            return Predictions(encoded, self.target_head(features.detach() if self.training else features))
        embedding = encoded.embedding
        if self.fusion is not None:
            assert batch.categories is not None
            assert batch.numbers is not None
            embedding = self.fusion(embedding, batch.categories, batch.numbers)
        return Predictions(encoded, self.target_head(embedding))

    def features(self, encoded: EncodedSamples, batch: SampleBatch) -> Tensor:
        """What a linear head reads: sample embeddings, and means of ASV embeddings weighted by abundance.

        Parameters
        ----------
        encoded : EncodedSamples
            Of the batch, with ASV embeddings.
        batch : SampleBatch

        Returns
        -------
        Tensor (B, F)
            ``F`` is 3 D.
        """
        means = abundance_means(encoded.asv_embeddings, batch)
        return torch.cat([encoded.embedding.to(means.dtype), means], dim=1)

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
