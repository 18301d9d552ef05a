from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from aam.data.batch import Batch, SampleRows, arrange, padded_layout
from aam.data.dataset import BatchKey, DatasetOptions
from aam.data.tokenizer import PAD, START, detokenize, tokenize
from tests.conftest import TinyStudy

FAST = settings(max_examples=60, derandomize=True, deadline=None)
SEQUENCES = ["A", "AC", "ACG", "CC", "GTAC", "TTTTT"]
COUNTS = arrays(np.int64, st.tuples(st.integers(1, 5), st.just(6)), elements=st.integers(0, 4))


def rows_of(counts: np.ndarray) -> SampleRows:
    table = sparse.csr_array(counts.astype(np.float64))
    table.eliminate_zeros()
    return SampleRows(table.indptr.astype(np.int64), table.indices.astype(np.int64), table.data)


def as_dictionaries(batch: Batch) -> list[dict[str, float]]:
    """Samples as they can be read back from a batch."""
    names = detokenize(batch.tokens.numpy())
    samples = []
    for index, counts in zip(batch.asv_index.tolist(), batch.counts.tolist(), strict=True):
        pairs = [(names[row], count) for row, count in zip(index, counts, strict=True) if count]
        assert len(dict(pairs)) == len(pairs)
        samples.append(dict(pairs))
    return samples


@FAST
@given(COUNTS)
def test_arrange_keeps_every_count(counts):
    counts[counts.sum(axis=1) == 0, 0] = 1
    samples = [
        {name: float(count) for name, count in zip(SEQUENCES, row, strict=True) if count} for row in counts.tolist()
    ]
    rows = rows_of(counts)
    batch, distinct = arrange(rows, rows.depth(), tokenize(SEQUENCES, 9), np.arange(len(counts)) + 100)

    used = sorted({name for sample in samples for name in sample})
    assert as_dictionaries(batch) == samples
    assert [SEQUENCES[a] for a in distinct] == detokenize(batch.tokens.numpy()) == used
    assert batch.asv_index.shape == batch.counts.shape == (len(samples), max(map(len, samples)))
    assert batch.tokens.shape == (len(used), 1 + max(map(len, used)))
    assert batch.tokens.dtype == torch.uint8
    assert batch.padded == (len(set(map(len, used))) > 1) == bool((batch.tokens == PAD).any())
    assert batch.depth.tolist() == [sum(sample.values()) for sample in samples]
    assert batch.sample_index.tolist() == list(range(100, 100 + len(samples)))
    assert (batch.asv_index[batch.counts == 0] == 0).all()
    assert len(batch) == len(samples)


@FAST
@given(COUNTS, st.data())
def test_keep(counts, data):
    rows = rows_of(counts)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows.asvs), max_size=len(rows.asvs))), dtype=bool)
    expected = np.zeros_like(counts)
    for sample, asv, count, keep in zip(rows.samples, rows.asvs, rows.counts, kept, strict=True):
        expected[sample, asv] = count if keep else 0
    found = rows.keep(kept)
    np.testing.assert_array_equal(found.depth(), expected.sum(axis=1))
    dense = sparse.csr_array((found.counts, found.asvs, found.indptr), shape=counts.shape).toarray()
    np.testing.assert_array_equal(dense, expected)


def test_padded_layout_has_a_row_for_every_place(unequal_study: TinyStudy):
    batch = unequal_study.dataset()[BatchKey(0, (0, 3, 1))]
    padded = padded_layout(batch)
    assert padded.tokens.shape == (batch.counts.numel(), batch.tokens.shape[1])
    assert as_dictionaries(padded) == as_dictionaries(batch) == [unequal_study.samples[i] for i in (0, 3, 1)]
    assert torch.equal(padded.counts, batch.counts)
    empty = padded.tokens[(batch.counts == 0).flatten()]
    assert len(empty) and (empty[:, 0] == START).all() and (empty[:, 1:] == PAD).all()
    assert sorted(padded.asv_index.flatten().tolist()) == list(range(batch.counts.numel()))
    assert padded.padded


def test_padded_layout_says_whether_it_is_padded():
    study = TinyStudy([8] * 5, samples=4)
    one = study.dataset()[BatchKey(0, (1,))]
    assert not padded_layout(one).padded
    several = study.dataset()[BatchKey(0, (0, 1, 2, 3))]
    assert not several.padded and padded_layout(several).padded


def test_to_a_device_moves_everything(unequal_study: TinyStudy):
    options = DatasetOptions(nuc_asv_fraction=1.0, count_mask_ratio=0.5)
    batch = unequal_study.dataset(options, labels=unequal_study.base_labels)[BatchKey(0, (0, 1))]
    moved = batch.to(torch.device("meta"))
    values = [*vars(moved).values(), *vars(moved.masked_nucleotides).values(), *moved.labels.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert len(tensors) == 11 and all(tensor.is_meta for tensor in tensors)
    assert moved.padded == batch.padded and moved.target is None
