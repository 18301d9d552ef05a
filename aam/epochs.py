"""How long to learn a column: found on a part of the training samples, before all of them are learnt from.

Subjects are few and a network knows each of them by heart in the end. Where the signal is strong that does no harm, and
all epochs are run. Where it is weak, a network that has learnt for long is worse than a guess, and the best one comes
after a fraction of the steps. See ``docs/quality.md``.

Shapes: ``N`` samples, ``E`` epochs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aam.assembly import build_task
from aam.config import RunConfig
from aam.data.splits import with_validation
from aam.data.study import Study
from aam.errors import DataError
from aam.run_directory import RunDirectory, write_table
from aam.trainer_setup import build_trainer
from aam.training.callbacks import FiniteLosses, Signals
from aam.training.checkpoint import ModelFile
from aam.training.console import Console
from aam.training.distributed import Processes, random_state, set_random_state
from aam.training.meter import Meter
from aam.training.tasks import Evaluation, TrainTask
from aam.training.trainer import Callback, Trainer

__all__ = ["Verdict", "inner_split", "smoothed", "verdict", "with_chosen_epochs"]

logger = logging.getLogger("aam")

SHARE = 0.2  # of the training samples, or groups, that judge
FIRST = 0.25  # share of the epochs before any verdict
EARLIEST = 0.05  # share of the epochs that are run at least: half of the warm-up
STRONG = 0.6  # times the loss of a guess: below it, all epochs are run


def with_chosen_epochs(
    config: RunConfig,
    study: Study,
    split: NDArray[np.str_],
    pretrained: ModelFile | None,
    device: torch.device,
    processes: Processes,
    directory: RunDirectory,
) -> RunConfig:
    """A configuration that stops early if part of the training samples says that later is worse than a guess.

    It then stops after the epoch that was best, but not before a twentieth of them, since few samples judge. The
    schedule stays that of all epochs. ``RUN/epochs.tsv`` holds what the search saw. Where there are too few samples or
    groups to search, all epochs are run.

    Parameters
    ----------
    config : RunConfig
        Its epochs settled.
    study : Study
    split : ndarray (N,) of str
    pretrained : ModelFile, optional
    device : torch.device
    processes : Processes
    directory : RunDirectory

    Raises
    ------
    Interrupted
        If a signal asked to stop.
    """
    random = random_state(device)  # what follows is as it would be without a search
    try:
        parts = inner_split(config, study, split)
        task = build_task(config, study, parts, pretrained).to(device)
    except DataError as error:
        logger.info("all %d epochs are run: how many are best cannot be found out, for %s", config.train.epochs, error)
        return config
    learnt, judging = (len(study.rows_of(parts, part)) for part in ("train", "val"))
    logger.info("how many epochs? %d training samples learn, and %d judge", learnt, judging)
    trainer = build_trainer(config, study, parts, task, device, processes)
    assert isinstance(task, TrainTask)
    guess = task.guess_loss(study.rows_of(parts, "train"), study.rows_of(parts, "val"))
    meter, search = Meter(), _Search(guess)
    beside = [
        FiniteLosses(study.sample_ids, directory / "last.ckpt"),
        meter,
        Console(("r2", "balanced_accuracy"), meter),
    ]
    trainer.callbacks = [Signals(), *trainer.callbacks, *beside, search]
    try:
        trainer.fit()
    finally:
        trainer.close()
        set_random_state(random, device)
    found = verdict(search.losses, guess, config.train.number_of_epochs)
    compared = f"after {len(search.losses)} epochs their loss is {search.losses[-1]:.3g}, a guess's {guess:.3g}"
    if found.stop_after is None:
        logger.info("%s: learning from all training samples for all %d", compared, config.train.number_of_epochs)
    else:
        logger.info("%s: learning from all training samples for %d", compared, found.stop_after)
    if processes.first:
        epochs = np.arange(1, len(search.losses) + 1)
        table = {"epoch": epochs, "loss": search.losses, "smoothed_loss": smoothed(search.losses), "guess": guess}
        write_table(directory / "epochs.tsv", pd.DataFrame(table))
    settled = {"choose_epochs": False, "stop_after": found.stop_after}
    return config.model_copy(update={"train": config.train.model_copy(update=settled)})


def inner_split(config: RunConfig, study: Study, split: NDArray[np.str_]) -> NDArray[np.str_]:
    """The training samples of a split, some of which judge: ``train`` and ``val``; all others are ``""``.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str

    Raises
    ------
    DataError
        If they cannot be divided.
    """
    learnt = np.where(split == "train", split, "").astype("<U5")
    return with_validation(
        study.sample_ids,
        learnt,
        groups=study.groups,
        labels=study.target if config.task.classifier and len(config.data.columns) == 1 else None,
        val_size=SHARE,
        seed=config.train.seed,
        group_name=config.data.group_column or "group",
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each of E losses and those beside it."""
    around = np.pad(np.asarray(losses, dtype=np.float64), 1, mode="edge")
    return np.convolve(around, np.full(3, 1 / 3), "valid").tolist()


class Verdict(NamedTuple):
    """What losses so far say."""

    known: bool  # whether the search can end
    stop_after: int | None = None  # of a weak signal, the best epoch or EARLIEST; None for all


def verdict(losses: Sequence[float], guess: float, epochs: int) -> Verdict:
    """Whether a signal is strong enough to learn it for all epochs.

    Parameters
    ----------
    losses : sequence of float
        Of judging samples, after each epoch so far.
    guess : float
        What the best constant answer loses.
    epochs : int
        ``E``, of a whole run.
    """
    values = smoothed(losses)
    if len(values) >= FIRST * epochs:
        if values[-1] < STRONG * guess:
            return Verdict(True)
        if values[-1] > guess:
            return Verdict(True, max(1 + int(np.argmin(values)), math.ceil(EARLIEST * epochs)))
    return Verdict(len(values) == epochs)


class _Search(Callback):
    """Collects the loss of the column, and ends the search when there is a verdict."""

    def __init__(self, guess: float) -> None:
        self.guess = guess
        self.losses: list[float] = []

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.losses.append(float(evaluation.losses[trainer.task.monitor]))
        trainer.state.stop = verdict(self.losses, self.guess, trainer.config.number_of_epochs).known
