"""What a model has to beat: a guess that never looks at the sample, and a random forest on relative abundances.

Legend of shapes: ``N`` samples, ``A`` ASVs, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["BaselinePrediction", "guess_baseline", "log_abundance_features", "random_forest_baseline"]

SCALE = 1e4  # relative abundances are read as counts out of ten thousand before the logarithm


@dataclass(frozen=True)
class BaselinePrediction:
    """Predictions of a baseline.

    Attributes
    ----------
    predicted : ndarray, shape (N,)
        Values in the units of the target (float64), or class labels (as they were given).
    classes : ndarray of shape (K,) or None
        Sorted labels, of classifiers only.
    probabilities : ndarray of float64, shape (N, K), or None
        Rows sum to 1; columns are ``classes``.
    """

    predicted: NDArray[Any]
    classes: NDArray[Any] | None = None
    probabilities: NDArray[np.float64] | None = None


def log_abundance_features(counts: csr_array) -> csr_array:
    """Return ``log1p(1e4 · relative abundance)``, sparse as the table is; an empty sample stays empty.

    Parameters
    ----------
    counts : csr_array, shape (N, A)

    Returns
    -------
    csr_array of float32, shape (N, A)
    """
    features = counts.astype(np.float64)
    depth = np.asarray(features.sum(axis=1))  # (N,)
    features.data *= SCALE / np.repeat(depth, np.diff(features.indptr))
    np.log1p(features.data, out=features.data)
    return features.astype(np.float32)


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
    train_counts : csr_array, shape (N_train, A)
    train_target : array_like, shape (N_train,)
        Numbers, or labels with ``classifier``.
    eval_counts : csr_array, shape (N, A)
        The same ASVs in the same order.
    classifier : bool
    seed : int
    n_estimators : int
    n_jobs : int or None
        Trees grown at a time; -1 is one per core.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if classifier else RandomForestRegressor
    forest = kind(n_estimators=n_estimators, random_state=seed, n_jobs=n_jobs)
    forest.fit(log_abundance_features(train_counts), _target(train_target, classifier))
    features = log_abundance_features(eval_counts)
    if not classifier:
        return BaselinePrediction(forest.predict(features))
    probabilities = forest.predict_proba(features)
    return BaselinePrediction(forest.classes_[probabilities.argmax(axis=1)], forest.classes_, probabilities)


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


def _target(target: Sequence[Any] | NDArray[Any], classifier: bool) -> NDArray[Any]:
    return np.asarray(target) if classifier else np.asarray(target, dtype=np.float64)
