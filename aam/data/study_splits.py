"""The split of a study, or its folds, as a configuration asks for them.

Shapes: ``N`` samples, ``K`` folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from aam.config import DataConfig
from aam.data.splits import (
    leave_groups_out,
    make_folds,
    make_splits,
    named_splits,
    read_folds,
    read_splits,
    with_validation,
)
from aam.data.study import Study
from aam.data.targets import known_values
from aam.errors import DataError, in_file

__all__ = ["StudyFolds", "StudySplit", "as_before", "fold_study", "inner_folds", "split_study", "thin_parts"]

Value = TypeVar("Value")


class StudySplit(NamedTuple):
    """The split of a study."""

    parts: NDArray[Any]  # (N,) of str
    notes: list[str]  # what was decided that nobody asked for


class StudyFolds(NamedTuple):
    """The folds of a study."""

    of_sample: NDArray[np.int64]  # (N,): the fold in which a sample is held out; -1 where it never is
    splits: list[NDArray[Any]]  # K of (N,): the fold as ``test``, the others ``train`` and, where asked for, ``val``


def split_study(study: Study, data: DataConfig, seed: int, *, validate: bool) -> StudySplit:
    """The split that a configuration asks for: predefined, by named groups, or drawn.

    Parameters
    ----------
    study : Study
    data : DataConfig
        Without folds.
    seed : int
    validate : bool
        Whether validation decides anything. If not, a split that names test samples alone stays so.

    Raises
    ------
    DataError
        If there is none such.
    """
    if data.splits is not None:
        source = str(data.splits)
        named = read_splits(data.splits)
        parts = np.array([named[name] for name in study.sample_ids], dtype="<U5")
    elif data.split_column is not None:
        assert study.metadata is not None
        source = f"column {data.split_column!r}"
        with in_file(data.metadata):
            parts = named_splits(study.metadata[data.split_column])
    elif data.leave_out:
        assert study.groups is not None
        source = f"--leave-out {' '.join(data.leave_out)}"
        with in_file(data.metadata):
            parts = leave_groups_out(study.groups, data.leave_out, data.group_column or "group")
    else:
        with in_file(_source(study, data)):
            drawn = make_splits(
                study.sample_ids,
                groups=study.groups,
                labels=study.target if data.stratify else None,
                val_size=data.val_size,
                test_size=data.test_size,
                seed=seed,
                group_name=data.group_column or "group",
            )
            if data.cal_size:
                drawn = with_validation(
                    study.sample_ids,
                    drawn,
                    groups=study.groups,
                    labels=study.target if data.stratify else None,
                    val_size=data.cal_size / (1 - data.val_size - data.test_size),
                    seed=seed,
                    group_name=data.group_column or "group",
                    part="cal",
                )
        return StudySplit(drawn, [])
    learnt = int((parts == "train").sum())
    if not learnt:
        folds = " (it is that of a run with folds: repeat them with --folds, or give the file of one fold)"
        raise DataError(
            f"{source}: none of these {len(parts)} samples is for training; mark some of them train"
            f"{folds if data.splits is not None and (parts == 'test').all() else ''}"
        )
    if (parts == "val").any() or ((parts == "test").any() and not validate):
        return StudySplit(parts, [])
    parts = _with_validation(study, data, parts, stratify=data.stratify, seed=seed)
    held_out = int((parts == "val").sum())
    note = f"{source} names no validation samples: {held_out} of its {learnt} training samples serve as such"
    return StudySplit(parts, [note])


def fold_study(study: Study, data: DataConfig, *, classifier: bool, seed: int, validate: bool) -> StudyFolds:
    """The folds that a configuration asks for.

    Folds of classes are alike in the classes, those of numbers with ``--stratify`` in the quantiles.

    Parameters
    ----------
    study : Study
    data : DataConfig
        With folds.
    classifier : bool
        Whether the target holds labels.
    seed : int
    validate : bool
        Whether each fold has a ``val`` part of its own, which validation decides by.

    Raises
    ------
    DataError
        If there are none such, or a class is missing among a fold's training samples.
    """
    assert data.cross_validated
    stratify = study.target is not None and study.target.ndim == 1 and (classifier or data.stratify)
    if data.splits is not None:
        of_sample = _stored_folds(study, data.splits, data.folds)
    else:
        with in_file(_source(study, data)):
            of_sample = make_folds(
                study.sample_ids,
                folds=data.folds,
                groups=study.groups,
                labels=study.target if stratify and data.folds is not None else None,
                seed=seed,
                group_name=data.group_column or "group",
            )
    splits = []
    for fold in range(int(of_sample.max()) + 1):
        parts = np.where(of_sample == fold, "test", "train").astype("<U5")
        try:
            if validate:
                parts = _with_validation(study, data, parts, stratify=stratify, seed=seed)
            if classifier and study.target is not None:
                _require_classes(study.target, parts)
        except DataError as error:
            raise DataError(f"fold {fold}: {error}") from None
        splits.append(parts)
    return StudyFolds(of_sample, splits)


def inner_folds(
    study: Study, parts: NDArray[Any], data: DataConfig, folds: int, *, classifier: bool, seed: int
) -> list[NDArray[Any]]:
    """The training samples of a split, divided again: whoever is held out by the split has no part in it.

    Parameters
    ----------
    study : Study
    parts : ndarray (N,) of str
        The split.
    data : DataConfig
    folds : int
        1 for one fifth of the training samples, or of their groups, that judges.
    classifier : bool
    seed : int

    Returns
    -------
    list of ndarray (N,) of str
        For each fold ``train`` and ``val``; ``""`` of all samples that are not for training in the split.

    Raises
    ------
    DataError
        If they cannot be divided so, or a class is missing among what a fold learns from.
    """
    learnt = np.flatnonzero(parts == "train")
    inside = np.where(parts == "train", parts, "").astype("<U5")
    stratify = study.target is not None and study.target.ndim == 1 and (classifier or data.stratify)
    found = []
    if folds == 1:
        with in_file(_source(study, data)):
            found = [
                with_validation(
                    study.sample_ids,
                    inside,
                    groups=study.groups,
                    labels=study.target if stratify else None,
                    val_size=0.2,
                    seed=seed,
                    group_name=data.group_column or "group",
                )
            ]
    else:
        with in_file(_source(study, data)):
            of_sample = make_folds(
                [study.sample_ids[int(row)] for row in learnt],
                folds=folds,
                groups=None if study.groups is None else study.groups[learnt],
                labels=study.target[learnt] if stratify and study.target is not None else None,
                seed=seed,
                group_name=data.group_column or "group",
            )
        for fold in range(folds):
            judged = inside.copy()
            judged[learnt[of_sample == fold]] = "val"
            found.append(judged)
    for fold, judged in enumerate(found):
        rows = judged != ""
        try:
            if classifier and study.target is not None:
                _require_classes(study.target[rows], judged[rows])
        except DataError as error:
            raise DataError(f"inner fold {fold}: {error}") from None
    return found


def as_before(study: Study, before: Mapping[str, Value], default: Value) -> list[Value]:
    """What an earlier run says of each sample; of one that it did not have, what it says of its group, else a default.

    Parameters
    ----------
    study : Study
    before : mapping
        By sample ID.
    default
    """
    if study.groups is None:
        return [before.get(name, default) for name in study.sample_ids]
    pairs = list(zip(study.sample_ids, study.groups, strict=True))
    of_group = {group: before[name] for name, group in pairs if name in before}
    return [before.get(name, of_group.get(group, default)) for name, group in pairs]


def _source(study: Study, data: DataConfig) -> Sequence[Path] | None:
    """The file that is to blame where a split cannot be drawn."""
    return data.metadata if data.stratify or study.groups is not None else None


def _with_validation(study: Study, data: DataConfig, parts: NDArray[Any], *, stratify: bool, seed: int) -> NDArray[Any]:
    with in_file(_source(study, data)):
        return with_validation(
            study.sample_ids,
            parts,
            groups=study.groups,
            labels=study.target if stratify else None,
            val_size=data.val_size,
            seed=seed,
            group_name=data.group_column or "group",
        )


def _stored_folds(study: Study, path: Path, folds: int | None) -> NDArray[np.int64]:
    stored = read_folds(path)
    number = max(stored.values()) + 1
    if folds != number:
        raise DataError(f"{path}: has {number} folds, and --folds {folds} is asked for; give --folds {number}")
    of_sample = np.array([stored[name] for name in study.sample_ids], dtype=np.int64)
    absent = set(range(number)) - set(of_sample.tolist())
    if absent:
        raise DataError(f"{path}: none of these samples is in its fold {min(absent)}; leave --splits out")
    return of_sample


def _require_classes(labels: NDArray[Any], parts: NDArray[Any]) -> None:
    """Refuse a split that leaves a class without a training sample."""
    for of_column in labels.reshape(len(labels), -1).T:
        _require_column_classes(of_column, parts)


def _require_column_classes(labels: NDArray[Any], parts: NDArray[Any]) -> None:
    known = known_values(labels)
    labels, parts = labels[known], parts[known]
    absent = sorted(set(labels.tolist()) - set(labels[parts == "train"].tolist()))
    if absent:
        raise DataError(
            f"class {absent[0]!r} has no training sample, as all of its {int((labels == absent[0]).sum())} are held "
            "out; use other folds, merge the class with another, or leave its samples out"
        )


_HELD_OUT = {"val": "validation", "test": "test", "cal": "calibration"}


def thin_parts(study: Study, parts: NDArray[Any], *, classifier: bool, group_column: str | None) -> list[str]:
    """What held-out samples cannot tell, since all of a part are of one class or of one group.

    Parameters
    ----------
    study : Study
    parts : ndarray (N,) of str
    classifier : bool
        Whether the target is classes.
    group_column : str, optional
        What groups are called.
    """
    found = []
    of_classes = classifier and study.target is not None and study.target.ndim == 1
    for part, name in _HELD_OUT.items():
        rows = study.rows_of(parts, part)
        if len(rows) < 2:
            continue
        labels = sorted(set(study.target[rows].astype(str).tolist())) if of_classes and study.target is not None else []
        if len(labels) == 1:
            found.append(
                f"all {len(rows)} {name} samples are {labels[0]}, so how well classes are told apart they cannot say; "
                "try --stratify, folds, or another --seed"
            )
        if study.groups is not None and len(set(study.groups[rows].tolist())) == 1:
            found.append(
                f"all {len(rows)} {name} samples are of one {group_column or 'group'}, so how well others are "
                "predicted they cannot say; try --folds, or a larger share"
            )
    return found
