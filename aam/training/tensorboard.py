"""Event files for TensorBoard.

Three runs, as TensorBoard calls them: ``train`` and ``validation``, whose curves are by epoch and share their tags, so
that they are drawn into one chart; and ``steps``, whose curves are by optimizer step. A run that is resumed takes back
what was written after the point where it goes on, so a curve has neither gaps nor points from two attempts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aam.training.meter import Meter
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.optim import Optimizer

__all__ = ["StepCurves", "TensorBoard", "learning_rates"]


class StepCurves(Callback):
    """Losses, learning rates, the gradient's norm and the speed, by optimizer step: of the steps that the meter reads.

    Parameters
    ----------
    directory : Path
    meter : Meter
        Called before it.
    """

    first_process_only = True

    def __init__(self, directory: Path, meter: Meter) -> None:
        self.directory = directory
        self.meter = meter
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.writer = SummaryWriter(str(self.directory), purge_step=trainer.state.step + 1)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        values = self.meter.values
        if values is None:
            return
        curves = {f"loss/{name}": value for name, value in values.losses.items()}
        if values.gradient_norm is not None:
            curves["gradient_norm"] = values.gradient_norm
        curves["samples_per_second"] = values.samples_per_second
        curves |= learning_rates(trainer.optimizer)
        for name, value in curves.items():
            self.writer.add_scalar(f"step/{name}", value, values.step)
        self.writer.flush()  # else what a kill takes with it would be a gap, once the run is resumed

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class TensorBoard(Callback):
    """Curves by epoch, the run's parameters for the HPARAMS tab, and now and then pictures and histograms.

    Pictures take longer than some epochs: they are drawn of the first epoch, then at most every so many seconds, and at
    the end of the best and of the last.

    Parameters
    ----------
    directory : Path
    figures : callable, optional
        Evaluation to named figures; no pictures without it.
    parameters : mapping of str to str, number or bool
        What the run was asked for.
    headlines : sequence of str
        Metrics whose values at the best epoch the HPARAMS tab shows, beside the loss that decides which that is.
    histograms : bool
        Draw the distribution of each weight, too.
    every_seconds : float
        Between two epochs that are drawn.
    """

    first_process_only = True

    def __init__(
        self,
        directory: Path,
        figures: Callable[[Evaluation], Mapping[str, Figure]] | None,
        parameters: Mapping[str, str | float | bool] | None = None,
        headlines: tuple[str, ...] = (),
        histograms: bool = False,
        every_seconds: float = 15.0,
    ) -> None:
        self.directory = directory
        self.figures = figures
        self.parameters = parameters or {}
        self.headlines = headlines
        self.histograms = histograms
        self.every_seconds = every_seconds
        self.writers: dict[str, Any] = {}
        self.undrawn: dict[int, Evaluation] = {}  # the best epoch and the last, where they are not drawn yet
        self.drawn_at = -math.inf

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.writers = {
            name: SummaryWriter(str(self.directory / name), purge_step=trainer.state.epoch + 1)
            for name in ("train", "validation")
        }

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        epoch = trainer.state.epoch
        if epoch == 1:
            self._describe(trainer)
        self._curves(trainer)
        best = trainer.state.best_epoch
        self.undrawn = {number: one for number, one in self.undrawn.items() if number == best} | {epoch: evaluation}
        if time.monotonic() - self.drawn_at >= self.every_seconds:
            self._draw(trainer)
        for writer in self.writers.values():
            writer.flush()

    def on_result(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        """What a head that is fitted when all epochs are over makes of the column."""
        if "linear_head" not in metrics:
            return
        judged = metrics.get("val", metrics.get("test", {}))
        for name in self.headlines:
            if name in judged:
                self.writers["validation"].add_scalar(f"best/{name}", judged[name], trainer.state.best_epoch)

    def _curves(self, trainer: Trainer) -> None:
        row, epoch = trainer.state.history[-1], trainer.state.epoch
        for name, value in row.items():
            split, _, metric = name.partition("_")
            if split in ("train", "val"):
                writer = self.writers["train" if split == "train" else "validation"]
                writer.add_scalar(f"{'loss' if metric.endswith('loss') else 'metric'}/{metric}", value, epoch)
        train = {"learning_rate": row["lr"]}
        if "gradient_norm" in row:
            train["gradient_norm"] = row["gradient_norm"]
        measured = trainer.state.measured[-1] if trainer.state.measured else {}
        train |= {f"machine/{name}": value for name, value in measured.items() if name != "epoch"}
        for name, value in train.items():
            self.writers["train"].add_scalar(name, value, epoch)
        if trainer.state.improved:
            for tag, column in self._headlines(trainer).items():
                if column in row:
                    self.writers["validation"].add_scalar(tag, row[column], epoch)

    def _headlines(self, trainer: Trainer) -> dict[str, str]:
        """Tags of the best epoch's values, and the columns of the history that these stand in."""
        return {f"best/{name}": f"val_{name}" for name in (trainer.task.monitor, *self.headlines)}

    def _describe(self, trainer: Trainer, *, end: bool = False) -> None:
        """What `SummaryWriter.add_hparams` writes, but into the run of the validation and not into one of its own."""
        from torch.utils.tensorboard.summary import hparams

        known = {tag: 0 for tag, column in self._headlines(trainer).items() if column in trainer.state.history[-1]}
        experiment, session_start, session_end = hparams(dict(self.parameters), known)
        for summary in [session_end] if end else [experiment, session_start]:
            self.writers["validation"].file_writer.add_summary(summary)

    def _draw(self, trainer: Trainer) -> None:
        if self.figures is not None:
            for epoch, evaluation in sorted(self.undrawn.items()):  # TensorBoard wants steps in their order
                for name, figure in self.figures(evaluation).items():
                    self.writers["validation"].add_figure(name, figure, epoch)
        if self.histograms and trainer.state.epoch in self.undrawn:
            for name, parameter in trainer.task.model.named_parameters():
                self.writers["train"].add_histogram(f"weights/{name}", parameter.detach().float(), trainer.state.epoch)
        self.undrawn = {}
        self.drawn_at = time.monotonic()

    def on_end(self, trainer: Trainer) -> None:
        self._draw(trainer)
        self._describe(trainer, end=True)
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rate of the next step, and where parameter groups differ, of each by its name."""
    groups = optimizer.param_groups
    rates = {"learning_rate": float(groups[0]["lr"])}
    if any(group["lr"] != groups[0]["lr"] for group in groups):
        rates |= {f"learning_rate/{group['name'].replace(' ', '_')}": float(group["lr"]) for group in groups}
    return rates
