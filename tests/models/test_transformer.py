from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aam.models.transformer import Transformer

DIM, HEADS = 8, 2


def build(layers: int = 2, **options) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(DIM, HEADS, layers, feed_forward_factor=3, **options).double()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return transformer


def torch_layer(block) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        DIM,
        HEADS,
        dim_feedforward=3 * DIM,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    ).double()
    copied = {
        "self_attn.in_proj_weight": block.attention.qkv.weight,
        "self_attn.in_proj_bias": block.attention.qkv.bias,
        "self_attn.out_proj.weight": block.attention.out.weight,
        "self_attn.out_proj.bias": block.attention.out.bias,
        "norm1.weight": block.norm_attention.weight,
        "norm1.bias": block.norm_attention.bias,
        "norm2.weight": block.norm_feed_forward.weight,
        "norm2.bias": block.norm_feed_forward.bias,
        "linear1.weight": block.expand.weight,
        "linear1.bias": block.expand.bias,
        "linear2.weight": block.contract.weight,
        "linear2.bias": block.contract.bias,
    }
    layer.load_state_dict(copied)
    return layer


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]
    return torch.randn(3, 7, DIM, dtype=torch.float64), mask


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_layers_of_torch(masked):
    transformer, (x, mask) = build(), data()
    expected = x
    for block in transformer.blocks:
        expected = torch_layer(block)(expected, src_key_padding_mask=~mask if masked else None)
    expected = F.layer_norm(expected, (DIM,), transformer.norm.weight, transformer.norm.bias)
    found = transformer(x, mask if masked else None)
    real = mask if masked else torch.ones_like(mask)
    torch.testing.assert_close(found[real], expected[real])


def test_a_mask_is_a_truncation():
    transformer, (x, mask) = build(), data()
    found = transformer(x, mask)
    for row, real, kept in zip(x, mask, found, strict=True):
        torch.testing.assert_close(kept[real], transformer(row[None, real])[0])
    other = torch.where(mask[:, :, None], x, 100.0)
    torch.testing.assert_close(transformer(other, mask)[mask], found[mask], rtol=0, atol=0)


def test_order_means_nothing():
    transformer, (x, _) = build(), data()
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    torch.testing.assert_close(transformer(x[:, order]), transformer(x)[:, order])


def test_gradient_checkpointing_changes_no_value():
    (x, mask), results = data(), []
    for gradient_checkpointing in (False, True):
        transformer = build(gradient_checkpointing=gradient_checkpointing)
        found = transformer(x, mask)
        found[mask].square().sum().backward()
        results.append([found[mask], *(parameter.grad for parameter in transformer.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_is_of_training_alone():
    transformer, (x, _) = build(dropout=0.5), data()
    assert not torch.equal(transformer(x), transformer(x))
    transformer.eval()
    assert torch.equal(transformer(x), transformer(x))
    assert torch.equal(transformer(x), build().eval()(x))
