"""Metrics in original units. Undefined ones are left out, not written as NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["BASE_METRICS", "classification_metrics", "composition_metrics", "pair_values", "regression_metrics"]


def regression_metrics(actual: NDArray[Any], predicted: NDArray[Any], prefix: str = "") -> dict[str, float]:
    """Errors and agreement of predicted numbers.

    Parameters
    ----------
    actual, predicted : ndarray (n,)
    prefix : str
        Put before each name, such as ``unifrac_``.

    Returns
    -------
    dict
        ``mae``, ``rmse``, and where ``actual`` varies ``r2`` = 1 - SS_residual / SS_total and ``spearman`` (0 for
        constant predictions).
    """
    actual = np.asarray(actual, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    residual = predicted - actual
    found = {"mae": float(np.abs(residual).mean()), "rmse": float(np.sqrt((residual**2).mean()))}
    if len(actual) > 1 and actual.min() < actual.max():  # the mean of equal numbers can be off by rounding
        found["r2"] = float(1 - (residual**2).sum() / ((actual - actual.mean()) ** 2).sum())
        varies = predicted.min() < predicted.max()
        found["spearman"] = float(np.corrcoef(_ranks(actual), _ranks(predicted))[0, 1]) if varies else 0.0
    return {prefix + name: value for name, value in found.items()}


def _ranks(values: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """From 1, those of equal values averaged; `scipy.stats` would take half a second to import."""
    return pd.Series(values).rank().to_numpy()


def composition_metrics(actual: NDArray[Any], predicted: NDArray[Any], prefix: str = "") -> dict[str, float]:
    """Agreement of predicted compositions.

    Parameters
    ----------
    actual, predicted : ndarray (n, T)
        Shares that sum to 1.
    prefix : str
        Put before each name.

    Returns
    -------
    dict
        ``bray_curtis``, the mean distance between a sample's two compositions (Bray and Curtis 1957), and where
        ``actual`` varies ``r2`` = 1 - SS_residual / SS_total over all samples and parts, each part around its own mean.
    """
    actual = np.asarray(actual, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    found = {"bray_curtis": float((np.abs(actual - predicted).sum(axis=1) / (actual + predicted).sum(axis=1)).mean())}
    if len(actual) > 1 and (actual.min(axis=0) < actual.max(axis=0)).any():
        found["r2"] = float(1 - ((predicted - actual) ** 2).sum() / ((actual - actual.mean(axis=0)) ** 2).sum())
    return {prefix + name: value for name, value in found.items()}


BASE_METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any], str], dict[str, float]]] = {
    "regression": regression_metrics,
    "composition": composition_metrics,
}


def classification_metrics(
    actual: NDArray[Any], predicted: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]
) -> dict[str, float]:
    """Agreement of predicted classes.

    Parameters
    ----------
    actual, predicted : ndarray (n,) of int
        Places in ``classes``.
    probabilities : ndarray (n, C)
    classes : sequence of str

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``f1_macro`` (mean over the classes
        that occur or are predicted), and ``roc_auc`` where at least two classes occur: one against the rest, mean
        over the classes that occur.
    """
    count = len(classes)
    table = np.zeros((count, count))
    np.add.at(table, (actual, predicted), 1)
    hits, occurs, guessed = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    known, seen = occurs > 0, (occurs + guessed) > 0
    found = {
        "accuracy": float(hits.sum() / len(actual)),
        "balanced_accuracy": float((hits[known] / occurs[known]).mean()),
        "f1_macro": float((2 * hits[seen] / (occurs + guessed)[seen]).mean()),
    }
    if known.sum() > 1:
        places = [1] if count == 2 else np.flatnonzero(known)
        found["roc_auc"] = float(np.mean([_auc(actual == c, probabilities[:, c]) for c in places]))
    return found


def _auc(positive: NDArray[np.bool_], score: NDArray[Any]) -> float:
    """Area under the ROC curve from ranks (Mann and Whitney 1947)."""
    ranks = _ranks(score)
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def pair_values(matrix: NDArray[Any]) -> NDArray[Any]:
    """The entries of a square matrix (n, n) above the diagonal, (n (n - 1) / 2,)."""
    return matrix[np.triu_indices(len(matrix), k=1)]
