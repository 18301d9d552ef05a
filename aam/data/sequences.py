"""The DNA sequence of every feature: from its ID, or from representative sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from aam.data.biom_loader import FeatureTable
from aam.data.files import decode_text, near_matches, read_text, require_file, shown
from aam.data.qza import is_artifact, read_artifact
from aam.errors import DataError

__all__ = [
    "count_ambiguous",
    "is_dna",
    "load_sequences",
    "merge_duplicate_sequences",
    "resolve_sequences",
    "reverse_complement",
    "unambiguous",
]

_WHAT = "set of representative sequences"
_FASTA_OF_TYPE = {
    "FeatureData[Sequence]": "dna-sequences.fasta",
    "FeatureData[RNASequence]": "rna-sequences.fasta",
}

_NOT_IUPAC = re.compile("[^ACGTRYSWKMBDHVN]")
_AMBIGUOUS = re.compile("[^ACGTUacgtu]")
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")
_MIN_LENGTH = 20
_MIN_ACGT = 0.9


def _normalise(sequence: str) -> str:
    return sequence.upper().replace("U", "T")


def is_dna(text: str) -> bool:
    """Whether an ID is a nucleotide sequence rather than a hash, a number or a name.

    At least 20 IUPAC letters, 90% of them A, C, G, T or U, in either case.

    Examples
    --------
    >>> is_dna("TACGGAGGATCCGAGCGTTA"), is_dna("BACTRA"), is_dna("4b5eeb300368260019c1fbc7a3c718fc")
    (True, False, False)
    """
    letters = _normalise(text)
    if len(letters) < _MIN_LENGTH or _NOT_IUPAC.search(letters):
        return False
    return sum(map(letters.count, "ACGT")) >= _MIN_ACGT * len(letters)


def count_ambiguous(sequences: Iterable[str]) -> int:
    """Number of sequences with a letter other than A, C, G, T and U, which the model reads as N.

    Examples
    --------
    >>> count_ambiguous(["ACGT", "acgu", "ACGN", "RYRY"])
    2
    """
    return sum(_AMBIGUOUS.search(sequence) is not None for sequence in sequences)


def reverse_complement(sequence: str) -> str:
    """The other strand of upper-case DNA, IUPAC letters included.

    Examples
    --------
    >>> reverse_complement("AACGR")
    'YCGTT'
    """
    return sequence.translate(_COMPLEMENT)[::-1]


def unambiguous(sequence: str) -> str:
    """Upper-case DNA with N for every letter that the model reads so.

    Examples
    --------
    >>> unambiguous("ACGRN")
    'ACGNN'
    """
    return _AMBIGUOUS.sub("N", sequence)


def load_sequences(path: Path) -> dict[str, str]:
    """Read representative sequences.

    Parameters
    ----------
    path
        FASTA, gzipped or not, or a QIIME 2 artifact of sequences, DNA or RNA; a record may span lines, and its
        ID ends at the first white space.

    Returns
    -------
    dict
        ID to sequence, in file order, upper-case, with U written as T.

    Raises
    ------
    DataError
        If the file cannot be read or is no FASTA, or a record has no ID, no sequence, an ID seen before, or a letter
        that is not an IUPAC nucleotide (a gap of an alignment, say).
    """
    path = require_file(path, _WHAT)
    if is_artifact(path):
        artifact = read_artifact(path, tuple(_FASTA_OF_TYPE), _WHAT)
        text = decode_text(artifact.read(_FASTA_OF_TYPE[artifact.type]), path, _WHAT)
    else:
        text = read_text(path, "FASTA file")
    preamble, *records = re.split(r"^>", text, flags=re.MULTILINE)
    if preamble.strip() or not records:
        first = text.lstrip().split("\n", 1)[0]
        raise DataError(f"{path}: is not FASTA (it begins {shown(first)}); every record must begin with '>' and an ID")
    sequences: dict[str, str] = {}
    for number, record in enumerate(records, 1):
        header, _, body = record.partition("\n")
        name = (header.split(maxsplit=1) or [""])[0] if not header[:1].isspace() else ""
        sequence = _normalise("".join(body.split()))
        if not name:
            raise DataError(f"{path}: record {number} has no ID after '>'; name it as the table names the feature")
        if name in sequences:
            raise DataError(f"{path}: the ID {shown(name)} occurs twice; keep one record of each feature")
        if not sequence:
            raise DataError(f"{path}: the record {shown(name)} has no sequence; remove it or add its sequence")
        _check_letters(sequence, name, str(path))
        sequences[name] = sequence
    return sequences


def _check_letters(sequence: str, name: str, source: str) -> None:
    wrong = _NOT_IUPAC.search(sequence)
    if wrong:
        raise DataError(
            f"{source}: the sequence of {shown(name)} holds {shown(wrong.group())} at position {wrong.start() + 1}, "
            "not a nucleotide; give unaligned DNA"
        )


def resolve_sequences(
    feature_ids: Sequence[str],
    sequences: Mapping[str, str] | None,
    table_path: Path,
    sample_ids: Sequence[str] = (),
) -> list[str]:
    """Find the DNA sequence of every feature.

    Parameters
    ----------
    feature_ids : sequence of str, length A
    sequences
        Feature ID to sequence. If given, every feature must be in it; if None, the IDs themselves must be DNA.
    table_path
        The table that the IDs are from, for messages.
    sample_ids : sequence of str
        Of that table: where these are DNA, it lies on its side.

    Returns
    -------
    list of str, length A
        Upper-case, with U written as T; IUPAC letters other than A, C, G, T may occur.

    Raises
    ------
    DataError
        If a feature is missing from `sequences`, or an ID is not DNA (an MD5 hash, an OTU number, a taxon).
    """
    if sequences is None:
        names = [name for name in feature_ids if not is_dna(name)]
        if names and sample_ids and all(map(is_dna, sample_ids)):
            raise DataError(f"{table_path}: has samples in rows and ASVs in columns; transpose it, in R by t()")
        if names:
            raise DataError(
                f"{table_path}: {len(names)} of {len(feature_ids)} feature IDs are not DNA sequences, "
                f"for example {shown(names[0])}; add the representative sequences: --sequences rep-seqs.fasta"
            )
        return [_normalise(name) for name in feature_ids]
    absent = [name for name in feature_ids if name not in sequences]
    if absent:
        way_out = near_matches(absent, list(sequences)) or "give the representative sequences of this very table"
        raise DataError(
            f"{table_path}: {len(absent)} of {len(feature_ids)} features have no sequence in --sequences, "
            f"first {shown(absent[0])}; {way_out}"
        )
    resolved = [_normalise(sequences[name]) for name in feature_ids]
    for name, sequence in zip(feature_ids, resolved, strict=True):
        if not sequence:
            raise DataError(f"{table_path}: the sequence of feature {shown(name)} is empty; correct --sequences")
        _check_letters(sequence, name, str(table_path))
    return resolved


def merge_duplicate_sequences(table: FeatureTable, sequences: Sequence[str]) -> tuple[FeatureTable, list[str], int]:
    """Sum the counts of features that have one sequence.

    Parameters
    ----------
    table : FeatureTable of shape (N, A)
    sequences : sequence of str, length A

    Returns
    -------
    table : FeatureTable of shape (N, A - merged)
        A merged feature keeps the ID and the place of the first of its kind.
    sequences : list of str, length A - merged
    merged : int
        Number of features merged away.
    """
    assert len(sequences) == table.shape[1]
    position: dict[str, int] = {}
    target = np.array([position.setdefault(sequence, len(position)) for sequence in sequences])
    merged = len(sequences) - len(position)
    if not merged:
        return table, list(sequences), 0
    ones = np.ones(len(sequences))
    membership = sparse.csr_array((ones, (np.arange(len(sequences)), target)), shape=(len(sequences), len(position)))
    counts = sparse.csr_array(table.counts @ membership)
    counts.sort_indices()
    first = np.unique(target, return_index=True)[1]
    feature_ids = [table.feature_ids[i] for i in first]
    return replace(table, counts=counts, feature_ids=feature_ids), list(position), merged
