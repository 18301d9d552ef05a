"""From a task and a configuration to the trainer of a run: batches, optimizer, schedule and callbacks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam.config import FrozenPart, RunConfig
from aam.data.batch import Batch, arrange
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.splits import watched_part
from aam.data.study import Study
from aam.errors import DataError
from aam.loaders import datasets_of, loader
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from aam.outcome_plots import figures
from aam.run_directory import RunDirectory
from aam.training.attention_maps import AttentionMaps
from aam.training.averaging import build_average
from aam.training.callbacks import (
    Checkpoints,
    EarlyStopping,
    FiniteLosses,
    HistoryFile,
    Plateau,
    Signals,
)
from aam.training.checkpoint import MODEL_NAME, save_model_file
from aam.training.console import Console
from aam.training.distributed import Processes, distribute, require_whole_tensors, whole
from aam.training.frozen import Frozen
from aam.training.kernels import prepare_kernels
from aam.training.meter import Meter
from aam.training.optimizers import OPTIMIZERS, build_optimizer, peak_learning_rates
from aam.training.profiler import Profile
from aam.training.schedules import build_schedule
from aam.training.sharded import fill_in_shards
from aam.training.tasks import Evaluation, Task
from aam.training.tensorboard import StepCurves, TensorBoard
from aam.training.tracking import Tracking
from aam.training.trainer import Callback, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["build_callbacks", "build_trainer", "require_sharding", "resume"]

logger = logging.getLogger("aam")

_ATTENTION_SAMPLES = 3

# How a run is written and watched is no property of its model.
_NO_PARAMETERS = {"output_dir", "resume", "overwrite", "save_every_minutes"}
_NO_PARAMETERS |= {"baseline", "join", "plots", "log_histograms", "log_attention", "profile", "track"}


def require_sharding(config: RunConfig) -> None:
    """Refuse what cannot take a part of a tensor, as ``--strategy fsdp`` leaves each process.

    Raises
    ------
    DataError
    """
    if not OPTIMIZERS[config.optim.optimizer].sharded:
        require_whole_tensors(config.train, f"--optimizer {config.optim.optimizer}")
    if config.optim.lookahead:
        require_whole_tensors(config.train, "--lookahead")
    if config.train.log_histograms:
        require_whole_tensors(config.train, "--log-histograms")
    if config.train.log_attention is not None:
        require_whole_tensors(config.train, "--log-attention")


def build_trainer(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    device: torch.device,
    processes: Processes = Processes(),  # noqa: B008 - immutable
) -> Trainer:
    """The trainer of a run, its callbacks but that which keeps a part frozen left to `build_callbacks`.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
        ``train``, ``val``, … of each sample.
    task : Task
        On the device.
    device : torch.device
    processes : Processes
    """
    prepare_kernels(task, config.train, device, padded=study.padded)
    datasets = datasets_of(config, study, split, task)
    plans = _plans(config, study, split, processes)
    learner = distribute(task, processes, reshard_after_forward=config.train.reshard_after_forward)
    processes.seed(config.train.seed, 0)
    optim = config.optim.model_copy(update={"accumulation_steps": config.accumulation_steps})
    optimizer = build_optimizer(task.model, optim)
    rates = ", ".join(f"{name} {lr:.2g}" for name, lr in peak_learning_rates(optimizer))
    if optim.head_lr is not None or optim.layer_decay is not None:
        logger.info("peak learning rates: %s", rates)
    steps_of_epoch = -(-len(plans["train"]) // optim.accumulation_steps)
    steps = steps_of_epoch * config.train.number_of_epochs
    since = config.train.freeze_asvs_after or 0
    # What is frozen has then come to rest, as at the end of a run, and what is not begins another.
    turn = steps_of_epoch * since if since < config.train.number_of_epochs else 0
    return Trainer(
        task,
        plans["train"],
        loader(datasets["train"], plans["train"], config.train, device),
        loader(datasets[watched_part(split)], plans["val"], config.train, device),
        optimizer,
        build_schedule(optimizer, optim, steps, turn),
        optim,
        config.train,
        device,
        average=build_average(task.model, optim, steps_of_epoch * config.train.last_epoch),
        learner=learner,
        callbacks=_frozen(config, study, split, device),
    )


def _frozen(config: RunConfig, study: Study, split: NDArray[Any], device: torch.device) -> list[Callback]:
    """What keeps a part of the base frozen, where one is to be."""
    since = config.train.freeze_asvs_after or 0
    part: FrozenPart | None = "asv_encoder" if since else config.train.frozen_part
    if part is None:
        return []
    train, *held_out = (study.rows_of(split, name) for name in ("train", "val", "test", "cal"))

    def batches(dataset: SampleDataset, plan: BatchPlan, workers: int | None) -> DataLoader[Batch]:
        return loader(dataset, plan, config.train, device, workers=workers)

    return [
        Frozen(
            part,
            train,
            np.concatenate(held_out),
            batches,
            until=config.train.unfreeze_after,
            since=since,
            once=config.train.encode_once,
        )
    ]


def _plans(config: RunConfig, study: Study, split: NDArray[Any], processes: Processes) -> dict[str, BatchPlan]:
    """The batches of training, shuffled, and of validation."""
    train, seed, share = config.train, config.train.seed, processes.share
    studies = study.studies if config.data.study_batches == "alternate" else None
    return {
        "train": BatchPlan(study.rows_of(split, "train"), train.samples_per_batch, True, seed, studies, share),
        "val": BatchPlan(study.rows_of(split, watched_part(split)), train.samples_per_batch, False, seed, share=share),
    }


def resume(trainer: Trainer, path: Path, saved: dict[str, Any]) -> None:
    """Let a trainer go on where a checkpoint was written.

    Parameters
    ----------
    trainer : Trainer
    path : Path
        Of the checkpoint.
    saved : dict
        As it was read; changed.

    Raises
    ------
    DataError
        If it does not fit.
    """
    fill_in_shards(path, saved, trainer)
    try:
        trainer.load_state_dict(saved["trainer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path}: does not fit this run ({type(error).__name__}); start again with --overwrite"
        ) from None
    logger.info("resuming after epoch %d, step %d", trainer.state.epoch, trainer.state.step)


def build_callbacks(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    directory: RunDirectory,
    header: Mapping[str, Any],
    inputs: Mapping[str, str],
    frozen: Sequence[Callback] = (),
) -> list[Callback]:
    """What happens beside the loop, in this order.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
        ``train``, ``val``, … of each sample.
    task : Task
    directory : RunDirectory
    header : mapping
        What the model file says beside its configuration and metrics.
    inputs : mapping
        What tells that a resumed run has the inputs that it had.
    frozen : sequence of Callback
        Those that the trainer has already.
    """

    def save_best(evaluation: Evaluation) -> None:
        weights = whole(task.model.state_dict(), keep=task.processes.first)
        if task.processes.first:
            save_model_file(directory / MODEL_NAME, weights, config, {**header, "metrics": {"val": evaluation.metrics}})

    shown = ("r2", "mae", "balanced_accuracy", *(f"{name}_r2" for name in task.reading_names))
    beside = {"config": config.model_dump(mode="json"), "inputs": dict(inputs)}
    return [
        Signals(),
        *frozen,
        FiniteLosses(study.sample_ids, directory / "last.ckpt"),
        *_watching(config, study, split, task, directory, shown),
        Plateau(config.optim.plateau_patience, config.optim.restart_on_plateau),
        *(
            []
            if config.train.patience is None
            else [EarlyStopping(config.train.patience, config.train.unfreeze_after or 0)]
        ),
        Checkpoints(save_best, directory / "last.ckpt", beside, config.train.save_every_minutes),
    ]


def _watching(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    directory: RunDirectory,
    shown: tuple[str, ...],
) -> list[Callback]:
    """What the run is watched by: the meter first, which the others read."""
    meter, parameters, board = Meter(), _parameters(config), directory / "tensorboard"
    watching: list[Callback] = [
        meter,
        Console(shown, meter, explains=True),
        HistoryFile(directory / "history.csv"),
        HistoryFile(directory / "speed.csv", "measured"),
        StepCurves(board / "steps", meter),
        TensorBoard(
            board,
            (lambda evaluation: figures(task, study, evaluation)) if config.train.plots else None,
            parameters,
            shown,
            histograms=config.train.log_histograms,
        ),
    ]
    if config.train.log_attention is not None:
        draw = _attention_in(config, study, study.rows_of(split, watched_part(split)), task)
        watching.append(AttentionMaps(board / "attention", draw, config.train.log_attention))
    if config.train.profile is not None:
        watching.append(Profile(directory / "profile", config.train.profile))
    if config.train.track:
        from aam.integrations import tracker

        trackers = [tracker(kind, directory.path) for kind in dict.fromkeys(config.train.track)]
        plots, model, memory = directory / "plots", directory / MODEL_NAME, directory / "tracking.json"
        watching.append(Tracking(trackers, parameters, plots, model, memory))
    return watching


def _attention_in(
    config: RunConfig, study: Study, rows: NDArray[np.int64], task: Task
) -> Callable[[], Mapping[str, Figure]]:
    """What draws attention in some of these samples."""
    from aam.interpret.attention_figures import attention_figures

    some = rows[np.unique(np.linspace(0, len(rows) - 1, _ATTENTION_SAMPLES).round().astype(int))]
    dataset = SampleDataset.of_study(study, DatasetOptions.of(config.data, config.train.seed))
    batch, asvs = arrange(*dataset.drawn(some, 0), study.tokens, some)
    labels = [study.feature_ids[asv] for asv in asvs]
    labels = [
        hashlib.md5(name.encode()).hexdigest()[:6] if name == study.sequences[asv] else name[:12]
        for name, asv in zip(labels, asvs, strict=True)
    ]

    def draw() -> Mapping[str, Figure]:
        model = task.model
        encoder = model.encoder if isinstance(model, SequencePredictor) else model
        assert isinstance(encoder, SequenceEncoder)
        device = next(encoder.parameters()).device
        return attention_figures(encoder, batch.to(device), [study.sample_ids[row] for row in some], labels)

    return draw


def _parameters(config: RunConfig) -> dict[str, str | float | bool]:
    """What the run was asked for, by the names of the options; all of them, so that runs can be compared."""
    found: dict[str, str | float | bool] = {"command": config.command}
    for section in config.model_dump(mode="json", exclude={"command"}).values():
        for name, value in section.items():
            if name in _NO_PARAMETERS:
                continue
            if isinstance(value, list):
                value = " ".join(map(str, value)) or None
            found[name] = "none" if value is None else value
    return found
