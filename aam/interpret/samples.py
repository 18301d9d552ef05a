"""Samples, whole or with a change, laid out for a network a chunk at a time.

Shapes: ``n`` samples, ``A`` ASVs, ``nnz`` ASVs that the samples have in all, ``B`` samples of a chunk, ``S`` most ASVs
of any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aam.data.counts import SampleRows

__all__ = ["Chunk", "Samples", "Variant", "chunks"]

_BUFFER = 2048  # samples that are sorted by size before they are laid out
_MOST_PLACES = 2**13  # B S
_MOST_PAIRS = 2**20  # B S²: what attention takes for each head and layer


class Variant(NamedTuple):
    """A sample as it is, or with some ASVs changed."""

    origin: int  # the sample that it was, or is
    asvs: NDArray[np.int64]
    counts: NDArray[np.float64]
    depth: float  # reads, with those of ASVs that are not read


class Chunk(NamedTuple):
    """Variants side by side."""

    place: NDArray[np.int64]  # (B,): which of the variants
    origin: NDArray[np.int64]  # (B,)
    asvs: NDArray[np.int64]  # (B, S), 0 at padding
    counts: NDArray[np.float32]  # (B, S), 0 at padding
    depth: NDArray[np.float32]  # (B,)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which places are no padding, (B, S)."""
        return self.counts > 0

    def rows(self, rows: slice | NDArray[np.bool_]) -> Chunk:
        """Some of them."""
        return Chunk(self.place[rows], self.origin[rows], self.asvs[rows], self.counts[rows], self.depth[rows])


@dataclass(frozen=True)
class Samples:
    """What a model reads of some samples."""

    rows: SampleRows
    depth: NDArray[np.float64]  # (n,): reads before any ASV was left out
    asvs: int  # A

    def __len__(self) -> int:
        return len(self.depth)

    def __getitem__(self, sample: int) -> Variant:
        part = slice(self.rows.indptr[sample], self.rows.indptr[sample + 1])
        return Variant(sample, self.rows.asvs[part], self.rows.counts[part], float(self.depth[sample]))

    def __iter__(self) -> Iterator[Variant]:
        return (self[sample] for sample in range(len(self)))

    def matrix(self, values: NDArray[np.floating]) -> sparse.csr_array:
        """Values (nnz,) of the ASVs that samples have, as a matrix (n, A)."""
        return sparse.csr_array((values, self.rows.asvs, self.rows.indptr), shape=(len(self), self.asvs))

    @property
    def shares(self) -> NDArray[np.float64]:
        """Relative abundances, (nnz,)."""
        return self.rows.counts / self.depth[self.rows.samples]

    @property
    def prevalence(self) -> NDArray[np.float64]:
        """Share of the samples that have each ASV, (A,)."""
        return np.bincount(self.rows.asvs, minlength=self.asvs) / len(self)

    def without(self, sample: int, left_out: NDArray[np.bool_]) -> Variant:
        """A sample without those of its ASVs for which ``left_out`` is True, and without their reads."""
        whole = self[sample]
        depth = whole.depth - float(whole.counts[left_out].sum())
        return Variant(sample, whole.asvs[~left_out], whole.counts[~left_out], depth)


def chunks(variants: Iterable[Variant]) -> Iterator[Chunk]:
    """Lay variants out, those of about one size together; memory does not grow with their number."""
    stream, done = iter(variants), 0
    while some := list(islice(stream, _BUFFER)):
        sizes = np.array([len(variant.asvs) for variant in some])
        assert sizes.min() > 0
        order = np.argsort(-sizes, kind="stable")
        start = 0
        while start < len(order):
            widest = int(sizes[order[start]])
            number = max(1, min(_MOST_PLACES // widest, _MOST_PAIRS // widest**2))
            own = order[start : start + number]
            start += number
            yield _laid_out([some[place] for place in own], own + done, widest)
        done += len(some)


def _laid_out(variants: list[Variant], place: NDArray[np.int64], widest: int) -> Chunk:
    asvs = np.zeros((len(variants), widest), dtype=np.int64)
    counts = np.zeros((len(variants), widest), dtype=np.float32)
    for row, variant in enumerate(variants):
        asvs[row, : len(variant.asvs)] = variant.asvs
        counts[row, : len(variant.asvs)] = variant.counts
    origin = np.array([variant.origin for variant in variants])
    depth = np.array([variant.depth for variant in variants], dtype=np.float32)
    return Chunk(place, origin, asvs, counts, depth)
