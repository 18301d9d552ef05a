"""Train → file → predict gives the held-out predictions again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.data.splits import read_splits
from tests.end_to_end.program import StudyFiles, permute, read_metrics, read_predictions, succeed
from tests.real_data import real_data

# Everything that prediction must know of training, away from its default.
UNUSUAL = [
    *("--count-embedding", "film", "--distance-head", "clade", "--feed-forward-factor", 2, "--max-bp", 33),
    *("--rarefy-depth", 200, "--token-limit", 6, "--asv-sampling", "random", "--asv-chunk-size", 7),
    *("--nuc-mask-strategy", "span", "--nuc-mask-ratio", 0.3, "--nuc-asv-fraction", 0.5, "--gradient-checkpointing"),
    *("--accumulation-steps", 2, "--batch-size", 5, "--dropout", 0.2, "--seed", 3),
    *("--test-size", 0.25, "--val-size", 0.25, "--stratify", "--group-column", "subject_id"),
]


@pytest.fixture(scope="module")
def unusual(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unusual"
    succeed(
        *(*study.train, "--unifrac-matrix", study.matrix, "--metadata-column", "age"),
        *("--target-transform", "log-zscore", "--loss", "mse", *UNUSUAL, "--output-dir", run),
    )
    return run


@pytest.fixture(scope="module")
def classes(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "classes"
    succeed(
        *(*study.train, "--metadata-column", "group", "--classifier", "--count-embedding", "concat"),
        *("--batch-size", 5, "--rarefy-depth", 150, "--token-limit", 6, "--stratify", "--test-size", 0.25),
        *("--output-dir", run),
    )
    return run


def predict(run: Path, study: StudyFiles, output: Path, *options: object) -> pd.DataFrame:
    machine = ["--threads", 1, "--num-workers", 0]
    succeed("predict", "--model", run, "--table", study.table, "--output", output, *machine, *options)
    return read_predictions(output)


def assert_reproduces(predicted: pd.DataFrame, run: Path, parts: tuple[str, ...] = ("val", "test")) -> None:
    split = read_splits(run / "splits.tsv")
    for part in parts:
        stored = read_predictions(run / f"{part}_predictions.tsv")
        assert sorted(stored.index) == sorted(name for name, where in split.items() if where == part)
        again = predicted.loc[stored.index]
        for column in stored.columns.drop("actual"):
            if stored[column].dtype.kind == "f":
                np.testing.assert_allclose(again[column], stored[column], rtol=1e-5, atol=1e-5)
            else:
                assert again[column].tolist() == stored[column].tolist()


@pytest.mark.parametrize("options", [[], ["--batch-size", 1], ["--batch-size", 7, "--num-workers", 2]])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_numbers(unusual: Path, study: StudyFiles, tmp_path: Path, options: list[object]) -> None:
    predicted = predict(unusual, study, tmp_path / "p.tsv", *options)
    assert list(predicted.columns) == ["predicted"]
    assert predicted["predicted"].std() > 0
    assert_reproduces(predicted, unusual)


def test_classes(classes: Path, study: StudyFiles, tmp_path: Path) -> None:
    predicted = predict(classes, study, tmp_path / "p.tsv")
    labels = sorted(pd.read_csv(study.metadata, sep="\t")["group"].unique())
    columns = [f"prob_{label}" for label in labels]
    assert list(predicted.columns) == ["predicted", *columns]
    np.testing.assert_allclose(predicted[columns].sum(axis=1), 1, atol=1e-6)
    assert (predicted[columns].idxmax(axis=1) == "prob_" + predicted["predicted"]).all()
    assert_reproduces(predicted, classes)
    metrics = read_metrics(classes)
    for part in ("val", "test"):
        assert {"accuracy", "balanced_accuracy", "f1_macro", "roc_auc"} >= metrics[part].keys() >= {"accuracy"}


def test_the_model_file_alone_is_enough(unusual: Path, study: StudyFiles, tmp_path: Path) -> None:
    alone = Path(shutil.copy(unusual / "best_model.safetensors", tmp_path / "model.safetensors"))
    assert_reproduces(predict(alone, study, tmp_path / "p.tsv"), unusual)


def test_the_truth_stands_beside_and_is_judged(unusual: Path, study: StudyFiles, tmp_path: Path) -> None:
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    metadata.loc[0, "age"] = "not collected"
    metadata.drop(index=1).to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = ["predict", "--model", unusual, "--table", study.table, "--output", tmp_path / "p.tsv"]
    outcome = succeed(*arguments, "--metadata", tmp_path / "metadata.tsv", "--num-workers", 0)
    predicted = read_predictions(tmp_path / "p.tsv")
    assert list(predicted.columns) == ["actual", "predicted"]
    unknown = set(metadata["sample_id"][:2]) & set(predicted.index)
    assert set(predicted.index[predicted["actual"].isna()]) == unknown
    assert_reproduces(predicted, unusual)
    known = predicted.dropna()
    mae = (known["actual"] - known["predicted"]).abs().mean()
    assert f"{mae:.4f}" in outcome.out


def test_what_could_not_be_used_is_said(unusual: Path, study: StudyFiles, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.tsv"
    pd.read_csv(study.metadata, sep="\t").drop(columns="age").to_csv(metadata, sep="\t", index=False)
    arguments = [
        "predict",
        "--model",
        unusual,
        "--table",
        study.table,
        "--output",
        tmp_path / "p.tsv",
        "--num-workers",
        0,
    ]
    outcome = succeed(*arguments, "--metadata", metadata)
    # The model has learnt from so few samples that others may be far from all of them.
    warnings = [line for line in outcome.err.splitlines() if "training" not in line]
    assert f"Warning: {metadata}: has no column 'age', so predictions stand without the truth" in warnings
    assert any(line.startswith("Warning: 30 of 30 sequences are longer than --max-bp 33") for line in warnings)
    assert len(warnings) == 2
    assert list(read_predictions(tmp_path / "p.tsv").columns) == ["predicted"]


def test_samples_stand_in_the_order_of_the_table_and_others_are_named(
    unusual: Path, study: StudyFiles, tmp_path: Path
) -> None:
    from aam.data.biom_loader import load_table

    table = load_table(permute(study, tmp_path / "permuted").table)
    outcome = succeed(
        *("predict", "--model", unusual, "--table", tmp_path / "permuted" / "table.biom"),
        *("--output", tmp_path / "p.tsv", "--num-workers", 0),
    )
    deep = [name for name, depth in zip(table.sample_ids, table.counts.sum(axis=1), strict=True) if depth >= 200]
    assert read_predictions(tmp_path / "p.tsv").index.tolist() == deep
    assert f"{len(deep)} samples predicted" in outcome.out
    shallow = len(table.sample_ids) - len(deep)
    assert (f"{shallow} left out: fewer reads than --rarefy-depth 200" in outcome.out) == (shallow > 0)


def test_metrics_agree_with_the_predictions(unusual: Path) -> None:
    metrics = read_metrics(unusual)
    for part in ("val", "test"):
        table = read_predictions(unusual / f"{part}_predictions.tsv")
        errors = table["predicted"] - table["actual"]
        assert metrics[part]["mae"] == pytest.approx(errors.abs().mean())
        assert metrics[part]["rmse"] == pytest.approx((errors**2).mean() ** 0.5)
        spread = ((table["actual"] - table["actual"].mean()) ** 2).sum()
        assert metrics[part]["r2"] == pytest.approx(1 - (errors**2).sum() / spread)


def test_the_split_keeps_subjects_together(unusual: Path, study: StudyFiles) -> None:
    subject = pd.read_csv(study.metadata, sep="\t", index_col="sample_id")["subject_id"]
    split = pd.Series(read_splits(unusual / "splits.tsv"))
    assert split.groupby(subject.loc[split.index].to_numpy()).nunique().max() == 1
    assert set(split) == {"train", "val", "test"}


@pytest.mark.slow
def test_a_real_study(tmp_path: Path) -> None:
    folder = real_data("mouse_sleep_apnea_10422")
    run = tmp_path / "run"
    outcome = succeed(
        *("train", "--table", folder / "table.biom", "--metadata", folder / "metadata.tsv"),
        *("--unifrac-matrix", folder / "unifrac.h5", "--metadata-column", "age"),
        *(
            "--group-column",
            "host_subject_id",
            "--test-size",
            0.2,
            "--token-limit",
            32,
            "--max-bp",
            60,
            "--output-dir",
            run,
        ),
        *("--embedding-dim", 16, "--attention-heads", 2, "--attention-layers", 1, "--clades", 16),
        *("--epochs", 1, "--threads", 1, "--num-workers", 0, "--no-plots"),
    )
    assert "age" in outcome.err or "184" in outcome.err
    study = StudyFiles(folder)
    predicted = predict(run, study, tmp_path / "p.tsv", "--metadata", study.metadata)
    assert_reproduces(predicted, run)
    metrics = read_metrics(run)
    assert metrics["test"]["unifrac_mae"] < 0.5
    assert 0 < metrics["test"]["mae"] < 100
    assert "--group-column host_subject_id" not in "".join(
        line for line in outcome.err.splitlines() if line.startswith("Warning")
    )


def test_classes_that_the_model_does_not_know_are_told(classes: Path, study: StudyFiles, tmp_path: Path) -> None:
    frame = pd.read_csv(study.metadata, sep="\t", dtype=str)
    frame.loc[frame.index[:3], "group"] = "brand new"
    frame.to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    files = ("--table", study.table, "--metadata", tmp_path / "m.tsv", "--output", tmp_path / "p.tsv")
    outcome = succeed("predict", "--model", classes, *files, "--threads", 1, "--num-workers", 0)
    told = "samples are of classes of group that the model does not know ('brand new'); metrics here are without them"
    assert told in " ".join(outcome.err.split())
