"""Batches of a study, drawn from its sparse table as they are asked for.

Shapes: ``N`` samples, ``A`` ASVs, ``B`` samples of a batch, ``U`` distinct ASVs of a batch, ``L`` tokens,
``S`` most ASVs of a sample, ``M`` ASVs with masked nucleotides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from aam.config import DataConfig
from aam.data.augmentation import Augmentation, draw_reads, substitute_bases
from aam.data.batch import Batch, MaskedNucleotides, Share, arrange
from aam.data.counts import Counts, SampleRows
from aam.data.covariates import CovariateValues
from aam.data.draws import generator, stable_keys, uniform
from aam.data.labels import Labels, Pairs, common_references
from aam.data.study import Study
from aam.data.tokenizer import MASK, PAD, START

__all__ = ["BatchKey", "BatchPlan", "DatasetOptions", "SampleDataset", "mask_nucleotides"]

_MEAN_SPAN = 5  # bases
_BLOCK = 64  # samples read at a time where many are


@dataclass(frozen=True)
class DatasetOptions:
    """What is drawn for each batch."""

    seed: int = 0
    rarefy_depth: int | None = None
    token_limit: int = 1024
    asv_sampling: Literal["abundance", "random", "first"] = "abundance"
    stripe_references: int = 32
    nuc_asv_fraction: float = 0.0
    nuc_mask_ratio: float = 0.15
    nuc_mask_strategy: Literal["random", "span"] = "random"
    count_mask_ratio: float = 0.0
    hidden_covariates: float = 0.0  # share of their values

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> Self:
        """Samples as a configuration asks for them, nothing masked."""
        return cls(
            seed=seed,
            rarefy_depth=data.rarefy_depth,
            token_limit=data.token_limit,
            asv_sampling=data.asv_sampling,
            stripe_references=data.stripe_references,
        )


class BatchKey(NamedTuple):
    """Which samples, in which epoch, and which share of them: all that a batch depends on."""

    epoch: int
    samples: tuple[int, ...]
    share: Share = Share()


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
    studies : ndarray (N,) of int, optional
        The study of each row, where a batch is to hold samples of one alone.
    share : Share
        What this process has of each batch. The batches themselves are the same on every process.
    """

    def __init__(
        self,
        samples: NDArray[np.int64],
        batch_size: int,
        shuffle: bool,
        seed: int,
        studies: NDArray[np.int64] | None = None,
        share: Share = Share(),  # noqa: B008 - immutable
    ) -> None:
        self.parts = [samples]
        if studies is not None:
            self.parts = [samples[studies[samples] == study] for study in np.unique(studies[samples])]
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.share = share
        self.epoch = 0
        self.first = 0  # batches of the epoch that are passed over: a resumed run has learnt from them

    def __len__(self) -> int:
        return sum(-(-len(part) // self.batch_size) for part in self.parts)

    def __iter__(self) -> Iterator[BatchKey]:
        draws = generator("order of samples", self.seed, self.epoch)
        batches = []
        for part in self.parts:
            order = draws.permutation(part) if self.shuffle else part
            batches += [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if self.shuffle and len(self.parts) > 1:
            batches = [batches[place] for place in draws.permutation(len(batches))]
        for batch in batches[self.first :]:
            yield BatchKey(self.epoch, tuple(batch.tolist()), self.share)


class Encoded(Protocol):
    """What a frozen encoder made of a study (see aam.data.encoded)."""

    def batch(
        self, dataset: SampleDataset, sample_index: NDArray[np.int64], epoch: int
    ) -> tuple[Batch, NDArray[np.int64]]:
        """Samples as a batch without labels, and the columns (U,) of its ASVs."""


class SampleDataset(Dataset[Batch]):
    """A study as a map from `BatchKey` to `Batch`.

    It holds references to arrays that worker processes share with their parent, and no copy of the table.

    Parameters
    ----------
    counts : Counts of shape (N, A)
        The ASVs are in the order of their sequences (as `Study` keeps them): draws and ties go by it, and must not
        depend on the order in the file.
    tokens : ndarray (A, L) of uint8
    sample_ids, sequences : list of str
        Keys of the draws.
    table_order : ndarray (A,)
        Place of each ASV in the table file, for ``asv_sampling="first"``.
    options : DatasetOptions
    labels : mapping of str to Labels, optional
        Of the samples, by base target.
    target : ndarray (N,), optional
    references : ndarray, optional
        Rows whose distances may be referred to, where those to reference samples alone are known: the training
        samples. All by default.
    restore_once : ndarray, optional
        Rows of held-out samples. An ASV is then restored with the first of these that has it and no other, so that
        nucleotide accuracy over them does not depend on how they are batched.
    augmentation : Augmentation, optional
        Of training samples.
    covariates : CovariateValues of N samples, optional
    """

    def __init__(
        self,
        counts: Counts,
        tokens: NDArray[np.uint8],
        sample_ids: list[str],
        sequences: list[str],
        table_order: NDArray[np.int64],
        options: DatasetOptions,
        labels: Mapping[str, Labels] | None = None,
        target: NDArray[np.float32] | NDArray[np.int64] | None = None,
        restore_once: NDArray[np.int64] | None = None,
        references: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
        covariates: CovariateValues | None = None,
    ) -> None:
        self.counts = counts
        self.tokens = tokens
        self.sample_keys = stable_keys(sample_ids)  # (N,)
        self.asv_keys = stable_keys(sequences)  # (A,)
        self.table_order = table_order
        self.options = options
        self.labels = labels or {}
        self.target = target
        self.references = common_references(self.labels, references)
        self.augmentation = augmentation
        self.covariates = covariates
        self.encoded: Encoded | None = None
        self.first_holder: NDArray[np.int64] | None = None
        if restore_once is not None:
            self.first_holder = np.full(counts.shape[1], -1)
            for start in reversed(range(0, len(restore_once), _BLOCK)):  # an earlier holder takes a later one's place
                block = restore_once[start : start + _BLOCK]
                rows = self.drawn(block, epoch=0)[0]  # without what rarefaction and the token limit leave out
                asvs, first = np.unique(rows.asvs, return_index=True)
                self.first_holder[asvs] = block[rows.samples[first]]

    @classmethod
    def of_study(
        cls,
        study: Study,
        options: DatasetOptions,
        labels: Mapping[str, Labels] | None = None,
        target: NDArray[np.float32] | NDArray[np.int64] | None = None,
        restore_once: NDArray[np.int64] | None = None,
        references: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
        covariates: CovariateValues | None = None,
    ) -> Self:
        """The samples of a study."""
        return cls(
            study.counts,
            study.tokens,
            study.sample_ids,
            study.sequences,
            study.table_order,
            options,
            labels,
            target,
            restore_once,
            references,
            augmentation,
            covariates,
        )

    def changed(self, **attributes: object) -> Self:
        """The same study with other attributes; arrays are shared."""
        other = copy(self)
        for name, value in attributes.items():
            assert hasattr(other, name)
            setattr(other, name, value)
        return other

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, share = key.epoch, key.share
        everyone = np.array(key.samples, dtype=np.int64)  # (G,)
        own = share.of(len(everyone))
        samples = everyone[own]
        references = self.references_of(everyone, epoch)  # (R,)
        stand_ins = everyone[: 0 if len(samples) or len(references) else 1]
        sample_index = np.concatenate([samples, references, stand_ins])
        if self.encoded is None:
            rows, depth = self.drawn(sample_index, epoch)
            batch, distinct = arrange(rows, depth, self.tokens, sample_index)
        else:
            batch, distinct = self.encoded.batch(self, sample_index, epoch)
        extra: dict[str, object] = {"references": len(references), "stand_ins": len(stand_ins)}
        if share.processes > 1:
            extra["together"] = torch.from_numpy(everyone)
        if self.labels:
            mixed = self._mixed(np.concatenate([everyone, references]), epoch)
            extra["labels"] = {
                name: torch.from_numpy(_labels_of(labels, everyone, own, references, mixed))
                for name, labels in self.labels.items()
            }
        if self.target is not None:
            extra["target"] = torch.from_numpy(self._target_of(samples, epoch))
        if self.covariates is not None:
            known = self._covariates_of(self.covariates, sample_index, epoch)
            extra["categories"] = torch.from_numpy(known.categories)
            extra["numbers"] = torch.from_numpy(known.numbers)
        if self.options.nuc_asv_fraction > 0:
            extra["masked_nucleotides"] = self._masked_nucleotides(distinct, everyone, share, epoch)
        if self.options.count_mask_ratio > 0:
            hidden = self._hidden_counts(batch, distinct, sample_index, epoch)
            hidden[len(samples) :] = False
            extra["hidden_counts"] = hidden
        if self.augmentation is not None and self.augmentation.base_noise > 0:
            noise, seed = self.augmentation.base_noise, self.augmentation.seed
            noisy = substitute_bases(batch.tokens.numpy(), self.asv_keys[distinct], noise, seed, epoch)
            extra["tokens"] = torch.from_numpy(noisy)
        return replace(batch, **extra)  # type: ignore[arg-type]

    def _mixed(self, samples: NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
        """Which samples (n,) are mixed with another one."""
        if self.augmentation is None or self.augmentation.mix_samples == 0:
            return np.zeros(len(samples), dtype=bool)
        return self.augmentation.partners(samples, self.sample_keys[samples], epoch).mixed

    def references_of(self, samples: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The reference samples that go with a batch: drawn for each in training, else always the same."""
        known = self.references
        if len(known) > self.options.stripe_references:
            of_batch = np.bitwise_xor.reduce(self.sample_keys[samples]) if epoch else np.uint64(0)
            draws = uniform("reference samples", self.options.seed, epoch, of_batch, self.sample_keys[known])
            known = np.sort(known[np.argsort(draws)[: self.options.stripe_references]])
        return known

    def drawn(self, sample_index: NDArray[np.int64], epoch: int) -> tuple[SampleRows, NDArray[np.float64]]:
        """The ASVs that are read of samples, and the samples' reads before the token limit."""
        if self.augmentation is None:
            rows = self._rarefied(self.counts.rows(sample_index), sample_index, epoch)
        else:
            keys, depth = (self.sample_keys, self.asv_keys), self.options.rarefy_depth
            rows = self.augmentation.rows(self.counts.rows, sample_index, *keys, epoch, depth)
        return self._limited(rows, sample_index, epoch), rows.depth()

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
        self, distinct: NDArray[np.int64], everyone: NDArray[np.int64], share: Share, epoch: int
    ) -> MaskedNucleotides | None:
        """This process's part of the ASVs to restore; None on every process or on none.

        In training they are chosen among the ASVs of the whole batch, so that one which several processes have is
        restored once.
        """
        options, own = self.options, share.of(len(everyone))
        others = np.delete(everyone, own)
        if self.first_holder is None and len(others):
            distinct = np.union1d(distinct, self.drawn(others, epoch)[0].asvs)
        chosen = distinct[
            uniform("ASVs to restore", options.seed, epoch, self.asv_keys[distinct]) < options.nuc_asv_fraction
        ]
        if self.first_holder is not None:
            chosen = chosen[np.isin(self.first_holder[chosen], everyone[own])]
            none_anywhere = share.processes == 1 and not len(chosen)
        else:
            none_anywhere = not len(chosen)
            chosen = chosen[share.rank :: share.processes]
        if none_anywhere:
            return None
        restored = len(chosen) > 0
        if not restored:
            chosen = distinct[:1]
        tokens = self.tokens[chosen]
        tokens = tokens[:, : int((tokens != PAD).sum(axis=1).max())]  # (M, L)
        places = mask_nucleotides(
            tokens, self.asv_keys[chosen], options.nuc_mask_ratio, options.nuc_mask_strategy, options.seed, epoch
        )
        places &= restored
        return MaskedNucleotides(
            tokens=torch.from_numpy(np.where(places, np.uint8(MASK), tokens)),
            true_tokens=torch.from_numpy(np.ascontiguousarray(tokens)),
            places=torch.from_numpy(places),
            flat=torch.from_numpy(np.flatnonzero(places)),
            padded=bool((tokens[:, -1] == PAD).any()),
        )

    def _hidden_counts(
        self, batch: Batch, distinct: NDArray[np.int64], sample_index: NDArray[np.int64], epoch: int
    ) -> torch.Tensor:
        asv_keys = self.asv_keys[distinct][batch.asv_index.numpy()]  # (B, S)
        draws = uniform(
            "abundances to restore", self.options.seed, epoch, self.sample_keys[sample_index][:, None], asv_keys
        )
        return torch.from_numpy(draws < self.options.count_mask_ratio) & (batch.counts > 0)

    def _target_of(self, samples: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | NDArray[np.int64]:
        assert self.target is not None
        if self.augmentation is None or self.augmentation.mix_samples == 0:
            return self.target[samples]
        return self.augmentation.target(self.target, samples, self.sample_keys[samples], epoch)

    def _covariates_of(self, covariates: CovariateValues, samples: NDArray[np.int64], epoch: int) -> CovariateValues:
        known, keys = covariates.rows(samples), self.sample_keys[samples]
        if self.augmentation is not None and self.augmentation.mix_samples > 0:
            partners = self.augmentation.partners(samples, keys, epoch)
            known = known.mixed(covariates.rows(partners.rows), partners.share)
        if self.options.hidden_covariates > 0:
            known = known.hidden(self.options.hidden_covariates, keys, self.options.seed, epoch)
        return known


def _labels_of(
    labels: Labels,
    everyone: NDArray[np.int64],
    own: slice,
    references: NDArray[np.int64],
    mixed: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """What a share of a batch carries: of pairs, its samples with all (G,) or with their references (R,).

    Unknown where one is mixed (G + R,).
    """
    samples, known = everyone[own], ~mixed[: len(everyone)][own]
    if isinstance(labels, Pairs):
        columns = references if len(references) else everyone
        if not len(samples):
            return np.empty((0, len(columns)), dtype=np.float32)
        values = labels.block(samples, columns)
        known_columns = ~mixed[len(everyone) :] if len(references) else ~mixed
        return np.where(known[:, None] & known_columns, values, np.float32(np.nan)) if mixed.any() else values
    values = labels.batch(samples)
    if mixed.any():
        values = values.copy()
        values[~known] = np.nan
    return values


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
