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

from aam import epochs as module
from aam.epochs import Judge, pooled
from aam.errors import Interrupted
from aam.training.callbacks import Signals
from aam.training.trainer import Callback, Trainer
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
    # Built only now: both begin with the same draws of dropout.
    found = judge(equal_study, tmp_path)
    for until in stops:
        found.learn(until)
        assert len(found.losses) == until
    assert found.losses == expected.losses


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
        assert until > len(self.losses)
        self.losses = self.known[:until]


def together(*judges: _Told) -> tuple[list[int], Any]:
    asked: list[int] = []

    def others() -> Iterator[Any]:
        for place, one in enumerate(judges[1:], start=1):
            asked.append(place)
            yield one

    found = module._learn_together(judges[0], others(), 40)  # type: ignore[arg-type]
    assert {len(one.losses) for one in found} == {len(judges[0].losses)}
    return asked, pooled(found)


def test_all_parts_judge_for_as_long_as_the_first() -> None:
    weak = _Told([*np.linspace(0.9, 1.5, 40)], 10, seen=12)
    other = _Told([*np.linspace(0.8, 1.6, 40)], 30)
    asked, (losses, guess) = together(weak, other)
    assert asked == [1] and guess == 1
    np.testing.assert_allclose(losses, [(10 * a + 30 * b) / 40 for a, b in zip(weak.losses, other.losses, strict=True)])
    assert len(losses) == 12


def test_they_go_on_where_they_do_not_agree() -> None:
    """An eighth of all epochs at a time, until all of them together say something."""
    weak = _Told([*np.linspace(1.0, 1.2, 40)], 10, seen=10)
    strong = _Told([*np.linspace(0.9, 0.0, 40)], 30)
    _, (losses, _) = together(weak, strong)
    assert 10 < len(losses) < 40 and len(losses) % 5 == 0
    assert losses[-1] < 0.6 < losses[-6]
