"""What ``aam check`` finds in the inputs of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aam.config import DataConfig, ModelConfig, TaskConfig
from aam.data.dataset import common_references
from aam.data.leaks import leak_warnings
from aam.data.metadata import require_column
from aam.data.study import LabelFile, Study, StudyFiles, align, read_files, unknown_samples
from aam.data.study_splits import fold_study, split_study
from aam.data.targets import ClassTarget, NumericTarget, Transform, require_logarithms, require_repeated_classes
from aam.data.unifrac_loader import SampleValues, StripeMatrix
from aam.errors import DataError, in_file, named
from aam.inputs import label_files

__all__ = ["check"]

Result = TypeVar("Result")
_DEFAULTS = TaskConfig()
_MOST_SAMPLES_OF_A_MEAN = 2000


def check(
    data: DataConfig,
    *,
    classifier: bool = False,
    target_transform: Transform = _DEFAULTS.target_transform,
    base_target: str = _DEFAULTS.base_target,
    max_bp: int = ModelConfig().max_bp,
    seed: int = 0,
) -> dict[str, Any]:
    """Read the inputs of a run and report on them.

    Parameters
    ----------
    data : DataConfig
    classifier : bool
        Whether the target holds labels.
    base_target : str
        What the distance matrix holds.
    max_bp : int
        Bases after which sequences are cut.
    target_transform : str
        Of a target that is a number.
    seed : int
        Of the split.

    Returns
    -------
    dict
        ``samples``, ``asvs``, ``distances``, ``target`` (each None where it was not given or could not be read),
        ``problems`` and ``warnings``.
    """
    problems: list[str] = []
    labels = _attempt(problems, label_files, data, base_target)
    files = read_files(data, labels, problems)
    study: Study | None = None
    if files.complete:
        study = _align(files, data, partial(align, max_bp=max_bp, classifier=classifier), problems)
    elif files.metadata is not None:
        for column in (data.metadata_column, data.group_column):
            if column is not None:
                _attempt(problems, require_column, files.metadata, column, Path(named(data.metadata)))
    target, leaks = None, []
    if study is not None:
        if study.target is not None and classifier and data.metadata_column is not None:
            _attempt(problems, _repeated_classes, study.target, data)
        split = _attempt(problems, _split, study, data, classifier, seed)
        leaks = [] if split is None else _leaks(study, data, split)
        train = np.arange(len(study)) if split is None else study.rows_of(split, "train")
        _attempt(problems, _references, study, train, data)
        if study.target is not None and data.metadata_column is not None:
            target = _attempt(problems, _target, study.target, train, data, classifier, target_transform)
    return {
        "samples": _samples(files, study),
        "asvs": _asvs(files, study),
        "distances": _distances(files),
        "target": target,
        "problems": problems,
        "warnings": [] if study is None else [*study.warnings, *unknown_samples(study), *leaks],
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


def _repeated_classes(values: NDArray[Any], data: DataConfig) -> None:
    assert data.metadata_column is not None
    with in_file(data.metadata):
        require_repeated_classes(data.metadata_column, values)


def _references(study: Study, train: NDArray[np.int64], data: DataConfig) -> None:
    with in_file(data.unifrac_matrix):
        common_references(study.labels, train)


def _split(study: Study, data: DataConfig, classifier: bool, seed: int) -> NDArray[Any] | None:
    """The split, or that of the first fold; None where a problem of its own says why there is none."""
    of_groups = bool(data.leave_out) or data.leave_one_group_out
    if (of_groups and study.groups is None) or _lacks(study, data.split_column):
        return None
    if data.cross_validated:
        return fold_study(study, data, classifier=classifier, seed=seed).splits[0]
    return split_study(study, data, seed=seed).parts


def _lacks(study: Study, column: str | None) -> bool:
    return column is not None and (study.metadata is None or column not in study.metadata.columns)


def _leaks(study: Study, data: DataConfig, split: NDArray[Any]) -> list[str]:
    return leak_warnings(
        study.sample_ids,
        study.counts,
        split,
        groups=study.groups,
        group_column=data.group_column,
        metadata=study.metadata,
        target=data.metadata_column,
    )


def _samples(files: StudyFiles, study: Study | None) -> dict[str, Any] | None:
    if not files.samples:
        return None
    left_out = {} if study is None else {reason: len(names) for reason, names in study.left_out.items()}
    return {"table": files.samples, "used": 0 if study is None else len(study), "left_out": left_out}


def _asvs(files: StudyFiles, study: Study | None) -> dict[str, Any] | None:
    if study is None and not files.complete:
        return None
    known = (
        study.sequences if study is not None else [s for t in files.tables if t is not None for s in t.sequences or ()]
    )
    lengths = [len(sequence) for sequence in known]
    return {"count": len(lengths), "length_min": min(lengths), "length_max": max(lengths)}


def _distances(files: StudyFiles) -> dict[str, Any] | None:
    """Of the first matrix, or of all where there is one for each table; of large ones, of some samples."""
    known = [labels for labels in next(iter(files.labels.values()), []) if labels is not None]
    if not known:
        return None
    values = np.concatenate([_some_values(labels) for labels in known])
    references = {name for labels in known if isinstance(labels, StripeMatrix) for name in labels.reference_ids}
    return {
        "samples": sum(len(labels.ids) for labels in known),
        "references": len(references) or None,
        "mean": float(values.mean()) if len(values) else 0.0,
        "max": float(values.max()) if len(values) else 0.0,
    }


def _some_values(labels: LabelFile) -> NDArray[Any]:
    if isinstance(labels, SampleValues):
        return labels.values
    draws = np.random.default_rng(0)
    rows, columns = (np.sort(draws.permutation(n)[:_MOST_SAMPLES_OF_A_MEAN]) for n in labels.shape)
    if isinstance(labels, StripeMatrix):
        return labels.block(rows, columns).ravel()
    return labels.block(rows)[np.triu_indices(len(rows), k=1)]


def _target(
    values: NDArray[Any], train: NDArray[np.int64], data: DataConfig, classifier: bool, transform: Transform
) -> dict[str, Any]:
    """What the target holds, if what is fitted on the training samples serves for all."""
    column = data.metadata_column
    assert column is not None
    with in_file(data.metadata):
        if classifier:
            ClassTarget.fit(column, values[train]).encode(values)
            labels, sizes = np.unique(values.astype(str), return_counts=True)
            return {"column": column, "classes": dict(zip(labels.tolist(), sizes.tolist(), strict=True))}
        if transform.startswith("log"):
            require_logarithms(column, transform, values)
        NumericTarget.fit(column, transform, values[train])
        low, median, high = np.quantile(values, [0, 0.5, 1])
        return {"column": column, "min": float(low), "median": float(median), "max": float(high)}
