"""The head that is fitted in the end, next to scikit-learn's models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import HuberRegressor, LogisticRegression, Ridge
from torch.nn import functional as F

from aam.linear_head import PENALTIES, choose_penalty, penalised

N = 120
EACH = 8  # as many blocks as features


def study(outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different widths, one of them constant, and logits or numbers that depend on some of them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N, 8)) * [1, 10, 0.01, 3, 1, 1, 1, 0] + [0, 5, 1, 0, 0, 0, -2, 7]
    scores = features @ rng.normal(size=(8, outputs)) + rng.normal(size=(N, outputs))
    return torch.from_numpy(features).float(), torch.from_numpy(scores).float()


def standardised(features: torch.Tensor) -> np.ndarray:
    values = features.double().numpy()
    return (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.01, 0.3, 10])
def test_classes_as_by_logistic_regression(classes: int, penalty: float) -> None:
    features, scores = study(classes)
    actual = scores.argmax(dim=1)
    found = penalised(features, actual, classes, F.cross_entropy, EACH, penalty)
    # Of two classes scikit-learn has one vector of weights, which is the difference of ours: they share its penalty.
    freedom = (2 if classes == 2 else 1) / (penalty * N)
    expected = LogisticRegression(C=freedom, tol=1e-8, max_iter=10000).fit(standardised(features), actual.numpy())
    np.testing.assert_allclose(
        found(features).softmax(dim=1).numpy(), expected.predict_proba(standardised(features)), atol=2e-3
    )


@pytest.mark.parametrize("penalty", [0.01, 1, 100])
def test_numbers_as_by_ridge(penalty: float) -> None:
    features, scores = study(1)
    loss = lambda output, actual: F.mse_loss(output[:, 0], actual)  # noqa: E731
    found = penalised(features, scores[:, 0], 1, loss, EACH, penalty)
    expected = Ridge(alpha=penalty * N / 2).fit(standardised(features), scores[:, 0].numpy())
    np.testing.assert_allclose(
        found(features)[:, 0].numpy(), expected.predict(standardised(features)), atol=2e-3 * float(scores.std())
    )


def test_features_of_a_block_share_a_scale() -> None:
    """So those in which samples differ most are shrunk least; a block that is constant says nothing."""
    features, scores = study(1)
    features[:, 6] = 3
    values = features.double().numpy()
    centred = (values - values.mean(axis=0)).reshape(N, 4, 2)
    scales = np.sqrt((centred**2).mean(axis=(0, 2)))
    scaled = (centred / np.where(scales > 0, scales, 1)[:, None]).reshape(N, 8)
    loss = lambda output, actual: F.mse_loss(output[:, 0], actual)  # noqa: E731
    found = penalised(features, scores[:, 0], 1, loss, 4, 1.0)
    expected = Ridge(alpha=N / 2).fit(scaled, scores[:, 0].numpy())
    np.testing.assert_allclose(found(features)[:, 0].numpy(), expected.predict(scaled), atol=2e-3 * float(scores.std()))
    assert not found.weight[:, 6:].any()


def test_huber_as_by_scikit_learn() -> None:
    """Whose scale is learnt, too: so it is taken over, as the width of the loss and the unit of the penalty."""
    features, scores = study(1)
    actual = scores[:, 0].clone()
    actual[::10] += 200
    expected = HuberRegressor(epsilon=1.5, alpha=0.5, tol=1e-9, max_iter=10000)
    expected.fit(standardised(features), actual.numpy())
    delta = 1.5 * expected.scale_

    def loss(output: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(output[:, 0], actual, delta=delta)  # half of scikit-learn's, times its scale

    found = penalised(features, actual, 1, loss, EACH, expected.alpha * expected.scale_ / N)
    np.testing.assert_allclose(found(features)[:, 0].numpy(), expected.predict(standardised(features)), atol=0.05)


def test_an_infinite_penalty_leaves_the_best_constant() -> None:
    features, scores = study(3)
    actual = scores.argmax(dim=1)
    found = penalised(features, actual, 3, F.cross_entropy, 1, math.inf)
    assert not found.weight.any()
    np.testing.assert_allclose(found.bias.softmax(dim=0).numpy(), np.bincount(actual, minlength=3) / N, atol=1e-4)


def parts() -> list[tuple[np.ndarray, np.ndarray]]:
    places = np.arange(N)
    return [(places[places % 5 != part], places[places % 5 == part]) for part in range(5)]


def test_noise_is_hardly_believed() -> None:
    """On new samples it costs next to nothing, in the mean of several, that chance may name a low penalty."""

    def loss(output: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(output[:, 0], actual)

    lost: dict[str, list[float]] = {"guess": [], "chosen": [], "hardly penalised": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features, new = (torch.from_numpy(rng.normal(size=(N, 40))).float() for _ in range(2))
        noise, new_noise = (torch.from_numpy(rng.normal(size=N)).float() for _ in range(2))
        chosen = choose_penalty(features, noise, 1, loss, 1, parts()).penalty
        for name, penalty in {"guess": math.inf, "chosen": chosen, "hardly penalised": 0.01}.items():
            lost[name].append(float(loss(penalised(features, noise, 1, loss, 1, penalty)(new), new_noise)))
    means = {name: np.mean(values) for name, values in lost.items()}
    assert means["chosen"] < 1.05 * means["guess"] < 0.85 * means["hardly penalised"]


def test_what_depends_on_the_features_is_hardly_shrunk() -> None:
    features, scores = study(2)
    choice = choose_penalty(features, scores.argmax(dim=1), 2, F.cross_entropy, EACH, parts())
    assert choice.penalty <= 0.1
    assert list(choice.losses) == list(PENALTIES)
    assert choice.losses[choice.penalty] < 0.6 * choice.losses[math.inf]


def test_the_loss_of_what_is_left_out_is_that_of_all_of_it() -> None:
    """Parts of different sizes weigh as many samples as they have."""
    features, scores = study(2)
    actual = scores.argmax(dim=1)
    uneven = [(np.arange(20, N), np.arange(20)), (np.arange(20), np.arange(20, N))]
    choice = choose_penalty(features, actual, 2, F.cross_entropy, EACH, uneven)
    outputs = torch.empty(N, 2)
    for learnt, left_out in uneven:
        outputs[left_out] = penalised(features[learnt], actual[learnt], 2, F.cross_entropy, EACH, 1.0)(
            features[left_out]
        )
    assert choice.losses[1.0] == pytest.approx(float(F.cross_entropy(outputs, actual)), rel=1e-5)
