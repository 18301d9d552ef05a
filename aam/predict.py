"""From a model file and a table to predictions: the straight line behind ``aam predict``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam.calibrators import Calibrators
from aam.config import DataConfig, RunConfig, TrainConfig
from aam.data.batch import Batch
from aam.data.covariates import Covariates
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.files import shown
from aam.data.metadata import load_metadata
from aam.data.splits import learnt_samples
from aam.data.study import Study, load_study
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.errors import DataError, named
from aam.familiarity import Familiarity, familiarity, require_profile
from aam.joined import Joined, counts_as_judged
from aam.loaders import loader
from aam.networks import Networks, open_networks
from aam.training.checkpoint import model_path, read_covariates, read_target
from aam.training.ensemble import Ensemble
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import answer_table, answers_of, table_columns

__all__ = ["PredictionResult", "data_as_trained", "predict", "tracked"]

logger = logging.getLogger("aam")


@dataclass(frozen=True)
class PredictionResult:
    """Predictions, and how good they are where the truth is known."""

    table: pd.DataFrame  # in the order of the table file
    left_out: dict[str, list[str]]  # reason: sample IDs
    metrics: dict[str, float]
    familiarity: Familiarity | None  # how like the training samples they are, where the model knows
    learnt_from: int = 0  # of the samples, as far as the run of the model says


def predict(
    model: Path,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path] = (),
    metadata: Path | Sequence[Path] = (),
    streaming: bool = False,
    interval: float | None = None,
    settings: TrainConfig,
    profile_needed: bool = False,
) -> PredictionResult:
    """Predict samples.

    Parameters
    ----------
    model : Path
        Run directory of ``aam train``, or its model file, or what ``aam export`` made of it. The models of folds and
        of seeds are averaged: their numbers, or their probabilities; and likewise a classical model that was joined.
    table : Path, or several
    sequences : Path, or several
        Of the features.
    metadata : Path, or several
        Where it has the model's column, the truth stands beside the predictions and metrics are computed. Covariates
        are read from it, too; what it lacks of them is unknown to the model.
    streaming : bool
        Leave the counts in the table's file.
    interval : float, optional
        Of new samples, this share is to be within ``lower`` and ``upper``, or has its class in ``set``; and
        probabilities are calibrated.
    settings : TrainConfig
        Device, threads, workers and batch size.
    profile_needed : bool
        Refuse a model that does not say what its training samples were like. Of several models the first says it.

    Raises
    ------
    DataError
        If the model or the table cannot be used, or the model was not calibrated or on too few groups.
    """
    path = model_path(model)
    networks = open_networks(path, settings)
    ensemble = networks.ensemble
    first = ensemble.members[0].file
    if profile_needed:
        require_profile(first, path)
    targets = [read_target(member.file.header, path) for member in ensemble.members]
    covariates = [read_covariates(member.file.header, path) for member in ensemble.members]
    target, trained = targets[0], first.config
    if target is None:
        raise DataError(f"{model}: a pre-trained encoder, which predicts no column; give a run of `aam train`")
    parts = parts_of(target)
    calibrators = None if interval is None else _calibrators(ensemble, path, target, interval)
    joined = _joined_model(ensemble, path)
    data = data_as_trained(trained, table, sequences=sequences, metadata=metadata, streaming=streaming)
    reads = {name: getattr(trained.data, name) for name in ("categorical_columns", "numeric_columns")}
    data = data.model_copy(update=reads)
    if data.metadata:
        columns = load_metadata(data.metadata).columns
        there = tuple(part.target.column for part in parts if part.target.column in columns)
        data = data.model_copy(update={"metadata_column": there})
        for part in parts:
            if part.target.column not in there:
                logger.warning(
                    "%s: has no column %r, so predictions%s stand without the truth",
                    *(named(data.metadata), part.target.column, f" of {part.target.column}" if there else ""),
                )
        if not there and not set(data.covariates) & set(columns):
            data = data.model_copy(update={"metadata": ()})
    classifier = isinstance(parts[0].target, ClassTarget)
    study = load_study(data, max_bp=trained.model.max_bp, classifier=classifier, keep_unlabelled=True, checksums=False)
    truth = None if study.target is None else _truth(parts, data.columns, study.target)
    for part in parts:
        unknown = 0 if truth is None else int((~part.known(truth)[0]).sum())
        if unknown and part.target.column in data.columns:
            logger.warning(
                "%s: has no %s of %d of %d samples", named(data.metadata), part.target.column, unknown, len(study)
            )
        if truth is not None and isinstance(part.target, ClassTarget):
            _tell_new_classes(part.target, part.known(truth)[1])
    if study.covariates is not None:
        told = [known.unknown(study.covariates) for known in covariates if known is not None]
        for sentence in dict.fromkeys(chain(*told)):
            logger.warning(sentence)
    for warning in study.warnings:
        logger.warning(warning)
    order = np.argsort(study.file_order)
    names = [study.sample_ids[i] for i in order]
    known = None if truth is None else truth[order]
    answers, familiar = [], None
    for place, (member, fitted, beside) in enumerate(zip(ensemble.members, targets, covariates, strict=True)):
        if fitted is None or fitted.outputs != target.outputs or (classifier and fitted != target):
            raise DataError(f"{path}: its models do not predict the same; train them together")
        options = DatasetOptions.of(data, member.file.config.train.seed)
        values, embeddings = _answers(path, networks, place, fitted, study, options, settings, beside)
        answers.append(values[order])
        if member.file is first:
            familiar = familiarity(first, path, study, embeddings, order)
    by_fold = _means(answers, ensemble.folds)  # (N, M, C)
    if joined is not None:
        counts = counts_as_judged(study, data, first.config.train.seed)[order]
        by_fold, unknown = joined.answers(by_fold, counts, study.sequences)
        if unknown:
            logger.warning(
                "%d samples have no ASV that the joined %s reads; the network predicts them alone",
                unknown,
                joined.name.replace("_", " "),
            )
    if calibrators is not None:
        by_fold = calibrators.calibrated(by_fold)
    frame = answer_table(target, names, by_fold.mean(axis=1), known)
    if calibrators is not None and interval is not None:
        frame = calibrators.intervals(frame, by_fold, interval)
    return PredictionResult(
        frame,
        study.left_out,
        _metrics(frame, target),
        familiar,
        len(learnt_samples(path.parent / "splits.tsv").intersection(names)),
    )


def _tell_new_classes(target: ClassTarget, values: NDArray[Any]) -> None:
    new = values[~np.isin(values.astype(str), target.classes)]
    if len(new):
        logger.warning(
            "%d samples are of classes of %s that the model does not know (%s); metrics here are without them, and "
            "`aam evaluate` counts them as wrong",
            *(len(new), target.column, ", ".join(map(shown, sorted(set(new.astype(str)))[:5]))),
        )


def _truth(parts: Sequence[Part], columns: Sequence[str], values: NDArray[Any]) -> NDArray[Any]:
    """Values of the columns that the metadata have, (N,) or (N, T'), among those that the model predicts."""
    if len(parts) == 1:
        return values
    found = np.full((len(values), len(parts)), np.nan, dtype=values.dtype)
    places = [place for place, part in enumerate(parts) if part.target.column in columns]
    order = [columns.index(parts[place].target.column) for place in places]
    found[:, places] = values.reshape(len(values), -1)[:, order]
    return found


def _calibrators(ensemble: Ensemble, path: Path, target: Target | SeveralTargets, interval: float) -> Calibrators:
    stored = ensemble.header.get("calibration")
    if stored is None:
        raise DataError(
            f"{path}: was not calibrated, for which it takes samples, of every class, that neither training nor early "
            "stopping saw; train with --folds or --cal-size, or without --patience"
        )
    try:
        calibrators = Calibrators.read(target, stored, {k: tensor.numpy() for k, tensor in ensemble.beside.items()})
        if any(each.calibration.models.max() > max(ensemble.folds) for each in calibrators.by_name.values()):
            raise ValueError
    except ValueError:
        raise DataError(
            f"{path}: what it says of its calibration is damaged; train again, or take another copy"
        ) from None
    for column in calibrators.absent:
        logger.warning("%s: was not calibrated for %s, which stands without intervals or sets", path, column)
    return calibrators.reaching(interval)


def _joined_model(ensemble: Ensemble, path: Path) -> Joined | None:
    stored = ensemble.header.get("joined")
    if stored is None:
        return None
    try:
        joined = Joined.read(stored, {name: tensor.numpy() for name, tensor in ensemble.beside.items()})
        if len(joined.models) != max(ensemble.folds) + 1:
            raise ValueError
    except ValueError:
        raise DataError(
            f"{path}: what it says of its joined models is damaged; train again, or take another copy"
        ) from None
    return joined


def _means(answers: Sequence[NDArray[np.float64]], folds: Sequence[int]) -> NDArray[np.float64]:
    """The mean answers (N, M, C) of the models of each of M folds, which differ by their seed."""
    number = max(folds) + 1
    of_fold = [[found for found, place in zip(answers, folds, strict=True) if place == fold] for fold in range(number)]
    return np.stack([np.mean(found, axis=0) for found in of_fold], axis=1)


def data_as_trained(
    trained: RunConfig,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path] = (),
    metadata: Path | Sequence[Path] = (),
    streaming: bool = False,
) -> DataConfig:
    """New files, read as those of the training were."""
    return DataConfig(
        table=table,  # type: ignore[arg-type]
        sequences=sequences,  # type: ignore[arg-type]
        metadata=metadata,  # type: ignore[arg-type]
        streaming=streaming,
        rarefy_depth=trained.data.rarefy_depth,
        token_limit=trained.data.token_limit,
        asv_sampling=trained.data.asv_sampling,
    )


def _answers(
    path: Path,
    networks: Networks,
    place: int,
    target: Target | SeveralTargets,
    study: Study,
    options: DatasetOptions,
    settings: TrainConfig,
    covariates: Covariates | None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """What a model says of the samples of a study, (N, C), the mean of its passes, and their embeddings, (N, D)."""
    answer, passes = networks.network(place), networks.ensemble.members[place].file.config.data.prediction_passes
    given = None
    if covariates is not None:
        assert study.covariates is not None
        given = covariates.encode(study.covariates)
    dataset = SampleDataset.of_study(study, options, covariates=given)
    plan = BatchPlan(np.arange(len(study)), settings.samples_per_batch, False, 0)
    batches = loader(dataset, plan, settings, networks.device)
    answers, embeddings = [], np.empty((0, 0), dtype=np.float32)
    for number in range(passes):
        plan.epoch = number  # which draws of reads and of ASVs depend on
        found = [answer(batch) for batch in tracked(batches)]
        output = np.concatenate([of_batch.output for of_batch in found])
        if not np.isfinite(output).all():
            name = study.sample_ids[int(np.flatnonzero(~np.isfinite(output).all(axis=1))[0])]
            raise DataError(f"the prediction of sample {name!r} by {path} is not finite; look at its counts")
        answers.append(answers_of(target, output))
        if number == 0:  # whose draws are those that the profile of the training samples is of
            embeddings = np.concatenate([of_batch.embedding for of_batch in found])
    return (np.mean(answers, axis=0) if len(answers) > 1 else answers[0]), embeddings


def tracked(batches: DataLoader[Batch], doing: str = "predicting") -> Iterable[Batch]:
    """Batches, with a progress bar where the standard error is a terminal."""
    if not sys.stderr.isatty():
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, doing, console=Console(stderr=True), transient=True)


def _metrics(frame: pd.DataFrame, target: Target | SeveralTargets) -> dict[str, float]:
    """Of the samples whose truth is known and, for classes, was seen in training."""
    if isinstance(target, SeveralTargets):
        found: dict[str, float] = {}
        for part in parts_of(target):
            names = [name for name in ("actual", *table_columns(part.target)) if f"{part.prefix}{name}" in frame]
            own = _metrics(frame[[f"{part.prefix}{name}" for name in names]].set_axis(names, axis=1), part.target)
            found |= {f"{part.prefix}{name}": value for name, value in own.items()}
        return found
    if "actual" not in frame:
        return {}
    if isinstance(target, NumericTarget):
        known = frame[frame["actual"].notna()]
        if not len(known):
            return {}
        return regression_metrics(known["actual"].to_numpy(dtype=float), known["predicted"].to_numpy(dtype=float))
    known = frame[frame["actual"].isin(target.classes)]
    if not len(known):
        return {}
    return classification_metrics(
        target.encode(known["actual"].to_numpy()),
        target.encode(known["predicted"].to_numpy()),
        known[[f"prob_{name}" for name in target.classes]].to_numpy(),
        target.classes,
    )
