"""Distances to the nearest of some points.

Shapes: ``n`` points, ``m`` others, ``D`` axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest"]

_BLOCK = 1024


def nearest(
    points: NDArray[np.floating],
    others: NDArray[np.floating],
    apart: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> NDArray[np.float64]:
    """Euclidean distance from each point to the nearest of the others.

    Parameters
    ----------
    points : ndarray (n, D)
    others : ndarray (m, D)
    apart : tuple of ndarray (n,) and ndarray (m,), optional
        Groups of both; one of a point's own group does not count.

    Returns
    -------
    ndarray (n,)
        Infinite where there is no other.
    """
    others = others.astype(np.float64)
    found = np.full(len(points), np.inf)
    if not len(others):
        return found
    lengths = (others**2).sum(axis=1)
    for start in range(0, len(points), _BLOCK):
        some = points[start : start + _BLOCK].astype(np.float64)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab, in double precision, so that little of a small difference is lost.
        squares = np.maximum((some**2).sum(axis=1)[:, None] + lengths - 2 * some @ others.T, 0)  # (block, m)
        if apart is not None:
            squares[apart[0][start : start + _BLOCK, None] == apart[1]] = np.inf
        found[start : start + _BLOCK] = np.sqrt(squares.min(axis=1))
    return found
