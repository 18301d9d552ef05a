"""Counts as classical models of abundances read them.

Shapes: ``N`` samples, ``n`` training samples, ``A`` ASVs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["centred_log_ratios", "common_asvs", "log_abundance_features"]

SCALE = 1e4  # relative abundances are read as counts out of ten thousand before the logarithm
_MOST_ASVS = 5000  # that the dense features of linear models hold


def log_abundance_features(counts: csr_array) -> csr_array:
    """Return ``log1p(1e4 · relative abundance)``, sparse as the table is; an empty sample stays empty.

    Parameters
    ----------
    counts : csr_array, shape (N, A)

    Returns
    -------
    csr_array of float32, shape (N, A)
    """
    features = counts.astype(np.float64)
    depth = np.asarray(features.sum(axis=1))  # (N,)
    features.data *= SCALE / np.repeat(depth, np.diff(features.indptr))
    np.log1p(features.data, out=features.data)
    return features.astype(np.float32)


def common_asvs(counts: csr_array, train: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ASVs, rising, that most training samples have: at most 5,000, and none that fewer than two have.

    Parameters
    ----------
    counts : csr_array, shape (N, A)
    train : ndarray, shape (n,)
    """
    holders = np.bincount(counts[train].indices, minlength=counts.shape[1])
    common = np.flatnonzero(holders >= min(2, len(train)))
    return np.sort(common[np.argsort(-holders[common], kind="stable")[:_MOST_ASVS]])


def centred_log_ratios(counts: csr_array) -> NDArray[np.float32]:
    """Centred log-ratios (Aitchison 1986) of counts (N, A) plus one half, over the ASVs given."""
    logs = np.log(counts.toarray().astype(np.float64) + 0.5)
    return (logs - logs.mean(axis=1, keepdims=True)).astype(np.float32)
