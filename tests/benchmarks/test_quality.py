"""Scores of predictions and of two models joined, against scikit-learn and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from aam.benchmarks.quality import QualityRow, joined, score, write_rows
from aam.evaluation.intervals import Difference, Interval, errors_that_count


def numbers(rng: np.random.Generator, noise: float) -> pd.DataFrame:
    actual = np.arange(40.0)
    return pd.DataFrame({"actual": actual, "predicted": actual + rng.normal(0, noise, 40)})


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    table = numbers(rng, 2)
    assert score(table, False) == pytest.approx(mean_absolute_error(table["actual"], table["predicted"]))
    classes = pd.DataFrame({"actual": rng.choice(list("aaab"), 50), "predicted": rng.choice(list("ab"), 50)})
    expected = balanced_accuracy_score(classes["actual"], classes["predicted"])
    assert score(classes, True) == pytest.approx(expected)
    errors = errors_that_count(classes["actual"].to_numpy(), classes["predicted"].to_numpy(), classes=True)
    assert 1 - errors.mean() == pytest.approx(expected)


def test_weights_of_a_fold_are_those_of_the_others() -> None:
    """The first model is right in fold 0 alone, so fold 0 is given the second and the other folds no such weight."""
    first, second = (numbers(np.random.default_rng(seed), 0) for seed in (1, 2))
    folds = np.arange(40) % 2
    first.loc[folds == 1, "predicted"] += 10
    second.loc[folds == 0, "predicted"] += 10
    table, share = joined(first, second, folds, False)
    assert share == 0.5  # 0 for fold 0, 1 for fold 1
    assert (table["predicted"] - table["actual"]).tolist() == [10.0] * 40


def test_joined_classes() -> None:
    rng = np.random.default_rng(3)
    actual = rng.choice(["a", "b"], 60)
    good = np.where(actual == "a", 0.8, 0.2)
    tables = []
    for prob in (good, rng.random(60)):
        predicted = np.where(prob > 0.5, "a", "b")
        tables.append(pd.DataFrame({"actual": actual, "predicted": predicted, "prob_a": prob, "prob_b": 1 - prob}))
    table, share = joined(*tables, np.arange(60) % 3, True)
    assert share >= 0.5 and score(table, True) > 0.9 > 0.7 > score(tables[1], True)


def test_rows_of_other_columns_are_kept(tmp_path: Path) -> None:
    def row(column: str, seconds: float) -> QualityRow:
        unsure = Difference(0.0, Interval(-1.0, 1.0), 1.0)
        return QualityRow(
            study="a",
            column=column,
            settings="default",
            samples=2,
            groups=2,
            metric="mae",
            bar=None,
            scores={},
            intervals={},
            seeds=[],
            best_baseline="linear",
            joined_share=0.5,
            against_best=unsure,
            against_guess=unsure,
            seconds=seconds,
        )

    write_rows(tmp_path / "quality.json", [row("x", 1), row("y", 1)])
    write_rows(tmp_path / "quality.json", [row("y", 2)])
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert {each["column"]: each["seconds"] for each in rows} == {"x": 1, "y": 2}
