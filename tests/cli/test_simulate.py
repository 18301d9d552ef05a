from __future__ import annotations

import json
from pathlib import Path

from aam.data.biom_loader import load_table
from aam.data.distances import unweighted_unifrac
from aam.data.metadata import load_metadata
from aam.data.sequences import is_dna
from tests.end_to_end.program import aam, assert_one_line_error, succeed

SMALL = ["--samples", 12, "--asvs", 20, "--subjects", 4, "--length", 30, "--depth", 100]


def test_writes_files_that_the_other_commands_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "study"
    outcome = succeed("simulate", "--output-dir", folder, *SMALL)
    assert outcome.out.split() == [str(path) for path in sorted(folder.iterdir())]
    assert {path.name for path in folder.iterdir()} == {
        "table.biom",
        "tree.nwk",
        "metadata.tsv",
        "truth.json",
        "truth.tsv",
    }
    table = load_table(folder / "table.biom")
    assert table.shape == (12, 20)
    assert all(is_dna(name) and len(name) == 30 for name in table.feature_ids)
    metadata = load_metadata(folder / "metadata.tsv")
    assert sorted(metadata.index) == sorted(table.sample_ids)
    assert metadata["subject_id"].nunique() == 4
    distances = unweighted_unifrac(table.counts, table.feature_ids, folder / "tree.nwk", table.sample_ids)
    assert distances.shape == (12, 12)
    assert distances.max() > 0


def test_the_seed_makes_the_study(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed("simulate", "--output-dir", tmp_path / name, *SMALL, "--seed", seed)
    contents = [(tmp_path / name / "table.biom").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_refuses_to_replace_a_study_unless_told_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    succeed("simulate", "--output-dir", tmp_path, *SMALL)
    before = (tmp_path / "table.biom").read_bytes()
    outcome = aam("simulate", "--output-dir", tmp_path, *SMALL, "--seed", 5)
    assert_one_line_error(outcome, 1, tmp_path, "--overwrite")
    assert (tmp_path / "table.biom").read_bytes() == before
    outcome = succeed("simulate", "--output-dir", tmp_path, *SMALL, "--seed", 5, "--overwrite")
    assert (tmp_path / "table.biom").read_bytes() != before
    assert "notes.txt" not in outcome.out


def test_impossible_sizes_are_named(tmp_path: Path) -> None:
    outcome = aam("simulate", "--output-dir", tmp_path / "s", "--samples", 5, "--subjects", 9)
    assert_one_line_error(outcome, 1, "9 subjects", "5 samples")
    assert_one_line_error(aam("simulate", "--output-dir", tmp_path / "s", "--asvs", 2), 2, "--asvs", "2 is not")
    assert not (tmp_path / "s").exists()
    (tmp_path / "file").write_text("")
    assert_one_line_error(aam("simulate", "--output-dir", tmp_path / "file"), 1, tmp_path / "file")
    assert_one_line_error(aam("simulate", "--output-dir", tmp_path / "file" / "s"), 1, tmp_path / "file" / "s")


def test_a_planted_column(tmp_path: Path) -> None:
    succeed("simulate", "--output-dir", tmp_path, "--samples", 40, "--asvs", 80, "--subjects", 10, "--plant", 2)
    metadata = load_metadata(tmp_path / "metadata.tsv")
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert metadata["planted"].astype(float).std() > 0 and len(truth["planted"]) == 2
    assert set(truth["planted"]) <= {clade["clade"] for clade in truth["clades"] if clade["effect"] == 0}
