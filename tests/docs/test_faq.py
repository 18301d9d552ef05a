"""The FAQ has the very lines that the program prints: each of its `text` blocks comes of one of these calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import sparse

from aam.data.biom_loader import FeatureTable, load_table
from tests.data.artifacts import write_artifact
from tests.docs.pages import DOCS, blocks
from tests.end_to_end.program import QUICK, TINY, aam, simulate, succeed, write_table

TABLE = ["--table", "table.biom"]
METADATA = ["--metadata", "metadata.tsv"]
AGE = [*METADATA, "--metadata-column", "age"]
TRAIN = ["train", *TABLE, *AGE, *TINY, "--output-dir"]
DISTANCES = ["distances", *TABLE, "--output", "distances.h5"]

# Calls that are refused, in the order of the page.
REFUSED: list[list[str]] = [
    ["check", "--table", "hashes.biom"],
    ["check", "--table", "aligned.qza"],
    ["train", "--table", "relative.biom", *AGE, "--rarefy-depth", "100", *TINY, "--output-dir", "new"],
    [*TRAIN, "new", "--rarefy-depth", "100000"],
    [*DISTANCES, "--tree", "other.nwk"],
    ["train", *TABLE, "--unifrac-matrix", "others.tsv", *AGE, *TINY, "--output-dir", "new"],
    ["train", *TABLE, "--unifrac-matrix", "part", *AGE, *TINY, "--output-dir", "new"],
    ["train", *TABLE, *METADATA, "--metadata-column", "agee", *TINY, "--output-dir", "new"],
    ["train", *TABLE, *METADATA, "--metadata-column", "group", *TINY, "--output-dir", "new"],
    ["train", *TABLE, "--metadata", "renamed.tsv", "--metadata-column", "age", *TINY, "--output-dir", "new"],
    ["train", *TABLE, "--metadata", "twice.tsv", "--metadata-column", "age", *TINY, "--output-dir", "new"],
    [*TRAIN, "new", "--group-column", "subject_id", "--folds", "40"],
    [*TRAIN, "runs/age"],
    [*TRAIN, "new", "--resume"],
    [
        "train",
        *TABLE,
        *AGE,
        *QUICK,
        "--pretrained-encoder",
        "runs/pretrain",
        "--embedding-dim",
        "32",
        "--output-dir",
        "new",
    ],
    [
        "train",
        *TABLE,
        *AGE,
        *QUICK,
        "--pretrained-encoder",
        "runs/pretrain",
        "--splits",
        "splits.tsv",
        "--output-dir",
        "new",
    ],
    ["predict", "--model", "runs/pretrain", *TABLE, "--output", "predictions.tsv"],
    ["predict", "--model", "runs/age", *TABLE, "--interval", "0.9", "--output", "predictions.tsv"],
    ["predict", "--model", "runs", *TABLE, "--output", "predictions.tsv"],
    ["pretrain", *TABLE, *TINY, "--output-dir", "new"],
    [*TRAIN, "new", "--attention-heads", "3"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faq")
    study = simulate(folder)
    table = load_table(study.table)
    names = [f"f{i:04}" for i in range(len(table.feature_ids))]
    write_table(folder / "hashes.biom", FeatureTable(table.counts, table.sample_ids, names))
    shares = sparse.csr_array(table.counts / table.counts.sum(axis=1)[:, None])
    write_table(folder / "relative.biom", FeatureTable(shares, table.sample_ids, table.feature_ids))
    write_artifact(
        folder / "aligned.qza", "FeatureData[AlignedSequence]", {"aligned-dna-sequences.fasta": b">a\nAC-\n"}
    )
    (folder / "other.nwk").write_text("((x:1,y:1):1,z:1);\n")
    (folder / "others.tsv").write_text("\ta\tb\na\t0\t0.5\nb\t0.5\t0\n")
    (folder / "part").write_bytes(bytes.fromhex("02ba8a0828000000070000"))
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    renamed = metadata.assign(sample_id="other." + metadata["sample_id"])
    renamed.to_csv(folder / "renamed.tsv", sep="\t", index=False)
    twice = pd.concat([metadata, metadata.head(1).assign(age="1")])
    twice.to_csv(folder / "twice.tsv", sep="\t", index=False)
    succeed(*study.pretrain, "--output-dir", folder / "runs" / "pretrain")
    succeed(*study.train, "--metadata-column", "age", "--output-dir", folder / "runs" / "age")
    splits = pd.read_csv(folder / "runs" / "pretrain" / "splits.tsv", sep="\t", dtype=str)
    learnt = splits["split"] == "train"
    splits.loc[learnt, "split"] = ["test"] * 5 + ["train"] * (learnt.sum() - 5)
    splits.to_csv(folder / "splits.tsv", sep="\t", index=False)
    return folder


@pytest.mark.slow
def test_the_lines_are_what_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    printed = []
    for arguments in REFUSED:
        outcome = aam(*arguments)
        assert outcome.code != 0, arguments
        lines = [*outcome.err.splitlines(), *outcome.out.splitlines()]
        (line,) = [line for line in lines if line.startswith(("Error: ", "Problem: "))]
        printed.append(line)
        shutil.rmtree("new", ignore_errors=True)
    assert [line for block in blocks(DOCS / "faq.md", "text") for line in block.splitlines()] == printed
