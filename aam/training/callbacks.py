"""What happens beside the loop, one concern a class."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from aam.training.checkpoint import save_checkpoint
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress, TaskID

__all__ = ["Checkpoints", "Console", "EarlyStopping", "HistoryFile", "TensorBoard"]

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


class Checkpoints(Callback):
    """Writes the best model where an epoch is the best so far, and after every epoch what resuming needs.

    Parameters
    ----------
    save_best : callable
        Given the evaluation.
    path : Path
        Of the checkpoint.
    beside : mapping
        Stored with it, so that a resumed run is known to be the same: ``config``, and ``inputs`` where there are any.
    """

    def __init__(self, save_best: Callable[[Evaluation], None], path: Path, beside: Mapping[str, Any]) -> None:
        self.save_best = save_best
        self.path = path
        self.beside = dict(beside)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if trainer.state.improved:
            self.save_best(evaluation)
        save_checkpoint(self.path, {"trainer": trainer.state_dict(), **self.beside})


class HistoryFile(Callback):
    """Writes ``history.csv``, whole after every epoch."""

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

    def on_step(self, trainer: Trainer, parts: dict[str, Tensor]) -> None:
        if self.progress is None or self.bar is None:
            return
        self.progress.advance(self.bar)
        # Reading a loss waits for the device, so it is done twice a second and not in every step.
        if time.monotonic() - self.refreshed > 0.5:
            self.refreshed = time.monotonic()
            losses = "  ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
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
