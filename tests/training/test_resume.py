"""A run that is killed and resumed equals one that is not, for every optimizer, schedule and average."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from aam.config import OptimConfig
from aam.training.callbacks import Plateau
from aam.training.checkpoint import load_checkpoint, save_checkpoint
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer

CHOICES = {name: get_args(OptimConfig.model_fields[name].annotation) for name in ("optimizer", "schedule")}
CHOICES["average"] = ("none", "ema", "swa")
EPOCHS = 4


class SaveAfter(Callback):
    """Keeps what a run that is killed after a step leaves."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.state.step == self.step:
            save_checkpoint(self.path, {"trainer": trainer.state_dict(), "config": {}})


def fresh(study: TinyStudy, directory: Path, optim: OptimConfig, *callbacks: Callback, batch_size: int = 2) -> Trainer:
    """Of 5 samples: 3 steps an epoch in batches of two, or 5 in batches of one."""
    plateau = Plateau(optim.plateau_patience, optim.restart_on_plateau)
    task = build_task(study, "regression", dropout=0.1)
    return build_trainer(
        study, task, directory, batch_size=batch_size, epochs=EPOCHS, optim=optim, callbacks=[*callbacks, plateau]
    )


def what_it_came_to(trainer: Trainer) -> dict[str, Any]:
    """Everything that a run leaves, tensors by name."""
    saved = trainer.state_dict()
    saved.pop("random")
    return dict(flat("", saved))


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested containers, by their path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(f"{name}/{key}", entry)
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            yield from flat(f"{name}/{place}", entry)
    else:
        yield name, value


def require_same(study: TinyStudy, directory: Path, optim: OptimConfig, stop_after: int, batch_size: int = 2) -> None:
    path = directory / "last.ckpt"
    whole = fresh(study, directory, optim, SaveAfter(stop_after, path), batch_size=batch_size)
    torch.manual_seed(6)
    whole.fit()
    torch.manual_seed(99)
    second = fresh(study, directory, optim, batch_size=batch_size)
    second.load_state_dict(load_checkpoint(path)["trainer"])
    assert second.state.step == stop_after < whole.state.step
    second.fit()
    expected, found = what_it_came_to(whole), what_it_came_to(second)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, (name, found[name], value)


def covering() -> list[tuple[str, str, str]]:
    """Every optimizer with every schedule, either with every average: each two that meet do so once or more."""
    optimizers, schedules, averages = CHOICES.values()
    return [
        (optimizer, schedule, averages[(i + j) % len(averages)])
        for i, optimizer in enumerate(optimizers)
        for j, schedule in enumerate(schedules)
    ]


def test_each_two_choices_meet():
    found = covering()
    for one, other in combinations(range(3), 2):
        both = product(*(list(CHOICES.values())[place] for place in (one, other)))
        assert {(each[one], each[other]) for each in found} == set(both)


@pytest.mark.parametrize(("optimizer", "schedule", "average"), covering())
def test_every_optimizer_schedule_and_average(optimizer, schedule, average, unequal_study, tmp_path):
    """Killed in the middle of the third epoch; learning rates so high that plateaus occur."""
    optim = OptimConfig(
        optimizer=optimizer, schedule=schedule, average=average, lr=0.02, plateau_patience=1, swa_start=_late(average)
    )
    require_same(unequal_study, tmp_path, optim, stop_after=7)


@pytest.mark.parametrize(
    "options",
    [
        {"lookahead": True, "optimizer": "lamb", "schedule": "cosine_restarts"},
        {"lookahead": True, "optimizer": "muon", "average": "ema"},
        {"restart_on_plateau": True, "plateau_patience": 1, "lr": 0.2, "schedule": "exponential"},
        {"accumulation_steps": 2, "schedule": "onecycle", "average": "swa", "swa_start": 0.3},
        {"accumulation_steps": 2, "schedule": "plateau", "lookahead": True, "plateau_patience": 1, "lr": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
def test_further_options(options, stop_after, unequal_study, tmp_path):
    require_same(unequal_study, tmp_path, OptimConfig(**options), stop_after, batch_size=1)


def _late(average: str) -> float | None:
    return 0.5 if average == "swa" else None


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
def test_a_schedule_counts_optimizer_steps(accumulation_steps, equal_study, tmp_path):
    """It ends where the run ends, whatever the number of batches in a step."""
    optim = OptimConfig(schedule="cosine", accumulation_steps=accumulation_steps)
    trainer = fresh(equal_study, tmp_path, optim, batch_size=1)
    trainer.fit()
    steps = EPOCHS * -(-5 // accumulation_steps)
    assert trainer.steps == trainer.state.step == steps == trainer.schedule.state_dict()["done"]
    assert trainer.learning_rate == pytest.approx(optim.lr / 100)
    assert [row["lr"] for row in trainer.state.history] == pytest.approx(
        [optim.lr * trainer.schedule.curve(steps)(step * steps // EPOCHS) for step in range(1, EPOCHS + 1)]
    )


def test_a_plateau_is_logged_and_begins_the_schedule_anew(equal_study, tmp_path, caplog):
    """With a learning rate of 0 nothing is better than the first epoch."""
    optim = OptimConfig(schedule="exponential", restart_on_plateau=True, plateau_patience=2)
    task = build_task(equal_study, "regression")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    plateau = Plateau(optim.plateau_patience, optim.restart_on_plateau)
    trainer = build_trainer(
        equal_study, task, tmp_path, epochs=7, optim=optim, optimizer=optimizer, callbacks=[plateau]
    )
    with caplog.at_level("INFO", logger="aam"):
        trainer.fit()
    said = [record.getMessage() for record in caplog.records]
    again = "no better epoch in 2: a plateau; the schedule begins anew"
    assert said == [again, again, "no better epoch in 2: a plateau"]
    assert trainer.schedule.state_dict() == {"done": 21, "begun": 15}
