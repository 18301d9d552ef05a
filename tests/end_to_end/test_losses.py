"""What a target is learnt by: each loss, bound and head gives the held-out predictions again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, read_predictions, succeed
from tests.end_to_end.test_round_trip import assert_reproduces, predict

AGE = ("--metadata-column", "age", "--test-size", 0.25, "--seed", 1)


@pytest.mark.parametrize("transform", ["zscore", "log-minmax"])
def test_quantiles(study: StudyFiles, tmp_path: Path, transform: str) -> None:
    options = ("--loss", "quantile", "--quantile-range", 0.8, "--target-transform", transform, "--head-width", 8)
    succeed(*study.train, *AGE, *options, "--output-dir", tmp_path / "run")
    predicted = predict(tmp_path / "run", study, tmp_path / "p.tsv")
    assert list(predicted.columns) == ["predicted", "quantile_0.1", "quantile_0.9"]
    rising = predicted[["quantile_0.1", "predicted", "quantile_0.9"]].to_numpy()
    assert (np.diff(rising, axis=1) >= 0).all() and np.ptp(rising, axis=1).max() > 0
    assert_reproduces(predicted, tmp_path / "run")


def test_bounds(study: StudyFiles, tmp_path: Path) -> None:
    """Ages are far from their mean: what the network says in its scale would be beyond the bounds."""
    ages = pd.read_csv(study.metadata, sep="\t")["age"]
    low, high = ages.min(), ages.max()
    bounds = ("--target-min", low, "--target-max", high, "--lr", 1.0, "--loss", "asymmetric", "--overestimate-cost", 9)
    for name, options in (("free", bounds[4:]), ("bound", bounds)):
        succeed(*study.train, *AGE, *options, "--epochs", 4, "--output-dir", tmp_path / name)
    free, bound = (predict(tmp_path / name, study, tmp_path / f"{name}.tsv") for name in ("free", "bound"))
    assert not free["predicted"].between(low, high).all()
    np.testing.assert_allclose(bound["predicted"], free["predicted"].clip(low, high), rtol=1e-5)
    assert_reproduces(bound, tmp_path / "bound")
    assert read_predictions(tmp_path / "bound" / "val_predictions.tsv")["predicted"].between(low, high).all()


def test_label_smoothing_and_a_wide_head(study: StudyFiles, tmp_path: Path) -> None:
    options = ("--metadata-column", "group", "--classifier", "--stratify", "--test-size", 0.25)
    heads = ("--head-width", 24, "--head-width", 8)
    succeed(*study.train, *options, *heads, "--label-smoothing", 0.2, "--output-dir", tmp_path / "run")
    predicted = predict(tmp_path / "run", study, tmp_path / "p.tsv")
    np.testing.assert_allclose(predicted.filter(like="prob_").sum(axis=1), 1, atol=1e-6)
    assert_reproduces(predicted, tmp_path / "run")


def test_a_head_of_its_own_on_a_pretrained_encoder(pretrained: Path, study: StudyFiles, tmp_path: Path) -> None:
    files = (*study.train, "--metadata-column", "age", "--pretrained-encoder")
    for name, options in (("run", ("--head-width", 12)), ("quantiles", ("--loss", "quantile", "--freeze-base"))):
        encoder = pretrained if name == "run" else tmp_path / "run"
        succeed(*files, encoder, *options, "--output-dir", tmp_path / name)
        predicted = predict(tmp_path / name, study, tmp_path / f"{name}.tsv")
        assert_reproduces(predicted, tmp_path / name)
    stored = [json.loads((tmp_path / name / "config.json").read_text())["model"] for name in ("run", "quantiles")]
    assert [model["head_width"] for model in stored] == [[12], []]  # a head is new and no part of the encoder


def test_folds_average_their_quantiles(study: StudyFiles, tmp_path: Path) -> None:
    options = ("--metadata-column", "age", "--loss", "quantile", "--folds", 2, "--epochs", 1)
    succeed(*study.train, *options, "--output-dir", tmp_path / "run")
    mean = predict(tmp_path / "run", study, tmp_path / "p.tsv")
    each = [predict(tmp_path / "run" / f"fold_{i}", study, tmp_path / f"{i}.tsv") for i in range(2)]
    assert list(mean.columns) == ["predicted", "quantile_0.05", "quantile_0.95"]
    np.testing.assert_allclose(mean, sum(frame.to_numpy() for frame in each) / 2, rtol=1e-9)
    pooled = read_predictions(tmp_path / "run" / "oof_predictions.tsv")
    assert (pooled["quantile_0.05"] <= pooled["predicted"]).all()
    assert (pooled["predicted"] <= pooled["quantile_0.95"]).all()


def test_what_is_out_of_bounds_is_refused(study: StudyFiles, tmp_path: Path) -> None:
    outcome = aam(*study.train, *AGE, "--target-max", 1, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 1, study.metadata, "'age'", "--target-max 1")
    assert not (tmp_path / "run").exists()
    files = ("--table", study.table, "--metadata", study.metadata, "--metadata-column", "age")
    outcome = aam("check", *files, "--target-max", 1)
    assert outcome.code == 1 and "--target-max 1" in outcome.out
