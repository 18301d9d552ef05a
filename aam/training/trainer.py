"""The training loop. It knows a task and callbacks, and neither what is learnt nor what is written.

One run, as a timeline of the callbacks' events::

    on_start
    for each epoch:
        on_epoch_start
        for each optimizer step:
            on_step
        on_validation
        validation
        on_epoch
    on_end
    (the best model is judged and the run directory completed)
    on_result
    close

and on_interrupt where it was asked to stop. A run may be saved after any step (`Trainer.state_dict`), and goes on from
there as if it had not stopped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aam.config import OptimConfig, TrainConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan
from aam.errors import Interrupted
from aam.training.averaging import WeightAverage
from aam.training.distributed import (
    Learner,
    clip_gradients,
    joining,
    judge_together,
    judging,
    load_optimizer_state,
    load_weights_into,
    random_state,
    set_random_state,
    whole,
    wrap_again,
)
from aam.training.schedules import Schedule
from aam.training.tasks import Evaluation, Task

__all__ = ["Callback", "Step", "TrainState", "Trainer", "arithmetic_type", "precision"]


@dataclass
class TrainState:
    """Where a run stands. All of it is saved for resuming."""

    epoch: int = 0  # finished
    batch: int = 0  # batches of the epoch after it that are learnt from
    step: int = 0  # optimizer steps
    best_epoch: int = 0  # the one that is kept
    best_value: float = math.inf  # its monitored validation loss
    plateau_epoch: int = 0  # the last that ended a plateau
    stop: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # a row an epoch
    measured: list[dict[str, float]] = field(default_factory=list, compare=False)  # likewise: its time and memory

    @property
    def improved(self) -> bool:
        """Whether the epoch that ended last is the one that is kept."""
        return self.best_epoch == self.epoch


@dataclass(frozen=True)
class Step:
    """An optimizer step, done."""

    parts: dict[str, Tensor]  # each part of the loss, a mean over the samples; still on the device
    batches: Sequence[Batch]  # joined in the step; of each, this process's share
    gradient_norm: Tensor | None  # before it was clipped; None where it is not, or where it overflowed

    @property
    def samples(self) -> int:
        """Of all processes together."""
        return sum(len(batch.everyone) for batch in self.batches)


class Callback:
    """One concern beside the loop. Each event does nothing unless a subclass says so.

    Where several processes train together, all of them call it, so that all do alike. Only what writes or prints and
    takes part in nothing else says ``first_process_only``.
    """

    first_process_only = False

    def on_start(self, trainer: Trainer) -> None: ...

    def on_epoch_start(self, trainer: Trainer) -> None: ...

    def on_step(self, trainer: Trainer, step: Step) -> None: ...

    def on_validation(self, trainer: Trainer) -> None: ...

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None: ...

    def on_end(self, trainer: Trainer) -> None: ...

    def on_result(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None: ...

    def on_interrupt(self, trainer: Trainer) -> None: ...

    def close(self) -> None:
        """Let go of what is held, also where training was interrupted."""


class _PartMeans:
    """Means of the parts of the loss, each over all that it is known of, be that unevenly spread over batches.

    Of a batch in which nothing is masked, or no pair is known, some parts say nothing. Values stay on the device until
    they are read.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = defaultdict(float)
        self.numbers: dict[str, Tensor | float] = defaultdict(float)

    def add(self, parts: Mapping[str, Tensor], numbers: Mapping[str, Tensor | float]) -> None:
        for name, part in parts.items():
            self.sums[name] += part.detach() * numbers[name]
            self.numbers[name] += numbers[name]

    def merge(self, other: _PartMeans) -> None:
        for name, value in other.sums.items():
            self.sums[name] += value
            self.numbers[name] += other.numbers[name]

    def means(self) -> dict[str, Tensor]:
        """0 of what nothing is known of."""
        return {
            name: torch.as_tensor(value) / torch.as_tensor(self.numbers[name]).clamp(min=1e-9)
            for name, value in self.sums.items()
        }

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (torch.as_tensor(value), torch.as_tensor(self.numbers[name])) for name, value in self.sums.items()
        }

    def load_state_dict(self, saved: Mapping[str, tuple[Tensor, Tensor | int]], device: torch.device) -> None:
        self.sums = defaultdict(float, {name: value.to(device) for name, (value, _) in saved.items()})
        self.numbers = defaultdict(float, {name: torch.as_tensor(n).to(device) for name, (_, n) in saved.items()})


class Trainer:
    """Trains a task.

    Parameters
    ----------
    task : Task
    plan : BatchPlan
        Of the training samples; told the epoch.
    train_loader, val_loader : DataLoader of Batch
    optimizer, schedule
        The schedule is stepped with the optimizer, and told what validation comes to.
    optim, config
        Clipping and accumulation; epochs and precision.
    device : torch.device
    callbacks : sequence of Callback
        Called in this order.
    average : WeightAverage, optional
        Of the weights after every step; validated and saved in place of the last ones.
    learner : nn.Module, optional
        The task as `aam.training.distributed.distribute` spreads it over processes.
    """

    def __init__(
        self,
        task: Task,
        plan: BatchPlan,
        train_loader: DataLoader[Batch],
        val_loader: DataLoader[Batch],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        optim: OptimConfig,
        config: TrainConfig,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        average: WeightAverage | None = None,
        learner: nn.Module | None = None,
    ) -> None:
        self.task = task
        self.processes = task.processes
        self.learner = learner or Learner(task)
        self.plan = plan
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.optimizer = optimizer
        self.schedule = schedule
        self.optim = optim
        self.config = config
        self.device = device
        self.callbacks = callbacks
        self.average = average or WeightAverage()
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")
        self.state = TrainState()
        self.epoch_parts = _PartMeans()  # of the epoch that is under way
        self.stop_signal: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.plan) / self.optim.accumulation_steps)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.number_of_epochs

    @property
    def lowest_epoch(self) -> int:
        """The epoch with the least monitored validation loss so far; 0 before the first."""
        values = [row[f"val_{self.task.monitor}"] for row in self.state.history]
        return 1 + min(range(len(values)), key=values.__getitem__) if values else 0

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def fit(self) -> TrainState:
        """Train until the last epoch or until a callback says stop.

        Raises
        ------
        Interrupted
            If `stop_soon` was called; the run can be resumed.
        """
        try:
            self._tell("on_start")
            while self.state.epoch < self.config.last_epoch and not self.state.stop:
                self._tell("on_epoch_start")
                losses = self.train_epoch()
                self._tell("on_validation")
                with self.average.in_model():
                    evaluation = self.evaluate(self.val_loader)
                self._record(losses, evaluation)
                self._tell("on_epoch", evaluation)
            self._tell("on_end")
        except Interrupted:
            self._end_workers()  # first: saving may take longer than they outlive the signal
            self._tell("on_interrupt")
            raise
        return self.state

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Tell the callbacks what the run came to; its directory is complete."""
        self._tell("on_result", metrics)

    def stop_soon(self, signal: int) -> None:
        """Stop after the step, or the held-out batch, that is under way."""
        self.stop_signal = signal

    def _tell(self, event: str, *about: object) -> None:
        for callback in self.callbacks:
            if self.processes.first or not callback.first_process_only:
                getattr(callback, event)(self, *about)

    def heed_signal(self) -> None:
        """Stop if any process was asked to, so that all of them do after the same step."""
        signal = self.processes.largest(self.stop_signal or 0)
        if signal:
            raise Interrupted(signal)

    def close(self) -> None:
        """Close the callbacks and end the processes that build batches."""
        for callback in self.callbacks:
            callback.close()
        self._end_workers()

    def _end_workers(self) -> None:
        for loader in (self.train_loader, self.val_loader):
            end_workers(loader)

    def train_epoch(self) -> dict[str, float]:
        """What is left of a pass over the training samples; the mean of each part of the loss over all of it."""
        self.plan.epoch = self.state.epoch + 1
        self.plan.first = self.state.batch
        self.learner = wrap_again(self.learner)
        self.task.train()
        for group in _grouped(self.train_loader, self.optim.accumulation_steps):
            self._tell("on_step", self.train_step(group))
            self.heed_signal()
        return {name: float(mean) for name, mean in self.epoch_parts.means().items()}

    def train_step(self, group: list[Batch]) -> Step:
        """One optimizer step over one batch or several, each weighing as many samples as it has."""
        samples = sum(len(batch.everyone) for batch in group)
        parts = _PartMeans()
        for batch in group:
            of_batch = len(batch.everyone)
            with joining(self.learner, now=batch is group[-1]):
                with precision(self.config.mixed_precision, self.device):
                    loss = self.learner(batch.to(self.device))
                self.scaler.scale(loss.total * (of_batch / samples)).backward()
            known = {f"number of {name}": number for name, number in loss.numbers.items()}
            shared = self.processes.averages({"loss": loss.total, **loss.parts, **known})
            numbers = {name: self.processes.number * shared.pop(f"number of {name}") for name in loss.numbers}
            parts.add(shared, {"loss": of_batch, **numbers})
        norm = self._apply_gradients()
        self.epoch_parts.merge(parts)
        if norm is not None:
            self.epoch_parts.add({"gradient_norm": norm}, {"gradient_norm": 1})
        self.state.batch += len(group)
        self.state.step += 1
        return Step(parts.means(), group, norm)

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Judge held-out samples."""
        self.task.model.eval()
        with (
            judging(self.learner, self.processes),
            precision(self.config.mixed_precision, self.device),
            torch.no_grad(),
        ):
            judged = [self.learner(batch, judging=True) for batch in self.on_device(batches)]
            return judge_together(self.task, self.learner, judged)

    def on_device(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, moved to the device one by one; a signal to stop is heeded before each."""
        for batch in batches:
            self.heed_signal()
            yield batch.to(self.device)

    def _apply_gradients(self) -> Tensor | None:
        self.scaler.unscale_(self.optimizer)
        norm: Tensor | None = clip_gradients(list(self.task.model.parameters()), self.optim.gradient_clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the gradient overflowed and the step was left out
            self.schedule.step()
            self.average.update()
        else:
            norm = None
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _record(self, losses: dict[str, float], evaluation: Evaluation) -> None:
        state = self.state
        state.epoch += 1
        state.batch = 0
        self.epoch_parts = _PartMeans()
        row = {"epoch": float(state.epoch), "step": float(state.step), "lr": self.learning_rate}
        row |= {name if name == "gradient_norm" else f"train_{name}": value for name, value in losses.items()}
        row |= {f"val_{name}": value for name, value in (evaluation.losses | evaluation.metrics).items()}
        state.history.append(row)
        value = evaluation.losses[self.task.monitor]
        if self.config.keeps_last or value < state.best_value:
            state.best_value, state.best_epoch = value, state.epoch
        self.schedule.on_validation(value)

    def state_dict(self, *, sharded: bool = False) -> dict[str, Any]:
        """Everything that resuming needs, as tensors and plain values. Every process has to call it.

        Parameters
        ----------
        sharded : bool
            Leave sharded tensors so. Else the first process has them whole, as one that is alone has, and the others
            have nothing in their place.
        """
        tensors = {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        return {
            **(tensors if sharded else whole(tensors, keep=self.processes.first)),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "state": asdict(self.state),
            "epoch_parts": self.epoch_parts.state_dict(),
            "random": self.processes.gather_objects(random_state(self.device)),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up where `state_dict` was taken, by however many processes."""
        load_weights_into(self.task.model, saved["model"])
        load_optimizer_state(self.optimizer, saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.average.load_state_dict(saved["average"])
        self.scaler.load_state_dict(saved["scaler"])
        self.state = TrainState(**saved["state"])
        self.epoch_parts.load_state_dict(saved["epoch_parts"], self.device)
        if len(saved["random"]) == self.processes.number:
            set_random_state(saved["random"][self.processes.rank], self.device)
        else:
            self.processes.seed_anew(self.config.seed, self.state.step)


def end_workers(loader: DataLoader[Any]) -> None:
    """End the processes of a loader, which may be begun again.

    Left to the garbage collector, which may find the loader in a cycle, each of them is waited for for five seconds.
    """
    workers: Any = getattr(loader, "_iterator", None)
    loader._iterator = None
    if hasattr(workers, "_shutdown_workers"):
        workers._shutdown_workers()


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to the arithmetic of ``--mixed-precision``: ``none``, ``bf16`` or ``fp16``."""
    if name == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=arithmetic_type(name))


def arithmetic_type(name: str) -> torch.dtype:
    """The type that matrices are multiplied in under ``--mixed-precision``."""
    return {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in lists of ``size``, the last one shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
