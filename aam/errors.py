"""The exceptions that commands print as one line: input that is wrong, and a run that was asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DataError", "Interrupted", "in_file", "is_out_of_memory", "named"]


class DataError(ValueError):
    """Bad input: the message names the file, the offending value and the way out.

    Commands print it without a traceback and exit with code 1. Anything else that is raised is a bug.
    """


@contextmanager
def in_file(path: Path | Sequence[Path] | None) -> Iterator[None]:
    """Put the name of a file, or of several, before whatever is wrong with what was read from it."""
    if not path:
        yield
        return
    try:
        yield
    except DataError as error:
        raise DataError(f"{named(path)}: {error}") from None


def named(path: Path | Sequence[Path]) -> str:
    """What to call a file, or several that are one input, in a message."""
    return str(path) if isinstance(path, Path) else ", ".join(map(str, path))


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory is full. PyTorch says so by type of a GPU's, in words of the machine's."""
    told = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in told
        or "not enough memory" in told  # on Windows
    )


class Interrupted(Exception):
    """A run that a signal asked to stop, and that can be resumed.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number
