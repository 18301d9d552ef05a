from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aam.models.covariates import FUSIONS, CovariateFusion

DIM, HEADS = 8, 2
NAN = float("nan")


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (5, D), categories (5, 2) and numbers (5, 1)."""
    torch.manual_seed(1)
    categories = torch.tensor([[1, 0], [3, 2], [0, 1], [2, 2], [1, 1]])
    return torch.randn(5, DIM), categories, torch.tensor([[0.5], [NAN], [-2.0], [0.0], [NAN]])


def build(fusion: str) -> CovariateFusion:
    torch.manual_seed(0)
    return CovariateFusion(DIM, HEADS, [3, 2], 1, fusion)


def grown(fusion: str) -> CovariateFusion:
    """One whose weights are no longer those of the start."""
    module = build(fusion)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return module


@pytest.mark.parametrize("fusion", FUSIONS)
class TestEachFusion:
    def test_starts_near_the_sample(self, fusion, samples):
        embedding, *known = samples
        joined = build(fusion)(embedding, *known)
        assert joined.shape == embedding.shape and joined.isfinite().all()
        assert (joined - embedding).abs().max() < (0.3 if fusion == "gmu" else 0.1)
        assert not torch.equal(joined, embedding)

    def test_gradients_reach_every_weight(self, fusion, samples):
        module = build(fusion)
        module(*samples).square().sum().backward()
        for name, weight in module.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            # To all keys the same may be added, which attention does not see.
            assert weight.grad.any() or name == "join.keys_values.bias", name

    def test_each_sample_by_itself(self, fusion, samples):
        module = grown(fusion)
        joined = module(*samples)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(module(*(part[order] for part in samples)), joined[order])
        for i in range(5):
            torch.testing.assert_close(module(*(part[i : i + 1] for part in samples)), joined[i : i + 1])

    def test_everything_that_is_known_counts(self, fusion, samples):
        module, (embedding, categories, numbers) = grown(fusion), samples
        joined = module(embedding, categories, numbers)
        assert not torch.allclose(module(embedding, (categories + 1) % 3, numbers), joined)
        assert not torch.allclose(module(embedding, categories, numbers + 1)[0], joined[0])
        at_the_mean = module(embedding, categories, numbers.nan_to_num(0.0))
        assert not torch.allclose(at_the_mean[1], joined[1])  # unknown is another thing than the mean

    def test_half_precision_is_left_behind(self, fusion, samples):
        module = grown(fusion)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = module(*samples)
        torch.testing.assert_close(found, module(*samples))


def test_a_gated_unit_is_the_papers():
    module = grown("gmu").double().join
    x, tokens = torch.randn(4, DIM, dtype=torch.float64), torch.randn(4, 3, DIM, dtype=torch.float64)
    with torch.no_grad():
        found = module(x, tokens).numpy()
        weights = {name: weight.numpy() for name, weight in module.named_parameters()}
    x, said = x.numpy(), tokens.mean(dim=1).numpy()
    gate = 1 / (1 + np.exp(-(np.hstack([x, said]) @ weights["gate.weight"].T + weights["gate.bias"])))
    own = x @ weights["sample.weight"].T + weights["sample.bias"]
    other = np.tanh(said @ weights["covariates.weight"].T + weights["covariates.bias"])
    np.testing.assert_allclose(found, gate * own + (1 - gate) * other)


def test_cross_attention_is_pytorchs():
    module = grown("cross-attention").join
    x, tokens = torch.randn(4, DIM), torch.randn(4, 3, DIM)
    kv = module.keys_values
    expected, _ = F.multi_head_attention_forward(
        *(x[None], tokens.transpose(0, 1), tokens.transpose(0, 1), DIM, HEADS),
        torch.cat([module.query.weight, kv.weight]),
        torch.cat([module.query.bias, kv.bias]),
        *(None, None, False, 0.0, module.out.weight, module.out.bias),
        need_weights=False,
    )
    torch.testing.assert_close(module(x, tokens), x + expected[0])
