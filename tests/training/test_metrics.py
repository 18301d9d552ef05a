from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from aam.training.metrics import classification_metrics, pair_values, regression_metrics


def test_regression():
    rng = np.random.default_rng(0)
    actual = rng.normal(size=40).round(1)
    predicted = (actual + rng.normal(size=40)).round(1)  # with ties
    assert regression_metrics(actual, predicted, "x_") == pytest.approx(
        {
            "x_mae": metrics.mean_absolute_error(actual, predicted),
            "x_rmse": metrics.root_mean_squared_error(actual, predicted),
            "x_r2": metrics.r2_score(actual, predicted),
            "x_spearman": stats.spearmanr(actual, predicted).statistic,
        }
    )


def test_undefined_agreement_is_left_out():
    assert regression_metrics(np.array([2.0]), np.array([3.0])) == {"mae": 1, "rmse": 1}
    assert regression_metrics(np.array([2.0, 2]), np.array([3.0, 1])) == {"mae": 1, "rmse": 1}
    for number in (0.1, 7.3, 25.1):  # the mean of some equal numbers is not quite the number
        for n in range(2, 9):
            assert regression_metrics(np.full(n, number), np.arange(n)).keys() == {"mae", "rmse"}
    constant = regression_metrics(np.array([1.0, 2, 3]), np.array([2.0, 2, 2]))
    assert constant["r2"] == 0 and constant["spearman"] == 0


def reference(actual: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a predicted class that is not in the truth
        found = {
            "accuracy": metrics.accuracy_score(actual, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(actual, predicted),
            "f1_macro": metrics.f1_score(actual, predicted, average="macro"),
        }
    known = np.unique(actual)
    if probabilities.shape[1] == 2 and len(known) == 2:
        found["roc_auc"] = metrics.roc_auc_score(actual, probabilities[:, 1])
    elif len(known) == probabilities.shape[1]:
        found["roc_auc"] = metrics.roc_auc_score(actual, probabilities, multi_class="ovr", average="macro")
    elif len(known) > 1:
        found["roc_auc"] = np.mean([metrics.roc_auc_score(actual == c, probabilities[:, c]) for c in known])
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("classes", "occur"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 2, 3]), (5, [1, 4]), (3, [2]), (2, [0])]
)
def test_classification(classes, occur, seed):
    rng = np.random.default_rng(seed)
    actual = rng.choice(occur, 30)
    actual[: len(occur)] = occur
    probabilities = rng.dirichlet(np.ones(classes), 30).round(2) + 0.005  # with ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    names = [f"class {i}" for i in range(classes)]
    found = classification_metrics(actual, predicted, probabilities, names)
    assert found == pytest.approx(reference(actual, predicted, probabilities))


def test_pair_values():
    assert pair_values(np.arange(9).reshape(3, 3)).tolist() == [1, 2, 5]
    assert pair_values(np.zeros((1, 1))).tolist() == []
