"""Classical models as arrays say what scikit-learn's own say, and are joined as a plain version joins them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.sparse import csr_array

from aam.baselines import _as_arrays
from aam.data.simulate import SimulatedStudy, simulate_study
from aam.evaluation.baseline import ABUNDANCE_MODELS, BaselineStudy, fit_abundance_model
from aam.joined import ClassicalModel, Joined, best_share, mixed


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(samples=120, asvs=100, subjects=30, seed=1)


def known_study(study: SimulatedStudy, target: np.ndarray, classifier: bool) -> BaselineStudy:
    return BaselineStudy(study.counts, target, classifier, study.metadata["subject_id"].to_numpy())


@pytest.mark.parametrize("kind", ["numbers", "two classes", "three classes", "a class too many"])
@pytest.mark.parametrize("name", ABUNDANCE_MODELS)
def test_arrays_predict_as_scikit_learn(name: str, kind: str, study: SimulatedStudy) -> None:
    age = study.metadata["age"].to_numpy()
    train, rows = np.arange(90), np.arange(90, 120)
    classes: tuple[str, ...] = ()
    target = age
    if kind != "numbers":
        ends = np.quantile(age, [0.5] if kind == "two classes" else [0.3, 0.6])
        target = np.array(["a", "b", "c"])[np.searchsorted(ends, age)]
        classes = tuple(np.unique(target))
    if kind == "a class too many":
        classes = ("A", *classes)
    fitted = fit_abundance_model(name, known_study(study, target, bool(classes)), train, n_jobs=1)
    model = _as_arrays(fitted, study.sequences, classes)
    stored = load(save(model.arrays()))
    model = ClassicalModel.read(model.to_dict(), stored)
    # The table of other samples has its ASVs in another order, and some that are unknown.
    order = np.random.default_rng(0).permutation(100)
    counts = csr_array(study.counts[rows].toarray()[:, order])
    sequences = [study.sequences[i] for i in order]
    found, known = model.answers(counts, sequences)
    features = fitted.features(study.counts[rows])
    assert known.all()
    if not classes:
        np.testing.assert_allclose(found[:, 0], fitted.estimator.predict(features), rtol=1e-5)
        return
    expected = fitted.estimator.predict_proba(features)
    if kind == "a class too many":
        assert (found[:, 0] == 0).all()
        found = found[:, 1:]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_is_not_known() -> None:
    """Reads of other ASVs count in what there is of those that are known; a sample of none but others is told."""
    study = simulate_study(samples=40, asvs=30, subjects=20, seed=2)
    age = study.metadata["age"].to_numpy()
    fitted = fit_abundance_model("random_forest", known_study(study, age, False), np.arange(40), n_jobs=1)
    model = _as_arrays(fitted, study.sequences, ())
    counts = study.counts[:3].toarray()
    with_other = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    with_other[2, :-1] = 0
    found, known = model.answers(csr_array(with_other), [*study.sequences, "ACGT" * 20])
    assert known.tolist() == [True, True, False]
    features = fitted.features(csr_array(with_other))
    np.testing.assert_allclose(found[:, 0], fitted.estimator.predict(features), rtol=1e-5)
    joined = Joined("random_forest", 0.25, (model, model))
    network = np.arange(6.0).reshape(3, 2, 1)
    answers, unknown = joined.answers(network, csr_array(with_other), [*study.sequences, "ACGT" * 20])
    assert unknown == 1
    np.testing.assert_allclose(answers[:2, :, 0], 0.25 * network[:2, :, 0] + 0.75 * found[:2])
    np.testing.assert_array_equal(answers[2], network[2])


def test_the_best_share_is_that_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    actual = rng.normal(0, 1, 60)
    network, classical = (actual[:, None] + rng.normal(0, spread, (60, 1)) for spread in (1.0, 0.7))
    errors = {share: np.abs(share * network[:, 0] + (1 - share) * classical[:, 0] - actual).mean() for share in SHARES}
    assert best_share(network, classical, actual, False) == pytest.approx(min(errors, key=errors.__getitem__))
    places = rng.integers(0, 3, 60)
    given = [rng.dirichlet(np.ones(3), 60) + weight * np.eye(3)[places] for weight in (0.5, 0.3)]
    one, two = (each / each.sum(axis=1, keepdims=True) for each in given)

    def recall(share: float) -> float:
        predicted = (share * one + (1 - share) * two).argmax(axis=1)
        return float(np.mean([(predicted[places == place] == place).mean() for place in range(3)]))

    assert recall(best_share(one, two, places, True)) == max(recall(share) for share in SHARES)


def test_of_equals_the_middle() -> None:
    values = np.arange(5.0)[:, None]
    assert best_share(values, values, np.zeros(5), False) == 0.5


def test_quantiles_go_with_the_median() -> None:
    network = np.array([[1.0, 2.0, 4.0]])
    np.testing.assert_allclose(mixed(network, np.array([[4.0]]), 0.5, False), [[2.0, 3.0, 5.0]])


SHARES = [step / 20 for step in range(21)]


@pytest.mark.parametrize("name", ["extra_trees", "linear"])
def test_damaged_arrays_are_told(name: str, study: SimulatedStudy) -> None:
    age = study.metadata["age"].to_numpy()
    fitted = fit_abundance_model(name, known_study(study, age, False), np.arange(90), n_jobs=1)
    joined = Joined(name, 0.5, (_as_arrays(fitted, study.sequences, ()),))
    stored, arrays = joined.to_dict(), joined.arrays()
    assert Joined.read(stored, arrays).models[0].sequences == joined.models[0].sequences
    for absent in arrays:
        with pytest.raises(ValueError, match="no"):
            Joined.read(stored, {key: array for key, array in arrays.items() if key != absent})
    for key, value in itertools.product(("name", "share", "models"), (None, 7)):
        if (key, value) in (("name", None), ("name", 7)):
            continue
        with pytest.raises(ValueError, match="no"):
            Joined.read(stored | {key: value}, arrays)
    if name == "extra_trees":
        left = arrays["joined.0.left"].copy()
        left[0] = 0  # a way through the tree that never ends
        with pytest.raises(ValueError, match="no"):
            Joined.read(stored, arrays | {"joined.0.left": left})
