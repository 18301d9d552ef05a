"""Going on from a pre-trained encoder: frozen, unfrozen after a while, and read with other settings than it had."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from aam.cli.options import read_config
from aam.config import UsualEpochs
from aam.data.splits import read_splits
from aam.training.checkpoint import load_model_file
from tests.end_to_end.program import (
    QUICK,
    StudyFiles,
    aam,
    assert_one_line_error,
    kill,
    read_metrics,
    read_predictions,
    succeed,
)
from tests.end_to_end.test_processes import assert_like, in_two
from tests.end_to_end.test_round_trip import assert_reproduces, predict
from tests.end_to_end.test_runs import assert_same_run, tune, weights

TARGETS: dict[str, list[object]] = {
    "numbers": [],
    "classes": ["--classifier"],
}


def options_of(study: StudyFiles, target: str) -> list[object]:
    """Samples of up to 6 ASVs, with a distance matrix beside the target."""
    return [*TARGETS[target], "--unifrac-matrix", study.matrix, "--token-limit", 6, "--batch-size", 5, "--dropout", 0.2]


def moved(run: Path, pretrained: Path) -> set[str]:
    """The parts of the base whose weights are others than they were."""
    before, now = weights(pretrained), weights(run)
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[f"encoder.{name}"])}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("part", ["--freeze-base", "--freeze-asv-encoder"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_frozen_part(part: str, target: str, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    run, slow = tmp_path / "run", tmp_path / "slow"
    column = "group" if target == "classes" else "age"
    arguments = [*tune(study, pretrained, column), *options_of(study, target), part, "--epochs", 3]
    before = {child.pid for child in psutil.Process().children()}
    outcome = succeed(*arguments, "--num-workers", 2, "--output-dir", run)
    assert {child.pid for child in psutil.Process().children()} <= before
    assert "ASVs encoded once" in outcome.err
    assert ("samples encoded once" in outcome.err) == (part == "--freeze-base")
    assert "encoded anew" not in outcome.err
    assert "asv_encoder" not in moved(run, pretrained)
    assert ("transformer" in moved(run, pretrained)) == (part != "--freeze-base")
    assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)

    assert "encoded once" not in succeed(*arguments, "--no-encode-once", "--output-dir", slow).err
    histories = [pd.read_csv(path / "history.csv") for path in (run, slow)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-4, atol=1e-5)
    for name in ("val_predictions.tsv", "test_predictions.tsv"):
        pd.testing.assert_frame_equal(*(read_predictions(path / name) for path in (run, slow)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["--freeze-base", "--freeze-asv-encoder"])
def test_each_base_target(part: str, study: StudyFiles, tmp_path: Path) -> None:
    """Presence, abundance and embeddings are all read of what was encoded once."""
    labels = ["--base-target", "combined", "--unifrac-matrix", f"weighted_unifrac={study.matrix}"]
    labels += ["--unifrac-matrix", f"unifrac={study.matrix}", "--unifrac-matrix", f"aitchison={study.matrix}"]
    arguments = [argument for argument in study.pretrain if argument not in ("--unifrac-matrix", study.matrix)]
    succeed(*arguments, *labels, "--output-dir", tmp_path / "encoder")
    run, slow = tmp_path / "run", tmp_path / "slow"
    arguments = [*tune(study, tmp_path / "encoder"), *labels, part]
    succeed(*arguments, "--output-dir", run)
    succeed(*arguments, "--no-encode-once", "--output-dir", slow)
    pd.testing.assert_frame_equal(*(pd.read_csv(path / "history.csv") for path in (run, slow)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "options", "reason"),
    [
        ("--freeze-base", ["--rarefy-depth", 200], "--rarefy-depth 200"),
        ("--freeze-base", ["--asv-sampling", "random", "--token-limit", 3], "--token-limit 3"),
        ("--freeze-base", ["--asv-dropout", 0.2], "--asv-dropout 0.2"),
        ("--freeze-asv-encoder", ["--base-noise", 0.1], "--base-noise 0.1"),
    ],
)
def test_the_log_says_what_is_encoded_anew(
    part: str, options: list[object], reason: str, study: StudyFiles, pretrained: Path, tmp_path: Path
) -> None:
    succeed(*tune(study, pretrained), part, *options, "--epochs", 1, "--output-dir", tmp_path / "run")
    log = (tmp_path / "run" / "aam.log").read_text()
    assert reason in next(line for line in log.splitlines() if "encoded anew" in line)
    assert "asv_encoder" not in moved(tmp_path / "run", pretrained)


@pytest.mark.parametrize("part", ["--freeze-base", "--freeze-asv-encoder"])
def test_a_search_for_a_learning_rate(part: str, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    """What is encoded once for it serves the run too."""
    run = tmp_path / "run"
    arguments = [*tune(study, pretrained), part, "--epochs", 4, "--lr-find", "apply"]
    lines = succeed(*arguments, "--output-dir", run).err.splitlines()
    events = ("ASVs encoded once", "range test", "epoch 1/4")
    assert [event for line in lines for event in events if event in line] == list(events)
    assert "asv_encoder" not in moved(run, pretrained)
    assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)


@pytest.mark.parametrize("option", ["--patience 2", "--schedule plateau", "--restart-on-plateau"])
def test_the_test_split_of_an_encoder_never_judges(option: str, study: StudyFiles, tmp_path: Path) -> None:
    """Its own split may lack a validation part, for it need not validate."""
    split = pd.read_csv(study.metadata, sep="\t")[["sample_id"]]
    split["split"] = np.where(np.arange(24) < 6, "test", "train")
    split.to_csv(tmp_path / "splits.tsv", sep="\t", index=False)
    succeed(*study.pretrain, "--splits", tmp_path / "splits.tsv", "--output-dir", tmp_path / "encoder")
    outcome = aam(*tune(study, tmp_path / "encoder"), *option.split(), "--output-dir", tmp_path / "run")
    error = outcome.err.splitlines()[-1]
    assert outcome.code == 1 and error.startswith(f"Error: {tmp_path / 'encoder'}: has no validation samples")
    succeed(*tune(study, tmp_path / "encoder"), "--output-dir", tmp_path / "run")


def test_what_leaves_nothing_to_train_is_refused_before_training(
    study: StudyFiles, pretrained: Path, tmp_path: Path
) -> None:
    """The number of epochs is settled by the steps, and known only then."""
    arguments = [*tune(study, pretrained)[:7], "--threads", 1, "--pretrained-encoder", pretrained]
    steps = ("--train-steps", 12, "--batch-size", 12, "--no-choose-epochs", "--freeze-base")
    outcome = aam(*arguments, *steps, "--unfreeze-after", 100, "--output-dir", tmp_path / "run")
    assert outcome.code == 1 and outcome.err.splitlines()[-1].startswith("Error: --unfreeze-after 100 leaves none")
    assert "epoch 1/" not in outcome.err


@pytest.mark.slow
def test_folds(study: StudyFiles, tmp_path: Path) -> None:
    grouped = ["--metadata", study.metadata, "--group-column", "subject_id", "--folds", 2]
    succeed(*study.pretrain, *grouped, "--epochs", 1, "--output-dir", tmp_path / "encoders")
    run = tmp_path / "run"
    outcome = succeed(*tune(study, tmp_path / "encoders"), "--freeze-base", "--output-dir", run)
    assert outcome.err.count("24 samples encoded once") == 2
    for fold in ("fold_0", "fold_1"):
        assert not moved(run / fold, tmp_path / "encoders" / fold)
        assert_reproduces(predict(run / fold, study, tmp_path / f"{fold}.tsv"), run / fold, ("test",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--freeze-base", "--unfreeze-after", 2],
        ["--freeze-asv-encoder", "--strategy", "fsdp", "--asv-chunk-size", 4],
    ],
    ids=str,
)
def test_two_processes(options: list[object], study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    arguments = [*tune(study, pretrained), *options_of(study, "numbers"), "--dropout", 0, "--epochs", 4]
    arguments += ["--nuc-asv-fraction", 0.5]
    outcome = in_two(*arguments, *options, "--output-dir", tmp_path / "two")
    assert outcome.code == 0, outcome.err
    alone = [option for option in options if option not in ("--strategy", "fsdp")]
    succeed(*arguments, *alone, "--output-dir", tmp_path / "alone")
    assert_like(tmp_path / "two", tmp_path / "alone")


class TestUnfreezing:
    def arguments(self, study: StudyFiles, pretrained: Path, part: str) -> list[object]:
        arguments = [*tune(study, pretrained), *options_of(study, "numbers"), "--nuc-asv-fraction", 0.5]
        return [*arguments, part, "--unfreeze-after", 2, "--epochs", 4]

    @pytest.mark.parametrize("part", ["--freeze-base", "--freeze-asv-encoder"])
    def test_all_is_trained_in_the_end(self, part: str, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        outcome = succeed(*self.arguments(study, pretrained, part), "--output-dir", run)
        assert f"the {'base' if part == '--freeze-base' else 'ASV encoder'} is trained from here on" in outcome.err
        history = pd.read_csv(run / "history.csv")
        assert history["train_nuc_loss"].notna().tolist() == [False, False, True, True]
        assert (history["val_unifrac_r2"].diff() == 0).tolist()[1] == (part == "--freeze-base")
        assert (history["val_unifrac_r2"].diff() != 0).tolist()[2:] == [True, True]
        assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)
        if history["val_target_loss"].idxmin() > 1:
            assert "asv_encoder" in moved(run, pretrained)

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_a_killed_run_goes_on_to_the_same_end(
        self, epoch: int, study: StudyFiles, pretrained: Path, tmp_path: Path
    ) -> None:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        arguments = self.arguments(study, pretrained, "--freeze-base")
        succeed(*arguments, "--output-dir", whole)
        outcome = kill([*arguments, "--output-dir", killed], signal.SIGKILL, f"epoch {epoch}/4")
        assert outcome.code == -signal.SIGKILL
        assert "resuming after epoch" in succeed("train", "--output-dir", killed, "--resume").err
        assert_same_run(killed, whole)

    def test_another_epoch_is_refused(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        succeed(*self.arguments(study, pretrained, "--freeze-base"), "--output-dir", run)
        outcome = aam("train", "--output-dir", run, "--resume", "--unfreeze-after", 3, "--epochs", 5)
        assert outcome.code == 1
        assert outcome.err.endswith("was begun with --unfreeze-after 2, and --unfreeze-after 3 is asked for\n")


class TestFreezing:
    """The encoder of ASVs stays as it is from an epoch on, be it pre-trained or not."""

    @pytest.mark.parametrize("command", ["pretrain", "train"])
    def test_from_an_epoch_on(self, command: str, study: StudyFiles, tmp_path: Path) -> None:
        run, shorter = tmp_path / "run", tmp_path / "shorter"
        arguments = getattr(study, command)
        if command == "train":
            arguments = [*arguments, "--unifrac-matrix", study.matrix, "--metadata-column", "age"]
        arguments = [*arguments, "--nuc-asv-fraction", 0.5, "--schedule", "constant", "--freeze-asvs-after", 2]
        outcome = succeed(*arguments, "--epochs", 4, "--output-dir", run)
        assert "the ASV encoder is frozen: " in outcome.err
        succeed(*arguments, "--epochs", 2, "--output-dir", shorter)
        prefix = "asv_encoder." if command == "pretrain" else "encoder.asv_encoder."
        before, after = (load_model_file(path / "best_model.safetensors").weights for path in (shorter, run))
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert {name for name in before if name.startswith(prefix)} <= same
        assert len(same) < len(before) / 2
        history = pd.read_csv(run / "history.csv")
        assert history["train_nuc_loss"].notna().tolist() == [True, True, False, False]
        # Held-out losses mean the same in all epochs: masked bases are restored as well as when they came to rest.
        restored = history["val_nuc_loss"]
        assert restored[0] != restored[1] == restored[2] == restored[3]
        if command == "pretrain":
            parts = history.filter(regex="^val_unifrac.*_loss$").sum(axis=1) + 0.1 * restored
            np.testing.assert_allclose(history["val_loss"], parts, rtol=1e-6)
        if command == "train":
            assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run, ("val",))

    def test_the_best_epoch_may_come_before(self, study: StudyFiles, tmp_path: Path) -> None:
        """Early stopping keeps a model that reads ASVs in another way than the table of later epochs."""
        options = ["--metadata-column", "age", "--lr", 0.1, "--schedule", "constant", "--epochs", 5]
        options += ["--freeze-asvs-after", 2, "--patience", 9]
        for seed in range(9):
            run = tmp_path / f"{seed}"
            succeed(*study.train, *options, "--seed", seed, "--output-dir", run)
            if read_metrics(run)["best_epoch"] < 3:
                break
        assert read_metrics(run)["best_epoch"] < 3
        assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run, ("val",))

    @pytest.mark.slow
    def test_two_processes(self, study: StudyFiles, tmp_path: Path) -> None:
        arguments = [*study.train, "--metadata-column", "age", "--dropout", 0, "--epochs", 4, "--freeze-asvs-after", 2]
        arguments += ["--nuc-asv-fraction", 0.5, "--test-size", 0.25]
        outcome = in_two(*arguments, "--output-dir", tmp_path / "two")
        assert outcome.code == 0, outcome.err
        succeed(*arguments, "--output-dir", tmp_path / "alone")
        assert_like(tmp_path / "two", tmp_path / "alone")

    def test_not_in_parts(self, study: StudyFiles, tmp_path: Path) -> None:
        options = ["--metadata-column", "age", "--freeze-asvs-after", 2, "--strategy", "fsdp"]
        outcome = aam(*study.train, *options, "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 2, "--freeze-asvs-after 2", "--strategy fsdp")

    def test_not_where_bases_are_all_that_is_learnt(self, study: StudyFiles, tmp_path: Path) -> None:
        options = ("--embedding-dim", 16, "--attention-layers", 1, "--clades", 16, "--threads", 1, "--num-workers", 0)
        files = ("pretrain", "--table", study.table, "--unifrac-matrix", study.matrix, "--train-steps", 12)
        succeed(*files, *options, "--unifrac-weight", 0, "--nuc-asv-fraction", 0.5, "--output-dir", tmp_path / "run")
        assert read_config(tmp_path / "run" / "config.json")["freeze_asvs_after"] == 0
        assert (pd.read_csv(tmp_path / "run" / "history.csv")["val_loss"] > 0).all()

    def test_settled_where_nobody_says(self, study: StudyFiles, tmp_path: Path) -> None:
        """Four steps an epoch: 60 epochs make 240 steps."""
        run = tmp_path / "run"
        arguments = list(study.train)
        place = arguments.index("--epochs")
        del arguments[place : place + 2]
        arguments += ["--metadata-column", "age", "--batch-size", 5, "--nuc-asv-fraction", 0.9, "--train-steps", 240]
        succeed(*arguments, "--output-dir", run)
        history = pd.read_csv(run / "history.csv")
        train = sum(part == "train" for part in read_splits(run / "splits.tsv").values())
        assert UsualEpochs.of(train, 5, 240) == (60, 27) == (len(history), history["train_nuc_loss"].notna().sum())
        config = read_config(run / "config.json")
        assert (config["epochs"], config["freeze_asvs_after"]) == UsualEpochs.of(train, 5, 240)
        before = (run / "history.csv").read_bytes()
        succeed(*arguments, "--output-dir", run, "--resume")  # which finds it finished
        assert (run / "history.csv").read_bytes() == before


class TestOtherSettings:
    """With a learning rate of next to nothing, what was learnt is read as it was."""

    @pytest.fixture(scope="class")
    @staticmethod
    def encoders(study: StudyFiles, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        """By the head that they have."""
        found = {"both": pretrained}
        for head in ("clade", "euclidean"):
            found[head] = tmp_path_factory.mktemp("encoders") / head
            succeed(*study.pretrain, "--distance-head", head, "--output-dir", found[head])
        return found

    def still(self, study: StudyFiles, encoder: Path, run: Path, *options: object) -> Path:
        learning = ["--lr", 1e-12, "--weight-decay", 0, "--epochs", 1, "--unifrac-matrix", study.matrix]
        succeed(*tune(study, encoder), *learning, *options, "--output-dir", run)
        return run

    @pytest.mark.parametrize(
        "options",
        [["--token-limit", 2000], ["--dropout", 0.5], ["--max-bp", 40], ["--max-bp", 90], ["--asv-chunk-size", 4]],
    )
    def test_of_no_matter_to_what_was_learnt(
        self, options: list[object], study: StudyFiles, pretrained: Path, tmp_path: Path
    ) -> None:
        expected = read_metrics(pretrained)["val"]
        found = read_metrics(self.still(study, pretrained, tmp_path / "run", *options))["val"]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        run = tmp_path / "run"
        assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)

    def test_fewer_asvs(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        run = self.still(study, pretrained, tmp_path / "run", "--token-limit", 3)
        assert "--token-limit is 3 here and was 1024" in (run / "aam.log").read_text()
        assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run)

    @pytest.mark.parametrize(
        ("theirs", "ours"), [("both", "clade"), ("both", "euclidean"), ("clade", "both"), ("euclidean", "clade")]
    )
    def test_another_head(
        self, theirs: str, ours: str, study: StudyFiles, encoders: dict[str, Path], tmp_path: Path
    ) -> None:
        run = self.still(study, encoders[theirs], tmp_path / "run", "--distance-head", ours)
        expected, found = read_metrics(encoders[theirs])["val"], read_metrics(run)["val"]
        leading = "euclidean" if ours == "euclidean" else "clade"
        readings = {leading: "unifrac_r2", **({"euclidean": "unifrac_euclidean_r2"} if ours == "both" else {})}
        for head, name in readings.items():
            if theirs == "both" and (head == "clade" or ours == "both"):
                name_there = "unifrac_r2" if head == "clade" else "unifrac_euclidean_r2"
                assert found[name] == pytest.approx(expected[name_there], rel=1e-4, abs=1e-5)
            elif theirs == head:
                assert found[name] == pytest.approx(expected["unifrac_r2"], rel=1e-4, abs=1e-5)
            else:  # at the level of the distances, if not learnt
                assert found[name] > -5
        said = f"--distance-head is {ours} here and was {theirs}" in (run / "aam.log").read_text()
        assert said == (ours != theirs)
        assert_reproduces(predict(run, study, tmp_path / "p.tsv"), run, parts=("val",))

    def test_a_frozen_base_keeps_its_clades(self, study: StudyFiles, encoders: dict[str, Path], tmp_path: Path) -> None:
        arguments = [*tune(study, encoders["both"]), "--freeze-base", "--epochs", 1, "--output-dir", tmp_path / "run"]
        outcome = aam(*arguments, "--distance-head", "euclidean")
        assert_one_line_error(outcome, 1, "--distance-head euclidean", "both", "--freeze-base")
        assert not (tmp_path / "run").exists()
        succeed(*arguments, "--distance-head", "clade")
        lacking = ["--distance-head", "both", "--unifrac-matrix", study.matrix, "--overwrite"]
        arguments = [*tune(study, encoders["clade"]), "--freeze-base", "--epochs", 1, "--output-dir", tmp_path / "run"]
        assert "what the encoder lacks to read unifrac is not learnt" in succeed(*arguments, *lacking).err

    def test_longer_sequences_than_it_has_learnt_from(
        self, study: StudyFiles, pretrained: Path, tmp_path: Path
    ) -> None:
        """They are read, and it is said."""
        folder = tmp_path / "long"
        folder.mkdir()
        succeed(
            "simulate",
            "--overwrite",
            "--output-dir",
            folder,
            "--samples",
            12,
            "--subjects",
            6,
            "--asvs",
            10,
            "--length",
            80,
        )
        arguments = ["train", "--table", folder / "table.biom", "--metadata", folder / "metadata.tsv"]
        arguments += ["--metadata-column", "age", *QUICK, "--epochs", 1, "--allow-pretrained-leak", "--val-size", 0.3]
        outcome = succeed(*arguments, "--pretrained-encoder", pretrained, "--output-dir", tmp_path / "run")
        assert "up to 80 bases" in outcome.err
        assert "up to 40" in outcome.err
        assert np.isfinite(read_predictions(tmp_path / "run" / "val_predictions.tsv")["predicted"]).all()


@pytest.mark.parametrize("option", ["--freeze-base", "--freeze-asv-encoder", "--unfreeze-after=2"])
def test_pretraining_freezes_nothing(option: str, study: StudyFiles, tmp_path: Path) -> None:
    outcome = aam(*study.pretrain, option, "--output-dir", tmp_path / "run")
    assert_one_line_error(outcome, 2, option.split("=")[0])
