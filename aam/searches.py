"""What a run finds out before it trains: the batch size that memory allows, and a learning rate.

A found value takes the place of what asked for it in the configuration, so that ``config.json`` says what was run, and
a run that is resumed does not search again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray

from aam.config import RunConfig, UsualEpochs
from aam.data.study import Study
from aam.errors import DataError
from aam.loaders import datasets_of
from aam.run_directory import RunDirectory, write_table
from aam.training.batch_size import find_batch_size
from aam.training.distributed import Processes
from aam.training.frozen import Frozen
from aam.training.kernels import choose_attention
from aam.training.lr_finder import MOST_STEPS, RangeTest, range_test
from aam.training.optimizers import build_optimizer
from aam.training.schedules import build_schedule
from aam.training.tasks import Task
from aam.training.trainer import Trainer

__all__ = [
    "as_found",
    "as_searched",
    "require_alone",
    "search_learning_rate",
    "with_average",
    "with_batch_size",
    "with_epochs",
    "with_learning_rate",
]

logger = logging.getLogger("aam")


def as_found(config: RunConfig, stored: Mapping[str, Any]) -> RunConfig:
    """A configuration with what the searches of the run found that is to be continued.

    Parameters
    ----------
    config : RunConfig
        As asked for now.
    stored : mapping
        As that run has it.
    """
    config = as_searched(config, stored)
    train = stored.get("train", {})
    settled = ("epochs", "stop_after") if config.train.epochs is None else ()
    update = {name: train[name] for name in settled if getattr(config.train, name) is None and name in train}
    config = _updated(config, "train", **update)
    if config.model.head is None and "head" in stored.get("model", {}):
        config = _updated(config, "model", head=stored["model"]["head"])
    return config


def as_searched(config: RunConfig, stored: Mapping[str, Any]) -> RunConfig:
    """A configuration with what a run knew before it searched for its number of epochs; see `as_found`."""
    train, optim = stored.get("train", {}), stored.get("optim", {})
    if config.optim.lr_find == "apply" and "lr" in optim:
        names = ("lr", "head_lr", "min_lr", "lr_find")
        config = _updated(config, "optim", **{name: optim[name] for name in names if name in optim})
    if config.train.batch_size == "auto" and isinstance(train.get("batch_size"), int):
        config = _updated(config, "train", batch_size=train["batch_size"], max_memory_fraction=None)
    if config.train.freeze_asvs_after is None and "freeze_asvs_after" in train:
        config = _updated(config, "train", freeze_asvs_after=train["freeze_asvs_after"])
    return config


def with_average(config: RunConfig) -> RunConfig:
    """A configuration that says whether weights are averaged: by default where a column is learnt."""
    if config.optim.average is not None:
        return config
    if config.command == "pretrain":
        return _updated(config, "optim", average="none")
    return _updated(config, "optim", average="ema", ema_decay=config.optim.ema_decay or 0.99)


def with_epochs(config: RunConfig, train_samples: int) -> RunConfig:
    """A configuration with a number of epochs, and one after which ASVs are encoded once.

    Parameters
    ----------
    config : RunConfig
        With a number for ``--batch-size auto``.
    train_samples : int
    """
    of_a_step = config.train.samples_per_batch * config.accumulation_steps
    usual = UsualEpochs.of(train_samples, of_a_step, config.train.train_steps)
    found: dict[str, Any] = {"epochs": usual.epochs, "freeze_asvs_after": usual.of_asvs}
    if config.command == "train":
        ends = (config.train.epochs, config.train.patience, config.train.stop_after)
        known = usual.large or config.model.head == "linear"
        found["choose_epochs"] = all(end is None for end in ends) and not known
    bases_alone = config.command == "pretrain" and config.task.unifrac_weight == 0  # nothing else learns
    if config.train.frozen_part is not None or config.train.strategy == "fsdp" or bases_alone:
        found["freeze_asvs_after"] = 0
    return _updated(
        config, "train", **{name: value for name, value in found.items() if getattr(config.train, name) is None}
    )


def require_alone(config: RunConfig, processes: Processes) -> None:
    """Refuse to search in several processes.

    Raises
    ------
    DataError
    """
    searches = {"--batch-size auto": config.train.batch_size == "auto", "--lr-find": config.optim.lr_find != "none"}
    for option, asked in searches.items():
        if asked and processes.strategy != "single":
            raise DataError(
                f"{option} searches in one process, and torchrun started {processes.number}; "
                "search without torchrun first, then give it what was found"
            )


def _updated(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def with_batch_size(
    config: RunConfig, study: Study, split: NDArray[Any], task: Task, device: torch.device
) -> RunConfig:
    """A configuration with a number for ``--batch-size auto``.

    Raises
    ------
    DataError
        If not even a batch of two samples fits into memory.
    """
    if config.train.batch_size == "auto":
        target = config.optim.target_effective_batch_size
        choose_attention(task, config.train, device, study.padded)  # as it will be in training
        accumulates = target is not None or config.optim.accumulation_steps > 1
        found = find_batch_size(
            task,
            datasets_of(config, study, split, task)["train"],
            study.rows_of(split, "train"),
            device,
            mixed_precision=config.train.mixed_precision,
            fraction=config.train.max_memory_fraction,
            # The optimizer's moments; where batches are joined, the gradients of those before.
            copies=2 + config.optim.lookahead + (config.optim.average not in (None, "none")) + accumulates,
            most=target,
        )
        size = found.samples
        if target is not None:
            size = math.ceil(target / math.ceil(target / size))  # as many batches, and no larger than they need be
        logger.info(
            "batch size %d: the largest batch of %d takes %.2f GB, and %.2f GB are allowed",
            *(size, found.samples, found.bytes / 1e9, found.budget / 1e9),
        )
        config = _updated(config, "train", batch_size=size, max_memory_fraction=None)
    if config.accumulation_steps > 1:
        logger.info(
            "%d samples in an optimizer step: %d batches of %d",
            *(config.accumulation_steps * config.train.samples_per_batch, config.accumulation_steps),
            config.train.samples_per_batch,
        )
    return config


def search_learning_rate(trainer: Trainer, directory: RunDirectory) -> RangeTest:
    """Run a range test and write what it saw; the trainer is as before."""
    from aam.evaluation.plots import range_test_plot, save_figure

    for callback in trainer.callbacks:
        if isinstance(callback, Frozen) and callback.until is None:
            callback.on_start(trainer)  # what is encoded once serves the search too
    found = range_test(trainer, min(MOST_STEPS, trainer.steps))
    write_table(
        directory / "lr_find.tsv", pd.DataFrame({"lr": found.lr, "loss": found.loss, "smoothed_loss": found.smoothed})
    )
    save_figure(
        range_test_plot(found.lr, found.loss, found.smoothed, found.suggestion), directory / "plots" / "lr_find.png"
    )
    what = "no learning rate lowered the loss" if found.suggestion is None else f"try --lr {found.suggestion:.2g}"
    logger.info(
        "learning-rate range test, %d steps up to %.2g%s: %s (%s)",
        *(len(found.lr), found.lr[-1], ", where the loss diverged" if found.diverged else ""),
        *(what, directory / "plots" / "lr_find.png"),
    )
    return found


def with_learning_rate(config: RunConfig, trainer: Trainer, directory: RunDirectory) -> RunConfig:
    """The configuration with the learning rate that ``--lr-find apply`` finds, which the trainer then has too.

    Rates of parameter groups keep their ratios. Where the loss never falls, the rates stay.
    """
    found = search_learning_rate(trainer, directory).suggestion
    if found is None:
        logger.warning("--lr-find found nothing: training with --lr %g", config.optim.lr)
        return _updated(config, "optim", lr_find="none")
    lr = float(f"{found:.2g}")
    factor = lr / config.optim.lr
    others = {name: getattr(config.optim, name) for name in ("head_lr", "min_lr")}
    values = {name: None if value is None else value * factor for name, value in others.items()}
    if values["min_lr"] is not None:
        values["min_lr"] = min(values["min_lr"], lr)  # which it may be, but for rounding
    config = _updated(config, "optim", lr=lr, lr_find="none", **values)
    trainer.optim = trainer.optim.model_copy(update={"lr": lr, **values})
    trainer.optimizer = build_optimizer(trainer.task.model, config.optim)
    trainer.schedule = build_schedule(trainer.optimizer, config.optim, trainer.steps, trainer.schedule.turn)
    return config
