"""Classical models on the samples, the split and the rarefaction of a run: what ``aam baseline`` computes.

Shapes: ``N`` samples, ``m`` of them predicted, ``T`` columns, ``K`` classes.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from aam.config import DataConfig, ModelConfig
from aam.data.labels import LabelFiles, Pairs
from aam.data.splits import write_splits
from aam.data.study import Study, load_study
from aam.data.study_splits import fold_study, split_study
from aam.data.targets import known_values, require_repeated_classes
from aam.errors import DataError, in_file
from aam.evaluation.baseline import (
    BASELINES,
    AbundanceModel,
    BaselinePrediction,
    BaselineStudy,
    fit_abundance_model,
    fit_baseline,
)
from aam.joined import ClassicalModel, Linear, Trees, counts_as_judged
from aam.run_directory import RunDirectory, write_json, write_table
from aam.training.metrics import classification_metrics, regression_metrics

__all__ = [
    "BaselinesResult",
    "baseline_names",
    "baselines_of_folds",
    "baselines_of_split",
    "classical_models",
    "run_baselines",
]

logger = logging.getLogger("aam")

_NEVER = -1e9  # the logarithm of the probability of a class that was never seen
_MAX_BP: int = ModelConfig.model_fields["max_bp"].default


@dataclass(frozen=True)
class BaselinesResult:
    """What classical models come to."""

    directory: Path | None
    metrics: dict[str, dict[str, dict[str, float]]]  # model to part (val, test, or oof with folds) to metrics
    samples: dict[str, int]  # of each part


def baseline_names(study: Study, asked: Sequence[str] = ()) -> list[str]:
    """The models that can be fitted, of those asked for; all by default.

    Raises
    ------
    DataError
        If one is asked for that needs distances, and there are none.
    """
    has_distances = _distances(study) is not None
    for name in asked:
        if BASELINES[name].of_distances and not has_distances:
            raise DataError(f"--model {name} predicts from distances; give --unifrac-matrix, of all pairs of samples")
    return [
        name
        for name, model in BASELINES.items()
        if (name in asked if asked else has_distances or not model.of_distances)
    ]


def run_baselines(
    data: DataConfig,
    labels: dict[str, LabelFiles],
    *,
    classifier: bool = False,
    models: Sequence[str] = (),
    seed: int = 0,
    n_jobs: int | None = None,
    output_dir: Path | None = None,
    overwrite: bool = False,
) -> BaselinesResult:
    """Fit classical models on a study as a run would split it.

    Parameters
    ----------
    data : DataConfig
        With ``metadata_column``, of which each of several has models of its own, learnt from the samples whose value is
        known; with folds, every sample is predicted by models that did not see its fold.
    labels : dict of str to LabelFiles
        See `aam.inputs.label_files`; the first distances are those of the nearest neighbours.
    classifier : bool
    models : sequence of str
        Of `aam.evaluation.baseline.BASELINES`; all that can be fitted by default.
    seed : int
        Of the split, the rarefaction and the models.
    n_jobs : int, optional
        Trees grown at a time; -1 is one per core.
    output_dir : Path, optional
        Gets ``metrics.json``, ``splits.tsv`` and the predictions of each model.
    overwrite : bool
        Replace what stands there.

    Raises
    ------
    DataError
        If the inputs cannot be used.
    """
    directory = None if output_dir is None else RunDirectory(output_dir)
    if directory is not None:
        directory.require_free(resume=False, overwrite=overwrite)
    study = load_study(data, labels, max_bp=_MAX_BP, classifier=classifier, checksums=False)
    assert study.target is not None
    if classifier:
        with in_file(data.metadata):
            require_repeated_classes(data.columns, study.target)
    names = baseline_names(study, models)
    columns = _columns(study, data, classifier, seed)
    for text in study.warnings:
        logger.warning(text)
    for reason, left_out in study.left_out.items():
        logger.info("%d left out: %s", len(left_out), reason)
    folds: NDArray[np.int64] | None = None
    if data.cross_validated:
        folds = fold_study(study, data, classifier=classifier, seed=seed, validate=False).of_sample
        split = np.where(folds >= 0, "test", "train")
        found = {name: _out_of_fold(name, columns, folds, seed, n_jobs) for name in names}
    else:
        split, notes = split_study(study, data, seed, validate=False)
        for note in notes:
            logger.info(note)
        found = {name: dict(_held_out(name, columns, split, seed, n_jobs)) for name in names}
    metrics = _metrics_of_all(columns, found)
    if directory is not None:
        directory.create(overwrite=overwrite)
        for name, part in itertools.product(BASELINES, ("val", "test", "oof")):  # of models that are not asked for now
            (directory / _file_of(name, part)).unlink(missing_ok=True)
        write_splits(directory / "splits.tsv", study.sample_ids, split, folds)
        for name, parts in found.items():
            for part, predicted in parts.items():
                ids = [study.sample_ids[row] for row in predicted.rows]
                write_table(directory / _file_of(name, part), _table(ids, columns, predicted))
        column = list(data.columns) if len(data.columns) > 1 else data.columns[0]
        write_json(directory / "metrics.json", {"column": column, "baseline": metrics})
    samples = {part: len(predicted.rows) for part, predicted in found[names[0]].items()}
    return BaselinesResult(output_dir, metrics, samples)


def baselines_of_split(
    study: Study, split: NDArray[Any], data: DataConfig, *, classifier: bool, seed: int, n_jobs: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """What the classical models come to on the held-out samples of a run: model to ``val`` and ``test`` to metrics.

    Parameters
    ----------
    study : Study
        With a target.
    split : ndarray (N,) of str
    data : DataConfig
    classifier : bool
    seed : int
    n_jobs : int, optional
    """
    columns = _columns(study, data, classifier, seed)
    names = baseline_names(study)
    return _metrics_of_all(columns, {name: dict(_held_out(name, columns, split, seed, n_jobs)) for name in names})


def baselines_of_folds(
    study: Study, folds: NDArray[np.int64], data: DataConfig, *, classifier: bool, seed: int, n_jobs: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """What the classical models come to on all samples, each predicted by those of the other folds.

    Parameters
    ----------
    study : Study
        With a target.
    folds : ndarray (N,) of int
        Negative where a sample is learnt from in every fold.
    data : DataConfig
    classifier : bool
    seed : int
    n_jobs : int, optional
    """
    columns = _columns(study, data, classifier, seed)
    names = baseline_names(study)
    return _metrics_of_all(columns, {name: _out_of_fold(name, columns, folds, seed, n_jobs) for name in names})


def classical_models(
    name: str,
    study: Study,
    counts: csr_array,
    splits: Sequence[NDArray[Any]],
    *,
    classes: Sequence[str] = (),
    seed: int,
    n_jobs: int | None,
) -> list[ClassicalModel]:
    """Models of abundances, as arrays that predict by themselves, of the training samples of each split.

    Parameters
    ----------
    name : str
        Of `aam.evaluation.baseline.ABUNDANCE_MODELS`.
    study : Study
        With a target.
    counts : csr_array (N, A)
        See `aam.joined.counts_as_judged`.
    splits : sequence of ndarray (N,) of str
    classes : sequence of str
        That probabilities are for, in order; none for a number.
    seed : int
    n_jobs : int, optional
    """
    assert study.target is not None
    known = _known_by(study, counts, study.target, bool(classes))
    found = []
    for split in splits:
        fitted = fit_abundance_model(name, known, np.flatnonzero(split == "train"), seed=seed, n_jobs=n_jobs)
        found.append(_as_arrays(fitted, study.sequences, tuple(classes)))
    return found


def _as_arrays(fitted: AbundanceModel, sequences: Sequence[str], classes: tuple[str, ...]) -> ClassicalModel:
    """Without scikit-learn, and without the ASVs that no tree asks for."""
    estimator = fitted.estimator
    asvs = fitted.asvs
    if hasattr(estimator, "estimators_"):
        trees = _trees(estimator, classes)
        if fitted.reading == "log_abundance":  # of log-ratios, each depends on all
            inner = trees.feature >= 0
            asked, places = np.unique(trees.feature[inner], return_inverse=True)
            feature = np.full_like(trees.feature, -1)
            feature[inner] = places
            trees, asvs = trees._replace(feature=feature), asvs[asked]
        model: Linear | Trees = trees
    else:
        model = _linear(estimator, classes)
    return ClassicalModel(fitted.reading, tuple(sequences[asv] for asv in asvs), model, bool(classes))


def _trees(forest: Any, classes: tuple[str, ...]) -> Trees:
    trees = [each.tree_ for each in forest.estimators_]
    sizes = np.array([tree.node_count for tree in trees])
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shift = np.repeat(roots, sizes)

    def side(name: str) -> NDArray[np.int32]:
        places = np.concatenate([getattr(tree, name) for tree in trees])
        return np.where(places >= 0, places + shift, -1).astype(np.int32)

    left = side("children_left")
    feature = np.concatenate([tree.feature for tree in trees]).astype(np.int32)
    answer = np.concatenate([tree.value[:, 0] for tree in trees])
    if classes:
        answer = _in_order(answer / answer.sum(axis=1, keepdims=True), forest.classes_, classes, 0.0)
    threshold = np.concatenate([tree.threshold for tree in trees])
    return Trees(roots, np.where(left >= 0, feature, -1), threshold, left, side("children_right"), answer)


def _linear(pipeline: Any, classes: tuple[str, ...]) -> Linear:
    """Components and what is made of them, as weights of the features themselves."""
    components, model = pipeline.named_steps["components"], pipeline.named_steps["model"]
    weights = components.components_.T @ np.atleast_2d(model.coef_).T  # (F, C)
    offsets = np.atleast_1d(model.intercept_) - components.mean_ @ weights
    if not classes:
        return Linear(weights.astype(np.float64), offsets.astype(np.float64))
    if weights.shape[1] == 1:  # of two classes: the second against the first
        weights, offsets = np.pad(weights, ((0, 0), (1, 0))), np.pad(offsets, (1, 0))
    weights = _in_order(weights, model.classes_, classes, 0.0)
    return Linear(weights, _in_order(offsets[None], model.classes_, classes, _NEVER)[0])


def _in_order(
    values: NDArray[np.float64], known: NDArray[Any], classes: Sequence[str], otherwise: float
) -> NDArray[np.float64]:
    """Columns of the classes, among which are some that the training samples lack."""
    place = {str(name): i for i, name in enumerate(classes)}
    found = np.full((len(values), len(classes)), otherwise)
    found[:, [place[str(name)] for name in known]] = values
    return found


class _Column(NamedTuple):
    """One that is predicted."""

    name: str
    prefix: str  # of the names of its metrics and of what is written: none where it is alone
    known: NDArray[np.bool_]  # (N,), of which samples
    study: BaselineStudy  # as samples are read when they are judged


def _columns(study: Study, data: DataConfig, classifier: bool, seed: int) -> list[_Column]:
    assert study.target is not None
    counts = counts_as_judged(study, data, seed)
    found = []
    for name, values in zip(data.columns, study.target.reshape(len(study), -1).T, strict=True):
        prefix = f"{name}_" if len(data.columns) > 1 else ""
        found.append(_Column(name, prefix, known_values(values), _known_by(study, counts, values, classifier)))
    return found


def _known_by(study: Study, counts: csr_array, values: NDArray[Any], classifier: bool) -> BaselineStudy:
    pairs = _distances(study)
    target = values.astype(str) if classifier else values.astype(np.float64)
    return BaselineStudy(counts, target, classifier, study.groups, None if pairs is None else pairs.block)


def _distances(study: Study) -> Pairs | None:
    """The first distances between all samples."""
    for labels in study.labels.values():
        if isinstance(labels, Pairs) and labels.references is None:
            return labels
    return None


def _file_of(name: str, part: str) -> str:
    return f"{name}_{part}_predictions.tsv"


class Predicted(NamedTuple):
    """What a model says of held-out samples, of each column."""

    rows: NDArray[np.int64]  # (m,)
    of_column: list[BaselinePrediction]


def _fitted(
    name: str, columns: Sequence[_Column], train: NDArray[np.bool_], rows: NDArray[np.int64], **options: Any
) -> Predicted:
    """What a model says of samples (m,), learnt from those that are marked (N,) and whose value is known."""
    found = []
    for column in columns:
        learnt = np.flatnonzero(train & column.known)
        if not len(learnt):
            raise DataError(
                f"column {column.name!r} is empty for every sample that {len(rows)} held-out ones are to be predicted "
                "from; choose another --metadata-column"
            )
        found.append(fit_baseline(name, column.study, learnt, rows, **options))
    return Predicted(rows, found)


def _held_out(
    name: str, columns: Sequence[_Column], split: NDArray[Any], seed: int, n_jobs: int | None
) -> Iterator[tuple[str, Predicted]]:
    """A model's predictions of each held-out part.

    It needs no validation samples to know when to stop, so those of the test may be predicted from these, too.
    """
    for part, learnt in (("val", ("train",)), ("test", ("train", "val"))):
        rows = np.flatnonzero(split == part)
        if len(rows):
            yield part, _fitted(name, columns, np.isin(split, learnt), rows, seed=seed, n_jobs=n_jobs)


def _out_of_fold(
    name: str, columns: Sequence[_Column], folds: NDArray[np.int64], seed: int, n_jobs: int | None
) -> dict[str, Predicted]:
    """A model's predictions of every sample by the others than its fold's."""
    each = [
        _fitted(name, columns, folds != fold, np.flatnonzero(folds == fold), seed=seed, n_jobs=n_jobs)
        for fold in range(int(folds.max()) + 1)
    ]
    rows = np.concatenate([of_fold.rows for of_fold in each])
    order = np.argsort(rows, kind="stable")
    pooled = []
    for place, column in enumerate(columns):
        found = [of_fold.of_column[place] for of_fold in each]
        predicted = np.concatenate([of_fold.predicted for of_fold in found])[order]
        classes, probabilities = None, None
        if column.study.classifier:
            classes = np.unique(column.study.target[column.known])
            probabilities = np.concatenate([_of_classes(of_fold, classes) for of_fold in found])[order]
        pooled.append(BaselinePrediction(predicted, classes, probabilities))
    return {"oof": Predicted(rows[order], pooled)}


def _of_classes(predicted: BaselinePrediction, classes: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities with a column for every class."""
    assert predicted.classes is not None
    assert predicted.probabilities is not None
    return _in_order(predicted.probabilities, predicted.classes, classes.tolist(), 0.0)


def _metrics_of_all(
    columns: Sequence[_Column], found: Mapping[str, Mapping[str, Predicted]]
) -> dict[str, dict[str, dict[str, float]]]:
    """By model and part."""
    return {name: {part: _judged(columns, of) for part, of in parts.items()} for name, parts in found.items()}


def _judged(columns: Sequence[_Column], predicted: Predicted) -> dict[str, float]:
    """The metrics of each column, of the samples whose value is known."""
    metrics: dict[str, float] = {}
    for column, of_column in zip(columns, predicted.of_column, strict=True):
        known = column.known[predicted.rows]
        if known.any():
            own = _metrics(column.study.target[predicted.rows[known]], _some(of_column, known))
            metrics |= {f"{column.prefix}{name}": value for name, value in own.items()}
    return metrics


def _some(predicted: BaselinePrediction, which: NDArray[np.bool_]) -> BaselinePrediction:
    """Of some of the samples (m,)."""
    probabilities = predicted.probabilities
    kept = None if probabilities is None else probabilities[which]
    return replace(predicted, predicted=predicted.predicted[which], probabilities=kept)


def _metrics(actual: NDArray[Any], predicted: BaselinePrediction) -> dict[str, float]:
    if predicted.classes is None:
        return regression_metrics(actual.astype(np.float64), predicted.predicted)
    classes = np.unique(np.concatenate([predicted.classes, actual.astype(str)]))
    return classification_metrics(
        np.searchsorted(classes, actual.astype(str)),
        np.searchsorted(classes, predicted.predicted),
        _of_classes(predicted, classes),
        [str(name) for name in classes],
    )


def _table(ids: list[str], columns: Sequence[_Column], predicted: Predicted) -> pd.DataFrame:
    """As `aam predict` writes predictions."""
    blocks: dict[str, Any] = {"sample_id": ids}
    for column, of_column in zip(columns, predicted.of_column, strict=True):
        block = {"actual": _cells(column, predicted.rows), "predicted": of_column.predicted}
        if of_column.classes is not None and of_column.probabilities is not None:
            named = zip(of_column.classes, of_column.probabilities.T, strict=True)
            block |= {f"prob_{name}": values for name, values in named}
        blocks |= {f"{column.prefix}{name}": values for name, values in block.items()}
    return pd.DataFrame(blocks)


def _cells(column: _Column, rows: NDArray[np.int64]) -> NDArray[Any]:
    """The truth of samples (m,), empty where it is unknown."""
    actual = column.study.target[rows]
    return np.where(column.known[rows], actual, "") if column.study.classifier else actual
