from __future__ import annotations

import numpy as np
import torch

from aam.models.attention_pooling import AttentionPooling


def pooling() -> AttentionPooling:
    torch.manual_seed(0)
    return AttentionPooling(6, heads=3)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 5, 6), torch.arange(5)[None] < torch.tensor([5, 2])[:, None]


def test_equals_weighted_means():
    pool, (x, _) = pooling(), data()
    expected = []
    for row in x.numpy():
        scores = row @ pool.score.weight.detach().numpy().T + pool.score.bias.detach().numpy()
        weights = np.exp(scores) / np.exp(scores).sum(axis=0)
        mean = [weights[:, channel // 2] @ row[:, channel] for channel in range(6)]
        expected.append(pool.out.weight.detach().numpy() @ mean + pool.out.bias.detach().numpy())
    np.testing.assert_allclose(pool(x).detach(), np.array(expected), rtol=1e-4, atol=1e-5)


def test_a_mask_is_a_truncation():
    pool, (x, mask) = pooling(), data()
    found = pool(x, mask)
    for row, real, kept in zip(x, mask, found, strict=True):
        torch.testing.assert_close(kept, pool(row[None, real])[0])
    assert torch.equal(pool(torch.where(mask[:, :, None], x, 1e4), mask), found)
    torch.testing.assert_close(pool(x, torch.ones_like(mask)), pool(x))


def test_one_element_is_projected():
    pool, (x, _) = pooling(), data()
    torch.testing.assert_close(pool(x[:, :1]), pool.out(x[:, 0]))
