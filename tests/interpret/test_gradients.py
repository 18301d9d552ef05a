"""Attributions add up, and are those of another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aam.interpret.gradients import gradient_shap, integrated_gradients
from aam.interpret.output import Inputs
from aam.interpret.samples import chunks
from tests.conftest import TinyStudy
from tests.interpret.tiny import explained_of, rows_of, samples_of


@pytest.mark.parametrize("baseline", ["mean", "reference"])
@pytest.mark.parametrize("networks", [1, 3])
def test_they_add_up(unequal_study: TinyStudy, baseline: str, networks: int) -> None:
    explained, samples = explained_of(unequal_study, networks), samples_of(unequal_study)
    found = integrated_gradients(explained, samples, baseline=baseline, tolerance=1e-3, scale=1e-3)  # type: ignore[arg-type]
    sums = samples.matrix(found.values).sum(axis=1)
    np.testing.assert_allclose(sums + found.missing, found.change, atol=1e-6)
    # The tolerance is of the change of each network, which in their mean may cancel.
    assert np.abs(found.missing).max() <= 1e-3 * networks * np.abs(found.change).max() + 1e-6
    # The change, from predictions of samples whose ASVs all are the baseline, by hand.
    values, starts = explained.values(samples), np.zeros(len(samples))
    for network in explained.networks:
        start = network.baseline(baseline, samples.rows.asvs, np.log(samples.shares))  # type: ignore[arg-type]
        for sample in range(len(samples)):
            size = len(samples[sample].asvs)
            inputs = Inputs(
                start.embedding.expand(1, size, -1), torch.full((1, size), -np.log(size))
            )  # all the reads, evenly
            with torch.no_grad():
                output = network.outputs(inputs, torch.ones(1, size, dtype=torch.bool), np.array([sample]))
            starts[sample] += float(output) / networks
    np.testing.assert_allclose(found.change, values - starts, atol=1e-5)
    assert np.abs(found.change).min() > 0 and np.abs(found.by_abundance).sum() > 0


def test_what_is_missing_is_found_out(unequal_study: TinyStudy) -> None:
    """With a tolerance that 16 points are not enough for, more are taken."""
    explained, samples = explained_of(unequal_study), rows_of(samples_of(unequal_study), [0])
    loose = integrated_gradients(explained, samples, tolerance=0.9, scale=10.0)
    strict = integrated_gradients(explained, samples, tolerance=-1.0, scale=10.0)  # which nothing is within
    assert loose.steps == 16 and strict.steps == 512
    assert np.abs(strict.missing).max() < np.abs(loose.missing).max()


def test_against_captum(unequal_study: TinyStudy) -> None:
    attr = pytest.importorskip("captum.attr", reason="pip install 'aam[explain]'")
    explained, samples = explained_of(unequal_study), samples_of(unequal_study)
    (network,) = explained.networks
    found = integrated_gradients(explained, samples, tolerance=1e-5, scale=1e-3)
    start = network.baseline("mean", samples.rows.asvs, np.log(samples.shares))
    for sample in range(len(samples)):
        (chunk,) = chunks([samples[sample]])
        inputs, present = network.inputs(chunk), torch.from_numpy(chunk.present)

        def forward(
            embeddings: Tensor, logs: Tensor, chunk: object = chunk, present: Tensor = present, sample: int = sample
        ) -> Tensor:
            origin = np.full(len(logs), sample)
            logs = logs.log_softmax(dim=1)  # no reads are beyond those that are read
            return network.outputs(Inputs(embeddings, logs), present.expand(len(logs), -1), origin)[:, 0]

        begins = (start.embedding.expand_as(inputs.embeddings), torch.full_like(inputs.logs, start.log))
        reference = attr.IntegratedGradients(forward).attribute(tuple(inputs), begins, n_steps=400)
        part = slice(*samples.rows.indptr[sample : sample + 2])
        np.testing.assert_allclose(found.by_sequence[part], reference[0].sum(-1)[0].numpy(), atol=2e-4)
        np.testing.assert_allclose(found.by_abundance[part], reference[1][0].numpy(), atol=2e-4)


def test_gradient_shap(unequal_study: TinyStudy) -> None:
    """In the mean it adds up to the prediction less that of samples drawn at random; and the seed decides."""
    pytest.importorskip("captum.attr", reason="pip install 'aam[explain]'")
    explained, samples = explained_of(unequal_study), rows_of(samples_of(unequal_study), [0, 1])
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    one = gradient_shap(explained, samples, draws=20, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    again = gradient_shap(explained, samples, draws=20, seed=1)
    np.testing.assert_array_equal(one.values, again.values)
    many = gradient_shap(explained, samples, draws=600, seed=2)
    np.testing.assert_allclose(samples.matrix(many.values).sum(axis=1) + many.missing, many.change, atol=1e-5)
    spread = np.abs(many.change).max()
    assert np.abs(many.missing).max() < 0.25 * spread
    assert np.abs(many.missing).mean() < np.abs(one.missing).mean()
