"""How this process was started, alone or by torchrun as one of several, and how it ends. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from aam.errors import DataError

__all__ = ["Launch", "connect", "leave", "quieten", "says_why"]


class Launch(NamedTuple):
    """The place of this process among those that train together."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # on its machine
    local_processes: int = 1
    by_torchrun: bool = False

    @classmethod
    def of_environment(cls) -> Launch:
        """What torchrun says; alone where it says nothing.

        Raises
        ------
        DataError
            If what stands in the environment is no such thing.
        """
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        rank, processes = _number("RANK"), _number("WORLD_SIZE")
        local_rank = _number("LOCAL_RANK") if "LOCAL_RANK" in os.environ else rank
        local_processes = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else processes
        if rank >= processes:
            raise DataError(f"RANK {rank} is not below WORLD_SIZE {processes}; start the processes with torchrun")
        return cls(rank, processes, local_rank, max(1, local_processes), True)


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{name} {text!r} in the environment is no number; start the processes with torchrun")
    return int(text)


def quieten() -> None:
    """Keep what PyTorch remarks on its own working, once for each process, off the screen. Called before it loads."""
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


# What aam.training.distributed knows, and this module may not import.
_first_to: Callable[[str], bool] | None = None


def connect(first_to: Callable[[str], bool]) -> None:
    """Tell how the processes find out which of them comes first to an event."""
    global _first_to
    _first_to = first_to


def says_why(event: str = "failed") -> bool:
    """Whether this process, of those that end, is the one that says why: the first to come to it.

    Parameters
    ----------
    event : str
        ``failed`` ends the others too, wherever they are.
    """
    if _first_to is not None:
        return _first_to(event)
    try:
        launch = Launch.of_environment()
    except DataError:
        return True
    if launch.processes == 1:
        return True
    # Nothing connects them yet, and all of them fail alike. Who ends first has torchrun end the others.
    if launch.rank > 0:
        time.sleep(10)
    return launch.rank == 0


def leave(code: int) -> NoReturn:
    """End this process; one of several at once, lest it wait for the others."""
    if _first_to is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
