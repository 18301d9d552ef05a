"""Processes that tests join: which of their deaths are forgiven."""

from __future__ import annotations

import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tests.training import processes as module
from tests.training.processes import side_by_side

DEATH, COMPLAINT = BrokenProcessPool("died"), ConnectionError("reset by peer")


def die(folder: Path, times: int) -> str:
    """The first process dies so often without a word."""
    rank = os.environ["RANK"]
    if rank == "0":
        (folder / f"{time.monotonic_ns()}").touch()
        if len(list(folder.iterdir())) <= times:
            os._exit(1)
    return rank


def fail(folder: Path) -> None:
    (folder / f"{time.monotonic_ns()}").touch()
    raise ValueError("a mistake")


def test_a_death_without_a_word_is_forgiven_once(tmp_path: Path) -> None:
    assert side_by_side(die, 2, tmp_path, 1) == ["0", "1"]


def test_and_not_twice(tmp_path: Path) -> None:
    with pytest.raises(BrokenProcessPool):
        side_by_side(die, 2, tmp_path, 9)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_raised_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake"):
        side_by_side(fail, 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("starts", "raised"),
    [
        ([[COMPLAINT, DEATH], []], None),
        ([[COMPLAINT, DEATH], [COMPLAINT, DEATH]], COMPLAINT),
        ([[DEATH], [COMPLAINT]], COMPLAINT),
        ([[COMPLAINT]], COMPLAINT),
    ],
)
def test_others_may_complain_of_a_death(
    starts: list[list[BaseException]], raised: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [([] if errors else ["done"], errors) for errors in starts]
    monkeypatch.setattr(module, "_side_by_side", lambda *_: left.pop(0))
    if raised is None:
        assert side_by_side(die, 2) == ["done"]
    else:
        with pytest.raises(type(raised)):
            side_by_side(die, 2)
    assert not left
