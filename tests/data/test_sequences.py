from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from aam.data.biom_loader import FeatureTable, load_table
from aam.data.sequences import (
    count_ambiguous,
    is_dna,
    load_sequences,
    merge_duplicate_sequences,
    resolve_sequences,
)
from aam.errors import DataError
from tests.data.artifacts import write_artifact
from tests.real_data import real_data

DNA = "TACGGAGGATCCGAGCGTTATCCGG"
TABLE = Path("table.biom")
ON_DISK = settings(
    max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_fasta(tmp_path):
    path = tmp_path / "seqs"
    content = b">a first one\r\nACGT\r\nacgu\r\n\r\n>b\r\nNNRY\r\n"
    path.write_bytes(content)
    assert load_sequences(path) == {"a": "ACGTACGT", "b": "NNRY"}
    path.write_bytes(gzip.compress(content))
    assert load_sequences(path) == {"a": "ACGTACGT", "b": "NNRY"}


def test_artifact(tmp_path):
    path = tmp_path / "a"
    fasta = {"dna-sequences.fasta": b">a\nACgu\n"}
    assert load_sequences(write_artifact(path, "FeatureData[Sequence]", fasta)) == {"a": "ACGT"}
    rna = write_artifact(path, "FeatureData[RNASequence]", {"rna-sequences.fasta": b">a\nACGU\n"})
    assert load_sequences(rna) == {"a": "ACGT"}
    with pytest.raises(DataError, match="before alignment"):
        load_sequences(write_artifact(path, "FeatureData[AlignedSequence]", fasta))
    with pytest.raises(DataError, match=r"FeatureTable\[Frequency\] where a set of representative sequences .*--table"):
        load_sequences(write_artifact(path, "FeatureTable[Frequency]", fasta))
    with pytest.raises(DataError, match="not FASTA"):
        load_sequences(write_artifact(path, "FeatureData[Sequence]", {"dna-sequences.fasta": b"ACGT"}))


def test_count_ambiguous():
    assert count_ambiguous(["ACGT", "acgu", "ACGN", "RYRY", "acgtn", ""]) == 3


def test_real_artifact():
    sequences = load_sequences(real_data("udca_qza/rep-seqs.qza"))
    features = load_table(real_data("udca_qza/table.qza")).feature_ids
    resolved = resolve_sequences(features, sequences, TABLE)
    assert len(resolved) == 4910
    assert [hashlib.md5(sequence.encode()).hexdigest() for sequence in resolved] == features
    assert count_ambiguous(resolved) == 0
    with pytest.raises(DataError, match="--sequences"):
        resolve_sequences(features, None, TABLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("ACGT\n", "not FASTA"),
        (">a\nAC\n>a\nAC\n", "'a' occurs twice"),
        (">a\n>b\nAC\n", "'a' has no sequence"),
        (">a\nAC-GT\n", "'-' at position 3"),
        ("> a\nAC\n", "record 1 has no ID"),
        (">\nAC\n", "record 1 has no ID"),
    ],
)
def test_fasta_errors(tmp_path, content, words):
    path = tmp_path / "seqs.fasta"
    path.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        load_sequences(path)
    assert str(path) in str(caught.value)


@ON_DISK
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
        st.text("ACGTRYSWKMBDHVN", min_size=1, max_size=200),
        min_size=1,
    ),
    st.integers(1, 80),
)
def test_fasta_round_trip(tmp_path, sequences, width):
    path = tmp_path / "seqs.fasta"
    lines = []
    for name, sequence in sequences.items():
        lines += [f">{name} x", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    path.write_text("\n".join(lines))
    assert load_sequences(path) == sequences


@ON_DISK
@given(st.binary(max_size=100) | st.text(">ACGT \nx").map(str.encode))
def test_any_bytes_give_sequences_or_a_data_error(tmp_path, content):
    path = tmp_path / "seqs.fasta"
    path.write_bytes(content)
    try:
        assert all(load_sequences(path).values())
    except DataError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("name", ["BACTRA", hashlib.md5(b"x").hexdigest(), "4479944", "k__Bacteria", "ACGT", "N" * 100])
def test_ids_that_are_not_dna(name):
    assert not is_dna(name)
    with pytest.raises(DataError, match=r"1 of 2 feature IDs.*--sequences rep-seqs.fasta"):
        resolve_sequences([DNA, name], None, TABLE)


def test_resolve():
    assert resolve_sequences([DNA.lower(), DNA.replace("T", "U"), DNA + "N"], None, TABLE) == [DNA, DNA, DNA + "N"]
    assert resolve_sequences(["b", "a"], {"a": "ACGU", "b": "rw", "c": "T"}, TABLE) == ["RW", "ACGT"]
    with pytest.raises(DataError, match=r"2 of 3 features .* first 'x'"):
        resolve_sequences(["a", "x", "y"], {"a": "ACGT"}, TABLE)
    with pytest.raises(DataError, match=r"'a' holds '\?'"):
        resolve_sequences(["a"], {"a": "AC?"}, TABLE)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_merge(sequences, seed):
    dense = np.random.default_rng(seed).integers(0, 3, (3, len(sequences))).astype(float)
    table = FeatureTable(sparse.csr_array(dense), list("xyz"), [f"f{i}" for i in range(len(sequences))])
    merged, kept, away = merge_duplicate_sequences(table, sequences)
    assert kept == list(dict.fromkeys(sequences))
    assert away == len(sequences) - len(kept)
    assert merged.feature_ids == [f"f{sequences.index(sequence)}" for sequence in kept]
    expected = np.stack([dense[:, np.array(sequences) == sequence].sum(axis=1) for sequence in kept], axis=1)
    np.testing.assert_array_equal(merged.counts.toarray(), expected)
    assert merged.counts.has_sorted_indices


def test_real_ids_are_dna():
    path = real_data("ibd_crohns_2538/table.biom")
    table = load_table(path)
    sequences = resolve_sequences(table.feature_ids, None, path)
    assert {len(sequence) for sequence in sequences} == {100}
    assert merge_duplicate_sequences(table, sequences)[2] == 0
