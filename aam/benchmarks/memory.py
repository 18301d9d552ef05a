"""Memory that a process has for itself, and processes of their own to measure it in."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

__all__ = ["PeakOwnMemory", "fresh_process", "highest_memory", "own_memory", "own_memory_kind", "stoppable"]

_STATUS = Path("/proc/self/status")


def own_memory_kind() -> str:
    """What `own_memory` counts: anonymous pages, or where the system does not tell, pages of no other process."""
    return "RssAnon" if _status("RssAnon") is not None else "USS"


def own_memory() -> int:
    """Bytes that the process holds for itself: what it has of mapped files is left out where the system tells."""
    return _status("RssAnon") or psutil.Process().memory_full_info().uss


def highest_memory() -> int:
    """The most bytes that were ever resident, mapped files included.

    Linux counts ``ru_maxrss`` on from the process that started this one, so its own mark is read there.
    """
    own = _status("VmHWM")
    if own is not None:
        return own
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


class PeakOwnMemory:
    """The highest `own_memory` while a block runs, looked at every 10 ms."""

    def __init__(self) -> None:
        self.highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.highest = max(self.highest, own_memory())

    def __enter__(self) -> PeakOwnMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, own_memory())


@contextmanager
def fresh_process() -> Iterator[Callable[..., Any]]:
    """A new Python process that calls functions, one after the other: ``call(function, *arguments)``."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(1, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        yield lambda function, *arguments: executor.submit(function, *arguments).result()
    except BaseException:
        for process in list((executor._processes or {}).values()):  # it need not finish what nobody waits for
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM, as Ctrl-C does, unwind the stack, so that what is temporary is removed.

    Python drops an exception that a signal raises within a destructor or the callback of a weak reference, of which
    h5py has one for every object it lets go of. Where it does, the exception is raised again just after.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    dropped: list[BaseException] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def on_drop(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, SystemExit | KeyboardInterrupt):
            dropped.append(lost.exc_value)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(lost)

    def on_alarm(number: int, _: FrameType | None) -> None:
        raise dropped.pop()

    hook, before = sys.unraisablehook, {signal.SIGTERM: signal.signal(signal.SIGTERM, on_signal)}
    if hasattr(signal, "setitimer"):  # not on Windows
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, on_alarm)
        sys.unraisablehook = on_drop
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
