"""Intervals from resampling groups, and paired comparisons."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from aam.evaluation.intervals import errors_that_count, paired_difference, resampled_intervals
from aam.resampling import members_of


def mean_of(values: np.ndarray):
    return lambda rows: {"mean": float(values[rows].mean())}


def test_groups_are_kept_whole() -> None:
    groups = np.array(["b", "a", "b", "c", "a"])
    assert [rows.tolist() for rows in members_of(groups, 5)] == [[1, 4], [0, 2], [3]]
    seen: list[set[int]] = []
    resampled_intervals(lambda rows: seen.append(set(rows.tolist())) or {"n": 1.0}, 5, groups, draws=50)
    assert all(({1, 4} <= rows or not {1, 4} & rows) and ({0, 2} <= rows or not {0, 2} & rows) for rows in seen)


def test_independent_samples_have_scipys_interval() -> None:
    values = np.random.default_rng(0).normal(2, 1, 80)
    found = resampled_intervals(mean_of(values), 80, draws=4000)["mean"]
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_it_covers_the_mean_of_groups_that_differ() -> None:
    """Samples of a group are alike: resampling samples would be far too sure."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 15)
    covered = {"groups": 0, "samples": 0}
    for trial in range(100):
        values = rng.normal(0, 1, 20)[groups] + rng.normal(0, 0.3, 300)
        for name, of in (("groups", groups), ("samples", None)):
            low, high = resampled_intervals(mean_of(values), 300, of, draws=200, seed=trial)["mean"]
            covered[name] += low <= 0 <= high
    assert covered["groups"] >= 85
    assert covered["samples"] <= 60


def test_a_metric_that_is_often_undefined_has_none() -> None:
    found = resampled_intervals(lambda rows: {"rare": 1.0} if len(set(rows)) == 1 else {"usual": 2.0}, 6, draws=200)
    assert found.keys() == {"usual"}
    assert resampled_intervals(mean_of(np.ones(4)), 4, np.array(["a"] * 4)) == {}


@pytest.mark.parametrize("unit", [1, 1e3, 1e7])
def test_p_is_the_same_in_any_unit_and_never_0(unit: float) -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(8), 5)
    for _ in range(30):
        first, second = rng.random(40) + 1, rng.random(40)
        assert paired_difference(first * unit, second * unit, groups).p == 2 / 256


def test_draws_of_many_groups_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    first, second = rng.random((2, 40))
    for classes in (None, np.arange(40) % 3):
        whole = paired_difference(first, second, classes=classes)
        with monkeypatch.context() as small:
            small.setattr("aam.resampling._BLOCK", 1000)
            assert paired_difference(first, second, classes=classes) == whole


def test_signs_of_few_groups_are_all_tried() -> None:
    """Against every exchange, written out."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(8), 4)
    first, second = rng.random(32) + 0.1 * (groups > 2), rng.random(32)
    found = paired_difference(first, second, groups)
    sums = [float((first - second)[groups == group].sum()) for group in range(8)]
    as_large = [
        abs(sum(sign * part for sign, part in zip(signs, sums, strict=True))) >= abs(sum(sums)) - 1e-12
        for signs in product([1, -1], repeat=8)
    ]
    assert found.p == pytest.approx(np.mean(as_large))
    assert found.value == pytest.approx(np.mean(first - second))
    assert found.interval.low < found.value < found.interval.high


def test_no_difference_is_seldom_found() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(24), 5)
    p = []
    for trial in range(60):
        shift = rng.normal(0, 0.5, 24)[groups]
        p.append(paired_difference(rng.random(120) + shift, rng.random(120), groups, draws=500, seed=trial).p)
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert paired_difference(np.ones(120), np.zeros(120), groups).p < 0.001


def of_subjects(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """30 subjects of one class each, 15 samples of each, of which a share is told rightly."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(30), 15)
    actual = (groups < 18).astype(int)
    return groups, actual, np.where(rng.random(len(actual)) < share, actual, 1 - actual)


def test_classes_that_are_the_same_for_a_whole_group() -> None:
    """How many groups of each class are drawn is no part of the interval: it is that of balanced accuracy itself."""
    groups, actual, predicted = of_subjects(0, 0.65)
    guess = np.ones_like(actual)
    own, other = (errors_that_count(actual, values, classes=True) for values in (predicted, guess))
    found = paired_difference(own, other, groups, classes=actual, constant=True)

    def metrics(rows: np.ndarray) -> dict[str, float]:
        if len(set(actual[rows])) < 2:
            return {}
        return {"difference": 0.5 - balanced_accuracy_score(actual[rows], predicted[rows])}

    expected = resampled_intervals(metrics, len(actual), groups, draws=4000)["difference"]
    np.testing.assert_allclose(found.interval, expected, atol=0.006)
    assert found.value == pytest.approx(0.5 - balanced_accuracy_score(actual, predicted))
    assert found.interval.high < 0 and found.p < 0.01


def test_answers_that_know_nothing_of_the_class_are_seldom_better_than_a_guess() -> None:
    better = 0
    for seed in range(60):
        groups, actual, predicted = of_subjects(seed, 0.5)
        own, other = (errors_that_count(actual, values, classes=True) for values in (predicted, np.ones_like(actual)))
        found = paired_difference(own, other, groups, classes=actual, constant=True, draws=500)
        better += found.interval.high < 0
    assert better <= 6  # 1.5 are expected


def test_numbers_need_no_classes() -> None:
    rng = np.random.default_rng(4)
    first, second, groups = rng.random(40), rng.random(40), np.repeat(np.arange(10), 4)
    one_class = paired_difference(first, second, groups, classes=np.zeros(40))
    assert paired_difference(first, second, groups) == one_class
