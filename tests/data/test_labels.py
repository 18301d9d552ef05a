from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from aam.data.counts import MemoryCounts
from aam.data.labels import OTHER, CompositionLabels, PairLabels, Pairs, ValueLabels, taxon_labels

ROWS = np.array([3, 0, 2])


def test_what_a_batch_carries():
    rng = np.random.default_rng(0)
    matrix, values, shares = rng.random((5, 5)), rng.random(5), rng.random((5, 3))
    pairs = PairLabels(matrix)
    assert isinstance(pairs, Pairs) and not isinstance(ValueLabels(values), Pairs)
    for i, a in enumerate(ROWS):
        for j, b in enumerate(ROWS):
            assert pairs.batch(ROWS)[i, j] == matrix[a, b]
        assert pairs.block(ROWS, np.array([4]))[i, 0] == matrix[a, 4]
        assert ValueLabels(values).batch(ROWS)[i] == values[a]
        assert (CompositionLabels(shares, ("a", "b", "c")).batch(ROWS)[i] == shares[a]).all()


@settings(max_examples=40)
@given(st.data())
def test_shares_of_taxa(data):
    taxa = data.draw(st.lists(st.sampled_from(["p", "q", "r", OTHER]), min_size=1, max_size=6))
    counts = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 5), min_size=len(taxa), max_size=len(taxa)), min_size=2, max_size=5))
    )
    counts[:, 0] += 1
    train = np.array(sorted(data.draw(st.sets(st.integers(0, len(counts) - 1), min_size=1))))
    found = taxon_labels(MemoryCounts(sparse.csr_array(counts.astype(float))), taxa, train)

    seen = {taxon for taxon, reads in zip(taxa, counts[train].sum(axis=0), strict=True) if reads} - {OTHER}
    assert found.names == (*sorted(seen), OTHER)
    shares = found.batch(np.arange(len(counts)))
    assert shares.dtype == np.float32
    for row, sample in zip(shares, counts, strict=True):
        reads: Counter[str] = Counter()
        for taxon, count in zip(taxa, sample.tolist(), strict=True):
            reads[taxon if taxon in seen else OTHER] += count
        np.testing.assert_allclose(row, [reads[name] / sample.sum() for name in found.names], rtol=1e-6)
