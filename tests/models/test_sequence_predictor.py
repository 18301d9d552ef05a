from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from aam.models.sequence_predictor import ResidualLayer, TargetHead


def by_hand(layer: ResidualLayer, states: np.ndarray) -> np.ndarray:
    """Normalise, widen, GELU, mix; plus what came in."""
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    mean, variance = states.mean(axis=1, keepdims=True), states.var(axis=1, keepdims=True)
    normed = (states - mean) / np.sqrt(variance + 1e-5) * weights["layers.0.weight"] + weights["layers.0.bias"]
    hidden = normed @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    skipped = states @ weights["skip.weight"].T if "skip.weight" in weights else states
    return skipped + hidden @ weights["layers.4.weight"].T + weights["layers.4.bias"]


@pytest.mark.parametrize("after", [6, 9])
def test_residual_layer(after):
    torch.manual_seed(0)
    layer = ResidualLayer(6, after, dropout=0.5).double().eval()
    nn.init.normal_(layer.layers[0].weight)
    states = torch.randn(4, 6, dtype=torch.float64)
    assert isinstance(layer.skip, nn.Identity) == (after == 6)  # what keeps its width is passed on as it is
    np.testing.assert_allclose(layer(states).detach().numpy(), by_hand(layer, states.numpy()), rtol=1e-10)


def test_head_of_stated_widths():
    torch.manual_seed(0)
    head = TargetHead(6, 3, dropout=0.5, widths=(9, 9, 4)).double().eval()
    states = torch.randn(5, 6, dtype=torch.float64)
    expected = states.numpy()
    *blocks, last = head.layers
    assert [type(block) for block in blocks] == [ResidualLayer] * 3
    for block in blocks:
        expected = by_hand(block, expected)
    expected = expected @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(head(states).detach().numpy(), expected, rtol=1e-5)


def test_head_without_widths_has_one_hidden_layer():
    head = TargetHead(6, 2)
    assert [type(layer) for layer in head.layers] == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert sum(weight.numel() for weight in head.parameters()) == 6 * 6 + 6 + 6 * 2 + 2
