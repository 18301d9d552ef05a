"""Several metadata columns learnt together, of which a sample may lack some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from aam.calibration import Calibration, fit_temperature, tempered
from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, succeed

NUMBERS, CLASSES = ("age", "weight"), ("group", "site")
LEVEL = 0.7  # of intervals


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


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype={"sample_id": str}).set_index("sample_id")


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
    report = ["evaluate", run, "--output-dir", tmp_path / "report"]
    assert_one_line_error(aam(*report), 1, "age, weight", "--metadata-column")
    succeed(*report, "--metadata-column", "weight")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["predictions"]["run"]


@pytest.fixture(scope="module", params=[NUMBERS, CLASSES], ids=str)
def learnt(
    request: pytest.FixtureRequest, study: StudyFiles, metadata: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], Path, pd.DataFrame]:
    columns: tuple[str, ...] = request.param
    run = tmp_path_factory.mktemp("intervals") / "run"
    options = ["--folds", 3, "--group-column", "subject_id"]
    succeed(*learn(study, metadata, columns, *options, "--output-dir", run))
    predict = ["predict", "--model", run, "--table", study.table, "--output", run / "p.tsv"]
    outcome = aam(*predict, "--interval", 0.95)
    assert_one_line_error(outcome, 1, "--interval 0.95", "calibrated for", "8 groups", "0.88")
    succeed(*predict, "--interval", LEVEL)
    return columns, run, read(run / "p.tsv")


class TestIntervals:
    """Of each column by the samples whose value is known, as from the files alone."""

    def test_of_each_column(
        self, learnt: tuple[tuple[str, ...], Path, pd.DataFrame], study: StudyFiles, metadata: Path, tmp_path: Path
    ) -> None:
        columns, run, found = learnt
        subjects, known = truth(metadata)["subject_id"], truth(metadata)
        each = []
        for fold in range(3):
            path = tmp_path / f"{fold}.tsv"
            succeed("predict", "--model", run / f"fold_{fold}", "--table", study.table, "--output", path)
            each.append(read(path).loc[found.index])
        oof = read(run / "oof_predictions.tsv")
        metrics = json.loads((run / "metrics.json").read_text())
        assert set(metrics["calibration"]) == set(columns)
        for column in columns:
            own = oof[known.loc[oof.index, column].notna()]
            groups, models = subjects[own.index].to_numpy(), own["fold"].to_numpy()
            summary = metrics["calibration"][column]
            assert (summary["samples"], summary["groups"]) == (len(own), len(set(groups)))
            if columns == NUMBERS:
                scores = (own[f"{column}_actual"] - own[f"{column}_predicted"]).abs().to_numpy()
                predicted = np.stack([table[f"{column}_predicted"] for table in each], axis=1)
                low, high = Calibration.of(scores, groups, models).intervals(predicted, predicted, LEVEL)
                np.testing.assert_allclose(found[f"{column}_lower"], np.maximum(low, 0), rtol=1e-5)
                np.testing.assert_allclose(found[f"{column}_upper"], high, rtol=1e-5)
                continue
            classes = sorted(known[column].dropna().unique())
            names = [f"{column}_prob_{name}" for name in classes]
            places = np.searchsorted(classes, own[f"{column}_actual"].to_numpy(str))
            temperature = fit_temperature(own[names].to_numpy(), places, groups)
            assert summary["temperature"] == pytest.approx(temperature, rel=1e-3)
            tempering = [tempered(table[names].to_numpy(), temperature) for table in each]
            np.testing.assert_allclose(found[names].to_numpy(), np.mean(tempering, axis=0), rtol=1e-3)
            scores = 1 - tempered(own[names].to_numpy(), temperature)[np.arange(len(own)), places]
            within = Calibration.of(scores, groups, models).sets(np.stack(tempering, axis=1), LEVEL)
            sets = found[f"{column}_set"].fillna("")
            assert sets.tolist() == ["|".join(np.array(classes)[row]) for row in within]

    def test_stand_beside_the_predictions(self, learnt: tuple[tuple[str, ...], Path, pd.DataFrame]) -> None:
        columns, _, found = learnt
        for column in columns:
            names = [name.removeprefix(f"{column}_") for name in found.columns if name.startswith(f"{column}_")]
            added = ["lower", "upper"] if columns == NUMBERS else ["set"]
            assert names[: 1 + len(added)] == ["predicted", *added]


def test_intervals_of_a_split(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    """Printed, judged, and read by `aam evaluate`."""
    run = tmp_path / "run"
    outcome = succeed(*learn(study, metadata, NUMBERS, "--val-size", 0.5, "--output-dir", run))
    known = json.loads((run / "metrics.json").read_text())["calibration"]
    val = read(run / "val_predictions.tsv")
    for column in NUMBERS:
        there = val.dropna(subset=f"{column}_actual")
        assert known[column]["samples"] == len(there) and known[column]["source"] == "val"
        assert f"{column}: intervals of 90% hold the truth" in outcome.out
    predictions = tmp_path / "p.tsv"
    succeed("predict", "--model", run, "--table", study.table, "--interval", 0.9, "--output", predictions)
    named = ["--metadata", metadata, "--metadata-column", "weight"]
    succeed("evaluate", predictions, *named, "--output-dir", tmp_path / "report")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["predictions"]["p"]["metrics"]
    table = read(predictions)
    actual = truth(metadata)["weight"].astype(float).loc[table.index]
    held = (table["weight_lower"] <= actual) & (actual <= table["weight_upper"])
    assert found["coverage"] == pytest.approx(held[actual.notna()].mean())


def test_columns_whose_names_begin_alike(study: StudyFiles, tmp_path: Path) -> None:
    """Each has its own predictions, though `site_prob_actual` might be the probability that `site` is `actual`."""
    names = truth(study.metadata).index
    table = pd.DataFrame({"sample_id": names})
    for column, classes in {"site": ["left", "right"], "site_prob": ["gut", "skin"]}.items():
        table[f"{column}_actual"] = np.resize(classes, len(names))
        table[f"{column}_predicted"] = np.resize([*classes, classes[0]], len(names))
        for name in classes:
            table[f"{column}_prob_{name}"] = (table[f"{column}_predicted"] == name).astype(float)
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    for column in ("site", "site_prob"):
        report = tmp_path / column
        succeed("evaluate", tmp_path / "p.tsv", "--metadata-column", column, "--output-dir", report)
        found = json.loads((report / "metrics.json").read_text())["predictions"]["p"]["metrics"]
        expected = balanced_accuracy_score(table[f"{column}_actual"], table[f"{column}_predicted"])
        assert found["balanced_accuracy"] == pytest.approx(expected)


def test_a_column_that_no_sample_could_tell_about(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    """Stands without sets, and is named; the other has them."""
    table = pd.read_csv(metadata, sep="\t", dtype=str, keep_default_na=False)
    splits = tmp_path / "splits.tsv"
    held = (table.index < 12) & (table["group"] != "")
    parts = np.where(held, "val", "train")
    table.loc[held & (table["site"] == "right"), "site"] = ""
    pd.DataFrame({"sample_id": table.iloc[:, 0], "split": parts}).to_csv(splits, sep="\t", index=False)
    changed = tmp_path / "metadata.tsv"
    table.to_csv(changed, sep="\t", index=False)
    run = tmp_path / "run"
    outcome = succeed(*learn(study, changed, CLASSES, "--splits", splits, "--output-dir", run))
    assert "site: probabilities are not calibrated, nor are there sets" in outcome.err
    predict = ["predict", "--model", run, "--table", study.table, "--output", tmp_path / "p.tsv", "--interval", 0.5]
    assert "was not calibrated for site" in succeed(*predict).err
    columns = read(tmp_path / "p.tsv").columns
    assert "group_set" in columns and "site_set" not in columns


@pytest.mark.parametrize("columns", [NUMBERS, CLASSES], ids=str)
def test_classical_models(columns: tuple[str, ...], study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    """Of each column as if it were learnt alone from the samples that have it, on the same split."""
    known = truth(metadata)
    known["split"] = np.where(np.arange(len(known)) % 3 == 2, "test", "train")
    files = ["--table", study.table, "--unifrac-matrix", study.matrix]
    kind = ["--classifier"] if columns == CLASSES else []

    def fit(path: Path, names: tuple[str, ...], given: pd.DataFrame) -> Path:
        given.to_csv(path.with_suffix(".tsv"), sep="\t")
        named = [part for name in names for part in ("--metadata-column", name)]
        options = ["--metadata", path.with_suffix(".tsv"), "--split-column", "split", "--threads", 1]
        succeed("baseline", *files, *options, *named, *kind, "--output-dir", path)
        return path

    together = fit(tmp_path / "together", columns, known)
    metrics = json.loads((together / "metrics.json").read_text())
    assert metrics["column"] == list(columns)
    for column in columns:
        alone = fit(tmp_path / column, (column,), known[known[column].notna()])
        expected = json.loads((alone / "metrics.json").read_text())["baseline"]
        assert metrics["baseline"].keys() == expected.keys()
        for model, parts in expected.items():
            for name, value in parts["test"].items():
                assert metrics["baseline"][model]["test"][f"{column}_{name}"] == pytest.approx(value)
            table = read(together / f"{model}_test_predictions.tsv")
            assert table[f"{column}_predicted"].notna().all()
            own = read(alone / f"{model}_test_predictions.tsv")
            there = table.loc[own.index]
            assert (there[f"{column}_actual"] == own["actual"]).all()
            predicted = own["predicted"].tolist()
            assert there[f"{column}_predicted"].tolist() == (predicted if kind else pytest.approx(predicted))


def test_classical_models_beside_folds(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ["--folds", 2, "--epochs", 1, "--baseline"]
    outcome = succeed(*learn(study, metadata, NUMBERS, *options, "--output-dir", run))
    found = json.loads((run / "metrics.json").read_text())["baseline"]
    for model in ("extra_trees", "linear", "guess"):
        assert {f"{column}_mae" for column in NUMBERS} <= found[model]["oof"].keys()
    assert "extra trees" in outcome.out and "weight_mae" in outcome.out


@pytest.mark.parametrize("columns", [NUMBERS, CLASSES], ids=str)
def test_columns_that_few_samples_have(
    columns: tuple[str, ...], study: StudyFiles, metadata: Path, tmp_path: Path
) -> None:
    """Of one, or of ones that are all alike, every model says that; of none the column is named."""
    table = pd.read_csv(metadata, sep="\t", dtype=str, keep_default_na=False)
    table["split"] = np.where(table.index % 3 == 2, "test", "train")
    train = table.index[(table["split"] == "train") & (table[columns[1]] != "")]
    kind = ["--classifier"] if columns == CLASSES else []
    named = [part for name in columns for part in ("--metadata-column", name)]
    options = ["--table", study.table, "--split-column", "split", "--threads", 1, *named, *kind]
    for kept in (2, 1, 0):
        table.loc[train[kept:], columns[1]] = ""
        path = tmp_path / f"{kept}.tsv"
        table.to_csv(path, sep="\t", index=False)
        arguments = ["baseline", *options, "--metadata", path, "--output-dir", tmp_path / f"run_{kept}"]
        if not kept:
            outcome = aam(*arguments)
            assert outcome.code == 1 and f"column {columns[1]!r} is empty for every sample" in outcome.err
            continue
        succeed(*arguments)
        for model in ("guess", "extra_trees", "linear"):
            found = read(tmp_path / f"run_{kept}" / f"{model}_test_predictions.tsv")[f"{columns[1]}_predicted"]
            assert found.notna().all()
            if kept == 1:
                only = table.loc[train[0], columns[1]]
                assert found.astype(type(found.iloc[0])).unique().tolist() == [only if kind else float(only)]


def test_a_fold_that_would_learn_a_column_from_nobody(study: StudyFiles, metadata: Path, tmp_path: Path) -> None:
    """Is found before any fold is trained."""
    table = pd.read_csv(metadata, sep="\t", dtype=str, keep_default_na=False)
    subject = table.loc[table["weight"] != "", "subject_id"].iloc[0]
    table.loc[table["subject_id"] != subject, "weight"] = ""
    changed = tmp_path / "metadata.tsv"
    table.to_csv(changed, sep="\t", index=False)
    options = ["--folds", 3, "--group-column", "subject_id", "--output-dir", tmp_path / "run"]
    outcome = aam(*learn(study, changed, NUMBERS, *options))
    assert outcome.code == 1 and "column 'weight' is empty for every training sample of fold" in outcome.err
    assert not (tmp_path / "run").exists()


def test_check(study: StudyFiles, metadata: Path) -> None:
    out = succeed("check", "--table", study.table, "--metadata", metadata, *learn(study, metadata, NUMBERS)[-4:]).out
    assert "age, a number" in out and "weight, a number" in out and "3 unknown" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metadata-column", "age"], ["--metadata-column age", "twice"]),
        (["--stratify"], ["--stratify", "age and weight"]),
        (["--join", "linear"], ["--join linear", "age and weight"]),
    ],
    ids=str,
)
def test_what_does_not_go_together(
    options: list[object], words: list[str], study: StudyFiles, metadata: Path, tmp_path: Path
) -> None:
    outcome = aam(*learn(study, metadata, NUMBERS, *options, "--output-dir", tmp_path / "run"))
    assert_one_line_error(outcome, 2, *words)
