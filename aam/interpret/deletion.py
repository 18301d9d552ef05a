"""Deletion curves: how far a prediction moves where the most important ASVs of a sample are left out.

Importances that say something move it further than as many ASVs drawn at random (Samek et al. 2017).

Shapes: ``n`` samples, ``nnz`` ASVs that they have, ``K`` numbers of ASVs that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from aam.interpret.output import Explained
from aam.interpret.samples import Samples, Variant

__all__ = ["NUMBERS", "deletion_curve", "random_ranking"]

NUMBERS = (1, 2, 5, 10, 20)


def deletion_curve(
    explained: Explained, samples: Samples, ranking: NDArray[np.float64], numbers: Sequence[int] = NUMBERS
) -> NDArray[np.float64]:
    """Mean absolute change of the prediction where the first ``k`` ASVs of each sample are left out, (K,).

    Parameters
    ----------
    explained : Explained
    samples : Samples
    ranking : ndarray (nnz,)
        The ASVs with the highest go first. One ASV stays at least.
    numbers : sequence of int
    """
    rows = samples.rows
    order = np.lexsort((-ranking, rows.samples))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(rows.indptr[:-1], np.diff(rows.indptr))

    def variants() -> Iterator[Variant]:
        for number in numbers:
            for sample in range(len(samples)):
                own = rank[rows.indptr[sample] : rows.indptr[sample + 1]]
                yield samples.without(sample, own < min(number, len(own) - 1))

    after = explained.values(variants()).reshape(len(numbers), len(samples))
    return np.abs(after - explained.values(samples)).mean(axis=1)


def random_ranking(samples: Samples, seed: int) -> NDArray[np.float64]:
    """Of every ASV of every sample, (nnz,)."""
    return np.random.default_rng(seed).random(len(samples.rows.asvs))
