from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from aam.cli.distances import METRICS
from aam.data.biom_loader import FeatureTable, load_table
from aam.data.distances import Metric, compute
from aam.data.newick import read_newick
from aam.data.unifrac_loader import load_distances
from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, simulate, succeed, write_table
from tests.real_data import real_data

ENGINE = "ssu" if shutil.which("ssu") else "scikit-bio"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("distances") / "study")


def test_writes_what_other_commands_read(files: StudyFiles, tmp_path: Path) -> None:
    output = tmp_path / "new" / "unifrac.h5"
    outcome = succeed("distances", "--table", files.table, "--tree", files.folder / "tree.nwk", "--output", output)
    assert outcome.out.startswith(f"{output}: unifrac of 24 samples with a tree of 30 ASVs, by {ENGINE} in ")
    assert outcome.out.count("\n") == 1
    assert outcome.err == ""
    ids = load_table(files.table).sample_ids
    found, expected = load_distances(output, ids), load_distances(files.matrix, ids)
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    checked = succeed("check", "--table", files.table, "--unifrac-matrix", output)
    assert "distances   24 samples" in checked.out


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: Metric, files: StudyFiles, tmp_path: Path) -> None:
    output = tmp_path / "d.tsv"
    tree = files.folder / "tree.nwk"
    call = ["distances", "--table", files.table, "--base-target", metric, "--tree", tree, "--output", output]
    succeed(*call, "--engine", "skbio")
    table = load_table(files.table)
    expected = compute(metric, table, tree, engine="skbio")
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert [row[0] for row in rows[1:]] == table.sample_ids
    values = np.array([row[1:] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(values.squeeze(), expected.values, rtol=1e-6)


def test_metrics_that_are_offered_are_those_there_are() -> None:
    from typing import get_args

    assert list(get_args(Metric)) == METRICS


def test_alpha_and_rarefaction_change_what_is_computed(files: StudyFiles, tmp_path: Path) -> None:
    table = load_table(files.table)
    depth = int(np.sort(table.counts.sum(axis=1))[2])
    call = ["distances", "--table", files.table, "--tree", files.folder / "tree.nwk", "--metric", "generalized_unifrac"]
    matrices = []
    for number, more in enumerate(
        ([], ["--alpha", 1], ["--rarefy-depth", depth], ["--rarefy-depth", depth, "--seed", 1])
    ):
        outcome = succeed(*call, "--engine", "skbio", "--output", tmp_path / f"{number}.h5", *more)
        with h5py.File(tmp_path / f"{number}.h5") as file:
            matrices.append(file["matrix"][()])
    assert "Note: 2 samples (" in outcome.err
    assert [len(matrix) for matrix in matrices] == [24, 24, 22, 22]
    assert not np.array_equal(matrices[0], matrices[1])
    assert not np.array_equal(matrices[2], matrices[3])


def test_asvs_are_found_by_id_or_sequence(files: StudyFiles, tmp_path: Path) -> None:
    table = load_table(files.table)
    hashes = [hashlib.md5(name.encode()).hexdigest() for name in table.feature_ids]
    hashed = write_table(tmp_path / "hashed.biom", FeatureTable(table.counts, table.sample_ids, hashes))
    fasta = tmp_path / "sequences.fasta"
    fasta.write_text("".join(f">{name}\n{dna}\n" for name, dna in zip(hashes, table.feature_ids, strict=True)))
    tree = files.folder / "tree.nwk"
    text = tree.read_text()
    for name, dna in zip(hashes, table.feature_ids, strict=True):
        text = text.replace(f"{dna}:", f"{name}:")
    hashed_tree = tmp_path / "hashed.nwk"
    hashed_tree.write_text(text)

    output = tmp_path / "d.h5"
    ids = table.sample_ids
    expected = load_distances(files.matrix, ids).values
    call = ["distances", "--output", output, "--overwrite", "--cache-dir", tmp_path / "cache"]
    for given, note in (
        (["--table", hashed, "--tree", tree, "--sequences", fasta], "by their sequence"),
        (["--table", files.table, "--tree", hashed_tree, "--sequences", fasta], "by their name in --sequences"),
        (["--table", hashed, "--tree", hashed_tree, "--sequences", fasta], ""),
        (["--table", hashed, "--tree", hashed_tree], ""),
        (["--table", hashed, "--tree", tree, "--sequences", fasta], "reused from the cache"),
    ):
        outcome = succeed(*call, *given)
        assert note in outcome.err
        np.testing.assert_allclose(load_distances(output, ids).values, expected, atol=1e-6)
    assert_one_line_error(aam(*call, "--table", hashed, "--tree", tree), 1, tree, "30 of the table's 30 ASVs")


def test_pruned_tree_is_saved(files: StudyFiles, tmp_path: Path) -> None:
    table = load_table(files.table)
    few = FeatureTable(table.counts[:, :5], table.sample_ids, table.feature_ids[:5])
    path = write_table(tmp_path / "few.biom", few)
    saved = tmp_path / "pruned.nwk"
    call = ["distances", "--table", path, "--tree", files.folder / "tree.nwk", "--output", tmp_path / "d.h5"]
    succeed(*call, "--save-pruned-tree", saved)
    tree = read_newick(saved)
    seen = {name for name, reads in zip(few.feature_ids, few.counts.sum(axis=0), strict=True) if reads}
    assert set(tree.labels(tree.tips)) == seen
    call[2], call[4] = files.table, saved
    outcome = aam(*call, "--overwrite")
    assert_one_line_error(outcome, 1, saved, "not among its tips")
    outcome = succeed(*call, "--overwrite", "--drop-missing")
    assert "ASVs that the tree lacks were left out" in outcome.err


def test_artifacts(tmp_path: Path) -> None:
    study = real_data("udca_qza")
    tree = read_newick(study / "rooted-tree.qza")
    table = load_table(study / "table.qza")
    assert set(table.feature_ids) <= set(tree.labels(tree.tips))
    output = tmp_path / "faith.tsv"
    call = ["distances", "--table", study / "table.qza", "--tree", study / "rooted-tree.qza", "--output", output]
    outcome = succeed(*call, "--metric", "faith_pd", "--sequences", study / "rep-seqs.qza")
    assert "faith_pd of 948 samples" in outcome.out
    assert "without reads left out" in outcome.err
    with zipfile.ZipFile(study / "rooted-tree.qza") as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("/data/tree.nwk")]
        (tmp_path / "tree.nwk").write_bytes(archive.read(member))
    expected = compute("faith_pd", table, tmp_path / "tree.nwk", engine="skbio")
    lines = [line.split("\t") for line in output.read_text().splitlines()[1:]]
    assert [name for name, _ in lines] == expected.ids
    np.testing.assert_allclose([float(value) for _, value in lines], expected.values, rtol=1e-6)


def test_refusals(files: StudyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = files.folder / "tree.nwk"
    output = tmp_path / "d.h5"
    call = ["distances", "--table", files.table, "--output", output]
    assert_one_line_error(aam(*call), 1, "unifrac needs a tree", "--tree")
    assert_one_line_error(aam(*call, "--tree", tmp_path / "none.nwk"), 1, "none.nwk", "no such file")
    assert_one_line_error(aam(*call, "--tree", files.metadata), 1, files.metadata, "not a Newick tree")
    assert_one_line_error(aam(*call, "--metric", "faith_pd", "--tree", tree), 1, output, ".tsv")
    assert_one_line_error(aam(*call, "--metric", "jaccard", "--engine", "ssu"), 1, "ssu has no jaccard")
    assert_one_line_error(aam(*call, "--tree", tree, "--metric", "generalized_unifrac", "--alpha", 2), 1, "alpha is 2")
    assert_one_line_error(aam(*call, "--tree", tree, "--metric", "unknown"), 2, "unknown")
    assert_one_line_error(aam(*call, "--metric", "jaccard", "--save-pruned-tree", "x"), 1, "reads no tree")
    table = load_table(files.table)
    halves = write_table(tmp_path / "halves.biom", replace(table, counts=table.counts / 2))
    call[2] = halves
    assert_one_line_error(aam(*call, "--metric", "jaccard", "--rarefy-depth", 5), 1, halves, "draws whole reads")
    call[2] = files.table
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_one_line_error(aam(*call, "--tree", tree, "--engine", "ssu"), 1, "conda install", "apt-get install")
    assert not output.exists()
    output.write_text("mine")
    assert_one_line_error(aam(*call, "--tree", tree), 1, output, "--overwrite")
    assert output.read_text() == "mine"


def test_what_is_kept_in_the_cache_is_said_and_the_same(files: StudyFiles, tmp_path: Path) -> None:
    cache, plain, kept = tmp_path / "cache", tmp_path / "plain.npy", tmp_path / "kept.npy"
    for metric, note in (
        ("bray_curtis", ""),
        ("jaccard", "rarefied table was reused"),
        ("jaccard", "distances were reused"),
    ):
        call = ["distances", "--table", files.table, "--metric", metric, "--rarefy-depth", 50, "--overwrite"]
        succeed(*call, "--output", plain)
        outcome = succeed(*call, "--output", kept, "--cache-dir", cache)
        assert note in outcome.err and ("reused" in outcome.err) == bool(note)
        np.testing.assert_array_equal(np.load(kept), np.load(plain))
    for path in cache.iterdir():  # damaged entries are made again
        path.write_bytes(b"PK\x03\x04 nonsense")
    succeed(*call, "--output", kept, "--cache-dir", cache)
    np.testing.assert_array_equal(np.load(kept), np.load(plain))


def test_a_file_without_ids_is_refused_before_anything_is_computed(
    files: StudyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aam.distances.compute", lambda *arguments, **options: pytest.fail("computed"))
    depth = np.sort(load_table(files.table).counts.sum(axis=1))
    call = ("distances", "--table", files.table, "--base-target", "bray_curtis", "--rarefy-depth", int(depth[4]) + 1)
    outcome = aam(*call, "--output", tmp_path / "d.npy")
    assert_one_line_error(outcome, 1, tmp_path / "d.npy", "no sample IDs", f"{(depth <= int(depth[4])).sum()} samples")


def test_too_many_reads_to_draw_from(files: StudyFiles, tmp_path: Path) -> None:
    read = load_table(files.table)
    table = write_table(tmp_path / "t.biom", replace(read, counts=read.counts * 10_000_000))
    call = ("distances", "--table", table, "--base-target", "bray_curtis", "--rarefy-depth", 100)
    assert_one_line_error(aam(*call, "--output", tmp_path / "d.h5"), 1, "fewer than 1e+09 reads")
