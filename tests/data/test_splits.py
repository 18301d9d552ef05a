from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.metadata import load_metadata
from aam.data.splits import make_splits, read_splits, write_splits
from aam.errors import DataError
from tests.real_data import real_data

FAST = settings(max_examples=30, derandomize=True, deadline=None)
IDS = [f"s{i}" for i in range(60)]
GROUPS = np.array([f"g{i % 12}" for i in range(60)], dtype=object)
CLASSES = np.array(["x" if i % 3 else "y" for i in range(60)], dtype=object)
NUMBERS = np.arange(60.0) ** 2


def sizes(split: np.ndarray) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(*np.unique(split, return_counts=True), strict=True)}


@FAST
@given(
    st.permutations(range(60)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, GROUPS]),
    st.sampled_from([None, CLASSES, NUMBERS]),
    st.sampled_from([0.0, 0.2]),
)
def test_order_does_not_matter_and_groups_stay_whole(order, seed, groups, labels, test_size):
    def split(order):
        ids = [IDS[i] for i in order]
        result = make_splits(
            ids,
            groups=None if groups is None else groups[order],
            labels=None if labels is None else labels[order],
            val_size=0.2,
            test_size=test_size,
            seed=seed,
        )
        return dict(zip(ids, result, strict=True))

    first = split(np.arange(60))
    assert split(np.array(order)) == first
    assert set(first.values()) == {"train", "val"} | ({"test"} if test_size else set())
    if groups is not None:
        assert len({(group, first[name]) for group, name in zip(groups, IDS, strict=True)}) == 12


def test_sizes_and_seed():
    first = make_splits(IDS, val_size=0.2, test_size=0.1, seed=0)
    assert sizes(first) == {"test": 6, "train": 42, "val": 12}
    assert (first != make_splits(IDS, val_size=0.2, test_size=0.1, seed=1)).any()
    assert sizes(make_splits(IDS, val_size=0.2, test_size=0, seed=0)) == {"train": 48, "val": 12}
    assert sizes(make_splits(IDS, groups=GROUPS, val_size=0.25, test_size=0.25, seed=0)) == {
        "test": 15,
        "train": 30,
        "val": 15,
    }
    assert sizes(make_splits(IDS[:3], val_size=0.01, test_size=0.01, seed=0)) == {"test": 1, "train": 1, "val": 1}


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_stratified(groups):
    for labels in (CLASSES, NUMBERS):
        split = make_splits(IDS, groups=groups, labels=labels, val_size=0.25, test_size=0.25, seed=3)
        high = labels == "y" if labels is CLASSES else labels > np.quantile(labels, 2 / 3)
        for name in ("train", "val", "test"):
            assert abs(high[split == name].mean() - 1 / 3) < 0.1


def test_most_groups_held_out():
    split = make_splits(IDS, groups=GROUPS, labels=CLASSES, val_size=0.75, test_size=0, seed=0)
    assert sizes(split) == {"train": 15, "val": 45}


@FAST
@given(st.lists(st.floats(-5, 5) | st.just(0.0), min_size=6, max_size=30), st.integers(0, 1000))
def test_any_numbers_can_be_stratified(values, seed):
    ids = [str(i) for i in range(len(values))]
    split = make_splits(ids, labels=np.array(values), val_size=0.2, test_size=0.2, seed=seed)
    assert set(split) == {"train", "val", "test"}


def test_group_errors():
    groups = GROUPS.copy()
    groups[5:7] = np.nan
    with pytest.raises(DataError, match="'subject' is missing for 2 of 60 samples, first 's5'"):
        make_splits(IDS, groups=groups, val_size=0.2, test_size=0.2, seed=0, group_name="subject")
    with pytest.raises(DataError, match=r"'subject' has 2 group\(s\) for 3 splits"):
        make_splits(IDS, groups=np.array(["a", "b"] * 30), val_size=0.2, test_size=0.2, seed=0, group_name="subject")


def test_label_errors():
    labels = CLASSES.copy()
    labels[0] = "rare"
    with pytest.raises(DataError, match="class 'rare' has one sample"):
        make_splits(IDS, labels=labels, val_size=0.2, test_size=0.2, seed=0)
    with pytest.raises(DataError, match="cannot hold out 1 of 60 samples with every class"):
        make_splits(IDS, labels=CLASSES, val_size=0.01, test_size=0, seed=0)
    with pytest.raises(DataError, match=r"1 label\(s\) are missing, first 's3'"):
        make_splits(IDS, labels=np.where(np.arange(60) == 3, np.nan, 1.0), val_size=0.2, test_size=0, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0, 0.2), (1, 0), (0.5, 0.5), (0.2, -0.1), (float("nan"), 0)])
def test_size_errors(val, test):
    with pytest.raises(DataError, match="--val-size"):
        make_splits(IDS, val_size=val, test_size=test, seed=0)


def test_too_few_samples():
    with pytest.raises(DataError, match=r"2 sample\(s\) cannot be divided into 3"):
        make_splits(IDS[:2], val_size=0.2, test_size=0.2, seed=0)
    with pytest.raises(DataError):
        make_splits(IDS[:4], val_size=0.45, test_size=0.45, seed=0)


def test_file_round_trip(tmp_path):
    split = make_splits(IDS, val_size=0.2, test_size=0.2, seed=0)
    path = tmp_path / "splits.tsv"
    write_splits(path, IDS, split)
    assert path.read_text().startswith("sample_id\tsplit\ns0\t")
    assert read_splits(path) == dict(zip(IDS, split, strict=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sample\tsplit\na\ttrain\n", "columns must be"),
        ("sample_id\tsplit\na\tother\n", "'a other' names no split"),
        ("sample_id\tsplit\na\n", "names no split"),
        ("sample_id\tsplit\na\ttrain\na\tval\n", "duplicate sample ID"),
    ],
)
def test_file_errors(tmp_path, content, words):
    path = tmp_path / "splits.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_splits(path)


@pytest.mark.parametrize("stratify", [False, True])
def test_real_groups(stratify):
    frame = load_metadata(real_data("ecam_infant_age/metadata.tsv"))
    groups = frame["host_subject_id"].to_numpy()
    ages = frame["month_of_life"].to_numpy(float) if stratify else None
    split = make_splits(list(frame.index), groups=groups, labels=ages, val_size=0.2, test_size=0.2, seed=0)
    assert all(count > 100 for count in sizes(split).values())
    assert len(set(zip(groups, split, strict=True))) == len(set(groups))
