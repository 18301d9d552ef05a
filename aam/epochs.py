"""How long to learn a column: found on parts of the training samples, before all of them are learnt from.

Subjects are few and a network knows each of them by heart in the end. Where the signal is strong that does no harm, and
all epochs are run. Where it is weak, a network that has learnt for long is worse than a guess, and the best one comes
after a fraction of the steps. See ``docs/quality.md``.

Shapes: ``N`` samples, ``E`` epochs, ``P`` parts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aam.assembly import build_task
from aam.config import RunConfig
from aam.data.splits import make_folds, read_splits
from aam.data.study import Study
from aam.errors import DataError
from aam.run_directory import RunDirectory, write_table
from aam.trainer_setup import build_trainer, resume
from aam.training.callbacks import Checkpoints, FiniteLosses, Signals
from aam.training.checkpoint import ModelFile, load_checkpoint, model_path, read_header, stored_config
from aam.training.console import Console
from aam.training.distributed import Processes, random_state, set_random_state
from aam.training.meter import Meter
from aam.training.tasks import Evaluation, TrainTask
from aam.training.trainer import Callback, Trainer

__all__ = [
    "EpochSearch",
    "Judge",
    "SearchIsOver",
    "Verdict",
    "encoder_knows",
    "inner_splits",
    "pooled",
    "smoothed",
    "verdict",
]

logger = logging.getLogger("aam")

PARTS = 5  # that the training samples, or groups, are cut into; each judges once
FIRST = 0.25  # share of the epochs before any verdict
EARLIEST = 0.05  # share of the epochs that are run at least: half of the warm-up
STRONG = 0.6  # times the loss of a guess: below it, all epochs are run


class EpochSearch(NamedTuple):
    """Finds out whether a column is better learnt for fewer epochs than all, and for how many.

    One part judges what the others learn. If it calls the signal weak, each other part judges in its turn for as many
    epochs, and it is all of them that say whether it is, and after which epoch to stop: the best by all, but not before
    a twentieth of them. The schedule stays that of all epochs. Where a linear head can read it, a weak signal is left
    to that instead (`aam.linear_head`), and all epochs are run; so they are where there are too few samples or groups
    to search.

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
        ``RUN/epochs.tsv`` will hold what was seen, and ``RUN/search`` holds what resuming needs.
    inputs : mapping
        What tells that a search that is resumed has the inputs that it had.
    """

    config: RunConfig
    study: Study
    split: NDArray[np.str_]
    pretrained: ModelFile | None
    device: torch.device
    processes: Processes
    directory: RunDirectory
    inputs: Mapping[str, str]

    def settled(self) -> RunConfig:
        """A configuration that stops early, or has a linear head, if the parts say that later is worse than a guess.

        Whatever is in ``RUN/search`` is gone on with.

        Raises
        ------
        Interrupted
            If a signal asked to stop.
        """
        random = random_state(self.device)  # what follows is as it would be without a search
        epochs = self.config.train.number_of_epochs
        judges = self._judges()
        try:
            first = next(judges)
            logger.info("how many epochs? %d training samples learn, and %d judge", *first.sizes)
            until, parts = first.learn(), [first]
            if verdict(*pooled(parts, until), epochs).stop_after is not None:
                until, parts = _together(first, judges, until, epochs)
        except _NoJudgeError as error:
            logger.info("all %d epochs are run: how many are best cannot be found out, for %s", epochs, error)
            return self.config
        finally:
            set_random_state(random, self.device)
        losses, guess = pooled(parts, until)
        stop_after = verdict(losses, guess, epochs).stop_after
        logger.info("after %d epochs those that judge have a loss of %.3g, a guess %.3g", until, losses[-1], guess)
        linear = stop_after is not None and self.config.model.head is None and self.config.why_not_linear is None
        if linear:
            stop_after = None
        logger.info(
            "learning from all training samples for %s%s",
            f"all {epochs}" if stop_after is None else stop_after,
            ", and nothing of the column, which is read linearly then" if linear else "",
        )
        if self.processes.first:
            table = {"epoch": np.arange(1, until + 1), "loss": losses, "smoothed_loss": smoothed(losses)}
            table |= {"guess": guess} | {f"part_{n}": judge.losses[:until] for n, judge in enumerate(parts, start=1)}
            write_table(self.directory / "epochs.tsv", pd.DataFrame(table))
        train = self.config.train.model_copy(update={"choose_epochs": False, "stop_after": stop_after})
        model = self.config.model.model_copy(update={"head": "linear"}) if linear else self.config.model
        return self.config.model_copy(update={"model": model, "train": train})

    def _judges(self) -> Iterator[Judge]:
        """Those parts of the training samples that can judge what the others learn, each as it is asked for.

        Raises
        ------
        _NoJudgeError
            If none can.
        """
        reason, some = "there are no training samples", False
        try:
            splits = list(inner_splits(self.config, self.study, self.split))
        except DataError as error:
            raise _NoJudgeError(error) from None
        for number, inner in enumerate(splits, start=1):
            try:
                task = build_task(self.config, self.study, inner, self.pretrained).to(self.device)
            except DataError as error:  # of a class, say, the others have no sample
                reason = str(error)
                continue
            assert isinstance(task, TrainTask)
            some = True
            yield self._judge(task, inner, self.directory.search_checkpoint(number))
        if not some:
            raise _NoJudgeError(reason)

    def _judge(self, task: TrainTask, inner: NDArray[np.str_], checkpoint: Path) -> Judge:
        """A part, as far as it has come."""
        learnt, judging = (self.study.rows_of(inner, part) for part in ("train", "val"))
        trainer = build_trainer(self.config, self.study, inner, task, self.device, self.processes)
        meter = Meter()
        beside = {"config": self.config.model_dump(mode="json"), "inputs": dict(self.inputs)}
        trainer.callbacks = [
            Signals(),
            *trainer.callbacks,
            FiniteLosses(self.study.sample_ids, checkpoint),
            meter,
            Console(("r2", "balanced_accuracy"), meter),
            Checkpoints(lambda evaluation: None, checkpoint, beside, self.config.train.save_every_minutes),
        ]
        if self.processes.broadcast(checkpoint.is_file()):
            resume(trainer, checkpoint, load_checkpoint(checkpoint))
        elif self.processes.first:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        return Judge(trainer, task.guess_loss(learnt, judging), (len(learnt), len(judging)))


class _NoJudgeError(Exception):
    """No part of the training samples can judge what the others learn."""


def _together(first: Judge, others: Iterator[Judge], until: int, epochs: int) -> tuple[int, list[Judge]]:
    """Let all learn for as many epochs as the first has, and on while these say nothing of all of them together."""
    judges = [first]
    for judge in others:
        judges.append(judge)
        told = (len(judges), *judge.sizes)
        logger.info("the signal looks weak: part %d, where %d training samples learn, and %d judge", *told)
        judge.learn(until)
    while not verdict(*pooled(judges, until), epochs).known:
        until = min(until + math.ceil(FIRST / 2 * epochs), epochs)
        logger.info("the parts do not agree: each goes on until epoch %d", until)
        for judge in judges:
            judge.learn(until)
    return until, judges


def inner_splits(config: RunConfig, study: Study, split: NDArray[np.str_]) -> Iterator[NDArray[np.str_]]:
    """The training samples of a split, a part of which judges: ``train`` and ``val``; all others are ``""``.

    Samples of a group are in one part, unless there is one group only; of a class in as many as can be.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str

    Yields
    ------
    ndarray (N,) of str
        Each of P parts once as ``val``; P is 5, or as many as there are groups or samples.

    Raises
    ------
    DataError
        If they cannot be divided.
    """
    learnt = np.flatnonzero(split == "train")
    groups = None if study.groups is None else study.groups[learnt]
    if groups is not None and len(set(groups.tolist())) == 1:
        groups = None
    number = min(PARTS, len(learnt) if groups is None else len(set(groups.tolist())))
    if number < 2:
        raise DataError(f"they are asked of a part of the training samples, of which there are {len(learnt)}")
    parts = None
    if config.task.classifier and len(config.data.columns) == 1 and study.target is not None:
        parts = _parts(config, study, learnt, groups, number, study.target[learnt])
    if parts is None:  # no classes, or too few samples of one
        parts = _parts(config, study, learnt, groups, number, None)
    assert parts is not None
    for part in range(parts.max() + 1):
        inner = np.full(len(split), "", dtype="<U5")
        inner[learnt] = np.where(parts == part, "val", "train")
        yield inner


def _parts(
    config: RunConfig,
    study: Study,
    learnt: NDArray[np.int64],
    groups: NDArray[Any] | None,
    most: int,
    labels: NDArray[Any] | None,
) -> NDArray[np.int64] | None:
    """The part of each training sample; of as many parts as can be, none empty. None where there are no two."""
    for number in range(most, 1, -1):
        try:
            return make_folds(
                [study.sample_ids[row] for row in learnt],
                folds=number,
                groups=groups,
                labels=labels,
                seed=config.train.seed,
                group_name=config.data.group_column or "group",
            )
        except DataError:
            continue
    return None


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


def encoder_knows(config: RunConfig, study: Study, split: NDArray[np.str_]) -> bool:
    """Whether the pre-trained encoder has learnt a column of training samples, no part of which can judge it then."""
    if config.train.pretrained_encoder is None:
        return False
    path = model_path(config.train.pretrained_encoder)
    if set(config.data.columns).isdisjoint(stored_config(read_header(path)["config"]).data.columns):
        return False
    splits = path.parent / "splits.tsv"
    if not splits.is_file():  # nobody can say
        return True
    before = read_splits(splits)
    return any(before.get(study.sample_ids[row]) == "train" for row in study.rows_of(split, "train"))


class SearchIsOver(Callback):
    """Removes what a search would be resumed from, once the run has a checkpoint."""

    first_process_only = True

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def on_start(self, trainer: Trainer) -> None:
        self.directory.forget_search()


class Judge(Callback):
    """A part of the training samples, and the training on all others that it judges.

    Parameters
    ----------
    trainer : Trainer
        As far as it has come.
    guess : float
        What the best constant answer loses on the part.
    sizes : tuple of int
        Samples that learn, and those of the part.
    """

    def __init__(self, trainer: Trainer, guess: float, sizes: tuple[int, int]) -> None:
        self.trainer = trainer
        self.guess = guess
        self.sizes = sizes
        self.until: int | None = None
        self.random = random_state(trainer.device)  # what its training draws next, whatever others draw meanwhile

    @property
    def losses(self) -> list[float]:
        """Of the part, after each epoch so far."""
        return [row[f"val_{self.trainer.task.monitor}"] for row in self.trainer.state.history]

    def learn(self, until: int | None = None) -> int:
        """Go on until so many epochs have ended, or by default until the part has a verdict of its own.

        Returns
        -------
        int
            Epochs until then, which may have been over before.

        Raises
        ------
        Interrupted
            If a signal asked to stop.
        """
        self.until = until
        trainer = self.trainer
        if self._end is None:
            set_random_state(self.random, trainer.device)
            trainer.state.stop = False
            callbacks = trainer.callbacks
            trainer.callbacks = [*callbacks, self]
            try:
                trainer.fit()
                trainer.heed_signal()  # that came when nothing was left to be learnt
            finally:
                trainer.close()
                trainer.callbacks = callbacks  # without a cycle, in which the weights would outlive the search
            self.random = random_state(trainer.device)
        return self._end or len(self.losses)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        trainer.state.stop = self._end is not None

    @property
    def _end(self) -> int | None:
        """The epoch that is the last to be learnt now, if it is over."""
        losses, epochs = self.losses, self.trainer.config.number_of_epochs
        if self.until is not None:
            return self.until if len(losses) >= self.until else None
        ends = (end for end in range(1, len(losses) + 1) if verdict(losses[:end], self.guess, epochs).known)
        return next(ends, None)


def pooled(judges: Sequence[Judge], until: int) -> tuple[list[float], float]:
    """The losses of several parts after each epoch, and of a guess: means over their samples.

    Each part's are in units of what the others learn, which differ little.

    Parameters
    ----------
    judges : sequence of Judge
        Of P parts, after E epochs at least.
    until : int
        ``E``

    Returns
    -------
    losses : list of float
        Of E epochs.
    guess : float
    """
    sizes = [judge.sizes[1] for judge in judges]
    losses = np.average([judge.losses[:until] for judge in judges], axis=0, weights=sizes)
    return losses.tolist(), float(np.average([judge.guess for judge in judges], weights=sizes))
