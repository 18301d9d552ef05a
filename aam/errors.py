"""The one exception that means "the user's input is wrong", so that commands can print it as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DataError", "in_file"]


class DataError(ValueError):
    """Bad input: the message names the file, the offending value and the way out.

    Commands print it without a traceback and exit with code 1. Anything else that is raised is a bug.
    """


@contextmanager
def in_file(path: Path | None) -> Iterator[None]:
    """Put the name of a file before whatever is wrong with what was read from it."""
    try:
        yield
    except DataError as error:
        raise error if path is None else DataError(f"{path}: {error}") from None
