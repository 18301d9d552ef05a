"""The one exception that means "the user's input is wrong", so that commands can print it as one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DataError", "in_file", "named"]


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
