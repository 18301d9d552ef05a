"""Guess and random forest on a simulated study, subjects kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import accuracy_score, mean_absolute_error

from aam.data.simulate import SimulatedStudy, simulate_study
from aam.evaluation.baseline import guess_baseline, log_abundance_features, random_forest_baseline


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(samples=120, asvs=100, subjects=30, seed=1)


@pytest.fixture(scope="module")
def split(study: SimulatedStudy) -> tuple[np.ndarray, np.ndarray]:
    held_out = study.metadata["subject_id"].isin([f"subject{i:02d}" for i in range(22, 31)]).to_numpy()
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def test_features_are_log_relative_abundances() -> None:
    counts = csr_array(np.array([[1, 0, 3], [0, 0, 0], [0, 20, 0]], dtype=np.int32))
    features = log_abundance_features(counts)
    assert features.dtype == np.float32
    np.testing.assert_allclose(
        features.toarray(), np.log1p([[2500, 0, 7500], [0, 0, 0], [0, 10_000, 0]]).astype(np.float32)
    )
    assert counts.dtype == np.int32
    assert counts.sum() == 24  # the table is left as it was


def test_forest_beats_guess_in_regression(study: SimulatedStudy, split: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = split
    age = study.metadata["age"].to_numpy()
    guess = guess_baseline(age[train], len(test), classifier=False)
    assert (guess.predicted == np.median(age[train])).all()
    forest = random_forest_baseline(
        study.counts[train], age[train], study.counts[test], classifier=False, seed=0, n_estimators=50, n_jobs=1
    )
    assert forest.predicted.shape == (len(test),)
    assert forest.probabilities is None
    assert mean_absolute_error(age[test], forest.predicted) < 0.7 * mean_absolute_error(age[test], guess.predicted)


def test_forest_beats_guess_in_classification(study: SimulatedStudy, split: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = split
    group = study.metadata["group"].to_numpy()
    guess = guess_baseline(group[train], len(test), classifier=True)
    forest = random_forest_baseline(
        study.counts[train], group[train], study.counts[test], classifier=True, seed=0, n_estimators=50, n_jobs=1
    )
    for prediction in (guess, forest):
        assert prediction.classes is not None
        assert prediction.probabilities is not None
        assert list(prediction.classes) == ["child", "infant", "toddler"]
        np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1)
        assert set(prediction.predicted) <= set(prediction.classes)
    assert accuracy_score(group[test], forest.predicted) > accuracy_score(group[test], guess.predicted) + 0.15


def test_seed_decides_the_forest(study: SimulatedStudy, split: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = split
    age = study.metadata["age"].to_numpy()
    first, again, other = (
        random_forest_baseline(
            study.counts[train], age[train], study.counts[test], classifier=False, seed=seed, n_estimators=5, n_jobs=1
        ).predicted
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_guess_takes_the_most_frequent_class() -> None:
    guess = guess_baseline(["b", "a", "b", "c"], 2, classifier=True)
    assert list(guess.predicted) == ["b", "b"]
    assert guess.probabilities is not None
    np.testing.assert_allclose(guess.probabilities, [[0.25, 0.5, 0.25]] * 2)
    assert list(guess_baseline(["b", "a"], 1, classifier=True).predicted) == ["a"]
