"""How many epochs a column is learnt for, found on parts of the training samples."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aam.assembly import build_task
from aam.config import RunConfig
from aam.data.splits import read_splits
from aam.epochs import Verdict, inner_splits, smoothed, verdict
from aam.errors import DataError
from aam.inputs import load_inputs
from aam.training.tasks import TrainTask
from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, files_below, kill, succeed
from tests.end_to_end.test_runs import assert_same_run

EPOCHS = 8


def learn(study: StudyFiles) -> list[object]:
    options = [
        "--metadata-column",
        "age",
        "--group-column",
        "subject_id",
        "--test-size",
        0.25,
        "--freeze-asvs-after",
        3,
    ]
    return [*study.train, *options, "--epochs", EPOCHS, "--lr", 0.01]


@pytest.fixture(scope="module")
def searched(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("epochs") / "searched"
    succeed(*learn(study), "--choose-epochs", "--output-dir", run)
    return run


def chosen(run: Path) -> int | None:
    epochs: int | None = json.loads((run / "config.json").read_text())["train"]["stop_after"]
    return epochs


class TestVerdict:
    def test_means_of_three(self) -> None:
        assert smoothed([3, 0, 6, 9]) == pytest.approx([2, 3, 5, 8])

    def test_nothing_is_said_of_the_first_epochs(self) -> None:
        assert verdict([9, 9], 1, 12) == Verdict(False)

    def test_a_strong_signal_is_learnt_to_the_end(self) -> None:
        assert verdict([0.9, 0.5, 0.4], 1, 12) == Verdict(True)

    def test_a_weak_one_until_its_best_epoch(self) -> None:
        """A lucky one is not the best."""
        assert verdict([1, 0.7, 1, 0.8, 0.8, 0.8, 0.9, 1.2, 1.3], 1, 12) == Verdict(True, 5)

    def test_but_not_before_a_twentieth_of_all(self) -> None:
        """Few samples judge: that they like an epoch of the warm-up best says little."""
        losses = [0.9, *np.linspace(1, 2, 19)]
        assert verdict(losses, 0.5, 60) == Verdict(True, 3)
        assert verdict(losses, 0.5, 20) == Verdict(True, 1)

    def test_between_them_it_takes_all_epochs_to_know(self) -> None:
        losses = [1, 0.9, 0.8, 0.8, 0.8, 0.8, 0.9, 0.9]
        assert [verdict(losses[:n], 1, 8).known for n in range(1, 9)] == [False] * 7 + [True]
        assert verdict(losses, 1, 8).stop_after is None


class TestGuess:
    """The loss of the best constant, which nothing constant is below."""

    @pytest.mark.parametrize("loss", ["huber", "mse", "mae", "quantile", "asymmetric"])
    def test_numbers(self, loss: str, study: StudyFiles) -> None:
        task = self.task(study, {"loss": loss}, "age")
        rows = np.arange(24)
        others = [self.of_constant(task, rows, np.full(task.target.outputs, c)) for c in np.linspace(-2, 2, 81)]
        found = task.guess_loss(rows, rows)
        assert found <= min(others) + 1e-6
        if loss != "quantile":
            assert found >= min(others) * 0.99

    @pytest.mark.parametrize("weights", ["none", "balanced"])
    def test_classes(self, weights: str, study: StudyFiles) -> None:
        task = self.task(study, {"classifier": True, "class_weights": weights}, "group")
        rows = np.arange(24)
        names, sizes = np.unique(task.actual, return_counts=True)
        shares = sizes / 24
        expected = np.log(len(names)) if weights == "balanced" else -(shares * np.log(shares)).sum()
        assert task.guess_loss(rows, rows) == pytest.approx(expected, abs=1e-5)
        smoothed = self.task(study, {"classifier": True, "class_weights": weights, "label_smoothing": 0.3}, "group")
        assert smoothed.guess_loss(rows, rows) == task.guess_loss(rows, rows)  # as judged ones: not smoothed

    def task(self, study: StudyFiles, task: dict[str, object], column: str) -> TrainTask:
        files = {"table": study.table, "metadata": study.metadata, "metadata_column": column}
        model = {"embedding_dim": 8, "attention_heads": 2, "attention_layers": 1, "clades": 4}
        config = {"command": "train", "data": files, "task": task, "model": model, "train": {"output_dir": "unused"}}
        loaded = RunConfig.model_validate(config)
        built = build_task(loaded, load_inputs(loaded), np.full(24, "train", dtype="<U5"), None)
        assert isinstance(built, TrainTask)
        return built

    def of_constant(self, task: TrainTask, rows: np.ndarray, constant: np.ndarray) -> float:
        output = torch.from_numpy(np.tile(constant, (len(rows), 1))).float()
        return float(task.target_loss(output, torch.from_numpy(task.target.encode(task.actual[rows])), learning=False))


class TestInnerSplits:
    def config(self, study: StudyFiles, **data: object) -> RunConfig:
        files = {"table": study.table, "metadata": study.metadata, "metadata_column": "age"}
        return RunConfig.model_validate({"command": "train", "data": files | data, "train": {"output_dir": "unused"}})

    def test_each_training_sample_judges_once(self, study: StudyFiles) -> None:
        config = self.config(study, group_column="subject_id")
        loaded = load_inputs(config)
        assert loaded.groups is not None
        split = np.where(np.isin(loaded.groups, sorted(set(loaded.groups))[:2]), "test", "train").astype("<U5")
        parts = list(inner_splits(config, loaded, split))
        assert len(parts) == 5
        for part in parts:
            assert set(part[split == "train"]) == {"train", "val"}
            assert not set(loaded.groups[part == "train"]) & set(loaded.groups[part == "val"])
        times = np.sum([part == "val" for part in parts], axis=0)
        assert (times == np.where(split == "train", 1, 0)).all()

    @pytest.mark.parametrize("groups", [1, 2])
    def test_few_groups(self, groups: int, study: StudyFiles) -> None:
        """Two are two parts; one is divided."""
        config = self.config(study, group_column="subject_id")
        loaded = load_inputs(config)
        assert loaded.groups is not None
        split = np.where(np.isin(loaded.groups, sorted(set(loaded.groups))[:groups]), "train", "test").astype("<U5")
        parts = list(inner_splits(config, loaded, split))
        assert len(parts) == (2 if groups == 2 else min(5, (split == "train").sum()))

    def test_too_few(self, study: StudyFiles) -> None:
        config = self.config(study)
        split = np.full(24, "test", dtype="<U5")
        split[0] = "train"
        with pytest.raises(DataError):
            list(inner_splits(config, load_inputs(config), split))


def test_it_learns_at_the_rate_that_is_found(study: StudyFiles, tmp_path: Path) -> None:
    """As if that had been typed."""
    arguments = [*learn(study)[:-2], "--choose-epochs"]  # without --lr
    succeed(*arguments, "--lr-find", "apply", "--output-dir", tmp_path / "found")
    lr = json.loads((tmp_path / "found" / "config.json").read_text())["optim"]["lr"]
    assert lr != 1e-3
    succeed(*arguments, "--lr", lr, "--output-dir", tmp_path / "typed")
    assert (tmp_path / "found" / "epochs.tsv").read_bytes() == (tmp_path / "typed" / "epochs.tsv").read_bytes()
    assert_same_run(tmp_path / "found", tmp_path / "typed")


def test_an_average_over_the_end_is_of_the_epochs_that_are_run(study: StudyFiles, tmp_path: Path) -> None:
    for average in ("none", "swa"):
        options = ("--choose-epochs", "--batch-size", 4, "--average", average, "--output-dir", tmp_path / average)
        succeed(*learn(study), *options)
    assert chosen(tmp_path / "swa") is not None
    histories = [pd.read_csv(tmp_path / average / "history.csv") for average in ("none", "swa")]
    assert histories[0]["val_loss"].iloc[-1] != histories[1]["val_loss"].iloc[-1]
    succeed(*learn(study), *options, "--resume")


def test_what_an_encoder_has_learnt_nobody_can_judge(study: StudyFiles, tmp_path: Path) -> None:
    succeed(*learn(study)[:-4], "--epochs", 1, "--output-dir", tmp_path / "encoder")
    files = ("train", "--table", study.table, "--metadata", study.metadata, "--metadata-column")
    quick = ("--pretrained-encoder", tmp_path / "encoder", "--threads", 1, "--num-workers", 0, "--no-plots")
    steps = ("--epochs", EPOCHS, "--choose-epochs", "--lr", 0.01)
    outcome = succeed(*files, "age", *quick, *steps, "--output-dir", tmp_path / "run")
    assert "the encoder has learnt the column" in outcome.err and "how many epochs" not in outcome.err
    assert not (tmp_path / "run" / "epochs.tsv").exists()
    # Of other samples it knows nothing.
    (tmp_path / "encoder" / "splits.tsv").write_text("sample_id\tsplit\nother\ttrain\nanother\tval\n")
    elsewhere = succeed(*files, "age", *quick, *steps, "--val-size", 0.3, "--output-dir", tmp_path / "elsewhere")
    assert "how many epochs" in elsewhere.err
    another = succeed(*files, "storage_days", *quick, *steps, "--output-dir", tmp_path / "another")
    assert "how many epochs" in another.err


def test_what_was_seen(searched: Path) -> None:
    """Losses of all parts of the training samples together, each weighing as many samples as it has."""
    seen = pd.read_csv(searched / "epochs.tsv", sep="\t")
    assert seen["epoch"].tolist() == list(range(1, len(seen) + 1))
    found = verdict(seen["loss"].tolist(), seen["guess"][0], EPOCHS)
    assert found.known and chosen(searched) == found.stop_after
    history = pd.read_csv(searched / "history.csv")
    assert len(history) == (found.stop_after or EPOCHS)
    assert json.loads((searched / "metrics.json").read_text())["best_epoch"] == len(history)


def test_parts_weigh_as_many_samples_as_they_have(study: StudyFiles, searched: Path) -> None:
    seen = pd.read_csv(searched / "epochs.tsv", sep="\t")
    config = RunConfig.model_validate(json.loads((searched / "config.json").read_text()))
    loaded = load_inputs(config)
    split = pd.Series(read_splits(searched / "splits.tsv")).loc[list(loaded.sample_ids)].to_numpy().astype("<U5")
    parts = [name for name in seen.columns if name.startswith("part_")]
    assert len(parts) > 1, "the signal of this column is weak"
    sizes = [(part == "val").sum() for part in inner_splits(config, loaded, split)]
    assert len(sizes) == len(parts)
    expected = (seen[parts].to_numpy() * sizes).sum(axis=1) / sum(sizes)
    np.testing.assert_allclose(seen["loss"], expected, rtol=1e-9)


def test_what_one_part_calls_strong_is_asked_of_no_other(study: StudyFiles, tmp_path: Path) -> None:
    """A class that the number of reads of one ASV gives away."""
    run = tmp_path / "run"
    arguments = [*study.train, "--metadata-column", "group", "--classifier", "--lr", 0.02, "--epochs", 40]
    succeed(*arguments, "--choose-epochs", "--val-size", 0.2, "--output-dir", run)
    seen = pd.read_csv(run / "epochs.tsv", sep="\t")
    assert [name for name in seen.columns if name.startswith("part_")] == ["part_1"]
    assert (seen["loss"] == seen["part_1"]).all()
    assert seen["smoothed_loss"].iloc[-1] < 0.6 * seen["guess"][0]
    assert len(seen) < 40 and len(pd.read_csv(run / "history.csv")) == 40


def test_all_samples_are_learnt_from_as_without_a_search(study: StudyFiles, searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(
        *learn(study), *([] if chosen(searched) is None else ["--stop-after", chosen(searched)]), "--output-dir", run
    )
    for name in ("history.csv", "test_predictions.tsv", "splits.tsv"):
        assert (run / name).read_bytes() == (searched / name).read_bytes(), name


@pytest.mark.parametrize("part", ["test", "val"])
def test_held_out_samples_have_no_say(part: str, study: StudyFiles, searched: Path, tmp_path: Path) -> None:
    split = read_splits(searched / "splits.tsv")
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    held_out = metadata.iloc[:, 0].map(split) == part
    metadata.loc[held_out, "age"] = [str(1000 + place) for place in range(held_out.sum())]
    metadata.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = learn(study)
    arguments[arguments.index(study.metadata)] = tmp_path / "metadata.tsv"
    succeed(*arguments, "--choose-epochs", "--output-dir", tmp_path / "run")
    assert (tmp_path / "run" / "epochs.tsv").read_bytes() == (searched / "epochs.tsv").read_bytes()


def test_it_goes_on_as_it_was(study: StudyFiles, searched: Path, tmp_path: Path) -> None:
    """A run that is finished is found so; one that ended before its search had learnt anything begins again."""
    before = {name: (searched / name).read_bytes() for name in ("history.csv", "epochs.tsv")}
    outcome = succeed(*learn(study), "--choose-epochs", "--output-dir", searched, "--resume")
    assert "how many epochs" not in outcome.err
    assert {name: (searched / name).read_bytes() for name in before} == before
    run = tmp_path / "run"
    run.mkdir()
    (run / "aam.log").write_text("how many epochs?\n")
    succeed(*learn(study), "--choose-epochs", "--output-dir", run, "--resume")
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.fixture(scope="module")
def searched_to_the_end(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In which the parts do not agree for a while, with dropout, and ASVs at rest before they do."""
    run = tmp_path_factory.mktemp("epochs") / "whole"
    outcome = succeed(*learn_for_long(study), "--output-dir", run)
    assert outcome.err.count("each goes on until epoch") >= 2
    return run


def learn_for_long(study: StudyFiles) -> list[object]:
    return [*learn(study), "--choose-epochs", "--dropout", 0.2, "--lr", 0.02, "--save-every-minutes", 1e-6]


def test_a_search_goes_on_where_it_was_stopped(study: StudyFiles, searched_to_the_end: Path, tmp_path: Path) -> None:
    """In the first part, in another, and while all of them go on; by a signal that it heeds, or killed."""
    run = tmp_path / "run"
    moments = np.random.default_rng(0)
    arguments = learn_for_long(study)
    for at, number in (
        ("epoch 1/", signal.SIGTERM),
        ("the signal looks weak: part 3", signal.SIGKILL),
        ("the parts do not agree", signal.SIGTERM),
        ("epoch ", signal.SIGKILL),
    ):
        outcome = kill([*arguments, "--output-dir", run], number, at, after=moments.uniform(0, 0.2))
        assert outcome.code in (128 + number, -number), outcome.err  # between two parts it ends at once
        assert list(run.glob("search/part_*/last.ckpt"))
        arguments = ["train", "--resume"]  # the rest is in the run directory
    outcome = succeed(*arguments, "--output-dir", run)
    assert_same_run(run, searched_to_the_end)
    assert (run / "epochs.tsv").read_bytes() == (searched_to_the_end / "epochs.tsv").read_bytes()
    assert files_below(run) == files_below(searched_to_the_end)


@pytest.mark.parametrize("option", ["--epochs 12 --resume", "--overwrite", ""])
def test_another_search_begins_anew(option: str, study: StudyFiles, searched_to_the_end: Path, tmp_path: Path) -> None:
    run, expected = tmp_path / "run", searched_to_the_end
    outcome = kill([*learn_for_long(study), "--output-dir", run], signal.SIGKILL, "the signal looks weak: part 2")
    assert outcome.code == -signal.SIGKILL and len(list(run.glob("search/part_*"))) == 2
    succeed(*learn_for_long(study), "--output-dir", run, *option.split())
    if "--epochs" in option:
        expected = tmp_path / "expected"
        succeed(*learn_for_long(study), "--epochs", 12, "--output-dir", expected)
    assert_same_run(run, expected)
    assert (run / "epochs.tsv").read_bytes() == (expected / "epochs.tsv").read_bytes()


def test_all_seeds_learn_for_longer_when_asked_to(study: StudyFiles, searched: Path, tmp_path: Path) -> None:
    """What the first seed has found before says nothing of the run that is continued."""
    run = tmp_path / "run"
    options = [*learn(study), "--seeds", 2, "--threads", 1, "--output-dir", run]
    succeed(*options, "--choose-epochs")
    lengths = [len(pd.read_csv(run / f"seed_{seed}" / "history.csv")) for seed in (0, 1)]
    assert lengths == [chosen(run / "seed_0")] * 2 and lengths[0] < EPOCHS
    succeed(*options, "--resume", "--epochs", EPOCHS + 4, "--parallel", 2)
    assert [len(pd.read_csv(run / f"seed_{seed}" / "history.csv")) for seed in (0, 1)] == [EPOCHS + 4] * 2


def test_not_beside_another_end(study: StudyFiles, tmp_path: Path) -> None:
    outcome = aam(*learn(study), "--choose-epochs", "--patience", 3, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 2, "--choose-epochs", "--patience 3")


@pytest.mark.parametrize(("learnt", "searches"), [(20, True), (2, False)])
def test_a_class_of_which_one_sample_is_learnt(learnt: int, searches: bool, study: StudyFiles, tmp_path: Path) -> None:
    """The part that has it cannot judge what the others learn. Where that is so of every part, all epochs are run."""
    run = tmp_path / "run"
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    metadata["half"] = ["a" if place in (0, 23) else "b" for place in range(24)]
    metadata["part"] = ["train" if place < learnt else "val" for place in range(24)]
    metadata.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = [*study.train, "--metadata-column", "half", "--classifier", "--split-column", "part"]
    arguments[arguments.index(study.metadata)] = tmp_path / "metadata.tsv"
    outcome = succeed(*arguments, "--choose-epochs", "--output-dir", run)
    assert ("all 2 epochs are run: how many" in outcome.err) != searches
    assert (run / "epochs.tsv").is_file() == searches
