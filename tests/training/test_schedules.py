"""Each schedule against torch's own, or against its definition, over hundreds of steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as theirs

from aam.config import OptimConfig
from aam.training.schedules import SCHEDULES, PlateauSchedule, Schedule, build_schedule

STEPS = 400
PEAKS = (1e-2, 3e-4)


def optimizer_of_two_groups() -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in PEAKS]
    return torch.optim.SGD([{"params": [w], "lr": lr} for w, lr in zip(weights, PEAKS, strict=True)])


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def ours(config: OptimConfig, steps: int = STEPS, more: int = 0) -> np.ndarray[Any, Any]:
    """The learning rates of both groups at every step, (steps + more, 2)."""
    optimizer = optimizer_of_two_groups()
    schedule = build_schedule(optimizer, config, steps)
    found = []
    for _ in range(steps + more):
        found.append(rates(optimizer))
        schedule.step()
    return np.array(found)


def of_torch(build: Callable[[torch.optim.Optimizer], Any], steps: int = STEPS) -> np.ndarray[Any, Any]:
    optimizer = optimizer_of_two_groups()
    schedule = build(optimizer)
    found = []
    with warnings.catch_warnings(action="ignore"):  # of steps of the schedule without any of the optimizer
        for _ in range(steps):
            found.append(rates(optimizer))
            schedule.step()
    return np.array(found)


def config(schedule: str, **options: Any) -> OptimConfig:
    return OptimConfig(schedule=schedule, lr=PEAKS[0], **options)


def test_the_configuration_names_what_is_registered():
    assert get_args(OptimConfig.model_fields["schedule"].annotation) == tuple(SCHEDULES)
    assert all(name == record.name and record.description for name, record in SCHEDULES.items())


# ------------------------------------------------------------------------------------------------------------- curves


def test_warmup_cosine_is_its_definition():
    found = ours(config("warmup_cosine", warmup_steps=40), more=50)
    for step, lr in enumerate(found):
        done = min(1.0, (step - 40) / 360)
        share = (step + 1) / 41 if step < 40 else 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        assert lr == pytest.approx([peak * share for peak in PEAKS], rel=1e-12)


@pytest.mark.parametrize(
    ("warmup_steps", "steps", "rise"), [(None, 100, 10), (None, 50_000, 500), (3, 100, 3), (0, 9, 0), (None, 1, 1)]
)
def test_length_of_the_warm_up(warmup_steps, steps, rise):
    schedule = build_schedule(optimizer_of_two_groups(), config("warmup_cosine", warmup_steps=warmup_steps), steps)
    curve = schedule.curve(steps)
    assert [curve(step) for step in range(rise)] == [(step + 1) / (rise + 1) for step in range(rise)]
    assert curve(rise) == 1 and (rise == 0 or curve(rise - 1) < 1)


@pytest.mark.parametrize("schedule", ["cosine_restarts", "plateau", "exponential", "constant"])
def test_any_schedule_may_follow_a_warm_up(schedule):
    found, plain = ours(config(schedule, warmup_steps=30)), ours(config(schedule), steps=STEPS - 30)
    np.testing.assert_allclose(found[:30] / PEAKS, np.repeat(np.arange(1, 31)[:, None], 2, axis=1) / 31)
    np.testing.assert_allclose(found[30:], plain, rtol=1e-12)


@pytest.mark.parametrize("min_lr", [None, 0.0, 2e-3])
def test_cosine_is_torchs(min_lr):
    least = 0.01 if min_lr is None else min_lr / PEAKS[0]
    found = ours(config("cosine", min_lr=min_lr), more=9)
    for place, peak in enumerate(PEAKS):
        expected = of_torch(lambda o, e=peak * least: theirs.CosineAnnealingLR(o, STEPS, eta_min=e))
        np.testing.assert_allclose(found[:STEPS, place], expected[:, place], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found[STEPS:, place], peak * least, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "first", "growth"),
    [({}, 58, 2), ({"cycle_steps": 50}, 50, 2), ({"cycle_growth": 1}, 134, 1), ({"cycle_growth": 3}, 31, 3)],
)
def test_cosine_restarts_is_torchs(options, first, growth):
    """By default the run holds three cycles: 400 steps are 58 + 116 + 226 of 232."""
    found = ours(config("cosine_restarts", **options))
    for place, peak in enumerate(PEAKS):
        expected = of_torch(
            lambda o, e=peak / 100: theirs.CosineAnnealingWarmRestarts(o, T_0=first, T_mult=growth, eta_min=e)
        )
        np.testing.assert_allclose(found[:, place], expected[:, place], rtol=1e-9)


@pytest.mark.parametrize("steps", [STEPS, 10, 7])
def test_onecycle_is_torchs(steps):
    found = ours(config("onecycle"), steps)
    expected = of_torch(lambda o: theirs.OneCycleLR(o, list(PEAKS), total_steps=steps, cycle_momentum=False), steps - 1)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-9)
    np.testing.assert_allclose(found[-1], np.array(PEAKS) / 25 / 1e4, rtol=1e-6)


def test_exponential_is_torchs():
    expected = of_torch(lambda o: theirs.ExponentialLR(o, gamma=0.05 ** (1 / STEPS)))
    np.testing.assert_allclose(ours(config("exponential", min_lr=5e-4)), expected, rtol=1e-9)
    np.testing.assert_allclose(ours(config("exponential"), more=5)[-5:] / PEAKS, 0.01)


def test_constant():
    assert (ours(config("constant")) == PEAKS).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps_has_a_learning_rate(schedule, steps):
    found = ours(config(schedule), steps, more=3)
    assert (found > 0).all() and (found <= PEAKS).all()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_schedule_that_turns_is_two(name):
    """And goes on from any step."""
    found = []
    optimizer = optimizer_of_two_groups()
    schedule = build_schedule(optimizer, config(name), STEPS, turn=150)
    for step in range(STEPS):
        if step in (20, 150, 151):
            saved = schedule.state_dict()
            schedule = build_schedule(optimizer, config(name), STEPS, turn=150)
            schedule.load_state_dict(saved)
        found.append(rates(optimizer))
        schedule.step()
    np.testing.assert_allclose(found, [*ours(config(name), 150), *ours(config(name), 250)])


@pytest.mark.parametrize("patience", [1, 3])
def test_plateau_is_torchs(patience):
    """Which counts one epoch more before it lowers the rate."""
    values = np.random.default_rng(0).gamma(2, size=300) / np.sqrt(1 + np.arange(300))
    optimizer, other = optimizer_of_two_groups(), optimizer_of_two_groups()
    schedule = build_schedule(optimizer, config("plateau", plateau_patience=patience), steps=1)
    expected = theirs.ReduceLROnPlateau(
        other, factor=0.3, patience=patience - 1, min_lr=[peak / 100 for peak in PEAKS], eps=0
    )
    lowered = 0
    for value in values:
        before = rates(optimizer)
        for _ in range(5):
            schedule.step()
        schedule.on_validation(value)
        expected.step(value)
        assert rates(optimizer) == pytest.approx(rates(other), rel=1e-9)
        lowered += before != rates(optimizer)
    assert lowered == 4  # to 0.3, 0.09, 0.027, 0.01


def test_a_loss_below_zero_improves_when_it_falls():
    schedule = build_schedule(optimizer_of_two_groups(), config("plateau", plateau_patience=1), steps=1)
    assert isinstance(schedule, PlateauSchedule)
    for value in (-1.0, -1.1, -1.2):
        schedule.on_validation(value)
    assert schedule.lowered == 1


# ---------------------------------------------------------------------------------------------------- restart, resume


def test_a_restart_is_over_what_is_left():
    optimizer = optimizer_of_two_groups()
    schedule = build_schedule(optimizer, config("warmup_cosine"), 400)
    for _ in range(150):
        schedule.step()
    schedule.restart()
    found = []
    for _ in range(250):
        found.append(rates(optimizer))
        schedule.step()
    np.testing.assert_array_equal(found, ours(config("warmup_cosine"), 250))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("at", [0, 1, 57, 133, 399])
def test_resumed_it_goes_on_the_same(name, at):
    """A validation every 10 steps, a restart at step 120."""
    values = np.random.default_rng(1).normal(1, 0.1, 40)

    def go_on(schedule: Schedule, first: int, last: int) -> list[list[float]]:
        found = []
        for step in range(first, last):
            found.append(rates(schedule.optimizer))
            schedule.step()
            if step % 10 == 9:
                schedule.on_validation(values[step // 10])
            if step == 120:
                schedule.restart()
        return found

    whole = go_on(build_schedule(optimizer_of_two_groups(), config(name), STEPS), 0, STEPS)
    first, second = (build_schedule(optimizer_of_two_groups(), config(name), STEPS) for _ in range(2))
    begun = go_on(first, 0, at)
    second.load_state_dict(first.state_dict())
    assert begun + go_on(second, at, STEPS) == whole
