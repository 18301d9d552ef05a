"""`aam benchmark optimizers`: what is compared, and that each figure is that of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from aam.benchmarks.optimizers import variants
from aam.cli.main import cli
from aam.config import OptimConfig
from aam.training.optimizers import OPTIMIZERS
from aam.training.schedules import SCHEDULES
from tests.end_to_end.program import TINY_MODEL, StudyFiles, simulate, succeed

QUICK = [*TINY_MODEL, "--batch-size", "6", "--threads", "1", "--num-workers", "0"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


def compare(study: StudyFiles, *arguments: object) -> str:
    files = ["--table", study.table, "--unifrac-matrix", study.matrix]
    called = ["benchmark", "optimizers", *files, *QUICK, *arguments]
    result = CliRunner().invoke(cli, [*map(str, called)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_optimizers_have_their_usual_rates_times_each_factor() -> None:
    found = [(name, optim.optimizer, optim.lr) for name, optim in variants(OptimConfig(), "optimizers", (0.3, 1.0))]
    assert found[:2] == [("adamw", "adamw", 3e-4), ("adamw", "adamw", 1e-3)]
    assert ("sgd", "sgd", 0.03) in found and ("lamb", "lamb", 0.01) in found
    assert [name for name, *_ in found[::2]] == [*OPTIMIZERS, "adamw, lookahead"]
    usual = {optimizer: lr for _, optimizer, lr in found[1::2]}
    assert usual == {name: OptimConfig(optimizer=name).lr for name in OPTIMIZERS}
    at_a_rate = list(variants(OptimConfig(lr=0.005), "schedules", (0.3, 1.0)))
    assert [(name, optim.lr) for name, optim in at_a_rate] == [(name, 0.005) for name in SCHEDULES]


def test_the_figures_are_those_of_runs(study: StudyFiles, tmp_path: Path) -> None:
    averages = json.loads(compare(study, "--compare", "averages", "--lr", 0.01, "--json"))
    assert [(row["compared"], row["name"]) for row in averages] == [
        ("averages", "none"),
        ("averages", "ema"),
        ("averages", "swa"),
    ]
    for row in averages:
        run = tmp_path / row["name"]
        model = ["--table", study.table, "--unifrac-matrix", study.matrix, *QUICK, "--epochs", 2]
        succeed("pretrain", *model, "--lr", 0.01, "--average", row["name"], "--output-dir", run)
        last = pd.read_csv(run / "history.csv").iloc[-1]
        assert (row["lr"], row["steps"]) == (0.01, last["step"])
        assert row["unifrac_r2"] == pytest.approx(last["val_unifrac_r2"])
        assert row["loss"] == pytest.approx(last["val_loss"])
        assert row["step_seconds"] > 0


def test_a_run_that_diverges_has_no_figure(study: StudyFiles) -> None:
    page = compare(study, "--compare", "averages", "--optimizer", "sgd", "--lr", 1e30, "--gradient-clip", 0)
    header, *rows = page.splitlines()
    assert header.split() == ["lr", "steps", "unifrac_r2", "loss", "step_seconds"]
    assert [row.split()[:2] for row in rows] == [["average", "none"], ["average", "ema"], ["average", "swa"]]
    assert all(row.split()[4:6] == ["-", "-"] for row in rows)
