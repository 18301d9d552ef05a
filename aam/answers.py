"""What a model answers to held-out samples, and how good that is.

Shapes: ``N`` samples of the study, ``n`` of them answered, ``C`` outputs, ``T`` columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aam.data.study import Study
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.run_directory import write_table
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import answer_table

__all__ = [
    "LEVEL",
    "AllAnswers",
    "Answers",
    "against_guess",
    "answer_metrics",
    "best_constant",
    "by_column",
    "write_answers",
]

LEVEL = 0.9  # of the intervals that are judged


class Answers(NamedTuple):
    """What a model says of held-out samples whose truth is known."""

    target: Target
    rows: NDArray[np.int64]  # (n,) of the study
    values: NDArray[np.float64]  # (n, C): see `aam.training.tasks.answers_of`
    actual: NDArray[Any]  # (n,)


class AllAnswers(NamedTuple):
    """Likewise of every column, which may be several: of these (n, T) are actual, and some unknown."""

    target: Target | SeveralTargets
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    actual: NDArray[Any]

    def of(self, part: Part) -> Answers:
        """Of a column, where it is known."""
        known, actual = part.known(self.actual)
        return Answers(part.target, self.rows[known], self.values[known, part.outputs], actual)


def answer_metrics(answers: AllAnswers) -> dict[str, float]:
    """The metrics of answers, in original units; of several columns each after its name."""
    metrics: dict[str, float] = {}
    for part in parts_of(answers.target):
        of_part = answers.of(part)
        if len(of_part.rows):
            metrics |= {f"{part.prefix}{name}": value for name, value in _column_metrics(of_part).items()}
    return metrics


def by_column(target: Target | SeveralTargets, found: Callable[[Part], Any]) -> Any:
    """What is found of the one column, or of each of several by its name."""
    if not isinstance(target, SeveralTargets):
        return found(parts_of(target)[0])
    return {part.target.column: found(part) for part in parts_of(target)}


def _column_metrics(answers: Answers) -> dict[str, float]:
    target, values = answers.target, answers.values
    if isinstance(target, ClassTarget):
        places = target.encode(answers.actual)
        return classification_metrics(places, values.argmax(axis=1), values, target.classes)
    return regression_metrics(answers.actual, values[:, target.outputs // 2])


def against_guess(answers: Answers, guess: NDArray[Any], groups: NDArray[Any] | None) -> dict[str, Any] | None:
    """The mean error less that of a guess (n,): absolute, or 1 less balanced accuracy; and whether that is chance.

    Groups are resampled for the interval (95%); see `aam.evaluation.intervals.paired_difference` for the p-value. Of
    one group, or of samples that all are of one class, nothing can be said: ``better`` is None, and ``why`` says so.
    """
    from aam.evaluation.intervals import errors_that_count, paired_difference

    target, actual = answers.target, answers.actual
    if not len(actual):
        return None
    classes = isinstance(target, ClassTarget)
    if isinstance(target, ClassTarget):
        predicted: NDArray[Any] = target.decode(answers.values.argmax(axis=1))
    else:
        predicted = answers.values[:, target.outputs // 2]
    own, other = (errors_that_count(actual, values, classes=classes) for values in (predicted, guess))
    units = len(actual) if groups is None else len(np.unique(np.asarray(groups).astype(str)))
    unit = "samples" if groups is None else "groups"
    counted = {"unit": unit, "units": units}
    measure = {"measure": "balanced_accuracy" if classes else "mae"}
    why = None
    if classes and len(set(actual.tolist())) < 2:
        why = f"all held-out samples are {actual[0]}"
    elif units < 2:
        why = f"the held-out samples are one {unit[:-1]}"
    if why is not None:
        return {**measure, "better": None, "why": why, **counted}
    found = paired_difference(own, other, groups, classes=actual if classes else None, constant=True)
    low, high = found.interval
    numbers = {"error": found.value, "low": low, "high": high, "p": found.p}
    return {**measure, **numbers, "better": high < 0, **counted}


def best_constant(part: Part, train: NDArray[Any]) -> Any:
    """The best constant answer by the training samples' values: their median, or the most frequent class."""
    _, known = part.known(train)
    if isinstance(part.target, NumericTarget):
        return float(np.median(known))
    frequencies = np.bincount(part.target.encode(known), minlength=part.target.outputs)
    return part.target.classes[int(frequencies.argmax())]


def write_answers(study: Study, answers: AllAnswers, path: Path) -> None:
    """As a table, the truth beside them."""
    ids = [study.sample_ids[i] for i in answers.rows]
    write_table(path, answer_table(answers.target, ids, answers.values, answers.actual))
