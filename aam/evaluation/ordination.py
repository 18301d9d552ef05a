"""Ordination of distances and of embeddings: do samples that are alike lie side by side?

Shapes: ``N`` samples, ``K`` axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ordination", "align", "pcoa", "principal_components", "square_of_pairs", "write_ordination"]


class Ordination(NamedTuple):
    """Samples on axes."""

    coordinates: NDArray[np.float64]  # (N, K)
    explained: NDArray[np.float64]  # (K,): the share of the variance along each axis


def pcoa(distances: NDArray[Any], axes: int = 2) -> Ordination:
    """Principal coordinates (Gower 1966): eigenvectors of the double-centred squared distances.

    Parameters
    ----------
    distances : ndarray (N, N)
        Symmetric, 0 on the diagonal.
    axes : int
        ``K``.

    Returns
    -------
    Ordination
        Negative eigenvalues, which distances that are not Euclidean have, count as 0, as in scikit-bio.
    """
    squared = np.square(np.asarray(distances, dtype=np.float64))
    means = squared.mean(axis=0)
    centred = -0.5 * (squared - means[:, None] - means[None, :] + means.mean())  # (N, N)
    values, vectors = np.linalg.eigh(centred)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    total = values.sum()
    return Ordination(vectors[:, :axes] * np.sqrt(values[:axes]), values[:axes] / (total if total > 0 else 1))


def principal_components(values: NDArray[Any], axes: int = 10) -> Ordination:
    """Principal components of points: the principal coordinates of their Euclidean distances.

    Parameters
    ----------
    values : ndarray (N, D)
    axes : int
        ``K``; fewer where the points have fewer dimensions.
    """
    centred = np.asarray(values, dtype=np.float64) - np.mean(values, axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    squared = singular**2
    axes = min(axes, len(singular))
    # A component's sign means nothing: its largest entry is made positive, so that it is the same everywhere.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    return Ordination((left * signs * singular)[:, :axes], squared[:axes] / (squared.sum() or 1))


def write_ordination(path: Path, sample_ids: Sequence[str], ordination: Ordination) -> None:
    """Write scikit-bio's format ``ordination``, which QIIME 2's Emperor reads too.

    Parameters
    ----------
    path : Path
    sample_ids : sequence of str, length N
    ordination : Ordination
    """
    coordinates = ordination.coordinates
    number, axes = coordinates.shape

    def row(values: NDArray[np.float64]) -> str:
        return "\t".join(map(repr, values.tolist()))

    lines = [
        *(f"Eigvals\t{axes}", row(np.square(coordinates).sum(axis=0)), ""),
        *(f"Proportion explained\t{axes}", row(ordination.explained), ""),
        *("Species\t0\t0", ""),
        f"Site\t{number}\t{axes}",
        *(f"{name}\t{row(values)}" for name, values in zip(sample_ids, coordinates, strict=True)),
        *("", "Biplot\t0\t0", "", "Site constraints\t0\t0", ""),
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")


def align(moved: NDArray[np.float64], onto: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Turn and mirror points so that they lie as near as can be to others, without stretching them (Gower 1975).

    Parameters
    ----------
    moved, onto : ndarray (N, K)

    Returns
    -------
    ndarray (N, K)
        The points, around the centre of the others.
    float
        Procrustes correlation, √(1 - m²) after stretching: 1 where the shapes are the same; 0 where one is a point.
    """
    centre = onto.mean(axis=0)
    a, b = moved - moved.mean(axis=0), onto - centre
    left, singular, right = np.linalg.svd(a.T @ b)
    spread = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ left @ right + centre, float(singular.sum() / spread) if spread > 0 else 0.0


def square_of_pairs(pairs: NDArray[Any], number: int) -> NDArray[np.float64] | None:
    """The symmetric matrix (N, N) of the pairs above its diagonal, row by row; None where some of these are missing."""
    if len(pairs) != number * (number - 1) // 2:
        return None
    square = np.zeros((number, number))
    square[np.triu_indices(number, 1)] = pairs
    return square + square.T
