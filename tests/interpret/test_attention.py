"""The weights that are read are those that the network used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aam.interpret.attention import attention_of_chunk, attention_weights, attentive_layers, recorded, rollout
from aam.interpret.samples import chunks
from aam.models.attention import SelfAttention
from aam.models.attention_pooling import AttentionPooling
from tests.conftest import TinyStudy
from tests.interpret.tiny import explained_of, network_of, rows_of, samples_of


def test_self_attention_is_made_of_them() -> None:
    torch.manual_seed(0)
    module = SelfAttention(8, 2, 0.0)
    x, mask = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    for given in (None, mask):
        with torch.no_grad(), recorded([module]) as found:
            output = module(x, given)
            values = module.qkv(x)[..., 16:].view(3, 5, 2, 4).transpose(1, 2)
            by_hand = module.out((found.attention[0] @ values).transpose(1, 2).reshape(3, 5, 8))
        torch.testing.assert_close(output, by_hand)
    assert not module._forward_pre_hooks  # nothing is left behind


def test_pooling_is_made_of_them() -> None:
    torch.manual_seed(0)
    module = AttentionPooling(8, 2)
    x, mask = torch.randn(2, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    with torch.no_grad(), recorded([module]) as found:
        output = module(x, mask)
        weighted = (found.pooling[0][..., None] * x.view(2, 4, 2, 4)).sum(dim=1).reshape(2, 8)
    torch.testing.assert_close(output, module.out(weighted))


def test_rollout_against_sums_over_paths() -> None:
    """Every path through two layers, one by one."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 3, 4, 4).softmax(dim=-1)
    found = rollout([first, second])[0]
    a, b = (0.5 * layer[0].mean(dim=0) + 0.5 * torch.eye(4) for layer in (first, second))
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, j], sum(b[i, k] * a[k, j] for k in range(4)))


def test_weights_of_samples(unequal_study: TinyStudy) -> None:
    explained, samples = explained_of(unequal_study, 2), samples_of(unequal_study)
    weights = attention_weights(explained, samples)
    np.testing.assert_allclose(samples.matrix(weights).sum(axis=1), 1, atol=1e-6)
    for sample in range(len(samples)):  # whatever they are padded to
        alone = attention_weights(explained, rows_of(samples, [sample]))
        np.testing.assert_allclose(weights[slice(*samples.rows.indptr[sample : sample + 2])], alone, atol=1e-6)


def test_chosen_layers_and_heads(unequal_study: TinyStudy) -> None:
    network, samples = network_of(unequal_study), samples_of(unequal_study)
    (chunk,) = chunks(samples)
    everything, chosen = attention_of_chunk(network, chunk), attention_of_chunk(network, chunk, [1], [0])
    assert len(everything.layers) == 2
    torch.testing.assert_close(chosen.layers[0], everything.layers[1][:, :1])
    torch.testing.assert_close(chosen.rollout, (everything.layers[1][:, 0] + torch.eye(chunk.asvs.shape[1])) / 2)


@pytest.mark.parametrize("masked", [False, True])
def test_a_watched_network_says_the_same(unequal_study: TinyStudy, masked: bool) -> None:
    network, samples = network_of(unequal_study), samples_of(unequal_study)
    (chunk,) = chunks(samples if masked else [samples[0]])
    present = torch.from_numpy(chunk.present)
    with torch.no_grad():
        before = network.outputs(network.inputs(chunk), present, chunk.origin)
        encoder = network.predictor.encoder
        with recorded(attentive_layers(encoder.sample_encoder.transformer, encoder.transformer)) as found:
            watched = network.outputs(network.inputs(chunk), present, chunk.origin)
    assert torch.equal(before, watched) and len(found.attention) == 2
    hidden = found.attention[0].masked_select(~present[:, None, None, :])
    assert F.l1_loss(hidden, torch.zeros_like(hidden)).nan_to_num() == 0
