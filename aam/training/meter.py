"""How fast a run is and how much memory it takes; and the values of a step, read off the device now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

__all__ = ["Meter", "StepValues", "memory_mb"]


@dataclass(frozen=True)
class StepValues:
    """What an optimizer step came to, as numbers of the host."""

    step: int
    losses: dict[str, float]  # ``loss`` and its parts
    gradient_norm: float | None
    samples_per_second: float  # of the steps since the last one that was read
    seconds_per_step: float  # likewise


class Meter(Callback):
    """Measures a run for the callbacks after it, and waits for the device at most twice a second for all of them.

    Parameters
    ----------
    every_seconds : float
        Between two steps that are read.
    clock : callable
        Seconds.

    Attributes
    ----------
    values : StepValues or None
        Of the step that was done last, where it was read.
    """

    first_process_only = True

    def __init__(self, every_seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter) -> None:
        self.every_seconds = every_seconds
        self.clock = clock
        self.values: StepValues | None = None
        self.read_at = self.epoch_began = self.step_began = clock()
        self.training_seconds = self.unread_seconds = 0.0
        self.samples = self.unread_samples = self.unread_steps = 0

    def on_start(self, trainer: Trainer) -> None:
        self.values = None
        self.unread_seconds, self.unread_samples, self.unread_steps = 0.0, 0, 0
        self.on_epoch_start(trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.epoch_began = self.step_began = self.clock()
        self.samples = 0

    def on_step(self, trainer: Trainer, step: Step) -> None:
        now = self.clock()
        self.unread_seconds += now - self.step_began
        self.step_began = now
        self.samples += step.samples
        self.unread_samples += step.samples
        self.unread_steps += 1
        self.values = None
        if now - self.read_at >= self.every_seconds:
            self._read(trainer.state.step, step)

    def _read(self, number: int, step: Step) -> None:
        norm = step.gradient_norm
        tensors = [*step.parts.values(), *([] if norm is None else [norm])]
        numbers = torch.stack([tensor.detach().float() for tensor in tensors]).tolist()  # waits for the device, once
        self.read_at = self.clock()
        self.unread_seconds += self.read_at - self.step_began
        self.step_began = self.read_at
        seconds = max(self.unread_seconds, 1e-9)
        self.values = StepValues(
            number,
            dict(zip(step.parts, numbers, strict=False)),
            None if norm is None else numbers[-1],
            self.unread_samples / seconds,
            seconds / self.unread_steps,
        )
        self.unread_seconds, self.unread_samples, self.unread_steps = 0.0, 0, 0

    def on_validation(self, trainer: Trainer) -> None:
        self.training_seconds = self.clock() - self.epoch_began

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        trainer.state.measured.append(
            {
                "epoch": float(trainer.state.epoch),
                "seconds": self.clock() - self.epoch_began,
                "samples_per_second": self.samples / max(self.training_seconds, 1e-9),
                "memory_mb": memory_mb(trainer.device),
            }
        )


def memory_mb(device: torch.device) -> float:
    """The most that PyTorch has held of a GPU's memory so far, or what this process holds of the machine's; in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6
