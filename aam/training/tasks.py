"""What is learnt: a task turns a batch into a loss, and held-out samples into metrics. The loop knows neither.

Shapes: ``B`` samples of a batch, ``n`` held-out samples, ``D`` width, ``K`` clades, ``C`` outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aam.config import TaskConfig
from aam.data.batch import Batch
from aam.data.draws import generator
from aam.data.targets import ClassTarget, NumericTarget
from aam.models.sample_sequence_encoder import log_abundance
from aam.models.sequence_encoder import EncodedSamples, SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from aam.training.losses import (
    REGRESSION_LOSSES,
    LossOutput,
    class_loss,
    count_loss,
    nucleotide_loss,
    pairwise_loss,
    weighted,
)
from aam.training.metrics import classification_metrics, pair_values, regression_metrics

__all__ = ["Distances", "Evaluation", "PretrainTask", "Task", "TrainTask", "prediction_table"]

_MOST_SAMPLES_IN_PAIRS = 5000


@dataclass(frozen=True)
class Distances:
    """The distances of a study, as a task needs them."""

    values: NDArray[np.float32]  # (N, N)
    variance: float  # over the pairs of the training split

    @classmethod
    def of(cls, values: NDArray[np.float32], train: NDArray[np.int64]) -> Distances:
        """With the variance over the pairs of the training rows; 1 where they do not vary."""
        variance = float(pair_values(values[np.ix_(train, train)]).astype(np.float64).var()) if len(train) > 1 else 0.0
        return cls(values, variance or 1.0)


@dataclass(frozen=True)
class Evaluation:
    """Held-out samples, judged."""

    losses: dict[str, float]  # ``loss`` and its parts
    metrics: dict[str, float]  # in original units
    sample_index: NDArray[np.int64]  # (n,)
    output: NDArray[np.float32] | None = None  # (n, C): what the target head gave
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    # by distance head: actual and predicted distances of the pairs


class _Sum(NamedTuple):
    """A mean in the making."""

    total: float
    number: float

    @classmethod
    def of(cls, mean: Tensor, number: Tensor | int) -> _Sum:
        return cls(float(mean) * float(number), float(number))


class _Judged(NamedTuple):
    """What is kept of a held-out batch."""

    sample_index: Tensor  # (B,)
    embedding: Tensor  # (B, D)
    presence: Tensor | None  # (B, K)
    output: Tensor | None  # (B, C)
    sums: dict[str, _Sum]


class Task:
    """Distances and masked nucleotides: what both commands share.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    encoder : SequenceEncoder
        The base of it.
    config : TaskConfig
    distances : Distances, optional
    seed : int
        Of the subset of held-out samples whose pairs are judged where there are more than 5,000.
    """

    monitor: str  # the validation loss that early stopping and the best model go by

    def __init__(
        self, model: nn.Module, encoder: SequenceEncoder, config: TaskConfig, distances: Distances | None, seed: int
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.config = config
        self.distances = distances
        self.seed = seed
        self.weights = {
            "unifrac_loss": config.unifrac_weight,
            "unifrac_euclidean_loss": config.unifrac_weight,
            "nuc_loss": config.nuc_weight,
            "count_loss": config.count_weight,
            "target_loss": config.target_weight,
        }

    def to(self, device: torch.device) -> Self:
        """Move the model to a device."""
        self.model.to(device)
        return self

    def train(self) -> None:
        """Set the model to training; a frozen base stays as it is in prediction."""
        self.model.train()
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of a training batch."""
        encoded, output = self._forward(batch)
        parts: dict[str, Tensor] = {}
        if self.distances is not None and self.config.unifrac_weight > 0:
            assert batch.distances is not None
            parts |= self._distance_losses(encoded.embedding, encoded.presence, batch.distances, batch.mixed)
        parts |= {name: mean for name, (mean, _) in self._other_losses(batch, encoded, output).items()}
        if not parts:  # nothing was drawn to be restored in this batch
            return LossOutput(encoded.embedding.sum() * 0, {})
        return weighted(parts, self.weights)

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> Evaluation:
        """Judge held-out samples; the same for any batch size."""
        kept: list[_Judged] = []
        for batch in batches:
            encoded, output = self._forward(batch)
            sums = {name: _Sum.of(*mean) for name, mean in self._other_losses(batch, encoded, output).items()}
            kept.append(_Judged(batch.sample_index, encoded.embedding, encoded.presence, output, sums))
        totals: dict[str, list[_Sum]] = defaultdict(list)
        for judged in kept:
            for name, part in judged.sums.items():
                totals[name].append(part)
        losses = {
            name: sum(part.total for part in parts) / max(1.0, sum(part.number for part in parts))
            for name, parts in totals.items()
        }
        sample_index = torch.cat([judged.sample_index for judged in kept]).cpu().numpy()  # (n,)
        outputs = [judged.output for judged in kept if judged.output is not None]
        output_array = torch.cat(outputs).float().cpu().numpy() if outputs else None  # (n, C)
        metrics, pairs = self._target_metrics(sample_index, output_array), {}
        if self.distances is not None and len(sample_index) > 1:
            pairs = self._pairs(kept, sample_index)
            for head, (actual, predicted) in pairs.items():
                name = "unifrac" if head == self.leading_head else f"unifrac_{head}"
                metrics |= regression_metrics(actual, predicted, f"{name}_")
                if self.config.unifrac_weight > 0:
                    errors = (predicted.astype(np.float64) - actual) ** 2
                    losses[f"{name}_loss"] = float(errors.mean() / self.distances.variance)
        losses["loss"] = sum(self.weights[name] * value for name, value in losses.items())
        return Evaluation(losses, metrics, sample_index, output_array, pairs)

    @property
    def leading_head(self) -> str:
        """The distance head whose reading is called ``unifrac`` without further name."""
        return "clade" if self.encoder.clade_head is not None else "euclidean"

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, Tensor | None]:
        raise NotImplementedError

    def _other_losses(
        self, batch: Batch, encoded: EncodedSamples, output: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor | int]]:
        """Losses that are means over something of a batch's own, each with how many that is."""
        masked = batch.masked_nucleotides
        if masked is None:
            return {}
        logits = self.encoder.restore_nucleotides(masked.tokens, batch.padded, masked.places)  # (P, 8)
        true_tokens = masked.true_tokens[masked.places]  # (P,)
        return {"nuc_loss": (nucleotide_loss(logits, true_tokens), len(true_tokens))}

    def _target_metrics(self, sample_index: NDArray[np.int64], output: NDArray[np.float32] | None) -> dict[str, float]:
        return {}

    def _distance_losses(
        self, embedding: Tensor, presence: Tensor | None, actual: Tensor, mixed: Tensor | None
    ) -> dict[str, Tensor]:
        assert self.distances is not None
        return {
            "unifrac_loss" if head == self.leading_head else f"unifrac_{head}_loss": pairwise_loss(
                predicted, actual, self.distances.variance, mixed
            )
            for head, predicted in self.encoder.distances(embedding, presence, embedding, presence).items()
        }

    def _pairs(
        self, kept: list[_Judged], sample_index: NDArray[np.int64]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Actual and predicted distances of all pairs of held-out samples, up to 5,000 of these."""
        assert self.distances is not None
        chosen = np.arange(len(sample_index))
        if len(chosen) > _MOST_SAMPLES_IN_PAIRS:
            draws = generator("samples whose pairs are judged", self.seed, 0)
            chosen = np.sort(draws.choice(chosen, _MOST_SAMPLES_IN_PAIRS, replace=False))
        embedding = torch.cat([judged.embedding for judged in kept])[chosen]
        presences = [judged.presence for judged in kept if judged.presence is not None]
        presence = torch.cat(presences)[chosen] if presences else None
        by_head: dict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, len(chosen), 512):
            rows = slice(start, start + 512)
            some = None if presence is None else presence[rows]
            for head, block in self.encoder.distances(embedding[rows], some, embedding, presence).items():
                by_head[head].append(block.cpu())
        actual = pair_values(self.distances.values[np.ix_(sample_index[chosen], sample_index[chosen])])
        return {head: (actual, pair_values(torch.cat(blocks).numpy())) for head, blocks in by_head.items()}


class PretrainTask(Task):
    """Self-supervision: distances and masked nucleotides.

    Parameters
    ----------
    encoder : SequenceEncoder
    config : TaskConfig
    distances : Distances
    seed : int
    """

    monitor = "loss"

    def __init__(self, encoder: SequenceEncoder, config: TaskConfig, distances: Distances, seed: int) -> None:
        super().__init__(encoder, encoder, config, distances, seed)

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, None]:
        return self.encoder(batch), None


class TrainTask(Task):
    """A metadata column, with self-supervision beside it.

    Parameters
    ----------
    predictor : SequencePredictor
    config : TaskConfig
    target : NumericTarget or ClassTarget
        Fitted.
    actual : ndarray (N,)
        The column, in original units or labels.
    class_weights : ndarray (C,), optional
    distances : Distances, optional
    seed : int
    """

    monitor = "target_loss"

    def __init__(
        self,
        predictor: SequencePredictor,
        config: TaskConfig,
        target: NumericTarget | ClassTarget,
        actual: NDArray[Any],
        class_weights: NDArray[np.float32] | None,
        distances: Distances | None,
        seed: int,
    ) -> None:
        super().__init__(predictor, predictor.encoder, config, distances, seed)
        self.predictor = predictor
        self.target = target
        self.actual = actual
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights)

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, Tensor]:
        predictions = self.predictor(batch)
        return predictions.encoded, predictions.target

    def _other_losses(
        self, batch: Batch, encoded: EncodedSamples, output: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor | int]]:
        assert output is not None
        assert batch.target is not None
        losses = super()._other_losses(batch, encoded, output)
        losses["target_loss"] = (self._target_loss(output, batch.target), len(batch))
        if batch.hidden_counts is not None:
            restored = self.predictor.restore_counts(encoded.asv_embeddings, batch, batch.hidden_counts)  # (B, S)
            abundance = self.encoder.sample_encoder.abundance
            actual = abundance.standardise(log_abundance(batch.counts, batch.depth))
            hidden = batch.hidden_counts
            losses["count_loss"] = (count_loss(restored, actual, hidden), hidden.sum())
        return losses

    def _target_loss(self, output: Tensor, actual: Tensor) -> Tensor:
        if isinstance(self.target, ClassTarget):
            weights = None if self.class_weights is None else self.class_weights.to(output.device)
            return class_loss(output, actual, weights)
        return REGRESSION_LOSSES[self.config.loss](output[:, 0].float(), actual)

    def _target_metrics(self, sample_index: NDArray[np.int64], output: NDArray[np.float32] | None) -> dict[str, float]:
        assert output is not None
        actual = self.actual[sample_index]
        if isinstance(self.target, ClassTarget):
            probabilities = _softmax(output)
            return classification_metrics(
                self.target.encode(actual), probabilities.argmax(axis=1), probabilities, self.target.classes
            )
        return regression_metrics(actual, self.target.decode(output[:, 0]))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def prediction_table(
    target: NumericTarget | ClassTarget,
    sample_ids: list[str],
    output: NDArray[np.float32],
    actual: NDArray[Any] | None,
) -> pd.DataFrame:
    """Predictions as a person reads them.

    Parameters
    ----------
    target : NumericTarget or ClassTarget
    sample_ids : list of str, n
    output : ndarray (n, C)
        What the target head gave.
    actual : ndarray (n,), optional

    Returns
    -------
    DataFrame
        ``sample_id``, ``actual`` where given, ``predicted``, and ``prob_<class>`` for classes.
    """
    columns: dict[str, Any] = {"sample_id": sample_ids}
    if actual is not None:
        columns["actual"] = actual
    if isinstance(target, NumericTarget):
        columns["predicted"] = target.decode(output[:, 0])
        return pd.DataFrame(columns)
    probabilities = _softmax(output)
    columns["predicted"] = target.decode(probabilities.argmax(axis=1))
    columns |= {f"prob_{name}": probabilities[:, place] for place, name in enumerate(target.classes)}
    return pd.DataFrame(columns)
