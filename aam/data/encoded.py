"""What a frozen encoder made of ASVs or of samples, which batches carry in place of what it was made of.

Shapes: ``N`` samples of a study, ``A`` ASVs, ``n`` samples that are encoded, ``B`` samples of a batch, ``U``
distinct ASVs of a batch, ``D`` width, ``K`` clades.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aam.data.batch import Batch, arrange
from aam.data.counts import in_blocks
from aam.data.dataset import SampleDataset

__all__ = ["EncodedASVs", "EncodedStudy", "empty_table", "why_bases_change", "why_samples_change"]

_MOST_IN_MEMORY = 2**28  # bytes of a table


@dataclass(frozen=True)
class EncodedASVs:
    """Embeddings of every ASV of a study. Batches hold those of their ASVs and no bases."""

    embeddings: NDArray[Any]  # (A, D)

    def batch(
        self, dataset: SampleDataset, sample_index: NDArray[np.int64], epoch: int
    ) -> tuple[Batch, NDArray[np.int64]]:
        """Samples as a batch, and the columns (U,) of its ASVs."""
        rows, depth = dataset.drawn(sample_index, epoch)
        batch, distinct = arrange(rows, depth, dataset.tokens[:, :1], sample_index)
        return replace(batch, asv_embeddings=torch.from_numpy(self.embeddings[distinct])), distinct


@dataclass(frozen=True)
class EncodedStudy:
    """What base targets and heads read of samples. Batches hold it and no ASVs."""

    place: NDArray[np.int64]  # (N,): row of each sample in the tables, -1 where it is not encoded
    tables: tuple[NDArray[Any] | None, ...]  # embeddings (n, D), presences and abundances (n, K), as in `Batch.summary`

    def batch(
        self, dataset: SampleDataset, sample_index: NDArray[np.int64], epoch: int
    ) -> tuple[Batch, NDArray[np.int64]]:
        """Samples as a batch, and that it has no ASVs."""
        places = self.place[sample_index]
        assert (places >= 0).all(), "a sample is asked for that is not encoded"
        nothing = torch.zeros(len(places), 0)
        batch = Batch(
            sample_index=torch.from_numpy(sample_index),
            tokens=torch.zeros(0, 0, dtype=torch.uint8),
            padded=False,
            asv_index=nothing.long(),
            counts=nothing,
            depth=torch.ones(len(places)),
            summary=tuple(None if table is None else torch.from_numpy(table[places]) for table in self.tables),
        )
        return batch, np.array([], dtype=np.int64)


def empty_table(rows: int, columns: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Room for numbers, in a temporary file where they are many; worker processes share it with their parent."""
    shape = (rows, columns)
    if rows * columns * np.dtype(dtype).itemsize <= _MOST_IN_MEMORY:
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:  # gone with the last process that maps it
        return np.memmap(file, mode="w+", dtype=dtype, shape=shape)


def why_samples_change(dataset: SampleDataset, samples: NDArray[np.int64]) -> str | None:
    """Which option gives samples other reads, ASVs or bases in each epoch; None where they stay the same.

    Parameters
    ----------
    dataset : SampleDataset
    samples : ndarray
        Rows of the study.
    """
    options, varied = dataset.options, dataset.augmentation
    if options.rarefy_depth is not None:
        return f"--rarefy-depth {options.rarefy_depth} draws their reads"
    if varied is not None:
        if varied.depths is not None:
            return "--augment-rarefy draws their reads"
        for name in ("asv_dropout", "count_noise", "mix_samples"):
            if getattr(varied, name) > 0:
                return f"--{name.replace('_', '-')} {getattr(varied, name):g} varies them"
    if options.asv_sampling == "random":
        blocks = in_blocks(dataset.counts, samples)
        if any(np.diff(rows.indptr).max() > options.token_limit for rows in blocks):
            return f"--asv-sampling random draws ASVs of those that have more than --token-limit {options.token_limit}"
    return why_bases_change(dataset)


def why_bases_change(dataset: SampleDataset) -> str | None:
    """Which option gives ASVs other bases in each epoch; None where they stay the same."""
    if dataset.augmentation is not None and dataset.augmentation.base_noise > 0:
        return f"--base-noise {dataset.augmentation.base_noise:g} substitutes bases"
    return None
