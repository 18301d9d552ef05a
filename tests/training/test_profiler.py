"""Traces are those of the steps that were asked for, and can be opened."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from aam.training.profiler import OPERATIONS, TRACE, WARM_UP_STEPS, Profile
from aam.training.trainer import Callback
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer


def profile(study: TinyStudy, folder: Path, steps: int, *, epochs: int, batch_size: int = 1) -> list[dict[str, object]]:
    """Events of the trace, none where there is no trace; five samples an epoch."""
    callbacks: list[Callback] = [Profile(folder / "profile", steps)]
    task = build_task(study, "regression")
    trainer = build_trainer(study, task, folder, epochs=epochs, batch_size=batch_size, callbacks=callbacks)
    trainer.fit()
    trainer.close()
    if not (folder / "profile").exists():
        return []
    with gzip.open(folder / "profile" / TRACE, "rt") as file:
        events: list[dict[str, object]] = json.load(file)["traceEvents"]
    return events


def optimizer_steps(events: list[dict[str, object]]) -> int:
    return sum(str(event.get("name", "")).startswith("Optimizer.step#") for event in events)


@pytest.mark.parametrize("steps", [1, 2])
def test_so_many_steps_after_the_first_ones(steps: int, equal_study: TinyStudy, tmp_path: Path) -> None:
    events = profile(equal_study, tmp_path, steps, epochs=1)
    assert optimizer_steps(events) == steps
    assert any("attention" in str(event.get("name")) for event in events)
    table = (tmp_path / "profile" / OPERATIONS).read_text()
    assert "aten::addmm" in table and "Self CPU" in table and "Input Shapes" in table


def test_at_most_those_of_an_epoch(equal_study: TinyStudy, tmp_path: Path) -> None:
    """The first epoch's first steps are left out, and with them what is left of it is too little."""
    assert optimizer_steps(profile(equal_study, tmp_path, 100, epochs=3)) == 5 - WARM_UP_STEPS


def test_steps_of_a_later_epoch(equal_study: TinyStudy, tmp_path: Path) -> None:
    """Epochs of one step: the first three are warming up."""
    assert optimizer_steps(profile(equal_study, tmp_path, 2, epochs=5, batch_size=5)) == 1


def test_a_run_too_short(equal_study: TinyStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="aam"):
        assert profile(equal_study, tmp_path, 2, epochs=1, batch_size=2) == []
    assert "--profile 2: the run has no step after its first 3" in caplog.text
