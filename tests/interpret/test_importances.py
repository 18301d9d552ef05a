"""Means over the samples, and intervals from resampling them."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from aam.evaluation.intervals import resampled_intervals
from aam.interpret.importances import importances, summed

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(40, 6)) * (RNG.random((40, 6)) < 0.4)
GROUPS = np.array([f"g{i % 8}" for i in range(40)], dtype=object)


def test_means_and_intervals() -> None:
    """Against the percentile intervals of `aam evaluate`, which draw each resample by itself."""
    for groups in (None, GROUPS):
        found = importances(sparse.csr_array(VALUES), groups=groups, draws=4000)
        np.testing.assert_allclose(found.importance, np.abs(VALUES).mean(axis=0))
        np.testing.assert_array_equal(found.direction, np.sign(VALUES.sum(axis=0)))

        def means(rows: np.ndarray) -> dict[str, float]:
            return {str(column): np.abs(VALUES[rows, column]).mean() for column in range(6)}

        reference = resampled_intervals(means, 40, groups, draws=4000)
        for column in range(6):
            low, high = reference[str(column)]
            width = high - low
            assert abs(found.low[column] - low) < 0.1 * width and abs(found.high[column] - high) < 0.1 * width


def test_one_group_has_no_interval() -> None:
    found = importances(sparse.csr_array(VALUES), groups=np.full(40, "a"))
    assert np.isnan(found.low).all() and np.isnan(found.high).all() and (found.importance > 0).all()


def test_taxa_are_sums() -> None:
    units = np.array([0, 1, 0, 2, 1, 0])
    found = summed(sparse.csr_array(VALUES), units).toarray()
    expected = np.stack([VALUES[:, units == unit].sum(axis=1) for unit in range(3)], axis=1)
    np.testing.assert_allclose(found, expected)
