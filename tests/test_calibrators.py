"""Calibration of each column where several are predicted, and some values are unknown."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from aam.answers import AllAnswers
from aam.calibration import Calibration, tempered
from aam.calibrators import Calibrators
from aam.data.targets import ClassTarget, NumericTarget, SeveralTargets
from aam.errors import DataError

N = 60
GROUPS = np.repeat([f"g{place:02d}" for place in range(20)], 3)
FOLDS = np.arange(N) // 3 % 4
NUMBERS = SeveralTargets(tuple(NumericTarget(name, "none", 0.0, 1.0) for name in ("age", "bmi")))
CLASSES = SeveralTargets((ClassTarget("site", ("gut", "skin")), ClassTarget("diet", ("mixed", "vegan", "vegetarian"))))


def numbers(known: Callable[[np.ndarray], np.ndarray] = lambda places: places % 5 != 2) -> AllAnswers:
    rng = np.random.default_rng(0)
    actual = rng.normal(size=(N, 2)) * [5, 1]
    values = actual + rng.normal(size=(N, 2))
    actual[~known(np.arange(N)), 1] = np.nan
    return AllAnswers(NUMBERS, np.arange(N), values, actual)


def of_others(scores: np.ndarray, groups: np.ndarray, place: int) -> float:
    others = groups != groups[place]
    return Calibration.of(scores[others], groups[others], np.zeros(others.sum(), dtype=int)).threshold(0.9)


def test_own_intervals_of_numbers_are_those_of_the_other_groups() -> None:
    answers = numbers()
    calibrators = Calibrators.of(answers, GROUPS, FOLDS, "oof")
    found = calibrators.own_intervals(pd.DataFrame({"sample_id": np.arange(N)}), answers)
    assert list(found.columns) == ["sample_id", "age_lower", "age_upper", "bmi_lower", "bmi_upper"]
    for column, name in enumerate(("age", "bmi")):
        known = np.flatnonzero(np.isfinite(answers.actual[:, column]))
        assert found[f"{name}_lower"].notna().to_numpy().nonzero()[0].tolist() == known.tolist()
        values = answers.values[known, column]
        scores = np.abs(values - answers.actual[known, column])
        width = np.array([of_others(scores, GROUPS[known], place) for place in range(len(known))])
        np.testing.assert_allclose(found.loc[known, f"{name}_lower"], values - width)
        np.testing.assert_allclose(found.loc[known, f"{name}_upper"], values + width)
        held = np.abs(values - answers.actual[known, column]) <= width
        coverage = calibrators.summary(answers)[name]["coverage"]["coverage"]
        assert coverage == pytest.approx(pd.Series(held).groupby(GROUPS[known]).mean().mean())


def test_own_sets_of_classes_are_those_of_the_other_groups() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.dirichlet(np.ones(2), N), rng.dirichlet(np.ones(3), N)], axis=1)
    actual = np.empty((N, 2), dtype=object)
    for column, (part, outputs) in enumerate(zip(CLASSES.parts, CLASSES.slices, strict=True)):
        drawn = [rng.choice(part.classes, p=row) for row in values[:, outputs]]
        actual[:, column] = drawn
    actual[4::7, 1] = np.nan
    answers = AllAnswers(CLASSES, np.arange(N), values, actual)
    calibrators = Calibrators.of(answers, GROUPS, FOLDS, "oof")
    found = calibrators.own_intervals(pd.DataFrame({"sample_id": np.arange(N)}), answers)
    for column, (part, outputs) in enumerate(zip(CLASSES.parts, CLASSES.slices, strict=True)):
        known = np.array([place for place in range(N) if actual[place, column] == actual[place, column]])
        sets = found[f"{part.column}_set"]
        assert sets.notna().to_numpy().nonzero()[0].tolist() == known.tolist()
        calibrated = tempered(values[known, outputs], calibrators.by_name[part.column].temperature)
        truth = [part.classes.index(name) for name in actual[known, column]]
        scores = 1 - calibrated[np.arange(len(known)), truth]
        for place, row in enumerate(known):
            within = 1 - calibrated[place] <= of_others(scores, GROUPS[known], place)
            assert sets[row] == "|".join(np.array(part.classes)[within])


def test_what_is_stored_is_read() -> None:
    calibrators = Calibrators.of(numbers(), GROUPS, FOLDS, "oof")
    stored, arrays = calibrators.to_dict(), calibrators.arrays()
    again = Calibrators.read(NUMBERS, stored, arrays)
    assert again.to_dict() == stored
    for name, calibrator in calibrators.by_name.items():
        np.testing.assert_array_equal(again.by_name[name].calibration.scores, calibrator.calibration.scores)
    for damaged in ({}, {"columns": None}, {"columns": {"weight": stored["columns"]["age"]}}):
        with pytest.raises(ValueError, match="no calibration"):
            Calibrators.read(NUMBERS, damaged, arrays)


def test_a_column_known_of_few_groups_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    calibrators = Calibrators.of(numbers(lambda places: places < 9), GROUPS, FOLDS, "oof")
    with caplog.at_level(logging.WARNING, "aam"):
        assert calibrators.reaching(0.9).by_name.keys() == {"age"}
    assert "calibrated for bmi on 3 groups" in caplog.text and "--folds" not in caplog.text
    assert calibrators.reaching(0.7).by_name.keys() == {"age", "bmi"}
    with pytest.raises(DataError, match=r"--interval 0.99: .* for age on 20 groups"):
        calibrators.reaching(0.99)


def test_a_column_that_is_unknown_of_all_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "aam"):
        calibrators = Calibrators.of(numbers(lambda places: places < 0), GROUPS, FOLDS, "val")
    assert "bmi: nothing can be calibrated: it is unknown" in caplog.text
    assert calibrators.absent == ["bmi"] and calibrators.summary(numbers())["bmi"] is None
