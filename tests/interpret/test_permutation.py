"""Permutation and deletion against samples that are made by hand, one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from aam.data.counts import SampleRows
from aam.interpret.deletion import deletion_curve
from aam.interpret.permutation import _exchanged, permutation
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
    table = dense(samples)
    shares = table / samples.depth[:, None]
    before = np.array([explained.values([variant(row)])[0] for row in table])
    change, error = np.zeros((2, len(samples), units.max() + 1))
    together = np.zeros(units.max() + 1)
    for unit in range(units.max() + 1):
        for repeat in range(2):
            donor = np.random.default_rng([7, unit, repeat]).permutation(len(samples))
            own = units == unit
            for sample in range(len(samples)):
                row = with_share_of(shares[sample], shares[donor[sample]], own)
                if row is None:
                    continue
                after = explained.values([variant(row)])[0]
                change[sample, unit] += abs(after - before[sample]) / 2
                more = abs(after - truth[sample]) - abs(before[sample] - truth[sample])
                error[sample, unit] += np.nan_to_num(more) / 2
                gained = row[own].sum() - shares[sample, own].sum()
                together[unit] += np.sign(gained) * (after - before[sample])
    np.testing.assert_allclose(found.change.toarray(), change, atol=1e-5)
    assert found.error is not None
    np.testing.assert_allclose(found.error.toarray(), error, atol=1e-5)
    clear = np.abs(together) > 1e-4
    np.testing.assert_array_equal(found.direction[clear], np.sign(together)[clear])
    assert clear.any() and change.max() > 1e-3


def with_share_of(taker: np.ndarray, donor: np.ndarray, own: np.ndarray) -> np.ndarray | None:
    """A composition that has of some ASVs as much as another, the rest in the proportions that it had."""
    rest = np.where(own, 0, taker)
    if not rest.any():  # they are all it has: the other's stand for them, whatever their share
        return donor * own / donor[own].sum() if donor[own].any() else None
    row = rest * (1 - donor[own].sum()) / rest.sum()
    row[np.abs(row) < 1e-12] = 0
    row[own] = donor[own]
    return row


@pytest.mark.parametrize("dtype", [int, float])
def test_a_dominant_unit_has_the_share_that_it_had_elsewhere(dtype: type) -> None:
    """All compositions, among them those that are one unit's whole, and reads of ASVs that no model reads."""
    table = np.array([[90, 5, 5, 0], [10, 30, 30, 0], [0, 70, 0, 0], [0, 0, 60, 40], [20, 80, 0, 0], [0, 0, 0, 9]])
    table = table * (1 if dtype is int else 1 / 3)
    unread = np.array([0, 30, 0, 0, 0, 1]) * (1 if dtype is int else 1 / 3)
    entries = np.nonzero(table)
    rows = SampleRows(np.concatenate([[0], np.cumsum((table > 0).sum(axis=1))]), entries[1], table[entries])
    samples = Samples(rows, table.sum(axis=1) + unread, 4)
    units = np.array([0, 1, 0, 2])
    shares = table / samples.depth[:, None]
    seen = 0
    for found, unit, change in _exchanged(samples, units, 20, 3):
        row = np.zeros(4)
        row[found.asvs] = found.counts / found.depth
        own = units == unit
        assert (found.counts > 0).all()
        assert row.sum() <= 1 + 1e-9
        taker = shares[found.origin]
        if taker[own].sum() > 1 - 1e-9:
            assert row[own].sum() == pytest.approx(1)
            continue
        assert change == pytest.approx(row[own].sum() - taker[own].sum())
        donors = [
            donor
            for donor in shares
            if np.allclose(row[own], donor[own])
            and np.allclose(row[~own], taker[~own] * (1 - donor[own].sum()) / (1 - taker[own].sum()))
        ]
        assert donors
        seen += 1
    assert seen > 100


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
