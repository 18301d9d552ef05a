"""How long to learn a column: found on a part of the training samples, before all of them are learnt from.

Subjects are few and a network knows each of them by heart in the end: a weak signal is predicted best after a
fraction of the steps that a strong one needs. See ``docs/quality.md``.

Shapes: ``N`` samples, ``E`` epochs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

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
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer

__all__ = ["best_epoch", "inner_split", "with_chosen_epochs"]

logger = logging.getLogger("aam")

SHARE = 0.2  # of the training samples, or groups, that judge
TOLERANCE = 1.05  # times the least loss is as good: few subjects judge, and later is better where more are learnt from
HOPELESS = 1.5  # times the least loss, after which the search ends


def with_chosen_epochs(
    config: RunConfig,
    study: Study,
    split: NDArray[np.str_],
    pretrained: ModelFile | None,
    device: torch.device,
    processes: Processes,
    directory: RunDirectory,
) -> RunConfig:
    """A configuration that stops after as many epochs as were best where a part of the training samples judged.

    Its schedule stays that of all epochs. ``RUN/epochs.tsv`` holds what the search saw. Where there are too few
    samples or groups to search, nothing is changed.

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
    meter, search = Meter(), _Search()
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
    found = best_epoch(search.losses)
    logger.info(
        "the column is predicted best after %d of %d epochs (loss %.3g; after %d it was %.3g): learning from all",
        *(found, config.train.number_of_epochs, smoothed(search.losses)[found - 1]),
        *(len(search.losses), search.losses[-1]),
    )
    if processes.first:
        epochs = np.arange(1, len(search.losses) + 1)
        table = {"epoch": epochs, "loss": search.losses, "smoothed_loss": smoothed(search.losses)}
        write_table(directory / "epochs.tsv", pd.DataFrame(table))
    settled = {"choose_epochs": False, "stop_after": found}
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
        labels=study.target if config.task.classifier else None,
        val_size=SHARE,
        seed=config.train.seed,
        group_name=config.data.group_column or "group",
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each of E losses and those beside it."""
    around = np.pad(np.asarray(losses, dtype=np.float64), 1, mode="edge")
    return np.convolve(around, np.full(3, 1 / 3), "valid").tolist()


def best_epoch(losses: Sequence[float]) -> int:
    """The last epoch, from 1 on, whose smoothed loss is the least or about as good."""
    values = np.array(smoothed(losses))
    return 1 + int(np.flatnonzero(values <= TOLERANCE * values.min())[-1])


class _Search(Callback):
    """Collects the loss of the column, and ends the search when that is far above what it was."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.losses.append(float(evaluation.losses[trainer.task.monitor]))
        values = smoothed(self.losses)
        if values[-1] > HOPELESS * min(values):
            trainer.state.stop = True
