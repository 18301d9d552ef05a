"""What a run leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.program import StudyFiles, files_below, read_metrics, succeed

SHARED = {
    "config.json",
    "splits.tsv",
    "history.csv",
    "speed.csv",
    "metrics.json",
    "best_model.safetensors",
    "last.ckpt",
    "aam.log",
    "tensorboard/steps/events.out",
    "tensorboard/train/events.out",
    "tensorboard/validation/events.out",
    "plots/history.png",
}
DISTANCES = {
    f"plots/{part}_{kind}_{head}.png"
    for part in ("val", "test")
    for kind in ("distances", "pcoa")
    for head in ("clade", "euclidean")
}
MACHINE = {"seconds", "samples_per_second", "memory_mb"}
REGRESSION = {"mae", "rmse", "r2", "spearman"}
UNIFRAC = {f"unifrac_{name}" for name in REGRESSION} | {f"unifrac_euclidean_{name}" for name in REGRESSION}


@pytest.fixture(scope="module")
def classes(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels, no distances, no test split."""
    run = tmp_path_factory.mktemp("runs") / "classes"
    arguments = [*study.train, "--metadata-column", "group", "--classifier", "--stratify", "--nuc-asv-fraction", 0.5]
    succeed(*arguments, "--plots", "--output-dir", run)
    return run


class TestFiles:
    def test_of_pretraining(self, pretrained: Path) -> None:
        assert files_below(pretrained) == SHARED | DISTANCES

    def test_of_training(self, trained: Path) -> None:
        predictions = {"val_predictions.tsv", "test_predictions.tsv"}
        plots = {"plots/val_predictions.png", "plots/test_predictions.png"}
        assert files_below(trained) == SHARED | DISTANCES | predictions | plots

    def test_of_classes_without_distances_or_test_split(self, classes: Path) -> None:
        assert files_below(classes) == SHARED | {"val_predictions.tsv", "plots/val_predictions.png"}

    def test_pictures_are_pictures(self, trained: Path) -> None:
        for path in (trained / "plots").iterdir():
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 5000

    def test_without_pictures_the_numbers_are_the_same(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        arguments = json.loads((classes / "config.json").read_text())
        outcome = succeed("train", "--config", classes / "config.json", "--no-plots", "--output-dir", run)
        assert arguments["train"]["plots"] and "holds pictures" not in outcome.out
        assert files_below(run) == {name for name in files_below(classes) if not name.startswith("plots/")}
        for name in ("history.csv", "metrics.json", "val_predictions.tsv"):
            assert (run / name).read_bytes() == (classes / name).read_bytes(), name
        events = EventAccumulator(str(run / "tensorboard" / "validation")).Reload()
        assert events.Tags()["images"] == [] and "loss/target_loss" in events.Tags()["scalars"]

    def test_the_split_names_every_sample_once(self, trained: Path) -> None:
        table = pd.read_csv(trained / "splits.tsv", sep="\t")
        assert list(table.columns) == ["sample_id", "split"]
        assert len(table) == table["sample_id"].nunique() == 24
        assert set(table["split"]) == {"train", "val", "test"}

    def test_the_log_tells_what_the_console_told(self, study: StudyFiles, tmp_path: Path) -> None:
        outcome = succeed(*study.train, "--metadata-column", "age", "--output-dir", tmp_path / "run")
        log = (tmp_path / "run" / "aam.log").read_text()
        for line in outcome.err.splitlines():
            assert line.removeprefix("Warning: ") in log
        assert "24 of 24 samples, 30 ASVs" in log
        assert "WARNING column 'subject_id' repeats" in log
        assert "epoch 2/2" in log
        assert "Curves: tensorboard --logdir" in outcome.out


class TestHistory:
    def columns(self, losses: list[str], metrics: set[str]) -> set[str]:
        parts = {f"{part}_{name}" for part in ("train", "val") for name in ["loss", *losses]}
        return {"epoch", "step", "lr", "gradient_norm"} | parts | {f"val_{name}" for name in metrics}

    def test_of_pretraining(self, pretrained: Path) -> None:
        history = pd.read_csv(pretrained / "history.csv")
        losses = ["unifrac_loss", "unifrac_euclidean_loss", "nuc_loss"]
        assert set(history.columns) == self.columns(losses, UNIFRAC)

    def test_of_training(self, trained: Path) -> None:
        history = pd.read_csv(trained / "history.csv")
        losses = ["unifrac_loss", "unifrac_euclidean_loss", "nuc_loss", "count_loss", "target_loss"]
        assert set(history.columns) == self.columns(losses, UNIFRAC | REGRESSION)
        assert history["epoch"].tolist() == history["step"].tolist() == [1, 2]
        assert history.notna().all(axis=None)
        weights = {"unifrac_loss": 1, "unifrac_euclidean_loss": 1, "nuc_loss": 0.1, "count_loss": 0.1, "target_loss": 1}
        for part in ("train", "val"):
            total = sum(history[f"{part}_{name}"] * weight for name, weight in weights.items())
            assert history[f"{part}_loss"].tolist() == pytest.approx(total.tolist(), rel=1e-4)

    def test_of_classes(self, classes: Path) -> None:
        history = pd.read_csv(classes / "history.csv")
        metrics = {"accuracy", "balanced_accuracy", "f1_macro", "roc_auc"}
        assert set(history.columns) == self.columns(["nuc_loss", "count_loss", "target_loss"], metrics)

    def test_a_part_of_no_weight_is_not_learnt(self, study: StudyFiles, tmp_path: Path) -> None:
        weights = ["--nuc-weight", 0, "--count-weight", 0, "--unifrac-weight", 0]
        matrix = ["--unifrac-matrix", study.matrix]
        succeed(*study.train, *matrix, "--metadata-column", "age", *weights, "--output-dir", tmp_path / "run")
        history = pd.read_csv(tmp_path / "run" / "history.csv")
        assert {name for name in history.columns if name.startswith("train_")} == {"train_loss", "train_target_loss"}


@pytest.fixture(scope="module")
def events(trained: Path) -> dict[str, EventAccumulator]:
    found = {}
    for part in ("train", "validation"):
        found[part] = EventAccumulator(str(trained / "tensorboard" / part))
        found[part].Reload()
    return found


class TestTensorBoard:
    def test_training_and_validation_share_their_tags(self, events: dict[str, EventAccumulator]) -> None:
        train, validation = (set(events[part].Tags()["scalars"]) for part in ("train", "validation"))
        names = ("loss", "unifrac_loss", "unifrac_euclidean_loss", "nuc_loss", "count_loss", "target_loss")
        losses = {f"loss/{name}" for name in names}
        assert train == losses | {"learning_rate", "gradient_norm"} | {f"machine/{name}" for name in MACHINE}
        best = {f"best/{name}" for name in ("target_loss", "r2", "mae", "unifrac_r2", "unifrac_euclidean_r2")}
        assert validation == losses | {f"metric/{name}" for name in UNIFRAC | REGRESSION} | best

    def test_curves_are_those_of_the_history(self, events: dict[str, EventAccumulator], trained: Path) -> None:
        table = pd.concat(
            [pd.read_csv(trained / name).set_index("epoch") for name in ("history.csv", "speed.csv")], axis=1
        )
        for part, tag, column in (
            ("train", "loss/target_loss", "train_target_loss"),
            ("validation", "loss/target_loss", "val_target_loss"),
            ("validation", "metric/unifrac_r2", "val_unifrac_r2"),
            ("train", "learning_rate", "lr"),
            ("train", "gradient_norm", "gradient_norm"),
            ("train", "machine/seconds", "seconds"),
        ):
            points = events[part].Scalars(tag)
            assert [point.step for point in points] == [1, 2]
            assert [point.value for point in points] == pytest.approx(table[column].tolist(), rel=1e-5)

    def test_each_epoch_has_its_plots(self, events: dict[str, EventAccumulator]) -> None:
        images = events["validation"]
        readings = {f"{kind}_{head}" for kind in ("distances", "pcoa") for head in ("clade", "euclidean")}
        assert set(images.Tags()["images"]) == {"predictions"} | readings
        for tag in images.Tags()["images"]:
            assert [image.step for image in images.Images(tag)] == [1, 2]


class TestMetrics:
    def test_of_pretraining(self, pretrained: Path) -> None:
        metrics = read_metrics(pretrained)
        assert metrics.keys() == {"best_epoch", "val", "test"}
        assert metrics["val"].keys() == metrics["test"].keys() == UNIFRAC

    def test_of_training(self, trained: Path) -> None:
        metrics = read_metrics(trained)
        assert metrics.keys() == {"best_epoch", "val", "test", "baseline", "calibration", "against_guess"}
        for part in ("val", "test"):
            assert metrics[part].keys() == UNIFRAC | REGRESSION
            assert metrics["baseline"]["guess"][part].keys() == REGRESSION
        history = pd.read_csv(trained / "history.csv", index_col="epoch")
        assert metrics["best_epoch"] == history.index[-1]
        best = history.loc[metrics["best_epoch"]]
        for name, value in metrics["val"].items():
            assert value == pytest.approx(best[f"val_{name}"], rel=1e-4, abs=1e-5)

    def test_of_classes(self, classes: Path) -> None:
        metrics = read_metrics(classes)
        assert metrics.keys() == {"best_epoch", "val", "baseline", "calibration", "against_guess"}
        names = {"accuracy", "balanced_accuracy", "f1_macro", "roc_auc"}
        assert metrics["val"].keys() == metrics["baseline"]["guess"]["val"].keys() == names
        assert metrics["baseline"]["guess"]["val"]["roc_auc"] == 0.5

    def test_are_strict_json(self, pretrained: Path, trained: Path, classes: Path) -> None:
        def refuse(name: str) -> float:
            raise AssertionError(name)

        for run in (pretrained, trained, classes):
            for name in ("metrics.json", "config.json"):
                json.loads((run / name).read_text(), parse_constant=refuse)

    def test_undefined_ones_are_left_out(self, study: StudyFiles, tmp_path: Path) -> None:
        """Of one held-out sample there is no R², and no pair of samples has a distance."""
        arguments = [*study.train, "--unifrac-matrix", study.matrix, "--metadata-column", "age", "--val-size", 0.04]
        succeed(*arguments, "--output-dir", tmp_path / "run")
        metrics = read_metrics(tmp_path / "run")
        assert metrics["val"].keys() == {"mae", "rmse"}
        assert all(math.isfinite(value) for value in metrics["val"].values())
