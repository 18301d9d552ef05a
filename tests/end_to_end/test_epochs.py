"""How many epochs a column is learnt for, found on a part of the training samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.config import RunConfig
from aam.data.splits import read_splits
from aam.epochs import best_epoch, inner_split, smoothed
from aam.errors import DataError
from aam.inputs import load_inputs
from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, succeed

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


def chosen(run: Path) -> int:
    epochs: int = json.loads((run / "config.json").read_text())["train"]["stop_after"]
    return epochs


class TestBest:
    def test_means_of_three(self) -> None:
        assert smoothed([3, 0, 6, 9]) == pytest.approx([2, 3, 5, 8])

    def test_a_lucky_epoch_is_not_the_best(self) -> None:
        assert best_epoch([9, 1, 9, 4, 4, 4, 5, 6, 7]) == 5

    def test_the_last_that_is_about_as_good(self) -> None:
        assert best_epoch([3, 1, 1, 1, 1.04, 1.04, 1.04, 1.04, 1.1, 1.2]) == 7

    def test_one(self) -> None:
        assert best_epoch([2.0]) == 1


class TestInnerSplit:
    def config(self, study: StudyFiles, **data: object) -> RunConfig:
        files = {"table": study.table, "metadata": study.metadata, "metadata_column": "age"}
        return RunConfig.model_validate({"command": "train", "data": files | data, "train": {"output_dir": "unused"}})

    def test_of_the_training_samples_alone(self, study: StudyFiles) -> None:
        config = self.config(study, group_column="subject_id")
        loaded = load_inputs(config)
        assert loaded.groups is not None
        split = np.where(np.isin(loaded.groups, sorted(set(loaded.groups))[:2]), "test", "train").astype("<U5")
        parts = inner_split(config, loaded, split)
        assert (parts[split == "test"] == "").all()
        assert set(parts[split == "train"]) == {"train", "val"}
        assert not set(loaded.groups[parts == "train"]) & set(loaded.groups[parts == "val"])

    def test_too_few(self, study: StudyFiles) -> None:
        config = self.config(study)
        split = np.full(24, "test", dtype="<U5")
        split[0] = "train"
        with pytest.raises(DataError):
            inner_split(config, load_inputs(config), split)


def test_what_was_seen(searched: Path) -> None:
    seen = pd.read_csv(searched / "epochs.tsv", sep="\t")
    assert seen["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert chosen(searched) == best_epoch(seen["loss"].tolist())
    history = pd.read_csv(searched / "history.csv")
    assert len(history) == chosen(searched)
    assert json.loads((searched / "metrics.json").read_text())["best_epoch"] == chosen(searched)


def test_all_samples_are_learnt_from_as_without_a_search(study: StudyFiles, searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*learn(study), "--stop-after", chosen(searched), "--output-dir", run)
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
    """A run that is finished is found so; one that ended in its search begins again."""
    before = {name: (searched / name).read_bytes() for name in ("history.csv", "epochs.tsv")}
    outcome = succeed(*learn(study), "--choose-epochs", "--output-dir", searched, "--resume")
    assert "how many epochs" not in outcome.err
    assert {name: (searched / name).read_bytes() for name in before} == before
    run = tmp_path / "run"
    run.mkdir()
    (run / "aam.log").write_text("how many epochs?\n")
    succeed(*learn(study), "--choose-epochs", "--output-dir", run, "--resume")
    assert {name: (run / name).read_bytes() for name in before} == before


def test_not_beside_another_end(study: StudyFiles, tmp_path: Path) -> None:
    outcome = aam(*learn(study), "--choose-epochs", "--patience", 3, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 2, "--choose-epochs", "--patience 3")


def test_too_few_groups_to_search(study: StudyFiles, tmp_path: Path) -> None:
    """The classes of a part are not all in the other: every epoch is run."""
    run = tmp_path / "run"
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    metadata["half"] = ["a" if place < 2 else "b" for place in range(len(metadata))]
    metadata.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = [*study.train, "--metadata-column", "half", "--classifier", "--stratify", "--val-size", 0.5]
    arguments[arguments.index(study.metadata)] = tmp_path / "metadata.tsv"
    outcome = succeed(*arguments, "--choose-epochs", "--output-dir", run)
    assert "all 2 epochs are run" in outcome.err
    assert len(pd.read_csv(run / "history.csv")) == 2
