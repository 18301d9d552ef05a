"""What ``aam check`` finds in the inputs of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from aam.config import DataConfig, ModelConfig
from aam.data.leaks import leak_warnings
from aam.data.metadata import require_column
from aam.data.study import Study, StudyFiles, align, read_files
from aam.data.study_splits import fold_study, split_study
from aam.data.targets import ClassTarget, NumericTarget, require_repeated_classes
from aam.errors import DataError, in_file

__all__ = ["check"]

Result = TypeVar("Result")


def check(data: DataConfig, *, classifier: bool = False, max_bp: int = ModelConfig().max_bp) -> dict[str, Any]:
    """Read the inputs of a run and report on them.

    Parameters
    ----------
    data : DataConfig
    classifier : bool
        Whether the target holds labels.
    max_bp : int
        Bases after which sequences are cut.

    Returns
    -------
    dict
        ``samples``, ``asvs``, ``distances``, ``target`` (each None where it was not given or could not be read),
        ``problems`` and ``warnings``.
    """
    problems: list[str] = []
    files = read_files(data, problems)
    study: Study | None = None
    if files.table is not None and files.sequences is not None:
        study = _align(files, data, partial(align, max_bp=max_bp, classifier=classifier), problems)
    elif files.metadata is not None and data.metadata is not None:
        for column in (data.metadata_column, data.group_column):
            if column is not None:
                _attempt(problems, require_column, files.metadata, column, data.metadata)
    target = None
    if study is not None and study.target is not None and data.metadata_column is not None:
        target = _attempt(problems, _target, study.target, data, classifier)
    leaks = None
    if study is not None and (target is not None or study.target is None):
        leaks = _attempt(problems, _split, study, data, classifier)
    return {
        "samples": _samples(files, study),
        "asvs": _asvs(files, study),
        "distances": _distances(files),
        "target": target,
        "problems": problems,
        "warnings": [] if study is None else [*study.warnings, *(leaks or [])],
    }


def _attempt(problems: list[str], step: Callable[..., Result], *arguments: Any) -> Result | None:
    """What a step comes to, or None and a problem more."""
    try:
        return step(*arguments)
    except DataError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None


def _align(files: StudyFiles, data: DataConfig, step: Callable[..., Study], problems: list[str]) -> Study | None:
    """The study, without the columns that cannot serve; each of these is a problem of its own."""
    study = _attempt([], step, files, data)
    if study is not None:
        return study
    columns = ("metadata_column", "group_column", "split_column")
    usable = data
    for column in columns:
        alone = data.model_copy(update={other: None for other in columns if other != column})
        if _attempt(problems, step, files, alone) is None:
            usable = usable.model_copy(update={column: None})
    if usable.group_column is None:
        usable = usable.model_copy(update={"leave_out": (), "leave_one_group_out": False})
    return _attempt(problems, step, files, usable)


def _split(study: Study, data: DataConfig, classifier: bool) -> list[str]:
    """Warnings about the split, or about the first fold."""
    of_groups = bool(data.leave_out) or data.leave_one_group_out
    if (of_groups and study.groups is None) or _lacks(study, data.split_column):
        return []  # which is a problem of its own
    if data.cross_validated:
        split = fold_study(study, data, classifier=classifier, seed=0).splits[0]
    else:
        split = split_study(study, data, seed=0).parts
    return leak_warnings(
        study.sample_ids,
        study.table,
        split,
        groups=study.groups,
        group_column=data.group_column,
        metadata=study.metadata,
        target=data.metadata_column,
    )


def _lacks(study: Study, column: str | None) -> bool:
    return column is not None and (study.metadata is None or column not in study.metadata.columns)


def _samples(files: StudyFiles, study: Study | None) -> dict[str, Any] | None:
    if files.table is None:
        return None
    left_out = {} if study is None else {reason: len(names) for reason, names in study.left_out.items()}
    return {"table": files.table.shape[0], "used": 0 if study is None else len(study), "left_out": left_out}


def _asvs(files: StudyFiles, study: Study | None) -> dict[str, Any] | None:
    sequences = files.sequences if study is None else study.sequences
    if sequences is None:
        return None
    lengths = [len(sequence) for sequence in sequences]
    return {"count": len(lengths), "length_min": min(lengths), "length_max": max(lengths)}


def _distances(files: StudyFiles) -> dict[str, Any] | None:
    if files.distances is None:
        return None
    values = files.distances.values
    pairs = values[np.triu_indices(len(values), k=1)]
    return {
        "samples": len(values),
        "references": None,
        "mean": float(pairs.mean()) if len(pairs) else 0.0,
        "max": float(pairs.max()) if len(pairs) else 0.0,
    }


def _target(values: np.ndarray[Any, Any], data: DataConfig, classifier: bool) -> dict[str, Any]:
    column = data.metadata_column
    assert column is not None
    with in_file(data.metadata):
        if classifier:
            require_repeated_classes(column, values)
            ClassTarget.fit(column, values)
            labels, sizes = np.unique(values.astype(str), return_counts=True)
            return {"column": column, "classes": dict(zip(labels.tolist(), sizes.tolist(), strict=True))}
        NumericTarget.fit(column, "zscore", values)
        low, median, high = np.quantile(values, [0, 0.5, 1])
        return {"column": column, "min": float(low), "median": float(median), "max": float(high)}
