"""Runs next to each other: pre-trained and trained, interrupted and not, permuted and not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from aam.data.splits import read_splits
from tests.end_to_end.program import (
    QUICK,
    TINY,
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    kill,
    permute,
    read_metrics,
    succeed,
)

MODEL = "best_model.safetensors"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / MODEL)


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit."""
    for name in ("splits.tsv", "history.csv", "metrics.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for path in a.glob("*_predictions.tsv"):
        assert path.read_bytes() == (b / path.name).read_bytes()


def tune(study: StudyFiles, pretrained: Path, column: str = "age") -> list[object]:
    """`aam train` from an encoder, whose shape is not typed: it comes from the file."""
    return [
        *("train", "--table", study.table, "--metadata", study.metadata, "--metadata-column", column),
        *(*QUICK, "--pretrained-encoder", pretrained),
    ]


@pytest.fixture(scope="module")
def tuned(study: StudyFiles, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tuned"
    succeed(*tune(study, pretrained), "--output-dir", run)
    return run


class TestPretrainedEncoder:
    def test_its_split_is_taken_over(self, tuned: Path, pretrained: Path) -> None:
        assert (tuned / "splits.tsv").read_bytes() == (pretrained / "splits.tsv").read_bytes()
        assert "test" in set(read_splits(tuned / "splits.tsv").values())
        assert read_metrics(tuned)["pretrained_leak"] == 0

    def test_its_shape_is_taken_over(self, tuned: Path, pretrained: Path) -> None:
        shapes = [json.loads((run / "config.json").read_text())["model"] for run in (tuned, pretrained)]
        assert shapes[0] == shapes[1]
        assert shapes[0]["embedding_dim"] == 16

    def test_it_is_trained_on(self, tuned: Path, pretrained: Path) -> None:
        base, now = weights(pretrained), weights(tuned)
        assert {f"encoder.{name}" for name in base} < now.keys()
        moved = [name for name in base if not torch.equal(base[name], now[f"encoder.{name}"])]
        assert any(name.startswith("asv_encoder") for name in moved)

    def test_freezing_leaves_it_as_it_was(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        succeed(*tune(study, pretrained), "--freeze-base", "--seed", 5, "--output-dir", tmp_path / "run")
        base, now = weights(pretrained), weights(tmp_path / "run")
        assert all(torch.equal(value, now[f"encoder.{name}"]) for name, value in base.items())
        losses = pd.read_csv(tmp_path / "run" / "history.csv")["train_target_loss"]
        assert losses.nunique() == 2

    @pytest.mark.parametrize("seed", ["0", "9"])
    def test_a_stored_configuration_repeats_the_run(
        self, study: StudyFiles, pretrained: Path, tuned: Path, tmp_path: Path, seed: str
    ) -> None:
        config = tuned / "config.json"
        succeed("train", "--config", config, "--output-dir", tmp_path / "again", "--seed", seed)
        if seed == "0":
            assert_same_run(tmp_path / "again", tuned)
        assert (tmp_path / "again" / "splits.tsv").read_bytes() == (pretrained / "splits.tsv").read_bytes()

    def test_its_own_split_options_are_no_new_split(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        same = ["--group-column", "subject_id", "--test-size", "0.25", "--seed", 8]
        succeed(*tune(study, pretrained), *same, "--output-dir", tmp_path / "run")
        assert (tmp_path / "run" / "splits.tsv").read_bytes() == (pretrained / "splits.tsv").read_bytes()

    def test_a_leak_is_refused_or_recorded(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        new_split = [*tune(study, pretrained), "--val-size", "0.5", "--seed", 4]
        outcome = aam(*new_split, "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, "held-out samples", "--allow-pretrained-leak")
        assert not (tmp_path / "run").exists()
        succeed(*new_split, "--allow-pretrained-leak", "--output-dir", tmp_path / "run")
        before, after = (read_splits(run / "splits.tsv") for run in (pretrained, tmp_path / "run"))
        leaked = sum(part != "train" and before[name] == "train" for name, part in after.items())
        assert leaked > 0
        assert read_metrics(tmp_path / "run")["pretrained_leak"] == leaked

    def test_the_model_file_alone_does_not_say_what_it_has_seen(
        self, study: StudyFiles, pretrained: Path, tmp_path: Path
    ) -> None:
        alone = tmp_path / "encoder" / MODEL
        alone.parent.mkdir()
        alone.write_bytes((pretrained / MODEL).read_bytes())
        outcome = aam(*tune(study, alone), "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, alone.parent, "splits.tsv", "--allow-pretrained-leak")

    @pytest.mark.parametrize(
        ("option", "asked", "has"),
        [
            ("--embedding-dim", 32, 16),
            ("--attention-heads", 4, 2),
            ("--attention-layers", 2, 1),
            ("--feed-forward-factor", 2, 4),
            ("--count-embedding", "film", "add"),
            ("--clades", 8, 16),
            ("--max-bp", 400, 300),
            ("--max-bp", 30, 40),  # the length of the reference ASVs
        ],
    )
    def test_another_shape_is_refused(
        self, study: StudyFiles, pretrained: Path, tmp_path: Path, option: str, asked: object, has: object
    ) -> None:
        outcome = aam(*tune(study, pretrained), option, asked, "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, f"{option} {asked}", str(has))
        assert not (tmp_path / "run").exists()

    def test_a_trained_model_serves_as_one(self, study: StudyFiles, tuned: Path, tmp_path: Path) -> None:
        arguments = tune(study, tuned)
        arguments[arguments.index("age")] = "group"
        succeed(*arguments, "--classifier", "--output-dir", tmp_path / "run")
        assert (tmp_path / "run" / "splits.tsv").read_bytes() == (tuned / "splits.tsv").read_bytes()


class TestResume:
    EPOCHS = 3
    BEGUN = "epoch 1/|resuming"

    def arguments(self, study: StudyFiles, command: str) -> list[object]:
        shared = ["--epochs", self.EPOCHS, "--dropout", 0.2, "--batch-size", 5, "--accumulation-steps", 2]
        if command == "pretrain":
            return [*study.pretrain, *shared, "--distance-head", "clade"]
        return [*study.train, "--metadata-column", "age", *shared]

    @pytest.mark.parametrize("command", ["pretrain", "train"])
    def test_a_killed_run_goes_on_to_the_same_end(self, study: StudyFiles, tmp_path: Path, command: str) -> None:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        arguments = self.arguments(study, command)
        outcome = kill([*arguments, "--output-dir", killed], signal.SIGKILL, f"epoch 2/{self.EPOCHS}")
        assert outcome.code == -signal.SIGKILL
        # What holds the last finished epoch must not look finished.
        assert (killed / "last.ckpt").is_file()
        assert not (killed / "metrics.json").exists()
        assert not list(killed.glob("*_predictions.tsv"))
        assert_one_line_error(aam(*arguments, "--output-dir", killed), 1, killed, "--resume", "--overwrite")

        succeed(*arguments, "--output-dir", whole)
        # The configuration is in the run directory; nothing of it has to be typed again.
        outcome = succeed(command, "--output-dir", killed, "--resume")
        assert "resuming after epoch" in outcome.err
        assert_same_run(killed, whole)
        assert files_below(killed) == files_below(whole)

    def test_killed_at_any_moment(self, study: StudyFiles, tmp_path: Path) -> None:
        """Three times in a row, wherever it is; checkpoints are written between steps too."""
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        arguments = [*self.arguments(study, "train"), "--epochs", 5, "--batch-size", 2, "--save-every-minutes", 1e-6]
        moments = np.random.default_rng(0)
        kill([*arguments, "--output-dir", killed], signal.SIGKILL, self.BEGUN, after=moments.uniform(0, 0.3))
        for _ in range(2):
            kill(
                ["train", "--output-dir", killed, "--resume"], signal.SIGKILL, self.BEGUN, after=moments.uniform(0, 0.3)
            )
        succeed(*arguments, "--output-dir", whole)
        succeed("train", "--output-dir", killed, "--resume")
        assert_same_run(killed, whole)
        assert files_below(killed) == files_below(whole)

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    def test_a_signal_leaves_a_run_that_goes_on(self, study: StudyFiles, tmp_path: Path, name: str) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        arguments = [*self.arguments(study, "pretrain"), "--epochs", 6, "--batch-size", 2, "--num-workers", 2]
        number = getattr(signal, name)
        outcome = kill([*arguments, "--output-dir", stopped], number, self.BEGUN, after=0.1)
        assert outcome.code == 128 + number
        assert outcome.err.splitlines()[-1] == f"Error: stopped by {name}; the run is saved, and --resume continues it"
        assert "Traceback" not in outcome.err and not (stopped / "metrics.json").exists()
        succeed(*arguments, "--output-dir", whole)
        succeed("pretrain", "--output-dir", stopped, "--resume")
        assert_same_run(stopped, whole)

    def test_a_finished_run_has_nothing_left_to_do(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        succeed("train", "--output-dir", run, "--resume")
        assert_same_run(run, trained)

    def test_paths_may_be_spelled_in_another_way(
        self, study: StudyFiles, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        monkeypatch.chdir(study.folder)
        succeed("train", "--output-dir", run, "--resume", "--table", "../" + study.folder.name + "/table.biom")
        (study.folder / "other.biom").symlink_to(study.metadata)
        outcome = aam("train", "--output-dir", run, "--resume", "--table", "other.biom")
        assert_one_line_error(outcome, 1, "other.biom")

    def test_other_settings_are_refused(self, trained: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
        outcome = aam("train", "--output-dir", trained, "--resume", "--lr", "0.5")
        assert_one_line_error(outcome, 1, trained, "--lr 0.001", "--lr 0.5")
        assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before

    def test_other_input_is_refused_and_leaves_the_run(self, study: StudyFiles, tmp_path: Path) -> None:
        """With fewer samples they would be split anew, and held-out ones learnt from."""
        metadata, run = tmp_path / "metadata.tsv", tmp_path / "run"
        lines = study.metadata.read_text().splitlines(keepends=True)
        metadata.write_text("".join(lines))
        arguments = ["train", "--table", study.table, "--metadata", metadata, *TINY, "--metadata-column", "age"]
        succeed(*arguments, "--output-dir", run, "--epochs", 1)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        metadata.write_text("".join(lines[:-2]))
        outcome = aam("train", "--resume", "--output-dir", run, "--epochs", 2)
        assert_one_line_error(outcome, 1, run, "--metadata", "--overwrite")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_nothing_to_resume_is_refused(self, study: StudyFiles, tmp_path: Path) -> None:
        arguments = [*study.pretrain, "--output-dir", tmp_path / "run", "--resume"]
        assert_one_line_error(aam(*arguments), 1, tmp_path / "run", "last.ckpt")
        assert not (tmp_path / "run").exists()

    def test_a_damaged_checkpoint_is_refused(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        whole = (run / "last.ckpt").read_bytes()
        for content in (b"", b"\x80\x04nonsense", whole[: len(whole) // 2]):
            (run / "last.ckpt").write_bytes(content)
            assert_one_line_error(aam("train", "--output-dir", run, "--resume"), 1, run / "last.ckpt")


def ordinary(study: StudyFiles, run: Path) -> list[object]:
    return [
        *study.train,
        *("--unifrac-matrix", study.matrix, "--metadata-column", "age", "--distance-head", "clade", "--dropout", 0),
        *("--batch-size", 5, "--token-limit", 6, "--rarefy-depth", 200, "--output-dir", run),
    ]


class TestSameForAny:
    """Order of rows and columns, number of workers."""

    @pytest.fixture(scope="class")
    @staticmethod
    def plain(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
        run = tmp_path_factory.mktemp("runs") / "plain"
        succeed(*ordinary(study, run))
        return run

    def test_order_in_the_files(self, study: StudyFiles, plain: Path, tmp_path: Path) -> None:
        permuted = permute(study, tmp_path / "permuted")
        assert permuted.table.read_bytes() != study.table.read_bytes()
        succeed(*ordinary(permuted, tmp_path / "run"))
        assert_same_run(plain, tmp_path / "run")

    def test_order_in_the_files_with_random_asvs(self, study: StudyFiles, plain: Path, tmp_path: Path) -> None:
        options = ["--asv-sampling", "random", "--epochs", 1]
        succeed(*ordinary(study, tmp_path / "a"), *options)
        succeed(*ordinary(permute(study, tmp_path / "permuted"), tmp_path / "b"), *options)
        assert_same_run(tmp_path / "a", tmp_path / "b")
        first = [pd.read_csv(run / "history.csv")["train_loss"][0] for run in (plain, tmp_path / "a")]
        assert first[0] != first[1]

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_number_of_workers(self, study: StudyFiles, plain: Path, tmp_path: Path) -> None:
        before = {child.pid for child in psutil.Process().children()}
        succeed(*ordinary(study, tmp_path / "run"), "--num-workers", 2)
        assert {child.pid for child in psutil.Process().children()} <= before
        assert_same_run(plain, tmp_path / "run")

    def test_seeds_differ(self, study: StudyFiles, plain: Path, tmp_path: Path) -> None:
        succeed(*ordinary(study, tmp_path / "run"), "--seed", 1, "--epochs", 1)
        assert (plain / "splits.tsv").read_bytes() != (tmp_path / "run" / "splits.tsv").read_bytes()


class TestOverwrite:
    def test_replaces_what_a_run_wrote_and_nothing_else(self, study: StudyFiles, tmp_path: Path) -> None:
        run = tmp_path / "run"
        arguments = [*study.train, "--metadata-column", "age", "--output-dir", run]
        succeed(*arguments, "--test-size", "0.25", "--plots")
        (run / "notes.txt").write_text("mine")
        (run / "plots" / "mine.png").write_text("mine, too")
        assert_one_line_error(aam(*arguments), 1, run, "--overwrite", "--resume")
        succeed(*arguments, "--overwrite")
        assert (run / "notes.txt").read_text() == "mine"
        assert not (run / "test_predictions.tsv").exists()
        assert [path.name for path in (run / "plots").iterdir()] == ["mine.png"]
        assert len(list((run / "tensorboard" / "train").iterdir())) == 1

    def test_a_folder_that_held_no_run_keeps_its_files(self, study: StudyFiles, tmp_path: Path) -> None:
        own = tmp_path / "run" / "plots" / "my_figure.png"
        own.parent.mkdir(parents=True)
        own.write_bytes(b"mine")
        succeed(*ordinary(study, tmp_path / "run"), "--plots", "--overwrite")
        assert own.read_bytes() == b"mine"

    def test_the_encoder_that_it_starts_from_is_not_replaced(
        self, study: StudyFiles, pretrained: Path, tmp_path: Path
    ) -> None:
        for encoder in (pretrained, pretrained / MODEL):
            arguments = [*tune(study, encoder), "--output-dir", pretrained, "--overwrite"]
            assert_one_line_error(aam(*arguments), 2, "--output-dir", "--pretrained-encoder", encoder)

    def test_input_that_is_refused_leaves_the_old_run(self, study: StudyFiles, trained: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
        outcome = aam(*study.train, "--metadata-column", "absent", "--output-dir", trained, "--overwrite")
        assert_one_line_error(outcome, 1, "'absent'")
        assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
