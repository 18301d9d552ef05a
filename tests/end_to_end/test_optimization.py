"""What a run finds out before it trains, and what it saves of averaged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, files_below, read_metrics, succeed
from tests.end_to_end.test_round_trip import assert_reproduces, predict
from tests.end_to_end.test_runs import assert_same_run, tune

# Steps enough for the loss to fall within the range test.
FALLING = ["--batch-size", 4, "--epochs", 8, "--patience", 1]


def config_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


class TestLearningRate:
    def test_printed_nothing_is_trained(self, study: StudyFiles, tmp_path: Path) -> None:
        run = tmp_path / "run"
        outcome = succeed(*study.pretrain, *FALLING, "--lr-find", "print", "--output-dir", run)
        assert files_below(run) == {"lr_find.tsv", "plots/lr_find.png"}
        curve = pd.read_csv(run / "lr_find.tsv", sep="\t")
        assert list(curve.columns) == ["lr", "loss", "smoothed_loss"] and 20 < len(curve) <= 40
        assert np.ptp(np.diff(np.log(curve["lr"]))) < 1e-9 and curve["lr"][0] == 1e-6
        with Image.open(run / "plots" / "lr_find.png") as image:
            assert min(image.size) > 300
        assert "learning-rate range test" in outcome.err and str(run / "plots" / "lr_find.png") in outcome.err
        assert outcome.out == ""
        # It is no run: the next one needs no --overwrite, and leaves the curve where it does not search.
        succeed(*study.pretrain, "--epochs", 1, "--output-dir", run)
        assert (run / "lr_find.tsv").is_file()

    def test_applied_it_is_what_the_run_has(self, study: StudyFiles, tmp_path: Path) -> None:
        run, typed = tmp_path / "run", tmp_path / "typed"
        arguments = [*study.pretrain, *FALLING, "--dropout", 0.2]
        outcome = succeed(*arguments, "--lr-find", "apply", "--output-dir", run)
        optim = config_of(run)["optim"]
        assert f"try --lr {optim['lr']:.2g}" in outcome.err
        assert optim["lr_find"] == "none" and optim["lr"] != 1e-3
        # As if it had been typed: the search leaves no trace in what is learnt.
        succeed(*arguments, "--lr", optim["lr"], "--output-dir", typed)
        assert_same_run(run, typed)
        before = (run / "lr_find.tsv").stat().st_mtime_ns
        resumed = succeed(*arguments, "--lr-find", "apply", "--output-dir", run, "--resume")
        assert "range test" not in resumed.err and (run / "lr_find.tsv").stat().st_mtime_ns == before
        assert_same_run(run, typed)

    def test_of_heads_and_layers_keep_their_ratio(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        rates = ["--head-lr", 0.004, "--layer-decay", 0.5, "--lr-find", "apply", *FALLING]
        outcome = succeed(*tune(study, pretrained), *rates, "--output-dir", run)
        assert "peak learning rates: base heads matrices 0.001" in outcome.err
        optim = config_of(run)["optim"]
        assert optim["lr"] != 1e-3
        assert optim["head_lr"] == pytest.approx(4 * optim["lr"]) and optim["layer_decay"] == 0.5

    def test_printed_it_is_for_one_run(self, study: StudyFiles, tmp_path: Path) -> None:
        outcome = aam(*study.pretrain, "--folds", 3, "--lr-find", "print", "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 2, "--lr-find print", "--folds 3")


class TestBatchSize:
    def test_auto_is_a_number_that_the_run_has(self, study: StudyFiles, tmp_path: Path) -> None:
        run = tmp_path / "run"
        arguments = [*study.pretrain, "--batch-size", "auto", "--target-effective-batch-size", 6, "--output-dir", run]
        outcome = succeed(*arguments)
        assert "batch size 6: the largest batch of 6 takes" in outcome.err
        train = config_of(run)["train"]
        assert train["batch_size"] == 6 and train["max_memory_fraction"] is None
        assert "unifrac_r2" in read_metrics(run)["val"]
        resumed = succeed(*arguments, "--resume")
        assert "largest batch" not in resumed.err

    def test_too_little_memory_is_said(self, study: StudyFiles, tmp_path: Path) -> None:
        memory = ["--batch-size", "auto", "--max-memory-fraction", 1e-9]
        outcome = aam(*study.pretrain, *memory, "--output-dir", tmp_path / "run")
        assert outcome.code == 1 and "Traceback" not in outcome.err
        assert outcome.err.splitlines()[-1].startswith("Error: --batch-size auto: 2 samples take")

    def test_batches_are_joined_up_to_the_target(self, study: StudyFiles, tmp_path: Path) -> None:
        target, joined = tmp_path / "target", tmp_path / "joined"
        for run, option in (
            (target, ["--target-effective-batch-size", 12]),
            (joined, ["--accumulation-steps", 3]),
        ):
            succeed(*study.pretrain, "--batch-size", 4, *option, "--output-dir", run)
        assert_same_run(target, joined)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_are_what_is_judged_and_saved(study: StudyFiles, tmp_path: Path, average: str) -> None:
    run = tmp_path / "run"
    arguments = [*study.train, "--metadata-column", "age", "--batch-size", 4, "--lr", 0.01, "--average", average]
    succeed(*arguments, "--test-size", 0.25, "--output-dir", run)
    assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)
    history = pd.read_csv(run / "history.csv")
    metrics = read_metrics(run)
    best = history.iloc[metrics["best_epoch"] - 1]
    assert best["val_r2"] == pytest.approx(metrics["val"]["r2"], abs=1e-6)
