"""Counts of ASVs in samples, by sample: held in memory, or read from a file as batches need them.

Shapes: ``N`` samples, ``A`` ASVs, ``n`` samples asked for, ``nnz`` ASVs that these have in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Counts", "JoinedCounts", "MemoryCounts", "SampleRows", "TablePart", "in_blocks", "present_asvs"]

_FIRST_BLOCK = 64  # samples that are read first where all of a study are
_ENTRIES_OF_A_BLOCK = 2**20  # about how many a later block holds


@dataclass(frozen=True)
class SampleRows:
    """Samples in compressed sparse rows: the ASVs of sample ``b`` stand at ``indptr[b]:indptr[b + 1]``."""

    indptr: NDArray[np.int64]  # (n + 1,)
    asvs: NDArray[np.int64]  # (nnz,): columns of the study's table
    counts: NDArray[np.float64]  # (nnz,)

    @property
    def samples(self) -> NDArray[np.int64]:
        """The sample of every entry, (nnz,)."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def depth(self) -> NDArray[np.float64]:
        """Reads of every sample, (n,)."""
        return np.bincount(self.samples, weights=self.counts, minlength=len(self.indptr) - 1).astype(np.float64)

    def keep(self, kept: NDArray[np.bool_]) -> SampleRows:
        """Those entries alone for which ``kept`` (nnz,) is True."""
        per_sample = np.bincount(self.samples[kept], minlength=len(self.indptr) - 1)
        return SampleRows(np.concatenate([[0], np.cumsum(per_sample)]), self.asvs[kept], self.counts[kept])

    @classmethod
    def summed(
        cls, samples: NDArray[np.int64], asvs: NDArray[np.int64], counts: NDArray[np.float64], number: int
    ) -> SampleRows:
        """Rows of ``number`` samples from entries (nnz,) in any order; those of one sample and ASV are added up."""
        order = np.lexsort((asvs, samples))
        samples, asvs, counts = samples[order], asvs[order], counts[order]
        first = np.ones(len(asvs), dtype=bool)
        first[1:] = (np.diff(asvs) != 0) | (np.diff(samples) != 0)
        starts = np.flatnonzero(first)
        per_sample = np.bincount(samples[starts], minlength=number)
        totals = np.add.reduceat(counts, starts) if len(starts) else counts
        return cls(np.concatenate([[0], np.cumsum(per_sample)]), asvs[starts], totals)


class Counts(Protocol):
    """A table of which samples are asked for by row. Worker processes share it with their parent."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of ASVs, (N, A)."""

    def rows(self, samples: NDArray[np.int64]) -> SampleRows:
        """Samples in the order asked for; the ASVs of each in rising order, without zeros."""


@dataclass(frozen=True)
class MemoryCounts:
    """A table in memory."""

    matrix: sparse.csr_array  # (N, A), indices sorted, no zeros

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def rows(self, samples: NDArray[np.int64]) -> SampleRows:
        chosen = self.matrix[samples]
        return SampleRows(chosen.indptr.astype(np.int64), chosen.indices.astype(np.int64), chosen.data)


@dataclass(frozen=True)
class TablePart:
    """What one table gives to a study."""

    source: Counts  # of the table's own samples and features
    row: NDArray[np.int64]  # (N,): row of each sample of the study, -1 where the table lacks it
    column: NDArray[np.int64]  # (features of the table,): the ASV that each becomes, -1 where it is left out


@dataclass(frozen=True)
class JoinedCounts:
    """The counts of one table or several, added up per sample and ASV."""

    parts: Sequence[TablePart]
    shape: tuple[int, int]

    def rows(self, samples: NDArray[np.int64]) -> SampleRows:
        entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        for part in self.parts:
            asked = np.flatnonzero(part.row[samples] >= 0)
            if len(asked):
                rows = part.source.rows(part.row[samples[asked]])
                asvs = part.column[rows.asvs]
                kept = asvs >= 0
                entries.append((asked[rows.samples[kept]], asvs[kept], rows.counts[kept]))
        found = [np.concatenate(arrays) for arrays in zip(*entries, strict=True)]
        return SampleRows.summed(found[0], found[1], found[2], len(samples))

    def in_memory(self) -> MemoryCounts:
        """The whole table."""
        blocks = list(in_blocks(self, np.arange(self.shape[0])))
        indptr = np.concatenate([[0], *(np.diff(rows.indptr) for rows in blocks)]).cumsum()
        indices = np.concatenate([rows.asvs for rows in blocks])
        data = np.concatenate([rows.counts for rows in blocks])
        kind = np.int32 if max(len(data), *self.shape) < 2**31 else np.int64
        return MemoryCounts(sparse.csr_array((data, indices.astype(kind), indptr.astype(kind)), shape=self.shape))


def in_blocks(counts: Counts, samples: NDArray[np.int64]) -> Iterator[SampleRows]:
    """Samples a block at a time, as many as about fill it, so that a large table need not fit into memory."""
    start, size = 0, _FIRST_BLOCK
    while start < len(samples):
        rows = counts.rows(samples[start : start + size])
        yield rows
        start += size
        entries_of_a_sample = max(1, len(rows.asvs) // (len(rows.indptr) - 1))
        size = max(1, min(_ENTRIES_OF_A_BLOCK // entries_of_a_sample, 16 * size))


def present_asvs(counts: Counts, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any of the samples has an ASV, (A,)."""
    present = np.zeros(counts.shape[1], dtype=bool)
    for rows in in_blocks(counts, samples):
        present[rows.asvs] = True
    return present
