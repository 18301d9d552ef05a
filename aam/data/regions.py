"""Which part of the gene sequences are from: the short words that training ASVs usually have, and where they have them.

Reads of one region begin at one primer, so that conserved bases stand at about the same place in all of them. Words of
six bases at their places therefore tell a region from another one, from its reverse complement and from itself trimmed
otherwise, whatever organism a sequence is of.

Shapes: ``A`` ASVs, ``L`` tokens of the longest, ``P`` places at which a word begins, ``W`` words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from aam.data.sequences import reverse_complement
from aam.data.tokenizer import A, T, tokenize

__all__ = ["BASES", "REGIONS", "Region", "RegionName", "word_codes"]

RegionName = Literal["same", "reverse complement", "other"]
REGIONS: tuple[RegionName, ...] = ("same", "reverse complement", "other")
BASES = 100  # from the beginning of a sequence
_WORD = 6  # bases
_WORDS = 4**_WORD
_PLACES = BASES - _WORD + 1
_DRIFT = 2  # bases by which insertions and deletions commonly move a word
_USUAL = 0.01  # share of the training ASVs that have a word at its place
_RECOGNISABLE = 0.25  # share of words that training ASVs have in common, below which they are of no one region
_FURTHEST = 40  # bases by which other trimming may have moved sequences
_LEAST_PLACES = 10  # that say how far
_BLOCK = 2**14  # ASVs at a time
_ENOUGH = 500  # ASVs, to find out by how much they are moved


@dataclass(frozen=True)
class Region:
    """The words that training ASVs usually have at their places.

    Attributes
    ----------
    usual : ndarray of int64
        Rising codes ``place * 4096 + word``.
    typical : float
        Share of a training ASV's words that other training ASVs usually have at about this place, the median.
    """

    usual: NDArray[np.int64]
    typical: float

    @classmethod
    def of(cls, tokens: NDArray[np.uint8], asvs: NDArray[np.int64]) -> Self:
        """Learn from some ASVs of a study.

        Parameters
        ----------
        tokens : ndarray (A, L) of uint8
        asvs : ndarray
            Rows of ``tokens``.
        """
        counts = np.zeros(_PLACES * _WORDS, dtype=np.int64)
        for block in _blocks(len(asvs)):
            codes = word_codes(tokens[asvs[block]])
            at = np.arange(codes.shape[1]) * _WORDS + codes
            counts += np.bincount(at[codes >= 0], minlength=len(counts))
        least = max(1, int(np.ceil(_USUAL * len(asvs))))
        usual = np.flatnonzero(counts >= least)
        # An ASV does not speak for itself: where few have a word, those others alone count.
        others = _near(usual, own_place=False)
        others |= (counts > least).reshape(_PLACES, _WORDS)
        shares = [_shares(others, tokens[asvs[block]]) for block in _blocks(len(asvs))]
        return cls(usual, float(np.median(np.concatenate(shares))) if shares else 0.0)

    @property
    def recognisable(self) -> bool:
        """Whether training ASVs have so much in common that others can be told from them."""
        return self.typical >= _RECOGNISABLE

    def shares(self, tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Share of the words of each ASV that training ASVs usually have at about this place, (A,).

        Parameters
        ----------
        tokens : ndarray (A, L) of uint8
        """
        near = _near(self.usual)
        found = [_shares(near, tokens[block]) for block in _blocks(len(tokens))]
        return np.concatenate(found) if found else np.empty(0)

    def names(self, tokens: NDArray[np.uint8], sequences: Sequence[str]) -> NDArray[np.int64]:
        """What each ASV is, as a place in `REGIONS`, (A,).

        It is of the region if at least half as many of its words are at their places as a training ASV typically has.

        Parameters
        ----------
        tokens : ndarray (A, L) of uint8
        sequences : sequence of str
            The same, not cut.
        """
        least = self.typical / 2
        found = np.where(self.shares(tokens) >= least, REGIONS.index("same"), REGIONS.index("other"))
        rest = np.flatnonzero(found == REGIONS.index("other"))
        for block in _blocks(len(rest)):
            turned = tokenize([reverse_complement(sequences[i]) for i in rest[block]], BASES)
            found[rest[block][self.shares(turned) >= least]] = REGIONS.index("reverse complement")
        return found

    def begin_later(self, tokens: NDArray[np.uint8]) -> int:
        """By how many bases these sequences begin later than those of the training (earlier, if negative).

        Parameters
        ----------
        tokens : ndarray (A, L) of uint8

        Returns
        -------
        int
            0 where moving them makes them no more alike.
        """
        codes = word_codes(tokens[np.linspace(0, len(tokens) - 1, min(len(tokens), _ENOUGH)).astype(np.int64)])
        at = np.zeros((_PLACES, _WORDS), dtype=bool)
        at.flat[self.usual] = True
        end = int(self.usual.max(initial=-1)) // _WORDS + 1  # of the places that training ASVs have
        shifts = [shift for shift in range(-_FURTHEST, _FURTHEST + 1) if shift]
        means = []
        for shift in shifts:
            places = np.arange(max(0, -shift), min(codes.shape[1], end - shift))
            words = codes[:, places]
            enough = len(places) >= _LEAST_PLACES
            means.append(float((at[places + shift, words] & (words >= 0)).mean()) if enough else 0.0)
        best = int(np.argmax(means))
        return shifts[best] if means[best] >= self.typical / 3 else 0


def word_codes(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The words at each place of the first `BASES` bases, as numbers to base 4; -1 where one has another letter.

    Parameters
    ----------
    tokens : ndarray (A, L) of uint8

    Returns
    -------
    ndarray (A, P)
    """
    bases = tokens[:, 1 : BASES + 1].astype(np.int64) - A
    number = max(0, bases.shape[1] - _WORD + 1)
    codes = np.zeros((len(bases), number), dtype=np.int64)
    known = np.ones(codes.shape, dtype=bool)
    for start in range(_WORD):
        letters = bases[:, start : start + number]
        codes = 4 * codes + letters
        known &= (letters >= 0) & (letters <= T - A)
    return np.where(known, codes, -1)


def _near(usual: NDArray[np.int64], *, own_place: bool = True) -> NDArray[np.bool_]:
    """Whether a word is usual at most `_DRIFT` bases from a place, (P, W)."""
    at = np.zeros((_PLACES, _WORDS), dtype=bool)
    at.flat[usual] = True
    near = at.copy() if own_place else np.zeros_like(at)
    for drift in range(1, _DRIFT + 1):
        near[drift:] |= at[:-drift]
        near[:-drift] |= at[drift:]
    return near


def _shares(at_place: NDArray[np.bool_], tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the words of each ASV (A,) that are at their places (P, W); 0 where it has none."""
    codes = word_codes(tokens)
    found = at_place[np.arange(codes.shape[1]), codes] & (codes >= 0)
    return found.sum(axis=1) / np.maximum(1, (codes >= 0).sum(axis=1))


def _blocks(number: int) -> Iterator[slice]:
    for start in range(0, number, _BLOCK):
        yield slice(start, min(start + _BLOCK, number))
