"""Processes that tests join: which of their deaths are forgiven."""

from __future__ import annotations

import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tests.training import processes as module
from tests.training.processes import side_by_side

DEATH, COMPLAINT = BrokenProcessPool("died"), ConnectionError("reset by peer")


def fail(folder: Path) -> None:
    (folder / f"{time.monotonic_ns()}").touch()
    raise ValueError("a mistake")


def test_what_is_raised_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake"):
        side_by_side(fail, 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("starts", "raised"),
    [
        ([[DEATH], []], None),
        ([[COMPLAINT, DEATH], []], None),
        ([[COMPLAINT, DEATH], [COMPLAINT, DEATH]], COMPLAINT),
        ([[DEATH], [COMPLAINT]], COMPLAINT),
        ([[COMPLAINT]], COMPLAINT),
    ],
)
def test_a_death_is_forgiven_once_and_what_others_say_of_it(
    starts: list[list[BaseException]], raised: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [([] if errors else ["done"], errors) for errors in starts]
    monkeypatch.setattr(module, "_side_by_side", lambda *_: left.pop(0))
    if raised is None:
        assert side_by_side(fail, 2) == ["done"]
    else:
        with pytest.raises(type(raised)):
            side_by_side(fail, 2)
    assert not left
