"""What is known of samples beside their reads, and learnt by the base model: distances, values, compositions.

Shapes: ``N`` samples, ``A`` ASVs, ``T`` taxa, ``n`` and ``m`` samples of two sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["OTHER", "CompositionLabels", "Labels", "PairLabels", "Pairs", "ValueLabels", "taxon_labels"]

OTHER = "other"  # taxa that no training sample has


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


def taxon_labels(counts: sparse.csr_array, taxa: Sequence[str], train: NDArray[np.int64]) -> CompositionLabels:
    """Shares of the reads by taxon.

    Parameters
    ----------
    counts : csr_array (N, A)
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
    seen = np.asarray(counts[train].sum(axis=0)).ravel() > 0  # (A,)
    known = sorted(set(names[seen]) - {OTHER})
    place = {name: i for i, name in enumerate(known)}
    columns = np.array([place.get(name, len(known)) for name in names], dtype=np.int64)
    one_each = (np.ones(len(names)), (np.arange(len(names)), columns))
    in_taxa = sparse.csr_array(one_each, shape=(len(names), len(known) + 1))  # (A, T)
    reads = sparse.csr_array(counts @ in_taxa)  # (N, T)
    shares = sparse.csr_array(sparse.diags_array(1 / reads.sum(axis=1)) @ reads).astype(np.float32)
    return CompositionLabels(shares, (*known, OTHER))
