"""What is learnt: a task turns a batch into a loss, and held-out samples into metrics. The loop knows neither.

Shapes: ``N`` samples of a study, ``B`` samples of a batch, ``R`` of them references, ``n`` held-out samples, ``T``
parts of a composition, ``C`` outputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aam.config import TaskConfig
from aam.data.batch import Batch
from aam.data.covariates import Covariates
from aam.data.draws import generator
from aam.data.labels import Labels, Pairs
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.errors import DataError
from aam.models.base_targets import BaseTarget
from aam.models.sample_sequence_encoder import log_abundance
from aam.models.sequence_encoder import EncodedSamples, SampleSummary, SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from aam.training.distributed import Processes
from aam.training.losses import (
    BASE_LOSSES,
    REGRESSION_LOSSES,
    LossOutput,
    LossSum,
    asymmetric_loss,
    class_loss,
    count_loss,
    nucleotide_loss,
    quantile_loss,
    weighted,
)
from aam.training.metrics import BASE_METRICS, classification_metrics, pair_values, regression_metrics

__all__ = [
    "Evaluation",
    "Judged",
    "LabelledTarget",
    "PretrainTask",
    "Reading",
    "Task",
    "TrainTask",
    "answer_columns",
    "answer_table",
    "answers_in",
    "answers_of",
    "prediction_table",
    "table_columns",
]

_MOST_SAMPLES_IN_PAIRS = 2000  # two million pairs: their ranks take tens of MB, and R² barely varies with the draw
_MOST_SAMPLES_OF_A_SCALE = 2000
_ROUNDING = 1e-3  # of labels, beyond their bounds


@dataclass(frozen=True)
class LabelledTarget:
    """A base target, what is known of it, and what that is like in the training split."""

    target: BaseTarget
    labels: Labels
    scale: float  # the loss of the best constant answer: the variance, or the mean divergence from the mean composition
    mean: NDArray[np.float64]  # (), or (T,) of a composition

    @classmethod
    def of(cls, target: BaseTarget, labels: Labels, train: NDArray[np.int64], seed: int = 0) -> LabelledTarget:
        """Measured on the training rows, but for values on at most 2,000 of them; a scale of 1 where nothing varies.

        Raises
        ------
        DataError
            If a label is out of the target's bounds.
        """
        some = train
        if len(train) > _MOST_SAMPLES_OF_A_SCALE and target.kind != "value":
            draws = generator("samples that scales are measured on", seed, 0)
            some = np.sort(draws.choice(train, _MOST_SAMPLES_OF_A_SCALE, replace=False))
        values = _pairs_of(labels, some, train) if isinstance(labels, Pairs) else labels.batch(some)
        known = values[~np.isnan(values if values.ndim == 1 else values.sum(axis=1))].astype(np.float64)
        _require_bounds(target, known)
        mean = np.asarray(known.mean(axis=0) if len(known) else np.zeros(known.shape[1:]))
        best = torch.from_numpy(np.broadcast_to(mean, known.shape).copy())
        if target.kind == "composition":
            best = best.log().clamp(min=-1e3)  # of parts that no training sample has
        scale = float(BASE_LOSSES[target.loss](best, torch.from_numpy(known), 1.0).mean)
        return cls(target, labels, scale if scale > 1e-20 else 1.0, mean)


def _require_bounds(target: BaseTarget, known: NDArray[np.float64]) -> None:
    low = -math.inf if target.lower is None else target.lower
    high = math.inf if target.upper is None else target.upper
    outside = known[(known < low - _ROUNDING) | (known > high + _ROUNDING)]
    if len(outside):
        raise DataError(
            f"--base-target {target.name} is within {low:g} and {high:g}, and a label is {outside[0]:g}; "
            "normalise them (unnormalised weighted UniFrac has no upper bound), or name another target"
        )


def _pairs_of(labels: Pairs, some: NDArray[np.int64], train: NDArray[np.int64]) -> NDArray[np.float32]:
    """Distances of pairs of some samples, each once; or of these to the references among the training samples."""
    if labels.references is None:
        return pair_values(labels.block(some, some))
    columns = labels.references[np.isin(labels.references, train)]
    return labels.block(some, columns)[some[:, None] != columns[None, :]]


@dataclass(frozen=True)
class Reading:
    """A base target of held-out samples as one head reads it, beside what is known."""

    target: BaseTarget
    head: str
    leading: bool  # the first head of its target
    actual: NDArray[np.float32]  # (pairs,), (n,) or (n, T); all of it known
    predicted: NDArray[np.float32]
    studies: NDArray[np.int64] | None = None  # of each pair or sample

    def loss(self, scale: float) -> float:
        """As in training."""
        predicted = torch.from_numpy(self.predicted).double()
        if self.target.kind == "composition":
            predicted = predicted.clamp(min=1e-30).log()
        return float(BASE_LOSSES[self.target.loss](predicted, torch.from_numpy(self.actual).double(), scale).mean)

    def metrics(self, name: str, study_names: Sequence[str]) -> dict[str, float]:
        """In original units, and by study where there are several."""
        compute = BASE_METRICS[self.target.metric]
        found = compute(self.actual, self.predicted, f"{name}_")
        if self.studies is not None:
            for place, study in enumerate(study_names):
                here = self.studies == place
                if here.any():
                    of_study = compute(self.actual[here], self.predicted[here], f"{name}_")
                    found |= {f"{key}/{study}": value for key, value in of_study.items()}
        return found


@dataclass(frozen=True)
class Evaluation:
    """Held-out samples, judged."""

    losses: dict[str, float]  # ``loss`` and its parts
    metrics: dict[str, float]  # in original units
    sample_index: NDArray[np.int64]  # (n,)
    output: NDArray[np.float32] | None = None  # (n, C): what the target head gave
    readings: dict[str, Reading] = field(default_factory=dict)  # by the name of their metrics
    paired: NDArray[np.int64] | None = None  # the samples whose pairs with each other the readings of distances hold
    not_finite: tuple[int, ...] = ()  # the samples that keep a loss from being finite


class _Block(NamedTuple):
    """What one head read of a base target, beside what is known of it."""

    name: str  # of the reading
    actual: NDArray[np.float32]  # all of it known
    predicted: NDArray[np.float32]
    sample_index: NDArray[np.int64]  # the sample of each entry, or the first of a pair


class Judged(NamedTuple):
    """What is kept of a held-out batch."""

    sample_index: Tensor  # (B - R,)
    summary: SampleSummary  # of these
    output: Tensor | None  # (B - R, C)
    sums: dict[str, tuple[float, float]]  # of each loss, as in `LossSum`
    blocks: list[_Block]  # of everything but the pairs of samples among themselves
    stripes: bool  # whether distances are those to references

    def to(self, device: torch.device) -> Judged:
        """On a device."""
        return self._replace(
            sample_index=self.sample_index.to(device),
            summary=self.summary.to(device),
            output=None if self.output is None else self.output.to(device),
        )


def _not_finite(kept: Sequence[Judged]) -> tuple[int, ...]:
    """The samples of whom something that was read is not finite; all of a batch whose losses alone are not."""
    found: list[NDArray[Any]] = []
    for judged in kept:
        samples = judged.sample_index.cpu()
        read = [part for part in (*judged.summary, judged.output) if part is not None]
        broken = ~torch.stack([part.cpu().isfinite().flatten(1).all(dim=1) for part in read]).all(dim=0)
        if not broken.any() and not all(math.isfinite(total) for total, _ in judged.sums.values()):
            broken = torch.ones_like(broken)
        found.append(samples[broken].numpy())
    return tuple(np.unique(np.concatenate(found)).tolist())


class _JudgedBase(NamedTuple):
    """What base targets of held-out samples come to."""

    losses: dict[str, float]
    metrics: dict[str, float]
    readings: dict[str, Reading]
    paired: NDArray[np.int64] | None


class Task:
    """Base targets and masked nucleotides: what both commands share.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    encoder : SequenceEncoder
        The base of it; its ``targets`` hold those that are labelled.
    config : TaskConfig
    labelled : mapping of str to LabelledTarget
        By the name of the base target; may be empty.
    seed : int
        Of the subset of held-out samples whose pairs are judged where there are more than 2,000.
    studies : ndarray (N,) of int, optional
        The study of each sample, for metrics by study.
    study_names : sequence of str
    """

    monitor: str  # the validation loss that early stopping and the best model go by

    def __init__(
        self,
        model: nn.Module,
        encoder: SequenceEncoder,
        config: TaskConfig,
        labelled: Mapping[str, LabelledTarget],
        seed: int,
        *,
        studies: NDArray[np.int64] | None = None,
        study_names: Sequence[str] = (),
    ) -> None:
        assert labelled.keys() <= encoder.targets.keys()
        self.model = model
        self.encoder = encoder
        self.config = config
        self.labelled = labelled
        self.seed = seed
        self.studies = studies
        self.study_names = study_names
        self.processes = Processes()
        # By the rows of the held-out samples; kept only while the base is frozen (see aam.training.frozen).
        self.judged_before: dict[bytes, _JudgedBase] | None = None
        # Of held-out samples, what is not asked for again once the part that it is of is frozen, but is lost still.
        self.losses_at_rest: dict[str, float] = {}
        self.weights = {f"{name}_loss": config.unifrac_weight for name in self.reading_names} | {
            "nuc_loss": config.nuc_weight,
            "count_loss": config.count_weight,
            "target_loss": config.target_weight,
        }

    @property
    def reading_names(self) -> tuple[str, ...]:
        """What the losses and metrics of base targets begin with: ``unifrac``, ``unifrac_euclidean``, …"""
        return tuple(
            self._reading_name(labelled.target, head)
            for labelled in self.labelled.values()
            for head in self.encoder.heads(labelled.target)
        )

    def _reading_name(self, target: BaseTarget, head: str) -> str:
        """The leading head's reading goes by the target's name alone."""
        return target.name if head == self.encoder.heads(target)[0] else f"{target.name}_{head}"

    def to(self, device: torch.device) -> Self:
        """Move the model, and what else the loss needs, to a device."""
        self.model.to(device)
        return self

    def train(self) -> None:
        """Set the model to training; a frozen part of the base stays as it is in prediction."""
        self.model.train()
        for part in (self.encoder, self.encoder.asv_encoder):
            if not _learns(part):
                part.eval()

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of a training batch.

        Where several processes share it, its values and gradients are this one's part of them: their averages over the
        processes are those of the whole batch.
        """
        encoded, output = self._forward(batch)
        sums: dict[str, LossSum] = {}
        if self.config.unifrac_weight > 0:
            for name, predicted, actual, labelled in self._readings(self.labelled.values(), batch, encoded.summary):
                sums[f"{name}_loss"] = BASE_LOSSES[labelled.target.loss](predicted, actual, labelled.scale)
        sums |= self._other_losses(batch, encoded, output)
        if not sums:  # nothing was drawn to be restored in this batch
            return LossOutput(encoded.embedding.sum() * 0, {}, {})
        return weighted(self.processes.means(sums), self.weights, {name: part.number for name, part in sums.items()})

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> Evaluation:
        """Judge held-out samples; the same for any batch size, but of pairs with references those of each batch."""
        return self.summarise([self.judge_batch(batch) for batch in batches])

    @torch.no_grad()
    def judge_batch(self, batch: Batch) -> Judged:
        """Judge some held-out samples, as far as they suffice for it."""
        encoded, output = self._forward(batch)
        own = slice(len(batch))
        return Judged(
            batch.sample_index[own],
            encoded.summary.rows(own),
            None if output is None else output[own],
            {
                name: (float(total), float(number))
                for name, (total, number) in self._other_losses(batch, encoded, output).items()
            },
            self._blocks(batch, encoded.summary),
            batch.references > 0,
        )

    @torch.no_grad()
    def summarise(self, kept: list[Judged]) -> Evaluation:
        """What all held-out batches come to."""
        sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for judged in kept:
            for name, part in judged.sums.items():
                sums[name].append(part)
        losses = {
            name: sum(total for total, _ in parts) / max(1.0, sum(number for _, number in parts))
            for name, parts in sums.items()
        }
        sample_index = torch.cat([judged.sample_index for judged in kept]).cpu().numpy()  # (n,)
        outputs = [judged.output for judged in kept if judged.output is not None]
        output_array = torch.cat(outputs).float().cpu().numpy() if outputs else None  # (n, C)
        metrics = self._all_target_metrics(sample_index, output_array)
        base = self._judged_base(kept, sample_index)
        losses = self.losses_at_rest | self._with_monitor(losses) | base.losses
        metrics |= base.metrics
        losses["loss"] = sum(self.weights[name] * value for name, value in losses.items())
        broken = () if all(map(math.isfinite, losses.values())) else _not_finite(kept)
        return Evaluation(losses, metrics, sample_index, output_array, base.readings, base.paired, broken)

    def _judged_base(self, kept: list[Judged], sample_index: NDArray[np.int64]) -> _JudgedBase:
        """Base targets of held-out samples; those of a frozen base are judged once."""
        if self.judged_before is not None and sample_index.tobytes() in self.judged_before:
            return self.judged_before[sample_index.tobytes()]
        blocks = [block for judged in kept for block in judged.blocks]
        stripes = any(judged.stripes for judged in kept)
        readings = self._joined(blocks if stripes else blocks + self._pairs(kept, sample_index))
        paired = None if stripes else sample_index[self._in_pairs(len(sample_index))]
        found = _JudgedBase({}, {}, readings, paired)
        for name, reading in found.readings.items():
            found.metrics.update(reading.metrics(name, self.study_names))
            if self.config.unifrac_weight > 0:
                found.losses[f"{name}_loss"] = reading.loss(self.labelled[reading.target.name].scale)
        if self.judged_before is not None:
            self.judged_before[sample_index.tobytes()] = found
        return found

    @staticmethod
    def evaluation_elsewhere(
        losses: dict[str, float], metrics: dict[str, float], not_finite: tuple[int, ...]
    ) -> Evaluation:
        """What a process knows of an evaluation that another has made."""
        return Evaluation(losses, metrics, np.array([], dtype=np.int64), not_finite=not_finite)

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, Tensor | None]:
        raise NotImplementedError

    def _other_losses(self, batch: Batch, encoded: EncodedSamples, output: Tensor | None) -> dict[str, LossSum]:
        """Losses over something of a batch's own. Every process has the same ones, be it with nothing in them."""
        masked = batch.masked_nucleotides
        if masked is None or encoded.nucleotides is None:
            return {}
        true = masked.true_tokens.flatten().index_select(0, masked.flat)  # (P,)
        return {"nuc_loss": nucleotide_loss(encoded.nucleotides, true)}

    def _with_monitor(self, losses: dict[str, float]) -> dict[str, float]:
        """Losses with the one that is monitored, where that is made of others."""
        return losses

    def _all_target_metrics(
        self, sample_index: NDArray[np.int64], output: NDArray[np.float32] | None
    ) -> dict[str, float]:
        """Metrics of the target, and by study where there are several."""
        metrics = self._target_metrics(sample_index, output)
        if self.studies is not None and output is not None:
            for place, study in enumerate(self.study_names):
                here = self.studies[sample_index] == place
                if here.any():
                    of_study = self._target_metrics(sample_index[here], output[here])
                    metrics |= {f"{key}/{study}": value for key, value in of_study.items()}
        return metrics

    def _target_metrics(self, sample_index: NDArray[np.int64], output: NDArray[np.float32] | None) -> dict[str, float]:
        return {}

    # ------------------------------------------------------------------------------------------------- base targets

    def _readings(
        self, targets: Iterable[LabelledTarget], batch: Batch, summary: SampleSummary
    ) -> Iterator[tuple[str, Tensor, Tensor, LabelledTarget]]:
        """Every reading of some base targets in a batch: its name, predicted and actual values, and the target.

        Distances are those from its samples to all that processes together learn from, so that every pair of them is
        there twice, or to its references; none to itself. A batch may come without labels of which it knows nothing.
        """
        own = slice(len(batch))
        samples = summary.rows(own)
        to: SampleSummary | None = None  # what distances are read to
        columns = batch.everyone  # of these
        if batch.references:
            to, columns = summary.rows(slice(len(batch), None)), batch.sample_index[len(batch) :]
        itself = batch.sample_index[own][:, None] == columns[None, :]
        for labelled in targets:
            if labelled.target.name not in batch.labels:
                continue
            actual = batch.labels[labelled.target.name][own]
            if labelled.target.kind == "pairwise":
                actual = actual.masked_fill(itself, torch.nan)
                to = self._gathered(samples, len(columns)) if to is None else to
            for head, predicted in self.encoder.read(labelled.target, samples, to).items():
                yield self._reading_name(labelled.target, head), predicted, actual, labelled

    def _gathered(self, samples: SampleSummary, number: int) -> SampleSummary:
        """Of all ``number`` samples that processes together learn from, with gradients."""
        if self.processes.number == 1:
            return samples
        parts = [part for part in samples if part is not None]
        # At once: collectives of the backward pass must not come in another order on another process.
        together = self.processes.gather(torch.cat(parts, dim=1), number)
        columns = iter(together.split([part.shape[1] for part in parts], dim=1))
        return SampleSummary(*(None if part is None else next(columns) for part in samples))  # type: ignore[arg-type]

    def _blocks(self, batch: Batch, summary: SampleSummary) -> list[_Block]:
        """What one batch suffices for: values, compositions, and distances to its references."""
        targets = [of for of in self.labelled.values() if of.target.kind != "pairwise" or batch.references]
        blocks = []
        for name, predicted, actual, labelled in self._readings(targets, batch, summary):
            kind = labelled.target.kind
            predicted = predicted.exp() if kind == "composition" else predicted
            unknown = actual.isnan().any(dim=1) if kind == "composition" else actual.isnan()
            known = ~unknown.cpu().numpy()
            rows = np.nonzero(known)[0]
            sample_index = batch.sample_index.cpu().numpy()[rows]
            blocks.append(
                _Block(name, actual.cpu().numpy()[known], predicted.float().cpu().numpy()[known], sample_index)
            )
        return blocks

    def _pairs(self, kept: list[Judged], sample_index: NDArray[np.int64]) -> list[_Block]:
        """All pairs of held-out samples, up to 2,000 of these."""
        distances = [labelled for labelled in self.labelled.values() if labelled.target.kind == "pairwise"]
        if not distances:
            return []
        chosen = self._in_pairs(len(sample_index))
        device = next(self.model.parameters()).device
        summary = SampleSummary.cat([judged.summary for judged in kept]).rows(chosen).to(device)
        samples = sample_index[chosen]
        blocks = []
        for start in range(0, len(samples), 512):
            rows = slice(start, start + 512)
            later = np.arange(len(samples)) > np.arange(len(samples))[rows, None]
            for labelled in distances:
                assert isinstance(labelled.labels, Pairs)
                actual = labelled.labels.block(samples[rows], samples)
                known = later & ~np.isnan(actual)
                first = samples[rows][np.nonzero(known)[0]]
                for head, predicted in self.encoder.read(labelled.target, summary.rows(rows), summary).items():
                    name = self._reading_name(labelled.target, head)
                    blocks.append(_Block(name, actual[known], predicted.float().cpu().numpy()[known], first))
        return blocks

    def _in_pairs(self, number: int) -> NDArray[np.int64]:
        """Which of so many held-out samples are judged in pairs."""
        if number <= _MOST_SAMPLES_IN_PAIRS:
            return np.arange(number)
        draws = generator("samples whose pairs are judged", self.seed, 0)
        return np.sort(draws.choice(np.arange(number), _MOST_SAMPLES_IN_PAIRS, replace=False))

    def _joined(self, blocks: list[_Block]) -> dict[str, Reading]:
        """Readings, in the order of `reading_names`, from their blocks; without those of which nothing is known."""
        by_name: dict[str, list[_Block]] = defaultdict(list)
        for block in blocks:
            by_name[block.name].append(block)
        readings = {}
        for labelled in self.labelled.values():
            for head in self.encoder.heads(labelled.target):
                name = self._reading_name(labelled.target, head)
                if not sum(len(block.actual) for block in by_name[name]):
                    continue
                of_name = _Block(name, *(np.concatenate(parts) for parts in list(zip(*by_name[name], strict=True))[1:]))
                readings[name] = Reading(
                    labelled.target,
                    head,
                    name == labelled.target.name,
                    of_name.actual,
                    of_name.predicted,
                    None if self.studies is None else self.studies[of_name.sample_index],
                )
        return readings


def _learns(part: nn.Module) -> bool:
    """Whether any weight of a part of the model is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())


class PretrainTask(Task):
    """Self-supervision: base targets and masked nucleotides.

    Parameters
    ----------
    encoder : SequenceEncoder
    config, labelled, seed, studies, study_names
        See `Task`.
    """

    monitor = "loss"

    def __init__(
        self,
        encoder: SequenceEncoder,
        config: TaskConfig,
        labelled: Mapping[str, LabelledTarget],
        seed: int,
        *,
        studies: NDArray[np.int64] | None = None,
        study_names: Sequence[str] = (),
    ) -> None:
        super().__init__(encoder, encoder, config, labelled, seed, studies=studies, study_names=study_names)

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, None]:
        return self.encoder(batch), None


class TrainTask(Task):
    """A metadata column, with self-supervision beside it.

    Parameters
    ----------
    predictor : SequencePredictor
    config : TaskConfig
    target : NumericTarget, ClassTarget or SeveralTargets
        Fitted.
    actual : ndarray (N,), of several columns (N, T)
        The column, in original units or labels.
    class_weights : sequence of ndarray (C,) or None
        Of each column.
    labelled, seed, studies, study_names
        See `Task`.
    covariates : Covariates, optional
        Fitted: what batches hold beside the sample.
    """

    monitor = "target_loss"

    def __init__(
        self,
        predictor: SequencePredictor,
        config: TaskConfig,
        target: Target | SeveralTargets,
        actual: NDArray[Any],
        class_weights: Sequence[NDArray[np.float32] | None],
        labelled: Mapping[str, LabelledTarget],
        seed: int,
        *,
        studies: NDArray[np.int64] | None = None,
        study_names: Sequence[str] = (),
        covariates: Covariates | None = None,
    ) -> None:
        super().__init__(predictor, predictor.encoder, config, labelled, seed, studies=studies, study_names=study_names)
        self.predictor = predictor
        self.target = target
        self.actual = actual
        self.covariates = covariates
        self.parts = parts_of(target)
        self.class_weights = [None if known is None else torch.from_numpy(known) for known in class_weights]
        if len(self.parts) > 1:  # the loss of the target is the mean of theirs
            self.weights["target_loss"] = 0.0
            self.weights |= {f"{part.prefix}target_loss": config.target_weight / len(self.parts) for part in self.parts}
        if predictor.linear:  # it is fitted in the end, and says nothing until then
            self.monitor = "loss"
            self.weights |= {f"{part.prefix}target_loss": 0.0 for part in self.parts}

    def to(self, device: torch.device) -> Self:
        # Once, for a copy in every step would wait for the device.
        self.class_weights = [None if known is None else known.to(device) for known in self.class_weights]
        return super().to(device)

    def _forward(self, batch: Batch) -> tuple[EncodedSamples, Tensor]:
        predictions = self.predictor(batch)
        return predictions.encoded, predictions.target

    def _other_losses(self, batch: Batch, encoded: EncodedSamples, output: Tensor | None) -> dict[str, LossSum]:
        assert output is not None
        assert batch.target is not None
        losses = super()._other_losses(batch, encoded, output)
        own = slice(len(batch))
        losses |= self._target_losses(output[own], batch.target[own], learning=self.predictor.training)
        if batch.hidden_counts is not None:
            restored = self.predictor.restore_counts(encoded.asv_embeddings, batch, batch.hidden_counts)[own]  # (B, S)
            abundance = self.encoder.sample_encoder.abundance
            actual = abundance.standardise(log_abundance(batch.counts, batch.depth))[own]
            losses["count_loss"] = count_loss(restored, actual, batch.hidden_counts[own])
        return losses

    def _target_losses(self, output: Tensor, actual: Tensor, *, learning: bool) -> dict[str, LossSum]:
        """Of the column, or of each of several over the samples where it is known; learnt from or only judged."""
        if len(self.parts) == 1:
            loss = self._target_loss(self.parts[0], self.class_weights[0], output, actual, learning=learning)
            return {"target_loss": loss}
        found = {}
        for part, weights in zip(self.parts, self.class_weights, strict=True):
            of_part = actual[:, part.place]
            known = ~of_part.isnan() if of_part.is_floating_point() else of_part >= 0
            found[f"{part.prefix}target_loss"] = self._target_loss(
                part, weights, output[known, part.outputs], of_part[known], learning=learning
            )
        return found

    def _with_monitor(self, losses: dict[str, float]) -> dict[str, float]:
        if len(self.parts) == 1:
            return losses
        return losses | {"target_loss": float(np.mean([losses[f"{part.prefix}target_loss"] for part in self.parts]))}

    def _target_loss(
        self, part: Part, class_weights: Tensor | None, output: Tensor, actual: Tensor, *, learning: bool
    ) -> LossSum:
        target = part.target
        if isinstance(target, ClassTarget):
            smoothing = self.config.label_smoothing if learning else 0.0
            return class_loss(output, actual, class_weights, smoothing)
        if target.quantiles:
            return quantile_loss(output.float(), actual, target.quantiles)
        predicted = output[:, 0].float()
        if self.config.loss == "asymmetric":
            return asymmetric_loss(predicted, actual, self.config.overestimate_cost)
        return REGRESSION_LOSSES[self.config.loss](predicted, actual)

    def target_loss(self, output: Tensor, actual: Tensor, *, learning: bool) -> Tensor:
        """What outputs (n, C) lose, of several columns the mean; ``actual`` as `Target.encode` gives it."""
        losses = self._target_losses(output, actual, learning=learning)
        return torch.stack([loss.mean for loss in losses.values()]).mean()

    def guess_loss(self, learnt: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
        """What the best constant answer would lose.

        Parameters
        ----------
        learnt : ndarray of int
            Rows of the study whose best constant it is.
        held_out : ndarray (n,) of int
            Rows that it is judged on.
        """
        losses = []
        for part, class_weights in zip(self.parts, self.class_weights, strict=True):
            target, weights = part.target, None if class_weights is None else class_weights.cpu()
            known = target.encode(part.known(self.actual[learnt])[1])
            if isinstance(target, ClassTarget):
                of_each = None if weights is None else weights.numpy()[known]
                shares = np.bincount(known, of_each, minlength=target.outputs)
                constant = np.log(np.maximum(shares / shares.sum(), 1e-6))
            elif target.quantiles:
                constant = np.quantile(known, target.quantiles)
            elif self.config.loss == "mse":
                constant = known.mean(keepdims=True)
            elif self.config.loss == "mae":
                constant = np.median(known, keepdims=True)
            else:
                constant = self._best_constant(part, known)
            actual = torch.from_numpy(target.encode(part.known(self.actual[held_out])[1]))
            output = torch.from_numpy(np.tile(constant, (len(actual), 1))).float()
            losses.append(float(self._target_loss(part, weights, output, actual, learning=False).mean))
        return float(np.mean(losses))

    def _best_constant(self, part: Part, known: NDArray[Any]) -> NDArray[np.float64]:
        """(1,): which loses least on these; of losses that are convex and have no formula for it."""
        from scipy.optimize import minimize_scalar

        actual = torch.from_numpy(known)

        def lost(constant: float) -> float:
            output = torch.full((len(known), 1), constant)
            return float(self._target_loss(part, None, output, actual, learning=False).mean)

        return np.array([minimize_scalar(lost, bounds=(known.min(), known.max()), method="bounded").x])

    def _target_metrics(self, sample_index: NDArray[np.int64], output: NDArray[np.float32] | None) -> dict[str, float]:
        assert output is not None
        metrics: dict[str, float] = {}
        for part in self.parts:
            known, actual = part.known(self.actual[sample_index])
            own, target = output[known, part.outputs], part.target
            if not len(actual):
                continue
            if isinstance(target, ClassTarget):
                probabilities = _softmax(own)
                found = classification_metrics(
                    target.encode(actual), probabilities.argmax(axis=1), probabilities, target.classes
                )
            else:
                found = regression_metrics(actual, target.predicted(own))
            metrics |= {f"{part.prefix}{name}": value for name, value in found.items()}
        return metrics


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def prediction_table(
    target: Target | SeveralTargets,
    sample_ids: list[str],
    output: NDArray[np.float32],
    actual: NDArray[Any] | None,
) -> pd.DataFrame:
    """Predictions as a person reads them.

    Parameters
    ----------
    target : NumericTarget, ClassTarget or SeveralTargets
    sample_ids : list of str, n
    output : ndarray (n, C)
        What the target head gave.
    actual : ndarray (n,), of several columns (n, T), optional

    Returns
    -------
    DataFrame
        ``sample_id``, ``actual`` where given, ``predicted``, and ``quantile_<level>`` where quantiles are learnt or
        ``prob_<class>`` for classes; of several columns each after its name, ``age_predicted`` say.
    """
    return answer_table(target, sample_ids, answers_of(target, output), actual)


def answers_of(target: Target | SeveralTargets, output: NDArray[np.float32]) -> NDArray[np.float64]:
    """What outputs (n, C) say, (n, C): numbers in original units, quantiles rising, or probabilities of classes.

    Answers of several models, or to several readings of a sample, may be averaged.
    """
    if isinstance(target, SeveralTargets):
        each = [answers_of(part.target, output[:, part.outputs]) for part in parts_of(target)]
        return np.concatenate(each, axis=1)
    return _softmax(output) if isinstance(target, ClassTarget) else target.decode_quantiles(output)


def answer_columns(target: Target | SeveralTargets) -> list[str]:
    """Where in `answer_table` the answers are."""
    if isinstance(target, SeveralTargets):
        return [f"{part.prefix}{name}" for part in parts_of(target) for name in answer_columns(part.target)]
    if isinstance(target, ClassTarget):
        return [f"prob_{name}" for name in target.classes]
    return [f"quantile_{level:g}" if level != 0.5 else "predicted" for level in target.quantiles or (0.5,)]


def table_columns(target: Target) -> list[str]:
    """The columns of `answer_table` that hold what is predicted."""
    return list(dict.fromkeys(["predicted", *answer_columns(target)]))


def answers_in(table: pd.DataFrame, target: Target | SeveralTargets) -> NDArray[np.float64]:
    """The answers (n, C) that `answer_table` put into a table."""
    return table[answer_columns(target)].to_numpy(dtype=np.float64)


def answer_table(
    target: Target | SeveralTargets,
    sample_ids: list[str],
    answers: NDArray[np.float64],
    actual: NDArray[Any] | None,
) -> pd.DataFrame:
    """`prediction_table` of answers (n, C) as `answers_of` gives them."""
    if isinstance(target, SeveralTargets):
        tables = []
        for part in parts_of(target):
            own = None if actual is None else part.of(actual)
            own = own if own is None or isinstance(part.target, ClassTarget) else own.astype(np.float64)
            table = answer_table(part.target, sample_ids, answers[:, part.outputs], own)
            tables.append(table.set_index("sample_id").add_prefix(part.prefix))
        return pd.concat(tables, axis=1).reset_index()
    columns: dict[str, Any] = {"sample_id": sample_ids}
    if actual is not None:
        columns["actual"] = actual
    if isinstance(target, NumericTarget):
        columns["predicted"] = answers[:, target.outputs // 2]
        columns |= {
            f"quantile_{level:g}": answers[:, place] for place, level in enumerate(target.quantiles) if level != 0.5
        }
        return pd.DataFrame(columns)
    columns["predicted"] = target.decode(answers.argmax(axis=1))
    columns |= {f"prob_{name}": answers[:, place] for place, name in enumerate(target.classes)}
    return pd.DataFrame(columns)
