"""Runs kept elsewhere too: what every tracker (Weights & Biases, MLflow, …) is told, and when.

The trackers themselves are in `aam.integrations`. A tracker that cannot be begun ends the run; one that fails later
does not, since a server that is away for a while is no reason to lose a run of days: what it missed, it is told later.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from aam.errors import DataError
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer

__all__ = ["Status", "Tracker", "Tracking", "first_line"]

logger = logging.getLogger("aam")

AFTER_FAILURE = 60.0  # seconds until a tracker that did not answer is tried again: training waits for each try

Status = Literal["finished", "interrupted", "failed"]


class Tracker(Protocol):
    """A place where runs are kept."""

    name: str

    def start(self, run_id: str | None, parameters: Mapping[str, str | float | bool]) -> str:
        """Begin a run, or go on with the one of this ID; its ID.

        Raises
        ------
        DataError
            If it cannot be.
        """
        ...

    def log(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Values by epoch; each row has an ``epoch``."""
        ...

    def keep(self, metrics: Mapping[str, float], plots: Sequence[Path], model: Path) -> None:
        """What the run came to."""
        ...

    def finish(self, status: Status) -> None:
        """End the run, for now or for good."""
        ...


class Tracking(Callback):
    """Tells trackers of a run: its parameters, each epoch's values, and in the end metrics, plots and the model.

    Parameters
    ----------
    trackers : sequence of Tracker
    parameters : mapping of str to str, number or bool
    plots : Path
        The folder that holds them.
    model : Path
    memory : Path
        A file that holds the ID of the run in each tracker and the last epoch that it was told of; a resumed run goes
        on from there.
    every_seconds : float
        Epochs are told in lots, at most this often: a server may be slower than an epoch.
    """

    first_process_only = True

    def __init__(
        self,
        trackers: Sequence[Tracker],
        parameters: Mapping[str, str | float | bool],
        plots: Path,
        model: Path,
        memory: Path,
        every_seconds: float = 5.0,
    ) -> None:
        self.trackers = trackers
        self.parameters = parameters
        self.plots = plots
        self.model = model
        self.memory = memory
        self.every_seconds = every_seconds
        self.tell_at = -math.inf
        self.known: dict[str, dict[str, Any]] = {}  # by tracker: its run's id and the last epoch told
        self.status: Status = "failed"  # unless it turns out otherwise
        self.begun: list[Tracker] = []

    def on_start(self, trainer: Trainer) -> None:
        self.close()
        self.status = "failed"
        self.known = self._read_memory()  # there where the run is resumed
        for tracker in self.trackers:
            before = self.known.get(tracker.name, {"id": None, "epoch": 0})
            self.known[tracker.name] = before | {"id": tracker.start(before["id"], self.parameters)}
            self.begun.append(tracker)
            self._write_memory()
        self._tell(trainer)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if time.monotonic() >= self.tell_at:
            self._tell(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._tell(trainer)
        self.status = "interrupted"  # if it does not come to its result, which --resume would

    def on_interrupt(self, trainer: Trainer) -> None:
        self.status = "interrupted"
        self._tell(trainer)

    def on_result(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        values = {"best_epoch": float(metrics["best_epoch"])}
        for part in ("val", "test"):
            values |= {f"final_{part}_{name}": value for name, value in metrics.get(part, {}).items()}
        for tracker in self.begun:
            self._try(tracker, tracker.keep, values, sorted(self.plots.glob("*.png")), self.model)
        self.status = "finished"

    def _tell(self, trainer: Trainer) -> None:
        """Tell each tracker of the epochs that it does not know."""
        measured = {row["epoch"]: row for row in trainer.state.measured}
        wait = self.every_seconds
        for tracker in self.begun:
            last = self.known[tracker.name]["epoch"]
            rows = [row | measured.get(row["epoch"], {}) for row in trainer.state.history[last:]]
            if not rows:
                continue
            if self._try(tracker, tracker.log, rows):
                self.known[tracker.name]["epoch"] = int(rows[-1]["epoch"])
                self._write_memory()
            else:
                wait = max(wait, AFTER_FAILURE)
        self.tell_at = time.monotonic() + wait

    def _try(self, tracker: Tracker, call: Any, *arguments: object) -> bool:
        try:
            call(*arguments)
        except Exception as error:  # a library's own, of the network or of a server
            logger.warning("%s: %s (%s)", tracker.name, first_line(error), type(error).__name__)
            return False
        return True

    def _read_memory(self) -> dict[str, dict[str, Any]]:
        if not self.memory.is_file():
            return {}
        try:
            found = json.loads(self.memory.read_text(encoding="utf-8"))
            return {str(name): {"id": str(one["id"]), "epoch": int(one["epoch"])} for name, one in found.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(f"{self.memory}: is damaged; remove it to begin new tracked runs") from None

    def _write_memory(self) -> None:
        unfinished = self.memory.with_name(self.memory.name + ".tmp")
        unfinished.write_text(json.dumps(self.known, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.memory)

    def close(self) -> None:
        for tracker in self.begun:
            self._try(tracker, tracker.finish, self.status)
        self.begun = []


def first_line(error: Exception) -> str:
    """What fits into a sentence of what a package says went wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
