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
from tests.end_to_end.program import aam, assert_one_line_error, simulate, succeed

OTHERS = {"AAM", "joined", "guess"}  # than classical models


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
    table, share = joined(first, {"second": second}, folds, False)
    assert share == 0.5  # 0 for fold 0, 1 for fold 1
    assert (table["predicted"] - table["actual"]).tolist() == [10.0] * 40


def test_which_model_is_joined_is_chosen_on_the_other_folds() -> None:
    """Each of two models is right in one fold alone, and would be right there if that fold had a say."""
    first, early, late = (numbers(np.random.default_rng(seed), 0) for seed in (1, 2, 3))
    folds = np.arange(40) % 2
    first["predicted"] += 30  # never worth a weight
    early.loc[folds == 1, "predicted"] += 10
    late.loc[folds == 0, "predicted"] += 10
    table, share = joined(first, {"early": early, "late": late}, folds, False)
    assert share == 0 and (table["predicted"] - table["actual"]).tolist() == [10.0] * 40


def test_joined_classes() -> None:
    rng = np.random.default_rng(3)
    actual = rng.choice(["a", "b"], 60)
    good = np.where(actual == "a", 0.8, 0.2)
    tables = []
    for prob in (good, rng.random(60)):
        predicted = np.where(prob > 0.5, "a", "b")
        tables.append(pd.DataFrame({"actual": actual, "predicted": predicted, "prob_a": prob, "prob_b": 1 - prob}))
    table, share = joined(tables[0], {"other": tables[1]}, np.arange(60) % 3, True)
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


def test_a_study_through_the_command(tmp_path: Path) -> None:
    """Each figure of the table against the files of the run that it is of."""
    folder = tmp_path / "studies" / "mouse_sleep_apnea_10422"
    study = simulate(folder, samples=30, subjects=10)
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0).rename(columns={"subject_id": "host_subject_id"})
    metadata.to_csv(study.metadata, sep="\t")
    tiny = ("embedding-dim=16", "attention-heads=1", "attention-layers=1", "clades=16", "epochs=2", "num-workers=0")
    options = [item for option in tiny for item in ("--option", option)]
    command = ["benchmark", "quality", "--data", tmp_path / "studies", "--output-dir", tmp_path / "quality"]
    command += ["--seeds", 2, "--threads", 1, "--device", "cpu", *options]
    first = succeed(*command)
    assert "mouse_sleep_apnea_10422, age" in first.out and "ecam_infant_age: has no table.biom" in first.err
    (row,) = json.loads((tmp_path / "quality" / "quality.json").read_text())["rows"]
    run = tmp_path / "quality" / "mouse_sleep_apnea_10422" / "age"
    ours = pd.read_csv(run / " ".join(tiny) / "oof_predictions.tsv", sep="\t")
    assert (row["samples"], row["groups"]) == (30, 10) == (len(ours), metadata["host_subject_id"].nunique())
    assert row["scores"]["AAM"] == pytest.approx(mean_absolute_error(ours["actual"], ours["predicted"]))
    best = pd.read_csv(run / "baseline" / f"{row['best_baseline']}_oof_predictions.tsv", sep="\t")
    assert row["scores"][row["best_baseline"]] == pytest.approx(mean_absolute_error(best["actual"], best["predicted"]))
    assert row["scores"][row["best_baseline"]] == min(row["scores"][name] for name in set(row["scores"]) - OTHERS)
    against = row["scores"]["AAM"] - row["scores"][row["best_baseline"]]
    assert row["against_best"]["value"] == pytest.approx(against)
    assert row["better_than_guess"] == (row["against_guess"]["high"] < 0)
    # Two networks a fold, whose mean is what is scored.
    seeds = [
        pd.concat(pd.read_csv(path, sep="\t") for path in run.glob(f"*/fold_*_seed_{seed}/test_*.tsv"))
        for seed in (0, 1)
    ]
    mean = (seeds[0].set_index("sample_id")["predicted"] + seeds[1].set_index("sample_id")["predicted"]) / 2
    np.testing.assert_allclose(mean.loc[ours["sample_id"]], ours["predicted"], rtol=1e-5)
    assert row["seeds"] == pytest.approx([mean_absolute_error(each["actual"], each["predicted"]) for each in seeds])
    # Again: nothing is trained, and the time is that of the training.
    assert aam(*command).out == first.out
    assert json.loads((tmp_path / "quality" / "quality.json").read_text())["rows"] == [row]


@pytest.mark.parametrize(
    ("option", "word"), [("lr=[1", "lr=[1"), ("epochs=-3", "--epochs -3"), ("schedule=steep", "--schedule steep")]
)
def test_an_option_is_refused_before_anything_is_computed(option: str, word: str, tmp_path: Path) -> None:
    command = ["benchmark", "quality", "--data", tmp_path, "--output-dir", tmp_path / "quality", "--option", option]
    assert_one_line_error(aam(*command), 2, word)
    assert not (tmp_path / "quality").exists()
