"""`aam tune` on real files: it searches, goes on, prunes, and ends in options that `aam train` takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from aam.cli.options import read_config
from aam.data.splits import read_splits
from aam.integrations.optuna import STARTUP_TRIALS, Outcome, StudyOptions, open_search
from aam.search_space import DEFAULT_SPACE, read_space
from aam.trials import TrialValue
from tests.end_to_end.program import QUICK, StudyFiles, aam, assert_one_line_error, read_metrics, succeed

SPACE = """
lr: {low: 1e-4, high: 1e-2, log: true}
dropout: {low: 0.0, high: 0.4}
attention-heads: {choices: [1, 2]}
"""
MODEL = ["--embedding-dim", "16", "--attention-layers", "1", "--clades", "16"]


def arguments(study: StudyFiles, out: Path, *, space: str = SPACE) -> list[object]:
    path = out.parent / f"{out.name}_space.yaml"
    path.write_text(space)
    return [
        *("tune", "--table", study.table, "--metadata", study.metadata, *MODEL, *QUICK),
        *("--group-column", "subject_id", "--test-size", "0.25", "--space", path, "--output-dir", out),
    ]


def age(study: StudyFiles, out: Path, **options: str) -> list[object]:
    return [*arguments(study, out, **options), "--metadata-column", "age"]


def inner_fold(out: Path) -> pd.Series:
    """The fold of the training samples in which a sample judges; -1 where it never does."""
    return pd.read_csv(out / "folds.tsv", sep="\t", index_col=0)["fold"].fillna(-1).astype(int)


def trials(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "trials.tsv", sep="\t")


def as_if_begun_with_one_epoch(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    config["train"]["epochs"] = 1
    (out / "config.json").write_text(json.dumps(config))
    stored = optuna.load_study(study_name=out.name, storage=f"sqlite:///{out / 'study.db'}")
    settings = json.loads(stored.user_attrs["aam"])
    settings["config"]["train"]["epochs"] = 1
    stored.set_user_attr("aam", json.dumps(settings))


@pytest.fixture(scope="module")
def tuned(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials, then the same study continued to four."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    succeed(*age(study, out), "--trials", 2, "--folds", 2)
    outcome = succeed("tune", "--resume", "--trials", 4, "--output-dir", out)
    assert "3 of 4 done in " in outcome.err and "the best is trial " in outcome.err
    assert "has the usual values of `aam train`" in outcome.out
    return out


@pytest.mark.slow
def test_a_study_that_is_continued_is_one_that_was_not_stopped(study: StudyFiles, tuned: Path, tmp_path: Path) -> None:
    stored = optuna.load_study(study_name="out", storage=f"sqlite:///{tuned / 'study.db'}")
    assert [trial.state for trial in stored.trials] == [TrialState.COMPLETE] * 4
    whole = tmp_path / "whole"
    succeed(*age(study, whole), "--trials", 4, "--folds", 2)
    columns = ["number", "state", "value", "lr", "dropout", "attention-heads"]
    pd.testing.assert_frame_equal(trials(tuned)[columns], trials(whole)[columns], check_exact=True)
    assert trials(tuned)["lr"].nunique() == 4
    first = trials(tuned).iloc[0]  # what `aam train` takes by itself
    assert first[["lr", "dropout", "attention-heads"]].tolist() == [1e-3, 0.1, 2]


@pytest.mark.slow
def test_held_out_samples_have_no_part_in_it(study: StudyFiles, tuned: Path, tmp_path: Path) -> None:
    split, folds = read_splits(tuned / "splits.tsv"), inner_fold(tuned)
    subjects = pd.read_csv(study.metadata, sep="\t", index_col=0)["subject_id"]
    assert {name for name, fold in folds.items() if fold >= 0} == {
        name for name, part in split.items() if part == "train"
    }
    assert set(folds) == {-1, 0, 1}
    of_fold = {fold: {subjects[name] for name, own in folds.items() if own == fold} for fold in (-1, 0, 1)}
    assert not (of_fold[0] & of_fold[1] or of_fold[-1] & (of_fold[0] | of_fold[1]))
    # Other ages of the samples that are held out change no trial, in one of which they would be judged or learnt.
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    metadata["age"] = metadata["age"].astype(float)
    held_out = [name for name, part in split.items() if part != "train"]
    metadata.loc[held_out, "age"] = 1e6
    metadata.to_csv(tmp_path / "metadata.tsv", sep="\t")
    out = tmp_path / "other"
    call = [tmp_path / "metadata.tsv" if part == study.metadata else part for part in age(study, out)]
    succeed(*call, "--trials", 2, "--folds", 2)
    assert trials(out)["value"].tolist() == trials(tuned)["value"].tolist()[:2]


@pytest.mark.slow
def test_the_best_options_are_trained(tuned: Path, tmp_path: Path) -> None:
    best = trials(tuned).sort_values("value").iloc[0]
    found = read_config(tuned / "best_config.json")
    assert found["lr"] == best["lr"]
    assert found["attention_heads"] == best["attention-heads"]
    assert "output_dir" not in found
    succeed("train", "--config", tuned / "best_config.json", "--output-dir", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optim"]["lr"] == best["lr"]
    assert config["model"]["dropout"] == best["dropout"]
    assert read_splits(tmp_path / "run" / "splits.tsv") == read_splits(tuned / "splits.tsv")
    assert read_metrics(tmp_path / "run")["test"]["mae"] > 0
    for name in ("trials", "importances", "parallel_coordinates"):
        assert (tuned / "plots" / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_one_inner_split_gives_what_a_run_on_it_comes_to(study: StudyFiles, tmp_path: Path) -> None:
    """A trial is `aam train` on the inner split: the run's own validation says the same."""
    out = tmp_path / "out"
    succeed(*age(study, out), "--trials", 1, "--folds", 1, "--pruner", "hyperband")
    inner, split = inner_fold(out), read_splits(out / "splits.tsv")
    learnt = [name for name, part in split.items() if part == "train"]
    rows = [(name, "val" if inner[name] == 0 else "train") for name in learnt]
    table = pd.DataFrame(rows, columns=["sample_id", "split"])
    table.to_csv(tmp_path / "inner.tsv", sep="\t", index=False)
    config = json.loads((out / "best_config.json").read_text())
    del config["data"]["test_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    succeed("train", "--config", tmp_path / "config.json", "--splits", tmp_path / "inner.tsv", "--output-dir", run)
    assert read_metrics(run)["val"]["mae"] == pytest.approx(trials(out)["value"][0], rel=1e-5)


@pytest.mark.slow
def test_a_trial_that_is_far_worse_is_pruned(study: StudyFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed(*age(study, out), "--trials", 1, "--folds", 2)
    stored = optuna.load_study(study_name="out", storage=f"sqlite:///{out / 'study.db'}")
    perfect = dict.fromkeys(range(1, 21), 0.0)
    for _ in range(5):
        stored.add_trial(
            optuna.create_trial(
                params=stored.trials[0].params,
                distributions=stored.trials[0].distributions,
                value=0.0,
                intermediate_values=perfect,
            )
        )
    succeed("tune", "--resume", "--trials", 7, "--output-dir", out)
    last = optuna.load_study(study_name="out", storage=f"sqlite:///{out / 'study.db'}").trials[-1]
    assert last.state == TrialState.PRUNED
    assert list(last.intermediate_values) == [5]  # after the first of two epochs of the first of two folds
    assert trials(out)["state"].tolist() == ["complete"] * 6 + ["pruned"]
    succeed("tune", "--resume", "--trials", 8, "--pruner", "none", "--output-dir", out)
    assert trials(out)["state"].tolist()[-1] == "complete"


@pytest.mark.slow
def test_classes_are_judged_by_balanced_accuracy(study: StudyFiles, tmp_path: Path) -> None:
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    metadata["old"] = np.where(metadata["age"].astype(float) > metadata["age"].astype(float).median(), "yes", "no")
    metadata.to_csv(tmp_path / "m.tsv", sep="\t")
    call = [*arguments(study, tmp_path / "out"), "--metadata", tmp_path / "m.tsv", "--metadata-column", "old"]
    call[call.index("--group-column") : call.index("--group-column") + 2] = []
    outcome = succeed(*call, "--classifier", "--trials", 2, "--folds", 2, "--parallel", 2)
    assert "balanced_accuracy" in outcome.out
    found = trials(tmp_path / "out")
    assert found["value"].between(0, 1).all()
    best = json.loads((tmp_path / "out" / "best_config.json").read_text())
    assert best["optim"]["lr"] == found.sort_values("value", kind="stable", ascending=False).iloc[0]["lr"]


@pytest.mark.slow
def test_a_trial_that_diverges_has_failed_and_is_not_the_end(study: StudyFiles, tmp_path: Path) -> None:
    space = "lr: {choices: [0.001, 1.0e+30]}\n"
    out = tmp_path / "out"
    succeed(*age(study, out, space=space), "--trials", 4, "--folds", 1)
    found = trials(out)
    assert set(found.loc[found["lr"] > 1, "state"]) == {"failed"}
    assert set(found.loc[found["lr"] < 1, "state"]) == {"complete"}
    assert found.loc[found["lr"] > 1, "why"].str.len().min() > 20


@pytest.mark.slow
def test_a_trial_for_which_there_is_no_memory_has_failed_and_is_not_the_end(study: StudyFiles, tmp_path: Path) -> None:
    space = "head-width: {choices: [[], [10000000000000]]}\n"
    out = tmp_path / "out"
    succeed(*age(study, out, space=space), "--trials", 4, "--folds", 1)
    found = trials(out)
    too_large = found["head-width"] != "[]"
    assert set(found.loc[too_large, "state"]) == {"failed"}
    assert set(found.loc[~too_large, "state"]) == {"complete"}
    assert found.loc[too_large, "why"].str.contains("out of memory").all()


@pytest.mark.slow
def test_a_search_in_which_all_fail_says_why(study: StudyFiles, tmp_path: Path) -> None:
    call = [*age(study, tmp_path / "out", space="lr: {choices: [1.0e+30, 1.0e+31]}"), "--trials", 2, "--folds", 1]
    outcome = aam(*call)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"Error: {tmp_path / 'out'}: none of 2 trials")
    assert "trial 0: " in outcome.err.splitlines()[-1]
    assert trials(tmp_path / "out")["state"].tolist() == ["failed"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_trial_is_redone(study: StudyFiles, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    call = [*age(study, out), "--trials", 2, "--folds", 1, "--epochs", 100000]
    process = subprocess.Popen(
        [sys.executable, "-m", "aam", *map(str, call)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    url = f"sqlite:///{out / 'study.db'}"
    deadline = time.monotonic() + 100
    begun: list[optuna.trial.FrozenTrial] = []
    while not begun and time.monotonic() < deadline:
        time.sleep(0.2)
        if (out / "study.json").exists():
            begun = optuna.load_study(study_name="out", storage=url).trials
    time.sleep(3)  # by then it trains
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number), told
    first = optuna.load_study(study_name="out", storage=url).trials[0]
    as_if_begun_with_one_epoch(out)
    succeed("tune", "--resume", "--trials", 2, "--output-dir", out)
    found = trials(out)
    assert found["state"].tolist() == ["interrupted", "complete", "complete"]
    again = optuna.load_study(study_name="out", storage=url).trials[1]
    assert again.params == first.params
    assert again.user_attrs["again"] == 0


@pytest.mark.slow
def test_a_parallel_search_that_is_stopped_leaves_options_of_a_run_alone(study: StudyFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = [*age(study, out), "--trials", 50, "--folds", 1, "--parallel", 2]
    for option in ("--threads", "--num-workers"):
        call[call.index(option) : call.index(option) + 2] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "aam", *map(str, call)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 100
    while not (out / "best_config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, told
    best = json.loads((out / "best_config.json").read_text())
    assert not best["train"].keys() & {"threads", "num_workers"}  # which are those of a share of the cores


def test_refusals(study: StudyFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refuse(code: int, *words: str, space: str = SPACE, more: tuple[object, ...] = ()) -> None:
        assert_one_line_error(aam(*age(study, out, space=space), *more), code, *words)
        assert not out.exists()

    path = str(tmp_path / "out_space.yaml")
    refuse(1, path, "batch: is no option", space="batch: {low: 1, high: 2}")
    refuse(1, path, "dropout: --dropout 2.0", space="dropout: {low: 0, high: 2}")
    refuse(1, path, "lr: is searched and given", more=("--lr", "0.1"))
    refuse(1, "no study to resume", more=("--resume",))
    refuse(2, "give one of them", more=("--resume", "--overwrite"))
    refuse(1, "--folds 7", more=("--folds", "7"))
    refuse(1, "leave all but one out", more=("--metadata-column", "other"))
    refuse(2, "--dropout 3", space="lr: {low: 0.1, high: 0.2}", more=("--dropout", "3"))
    refuse(2, "--trials", more=("--trials", "0"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.ckpt").touch()
    assert_one_line_error(aam(*age(study, out), "--output-dir", run, "--overwrite"), 1, str(run), "holds a run")


def test_a_storage_that_cannot_be_used(study: StudyFiles, tmp_path: Path) -> None:
    for url in ("nonsense://x", "sqlite:////no/such/folder/x.db", "no url at all"):
        assert_one_line_error(aam(*age(study, tmp_path / "out"), "--storage", url), 1, "--storage", url)


@pytest.mark.slow
def test_a_study_stays_with_the_encoder_that_it_began_with(study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(pretrained, run)
    call = [*age(study, out, space="lr: {low: 1e-4, high: 1e-2}"), "--pretrained-encoder", run]
    for options in (MODEL, ["--group-column", "subject_id", "--test-size", "0.25"]):  # which it brings with it
        place = call.index(options[0])
        assert call[place : place + len(options)] == options
        call[place : place + len(options)] = []
    succeed(*call, "--metadata", study.metadata, "--trials", 1, "--folds", 1)
    encoder = run / "best_model.safetensors"
    weights = load_file(encoder)
    with safe_open(encoder, "numpy") as file:
        header = file.metadata()
    save_file({name: np.asarray(value + 1) for name, value in weights.items()}, encoder, header)
    resumed = aam("tune", "--resume", "--trials", 2, "--output-dir", out)
    assert resumed.code == 1
    assert "the file of --pretrained-encoder is another than when it was begun" in resumed.err.splitlines()[-1]


@pytest.mark.slow
def test_a_study_goes_on_elsewhere_and_in_a_storage_of_its_own(study: StudyFiles, tmp_path: Path) -> None:
    storage = ("--storage", f"sqlite:///{tmp_path / 'all.db'}")
    for number, where in enumerate(((), storage)):
        out = tmp_path / f"out{number}"
        succeed(*age(study, out), "--trials", 1, "--folds", 1, *where)
        moved = out.rename(tmp_path / f"moved{number}")
        if where:
            call = ("tune", "--resume", "--output-dir", moved)
            assert_one_line_error(aam(*call), 1, "was begun with --storage; give it again")
            assert not (moved / "study.db").exists()
        succeed("tune", "--resume", "--trials", 2, "--output-dir", moved, *where)
        assert trials(moved)["state"].tolist() == ["complete"] * 2


@pytest.mark.slow
def test_a_study_is_not_overwritten_where_its_storage_cannot_be(study: StudyFiles, tuned: Path) -> None:
    before = {path.name: path.read_bytes() for path in tuned.iterdir() if path.is_file()}
    refused = aam(*age(study, tuned), "--overwrite", "--storage", "sqlite:////no/such/folder/x.db")
    assert_one_line_error(refused, 1, "--storage")
    assert {path.name: path.read_bytes() for path in tuned.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_a_study_stays_what_it_was(study: StudyFiles, tuned: Path, tmp_path: Path) -> None:
    def refuse(*words: str, more: tuple[object, ...]) -> None:
        call = ("tune", "--output-dir", tuned, "--resume", "--trials", 4, *more)
        assert_one_line_error(aam(*call), 1, *words)

    before = (tuned / "trials.tsv").read_bytes()
    other = tmp_path / "other.yaml"
    other.write_text("dropout: {low: 0.0, high: 0.3}\n")
    refuse("--folds 2", "--folds 3", more=("--folds", 3))
    refuse("was begun with --seed 0", more=("--seed", 1))
    refuse("was begun with --epochs 2", more=("--epochs", 3))
    refuse("was begun with --patience None", more=("--patience", 1))
    refuse("--space is another", more=("--space", other))
    assert_one_line_error(aam(*age(study, tuned), "--trials", 4), 1, "holds a study already", "--resume")
    assert (tuned / "trials.tsv").read_bytes() == before


def test_draws_are_those_of_a_study_in_which_none_was_interrupted(tmp_path: Path) -> None:
    options = StudyOptions(f"sqlite:///{tmp_path / 'study.db'}", "whole", "none", 1, 0)
    space = read_space(DEFAULT_SPACE)
    whole = open_search(options, space, lower_is_better=True)
    expected = [whole.ask().values for _ in range(3)]
    search = open_search(options._replace(name="interrupted"), space, lower_is_better=True)
    found = [search.ask().values]
    search.redo(search.ask().number)
    found += [search.ask().values, search.ask().values]
    assert found == expected


def test_a_trial_that_was_killed_twice_has_failed(tmp_path: Path) -> None:
    options = StudyOptions(f"sqlite:///{tmp_path / 'study.db'}", "s", "none", 1, 0)
    search = open_search(options, read_space(DEFAULT_SPACE), lower_is_better=True)
    asked = [search.ask() for _ in range(3)]
    search.redo(asked[0].number)  # which a signal has stopped
    assert search.redo_killed() == 2
    again = [search.ask() for _ in range(3)]
    assert [one.values for one in again] == [one.values for one in asked]
    search.redo(again[2].number)
    assert search.redo_killed() == 1  # the first, which was killed for the first time
    states = [trial.state for trial in search.trials()]
    assert states == [*["interrupted"] * 4, "failed", "interrupted", "waiting", "waiting"]
    assert search.trials()[4].why == "its process was killed twice, out of memory perhaps"


def test_none_is_pruned_within_three_tenths(tmp_path: Path) -> None:
    options = StudyOptions(f"sqlite:///{tmp_path / 'study.db'}", "s", "median", 1, 0)
    search = open_search(options, read_space(DEFAULT_SPACE), lower_is_better=True)
    for _ in range(STARTUP_TRIALS):
        asked = search.ask()
        for step in range(1, 11):
            search.report(asked, step, 0.0)
        search.tell(asked, Outcome(TrialValue(0.0, False)))
    trial = search.study.ask(search.distributions)
    pruned = []
    for step in range(1, 5):
        trial.report(1.0, step)
        pruned.append(trial.should_prune())
    assert pruned == [False, False, True, True]


def test_draws_depend_on_the_number_of_the_trial(tmp_path: Path) -> None:
    space = read_space(DEFAULT_SPACE)
    options = StudyOptions(f"sqlite:///{tmp_path / 'study.db'}", "s", "none", 1, 0)
    search = open_search(options, space, lower_is_better=True)
    first, second = search.ask(), search.ask()
    assert first.values != second.values
    again = open_search(options, space, lower_is_better=True, overwrite=True)
    assert again.ask().values == first.values
    reopened = open_search(options, space, lower_is_better=True, resume=True)
    assert reopened.ask().values == second.values
