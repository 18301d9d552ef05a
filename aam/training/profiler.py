"""Where the time of a training step goes, by PyTorch's profiler."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from aam.training.trainer import Callback, Step, Trainer

__all__ = ["OPERATIONS", "TRACE", "Profile", "operations_table"]

logger = logging.getLogger("aam")

TRACE, OPERATIONS = "trace.json.gz", "operations.txt"
WARM_UP_STEPS = 3  # memory is allotted, kernels are chosen, worker processes start


class Profile(Callback):
    """Traces a few steps, once the first ones are over: ``trace.json.gz``, which Perfetto opens, and a table.

    Parameters
    ----------
    directory : Path
    steps : int
        To be traced; what an epoch has at most, since validation would hide them.
    """

    first_process_only = True

    def __init__(self, directory: Path, steps: int) -> None:
        self.directory = directory
        self.steps = steps
        self.done = self.traced = 0  # steps since the start
        self.finished = False
        self.profiler: Any = None

    def on_start(self, trainer: Trainer) -> None:
        self.close()
        self.done, self.finished = 0, False

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._begin(trainer)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        self.done += 1
        if self.profiler is None:
            self._begin(trainer)
            return
        self.traced += 1
        if self.traced == self.steps:
            self._finish(trainer)

    def on_validation(self, trainer: Trainer) -> None:
        if self.profiler is not None and self.traced:
            self._finish(trainer)
        self.close()

    def on_end(self, trainer: Trainer) -> None:
        if not self.finished:
            logger.warning("--profile %d: the run has no step after its first %d", self.steps, WARM_UP_STEPS)

    def _begin(self, trainer: Trainer) -> None:
        if self.finished or self.done < WARM_UP_STEPS:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.traced = 0
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own lines would break the progress line
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self.profiler.start()

    def _finish(self, trainer: Trainer) -> None:
        self.finished = True
        self.profiler.stop()
        self.directory.mkdir(exist_ok=True)
        self.profiler.export_chrome_trace(str(self.directory / TRACE))
        table = operations_table(self.profiler, trainer.device)
        (self.directory / OPERATIONS).write_text(table, encoding="utf-8")
        self.profiler = None
        logger.info("%d steps profiled: %s", self.traced, self.directory / OPERATIONS)

    def close(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None


def operations_table(profiler: Any, device: torch.device, rows: int = 25) -> str:
    """The operations that took most time in themselves, one a line; then the same for each shape of their inputs.

    Parameters
    ----------
    profiler : torch.profiler.profile
        Stopped.
    device : torch.device
    rows : int
        Of each table.
    """
    order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    tables = [
        profiler.key_averages(group_by_input_shape=by_shape).table(
            sort_by=order, row_limit=rows, max_name_column_width=50, max_shapes_column_width=60
        )
        for by_shape in (False, True)
    ]
    return "\n\n".join(tables) + "\n"
