"""Signs that held-out samples are known from training, which makes a result look better than it is.

Shapes: ``N`` samples, ``A`` ASVs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.data.counts import Counts, in_blocks
from aam.data.metadata import class_target, repeated_columns

__all__ = ["column_leaks", "identical_samples", "leak_warnings"]


def leak_warnings(
    sample_ids: list[str],
    table: Counts,
    split: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    group_column: str | None = None,
    metadata: pd.DataFrame | None = None,
    targets: Sequence[str] = (),
) -> list[str]:
    """What in a split looks like a leak, one sentence each.

    Parameters
    ----------
    sample_ids : list of str, N
    table : Counts of shape (N, A)
    split : ndarray (N,) of str
    groups : ndarray (N,), optional
        Groups that were to stay on one side.
    group_column : str, optional
        Where they are from.
    metadata : DataFrame of N rows, optional
        Searched for subjects, cages and alike that are on both sides although groups were given.
    targets : sequence of str
        Columns to be predicted.
    """
    found = []
    twins = identical_samples(table, split)
    if twins:
        held_out, learnt = (sample_ids[i] for i in twins[0])
        found.append(
            f"{len(twins)} held-out sample(s) have exactly the counts of a training sample ({held_out!r} those of "
            f"{learnt!r}): duplicates that no model has to predict; leave them out, or keep them together with "
            "--group-column"
        )
    if groups is not None and _spans(pd.Series(groups, dtype=object), split):
        found.append(
            f"groups of {group_column!r} are on both sides of the split, as it is predefined: samples of one group may "
            "make the result look better than it is"
        )
    elif groups is not None and metadata is not None:
        columns = column_leaks(metadata, split, [*targets, *(() if group_column is None else (group_column,))])
        if columns:
            found.append(
                f"samples with one value of {columns[0]!r} are on both sides of the split, although they are grouped "
                f"by {group_column!r}; this may make the result look better than it is; consider "
                f"--group-column {columns[0]}"
            )
    return found


def identical_samples(table: Counts, split: NDArray[Any]) -> list[tuple[int, int]]:
    """Held-out samples that have the counts of a training sample, each with the first such.

    Parameters
    ----------
    table : Counts of shape (N, A)
    split : ndarray (N,) of str

    Returns
    -------
    list of (int, int)
        Rows of the held-out and of the training sample.
    """
    digests = _digests(table)
    first: dict[bytes, int] = {}
    learnt = split == "train"
    for row in np.flatnonzero(learnt):
        first.setdefault(digests[row], int(row))
    held_out = ((int(row), first.get(digests[row])) for row in np.flatnonzero(~learnt))
    return [(row, twin) for row, twin in held_out if twin is not None]


def _digests(table: Counts) -> list[bytes]:
    """Of the counts of every sample."""
    found = []
    for rows in in_blocks(table, np.arange(table.shape[0])):
        for start, stop in pairwise(rows.indptr):
            content = rows.asvs[start:stop].tobytes() + rows.counts[start:stop].tobytes()
            found.append(hashlib.blake2b(content, digest_size=16).digest())
    return found


def column_leaks(metadata: pd.DataFrame, split: NDArray[Any], passed_over: list[str]) -> list[str]:
    """Columns that look like the identity of a subject (`repeated_columns`) and have a value on both sides."""
    rest = metadata.drop(columns=[name for name in passed_over if name in metadata.columns])
    return [name for name in repeated_columns(rest, None) if _spans(class_target(rest[name]), split)]


def _spans(column: pd.Series, split: NDArray[Any]) -> bool:
    """Whether a value is both in training and held out."""
    learnt = split == "train"
    values = column.to_numpy(dtype=object)
    known = column.notna().to_numpy()
    return bool(set(values[learnt & known].tolist()) & set(values[~learnt & known].tolist()))
