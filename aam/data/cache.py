"""What was computed from files, kept for the next run on the same files.

An entry is a file named by a digest of all that it depends on, so that it can be out of use but never out of date.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aam.errors import DataError

__all__ = ["SUFFIX", "Cache"]

logger = logging.getLogger("aam")

SUFFIX = ".aamcache"


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class Cache:
    """A directory of computed files, the least recently used of which go when it grows too large.

    Several processes may use one at a time: entries are written beside and moved to their place whole.

    Parameters
    ----------
    directory : Path
        Made where it is missing. Files in it that are no entries are left alone.
    size : float
        Largest size in GB.

    Raises
    ------
    DataError
        If the directory cannot be written.
    """

    def __init__(self, directory: Path, size: float = 10.0) -> None:
        self.directory = directory
        self.bytes = int(size * 1e9)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            writable = os.access(directory, os.W_OK)
        except OSError as error:
            raise DataError(f"{directory}: cannot serve as --cache-dir ({error.strerror}); give another") from None
        if not writable:
            raise DataError(f"{directory}: may not be written to; give another --cache-dir")

    def file(self, kind: str, key: bytes, make: Callable[[Path], None]) -> Path:
        """The entry of a key, made if there is none.

        Parameters
        ----------
        kind : str
            What it is, for the log and the name: ``tokens``.
        key : bytes
            All that it depends on; a digest of it names the entry.
        make : callable
            Writes the entry to the path that it is given.
        """
        path = self.directory / f"{kind}-{hashlib.sha256(kind.encode() + bytes(1) + key).hexdigest()}{SUFFIX}"
        if path.is_file():
            path.touch()  # used last now
            logger.info("reused from %s: %s", self.directory, kind)
            return path
        handle, name = tempfile.mkstemp(dir=self.directory, prefix=f"{kind}-", suffix=".tmp")
        os.close(handle)
        unfinished = Path(name)
        try:
            make(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        self.shrink(path)
        return path

    def array_file(self, kind: str, key: bytes, make: Callable[[Path], None]) -> NDArray[Any]:
        """The array in the .npy file of a key, memory-mapped; see `file`."""
        path = self.file(kind, key, make)
        try:
            return _mapped(path)
        except (OSError, ValueError, EOFError):  # an entry that a full disk or somebody's hand has damaged
            path.unlink(missing_ok=True)
            return _mapped(self.file(kind, key, make))

    def array(self, kind: str, key: bytes, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """An array of a key, memory-mapped; see `file`."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, make(), allow_pickle=False)

        return self.array_file(kind, key, write)

    def shrink(self, kept: Path | None = None) -> None:
        """Remove what was used longest ago until the rest fits; an entry just made stays."""
        entries = []
        for path in self.directory.glob(f"*{SUFFIX}"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.bytes:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                total -= size
