"""Several metadata columns learnt together, of which a sample may lack some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, succeed

NUMBERS, CLASSES = ("age", "weight"), ("group", "site")


@pytest.fixture(scope="module")
def metadata(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each further column lacks some samples, and one sample lacks every column."""
    rng = np.random.default_rng(0)
    table = pd.read_csv(study.metadata, sep="\t", dtype=str)
    table["weight"] = (3 * table["age"].astype(float) + rng.normal(size=24)).round(3).astype(str)
    table["site"] = ["left", "right"] * 12
    table.loc[[3, 8, 9, 20], ["weight", "site"]] = ""
    table.loc[[5, 20], ["age", "group"]] = ""
    path = tmp_path_factory.mktemp("several") / "metadata.tsv"
    table.to_csv(path, sep="\t", index=False)
    return path


def learn(study: StudyFiles, metadata: Path, columns: tuple[str, ...], *options: object) -> list[object]:
    arguments: list[object] = list(study.train)
    arguments[arguments.index(study.metadata)] = metadata
    named = [part for column in columns for part in ("--metadata-column", column)]
    return [*arguments, *named, *(["--classifier"] if columns == CLASSES else []), *options]


def truth(metadata: Path) -> pd.DataFrame:
    return pd.read_csv(metadata, sep="\t", index_col=0, dtype={0: str})


@pytest.mark.parametrize("columns", [NUMBERS, CLASSES], ids=str)
def test_from_files_to_predictions(columns: tuple[str, ...], study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = succeed(*learn(study, metadata, columns, "--test-size", 0.3, "--plots", "--output-dir", run))
    metrics = json.loads((run / "metrics.json").read_text())
    known = truth(metadata)
    for part in ("val", "test"):
        table = pd.read_csv(run / f"{part}_predictions.tsv", sep="\t", dtype={"sample_id": str}).set_index("sample_id")
        for column in columns:
            there = known.loc[table.index, column].notna()
            own = table[there.to_numpy()]
            assert (own[f"{column}_actual"] == known.loc[own.index, column]).all()
            assert table[f"{column}_predicted"].notna().all()
            if columns == NUMBERS:
                expected, name = mean_absolute_error(own[f"{column}_actual"], own[f"{column}_predicted"]), "mae"
            else:
                name = "balanced_accuracy"
                expected = balanced_accuracy_score(own[f"{column}_actual"], own[f"{column}_predicted"])
            assert metrics[part][f"{column}_{name}"] == pytest.approx(expected, rel=1e-5)
            assert f"{column}_{name}" in metrics["baseline"]["guess"][part]
            assert (run / "plots" / f"{part}_predictions_{column}.png").is_file()
    assert set(metrics["against_guess"]) == set(columns)
    assert all(f"{column}: " in outcome.out for column in columns)
    history = pd.read_csv(run / "history.csv")
    losses = [history[f"val_{column}_target_loss"] for column in columns]
    assert np.mean(losses, axis=0) == pytest.approx(history["val_target_loss"])
    written = tmp_path / "p.tsv"
    succeed("predict", "--model", run, "--table", study.table, "--metadata", metadata, "--output", written)
    again = pd.read_csv(written, sep="\t", dtype={"sample_id": str}).set_index("sample_id")
    before = pd.read_csv(run / "test_predictions.tsv", sep="\t", dtype={"sample_id": str}).set_index("sample_id")
    for name in before.columns:
        if before[name].dtype.kind == "f":
            assert again.loc[before.index, name].to_numpy() == pytest.approx(
                before[name].to_numpy(), rel=1e-4, nan_ok=True
            )
    assert ", ".join(columns) in succeed("info", run).out


def test_samples_that_lack_every_column_alone_are_left_out(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    outcome = succeed(*learn(study, metadata, NUMBERS, "--output-dir", tmp_path / "run"))
    assert "23 of 24 samples" in outcome.err and "no value of age or weight" in outcome.err


def test_an_unknown_value_has_no_say(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    """What a second column holds of nobody known changes nothing of the first but by its own loss."""
    run = tmp_path / "run"
    succeed(*learn(study, metadata, NUMBERS, "--output-dir", run))
    header = json.loads(succeed("info", run, "--json").out)
    parts = {part["column"]: part for part in header["target"]["parts"]}
    split = pd.read_csv(run / "splits.tsv", sep="\t", dtype=str).set_index("sample_id")["split"]
    known = truth(metadata).loc[split[split == "train"].index, list(NUMBERS)].astype(float)
    for column in NUMBERS:
        assert parts[column]["shift"] == pytest.approx(known[column].mean())


def test_folds_and_seeds(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--folds", 2, "--seeds", 2, "--group-column", "subject_id", "--parallel", 2, "--plots"]
    succeed(*learn(study, metadata, NUMBERS, *options, "--output-dir", run))
    table = pd.read_csv(run / "oof_predictions.tsv", sep="\t", dtype={"sample_id": str}).set_index("sample_id")
    metrics = json.loads((run / "metrics.json").read_text())
    for column in NUMBERS:
        members = [
            pd.read_csv(path, sep="\t", dtype={"sample_id": str}).set_index("sample_id")[f"{column}_predicted"]
            for path in sorted(run.glob("fold_*_seed_*/test_predictions.tsv"))
        ]
        mean = pd.concat(members).groupby(level=0).mean()
        assert table[f"{column}_predicted"].to_numpy() == pytest.approx(mean.loc[table.index].to_numpy())
        own = table.dropna(subset=f"{column}_actual")
        expected = mean_absolute_error(own[f"{column}_actual"], own[f"{column}_predicted"])
        assert metrics["oof"][f"{column}_mae"] == pytest.approx(expected)
        assert (run / "plots" / f"oof_predictions_{column}.png").is_file()
    predict = ["predict", "--model", run, "--table", study.table, "--output", tmp_path / "p.tsv"]
    succeed(*predict)
    assert_one_line_error(aam(*predict, "--interval", 0.9), 1, "--interval 0.9", "age, weight")
    report = ["evaluate", run, "--output-dir", tmp_path / "report"]
    assert_one_line_error(aam(*report), 1, "age, weight", "--metadata-column")
    succeed(*report, "--metadata-column", "weight")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["predictions"]["run"]


def test_check(study: StudyFiles, metadata: Path) -> None:
    out = succeed("check", "--table", study.table, "--metadata", metadata, *learn(study, metadata, NUMBERS)[-4:]).out
    assert "age, a number" in out and "weight, a number" in out and "3 unknown" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metadata-column", "age"], ["--metadata-column age", "twice"]),
        (["--stratify"], ["--stratify", "age and weight"]),
        (["--baseline"], ["--baseline", "age and weight"]),
    ],
    ids=str,
)
def test_what_does_not_go_together(
    options: list[object], words: list[str], study: StudyFiles, metadata: Path, tmp_path: Path
) -> None:
    outcome = aam(*learn(study, metadata, NUMBERS, *options, "--output-dir", tmp_path / "run"))
    assert_one_line_error(outcome, 2, *words)
