"""What held-out samples say of how far off predictions are, of each column that a model predicts.

Shapes: ``N`` samples of the study, ``n`` of them answered, ``m`` predicted, ``M`` models, ``C`` outputs, ``T`` columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.answers import LEVEL, AllAnswers, Answers, by_column
from aam.calibration import Calibrator, names_of_sets
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.errors import DataError

__all__ = ["Calibrators"]

logger = logging.getLogger("aam")


@dataclass(frozen=True)
class Calibrators:
    """A calibrator of each column.

    Attributes
    ----------
    target : Target or SeveralTargets
    by_name : dict of str to Calibrator
        By column; without those that no samples could tell about.
    """

    target: Target | SeveralTargets
    by_name: dict[str, Calibrator]

    @classmethod
    def of(cls, answers: AllAnswers, groups: NDArray[Any] | None, models: NDArray[np.int64], source: str) -> Self:
        """From answers to samples that neither training nor early stopping saw.

        Parameters
        ----------
        answers : AllAnswers
            To n samples.
        groups : ndarray (N,), optional
        models : ndarray (n,) of int
            Which of several models answered each.
        source : str
            See `aam.calibration.Calibrator`.
        """
        found = {}
        for part in parts_of(answers.target):
            of_part = answers.of(part)
            own_groups = None if groups is None else groups[of_part.rows]
            known, _ = part.known(answers.actual)
            calibrator = _calibrator(of_part, own_groups, models[known], source, named=part.place is not None)
            if calibrator is not None:
                found[part.target.column] = calibrator
        return cls(answers.target, found)

    def of_part(self, part: Part) -> Calibrator | None:
        """Of one of the columns."""
        return self.by_name.get(part.target.column)

    @property
    def absent(self) -> list[str]:
        """The columns that have none."""
        return [part.target.column for part in parts_of(self.target) if self.of_part(part) is None]

    def summary(self, answers: AllAnswers) -> Any:
        """What ``metrics.json`` says: the samples, and how intervals or sets of 90% do on them; by column of several.

        Parameters
        ----------
        answers : AllAnswers
            Those that were calibrated on.
        """

        def summed_up(part: Part) -> dict[str, Any] | None:
            calibrator = self.of_part(part)
            if calibrator is None:
                return None
            coverage = calibrator.coverage(calibrator.calibrated(answers.of(part).values), LEVEL)
            return calibrator.to_dict() | {"coverage": None if coverage is None else coverage._asdict()}

        return by_column(self.target, summed_up)

    def calibrated(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Answers (…, C), probabilities calibrated."""
        found = answers.copy()
        for part in parts_of(self.target):
            calibrator = self.of_part(part)
            if calibrator is not None:
                found[..., part.outputs] = calibrator.calibrated(answers[..., part.outputs])
        return found

    def own_intervals(self, table: pd.DataFrame, answers: AllAnswers) -> pd.DataFrame:
        """The table of the samples calibrated on, with the interval or the set that the other groups give each.

        Of 90%, where groups are enough for it; of samples whose truth is unknown there are none.

        Parameters
        ----------
        table : DataFrame of n rows
        answers : AllAnswers
            To its samples.
        """
        for part in parts_of(self.target):
            calibrator = self.of_part(part)
            if calibrator is None:
                continue
            thresholds = calibrator.calibration.own_thresholds(LEVEL)
            if not np.isfinite(thresholds).all():
                continue
            of_part = answers.of(part)
            known, _ = part.known(answers.actual)
            if isinstance(part.target, ClassTarget):
                within = 1 - calibrator.calibrated(of_part.values) <= thresholds[:, None]
                added = {"set": np.array(names_of_sets(within, part.target.classes), dtype=object)}
            else:
                added = _ends(part.target, of_part.values[:, 0] - thresholds, of_part.values[:, -1] + thresholds)
            own = pd.DataFrame(added, index=table.index[known]).reindex(table.index)
            table = pd.concat([table, own.add_prefix(part.prefix)], axis=1)
        return table

    def intervals(self, table: pd.DataFrame, answers: NDArray[np.float64], level: float) -> pd.DataFrame:
        """The table of new samples, with the interval or the set of each beside what is predicted.

        Parameters
        ----------
        table : DataFrame of m rows
        answers : ndarray (m, M, C)
            Of each model, calibrated.
        level : float
        """
        for part in parts_of(self.target):
            calibrator = self.of_part(part)
            if calibrator is None:
                continue
            own = answers[..., part.outputs]
            added: dict[str, Any]
            if isinstance(part.target, ClassTarget):
                added = {"set": names_of_sets(calibrator.calibration.sets(own, level), part.target.classes)}
            else:
                added = _ends(part.target, *calibrator.calibration.intervals(own[..., 0], own[..., -1], level))
            place = list(table.columns).index(f"{part.prefix}predicted") + 1
            for name, values in reversed(added.items()):
                table.insert(place, f"{part.prefix}{name}", values)
        return table

    def reaching(self, level: float) -> Self:
        """Those whose groups are enough for a level; of the others there is a warning.

        Raises
        ------
        DataError
            If no column's are.
        """
        found, reasons = {}, []
        for column, calibrator in self.by_name.items():
            try:
                calibrator.require_level(level, column if isinstance(self.target, SeveralTargets) else "")
                found[column] = calibrator
            except DataError as error:
                reasons.append(error)
        if not found and reasons:
            raise reasons[0]
        for reason in reasons:
            logger.warning(reason)
        return replace(self, by_name=found)

    def to_dict(self) -> dict[str, Any]:
        """What of it is no tensor."""
        if not isinstance(self.target, SeveralTargets):
            return next(iter(self.by_name.values())).to_dict()
        return {"columns": {column: calibrator.to_dict() for column, calibrator in self.by_name.items()}}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rest."""
        found: dict[str, NDArray[Any]] = {}
        for part in parts_of(self.target):
            calibrator = self.of_part(part)
            if calibrator is not None:
                found |= calibrator.arrays(_of_place(part))
        return found

    @classmethod
    def read(
        cls, target: Target | SeveralTargets, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Self:
        """From what `to_dict` and `arrays` gave.

        Raises
        ------
        ValueError
            If they are damaged.
        """
        try:
            each = (
                stored["columns"] if isinstance(target, SeveralTargets) else {parts_of(target)[0].target.column: stored}
            )
            parts = {part.target.column: part for part in parts_of(target)}
            found = {name: Calibrator.read(own, arrays, _of_place(parts[name])) for name, own in each.items()}
        except (KeyError, TypeError, AttributeError):
            raise ValueError("no calibration") from None
        return cls(target, found)


def _of_place(part: Part) -> str:
    """Before the names of a column's arrays."""
    return "calibration" if part.place is None else f"calibration.{part.place}"


def _calibrator(
    answers: Answers, groups: NDArray[Any] | None, models: NDArray[np.int64], source: str, *, named: bool
) -> Calibrator | None:
    """None, with a warning, where there are no samples, or classes are absent from them."""
    column = f"{answers.target.column}: " if named else ""
    if not len(answers.rows):
        logger.warning("%snothing can be calibrated: it is unknown of all the samples that could tell", column)
        return None
    if isinstance(answers.target, ClassTarget):
        places = answers.target.encode(answers.actual)
        absent = sorted(set(answers.target.classes) - set(answers.target.decode(places).tolist()))
        if absent:
            # What makes the other classes likeliest makes these impossible.
            logger.warning(
                "%sprobabilities are not calibrated, nor are there sets: none of the samples that could tell is %s",
                column,
                " or ".join(absent),
            )
            return None
        return Calibrator.of_classes(answers.values, places, groups, models, source)
    return Calibrator.of_numbers(answers.values, answers.actual, groups, models, source)


def _ends(target: NumericTarget, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> dict[str, Any]:
    return {"lower": target.within(lower), "upper": target.within(upper)}
