"""Inputs as users have them: tables in their file, several studies, stripes, artifacts, every format of distances."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import biom
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from aam.cli.options import read_config
from aam.data.biom_loader import FeatureTable, load_table
from aam.data.distances import write_distances_h5
from aam.data.simulate import simulate_study, write_study
from tests.data.artifacts import write_artifact
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
from tests.real_data import real_data

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


SMALL = ("--embedding-dim", 16, "--attention-heads", 2, "--attention-layers", 1, "--clades", 32)
CPU = ("--threads", 1, "--num-workers", 0, "--no-plots", "--nuc-weight", 0)


@pytest.fixture(scope="module")
def mouse() -> Path:
    return real_data("mouse_sleep_apnea_10422")


@pytest.fixture(scope="module")
def of_ssu() -> Path:
    return real_data("ssu_outputs")


@pytest.fixture(scope="module")
def few(mouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 of the mice's samples: enough to see that labels are the same."""
    table = load_table(mouse / "table.biom").select_samples(np.arange(0, 160, 4))
    return write_table(tmp_path_factory.mktemp("few") / "table.biom", table)


def test_one_matrix_in_all_its_formats_is_one_matrix(mouse: Path, of_ssu: Path, few: Path, tmp_path: Path) -> None:
    ids, values = read_matrix(of_ssu / "unweighted_pcoa.h5")
    values = values.astype(np.float32)
    text = write_text(tmp_path / "square.tsv", ids, ids, values)
    at = [ids.index(name) for name in load_table(few).sample_ids]
    np.save(tmp_path / "matrix.npy", values[np.ix_(at, at)])
    np.savez(tmp_path / "matrix.npz", ids=np.array(ids), matrix=values)
    with gzip.open(tmp_path / "square.tsv.gz", "wb") as file:
        file.write(text.read_bytes())
    with h5py.File(tmp_path / "numbered.h5", "w") as file:
        file["order"] = np.array(ids, dtype=h5py.string_dtype())
        file["matrix:0"] = values
    given = [
        of_ssu / "unweighted_pcoa.h5",
        mouse / "unifrac.h5",
        of_ssu / "unweighted.tsv",
        text,
        tmp_path / "square.tsv.gz",
        write_text(tmp_path / "square.csv", ids, ids, values, ","),
        tmp_path / "matrix.npy",
        tmp_path / "matrix.npz",
        tmp_path / "numbered.h5",
        write_artifact(tmp_path / "matrix.qza", "DistanceMatrix", {"distance-matrix.tsv": text.read_bytes()}),
    ]
    histories = []
    for number, path in enumerate(given):
        run = tmp_path / f"run{number}"
        options = ("--table", few, "--unifrac-matrix", path, *SMALL, *CPU, "--epochs", 1)
        succeed("pretrain", *options, "--output-dir", run)
        histories.append((run / "history.csv").read_text())
    computed = 3  # by ssu, each in its own precision
    assert all(history == histories[computed] for history in [histories[0], *histories[computed:]])
    first, *others = (pd.read_csv(io.StringIO(history)) for history in histories[:computed])
    for other in others:
        pd.testing.assert_frame_equal(other, first, rtol=1e-4)


@pytest.mark.slow
class TestBaseTargetsLearn:
    """Each base target is read better of held-out mice after some epochs than after the first."""

    @staticmethod
    def improves(run: Path, *metrics: str) -> None:
        best = read_metrics(run)
        history = pd.read_csv(run / "history.csv").set_index("epoch")
        assert best["best_epoch"] > 1
        for name in metrics:
            first = history[f"val_{name}"][1]
            assert best["val"][name] > first, (name, first, best["val"][name])

    @staticmethod
    def pretrain(mouse: Path, run: Path, *options: object, epochs: int = 6) -> Path:
        data = ("--table", mouse / "table.biom", "--metadata", mouse / "metadata.tsv")
        grouped = ("--group-column", "host_subject_id", "--output-dir", run)
        succeed("pretrain", *data, *SMALL, *CPU, "--epochs", epochs, *grouped, *options)
        return run

    @pytest.mark.parametrize(
        "metric", ["generalized_unifrac", "bray_curtis", "jaccard", "aitchison", "weighted_unifrac", "unifrac"]
    )
    def test_distances(self, mouse: Path, tmp_path: Path, metric: str) -> None:
        matrix = tmp_path / "matrix.h5"
        options = ("--metric", metric, "--table", mouse / "table.biom", "--output", matrix)
        tree = ("--tree", mouse / "tree.nwk") if "unifrac" in metric else ()
        succeed("distances", *options, *tree)
        options = ("--base-target", metric, "--unifrac-matrix", matrix)
        run = self.pretrain(mouse, tmp_path / "run", *options, epochs=4)
        heads = [name for name in (metric, f"{metric}_euclidean") if f"{name}_r2" in read_metrics(run)["val"]]
        best = read_metrics(run)["val"]
        history = pd.read_csv(run / "history.csv")
        assert any(best[f"{name}_r2"] > history[f"val_{name}_r2"][0] for name in heads)
        assert history.val_loss.min() < history.val_loss[0]

    def test_faith_pd(self, mouse: Path, of_ssu: Path, tmp_path: Path) -> None:
        options = ("--base-target", "faith_pd", "--unifrac-matrix", of_ssu / "faith_pd.tsv")
        self.improves(self.pretrain(mouse, tmp_path / "run", *options), "faith_pd_r2")

    def test_combined(self, mouse: Path, of_ssu: Path, tmp_path: Path) -> None:
        run = self.pretrain(
            mouse,
            tmp_path / "run",
            *("--base-target", "combined", "--unifrac-matrix", f"unifrac={of_ssu / 'unweighted.tsv'}"),
            *("--unifrac-matrix", f"weighted_unifrac={of_ssu / 'weighted_normalized.h5'}"),
            *("--unifrac-matrix", f"faith_pd={of_ssu / 'faith_pd.tsv'}"),
            *("--taxonomy", taxonomy_of(mouse / "table.biom", tmp_path / "taxonomy.tsv"), "--taxonomy-level", "phylum"),
        )
        self.improves(run, "unifrac_r2", "weighted_unifrac_r2", "faith_pd_r2", "taxonomy_r2")

    def test_taxonomy(self, mouse: Path, tmp_path: Path) -> None:
        taxonomy = taxonomy_of(mouse / "table.biom", tmp_path / "taxonomy.tsv")
        options = ("--base-target", "taxonomy", "--taxonomy", taxonomy, "--taxonomy-level", "phylum")
        self.improves(self.pretrain(mouse, tmp_path / "run", *options), "taxonomy_r2")


def taxonomy_of(table: Path, path: Path) -> Path:
    """Taxa by the first bases of a sequence, which are as good as any to learn."""
    sequences = load_table(table).feature_ids
    rows = [f"{sequence}\tk__Bacteria; p__{sequence[10:12]}" for sequence in sequences]
    path.write_text("\n".join(["Feature ID\tTaxon", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def artifacts(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study in QIIME 2 artifacts, its features named by hashes."""
    folder = tmp_path_factory.mktemp("artifacts")
    table = load_table(study.table)
    hashes = {name: hashlib.md5(name.encode()).hexdigest() for name in table.feature_ids}
    hashed = FeatureTable(table.counts, table.sample_ids, list(hashes.values()))
    content = {"feature-table.biom": write_table(folder / "table.biom", hashed).read_bytes()}
    fasta = "".join(f">{name}\n{sequence}\n" for sequence, name in hashes.items()).encode()
    taxa = "".join(f"{name}\tk__Bacteria; p__{sequence[:1]}\n" for sequence, name in hashes.items())
    ids, values = read_matrix(study.matrix)
    square = write_text(folder / "square.tsv", ids, ids, values).read_bytes()
    of_type = {
        "table": ("FeatureTable[Frequency]", content),
        "sequences": ("FeatureData[Sequence]", {"dna-sequences.fasta": fasta}),
        "taxonomy": ("FeatureData[Taxonomy]", {"taxonomy.tsv": f"Feature ID\tTaxon\n{taxa}".encode()}),
        "matrix": ("DistanceMatrix", {"distance-matrix.tsv": square}),
    }
    return {name: write_artifact(folder / f"{name}.qza", *parts) for name, parts in of_type.items()}


class TestArtifacts:
    def test_training_needs_no_conversion(
        self, study: StudyFiles, artifacts: dict[str, Path], trained: Path, tmp_path: Path
    ) -> None:
        files = ("--table", artifacts["table"], "--sequences", artifacts["sequences"], "--metadata", study.metadata)
        options = ("--unifrac-matrix", artifacts["matrix"], "--metadata-column", "age", "--test-size", 0.25)
        more = (*TINY, "--nuc-asv-fraction", 0.5, "--output-dir", tmp_path / "run")
        succeed("train", *files, *options, *more)
        assert outcome(tmp_path / "run") == outcome(trained)
        output = ("--output", tmp_path / "predictions.tsv")
        succeed("predict", "--model", tmp_path / "run", *files[:4], *output)
        predicted = read_predictions(tmp_path / "predictions.tsv").predicted
        held_out = read_predictions(tmp_path / "run" / "test_predictions.tsv").predicted
        np.testing.assert_allclose(predicted[held_out.index], held_out, rtol=1e-5)

    def test_taxonomy(self, study: StudyFiles, artifacts: dict[str, Path], tmp_path: Path) -> None:
        files = ("--table", artifacts["table"], "--sequences", artifacts["sequences"])
        target = ("--base-target", "taxonomy", "--taxonomy", artifacts["taxonomy"], "--taxonomy-level", "phylum")
        succeed("pretrain", *files, *target, *TINY, "--output-dir", tmp_path / "run")
        assert "taxonomy_bray_curtis" in read_metrics(tmp_path / "run")["val"]

    def test_hashes_without_sequences(self, study: StudyFiles, artifacts: dict[str, Path], tmp_path: Path) -> None:
        options = ("--table", artifacts["table"], "--metadata", study.metadata, "--metadata-column", "age", *TINY)
        result = aam("train", *options, "--output-dir", tmp_path / "run")
        assert_one_line_error(result, 1, artifacts["table"], "--sequences")

    def test_a_real_study_says_what_is_left_out(self) -> None:
        folder = real_data("udca_qza")
        files = ("--table", folder / "table.qza", "--sequences", folder / "rep-seqs.qza")
        target = ("--metadata", folder / "metadata.tsv", "--metadata-column", "host_sex", "--classifier")
        report = json.loads(succeed("check", *files, *target, "--group-column", "host_subject_id", "--json").out)
        assert sum(report["samples"]["left_out"].values()) == 152
        assert report["samples"]["left_out"]["not in the metadata"] > 0
        assert report["samples"]["used"] == report["samples"]["table"] - 152

    def test_a_real_study_without_sequences(self, tmp_path: Path) -> None:
        folder = real_data("hashed_ids")
        table, metadata = folder / "ecam-table-maturity.qza", folder / "ecam_map_maturity.txt"
        options = ("--table", table, "--metadata", metadata, "--metadata-column", "month")
        assert_one_line_error(aam("train", *options, "--output-dir", tmp_path / "run"), 1, table, "--sequences")


def test_a_second_run_says_what_it_reused(study: StudyFiles, tmp_path: Path) -> None:
    first, second = (
        succeed(*study.pretrain, "--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / name)
        for name in ("first", "second")
    )
    assert "reused" not in first.err
    assert f"reused from {tmp_path / 'cache'}: tokens" in second.err
    assert outcome(tmp_path / "first") == outcome(tmp_path / "second")


def test_cells_in_a_gram_are_too_many_to_mix(study: StudyFiles, tmp_path: Path) -> None:
    """Absolute abundances are whole numbers, too; reads cannot be drawn from so many."""
    read = load_table(study.table)
    table = write_table(tmp_path / "t.biom", replace(read, counts=read.counts * 10_000_000))
    files = ("train", "--table", table, "--metadata", study.metadata, "--metadata-column", "age", *TINY)
    succeed(*files, "--output-dir", tmp_path / "run")
    assert read_config(tmp_path / "run" / "config.json")["mix_samples"] == 0
    outcome = aam(*files, "--mix-samples", 0.3, "--output-dir", tmp_path / "asked")
    assert_one_line_error(outcome, 1, table, "--mix-samples", "fewer than 1e+09 reads")
