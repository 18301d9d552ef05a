from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from aam.data.counts import MemoryCounts
from aam.data.leaks import column_leaks, identical_samples, leak_warnings

IDS = ["a", "b", "c", "d", "e", "f"]
SPLIT = np.array(["train", "train", "train", "val", "test", "cal"])
COUNTS = np.array([[1, 0, 2], [0, 3, 0], [1, 0, 2], [1, 0, 2], [0, 0, 3], [0, 3, 0]], dtype=np.float64)
DIFFERENT = np.arange(18.0).reshape(6, 3)


def table(counts: np.ndarray) -> MemoryCounts:
    return MemoryCounts(sparse.csr_array(counts))


def frame(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=IDS, dtype=object)


def test_identical_samples_on_both_sides():
    assert identical_samples(table(COUNTS), SPLIT) == [(3, 0), (5, 1)]
    assert identical_samples(table(DIFFERENT), SPLIT) == []
    # Of one side alone they are no leak.
    assert identical_samples(table(COUNTS), np.array(["train"] * 3 + ["test"] * 3)) == [(3, 0), (5, 1)]
    assert identical_samples(table(COUNTS[[0, 2, 1, 4]]), np.array(["train", "train", "test", "test"])) == []


def test_identical_samples_agree_with_a_plain_comparison():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 2, (60, 4)).astype(np.float64)
    split = rng.choice(["train", "val"], 60)
    expected = []
    for row in np.flatnonzero(split == "val"):
        twins = [i for i in np.flatnonzero(split == "train") if (counts[i] == counts[row]).all()]
        expected += [(row, twins[0])] if twins else []
    assert identical_samples(table(counts), split) == expected
    assert len(expected) > 10


def test_identical_samples_are_reported():
    (warning,) = leak_warnings(IDS, table(COUNTS), SPLIT)
    assert "2 held-out sample(s)" in warning and "'d' those of 'a'" in warning
    assert leak_warnings(IDS, table(DIFFERENT), SPLIT) == []


@pytest.mark.parametrize(
    ("groups", "column", "words"),
    [
        (["1", "1", "2", "3", "4", "5"], "sample", "'host_subject_id'"),
        (["m", "m", "n", "n", "o", "o"], "host_subject_id", "'host_subject_id' are on both sides of the split, as it"),
    ],
)
def test_groups_that_leak(groups, column, words):
    metadata = frame(host_subject_id=["m", "m", "n", "n", "o", "o"], sample=["1", "1", "2", "3", "4", "5"])
    found = leak_warnings(
        IDS,
        table(DIFFERENT),
        SPLIT,
        groups=np.array(groups, dtype=object),
        group_column=column,
        metadata=metadata,
        targets=["age"],
    )
    assert len(found) == 1
    assert words in found[0]


def test_groups_that_do_not():
    metadata = frame(subject=["m", "m", "n", "o", "o", "o"], host_age=["1"] * 6)
    groups = metadata["subject"].to_numpy()
    keywords = {"groups": groups, "group_column": "subject", "metadata": metadata}
    assert leak_warnings(IDS, table(DIFFERENT), SPLIT, **keywords) == []


def test_columns_that_leak():
    metadata = frame(
        subject_id=["m", "m", "n", "n", "o", "o"],
        cage=["1", "1", "1", "2", "2", "NA"],
        patient=["p", "p", "p", "q", "q", "NA"],
        twin=["NA", "x", "x", "NA", "NA", "NA"],
    )
    assert column_leaks(metadata, SPLIT, []) == ["subject_id"]
    assert column_leaks(metadata, SPLIT, ["subject_id", "absent"]) == []
