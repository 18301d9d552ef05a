"""Speed by a clock that the test moves, values as they are in the step."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from aam.training.meter import Meter, memory_mb
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Time(Callback):
    """Lets a second pass in each step, 10 in each validation and 90 between epochs."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.clock.now += 90

    def on_step(self, trainer: Trainer, step: Step) -> None:
        self.clock.now += 1

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.clock.now += 10


class Reader(Callback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.seen: list[tuple[int, Step]] = []

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if self.meter.values is not None:
            values = self.meter.values
            self.seen.append((values.step, step))
            assert values.losses == pytest.approx({name: float(part) for name, part in step.parts.items()})
            assert step.gradient_norm is not None
            assert values.gradient_norm == pytest.approx(float(step.gradient_norm))


def test_measures(equal_study: TinyStudy, tmp_path: Path) -> None:
    """Five samples in batches of two: three steps of a second each; validation is no time of training."""
    clock = Clock()
    meter = Meter(every_seconds=2, clock=clock)
    reader = Reader(meter)
    trainer = build_trainer(
        equal_study, build_task(equal_study, "regression"), tmp_path, epochs=2, callbacks=[Time(clock), meter, reader]
    )
    state = trainer.fit()
    assert [row["epoch"] for row in state.measured] == [1, 2]
    assert [row["seconds"] for row in state.measured] == [13, 13]
    assert [row["samples_per_second"] for row in state.measured] == pytest.approx([5 / 3] * 2)
    # Two seconds lie between those that are read, or an epoch's end.
    assert [step for step, _ in reader.seen] == [1, 3, 4, 6]


def test_the_rate_of_steps_is_of_training_alone(equal_study: TinyStudy, tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(every_seconds=0, clock=clock)
    rates: list[tuple[float, float]] = []

    class Rates(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            assert meter.values is not None
            rates.append((meter.values.samples_per_second, meter.values.seconds_per_step))

    task = build_task(equal_study, "regression")
    build_trainer(equal_study, task, tmp_path, epochs=2, callbacks=[Time(clock), meter, Rates()]).fit()
    assert rates == [(2, 1), (2, 1), (1, 1)] * 2


def test_no_value_is_read_between(equal_study: TinyStudy, tmp_path: Path) -> None:
    """What is not due costs no look at the device."""

    class Untouchable(torch.Tensor):
        def __torch_function__(self, *arguments: object, **named: object) -> object:
            raise AssertionError("it was read")

    meter = Meter(every_seconds=1e9)
    trainer = build_trainer(equal_study, build_task(equal_study, "regression"), tmp_path)
    meter.on_start(trainer)
    batch = next(iter(trainer.train_loader))
    untouchable = torch.zeros(()).as_subclass(Untouchable)
    meter.read_at = meter.clock()
    meter.on_step(trainer, Step({"loss": untouchable}, [batch], untouchable))
    assert meter.values is None


def test_memory() -> None:
    resident = psutil.Process(os.getpid()).memory_info().rss / 1e6
    assert memory_mb(torch.device("cpu")) == pytest.approx(resident, rel=0.1)
