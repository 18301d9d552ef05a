"""Networks that predict together with a classical model: what each says, with which weight, in one file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aam.data.biom_loader import load_table
from aam.joined import Joined, best_share
from aam.training.ensemble import load_ensemble
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    predict,
    read_metrics,
    read_predictions,
    succeed,
    write_table,
)

pytestmark = pytest.mark.slow
NUMBER = ["--metadata-column", "age", "--group-column", "subject_id"]


@pytest.fixture(scope="module")
def folds(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "folds"
    options = ["--folds", 2, "--seeds", 2, "--epochs", 4, "--join", "linear"]
    succeed(*study.train, *NUMBER, *options, "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def classes(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "classes"
    options = ["--metadata-column", "group", "--classifier", "--val-size", 0.4, "--test-size", 0.2, "--epochs", 4]
    options += ["--rarefy-depth", 200]
    succeed(*study.train, *options, "--join", "extra_trees", "--plots", "--output-dir", path)
    return path


class TestFolds:
    def test_the_classical_part_is_that_of_aam_baseline(self, study: StudyFiles, folds: Path, tmp_path: Path) -> None:
        files = ["--table", study.table, "--metadata", study.metadata]
        succeed("baseline", *files, *NUMBER, "--folds", 2, "--model", "linear", "--output-dir", tmp_path / "b")
        expected = read_predictions(tmp_path / "b" / "linear_oof_predictions.tsv")
        found = read_predictions(folds / "oof_classical_predictions.tsv")
        np.testing.assert_allclose(found["predicted"], expected["predicted"][found.index], rtol=1e-5)

    def test_each_fold_is_joined_by_what_the_others_say(self, folds: Path) -> None:
        network, classical, oof = (
            read_predictions(folds / f"oof_{name}predictions.tsv") for name in ("network_", "classical_", "")
        )
        told = read_metrics(folds)["joined"]
        for fold in range(2):
            mean = sum(
                read_predictions(folds / f"fold_{fold}_seed_{seed}" / "test_predictions.tsv")["predicted"]
                for seed in range(2)
            )
            here = oof.index[oof["fold"] == fold]
            np.testing.assert_allclose(network["predicted"][here], mean[here] / 2, rtol=1e-6)
            others = oof.index[oof["fold"] != fold]
            given = [table.loc[others, ["predicted"]].to_numpy() for table in (network, classical)]
            share = best_share(*given, oof.loc[others, "actual"].to_numpy(), False)
            assert told["share_in_folds"][fold] == share
            expected = share * network["predicted"] + (1 - share) * classical["predicted"]
            np.testing.assert_allclose(oof["predicted"][here], expected[here], rtol=1e-6)
        for name, table in (("network", network), ("linear", classical)):
            error = (table["predicted"] - table["actual"]).abs().mean()
            assert told["alone"][name]["oof"]["mae"] == pytest.approx(error)
        assert read_metrics(folds)["oof"]["mae"] == pytest.approx((oof["predicted"] - oof["actual"]).abs().mean())

    def test_one_file_predicts_as_all_of_them(self, study: StudyFiles, folds: Path, tmp_path: Path) -> None:
        names = [f"fold_{fold}_seed_{seed}" for fold in range(2) for seed in range(2)]
        each = [predict(folds / name, study.table, tmp_path / f"{name}.tsv")["predicted"] for name in names]
        found = predict(folds / "best_model.safetensors", study.table, tmp_path / "all.tsv", "--interval", 0.5)
        share = read_metrics(folds)["joined"]["share_of_network"]
        assert share < 1  # the network of four epochs knows nothing
        ensemble = load_ensemble(folds / "best_model.safetensors")
        arrays = {name: tensor.numpy() for name, tensor in ensemble.beside.items()}
        joined = Joined.read(ensemble.header["joined"], arrays)
        table = load_table(study.table)
        classical = [
            pd.Series(model.answers(table.counts, table.feature_ids)[0][:, 0], table.sample_ids)
            for model in joined.models
        ]
        held_out = read_predictions(folds / "oof_classical_predictions.tsv")
        fold_of = read_predictions(folds / "oof_predictions.tsv")["fold"]
        for fold, answers in enumerate(classical):
            here = fold_of.index[fold_of == fold]
            np.testing.assert_allclose(answers[here], held_out["predicted"][here], rtol=1e-6)
        expected = share * sum(each) / 4 + (1 - share) * sum(classical)[each[0].index] / 2
        np.testing.assert_allclose(found["predicted"], expected[found.index], rtol=1e-6)
        assert (found["lower"] < found["predicted"]).all()
        assert "linear" in succeed("info", folds).out

    def test_another_is_joined_when_resumed(self, study: StudyFiles, folds: Path, tmp_path: Path) -> None:
        """What is joined is settled when all networks have learnt; another may be asked for afterwards."""
        shutil.copytree(folds, tmp_path / "run")
        (tmp_path / "run" / "metrics.json").unlink()
        outcome = succeed("train", "--resume", "--join", "random_forest", "--output-dir", tmp_path / "run")
        assert "random forest alone" in outcome.out
        assert read_metrics(tmp_path / "run")["joined"]["model"] == "random_forest"


class TestOneRun:
    def test_files_and_numbers(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        parts = {f"{part}_{name}predictions.tsv" for part in ("val", "test") for name in ("", "network_", "classical_")}
        assert parts <= files_below(classes)
        assert (classes / "plots" / "test_predictions.png").is_file()
        told = read_metrics(classes)["joined"]
        share = told["share_of_network"]
        column = [name for name in read_predictions(classes / "val_predictions.tsv").columns if "prob_" in name]
        for part in ("val", "test"):
            network, classical, both = (
                read_predictions(classes / f"{part}_{name}predictions.tsv") for name in ("network_", "classical_", "")
            )
            expected = share * network[column] + (1 - share) * classical[column]
            np.testing.assert_allclose(both[column], expected, atol=1e-9)
        found = predict(classes, study.table, tmp_path / "p.tsv")
        np.testing.assert_allclose(found.loc[both.index, column], both[column], atol=1e-5)
        files = ["--table", study.table, "--metadata", study.metadata, "--metadata-column", "group", "--classifier"]
        files += ["--rarefy-depth", 200]
        options = ["--splits", classes / "splits.tsv", "--model", "extra_trees", "--output-dir", tmp_path / "b"]
        succeed("baseline", *files, *options)
        val = read_predictions(classes / "val_classical_predictions.tsv")
        expected = read_predictions(tmp_path / "b" / "extra_trees_val_predictions.tsv")
        np.testing.assert_allclose(val[column], expected.loc[val.index, column], atol=1e-6)

    def test_samples_of_other_asvs(self, study: StudyFiles, classes: Path, tmp_path: Path) -> None:
        """The classical model knows none of them, and says so in place of guessing."""
        table = load_table(study.table)
        turned = [name.translate(str.maketrans("ACGT", "CATG")) for name in table.feature_ids]
        other = write_table(tmp_path / "other.biom", replace(table, feature_ids=turned))
        outcome = succeed("predict", "--model", classes, "--table", other, "--output", tmp_path / "p.tsv")
        assert "22 samples have no ASV that the joined extra trees reads" in outcome.err


def test_bounds_hold(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ages = pd.read_csv(study.metadata, sep="\t", index_col=0)["age"]
    options = ["--val-size", 0.5, "--epochs", 3, "--target-min", ages.min(), "--target-max", ages.max()]
    succeed(*study.train, *NUMBER, *options, "--join", "linear", "--output-dir", run)
    found = predict(run, study.table, tmp_path / "p.tsv")["predicted"]
    assert found.min() >= ages.min() - 1e-9 and found.max() <= ages.max() + 1e-9


def test_seeds(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--val-size", 0.4, "--epochs", 3, "--seeds", 2, "--join", "random_forest", "--loss", "quantile"]
    outcome = succeed(*study.train, *NUMBER, *options, "--output-dir", run)
    assert "network alone" in outcome.out
    val = read_predictions(run / "val_predictions.tsv")
    found = predict(run, study.table, tmp_path / "p.tsv")
    np.testing.assert_allclose(found.loc[val.index, "predicted"], val["predicted"], rtol=1e-5)
    assert not (run / "seed_0" / "val_classical_predictions.tsv").exists()


def test_refusals(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = [*study.train, "--output-dir", run, "--join", "linear"]
    outcome = aam(*train, "--metadata-column", "age", "--patience", 3)
    assert_one_line_error(outcome, 2, "--join linear", "--folds")
    outcome = aam(*train, "--metadata-column", "age", "--metadata-column", "host_age")
    assert_one_line_error(outcome, 2, "--join linear", "age and host_age")
    splits = tmp_path / "splits.tsv"
    names = pd.read_csv(study.metadata, sep="\t", index_col=0).index
    splits.write_text(
        "sample_id\tsplit\n" + "".join(f"{n}\t{'test' if i % 3 == 0 else 'train'}\n" for i, n in enumerate(names))
    )
    outcome = aam(*train, "--metadata-column", "age", "--splits", splits)
    assert_one_line_error(outcome, 1, "--join linear", "--val-size")
    outcome = aam(*train, "--metadata-column", "age", "--splits", splits, "--seeds", 2)
    assert_one_line_error(outcome, 1, "--join linear", "--val-size")
    assert not run.exists()


def test_damaged_files(study: StudyFiles, classes: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = classes / "best_model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["aam"])
    broken = tmp_path / "broken.safetensors"
    for change in ({"share": "much"}, {"models": []}):
        changed = header | {"joined": header["joined"] | change}
        save_file(load_file(path), broken, metadata={"aam": json.dumps(changed)})
        files = ["--table", study.table, "--output", tmp_path / "p.tsv", "--num-workers", 0]
        assert_one_line_error(aam("predict", "--model", broken, *files), 1, broken, "damaged")
