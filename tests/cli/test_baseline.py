"""`aam baseline`, and the classical models beside a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from aam.data.splits import read_folds, read_splits
from aam.evaluation.baseline import BASELINES
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    read_metrics,
    read_predictions,
    simulate,
    succeed,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


def baseline(study: StudyFiles, *options: object) -> list[object]:
    files = ["--table", study.table, "--metadata", study.metadata, "--unifrac-matrix", study.matrix]
    return ["baseline", *files, "--threads", 1, *options]


def test_every_option_is_a_model() -> None:
    from aam.cli.baseline import _MODELS

    assert tuple(BASELINES) == _MODELS


def test_numbers(study: StudyFiles, tmp_path: Path) -> None:
    options = ("--metadata-column", "age", "--group-column", "subject_id", "--test-size", 0.25)
    out = succeed(*baseline(study, *options, "--output-dir", tmp_path / "run")).out
    assert "6 samples, test" in out and "linear" in out
    metrics = read_metrics(tmp_path / "run")["baseline"]
    assert metrics.keys() == BASELINES.keys()
    split = read_splits(tmp_path / "run" / "splits.tsv")
    for name, parts in metrics.items():
        for part in ("val", "test"):
            table = read_predictions(tmp_path / "run" / f"{name}_{part}_predictions.tsv")
            assert set(table.index) == {sample for sample, where in split.items() if where == part}
            assert parts[part]["mae"] == pytest.approx(mean_absolute_error(table["actual"], table["predicted"]))


def test_classes_in_folds(study: StudyFiles, tmp_path: Path) -> None:
    options = ("--metadata-column", "group", "--classifier", "--folds", 3, "--group-column", "subject_id")
    succeed(*baseline(study, *options, "--model", "linear", "--output-dir", tmp_path / "run"))
    metrics = read_metrics(tmp_path / "run")["baseline"]
    table = read_predictions(tmp_path / "run" / "linear_oof_predictions.tsv")
    assert metrics.keys() == {"linear"} and len(table) == 24
    expected = balanced_accuracy_score(table["actual"], table["predicted"])
    assert metrics["linear"]["oof"]["balanced_accuracy"] == pytest.approx(expected)
    folds = read_folds(tmp_path / "run" / "splits.tsv")
    subjects = pd.read_csv(study.metadata, sep="\t", index_col=0)["subject_id"]
    assert pd.Series(folds).groupby(subjects).nunique().eq(1).all()


def test_json_without_distances(study: StudyFiles) -> None:
    options = ["baseline", "--table", study.table, "--metadata", study.metadata, "--metadata-column", "age"]
    found = json.loads(succeed(*options, "--rarefy-depth", 100, "--json").out)
    assert found["baseline"].keys() == BASELINES.keys() - {"neighbours"}
    assert found["samples"].keys() == {"val"}
    outcome = aam(*options, "--model", "neighbours")
    assert_one_line_error(outcome, 1, "--model neighbours", "--unifrac-matrix")


def test_a_run_is_not_replaced_in_silence(study: StudyFiles, tmp_path: Path) -> None:
    arguments = baseline(study, "--metadata-column", "age", "--model", "guess", "--output-dir", tmp_path / "run")
    succeed(*arguments)
    assert_one_line_error(aam(*arguments), 1, tmp_path / "run", "--overwrite")
    succeed(*arguments, "--overwrite")


@pytest.mark.parametrize("option", ["--table", "--metadata-column"])
def test_what_is_needed(option: str, study: StudyFiles) -> None:
    given = {"--table": study.table, "--metadata": study.metadata, "--metadata-column": "age"}
    arguments = [part for name, value in given.items() if name != option for part in (name, value)]
    assert_one_line_error(aam("baseline", *arguments), 2, f"Missing option '{option}'")


def test_beside_a_run(study: StudyFiles, tmp_path: Path) -> None:
    """The same samples as by `aam baseline`, in the same table as the network."""
    options = ("--metadata-column", "age", "--group-column", "subject_id", "--test-size", 0.25)
    outcome = succeed(*study.train, *options, "--baseline", "--output-dir", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    files = ["--table", study.table, "--metadata", study.metadata]
    expected = json.loads(succeed("baseline", *files, *options, "--threads", 1, "--json").out)["baseline"]
    assert metrics["baseline"].keys() == expected.keys() == BASELINES.keys() - {"neighbours"}
    for name in expected.keys() - {"guess"}:
        for part in ("val", "test"):
            assert metrics["baseline"][name][part] == pytest.approx(expected[name][part])
    assert [line.split()[0] for line in outcome.out.splitlines() if line.startswith(("AAM", "extra trees"))] == [
        *("AAM", "extra", "AAM", "extra")
    ]


def test_beside_folds(study: StudyFiles, tmp_path: Path) -> None:
    options = ("--metadata-column", "age", "--folds", 2, "--epochs", 1, "--baseline")
    outcome = succeed(*study.train, *options, "--output-dir", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert metrics["baseline"].keys() == BASELINES.keys() - {"neighbours"}
    assert all(np.isfinite(parts["oof"]["mae"]) for parts in metrics["baseline"].values())
    assert read_metrics(tmp_path / "run" / "fold_0")["baseline"].keys() == {"guess"}
    assert "extra trees" in outcome.out and "AAM" in outcome.out
