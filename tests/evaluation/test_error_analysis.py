"""What goes with errors: against scipy's tests, and on columns of which the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from aam.evaluation.error_analysis import errors_by_group, explaining_columns, likely_reasons, sample_errors


@pytest.fixture(scope="module")
def columns() -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    site = rng.choice(["gut", "skin", "mouth"], 150)
    depth = rng.lognormal(8, 1, 150)
    errors = rng.random(150) + 2 * (site == "skin") + 1500 / depth
    frame = pd.DataFrame(
        {
            "site": site,
            "depth": depth.astype(str),
            "noise": rng.random(150).astype(str),
            "constant": "x",
            "sample_name": [f"s{i}" for i in range(150)],
            "empty": np.nan,
            "sex": rng.choice(["f", "m", ""], 150),
        }
    )
    return errors, frame


def test_errors_of_numbers_and_classes() -> None:
    numbers = pd.DataFrame({"actual": [1.0, 2.0], "predicted": [3.0, 1.5]})
    assert sample_errors(numbers).tolist() == [2.0, 0.5]
    classes = pd.DataFrame({"actual": ["a", "b", "c"], "predicted": ["a", "a", "a"]})
    assert sample_errors(classes).tolist() == [0, 1, 1]
    probable = classes.assign(prob_a=[0.7, 0.6, 1.0], prob_b=[0.3, 0.4, 0.0])
    assert sample_errors(probable).tolist() == pytest.approx([0.3, 0.6, 1.0])  # a class the model does not know


def test_the_columns_that_matter_come_first(columns: tuple[np.ndarray, pd.DataFrame]) -> None:
    errors, frame = columns
    found = explaining_columns(errors, frame).set_index("column")
    assert list(found.index[:2]) == ["site", "depth"]
    assert set(found.index) == {"site", "depth", "noise", "sex"}
    assert found.loc["site", "kind"] == "categories" and found.loc["depth", "kind"] == "numbers"
    assert (found.loc[["site", "depth"], "q"] < 0.01).all() and (found.loc[["noise", "sex"], "q"] > 0.05).all()
    assert found.loc["site", "explained"] > 0.3 > 0.05 > found.loc["noise", "explained"]


def test_tests_are_scipys(columns: tuple[np.ndarray, pd.DataFrame]) -> None:
    errors, frame = columns
    found = explaining_columns(errors, frame).set_index("column")
    ranks = stats.rankdata(errors)
    anova = stats.f_oneway(*(ranks[frame["site"] == name] for name in ("gut", "skin", "mouth")))
    assert found.loc["site", "p"] == pytest.approx(anova.pvalue)
    assert found.loc["depth", "p"] == pytest.approx(stats.spearmanr(errors, frame["depth"].astype(float)).pvalue)
    assert found["q"].tolist() == pytest.approx(stats.false_discovery_control(found["p"]).tolist())


def test_what_groups_have_is_tested_on_groups() -> None:
    """Of 6 cages with 20 mice each, three are large: that is no evidence, however many mice there are."""
    rng = np.random.default_rng(3)
    groups = np.repeat([f"cage{i}" for i in range(6)], 20)
    errors = np.repeat(rng.normal(0, 1, 6), 20) + rng.normal(0, 0.1, 120)
    frame = pd.DataFrame({"size": np.repeat(["small", "large"], 60)})
    alone, grouped = (explaining_columns(errors, frame, of).iloc[0] for of in (None, groups))
    assert (alone["unit"], alone["units"]) == ("sample", 120) and (grouped["unit"], grouped["units"]) == ("group", 6)
    assert alone["p"] < 0.01 < 0.1 < grouped["p"]


def test_groups_with_large_errors_come_first() -> None:
    found = errors_by_group(np.array([1.0, 5.0, 3.0, 0.0]), np.array(["a", "b", "b", "c"]))
    assert found["group"].tolist() == ["b", "a", "c"] and found["samples"].tolist() == [2, 1, 1]
    assert found["mean_error"].tolist() == [4, 1, 0]


def test_reasons_name_what_is_unusual() -> None:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"actual": np.arange(100.0), "predicted": np.arange(100.0) + rng.normal(0, 1, 100)})
    depth = np.full(100, 1000.0) + rng.normal(0, 10, 100)
    depth[50] = 3
    groups = np.repeat([f"g{i}" for i in range(10)], 10)
    table.loc[groups == "g7", "predicted"] += 40
    said = likely_reasons(table, {"depth": depth}, groups)
    assert "depth among the lowest (3)" in said[50]
    assert "actual value among the highest" in said[99] and "whole group" in said[72]
    assert not any("highest" in text for text in said[10:90] if "depth" in text)
    assert sum(text == "" for text in said) > 50
    classes = pd.DataFrame({"actual": ["a"] * 50 + ["b"] * 45 + ["c"] * 2, "predicted": ["a"] * 97})
    assert "class c is rare" in likely_reasons(classes, {})[-1]
