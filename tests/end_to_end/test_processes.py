"""Runs of two processes, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.familiarity import read_profile
from aam.training.checkpoint import MODEL_NAME, load_model_file
from tests.end_to_end.program import Outcome, StudyFiles, aam, files_below, read_metrics, read_predictions, succeed
from tests.training.processes import side_by_side

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "aam"]


def training(study: StudyFiles) -> list[object]:
    """Batches of 7 among the 13 training samples, and of 5 held-out ones: no share is as another."""
    return [
        *(*study.train, "--unifrac-matrix", study.matrix, "--metadata-column", "age", "--test-size", "0.25"),
        *("--nuc-asv-fraction", "0.5", "--batch-size", "7", "--dropout", "0", "--epochs", "4"),
    ]


@pytest.fixture(scope="module")
def alone(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "alone"
    succeed(*training(study), "--output-dir", run)
    return run


def assert_like(run: Path, other: Path) -> None:
    for name in ("history.csv", "val_predictions.tsv", "test_predictions.tsv"):
        separator = "," if name.endswith("csv") else "\t"
        found, expected = (pd.read_csv(folder / name, sep=separator, index_col=0) for folder in (run, other))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-4)
    found, expected = (read_metrics(folder) for folder in (run, other))
    assert found["best_epoch"] == expected["best_epoch"]
    assert found["test"] == pytest.approx(expected["test"], rel=1e-3, abs=1e-4)
    found, expected = (read_profile(load_model_file(folder / MODEL_NAME), folder) for folder in (run, other))
    assert found is not None and expected is not None
    assert found.header() == expected.header()
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=0.02)
    np.testing.assert_allclose(found.distances, expected.distances, atol=0.02)


def in_two(*arguments: object) -> Outcome:
    """What two processes say, as torchrun starts them; they need not load all that they import anew."""
    first, second = side_by_side(aam, 2, *arguments)
    assert first.code == second.code
    return Outcome(first.code, first.out + second.out, first.err + second.err)


def with_torchrun(*arguments: object) -> Outcome:
    done = subprocess.run(
        [*TORCHRUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--strategy", "auto", "--plots"], ["--strategy", "fsdp", "--sharded-checkpoints"]], ids=str
)
def test_two_processes_write_the_run_of_one(study: StudyFiles, alone: Path, tmp_path: Path, options: list[str]) -> None:
    start = with_torchrun if "auto" in options else in_two
    outcome = start(*training(study), *options, "--output-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert_like(tmp_path / "run", alone)
    shards = {name for name in files_below(tmp_path / "run") if name.startswith("shards/")}
    plots = {name for name in files_below(tmp_path / "run") if name.startswith("plots/")}
    assert files_below(tmp_path / "run") - shards - plots == files_below(alone)
    # The history, and of two parts the predictions, and of two heads the pairs and their ordination.
    assert len(plots) == (11 if "--plots" in options else 0)
    assert len(shards) == (2 if "fsdp" in options else 0)
    lines = outcome.err.splitlines()
    assert lines[1] == ("ddp in 2 processes" if "auto" in options else "fsdp in 2 processes")
    for start in ("aam train on cpu", *(f"epoch {epoch}/4" for epoch in range(1, 5))):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert outcome.out.count("epoch kept") == 1
    # What was trained by two is a model like any other.
    predicted = tmp_path / "predicted.tsv"
    succeed("predict", "--model", tmp_path / "run", "--table", study.table, "--output", predicted)
    held_out = read_predictions(tmp_path / "run" / "val_predictions.tsv")["predicted"]
    found = read_predictions(predicted)["predicted"][held_out.index]
    np.testing.assert_allclose(found, held_out, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "searches"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_stopped_in_two_processes_and_resumed_in_one(
    study: StudyFiles, alone: Path, tmp_path: Path, strategy: str, searches: bool
) -> None:
    """While the run learns, or while it searches for how long it is to."""
    run = tmp_path / "run"
    command = [*TORCHRUN, *training(study), "--strategy", strategy, "--output-dir", run]
    if strategy == "fsdp":
        command.append("--sharded-checkpoints")
    if searches:
        options = ["--choose-epochs", "--epochs", 12]
        command += options
        alone = tmp_path / "alone"
        succeed(*training(study), *options, "--output-dir", alone)
    said = ""
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as two:
        assert two.stderr is not None
        for line in two.stderr:
            said += line
            if line.startswith("epoch 2/"):
                two.send_signal(signal.SIGTERM)
                break
        said += two.stderr.read()
    assert two.returncode != 0 and not (run / "metrics.json").exists()
    assert said.count("Error: stopped by SIGTERM; the run is saved, and --resume continues it") == 1, said
    assert (run / "last.ckpt").is_file() != searches
    succeed("train", "--output-dir", run, "--resume")
    assert_like(run, alone)
    assert files_below(run) == files_below(alone)


@pytest.mark.slow
def test_what_is_frozen_is_encoded_once(study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    arguments = [
        *("train", "--table", study.table, "--metadata", study.metadata, "--metadata-column", "age"),
        *("--unifrac-matrix", study.matrix, "--pretrained-encoder", pretrained, "--freeze-base", "--dropout", "0"),
        *("--batch-size", "7", "--epochs", "3", "--threads", "1", "--num-workers", "0", "--no-plots"),
    ]
    succeed(*arguments, "--output-dir", tmp_path / "alone")
    outcome = in_two(*arguments, "--strategy", "fsdp", "--output-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "encoded once" in outcome.err
    assert_like(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_fitted_in_the_end(study: StudyFiles, tmp_path: Path, strategy: str) -> None:
    arguments = [*training(study), "--head", "linear"]
    succeed(*arguments, "--output-dir", tmp_path / "alone")
    outcome = in_two(*arguments, "--strategy", strategy, "--output-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert_like(tmp_path / "run", tmp_path / "alone")


def test_an_error_is_said_once(study: StudyFiles, alone: Path, tmp_path: Path) -> None:
    outcome = with_torchrun(*training(study), "--output-dir", alone)
    assert outcome.code != 0
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "holds a run already" in errors[0], outcome.err
