"""What goes with errors: against scipy's tests, and on columns of which the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from aam.evaluation.error_analysis import (
    as_text,
    errors_by_group,
    explained_by_groups,
    explaining_columns,
    likely_reasons,
    sample_errors,
)


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
    assert "whole group" in said[72]
    ends = [place for place in range(100) if "actual value among" in said[place]]
    assert ends and all((table["predicted"] > table["actual"])[place] == (place < 50) for place in ends)
    assert not any("highest" in text for text in said[10:90] if "depth" in text)
    assert sum(text == "" for text in said) > 50
    classes = pd.DataFrame({"actual": ["a"] * 50 + ["b"] * 45 + ["c"] * 2, "predicted": ["a"] * 97})
    assert "class c is rare" in likely_reasons(classes, {})[-1]


def test_what_is_the_truth_in_other_words_is_told() -> None:
    rng = np.random.default_rng(0)
    months = rng.random(80) * 24
    frame = pd.DataFrame({"days": months * 30.4, "noise": rng.random(80), "sex": rng.choice(["f", "m"], 80)})
    errors = months + rng.random(80)
    found = explaining_columns(errors, frame, None, months).set_index("column")
    assert found.loc["days", "like_truth"] == pytest.approx(1)
    assert found.loc["noise", "like_truth"] == pytest.approx(abs(stats.spearmanr(frame["noise"], months).statistic))
    assert np.isnan(found.loc["sex", "like_truth"]) and found.loc["days", "larger_errors"] == "high values"
    classes = np.where(months > 12, "old", "young")
    words = pd.DataFrame({"stage": np.where(months > 12, "adult", "infant"), "sex": frame["sex"]})
    told = explaining_columns(errors, words, None, classes).set_index("column")["like_truth"]
    table = pd.crosstab(words["sex"], classes)
    assert told["stage"] == pytest.approx(1)
    assert told["sex"] == pytest.approx(stats.contingency.association(table.to_numpy(), method="cramer"))


def test_where_errors_are_larger(columns: tuple[np.ndarray, pd.DataFrame]) -> None:
    errors, frame = columns
    found = explaining_columns(errors, frame).set_index("column")["larger_errors"]
    assert found["site"] == "skin" and found["depth"] == "low values"


def test_reasons_name_columns_and_odd_samples_of_good_groups(columns: tuple[np.ndarray, pd.DataFrame]) -> None:
    errors, frame = columns
    table = pd.DataFrame({"actual": np.full(150, 5.0), "predicted": 5 + errors})
    said = likely_reasons(table, {}, None, frame, explaining_columns(errors, frame))
    skin = frame["site"] == "skin"
    assert all(("site is skin" in text) == there for text, there in zip(said, skin, strict=True))
    groups = np.repeat([f"g{i}" for i in range(15)], 10)
    near = pd.DataFrame({"actual": np.arange(150.0), "predicted": np.arange(150) + 0.1 * (1 + np.arange(150) % 10)})
    near.loc[groups == "g4", "predicted"] = near["actual"] + 0.3
    near.loc[44, "predicted"] += 30
    assert "unlike the rest of its group" in likely_reasons(near, {}, groups)[44]


def test_groups_explain_what_their_means_do() -> None:
    groups = np.repeat(list("abcd"), 25)
    errors = np.random.default_rng(0).random(100)
    assert (
        explained_by_groups(errors, groups) < 0.1 < 0.9 < explained_by_groups(errors + 9 * (groups == "a"), groups) * 2
    )
    assert explained_by_groups(errors, np.arange(100)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(10093.0, "10,093"), (2.80874, "2.809"), (3.6e-13, "3.6e-13"), (0.0, "0"), (np.nan, ""), (-1234.6, "-1,235")],
)
def test_numbers_as_a_person_writes_them(value: float, text: str) -> None:
    assert as_text(value) == text


def test_dates_are_time() -> None:
    """Mice of one age, on many dates: each date is an age in other words, and no reason for an error."""
    rng = np.random.default_rng(0)
    week = np.repeat(np.arange(13), 10)
    dates = (pd.Timestamp("2016-02-23 10:00") + pd.to_timedelta(7 * week, unit="D")).strftime("%Y-%m-%d %H:%M")
    noted = pd.Series(rng.choice(pd.date_range("2015-01-01", periods=400).strftime("%-m/%-d/%y"), 130))
    noted[3] = "not collected"
    frame = pd.DataFrame({"collection_timestamp": dates, "noted": noted, "visit": rng.choice(["1-1-1", "2-1-1"], 130)})
    errors = week + rng.random(130)
    actual = 10 + 0.5 * week
    explained = explaining_columns(errors, frame, None, actual)
    found = explained.set_index("column")
    assert found["kind"].to_dict() == {"collection_timestamp": "dates", "noted": "dates", "visit": "categories"}
    assert found.loc["collection_timestamp", "like_truth"] == pytest.approx(1)
    assert found.loc["collection_timestamp", "larger_errors"] == "late dates"
    assert found.loc["noted", "units"] == 129 and found.loc["noted", "like_truth"] < 0.3
    table = pd.DataFrame({"actual": actual, "predicted": actual + errors})
    assert not any("collection_timestamp" in text for text in likely_reasons(table, {}, None, frame, explained))
    other = explaining_columns(errors, frame, None, rng.random(130))
    said = likely_reasons(table, {}, None, frame, other)
    assert "collection_timestamp is late (2016-05-17), where errors are larger" in said[-1] and "late" not in said[0]


def test_a_few_dates_may_be_classes_in_other_words() -> None:
    rng = np.random.default_rng(0)
    visit = rng.choice(["before", "after"], 60)
    frame = pd.DataFrame({"date": np.where(visit == "before", "2016-02-23", "2016-03-18")})
    found = explaining_columns(rng.random(60), frame, None, visit).iloc[0]
    assert found["kind"] == "dates" and found["like_truth"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("of_group", "error", "odd"),
    [
        ([0.47, 0.48, 0.482, 0.484, 0.49], 0.509, False),  # larger, but much like the others
        ([0.48, 0.481, 0.482], 0.509, False),
        ([0.05, 0.1, 0.3, 0.35, 0.4], 0.52, False),  # within what the group spreads over
        ([0.05, 0.1, 0.1, 0.12, 0.15], 0.52, True),
        ([0.0, 0.0, 0.0, 0.0], 0.52, True),
        ([0.0, 0.0], 0.52, False),  # too few to say what is usual
    ],
)
def test_an_odd_sample_stands_out_of_its_group_by_far(of_group: list[float], error: float, odd: bool) -> None:
    errors = np.array([*of_group, error, *np.linspace(0.49, 0.5, 40)])
    groups = np.array(["a"] * (len(of_group) + 1) + ["b"] * 40)
    table = pd.DataFrame({"actual": np.zeros(len(errors)), "predicted": errors})
    said = likely_reasons(table, {}, groups)
    assert ("unlike the rest of its group" in said[len(of_group)]) == odd
