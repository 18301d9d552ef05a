"""What happens beside the loop, one concern a class."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aam.errors import DataError
from aam.training.checkpoint import save_checkpoint
from aam.training.distributed import all_finite
from aam.training.sharded import remove_shards, save_sharded
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress, TaskID

__all__ = [
    "Checkpoints",
    "Console",
    "EarlyStopping",
    "FiniteLosses",
    "HistoryFile",
    "Plateau",
    "Signals",
    "TensorBoard",
]

logger = logging.getLogger("aam")


class EarlyStopping(Callback):
    """Stops after ``patience`` epochs without a better validation loss."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_start(self, trainer: Trainer) -> None:
        trainer.state.stop = self._enough(trainer)  # a resumed run may have been given more patience

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if self._enough(trainer) and trainer.state.epoch < trainer.config.epochs:
            logger.info("no better epoch in %d: stopping early", self.patience)
            trainer.state.stop = True

    def _enough(self, trainer: Trainer) -> bool:
        return trainer.state.epoch - trainer.state.best_epoch >= self.patience


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
        if state.epoch - max(state.best_epoch, state.plateau_epoch) < self.patience:
            return
        state.plateau_epoch = state.epoch
        again = self.restart and state.epoch < trainer.config.epochs
        if again:
            trainer.schedule.restart()
        logger.info("no better epoch in %d: a plateau%s", self.patience, "; the schedule begins anew" if again else "")


class Checkpoints(Callback):
    """Writes the best model where an epoch is the best so far, and what resuming needs.

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

    On a GPU the losses of a step are looked at when they have arrived, which no step waits for.

    Parameters
    ----------
    sample_ids : sequence of str
        Of the rows of the study.
    checkpoint : Path
        Where the run can be resumed from.
    """

    def __init__(self, sample_ids: Sequence[str], checkpoint: Path) -> None:
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

    def _require_finite(self, losses: _Pending, trainer: Trainer) -> None:
        broken = [
            name for name, value in zip(losses.names, losses.values.tolist(), strict=True) if not math.isfinite(value)
        ]
        if not broken:
            return
        name = next((name for name in broken if name != "loss"), "loss")  # a part's
        value = losses.values[losses.names.index(name)].item()
        samples = [self.sample_ids[row] for rows in losses.samples for row in rows.tolist()]
        raise DataError(
            f"{name} is {value} at step {losses.step}, in epoch {losses.epoch}, of {len(samples)} samples: "
            f"{', '.join(samples[:8])}{', …' if samples[8:] else ''}. {self.checkpoint} is as it was before. "
            f"Look at these samples, or try a lower --lr than {trainer.optim.lr:g} or --mixed-precision none"
        )


def _at_once() -> bool:
    return True


class HistoryFile(Callback):
    """Writes ``history.csv``, whole after every epoch."""

    first_process_only = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        import pandas as pd

        unfinished = self.path.with_name(self.path.name + ".tmp")
        frame = pd.DataFrame(trainer.state.history).astype({"epoch": int, "step": int})
        frame.to_csv(unfinished, index=False)
        unfinished.replace(self.path)


class Console(Callback):
    """A line for every epoch, and on a terminal a progress bar within it.

    Parameters
    ----------
    shown : sequence of str
        The metrics of the line, where they exist.
    """

    first_process_only = True

    def __init__(self, shown: tuple[str, ...]) -> None:
        self.shown = shown
        self.progress: Progress | None = None
        self.bar: TaskID | None = None
        self.refreshed = 0.0
        self.began = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self.began = time.monotonic()
        if not sys.stderr.isatty():
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self.progress.start()
        self.bar = self.progress.add_task("", total=trainer.steps_per_epoch, epoch=trainer.state.epoch + 1, losses="")

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if self.progress is None or self.bar is None:
            return
        self.progress.advance(self.bar)
        # Reading a loss waits for the device, so it is done twice a second and not in every step.
        if time.monotonic() - self.refreshed > 0.5:
            self.refreshed = time.monotonic()
            losses = "  ".join(f"{name} {float(value):.4f}" for name, value in step.parts.items())
            self.progress.update(self.bar, losses=f"{losses}  lr {trainer.learning_rate:.1e}")

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        row = trainer.state.history[-1]
        shown = [f"loss {row['train_loss']:.4f} / {row['val_loss']:.4f}"]
        shown += [f"{name} {evaluation.metrics[name]:.4f}" for name in self.shown if name in evaluation.metrics]
        now = time.monotonic()
        seconds, self.began = now - self.began, now
        best = "  *" if trainer.state.improved else ""
        logger.info(
            "epoch %d/%d  %s  %.1f s%s", trainer.state.epoch, trainer.config.epochs, "  ".join(shown), seconds, best
        )
        if self.progress is not None and self.bar is not None:
            self.progress.reset(self.bar, epoch=trainer.state.epoch + 1, losses="")

    def on_end(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        # Gives the terminal back.
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class TensorBoard(Callback):
    """Curves of training and validation overlaid, the learning rate, and each epoch's plots.

    Training and validation are two runs with the same tags, which TensorBoard draws into one chart.

    Parameters
    ----------
    directory : Path
    figures : callable
        Evaluation to named figures.
    """

    first_process_only = True

    def __init__(self, directory: Path, figures: Callable[[Evaluation], Mapping[str, Figure]]) -> None:
        self.directory = directory
        self.figures = figures
        self.writers: dict[str, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writers = {
            name: SummaryWriter(str(self.directory / name), purge_step=trainer.state.epoch + 1)
            for name in ("train", "validation")
        }

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        row = trainer.state.history[-1]
        epoch = trainer.state.epoch
        for name, value in row.items():
            split, _, metric = name.partition("_")
            if split in ("train", "val"):
                writer = self.writers["train" if split == "train" else "validation"]
                writer.add_scalar(f"{'loss' if metric.endswith('loss') else 'metric'}/{metric}", value, epoch)
        self.writers["train"].add_scalar("learning_rate", row["lr"], epoch)
        for name, figure in self.figures(evaluation).items():
            self.writers["validation"].add_figure(name, figure, epoch)
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}
