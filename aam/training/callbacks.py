"""What happens beside the loop, one concern a class: what a run writes and when it ends.

Beside these, `aam.training.meter`, `console`, `tensorboard`, `profiler` and `tracking` hold what it is watched by.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from aam.errors import DataError
from aam.training.checkpoint import save_checkpoint
from aam.training.distributed import all_finite
from aam.training.sharded import remove_shards, save_sharded
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

__all__ = ["Checkpoints", "EarlyStopping", "FiniteLosses", "HistoryFile", "Plateau", "Signals"]

logger = logging.getLogger("aam")


class EarlyStopping(Callback):
    """Stops after ``patience`` epochs without a better validation loss; epochs up to ``after`` do not count."""

    def __init__(self, patience: int, after: int = 0) -> None:
        self.patience = patience
        self.after = after

    def on_start(self, trainer: Trainer) -> None:
        trainer.state.stop = self._enough(trainer)  # a resumed run may have been given more patience

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if self._enough(trainer) and trainer.state.epoch < trainer.config.last_epoch:
            logger.info("no better epoch in %d: stopping early", self.patience)
            trainer.state.stop = True

    def _enough(self, trainer: Trainer) -> bool:
        return trainer.state.epoch - max(trainer.state.best_epoch, self.after) >= self.patience


class Plateau(Callback):
    """Says where the validation loss has not improved for some epochs, and may begin the schedule anew.

    Parameters
    ----------
    patience : int
        Epochs since the best one, or since the last plateau.
    restart : bool
    """

    def __init__(self, patience: int, restart: bool) -> None:
        self.patience = patience
        self.restart = restart

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        state = trainer.state
        if state.epoch - max(trainer.lowest_epoch, state.plateau_epoch) < self.patience:
            return
        state.plateau_epoch = state.epoch
        again = self.restart and state.epoch < trainer.config.last_epoch
        if again:
            trainer.schedule.restart()
        logger.info("no better epoch in %d: a plateau%s", self.patience, "; the schedule begins anew" if again else "")


class Checkpoints(Callback):
    """Writes the model where an epoch is the one to keep so far, and what resuming needs.

    That is written before the first step, after every epoch, every so many minutes, and where the run is interrupted.

    Parameters
    ----------
    save_best : callable
        Given the evaluation.
    path : Path
        Of the checkpoint.
    beside : mapping
        Stored with it, so that a resumed run is known to be the same: ``config``, and ``inputs`` where there are any.
    every_minutes : float
    """

    def __init__(
        self,
        save_best: Callable[[Evaluation], None],
        path: Path,
        beside: Mapping[str, Any],
        every_minutes: float = math.inf,
    ) -> None:
        self.save_best = save_best
        self.path = path
        self.beside = dict(beside)
        self.every_seconds = 60 * every_minutes
        self.saved = time.monotonic()

    def on_start(self, trainer: Trainer) -> None:
        self.saved = time.monotonic()
        if trainer.state.step == 0:
            self._save(trainer)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.processes.any(time.monotonic() - self.saved >= self.every_seconds):
            self._save(trainer)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if trainer.state.improved:
            with trainer.average.in_model():
                self.save_best(evaluation)
        self._save(trainer)

    def on_interrupt(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # A loss on a GPU is looked at some steps later: what it ruined must not replace a good checkpoint.
        if trainer.processes.any(not all_finite(trainer.task.model)):
            raise DataError(
                f"the weights are no longer finite at step {trainer.state.step}; {self.path} is as it was before. "
                f"Try a lower --lr than {trainer.optim.lr:g}, or --mixed-precision none"
            )
        state = {"trainer": trainer.state_dict(sharded=trainer.config.sharded_checkpoints), **self.beside}
        if trainer.config.sharded_checkpoints:
            save_sharded(self.path, state, trainer.processes)
        elif trainer.processes.first:
            save_checkpoint(self.path, state)
            remove_shards(self.path)
        trainer.processes.barrier()  # nobody ends before it is written
        self.saved = time.monotonic()


class Signals(Callback):
    """Ends the run in good order at SIGTERM, SIGUSR1 (SLURM's warning) or Ctrl-C; at a second Ctrl-C at once."""

    HEEDED = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets the main thread alone handle signals
        self.close()

        process = os.getpid()

        def stop_soon(number: int, frame: object) -> None:
            if os.getpid() != process:  # one that builds batches; SLURM sends its signal to all there are
                return
            logger.info("%s: saving, then stopping", signal.Signals(number).name)
            trainer.stop_soon(number)
            signal.signal(signal.SIGINT, self.before[signal.SIGINT])

        for name in self.HEEDED:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self.before[number] = signal.signal(number, stop_soon)

    def close(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


class _Pending(NamedTuple):
    """The losses of a step on their way from the device."""

    step: int
    epoch: int
    names: tuple[str, ...]
    values: Tensor
    samples: list[Tensor]
    arrived: Callable[[], bool]


class FiniteLosses(Callback):
    """Ends a run in which a loss is not a number, naming the part and the samples.

    On a GPU the losses of a step are looked at when they have arrived, which validation waits for, and no step.

    Parameters
    ----------
    sample_ids : sequence of str
        Of the rows of the study.
    checkpoint : Path, optional
        Where the run can be resumed from.
    """

    def __init__(self, sample_ids: Sequence[str], checkpoint: Path | None = None) -> None:
        self.sample_ids = sample_ids
        self.checkpoint = checkpoint
        self.pending: deque[_Pending] = deque()

    def on_step(self, trainer: Trainer, step: Step) -> None:
        values = torch.stack(list(step.parts.values())).to("cpu", non_blocking=True)
        arrived: Callable[[], bool] = _at_once
        if trainer.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            arrived = event.query
        samples = [batch.everyone for batch in step.batches]
        state = trainer.state
        self.pending.append(_Pending(state.step, state.epoch + 1, tuple(step.parts), values, samples, arrived))
        while self.pending and self.pending[0].arrived():
            self._require_finite(self.pending.popleft(), trainer)

    def on_validation(self, trainer: Trainer) -> None:
        if self.pending and trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        while self.pending:
            self._require_finite(self.pending.popleft(), trainer)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._require(
            evaluation.losses,
            f"of held-out samples in epoch {trainer.state.epoch}",
            evaluation.not_finite,
            trainer,
        )

    def _require_finite(self, losses: _Pending, trainer: Trainer) -> None:
        values = dict(zip(losses.names, losses.values.tolist(), strict=True))
        rows = torch.cat(losses.samples)
        self._require(values, f"at step {losses.step}, in epoch {losses.epoch}", rows, trainer)

    def _require(self, losses: Mapping[str, float], when: str, rows: Iterable[Any], trainer: Trainer) -> None:
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        if not broken:
            return
        name = next((name for name in broken if name != "loss"), "loss")  # a part's
        samples = [self.sample_ids[int(row)] for row in rows]
        kept = "" if self.checkpoint is None else f"{self.checkpoint} is as it was before. "
        raise DataError(
            f"{name} is {losses[name]} {when}, of {len(samples)} samples: "
            f"{', '.join(samples[:8])}{', …' if samples[8:] else ''}. {kept}"
            f"Look at these samples, or try a lower --lr than {trainer.optim.lr:g} or --mixed-precision none"
        )


def _at_once() -> bool:
    return True


class HistoryFile(Callback):
    """Writes a row an epoch of what the run has come to: ``history.csv``, or of what it took: ``speed.csv``.

    Two files, since the first is the same, to the last bit, whenever a run is repeated.

    Epochs can be shorter than it takes to write hundreds of rows, so a row is added to those that are there; the whole
    file is written at first, and where there is a column more.

    Parameters
    ----------
    path : Path
    of : {"history", "measured"}
        The rows of `TrainState`.
    """

    first_process_only = True

    def __init__(self, path: Path, of: Literal["history", "measured"] = "history") -> None:
        self.path = path
        self.of = of
        self.columns: list[str] = []  # of the file that this run has begun

    def on_start(self, trainer: Trainer) -> None:
        self.columns = []

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        rows: list[dict[str, float]] = getattr(trainer.state, self.of)
        if not self.columns or rows[-1].keys() - set(self.columns):
            self._write_whole(rows)
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(_with_whole_numbers(rows[-1]))

    def _write_whole(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        unfinished = self.path.with_name(self.path.name + ".tmp")
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(_with_whole_numbers, rows))
        unfinished.replace(self.path)


def _with_whole_numbers(row: Mapping[str, float]) -> dict[str, float]:
    return {name: int(value) if name in ("epoch", "step") else value for name, value in row.items()}
