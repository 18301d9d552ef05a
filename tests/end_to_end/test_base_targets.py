"""Base targets from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.program import (
    QUICK,
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    read_metrics,
    read_predictions,
    succeed,
)

NAMES = ("mae", "rmse", "r2", "spearman")


@pytest.fixture(scope="module")
def weighted(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trained on what the matrix is said to hold."""
    run = tmp_path_factory.mktemp("runs") / "weighted"
    succeed(
        *study.pretrain, "--base-target", "generalized_unifrac", "--unifrac-alpha", 0.3, "--plots", "--output-dir", run
    )
    return run


def test_metrics_go_by_the_targets_name(weighted: Path) -> None:
    expected = {f"generalized_unifrac_{name}" for name in NAMES}
    expected |= {f"generalized_unifrac_euclidean_{name}" for name in NAMES}
    assert set(read_metrics(weighted)["val"]) == expected
    history = (weighted / "history.csv").read_text().splitlines()[0].split(",")
    assert {"train_generalized_unifrac_loss", "val_generalized_unifrac_euclidean_loss"} <= set(history)
    plots = {"plots/val_distances_clade.png", "plots/val_distances_euclidean.png"}
    assert plots <= files_below(weighted)


def test_the_model_file_says_what_it_reads(weighted: Path) -> None:
    header = json.loads(succeed("info", weighted, "--json").out)
    assert header["base_targets"] == [{"name": "generalized_unifrac", "alpha": 0.3}]


@pytest.mark.parametrize("beside", ["the same target", "another", "none"])
def test_training_goes_on_from_it(beside: str, weighted: Path, study: StudyFiles, tmp_path: Path) -> None:
    arguments: list[object] = ["train", "--table", study.table, "--metadata", study.metadata, *QUICK]
    arguments += ["--metadata-column", "age", "--pretrained-encoder", weighted]
    if beside != "none":
        arguments += ["--unifrac-matrix", study.matrix]
    if beside == "the same target":
        arguments += ["--base-target", "generalized_unifrac", "--unifrac-alpha", 0.3]
    succeed(*arguments, "--output-dir", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")["val"]
    assert ("unifrac_r2" in metrics, "generalized_unifrac_r2" in metrics) == (
        beside == "another",
        beside == "the same target",
    )
    predicted = tmp_path / "predictions.tsv"
    succeed("predict", "--model", tmp_path / "run", "--table", study.table, "--output", predicted)
    validation = read_predictions(tmp_path / "run" / "val_predictions.tsv")
    found = read_predictions(predicted).loc[validation.index]
    np.testing.assert_allclose(found["predicted"], validation["predicted"], rtol=1e-5)


def test_a_run_is_resumed_with_its_target(weighted: Path, study: StudyFiles) -> None:
    outcome = aam(*study.pretrain, "--base-target", "unifrac", "--output-dir", weighted, "--resume")
    assert_one_line_error(outcome, 1, "--base-target generalized_unifrac", "--base-target unifrac")


def test_one_head_alone_where_there_is_no_other(study: StudyFiles, tmp_path: Path) -> None:
    succeed(*study.pretrain, "--base-target", "aitchison", "--plots", "--output-dir", tmp_path / "run")
    assert set(read_metrics(tmp_path / "run")["val"]) == {f"aitchison_{name}" for name in NAMES}
    assert "plots/val_distances_clade.png" not in files_below(tmp_path / "run")
    outcome = aam(
        *study.pretrain, "--base-target", "aitchison", "--distance-head", "clade", "--output-dir", tmp_path / "b"
    )
    assert_one_line_error(outcome, 2, "aitchison", "--distance-head euclidean")


def test_combined_takes_what_there_is(study: StudyFiles, tmp_path: Path) -> None:
    succeed(*study.pretrain, "--base-target", "combined", "--output-dir", tmp_path / "run")
    assert "unifrac_r2" in read_metrics(tmp_path / "run")["val"]


def test_an_unknown_target_is_refused_with_those_there_are(study: StudyFiles, tmp_path: Path) -> None:
    arguments = [*study.pretrain, "--output-dir", tmp_path / "run"]
    assert_one_line_error(aam(*arguments, "--base-target", "unifrag"), 2, "unifrag", "faith_pd")
    (tmp_path / "options.yaml").write_text("base_target: unifrag\n")
    outcome = aam(*arguments, "--config", tmp_path / "options.yaml")
    assert_one_line_error(outcome, 2, "'unifrag'", "weighted_unifrac", "combined")


def test_distances_are_not_taken_for_values(study: StudyFiles, tmp_path: Path) -> None:
    outcome = aam(*study.pretrain, "--base-target", "faith_pd", "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 1, study.matrix, "--base-target faith_pd")
    assert not (tmp_path / "run").exists()
