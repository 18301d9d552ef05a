"""debug/step_profile.py: parts that add up, on a clock of our own and in a real step."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import step_profile  # debug/, see conftest
import torch
from step_profile import DATA, Stopwatch
from training import config_of, ready


class Clock(Stopwatch):
    """Whose time goes on as it is told."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def work(self, seconds: float) -> None:
        self.time += seconds


def test_a_part_has_the_time_that_is_not_within_another():
    clock = Clock()

    def outer() -> None:
        clock.work(1.0)
        clock.call("inner", clock.work, 2.0)
        clock.call("inner", clock.call, "innermost", clock.work, 4.0)
        clock.work(8.0)

    clock.call("outer", outer)
    clock.call("inner", clock.work, 16.0)
    assert clock.seconds == {"outer": 9.0, "inner": 18.0, "innermost": 4.0}
    assert sum(clock.seconds.values()) == clock.time


def test_time_is_kept_where_a_part_fails():
    clock = Clock()

    def fail() -> None:
        clock.work(2.0)
        raise ValueError

    def outer() -> None:
        with pytest.raises(ValueError):
            clock.call("fails", fail)
        clock.work(1.0)

    clock.call("outer", outer)
    assert clock.seconds == {"fails": 2.0, "outer": 1.0} and clock.within == []


def test_methods_are_as_they_were_before():
    linear, clock, backward = torch.nn.Linear(2, 2), Clock(), torch.Tensor.backward
    clock.wrap(linear, "forward", "linear")
    clock.wrap(torch.Tensor, "backward", "backward")
    linear(torch.ones(1, 2)).sum().backward()
    assert clock.seconds.keys() == {"linear", "backward"} and linear.weight.grad is not None
    clock.unwrap()
    assert "forward" not in vars(linear) and torch.Tensor.backward is backward


def test_parts_add_up_to_the_step_and_learning_is_the_same(training):
    trainer = ready(config_of(training)).trainer
    # By the time of this process alone: other programs may take the processor between two parts.
    found = step_profile.profile(trainer, steps=3, warm_up=1, clock=time.process_time)
    assert len(found.looked_at) == len(found.plain) == 3 and trainer.state.step == 7
    assert 0.95 < found.covered <= 1.0
    named = {DATA, "backward", "forward: ASV encoder", "forward: sample encoder", "forward: heads", "losses"}
    assert named <= found.parts.keys()
    assert all(seconds > 0 for seconds in found.parts.values())
    alone = ready(config_of(training)).trainer
    batches = step_profile._forever(alone)
    for _ in range(7):
        alone.train_step([next(batches)])
    looked_at = trainer.task.model.state_dict()
    assert all(looked_at[name].equal(weight) for name, weight in alone.task.model.state_dict().items())


def test_what_it_prints(study, monkeypatch, capsys, tmp_path):
    command = [str(part) for part in [*study.pretrain, "--batch-size", "4", "--device", "cpu"]]
    monkeypatch.setattr(
        sys, "argv", ["step_profile.py", "--steps", "2", "--trace", str(tmp_path / "trace"), "--", *command]
    )
    step_profile.main()
    printed = capsys.readouterr().out
    shares = [float(line.rsplit(None, 1)[1].rstrip("%")) for line in printed.split("\n\n")[0].splitlines()[1:]]
    assert len(shares) > 8 and np.all(np.diff(shares) <= 0) and 50 < sum(shares) < 150  # medians, of two steps
    assert "of which the parts are" in printed and "looking costs" in printed
    assert (tmp_path / "trace" / "operations.txt").stat().st_size > 0
