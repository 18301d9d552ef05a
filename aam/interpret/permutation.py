"""Importance by permutation: how a prediction changes where an ASV, or a whole taxon, is that of another sample.

Shapes: ``n`` samples, ``A`` ASVs, ``T`` units: ASVs or taxa.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aam.interpret.output import Explained
from aam.interpret.samples import Samples, Variant

__all__ = ["Permuted", "permutation"]

_NONE = 1e-9  # a share that is none but for rounding


class Permuted(NamedTuple):
    """What permuting changes."""

    change: sparse.csr_array  # (n, T): mean absolute change of the prediction
    error: sparse.csr_array | None  # (n, T): mean increase of the error, where the truth is known
    direction: NDArray[np.float64]  # (T,): 1 where predictions are higher with more of the unit, else -1


def permutation(
    explained: Explained,
    samples: Samples,
    units: NDArray[np.int64],
    *,
    repeats: int = 1,
    seed: int = 0,
    truth: NDArray[np.float64] | None = None,
) -> Permuted:
    """Exchange the relative abundances of a unit among the samples, and see (Breiman 2001; Fisher et al. 2019).

    A sample's other ASVs share what the unit leaves of its depth, in the proportions that they had. A unit of several
    ASVs is exchanged whole, so that one of them cannot stand in for another. Only samples that had the unit, or have it
    afterwards, are predicted again; not those of which nothing would be left. A sample that is wholly the unit stays
    so: of a unit of several ASVs it has them as the other sample has.

    Parameters
    ----------
    explained : Explained
    samples : Samples
    units : ndarray (A,)
        The unit of each ASV, from 0.
    repeats : int
    seed : int
        Each unit has draws of its own.
    truth : ndarray (n,), optional
        Numbers in what is explained, or of classes 1 and 0; NaN where unknown.
    """
    size = (len(samples), int(units.max()) + 1)
    before = explained.values(samples)
    found: list[tuple[int, int, float]] = []  # of each variant: sample, unit, change of the unit's share

    def variants() -> Iterator[Variant]:
        for variant, unit, change in _exchanged(samples, units, repeats, seed):
            found.append((variant.origin, unit, change))
            yield variant

    after = explained.values(variants())
    origin, unit, share = (np.array(column) for column in (zip(*found, strict=True) if found else ([], [], [])))
    origin, unit = origin.astype(np.int64), unit.astype(np.int64)
    change = after - before[origin]
    # Not by how much more there is of it: a few samples that are full of it would decide, where all else is scarce.
    together = np.bincount(unit, weights=np.sign(share) * change, minlength=size[1])

    def matrix(values: NDArray[np.float64]) -> sparse.csr_array:
        joined = sparse.coo_array((values / repeats, (origin, unit)), shape=size).tocsr()
        joined.sum_duplicates()
        return joined

    error = None
    if truth is not None:
        more = _errors(after, truth[origin], explained) - _errors(before, truth, explained)[origin]
        error = matrix(np.nan_to_num(more))
    return Permuted(matrix(np.abs(change)), error, np.sign(together))


def _errors(values: NDArray[np.float64], truth: NDArray[np.float64], explained: Explained) -> NDArray[np.float64]:
    """Absolute errors of numbers; of log-odds the logarithmic loss."""
    if explained.reading.classes is None:
        return np.abs(values - truth)
    return np.logaddexp(0, np.where(truth > 0, -values, values)) + 0 * truth


def _exchanged(
    samples: Samples, units: NDArray[np.int64], repeats: int, seed: int
) -> Iterator[tuple[Variant, int, float]]:
    rows, number = samples.rows, len(samples)
    of_entry = units[rows.asvs]
    # Entries by unit and, within it, by sample: those of one sample and unit are one run.
    order = np.lexsort((rows.samples, of_entry))
    starts = np.searchsorted(of_entry[order], np.arange(int(units.max()) + 2))
    shares = samples.shares
    for unit in range(len(starts) - 1):
        entries = order[starts[unit] : starts[unit + 1]]
        if not len(entries):
            continue
        holders, first = np.unique(rows.samples[entries], return_index=True)
        of_holder = dict(zip(holders.tolist(), np.split(entries, first[1:]), strict=True))
        for repeat in range(repeats):
            donor = np.random.default_rng([seed, unit, repeat]).permutation(number)
            taker = np.argsort(donor)  # who is given what each holder has
            for sample in np.union1d(holders, taker[holders]).tolist():
                own, given = of_holder.get(sample), of_holder.get(int(donor[sample]))
                if sample == donor[sample]:
                    continue
                variant = samples[sample]
                kept = units[variant.asvs] != unit
                lost = 0.0 if own is None else float(shares[own].sum())
                gained = 0.0 if given is None else float(shares[given].sum())
                asvs, counts = variant.asvs[kept], variant.counts[kept]
                if 1 - lost < _NONE:  # the unit is all there is, and stays it
                    if given is None:
                        continue
                    gained = 1.0
                if 1 - gained < _NONE:  # none of the others is left
                    asvs, counts = asvs[:0], counts[:0]
                else:
                    counts = counts * ((1 - gained) / (1 - lost))
                if given is not None:
                    unit_counts = shares[given] * (gained / shares[given].sum() * variant.depth)
                    asvs, counts = np.concatenate([asvs, rows.asvs[given]]), np.concatenate([counts, unit_counts])
                if len(asvs):
                    yield Variant(sample, asvs, counts, variant.depth), unit, gained - lost
