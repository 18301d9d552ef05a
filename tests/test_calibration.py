"""Intervals and sets cover as often as they say: on draws of which the truth is known, and against plain versions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm

from aam.calibration import Calibration, fit_temperature, scores_of_classes, scores_of_numbers, tempered


def of_groups(rng: np.random.Generator, groups: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors of groups of 1 to 40 samples, that are ``alike`` within a group; and which is whose."""
    sizes = rng.integers(1, 41, groups)
    members = np.repeat(np.arange(groups), sizes)
    return rng.normal(0, alike, groups)[members] + rng.normal(0, 1, len(members)), members


def plain_quantile(scores: np.ndarray, groups: np.ndarray, level: float) -> float:
    """Sample by sample."""
    names = sorted(set(groups.tolist()))
    weighed = sorted(
        (score, 1 / (np.sum(groups == group) * len(names))) for score, group in zip(scores, groups, strict=True)
    )
    reached = 0.0
    for score, weight in weighed:
        reached += weight
        if reached >= level - 1e-12:
            return score
    return np.inf


def plain_share(scores: np.ndarray, groups: np.ndarray, level: float) -> float:
    """The least share that covers each group, its own scores counted as low, or what is promised for any."""
    names = sorted(set(groups.tolist()))
    for step in range(11):
        share = level * (1 + step / 10 / len(names))
        thresholds = [plain_quantile(np.where(groups == name, -1, scores), groups, share) for name in names]
        covered = [np.mean(scores[groups == name] <= end) for name, end in zip(names, thresholds, strict=True)]
        if np.mean(covered) >= level - 1e-12:
            return share
    return level * (1 + 1 / len(names))


@pytest.mark.parametrize("alike", [0.0, 2.0])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_the_share_is_that_of_a_plain_version(level: float, alike: float) -> None:
    rng = np.random.default_rng(10)
    for _ in range(5):
        errors, groups = of_groups(rng, 12, alike)
        scores = np.abs(errors).round(1)  # some are the same
        share = Calibration.of(scores, groups, np.zeros(len(errors), dtype=int)).share(level)
        assert share == pytest.approx(plain_share(scores, groups, level))
        assert level <= share <= level * 13 / 12 + 1e-12


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_the_threshold_is_that_of_a_plain_version(level: float) -> None:
    rng = np.random.default_rng(0)
    errors, groups = of_groups(rng, 12, 1)
    found = Calibration.of(np.abs(errors), groups, np.zeros(len(errors), dtype=int))
    share = plain_share(np.abs(errors), groups, level)
    assert found.threshold(level) == plain_quantile(np.abs(errors), groups, share)
    assert found.highest_level == 12 / 13 and found.threshold(0.95) == np.inf


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("number", [9, 10, 20, 30, 47, 199, 202, 999])
def test_of_single_samples_it_is_the_usual_conformal_quantile(number: int, level: float) -> None:
    scores = np.random.default_rng(1).random(number)
    found = Calibration.of(scores, None, np.zeros(number, dtype=int))
    assert found.threshold(level) == np.sort(scores)[int(np.ceil(level * (number + 1) - 1e-9)) - 1]


@pytest.mark.parametrize(("number", "level"), [(2, 0.5), (2, 0.4), (3, 1 / 3), (4, 0.25), (4, 0.2)])
def test_a_low_level_of_few_groups_is_held_too(number: int, level: float) -> None:
    rng = np.random.default_rng(12)
    thresholds = [
        Calibration.of(np.abs(rng.normal(size=number)), None, np.zeros(number, dtype=int)).threshold(level)
        for _ in range(1000)
    ]
    held = 2 * norm.cdf(thresholds) - 1
    assert held.mean() > level - 2 * held.std() / np.sqrt(1000)


@pytest.mark.parametrize("number", [10, 16, 30])
@pytest.mark.parametrize("alike", [0.0, 1.0, 10.0])
def test_ninety_percent_of_new_groups_samples_are_held_however_alike_they_are(number: int, alike: float) -> None:
    rng = np.random.default_rng(11)
    held = []
    for _ in range(300):
        errors, groups = of_groups(rng, number, alike)
        threshold = Calibration.of(np.abs(errors), groups, np.zeros(len(errors), dtype=int)).threshold(0.9)
        held.append(2 * norm.cdf(threshold / np.hypot(alike, 1)) - 1)
    assert np.mean(held) > 0.9 - 2 * np.std(held) / np.sqrt(300)
    assert np.mean(held) < 0.93


@pytest.mark.parametrize("alike", [0.0, 1.0, 3.0])
def test_intervals_cover_samples_of_new_groups(alike: float) -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        errors, groups = of_groups(rng, 15, alike)
        threshold = Calibration.of(np.abs(errors), groups, np.zeros(len(errors), dtype=int)).threshold(0.8)
        covered.append(np.abs(rng.normal(0, alike) + rng.normal(0, 1)) <= threshold)
    assert np.mean(covered) > 0.8 - 2.5 * np.sqrt(0.8 * 0.2 / 400)
    assert np.mean(covered) < 0.8 + 2.5 * np.sqrt(0.8 * 0.2 / 400)


def test_cross_validation_plus_is_that_of_a_plain_version() -> None:
    """Barber et al. 2021, equation 1.4 for folds, with the scores of a group sharing its weight."""
    rng = np.random.default_rng(3)
    errors, groups = of_groups(rng, 10, 1)
    models = groups % 3
    scores = np.abs(errors)
    predicted = rng.normal(0, 2, (7, 3))
    low, high = Calibration.of(scores, groups, models).intervals(predicted, predicted, 0.8)
    share = plain_share(scores, groups, 0.8)
    for row in range(7):
        assert high[row] == pytest.approx(plain_quantile(predicted[row, models] + scores, groups, share))
        assert low[row] == pytest.approx(-plain_quantile(scores - predicted[row, models], groups, share))


def test_one_model_has_intervals_of_one_width() -> None:
    scores = np.random.default_rng(4).random(50)
    found = Calibration.of(scores, None, np.zeros(50, dtype=int))
    predicted = np.array([[1.0], [5.0]])
    low, high = found.intervals(predicted, predicted, 0.9)
    np.testing.assert_allclose(high - predicted[:, 0], found.threshold(0.9))
    np.testing.assert_allclose(predicted[:, 0] - low, found.threshold(0.9))


def test_quantiles_make_widths_adapt() -> None:
    rng = np.random.default_rng(5)
    spread = np.repeat([0.5, 4.0], 300)
    actual = rng.normal(0, spread)
    low, high = norm.ppf(0.1) * spread, norm.ppf(0.9) * spread
    found = Calibration.of(scores_of_numbers(actual, low, high), None, np.zeros(600, dtype=int))
    new = np.array([[0.5], [4.0]])
    ends = found.intervals(norm.ppf(0.1) * new, norm.ppf(0.9) * new, 0.8)
    widths = ends[1] - ends[0]
    assert widths[1] > 4 * widths[0]
    assert abs(found.threshold(0.8)) < 0.25  # what was predicted covers nearly so many already
    narrower = found.intervals(norm.ppf(0.01) * new, norm.ppf(0.99) * new, 0.8)
    assert (narrower[0] <= narrower[1]).all()


def test_samples_are_judged_by_the_other_groups() -> None:
    rng = np.random.default_rng(6)
    errors, groups = of_groups(rng, 12, 1)
    found = Calibration.of(np.abs(errors), groups, np.zeros(len(errors), dtype=int))
    own = found.own_thresholds(0.8)
    assert np.isinf(found.own_thresholds(0.92)).all()
    for group in range(12):
        kept = groups != group
        share = plain_share(np.abs(errors)[kept], groups[kept], 0.8)
        expected = plain_quantile(np.abs(errors)[kept], groups[kept], share)
        assert (own[groups == group] == expected).all()


@pytest.mark.parametrize("alike", [None, 1.0])
def test_so_they_are_by_many_groups(alike: float | None) -> None:
    rng = np.random.default_rng(6)
    errors, groups = (rng.normal(size=260), np.arange(260)) if alike is None else of_groups(rng, 210, alike)
    scores = np.abs(errors).round(2)  # some are the same
    number = len(set(groups.tolist()))
    own = Calibration.of(scores, groups, np.zeros(len(errors), dtype=int)).own_thresholds(0.8)
    for group in range(number):
        kept = groups != group
        expected = plain_quantile(scores[kept], groups[kept], 0.8 * (1 + 1 / (number - 1)))
        assert (own[groups == group] == expected).all()


def test_sets_hold_the_true_class() -> None:
    rng = np.random.default_rng(7)
    probabilities = softmax(rng.normal(0, 2, (600, 3)), axis=1)
    places = np.array([rng.choice(3, p=row) for row in probabilities])
    threshold = Calibration.of(
        scores_of_classes(probabilities[:300], places[:300]), None, np.zeros(300, dtype=int)
    ).threshold(0.9)
    within = 1 - probabilities[300:] <= threshold
    assert within[np.arange(300), places[300:]].mean() == pytest.approx(0.9, abs=0.05)
    assert 1 <= within.sum(axis=1).mean() < 3


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(true: float) -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (4000, 3))
    places = np.array([rng.choice(3, p=row) for row in softmax(logits, axis=1)])
    given = softmax(logits * true, axis=1)  # surer than is right, where true is above 1
    found = fit_temperature(given, places)
    assert found == pytest.approx(true, rel=0.15)
    np.testing.assert_allclose(tempered(given, true), softmax(logits, axis=1), atol=1e-9)


def test_a_large_group_does_not_outweigh_the_others() -> None:
    """One subject of a thousand samples is always wrong; twenty of ten are not."""
    probabilities = np.tile([[0.9, 0.1]], (1200, 1))
    groups = np.concatenate([np.zeros(1000, dtype=int), np.repeat(np.arange(1, 21), 10)])
    places = np.where(groups == 0, 1, (np.arange(1200) % 10 == 0).astype(int))
    assert fit_temperature(probabilities, places) > 10
    assert fit_temperature(probabilities, places, groups) < 2
