"""Guess and random forest on a simulated study, subjects kept apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.spatial.distance import pdist, squareform
from scipy.stats import gmean
from sklearn.metrics import accuracy_score, mean_absolute_error
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from aam.data.abundance_features import centred_log_ratios, common_asvs, log_abundance_features
from aam.data.simulate import SimulatedStudy, simulate_study
from aam.evaluation.baseline import (
    BASELINES,
    BaselineStudy,
    fit_baseline,
    guess_baseline,
    random_forest_baseline,
)


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


def baseline_study(study: SimulatedStudy, *, classifier: bool = False) -> BaselineStudy:
    """With distances by Bray and Curtis."""
    shares = study.counts.toarray() / study.counts.sum(axis=1)[:, None]
    distances = squareform(pdist(shares, "braycurtis"))
    target = study.metadata["group"].to_numpy(dtype=str) if classifier else study.metadata["age"].to_numpy(dtype=float)
    groups = study.metadata["subject_id"].to_numpy()
    return BaselineStudy(
        csr_array(study.counts), target, classifier, groups, lambda rows, columns: distances[np.ix_(rows, columns)]
    )


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("classifier", [False, True], ids=["numbers", "classes"])
def test_each_is_no_worse_than_a_guess(
    name: str, classifier: bool, study: SimulatedStudy, split: tuple[np.ndarray, np.ndarray]
) -> None:
    train, test = split
    known = baseline_study(study, classifier=classifier)
    predicted = fit_baseline(name, known, train, test, seed=0, n_jobs=1)
    if not classifier:
        guess = fit_baseline("guess", known, train, test)
        errors = [mean_absolute_error(known.target[test], found.predicted) for found in (predicted, guess)]
        assert errors[0] < (1.0001 if name == "guess" else 0.9) * errors[1]
        return
    assert predicted.probabilities is not None and predicted.classes is not None
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1)
    assert (predicted.predicted == predicted.classes[predicted.probabilities.argmax(axis=1)]).all()
    assert set(predicted.predicted) <= set(known.target[train])


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_predicted_is_not_learnt_from(
    name: str, study: SimulatedStudy, split: tuple[np.ndarray, np.ndarray]
) -> None:
    """Neither its target nor its counts change what another sample is predicted."""
    train, test = split
    known = baseline_study(study)
    expected = fit_baseline(name, known, train, test, n_jobs=1).predicted
    target, counts = known.target.copy(), known.counts.toarray()
    target[test] = -1000.0
    counts[test[1:]] = np.roll(counts[test[1:]], 1, axis=1)
    other = replace(known, target=target, counts=csr_array(counts))
    found = fit_baseline(name, other, train, test[:1], n_jobs=1).predicted
    assert found[0] == pytest.approx(expected[0], rel=1e-6)


def test_centred_log_ratios() -> None:
    counts = np.array([[4, 0, 1, 7], [0, 2, 0, 3], [5, 1, 0, 0], [9, 9, 0, 9]])
    common = common_asvs(csr_array(counts), np.array([0, 1, 2]))
    assert common.tolist() == [0, 1, 3]
    found = centred_log_ratios(csr_array(counts)[:, common])
    kept = counts[:, [0, 1, 3]] + 0.5  # one training sample alone has the third
    np.testing.assert_allclose(found, np.log(kept / gmean(kept, axis=1)[:, None]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classifier", [False, True], ids=["numbers", "classes"])
def test_neighbours_are_scikit_learns(classifier: bool, study: SimulatedStudy) -> None:
    """For the number of neighbours that a grid over groups finds best."""
    known = baseline_study(study, classifier=classifier)
    rows = np.random.default_rng(0).permutation(len(known.target))
    train, test = rows[:90], rows[90:]
    found = fit_baseline("neighbours", known, train, test)
    assert known.distances is not None
    kind = KNeighborsClassifier if classifier else KNeighborsRegressor
    among, beyond = known.distances(train, train), known.distances(test, train)
    answers = []
    for k in (1, 3, 5, 9, 15, 25):
        model = kind(k, metric="precomputed", algorithm="brute").fit(among, known.target[train])
        answers.append(model.predict_proba(beyond) if classifier else model.predict(beyond))
    ours = found.probabilities if classifier else found.predicted
    assert any(np.allclose(ours, answer) for answer in answers)


def test_few_samples_of_a_class() -> None:
    """Nothing can be chosen by folds where a class is in one group alone."""
    rng = np.random.default_rng(1)
    counts = csr_array(rng.poisson(3, (12, 6)))
    target = np.array(["a", "b"] * 6)
    groups = np.array([f"{name}{i // 6}" if name == "a" else name for i, name in enumerate(target)])
    known = BaselineStudy(counts, target, True, groups, lambda rows, columns: rng.random((len(rows), len(columns))))
    for name in BASELINES:
        assert fit_baseline(name, known, np.arange(8), np.arange(8, 12), n_jobs=1).predicted.shape == (4,)
