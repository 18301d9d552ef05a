"""`aam predict` says which samples are like those that the model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aam.data.biom_loader import FeatureTable, load_table
from aam.data.sequences import reverse_complement
from aam.data.splits import read_splits
from aam.familiarity import read_profile
from aam.training.checkpoint import MODEL_NAME, load_model_file
from tests.end_to_end.program import (
    Outcome,
    StudyFiles,
    aam,
    assert_one_line_error,
    permute,
    read_metrics,
    succeed,
    write_table,
)

COLUMNS = ["depth", "asvs", "seen_reads", "seen_asvs", "median_length", "region"]
COLUMNS += ["distance", "distance_percentile", "flag"]


def predict(run: Path, table: Path, folder: Path, *options: object) -> tuple[Outcome, pd.DataFrame]:
    machine = ("--threads", 1, "--num-workers", 0)
    files = ("--output", folder / "p.tsv", "--familiarity", folder / "f.tsv")
    outcome = succeed("predict", "--model", run, "--table", table, *files, *machine, *options)
    table_of = pd.read_csv(folder / "f.tsv", sep="\t", index_col="sample_id", keep_default_na=False)
    predictions = pd.read_csv(folder / "p.tsv", sep="\t", index_col="sample_id")
    assert list(table_of.columns) == COLUMNS
    assert table_of.index.tolist() == predictions.index.tolist()
    return outcome, table_of


def renamed(study: StudyFiles, path: Path, names: list[str]) -> Path:
    table = load_table(study.table)
    return write_table(path, FeatureTable(table.counts, table.sample_ids, names))


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_training_samples_are_familiar(
    study: StudyFiles, trained: Path, tmp_path: Path, streaming: list[object]
) -> None:
    outcome, table = predict(trained, study.table, tmp_path, *streaming)
    known = [name for name, part in read_splits(trained / "splits.tsv").items() if part == "train"]
    assert (table.loc[known, ["seen_reads", "seen_asvs"]] == 1).all(axis=None)
    assert (table.loc[known, "distance"] < 0.02).all() and (table.loc[known, "distance_percentile"] == 0).all()
    assert set(table.loc[known, "flag"]) == {""}
    assert set(table["region"]) == {"same"} and set(table["median_length"]) == {40}
    assert "familiar: 100% of reads in ASVs seen in training (median)" in outcome.out
    assert f"{(table['flag'] != '').sum() or 'none'} of 24 samples flagged: {tmp_path / 'f.tsv'}" in outcome.out
    counts = load_table(study.table)
    assert table["depth"].tolist() == counts.counts.sum(axis=1).tolist()


def test_reverse_complements_are_said_to_be(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    turned = [reverse_complement(sequence) for sequence in load_table(study.table).feature_ids]
    outcome, table = predict(trained, renamed(study, tmp_path / "t.biom", turned), tmp_path)
    assert set(table["region"]) == {"reverse complement"}
    assert (table["seen_reads"] == 0).all()
    assert table["flag"].str.contains("unknown ASVs; reverse complement").all()
    assert "Warning: sequences look reverse-complemented: 100% of the ASVs" in outcome.err
    assert "familiar: 0% of reads" in outcome.out and "24 of 24 samples flagged" in outcome.out


def test_random_sequences_are_of_another_region(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    random = ["".join(rng.choice(list("ACGT"), 25)) for _ in range(30)]
    outcome, table = predict(trained, renamed(study, tmp_path / "t.biom", random), tmp_path)
    assert set(table["region"]) == {"other"}
    assert table["flag"].str.contains("unknown ASVs; other region; length").all()
    assert "seem to come from another region than those learnt from (" in outcome.err
    assert "Warning: ASVs here have 25 bases, those learnt from 40" in outcome.err


def test_primers_that_were_left_on_are_recognised(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    primed = ["GTGCCAGCAG" + sequence for sequence in load_table(study.table).feature_ids]
    outcome, table = predict(trained, renamed(study, tmp_path / "t.biom", primed), tmp_path)
    assert set(table["region"]) == {"other"}
    assert "begin 10 bases before those learnt from; cut what is before, primers it may be" in outcome.err


def test_predictions_are_the_same_with_and_without(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    predict(trained, study.table, tmp_path)
    machine = ("--threads", 1, "--num-workers", 0)
    alone = tmp_path / "alone.tsv"
    outcome = succeed("predict", "--model", trained, "--table", study.table, "--output", alone, *machine)
    assert alone.read_bytes() == (tmp_path / "p.tsv").read_bytes()
    assert "familiar: 100% of reads" in outcome.out
    older = without_profile(trained, tmp_path)
    outcome = succeed("predict", "--model", older, "--table", study.table, "--output", tmp_path / "o.tsv", *machine)
    assert (tmp_path / "o.tsv").read_bytes() == alone.read_bytes()
    assert "familiar" not in outcome.out
    assert (
        outcome.err == f"{older}: holds no profile of its training samples, so nobody can say how like them these are\n"
    )


def test_the_order_of_the_table_changes_nothing(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    other = permute(study, tmp_path / "other")
    (tmp_path / "one").mkdir()
    one = predict(trained, study.table, tmp_path / "one")[1]
    two = predict(trained, other.table, tmp_path / "other", "--batch-size", 3)[1].loc[one.index]
    numbers = ["distance", "distance_percentile"]
    np.testing.assert_allclose(one[numbers], two[numbers], atol=2e-2)
    pd.testing.assert_frame_equal(one.drop(columns=numbers), two.drop(columns=numbers))


def without_profile(run: Path, folder: Path) -> Path:
    """The model file as an earlier version wrote it."""
    path = folder / "older.safetensors"
    with safe_open(run / MODEL_NAME, framework="pt") as file:
        header = json.loads(file.metadata()["aam"])
    del header["training_profile"]
    tensors = {name: value for name, value in load_file(run / MODEL_NAME).items() if not name.startswith("beside.")}
    save_file(tensors, path, metadata={"aam": json.dumps(header)})
    return path


def test_what_cannot_be_written_is_refused(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    older = without_profile(trained, tmp_path)
    output = ("--table", study.table, "--output", tmp_path / "p.tsv", "--num-workers", 0)
    outcome = aam("predict", "--model", older, *output, "--familiarity", tmp_path / "f.tsv")
    assert_one_line_error(outcome, 1, older, "holds no profile", "leave --familiarity out")
    for path, words in (
        (tmp_path / "absent" / "f.tsv", "give --familiarity a file in an existing directory"),
        (study.table, "give another --familiarity"),
        (tmp_path / "p.tsv", "give --familiarity another file"),
    ):
        outcome = aam("predict", "--model", trained, *output, "--familiarity", path)
        assert_one_line_error(outcome, 1, path, words)
    assert not (tmp_path / "p.tsv").exists()


def test_a_frozen_base_and_varied_samples_give_a_profile(study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
    """Of training samples as they are, whatever was varied: those embeddings that `aam predict` finds again."""
    options = [*study.train, "--metadata-column", "age", "--pretrained-encoder", pretrained, "--freeze-base"]
    for name, varied in (("plain", ()), ("varied", ("--asv-dropout", 0.3, "--base-noise", 0.05))):
        run = tmp_path / name
        succeed(*options, *varied, "--epochs", 1, "--output-dir", run)
        table = predict(run, study.table, tmp_path)[1]
        known = [sample for sample, part in read_splits(run / "splits.tsv").items() if part == "train"]
        assert (table.loc[known, "distance"] < 0.02).all()
        profile = read_profile(load_model_file(run / MODEL_NAME), run)
        assert profile is not None and profile.samples == len(profile.embeddings) == len(known)


def test_asvs_that_were_frozen_later_are_not_those_of_the_best_model(study: StudyFiles, tmp_path: Path) -> None:
    """A model of an epoch before the ASV encoder was frozen, and of one after it."""
    options = [*study.train, "--metadata-column", "age", "--freeze-asvs-after", 2, "--lr", 0.3]
    for name, chosen, epochs in (("first", ("--patience", 5), (1, 2)), ("last", (), (3,))):
        run = tmp_path / name
        succeed(*options, *chosen, "--epochs", 3, "--output-dir", run)
        assert read_metrics(run)["best_epoch"] in epochs
        table = predict(run, study.table, tmp_path)[1]
        known = [sample for sample, part in read_splits(run / "splits.tsv").items() if part == "train"]
        assert (table.loc[known, "distance"] < 0.02).all(), name


def test_folds_speak_for_the_first(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "folds"
    succeed(*study.train, "--metadata-column", "age", "--folds", 2, "--epochs", 1, "--output-dir", run)
    predict(run / "fold_0", study.table, tmp_path)
    first = (tmp_path / "f.tsv").read_bytes()
    predict(run, study.table, tmp_path)
    assert (tmp_path / "f.tsv").read_bytes() == first
