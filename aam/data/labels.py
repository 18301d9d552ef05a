"""What is known of samples beside their reads, and learnt by the base model: distances, values, compositions.

Shapes: ``N`` samples, ``A`` ASVs, ``T`` taxa, ``n`` and ``m`` samples of two sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aam.data.counts import Counts, SampleRows, in_blocks, present_asvs
from aam.data.unifrac_loader import DistanceMatrix, StripeMatrix
from aam.errors import DataError

__all__ = [
    "OTHER",
    "CompositionLabels",
    "FilePairs",
    "LabelFiles",
    "Labels",
    "MatrixPart",
    "PairLabels",
    "Pairs",
    "StripePairs",
    "ValueLabels",
    "common_references",
    "taxon_labels",
]

OTHER = "other"  # taxa that no training sample has


class LabelFiles(NamedTuple):
    """The files that hold the labels of one base target: one, or one for each table."""

    paths: tuple[Path, ...]
    title: str  # what messages call it
    kind: Literal["pairwise", "value"]
    upper: float | None  # largest value that it can have


class Labels(Protocol):
    """Of the samples of a study, by row; NaN where unknown."""

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What a batch of these samples (n,) carries, its first axis theirs."""


@runtime_checkable
class Pairs(Labels, Protocol):
    """Labels of pairs of samples. No caller asks for all of them at once."""

    @property
    def references(self) -> NDArray[np.int64] | None:
        """Rows of the reference samples, where distances are known to these alone."""

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances (n, m) from samples to samples; where there are references, ``columns`` are among them."""


@dataclass(frozen=True)
class PairLabels:
    """A square matrix in memory."""

    values: NDArray[np.float32]  # (N, N)
    references: NDArray[np.int64] | None = None

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Pairs`."""
        return self.values[np.ix_(rows, columns)]

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances (n, n) between the samples of a batch."""
        return self.block(rows, rows)


class MatrixPart(NamedTuple):
    """A matrix of some samples of a study."""

    matrix: DistanceMatrix
    place: NDArray[np.int64]  # (N,): of each sample in the matrix, -1 where it is not of this part


@dataclass(frozen=True)
class FilePairs:
    """Matrices that may stay in their files, each of samples of its own; between these nothing is known."""

    parts: Sequence[MatrixPart]
    references: NDArray[np.int64] | None = None

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Pairs`."""
        found = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
        for matrix, place in self.parts:
            here, there = np.flatnonzero(place[rows] >= 0), np.flatnonzero(place[columns] >= 0)
            if len(here) and len(there):
                found[np.ix_(here, there)] = matrix.block(place[rows[here]], place[columns[there]])
        return found

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances (n, n) between the samples of a batch."""
        return self.block(rows, rows)


@dataclass(frozen=True)
class StripePairs:
    """Distances to reference samples alone."""

    matrix: StripeMatrix
    place: NDArray[np.int64]  # (N,): row of each sample in the matrix
    references: NDArray[np.int64]  # (M,): rows of the study, rising
    column: NDArray[np.int64]  # (M,): of each reference in the matrix

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Pairs`."""
        return self.matrix.block(self.place[rows], self.column[np.searchsorted(self.references, columns)])

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances (n, M) to every reference."""
        return self.block(rows, self.references)


@dataclass(frozen=True)
class ValueLabels:
    """One value a sample."""

    values: NDArray[np.float32]  # (N,)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values (n,)."""
        return self.values[rows]


@dataclass(frozen=True)
class CompositionLabels:
    """Shares of each sample that sum to 1."""

    values: NDArray[np.float32] | sparse.csr_array  # (N, T)
    names: tuple[str, ...]  # T

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shares (n, T)."""
        values = self.values[rows]
        return values if isinstance(values, np.ndarray) else values.toarray()


def taxon_labels(counts: Counts, taxa: Sequence[str], train: NDArray[np.int64]) -> CompositionLabels:
    """Shares of the reads by taxon.

    Parameters
    ----------
    counts : Counts of shape (N, A)
        Each sample with at least one read.
    taxa : sequence of str, A
        The taxon of each ASV at one rank.
    train : ndarray
        Rows of the training samples. A taxon that none of them has counts as `OTHER`.

    Returns
    -------
    CompositionLabels
        Sparse; taxa in the order of their names, `OTHER` last.
    """
    names = np.array(taxa, dtype=object)
    known = sorted(set(names[present_asvs(counts, train)]) - {OTHER})
    place = {name: i for i, name in enumerate(known)}
    taxon = np.array([place.get(name, len(known)) for name in names], dtype=np.int64)  # (A,)
    blocks = []
    for rows in in_blocks(counts, np.arange(counts.shape[0])):
        samples = len(rows.indptr) - 1
        shares = SampleRows.summed(rows.samples, taxon[rows.asvs], rows.counts / rows.depth()[rows.samples], samples)
        entries = (shares.counts.astype(np.float32), shares.asvs, shares.indptr)
        blocks.append(sparse.csr_array(entries, shape=(samples, len(known) + 1)))
    return CompositionLabels(sparse.csr_array(sparse.vstack(blocks)), (*known, OTHER))


def common_references(labels: Mapping[str, Labels], allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Rows of the samples to which every distance is known, where some are known to these alone; else none.

    Parameters
    ----------
    labels : mapping of str to Labels
    allowed : ndarray, optional
        Rows that may serve.

    Raises
    ------
    DataError
        If none of them may.
    """
    found: NDArray[np.int64] | None = None
    for known in labels.values():
        if isinstance(known, Pairs) and known.references is not None:
            found = known.references if found is None else np.intersect1d(found, known.references)
    if found is None:
        return np.array([], dtype=np.int64)
    found = found if allowed is None else np.intersect1d(found, allowed)
    if not len(found):
        raise DataError("none of the reference samples is a training sample; change the split, or the references")
    return found
