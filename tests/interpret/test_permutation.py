"""Permutation and deletion against samples that are made by hand, one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from aam.interpret.deletion import deletion_curve
from aam.interpret.permutation import permutation
from aam.interpret.samples import Samples, Variant
from tests.conftest import TinyStudy
from tests.interpret.tiny import explained_of, samples_of


def dense(samples: Samples) -> np.ndarray:
    return samples.matrix(samples.rows.counts).toarray()


def variant(row: np.ndarray) -> Variant:
    asvs = np.flatnonzero(row)
    return Variant(0, asvs, row[asvs], float(row.sum()))


@pytest.mark.parametrize("by_taxon", [False, True])
def test_against_a_dense_table(unequal_study: TinyStudy, by_taxon: bool) -> None:
    """Columns of relative abundances are permuted in a whole table, and all of it is predicted again."""
    explained, samples = explained_of(unequal_study, 2), samples_of(unequal_study)
    units = np.arange(samples.asvs) // (3 if by_taxon else 1)
    truth = np.array([0.1, np.nan, -0.3, 0.2, 0.5])
    found = permutation(explained, samples, units, repeats=2, seed=7, truth=truth)
    table, depth = dense(samples), samples.depth[:, None]
    before = np.array([explained.values([variant(row)])[0] for row in table])
    change, error = np.zeros((2, len(samples), units.max() + 1))
    together = np.zeros(units.max() + 1)
    for unit in range(units.max() + 1):
        for repeat in range(2):
            donor = np.random.default_rng([7, unit, repeat]).permutation(len(samples))
            mixed, own = table.copy(), units == unit
            mixed[:, own] = (table / depth)[donor][:, own] * depth
            for sample, row in enumerate(mixed):
                if not row.any():
                    continue
                after = explained.values([variant(row)])[0]
                change[sample, unit] += abs(after - before[sample]) / 2
                more = abs(after - truth[sample]) - abs(before[sample] - truth[sample])
                error[sample, unit] += np.nan_to_num(more) / 2
                gained = (row[own].sum() - table[sample, own].sum()) / depth[sample, 0]
                together[unit] += np.sign(gained) * (after - before[sample])
    np.testing.assert_allclose(found.change.toarray(), change, atol=1e-5)
    assert found.error is not None
    np.testing.assert_allclose(found.error.toarray(), error, atol=1e-5)
    clear = np.abs(together) > 1e-4
    np.testing.assert_array_equal(found.direction[clear], np.sign(together)[clear])
    assert clear.any() and change.max() > 1e-3


def test_deletion_against_tables_without_them(unequal_study: TinyStudy) -> None:
    explained, samples = explained_of(unequal_study), samples_of(unequal_study)
    ranking = np.random.default_rng(0).random(len(samples.rows.asvs))
    found = deletion_curve(explained, samples, ranking, (1, 3, 100))
    before = explained.values(samples)
    for number, curve in zip((1, 3, 100), found, strict=True):
        moved = []
        for sample, row in enumerate(dense(samples)):
            part = slice(*samples.rows.indptr[sample : sample + 2])
            first = samples.rows.asvs[part][np.argsort(-ranking[part])]
            row[first[: min(number, len(first) - 1)]] = 0
            moved.append(abs(explained.values([variant(row)])[0] - before[sample]))
        assert curve == pytest.approx(np.mean(moved), abs=1e-5)
