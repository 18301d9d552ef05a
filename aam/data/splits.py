"""Training, validation and test samples.

The split is a function of the seed and of the samples' IDs, groups and labels, never of their order.
Shapes: `N` samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from aam.data.files import check_ids, read_text, shown
from aam.errors import DataError

__all__ = [
    "Split",
    "has_folds",
    "learnt_samples",
    "leave_groups_out",
    "make_folds",
    "make_splits",
    "named_splits",
    "read_folds",
    "read_splits",
    "watched_part",
    "with_validation",
    "write_splits",
]

Split = Literal["train", "val", "test", "cal"]
_SPELLINGS = {**{name: name for name in get_args(Split)}, "validation": "val"}
_MAX_BINS = 5

_Array = np.ndarray[Any, Any]


def make_splits(
    sample_ids: Sequence[str],
    *,
    groups: _Array | None = None,
    labels: _Array | None = None,
    val_size: float,
    test_size: float = 0.0,
    seed: int,
    group_name: str = "group",
) -> _Array:
    """Assign every sample to training, validation or test.

    Parameters
    ----------
    sample_ids : sequence of str, length N
        Unique.
    groups : array of shape (N,), optional
        Samples of one group (a subject, say) fall into one split.
    labels : array of shape (N,), optional
        Stratify: keep the share of each class alike in all splits. Floating-point labels are cut into at most five
        quantile bins, fewer when a split is small.
    val_size, test_size
        Shares of all samples, or of all groups if these are given without labels. `test_size` may be 0.
    seed
        Same seed, same split.
    group_name
        Metadata column that `groups` is from, for messages.

    Returns
    -------
    numpy.ndarray of str, shape (N,)
        ``"train"``, ``"val"`` or ``"test"``, in the order of `sample_ids`.

    Raises
    ------
    DataError
        If the sizes leave nothing to train on, a group or label is missing, there are fewer groups than splits, a
        class has one sample only, or a split comes out empty.
    """
    if not (0 < val_size < 1 and 0 <= test_size < 1 and val_size + test_size < 1):
        raise DataError(
            f"--val-size {val_size} and --test-size {test_size} must be fractions that leave a part for training: "
            "0 < val, 0 ≤ test, val + test < 1"
        )
    ids = np.asarray(sample_ids, dtype=object)
    assert len(set(sample_ids)) == len(ids), "sample IDs must be unique"
    order = np.argsort(ids, kind="stable")
    splits = 3 if test_size else 2
    if len(ids) < splits:
        raise DataError(f"{len(ids)} sample(s) cannot be divided into {splits} splits; add samples")
    sizes = {
        "test": max(1, round(test_size * len(ids))) if test_size else 0,
        "val": max(1, round(val_size * len(ids))),
    }
    sorted_groups = None if groups is None else _group_codes(np.asarray(groups)[order], ids[order], splits, group_name)
    smallest = min(size for size in (*sizes.values(), len(ids) - sum(sizes.values())) if size)
    sorted_labels = None if labels is None else _strata(np.asarray(labels)[order], ids[order], smallest)

    result = np.full(len(ids), "train", dtype="<U5")
    rest = np.arange(len(ids))
    remaining = 1.0
    for name, share in (("test", test_size), ("val", val_size)):
        if not share:
            continue
        strata = None if sorted_labels is None else sorted_labels[rest]
        numbers = labels is not None and labels.dtype.kind == "f"
        if strata is not None and numbers and groups is None and np.bincount(strata)[strata].min() < 2:
            # The test split has left one member of a bin, which cannot be on both sides.
            strata = _quantile_bins(np.asarray(labels)[order][rest], min(_MAX_BINS, smallest))
        held_out = _hold_out(
            len(rest),
            None if sorted_groups is None else sorted_groups[rest],
            strata,
            share=share / remaining,
            size=sizes[name],
            leave=2 if name == "test" else 1,
            seed=seed,
        )
        result[rest[held_out]] = name
        rest = np.setdiff1d(rest, rest[held_out])
        remaining -= share

    for name in ("train", "val", "test") if test_size else ("train", "val"):
        if not (result == name).any():
            raise DataError(
                f"the {name} split is empty with --val-size {val_size} and --test-size {test_size} "
                f"on {len(ids)} samples"
                f"{'' if groups is None else f' grouped by {group_name!r}'}; change the sizes or the grouping"
            )
    aligned = np.empty_like(result)
    aligned[order] = result
    return aligned


def named_splits(column: pd.Series) -> _Array:
    """The splits that a column names: train, val (or validation), test, cal, in any case.

    Parameters
    ----------
    column : Series of N values

    Returns
    -------
    ndarray of str, shape (N,)

    Raises
    ------
    DataError
        If a value is another.
    """
    values = [str(value).strip() for value in column]
    wrong = sorted({value for value in values if value.lower() not in _SPELLINGS})
    if wrong:
        raise DataError(
            f"column {str(column.name)!r} holds {', '.join(map(shown, wrong[:3]))}{', …' if wrong[3:] else ''}, "
            f"which name no split; use {', '.join(_SPELLINGS)}, or an empty cell to leave a sample out"
        )
    return np.array([_SPELLINGS[value.lower()] for value in values], dtype="<U5")


def watched_part(parts: _Array) -> str:
    """The part of a split (N,) that a run is watched on: ``val``, or ``test`` where there is no other."""
    return "val" if (parts == "val").any() else "test"


def leave_groups_out(groups: _Array, left_out: Sequence[str], group_name: str = "group") -> _Array:
    """Named groups as the test split, all others for training.

    Parameters
    ----------
    groups : ndarray (N,)
    left_out : sequence of str
    group_name : str
        Column, for messages.

    Raises
    ------
    DataError
        If a group is not there.
    """
    names = np.asarray(groups).astype(str)
    absent = [name for name in left_out if name not in names]
    if absent:
        there = sorted(set(names.tolist()))
        raise DataError(
            f"--leave-out {absent[0]}: column {group_name!r} has no such group among the samples that are used; it has "
            f"{', '.join(there[:5])}{', …' if there[5:] else ''}"
        )
    return np.where(np.isin(names, left_out), "test", "train").astype("<U5")


def with_validation(
    sample_ids: Sequence[str],
    parts: _Array,
    *,
    groups: _Array | None = None,
    labels: _Array | None = None,
    val_size: float,
    seed: int,
    group_name: str = "group",
    part: Split = "val",
) -> _Array:
    """A split whose training samples give a share of themselves for validation, drawn as `make_splits` draws.

    Where all of them are of one group (the other of two studies, say, is the test), it is drawn within that group.

    Parameters
    ----------
    parts : ndarray (N,) of str
        Without ``"val"``.
    val_size : float
        Share of the training samples, or of their groups.
    part : str
        What the share is for, ``"cal"`` say.
    sample_ids, groups, labels, seed, group_name
        See `make_splits`.
    """
    learnt = np.flatnonzero(parts == "train")
    if groups is not None and len(set(groups[learnt].astype(str).tolist())) == 1:
        groups = None
    drawn = make_splits(
        [sample_ids[int(i)] for i in learnt],
        groups=None if groups is None else groups[learnt],
        labels=None if labels is None else labels[learnt],
        val_size=val_size,
        seed=seed,
        group_name=group_name,
    )
    result = parts.copy()
    result[learnt[drawn == "val"]] = part
    return result


def make_folds(
    sample_ids: Sequence[str],
    *,
    folds: int | None,
    groups: _Array | None = None,
    labels: _Array | None = None,
    seed: int,
    group_name: str = "group",
) -> _Array:
    """The fold in which each sample is held out.

    They are those of scikit-learn's ``KFold``, ``GroupKFold``, ``StratifiedKFold`` or ``StratifiedGroupKFold`` with
    ``shuffle=True, random_state=seed`` on the samples in the order of their IDs.

    Parameters
    ----------
    sample_ids : sequence of str, length N
        Unique.
    folds : int or None
        None for one fold a group, in the order of their names.
    groups, labels, seed, group_name
        See `make_splits`. One fold a group takes no notice of labels.

    Returns
    -------
    ndarray of int, shape (N,)

    Raises
    ------
    DataError
        If there are fewer samples or groups than folds, a group or label is missing, or no member of any class is
        left for each fold.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    ids = np.asarray(sample_ids, dtype=object)
    order = np.argsort(ids, kind="stable")
    codes = None if groups is None else _group_codes(np.asarray(groups)[order], ids[order], 2, group_name)
    if codes is not None and folds is not None and codes.max() + 1 < folds:
        raise DataError(
            f"--folds {folds}: column {group_name!r} has {codes.max() + 1} groups; use at most so many folds, or "
            "--leave-one-group-out"
        )
    result = np.empty(len(ids), dtype=np.int64)
    if folds is None:
        assert codes is not None, "one fold a group needs groups"
        result[order] = codes
        return result
    if len(ids) < folds:
        raise DataError(f"--folds {folds}: there are {len(ids)} samples; use fewer folds")
    strata = None if labels is None else _strata(np.asarray(labels)[order], ids[order], len(ids) // folds)
    if strata is None:
        splitter = (KFold if codes is None else GroupKFold)(folds, shuffle=True, random_state=seed)
    else:
        splitter = (StratifiedKFold if codes is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        try:
            parts = [held_out for _, held_out in splitter.split(np.zeros(len(ids)), strata, codes)]
        except ValueError as error:
            raise DataError(
                f"cannot divide {len(ids)} samples into {folds} folds alike in the target ({error}); use fewer folds"
            ) from error
    for fold, held_out in enumerate(parts):
        if not len(held_out):
            raise DataError(f"fold {fold} of --folds {folds} is empty: the groups are too few or too large; use fewer")
        result[order[held_out]] = fold
    return result


def _group_codes(groups: _Array, ids: _Array, splits: int, group_name: str) -> _Array:
    missing = np.asarray(pd.isna(groups))
    if missing.any():
        raise DataError(
            f"column {group_name!r} is missing for {missing.sum()} of {len(ids)} samples, "
            f"first {shown(ids[missing][0])}; fill it in, or remove these samples from the metadata"
        )
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < splits:
        raise DataError(
            f"column {group_name!r} has {len(names)} group(s) for {splits} splits; "
            "group by another column, or hold out fewer splits"
        )
    return codes


def _strata(labels: _Array, ids: _Array, smallest_split: int) -> _Array:
    """Integer class of every sample, (N,)."""
    missing = np.asarray(pd.isna(labels))
    if missing.any():
        raise DataError(
            f"cannot stratify: {missing.sum()} label(s) are missing, first {shown(ids[missing][0])}; "
            "remove these samples"
        )
    if labels.dtype.kind == "f":
        return _quantile_bins(labels, min(_MAX_BINS, smallest_split))
    names, codes, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    if counts.min() < 2:
        single = names[counts < 2]
        raise DataError(
            f"cannot stratify: class {shown(single[0])} has one sample"
            f"{f' ({len(single)} such classes)' if len(single) > 1 else ''}; "
            "join it with another class, leave it empty, or do not stratify"
        )
    return codes


def _quantile_bins(values: _Array, bins: int) -> _Array:
    """Cut numbers into at most `bins` quantile bins of two or more members."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    codes = np.searchsorted(edges, values, side="right")
    counts = np.bincount(codes, minlength=len(edges) + 1)
    merged = np.zeros(len(counts), dtype=np.int64)
    current, members = 0, 0
    for code, count in enumerate(counts):
        if members >= 2:
            current, members = current + 1, 0
        merged[code] = current
        members += count
    if members < 2 and current:
        merged[merged == current] = current - 1
    return merged[codes]


def _hold_out(
    samples: int, groups: _Array | None, strata: _Array | None, *, share: float, size: int, leave: int, seed: int
) -> _Array:
    """Positions of the held-out samples.

    Parameters
    ----------
    share, size
        How much to hold out: fraction of these samples, and number of samples.
    leave
        Fewest groups that must remain.
    """
    from sklearn.model_selection import (
        GroupShuffleSplit,
        ShuffleSplit,
        StratifiedGroupKFold,
        StratifiedShuffleSplit,
    )

    rows = np.zeros(samples)
    if groups is None:
        shuffle = (ShuffleSplit if strata is None else StratifiedShuffleSplit)(1, test_size=size, random_state=seed)
        try:
            return next(shuffle.split(rows, strata))[1]
        except ValueError as error:
            classes = "" if strata is None else " with every class in each split"
            raise DataError(
                f"cannot hold out {size} of {samples} samples{classes} ({error}); "
                "hold out more, join rare classes, or do not stratify"
            ) from error

    count = len(np.unique(groups))
    if strata is None:
        held_groups = min(max(1, round(share * count)), count - leave)
        return next(GroupShuffleSplit(1, test_size=held_groups, random_state=seed).split(rows, groups=groups))[1]

    part = min(share, 1 - share)
    folds = min(max(2, round(1 / part)), count)
    if abs(folds * part - 1) > 0.1:  # no whole number of folds is near: join some of more, smaller ones
        folds = min(10, count)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        try:
            parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, strata, groups))
        except ValueError as error:
            raise DataError(
                f"cannot stratify {count} groups into {folds} parts ({error}); change the sizes or do not stratify"
            ) from error
    filled = [fold for _, fold in parts if len(fold)]
    joined = np.sort(np.concatenate(filled[: max(1, min(round(part * folds), len(filled) - 1))]))
    return joined if share <= 0.5 else np.setdiff1d(np.arange(samples), joined)


def write_splits(path: Path, sample_ids: Sequence[str], split: _Array, folds: _Array | None = None) -> None:
    """Write `splits.tsv`, one row a sample, in the order given.

    Parameters
    ----------
    path : Path
    sample_ids : sequence of str, length N
    split : ndarray (N,) of str
    folds : ndarray (N,) of int, optional
        A third column: the fold in which each sample is held out; negative (an empty cell) where it is in none.
    """
    columns = [list(sample_ids), list(split)]
    if folds is not None:
        columns.append([str(fold) if fold >= 0 else "" for fold in folds])
    header = "\t".join(["sample_id", "split", "fold"][: len(columns)])
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    Path(path).write_text("\n".join([header, *lines, ""]), encoding="utf-8", newline="\n")


def read_splits(path: Path) -> dict[str, str]:
    """Read `splits.tsv`: sample ID to split; further columns are passed over.

    Raises
    ------
    DataError
        If the columns are missing, a sample repeats or a split is not train, val, test or cal.
    """
    _, rows = _read_rows(path)
    for row in rows:
        if len(row) < 2 or row[1] not in get_args(Split):
            raise DataError(f"{path}: {shown(' '.join(row))} names no split; use one of {', '.join(get_args(Split))}")
    return {row[0]: row[1] for row in rows}


def learnt_samples(path: Path) -> set[str]:
    """The samples that the models of a run have learnt from, by its ``splits.tsv``; none where that does not tell."""
    try:
        if has_folds(path):
            return set(read_folds(path))
        return {name for name, part in read_splits(path).items() if part == "train"}
    except DataError:  # there is none, or it is damaged, which is nobody's concern who only predicts or judges
        return set()


def has_folds(path: Path) -> bool:
    """Whether a ``splits.tsv`` is there and says which fold samples are in."""
    return path.is_file() and "fold" in _read_rows(path)[0]


def read_folds(path: Path) -> dict[str, int]:
    """Read the column ``fold`` of `splits.tsv`: sample ID to fold, for samples that have one.

    Raises
    ------
    DataError
        If there is no such column, a fold is not a whole number, or one of the folds is empty.
    """
    header, rows = _read_rows(path)
    if "fold" not in header:
        raise DataError(f"{path}: has no column fold; give the splits.tsv of a run with folds, or leave --folds out")
    place = header.index("fold")
    cells = {row[0]: row[place] if len(row) > place else "" for row in rows}
    wrong = [cell for cell in cells.values() if cell and not (cell.isascii() and cell.isdigit() and len(cell) < 7)]
    if wrong:
        raise DataError(f"{path}: {shown(wrong[0])} is no number of a fold; count them from 0")
    folds = {name: int(cell) for name, cell in cells.items() if cell}
    numbers = sorted(set(folds.values()))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise DataError(f"{path}: its folds are {shown(numbers)}; there must be at least two, counted from 0")
    return folds


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a split file, cells stripped."""
    lines = [line for line in read_text(path, "split file").split("\n") if line.strip()]
    header, *rows = [[cell.strip() for cell in line.split("\t")] for line in lines] or [[""]]
    if header[:2] != ["sample_id", "split"]:
        raise DataError(f"{path}: begins with {shown(' '.join(header))}; the columns must be sample_id and split")
    check_ids([row[0] for row in rows], "sample ID", path)
    return header, rows
