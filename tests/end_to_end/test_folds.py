"""Cross-validation, predefined splits and augmentation, from files to predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from aam.data.biom_loader import FeatureTable, load_table
from aam.data.splits import read_folds, read_splits
from tests.end_to_end.program import (
    QUICK,
    TINY,
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    permute,
    read_metrics,
    read_predictions,
    succeed,
    write_table,
)

FOLDS = [f"fold_{fold}" for fold in range(3)]
TOP = {"config.json", "splits.tsv", "metrics.json", "aam.log"}
pytestmark = pytest.mark.slow


def regress(study: StudyFiles) -> list[object]:
    return [*study.train, "--metadata-column", "age", "--group-column", "subject_id", "--folds", 3]


@pytest.fixture(scope="module")
def run(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of a number, with distances beside it."""
    path = tmp_path_factory.mktemp("runs") / "folds"
    succeed(*regress(study), "--unifrac-matrix", study.matrix, "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def classes(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "classes"
    options = ["--metadata-column", "group", "--classifier", "--folds", 3]
    succeed(*study.train, *options, "--plots", "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def encoders(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "encoders"
    grouped = ["--metadata", study.metadata, "--group-column", "subject_id", "--folds", 3]
    succeed(*study.pretrain, *grouped, "--epochs", 1, "--output-dir", path)
    return path


class TestFolds:
    def test_files(self, run: Path, classes: Path) -> None:
        plotted, bare = ({name for name in files_below(path) if "fold_" not in name} for path in (classes, run))
        assert plotted == bare | {"plots/oof_predictions.png"}
        assert bare == TOP | {"oof_predictions.tsv", "best_model.safetensors"}
        for fold in FOLDS:
            assert {"config.json", "metrics.json", "test_predictions.tsv"} < files_below(run / fold)

    def test_they_are_scikit_learns(self, study: StudyFiles, run: Path) -> None:
        metadata = pd.read_csv(study.metadata, sep="\t", index_col=0, dtype=str).sort_index()
        splitter = GroupKFold(3, shuffle=True, random_state=0)
        expected = {}
        for fold, (_, held_out) in enumerate(splitter.split(metadata, groups=metadata["subject_id"])):
            expected |= dict.fromkeys(metadata.index[held_out], fold)
        assert read_folds(run / "splits.tsv") == expected
        for fold, name in enumerate(FOLDS):
            split = read_splits(run / name / "splits.tsv")
            assert {name for name, part in split.items() if part == "test"} == {
                name for name, place in expected.items() if place == fold
            }
            assert set(split.values()) == {"train", "test"}
            sides = {(metadata["subject_id"][name], part) for name, part in split.items()}
            assert len(sides) == metadata["subject_id"].nunique()

    def test_pooled_predictions_are_those_of_the_folds(self, run: Path) -> None:
        pooled = read_predictions(run / "oof_predictions.tsv")
        assert list(pooled.columns) == ["fold", "actual", "predicted"]
        assert len(pooled) == pooled.index.nunique() == 24
        assert list(pooled.index) == sorted(pooled.index)
        for fold, name in enumerate(FOLDS):
            own = read_predictions(run / name / "test_predictions.tsv")
            there = pooled[pooled["fold"] == fold].loc[own.index]
            assert there[["actual", "predicted"]].equals(own)

    def test_metrics(self, run: Path) -> None:
        metrics = read_metrics(run)
        assert metrics.keys() == {"oof", "folds", "baseline", "calibration", "against_guess"}
        pooled = read_predictions(run / "oof_predictions.tsv")
        assert metrics["oof"]["mae"] == pytest.approx(mean_absolute_error(pooled["actual"], pooled["predicted"]))
        assert metrics["oof"]["r2"] == pytest.approx(r2_score(pooled["actual"], pooled["predicted"]))
        own = [read_metrics(run / name) for name in FOLDS]
        assert metrics["folds"]["each"] == [{"fold": fold, **found} for fold, found in enumerate(own)]
        for name in ("mae", "unifrac_r2"):
            values = [found["test"][name] for found in own]
            assert metrics["folds"]["mean"][name] == pytest.approx(np.mean(values))
            assert metrics["folds"]["sd"][name] == pytest.approx(np.std(values, ddof=1))

    def test_the_guess_is_fitted_on_each_training_part(self, run: Path) -> None:
        pooled = read_predictions(run / "oof_predictions.tsv")
        guess = pd.Series(dtype=float)
        for name in FOLDS:
            split = read_splits(run / name / "splits.tsv")
            learnt = [sample for sample, part in split.items() if part == "train"]
            for sample in [sample for sample, part in split.items() if part == "test"]:
                guess[sample] = pooled["actual"][learnt].median()
        expected = mean_absolute_error(pooled["actual"], guess[pooled.index])
        assert read_metrics(run)["baseline"]["guess"]["oof"]["mae"] == pytest.approx(expected)

    def test_classes(self, classes: Path) -> None:
        pooled = read_predictions(classes / "oof_predictions.tsv")
        names = sorted(pooled["actual"].unique())
        columns = [f"prob_{name}" for name in names]
        assert list(pooled.columns) == ["fold", "actual", "predicted", *columns, "set"]
        held = [actual in within.split("|") for actual, within in zip(pooled["actual"], pooled["set"], strict=True)]
        coverage = read_metrics(classes)["calibration"]["coverage"]
        assert np.mean(held) == pytest.approx(coverage["coverage"])  # each sample is a group of its own
        assert np.mean([len(within.split("|")) for within in pooled["set"]]) == pytest.approx(coverage["width"])
        assert pooled[columns].sum(axis=1).to_numpy() == pytest.approx(1)
        found = read_metrics(classes)["oof"]
        assert found["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(pooled["actual"], pooled["predicted"])
        )
        if len(names) == 2:
            assert found["roc_auc"] == pytest.approx(roc_auc_score(pooled["actual"] == names[1], pooled[columns[1]]))

    def test_a_fold_can_be_repeated_by_itself(self, run: Path, tmp_path: Path) -> None:
        succeed("train", "--config", run / "fold_1" / "config.json", "--output-dir", tmp_path / "again")
        for name in ("splits.tsv", "history.csv", "metrics.json", "test_predictions.tsv"):
            assert (tmp_path / "again" / name).read_bytes() == (run / "fold_1" / name).read_bytes()

    def test_one_fold_a_group(self, study: StudyFiles, tmp_path: Path) -> None:
        options = ["--metadata-column", "age", "--group-column", "subject_id", "--leave-one-group-out", "--epochs", 1]
        succeed(*study.train, *options, "--output-dir", tmp_path / "run")
        subjects = pd.read_csv(study.metadata, sep="\t", index_col=0, dtype=str)["subject_id"]
        folds = pd.Series(read_folds(tmp_path / "run" / "splits.tsv"))
        assert folds.nunique() == subjects.nunique() == 8
        assert pd.concat([folds, subjects], axis=1).drop_duplicates().shape[0] == 8
        assert len(read_predictions(tmp_path / "run" / "oof_predictions.tsv")) == 24


class TestAgain:
    def test_an_interrupted_run_goes_on(self, study: StudyFiles, run: Path, tmp_path: Path) -> None:
        """Interrupted within the second fold, and moved: the first is kept, the third begun."""
        broken = tmp_path / "moved"
        shutil.copytree(run, broken)
        kept = (broken / "fold_0" / "best_model.safetensors").stat().st_mtime_ns
        for name in ("metrics.json", "oof_predictions.tsv", "fold_1/metrics.json"):
            (broken / name).unlink()
        shutil.rmtree(broken / "fold_2")
        predict = ["predict", "--model", broken, "--table", study.table, "--output", tmp_path / "p.tsv"]
        assert_one_line_error(aam(*predict), 1, broken, "--resume")
        assert "--resume" in succeed("info", broken).out
        succeed("train", "--output-dir", broken, "--resume")
        assert (broken / "fold_0" / "best_model.safetensors").stat().st_mtime_ns == kept
        for name in ("oof_predictions.tsv", "metrics.json", "splits.tsv"):
            assert (broken / name).read_bytes() == (run / name).read_bytes()
        assert files_below(broken) == files_below(run)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", "[]"),
            ("config.json", '{"train": 3}'),
            ("config.json", "{"),
            ("fold_0/config.json", '{"data": {}}'),
            ("fold_0/metrics.json", '{"test": {"mae": "low"}}'),
            ("fold_1/metrics.json", "\\xff"),
            ("fold_1/test_predictions.tsv", "sample_id\tactual\nx\t1\n"),
            ("fold_1/test_predictions.tsv", ""),
            ("fold_0/splits.tsv", None),
        ],
    )
    def test_damaged_files(self, run: Path, tmp_path: Path, name: str, content: str | None) -> None:
        broken = tmp_path / "run"
        shutil.copytree(run, broken)
        if content is None:
            (broken / name).unlink()
            succeed("train", "--output-dir", broken, "--resume")
            return
        (broken / name).write_text(content)
        config = run / "config.json"
        outcome = aam("train", "--config", config, "--output-dir", broken, "--resume")
        assert outcome.code == 1
        assert "Traceback" not in outcome.err
        assert str(broken / name) in outcome.err.splitlines()[-1]

    def test_other_options_do_not_go_on(self, run: Path) -> None:
        outcome = aam("train", "--output-dir", run, "--resume", "--folds", 4)
        assert_one_line_error(outcome, 1, run, "--folds 3", "--folds 4")

    def test_nothing_to_resume(self, study: StudyFiles, tmp_path: Path) -> None:
        outcome = aam(*regress(study), "--output-dir", tmp_path / "run", "--resume")
        assert_one_line_error(outcome, 1, tmp_path / "run", "--resume")

    def test_overwriting_replaces_all_folds_and_nothing_else(
        self, study: StudyFiles, run: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        (copy / "fold_1" / "notes.txt").write_text("mine")
        arguments = [*study.train, "--metadata-column", "age", "--epochs", 1, "--output-dir", copy]
        assert_one_line_error(aam(*arguments), 1, copy, "--overwrite")
        assert_one_line_error(aam(*arguments, "--folds", 2), 1, copy, "--overwrite")
        succeed(*arguments, "--folds", 2, "--overwrite")
        assert files_below(copy / "fold_1") > {"notes.txt", "metrics.json"}
        assert not (copy / "fold_2").exists()
        succeed(*arguments, "--overwrite")
        assert not (copy / "fold_0").exists()
        assert not (copy / "oof_predictions.tsv").exists()
        assert files_below(copy / "fold_1") == {"notes.txt"}
        predict = ["predict", "--model", copy, "--table", study.table, "--num-workers", 0]
        succeed(*predict, "--output", tmp_path / "p.tsv")

    def test_the_folds_of_another_run(self, study: StudyFiles, run: Path, tmp_path: Path) -> None:
        options = ["--metadata-column", "age", "--folds", 3, "--splits", run / "splits.tsv", "--seed", 9, "--epochs", 1]
        succeed(*study.train, *options, "--output-dir", tmp_path / "run")
        assert (tmp_path / "run" / "splits.tsv").read_bytes() == (run / "splits.tsv").read_bytes()


class TestUse:
    def test_predictions_are_averaged(self, study: StudyFiles, run: Path, tmp_path: Path) -> None:
        self.predict(study, run, tmp_path, ["predicted"])

    def test_probabilities_are_averaged(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        names = sorted(read_predictions(classes / "oof_predictions.tsv")["actual"].unique())
        mean = self.predict(study, classes, tmp_path, [f"prob_{name}" for name in names])
        expected = [names[place] for place in mean[[f"prob_{name}" for name in names]].to_numpy().argmax(axis=1)]
        assert mean["predicted"].tolist() == expected

    def predict(self, study: StudyFiles, run: Path, folder: Path, columns: list[str]) -> pd.DataFrame:
        found = []
        for number, model in enumerate([run, *(run / name for name in FOLDS)]):
            output = folder / f"{number}.tsv"
            inputs = ["--table", study.table, "--metadata", study.metadata]
            succeed("predict", "--model", model, *inputs, "--output", output, "--num-workers", 0)
            found.append(read_predictions(output))
        mean, *each = found
        expected = sum(table[columns].to_numpy() for table in each) / 3
        np.testing.assert_allclose(mean[columns].to_numpy(), expected, rtol=1e-9)
        assert mean.columns.tolist() == each[0].columns.tolist()
        return mean

    def test_info(self, run: Path, encoders: Path) -> None:
        text = succeed("info", run).out
        assert "the mean of 3 models: fold_0, fold_1, fold_2" in text
        assert '"oof"' in text
        assert json.loads(succeed("info", run, "--json").out)["config"]["data"]["folds"] == 3
        assert "pretrain, 3 folds" in succeed("info", encoders).out


class TestEncoders:
    def test_metrics(self, encoders: Path) -> None:
        metrics = read_metrics(encoders)
        assert metrics.keys() == {"folds"}
        assert "unifrac_r2" in metrics["folds"]["mean"]
        assert {name for name in files_below(encoders) if "fold_" not in name} == TOP

    @pytest.mark.parametrize("options", [[], ["--folds", 3, "--seed", 7]])
    def test_each_fold_goes_on_from_its_own(
        self, study: StudyFiles, encoders: Path, tmp_path: Path, options: list[object]
    ) -> None:
        run = tmp_path / "run"
        arguments = ["train", "--table", study.table, "--metadata", study.metadata, "--metadata-column", "age"]
        arguments += [*QUICK, "--epochs", 1, "--pretrained-encoder", encoders]
        succeed(*arguments, *options, "--output-dir", run)
        assert read_metrics(run)["pretrained_leak"] == 0
        for name in ("splits.tsv", *(f"{fold}/splits.tsv" for fold in FOLDS)):
            assert (run / name).read_bytes() == (encoders / name).read_bytes()
        assert len(read_predictions(run / "oof_predictions.tsv")) == 24
        assert json.loads((run / "config.json").read_text())["data"]["group_column"] == "subject_id"

    @pytest.mark.parametrize("options", [["--folds", 4], ["--test-size", 0.2]])
    def test_other_folds_are_refused(
        self, study: StudyFiles, encoders: Path, tmp_path: Path, options: list[object]
    ) -> None:
        arguments = [*study.train, "--metadata-column", "age", "--pretrained-encoder", encoders, *options]
        outcome = aam(*arguments, "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, encoders, "3 folds", " ".join(map(str, options)))
        assert not (tmp_path / "run").exists()

    def test_an_encoder_without_folds_leaks(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        arguments = [*regress(study), "--pretrained-encoder", pretrained]
        outcome = aam(*arguments, "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, pretrained, "same folds", "--allow-pretrained-leak")
        assert not (tmp_path / "run").exists()
        succeed(*arguments, "--epochs", 1, "--allow-pretrained-leak", "--output-dir", tmp_path / "run")
        assert read_metrics(tmp_path / "run")["pretrained_leak"] > 0


class TestSplits:
    def test_a_column(self, study: StudyFiles, tmp_path: Path) -> None:
        metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
        metadata["part"] = ["train"] * 15 + ["Validation"] * 4 + ["test"] * 3 + [""] * 2
        metadata.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
        arguments = ["--metadata", tmp_path / "metadata.tsv", "--metadata-column", "age", "--split-column", "part"]
        outcome = succeed(*study.train, *arguments, "--output-dir", tmp_path / "run")
        assert "left out: 2 no value of part" in outcome.err
        split = read_splits(tmp_path / "run" / "splits.tsv")
        assert sorted(split.values()) == ["test"] * 3 + ["train"] * 15 + ["val"] * 4
        assert len(read_predictions(tmp_path / "run" / "test_predictions.tsv")) == 3

    def test_a_file_without_validation_samples(self, study: StudyFiles, tmp_path: Path) -> None:
        """Some of its training samples serve as such where validation decides; else all are learnt from."""
        names = pd.read_csv(study.metadata, sep="\t", dtype=str).iloc[:, 0].tolist()
        path = tmp_path / "splits.tsv"
        rows = [f"{name}\t{'test' if i % 4 == 0 else 'train'}\n" for i, name in enumerate(names)]
        path.write_text("sample_id\tsplit\n" + "".join(rows))
        run = tmp_path / "run"
        arguments = [*study.train, "--metadata-column", "age", "--splits", path]
        succeed(*arguments, "--patience", 9, "--output-dir", run)
        assert "names no validation samples: 4 of its 18 training samples" in (run / "aam.log").read_text()
        assert list(read_splits(run / "splits.tsv").values()).count("test") == 6
        succeed(*arguments, "--output-dir", tmp_path / "all")
        assert sorted(read_splits(tmp_path / "all" / "splits.tsv").values()) == ["test"] * 6 + ["train"] * 18
        metrics = read_metrics(tmp_path / "all")
        assert "val" not in metrics
        history = pd.read_csv(tmp_path / "all" / "history.csv")
        assert metrics["test"]["mae"] == pytest.approx(history["val_mae"].iloc[-1])  # watched, and no more

    def test_a_group_is_left_out(self, study: StudyFiles, tmp_path: Path) -> None:
        subject = pd.read_csv(study.metadata, sep="\t", dtype=str)["subject_id"][0]
        options = ["--metadata-column", "age", "--group-column", "subject_id", "--leave-out"]
        succeed(*study.train, *options, subject, "--output-dir", tmp_path / "run")
        held_out = read_predictions(tmp_path / "run" / "test_predictions.tsv").index
        assert held_out.str.startswith(subject).all() or len(held_out) == 3
        assert_one_line_error(aam(*study.train, *options, "nobody", "--output-dir", tmp_path / "b"), 1, "nobody")

    def test_duplicates_on_both_sides_are_told(self, study: StudyFiles, tmp_path: Path) -> None:

        table = load_table(study.table)
        names = [*table.sample_ids, *(f"{name}.b" for name in table.sample_ids)]
        counts = sparse.csr_array(sparse.vstack([table.counts] * 2))
        write_table(tmp_path / "t.biom", FeatureTable(counts, names, table.feature_ids))
        metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
        twins = metadata.assign(**{metadata.columns[0]: metadata.iloc[:, 0] + ".b"})
        pd.concat([metadata, twins]).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
        inputs = ["--table", tmp_path / "t.biom", "--metadata", tmp_path / "m.tsv", "--metadata-column", "age"]
        outcome = succeed("train", *TINY, *inputs, "--epochs", 1, "--output-dir", tmp_path / "run")
        assert "held-out sample(s) have exactly the counts of a training sample" in outcome.err
        report = json.loads(succeed("check", *inputs, "--json").out)
        assert any("exactly the counts" in warning for warning in report["warnings"])
        grouped = succeed("check", *inputs, "--group-column", "subject_id", "--json")
        assert json.loads(grouped.out)["warnings"] == []


VARIED = ("--augment-rarefy", "50:250", "--asv-dropout", 0.1, "--count-noise", 0.2, "--mix-samples", 0.4)


def vary(study: StudyFiles, run: Path) -> list[object]:
    inputs = ["--unifrac-matrix", study.matrix, "--metadata-column", "age", "--dropout", 0]
    return [*study.train, *inputs, *VARIED, "--base-noise", 0.02, "--batch-size", 5, "--output-dir", run]


@pytest.fixture(scope="module")
def augmented(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "augmented"
    succeed(*vary(study, path))
    return path


class TestAugmentation:
    def test_it_trains_the_same_for_any_order_of_the_files(
        self, study: StudyFiles, augmented: Path, tmp_path: Path
    ) -> None:
        succeed(*vary(permute(study, tmp_path / "permuted"), tmp_path / "run"))
        for name in ("splits.tsv", "history.csv", "metrics.json", "val_predictions.tsv"):
            assert (tmp_path / "run" / name).read_bytes() == (augmented / name).read_bytes()

    def test_it_is_not_in_predictions(self, study: StudyFiles, augmented: Path, tmp_path: Path) -> None:
        output = tmp_path / "p.tsv"
        succeed("predict", "--model", augmented, "--table", study.table, "--output", output, "--num-workers", 0)
        validated = read_predictions(augmented / "val_predictions.tsv")["predicted"]
        predicted = read_predictions(output)["predicted"].loc[validated.index]
        np.testing.assert_allclose(predicted, validated, rtol=1e-5)

    def test_classes_and_pretraining(self, study: StudyFiles, tmp_path: Path) -> None:
        options = ["--metadata-column", "group", "--classifier", *VARIED, "--epochs", 1]
        succeed(*study.train, *options, "--output-dir", tmp_path / "classes")
        succeed(*study.pretrain, *VARIED, "--epochs", 1, "--output-dir", tmp_path / "encoder")
        history = pd.read_csv(tmp_path / "encoder" / "history.csv")
        assert history["train_unifrac_loss"].notna().all()


def test_samples_that_were_learnt_from_are_counted(study: StudyFiles, tmp_path: Path) -> None:
    """All of a run with folds, the training samples of one of them; none where no run says so."""
    run, output = tmp_path / "run", tmp_path / "p.tsv"
    succeed(*study.train, "--metadata-column", "age", "--folds", 2, "--output-dir", run)
    split = pd.read_csv(run / "fold_0" / "splits.tsv", sep="\t")["split"]
    alone = Path(shutil.copy(run / "best_model.safetensors", tmp_path))
    for model, learnt in ((run, 24), (run / "fold_0", (split == "train").sum()), (alone, 0)):
        said = succeed("predict", "--model", model, "--table", study.table, "--output", output).out
        assert f"{learnt} of these the model has learnt from" in said if learnt else "learnt from" not in said
