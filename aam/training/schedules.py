"""Learning-rate schedules by name: what share of its peak each parameter group has at an optimizer step.

A schedule is stepped after every optimizer step and told the validation loss after every epoch; the loop knows no more
of it. A further one is one entry of `SCHEDULES` and its name in `aam.config.OptimConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aam.config import OptimConfig

__all__ = ["SCHEDULES", "Curve", "PlateauSchedule", "Schedule", "ScheduleRecord", "build_schedule"]

Curve = Callable[[int], float]  # steps that are done to a share of the peak learning rate


class Schedule:
    """Gives every parameter group the same share of its own peak.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        A group's peak is its ``peak_lr``, or its learning rate where it has none.
    curve : callable
        A number of optimizer steps to the curve over so many.
    steps : int
        Optimizer steps of the run.
    turn : int
        The step at which the curve begins anew; before it, it is over so many steps. 0 for one curve.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, curve: Callable[[int], Curve], steps: int, turn: int = 0
    ) -> None:
        self.optimizer = optimizer
        self.curve = curve
        self.steps = steps
        self.turn = turn
        self.done = 0  # optimizer steps
        self.begun = 0  # the step at which the curve began
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
        self._apply()

    @property
    def share(self) -> float:
        """Of the peak, for the next step."""
        begun, end = (self.begun, self.turn) if self.done < self.turn else (max(self.begun, self.turn), self.steps)
        return self.curve(max(1, end - begun))(self.done - begun)

    def step(self) -> None:
        """An optimizer step is done."""
        self.done += 1
        self._apply()

    def on_validation(self, value: float) -> None:
        """An epoch is done, and its validation loss known."""

    def restart(self) -> None:
        """Begin anew, over what is left of the run, or until it turns."""
        self.begun = self.done
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "begun": self.begun}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.done, self.begun = saved["done"], saved["begun"]
        self._apply()

    def _apply(self) -> None:
        share = self.share
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


class PlateauSchedule(Schedule):
    """Lowers the learning rate where the validation loss has not improved for some epochs.

    Parameters
    ----------
    optimizer, curve, steps, turn
        See `Schedule`; the curve is that of the warm-up.
    factor : float
        Of the learning rate, each time.
    patience : int
        Epochs without improvement after which the rate is lowered (one more than torch's ReduceLROnPlateau counts).
    least : float
        Share of the peak below which it is never lowered.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        curve: Callable[[int], Curve],
        steps: int,
        factor: float,
        patience: int,
        least: float,
        turn: int = 0,
    ) -> None:
        self.factor, self.patience, self.least = factor, patience, least
        self.lowered = 1.0
        self.best = math.inf
        self.bad_epochs = 0
        super().__init__(optimizer, curve, steps, turn)

    @property
    def share(self) -> float:
        return self.lowered * super().share

    def on_validation(self, value: float) -> None:
        # Not any smaller number is an improvement: by 1 in 10,000 at least, as torch's ReduceLROnPlateau has it.
        if value < self.best * (1 - math.copysign(1e-4, self.best)):
            self.best, self.bad_epochs = value, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs >= self.patience:
            self.lowered = max(self.lowered * self.factor, self.least)
            self.bad_epochs = 0
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"lowered": self.lowered, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.lowered, self.best, self.bad_epochs = (saved[name] for name in ("lowered", "best", "bad_epochs"))
        super().load_state_dict(saved)


# ------------------------------------------------------------------------------------------------------------- curves


def _half_cosine(share: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _cosine(config: OptimConfig, steps: int) -> Curve:
    least = _least(config)
    return lambda step: least + (1 - least) * _half_cosine(min(1.0, step / max(1, steps)))


def _cosine_restarts(config: OptimConfig, steps: int) -> Curve:
    """Half a cosine again and again, each so many times as long as the one before; three by default."""
    least, growth = _least(config), config.cycle_growth or 2
    first = config.cycle_steps or max(1, math.ceil(steps / (1 + growth + growth**2)))

    def curve(step: int) -> float:
        length = first
        if growth == 1:
            step %= length
        while step >= length:
            step -= length
            length *= growth
        return least + (1 - least) * _half_cosine(step / length)

    return curve


def _onecycle(config: OptimConfig, steps: int) -> Curve:
    """Up from a 25th over three tenths of the run, then down to a 250,000th, by half cosines."""
    last = max(1, steps - 1)
    top = 0.3 * steps - 1

    def curve(step: int) -> float:
        if step <= top:
            return 1 + (1 / 25 - 1) * _half_cosine(step / top if top > 0 else 1.0)
        done = min(1.0, (step - top) / max(1e-9, last - top))
        return 1 / 250_000 + (1 - 1 / 250_000) * _half_cosine(done)

    return curve


def _exponential(config: OptimConfig, steps: int) -> Curve:
    least = _least(config)
    return lambda step: least ** min(1.0, step / max(1, steps)) if least > 0 else 1.0


def _constant(config: OptimConfig, steps: int) -> Curve:
    return lambda step: 1.0


def _least(config: OptimConfig) -> float:
    """The lowest share of the peak: a hundredth unless ``--min-lr`` says otherwise."""
    return 0.01 if config.min_lr is None else config.min_lr / config.lr


def _after_warmup(curve: Callable[[int], Curve], warmup: Callable[[int], int]) -> Callable[[int], Curve]:
    """A curve over what is left after a linear rise."""

    def whole(steps: int) -> Curve:
        rise = warmup(steps)
        after = curve(steps - rise)
        return lambda step: (step + 1) / (rise + 1) if step < rise else after(step - rise)

    return whole


# ----------------------------------------------------------------------------------------------------------- registry


@dataclass(frozen=True)
class ScheduleRecord:
    """A schedule that ``--schedule`` may name."""

    name: str
    curve: Callable[[OptimConfig, int], Curve]  # over a number of optimizer steps, the warm-up left out
    description: str
    rises: bool = False  # whether a tenth of the run is a warm-up where --warmup-steps says nothing
    on_plateau: bool = False  # whether it goes by the validation loss


SCHEDULES: dict[str, ScheduleRecord] = {
    record.name: record
    for record in (
        ScheduleRecord("warmup_cosine", _cosine, "linear up, then half a cosine down", rises=True),
        ScheduleRecord("cosine", _cosine, "half a cosine down (Loshchilov and Hutter 2017)"),
        ScheduleRecord("cosine_restarts", _cosine_restarts, "half a cosine down, again and again, each time longer"),
        ScheduleRecord("plateau", _constant, "lower where the validation loss stays", on_plateau=True),
        ScheduleRecord("onecycle", _onecycle, "up and far down (Smith and Topin 2019)"),
        ScheduleRecord("exponential", _exponential, "the same share lower with every step"),
        ScheduleRecord("constant", _constant, "the peak throughout"),
    )
}


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int, turn: int = 0) -> Schedule:
    """The schedule of a run of so many optimizer steps, which begins anew at the step ``turn``."""
    record = SCHEDULES[config.schedule]

    def warmup(of: int) -> int:
        if config.warmup_steps is not None:
            return config.warmup_steps
        return min(500, math.ceil(of / 10)) if record.rises else 0

    curve = _after_warmup(lambda of: record.curve(config, of), warmup)
    if not record.on_plateau:
        return Schedule(optimizer, curve, steps, turn)
    factor = 0.3 if config.plateau_factor is None else config.plateau_factor
    return PlateauSchedule(optimizer, curve, steps, factor, config.plateau_patience, _least(config), turn)
