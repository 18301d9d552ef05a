"""Seconds that a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["seconds_of"]


def seconds_of(work: Callable[..., Any], *arguments: Any) -> float:
    """Call ``work`` once and time it by the wall clock."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began
