"""What bases say adds up to what the ASV says."""

from __future__ import annotations

import numpy as np
import torch

from aam.interpret.attention import attention_flow, attention_weights, nucleotide_attention
from aam.interpret.importances import summed
from aam.interpret.nucleotides import base_attributions, mean_gradients
from aam.interpret.output import Inputs
from aam.interpret.samples import chunks
from tests.conftest import TinyStudy
from tests.interpret.tiny import explained_of, samples_of


def test_mean_gradients_against_small_steps(unequal_study: TinyStudy) -> None:
    explained, samples = explained_of(unequal_study), samples_of(unequal_study)
    (network,) = explained.networks
    (gradients,) = mean_gradients(explained, samples)
    asv, holders = int(samples.prevalence.argmax()), 0
    step, moved = 1e-2 * torch.ones(16), 0.0
    for sample in range(len(samples)):
        (chunk,) = chunks([samples[sample]])
        here = torch.from_numpy(chunk.asvs == asv)[..., None]
        if not here.any():
            continue
        holders += 1
        given = network.inputs(chunk)
        up, down = (Inputs(given.embeddings + sign * step * here, given.logs) for sign in (1, -1))
        with torch.no_grad():
            moved += float(explained.read(network, up, chunk) - explained.read(network, down, chunk)) / 2
    assert holders > 1
    np.testing.assert_allclose(float(gradients[asv] @ step), moved / holders, rtol=1e-2)


def test_bases_add_up(unequal_study: TinyStudy) -> None:
    explained, samples = explained_of(unequal_study, 2), samples_of(unequal_study)
    gradients = mean_gradients(explained, samples)
    asvs = np.array([0, 3, 9])
    found = base_attributions(explained, gradients, asvs, unequal_study.tokens[asvs])
    np.testing.assert_allclose(found.values.sum(axis=1) + found.missing, found.change, atol=1e-7)
    assert np.abs(found.missing).max() < 0.02 * np.abs(found.change).max()
    lengths = (unequal_study.tokens[asvs] != 0).sum(axis=1)
    for row, length in zip(found.values, lengths, strict=True):
        assert row[0] == 0 and (row[length:] == 0).all() and np.abs(row[1:length]).max() > 0
    # Where the path ends is the ASV itself.
    for network, of_network in zip(explained.networks, gradients, strict=True):
        encoder = network.predictor.encoder.asv_encoder
        assert not encoder.transformer._forward_pre_hooks
        with torch.no_grad():
            again = encoder(torch.from_numpy(unequal_study.tokens[asvs]), True)
        torch.testing.assert_close(again, network.embeddings[asvs], rtol=1e-4, atol=1e-5)
        assert of_network.shape == network.embeddings.shape


def test_attention_to_nucleotides(unequal_study: TinyStudy) -> None:
    explained = explained_of(unequal_study)
    found = nucleotide_attention(explained.networks[0], unequal_study.tokens)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert ((found > 0) == (unequal_study.tokens != 0)).all()


def test_flow_adds_up_to_shares_of_attention(unequal_study: TinyStudy) -> None:
    explained, samples = explained_of(unequal_study, 2), samples_of(unequal_study)
    units = np.arange(samples.asvs) // 4
    flow = attention_flow(explained, samples, units)
    shares = summed(samples.matrix(attention_weights(explained, samples)), units).mean(axis=0)
    np.testing.assert_allclose(flow.sum(axis=0), shares, atol=1e-6)
    assert abs(flow.sum() - 1) < 1e-6 and (flow > 0).all()
