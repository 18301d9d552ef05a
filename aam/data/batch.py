"""A batch: the distinct ASVs of some samples, and where each sample uses them.

Shapes: ``B`` samples, ``U`` distinct ASVs, ``L`` tokens of the longest, ``S`` most ASVs of a sample, ``M`` ASVs with
masked nucleotides, ``P`` of these nucleotides, ``C`` categorical and ``K`` numeric covariates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.data.counts import SampleRows
from aam.data.tokenizer import PAD, START

__all__ = ["Batch", "MaskedNucleotides", "Share", "arrange", "padded_layout"]


class Share(NamedTuple):
    """The part of one process in what several divide among themselves."""

    rank: int = 0
    processes: int = 1

    def of(self, number: int) -> slice:
        """Its places among ``number``: one after the other, and no share larger than another by more than one."""
        least, more = divmod(number, self.processes)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))


@dataclass(frozen=True)
class MaskedNucleotides:
    """ASVs whose nucleotides are to be restored."""

    tokens: Tensor  # (M, L) uint8, with MASK
    true_tokens: Tensor  # (M, L) uint8
    places: Tensor  # (M, L) bool, True where masked; nowhere in the one ASV of a process that has none to restore
    flat: Tensor  # (P,) int64: the same as numbers, so that no device has to count them
    padded: bool  # whether any token is PAD


@dataclass(frozen=True)
class Batch:
    """Samples as sets of distinct ASVs with counts.

    Where several processes learn from one batch, each has a share of its samples. A share may be empty; there is then
    a sample that stands in, which is computed and counts for nothing.
    """

    sample_index: Tensor  # (B,) int64: rows of the study
    tokens: Tensor  # (U, L) uint8
    padded: bool  # whether any token is PAD
    asv_index: Tensor  # (B, S) int64: rows of tokens; 0 at padding
    counts: Tensor  # (B, S) float32: reads; 0 at padding
    depth: Tensor  # (B,) float32: reads of the sample, those beyond the token limit included
    ragged: bool = True  # whether any place of asv_index is padding
    labels: dict[str, Tensor] = field(default_factory=dict)
    # by base target, float32, NaN where unknown: (B, B) of pairs, (B,) of values, (B, T) of compositions; may lack one
    # of which nothing is known here
    references: int = 0  # R: the last samples are only referred to, and labels of pairs are (B - R, R)
    together: Tensor | None = None
    # (G,) int64: rows of all the samples of which these are a share; labels of pairs are (B, G). None where alone
    stand_ins: int = 0  # of the last samples: 1 in an empty share without references
    target: Tensor | None = None  # (B,) float32 (transformed) or int64 (class)
    categories: Tensor | None = None  # (B, C) int64: places of the covariates' categories, 0 where unknown
    numbers: Tensor | None = None  # (B, K) float32: standardised covariates, NaN where unknown
    masked_nucleotides: MaskedNucleotides | None = None
    hidden_counts: Tensor | None = None  # (B, S) bool: abundances to restore
    # Of a frozen encoder, in place of tokens or of all that it reads (see aam.data.encoded):
    asv_embeddings: Tensor | None = None  # (U, D)
    summary: tuple[Tensor | None, ...] | None = None  # (B, D), and (B, K) or None twice: a `SampleSummary`

    def __len__(self) -> int:
        """The samples that are learnt from, those that are only referred to left out."""
        return len(self.sample_index) - self.references - self.stand_ins

    @property
    def everyone(self) -> Tensor:
        """Rows of the samples that all processes together learn from in this batch, (G,)."""
        return self.sample_index[: len(self)] if self.together is None else self.together

    def to(self, device: torch.device) -> Self:
        """The batch on a device; copies from pinned memory do not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> Self:
        changed: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = change(value)
            elif isinstance(value, dict):
                changed[part.name] = {name: change(tensor) for name, tensor in value.items()}
            elif isinstance(value, tuple):
                changed[part.name] = tuple(None if tensor is None else change(tensor) for tensor in value)
            elif isinstance(value, MaskedNucleotides):
                changed[part.name] = replace(
                    value,
                    **{name: change(of) for name, of in vars(value).items() if isinstance(of, Tensor)},
                )
        return replace(self, **changed)


def arrange(
    rows: SampleRows, depth: NDArray[np.float64], tokens: NDArray[np.uint8], sample_index: NDArray[np.int64]
) -> tuple[Batch, NDArray[np.int64]]:
    """Lay samples out as a batch.

    Parameters
    ----------
    rows : SampleRows
        Of the batch's ``B`` samples, each with at least one ASV.
    depth : ndarray (B,)
        Reads of each sample before any ASV was left out.
    tokens : ndarray (A, L) of uint8
        Of all ASVs of the study.
    sample_index : ndarray (B,)

    Returns
    -------
    batch : Batch
        Without labels, target and masks.
    distinct : ndarray (U,)
        The study's columns in the batch's order.
    """
    distinct, used = np.unique(rows.asvs, return_inverse=True)  # (U,), (nnz,)
    per_sample = np.diff(rows.indptr)
    assert per_sample.min() > 0
    shape = (len(per_sample), int(per_sample.max()))  # (B, S)
    place = (rows.samples, np.arange(len(rows.asvs)) - np.repeat(rows.indptr[:-1], per_sample))
    asv_index = np.zeros(shape, dtype=np.int64)
    asv_index[place] = used
    counts = np.zeros(shape, dtype=np.float32)
    counts[place] = rows.counts

    of_batch = tokens[distinct]  # (U, L)
    of_batch = of_batch[:, : int((of_batch != PAD).sum(axis=1).max())]
    batch = Batch(
        sample_index=torch.from_numpy(sample_index),
        tokens=torch.from_numpy(np.ascontiguousarray(of_batch)),
        padded=bool((of_batch[:, -1] == PAD).any()),
        asv_index=torch.from_numpy(asv_index),
        counts=torch.from_numpy(counts),
        depth=torch.from_numpy(depth.astype(np.float32)),
        ragged=bool((counts == 0).any()),
    )
    return batch, distinct


def padded_layout(batch: Batch) -> Batch:
    """The same batch with every occurrence of an ASV, and every empty place, as a row of its own: ``U = B S``.

    It is what AAM is measured against (`aam benchmark train --layout padded`).
    """
    b, s = batch.asv_index.shape
    tokens = batch.tokens[batch.asv_index.flatten()]  # (B S, L)
    empty = (batch.counts == 0).flatten()
    tokens[empty] = PAD
    tokens[empty, 0] = START
    return replace(
        batch, tokens=tokens, padded=batch.padded or bool(empty.any()), asv_index=torch.arange(b * s).view(b, s)
    )
