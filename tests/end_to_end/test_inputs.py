"""Inputs as users have them: tables in their file, several studies, stripes, artifacts, every format of distances."""

from __future__ import annotations

import csv
from pathlib import Path

import biom
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from aam.data.biom_loader import FeatureTable, load_table
from aam.data.distances import write_distances_h5
from aam.data.simulate import simulate_study, write_study
from tests.end_to_end.program import (
    TINY,
    StudyFiles,
    aam,
    assert_one_line_error,
    read_metrics,
    read_predictions,
    succeed,
    write_table,
)

SAME = ("history.csv", "val_predictions.tsv", "test_predictions.tsv", "metrics.json", "splits.tsv")


def outcome(run: Path) -> dict[str, str]:
    """What a run came to, as text."""
    return {name: (run / name).read_text() for name in SAME if (run / name).exists()}


def read_matrix(path: Path) -> tuple[list[str], np.ndarray]:
    with h5py.File(path) as file:
        return [name.decode() for name in file["order"][()]], file["matrix"][()]


def write_text(path: Path, rows: list[str], columns: list[str], values: np.ndarray, separator: str = "\t") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(["", *columns])
        writer.writerows([name, *map(repr, row)] for name, row in zip(rows, values.astype(float).tolist(), strict=True))
    return path


class TestStreaming:
    OPTIONS = ("--metadata-column", "age", "--group-column", "subject_id", "--test-size", 0.25)
    AUGMENTED = ("--augment-rarefy", "50:200", "--asv-dropout", 0.1, "--mix-samples", 0.3, "--count-noise", 0.1)

    @pytest.mark.parametrize(
        "options",
        [(), ("--rarefy-depth", 200, "--token-limit", 8, "--asv-sampling", "random"), AUGMENTED],
        ids=["plain", "rarefied", "augmented"],
    )
    def test_training_and_prediction_are_the_same(
        self, study: StudyFiles, tmp_path: Path, options: tuple[object, ...]
    ) -> None:
        matrix = ("--unifrac-matrix", study.matrix)
        for name, streaming in (("memory", ()), ("file", ("--streaming", "--num-workers", 2))):
            succeed(*study.train, *matrix, *self.OPTIONS, *options, *streaming, "--output-dir", tmp_path / name)
            output = ("--output", tmp_path / f"{name}.tsv", *streaming)
            succeed("predict", "--model", tmp_path / "memory", "--table", study.table, *output)
        assert outcome(tmp_path / "memory") == outcome(tmp_path / "file")
        assert (tmp_path / "memory.tsv").read_text() == (tmp_path / "file.tsv").read_text()

    def test_pretraining_is_the_same(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        options = ("--metadata", study.metadata, "--group-column", "subject_id", "--test-size", 0.25)
        more = ("--nuc-asv-fraction", 0.5, "--streaming")
        succeed(*study.pretrain, *options, *more, "--output-dir", tmp_path / "run")
        assert outcome(tmp_path / "run") == outcome(pretrained)

    def test_a_table_that_cannot_be_read_by_sample(self, study: StudyFiles, tmp_path: Path) -> None:
        table = tmp_path / "table.tsv"
        table.write_text(biom.load_table(str(study.table)).to_tsv())
        options = ("--unifrac-matrix", study.matrix, "--streaming", "--output-dir", tmp_path / "run")
        assert_one_line_error(aam("pretrain", "--table", table, *options), 1, table, "--streaming", "BIOM 2.1")

    def test_metadata_within_the_table(self, study: StudyFiles, tmp_path: Path) -> None:
        """A table that is streamed says of its samples what it says when it is read whole."""
        table = embedded(study, tmp_path / "table.biom")
        arguments = ("train", "--table", table, *TINY, "--metadata-column", "age")
        for name, streaming in (("memory", ()), ("file", ("--streaming",))):
            succeed(*arguments, *streaming, "--output-dir", tmp_path / name)
        assert outcome(tmp_path / "memory") == outcome(tmp_path / "file")


def embedded(study: StudyFiles, path: Path) -> Path:
    """The table of a study that holds its metadata too."""
    table = biom.load_table(str(study.table))
    frame = pd.read_csv(study.metadata, sep="\t", index_col=0, dtype=str, comment="#")
    table.add_metadata(frame.to_dict(orient="index"), axis="sample")
    with h5py.File(path, "w") as file:
        table.to_hdf5(file, "tests")
    return path


def test_metadata_within_the_table(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    table = embedded(study, tmp_path / "table.biom")
    options = ("--unifrac-matrix", study.matrix, "--metadata-column", "age", "--test-size", 0.25)
    arguments = (*options, "--nuc-asv-fraction", 0.5, "--output-dir", tmp_path / "run")
    succeed("train", "--table", table, *TINY, *arguments)
    assert outcome(tmp_path / "run") == outcome(trained)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFiles, StudyFiles]:
    """Two studies of different samples that share some ASVs."""
    from aam.data.distances import unweighted_unifrac

    found = []
    for name in ("gut", "skin"):
        folder = tmp_path_factory.mktemp(name)
        study = simulate_study(samples=16, asvs=30, subjects=8, length=40, depth=300, seed=len(name))
        sample_ids = [f"{name}.{sample}" for sample in study.sample_ids]
        write_study(study, folder)
        table = load_table(folder / "table.biom")
        write_table(folder / f"{name}.biom", FeatureTable(table.counts, sample_ids, table.feature_ids))
        (folder / "table.biom").unlink()
        (folder / f"{name}.biom").rename(folder / "table.biom")
        header, *rows = (folder / "metadata.tsv").read_text().splitlines()
        rows = [row if row.startswith("#") else f"{name}.{row}" for row in rows]
        (folder / "metadata.tsv").write_text("\n".join([header, *rows]) + "\n")
        distances = unweighted_unifrac(study.counts, study.sequences, study.tree, study.sample_ids)
        write_distances_h5(folder / "unifrac.h5", sample_ids, distances)
        found.append(StudyFiles(folder))
    return found[0], found[1]


def of_studies(*studies: StudyFiles) -> list[object]:
    """`--table` and `--unifrac-matrix` of each."""
    return [part for study in studies for part in ("--table", study.table, "--unifrac-matrix", study.matrix)]


class TestStudies:
    @pytest.mark.parametrize("batches", ["mix", "alternate"])
    def test_metrics_are_by_study(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path, batches: str) -> None:
        options = ("--study-batches", batches, "--output-dir", tmp_path / "run")
        succeed("pretrain", *of_studies(*studies), *TINY, "--val-size", 0.4, *options)
        metrics = read_metrics(tmp_path / "run")["val"]
        names = [study.folder.name for study in studies]
        for name in names:
            assert {f"unifrac_mae/{name}", f"unifrac_euclidean_r2/{name}"} <= metrics.keys()
        by_study = [metrics[f"unifrac_mae/{name}"] for name in names]
        assert min(by_study) <= metrics["unifrac_mae"] <= max(by_study)
        assert read_predictions_split(tmp_path / "run").index.str.split(".").str[0].nunique() == 2

    def test_their_order_changes_no_sample(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path) -> None:
        for name, order in (("one", studies), ("other", studies[::-1])):
            succeed("pretrain", *of_studies(*order), *TINY, "--output-dir", tmp_path / name)
        one, other = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "other"))
        pd.testing.assert_frame_equal(one, other[one.columns])
        assert read_metrics(tmp_path / "one") == read_metrics(tmp_path / "other")

    def test_streaming(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path) -> None:
        metadata = [part for study in studies for part in ("--metadata", study.metadata)]
        arguments = [*of_studies(*studies), *metadata, "--metadata-column", "age", "--rarefy-depth", 200, *TINY]
        for name, streaming in (("memory", ()), ("file", ("--streaming",))):
            succeed("train", *arguments, *streaming, "--output-dir", tmp_path / name)
        assert outcome(tmp_path / "memory") == outcome(tmp_path / "file")

    def test_one_study_is_left_out(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path) -> None:
        left_out = studies[1].folder.name
        options = ("--group-column", "study", "--leave-out", left_out, "--output-dir", tmp_path / "run")
        succeed("pretrain", *of_studies(*studies), *TINY, *options)
        split = read_predictions_split(tmp_path / "run")
        skin = split.index.str.startswith("skin")
        assert set(split[skin]) == {"test"}
        assert "test" not in set(split[~skin])
        metrics = read_metrics(tmp_path / "run")["test"]
        assert metrics[f"unifrac_mae/{left_out}"] == metrics["unifrac_mae"]

    def test_one_study_is_left_out_in_each_fold(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path) -> None:
        options = ("--group-column", "study", "--leave-one-group-out", "--epochs", 1, "--output-dir", tmp_path / "run")
        metadata = [part for study in studies for part in ("--metadata", study.metadata)]
        succeed("train", *of_studies(*studies), *metadata, "--metadata-column", "age", *TINY, *options)
        folds = pd.read_csv(tmp_path / "run" / "oof_predictions.tsv", sep="\t", index_col="sample_id").fold
        assert folds.groupby(folds.index.str.split(".").str[0]).nunique().eq(1).all()

    def test_a_sample_of_two_studies(self, study: StudyFiles, tmp_path: Path) -> None:
        """Of two matrices that both have it, neither can be believed; its reads would be added up."""
        arguments = [*of_studies(study, study), *TINY, "--output-dir", tmp_path / "run"]
        outcome = aam("pretrain", *arguments)
        assert_one_line_error(outcome, 1, study.table, "24 samples", "one --unifrac-matrix")

    def test_matrices_of_another_number_than_tables(
        self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path
    ) -> None:
        arguments = [*of_studies(*studies), "--table", studies[0].table, *TINY, "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam("pretrain", *arguments), 1, studies[0].matrix, "2 files", "3 tables")

    def test_one_matrix_for_all(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        """A table divided into two by its reads is the same table."""
        table = load_table(study.table)
        rng = np.random.default_rng(0)
        first = table.counts.copy()
        first.data = rng.binomial(first.data.astype(int), 0.5).astype(float)
        second = sparse.csr_array(table.counts - first)
        first.eliminate_zeros()
        second.eliminate_zeros()
        paths = []
        for name, counts in (("first", first), ("second", second)):
            part = FeatureTable(sparse.csr_array(counts), table.sample_ids, table.feature_ids)
            paths += ["--table", write_table(tmp_path / f"{name}.biom", part)]
        options = ("--metadata", study.metadata, "--group-column", "subject_id", "--test-size", 0.25)
        more = ("--nuc-asv-fraction", 0.5, "--output-dir", tmp_path / "run")
        succeed("pretrain", *paths, "--unifrac-matrix", study.matrix, *TINY, *options, *more)
        assert outcome(tmp_path / "run") == outcome(pretrained)

    def test_a_run_is_resumed(self, studies: tuple[StudyFiles, StudyFiles], tmp_path: Path) -> None:
        arguments = ["pretrain", *of_studies(*studies), *TINY, "--study-batches", "alternate"]
        succeed(*arguments, "--epochs", 2, "--output-dir", tmp_path / "whole")
        succeed(*arguments, "--epochs", 1, "--output-dir", tmp_path / "broken", "--lr", 1e-3)
        succeed(*arguments, "--epochs", 2, "--output-dir", tmp_path / "broken", "--lr", 1e-3, "--resume")
        assert len((tmp_path / "broken" / "history.csv").read_text().splitlines()) == 3


def read_predictions_split(run: Path) -> pd.Series:
    return pd.read_csv(run / "splits.tsv", sep="\t", index_col="sample_id").split


class TestStripes:
    REFERENCES = 10

    @pytest.fixture
    def stripe(self, study: StudyFiles) -> tuple[list[str], list[str], np.ndarray]:
        ids, values = read_matrix(study.matrix)
        return ids, ids[: self.REFERENCES], values[:, : self.REFERENCES]

    @staticmethod
    def hdf5(path: Path, stripe: tuple[list[str], list[str], np.ndarray], references: bool = True) -> Path:
        ids, columns, values = stripe
        with h5py.File(path, "w") as file:
            file["order"], file["matrix"] = [name.encode() for name in ids], values
            if references:
                file["reference_ids"] = [name.encode() for name in columns]
        return path

    def test_every_format_is_the_same(
        self, study: StudyFiles, tmp_path: Path, stripe: tuple[list[str], list[str], np.ndarray]
    ) -> None:
        ids, references, values = stripe
        np.savez(tmp_path / "stripe.npz", ids=np.array(ids), reference_ids=np.array(references), matrix=values)
        (tmp_path / "references.txt").write_text("\n".join(references) + "\n")
        given = [
            (write_text(tmp_path / "stripe.tsv", *stripe),),
            (self.hdf5(tmp_path / "stripe.h5", stripe),),
            (tmp_path / "stripe.npz",),
            (self.hdf5(tmp_path / "bare.h5", stripe, False), "--reference-ids", tmp_path / "references.txt"),
        ]
        outcomes = []
        for number, (path, *more) in enumerate(given):
            run = tmp_path / f"run{number}"
            options = ("--table", study.table, "--unifrac-matrix", path, *more, *TINY, "--batch-size", 7)
            succeed("pretrain", *options, "--output-dir", run)
            outcomes.append(outcome(run))
        assert all(other == outcomes[0] for other in outcomes[1:])
        assert {"unifrac_mae", "unifrac_euclidean_r2"} <= read_metrics(tmp_path / "run0")["val"].keys()

    def test_metrics_depend_on_neither_batches_nor_workers(
        self, study: StudyFiles, tmp_path: Path, stripe: tuple[list[str], list[str], np.ndarray]
    ) -> None:
        path = self.hdf5(tmp_path / "stripe.h5", stripe)
        arguments = [*study.train, "--unifrac-matrix", path, "--metadata-column", "age", "--lr", 1e-12]
        for name, options in (("whole", ()), ("workers", ("--num-workers", 2)), ("small", ("--batch-size", 5))):
            succeed(*arguments, "--stripe-references", 4, *options, "--output-dir", tmp_path / name)
        assert outcome(tmp_path / "whole") == outcome(tmp_path / "workers")
        whole, small = (read_metrics(tmp_path / name)["val"] for name in ("whole", "small"))
        assert small == pytest.approx(whole, rel=1e-4)
        for name, options in (("one", ()), ("other", ("--batch-size", 5))):
            output = ("--output", tmp_path / f"{name}.tsv", *options)
            succeed("predict", "--model", tmp_path / "whole", "--table", study.table, *output)
        one, other = (read_predictions(tmp_path / f"{name}.tsv").predicted for name in ("one", "other"))
        np.testing.assert_allclose(one, other, rtol=1e-5)

    def test_references_that_the_table_lacks(
        self, study: StudyFiles, tmp_path: Path, stripe: tuple[list[str], list[str], np.ndarray]
    ) -> None:
        ids, references, values = stripe
        path = self.hdf5(tmp_path / "stripe.h5", (ids, [*references[:-1], "stranger"], values))
        arguments = ["--table", study.table, "--unifrac-matrix", path, *TINY, "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam("pretrain", *arguments), 1, path, "stranger", "reference")

    def test_references_that_are_all_held_out(
        self, study: StudyFiles, tmp_path: Path, stripe: tuple[list[str], list[str], np.ndarray]
    ) -> None:
        ids, references, _ = stripe
        path = self.hdf5(tmp_path / "stripe.h5", stripe)
        rows = [f"{name}\t{'val' if name in references else 'train'}" for name in ids]
        (tmp_path / "splits.tsv").write_text("\n".join(["sample_id\tsplit", *rows]) + "\n")
        arguments = ["--table", study.table, "--unifrac-matrix", path, "--splits", tmp_path / "splits.tsv", *TINY]
        result = aam("pretrain", *arguments, "--output-dir", tmp_path / "run")
        assert_one_line_error(result, 1, path, "none of the reference samples is a training sample")
        assert not (tmp_path / "run").exists()

    def test_no_references(
        self, study: StudyFiles, tmp_path: Path, stripe: tuple[list[str], list[str], np.ndarray]
    ) -> None:
        path = self.hdf5(tmp_path / "stripe.h5", stripe, False)
        arguments = ["--table", study.table, "--unifrac-matrix", path, *TINY, "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam("pretrain", *arguments), 1, path, "--reference-ids")
