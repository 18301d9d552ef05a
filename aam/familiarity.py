"""How like the training samples new samples are: what is kept of the former, and what the latter are held against.

Shapes: ``N`` samples of a study, ``A`` ASVs, ``T`` training samples, ``n`` of them whose embeddings are kept, ``D``
width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aam.config import RunConfig
from aam.data.counts import Counts, in_blocks
from aam.data.draws import stable_keys, uniform
from aam.data.neighbours import nearest
from aam.data.regions import REGIONS, Region
from aam.data.sequences import unambiguous
from aam.data.study import Study
from aam.data.tokenizer import sequence_lengths
from aam.errors import DataError
from aam.reading import read_training_samples
from aam.training.checkpoint import ModelFile, load_model_file, save_model_file
from aam.training.trainer import Trainer

__all__ = [
    "MOST_EMBEDDINGS",
    "Familiarity",
    "Spread",
    "TrainingProfile",
    "describe_samples",
    "familiarity",
    "keep_profile",
    "profile_of",
    "read_profile",
    "require_profile",
]

logger = logging.getLogger("aam")

MOST_EMBEDDINGS = 5000
_HEADER = "training_profile"
_PERCENT = np.arange(101)
_FAR = 99  # percentile of the distances between training samples, beyond which a sample is far from all of them
_ROUNDING = 1e-3  # of a standardised embedding in half precision
_LENGTH_SLACK = 1.1  # by which ASVs may be shorter or longer than those of the training
_DEPTH_SLACK = 2.0  # by which samples may have fewer or more reads
_NAMED = 3  # samples that a warning names


class Spread(NamedTuple):
    """Where the values of training samples lie."""

    least: float
    p1: float
    p5: float
    median: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Of at least one value."""
        return cls(*np.percentile(values, [0, 1, 5, 50, 95, 99, 100]).tolist())


@dataclass(frozen=True)
class TrainingProfile:
    """What is known of the samples that a model was trained on."""

    samples: int  # T
    grouped: bool  # whether a sample's nearest are of other groups, or other samples merely
    asvs: NDArray[np.uint64]  # rising keys of the sequences that any of them has
    depth: Spread  # reads of a sample
    asvs_per_sample: Spread
    lengths: Spread  # bases of an ASV, as far as they are read
    shared: Spread  # share of a sample's reads that are in ASVs which other groups' samples have too
    region: Region
    centre: NDArray[np.float32]  # (D,): mean of their embeddings
    scale: NDArray[np.float32]  # (D,): standard deviation
    embeddings: NDArray[np.float16]  # (n, D), standardised
    distances: NDArray[np.float64]  # (101,): percentiles of those to the nearest of another group; (0,) without any

    def standardised(self, embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
        """Embeddings (N, D) in units of the training samples' standard deviations."""
        return (embeddings - self.centre) / self.scale

    def header(self) -> dict[str, Any]:
        """Its plain numbers, as JSON takes them."""
        spreads = {name: getattr(self, name)._asdict() for name in _SPREADS}
        numbers = {"samples": self.samples, "grouped": self.grouped, "asvs": len(self.asvs)}
        return {**numbers, **spreads, "words_at_their_places": self.region.typical}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The rest of it, as it is stored beside the weights."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {"asvs": self.asvs.view(np.int64), "words": self.region.usual}
        return {f"profile.{name}": torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def of_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """What `header` and `tensors` were made from."""
        stored: dict[str, Any] = {name: tensors[f"profile.{name}"].numpy() for name in (*_ARRAYS, "asvs", "words")}
        spreads: dict[str, Any] = {name: Spread(**header[name]) for name in _SPREADS}
        arrays: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
        return cls(
            samples=int(header["samples"]),
            grouped=bool(header["grouped"]),
            asvs=stored["asvs"].view(np.uint64),
            region=Region(stored["words"], float(header["words_at_their_places"])),
            **spreads,
            **arrays,
        )


_SPREADS = ("depth", "asvs_per_sample", "lengths", "shared")
_ARRAYS = ("centre", "scale", "embeddings", "distances")


# ------------------------------------------------------------------------------------------------------------ training


def keep_profile(config: RunConfig, study: Study, rows: NDArray[np.int64], trainer: Trainer, path: Path) -> None:
    """Add a profile of the training samples to the model file, whose weights the trainer's model has.

    Every process embeds its share; the first alone reads and writes files.

    Parameters
    ----------
    config : RunConfig
    study : Study
    rows : ndarray (T,)
        Of the training samples.
    trainer : Trainer
    path : Path
        The model file.
    """
    drawn = _draw(study, rows, config.train.seed)
    encoder = trainer.task.encoder
    embeddings = read_training_samples(config, drawn, trainer, lambda batch: encoder(batch).embedding)
    if embeddings is None:
        return
    profile = profile_of(study, rows, drawn, embeddings)
    file = load_model_file(path)
    header = {**file.header, _HEADER: profile.header()}
    save_model_file(path, file.weights, file.config, header, {**file.beside, **profile.tensors()})


def _draw(study: Study, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The training samples whose embeddings are kept: all, or as many as there is room for."""
    draws = uniform("profile of the training samples", seed, 0, stable_keys([study.sample_ids[i] for i in rows]))
    return np.sort(rows[np.argsort(draws)[:MOST_EMBEDDINGS]])


def profile_of(
    study: Study, rows: NDArray[np.int64], drawn: NDArray[np.int64], embeddings: NDArray[np.float32]
) -> TrainingProfile:
    """The profile of some samples of a study.

    Parameters
    ----------
    study : Study
    rows : ndarray (T,)
        Of the training samples.
    drawn : ndarray (n,)
        Those of them that are embedded.
    embeddings : ndarray (n, D)
    """
    groups = np.arange(len(study)) if study.groups is None else pd.factorize(study.groups)[0]  # (N,)
    present, shared = _shared_asvs(study.counts, rows, groups)
    known = describe_samples(study.counts, rows, shared)
    asvs = np.flatnonzero(present)
    sequences = [study.sequences[i] for i in asvs]
    centre = embeddings.mean(axis=0, dtype=np.float64)
    # An axis along which training samples hardly differ is not made the longest of all.
    floor = 1e-3 * np.sqrt((embeddings.astype(np.float64) ** 2).mean())
    scale = np.maximum(embeddings.std(axis=0, dtype=np.float64), floor if floor > 0 else 1.0)
    standardised = ((embeddings - centre) / scale).astype(np.float16)
    to_nearest = nearest(standardised, standardised, (groups[drawn], groups[drawn]))
    to_nearest = to_nearest[np.isfinite(to_nearest)]
    return TrainingProfile(
        samples=len(rows),
        grouped=study.groups is not None,
        asvs=np.sort(_keys(sequences, study)),
        depth=Spread.of(known.depth),
        asvs_per_sample=Spread.of(known.asvs),
        lengths=Spread.of(_lengths(study)[asvs]),
        shared=Spread.of(known.held_reads),
        region=Region.of(study.tokens, asvs),
        centre=centre.astype(np.float32),
        scale=scale.astype(np.float32),
        embeddings=standardised,
        distances=np.percentile(to_nearest, _PERCENT) if len(to_nearest) else np.empty(0),
    )


def _shared_asvs(
    counts: Counts, rows: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether any of the samples has an ASV (A,), and whether samples of several groups do (A,)."""
    first = np.full(counts.shape[1], -1)
    shared = np.zeros(counts.shape[1], dtype=bool)
    start = 0
    for block in in_blocks(counts, rows):
        of_entry = groups[rows[start + block.samples]]
        start += len(block.indptr) - 1
        new = first[block.asvs] < 0
        first[block.asvs[new]] = of_entry[new]  # of several, any
        shared[block.asvs[first[block.asvs] != of_entry]] = True
    return first >= 0, shared


def _keys(sequences: list[str], study: Study) -> NDArray[np.uint64]:
    """Keys of sequences as they are read: cut, and N for whatever is ambiguous."""
    longest = study.tokens.shape[1] - 1
    return stable_keys([unambiguous(sequence[:longest]) for sequence in sequences])


def _lengths(study: Study) -> NDArray[np.int64]:
    """Bases of each ASV that are read, (A,)."""
    return sequence_lengths(study.sequences, study.tokens.shape[1] - 1)


# ------------------------------------------------------------------------------------------------------------- samples


class SampleNumbers(NamedTuple):
    """What the counts of samples say of them, each (n,)."""

    depth: NDArray[np.float64]  # reads
    asvs: NDArray[np.int64]
    held_reads: NDArray[np.float64]  # share of the reads that are in certain ASVs
    held_asvs: NDArray[np.float64]  # share of the ASVs
    median_length: NDArray[np.float64]  # of the ASVs, 0 where their lengths are not given
    region: NDArray[np.int64]  # which most reads are of, 0 where those of ASVs are not given


def describe_samples(
    counts: Counts,
    rows: NDArray[np.int64],
    held: NDArray[np.bool_],
    lengths: NDArray[np.int64] | None = None,
    regions: NDArray[np.int64] | None = None,
) -> SampleNumbers:
    """Sum samples up, a block at a time.

    Parameters
    ----------
    counts : Counts of shape (N, A)
    rows : ndarray (n,)
    held : ndarray (A,) of bool
        ASVs whose share is asked for.
    lengths : ndarray (A,), optional
    regions : ndarray (A,), optional
        Places in `aam.data.regions.REGIONS`.
    """
    parts = []
    for block in in_blocks(counts, rows):
        number, samples = len(block.indptr) - 1, block.samples
        depth, asvs = block.depth(), np.diff(block.indptr)
        held_counts = np.where(held[block.asvs], block.counts, 0.0)
        held_reads = np.bincount(samples, weights=held_counts, minlength=number) / depth
        held_asvs = np.bincount(samples, weights=held[block.asvs], minlength=number) / asvs
        medians, region = np.zeros(number), np.zeros(number, dtype=np.int64)
        if lengths is not None:
            rising = lengths[block.asvs][np.lexsort((lengths[block.asvs], samples))]
            medians = (rising[block.indptr[:-1] + (asvs - 1) // 2] + rising[block.indptr[:-1] + asvs // 2]) / 2
        if regions is not None:
            place = samples * len(REGIONS) + regions[block.asvs]
            reads = np.bincount(place, weights=block.counts, minlength=number * len(REGIONS))
            region = reads.reshape(number, len(REGIONS)).argmax(axis=1)
        parts.append((depth, asvs, held_reads, held_asvs, medians, region))
    return SampleNumbers(*(np.concatenate(values) for values in zip(*parts, strict=True)))


# ---------------------------------------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Familiarity:
    """How like the training samples the samples of a study are."""

    table: pd.DataFrame  # in the order asked for
    summary: str
    warnings: list[str]


def read_profile(file: ModelFile, path: Path) -> TrainingProfile | None:
    """The profile in a model file; None in one that was written before there were any.

    Raises
    ------
    DataError
        If it is damaged.
    """
    header = file.header.get(_HEADER)
    if header is None:
        return None
    try:
        return TrainingProfile.of_parts(header, file.beside)
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: what it says of its training samples is damaged; train again, or take another copy"
        ) from None


def require_profile(file: ModelFile, path: Path) -> None:
    """Refuse a model that does not say what it was trained on, before anything is computed.

    Raises
    ------
    DataError
    """
    if read_profile(file, path) is None:
        raise DataError(
            f"{path}: holds no profile of its training samples, to which --familiarity compares others; "
            "leave --familiarity out, or train again"
        )


def familiarity(
    file: ModelFile, path: Path, study: Study, embeddings: NDArray[np.float32], order: NDArray[np.int64]
) -> Familiarity | None:
    """Compare the samples of a study with those that a model was trained on, and warn of what sets them apart.

    Parameters
    ----------
    file : ModelFile
    path : Path
        Where it is from.
    study : Study
    embeddings : ndarray (N, D)
        Of the study's samples, by the model.
    order : ndarray (N,)
        Rows of the study, as the table is to have them.

    Returns
    -------
    Familiarity
        None where the model file holds no profile.

    Raises
    ------
    DataError
        If the profile is damaged.
    """
    profile = read_profile(file, path)
    if profile is None:
        logger.info("%s: holds no profile of its training samples, so nobody can say how like them these are", path)
        return None
    seen = np.isin(_keys(study.sequences, study), profile.asvs)
    regions = profile.region.names(study.tokens, study.sequences) if profile.region.recognisable else None
    known = describe_samples(study.counts, np.arange(len(study)), seen, _lengths(study), regions)
    distance = nearest(profile.standardised(embeddings), profile.embeddings)
    flags = _flags(profile, known, distance, rarefied=file.config.data.rarefy_depth is not None)
    percentile = np.full(len(study), np.nan)
    if len(profile.distances):
        percentile = np.interp(distance, profile.distances, _PERCENT)
        percentile[distance < profile.distances[0]] = 0
    table = pd.DataFrame(
        {
            "sample_id": study.sample_ids,
            "depth": known.depth.astype(np.int64) if (known.depth % 1 == 0).all() else known.depth,
            "asvs": known.asvs,
            "seen_reads": known.held_reads,
            "seen_asvs": known.held_asvs,
            "median_length": known.median_length,
            "region": "" if regions is None else np.array(REGIONS, dtype=object)[known.region],
            "distance": distance,
            "distance_percentile": percentile,
            "flag": ["; ".join(name for name, flagged in flags.items() if flagged[i]) for i in range(len(study))],
        }
    ).iloc[order]
    flagged = int((table["flag"] != "").sum())
    summary = (
        f"familiar: {np.median(known.held_reads):.0%} of reads in ASVs seen in training (median), "
        f"{flagged or 'none'} of {len(study)} samples flagged"
    )
    warnings = _warnings(
        profile, study, known, regions, {name: flagged[order] for name, flagged in flags.items()}, table
    )
    for warning in warnings:
        logger.warning(warning)
    return Familiarity(table.reset_index(drop=True), summary, warnings)


def _flags(
    profile: TrainingProfile, known: SampleNumbers, distance: NDArray[np.float64], *, rarefied: bool
) -> dict[str, NDArray[np.bool_]]:
    """By what each sample (N,) differs from those of the training."""
    far = np.zeros(len(distance), dtype=bool)
    if len(profile.distances):
        far = distance > profile.distances[_FAR] + _ROUNDING * np.sqrt(profile.embeddings.shape[1])
    shorter = known.median_length < profile.lengths.p1 / _LENGTH_SLACK
    longer = known.median_length > profile.lengths.p99 * _LENGTH_SLACK
    flags = {
        "far": far,
        "unknown ASVs": known.held_reads < profile.shared.p1,
        "reverse complement": known.region == REGIONS.index("reverse complement"),
        "other region": known.region == REGIONS.index("other"),
        "length": shorter | longer,
    }
    if not rarefied:
        flags["few reads"] = known.depth < profile.depth.least / _DEPTH_SLACK
        flags["many reads"] = known.depth > profile.depth.most * _DEPTH_SLACK
    return flags


def _warnings(
    profile: TrainingProfile,
    study: Study,
    known: SampleNumbers,
    regions: NDArray[np.int64] | None,
    flags: Mapping[str, NDArray[np.bool_]],
    table: pd.DataFrame,
) -> list[str]:
    """A sentence for whatever sets samples apart; ``flags`` are in the order of the table."""
    found = []

    def named(flag: str) -> str:
        names = table["sample_id"][flags[flag]].tolist()
        return f"{', '.join(names[:_NAMED])}{', …' if names[_NAMED:] else ''}"

    def number(flag: str) -> str:
        return f"{flags[flag].sum()} of {len(study)} samples"

    if flags["reverse complement"].any():
        assert regions is not None
        share = (regions == REGIONS.index("reverse complement")).mean()
        found.append(
            f"sequences look reverse-complemented: {share:.0%} of the ASVs match the training region only as reverse "
            f"complements, in {number('reverse complement')} most reads; reverse-complement them"
        )
    if flags["other region"].any():
        assert regions is not None
        tokens = study.tokens[regions == REGIONS.index("other")]
        later = profile.region.begin_later(tokens)
        if later:
            begin = f"begin {abs(later)} bases {'after' if later > 0 else 'before'} those learnt from"
            way_out = "trim them alike" if later > 0 else "cut what is before, primers it may be"
            found.append(f"sequences of most reads in {number('other region')} {begin}; {way_out}")
        else:
            found.append(
                f"sequences of most reads in {number('other region')} seem to come from another region than those "
                f"learnt from ({profile.region.shares(tokens).mean():.0%} of their words of 6 bases are at their "
                f"places; training ASVs have {profile.region.typical:.0%})"
            )
    if flags["length"].any():
        here, there = np.median(known.median_length), profile.lengths.median
        found.append(
            f"ASVs here have {here:g} bases, those learnt from {there:g}; trimmed otherwise, they count as other ASVs"
            if flags["length"].all()
            else f"ASVs of {number('length')} have other lengths than those learnt from, {there:g} bases "
            f"({named('length')})"
        )
    if not profile.depth.p5 <= np.median(known.depth) <= profile.depth.p95 and "few reads" in flags:
        found.append(
            f"reads per sample: median {_plain(np.median(known.depth))}, "
            f"training {_plain(profile.depth.p5)} to {_plain(profile.depth.p95)}"
        )
    if flags["unknown ASVs"].any():
        shares = "shares" if flags["unknown ASVs"].sum() == 1 else "share"
        found.append(
            f"{number('unknown ASVs')} {shares} fewer ASVs with training samples than these do with each other "
            f"({named('unknown ASVs')})"
        )
    if flags["far"].any():
        alone = flags["far"].sum() == 1
        means = "its prediction is an extrapolation" if alone else "their predictions are extrapolations"
        found.append(
            f"{number('far')} {'is' if alone else 'are'} far from anything seen in training: {means} ({named('far')})"
        )
    return found


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
