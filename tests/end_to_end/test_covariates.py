"""A column predicted with other columns beside the sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.data.splits import read_splits
from aam.training.checkpoint import load_model_file
from tests.end_to_end.program import (
    QUICK,
    StudyFiles,
    aam,
    assert_one_line_error,
    read_metrics,
    read_predictions,
    simulate,
    succeed,
)
from tests.end_to_end.test_processes import assert_like, in_two
from tests.end_to_end.test_round_trip import assert_reproduces, predict
from tests.end_to_end.test_runs import assert_same_run, weights

FUSIONS = ["concat", "add", "gmu", "cross-attention"]
GIVEN = ["--categorical-columns", "site", "--numeric-columns", "dose", "--metadata-column", "response"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    """A study with a column that another one alone decides: 10 at one site and -10 at the other."""
    files = simulate(tmp_path_factory.mktemp("given"))
    frame = pd.read_csv(files.metadata, sep="\t", dtype=str)
    draws = np.random.default_rng(5)
    frame["site"] = draws.choice(["gut", "skin"], len(frame))
    frame["response"] = np.where(frame["site"] == "gut", 10, -10) + draws.normal(0, 0.1, len(frame))
    frame["dose"] = draws.normal(3, 2, len(frame)).astype(str)
    frame.loc[[4, 9], "dose"] = ["NA", ""]
    frame.loc[7, "site"] = np.nan
    frame.to_csv(files.metadata, sep="\t", index=False)
    return files


@pytest.fixture(scope="module", params=FUSIONS)
def run(request: pytest.FixtureRequest, given: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / request.param
    options = ["--fusion", request.param, "--epochs", 10, "--lr", 0.01, "--batch-size", 2]
    options += ["--schedule", "constant", "--count-weight", 0, "--nuc-weight", 0, "--dropout", 0, "--test-size", 0.25]
    options += ["--token-limit", 4, "--max-bp", 12]
    succeed(*given.train, *GIVEN, *options, "--output-dir", path)
    return path


def test_what_decides_is_used_and_read_again(run: Path, given: StudyFiles, tmp_path: Path) -> None:
    known = read_predictions(run / "test_predictions.tsv")
    site = pd.read_csv(given.metadata, sep="\t", index_col=0)["site"].loc[known.index]
    known = known[site.notna()]
    assert (np.sign(known["predicted"]) == np.sign(known["actual"])).all()
    assert (known["predicted"] - known["actual"]).abs().median() < 5
    assert_reproduces(predict(run, given, tmp_path / "p.tsv", "--metadata", given.metadata), run)

    frame = pd.read_csv(given.metadata, sep="\t", dtype=str)
    frame["site"] = frame["site"].map({"gut": "skin", "skin": "gut"})
    frame.drop(columns="response").to_csv(tmp_path / "other.tsv", sep="\t", index=False)
    exchanged = predict(run, given, tmp_path / "p.tsv", "--metadata", tmp_path / "other.tsv").loc[known.index]
    assert (np.sign(exchanged["predicted"]) == -np.sign(known["actual"])).all()


def test_what_is_fitted_is_of_the_training_samples(run: Path, given: StudyFiles) -> None:
    split = read_splits(run / "splits.tsv")
    frame = pd.read_csv(given.metadata, sep="\t", index_col=0)
    train = frame.loc[[name for name, part in split.items() if part == "train"]]
    file = load_model_file(run / "best_model.safetensors")
    assert file.header["covariates"] == {
        "categorical": [{"column": "site", "categories": ["gut", "skin"]}],
        "numeric": [
            {
                "column": "dose",
                "mean": pytest.approx(train["dose"].mean()),
                "sd": pytest.approx(train["dose"].std(ddof=0)),
            }
        ],
    }
    assert "given site, dose" in succeed("info", run).out


def test_what_a_new_table_lacks_is_unknown_and_told(run: Path, given: StudyFiles, tmp_path: Path) -> None:
    arguments = ["predict", "--model", run, "--table", given.table, "--num-workers", 0, "--output"]
    alone = succeed(*arguments, tmp_path / "alone.tsv")
    lacks = "samples have no value; read as unknown"
    for name in ("site", "dose"):
        assert f"Warning: column {name!r}: 24 of 24 {lacks}" in alone.err
    frame = pd.read_csv(given.metadata, sep="\t", dtype=str)[["sample_id", "site"]].assign(site="lung")
    frame.to_csv(tmp_path / "unseen.tsv", sep="\t", index=False)
    unseen = succeed(*arguments, tmp_path / "unseen.tsv.out", "--metadata", tmp_path / "unseen.tsv")
    assert "column 'site': training has not seen 'lung' (24 of 24 samples); read as unknown" in unseen.err
    assert f"column 'dose': 24 of 24 {lacks}" in unseen.err
    first, second = (read_predictions(tmp_path / name) for name in ("alone.tsv", "unseen.tsv.out"))
    pd.testing.assert_frame_equal(first, second)
    assert first["predicted"].notna().all()

    frame["dose"] = "much"
    frame.to_csv(tmp_path / "words.tsv", sep="\t", index=False)
    outcome = aam(*arguments, tmp_path / "p.tsv", "--metadata", tmp_path / "words.tsv")
    assert outcome.code == 1 and "'dose' has 24 value(s) that are not numbers" in outcome.err.splitlines()[-1]


def test_classes_by_a_frozen_base(given: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    """Batches of encoded samples carry covariates; a split that is taken over; base targets read the sample alone."""
    plain_arguments = ["train", "--table", given.table, "--metadata", given.metadata, *QUICK]
    plain_arguments += ["--unifrac-matrix", given.matrix, "--metadata-column", "group", "--classifier"]
    arguments = [*plain_arguments, "--categorical-columns", "site", "--numeric-columns", "dose", "--fusion", "gmu"]
    frozen, slow = tmp_path / "frozen", tmp_path / "slow"
    start = ["--pretrained-encoder", pretrained, "--freeze-base", "--numeric-columns", "age", "--output-dir"]
    succeed(*arguments, *start, frozen)
    succeed(*arguments, "--no-encode-once", *start, slow)
    for name in ("val_predictions.tsv", "test_predictions.tsv"):
        found, expected = (read_predictions(path / name) for path in (frozen, slow))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    assert_reproduces(predict(frozen, given, tmp_path / "p.tsv", "--metadata", given.metadata), frozen)
    before, now = weights(pretrained), weights(frozen)
    assert all((now[f"encoder.{name}"] == value).all() for name, value in before.items())
    metrics = read_metrics(frozen)["test"]
    plain = tmp_path / "plain"
    succeed(*plain_arguments, "--pretrained-encoder", frozen, "--freeze-base", "--output-dir", plain)
    assert {name for name in weights(plain) if name.startswith("fusion.")} == set()
    assert json.loads((plain / "config.json").read_text())["model"]["fusion"] == "concat"
    assert read_metrics(plain)["test"]["unifrac_r2"] == pytest.approx(metrics["unifrac_r2"])


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(given: StudyFiles, tmp_path: Path) -> None:
    arguments = [*given.train, *GIVEN, "--mix-samples", 0.5, "--dropout", 0.2, "--schedule", "constant"]
    succeed(*arguments, "--epochs", 4, "--output-dir", tmp_path / "whole")
    succeed(*arguments, "--epochs", 2, "--output-dir", tmp_path / "parts")
    succeed(*arguments, "--epochs", 4, "--resume", "--output-dir", tmp_path / "parts")
    whole, parts = (load_model_file(tmp_path / name / "best_model.safetensors") for name in ("whole", "parts"))
    assert whole.header["covariates"] == parts.header["covariates"]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_folds(given: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "folds"
    succeed(*given.train, *GIVEN, "--folds", 2, "--output-dir", run)
    predicted = predict(run, given, tmp_path / "p.tsv", "--metadata", given.metadata)
    each = [predict(run / f"fold_{i}", given, tmp_path / "p.tsv", "--metadata", given.metadata) for i in (0, 1)]
    np.testing.assert_allclose(predicted["predicted"], (each[0]["predicted"] + each[1]["predicted"]) / 2)
    for fold, table in enumerate(each):
        assert_reproduces(table, run / f"fold_{fold}", ("test",))
    assert "given site, dose, the mean of 2 models" in succeed("info", run).out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_write_the_run_of_one(given: StudyFiles, tmp_path: Path, strategy: str) -> None:
    arguments = [*given.train, *GIVEN, "--fusion", "cross-attention", "--unifrac-matrix", given.matrix]
    arguments += ["--test-size", 0.25, "--batch-size", 7, "--dropout", 0, "--nuc-weight", 0]
    arguments += ["--epochs", 3, "--token-limit", 5, "--max-bp", 15]
    succeed(*arguments, "--output-dir", tmp_path / "alone")
    outcome = in_two(*arguments, "--strategy", strategy, "--output-dir", tmp_path / "two")
    assert outcome.code == 0, outcome.err
    assert_like(tmp_path / "two", tmp_path / "alone")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--numeric-columns", "doses"], ["has no column 'doses'; did you mean 'dose'?"]),
        (["--numeric-columns", "site"], ["'site'", "not numbers: ", "--categorical-columns"]),
    ],
)
def test_columns_that_cannot_serve(given: StudyFiles, tmp_path: Path, options: list[str], words: list[str]) -> None:
    outcome = aam(*given.train, "--metadata-column", "response", *options, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 1, given.metadata, *words)
    assert not (tmp_path / "run").exists()


def test_a_table_that_says_nothing_of_its_samples(given: StudyFiles, tmp_path: Path) -> None:
    arguments = [argument for argument in given.train if argument not in ("--metadata", given.metadata)]
    outcome = aam(*arguments, *GIVEN, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 1, given.table, "holds no sample metadata", "add --metadata")
