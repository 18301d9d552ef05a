"""Whatever is wrong with the input: one line that names it, the right exit code, nothing that looks finished."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse

from aam.data.biom_loader import FeatureTable, load_table
from aam.data.distances import write_distances_h5
from aam.data.splits import make_splits
from tests.data.artifacts import members, write_artifact, write_zip
from tests.end_to_end.program import TINY, StudyFiles, aam, assert_one_line_error, succeed, write_table


class Files:
    """Broken copies of a study's files."""

    def __init__(self, study: StudyFiles, folder: Path) -> None:
        self.study = study
        self.folder = folder
        self.run = folder / "run"

    def text(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(content)
        return path

    def bytes(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def table(self, change: Callable[[FeatureTable], FeatureTable]) -> Path:
        return write_table(self.folder / "table.biom", change(load_table(self.study.table)))

    def matrix(self, change: Callable[[np.ndarray], np.ndarray | None]) -> Path:
        with h5py.File(self.study.matrix) as file:
            ids, values = [name.decode() for name in file["order"][()]], file["matrix"][()]
        changed = change(values)
        path = self.folder / "distances.h5"
        with h5py.File(path, "w") as file:
            file["order"] = [name.encode() for name in ids]
            file["matrix"] = values if changed is None else changed
        return path

    def metadata(self, column: str, values: Callable[[int], object]) -> Path:
        header, *rows = self.study.metadata.read_text().splitlines()
        lines = [f"{header}\t{column}", *(f"{row}\t{values(i)}" for i, row in enumerate(rows))]
        return self.text("metadata.tsv", "\n".join(lines) + "\n")

    def refused(self, *arguments: object, words: tuple[object, ...], code: int = 1) -> None:
        """The command is refused with these words, and leaves no run behind."""
        outcome = aam(*arguments, "--output-dir", self.run)
        assert_one_line_error(outcome, code, *map(str, words))
        assert not self.run.exists()

    def table_refused(self, path: Path, *words: object) -> None:
        options = ["--unifrac-matrix", self.study.matrix]
        self.refused("pretrain", "--table", path, *options, words=(path, *words))

    def matrix_refused(self, path: Path, *words: object) -> None:
        options = ["--table", self.study.table, "--unifrac-matrix", path]
        self.refused("pretrain", *options, words=(path, *words))

    def target_refused(self, metadata: Path, column: str, *words: object, options: tuple[str, ...] = ()) -> None:
        arguments = ["--table", self.study.table, "--metadata", metadata, "--metadata-column", column]
        self.refused("train", *arguments, *options, words=(repr(column), *words))


@pytest.fixture
def files(study: StudyFiles, tmp_path: Path) -> Files:
    return Files(study, tmp_path)


needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)


class TestTable:
    def test_missing(self, files: Files) -> None:
        files.table_refused(files.folder / "absent.biom", "no such file")

    def test_directory(self, files: Files) -> None:
        files.table_refused(files.folder, "is a directory")

    @needs_permissions
    def test_unreadable(self, files: Files) -> None:
        path = files.bytes("table.biom", files.study.table.read_bytes())
        path.chmod(0)
        files.table_refused(path, "permission denied")

    def test_empty_file(self, files: Files) -> None:
        files.table_refused(files.bytes("table.biom", b""), "is empty")

    def test_text_that_is_no_table(self, files: Files) -> None:
        files.table_refused(files.text("table.biom", "Dear colleague,\nplease find attached\n"), "Dear colleague")

    def test_random_bytes(self, files: Files) -> None:
        files.table_refused(files.bytes("table.biom", np.random.default_rng(0).bytes(3000)))

    def test_hdf5_that_is_no_biom(self, files: Files) -> None:
        files.table_refused(files.study.matrix, "observation/ids")

    def test_biom_cut_short(self, files: Files) -> None:
        content = files.study.table.read_bytes()
        files.table_refused(files.bytes("table.biom", content[: len(content) // 2]))

    def test_pickle(self, files: Files) -> None:
        files.table_refused(files.bytes("table.biom", pickle.dumps({"counts": [1, 2]})))

    def test_json_that_is_no_biom(self, files: Files) -> None:
        files.table_refused(files.text("table.biom", json.dumps({"rows": []})), "'columns'")

    def test_no_samples(self, files: Files) -> None:
        files.table_refused(files.text("table.tsv", "#OTU ID\tx\n"), "no features")

    def test_only_zeros(self, files: Files) -> None:
        files.table_refused(files.text("table.tsv", f"#OTU ID\ta\tb\n{'ACGT' * 10}\t0\t0\n"), "every count is zero")

    def test_negative_counts(self, files: Files) -> None:
        path = files.text("table.tsv", f"#OTU ID\ta\tb\n{'ACGT' * 10}\t3\t-2\n")
        files.table_refused(path, "-2", "negative", "'b'")

    def test_hashed_ids(self, files: Files) -> None:
        def hashed(table: FeatureTable) -> FeatureTable:
            names = [f"{i:032x}" for i in range(len(table.feature_ids))]
            return FeatureTable(table.counts, table.sample_ids, names)

        files.table_refused(files.table(hashed), "30 of 30", f"{0:032x}", "--sequences")

    def test_duplicate_sample_ids(self, files: Files) -> None:
        path = files.text("table.tsv", f"#OTU ID\ttwin\ttwin\n{'ACGT' * 10}\t3\t2\n")
        files.table_refused(path, "duplicate sample ID", "'twin'")

    def test_no_sample_is_deep_enough(self, files: Files) -> None:
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        words = (files.study.table, "24", "--rarefy-depth 99999")
        files.refused(*arguments, "--rarefy-depth", 99999, words=words)

    def test_no_sample_of_the_metadata(self, files: Files) -> None:
        metadata = files.text("metadata.tsv", "sample_id\tage\nother\t3\n")
        files.refused(
            *("train", "--table", files.study.table, "--metadata", metadata, "--metadata-column", "age"),
            words=(metadata, "'other'", "subject"),
        )

    def test_too_few_samples(self, files: Files) -> None:
        path = files.table(lambda table: table.select_samples([0]))
        files.refused("pretrain", "--table", path, "--unifrac-matrix", files.study.matrix, words=("1 sample",))


class TestNothingToLearn:
    def test_one_sample_to_a_batch(self, study: StudyFiles, tmp_path: Path) -> None:
        outcome = aam(*study.pretrain, "--output-dir", tmp_path / "run", "--batch-size", 1)
        assert_one_line_error(outcome, 1, "--batch-size 1", "no pair")
        assert not (tmp_path / "run").exists()

    def test_one_sample_to_judge_by(self, study: StudyFiles, tmp_path: Path) -> None:
        outcome = aam(*study.pretrain, "--output-dir", tmp_path / "run", "--val-size", 0.01)
        assert_one_line_error(outcome, 1, study.table, "val split has one sample", "--val-size")
        assert not (tmp_path / "run").exists()

    def test_a_target_of_no_weight(self, study: StudyFiles, tmp_path: Path) -> None:
        arguments = [*study.train, "--metadata-column", "age", "--output-dir", tmp_path / "run"]
        assert_one_line_error(aam(*arguments, "--target-weight", 0), 2, "--target-weight 0")


class TestExtremeNumbers:
    @pytest.mark.parametrize("scale", [1e-60, 1e60])
    def test_counts(self, files: Files, scale: float) -> None:
        path = files.table(lambda table: replace(table, counts=table.counts * scale))
        files.table_refused(path, f"e{'+' if scale > 1 else '-'}", "no count of reads")

    def test_reads_that_cannot_be_rarefied(self, files: Files) -> None:
        path = files.table(lambda table: replace(table, counts=table.counts * 10**8))
        options = ["--unifrac-matrix", files.study.matrix, "--rarefy-depth", 5]
        files.refused("pretrain", "--table", path, *options, words=(path, "--rarefy-depth", "1e+09"))

    def test_targets(self, files: Files) -> None:
        files.target_refused(files.metadata("huge", lambda i: f"{i}e200"), "huge", "e+200", "too large")


class TestSequences:
    def test_missing_records(self, files: Files) -> None:
        fasta = files.text("sequences.fasta", ">other\nACGTACGTACGTACGTACGTACGT\n")
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        files.refused(*arguments, "--sequences", fasta, words=("30 of 30", "--sequences"))

    def test_no_fasta(self, files: Files) -> None:
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        path = files.study.metadata
        files.refused(*arguments, "--sequences", path, words=(path, "not FASTA"))


class TestMatrix:
    def test_missing(self, files: Files) -> None:
        files.matrix_refused(files.folder / "absent.h5", "no such file")

    def test_nan(self, files: Files) -> None:
        def change(values: np.ndarray) -> None:
            values[2, 5] = values[5, 2] = np.nan

        files.matrix_refused(files.matrix(change), "nan", "subject")

    def test_negative(self, files: Files) -> None:
        def change(values: np.ndarray) -> None:
            values[2, 5] = values[5, 2] = -0.25

        files.matrix_refused(files.matrix(change), "-0.25", "negative")

    def test_asymmetric(self, files: Files) -> None:
        def change(values: np.ndarray) -> None:
            values[2, 5] = 0.125

        files.matrix_refused(files.matrix(change), "not symmetric", "0.125")

    def test_above_one(self, files: Files) -> None:
        files.matrix_refused(files.matrix(lambda values: values * 5), "bounded by 1")

    def test_similarities(self, files: Files) -> None:
        files.matrix_refused(files.matrix(lambda values: 1 - values), "to itself is 1")

    def test_of_another_size(self, files: Files) -> None:
        files.matrix_refused(files.matrix(lambda values: values[:5, :5]), "24 IDs", "5 rows")

    def test_not_square(self, files: Files) -> None:
        files.matrix_refused(files.matrix(lambda values: values[:5]), "5 × 24")

    def test_npy_of_another_size(self, files: Files) -> None:
        path = files.folder / "distances.npy"
        np.save(path, np.zeros((5, 5), dtype=np.float32))
        files.matrix_refused(path, "5 rows", "24 samples")

    def test_pickled_npy_runs_nothing(self, files: Files) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, ...]:
                return (os.system, (f"touch {files.folder / 'executed'}",))

        path = files.folder / "distances.npy"
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
        files.matrix_refused(path, "Python objects")
        assert not (files.folder / "executed").exists()

    def test_of_other_samples(self, files: Files) -> None:
        path = files.folder / "distances.h5"
        write_distances_h5(path, ["a", "b"], np.array([[0, 0.5], [0.5, 0]], dtype=np.float32))
        files.matrix_refused(path, "none of its 2 samples", "'a'")

    def test_a_table_is_no_matrix(self, files: Files) -> None:
        files.matrix_refused(files.study.table, "'matrix'", "not a distance matrix")


class TestMetadata:
    def test_missing_file(self, files: Files) -> None:
        files.refused(
            *("train", "--table", files.study.table, "--metadata", files.folder / "absent.tsv"),
            *("--metadata-column", "age"),
            words=(files.folder / "absent.tsv", "no such file"),
        )

    def test_missing_column(self, files: Files) -> None:
        files.target_refused(files.study.metadata, "Age", files.study.metadata, "did you mean", "'age'")

    def test_no_id_column(self, files: Files) -> None:
        metadata = files.text("metadata.tsv", "colour\tage\nred\t3\n")
        files.refused(
            *("train", "--table", files.study.table, "--metadata", metadata, "--metadata-column", "age"),
            words=(metadata, "'colour'", "sample_id"),
        )

    def test_duplicate_ids(self, files: Files) -> None:
        metadata = files.text("metadata.tsv", "sample_id\tage\na\t3\na\t4\n")
        files.refused(
            *("train", "--table", files.study.table, "--metadata", metadata, "--metadata-column", "age"),
            words=(metadata, "duplicate sample ID", "'a'"),
        )

    def test_all_missing(self, files: Files) -> None:
        path = files.metadata("weight", lambda i: ["", "NA", "not collected"][i % 3])
        files.target_refused(path, "weight", path, "empty for every sample")

    def test_constant(self, files: Files) -> None:
        path = files.metadata("weight", lambda i: 7)
        for options in ((), ("--classifier",)):
            words = (path, "7", "in every training sample", "--metadata-column")
            files.target_refused(path, "weight", *words, options=options)

    def test_text_in_a_number(self, files: Files) -> None:
        path = files.metadata("weight", lambda i: ["heavy", 3, "light"][i % 3])
        files.target_refused(path, "weight", path, "16 value(s)", "'heavy', 'light'", "--classifier")

    def test_infinite_target(self, files: Files) -> None:
        path = files.metadata("weight", lambda i: "inf" if i == 3 else i)
        files.target_refused(path, "weight", path, "'inf'")

    def test_logarithm_of_a_negative_target(self, files: Files) -> None:
        path = files.metadata("weight", lambda i: i - 12)
        options = ("--target-transform", "log-zscore")
        files.target_refused(path, "weight", path, "-12", "--target-transform", "zscore or minmax", options=options)

    def test_logarithm_of_a_negative_target_that_is_held_out(self, files: Files) -> None:
        """It is not what the transform is fitted on, but it must be judged."""
        held_out = self.held_out(files)
        path = files.metadata("weight", lambda i: -5 if i == held_out[0] else i)
        options = ("--target-transform", "log-minmax")
        files.target_refused(path, "weight", path, "-5", "zscore or minmax", options=options)

    def test_a_value_beyond_the_bounds_that_is_held_out(self, files: Files) -> None:
        held_out = self.held_out(files)
        path = files.metadata("weight", lambda i: 99 if i == held_out[0] else i)
        files.target_refused(path, "weight", path, "99", "--target-max 50", options=("--target-max", "50"))

    def test_a_class_that_is_held_out_whole(self, files: Files) -> None:
        held_out = self.held_out(files)
        path = files.metadata("diet", lambda i: "meat" if i in held_out else ["greens", "roots"][i % 2])
        files.target_refused(path, "diet", path, "'meat'", "--stratify", options=("--classifier",))

    def held_out(self, files: Files) -> list[int]:
        """Rows of the metadata that the default split holds out."""
        names = [row.split("\t")[0] for row in files.study.metadata.read_text().splitlines()[1:]]
        split = make_splits(names, val_size=0.2, seed=0)
        return np.flatnonzero(split == "val").tolist()

    def test_a_class_with_one_sample(self, files: Files) -> None:
        path = files.metadata("diet", lambda i: "meat" if i == 3 else "greens")
        for options in (("--classifier",), ("--classifier", "--stratify")):
            files.target_refused(path, "diet", path, "'meat'", "one sample", options=options)

    def test_fewer_groups_than_splits(self, files: Files) -> None:
        path = files.metadata("cage", lambda i: "ab"[i % 2])
        arguments = ["train", "--table", files.study.table, "--metadata", path, "--metadata-column", "age"]
        files.refused(
            *arguments, "--group-column", "cage", "--test-size", 0.2, words=(path, "'cage'", "2 group", "3 splits")
        )

    def test_missing_group_column(self, files: Files) -> None:
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        arguments += ["--metadata", files.study.metadata]
        words = (files.study.metadata, "'subject'", "'subject_id'")
        files.refused(*arguments, "--group-column", "subject", words=words)


class TestRunDirectory:
    def test_that_holds_a_run(self, study: StudyFiles, trained: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
        outcome = aam(*study.train, "--metadata-column", "age", "--output-dir", trained)
        assert_one_line_error(outcome, 1, trained, "--overwrite", "--resume")
        assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before

    def test_of_a_run_that_learnt_nothing(self, study: StudyFiles, tmp_path: Path) -> None:
        """One that ended before its first checkpoint is begun again without a word."""
        run = tmp_path / "run"
        arguments = [*study.train, "--metadata-column", "age", "--epochs", 1, "--output-dir", run]
        succeed(*arguments)
        for path in run.iterdir():
            if path.name not in ("aam.log", "config.json", "splits.tsv"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        log = (run / "aam.log").read_text()
        succeed(*arguments)
        assert (run / "aam.log").read_text().startswith(log)

    def test_that_holds_the_files_of_somebody_else(self, study: StudyFiles, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("mine")
        outcome = aam(*study.train, "--metadata-column", "age", "--output-dir", tmp_path)
        assert_one_line_error(outcome, 1, tmp_path, "--overwrite")
        assert (tmp_path / "config.json").read_text() == "mine"

    def test_that_is_a_file(self, study: StudyFiles, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("mine")
        outcome = aam(*study.train, "--metadata-column", "age", "--output-dir", path)
        assert_one_line_error(outcome, 1, path)
        outcome = aam(*study.train, "--metadata-column", "age", "--output-dir", path / "run")
        assert_one_line_error(outcome, 1, path / "run")
        assert path.read_text() == "mine"

    @needs_permissions
    def test_that_may_not_be_written(self, study: StudyFiles, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        outcome = aam(*study.train, "--metadata-column", "age", "--output-dir", tmp_path / "run")
        assert_one_line_error(outcome, 1, tmp_path / "run")

    def test_training_that_diverges_leaves_nothing_finished(self, files: Files) -> None:
        run = files.run
        outcome = aam(
            *files.study.train, "--metadata-column", "age", "--lr", 1e30, "--gradient-clip", 0, "--output-dir", run
        )
        assert outcome.code == 1
        last = outcome.err.splitlines()[-1]
        assert last.startswith("Error: ") and "--lr" in last
        assert "Traceback" not in outcome.err
        assert not (run / "metrics.json").exists()
        assert not (run / "val_predictions.tsv").exists()

    def test_a_model_that_does_not_fit_into_memory(self, files: Files) -> None:
        arguments = [*files.study.train, "--metadata-column", "age", "--max-bp", 10**13]
        files.refused(*arguments, words=("out of memory",))

    def test_a_missing_device(self, files: Files) -> None:
        if torch.backends.mps.is_available():
            pytest.skip("this machine has one")
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        files.refused(*arguments, "--device", "mps", words=("--device mps", "--device auto"))


class TestConfigFile:
    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            ("absent.json", None, 1),
            ("broken.json", "{", 1),
            ("broken.yaml", "a: [", 1),
            ("list.json", "[1]", 1),
            ("binary.yaml", b"\x93\xff\x00", 1),
            ("python.yaml", "!!python/object/apply:os.system ['true']", 1),
            ("unknown.yaml", "colour: red", 2),
        ],
    )
    def test_that_cannot_serve(self, files: Files, name: str, content: str | bytes | None, code: int) -> None:
        path = files.folder / name
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        files.refused(*arguments, "--config", path, words=(path,), code=code)

    def test_wrong_call(self, files: Files) -> None:
        arguments = ["pretrain", "--table", files.study.table, "--unifrac-matrix", files.study.matrix]
        words = ("--val-size 0.7", "--test-size 0.4")
        files.refused(*arguments, "--val-size", 0.7, "--test-size", 0.4, words=words, code=2)


class TestPredict:
    def refused(self, study: StudyFiles, model: Path, output: Path, *words: object, table: Path | None = None) -> None:
        outcome = aam(
            "predict", "--model", model, "--table", table or study.table, "--output", output, "--num-workers", 0
        )
        assert_one_line_error(outcome, 1, *map(str, words))
        assert not output.is_file()

    def test_random_bytes(self, study: StudyFiles, tmp_path: Path) -> None:
        path = tmp_path / "best_model.safetensors"
        for content in (np.random.default_rng(0).bytes(5000), b"", b"\xff" * 8, pickle.dumps({"weights": 1})):
            path.write_bytes(content)
            self.refused(study, path, tmp_path / "p.tsv", path, "not a model file")

    def test_cut_short(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        content = (trained / "best_model.safetensors").read_bytes()
        path = tmp_path / "model.safetensors"
        path.write_bytes(content[: len(content) // 2])
        self.refused(study, path, tmp_path / "p.tsv", path)

    def test_safetensors_of_something_else(self, study: StudyFiles, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        for metadata in (None, {"aam": "[]"}, {"aam": "{}"}, {"aam": '{"format_version": "one"}'}):
            save_file({"w": torch.zeros(2)}, path, metadata=metadata)
            self.refused(study, path, tmp_path / "p.tsv", path, "not a model file")

    def test_of_a_later_version(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file({"w": torch.zeros(2)}, path, metadata={"aam": json.dumps({"format_version": 99, "config": {}})})
        self.refused(study, path, tmp_path / "p.tsv", path, "99", "update AAM")

    @pytest.mark.parametrize(
        "change",
        [
            lambda header: header.pop("target"),
            lambda header: header.update(target={}),
            lambda header: header.update(target=3),
            lambda header: header.update(target={"kind": "numeric", "column": "age"}),
            lambda header: header["target"].update(scale="wide"),
            lambda header: header["target"].update(transform="cube"),
            lambda header: header.update(target={"kind": "classes", "column": "age", "classes": ["a", "b"]}),
            lambda header: header.update(config=3),
            lambda header: header["config"]["data"].update(table=3),
            lambda header: header["config"]["model"].update(embedding_dim=32),
        ],
    )
    def test_a_header_that_was_tampered_with(
        self, study: StudyFiles, trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
    ) -> None:
        path = self.tampered(trained, tmp_path, change)
        self.refused(study, path, tmp_path / "p.tsv", path)
        for options in ([], ["--json"]):
            assert aam("info", path, *options).code in (0, 1)

    @pytest.mark.parametrize("name", ["provenance", "checksums", "metrics"])
    @pytest.mark.parametrize("value", [{}, 3, None])
    def test_a_header_that_lacks_what_prediction_does_not_need(
        self, trained: Path, tmp_path: Path, name: str, value: object
    ) -> None:
        path = self.tampered(trained, tmp_path, lambda header: header.update({name: value}))
        assert aam("info", path).code == 0

    @staticmethod
    def tampered(trained: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        path = folder / "model.safetensors"
        with safe_open(trained / "best_model.safetensors", framework="pt") as file:
            header = json.loads(file.metadata()["aam"])
        change(header)
        save_file(load_file(trained / "best_model.safetensors"), path, metadata={"aam": json.dumps(header)})
        return path

    def test_missing(self, study: StudyFiles, tmp_path: Path) -> None:
        self.refused(study, tmp_path / "absent", tmp_path / "p.tsv", tmp_path / "absent")
        self.refused(study, tmp_path, tmp_path / "p.tsv", tmp_path, "best_model.safetensors")

    def test_encoder_only(self, study: StudyFiles, pretrained: Path, tmp_path: Path) -> None:
        self.refused(study, pretrained, tmp_path / "p.tsv", pretrained, "aam train")

    def test_output_in_a_missing_directory(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        self.refused(study, trained, tmp_path / "absent" / "p.tsv", tmp_path / "absent" / "p.tsv")
        self.refused(study, trained, tmp_path, tmp_path)

    def test_table_without_a_sample_that_can_be_predicted(
        self, study: StudyFiles, trained: Path, tmp_path: Path
    ) -> None:
        hashed = tmp_path / "table.tsv"
        hashed.write_text("#OTU ID\ta\n4b5eeb300368260019c1fbc7a3c718fc\t3\n")
        self.refused(study, trained, tmp_path / "p.tsv", hashed, "--sequences", table=hashed)

    def test_metadata_that_cannot_be_read(self, study: StudyFiles, trained: Path, tmp_path: Path) -> None:
        arguments = ["predict", "--model", trained, "--table", study.table, "--output", tmp_path / "p.tsv"]
        outcome = aam(*arguments, "--metadata", tmp_path / "absent.tsv")
        assert_one_line_error(outcome, 1, tmp_path / "absent.tsv")
        assert not (tmp_path / "p.tsv").exists()


class TestPretrainedEncoder:
    @pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
    def test_that_is_no_model(self, files: Files, content: bytes) -> None:
        path = files.bytes("encoder.safetensors", content)
        arguments = [*files.study.train, "--metadata-column", "age", "--pretrained-encoder", path]
        files.refused(*arguments, words=(path,))

    def test_that_is_missing(self, files: Files) -> None:
        path = files.folder / "absent"
        arguments = [*files.study.train, "--metadata-column", "age", "--pretrained-encoder", path]
        files.refused(*arguments, words=(path,))


def test_as_a_program(files: Files) -> None:
    """The exit codes and streams of the process itself."""
    command = [sys.executable, "-m", "aam", "pretrain", "--table", "absent.biom", "--output-dir", str(files.run)]
    data = subprocess.run(
        [*command, "--unifrac-matrix", "u.h5"], capture_output=True, text=True, check=False, cwd=files.folder
    )
    assert (data.returncode, data.stdout) == (1, "")
    assert data.stderr == "Error: absent.biom: no such file; give the path of the feature table\n"
    usage = subprocess.run(command, capture_output=True, text=True, check=False, cwd=files.folder)
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.splitlines()[-1].startswith("Error: ")
    assert not files.run.exists()


class TestWhatUsersHave:
    """Files that are damaged, hostile or of another kind, and the words that say so."""

    @pytest.mark.parametrize("share", [0.3, 0.95])
    @pytest.mark.parametrize("streaming", [(), ("--streaming",)], ids=["memory", "streaming"])
    def test_truncated_hdf5(self, files: Files, share: float, streaming: tuple[str, ...]) -> None:
        for option, path in (("--table", files.study.table), ("--unifrac-matrix", files.study.matrix)):
            whole = path.read_bytes()
            cut = files.bytes(path.name, whole[: int(len(whole) * share)])
            given = {"--table": files.study.table, "--unifrac-matrix": files.study.matrix, option: cut}
            arguments = [part for pair in given.items() for part in pair]
            files.refused("pretrain", *arguments, *streaming, words=(cut, "damaged"))

    @pytest.mark.parametrize(
        ("kind", "option", "words"),
        [
            ("zip", "--table", ("no QIIME 2 artifact",)),
            ("zip", "--unifrac-matrix", ("no QIIME 2 artifact",)),
            ("zip", "--metadata", ("is a zip archive",)),
            ("sequences", "--table", ("FeatureData[Sequence]", "FeatureTable[Frequency]")),
            ("sequences", "--unifrac-matrix", ("FeatureData[Sequence]", "DistanceMatrix")),
            ("table", "--sequences", ("FeatureTable[Frequency]", "FeatureData[Sequence]")),
            ("bomb", "--unifrac-matrix", ("zip bomb",)),
            ("dots", "--unifrac-matrix", ("'../../evil'",)),
            ("cut", "--table", ("cut short or damaged",)),
        ],
    )
    def test_archives(self, files: Files, kind: str, option: str, words: tuple[str, ...]) -> None:
        path = files.folder / f"{kind}.qza"
        if kind == "zip":
            write_zip(path, {"some.txt": b"hello"})
        elif kind == "sequences":
            write_artifact(path, "FeatureData[Sequence]", {"dna-sequences.fasta": b">a\nACGT\n"})
        elif kind == "bomb":
            write_artifact(path, "DistanceMatrix", {"distance-matrix.tsv": bytes(2**28)})
        elif kind == "dots":
            write_zip(path, {**members("DistanceMatrix", {"distance-matrix.tsv": b""}), "../../evil": b"x"})
        else:
            content = {"feature-table.biom": files.study.table.read_bytes()}
            write_artifact(path, "FeatureTable[Frequency]", content)
            if kind == "cut":
                path.write_bytes(path.read_bytes()[:-200])
        given = {"--table": files.study.table, "--unifrac-matrix": files.study.matrix, option: path}
        files.refused("pretrain", *[part for pair in given.items() for part in pair], words=(path, *words))

    def test_artifacts_are_not_streamed(self, files: Files) -> None:
        content = {"feature-table.biom": files.study.table.read_bytes()}
        path = write_artifact(files.folder / "table.qza", "FeatureTable[Frequency]", content)
        options = ("--unifrac-matrix", files.study.matrix, "--streaming")
        files.refused("pretrain", "--table", path, *options, words=(path, "qiime tools export"))

    @pytest.mark.parametrize(
        "options", [("--rarefy-depth", 100), ("--rarefy-depth", 100, "--streaming"), ("--augment-rarefy", 100)]
    )
    def test_relative_frequencies_have_no_reads(self, files: Files, options: tuple[object, ...]) -> None:
        path = files.table(self.relative)
        given = ("--table", path, "--unifrac-matrix", files.study.matrix)
        files.refused("pretrain", *given, *options, words=(path, options[0], "whole reads"))

    def test_relative_frequencies_are_not_added_up(self, files: Files) -> None:
        path = files.table(self.relative)
        for streaming in ((), ("--streaming",)):
            given = ("--table", path, "--table", files.study.table, "--unifrac-matrix", files.study.matrix)
            files.refused("pretrain", *given, *streaming, words=(path, "added up"))

    @staticmethod
    def relative(table: FeatureTable) -> FeatureTable:
        shares = sparse.csr_array(table.counts / table.counts.sum(axis=1)[:, None])
        return replace(table, counts=shares)

    def test_unnormalised_weighted_unifrac(self, files: Files) -> None:
        path = files.matrix(lambda values: values * 3)
        options = ("--table", files.study.table, "--unifrac-matrix", path, "--base-target", "weighted_unifrac")
        files.refused("pretrain", *options, words=(path, "above 1", "unnormalised", "weighted_normalized"))

    def test_pickled_ids(self, files: Files) -> None:
        path = files.folder / "matrix.npz"
        np.savez(path, ids=np.array(load_table(files.study.table).sample_ids, dtype=object), matrix=np.zeros((24, 24)))
        files.matrix_refused(path, "'ids'", "dtype=str")

    @pytest.mark.parametrize(
        ("spell", "words"),
        [
            (lambda names: [names[1], *names[1:]], ("duplicate",)),
            (lambda names: [f"{names[1]} ", *names[1:]], ("white space",)),
            (lambda names: [name.upper() for name in names], ("upper and lower case",)),
        ],
        ids=["duplicate", "padded", "case"],
    )
    def test_spellings_of_ids(
        self, files: Files, spell: Callable[[list[str]], list[str]], words: tuple[str, ...]
    ) -> None:
        with h5py.File(files.study.matrix) as file:
            names, values = [name.decode() for name in file["order"][()]], file["matrix"][()]
        path = files.folder / "spelt.h5"
        write_distances_h5(path, spell(names), values)
        files.matrix_refused(path, *words)

    def test_a_lost_leading_zero(self, files: Files) -> None:
        names = [f"{number:04d}" for number in range(24)]
        table = files.table(lambda table: replace(table, sample_ids=names))
        rows = "".join(f"{int(name)}\t{name}\n" for name in names)
        metadata = files.text("metadata.tsv", f"sample_id\tage\n{rows}")
        options = ("--table", table, "--metadata", metadata, "--metadata-column", "age")
        files.refused("train", *options, words=(metadata, "leading zeros", "spreadsheet"))

    def test_metadata_files_that_disagree(self, files: Files) -> None:
        names = load_table(files.study.table).sample_ids
        one, other = (
            files.text(
                f"{add}.tsv", "sample_id\tage\n" + "".join(f"{name}\t{i + add}\n" for i, name in enumerate(names))
            )
            for add in (0, 1)
        )
        options = ("--table", files.study.table, "--metadata", one, "--metadata", other, "--metadata-column", "age")
        files.refused("train", *options, words=(one, other, "'age'"))

    @pytest.mark.parametrize(
        ("encoding", "way_out"), [("latin-1", "iconv -f LATIN1"), ("utf-16", "iconv -f UTF-16")], ids=str
    )
    def test_other_encodings(self, files: Files, encoding: str, way_out: str) -> None:
        text = files.metadata("city", lambda _: "München").read_text()
        path = files.bytes("other.tsv", text.encode(encoding))
        options = ("--table", files.study.table, "--metadata", path, "--metadata-column", "age")
        files.refused("train", *options, words=(path, way_out))


class TestAccepted:
    """What looks odd but says the same gives the same run."""

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
        run = tmp_path_factory.mktemp("accepted") / "run"
        succeed(*study.pretrain, "--epochs", 1, "--metadata", study.metadata, "--output-dir", run)
        return (run / "history.csv").read_text()

    @pytest.mark.parametrize("what", ["lower case", "RNA", "white space", "Windows line ends", "more in the matrix"])
    def test_same_run(self, files: Files, plain: str, what: str) -> None:
        table, matrix, metadata = files.study.table, files.study.matrix, files.study.metadata
        spell: dict[str, Callable[[str], str]] = {"lower case": str.lower, "RNA": lambda name: name.replace("T", "U")}
        if what in spell:
            table = files.table(lambda table: replace(table, feature_ids=[spell[what](f) for f in table.feature_ids]))
        elif what == "white space":
            table = files.table(lambda table: replace(table, sample_ids=[f" {name} " for name in table.sample_ids]))
        elif what == "Windows line ends":
            metadata = files.bytes("crlf.tsv", metadata.read_bytes().replace(b"\n", b"\r\n"))
        else:
            with h5py.File(matrix) as file:
                names, values = [name.decode() for name in file["order"][()]], file["matrix"][()]
            matrix = files.folder / "more.h5"
            larger = np.pad(values, (1, 0), constant_values=0.5)
            larger[0, 0] = 0
            write_distances_h5(matrix, ["another", *names], larger)
        given = ("--table", table, "--unifrac-matrix", matrix, "--metadata", metadata)
        succeed("pretrain", *given, *TINY, "--epochs", 1, "--output-dir", files.run)
        assert (files.run / "history.csv").read_text() == plain

    def test_other_letters_are_counted_and_missing_samples_named(self, files: Files) -> None:
        table = files.table(lambda table: replace(table, feature_ids=["R" + f[1:] for f in table.feature_ids]))
        with h5py.File(files.study.matrix) as file:
            names, values = [name.decode() for name in file["order"][()]], file["matrix"][()]
        write_distances_h5(files.folder / "few.h5", names[:18], values[:18, :18])
        given = ("--table", table, "--unifrac-matrix", files.folder / "few.h5")
        said = succeed("pretrain", *given, *TINY, "--epochs", 1, "--output-dir", files.run).err
        assert "sequences hold letters other than A, C, G and T, which are read as N" in said
        assert "left out: 6 not in the distance matrix" in said
