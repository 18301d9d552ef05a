from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from aam.data.cache import Cache
from aam.errors import DataError


def entries(cache: Cache) -> list[str]:
    return sorted(path.name.split("-")[0] for path in cache.directory.iterdir())


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def test_an_entry_is_made_once_for_each_key(
    tmp_path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    cache = Cache(tmp_path / "cache")
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(5) + len(made)

    logger, listener = logging.getLogger("aam"), Listener()
    monkeypatch.setattr(logger, "handlers", [listener])
    caplog.set_level(logging.INFO, logger="aam")
    first = cache.array("tokens", b"a", make)
    assert not listener.said
    again = Cache(tmp_path / "cache").array("tokens", b"a", make)
    assert made == [1] and np.array_equal(first, again) and isinstance(again, np.memmap)
    assert len(listener.said) == 1 and "reused" in listener.said[0] and "tokens" in listener.said[0]
    cache.array("tokens", b"b", make)
    cache.array("others", b"a", make)
    assert len(made) == 3


def test_the_least_recently_used_goes_first(tmp_path):
    (tmp_path / "mine.txt").write_text("stays")
    cache = Cache(tmp_path, size=2.5e-6)  # 2,500 bytes: two entries of about 1,100

    def use(kind: str, now: int) -> None:
        path = cache.file(kind, b"", lambda path: path.write_bytes(bytes(1100)) and None)
        os.utime(path, (now, now))

    use("a", 1)
    use("b", 2)
    use("a", 3)
    use("c", 4)
    assert entries(cache) == ["a", "c", "mine.txt"]


def test_an_entry_larger_than_the_cache_serves_all_the_same(tmp_path):
    cache = Cache(tmp_path, size=1e-9)
    assert len(cache.array("tokens", b"", lambda: np.zeros(100))) == 100


def test_what_cannot_be_made_leaves_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        Cache(tmp_path).file("tokens", b"", fail)
    assert not list(tmp_path.iterdir())


def test_a_damaged_entry_is_made_again(tmp_path):
    cache = Cache(tmp_path)
    cache.array("tokens", b"", lambda: np.arange(9))
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"\x93NUMPY nonsense")
    np.testing.assert_array_equal(cache.array("tokens", b"", lambda: np.arange(9)), np.arange(9))


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache-dir"):
        Cache(tmp_path / "file")
