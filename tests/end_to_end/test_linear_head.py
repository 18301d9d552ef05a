"""A column that is read linearly, of what distances have taught the base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    predict,
    read_metrics,
    succeed,
)
from tests.end_to_end.test_round_trip import assert_reproduces
from tests.end_to_end.test_runs import assert_same_run

HEAD = ("target_head.linear.weight", "target_head.linear.bias")


def learn(study: StudyFiles, *options: object) -> list[object]:
    matrix = ["--unifrac-matrix", study.matrix, "--group-column", "subject_id"]
    return [*study.train, *matrix, "--epochs", 8, "--freeze-asvs-after", 3, "--lr", 0.01, *options]


@pytest.mark.parametrize(
    "column",
    [
        "age",
        "group --classifier",
        "age --loss quantile",
        "age --metadata-column storage_days --target-transform none",
    ],
)
def test_what_it_says_is_what_its_file_says(column: str, study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*learn(study, "--metadata-column", *column.split(), "--head", "linear"), "--output-dir", run)
    if "storage_days" not in column:
        assert_reproduces(predict(run, study.table, tmp_path / "p.tsv"), run, ("val",))
    weights = load_file(run / "best_model.safetensors")
    assert weights[HEAD[0]].shape[1] == 48 and weights[HEAD[0]].any()
    report = read_metrics(run)["linear_head"]
    assert report["penalty"] > 0 and report["loss"] < report["guess"]
    # As a file alone it says how good it is, too.
    stored = json.loads(json.dumps(read_metrics(run)["val"]))
    assert "mae" in str(stored) or "accuracy" in str(stored)
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((run / "best_model.safetensors").read_bytes())
    shown = succeed("info", copy).out
    for name, value in list(stored.items())[:2]:
        assert f"{value:.4g}" in shown, name


def test_the_base_learns_nothing_of_the_column(study: StudyFiles, tmp_path: Path) -> None:
    for name, column in {"a": "age", "b": "storage_days"}.items():
        succeed(*learn(study, "--metadata-column", column, "--head", "linear"), "--output-dir", tmp_path / name)
    a, b = (load_file(tmp_path / name / "best_model.safetensors") for name in "ab")
    for name in a.keys() & b.keys():
        if name.startswith("encoder."):
            np.testing.assert_array_equal(a[name].numpy(), b[name].numpy(), err_msg=name)


def weak(study: StudyFiles, folder: Path) -> list[object]:
    """A column of noise."""
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    metadata["noise"] = np.random.default_rng(1).normal(size=len(metadata)).round(3).astype(str)
    metadata.to_csv(folder / "metadata.tsv", sep="\t", index=False)
    arguments = learn(study, "--metadata-column", "noise", "--lr", 0.03, "--test-size", 0.25, "--epochs", 24)
    arguments[arguments.index(study.metadata)] = folder / "metadata.tsv"
    return arguments


def test_a_weak_signal_is_read_so(study: StudyFiles, tmp_path: Path) -> None:
    """As if it had been asked for; by all seeds, and by what is resumed."""
    found, asked = tmp_path / "found", tmp_path / "asked"
    arguments = weak(study, tmp_path)
    outcome = succeed(*arguments, "--choose-epochs", "--seeds", 2, "--output-dir", found)
    assert "distances alone; then the column is read linearly" in outcome.err
    succeed(*arguments, "--head", "linear", "--seeds", 2, "--output-dir", asked)
    for name in ("seed_0", "seed_1"):
        assert_same_run(found / name, asked / name)
        assert (found / name / "test_predictions.tsv").read_bytes() == (
            asked / name / "test_predictions.tsv"
        ).read_bytes()
    before = files_below(found)
    succeed("train", "--output-dir", found / "seed_0", "--resume", "--epochs", 25)
    assert len(pd.read_csv(found / "seed_0/history.csv")) == 25
    assert files_below(found) == before
    assert "linear_head" in read_metrics(found / "seed_0")


def test_where_it_is_asked_not_to_be(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*weak(study, tmp_path), "--choose-epochs", "--head", "hidden", "--output-dir", run)
    assert json.loads((run / "config.json").read_text())["train"]["stop_after"] < 12
    assert "linear_head" not in read_metrics(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--head-width", 8], ["--head linear", "--head-width"]),
        (["--patience", 3], ["--head linear", "--patience"]),
        (["--choose-epochs"], ["--head linear", "--choose-epochs"]),
        (["--categorical-columns", "group"], ["--head linear", "--categorical-columns"]),
        (["--unifrac-weight", 0], ["--head linear", "--unifrac-weight"]),
        (["--distance-head", "clade"], ["--head linear", "--distance-head"]),
    ],
)
def test_what_does_not_go_with_it(options: list[object], words: list[str], study: StudyFiles, tmp_path: Path) -> None:
    arguments = learn(study, "--metadata-column", "age", "--head", "linear", *options)
    assert_one_line_error(aam(*arguments, "--output-dir", tmp_path / "run"), 2, *words)


def test_it_needs_distances(study: StudyFiles, tmp_path: Path) -> None:
    arguments = [*study.train, "--metadata-column", "age", "--head", "linear", "--output-dir", tmp_path / "run"]
    assert_one_line_error(aam(*arguments), 2, "--head linear", "--unifrac-matrix is missing")


def test_it_is_explained_and_exported_like_any_other(study: StudyFiles, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = tmp_path / "run"
    succeed(*learn(study, "--metadata-column", "age", "--head", "linear"), "--output-dir", run)
    succeed("export", "--model", run, "--output", tmp_path / "model.onnx", "--table", study.table)
    found = predict(tmp_path / "model.onnx", study.table, tmp_path / "p.tsv")
    expected = predict(run, study.table, tmp_path / "q.tsv")
    np.testing.assert_allclose(found["predicted"], expected["predicted"], rtol=1e-4)
    explained = ["explain", "--model", run, "--table", study.table, "--metadata", study.metadata]
    outcome = succeed(*explained, "--output-dir", tmp_path / "explained")
    assert "Traceback" not in outcome.err
