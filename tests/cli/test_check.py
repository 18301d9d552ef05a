from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
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
    assert lines[1] == "overlap     24 samples are in every file, 24 in the table"
    assert lines[2] == "ASVs        30, 40 to 40 bases"
    assert lines[3] == "token limit no sample has more ASVs than --token-limit 1024"
    assert lines[4].startswith("distances   24 samples, mean 0.")
    assert lines[5].startswith("target      age, a number: median ")
    assert lines[6].startswith("split       ") and "groups" in lines[6]
    assert lines[7].startswith("estimate    about ") and "epochs" in lines[7]
    assert lines[8].strip() == "a quarter of that to twice as long again, to find out whether the signal is weak"
    assert lines[9].startswith("            about ") and "GB of memory" in lines[9]
    assert lines[11].split() == ["least", "5%", "25%", "median", "75%", "95%", "most"]
    starts = ["reads of a sample", "ASVs of a sample", "bases of an ASV", "age"]
    assert all(line.startswith(start) for line, start in zip(lines[12:16], starts, strict=True))
    assert lines[16:] == ["", "No problem found."]
    assert max(map(len, lines)) <= 120


def test_json_has_exactly_these_keys(study: StudyFiles) -> None:
    code, found = report(
        *("--table", study.table, "--unifrac-matrix", study.matrix, "--metadata", study.metadata),
        *("--metadata-column", "group", "--classifier", "--rarefy-depth", "200"),
    )
    assert code == 0
    assert list(found) == [
        *("samples", "studies", "depth", "asvs", "lengths", "asvs_per_sample", "overlap", "distances", "target"),
        *("split", "estimate", "problems", "warnings"),
    ]
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
        code, found = report("--table", study.table, *grouped)
        assert (code, found["problems"]) == (0, [])
        split = found["split"]
        assert split["train"] + split["val"] + split["test"] == 24
        if options[0] == "--leave-out":
            assert (split["folds"], split["groups"]["test"]) == (None, 1)
            assert (split["val"], split["notes"]) == (0, [])  # watched on the test, and chosen by nothing
        else:
            assert sum(split["folds"]) == 24
            assert found["estimate"]["runs"] == len(split["folds"])
            assert split["folds"][0] == split["test"]


QUANTILES = {"min": 0, "q5": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1}


def agrees(found: dict[str, Any], values: Any) -> bool:
    return all(found[name] == pytest.approx(np.quantile(values, q)) for name, q in QUANTILES.items())


def test_numbers_are_those_of_the_table(study: StudyFiles) -> None:
    counts = load_table(study.table).counts.toarray()
    present = (counts > 0).sum(axis=1)
    limit = int(np.median(present))
    code, found = report("--table", study.table, "--token-limit", limit)
    assert code == 0
    assert agrees(found["depth"], counts.sum(axis=1))
    assert agrees(found["asvs_per_sample"], present)
    assert agrees(found["lengths"], [40] * 30)
    assert found["asvs_per_sample"]["over_limit"] == (present > limit).sum()
    lost = np.sort(counts, axis=1)[:, :-limit].sum() / counts.sum()
    assert found["asvs_per_sample"]["reads_lost"] == pytest.approx(lost)
    assert found["estimate"]["batch"]["asvs_per_sample"] <= limit

    code, found = report("--table", study.table, "--rarefy-depth", 100)
    assert code == 0
    assert found["asvs_per_sample"]["max"] <= present.max()
    assert agrees(found["depth"], counts.sum(axis=1)[counts.sum(axis=1) >= 100])
    code, found = report("--table", study.table, "--token-limit", limit, "--asv-sampling", "random")
    assert code == 0
    assert lost <= found["asvs_per_sample"]["reads_lost"] < 1


def test_what_files_lack_of_each_other(study: StudyFiles, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.tsv"
    header, first, *rows = study.metadata.read_text().splitlines()
    metadata.write_text("\n".join([header, *rows, first.replace(first.split("\t")[0], "a stranger", 1)]) + "\n")
    options = ["--table", study.table, "--unifrac-matrix", study.matrix, "--metadata", metadata]
    code, found = report(*options)
    assert code == 0
    name = first.split("\t")[0]
    assert (found["overlap"]["table"], found["overlap"]["all"]) == (24, 23)
    assert found["overlap"]["files"] == {
        "unifrac": {
            "samples": 24,
            "lacks": 0,
            "lacks_for_example": [],
            "not_in_table": 0,
            "not_in_table_for_example": [],
        },
        "metadata": {
            "samples": 24,
            "lacks": 1,
            "lacks_for_example": [name],
            "not_in_table": 1,
            "not_in_table_for_example": ["a stranger"],
        },
    }
    page = succeed("check", *options).out
    assert f"lacks 1 of the table ({name})" in page
    assert "has 1 that the table lacks (a stranger)" in page


def test_studies_are_counted(study: StudyFiles, tmp_path: Path) -> None:
    table = load_table(study.table)
    paths = []
    for name, some in (("gut", slice(0, 10)), ("skin", slice(10, 24))):
        part = type(table)(table.counts[some], table.sample_ids[some], table.feature_ids)
        paths += ["--table", write_table(tmp_path / f"{name}.biom", part)]
    code, found = report(*paths)
    assert code == 0
    assert found["studies"] == {"gut": 10, "skin": 14}


def test_letters_that_are_read_as_n_are_counted(study: StudyFiles, tmp_path: Path) -> None:
    table = load_table(study.table)
    names = [name[:-2] + "NR" if i < 3 else name for i, name in enumerate(table.feature_ids)]
    path = write_table(tmp_path / "table.biom", type(table)(table.counts, table.sample_ids, names))
    code, found = report("--table", path, "--max-bp", "39")
    assert code == 0
    assert (found["lengths"]["with_other_letters"], found["lengths"]["other_letters"]) == (3, 6)
    assert found["lengths"]["cut"] == 30
    assert found["estimate"]["batch"]["tokens"] == 40


def test_a_broken_table_hides_no_problem_of_another_file(study: StudyFiles, tmp_path: Path) -> None:
    absent = [tmp_path / f"absent.{name}" for name in ("biom", "h5", "fasta", "taxonomy", "splits")]
    table, matrix, fasta, taxonomy, splits = absent
    code, found = report(
        *("--table", table, "--unifrac-matrix", matrix, "--sequences", fasta, "--taxonomy", taxonomy),
        *("--splits", splits, "--metadata", study.metadata, "--metadata-column", "group", "--group-column", "agge"),
    )
    assert code == 1
    for path in absent:
        assert sum(str(path) in problem for problem in found["problems"]) == 1, found["problems"]
    assert sum("'group'" in problem for problem in found["problems"]) == 1
    assert sum("'agge'" in problem for problem in found["problems"]) == 1
    assert len(found["problems"]) == 7


def test_too_many_matrices_are_one_problem_among_others(study: StudyFiles) -> None:
    matrices = ["--unifrac-matrix", study.matrix] * 2
    code, found = report("--table", study.table, *matrices, "--metadata", study.metadata, "--metadata-column", "agge")
    assert code == 1
    assert "2 files" in found["problems"][0]
    assert "'agge'" in found["problems"][1]


def test_settings_make_the_estimate(study: StudyFiles) -> None:
    estimates = [
        report("--table", study.table, *options)[1]["estimate"]
        for options in (
            [],
            ["--embedding-dim", "256"],
            ["--gradient-checkpointing"],
            ["--epochs", "100"],
            ["--train-steps", "90"],
        )
    ]
    plain, wide, checkpointed, long, short = estimates
    assert short["epochs"] == 90
    assert wide["parameters"] > 3 * plain["parameters"]
    assert wide["flops_per_step"] > 3 * plain["flops_per_step"]
    assert checkpointed["memory"]["activations"] < plain["memory"]["activations"]
    assert checkpointed["flops_per_step"] > plain["flops_per_step"]
    assert (plain["epochs"], long["epochs"]) == (800, 100)  # one step an epoch
    assert plain["seconds"] > long["seconds"] / 2
    outcome = aam("check", "--table", study.table, "--embedding-dim", "31")
    assert outcome.code == 2
    assert "--attention-heads 2" in outcome.err


def test_covariates(study: StudyFiles, tmp_path: Path) -> None:
    frame = pd.read_csv(study.metadata, sep="\t", dtype=str)
    frame["site"] = ["gut", "skin"] * 11 + ["NA", "NA"]
    frame.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    given = ["--table", study.table, "--metadata", tmp_path / "metadata.tsv", "--metadata-column", "group"]
    given += ["--classifier", "--categorical-columns", "site", "--numeric-columns", "age"]
    code, found = report(*given)
    assert code == 0
    assert found["covariates"]["columns"]["site"] == {"classes": {"gut": 11, "skin": 11}}
    assert found["covariates"]["columns"]["age"]["median"] == pytest.approx(frame["age"].astype(float).median())
    assert found["covariates"]["unknown"] == ["column 'site': 2 of 24 samples have no value; read as unknown"]
    page = succeed("check", *given).out
    assert "covariates  site, 2 categories\n" in page and "            age, a number: median " in page

    code, found = report(*given, "--numeric-columns", "sites", "--numeric-columns", "subject_id")
    assert code == 1 and found["covariates"] is None and found["samples"]["used"] == 24
    assert len(found["problems"]) == 2
    assert "has no column 'sites'; did you mean 'site'?" in found["problems"][0]
    assert "'subject_id' has 24 value(s) that are not numbers" in found["problems"][1]


def test_a_taxonomy_of_another_table(study: StudyFiles, tmp_path: Path) -> None:
    features = load_table(study.table).feature_ids
    taxonomy = tmp_path / "taxonomy.tsv"
    target = ("--table", study.table, "--base-target", "taxonomy")
    for named, problems, warnings in ((["other"], 1, 0), (features[:20], 0, 1), (features, 0, 0)):
        taxonomy.write_text("Feature ID\tTaxon\n" + "".join(f"{name}\tk__Bacteria\n" for name in named))
        code, found = report(*target, "--taxonomy", taxonomy)
        assert code == bool(problems) and len(found["problems"]) == problems
        assert sum("names no taxon of 10 of 30 features" in warning for warning in found["warnings"]) == warnings
    assert report(*target)[1]["problems"] == [
        "--base-target taxonomy learns what --taxonomy says of features; give one"
    ]


@pytest.mark.parametrize("hashed", [False, True])
def test_values_of_samples_of_other_tables_are_of_no_matter(hashed: bool, study: StudyFiles, tmp_path: Path) -> None:
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    other = metadata.iloc[[0]].assign(sample_id="other", age="LabControl", storage_days="LabControl")
    pd.concat([metadata, other]).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    table = study.table
    if hashed:
        read = load_table(study.table)
        table = write_table(tmp_path / "t.biom", replace(read, feature_ids=[f"h{i}" for i in range(30)]))
    columns = ("--metadata-column", "age", "--numeric-columns", "storage_days")
    found = report("--table", table, "--metadata", tmp_path / "m.tsv", *columns)[1]
    assert ["--sequences" in problem for problem in found["problems"]] == [True] * hashed


def test_a_table_on_its_side_is_told_so(study: StudyFiles, tmp_path: Path) -> None:
    read = load_table(study.table)
    lines = ["\t".join(["", *read.feature_ids])]
    lines += [
        "\t".join([name, *map(str, row)]) for name, row in zip(read.sample_ids, read.counts.toarray(), strict=True)
    ]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    found = report("--table", tmp_path / "t.tsv")[1]
    assert len(found["problems"]) == 1 and "transpose it" in found["problems"][0]


def test_one_subject_is_one_group_however_it_is_written(study: StudyFiles, tmp_path: Path) -> None:
    """As pandas writes a column of whole numbers where cells are empty, and where none is."""
    metadata = pd.read_csv(study.metadata, sep="\t")
    metadata["subject"] = pd.factorize(metadata["subject_id"])[0]
    metadata.iloc[::2].to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    floats = metadata.iloc[1::2].assign(subject=lambda frame: frame["subject"].astype(float))
    floats.to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    files = ("--table", study.table, "--metadata", tmp_path / "a.tsv", "--metadata", tmp_path / "b.tsv")
    found = report(*files, "--metadata-column", "age", "--group-column", "subject")[1]
    assert sum(found["split"]["groups"].values()) == metadata["subject"].nunique()


def test_metadata_that_cannot_be_read_are_one_problem(study: StudyFiles, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.tsv"
    metadata.write_text(study.metadata.read_text().replace("sample_id", "subject", 1))
    columns = ["--metadata-column", "age", "--group-column", "subject_id", "--leave-one-group-out"]
    code, found = report("--table", study.table, "--metadata", metadata, *columns)
    assert code == 1
    (problem,) = found["problems"]
    assert "first column is 'subject'" in problem
    assert found["samples"]["used"] == found["samples"]["table"]
