"""The learning-rate range test (Smith 2017): train briefly while the rate rises, and see where the loss falls."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from aam.data.batch import Batch
from aam.training.trainer import Trainer

__all__ = ["RangeTest", "range_test", "suggest"]

LOWEST, HIGHEST = 1e-6, 1.0
MOST_STEPS = 100
_SMOOTHING = 0.9
_DIVERGED = 2.0  # times the loss at the start


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw, step by step."""

    lr: NDArray[np.float64]  # (n,)
    loss: NDArray[np.float64]  # (n,)
    smoothed: NDArray[np.float64]  # (n,)
    diverged: bool  # whether it ended for that

    @property
    def suggestion(self) -> float | None:
        """See `suggest`."""
        return suggest(self.lr, self.smoothed)


def range_test(trainer: Trainer, steps: int = MOST_STEPS) -> RangeTest:
    """Train with a learning rate that rises exponentially, then put everything back as it was.

    Parameters
    ----------
    trainer : Trainer
        Where groups have peaks of their own, they keep their ratio to the first one's.
    steps : int
        At most; fewer where the loss diverges.
    """
    before = copy.deepcopy(trainer.state_dict())
    where = trainer.plan.epoch, trainer.plan.first
    groups = trainer.optimizer.param_groups
    ratios = [group["peak_lr"] / groups[0]["peak_lr"] for group in groups]
    rates = np.geomspace(LOWEST, HIGHEST, steps)
    losses: list[float] = []
    trainer.task.train()
    for batches, rate in zip(_endless(trainer), rates, strict=False):
        for group, ratio in zip(trainer.optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        losses.append(float(trainer.train_step(batches).parts["loss"]))
        if _diverged(losses):
            break
    trainer.load_state_dict(before)
    trainer.plan.epoch, trainer.plan.first = where
    seen = np.array(losses)
    return RangeTest(rates[: len(seen)], seen, _smoothed(seen), _diverged(losses))


def _endless(trainer: Trainer) -> Iterator[list[Batch]]:
    """The batches of every optimizer step, epoch after epoch."""
    trainer.plan.first = 0
    epoch = 0
    while True:
        epoch += 1
        trainer.plan.epoch = epoch
        batches = iter(trainer.train_loader)
        while joined := list(islice(batches, trainer.optim.accumulation_steps)):
            yield joined


def _smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving average without its bias towards 0 at the start."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**number))
    return np.array(found)


def _diverged(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smoothed = _smoothed(np.array(losses))
    return len(losses) > 10 and bool(smoothed[-1] > _DIVERGED * smoothed[:10].mean())


def suggest(lr: NDArray[np.float64], smoothed: NDArray[np.float64]) -> float | None:
    """A tenth of the learning rate at which the smoothed loss is lowest (Howard and Gugger 2020).

    The rate of steepest descent, which is suggested too, is a matter of luck with batches as small as those of most
    studies: on ECAM it was 1.4e-5, where single losses vary as much as the whole curve falls. This one gave 1e-3.

    Parameters
    ----------
    lr, smoothed : ndarray (n,)

    Returns
    -------
    float or None
        None where the loss never falls below the mean of the first quarter.
    """
    finite = np.isfinite(smoothed)
    lr, smoothed = lr[finite], smoothed[finite]
    quarter = len(lr) // 4
    # The first values are means of few losses: one of them may be the lowest by chance.
    if quarter == 0 or smoothed[quarter:].min() >= smoothed[:quarter].mean():
        return None
    return float(lr[quarter + smoothed[quarter:].argmin()] / 10)
