"""Tells somebody outside how a run comes along, who may end it."""

from __future__ import annotations

from collections.abc import Callable

from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer

__all__ = ["Reports"]


class Reports(Callback):
    """Tells of every epoch, and stops where the answer is that it is not worth going on.

    Parameters
    ----------
    report : callable
        Given the share of the run that is done, in (0, 1], and the evaluation; says whether to go on.
    """

    def __init__(self, report: Callable[[float, Evaluation], bool]) -> None:
        self.report = report

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if not self.report(trainer.state.epoch / trainer.config.last_epoch, evaluation):
            trainer.state.stop = True
