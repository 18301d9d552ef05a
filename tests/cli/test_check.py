from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from aam.data.biom_loader import load_table
from tests.end_to_end.program import StudyFiles, aam, succeed, write_table


def report(*arguments: object) -> tuple[int, dict[str, Any]]:
    outcome = aam("check", *arguments, "--json")
    assert not outcome.err
    return outcome.code, json.loads(outcome.out)


def test_the_page_says_what_was_found(study: StudyFiles) -> None:
    outcome = succeed(
        *("check", "--table", study.table, "--unifrac-matrix", study.matrix),
        *("--metadata", study.metadata, "--metadata-column", "age", "--group-column", "subject_id"),
    )
    lines = outcome.out.splitlines()
    assert lines[0] == "samples     24 of 24 are used"
    assert lines[1] == "ASVs        30, 40 to 40 bases"
    assert lines[2].startswith("distances   24 samples, mean 0.")
    assert lines[3].startswith("target      column age, min ")
    assert lines[4:] == ["No problem found."]


def test_json_has_exactly_these_keys(study: StudyFiles) -> None:
    code, found = report(
        *("--table", study.table, "--unifrac-matrix", study.matrix, "--metadata", study.metadata),
        *("--metadata-column", "group", "--classifier", "--rarefy-depth", "200"),
    )
    assert code == 0
    assert list(found) == ["samples", "asvs", "distances", "target", "problems", "warnings"]
    assert list(found["samples"]) == ["table", "used", "left_out"]
    left_out = found["samples"]["left_out"]
    assert found["samples"]["used"] == 24 - sum(left_out.values())
    assert all("--rarefy-depth 200" in reason for reason in left_out)
    assert list(found["asvs"]) == ["count", "length_min", "length_max"]
    assert list(found["distances"]) == ["samples", "references", "mean", "max"]
    assert found["distances"]["references"] is None
    assert 0 < found["distances"]["mean"] < found["distances"]["max"] <= 1
    assert found["target"]["column"] == "group"
    assert sum(found["target"]["classes"].values()) == found["samples"]["used"]
    assert found["problems"] == []
    assert any("subject_id" in warning for warning in found["warnings"])


def test_what_was_not_given_is_null(study: StudyFiles) -> None:
    code, found = report("--table", study.table)
    assert code == 0
    assert found["distances"] is found["target"] is None
    assert (found["problems"], found["warnings"]) == ([], [])


def test_every_problem_at_once(study: StudyFiles, tmp_path: Path) -> None:
    table, matrix, metadata = tmp_path / "absent.biom", tmp_path / "nan.h5", tmp_path / "metadata.tsv"
    metadata.write_text("colour\tage\nred\t3\n")
    code, found = report("--table", table, "--metadata", metadata, "--metadata-column", "age")
    assert code == 1
    assert len(found["problems"]) == 2
    assert str(table) in found["problems"][0]
    assert str(metadata) in found["problems"][1]

    with h5py.File(study.matrix) as source, h5py.File(matrix, "w") as file:
        values = source["matrix"][()]
        values[2, 3] = float("nan")
        file["order"], file["matrix"] = source["order"][()], values
    metadata.write_text(study.metadata.read_text().replace("infant", ""))
    options = ["--table", study.table, "--unifrac-matrix", matrix, "--metadata", metadata]
    code, found = report(*options, "--metadata-column", "agge", "--group-column", "subject")
    assert code == 1
    assert len(found["problems"]) == 3, found["problems"]
    assert str(matrix) in found["problems"][0] and "nan" in found["problems"][0]
    assert "'agge'" in found["problems"][1] and "'age'" in found["problems"][1]
    assert "'subject'" in found["problems"][2] and "'subject_id'" in found["problems"][2]

    outcome = aam("check", *options, "--metadata-column", "agge")
    assert outcome.code == 1
    assert [line for line in outcome.out.splitlines() if line.startswith("Problem: ")]
    assert "No problem" not in outcome.out
    assert not outcome.err


@pytest.mark.parametrize(
    ("column", "options", "words"),
    [
        ("group", [], ["'group'", "not numbers", "--classifier"]),
        ("constant", [], ["'constant'", "nothing to learn"]),
        ("constant", ["--classifier"], ["'constant'", "nothing to learn"]),
        ("single", ["--classifier"], ["'single'", "'once'", "one sample"]),
        ("empty", [], ["'empty'"]),
        ("age", ["--group-column", "constant"], ["'constant'", "1 group"]),
    ],
)
def test_targets_that_train_would_refuse(
    study: StudyFiles, tmp_path: Path, column: str, options: list[str], words: list[str]
) -> None:
    header, *rows = study.metadata.read_text().splitlines()
    lines = [f"{header}\tconstant\tsingle\tempty"]
    lines += [f"{row}\t7\t{'once' if i == 0 else 'often'}\t" for i, row in enumerate(rows)]
    metadata = tmp_path / "metadata.tsv"
    metadata.write_text("\n".join(lines) + "\n")
    arguments = ["--table", study.table, "--metadata", metadata, "--metadata-column", column, *options]
    code, found = report(*arguments)
    assert code == 1
    assert len(found["problems"]) == 1, found["problems"]
    assert all(word in found["problems"][0] for word in words), found["problems"]


def test_hashed_ids_are_a_problem_that_fasta_solves(study: StudyFiles, tmp_path: Path) -> None:
    table = load_table(study.table)
    names = [f"{i:032x}" for i in range(len(table.feature_ids))]
    hashed = write_table(tmp_path / "hashed.biom", type(table)(table.counts, table.sample_ids, names))
    code, found = report("--table", hashed)
    assert code == 1
    assert "--sequences" in found["problems"][0]
    assert found["samples"]["table"] == 24
    assert found["asvs"] is None
    fasta = tmp_path / "sequences.fasta"
    fasta.write_text("".join(f">{n}\n{s}\n" for n, s in zip(names, table.feature_ids, strict=True)))
    code, found = report("--table", hashed, "--sequences", fasta)
    assert code == 0
    assert found["asvs"] == {"count": 30, "length_min": 40, "length_max": 40}


def test_a_column_without_metadata_is_a_problem(study: StudyFiles) -> None:
    for option in ("--metadata-column", "--group-column"):
        code, found = report("--table", study.table, option, "age")
        assert code == 1
        (problem,) = found["problems"]
        for word in (study.table, option, "'age'", "add --metadata"):
            assert str(word) in problem


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split-column", "absent"], "'absent'"),
        (["--split-column", "group"], "name no split"),
        (["--group-column", "absent", "--leave-out", "x"], "'absent'"),
        (["--group-column", "absent", "--leave-one-group-out"], "'absent'"),
        (["--group-column", "subject_id", "--leave-out", "nobody"], "nobody"),
        (["--group-column", "subject_id", "--folds", "9"], "--folds 9"),
        (["--splits", "absent.tsv"], "absent.tsv"),
        (["--splits", "absent.tsv", "--folds", "3"], "absent.tsv"),
    ],
)
def test_a_split_that_cannot_be_made_is_one_problem(study: StudyFiles, options: list[str], words: str) -> None:
    code, found = report("--table", study.table, "--metadata", study.metadata, "--metadata-column", "age", *options)
    assert code == 1
    (problem,) = found["problems"]
    assert words in problem


def test_splits_that_can(study: StudyFiles) -> None:
    for options in (["--folds", "3"], ["--leave-one-group-out"], ["--leave-out", "subject01"]):
        grouped = ["--metadata", study.metadata, "--group-column", "subject_id", *options]
        assert report("--table", study.table, *grouped) == report("--table", study.table, *grouped[:4])
