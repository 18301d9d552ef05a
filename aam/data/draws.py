"""Random draws that depend on what is drawn for, never on where or when.

Every draw is a function of the seed, the epoch and a stable key of the sample or ASV. So the same data come out for any
number of workers or processes, any batch and any order of the table, and a run that is resumed draws as it would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MOST_READS", "generator", "stable_keys", "uniform"]

MOST_READS = 10**9  # of a sample; NumPy's multivariate hypergeometric draws from fewer


def stable_keys(names: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit key of each name (sample ID or sequence), the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): each bit of input moves each of output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(purpose: str, seed: int, epoch: int, *keys: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each combination of keys.

    Parameters
    ----------
    purpose : str
        Separates draws that share their other arguments.
    seed, epoch : int
    *keys : array_like of uint64
        Broadcast against each other, such as keys of ASVs (M, 1) and positions (L,).

    Returns
    -------
    ndarray
        Of the keys' common shape.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = _mixed(stable_keys([f"{purpose}/{seed}/{epoch}"]))
        for key in keys:
            state = _mixed((state ^ _mixed(np.asarray(key, dtype=np.uint64))) + np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(purpose: str, seed: int, epoch: int, key: int = 0) -> np.random.Generator:
    """A NumPy generator for draws that no formula gives, such as rarefaction."""
    return np.random.default_rng([int(stable_keys([purpose])[0]), seed, epoch, int(key)])
