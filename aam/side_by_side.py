"""Several runs at the same time, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from aam.errors import DataError, Interrupted

__all__ = ["side_by_side"]

logger = logging.getLogger("aam")

Result = TypeVar("Result")
_HEEDED = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1


class _Child(NamedTuple):
    place: int
    process: BaseProcess
    answers: Connection


def side_by_side(
    run: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    number: int,
    ended: Callable[[int, Result], None] = lambda place, result: None,
    ready: Callable[[int], bool] = lambda place: True,
) -> list[Result]:
    """Call ``run(*job)`` for every job, ``number`` of them at a time, each in a fresh process.

    A signal to stop is passed on to all of them, and they end as they would alone.

    Parameters
    ----------
    run : callable
        What can be imported, for a fresh process does so; it may raise `DataError` or `Interrupted`.
    jobs : sequence of tuple
        Arguments that can be pickled.
    number : int
    ended : callable
        Told the place of each job that is done, with its result.
    ready : callable
        Whether the job of a place can begin; asked again every second. Where no other runs, it begins all the same.

    Returns
    -------
    list
        Results in the order of the jobs.

    Raises
    ------
    DataError
        The first that a job raised, once those beside it have been stopped; also if a process is killed.
    Interrupted
        If a signal asked to stop.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA's state and the threads of BLAS
    waiting = list(range(len(jobs)))
    results: dict[int, Result] = {}
    children: list[_Child] = []
    failure: DataError | None = None
    with _signals_to(children) as stopped_by:
        while children or (waiting and failure is None and not stopped_by):
            while waiting and len(children) < number and failure is None and not stopped_by:
                place = next(filter(ready, waiting), None)
                if place is None:
                    if children:
                        break
                    place = waiting[0]  # what it waits for will not come: it says itself what it lacks
                waiting.remove(place)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(there, run, jobs[place]))
                process.start()
                there.close()
                children.append(_Child(place, process, here))
            wait([child.answers for child in children], timeout=1)
            for child in [child for child in children if child.answers.poll()]:
                kind, answer = _answer(child)
                children.remove(child)
                if kind == "result":
                    results[child.place] = answer
                    ended(child.place, answer)
                elif kind == "error" and failure is None and not stopped_by:  # else it died of the signal as it began
                    failure = DataError(answer)
                    _stop(children)
    if failure is not None:
        raise failure
    if stopped_by:
        raise Interrupted(stopped_by[0])
    return [results[place] for place in range(len(jobs))]


def _child(answers: Connection, run: Callable[..., Any], job: tuple[Any, ...]) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which passes it on
    logger.addHandler(logging.NullHandler())  # the run has a log of its own
    logger.setLevel(logging.INFO)
    try:
        answers.send(("result", run(*job)))
    except DataError as error:
        answers.send(("error", str(error)))
    except (Interrupted, KeyboardInterrupt):
        answers.send(("interrupted", None))


def _answer(child: _Child) -> tuple[str, Any]:
    try:
        kind, answer = child.answers.recv()
    except EOFError:
        kind, answer = "error", None
    child.process.join()
    child.answers.close()
    if answer is None and kind == "error":
        code = child.process.exitcode or 0
        why = f"killed by signal {-code}, out of memory perhaps" if code < 0 else f"exit code {code}"
        answer = f"its process has ended without a word ({why}); lower --parallel, and continue with --resume"
    return kind, answer


def _stop(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()


@contextmanager
def _signals_to(children: list[_Child]) -> Iterator[list[int]]:
    """Pass signals to stop on to the processes; what has come is in the list."""
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        for child in children:
            if child.process.pid is not None and child.process.is_alive():
                os.kill(child.process.pid, number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets it alone handle signals
        for name in _HEEDED:
            if hasattr(signal, name):
                value = getattr(signal, name)
                before[value] = signal.signal(value, pass_on)
    try:
        yield came
    finally:
        for value, handler in before.items():
            signal.signal(value, handler)
