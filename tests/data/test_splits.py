from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, StratifiedGroupKFold, StratifiedKFold

from aam.data.metadata import load_metadata
from aam.data.splits import (
    leave_groups_out,
    make_folds,
    make_splits,
    named_splits,
    read_folds,
    read_splits,
    with_validation,
    write_splits,
)
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
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)
def test_file_errors(tmp_path, content, words):
    path = tmp_path / "splits.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_splits(path)


# -------------------------------------------------------------------------------------------------------------- folds


def scikit_learns(splitter, ids, labels=None, groups=None):
    """Fold by sample ID, of samples in the order of their IDs."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    rows = np.zeros((len(ids), 1))
    labels, groups = (None if values is None else values[order] for values in (labels, groups))
    with warnings.catch_warnings(action="ignore"):
        parts = [held_out for _, held_out in splitter.split(rows, labels, groups)]
    return {ids[order[i]]: fold for fold, held_out in enumerate(parts) for i in held_out}


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("folds", [2, 5])
@pytest.mark.parametrize(
    ("splitter", "grouped", "labelled"),
    [
        (KFold, False, False),
        (GroupKFold, True, False),
        (StratifiedKFold, False, True),
        (StratifiedGroupKFold, True, True),
    ],
)
def test_folds_are_scikit_learns(splitter, grouped, labelled, folds, seed):
    order = np.random.default_rng(1).permutation(60)
    ids = [IDS[i] for i in order]
    groups, labels = GROUPS[order] if grouped else None, CLASSES[order] if labelled else None
    found = make_folds(ids, folds=folds, groups=groups, labels=labels, seed=seed)
    reference = scikit_learns(splitter(folds, shuffle=True, random_state=seed), ids, labels, groups)
    assert dict(zip(ids, found.tolist(), strict=True)) == reference


def test_one_fold_a_group_is_scikit_learns():
    found = make_folds(IDS, folds=None, groups=GROUPS, labels=CLASSES, seed=0)
    assert dict(zip(IDS, found.tolist(), strict=True)) == scikit_learns(LeaveOneGroupOut(), IDS, None, GROUPS)


def test_folds_of_numbers_are_alike_in_their_quantiles():
    found = make_folds(IDS, folds=5, labels=NUMBERS, seed=0)
    for fold in range(5):
        ranks = np.argsort(np.argsort(NUMBERS))[found == fold]
        assert np.bincount(ranks // 12, minlength=5).tolist() == pytest.approx([12 / 5] * 5, abs=0.7)


@FAST
@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=40), st.integers(2, 6), st.integers(0, 9))
def test_every_sample_is_held_out_once_with_its_group(names, folds, seed):
    ids, groups = [str(i) for i in range(len(names))], np.array(names, dtype=object)
    if len(set(names)) < folds:
        with pytest.raises(DataError, match="group"):
            make_folds(ids, folds=folds, groups=groups, seed=seed)
        return
    found = make_folds(ids, folds=folds, groups=groups, seed=seed)
    assert set(found) == set(range(folds))
    assert len(set(zip(names, found.tolist(), strict=True))) == len(set(names))


def test_fold_errors():
    with pytest.raises(DataError, match="--folds 61: there are 60 samples"):
        make_folds(IDS, folds=61, seed=0)
    with pytest.raises(DataError, match="--folds 13: column 'subject' has 12 groups"):
        make_folds(IDS, folds=13, groups=GROUPS, seed=0, group_name="subject")
    with pytest.raises(DataError, match=r"into 20 folds .* use fewer"):
        make_folds(IDS[:40], folds=20, labels=np.array(list("abcd") * 10, dtype=object), seed=0)
    labels = CLASSES.copy()
    labels[0] = "rare"
    with pytest.raises(DataError, match="class 'rare' has one sample"):
        make_folds(IDS, folds=3, labels=labels, seed=0)


def test_validation_is_carved_out_of_training():
    parts = np.where(np.isin(GROUPS, ["g0", "g1", "g2"]), "test", "train").astype("<U5")
    parts[GROUPS == "g3"] = "cal"
    found = with_validation(IDS, parts, groups=GROUPS, val_size=0.25, seed=0)
    assert ((found == parts) | (found == "val")).all() and (parts[found == "val"] == "train").all()
    learnt = parts == "train"
    alone = make_splits([IDS[i] for i in np.flatnonzero(learnt)], groups=GROUPS[learnt], val_size=0.25, seed=0)
    assert found[learnt].tolist() == alone.tolist()
    assert len(set(GROUPS[found == "val"])) == 2
    assert (parts == "val").sum() == 0


def test_named_splits():
    column = pd.Series(["train", " Train", "VAL", "validation", "Test", "cal"], name="fold 1")
    assert named_splits(column).tolist() == ["train", "train", "val", "val", "test", "cal"]
    wrong = pd.Series(["train", "training", "tset", "1", "dev"], name="part")
    with pytest.raises(DataError, match="column 'part' holds '1', 'dev', 'training', …, which name no split"):
        named_splits(wrong)


def test_named_groups_are_left_out():
    parts = leave_groups_out(GROUPS, ["g3", "g11"], "subject")
    assert set(GROUPS[parts == "test"]) == {"g3", "g11"} and set(parts) == {"train", "test"}
    with pytest.raises(DataError, match=r"--leave-out g12: column 'subject' has no such group .* g0, g1, g10"):
        leave_groups_out(GROUPS, ["g3", "g12"], "subject")


def test_file_with_folds(tmp_path):
    path = tmp_path / "splits.tsv"
    folds = make_folds(IDS, folds=4, seed=0)
    folds[3] = -1
    parts = np.where(folds < 0, "train", "cal")
    write_splits(path, IDS, parts, folds)
    assert path.read_text().startswith("sample_id\tsplit\tfold\ns0\tcal\t")
    assert read_splits(path) == dict(zip(IDS, parts, strict=True))
    assert read_folds(path) == {name: fold for name, fold in zip(IDS, folds.tolist(), strict=True) if fold >= 0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sample_id\tsplit\na\ttrain\n", "no column fold"),
        ("sample_id\tsplit\tfold\na\ttest\t-1\n", "'-1' is no number of a fold"),
        ("sample_id\tsplit\tfold\na\ttest\t²\n", "'²' is no number of a fold"),
        ("sample_id\tsplit\tfold\na\ttest\t0\nb\ttest\t2\n", "counted from 0"),
        ("sample_id\tsplit\tfold\na\ttest\t0\nb\ttest\n", "at least two"),
    ],
)
def test_errors_of_files_with_folds(tmp_path, content, words):
    path = tmp_path / "splits.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_folds(path)


@FAST
@given(st.binary(max_size=80) | st.text("sample_idplt\tfon\n0123atrevc", max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_splits.tsv"
    for start in (b"", b"sample_id\tsplit\tfold\n"):
        path.write_bytes(start + content)
        for read in (read_splits, read_folds):
            with contextlib.suppress(DataError):
                read(path)


@pytest.mark.parametrize("stratify", [False, True])
def test_real_groups(stratify):
    frame = load_metadata(real_data("ecam_infant_age/metadata.tsv"))
    groups = frame["host_subject_id"].to_numpy()
    ages = frame["month_of_life"].to_numpy(float) if stratify else None
    split = make_splits(list(frame.index), groups=groups, labels=ages, val_size=0.2, test_size=0.2, seed=0)
    assert all(count > 100 for count in sizes(split).values())
    assert len(set(zip(groups, split, strict=True))) == len(set(groups))


def test_real_folds():
    frame = load_metadata(real_data("ecam_infant_age/metadata.tsv"))
    groups = frame["host_subject_id"].to_numpy()
    found = make_folds(list(frame.index), folds=5, groups=groups, seed=0)
    splitter = GroupKFold(5, shuffle=True, random_state=0)
    assert dict(zip(frame.index, found.tolist(), strict=True)) == scikit_learns(
        splitter, list(frame.index), None, groups
    )


def test_real_folds_of_classes():
    frame = load_metadata(real_data("ibd_crohns_2538/metadata.tsv"))
    groups, labels = frame["host_subject_id"].to_numpy(), frame["ibd"].to_numpy()
    found = make_folds(list(frame.index), folds=5, groups=groups, labels=labels, seed=0)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    reference = scikit_learns(splitter, list(frame.index), labels, groups)
    assert dict(zip(frame.index, found.tolist(), strict=True)) == reference
