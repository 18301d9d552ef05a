from __future__ import annotations

import numpy as np
import pytest
import torch

from aam.training.losses import (
    REGRESSION_LOSSES,
    class_loss,
    count_loss,
    nucleotide_loss,
    pairwise_loss,
    weighted,
)


def test_pairwise_loss_counts_every_pair_once():
    rng = np.random.default_rng(0)
    predicted, actual = rng.random((2, 4, 4))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = sum((predicted[i, j] - actual[i, j]) ** 2 for i, j in pairs) / 6 / 0.3
    found = pairwise_loss(torch.from_numpy(predicted), torch.from_numpy(actual), variance=0.3)
    assert found.item() == pytest.approx(expected)


def test_pairwise_loss_of_the_mean_is_one():
    actual = torch.rand(6, 6, dtype=torch.float64)
    pairs = actual[tuple(torch.triu_indices(6, 6, offset=1))]
    predicted = torch.full_like(actual, pairs.mean().item())
    assert pairwise_loss(predicted, actual, pairs.var(correction=0).item()).item() == pytest.approx(1)


def test_pairwise_loss_of_one_sample_is_zero_and_has_a_gradient():
    predicted = torch.rand(1, 1, requires_grad=True)
    loss = pairwise_loss(predicted, torch.zeros(1, 1), 1.0)
    loss.backward()
    assert loss.item() == 0 and predicted.grad.item() == 0


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_class_loss(class_weights):
    logits = torch.tensor([[1.0, 2, 3], [0, 0, 0], [5, -1, 0], [0, 1, 0]], dtype=torch.float64)
    places = torch.tensor([0, 1, 0, 2])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    weights = class_weights or [1.0, 1.0, 1.0]
    each = [-weights[place] * np.log(probabilities[i, place]) for i, place in enumerate(places.tolist())]
    tensor = None if class_weights is None else torch.tensor(class_weights)
    assert class_loss(logits, places, tensor).item() == pytest.approx(np.mean(each))
    halves = [class_loss(logits[part], places[part], tensor).item() for part in (slice(0, 1), slice(1, 4))]
    assert np.average(halves, weights=[1, 3]) == pytest.approx(np.mean(each))


def test_count_loss():
    predicted = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    actual = torch.tensor([[1.0, 0, 0], [0, 5, 3]])
    hidden = torch.tensor([[True, True, False], [False, False, True]])
    assert count_loss(predicted, actual, hidden).item() == pytest.approx((0 + 4 + 9) / 3)
    assert count_loss(predicted, actual, torch.zeros_like(hidden)).item() == 0


def test_nucleotide_loss():
    logits = torch.zeros(3, 8)
    logits[0, 2] = 1e4
    found = nucleotide_loss(logits, torch.tensor([2, 1, 4], dtype=torch.uint8))
    assert found.item() == pytest.approx(2 / 3 * np.log(8), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("mse", (0.25 + 9) / 2), ("mae", (0.5 + 3) / 2), ("huber", (0.125 + 2.5) / 2)]
)
def test_regression_losses(name, expected):
    assert REGRESSION_LOSSES[name](torch.tensor([1.5, 0]), torch.tensor([1.0, 3])).item() == pytest.approx(expected)


def test_weighted():
    parts = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    found = weighted(parts, {"a": 0.5, "b": 10, "c": 7})
    assert found.total.item() == 31 and found.parts == parts


def test_pairs_with_mixed_samples_are_left_out():
    rng = torch.Generator().manual_seed(0)
    predicted, actual = torch.rand(6, 6, generator=rng), torch.rand(6, 6, generator=rng)
    mixed = torch.tensor([False, True, False, False, True, False])
    kept = torch.tensor([0, 2, 3, 5])
    alone = pairwise_loss(predicted[kept][:, kept], actual[kept][:, kept], 0.5)
    assert torch.allclose(pairwise_loss(predicted, actual, 0.5, mixed), alone)
    assert torch.allclose(pairwise_loss(predicted, actual, 0.5, ~mixed | True), torch.zeros(()))
    assert torch.allclose(pairwise_loss(predicted, actual, 0.5, mixed & False), pairwise_loss(predicted, actual, 0.5))
