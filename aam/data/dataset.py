"""Batches of a study, drawn from its sparse table as they are asked for.

Shapes: ``N`` samples, ``A`` ASVs, ``B`` samples of a batch, ``U`` distinct ASVs of a batch, ``L`` tokens,
``S`` most ASVs of a sample, ``M`` ASVs with masked nucleotides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch.utils.data import Dataset, Sampler

from aam.config import DataConfig
from aam.data.augmentation import Augmentation, draw_reads, substitute_bases
from aam.data.batch import Batch, MaskedNucleotides, SampleRows, arrange
from aam.data.draws import generator, stable_keys, uniform
from aam.data.study import Study
from aam.data.tokenizer import MASK, PAD, START

__all__ = ["BatchKey", "BatchPlan", "DatasetOptions", "SampleDataset", "mask_nucleotides"]

_MEAN_SPAN = 5  # bases


@dataclass(frozen=True)
class DatasetOptions:
    """What is drawn for each batch."""

    seed: int = 0
    rarefy_depth: int | None = None
    token_limit: int = 1024
    asv_sampling: Literal["abundance", "random", "first"] = "abundance"
    nuc_asv_fraction: float = 0.0
    nuc_mask_ratio: float = 0.15
    nuc_mask_strategy: Literal["random", "span"] = "random"
    count_mask_ratio: float = 0.0

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> Self:
        """Samples as a configuration asks for them, nothing masked."""
        return cls(
            seed=seed, rarefy_depth=data.rarefy_depth, token_limit=data.token_limit, asv_sampling=data.asv_sampling
        )


class BatchKey(NamedTuple):
    """Which samples, and in which epoch: all that a batch depends on."""

    epoch: int
    samples: tuple[int, ...]


class BatchPlan(Sampler[BatchKey]):
    """The batches of an epoch.

    Parameters
    ----------
    samples : ndarray
        Rows of the study.
    batch_size : int
    shuffle : bool
        In an order of the epoch's own; otherwise as they stand.
    seed : int
    """

    def __init__(self, samples: NDArray[np.int64], batch_size: int, shuffle: bool, seed: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        order = self.samples
        if self.shuffle:
            order = generator("order of samples", self.seed, self.epoch).permutation(order)
        for start in range(0, len(order), self.batch_size):
            yield BatchKey(self.epoch, tuple(order[start : start + self.batch_size].tolist()))


class SampleDataset(Dataset[Batch]):
    """A study as a map from `BatchKey` to `Batch`.

    It holds references to arrays that worker processes share with their parent, and no copy of the table.

    Parameters
    ----------
    table : csr_array (N, A)
        Counts. Its columns are in the order of the sequences (as `Study` keeps them): draws and ties go by it, and
        must not depend on the order in the file.
    tokens : ndarray (A, L) of uint8
    sample_ids, sequences : list of str
        Keys of the draws.
    table_order : ndarray (A,)
        Place of each ASV in the table file, for ``asv_sampling="first"``.
    options : DatasetOptions
    distances : ndarray (N, N), optional
    target : ndarray (N,), optional
    restore_once : ndarray, optional
        Rows of held-out samples. An ASV is then restored with the first of these that has it and no other, so that
        nucleotide accuracy over them does not depend on how they are batched.
    augmentation : Augmentation, optional
        Of training samples.
    """

    def __init__(
        self,
        table: sparse.csr_array,
        tokens: NDArray[np.uint8],
        sample_ids: list[str],
        sequences: list[str],
        table_order: NDArray[np.int64],
        options: DatasetOptions,
        distances: NDArray[np.float32] | None = None,
        target: NDArray[np.float32] | NDArray[np.int64] | None = None,
        restore_once: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.table = table
        self.tokens = tokens
        self.sample_keys = stable_keys(sample_ids)  # (N,)
        self.asv_keys = stable_keys(sequences)  # (A,)
        self.table_order = table_order
        self.options = options
        self.distances = distances
        self.target = target
        self.augmentation = augmentation
        self.first_holder: NDArray[np.int64] | None = None
        if restore_once is not None:
            rows = self.drawn(restore_once, epoch=0)[0]  # without what rarefaction and the token limit leave out
            asvs, first = np.unique(rows.asvs, return_index=True)
            self.first_holder = np.full(table.shape[1], -1)
            self.first_holder[asvs] = restore_once[rows.samples[first]]

    @classmethod
    def of_study(
        cls,
        study: Study,
        options: DatasetOptions,
        target: NDArray[np.float32] | NDArray[np.int64] | None = None,
        restore_once: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
    ) -> Self:
        """The samples of a study, with its distances where it has them."""
        return cls(
            study.table,
            study.tokens,
            study.sample_ids,
            study.sequences,
            study.table_order,
            options,
            study.distances,
            target,
            restore_once,
            augmentation,
        )

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, samples = key
        sample_index = np.array(samples, dtype=np.int64)
        rows, depth = self.drawn(sample_index, epoch)
        batch, distinct = arrange(rows, depth, self.tokens, sample_index)
        extra: dict[str, object] = {}
        if self.distances is not None:
            extra["distances"] = torch.from_numpy(self.distances[np.ix_(sample_index, sample_index)])
        if self.target is not None:
            extra["target"] = torch.from_numpy(self.target[sample_index])
        if self.options.nuc_asv_fraction > 0:
            extra["masked_nucleotides"] = self._masked_nucleotides(distinct, sample_index, epoch)
        if self.options.count_mask_ratio > 0:
            extra["hidden_counts"] = self._hidden_counts(batch, distinct, sample_index, epoch)
        if self.augmentation is not None:
            extra |= self._augmented(self.augmentation, batch, distinct, sample_index, epoch)
        return replace(batch, **extra)  # type: ignore[arg-type]

    def drawn(self, sample_index: NDArray[np.int64], epoch: int) -> tuple[SampleRows, NDArray[np.float64]]:
        """The ASVs that are read of samples, and the samples' reads before the token limit."""
        if self.augmentation is None:
            rows = self._rarefied(self._rows(sample_index), sample_index, epoch)
        else:
            keys, depth = (self.sample_keys, self.asv_keys), self.options.rarefy_depth
            rows = self.augmentation.rows(self._rows, sample_index, *keys, epoch, depth)
        return self._limited(rows, sample_index, epoch), rows.depth()

    def _rows(self, sample_index: NDArray[np.int64]) -> SampleRows:
        rows = self.table[sample_index]
        return SampleRows(rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data)

    def _rarefied(self, rows: SampleRows, sample_index: NDArray[np.int64], epoch: int) -> SampleRows:
        depth = self.options.rarefy_depth
        if depth is None:
            return rows
        keys = self.sample_keys[sample_index]
        return draw_reads(rows, np.full(len(keys), depth), keys, "rarefaction", self.options.seed, epoch)

    def _limited(self, rows: SampleRows, sample_index: NDArray[np.int64], epoch: int) -> SampleRows:
        """The ``token_limit`` first ASVs of each sample, by the rule of ``asv_sampling``."""
        if np.diff(rows.indptr).max() <= self.options.token_limit:
            return rows
        if self.options.asv_sampling == "first":
            priority = self.table_order[rows.asvs].astype(np.float64)
        elif self.options.asv_sampling == "random":
            keys = self.sample_keys[sample_index][rows.samples]
            priority = uniform("ASVs of a sample", self.options.seed, epoch, keys, self.asv_keys[rows.asvs])
        else:
            priority = -rows.counts
        order = np.lexsort((rows.asvs, priority, rows.samples))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(rows.indptr[:-1], np.diff(rows.indptr))
        return rows.keep(rank < self.options.token_limit)

    def _masked_nucleotides(
        self, distinct: NDArray[np.int64], sample_index: NDArray[np.int64], epoch: int
    ) -> MaskedNucleotides | None:
        options = self.options
        chosen = distinct[
            uniform("ASVs to restore", options.seed, epoch, self.asv_keys[distinct]) < options.nuc_asv_fraction
        ]
        if self.first_holder is not None:
            chosen = chosen[np.isin(self.first_holder[chosen], sample_index)]
        if not len(chosen):
            return None
        tokens = self.tokens[chosen]
        tokens = tokens[:, : int((tokens != PAD).sum(axis=1).max())]  # (M, L)
        places = mask_nucleotides(
            tokens, self.asv_keys[chosen], options.nuc_mask_ratio, options.nuc_mask_strategy, options.seed, epoch
        )
        return MaskedNucleotides(
            tokens=torch.from_numpy(np.where(places, np.uint8(MASK), tokens)),
            true_tokens=torch.from_numpy(np.ascontiguousarray(tokens)),
            places=torch.from_numpy(places),
        )

    def _hidden_counts(
        self, batch: Batch, distinct: NDArray[np.int64], sample_index: NDArray[np.int64], epoch: int
    ) -> torch.Tensor:
        asv_keys = self.asv_keys[distinct][batch.asv_index.numpy()]  # (B, S)
        draws = uniform(
            "abundances to restore", self.options.seed, epoch, self.sample_keys[sample_index][:, None], asv_keys
        )
        return torch.from_numpy(draws < self.options.count_mask_ratio) & (batch.counts > 0)

    def _augmented(
        self,
        augmentation: Augmentation,
        batch: Batch,
        distinct: NDArray[np.int64],
        sample_index: NDArray[np.int64],
        epoch: int,
    ) -> dict[str, object]:
        """What augmentation changes of a batch whose samples are drawn."""
        keys = self.sample_keys[sample_index]
        changed: dict[str, object] = {}
        if augmentation.mix_samples > 0:
            changed["mixed"] = torch.from_numpy(augmentation.partners(sample_index, keys, epoch).mixed)
            if self.target is not None:
                changed["target"] = torch.from_numpy(augmentation.target(self.target, sample_index, keys, epoch))
        if augmentation.base_noise > 0:
            tokens, asv_keys = batch.tokens.numpy(), self.asv_keys[distinct]
            noisy = substitute_bases(tokens, asv_keys, augmentation.base_noise, augmentation.seed, epoch)
            changed["tokens"] = torch.from_numpy(noisy)
        return changed


def mask_nucleotides(
    tokens: NDArray[np.uint8],
    keys: NDArray[np.uint64],
    ratio: float,
    strategy: Literal["random", "span"],
    seed: int,
    epoch: int,
) -> NDArray[np.bool_]:
    """Choose the nucleotides to mask.

    Parameters
    ----------
    tokens : ndarray (M, L) of uint8
    keys : ndarray (M,) of uint64
        Keys of the sequences.
    ratio : float
        Expected share of the nucleotides.
    strategy : {"random", "span"}
        Each by itself, or runs of 5 (shorter where they are cut by the sequence's end or overlap).
    seed, epoch : int

    Returns
    -------
    ndarray (M, L) of bool
        Never at START or PAD; at least one in each row that has a nucleotide.
    """
    length = tokens.shape[1]
    draws = uniform("nucleotides to mask", seed, epoch, keys[:, None], np.arange(length))  # (M, L)
    maskable = (tokens != PAD) & (tokens != START)
    if strategy == "random":
        places = draws < ratio
    else:
        # A base stays unmasked if no run begins at it or at the bases before it that a run would span.
        begins = draws < 1 - (1 - ratio) ** (1 / _MEAN_SPAN)
        places = begins.copy()
        for shift in range(1, _MEAN_SPAN):
            places[:, shift:] |= begins[:, :-shift]
    places &= maskable
    least = np.where(maskable, draws, 2.0).argmin(axis=1)
    lacking = ~places.any(axis=1) & maskable.any(axis=1)
    places[lacking, least[lacking]] = True
    return places
