from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from aam.data.counts import JoinedCounts, MemoryCounts, SampleRows, TablePart, in_blocks, present_asvs


def dense(rows: SampleRows, asvs: int) -> NDArray[np.float64]:
    found = np.zeros((len(rows.indptr) - 1, asvs))
    for sample in range(len(found)):
        span = slice(rows.indptr[sample], rows.indptr[sample + 1])
        assert np.all(np.diff(rows.asvs[span]) > 0)  # in rising order, none twice
        assert np.all(rows.counts[span] > 0)
        found[sample, rows.asvs[span]] = rows.counts[span]
    return found


def random_table(rng: np.random.Generator, samples: int, features: int) -> NDArray[np.float64]:
    return rng.integers(1, 9, (samples, features)) * (rng.random((samples, features)) < 0.5).astype(float)


def test_a_table_in_memory():
    table = random_table(np.random.default_rng(0), 6, 5)
    counts = MemoryCounts(sparse.csr_array(table))
    asked = np.array([4, 0, 4])
    np.testing.assert_array_equal(dense(counts.rows(asked), 5), table[asked])
    assert counts.shape == (6, 5)
    np.testing.assert_array_equal(present_asvs(counts, asked), (table[asked] > 0).any(axis=0))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_joined_tables_are_the_sums_that_a_loop_finds(seed):
    rng = np.random.default_rng(seed)
    samples, asvs = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    expected = np.zeros((samples, asvs))
    parts = []
    for number in range(int(rng.integers(1, 4))):
        table = random_table(rng, samples + 2, int(rng.integers(1, 6)))
        row = rng.permutation(samples + 2)[:samples]  # of each sample in this table
        if number:
            row = np.where(rng.random(samples) < 0.4, -1, row)
        column = rng.integers(-1, asvs, table.shape[1])
        for sample in range(samples):
            for feature in range(table.shape[1]):
                if row[sample] >= 0 and column[feature] >= 0:
                    expected[sample, column[feature]] += table[row[sample], feature]
        parts.append(TablePart(MemoryCounts(sparse.csr_array(table)), row, column))
    counts = JoinedCounts(parts, (samples, asvs))
    asked = rng.integers(0, samples, 5)
    np.testing.assert_array_equal(dense(counts.rows(asked), asvs), expected[asked])
    whole = counts.in_memory().matrix
    np.testing.assert_array_equal(whole.toarray(), expected)
    assert whole.has_canonical_format and (whole.data > 0).all()


def test_blocks_cover_every_sample_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aam.data.counts._FIRST_BLOCK", 3)
    monkeypatch.setattr("aam.data.counts._ENTRIES_OF_A_BLOCK", 7)
    table = random_table(np.random.default_rng(1), 8, 4)
    blocks = list(in_blocks(MemoryCounts(sparse.csr_array(table)), np.arange(8)))
    sizes = [len(rows.indptr) - 1 for rows in blocks]
    assert sizes[0] == 3 and sum(sizes) == 8
    for before, rows in pairwise(blocks):  # as many samples as would have filled the last block
        assert len(rows.indptr) - 1 <= max(1, 7 // max(1, len(before.asvs) // (len(before.indptr) - 1)))
    np.testing.assert_array_equal(np.concatenate([dense(rows, 4) for rows in blocks]), table)
