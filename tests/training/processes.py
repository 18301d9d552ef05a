"""Functions run in several processes that are joined as those of torchrun are."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from aam.config import TrainConfig
from aam.launch import says_why
from aam.training.distributed import Processes, start

# Processes are forked from one that has imported these modules and begun nothing.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch._dynamo", "tests.training.tiny", "tests.end_to_end.program", "aam.run", __name__]
)


def together(function: Callable[..., Any], number: int, strategy: str, *arguments: Any) -> list[Any]:
    """What ``function(processes, *arguments)`` gives in each of so many processes; the first error is raised here."""
    return side_by_side(_started, number, function, strategy, arguments)


def side_by_side(function: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` gives in each of so many processes that find each other as torchrun lets them.

    They are started once more where one of them died without a word, of which others may say that a connection was
    reset: in some thousands of starts Gloo, PyTorch's transport, has died twice, of a segmentation fault and of memory
    that was freed twice. What kills them each time still fails.
    """
    errors: list[BaseException] = []
    for _ in range(2):
        results, errors = _side_by_side(function, number, *arguments)
        if not errors:
            return results
        if not any(isinstance(error, BrokenProcessPool) for error in errors):
            break
    raise min(errors, key=lambda error: isinstance(error, BrokenProcessPool))


def _side_by_side(function: Callable[..., Any], number: int, *arguments: Any) -> tuple[list[Any], list[BaseException]]:
    """What each gave, or else the errors of those that gave nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(number, _CONTEXT) as pool:
        futures = [pool.submit(_one, rank, number, port, function, arguments) for rank in range(number)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    return [] if errors else [future.result() for future in futures], errors


def _one(rank: int, number: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    os.environ |= {
        name: str(value) for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()
    }
    torch.set_num_threads(1)
    return function(*arguments)


def _started(function: Callable[..., Any], strategy: Any, arguments: tuple[Any, ...]) -> Any:
    try:
        processes: Processes = start(TrainConfig(output_dir=Path("run"), strategy=strategy), torch.device("cpu"))
        return function(processes, *arguments)
    except BaseException:
        says_why()
        raise
