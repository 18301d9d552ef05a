"""Training samples varied from epoch to epoch.

Every draw is a function of the seed, the epoch and the names of what is drawn for. Nothing here knows of batches.

Shapes: ``B`` samples, ``n`` entries of their rows, ``U`` distinct ASVs, ``L`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from aam.config import AugmentationConfig, RunConfig
from aam.data.counts import Counts, SampleRows, in_blocks
from aam.data.draws import MOST_READS, generator, uniform
from aam.data.tokenizer import A, T
from aam.errors import DataError, named

__all__ = [
    "Augmentation",
    "Partners",
    "can_draw_reads",
    "draw_reads",
    "drop_asvs",
    "joined",
    "log_uniform_depths",
    "noisy_counts",
    "require_whole_counts",
    "substitute_bases",
    "with_defaults",
]

Keys = NDArray[np.uint64]


class Partners(NamedTuple):
    """With whom samples are mixed."""

    rows: NDArray[np.int64]  # (B,): rows of the study; a sample's own where it is not mixed
    share: NDArray[np.float64]  # (B,): how much of the sample itself is in the mixture; 1 where it is not mixed

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether a sample is mixed, (B,)."""
        return self.share < 1


@dataclass(frozen=True)
class Augmentation:
    """How the training samples of a study are varied.

    Attributes
    ----------
    seed : int
    depths : (int, int), optional
        Least and greatest depth of rarefaction.
    asv_dropout : float
    count_noise : float
    mix_samples : float
    base_noise : float
        See `AugmentationConfig`.
    candidates : ndarray, optional
        Rows of the training samples, in ascending order: whom a sample may be mixed with.
    classes : ndarray (N,), optional
        Of every sample of the study: partners are of one class.
    """

    seed: int
    depths: tuple[int, int] | None = None
    asv_dropout: float = 0.0
    count_noise: float = 0.0
    mix_samples: float = 0.0
    base_noise: float = 0.0
    candidates: NDArray[np.int64] | None = None
    classes: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        config: AugmentationConfig,
        seed: int,
        train: NDArray[np.int64],
        classes: NDArray[np.int64] | None = None,
    ) -> Self | None:
        """As configured, for the training rows of a study; None where nothing is asked for."""
        made = cls(
            seed,
            config.rarefy_depths,
            config.asv_dropout or 0.0,
            config.count_noise or 0.0,
            config.mix_samples or 0.0,
            config.base_noise,
            np.sort(train),
            classes,
        )
        return made if made.changes_samples or made.base_noise > 0 else None

    @property
    def changes_samples(self) -> bool:
        """Whether anything but the bases is varied."""
        return self.depths is not None or max(self.asv_dropout, self.count_noise, self.mix_samples) > 0

    @property
    def draws_reads(self) -> bool:
        """Whether counts have to be whole."""
        return self.depths is not None or self.mix_samples > 0

    def partners(self, sample_index: NDArray[np.int64], keys: Keys, epoch: int) -> Partners:
        """Another training sample for some samples, and the share that they keep, uniform in (0, 1).

        Parameters
        ----------
        sample_index : ndarray (B,)
        keys : ndarray (B,)
            Of the samples.
        epoch : int
        """
        rows, share = sample_index.copy(), np.ones(len(sample_index))
        if self.mix_samples == 0:
            return Partners(rows, share)
        assert self.candidates is not None
        chosen = uniform("samples to mix", self.seed, epoch, keys) < self.mix_samples
        place = uniform("partner of a sample", self.seed, epoch, keys)
        kept = uniform("share of a sample", self.seed, epoch, keys)
        for b in np.flatnonzero(chosen):
            others = self.candidates
            if self.classes is not None:
                others = others[self.classes[others] == self.classes[sample_index[b]]]
            others = others[others != sample_index[b]]
            if len(others):  # else it is the only one of its class
                rows[b], share[b] = others[int(place[b] * len(others))], max(kept[b], 1e-6)
        return Partners(rows, share)

    def rows(
        self,
        read: Callable[[NDArray[np.int64]], SampleRows],
        sample_index: NDArray[np.int64],
        sample_keys: Keys,
        asv_keys: Keys,
        epoch: int,
        rarefy_depth: int | None,
    ) -> SampleRows:
        """Samples as a training batch sees them.

        Parameters
        ----------
        read : callable
            Gives the rows of samples as they stand in the table.
        sample_index : ndarray (B,)
        sample_keys : ndarray (N,)
        asv_keys : ndarray (A,)
        epoch : int
        rarefy_depth : int, optional
            Where `depths` says nothing.
        """
        keys = sample_keys[sample_index]
        rows = read(sample_index)
        if self.draws_reads or rarefy_depth is not None:
            reads = rows.depth()
            depth = reads
            if self.depths is not None:
                depth = np.minimum(reads, log_uniform_depths(*self.depths, keys, self.seed, epoch))
            elif rarefy_depth is not None:
                depth = np.full(len(reads), float(rarefy_depth))
            rows = self._mixed(rows, read, sample_index, keys, epoch, depth)
        if self.asv_dropout > 0:
            rows = drop_asvs(rows, keys, asv_keys, self.asv_dropout, self.seed, epoch)
        if self.count_noise > 0:
            rows = noisy_counts(rows, keys, asv_keys, self.count_noise, self.seed, epoch)
        return rows

    def _mixed(
        self,
        rows: SampleRows,
        read: Callable[[NDArray[np.int64]], SampleRows],
        sample_index: NDArray[np.int64],
        keys: Keys,
        epoch: int,
        depth: NDArray[np.float64],
    ) -> SampleRows:
        """Samples at a depth (B,), a share of the reads being their partners'."""
        partners = self.partners(sample_index, keys, epoch)
        if not partners.mixed.any():
            return draw_reads(rows, depth.astype(np.int64), keys, "rarefaction", self.seed, epoch)
        theirs = read(partners.rows)
        given = 1 - partners.share
        # No deeper than the partner's reads allow.
        whole = np.minimum(depth, np.maximum(theirs.depth() / np.maximum(given, 1e-12), 1)).astype(np.int64)
        taken = np.minimum(np.rint(given * whole), theirs.depth()).astype(np.int64)
        return joined(
            draw_reads(rows, whole - taken, keys, "rarefaction", self.seed, epoch),
            draw_reads(theirs, taken, keys, "reads of the partner", self.seed, epoch),
        )

    def target(self, values: NDArray[Any], sample_index: NDArray[np.int64], keys: Keys, epoch: int) -> NDArray[Any]:
        """The target (B,) of samples: of numbers, values (N,) in the scale of learning, mixed as the samples are.

        Of several columns (N, T), one that is unknown of either is unknown of what is mixed of them.
        """
        if self.mix_samples == 0 or values.dtype.kind != "f":
            return values[sample_index]
        partners = self.partners(sample_index, keys, epoch)
        across = (slice(None),) + (None,) * (values.ndim - 1)
        share = partners.share[across]
        mixed = share * values[sample_index] + (1 - share) * values[partners.rows]
        return np.where(partners.mixed[across], mixed, values[sample_index]).astype(values.dtype)


def require_whole_counts(counts: Counts, source: Sequence[Path]) -> None:
    """Refuse counts that no reads can be drawn from.

    Raises
    ------
    DataError
    """
    if can_draw_reads(counts):
        return
    for rows in in_blocks(counts, np.arange(counts.shape[0])):
        broken = rows.counts[rows.counts % 1 != 0]
        if len(broken):
            raise DataError(
                f"{named(source)}: --augment-rarefy and --mix-samples draw whole reads, but the table holds "
                f"{broken[0]:g}; give raw counts, or leave both out"
            )
    raise DataError(
        f"{named(source)}: --augment-rarefy and --mix-samples draw from fewer than {MOST_READS:g} reads, and a sample "
        "has more; give raw counts, or leave both out"
    )


def with_defaults(config: RunConfig, counts: Counts) -> AugmentationConfig:
    """What varies in a run, where it was not said.

    A column is learnt from samples that are varied a little, unless a frozen base encodes them once. Without it the
    network fits the training samples alone: see docs/quality.md.

    Parameters
    ----------
    config : RunConfig
    counts : Counts
        Samples are not mixed where no reads can be drawn from these.
    """
    asked = config.augmentation
    varied = config.command == "train" and not config.train.freeze_base
    found = {"asv_dropout": 0.1, "count_noise": 0.3, "mix_samples": 0.3} if varied else {}
    if found and asked.mix_samples is None and not can_draw_reads(counts):
        found["mix_samples"] = 0.0
    update = {
        name: found.get(name, 0.0)
        for name in ("asv_dropout", "count_noise", "mix_samples")
        if getattr(asked, name) is None
    }
    return asked.model_copy(update=update)


def can_draw_reads(counts: Counts) -> bool:
    """Whether all counts are whole numbers, as of reads, and not too many."""
    blocks = in_blocks(counts, np.arange(counts.shape[0]))
    return all((rows.counts % 1 == 0).all() and (rows.depth() < MOST_READS).all() for rows in blocks)


def log_uniform_depths(low: int, high: int, keys: Keys, seed: int, epoch: int) -> NDArray[np.float64]:
    """A whole depth (B,) from ``low`` to ``high`` for every sample, uniform in its logarithm.

    Parameters
    ----------
    low, high : int
    keys : ndarray (B,)
        Of the samples.
    seed, epoch : int
    """
    share = uniform("depth of rarefaction", seed, epoch, keys)
    return np.floor(low * ((high + 1) / low) ** share).clip(low, high)


def draw_reads(
    rows: SampleRows, depth: NDArray[np.int64], keys: Keys, purpose: str, seed: int, epoch: int
) -> SampleRows:
    """Rarefy samples: draw reads without replacement.

    Parameters
    ----------
    rows : SampleRows
        Of ``B`` samples; whole counts where any are to be drawn.
    depth : ndarray (B,)
        Reads to draw, at most those there are.
    keys : ndarray (B,)
        Of the samples.
    purpose, seed, epoch
        See `aam.data.draws`.
    """
    counts = rows.counts.copy()
    for b, (reads, total) in enumerate(zip(depth, rows.depth(), strict=True)):
        if reads == total:
            continue
        here = slice(rows.indptr[b], rows.indptr[b + 1])
        draws = generator(purpose, seed, epoch, keys[b])
        whole = rows.counts[here].astype(np.int64)
        counts[here] = draws.multivariate_hypergeometric(whole, int(reads), method="marginals")
    return SampleRows(rows.indptr, rows.asvs, counts).keep(counts > 0)


def joined(a: SampleRows, b: SampleRows) -> SampleRows:
    """The sum of the counts of samples, those of ``a`` (B) and of ``b`` (B); ASVs in ascending order."""
    asvs, counts = np.concatenate([a.asvs, b.asvs]), np.concatenate([a.counts, b.counts])
    samples = np.concatenate([a.samples, b.samples])
    width = int(asvs.max(initial=0)) + 1
    places, which = np.unique(samples * width + asvs, return_inverse=True)
    per_sample = np.bincount(places // width, minlength=len(a.indptr) - 1)
    return SampleRows(
        np.concatenate([[0], np.cumsum(per_sample)]),
        places % width,
        np.bincount(which, weights=counts, minlength=len(places)).astype(np.float64),
    )


def drop_asvs(rows: SampleRows, keys: Keys, asv_keys: Keys, probability: float, seed: int, epoch: int) -> SampleRows:
    """Leave each ASV of each sample out with a probability; one of each sample stays.

    Parameters
    ----------
    rows : SampleRows
    keys : ndarray (B,)
        Of the samples.
    asv_keys : ndarray (A,)
    probability : float
    seed, epoch : int
    """
    samples = rows.samples
    draws = uniform("ASVs to leave out", seed, epoch, keys[samples], asv_keys[rows.asvs])  # (n,)
    most = np.full(len(keys), -1.0)
    np.maximum.at(most, samples, draws)
    return rows.keep((draws >= probability) | (draws == most[samples]))


def noisy_counts(rows: SampleRows, keys: Keys, asv_keys: Keys, deviation: float, seed: int, epoch: int) -> SampleRows:
    """Multiply each count by ``exp(deviation * z)``, z standard normal.

    Parameters
    ----------
    rows : SampleRows
    keys : ndarray (B,)
        Of the samples.
    asv_keys : ndarray (A,)
    deviation : float
    seed, epoch : int
    """
    draws = uniform("noise of counts", seed, epoch, keys[rows.samples], asv_keys[rows.asvs])  # (n,)
    normal = ndtri(draws.clip(2.0**-53, 1 - 2.0**-53))
    return SampleRows(rows.indptr, rows.asvs, rows.counts * np.exp(deviation * normal))


def substitute_bases(
    tokens: NDArray[np.uint8], keys: Keys, probability: float, seed: int, epoch: int
) -> NDArray[np.uint8]:
    """Put another of A, C, G and T in the place of each of these with a probability; all else stays.

    Parameters
    ----------
    tokens : ndarray (U, L)
        As of `aam.data.tokenizer`.
    keys : ndarray (U,)
        Of the sequences.
    probability : float
    seed, epoch : int

    Returns
    -------
    ndarray (U, L)
    """
    places = np.arange(tokens.shape[1])
    hit = uniform("bases to substitute", seed, epoch, keys[:, None], places) < probability  # (U, L)
    step = 1 + np.floor(3 * uniform("other base", seed, epoch, keys[:, None], places)).astype(np.uint8)  # 1, 2 or 3
    bases = (tokens >= A) & (tokens <= T)  # the tokens from A to T are those four
    other = A + (tokens - np.uint8(A) + step) % np.uint8(T - A + 1)
    return np.where(hit & bases, other, tokens).astype(np.uint8)
