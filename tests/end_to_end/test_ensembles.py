"""Several models that predict as one, and how far they say they may be off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.calibration import Calibration, fit_temperature, tempered
from aam.data.splits import read_splits
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    read_metrics,
    read_predictions,
    succeed,
)
from tests.end_to_end.program import (
    predict as predict_table,
)

pytestmark = pytest.mark.slow
NUMBER = ["--metadata-column", "age", "--group-column", "subject_id"]
CLASSES = ["--metadata-column", "group", "--classifier"]


def predict(model: Path, study: StudyFiles, output: Path, *options: object) -> pd.DataFrame:
    """With the truth beside them."""
    return predict_table(model, study.table, output, "--metadata", study.metadata, "--threads", 1, *options)


@pytest.fixture(scope="module")
def seeds(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "seeds"
    options = ["--seeds", 2, "--seed", 5, "--val-size", 0.3, "--test-size", 0.2]
    succeed(*study.train, *NUMBER, *options, "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def folds(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "folds"
    succeed(*study.train, *NUMBER, "--folds", 2, "--seeds", 2, "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def classes(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "classes"
    succeed(*study.train, *CLASSES, "--folds", 2, "--epochs", 4, "--output-dir", path)
    return path


class TestSeeds:
    def test_files(self, seeds: Path) -> None:
        own = {name for name in files_below(seeds) if "seed_" not in name}
        tables = {"val_predictions.tsv", "test_predictions.tsv"}
        assert own == {"config.json", "splits.tsv", "metrics.json", "aam.log", "best_model.safetensors", *tables}
        assert {path.name for path in seeds.glob("seed_*")} == {"seed_5", "seed_6"}

    def test_they_share_the_split_and_nothing_else(self, seeds: Path) -> None:
        splits = {(seeds / name / "splits.tsv").read_bytes() for name in ("seed_5", "seed_6", ".")}
        assert len(splits) == 1
        histories = {(seeds / name / "history.csv").read_bytes() for name in ("seed_5", "seed_6")}
        assert len(histories) == 2

    def test_the_first_is_the_run_of_its_seed(self, study: StudyFiles, seeds: Path, tmp_path: Path) -> None:
        options = ["--seed", 5, "--val-size", 0.3, "--test-size", 0.2]
        succeed(*study.train, *NUMBER, *options, "--output-dir", tmp_path / "run")
        for name in ("history.csv", "splits.tsv", "val_predictions.tsv"):
            assert (tmp_path / "run" / name).read_bytes() == (seeds / "seed_5" / name).read_bytes()

    def test_predictions_are_the_mean(self, study: StudyFiles, seeds: Path, tmp_path: Path) -> None:
        each = [predict(seeds / name, study, tmp_path / f"{name}.tsv") for name in ("seed_5", "seed_6")]
        together = predict(seeds, study, tmp_path / "all.tsv")
        mean = (each[0]["predicted"] + each[1]["predicted"]) / 2
        np.testing.assert_allclose(together["predicted"], mean, rtol=1e-12)
        for part in ("val", "test"):
            stored = read_predictions(seeds / f"{part}_predictions.tsv")
            np.testing.assert_allclose(stored["predicted"], together["predicted"][stored.index], rtol=1e-5)
            found = read_metrics(seeds)[part]["mae"]
            assert found == pytest.approx((stored["predicted"] - stored["actual"]).abs().mean())

    def test_a_run_that_was_interrupted_goes_on(self, seeds: Path, tmp_path: Path) -> None:
        broken = tmp_path / "run"
        shutil.copytree(seeds, broken)
        shutil.rmtree(broken / "seed_6")
        (broken / "metrics.json").unlink()
        kept = (broken / "seed_5" / "best_model.safetensors").stat().st_mtime_ns
        succeed("train", "--output-dir", broken, "--resume")
        assert (broken / "seed_5" / "best_model.safetensors").stat().st_mtime_ns == kept
        for name in ("metrics.json", "val_predictions.tsv", "seed_6/history.csv"):
            assert (broken / name).read_bytes() == (seeds / name).read_bytes()

    def test_no_encoder(self, study: StudyFiles, seeds: Path, tmp_path: Path) -> None:
        arguments = [*study.train, *NUMBER, "--pretrained-encoder", seeds, "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam(*arguments), 1, seeds / "best_model.safetensors", "several models")


class TestFoldsOfSeeds:
    def test_predictions_out_of_fold_are_the_mean_of_seeds(self, folds: Path) -> None:
        pooled = read_predictions(folds / "oof_predictions.tsv")
        for fold in range(2):
            each = [read_predictions(folds / f"fold_{fold}_seed_{seed}" / "test_predictions.tsv") for seed in range(2)]
            mean = (each[0]["predicted"] + each[1]["predicted"]) / 2
            here = pooled[pooled["fold"] == fold]
            np.testing.assert_allclose(here["predicted"], mean[here.index], rtol=1e-12)
        assert len(read_metrics(folds)["folds"]["each"]) == 4

    def test_predictions_of_new_samples_are_the_mean_of_all(
        self, study: StudyFiles, folds: Path, tmp_path: Path
    ) -> None:
        names = [f"fold_{fold}_seed_{seed}" for fold in range(2) for seed in range(2)]
        each = [predict(folds / name, study, tmp_path / f"{name}.tsv")["predicted"] for name in names]
        together = predict(folds / "best_model.safetensors", study, tmp_path / "all.tsv")
        np.testing.assert_allclose(together["predicted"], sum(each) / 4, rtol=1e-12)
        assert "the mean of 4 models" in succeed("info", folds).out

    def test_side_by_side_as_one_after_the_other(self, study: StudyFiles, tmp_path: Path) -> None:
        """Other seeds begin while the first still learns; they too learn for as long as it has found to be best."""
        run, options = tmp_path / "run", ["--folds", 2, "--seeds", 2, "--choose-epochs", "--parallel", 4]
        succeed(*study.train, *NUMBER, *options, "--threads", 1, "--output-dir", run)
        in_turn = tmp_path / "in_turn"
        succeed(*study.train, *NUMBER, *options[:-2], "--threads", 1, "--output-dir", in_turn)
        name = "oof_predictions.tsv"
        assert (run / name).read_bytes() == (in_turn / name).read_bytes()
        for fold in range(2):
            found = [json.loads((run / f"fold_{fold}_seed_{seed}/config.json").read_text())["train"] for seed in (0, 1)]
            assert found[0]["stop_after"] == found[1]["stop_after"]
            assert (run / f"fold_{fold}_seed_0/epochs.tsv").is_file()
            assert not (run / f"fold_{fold}_seed_1/epochs.tsv").exists()


class TestIntervals:
    def test_of_folds(self, study: StudyFiles, folds: Path, tmp_path: Path) -> None:
        """CV+ with groups of equal weight, from the files alone."""
        level = 0.8
        found = predict(folds, study, tmp_path / "p.tsv", "--interval", level)
        assert list(found.columns) == ["actual", "predicted", "lower", "upper"]
        oof = read_predictions(folds / "oof_predictions.tsv")
        subject = pd.read_csv(study.metadata, sep="\t", index_col=0, dtype=str)["subject_id"][oof.index]
        scores = (oof["actual"] - oof["predicted"]).abs().to_numpy()
        calibration = Calibration.of(scores, subject.to_numpy(), oof["fold"].to_numpy())
        of_fold = []
        for fold in range(2):
            runs = [folds / f"fold_{fold}_seed_{seed}" for seed in range(2)]
            tables = [predict(run, study, tmp_path / f"{run.name}.tsv")["predicted"] for run in runs]
            of_fold.append((tables[0] + tables[1]) / 2)
        predicted = np.stack(of_fold, axis=1)
        lower, upper = calibration.intervals(predicted, predicted, level)
        np.testing.assert_allclose(found["lower"], lower, rtol=1e-5)
        np.testing.assert_allclose(found["upper"], upper, rtol=1e-5)
        known = read_metrics(folds)["calibration"]
        assert (known["source"], known["groups"], known["samples"]) == ("oof", 8, 24)
        assert known["coverage"] is None  # eight groups are too few for 90%

    def test_of_validation_samples(self, study: StudyFiles, tmp_path: Path) -> None:
        """As good as new where no early stopping has looked at them."""
        run = tmp_path / "run"
        options = ["--metadata-column", "age", "--val-size", 0.5]
        succeed(*study.train, *options, "--output-dir", run)
        known = read_metrics(run)["calibration"]
        assert (known["source"], known["groups"], known["samples"]) == ("val", 12, 12)
        assert 0 <= known["coverage"]["low"] <= known["coverage"]["coverage"] <= known["coverage"]["high"] <= 1
        val = read_predictions(run / "val_predictions.tsv")
        scores = (val["actual"] - val["predicted"]).abs().to_numpy()
        threshold = Calibration.of(scores, None, np.zeros(12, dtype=int)).threshold(0.9)
        assert threshold in np.sort(scores)[-2:]
        found = predict(run, study, tmp_path / "p.tsv", "--interval", 0.9)
        np.testing.assert_allclose(found["upper"], found["predicted"] + threshold, rtol=1e-5)
        lower = (found["predicted"] - threshold).clip(lower=0)  # no age is below 0
        np.testing.assert_allclose(found["lower"], lower, rtol=1e-5, atol=1e-5)

    def test_of_calibration_samples(self, study: StudyFiles, tmp_path: Path) -> None:
        run = tmp_path / "run"
        options = ["--metadata-column", "age", "--val-size", 0.2, "--cal-size", 0.4, "--patience", 9]
        succeed(*study.train, *options, "--output-dir", run)
        split = read_splits(run / "splits.tsv")
        assert sorted(set(split.values())) == ["cal", "train", "val"]
        own = read_predictions(run / "cal_predictions.tsv")
        assert sorted(own.index) == sorted(name for name, part in split.items() if part == "cal")
        assert read_metrics(run)["calibration"]["source"] == "cal"
        assert "lower" in predict(run, study, tmp_path / "p.tsv", "--interval", 0.7)

    def test_around_quantiles_widths_differ(self, study: StudyFiles, tmp_path: Path) -> None:
        run = tmp_path / "run"
        succeed(*study.train, *NUMBER, "--folds", 2, "--loss", "quantile", "--target-min", 0, "--output-dir", run)
        found = predict(run, study, tmp_path / "p.tsv", "--interval", 0.8)
        assert (found["upper"] - found["lower"]).nunique() > 1
        assert found["lower"].min() >= 0

    def test_refusals(self, study: StudyFiles, folds: Path, tmp_path: Path) -> None:
        files = ["--table", study.table, "--output", tmp_path / "p.tsv", "--num-workers", 0]
        outcome = aam("predict", "--model", folds, *files, "--interval", 0.95)
        assert_one_line_error(outcome, 1, "--interval 0.95", "8 groups", "0.88")
        stopped = tmp_path / "stopped"
        succeed(*study.train, *NUMBER, "--patience", 3, "--output-dir", stopped)
        outcome = aam("predict", "--model", stopped, *files, "--interval", 0.5)
        assert_one_line_error(outcome, 1, stopped / "best_model.safetensors", "--cal-size")
        assert aam("predict", "--model", folds, *files, "--interval", 1).code == 2
        assert not (tmp_path / "p.tsv").exists()


class TestClasses:
    def test_sets_and_calibrated_probabilities(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        oof = read_predictions(classes / "oof_predictions.tsv")
        names = [name.removeprefix("prob_") for name in oof.columns if name.startswith("prob_")]
        places = np.array([names.index(label) for label in oof["actual"]])
        probabilities = oof[[f"prob_{name}" for name in names]].to_numpy()
        temperature = fit_temperature(probabilities, places, np.arange(len(places)))
        known = read_metrics(classes)["calibration"]
        assert known["classes"] and known["temperature"] == pytest.approx(temperature)
        plain = [predict(classes / f"fold_{fold}", study, tmp_path / f"{fold}.tsv") for fold in range(2)]
        by_fold = np.stack([table[[f"prob_{name}" for name in names]].to_numpy() for table in plain], axis=1)
        found = predict(classes, study, tmp_path / "p.tsv", "--interval", 0.8)
        assert list(found.columns[:3]) == ["actual", "predicted", "set"]
        expected = tempered(by_fold, temperature)
        np.testing.assert_allclose(
            found[[f"prob_{name}" for name in names]].to_numpy(), expected.mean(axis=1), rtol=1e-4
        )
        # A class is in the set of a sample unless most samples calibrated on conform better to their own.
        scores = 1 - tempered(probabilities, temperature)[np.arange(len(places)), places]
        share = Calibration.of(scores, None, np.zeros(len(scores), dtype=int)).share(0.8)
        for row, text in enumerate(found["set"]):
            inside = [
                name
                for place, name in enumerate(names)
                if (scores < 1 - expected[row, oof["fold"].to_numpy(), place]).mean() < share - 1e-9
            ]
            assert text.split("|") == inside or (not text and not inside)

    def test_unharmed_without_an_interval(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        found = predict(classes / "fold_0", study, tmp_path / "p.tsv")
        own = read_predictions(classes / "fold_0" / "test_predictions.tsv")
        column = [name for name in own.columns if name.startswith("prob_")]
        np.testing.assert_allclose(found.loc[own.index, column].to_numpy(), own[column].to_numpy(), atol=1e-6)


class TestPasses:
    def test_they_are_averaged(self, study: StudyFiles, tmp_path: Path) -> None:
        options = ["--metadata-column", "age", "--rarefy-depth", 200]
        for passes in (1, 3):
            succeed(*study.train, *options, "--prediction-passes", passes, "--output-dir", tmp_path / f"{passes}")
        single, several = (read_predictions(tmp_path / f"{passes}" / "val_predictions.tsv") for passes in (1, 3))
        assert (single["predicted"] != several["predicted"]).any()
        again = predict(tmp_path / "3", study, tmp_path / "p.tsv")
        np.testing.assert_allclose(again.loc[several.index, "predicted"], several["predicted"], rtol=1e-5)
        error = (several["predicted"] - several["actual"]).abs().mean()
        assert read_metrics(tmp_path / "3")["val"]["mae"] == pytest.approx(error)

    def test_of_a_frozen_base_too(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        """It is encoded once, but of one draw alone."""
        options = ("--metadata-column", "age", "--pretrained-encoder", pretrained, "--freeze-base", "--epochs", 2)
        files = ("train", "--table", study.table, "--metadata", study.metadata, "--rarefy-depth", 100)
        quick = ("--threads", 1, "--num-workers", 0, "--no-plots", "--prediction-passes", 3, "--lr", 0.01)
        succeed(*files, *options, *quick, "--output-dir", tmp_path / "run")
        stored = read_predictions(tmp_path / "run" / "val_predictions.tsv")
        again = predict(tmp_path / "run", study, tmp_path / "p.tsv")
        np.testing.assert_allclose(again.loc[stored.index, "predicted"], stored["predicted"], rtol=1e-5)

    def test_they_need_draws(self, study: StudyFiles, tmp_path: Path) -> None:
        arguments = [*study.train, *NUMBER, "--prediction-passes", 2, "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam(*arguments), 2, "--prediction-passes 2", "--rarefy-depth")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(members=[]),
        lambda header: header.update(members=[{"name": "x"}]),
        lambda header: header["members"][0].update(config={"command": "train"}),
        lambda header: header["members"][0].update(fold="x"),
        lambda header: header.update(calibration={"temperature": "hot"}),
        lambda header: header["members"][1]["header"]["target"].update(column=3),
    ],
)
def test_damaged_files(study: StudyFiles, folds: Path, tmp_path: Path, change: object) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = folds / "best_model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["aam"])
    change(header)  # type: ignore[operator]
    broken = tmp_path / "broken.safetensors"
    save_file(load_file(path), broken, metadata={"aam": json.dumps(header)})
    files = ["--table", study.table, "--output", tmp_path / "p.tsv", "--num-workers", 0]
    assert_one_line_error(aam("predict", "--model", broken, *files, "--interval", 0.5), 1, broken, "damaged")
