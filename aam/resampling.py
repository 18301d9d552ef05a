"""Groups of samples, and draws of them.

Shapes: ``n`` samples, ``G`` groups, ``b`` draws of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_sizes", "drawn_groups", "members_of"]

_BLOCK = 2**22  # groups that are drawn at once, of all draws together


def members_of(groups: NDArray[Any] | None, number: int) -> list[NDArray[np.int64]]:
    """The rows of each group; each sample by itself without groups."""
    if groups is None:
        return [np.array([row]) for row in range(number)]
    _, place = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    order = np.argsort(place, kind="stable")
    return np.split(order, np.cumsum(np.bincount(place))[:-1])


def drawn_groups(number: int, draws: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """As many groups as there are, drawn with replacement: blocks of draws (b, G) that memory holds."""
    rng = np.random.default_rng(seed)
    for block in block_sizes(draws, number):
        yield rng.integers(0, number, (block, number))


def block_sizes(draws: int, number: int) -> Iterator[int]:
    """The sizes of blocks of draws of so many groups."""
    most = max(1, _BLOCK // number)
    yield from (min(most, draws - start) for start in range(0, draws, most))
