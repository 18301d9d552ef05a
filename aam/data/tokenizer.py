"""DNA sequences to tokens.

Shapes: ``A`` ASVs, ``L`` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASK", "PAD", "START", "A", "C", "G", "N", "T", "detokenize", "sequence_lengths", "tokenize"]

PAD, A, C, G, T, START, MASK, N = range(8)

_TOKEN_OF_BYTE = np.full(256, N, dtype=np.uint8)
for _letters, _token in (("Aa", A), ("Cc", C), ("Gg", G), ("TtUu", T)):
    _TOKEN_OF_BYTE[np.frombuffer(_letters.encode(), dtype=np.uint8)] = _token
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
    lengths = sequence_lengths(sequences, max_bp)  # (A,)
    longest = int(lengths.max(initial=0))
    rows = np.zeros((len(sequences), longest + 1), dtype=np.uint8)  # (A, L)
    rows[:, 0] = START
    letters = np.frombuffer("".join(s[:max_bp] for s in sequences).encode("ascii", "replace"), dtype=np.uint8)
    filled = np.arange(longest) < lengths[:, None]
    rows[:, 1:][filled] = _TOKEN_OF_BYTE[letters]
    return rows


def sequence_lengths(sequences: Sequence[str], max_bp: int) -> NDArray[np.int64]:
    """Bases of each sequence that `tokenize` keeps, (A,)."""
    return np.minimum(np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)), max_bp)


def detokenize(tokens: NDArray[np.uint8]) -> list[str]:
    """Rows of tokens (A, L) as sequences; START and PAD vanish, MASK is ``?``."""
    return ["".join(_LETTER_OF_TOKEN[row]) for row in tokens]
