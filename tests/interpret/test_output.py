"""What is explained is what the predictor says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aam.interpret.output import Explained, Reading
from tests.conftest import TinyStudy
from tests.interpret.tiny import network_of, samples_of


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
