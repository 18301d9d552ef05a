"""From what is found in each sample to importances of a study, with intervals.

Shapes: ``n`` samples, ``T`` units (ASVs or taxa), ``G`` groups of samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Importances", "importances", "summed"]

_UNITS_AT_A_TIME = 2048


class Importances(NamedTuple):
    """Of every unit."""

    importance: NDArray[np.float64]  # (T,): mean over the samples of its size
    low: NDArray[np.float64]  # (T,): of the 95% interval from resampling
    high: NDArray[np.float64]
    direction: NDArray[np.float64]  # (T,): the sign of what it does on the whole; 0 where that is not known


def importances(
    by_sample: sparse.csr_array,
    direction: NDArray[np.float64] | None = None,
    groups: NDArray[Any] | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Importances:
    """Mean absolute values, with percentile intervals (Efron 1979) from resampling samples or whole groups of them.

    Parameters
    ----------
    by_sample : csr_array (n, T)
        0 where a sample lacks a unit.
    direction : ndarray (T,), optional
        By default the sign of the sum.
    groups : ndarray (n,), optional
        Samples of one group are no independent evidence, and are drawn together.
    draws : int
    level : float
    seed : int
    """
    number, units = by_sample.shape
    place = np.arange(number)
    if groups is not None:
        place = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    of_group = sparse.csr_array((np.ones(number), (place, np.arange(number))), shape=(int(place.max()) + 1, number))
    sums = (of_group @ abs(by_sample)).tocsc()  # (G, T)
    sizes = np.bincount(place)  # (G,)
    total = np.asarray(sums.sum(axis=0)).ravel() / number
    low, high = np.full((2, units), np.nan)
    if len(sizes) > 1:
        rng = np.random.default_rng(seed)
        times = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)  # (draws, G)
        weights = times / (times @ sizes)[:, None]
        tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
        for start in range(0, units, _UNITS_AT_A_TIME):
            some = slice(start, start + _UNITS_AT_A_TIME)
            low[some], high[some] = np.percentile(weights @ sums[:, some].toarray(), tails, axis=0)
    if direction is None:
        direction = np.sign(np.asarray(by_sample.sum(axis=0)).ravel())
    return Importances(total, low, high, direction)


def summed(by_sample: sparse.csr_array, units: NDArray[np.int64]) -> sparse.csr_array:
    """Values (n, A) added up within units, the unit of each ASV in (A,), to (n, T)."""
    columns = (np.ones(len(units)), (np.arange(len(units)), units))
    return (by_sample @ sparse.csr_array(columns, shape=(len(units), int(units.max()) + 1))).tocsr()
