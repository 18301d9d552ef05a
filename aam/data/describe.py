"""What a study is like: reads and ASVs of its samples, and which samples its files share.

Shapes: ``n`` samples, ``nnz`` ASVs that these have in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aam.config import DataConfig
from aam.data.augmentation import draw_reads
from aam.data.counts import SampleRows, in_blocks
from aam.data.draws import generator, stable_keys
from aam.data.study import Study

__all__ = ["SampleSizes", "overlap", "quantiles", "read_samples", "sample_sizes"]

_QUANTILES = {"min": 0.0, "q5": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
_MOST_RAREFIED = 2000  # samples that are rarefied to see how many ASVs stay
_EXAMPLES = 3


class SampleSizes(NamedTuple):
    """Of samples that are used."""

    depth: NDArray[np.float64]  # (N,): reads in the table
    asvs: NDArray[np.int64]  # (n,): ASVs of all samples, or where they are rarefied, of some, after it
    reads: NDArray[np.float64]  # (n,): their reads
    lost: NDArray[np.float64]  # (n,): of these, the reads of ASVs beyond the token limit


def quantiles(values: ArrayLike) -> dict[str, float]:
    """The least and the greatest value, and some between.

    Examples
    --------
    >>> quantiles([1, 2, 3, 4, 5])["median"]
    3.0
    """
    found = np.quantile(np.asarray(values, dtype=np.float64), list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, found.tolist(), strict=True))


def sample_sizes(study: Study, data: DataConfig, seed: int) -> SampleSizes:
    """Reads and ASVs of the samples of a study, and what the token limit leaves out."""
    everything = np.arange(len(study))
    blocks = [(rows.depth(), *_limited(rows, study, data)) for rows in in_blocks(study.counts, everything)]
    depth = np.concatenate([block[0] for block in blocks])
    if data.rarefy_depth is None:
        asvs, lost = (np.concatenate([block[place] for block in blocks]) for place in (1, 2))
        return SampleSizes(depth, asvs, depth, lost)
    some = np.sort(generator("samples to describe", seed, 0).permutation(everything)[:_MOST_RAREFIED])
    rows = _rarefied(study, data, seed, some)
    return SampleSizes(depth, np.diff(rows.indptr), rows.depth(), _limited(rows, study, data)[1])


def read_samples(study: Study, data: DataConfig, seed: int, samples: NDArray[np.int64]) -> SampleRows:
    """Samples (n,) about as a batch holds them: rarefied, and of each the ASVs within the token limit."""
    rows = _rarefied(study, data, seed, samples)
    return rows.keep(_rank(rows, study, data) < data.token_limit)


def _rarefied(study: Study, data: DataConfig, seed: int, samples: NDArray[np.int64]) -> SampleRows:
    rows = study.counts.rows(samples)
    if data.rarefy_depth is None:
        return rows
    keys = stable_keys([study.sample_ids[sample] for sample in samples])
    return draw_reads(rows, np.full(len(samples), data.rarefy_depth), keys, "rarefaction", seed, 0)


def _limited(rows: SampleRows, study: Study, data: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """ASVs of samples (n,), and their reads (n,) beyond the token limit; those of a random choice as expected."""
    asvs = np.diff(rows.indptr)
    if asvs.max(initial=0) <= data.token_limit:
        return asvs, np.zeros(len(asvs))
    if data.asv_sampling == "random":
        return asvs, rows.depth() * (1 - np.minimum(1, data.token_limit / np.maximum(asvs, 1)))
    return asvs, rows.keep(_rank(rows, study, data) >= data.token_limit).depth()


def _rank(rows: SampleRows, study: Study, data: DataConfig) -> NDArray[np.int64]:
    """The place of every entry (nnz,) in the order in which its sample's ASVs are read."""
    first = data.asv_sampling == "first"
    order = np.lexsort((rows.asvs, study.table_order[rows.asvs] if first else -rows.counts, rows.samples))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(rows.indptr[:-1], np.diff(rows.indptr))
    return rank


def overlap(table: Iterable[str], others: dict[str, Iterable[str]]) -> dict[str, Any]:
    """Which samples files share.

    Parameters
    ----------
    table : iterable of str
        Samples of all tables.
    others : dict of str to iterable of str
        Samples of each other file.

    Returns
    -------
    dict
        ``table`` and ``all`` (samples that every file has), and ``files``: of each other file its ``samples``, how
        many the table and it lack of each other (``not_in_table``, ``lacks``), and a few of these by name.
    """
    known = set(table)
    shared = set(known)
    files = {}
    for name, samples in others.items():
        own = set(samples)
        shared &= own
        lacks, unknown = sorted(known - own), sorted(own - known)
        files[name] = {
            "samples": len(own),
            "lacks": len(lacks),
            "lacks_for_example": lacks[:_EXAMPLES],
            "not_in_table": len(unknown),
            "not_in_table_for_example": unknown[:_EXAMPLES],
        }
    return {"table": len(known), "all": len(shared), "files": files}
