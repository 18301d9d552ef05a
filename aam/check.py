"""What ``aam check`` finds in the inputs of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from aam.config import DataConfig, ModelConfig
from aam.data.metadata import require_column
from aam.data.study import Study, StudyFiles, align, read_files
from aam.data.targets import ClassTarget, NumericTarget
from aam.errors import DataError

__all__ = ["check"]


def check(data: DataConfig, *, classifier: bool = False) -> dict[str, Any]:
    """Read the inputs of a run and report on them.

    Parameters
    ----------
    data : DataConfig
    classifier : bool
        Whether the target holds labels.

    Returns
    -------
    dict
        ``samples``, ``asvs``, ``distances``, ``target`` (each None where it was not given or could not be read),
        ``problems`` and ``warnings``.
    """
    problems: list[str] = []
    files = read_files(data, problems)
    study: Study | None = None
    try:
        if files.table is not None and files.sequences is not None:
            study = align(files, data, max_bp=ModelConfig().max_bp, classifier=classifier)
        elif files.metadata is not None and data.metadata is not None:
            for column in (data.metadata_column, data.group_column):
                if column is not None:
                    require_column(files.metadata, column, data.metadata)
    except DataError as error:
        problems.append(str(error))
    target = None
    if study is not None and study.target is not None and data.metadata_column is not None:
        try:
            target = _target(study.target, data.metadata_column, classifier)
        except DataError as error:
            problems.append(str(error))
    return {
        "samples": _samples(files, study),
        "asvs": _asvs(files, study),
        "distances": _distances(files),
        "target": target,
        "problems": problems,
        "warnings": [] if study is None else study.warnings,
    }


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


def _target(values: np.ndarray[Any, Any], column: str, classifier: bool) -> dict[str, Any]:
    if classifier:
        ClassTarget.fit(column, values)
        labels, sizes = np.unique(values.astype(str), return_counts=True)
        return {"column": column, "classes": dict(zip(labels.tolist(), sizes.tolist(), strict=True))}
    NumericTarget.fit(column, "zscore", values)
    low, median, high = np.quantile(values, [0, 0.5, 1])
    return {"column": column, "min": float(low), "median": float(median), "max": float(high)}
