"""Distances computed once and written to a file: what ``aam distances`` does."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from aam import __version__
from aam.data.biom_loader import FeatureTable, check_whole_counts, load_table
from aam.data.cache import Cache
from aam.data.distances import (
    PHYLOGENETIC,
    DistanceResult,
    Engine,
    Metric,
    check_output,
    compute,
    observed_asvs,
    rarefied,
    write_result,
)
from aam.data.files import file_sha256, require_file
from aam.data.newick import Tree
from aam.data.sequences import is_dna, load_sequences, merge_duplicate_sequences, resolve_sequences
from aam.data.tree_pruner import pruned_tree, write_tree
from aam.errors import DataError

__all__ = ["Computed", "distances"]


@dataclass(frozen=True)
class Computed:
    """What was computed, how long it took, and what a user should know, a sentence each."""

    result: DistanceResult
    seconds: float
    notes: list[str]
    complete: bool  # whether every sample of the table is among the result's
    asvs: int | None  # of the pruned tree


def distances(
    metric: Metric,
    table: Path,
    output: Path,
    *,
    sequences: Path | None = None,
    tree: Path | None = None,
    alpha: float = 0.5,
    engine: Engine = "auto",
    threads: int | None = None,
    rarefy_depth: int | None = None,
    seed: int = 0,
    drop_missing: bool = False,
    cache: Path | None = None,
    cache_size: float = 10.0,
    save_pruned_tree: Path | None = None,
    overwrite: bool = False,
) -> Computed:
    """Compute a metric of a table's samples and write it.

    Parameters
    ----------
    metric : Metric
    table : Path
    output : Path
        Its extension names the format, see `aam.data.distances.write_result`.
    sequences : Path, optional
        Representative sequences, where table and tree do not name ASVs alike.
    tree : Path, optional
        For the UniFrac family and Faith's PD.
    rarefy_depth : int, optional
        Draw this many reads of each sample first.
    seed : int
        Of that draw.
    save_pruned_tree : Path, optional
        Where to write the tree pruned to the table's ASVs.
    overwrite : bool
        Replace files that exist.
    cache : Path, optional
        Directory that keeps pruned trees and results for the next call on the same files.
    cache_size : float
        Its largest size in GB.
    alpha, engine, threads, drop_missing
        See `aam.data.distances.compute`.

    Raises
    ------
    DataError
        If a file exists and ``overwrite`` is not given, or for what `compute` refuses.
    """
    check_output(output, metric)
    for path in (output, save_pruned_tree):
        if path is not None and path.exists() and not overwrite:
            raise DataError(f"{path}: exists already; give --overwrite to replace it")
    if metric in PHYLOGENETIC and tree is None:
        raise DataError(f"{metric} needs a tree; give --tree")
    if save_pruned_tree is not None and metric not in PHYLOGENETIC:
        raise DataError(f"{metric} reads no tree; leave --save-pruned-tree {save_pruned_tree} out")
    wanted = _Wanted(metric, table, sequences, tree, alpha, engine, threads, rarefy_depth, seed, drop_missing)
    if output.suffix == ".npy":
        _require_all_samples(output, table, rarefy_depth)
    kept = None if cache is None else Cache(cache, cache_size)
    if kept is None or save_pruned_tree is not None:
        done = _computed(wanted, kept)
    else:
        done = _from_cache(wanted, kept)
    write_result(output, done.result, complete=done.complete)
    if save_pruned_tree is not None:
        assert done.result.tree is not None
        write_tree(save_pruned_tree, done.result.tree)
    if kept is not None:
        kept.shrink()
    return done


def _require_all_samples(output: Path, table: Path, rarefy_depth: int | None) -> None:
    """Refuse a format without sample IDs where samples will be left out, before hours of computing."""
    features = load_table(table)
    depth = np.asarray(features.counts.sum(axis=1))
    short = [features.sample_ids[row] for row in np.flatnonzero(depth < (rarefy_depth or 1e-300))]
    if short:
        raise DataError(
            f"{output}: .npy holds no sample IDs, and {_listed(short)} will be left out for want of reads; write .h5, "
            ".npz or .tsv"
        )


@dataclass(frozen=True)
class _Wanted:
    """What a result depends on."""

    metric: Metric
    table: Path
    sequences: Path | None
    tree: Path | None
    alpha: float
    engine: Engine
    threads: int | None
    rarefy_depth: int | None
    seed: int
    drop_missing: bool

    def key(self) -> bytes:
        """A digest of all of it, of files by their content."""
        parts: list[object] = [__version__]
        for name, value in asdict(self).items():
            if name != "threads":
                parts.append(file_sha256(require_file(value, name)) if isinstance(value, Path) else value)
        return json.dumps(parts).encode()


def _from_cache(wanted: _Wanted, cache: Cache) -> Computed:
    """The result of an earlier call on the same files, or computed and kept."""
    began = time.perf_counter()
    made: list[Computed] = []

    def make(path: Path) -> None:
        done = _computed(wanted, cache)
        made.append(done)
        beside = {"engine": done.result.engine, "notes": done.notes, "complete": done.complete, "asvs": done.asvs}
        with path.open("wb") as file:
            np.savez(
                file, ids=np.array(done.result.ids), values=done.result.values, beside=np.array(json.dumps(beside))
            )

    path = cache.file("distances", wanted.key(), make)
    if made:
        return made[0]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            beside = json.loads(str(stored["beside"]))
            result = DistanceResult(wanted.metric, stored["ids"].tolist(), stored["values"], beside["engine"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return _from_cache(wanted, cache)
    notes = [*beside["notes"], "the distances were reused from the cache"]
    return Computed(result, time.perf_counter() - began, notes, beside["complete"], beside["asvs"])


def _computed(wanted: _Wanted, cache: Cache | None) -> Computed:
    notes: list[str] = []
    features = load_table(wanted.table)
    samples = features.shape[0]
    fasta = None if wanted.sequences is None else load_sequences(wanted.sequences)
    resolved = _resolved(features, fasta, wanted.table)
    if resolved is not None:
        features, resolved, merged = merge_duplicate_sequences(features, resolved)
        if merged:
            notes.append(f"{merged} features with the sequence of another were merged with it")
    if wanted.rarefy_depth is not None:
        check_whole_counts(features, wanted.table)
        features, shallow, reused = _rarefied(features, wanted, resolved, cache)
        if shallow:
            notes.append(f"{_listed(shallow)} with fewer than {wanted.rarefy_depth} reads left out")
        if reused:
            notes.append("the rarefied table was reused from the cache")
    began = time.perf_counter()
    pruned: Tree | None = None
    if wanted.metric in PHYLOGENETIC:
        assert wanted.tree is not None
        directory = None if cache is None else cache.directory
        features, pruned = _match(features, resolved, fasta, wanted.tree, directory, wanted.drop_missing, notes)
    result = compute(
        wanted.metric,
        features,
        pruned,
        engine=wanted.engine,
        threads=wanted.threads,
        alpha=wanted.alpha,
        drop_missing=wanted.drop_missing,
    )
    seconds = time.perf_counter() - began
    if result.left_out:
        notes.append(f"{_listed(result.left_out)} without reads left out")
    asvs = None if result.tree is None else len(result.tree.tips)
    return Computed(result, seconds, notes + result.notes, len(result.ids) == samples, asvs)


def _rarefied(
    table: FeatureTable, wanted: _Wanted, names: Sequence[str] | None, cache: Cache | None
) -> tuple[FeatureTable, list[str], bool]:
    """The table rarefied, the samples that are too shallow, and whether that was in the cache."""
    assert wanted.rarefy_depth is not None
    depth = np.asarray(table.counts.sum(axis=1))
    shallow = [name for name, reads in zip(table.sample_ids, depth, strict=True) if reads < wanted.rarefy_depth]
    made: list[FeatureTable] = []
    if cache is None or len(shallow) == len(depth):
        return (*rarefied(table, wanted.rarefy_depth, wanted.seed, names=names), False)

    def make(path: Path) -> None:
        made.append(rarefied(table, wanted.rarefy_depth or 0, wanted.seed, names=names)[0])
        with path.open("wb") as file:
            sparse.save_npz(file, made[0].counts)

    inputs = [file_sha256(path) for path in (wanted.table, wanted.sequences) if path is not None]
    key = json.dumps([__version__, *inputs, wanted.rarefy_depth, wanted.seed]).encode()
    path = cache.file("rarefied", key, make)
    if made:
        return made[0], shallow, False
    try:
        with path.open("rb") as file:
            counts = sparse.csr_array(sparse.load_npz(file))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged
        path.unlink(missing_ok=True)
        return _rarefied(table, wanted, names, cache)
    kept = table.select_samples(np.flatnonzero(depth >= wanted.rarefy_depth))
    return replace(kept, counts=counts), shallow, True


def _resolved(table: FeatureTable, fasta: dict[str, str] | None, path: Path) -> list[str] | None:
    """The sequence of each feature, or None where their IDs are no DNA and stand for themselves."""
    if fasta is not None and all(name in fasta for name in table.feature_ids):
        return resolve_sequences(table.feature_ids, fasta, path)
    if all(map(is_dna, table.feature_ids)):
        return resolve_sequences(table.feature_ids, None, path)
    return None if fasta is None else resolve_sequences(table.feature_ids, fasta, path)


def _match(
    table: FeatureTable,
    resolved: Sequence[str] | None,
    fasta: dict[str, str] | None,
    tree: Path,
    cache: Path | None,
    drop_missing: bool,
    notes: list[str],
) -> tuple[FeatureTable, Tree]:
    """Prune the tree, and name features as it does: by ID, by sequence, or as ``--sequences`` names that sequence."""
    observed = observed_asvs(table)
    counts = sparse.csr_array(table.counts[:, observed])
    table = replace(table, counts=counts, feature_ids=[table.feature_ids[i] for i in observed])
    namings = {"feature ID": table.feature_ids}
    if resolved is not None:
        own = [resolved[i] for i in observed]
        namings["sequence"] = own
        record_of = {sequence: name for name, sequence in (fasta or {}).items()}
        namings["name in --sequences"] = [record_of.get(sequence, sequence) for sequence in own]
    distinct: dict[str, list[str]] = {}
    for how, names in namings.items():
        if names not in distinct.values():
            distinct[how] = names
    pruned = pruned_tree(tree, *distinct.values(), cache=cache, drop_missing=drop_missing)
    how = list(distinct)[pruned.naming]
    if how != "feature ID":
        notes.append(f"ASVs were found in the tree by their {how}")
    if pruned.reused:
        notes.append("the pruned tree was reused from the cache")
    return replace(table, feature_ids=distinct[how]), pruned.tree


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (", …" if len(names) > most else "")
    return f"{len(names)} sample{'s' if len(names) > 1 else ''} ({shown})"
