from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, read_metrics, succeed

MODEL = "best_model.safetensors"


@pytest.mark.parametrize("which", ["run", "file"])
def test_the_page_says_what_a_run_is(trained: Path, study: StudyFiles, which: str) -> None:
    text = succeed("info", trained if which == "run" else trained / MODEL).out
    assert text.startswith(str(trained / MODEL))
    assert "train: age, a number (learnt as zscore)" in text
    assert "24 samples and 30 ASVs" in text
    assert "embedding_dim=16" in text
    assert "test_size=0.25" in text
    assert hashlib.sha256(study.table.read_bytes()).hexdigest() in text
    metrics = read_metrics(trained)
    assert f'"best_epoch": {metrics["best_epoch"]}' in text
    assert f'"mae": {float(format(metrics["test"]["mae"], ".4g"))}' in text


def test_json_holds_everything(trained: Path) -> None:
    found = json.loads(succeed("info", trained, "--json").out)
    parts = {"target", "base_targets", "checksums", "provenance", "metrics", "calibration", "training_profile"}
    assert set(found) == {"format_version", "config", *parts}
    assert found["metrics"] == read_metrics(trained)
    assert found["config"] == json.loads((trained / "config.json").read_text())
    assert set(found["checksums"]) == {"table", "metadata", "unifrac_matrix"}
    assert found["target"]["column"] == "age"


def test_of_the_file_alone(trained: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(trained / MODEL, tmp_path / "model"))
    found = json.loads(succeed("info", alone, "--json").out)
    # Only the whole run knows the test split's metrics; the file has those it was chosen by.
    assert set(found["metrics"]) == {"val"}
    assert found["metrics"]["val"] == pytest.approx(read_metrics(trained)["val"], abs=1e-5)


def test_of_a_pretrained_encoder(pretrained: Path) -> None:
    text = succeed("info", pretrained).out
    assert "pretrain: distances and masked nucleotides" in text
    assert "unifrac_r2" in text


def test_what_is_no_run_is_refused(study: StudyFiles, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, study.table, study.metadata):
        assert_one_line_error(aam("info", path), 1, path)


def test_metrics_that_are_damaged_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / MODEL, tmp_path / MODEL)
    (tmp_path / "metrics.json").write_text('{"val": ')
    assert_one_line_error(aam("info", tmp_path), 1, tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (["fold_0", "fold_1", "fold_2"], "3 folds, not all"),
        (["fold_0_seed_0", "fold_0_seed_1", "fold_1_seed_0"], "2 folds of 2 seeds, not all"),
    ],
)
def test_folds_that_are_not_all_trained(runs: list[str], says: str, tmp_path: Path) -> None:
    for name in runs:
        (tmp_path / name).mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"command": "train", "data": {"metadata_column": "age"}}))
    out = succeed("info", tmp_path).out
    assert says in out and f"`aam info {tmp_path / runs[0]}`" in out
