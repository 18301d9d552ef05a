"""What a model has to beat: a guess that never looks at the sample, and classical models of abundances and distances.

Everything that is chosen (a number of neighbours, a penalty) is chosen by cross-validation within the training samples,
samples of one group kept together.

Legend of shapes: ``N`` samples, ``n`` training samples, ``m`` samples to predict, ``A`` ASVs, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from aam.data.abundance_features import centred_log_ratios, common_asvs, log_abundance_features

__all__ = [
    "ABUNDANCE_MODELS",
    "BASELINES",
    "AbundanceModel",
    "Baseline",
    "BaselinePrediction",
    "BaselineStudy",
    "fit_abundance_model",
    "fit_baseline",
    "guess_baseline",
    "random_forest_baseline",
]

_TREES = 500
_MOST_COMPONENTS = 100
_NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_RIDGE_PENALTIES = tuple(np.logspace(-1, 5, 13))
_LOGISTIC_FREEDOMS = tuple(np.logspace(-5, 1, 7))
_INNER_FOLDS = 5
_BLOCK = 500  # samples whose distances are looked at together


@dataclass(frozen=True)
class BaselinePrediction:
    """Predictions of a baseline.

    Attributes
    ----------
    predicted : ndarray, shape (m,)
        Values in the units of the target (float64), or class labels (as they were given).
    classes : ndarray of shape (K,) or None
        Sorted labels, of classifiers only.
    probabilities : ndarray of float64, shape (m, K), or None
        Rows sum to 1; columns are ``classes``.
    """

    predicted: NDArray[Any]
    classes: NDArray[Any] | None = None
    probabilities: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class BaselineStudy:
    """What classical models learn from.

    Attributes
    ----------
    counts : csr_array, shape (N, A)
    target : ndarray, shape (N,)
        Numbers, or labels with ``classifier``.
    classifier : bool
    groups : ndarray of shape (N,) or None
        Samples of one group are not told apart when something is chosen.
    distances : callable or None
        Rows and columns to distances between these samples, NaN where none is known.
    """

    counts: csr_array
    target: NDArray[Any]
    classifier: bool
    groups: NDArray[Any] | None = None
    distances: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.floating[Any]]] | None = None


class Baseline(NamedTuple):
    """A classical model."""

    title: str
    predict: Callable[[BaselineStudy, NDArray[np.int64], NDArray[np.int64], int, int | None], BaselinePrediction]
    of_distances: bool = False


def fit_baseline(
    name: str,
    study: BaselineStudy,
    train: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    seed: int = 0,
    n_jobs: int | None = None,
) -> BaselinePrediction:
    """Fit a classical model and predict samples; of what is always the same in training all models say just that.

    Parameters
    ----------
    name : str
        One of `BASELINES`.
    study : BaselineStudy
    train : ndarray, shape (n,)
        Rows that are learnt from.
    rows : ndarray, shape (m,)
        Rows that are predicted.
    seed : int
    n_jobs : int, optional
        Trees grown at a time; -1 is one per core.
    """
    alike = len(np.unique(study.target[train])) < 2
    found = BASELINES["guess" if alike else name].predict(study, train, rows, seed, n_jobs)
    if not study.classifier and np.asarray(study.target, dtype=np.float64)[train].min() >= 0:
        found = replace(found, predicted=found.predicted.clip(min=0))  # as a network's predictions are
    return found


# -------------------------------------------------------------------------------------------------------------- models


def guess_baseline(train_target: Sequence[Any] | NDArray[Any], n: int, classifier: bool) -> BaselinePrediction:
    """Guess the same for each of ``n`` samples: the median (which has the least MAE), or the most frequent class.

    Ties between classes go to the first in sorted order; probabilities are the training frequencies.
    """
    target = _target(train_target, classifier)
    if not classifier:
        return BaselinePrediction(np.full(n, np.median(target)))
    classes, number = np.unique(target, return_counts=True)
    predicted = np.repeat(classes[[number.argmax()]], n)
    return BaselinePrediction(predicted, classes, np.tile(number / number.sum(), (n, 1)))


def random_forest_baseline(
    train_counts: csr_array,
    train_target: Sequence[Any] | NDArray[Any],
    eval_counts: csr_array,
    *,
    classifier: bool,
    seed: int = 0,
    n_estimators: int = 200,
    n_jobs: int | None = -1,
) -> BaselinePrediction:
    """Fit scikit-learn's random forest on log relative abundances and predict the samples to evaluate.

    Parameters
    ----------
    train_counts : csr_array, shape (n, A)
    train_target : array_like, shape (n,)
        Numbers, or labels with ``classifier``.
    eval_counts : csr_array, shape (m, A)
        The same ASVs in the same order.
    classifier : bool
    seed : int
    n_estimators : int
    n_jobs : int or None
        Trees grown at a time; -1 is one per core.
    """
    forest = _forest(classifier, n_estimators, seed, n_jobs)
    forest.fit(log_abundance_features(train_counts), _target(train_target, classifier))
    return _predicted(forest, log_abundance_features(eval_counts), classifier)


def _guess(
    study: BaselineStudy, train: NDArray[np.int64], rows: NDArray[np.int64], seed: int, n_jobs: int | None
) -> BaselinePrediction:
    return guess_baseline(study.target[train], len(rows), study.classifier)


class AbundanceModel(NamedTuple):
    """A classical model of abundances that has learnt.

    ``estimator`` is scikit-learn's: trees, or a pipeline of principal components and a linear model.
    """

    estimator: Any
    reading: Literal["log_abundance", "clr"]
    asvs: NDArray[np.int64]  # columns of the counts that its features are of

    def features(self, counts: csr_array) -> Any:
        """What it reads of counts (N, A)."""
        if self.reading == "log_abundance":
            return log_abundance_features(counts)[:, self.asvs]
        return centred_log_ratios(counts[:, self.asvs])


def fit_abundance_model(
    name: str, study: BaselineStudy, train: NDArray[np.int64], *, seed: int = 0, n_jobs: int | None = None
) -> AbundanceModel:
    """Fit one of `ABUNDANCE_MODELS`.

    Parameters
    ----------
    name : str
    study : BaselineStudy
    train : ndarray, shape (n,)
        Rows that are learnt from.
    seed : int
    n_jobs : int, optional
        Trees grown at a time; -1 is one per core.
    """
    return ABUNDANCE_MODELS[name](study, train, seed, n_jobs)


def _forest(classifier: bool, trees: int, seed: int, n_jobs: int | None) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if classifier else RandomForestRegressor
    return kind(n_estimators=trees, random_state=seed, n_jobs=n_jobs)


def _random_forest(study: BaselineStudy, train: NDArray[np.int64], seed: int, n_jobs: int | None) -> AbundanceModel:
    found = AbundanceModel(
        _forest(study.classifier, _TREES, seed, n_jobs), "log_abundance", np.arange(study.counts.shape[1])
    )
    return _fitted(found, study, train)


def _extra_trees(study: BaselineStudy, train: NDArray[np.int64], seed: int, n_jobs: int | None) -> AbundanceModel:
    """Extremely randomised trees (Geurts et al. 2006): of log abundances, for classes of centred log-ratios."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    shared: dict[str, Any] = {"n_estimators": _TREES, "random_state": seed, "n_jobs": n_jobs}
    if study.classifier:
        trees = ExtraTreesClassifier(class_weight="balanced", **shared)
        return _fitted(AbundanceModel(trees, "clr", common_asvs(study.counts, train)), study, train)
    trees = ExtraTreesRegressor(max_features=1 / 3, **shared)
    return _fitted(AbundanceModel(trees, "log_abundance", np.arange(study.counts.shape[1])), study, train)


def _linear(study: BaselineStudy, train: NDArray[np.int64], seed: int, n_jobs: int | None) -> AbundanceModel:
    """Ridge or logistic regression on principal components of centred log-ratios, its penalty chosen."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    asvs = common_asvs(study.counts, train)
    splits = _inner_splits(study, train)
    least = min((len(learnt) for learnt, _ in splits), default=0)
    if least < 2:  # of one sample there are no components
        splits, least = [], len(train)
    components = PCA(min(_MOST_COMPONENTS, least - 1, len(asvs)), random_state=seed)
    if study.classifier:
        model: Any = LogisticRegression(class_weight="balanced", max_iter=2000)
        grid: dict[str, Any] = {"model__C": list(_LOGISTIC_FREEDOMS)}
    else:
        model = Ridge()
        grid = {"model__alpha": list(_RIDGE_PENALTIES)}
    pipeline: Any = Pipeline([("components", components), ("model", model)])
    if splits:
        score: Any = _mean_recall if study.classifier else "neg_mean_absolute_error"
        pipeline = GridSearchCV(pipeline, grid, cv=splits, scoring=score)
    fitted = _fitted(AbundanceModel(pipeline, "clr", asvs), study, train)
    return fitted._replace(estimator=fitted.estimator.best_estimator_) if splits else fitted


def _fitted(model: AbundanceModel, study: BaselineStudy, train: NDArray[np.int64]) -> AbundanceModel:
    model.estimator.fit(model.features(study.counts[train]), _target(study.target[train], study.classifier))
    return model


ABUNDANCE_MODELS: dict[str, Callable[[BaselineStudy, NDArray[np.int64], int, int | None], AbundanceModel]] = {
    "random_forest": _random_forest,
    "extra_trees": _extra_trees,
    "linear": _linear,
}


def _by_abundances(
    name: str,
    study: BaselineStudy,
    train: NDArray[np.int64],
    rows: NDArray[np.int64],
    seed: int,
    n_jobs: int | None,
) -> BaselinePrediction:
    model = fit_abundance_model(name, study, train, seed=seed, n_jobs=n_jobs)
    return _predicted(model.estimator, model.features(study.counts[rows]), study.classifier)


def _mean_recall(model: Any, features: NDArray[Any], target: NDArray[Any]) -> float:
    """Balanced accuracy over the classes that occur; scikit-learn's own warns where one does not."""
    hits = model.predict(features) == target
    return float(np.mean([hits[target == name].mean() for name in np.unique(target)]))


def _neighbours(
    study: BaselineStudy, train: NDArray[np.int64], rows: NDArray[np.int64], seed: int, n_jobs: int | None
) -> BaselinePrediction:
    """The mean, or the votes, of the nearest training samples by the given distances; how many is chosen."""
    target = study.target[train]
    known = np.unique(target)
    values = (target[:, None] == known).astype(float) if study.classifier else np.asarray(target, float)[:, None]
    splits = _inner_splits(study, train)
    numbers = [k for k in _NEIGHBOURS if k <= min((len(learnt) for learnt, _ in splits), default=1)]
    errors = np.zeros(len(numbers))
    for learnt, there in splits:
        nearest = _nearest(study, train[there], train[learnt], numbers[-1])
        for place, k in enumerate(numbers):
            errors[place] += np.abs(values[learnt][nearest[:, :k]].mean(axis=1) - values[there]).mean()
    found = values[_nearest(study, rows, train, numbers[int(errors.argmin())])].mean(axis=1)  # (m, 1 or K)
    if not study.classifier:
        return BaselinePrediction(found[:, 0])
    return BaselinePrediction(known[found.argmax(axis=1)], known, found)


def _nearest(study: BaselineStudy, rows: NDArray[np.int64], among: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The places (m, k) of the nearest, nearest first; samples whose distance is not known are far."""
    assert study.distances is not None
    found = []
    for start in range(0, len(rows), _BLOCK):
        distances = study.distances(rows[start : start + _BLOCK], among)
        far = np.where(np.isnan(distances), np.inf, distances)
        found.append(np.argsort(far, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


BASELINES: dict[str, Baseline] = {
    "guess": Baseline("guess", _guess),
    "random_forest": Baseline("random forest", partial(_by_abundances, "random_forest")),
    "extra_trees": Baseline("extra trees", partial(_by_abundances, "extra_trees")),
    "linear": Baseline("linear on CLR components", partial(_by_abundances, "linear")),
    "neighbours": Baseline("nearest neighbours", _neighbours, of_distances=True),
}


# -------------------------------------------------------------------------------------------------------------- shared


def _inner_splits(study: BaselineStudy, train: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Folds within the training samples, as places among these; none where they are too few to divide."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    target = study.target[train]
    groups = None if study.groups is None else study.groups[train].astype(str)
    units = len(train) if groups is None else len(np.unique(groups))
    if study.classifier:
        _, members = np.unique(target, return_inverse=True)
        of_class = [
            len(np.unique(groups[members == c])) if groups is not None else int((members == c).sum())
            for c in range(members.max() + 1)
        ]
        units = min(of_class)
    folds = min(_INNER_FOLDS, units)
    if folds < 2:
        return []
    kind: Any
    if study.classifier:
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    else:
        kind = KFold if groups is None else GroupKFold
    splitter = kind(folds, shuffle=True, random_state=0)
    found = splitter.split(np.zeros((len(train), 1)), target, groups)
    number = len(np.unique(target)) if study.classifier else 0
    return [(learnt, there) for learnt, there in found if len(np.unique(target[learnt])) >= number]


def _predicted(model: Any, features: Any, classifier: bool) -> BaselinePrediction:
    if not classifier:
        return BaselinePrediction(np.asarray(model.predict(features), dtype=np.float64))
    probabilities = np.asarray(model.predict_proba(features), dtype=np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    classes = model.classes_
    return BaselinePrediction(classes[probabilities.argmax(axis=1)], classes, probabilities)


def _target(target: Sequence[Any] | NDArray[Any], classifier: bool) -> NDArray[Any]:
    return np.asarray(target) if classifier else np.asarray(target, dtype=np.float64)
