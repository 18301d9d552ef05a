"""One trial of ``aam tune``: what some options of ``aam train`` come to on the training samples alone.

A trial trains on the inner folds of the training samples and is judged by those that a fold holds out. It writes
nothing, and samples that the split holds out have no part in it.

Shapes: ``N`` samples, ``K`` inner folds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aam.assembly import build_task
from aam.config import RunConfig
from aam.data.augmentation import require_whole_counts, with_defaults
from aam.data.study_splits import inner_folds
from aam.errors import DataError, is_out_of_memory
from aam.loaders import choose_device
from aam.run import Prepared, prepare, pretrained_architecture
from aam.search_space import with_values
from aam.searches import with_average, with_batch_size, with_epochs
from aam.trainer_setup import build_trainer
from aam.training.callbacks import EarlyStopping, FiniteLosses, Signals
from aam.training.reports import Reports
from aam.training.tasks import Evaluation

__all__ = ["TENTHS", "Objective", "Setting", "TrialValue", "objective_of", "run_trial", "setting_of"]

TENTHS = 10  # of a fold: where trials of unequal length are compared


class Objective(NamedTuple):
    """What trials are compared by."""

    metric: str
    lower_is_better: bool


class Setting(NamedTuple):
    """What all trials have in common."""

    config: RunConfig  # the fixed options
    prepared: Prepared
    folds: list[NDArray[Any]]  # K of (N,): train, val, or "" of samples that have no part in it


class TrialValue(NamedTuple):
    """What a trial came to."""

    value: float  # mean over the folds, weighted by the samples that judge
    pruned: bool


# Given the tenths of folds that are done and the value so far, it says whether to go on.
Report = Callable[[int, float], bool]


def objective_of(config: RunConfig) -> Objective:
    """Mean absolute error of numbers, balanced accuracy of classes."""
    return Objective("balanced_accuracy", False) if config.task.classifier else Objective("mae", True)


def setting_of(config: RunConfig, folds: int) -> Setting:
    """Read the study of ``aam train`` with these options, and divide its training samples.

    Parameters
    ----------
    config : RunConfig
    folds : int
        ``K``; 1 for one inner split.

    Raises
    ------
    DataError
        If the inputs cannot be used, or the training samples not be divided.
    """
    prepared = prepare(config)
    parts = inner_folds(
        prepared.study,
        prepared.split,
        prepared.config.data,
        folds,
        classifier=config.task.classifier,
        seed=config.train.seed,
    )
    return Setting(config, prepared, parts)


def run_trial(setting: Setting, values: Mapping[str, Any], report: Report) -> TrialValue:
    """Train and judge some values of the options that are searched.

    Parameters
    ----------
    setting : Setting
    values : mapping of str to any
        By the name of the field.
    report : callable
        Told as every tenth of a fold is done.

    Raises
    ------
    DataError
        If the values cannot be used, or the losses are no longer finite.
    Interrupted
        If a signal asked to stop.
    """
    config, metric = _own_config(setting, values), objective_of(setting.config).metric
    device = choose_device(config.train)
    found: list[float] = []
    sizes = [int((parts == "val").sum()) for parts in setting.folds]
    last = TENTHS * len(setting.folds)
    for place, parts in enumerate(setting.folds):
        heard = _Tenths(metric, found, sizes, place, lambda step, value: report(step, value) or step == last)
        try:
            value = _run_fold(config, setting.prepared, parts, device, metric, heard)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise DataError("out of memory; search a smaller batch-size or embedding-dim") from None
        found.append(value)
        if heard.pruned:
            return TrialValue(float(np.average(found, weights=sizes[: place + 1])), True)
    return TrialValue(float(np.average(found, weights=sizes)), False)


class _Tenths:
    """Passes on what a fold comes to, as another tenth of it is done."""

    def __init__(self, metric: str, before: list[float], sizes: list[int], place: int, report: Report) -> None:
        self.metric, self.before, self.report = metric, before, report
        self.sizes, self.place = sizes[: place + 1], place
        self.told = 0
        self.pruned = False

    def __call__(self, share: float, evaluation: Evaluation) -> bool:
        tenth = math.floor(TENTHS * share + 1e-9)
        if tenth == self.told:
            return True
        self.told = tenth
        value = np.average([*self.before, _finite(self.metric, evaluation.metrics[self.metric])], weights=self.sizes)
        self.pruned = not self.report(TENTHS * self.place + tenth, float(value))
        return not self.pruned


def _own_config(setting: Setting, values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a trial, with what `aam.run.prepare` settles."""
    asked, prepared = with_values(setting.config, values), setting.prepared
    own = {name: getattr(asked.data, name) for name in ("token_limit", "asv_sampling")}
    config = asked.model_copy(update={"data": prepared.config.data.model_copy(update=own)})
    if prepared.pretrained is not None:
        config = config.model_copy(update={"model": pretrained_architecture(asked, prepared.pretrained)})
    counts = prepared.study.counts
    if config.augmentation.draws_reads:
        require_whole_counts(counts, config.data.table)
    train = config.train.model_copy(update={"choose_epochs": False})
    return with_average(config.model_copy(update={"augmentation": with_defaults(config, counts), "train": train}))


def _run_fold(
    config: RunConfig,
    prepared: Prepared,
    parts: NDArray[Any],
    device: torch.device,
    metric: str,
    heard: Callable[[float, Evaluation], bool],
) -> float:
    """The metric of a fold's held-out samples, of the epoch that a run would keep."""
    study = prepared.study
    task = build_task(config, study, parts, prepared.pretrained).to(device)
    config = with_batch_size(config, study, parts, task, device)
    config = with_epochs(config, len(study.rows_of(parts, "train")))
    trainer = build_trainer(config, study, parts, task, device)
    patience = config.train.patience
    trainer.callbacks = [
        Signals(),
        *trainer.callbacks,
        FiniteLosses(study.sample_ids),
        *([] if patience is None else [EarlyStopping(patience, config.train.unfreeze_after or 0)]),
        Reports(heard),
    ]
    logger = logging.getLogger("aam")
    said = logger.level
    logger.setLevel(logging.WARNING)  # what a run says of each of its steps would drown what a trial comes to
    try:
        state = trainer.fit()
    finally:
        logger.setLevel(said)
        trainer.close()
    return _finite(metric, state.history[state.best_epoch - 1][f"val_{metric}"])


def _finite(metric: str, value: float) -> float:
    if not math.isfinite(value):
        raise DataError(f"{metric} of the held-out samples is {value}; try a lower lr")
    return value
