"""What can be said of held-out predictions, and when nothing can."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from aam.answers import AllAnswers, Answers, against_guess
from aam.calibrators import Calibrators
from aam.data.targets import ClassTarget, NumericTarget

GROUPS = np.repeat(list("abcdef"), 4)
AGES = np.arange(24.0)
DELIVERY = ClassTarget("delivery", ("cesarean", "vaginal"))


def numbers(error: float) -> Answers:
    target = NumericTarget("age", "none", 0.0, 1.0)
    return Answers(target, np.arange(24), (AGES + error)[:, None], AGES)


def classes(actual: list[str]) -> Answers:
    probabilities = np.tile([0.3, 0.7], (len(actual), 1))
    return Answers(DELIVERY, np.arange(len(actual)), probabilities, np.array(actual))


@pytest.mark.parametrize(("groups", "unit", "units"), [(GROUPS, "groups", 6), (None, "samples", 24)])
def test_a_comparison_says_on_how_many(groups, unit, units):
    found = against_guess(numbers(0.5), np.full(24, 12.0), groups)
    assert found is not None and found["better"] is True
    assert (found["measure"], found["unit"], found["units"]) == ("mae", unit, units)
    assert found["low"] < found["error"] < found["high"] < 0


def test_nothing_can_be_said_of_one_group():
    found = against_guess(numbers(0.5), np.full(24, 12.0), np.full(24, "a"))
    assert found is not None and found["better"] is None and "low" not in found
    assert found["why"] == "the held-out samples are one group"


def test_nothing_can_be_said_of_one_class():
    """Which a model that always says this class would predict as well as can be."""
    found = against_guess(classes(["vaginal"] * 24), np.full(24, "cesarean"), GROUPS)
    assert found is not None and found["better"] is None
    assert found["why"] == "all held-out samples are vaginal"


def test_probabilities_are_not_calibrated_on_one_class(caplog: pytest.LogCaptureFixture):
    """The temperature that makes it likeliest would make the others impossible."""
    models = np.zeros(24, dtype=np.int64)
    with caplog.at_level(logging.WARNING, "aam"):
        one = Calibrators.of(AllAnswers(*classes(["vaginal"] * 24)), GROUPS, models, "val")
    assert one.by_name == {} and one.absent == ["delivery"]
    assert "none of the samples that could tell is cesarean" in caplog.text
    both = Calibrators.of(AllAnswers(*classes(["vaginal", "cesarean"] * 12)), GROUPS, models, "val")
    assert both.by_name["delivery"].temperature > 1  # half of them, and .7 was said
