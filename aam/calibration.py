"""How far predictions may be from the truth: conformal intervals and sets, and calibrated probabilities.

What is learnt here comes from samples that neither training nor early stopping saw: those that each fold holds out, or
a split of their own. Samples of a group (a subject, say) are alike and no independent evidence, so each group counts as
one (Dunn et al. 2023, Lee et al. 2023): its samples share its weight, and a new sample is taken to be of a new group.

Shapes: ``n`` samples calibrated on, ``G`` of their groups, ``m`` samples predicted, ``M`` models, ``K`` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibration", "fit_temperature", "scores_of_classes", "scores_of_numbers", "tempered"]

_BLOCK = 2**22  # entries of a sample-by-score table that are sorted together
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Conformity scores: how far off the truth each sample was.

    Attributes
    ----------
    scores : ndarray (n,)
        See `scores_of_numbers` and `scores_of_classes`.
    groups : ndarray (n,) of int
        From 0 on.
    models : ndarray (n,) of int
        The model that predicted each sample and had not seen it.
    """

    scores: NDArray[np.float64]
    groups: NDArray[np.int64]
    models: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[np.float64], groups: NDArray[Any] | None, models: NDArray[np.int64]) -> Self:
        """Each sample is a group of its own where there are none."""
        labels = np.arange(len(scores)) if groups is None else np.asarray(groups).astype(str)
        _, places = np.unique(labels, return_inverse=True)
        return cls(np.asarray(scores, dtype=np.float64), places.astype(np.int64), models.astype(np.int64))

    @property
    def number_of_groups(self) -> int:
        """``G``."""
        return len(np.unique(self.groups))

    @property
    def highest_level(self) -> float:
        """The share of new samples that intervals of finite width can be made for."""
        return self.number_of_groups / (self.number_of_groups + 1)

    @property
    def weights(self) -> NDArray[np.float64]:
        """(n,): what each score weighs among the groups and the new one, whose own weight is the rest."""
        _, places, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        return 1 / (sizes[places] * (len(sizes) + 1))

    def without(self, group: int) -> Calibration:
        """What the other groups say."""
        kept = self.groups != group
        return Calibration(self.scores[kept], self.groups[kept], self.models[kept])

    def threshold(self, level: float) -> float:
        """The score that this share of new samples stays within; infinite beyond `highest_level`."""
        return float(_quantile(self.scores[None, :], self.weights, level)[0])

    def intervals(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64], level: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Intervals of new samples: CV+ (Barber et al. 2021), of one model split conformal ones.

        Parameters
        ----------
        lower, upper : ndarray (m, M)
            What each model predicts, or its lower and its upper quantile.
        level : float

        Returns
        -------
        lower, upper : ndarray (m,)
        """
        ends = []
        weights = self.weights
        rows = max(1, _BLOCK // max(1, len(self.scores)))
        for start in range(0, len(lower), rows):
            some = slice(start, start + rows)
            low = -_quantile(self.scores - lower[some][:, self.models], weights, level)
            high = _quantile(self.scores + upper[some][:, self.models], weights, level)
            # Where quantiles of a model cross, and scores below 0 bring them nearer still, what is left is a point.
            middle = (low + high) / 2
            ends.append((np.minimum(low, middle), np.maximum(high, middle)))
        return np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends])

    def own_thresholds(self, level: float) -> NDArray[np.float64]:
        """For each sample calibrated on (n,) the threshold of the other groups: what it would have got itself."""
        found = np.empty(len(self.scores))
        for group in np.unique(self.groups):
            found[self.groups == group] = self.without(int(group)).threshold(level)
        return found


def _quantile(values: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The least value of each row (m, n) up to which there is this much weight; infinite where there is not."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1) >= level - 1e-12
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
    found = np.take_along_axis(values, np.take_along_axis(order, first[:, None], axis=1), axis=1)[:, 0]
    return np.where(first >= 0, found, np.inf)


def scores_of_numbers(
    actual: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far the truth is beyond what was predicted (n,); below 0 within quantiles (Romano et al. 2019)."""
    return np.maximum(lower - actual, actual - upper)


def scores_of_classes(probabilities: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 less the probability of the true class (Sadinle et al. 2019), (n,) of (n, K)."""
    return 1 - probabilities[np.arange(len(places)), places]


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities (n, K), their logarithms divided by a temperature: above 1 less sure, below it surer."""
    logs = np.log(np.maximum(probabilities, 1e-30)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def fit_temperature(
    probabilities: NDArray[np.float64], places: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> float:
    """The temperature that makes the true classes likeliest (Guo et al. 2017), each group counting as one.

    Parameters
    ----------
    probabilities : ndarray (n, K)
    places : ndarray (n,) of int
        The true classes.
    groups : ndarray (n,), optional
    """
    from scipy.optimize import minimize_scalar

    weights = np.full(len(places), 1 / len(places))
    if groups is not None:
        _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        weights = 1 / (sizes[inverse] * len(sizes))

    def loss(log_temperature: float) -> float:
        found = tempered(probabilities, float(np.exp(log_temperature)))
        return -float((weights * np.log(np.maximum(found[np.arange(len(places)), places], 1e-30))).sum())

    ends = float(np.log(_COLDEST)), float(np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=ends, method="bounded").x))
