"""What trackers are told: by one that keeps it in memory, and one that fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aam.errors import DataError, Interrupted
from aam.training.meter import Meter
from aam.training.tracking import Status, Tracking
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer

PARAMETERS = {"lr": 0.001, "classifier": False}


class Memory:
    """A tracker that keeps what it is told."""

    def __init__(self, name: str = "memory", fails: int = 0) -> None:
        self.name = name
        self.fails = fails  # so many calls
        self.started: list[str | None] = []
        self.parameters: Mapping[str, object] = {}
        self.rows: list[Mapping[str, float]] = []
        self.kept: tuple[Mapping[str, float], Sequence[Path], Path] | None = None
        self.finished: list[Status] = []

    def start(self, run_id: str | None, parameters: Mapping[str, str | float | bool]) -> str:
        self.started.append(run_id)
        self.parameters = parameters
        return run_id or f"id-{self.name}"

    def log(self, rows: Sequence[Mapping[str, float]]) -> None:
        self._fail()
        self.rows += rows

    def keep(self, metrics: Mapping[str, float], plots: Sequence[Path], model: Path) -> None:
        self._fail()
        self.kept = metrics, plots, model

    def finish(self, status: Status) -> None:
        self.finished.append(status)

    def _fail(self) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise ConnectionError("the server\nis away")


class Away(Memory):
    def start(self, run_id: str | None, parameters: Mapping[str, str | float | bool]) -> str:
        raise DataError("no such server")


def tracking(folder: Path, *trackers: Memory, every_seconds: float = 0) -> Tracking:
    return Tracking(trackers, PARAMETERS, folder / "plots", folder / "model", folder / "tracking.json", every_seconds)


def trainer_of(study: TinyStudy, folder: Path, *callbacks: Callback, epochs: int = 3) -> Trainer:
    return build_trainer(
        study, build_task(study, "regression"), folder, epochs=epochs, scheduled_epochs=3, callbacks=callbacks
    )


def test_all_of_a_run(equal_study: TinyStudy, tmp_path: Path) -> None:
    """Every epoch once, with its time and memory; in the end what it came to."""
    (tmp_path / "plots").mkdir()
    for name in ("b.png", "a.png", "notes.txt"):
        (tmp_path / "plots" / name).touch()
    trackers = Memory("one"), Memory("two")
    trainer = trainer_of(equal_study, tmp_path, Meter(), tracking(tmp_path, *trackers))
    state = trainer.fit()
    trainer.finish({"best_epoch": 2, "val": {"r2": 0.5}, "test": {"r2": 0.4}, "baseline": {"guess": {}}})
    trainer.close()
    for tracker in trackers:
        assert tracker.started == [None] and tracker.parameters == PARAMETERS
        assert tracker.rows == [row | more for row, more in zip(state.history, state.measured, strict=True)]
        expected = {"best_epoch": 2, "final_val_r2": 0.5, "final_test_r2": 0.4}
        assert tracker.kept == (expected, [tmp_path / "plots" / f"{name}.png" for name in "ab"], tmp_path / "model")
        assert tracker.finished == ["finished"]
    remembered = json.loads((tmp_path / "tracking.json").read_text())
    assert remembered == {name: {"id": f"id-{name}", "epoch": 3} for name in ("one", "two")}


@pytest.mark.parametrize("stop_at", [2, 3, 5, 9])
def test_a_stopped_run_goes_on_in_the_same_one(stop_at: int, equal_study: TinyStudy, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            if trainer.state.step == stop_at:
                trainer.stop_soon(15)

    first, second = Memory(), Memory()
    stopped = trainer_of(equal_study, tmp_path, Stop(), Meter(), tracking(tmp_path, first))
    with pytest.raises(Interrupted):
        stopped.fit()
    stopped.close()
    assert first.finished == ["interrupted"]
    resumed = trainer_of(equal_study, tmp_path, Meter(), tracking(tmp_path, second))
    resumed.load_state_dict(stopped.state_dict())
    resumed.fit()
    resumed.finish({"best_epoch": 3})
    resumed.close()
    assert second.started == ["id-memory"] and second.finished == ["finished"]
    assert [row["epoch"] for row in [*first.rows, *second.rows]] == [1, 2, 3]


def test_epochs_are_told_in_lots(equal_study: TinyStudy, tmp_path: Path) -> None:
    tracker = Memory()
    told: list[int] = []

    class Count(Callback):
        def on_epoch(self, trainer: Trainer, evaluation: Any) -> None:
            told.append(len(tracker.rows))

    trainer_of(equal_study, tmp_path, tracking(tmp_path, tracker, every_seconds=1e9), Count()).fit()
    assert told == [0, 0, 0] and len(tracker.rows) == 3


def test_a_server_away_for_a_while(
    equal_study: TinyStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told later what it missed, and the others miss nothing."""
    monkeypatch.setattr("aam.training.tracking.AFTER_FAILURE", 0.0)
    trackers = Memory("flaky", fails=2), Memory("steady")
    trainer = trainer_of(equal_study, tmp_path, tracking(tmp_path, *trackers))
    with caplog.at_level(logging.WARNING, logger="aam"):
        trainer.fit()
    assert [record.getMessage() for record in caplog.records] == ["flaky: the server (ConnectionError)"] * 2
    for tracker in trackers:
        assert [row["epoch"] for row in tracker.rows] == [1, 2, 3]


def test_a_server_that_is_away_is_not_asked_in_every_epoch(equal_study: TinyStudy, tmp_path: Path) -> None:
    tracker = Memory(fails=1000)
    trainer = trainer_of(equal_study, tmp_path, tracking(tmp_path, tracker))
    trainer.fit()
    trainer.finish({"best_epoch": 1})
    trainer.close()
    assert tracker.fails == 1000 - 3  # after the first epoch, at the end, and for the result


def test_a_tracker_that_cannot_be_begun_ends_the_run(equal_study: TinyStudy, tmp_path: Path) -> None:
    begun = Memory("begun")
    trainer = trainer_of(equal_study, tmp_path, tracking(tmp_path, begun, Away()))
    with pytest.raises(DataError, match="no such server"):
        trainer.fit()
    trainer.close()
    assert begun.finished == ["failed"]


def test_a_run_that_fails(equal_study: TinyStudy, tmp_path: Path) -> None:
    class Fail(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            raise RuntimeError("out of memory")

    tracker = Memory()
    trainer = trainer_of(equal_study, tmp_path, tracking(tmp_path, tracker), Fail())
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()
    trainer.close()
    trainer.close()
    assert tracker.finished == ["failed"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"memory": 3}', '{"memory": {"id": "a"}}', "[" * 100_000])
def test_a_damaged_memory(content: str, equal_study: TinyStudy, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(DataError, match=r"tracking\.json: is damaged; remove it"):
        trainer_of(equal_study, tmp_path, tracking(tmp_path, Memory())).fit()
