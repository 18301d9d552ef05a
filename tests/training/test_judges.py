"""Parts of the training samples that judge what the others learn, a few epochs at a time."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aam import epochs as module
from aam.epochs import Judge, pooled, verdict
from aam.errors import Interrupted
from aam.training.callbacks import Checkpoints, Signals
from aam.training.checkpoint import load_checkpoint
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.test_frozen import callback, trainer_of

EPOCHS = 6


def judge(study: TinyStudy, directory: Path, *callbacks: Callback) -> Judge:
    """With dropout, and with ASVs that come to rest after three epochs."""
    watching = [*callbacks, callback(study, "asv_encoder", since=3)]
    return Judge(trainer_of(study, "regression", directory, watching, epochs=EPOCHS), 1.0, (3, 2))


@pytest.mark.parametrize("stops", [(2, 4, 6), (3, 6), (1, 1, 6)])
def test_learning_with_stops_is_learning_without(
    stops: tuple[int, ...], equal_study: TinyStudy, tmp_path: Path
) -> None:
    expected = judge(equal_study, tmp_path)
    expected.learn(EPOCHS)
    found = judge(equal_study, tmp_path)
    for until in stops:
        torch.manual_seed(until)  # others draw meanwhile
        found.learn(until)
        assert len(found.losses) == until
    assert found.losses == expected.losses


class _StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.state.step == self.step:
            trainer.stop_soon(signal.SIGTERM)


@pytest.mark.parametrize("step", [1, 2, 5, 7, 10])
def test_an_interrupted_one_goes_on(step: int, equal_study: TinyStudy, tmp_path: Path) -> None:
    expected = judge(equal_study, tmp_path)
    expected.learn(EPOCHS)
    path = tmp_path / "last.ckpt"
    saving = Checkpoints(lambda evaluation: None, path, {"config": {}})
    with pytest.raises(Interrupted):
        judge(equal_study, tmp_path, saving, _StopAt(step)).learn(4)
    trainer = trainer_of(equal_study, "regression", tmp_path, [callback(equal_study, "asv_encoder", since=3)], epochs=6)
    trainer.load_state_dict(load_checkpoint(path)["trainer"])
    assert trainer.state.step == step
    found = Judge(trainer, 1.0, (3, 2))
    for until in (4, EPOCHS):
        torch.manual_seed(until)
        assert found.learn(until) == until
    assert found.losses == expected.losses


def test_by_itself_it_ends_where_it_ended_before(equal_study: TinyStudy, tmp_path: Path) -> None:
    """However far it has gone on meanwhile, for the sake of all parts together."""
    found = judge(equal_study, tmp_path)
    found.guess = 1e-3  # a signal that is weak
    end = found.learn()
    assert end == len(found.losses) == 2, "a quarter of six epochs"
    found.learn(5)
    assert found.learn() == 2 and len(found.losses) == 5
    assert verdict(found.losses[:2], found.guess, EPOCHS).known


def test_a_search_that_is_over_leaves_nothing_behind(equal_study: TinyStudy, tmp_path: Path) -> None:
    found = judge(equal_study, tmp_path)
    found.learn(2)
    left = weakref.ref(found.trainer)
    gc.disable()
    try:
        del found
        assert left() is None
    finally:
        gc.enable()


class _Signalled(Callback):
    """Is asked to stop when there is nothing left to learn."""

    def on_end(self, trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_at_the_end_of_a_part_is_heeded(equal_study: TinyStudy, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        judge(equal_study, tmp_path, Signals(), _Signalled()).learn(2)


class _Told:
    """A judge whose losses are known beforehand."""

    def __init__(self, losses: list[float], samples: int, seen: int = 0) -> None:
        self.known, self.losses, self.guess, self.sizes = losses, losses[:seen], 1.0, (0, samples)

    def learn(self, until: int) -> None:
        self.losses = self.known[: max(until, len(self.losses))]


def together(*judges: _Told, until: int) -> tuple[list[int], Any]:
    asked: list[int] = []

    def others() -> Iterator[Any]:
        for place, one in enumerate(judges[1:], start=1):
            asked.append(place)
            yield one

    end, found = module._together(judges[0], others(), until, 40)  # type: ignore[arg-type]
    return asked, pooled(found, end)


def test_all_parts_judge_for_as_long_as_the_first() -> None:
    weak = _Told([*np.linspace(0.9, 1.5, 40)], 10, seen=12)
    other = _Told([*np.linspace(0.8, 1.6, 40)], 30)
    asked, (losses, guess) = together(weak, other, until=12)
    assert asked == [1] and guess == 1
    np.testing.assert_allclose(losses, [(10 * a + 30 * b) / 40 for a, b in zip(weak.losses, other.losses, strict=True)])
    assert len(losses) == 12


@pytest.mark.parametrize("seen", [(10, 0), (15, 10), (15, 15), (20, 15)])
def test_they_go_on_where_they_do_not_agree(seen: tuple[int, int]) -> None:
    """An eighth of all epochs at a time, until all of them together say something, wherever they were interrupted."""
    weak = _Told([*np.linspace(1.0, 1.2, 40)], 10, seen=seen[0])
    strong = _Told([*np.linspace(0.9, 0.0, 40)], 30, seen=seen[1])
    _, (losses, _) = together(weak, strong, until=10)
    assert 10 < len(losses) < 40 and len(losses) % 5 == 0
    assert losses[-1] < 0.6 < losses[-6]
