"""How far predictions may be from the truth: conformal intervals and sets, and calibrated probabilities.

What is learnt here comes from samples that neither training nor early stopping saw: those that each fold holds out, or
a split of their own. Samples of a group (a subject, say) are alike and no independent evidence, so each group counts as
one (Dunn et al. 2023, Lee et al. 2023): its samples share its weight, and a new sample is taken to be of a new group.

What is promised for any groups whatever takes the score of the new group to be infinite, which makes intervals of few
groups far too wide: of 16, 95% where 90% are asked for. So the least share of the known groups' scores is taken,
between the level and that promise, that covers each group as often as asked for with its own scores taken to be low.
Of groups of one sample that is the promise itself, which is exact for them.

Shapes: ``n`` samples calibrated on, ``G`` of their groups, ``m`` samples predicted, ``M`` models, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from aam.errors import DataError
from aam.resampling import drawn_groups, members_of

__all__ = [
    "Calibration",
    "Calibrator",
    "Coverage",
    "fit_temperature",
    "names_of_sets",
    "scores_of_classes",
    "scores_of_numbers",
    "tempered",
]

_ARRAYS = ("scores", "groups", "models")
_BLOCK = 2**22  # entries of a sample-by-score table that are sorted together
_CLOSE = 1e-12
_COLDEST, _HOTTEST = 0.05, 20.0
_DRAWS = 2000
_MOST_LEFT_OUT = 200  # groups; of more, what is promised for any is within half a percent of the level
_SHARES = 11  # between the level and what is promised


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
        """(n,): what each score weighs; 1 together."""
        _, places, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        return 1 / (sizes[places] * len(sizes))

    def share(self, level: float) -> float:
        """The share of the scores known that this share of new samples stays within; above 1 beyond `highest_level`.

        At most what is promised for any groups: the level of all and a new one, of which that one's part is unknown.
        Up to that it is tried on each group in turn, the other groups' scores being known, and its own counted as low:
        where they are high in truth, more of all is within.
        """
        _, places, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        number = len(sizes)
        shares = level * (1 + np.linspace(0, 1, _SHARES) / number)
        if not 2 <= number <= _MOST_LEFT_OUT or level > self.highest_level + _CLOSE:
            return float(shares[-1])
        order = np.argsort(self.scores, kind="stable")
        scores = self.scores[order]
        own = np.zeros((len(order), number))  # of each group, the share of its scores up to each of all
        own[np.arange(len(order)), places[order]] = 1 / sizes[places[order]]
        own = own.cumsum(axis=0)
        others = (own.sum(axis=1, keepdims=True) - own) / (number - 1)
        for share in shares:
            of_others = (share * number - 1) / (number - 1)
            if of_others <= _CLOSE:  # the own low scores would be enough
                continue
            first = np.minimum((others < of_others - _CLOSE).sum(axis=0), len(order) - 1)
            # Of scores that are the same the last: a sample at the threshold is within.
            last = np.searchsorted(scores, scores[first], side="right") - 1
            if own[last, np.arange(number)].mean() >= level - _CLOSE:
                return float(share)
        return float(shares[-1])

    def without(self, group: int) -> Calibration:
        """What the other groups say."""
        kept = self.groups != group
        return Calibration(self.scores[kept], self.groups[kept], self.models[kept])

    def threshold(self, level: float) -> float:
        """The score that this share of new samples stays within; infinite beyond `highest_level`."""
        return float(_quantile(self.scores[None, :], self.weights, self.share(level))[0])

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
        weights, share = self.weights, self.share(level)
        rows = max(1, _BLOCK // max(1, len(self.scores)))
        for start in range(0, len(lower), rows):
            some = slice(start, start + rows)
            low = -_quantile(self.scores - lower[some][:, self.models], weights, share)
            high = _quantile(self.scores + upper[some][:, self.models], weights, share)
            # Where quantiles of a model cross, and scores below 0 bring them nearer still, what is left is a point.
            middle = (low + high) / 2
            ends.append((np.minimum(low, middle), np.maximum(high, middle)))
        return np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends])

    def sets(self, probabilities: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
        """Sets of classes of new samples (m, K): CV+ as Romano et al. (2020) have it for classes.

        Parameters
        ----------
        probabilities : ndarray (m, M, K)
            Of each model.
        level : float
        """
        found = np.empty((len(probabilities), probabilities.shape[2]), dtype=bool)
        weights, share = self.weights, self.share(level)
        rows = max(1, _BLOCK // max(1, len(self.scores)))
        for start in range(0, len(found), rows):
            some = slice(start, start + rows)
            for place in range(found.shape[1]):
                own = 1 - probabilities[some, :, place][:, self.models]  # (m, n)
                found[some, place] = (self.scores < own) @ weights < share - _CLOSE
        return found

    def own_thresholds(self, level: float) -> NDArray[np.float64]:
        """For each sample calibrated on (n,) the threshold of the other groups: what it would have got itself."""
        found = np.full(len(self.scores), np.inf)
        others = self.number_of_groups - 1
        if others < 1 or level > others / (others + 1) + _CLOSE:
            return found
        if others <= _MOST_LEFT_OUT:
            for group in np.unique(self.groups):
                found[self.groups == group] = self.without(int(group)).threshold(level)
            return found
        # Of many groups the share is the same, and one sorting will do: up to a score, the others have what all have
        # less what the group has, which changes at its own scores alone.
        order = np.argsort(self.scores, kind="stable")
        reached = np.cumsum(self.weights[order]) * (others + 1)
        rank = np.argsort(order)
        for rows in members_of(self.groups, len(self.scores)):
            ends = np.concatenate([[-1], np.sort(rank[rows]), [len(order)]])
            own = np.linspace(0, 1, len(rows) + 1)
            places = np.searchsorted(reached, level * (others + 1) + own - _CLOSE * others)
            places = places[(ends[:-1] <= places) & (places < ends[1:])]
            found[rows] = self.scores[order[places.min()]]
        return found


def _quantile(values: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The least value of each row (m, n) up to which there is this much weight; infinite where there is not."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1) >= level - _CLOSE
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
    found = np.take_along_axis(values, np.take_along_axis(order, first[:, None], axis=1), axis=1)[:, 0]
    return np.where(first >= 0, found, np.inf)


def names_of_sets(within: NDArray[np.bool_], classes: Sequence[str]) -> list[str]:
    """Sets of classes (n, K) as they are written: names, with a bar between them."""
    names = np.array(classes, dtype=object)
    return ["|".join(names[row]) for row in within]


def scores_of_numbers(
    actual: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far the truth is beyond what was predicted (n,); below 0 within quantiles (Romano et al. 2019)."""
    return np.maximum(lower - actual, actual - upper)


def scores_of_classes(probabilities: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 less the probability of the true class (Sadinle et al. 2019), (n,) of (n, K)."""
    return 1 - probabilities[np.arange(len(places)), places]


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities (…, K), their logarithms divided by a temperature: above 1 less sure, below it surer."""
    logs = np.log(np.maximum(probabilities, 1e-30)) / temperature
    powers = np.exp(logs - logs.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
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


class Coverage(NamedTuple):
    """How often intervals or sets hold the truth, each group counting as one."""

    level: float  # asked for
    coverage: float
    low: float  # from here to `high` with 95% confidence, by resampling groups
    high: float
    width: float  # of intervals, or classes in a set; a mean


@dataclass(frozen=True)
class Calibrator:
    """What samples that were calibrated on say of a model's answers.

    Answers (n, C) are numbers in original units, quantiles rising, or probabilities of classes.

    Attributes
    ----------
    calibration : Calibration
    temperature : float
        Of the probabilities of classes; 1 for numbers.
    classes : bool
        Whether classes are answered.
    source : str
        The samples: ``oof`` (those that each fold holds out), ``cal`` or ``val``.
    """

    calibration: Calibration
    temperature: float
    classes: bool
    source: str

    @classmethod
    def of_numbers(
        cls,
        answers: NDArray[np.float64],
        actual: NDArray[np.float64],
        groups: NDArray[Any] | None,
        models: NDArray[np.int64],
        source: str,
    ) -> Self:
        """From answers (n, C) to samples whose truth (n,) is known."""
        scores = scores_of_numbers(actual, answers[:, 0], answers[:, -1])
        return cls(Calibration.of(scores, groups, models), 1.0, False, source)

    @classmethod
    def of_classes(
        cls,
        probabilities: NDArray[np.float64],
        places: NDArray[np.int64],
        groups: NDArray[Any] | None,
        models: NDArray[np.int64],
        source: str,
    ) -> Self:
        """From probabilities (n, K) of samples whose class is known."""
        unscored = Calibration.of(np.zeros(len(places)), groups, models)
        temperature = fit_temperature(probabilities, places, unscored.groups)
        scores = scores_of_classes(tempered(probabilities, temperature), places)
        return cls(Calibration(scores, unscored.groups, unscored.models), temperature, True, source)

    def calibrated(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Answers (…, C), probabilities tempered."""
        return tempered(answers, self.temperature) if self.classes else answers

    def coverage(self, answers: NDArray[np.float64], level: float) -> Coverage | None:
        """How intervals or sets do on the samples calibrated on, each made by what the other groups say.

        Parameters
        ----------
        answers : ndarray (n, C)
            To these samples, calibrated.
        level : float

        Returns
        -------
        Coverage or None
            None where the groups are too few for the level.
        """
        thresholds = self.calibration.own_thresholds(level)
        if not np.isfinite(thresholds).all():
            return None
        _, places, sizes = np.unique(self.calibration.groups, return_inverse=True, return_counts=True)
        of_group = np.bincount(places, self.calibration.scores <= thresholds) / sizes
        drawn = (of_group[places].mean(axis=1) for places in drawn_groups(len(sizes), _DRAWS))
        low, high = np.percentile(np.concatenate(list(drawn)), [2.5, 97.5])
        if self.classes:
            widths = (1 - answers <= thresholds[:, None]).sum(axis=1).astype(np.float64)
        else:
            widths = np.maximum(answers[:, -1] - answers[:, 0] + 2 * thresholds, 0)
        width = float((np.bincount(places, widths) / sizes).mean())
        return Coverage(level, float(of_group.mean()), float(low), float(high), width)

    def require_level(self, level: float, column: str = "") -> None:
        """Refuse a level that the groups are too few for.

        Parameters
        ----------
        level : float
        column : str
            Which of several it is about.

        Raises
        ------
        DataError
        """
        highest, number = self.calibration.highest_level, self.calibration.number_of_groups
        of_column = f" for {column}" if column else ""
        if level > highest + _CLOSE:
            more = "" if self.source == "oof" else ", or train with --folds, which calibrates on all groups"
            raise DataError(
                f"--interval {level:g}: the model was calibrated{of_column} on {number} groups of samples, which are "
                f"enough for intervals of up to {np.floor(highest * 100) / 100:g}; ask for less{more}"
            )

    def to_dict(self) -> dict[str, Any]:
        """What of it is no tensor."""
        groups = self.calibration.number_of_groups
        return {
            "temperature": self.temperature,
            "classes": self.classes,
            "source": self.source,
            "samples": len(self.calibration.scores),
            "groups": groups,
        }

    def arrays(self, prefix: str = "calibration") -> dict[str, NDArray[Any]]:
        """The rest, by names that begin so."""
        return {f"{prefix}.{name}": getattr(self.calibration, name) for name in _ARRAYS}

    @classmethod
    def read(cls, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], prefix: str = "calibration") -> Self:
        """From what `to_dict` and `arrays` gave.

        Raises
        ------
        ValueError
            If they are damaged.
        """
        try:
            scores, groups, models = (arrays[f"{prefix}.{name}"] for name in _ARRAYS)
            temperature = float(stored["temperature"])
            known = cls(Calibration(scores, groups, models), temperature, bool(stored["classes"]), stored["source"])
        except (KeyError, TypeError, ValueError):
            raise ValueError("no calibration") from None
        if not (scores.shape == groups.shape == models.shape == (len(scores),)) or not temperature > 0:
            raise ValueError("no calibration")
        return known
