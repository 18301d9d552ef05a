"""From a task and a configuration to the trainer of a run: batches, optimizer, schedule and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from aam.config import RunConfig
from aam.data.dataset import BatchPlan
from aam.data.study import Study
from aam.loaders import datasets_of, loader
from aam.outcome import figures
from aam.run_directory import RunDirectory
from aam.training.callbacks import (
    Checkpoints,
    Console,
    EarlyStopping,
    FiniteLosses,
    HistoryFile,
    Signals,
    TensorBoard,
)
from aam.training.checkpoint import MODEL_NAME, save_model_file
from aam.training.optim import build_optimizer, build_schedule
from aam.training.tasks import Evaluation, Task
from aam.training.trainer import Callback, Trainer

__all__ = ["build_trainer"]


def build_trainer(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    device: torch.device,
    directory: RunDirectory,
    header: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Trainer:
    """The trainer of a run.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
        ``train``, ``val``, … of each sample.
    task : Task
        On the device.
    device : torch.device
    directory : RunDirectory
    header : mapping
        What the model file says beside its configuration and metrics.
    inputs : mapping
        What tells that a resumed run has the inputs that it had.
    """
    datasets = datasets_of(config, study, split, task)
    plans = _plans(config, study, split)
    optimizer = build_optimizer(task.model, config.optim)
    steps = -(-len(plans["train"]) // config.optim.accumulation_steps) * config.train.epochs
    return Trainer(
        task,
        plans["train"],
        loader(datasets["train"], plans["train"], config.train, device),
        loader(datasets["val"], plans["val"], config.train, device),
        optimizer,
        build_schedule(optimizer, config.optim, steps),
        config.optim,
        config.train,
        device,
        callbacks=_callbacks(config, study, task, directory, header, inputs),
    )


def _plans(config: RunConfig, study: Study, split: NDArray[Any]) -> dict[str, BatchPlan]:
    """The batches of training, shuffled, and of validation."""
    train, seed = config.train, config.train.seed
    studies = study.studies if config.data.study_batches == "alternate" else None
    return {
        "train": BatchPlan(study.rows_of(split, "train"), train.batch_size, True, seed, studies),
        "val": BatchPlan(study.rows_of(split, "val"), train.batch_size, False, seed),
    }


def _callbacks(
    config: RunConfig,
    study: Study,
    task: Task,
    directory: RunDirectory,
    header: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> list[Callback]:
    """What happens beside the loop, in this order."""

    def save_best(evaluation: Evaluation) -> None:
        metrics = {"val": evaluation.metrics}
        save_model_file(directory / MODEL_NAME, task.model, config, {**header, "metrics": metrics})

    shown = ("r2", "mae", "balanced_accuracy", *(f"{name}_r2" for name in task.reading_names))
    beside = {"config": config.model_dump(mode="json"), "inputs": dict(inputs)}
    return [
        Signals(),
        FiniteLosses(study.sample_ids, directory / "last.ckpt"),
        Console(shown),
        HistoryFile(directory / "history.csv"),
        TensorBoard(directory / "tensorboard", lambda evaluation: figures(task, study, evaluation)),
        EarlyStopping(config.train.patience),
        Checkpoints(save_best, directory / "last.ckpt", beside, config.train.save_every_minutes),
    ]
