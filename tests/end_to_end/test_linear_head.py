"""A column that is read linearly, of what distances have taught the base."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aam import linear_head
from aam.data.biom_loader import load_table
from aam.data.splits import read_splits
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    kill,
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
    stored = read_metrics(run)["val"]
    events = EventAccumulator(str(run / "tensorboard" / "validation")).Reload()
    name = "balanced_accuracy" if "classifier" in column else "r2"
    if "storage_days" not in column:
        assert events.Scalars(f"best/{name}")[-1].value == pytest.approx(stored[name], rel=1e-5)
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((run / "best_model.safetensors").read_bytes())
    shown = succeed("info", copy).out
    for name, value in list(stored.items())[:2]:
        assert f"{value:.4g}" in shown, name


def test_as_by_ridge_of_what_aam_embed_writes(study: StudyFiles, tmp_path: Path) -> None:
    """Sample embeddings and two means of ASV embeddings, each of these three scaled as a whole."""
    run = tmp_path / "run"
    succeed(*learn(study, "--metadata-column", "age", "--head", "linear", "--loss", "mse"), "--output-dir", run)
    files = ["--model", run, "--table", study.table]
    succeed("embed", *files, "--output", tmp_path / "e.npz")
    embedded = np.load(tmp_path / "e.npz")
    table = load_table(study.table)
    names = list(table.sample_ids)
    assert list(embedded["sample_ids"]) == names
    places = [list(embedded["sequences"]).index(name) for name in table.feature_ids]
    shares = table.counts.toarray() / table.counts.toarray().sum(axis=1, keepdims=True)
    logs = np.log1p(1e4 * shares)
    of_asvs = embedded["asvs"][places]
    blocks = [embedded["samples"], shares @ of_asvs, logs / logs.sum(axis=1, keepdims=True) @ of_asvs]
    split = read_splits(run / "splits.tsv")
    train = np.array([split[name] == "train" for name in names])
    scaled = []
    for block in blocks:
        centred = block - block[train].mean(axis=0)
        scaled.append(centred / np.sqrt((centred[train] ** 2).mean()))
    features = np.concatenate(scaled, axis=1)
    age = pd.read_csv(study.metadata, sep="\t", index_col=0)["age"].loc[names].to_numpy()
    penalty = read_metrics(run)["linear_head"]["penalty"]
    ridge = Ridge(alpha=penalty * train.sum() / 2).fit(features[train], age[train])
    found = predict(run, study.table, tmp_path / "p.tsv")["predicted"].loc[names]
    np.testing.assert_allclose(found, np.maximum(ridge.predict(features), 0), atol=0.01 * age.std())


def test_labels_are_smoothed_where_it_is_fitted(study: StudyFiles, tmp_path: Path) -> None:
    arguments = learn(study, "--metadata-column", "group", "--classifier", "--head", "linear")
    found = {}
    for smoothing in (0, 0.4):
        run = tmp_path / str(smoothing)
        succeed(*arguments, "--label-smoothing", smoothing, "--output-dir", run)
        found[smoothing] = pd.read_csv(run / "val_predictions.tsv", sep="\t").filter(like="prob_").max(axis=1)
    assert found[0.4].mean() < found[0].mean()  # less sure


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
    assert "and nothing of the column, which is read linearly then" in outcome.err
    # The same command goes on with what is there, and is content.
    again = succeed(*arguments, "--choose-epochs", "--seeds", 2, "--output-dir", found, "--resume")
    assert "how many epochs" not in again.err
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


@pytest.mark.parametrize(
    ("at", "several"),
    [("learning from all training samples", []), ("epoch 4/24  loss", ["--seeds", 2])],
    ids=["before its first checkpoint", "after it"],
)
def test_it_goes_on_by_the_same_command(at: str, several: list[object], study: StudyFiles, tmp_path: Path) -> None:
    """Killed when it is known that the signal is weak, before the first checkpoint or after."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [*weak(study, tmp_path), "--choose-epochs", *several]
    times = 1 if at.startswith("learning") else 5  # four or five parts have come to that epoch before
    outcome = kill([*arguments, "--output-dir", killed], signal.SIGKILL, at, times=times)
    assert outcome.code == -signal.SIGKILL
    succeed(*arguments, "--output-dir", killed, "--resume")
    succeed(*arguments, "--output-dir", whole)
    for name in ("seed_0", "seed_1") if several else (".",):
        assert_same_run(killed / name, whole / name)
        assert read_metrics(whole / name)["linear_head"]


def test_what_a_pretrained_encoder_settles_may_stand_against_it(study: StudyFiles, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    succeed(*study.pretrain, "--distance-head", "clade", "--output-dir", encoder)
    arguments = learn(study, "--metadata-column", "age", "--head", "linear", "--pretrained-encoder", encoder)
    for name in ("--clades", "--embedding-dim", "--attention-heads", "--attention-layers"):
        del arguments[arguments.index(name) : arguments.index(name) + 2]
    outcome = aam(*arguments, "--val-size", 0.3, "--allow-pretrained-leak", "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 1, "--head linear", "--distance-head clade")


def test_a_guess_is_explained_too(study: StudyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is better than a guess, nothing of a sample matters."""
    monkeypatch.setattr(linear_head, "PENALTIES", (math.inf,))
    run = tmp_path / "run"
    succeed(*learn(study, "--metadata-column", "age", "--head", "linear"), "--output-dir", run)
    assert read_metrics(run)["linear_head"]["penalty"] is None
    predicted = predict(run, study.table, tmp_path / "p.tsv")["predicted"]
    assert predicted.nunique() == 1
    succeed("explain", "--model", run, "--table", study.table, "--output-dir", tmp_path / "explained")


def test_trials_do_without(study: StudyFiles, tmp_path: Path) -> None:
    arguments = ["tune", *learn(study, "--metadata-column", "age", "--head", "linear")[1:]]
    arguments = [argument for argument in arguments if argument != "--no-plots"]
    assert_one_line_error(aam(*arguments, "--output-dir", tmp_path / "tune"), 1, "--head linear")


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
