"""What a run says while it goes on: a line of the log for every epoch, and on a terminal a progress line below it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aam.training.meter import Meter
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions
    from rich.live import Live
    from rich.text import Text

__all__ = ["Console", "Progress", "progress_line"]

logger = logging.getLogger("aam")

WIDEST_BAR, NARROWEST_BAR = 30, 6
WIDE = 100  # columns, from which on words are not shortened


@dataclass
class Progress:
    """Where a run stands, in numbers of the host: what the progress line is made of."""

    epochs: int
    steps: int  # of an epoch
    epoch: int = 1  # the one under way
    step: int = 0  # done of it
    losses: Mapping[str, float] = field(default_factory=dict)  # ``loss`` first
    learning_rate: float = math.nan
    samples_per_second: float = math.nan
    seconds_of_epoch: float = math.nan  # left; of its training steps
    seconds_of_run: float = math.nan  # left, if it does not stop early
    validating: bool = False


def progress_line(progress: Progress, width: int) -> str:
    """A line of text, never wider than ``width``: what matters least is left out first.

    Parameters
    ----------
    progress : Progress
    width : int
        Columns of the terminal.
    """
    head = f"epoch {progress.epoch}/{progress.epochs}"
    done = f"{progress.step}/{progress.steps}"
    if progress.validating:
        told = ["validating"]
    else:
        parts = [f"{name.removesuffix('_loss')} {value:.4f}" for name, value in progress.losses.items()]
        rate, left = _rate(progress.samples_per_second), _clock(progress.seconds_of_epoch)
        if width < WIDE:
            rate, left = rate.replace(" samples", ""), f"left {left}/{_clock(progress.seconds_of_run)}"
        else:
            left = f"left {left}, run {_clock(progress.seconds_of_run)}"
        told = [*parts[:1], *([f"lr {progress.learning_rate:.1e}", rate, left] if parts else [])]
        told = _fitting(told, parts[1:], width - len(head) - len(done) - NARROWEST_BAR - 2)
    rest = "".join(f"  {text}" for text in told)
    room = width - len(head) - len(done) - len(rest) - 2
    bar = ""
    if room >= NARROWEST_BAR:
        cells = min(room, WIDEST_BAR)
        full = round(cells * progress.step / max(1, progress.steps))
        bar = "━" * full + "┄" * (cells - full) + " "
    return f"{head} {bar}{done}{rest}"[:width]


def _fitting(told: list[str], parts: list[str], width: int) -> list[str]:
    """The loss and what follows it, with as many of its parts between as fit; from the end less where not all do.

    The rate goes before the learning rate, and the time left last.
    """

    def taken(texts: list[str]) -> int:
        return sum(len(text) + 2 for text in texts)

    kept = list(told)
    for text in [*told[2:3], *told[1:2], *told[3:], *told[:1]]:
        if taken(kept) > width:
            kept.remove(text)
    if len(kept) == len(told):
        for number in range(len(parts), 0, -1):
            if taken(kept) + taken(parts[:number]) <= width:
                return [*kept[:1], *parts[:number], *kept[1:]]
    return kept


def _rate(samples_per_second: float) -> str:
    return f"{samples_per_second:.{0 if samples_per_second >= 10 else 1}f} samples/s"


def _clock(seconds: float) -> str:
    """``4:05``, ``1:04:05`` or ``2 d 3 h``; ``?`` where it is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Line:
    """The progress line as rich asks for it, several times a second and from a thread of its own."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        # Room for the ^C that a terminal shows: a line that it made wrap would stay.
        yield Text(progress_line(self.progress, options.max_width - 3), no_wrap=True, overflow="crop")


class Console(Callback):
    """A line for every epoch, and on a terminal a progress line below them.

    Parameters
    ----------
    shown : sequence of str
        The metrics of the line, where they exist.
    meter : Meter
        Called before it.
    explains : bool
        Whether the first line is preceded by what is in it.
    """

    first_process_only = True

    def __init__(self, shown: tuple[str, ...], meter: Meter, *, explains: bool = False) -> None:
        self.shown = shown
        self.explains = explains
        self.meter = meter
        self.progress: Progress | None = None
        self.live: Live | None = None
        self.seconds_per_step = math.nan

    def on_start(self, trainer: Trainer) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console as RichConsole
        from rich.live import Live

        self.close()
        self.progress = Progress(trainer.config.last_epoch, trainer.steps_per_epoch)
        self.live = Live(_Line(self.progress), console=RichConsole(stderr=True), transient=True)
        self.live.start()

    def on_epoch_start(self, trainer: Trainer) -> None:
        if self.progress is None:
            return
        self.progress.epoch = trainer.state.epoch + 1
        self.progress.step = math.ceil(trainer.state.batch / trainer.optim.accumulation_steps)
        self.progress.validating = False

    def on_step(self, trainer: Trainer, step: Step) -> None:
        progress, values = self.progress, self.meter.values
        if progress is None:
            return
        progress.step += 1
        if values is None:
            return
        progress.losses = values.losses
        progress.learning_rate = trainer.learning_rate
        progress.samples_per_second = values.samples_per_second
        # An exponential mean: one slow step is no reason for another time of arrival.
        before = values.seconds_per_step if math.isnan(self.seconds_per_step) else self.seconds_per_step
        self.seconds_per_step = 0.8 * before + 0.2 * values.seconds_per_step
        progress.seconds_of_epoch = (progress.steps - progress.step) * self.seconds_per_step
        progress.seconds_of_run = self._seconds_of_run(trainer, progress)

    def _seconds_of_run(self, trainer: Trainer, progress: Progress) -> float:
        """By the last epochs, with their validation, or by the steps alone where none has ended yet."""
        whole = [row["seconds"] for row in trainer.state.measured[-3:]]
        of_epoch = sum(whole) / len(whole) if whole else progress.steps * self.seconds_per_step
        return progress.seconds_of_epoch + (progress.epochs - progress.epoch) * of_epoch

    def on_validation(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.validating = True

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        row, measured = trainer.state.history[-1], trainer.state.measured[-1]
        told = [f"loss {row['train_loss']:.4f} / {row['val_loss']:.4f}"]
        told += [f"{name} {evaluation.metrics[name]:.4f}" for name in self.shown if name in evaluation.metrics]
        told += [_rate(measured["samples_per_second"]), f"{measured['seconds']:.1f} s"]
        if self.explains:
            self.explains = False
            logger.info("loss: while learning / of held-out samples; the rest of the line is of these")
        best = "  *" if trainer.state.improved and not trainer.config.keeps_last else ""
        logger.info("epoch %d/%d  %s%s", trainer.state.epoch, trainer.config.last_epoch, "  ".join(told), best)

    def on_end(self, trainer: Trainer) -> None:
        self.close()

    def on_interrupt(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        # Gives the terminal back.
        if self.live is not None:
            self.live.stop()
            self.live = self.progress = None
