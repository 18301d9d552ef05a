"""What ``aam check`` finds in the inputs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.config import USUAL_STEPS, DataConfig, ModelConfig, TaskConfig, TrainConfig, UsualEpochs
from aam.data.counts import MemoryCounts
from aam.data.covariates import Covariates, read_covariates
from aam.data.describe import SampleSizes, overlap, quantiles, read_samples, sample_sizes
from aam.data.distance_files import read_distance_file
from aam.data.draws import generator
from aam.data.labels import (
    FilePairs,
    LabelFiles,
    Labels,
    PairLabels,
    Pairs,
    StripePairs,
    ValueLabels,
    common_references,
)
from aam.data.leaks import leak_warnings
from aam.data.metadata import numeric_target, require_column
from aam.data.splits import read_folds, read_splits, watched_part
from aam.data.study import STUDY, LabelFile, Study, StudyFiles, align, read_files, study_names, unknown_samples
from aam.data.study_splits import fold_study, split_study, thin_parts
from aam.data.targets import ClassTarget, fit_targets, parts_of, require_repeated_classes
from aam.data.taxonomy import load_taxonomy, names_in_taxonomy
from aam.data.unifrac_loader import MEMORY_LIMIT, SampleValues, StripeMatrix
from aam.errors import DataError, in_file, named
from aam.estimate import BatchShape, Estimate, estimate
from aam.inputs import label_files

__all__ = ["check"]

Result = TypeVar("Result")
_MODEL, _TASK = ModelConfig(), TaskConfig()
_BATCH_SIZE: int = TrainConfig.model_fields["batch_size"].default
_NO_GROUPS = {"leave_out": (), "leave_one_group_out": False}
_PARTS = ("train", "val", "test")
_MOST_SAMPLES_OF_A_MEAN = 2000
_BATCHES_OF_AN_ESTIMATE = 5


def check(
    data: DataConfig,
    *,
    model: ModelConfig = _MODEL,
    task: TaskConfig = _TASK,
    epochs: int | None = None,
    train_steps: int = USUAL_STEPS,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """Read the inputs of a run and report on them.

    Parameters
    ----------
    data : DataConfig
    model : ModelConfig
        Its ``max_bp`` is where sequences are cut; the rest is for the estimate.
    task : TaskConfig
        What the target and the distance matrix hold.
    epochs : int, optional
        For the estimate; if left out as many as make the steps.
    train_steps : int
        For the estimate.
    batch_size : int
        For the estimate.
    seed : int
        Of the split.

    Returns
    -------
    dict
        ``samples``, ``studies``, ``depth``, ``asvs``, ``lengths``, ``asvs_per_sample``, ``overlap``, ``distances``,
        ``target``, ``covariates`` (only where any are given), ``split``, ``estimate`` (each None where it was not given
        or could not be read), ``problems`` and ``warnings``.
    """
    problems: list[str] = []
    labels = _attempt(problems, label_files, data, task.base_target)
    files = read_files(data, labels, problems)
    study: Study | None = None
    if files.complete:
        study = _align(files, data, partial(align, max_bp=model.max_bp, classifier=task.classifier), problems)
    else:
        _what_needs_no_table(files, data, labels or {}, task, problems)
    taxonomy = None if data.taxonomy is None else _attempt(problems, load_taxonomy, data.taxonomy)
    if task.base_target == "taxonomy" and data.taxonomy is None and not data.columns:
        problems.append("--base-target taxonomy learns what --taxonomy says of features; give one")
    target, covariates, split, leaks, unnamed = None, None, None, [], []
    if study is not None:
        if taxonomy is not None and data.taxonomy is not None:
            unnamed = _unnamed(problems, taxonomy, study, data.taxonomy)
        if study.target is not None and task.classifier:
            _attempt(problems, _repeated_classes, study.target, data)
        split = _attempt(problems, _split, study, data, task.classifier, seed)
        leaks = [] if split is None else _leaks(study, data, split.parts)
        if split is not None and split.folds is None:
            leaks += thin_parts(study, split.parts, classifier=task.classifier, group_column=data.group_column)
        train = np.arange(len(study)) if split is None else study.rows_of(split.parts, "train")
        _attempt(problems, _require_references, study, train, data)
        if study.target is not None:
            target = _attempt(problems, _target, study.target, train, data, task)
        if study.covariates is not None and list(study.covariates) == list(data.covariates):
            covariates = _attempt(problems, _covariates, study.covariates, train, data)
    sizes = None if study is None else sample_sizes(study, data, seed)
    estimated = partial(_estimate, epochs=epochs, train_steps=train_steps, batch_size=batch_size, seed=seed)
    return {
        "samples": _samples(files, study),
        "studies": _studies(files, study, data),
        "depth": None if sizes is None else quantiles(sizes.depth),
        "asvs": _asvs(files, study),
        "lengths": None if study is None else _lengths(study, model.max_bp),
        "asvs_per_sample": None if sizes is None else _asvs_per_sample(sizes, data),
        "overlap": _overlap(files),
        "distances": _distances(files),
        "target": target,
        **({"covariates": covariates} if data.covariates else {}),
        "split": None if study is None or split is None else _split_sizes(study, split),
        "estimate": None if study is None or split is None else estimated(study, split, data, model, task).to_dict(),
        "problems": problems,
        "warnings": [] if study is None else [*study.warnings, *unknown_samples(study), *unnamed, *leaks],
    }


def _what_needs_no_table(
    files: StudyFiles, data: DataConfig, labels: dict[str, LabelFiles], task: TaskConfig, problems: list[str]
) -> None:
    """Problems of the other files where a table could not be read, which must not hide them."""
    for name, of_target in labels.items():
        for path, known in zip(of_target.paths, files.labels.get(name, ()), strict=False):
            if known is None:
                _attempt(problems, read_distance_file, path, MEMORY_LIMIT)
    if data.splits is not None:
        _attempt(problems, read_splits if data.folds is None else read_folds, data.splits)
    if files.metadata is None:
        return
    source = Path(named(data.metadata or data.table))
    of_tables = len(data.table) > 1 and data.group_column == STUDY
    for column in (*data.columns, None if of_tables else data.group_column, data.split_column):
        if column is not None:
            _attempt(problems, require_column, files.metadata, column, source)
    ids = {name for file in files.tables if file is not None for name in file.table.sample_ids}
    metadata = files.metadata
    if metadata.index.isin(ids).any():  # of others, values are of no matter
        metadata = metadata[metadata.index.isin(ids)]
    for column in data.columns if not task.classifier else ():
        if column in metadata.columns:
            _attempt(problems, numeric_target, metadata[column], column, source)
    for name in data.categorical_columns:
        _attempt(problems, read_covariates, metadata, (name,), (), source)
    for name in data.numeric_columns:
        _attempt(problems, read_covariates, metadata, (), (name,), source)


def _unnamed(problems: list[str], taxonomy: Mapping[str, str], study: Study, path: Path) -> list[str]:
    """A warning of features that a taxonomy does not name."""
    found = _attempt(problems, names_in_taxonomy, taxonomy, study.feature_ids, study.sequences, path)
    if found is None or not found[1]:
        return []
    return [f"{path}: names no taxon of {found[1]} of {len(study.feature_ids)} features"]


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
    without: dict[str, Any] = {"metadata_column": (), "group_column": None, "split_column": None}
    without |= {"categorical_columns": (), "numeric_columns": ()}
    if files.metadata is None and data.metadata:  # it could not be read, which says nothing of its columns
        return _attempt(problems, step, files, data.model_copy(update=without | _NO_GROUPS))
    study = _attempt([], step, files, data)
    if study is not None:
        return study
    given: list[tuple[str, Any]] = [("metadata_column", (column,)) for column in data.columns]
    given += [(name, getattr(data, name)) for name in ("group_column", "split_column")]
    given += [("categorical_columns", (column,)) for column in data.categorical_columns]
    given += [("numeric_columns", (column,)) for column in data.numeric_columns]
    usable = data
    for option, value in given:
        if _attempt(problems, step, files, data.model_copy(update=without | {option: value})) is None:
            usable = usable.model_copy(update={option: without[option]})
    if usable.group_column is None:
        usable = usable.model_copy(update=_NO_GROUPS)
    return _attempt(problems, step, files, usable)


def _repeated_classes(values: NDArray[Any], data: DataConfig) -> None:
    with in_file(data.metadata):
        require_repeated_classes(data.columns, values)


def _require_references(study: Study, train: NDArray[np.int64], data: DataConfig) -> None:
    with in_file(data.unifrac_matrix):
        common_references(study.labels, train)


class _Split(NamedTuple):
    """The split, or that of the first fold."""

    parts: NDArray[Any]  # (N,)
    notes: list[str]
    folds: list[NDArray[Any]] | None = None  # K of (N,)


def _split(study: Study, data: DataConfig, classifier: bool, seed: int) -> _Split | None:
    """None where a problem of its own says why there is none."""
    of_groups = bool(data.leave_out) or data.leave_one_group_out
    if (of_groups and study.groups is None) or _lacks(study, data.split_column):
        return None
    if data.cross_validated:
        folds = fold_study(study, data, classifier=classifier, seed=seed, validate=False).splits
        return _Split(folds[0], [], folds)
    drawn = split_study(study, data, seed, validate=False)
    return _Split(drawn.parts, drawn.notes)


def _split_sizes(study: Study, split: _Split) -> dict[str, Any]:
    """Samples and groups of each part, and of each fold those that it holds out."""
    groups = study.groups
    return {
        **{part: int((split.parts == part).sum()) for part in _PARTS},
        "groups": None if groups is None else {part: len(set(groups[split.parts == part].tolist())) for part in _PARTS},
        "folds": None if split.folds is None else [int((parts == "test").sum()) for parts in split.folds],
        "notes": split.notes,
    }


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
        targets=data.columns,
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


def _studies(files: StudyFiles, study: Study | None, data: DataConfig) -> dict[str, int] | None:
    """Used samples of each of several tables."""
    if study is None or len(data.table) == 1:
        return None
    used = set(study.sample_ids)
    tables = zip(study_names(data.table), files.tables, strict=True)
    return {name: len(used.intersection(file.table.sample_ids)) for name, file in tables if file is not None}


def _lengths(study: Study, max_bp: int) -> dict[str, Any]:
    """Bases of the ASVs, and letters among them that are read as N."""
    lengths = np.array([len(sequence) for sequence in study.sequences])
    letters = [sum(sequence.count(base) for base in "ACGTUacgtu") for sequence in study.sequences]
    other = lengths - np.array(letters)
    return {
        **quantiles(lengths),
        "cut": int((lengths > max_bp).sum()),
        "with_other_letters": int((other > 0).sum()),
        "other_letters": int(other.sum()),
    }


def _asvs_per_sample(sizes: SampleSizes, data: DataConfig) -> dict[str, Any]:
    """How many ASVs samples have, and what the token limit leaves out of them."""
    return {
        **quantiles(sizes.asvs),
        "samples": len(sizes.asvs),
        "token_limit": data.token_limit,
        "over_limit": int((sizes.asvs > data.token_limit).sum()),
        "reads_lost": float(sizes.lost.sum() / sizes.reads.sum()),
    }


def _overlap(files: StudyFiles) -> dict[str, Any] | None:
    if None in files.tables:
        return None
    others: dict[str, Iterable[str]] = {}
    for name, found in files.labels.items():
        if None not in found:
            others[name] = [sample for labels in found if labels is not None for sample in labels.ids]
    if files.metadata is not None:
        others["metadata"] = [str(name) for name in files.metadata.index]
    return overlap((name for file in files.tables if file is not None for name in file.table.sample_ids), others)


def _estimate(
    study: Study,
    split: _Split,
    data: DataConfig,
    model: ModelConfig,
    task: TaskConfig,
    *,
    epochs: int | None,
    train_steps: int,
    batch_size: int,
    seed: int,
) -> Estimate:
    train = study.rows_of(split.parts, "train")
    draws = generator("batches of an estimate", seed, 0)
    lengths = np.array([min(len(sequence), model.max_bp) for sequence in study.sequences])
    references = max([_references(labels) for labels in study.labels.values()], default=0)
    asked = batch_size + min(references, data.stripe_references)
    shapes = []
    for _ in range(_BATCHES_OF_AN_ESTIMATE):
        rows = read_samples(study, data, seed, np.sort(draws.permutation(train)[:asked]))
        distinct, per_sample = np.unique(rows.asvs), np.diff(rows.indptr)
        tokens = int(lengths[distinct].max()) + 1
        shapes.append(BatchShape(len(per_sample), int(per_sample.max()), len(distinct), tokens))
    usual = UsualEpochs.of(len(train), batch_size, train_steps)
    return estimate(
        model,
        shapes,
        train_samples=len(train),
        val_samples=int((split.parts == watched_part(split.parts)).sum()),
        batch_size=batch_size,
        epochs=usual.epochs if epochs is None else epochs,
        whole_epochs=usual.of_asvs,
        restored_share=task.nuc_asv_fraction if task.nuc_weight > 0 else 0.0,
        with_target=bool(data.columns),
        data_bytes=_data_bytes(study),
        searches=epochs is None and bool(data.columns) and not usual.large,
        runs=1 if split.folds is None else len(split.folds),
    )


def _references(labels: Labels) -> int:
    """Samples that may go with a batch because distances are known to these alone."""
    return len(labels.references) if isinstance(labels, Pairs) and labels.references is not None else 0


def _data_bytes(study: Study) -> float:
    """What is kept of a study: tokens, and the counts and distances that are not left in their files."""
    kept = float(study.tokens.nbytes)
    if isinstance(study.counts, MemoryCounts):
        matrix = study.counts.matrix
        kept += matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    for labels in study.labels.values():
        if isinstance(labels, FilePairs):
            kept += sum(4.0 * len(part.matrix.ids) ** 2 for part in labels.parts if part.matrix.in_memory)
        elif isinstance(labels, StripePairs):
            rows, columns = labels.matrix.shape
            kept += 4.0 * rows * columns if labels.matrix.in_memory else 0.0
        elif isinstance(labels, PairLabels | ValueLabels):
            kept += labels.values.nbytes
    return kept


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


def _covariates(frame: pd.DataFrame, train: NDArray[np.int64], data: DataConfig) -> dict[str, Any]:
    """What is known of each covariate, and what of it a model of the training samples will not know."""
    with in_file(data.metadata):
        known = Covariates.fit(frame.iloc[train], data.categorical_columns, data.numeric_columns)
    found: dict[str, Any] = {}
    for fitted in known.categorical:
        labels, sizes = np.unique(frame[fitted.column].dropna().to_numpy().astype(str), return_counts=True)
        found[fitted.column] = {"classes": dict(zip(labels.tolist(), sizes.tolist(), strict=True))}
    for name in data.numeric_columns:
        found[name] = quantiles(frame[name].dropna().to_numpy())
    return {"columns": found, "unknown": known.unknown(frame)}


def _target(
    values: NDArray[Any], train: NDArray[np.int64], data: DataConfig, task: TaskConfig
) -> dict[str, Any] | list[dict[str, Any]]:
    """What the target, or each of several, holds, if what is fitted on the training samples serves for all."""
    with in_file(data.metadata):
        parts = parts_of(fit_targets(data.columns, values, train, task))
    found: list[dict[str, Any]] = []
    for part in parts:
        column, (known, own) = part.target.column, part.known(values)
        unknown = {} if part.place is None else {"unknown": int((~known).sum())}
        if isinstance(part.target, ClassTarget):
            labels, sizes = np.unique(own.astype(str), return_counts=True)
            classes = dict(zip(labels.tolist(), sizes.tolist(), strict=True))
            found.append({"column": column, "classes": classes, **unknown})
        else:
            found.append({"column": column, **quantiles(own), **unknown})
    return found[0] if len(found) == 1 else found
