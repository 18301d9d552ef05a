"""From a model file and a table to predictions: the straight line behind ``aam predict``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam.config import DataConfig, RunConfig, TrainConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.metadata import load_metadata
from aam.data.study import Study, load_study
from aam.data.targets import ClassTarget, NumericTarget
from aam.errors import DataError, named
from aam.folds import finished_folds
from aam.loaders import choose_device, loader
from aam.models.sequence_predictor import SequencePredictor
from aam.training.checkpoint import (
    ModelFile,
    build_model,
    load_model_file,
    load_weights,
    model_path,
    read_target,
    without_base_heads,
)
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import prediction_table
from aam.training.trainer import precision

__all__ = ["PredictionResult", "data_as_trained", "predict", "tracked"]

logger = logging.getLogger("aam")


@dataclass(frozen=True)
class PredictionResult:
    """Predictions, and how good they are where the truth is known."""

    table: pd.DataFrame  # in the order of the table file
    left_out: dict[str, list[str]]  # reason: sample IDs
    metrics: dict[str, float]


def predict(
    model: Path,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path] = (),
    metadata: Path | Sequence[Path] = (),
    streaming: bool = False,
    settings: TrainConfig,
) -> PredictionResult:
    """Predict samples.

    Parameters
    ----------
    model : Path
        Run directory of ``aam train``, or its model file. The models of a run with folds are averaged: their numbers,
        or their probabilities.
    table : Path, or several
    sequences : Path, or several
        Of the features.
    metadata : Path, or several
        Where it has the model's column, the truth stands beside the predictions and metrics are computed.
    streaming : bool
        Leave the counts in the table's file.
    settings : TrainConfig
        Device, threads, workers and batch size.

    Raises
    ------
    DataError
        If the model or the table cannot be used.
    """
    device = choose_device(settings)
    files = {path: load_model_file(path) for path in map(model_path, finished_folds(model) or [model])}
    targets = [read_target(file.header, path) for path, file in files.items()]
    target, trained = targets[0], next(iter(files.values())).config
    if target is None:
        raise DataError(f"{model}: a pre-trained encoder, which predicts no column; give a run of `aam train`")
    data = data_as_trained(trained, table, sequences=sequences, metadata=metadata, streaming=streaming)
    if data.metadata:
        if target.column in load_metadata(data.metadata).columns:
            data = data.model_copy(update={"metadata_column": target.column})
        else:
            logger.warning(
                "%s: has no column %r, so predictions stand without the truth", named(data.metadata), target.column
            )
            data = data.model_copy(update={"metadata": ()})
    classifier = isinstance(target, ClassTarget)
    study = load_study(data, max_bp=trained.model.max_bp, classifier=classifier, keep_unlabelled=True, checksums=False)
    if study.target is not None:
        unknown = int(pd.isna(study.target).sum())
        if unknown:
            logger.warning(
                "%s: has no %s of %d of %d samples", named(data.metadata), target.column, unknown, len(study)
            )
    for warning in study.warnings:
        logger.warning(warning)
    order = np.argsort(study.file_order)
    names = [study.sample_ids[i] for i in order]
    known = None if study.target is None else study.target[order]
    frames = []
    for (path, file), fitted in zip(files.items(), targets, strict=True):
        assert fitted is not None
        output = _output(path, file, fitted, study, DatasetOptions.of(data, file.config.train.seed), settings, device)
        frames.append(prediction_table(fitted, names, output[order], known))
    frame = _mean(frames, target, model)
    return PredictionResult(frame, study.left_out, _metrics(frame, target))


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


def _output(
    path: Path,
    file: ModelFile,
    target: NumericTarget | ClassTarget,
    study: Study,
    options: DatasetOptions,
    settings: TrainConfig,
    device: torch.device,
) -> NDArray[np.float32]:
    """What the target head of a model gives for the samples of a study, (N, C)."""
    trained = file.config
    predictor = build_model(trained.model, target.outputs, targets=())
    assert isinstance(predictor, SequencePredictor)
    load_weights(predictor, without_base_heads(file.weights), path)
    predictor.to(device).eval()
    dataset = SampleDataset.of_study(study, options)
    plan = BatchPlan(np.arange(len(study)), settings.samples_per_batch, False, 0)
    # In the arithmetic that the model was judged in: half precision rounds in the third digit.
    with torch.no_grad(), precision(trained.train.mixed_precision, device):
        outputs = [predictor(batch.to(device)).target for batch in tracked(loader(dataset, plan, settings, device))]
    output: NDArray[np.float32] = torch.cat(outputs).float().cpu().numpy()
    if not np.isfinite(output).all():
        name = study.sample_ids[int(np.flatnonzero(~np.isfinite(output).all(axis=1))[0])]
        raise DataError(f"the prediction of sample {name!r} by {path} is not finite; look at its counts")
    return output


def _mean(frames: list[pd.DataFrame], target: NumericTarget | ClassTarget, model: Path) -> pd.DataFrame:
    """The mean of several models' predictions, or of their probabilities."""
    if len(frames) == 1:
        return frames[0]
    columns = ["predicted"] if isinstance(target, NumericTarget) else [f"prob_{name}" for name in target.classes]
    if any(list(frame.columns) != list(frames[0].columns) for frame in frames):
        raise DataError(f"{model}: its folds do not predict the same classes; give one of them, {model / 'fold_0'} say")
    mean = frames[0].copy()
    mean[columns] = np.mean([frame[columns].to_numpy() for frame in frames], axis=0)
    if isinstance(target, ClassTarget):
        mean["predicted"] = target.decode(mean[columns].to_numpy().argmax(axis=1))
    return mean


def tracked(batches: DataLoader[Batch], doing: str = "predicting") -> Iterable[Batch]:
    """Batches, with a progress bar where the standard error is a terminal."""
    if not sys.stderr.isatty():
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, doing, console=Console(stderr=True), transient=True)


def _metrics(frame: pd.DataFrame, target: NumericTarget | ClassTarget) -> dict[str, float]:
    """Of the samples whose truth is known and, for classes, was seen in training."""
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
