"""Ray Tune in place of Optuna's own loop: the same study, the same draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.end_to_end.program import TINY_MODEL, simulate

SPACE = "lr: {low: 1e-4, high: 1e-2, log: true}\ndropout: {low: 0.0, high: 0.4}\n"


@pytest.mark.slow
def test_ray_goes_on_where_optuna_stopped(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason="pip install 'aam[ray]'")
    study, out = simulate(tmp_path / "study"), tmp_path / "out"
    (tmp_path / "space.yaml").write_text(SPACE)

    def tune(*more: object) -> pd.DataFrame:
        # In a process of its own, for Ray leaves threads and warnings behind.
        call = [sys.executable, "-m", "aam", "tune", "--output-dir", out, *more]
        done = subprocess.run([*map(str, call)], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return pd.read_csv(out / "trials.tsv", sep="\t")

    fixed = ["--table", study.table, "--metadata", study.metadata, "--metadata-column", "age", *TINY_MODEL]
    fixed += ["--epochs", 1, "--threads", 1, "--num-workers", 0, "--space", tmp_path / "space.yaml", "--folds", 1]
    by_optuna = tune(*fixed, "--trials", 3)
    by_both = tune("--resume", "--trials", 5, "--engine", "ray", "--pruner", "none")
    pd.testing.assert_frame_equal(by_both[:3], by_optuna)
    assert by_both["state"].tolist() == ["complete"] * 5
    assert not (out / "ray").exists()
    again = tune(*fixed, "--trials", 2, "--engine", "ray", "--pruner", "none", "--overwrite")
    columns = ["number", "state", "value", "lr", "dropout"]
    pd.testing.assert_frame_equal(again[columns], by_optuna[columns][:2], check_exact=False, rtol=1e-5)
