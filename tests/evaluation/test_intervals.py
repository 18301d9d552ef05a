"""Intervals from resampling groups, and paired comparisons."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from aam.evaluation.intervals import members_of, paired_difference, resampled_intervals


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
