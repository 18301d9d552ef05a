from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from torch.nn import functional as F

from aam.training.losses import (
    REGRESSION_LOSSES,
    LossSum,
    asymmetric_loss,
    class_loss,
    count_loss,
    nucleotide_loss,
    quantile_loss,
    squared_error,
    weighted,
)


def test_squared_error_is_over_what_is_known():
    rng = np.random.default_rng(0)
    predicted, actual = rng.random((2, 4, 5))
    actual[0, 3] = actual[2, 2] = np.nan
    found = squared_error(torch.from_numpy(predicted), torch.from_numpy(actual), variance=0.3)
    assert found.number.item() == 18
    assert found.total.item() == pytest.approx(np.nansum((predicted - actual) ** 2) / 0.3)
    assert found.mean.item() == pytest.approx(np.nanmean((predicted - actual) ** 2) / 0.3)


def test_the_loss_of_the_mean_distance_is_one():
    actual = torch.rand(6, 6, dtype=torch.float64)
    predicted = torch.full_like(actual, actual.mean().item())
    assert squared_error(predicted, actual, actual.var(correction=0).item()).mean.item() == pytest.approx(1)


def test_the_loss_of_nothing_known_is_zero_and_has_a_gradient():
    predicted = torch.rand(1, 1, requires_grad=True)
    loss = squared_error(predicted, torch.full((1, 1), torch.nan), 1.0).mean
    loss.backward()
    assert loss.item() == 0 and predicted.grad.item() == 0


def test_sums_of_shares_give_the_mean_of_the_whole():
    """Where means of shares would not: they are of unlike numbers, and one is empty."""
    predicted, actual = torch.rand(2, 7, 3, dtype=torch.float64)
    whole = squared_error(predicted, actual, 0.5)
    parts = [squared_error(predicted[part], actual[part], 0.5) for part in (slice(0, 2), slice(2, 7), slice(7, 7))]
    together = LossSum(sum(part.total for part in parts), sum(part.number for part in parts))
    assert together.mean.item() == pytest.approx(whole.mean.item())
    assert LossSum(torch.tensor(0.0), 0).mean.item() == 0


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_class_loss(class_weights):
    logits = torch.tensor([[1.0, 2, 3], [0, 0, 0], [5, -1, 0], [0, 1, 0]], dtype=torch.float64)
    places = torch.tensor([0, 1, 0, 2])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    weights = class_weights or [1.0, 1.0, 1.0]
    each = [-weights[place] * np.log(probabilities[i, place]) for i, place in enumerate(places.tolist())]
    tensor = None if class_weights is None else torch.tensor(class_weights)
    assert class_loss(logits, places, tensor).mean.item() == pytest.approx(np.mean(each))
    halves = [class_loss(logits[part], places[part], tensor).mean.item() for part in (slice(0, 1), slice(1, 4))]
    assert np.average(halves, weights=[1, 3]) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_label_smoothing_spreads_the_target_over_all_classes(smoothing, class_weights):
    draws = np.random.default_rng(0)
    logits, places = torch.from_numpy(draws.normal(size=(6, 3))), torch.from_numpy(draws.integers(0, 3, 6))
    weights = None if class_weights is None else torch.tensor(class_weights)
    each = F.cross_entropy(logits.float(), places, weights, reduction="none", label_smoothing=smoothing)
    found = class_loss(logits, places, weights, smoothing)
    assert found.mean.item() == pytest.approx(each.mean().item(), rel=1e-6) and found.number == 6
    # By hand: cross-entropy with shares as the target, each class by its weight.
    shares = (1 - smoothing) * np.eye(3)[places] + smoothing / 3
    surprise = -torch.log_softmax(logits, dim=1).numpy() * np.array(class_weights or [1.0, 1.0, 1.0])
    assert found.mean.item() == pytest.approx((shares * surprise).sum(axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize("quantiles", [(0.5,), (0.05, 0.5, 0.95), (0.1, 0.3, 0.5, 0.7, 0.9)])
def test_quantile_loss_is_twice_the_pinball_loss(quantiles):
    draws = np.random.default_rng(0)
    predicted, actual = draws.normal(size=(9, len(quantiles))), draws.normal(size=9)
    actual[0] = predicted[0, 0]  # where the loss has its corner
    pinball = [mean_pinball_loss(actual, predicted[:, i], alpha=level) for i, level in enumerate(quantiles)]
    found = quantile_loss(torch.from_numpy(predicted), torch.from_numpy(actual), quantiles)
    assert found.mean.item() == pytest.approx(2 * np.mean(pinball)) and found.number == 9
    if quantiles == (0.5,):
        assert found.mean.item() == pytest.approx(np.abs(predicted[:, 0] - actual).mean())


def test_the_best_constants_of_the_quantile_loss_are_the_quantiles():
    actual = torch.from_numpy(np.random.default_rng(0).exponential(size=201))
    levels = (0.05, 0.5, 0.95)
    best = torch.from_numpy(np.quantile(actual.numpy(), levels))
    at_best = quantile_loss(best.expand(201, 3), actual, levels).mean
    for place in range(3):
        for step in (-0.1, 0.1):
            moved = best.clone()
            moved[place] += step
            assert quantile_loss(moved.expand(201, 3), actual, levels).mean > at_best


@pytest.mark.parametrize("cost", [0.25, 1.0, 4.0])
def test_asymmetric_loss(cost):
    draws = np.random.default_rng(0)
    predicted, actual = draws.normal(scale=2, size=(2, 30))
    error = predicted - actual
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    weights = np.where(error > 0, cost, 1.0) / ((1 + cost) / 2)
    found = asymmetric_loss(torch.from_numpy(predicted), torch.from_numpy(actual), cost)
    assert found.mean.item() == pytest.approx((weights * huber).mean()) and found.number == 30
    over, under = (asymmetric_loss(torch.tensor([x]), torch.tensor([0.0]), cost).mean.item() for x in (2.0, -2.0))
    assert over / under == pytest.approx(cost)
    if cost == 1:
        assert found.mean.item() == pytest.approx(huber.mean())


def test_count_loss():
    predicted = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    actual = torch.tensor([[1.0, 0, 0], [0, 5, 3]])
    hidden = torch.tensor([[True, True, False], [False, False, True]])
    assert count_loss(predicted, actual, hidden).mean.item() == pytest.approx((0 + 4 + 9) / 3)
    assert count_loss(predicted, actual, torch.zeros_like(hidden)).mean.item() == 0


def test_nucleotide_loss():
    logits = torch.zeros(3, 8)
    logits[0, 2] = 1e4
    found = nucleotide_loss(logits, torch.tensor([2, 1, 4], dtype=torch.uint8))
    assert found.mean.item() == pytest.approx(2 / 3 * np.log(8), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("mse", (0.25 + 9) / 2), ("mae", (0.5 + 3) / 2), ("huber", (0.125 + 2.5) / 2)]
)
def test_regression_losses(name, expected):
    found = REGRESSION_LOSSES[name](torch.tensor([1.5, 0]), torch.tensor([1.0, 3]))
    assert found.mean.item() == pytest.approx(expected) and found.number == 2


def test_weighted():
    parts = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    found = weighted(parts, {"a": 0.5, "b": 10, "c": 7}, {"a": 4, "b": torch.tensor(0)})
    assert found.total.item() == 31 and found.parts == parts
    assert found.numbers == {"a": 4, "b": 0}
