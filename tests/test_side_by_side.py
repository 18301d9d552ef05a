"""Runs in processes of their own: what they come to, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aam.errors import DataError, Interrupted
from aam.side_by_side import side_by_side


def square(number: int) -> int:
    time.sleep(0.2 * (number == 0))  # the first ends last
    return number**2


def fail_or_wait(number: int) -> None:
    if number == 1:
        raise DataError("one is wrong")
    time.sleep(60)


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_a_signal(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    signal.signal(signal.SIGTERM, stop)
    time.sleep(60)


def wait_without_heeding(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    time.sleep(60)


def process(number: int) -> int:
    return os.getpid()


def answer(folder: Path, number: int) -> None:
    """Each says that it has begun, and ends when the other has."""
    (folder / f"{number}").touch()
    began = time.monotonic()
    while not (folder / f"{1 - number}").is_file():
        if time.monotonic() - began > 60:
            raise DataError("the other does not begin")
        time.sleep(0.05)


def note(folder: Path, number: int) -> None:
    with (folder / "order").open("a") as file:
        file.write(f"{number}")


def test_results_are_in_the_order_of_the_jobs() -> None:
    ended: list[tuple[int, int]] = []
    assert side_by_side(square, [(n,) for n in range(4)], 2, lambda *found: ended.append(found)) == [0, 1, 4, 9]
    assert sorted(ended) == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_each_has_a_process_of_its_own() -> None:
    found = side_by_side(process, [(n,) for n in range(3)], 1)
    assert len({os.getpid(), *found}) == 4


def test_one_begins_when_it_is_ready(tmp_path: Path) -> None:
    """And need not wait until what it waits for has ended."""
    asked = []

    def ready(place: int) -> bool:
        asked.append(place)
        return place == 0 or (tmp_path / "0").is_file()

    side_by_side(answer, [(tmp_path, n) for n in range(2)], 2, ready=ready)
    assert asked.count(1) >= 1


def test_one_that_is_not_ready_lets_others_go_first(tmp_path: Path) -> None:
    """What nothing makes ready begins last, and is for the job to refuse."""
    side_by_side(note, [(tmp_path, n) for n in range(3)], 1, ready=lambda place: place != 0)
    assert (tmp_path / "order").read_text() == "120"


def test_one_that_fails_stops_the_others() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="one is wrong"):
        side_by_side(fail_or_wait, [(n,) for n in range(4)], 2)
    assert time.monotonic() - began < 30


def test_one_that_is_killed_is_told() -> None:
    with pytest.raises(DataError, match=r"killed by signal 9.*--resume"):
        side_by_side(die, [(0,)], 1)


@pytest.mark.parametrize("wait", [wait_for_a_signal, wait_without_heeding])
def test_a_signal_reaches_all(tmp_path: Path, wait: Callable[[Path], None]) -> None:
    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Interrupted) as stopped:
        side_by_side(wait, [(tmp_path,)] * 3, 2)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(list(tmp_path.iterdir())) == 2  # the third was not begun
