"""What is explained is what the predictor says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aam.interpret.attention import attention_flow, attention_weights
from aam.interpret.gradients import integrated_gradients
from aam.interpret.nucleotides import mean_gradients
from aam.interpret.output import Explained, Reading
from aam.interpret.permutation import permutation
from tests.conftest import TinyStudy
from tests.interpret.tiny import explained_of, network_of, samples_of


@pytest.mark.parametrize("count_embedding", ["add", "concat", "film", "none"])
def test_values_are_the_predictors(unequal_study: TinyStudy, count_embedding: str) -> None:
    """A batch of the data set, with its bases, against ASVs gathered by sample, in another order."""
    network = network_of(unequal_study, count_embedding=count_embedding)
    network.scale, network.shift = 3.0, -1.0
    from aam.data.dataset import BatchKey

    batch = unequal_study.dataset()[BatchKey(0, tuple(range(len(unequal_study))))]
    with torch.no_grad():
        expected = network.predictor(batch).target[:, 0].numpy() * 3 - 1
    samples = samples_of(unequal_study)
    found = Explained([network], Reading(slice(0, 1))).values(samples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    backwards = Explained([network], Reading(slice(0, 1))).values(samples[i] for i in reversed(range(len(samples))))
    np.testing.assert_allclose(backwards[::-1], found, rtol=1e-4, atol=1e-5)


def test_networks_that_say_nothing_of_some_samples(unequal_study: TinyStudy) -> None:
    """Each method gives of a sample what the networks that do say something give of it by themselves."""
    samples, both = samples_of(unequal_study), explained_of(unequal_study, 3)
    shares = np.array([[1, 0, 0.5, 0, 0], [0, 1, 0.5, 0, 1], [0, 0, 0, 1, 0]])
    some = Explained(both.networks, both.reading, shares)
    each = [Explained([network], both.reading) for network in both.networks]
    of_entry = shares[:, samples.rows.samples]

    def weighed(found: list[np.ndarray], weights: np.ndarray = shares) -> np.ndarray:
        return np.sum(weights * np.array(found), axis=0)

    np.testing.assert_allclose(some.values(samples), weighed([one.values(samples) for one in each]), rtol=1e-5)
    given = {"tolerance": 0.01, "scale": 1.0}
    attributions = [integrated_gradients(one, samples, **given) for one in each]  # type: ignore[arg-type]
    found = integrated_gradients(some, samples, **given)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values, weighed([one.values for one in attributions], of_entry), atol=1e-5)
    np.testing.assert_allclose(found.change, weighed([one.change for one in attributions]), atol=1e-5)
    weights = [attention_weights(one, samples) for one in each]
    np.testing.assert_allclose(attention_weights(some, samples), weighed(weights, of_entry), atol=1e-6)
    units = np.arange(samples.asvs)
    assert attention_flow(some, samples, units).sum() == pytest.approx(1)
    changes = [permutation(one, samples, units).change.toarray() for one in each]
    permuted = permutation(some, samples, units).change.toarray()
    for sample, place in ((0, 0), (1, 1), (3, 2), (4, 1)):
        np.testing.assert_allclose(permuted[sample], changes[place][sample], atol=1e-5)
    gradients = [mean_gradients(Explained([network], both.reading), samples) for network in both.networks]
    whole = mean_gradients(Explained(both.networks, both.reading), samples)
    for place, (own,) in enumerate(gradients):
        torch.testing.assert_close(whole[place], own / 3)


def test_log_odds_and_means(unequal_study: TinyStudy) -> None:
    networks = [network_of(unequal_study, outputs=4, seed=seed) for seed in (0, 1)]
    samples = samples_of(unequal_study)
    classes = np.array([0, 2, 1, 2, 0])
    outputs = Explained(networks, Reading(slice(1, 4))).outputs(samples)
    expected = []
    for output in outputs:
        probabilities = torch.from_numpy(output[:, 1:]).double().softmax(dim=1).numpy()
        own = probabilities[np.arange(5), classes]
        expected.append(np.log(own / (1 - own)))
    found = Explained(networks, Reading(slice(1, 4), classes=classes)).values(samples)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4)
