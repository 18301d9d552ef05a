"""DNA sequences to tokens.

Shapes: ``A`` ASVs, ``L`` tokens of the longest.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aam.data.cache import Cache

__all__ = ["MASK", "PAD", "START", "A", "C", "G", "N", "T", "detokenize", "sequence_lengths", "token_rows", "tokenize"]

PAD, A, C, G, T, START, MASK, N = range(8)

_TOKEN_OF_BYTE = np.full(256, N, dtype=np.uint8)
for _letters, _token in (("Aa", A), ("Cc", C), ("Gg", G), ("TtUu", T)):
    _TOKEN_OF_BYTE[np.frombuffer(_letters.encode(), dtype=np.uint8)] = _token
_MOST_IN_MEMORY = 2**28  # bytes of token rows
_BLOCK = 2**16  # sequences that are turned into tokens at a time
_LETTER_OF_TOKEN = np.array(["", "A", "C", "G", "T", "", "?", "N"])


def tokenize(sequences: Sequence[str], max_bp: int) -> NDArray[np.uint8]:
    """Turn sequences into rows of tokens.

    Parameters
    ----------
    sequences : sequence of str
        ``A`` DNA or RNA sequences; letters other than A, C, G, T and U become N.
    max_bp : int
        Sequences are cut after so many bases.

    Returns
    -------
    ndarray (A, L) of uint8
        START, then the bases, then PAD up to the longest row.

    Examples
    --------
    >>> tokenize(["ACGT", "AN"], max_bp=3)
    array([[5, 1, 2, 3],
           [5, 1, 7, 0]], dtype=uint8)
    """
    rows = np.zeros((len(sequences), _tokens_of_longest(sequences, max_bp)), dtype=np.uint8)  # (A, L)
    _fill(rows, sequences, max_bp)
    return rows


def token_rows(sequences: Sequence[str], max_bp: int, cache: Cache | None = None) -> NDArray[np.uint8]:
    """`tokenize`, with the rows in a memory-mapped file where there is a cache, or where they are many.

    Parameters
    ----------
    sequences, max_bp
        See `tokenize`.
    cache : Cache, optional
        Keeps them for the next run.
    """
    shape = (len(sequences), _tokens_of_longest(sequences, max_bp))
    if cache is not None:
        digest = hashlib.sha256(f"{max_bp}\n".encode())
        for sequence in sequences:
            digest.update(sequence.encode() + b"\n")

        def make(path: Path) -> None:
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            _fill_in_blocks(rows, sequences, max_bp)
            rows.flush()

        return cache.array_file("tokens", digest.digest(), make)
    if shape[0] * shape[1] <= _MOST_IN_MEMORY:
        return tokenize(sequences, max_bp)
    with tempfile.TemporaryFile() as file:  # gone with the last process that maps it
        rows = np.memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    _fill_in_blocks(rows, sequences, max_bp)
    return rows


def _tokens_of_longest(sequences: Sequence[str], max_bp: int) -> int:
    return int(sequence_lengths(sequences, max_bp).max(initial=0)) + 1


def _fill_in_blocks(rows: NDArray[np.uint8], sequences: Sequence[str], max_bp: int) -> None:
    for start in range(0, len(sequences), _BLOCK):
        _fill(rows[start : start + _BLOCK], sequences[start : start + _BLOCK], max_bp)


def _fill(rows: NDArray[np.uint8], sequences: Sequence[str], max_bp: int) -> None:
    """Write sequences into rows of zeros (A, L)."""
    longest = rows.shape[1] - 1
    lengths = sequence_lengths(sequences, max_bp)  # (A,)
    rows[:, 0] = START
    letters = np.frombuffer("".join(s[:max_bp] for s in sequences).encode("ascii", "replace"), dtype=np.uint8)
    filled = np.arange(longest) < lengths[:, None]
    rows[:, 1:][filled] = _TOKEN_OF_BYTE[letters]


def sequence_lengths(sequences: Sequence[str], max_bp: int) -> NDArray[np.int64]:
    """Bases of each sequence that `tokenize` keeps, (A,)."""
    return np.minimum(np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)), max_bp)


def detokenize(tokens: NDArray[np.uint8]) -> list[str]:
    """Rows of tokens (A, L) as sequences; START and PAD vanish, MASK is ``?``."""
    return ["".join(_LETTER_OF_TOKEN[row]) for row in tokens]
