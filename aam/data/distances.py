"""Distances between samples, and values of samples, from a table and a tree, and the files that they are kept in.

Legend of shapes: ``N`` samples, ``A`` ASVs, ``M`` nodes of a tree, ``T`` samples of a strip.

===================  ===================================================================  =====================
metric               definition                                                           computed by
===================  ===================================================================  =====================
unifrac              share of the branch length leading to either sample's ASVs that      ssu or scikit-bio
                     leads to one sample's alone (Lozupone & Knight 2005)
weighted_unifrac     Σ l·abs(p − q) / Σ l·(p + q), p and q the shares of the samples'     ssu or scikit-bio
                     reads below a branch of length l: the normalised form (Lozupone
                     et al. 2007)
generalized_unifrac  Σ l·(p + q)^α·abs(p − q)/(p + q) / Σ l·(p + q)^α (Chen et al. 2012)  ssu or NumPy
faith_pd             length of all branches from the root to the sample's ASVs            faithpd or scikit-bio
                     (Faith 1992)
bray_curtis          Σ abs(a − b) / Σ (a + b), a and b counts (Bray & Curtis 1957)        NumPy
jaccard              ASVs of one sample alone over those of either (Jaccard 1901)         NumPy
aitchison            Euclidean distance between centred log-ratios of counts + 1          NumPy
                     (Aitchison et al. 2000)
===================  ===================================================================  =====================
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csr_array

from aam.data.biom_loader import FeatureTable
from aam.data.draws import MOST_READS, generator, stable_keys
from aam.data.files import shown
from aam.data.newick import Tree, read_newick, write_newick
from aam.data.ssu import HOW_TO_INSTALL, is_installed, ssu_distances, ssu_faith_pd
from aam.data.tree_pruner import PrunedTree, prune, pruned_tree, require_rooted
from aam.errors import DataError, in_file

__all__ = [
    "PHYLOGENETIC",
    "PSEUDOCOUNT",
    "DistanceResult",
    "Engine",
    "Metric",
    "check_output",
    "compute",
    "observed_asvs",
    "rarefied",
    "unweighted_unifrac",
    "write_distances_h5",
    "write_result",
]

Metric = Literal[
    "unifrac", "weighted_unifrac", "generalized_unifrac", "bray_curtis", "jaccard", "aitchison", "faith_pd"
]
Engine = Literal["auto", "ssu", "skbio"]

PSEUDOCOUNT = 1.0  # of Aitchison distances, as in QIIME 2
_SSU = {  # the methods in single precision are off by more than 1e-6
    "unifrac": "unweighted_fp64",
    "weighted_unifrac": "weighted_normalized_fp64",
    "generalized_unifrac": "generalized_fp64",
}
PHYLOGENETIC = frozenset({*_SSU, "faith_pd"})  # metrics that need a tree
_OF_PRESENCE = frozenset({"unifrac", "jaccard", "faith_pd"})  # metrics that do not look at abundance
_STRIP = 512


@dataclass(frozen=True)
class DistanceResult:
    """What was computed, and how.

    Attributes
    ----------
    metric : str
    ids : list of str, length N
        Samples with reads, in the order of the table.
    values : ndarray
        Distances, float32 of shape (N, N), symmetric and 0 on the diagonal; or one value a sample, float64 of shape
        (N,).
    engine : str
        Program or library that computed them.
    left_out : list of str
        Samples without reads.
    missing : list of str
        ASVs that were left out, as the tree lacks them.
    notes : list of str
        What a user should know, a sentence each.
    tree : Tree, optional
        The pruned tree.
    """

    metric: Metric
    ids: list[str]
    values: NDArray[Any]
    engine: str
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tree: Tree | None = None


def compute(
    metric: Metric,
    table: FeatureTable,
    tree: Tree | str | Path | None = None,
    *,
    engine: Engine = "auto",
    threads: int | None = None,
    alpha: float = 0.5,
    drop_missing: bool = False,
    cache: Path | None = None,
) -> DistanceResult:
    """Compute a metric of the samples of a table.

    Parameters
    ----------
    metric : Metric
    table : FeatureTable of shape (N, A)
        Samples without reads are left out.
    tree : Tree, str or Path, optional
        A rooted tree with branch lengths, which is pruned to the table's ASVs first; a file, or Newick text. For the
        UniFrac family and Faith's PD.
    engine : {"auto", "ssu", "skbio"}
        ``ssu`` and ``faithpd``; or scikit-bio (NumPy where that lacks the metric), which needs dense tables; or the
        first that can, in this order.
    threads : int, optional
        Of ``ssu``.
    alpha : float
        Weight of abundant branches in generalized UniFrac, from 0 (none) to 1 (as in weighted UniFrac).
    drop_missing : bool
        Leave ASVs out that the tree lacks, instead of refusing them.
    cache : Path, optional
        Directory of pruned trees.

    Raises
    ------
    DataError
        If the tree is missing, cannot be read, is not rooted or lacks lengths or ASVs; if fewer than two samples have
        reads, or the table's values are not what the metric needs; if the program that was asked for is missing,
        fails, or cannot compute the metric; or if a distance is undefined.
    """
    assert metric in get_args(Metric), metric
    if metric == "generalized_unifrac" and not 0 <= alpha <= 1:
        raise DataError(f"alpha is {alpha:g}; give one from 0 to 1")
    ssu = "faithpd" if metric == "faith_pd" else "ssu"
    if engine == "ssu" and metric not in PHYLOGENETIC:
        raise DataError(f"ssu has no {metric}; use --engine skbio")
    if engine == "ssu" and not is_installed(ssu):
        raise DataError(f"{ssu} is not on the PATH; install it with {HOW_TO_INSTALL}, or use --engine skbio")
    if table.kind == "presence" and metric not in _OF_PRESENCE:
        raise DataError(
            f"{metric} needs counts, and the table holds presence and absence; give the table that it was made from, "
            f"or use --metric {' or '.join(sorted(_OF_PRESENCE))}"
        )
    if table.kind == "relative" and metric == "aitchison":
        raise DataError(
            "aitchison adds a read to every count, and the table holds relative frequencies; give the table of counts "
            "that it was made from"
        )
    if metric not in PHYLOGENETIC:
        table, empty = _with_reads(table, metric)
        matrix = {"bray_curtis": _bray_curtis, "jaccard": _jaccard, "aitchison": _aitchison}[metric](table.counts)
        return DistanceResult(metric, table.sample_ids, _finished(matrix, table, metric), "NumPy", empty)

    if tree is None:
        raise DataError(f"{metric} needs a tree; give --tree")
    observed = observed_asvs(table)
    pruned = _pruned(tree, [table.feature_ids[i] for i in observed], drop_missing, cache)
    with in_file(tree if isinstance(tree, Path) else None):
        _check_lengths(pruned.tree)
    notes = []
    if pruned.missing:
        absent = set(pruned.missing)
        observed = np.array([i for i in observed if table.feature_ids[i] not in absent], dtype=np.int64)
        lost = table.counts.sum() - table.counts[:, observed].sum()
        share = f"{lost:.0f} of {table.counts.sum():.0f} reads"
        notes.append(f"{len(absent)} ASVs that the tree lacks were left out, and with them {share}")
    counts = csr_array(table.counts[:, observed])
    table = replace(table, counts=counts, feature_ids=[table.feature_ids[i] for i in observed])
    table, empty = _with_reads(table, metric)
    if pruned.tree.length[-1] > 0:
        own = f"{pruned.tree.length[-1]:g}"
        notes.append(f"the tree's root has a length of its own ({own}), which scikit-bio counts and ssu does not")
    tips = pruned.tree.find(table.feature_ids)
    assert (tips >= 0).all()
    if engine == "ssu" or (engine == "auto" and is_installed(ssu)):
        values, used = _by_ssu(metric, table, pruned.tree, tips, alpha, threads), ssu
    elif metric == "generalized_unifrac":
        values, used = _generalized(table.counts, pruned.tree, tips, alpha), "NumPy"
    elif metric == "weighted_unifrac" and (table.counts.data % 1).any():  # scikit-bio would take the whole part
        values, used = _generalized(table.counts, pruned.tree, tips, 1.0), "NumPy"
    else:
        values, used = _by_scikit_bio(metric, table, pruned.tree), "scikit-bio"
    values = _finished(values, table, metric)
    return DistanceResult(metric, table.sample_ids, values, used, empty, pruned.missing, notes, pruned.tree)


def observed_asvs(table: FeatureTable) -> NDArray[np.int64]:
    """Columns of the ASVs that some sample has."""
    return np.unique(table.counts.indices).astype(np.int64)


def rarefied(
    table: FeatureTable, depth: int, seed: int, names: Sequence[str] | None = None
) -> tuple[FeatureTable, list[str]]:
    """Draw reads of each sample without replacement, as a run with this seed draws them in evaluation.

    Parameters
    ----------
    table : FeatureTable of shape (N, A)
        Of whole counts.
    depth : int
        Reads to draw.
    seed : int
    names : sequence of str, length A, optional
        Sequences of the ASVs, whose order the draws go by; their IDs without.

    Returns
    -------
    table : FeatureTable
        The samples with as many reads.
    shallow : list of str
        IDs of the others.

    Raises
    ------
    DataError
        If no sample has as many reads.
    """
    deep = np.asarray(table.counts.sum(axis=1) >= depth)
    if not deep.any():
        most = table.counts.sum(axis=1).max()
        raise DataError(f"no sample has --rarefy-depth {depth} reads (the most is {most:.0f}); give a lower depth")
    most = table.counts.sum(axis=1).max()
    if most >= MOST_READS:
        raise DataError(
            f"--rarefy-depth draws from fewer than {MOST_READS:g} reads, and a sample has {most:g}; leave it out"
        )
    order = np.argsort(np.array(table.feature_ids if names is None else names, dtype=object))
    kept = table.select_samples(np.flatnonzero(deep))
    counts = csr_array(kept.counts[:, order])
    counts.sort_indices()
    drawn = counts.data.copy()
    for i, key in enumerate(stable_keys(kept.sample_ids)):
        here = slice(counts.indptr[i], counts.indptr[i + 1])
        draws = generator("rarefaction", seed, 0, int(key))
        drawn[here] = draws.multivariate_hypergeometric(counts.data[here].astype(np.int64), depth, method="marginals")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    result = csr_array(csr_array((drawn, counts.indices, counts.indptr), shape=counts.shape)[:, back])
    result.eliminate_zeros()
    result.sort_indices()
    return replace(kept, counts=result), [table.sample_ids[i] for i in np.flatnonzero(~deep)]


def unweighted_unifrac(
    counts: csr_array, sequences: Sequence[str], tree: str | Path, sample_ids: Sequence[str]
) -> NDArray[np.float32]:
    """Compute unweighted UniFrac with scikit-bio.

    Parameters
    ----------
    counts : csr_array, shape (N, A)
    sequences : sequence of str, length A
        Feature IDs, each the name of a tip; the tree may have further tips.
    tree : str or Path
        A rooted Newick tree with branch lengths: a file, or the text itself, which begins with ``(``.
    sample_ids : sequence of str, length N

    Returns
    -------
    ndarray of float32, shape (N, N)
        Symmetric, within [0, 1], 0 on the diagonal.

    Raises
    ------
    DataError
        If the tree cannot be read, is not rooted, lacks branch lengths or ASVs, or if a sample is empty.
    """
    table = FeatureTable(csr_array(counts.astype(np.float64)), list(sample_ids), list(sequences))
    result = compute("unifrac", table, tree, engine="skbio")
    if result.left_out:
        raise DataError(
            f"UniFrac of samples without counts is undefined: {_some(result.left_out)}; leave them out of the table"
        )
    matrix: NDArray[np.float32] = result.values
    return matrix


def write_result(path: Path, result: DistanceResult, *, complete: bool = True) -> None:
    """Write what was computed, in the format of the file's extension.

    ``.h5`` as ``ssu --format hdf5_fp32`` does; ``.tsv`` as ``ssu`` (square) and ``faithpd`` do; ``.npz`` with ``ids``
    and ``matrix``; ``.npy`` without IDs. Values of samples are written as ``.tsv`` alone. The file is never there in
    part.

    Parameters
    ----------
    path : Path
    result : DistanceResult
    complete : bool
        Whether every sample of the table is in the result, without which its order is lost to ``.npy``.

    Raises
    ------
    DataError
        If the extension is another, or cannot hold the result.
    """
    check_output(path, result.metric)
    if path.suffix == ".npy" and not complete:
        raise DataError(f"{path}: .npy holds no sample IDs, and some were left out; write .h5, .npz or .tsv")
    with _whole(path) as part:
        if path.suffix == ".h5":
            write_distances_h5(part, result.ids, result.values)
        elif path.suffix == ".tsv":
            _write_tsv(part, result)
        else:
            with part.open("wb") as file:
                if path.suffix == ".npy":
                    np.save(file, result.values, allow_pickle=False)
                else:
                    np.savez(file, ids=np.array(result.ids, dtype=np.str_), matrix=result.values)


def check_output(path: Path, metric: Metric) -> None:
    """Refuse an extension that cannot hold a metric."""
    if metric == "faith_pd":
        if path.suffix != ".tsv":
            raise DataError(f"{path}: faith_pd is one value a sample; write it to a .tsv file")
    elif path.suffix not in (".h5", ".tsv", ".npy", ".npz"):
        raise DataError(f"{path}: the extension {shown(path.suffix)} names no format; use .h5, .tsv, .npz or .npy")


def write_distances_h5(path: str | Path, ids: Sequence[str], matrix: NDArray[np.floating[Any]]) -> None:
    """Write a distance matrix as ``ssu --format hdf5_fp32`` does.

    Parameters
    ----------
    path : str or Path
        Replaced where it exists.
    ids : sequence of str, length N
        Sample IDs, written as the dataset ``order``.
    matrix : ndarray of float, shape (N, N)
        Written as float32, as the dataset ``matrix``.
    """
    assert matrix.shape == (len(ids), len(ids)), f"{len(ids)} IDs for a matrix of {matrix.shape}"
    text = "ascii" if all(i.isascii() for i in ids) else "utf-8"
    with h5py.File(path, "w") as handle:
        handle["format"] = np.array([b"BDSM"])
        handle["version"] = np.array([b"2020.12"])
        handle.create_dataset("order", data=[i.encode() for i in ids], dtype=h5py.string_dtype(text))
        handle["matrix"] = np.ascontiguousarray(matrix, dtype=np.float32)


def _write_tsv(path: Path, result: DistanceResult) -> None:
    with path.open("w", encoding="utf-8") as file:
        if result.values.ndim == 1:
            file.write(f"#SampleID\t{result.metric}\n")
            file.writelines(
                f"{name}\t{value!r}\n" for name, value in zip(result.ids, result.values.tolist(), strict=True)
            )
        else:
            file.write("\t" + "\t".join(result.ids) + "\n")
            for name, row in zip(result.ids, result.values, strict=True):
                file.write(f"{name}\t" + "\t".join(f"{value:.9g}" for value in row.tolist()) + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside this one that takes its place once it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pruned(tree: Tree | str | Path, names: list[str], drop_missing: bool, cache: Path | None) -> PrunedTree:
    if isinstance(tree, str) and not tree.lstrip().startswith("("):
        tree = Path(tree)
    if isinstance(tree, Path):
        return pruned_tree(tree, names, cache=cache, drop_missing=drop_missing)
    with in_file(Path("tree") if isinstance(tree, str) else None):
        whole = tree if isinstance(tree, Tree) else read_newick(tree)
        require_rooted(whole)
        return prune(whole, names, drop_missing=drop_missing)


def _check_lengths(tree: Tree) -> None:
    below = tree.length[:-1]
    without = int(np.isnan(below).sum())
    if without:
        raise DataError(
            f"{without} of the tree's branches to the table's ASVs have no length; UniFrac needs all of them"
        )
    if not below.sum() > 0:
        raise DataError("every branch of the tree to the table's ASVs has length 0; give a tree with branch lengths")


def _with_reads(table: FeatureTable, metric: Metric) -> tuple[FeatureTable, list[str]]:
    """The samples with reads, and the IDs of those without."""
    depth = table.counts.sum(axis=1)
    empty = [table.sample_ids[i] for i in np.flatnonzero(depth == 0)]
    least = 1 if metric == "faith_pd" else 2
    if table.shape[0] - len(empty) < least:
        raise DataError(f"{table.shape[0] - len(empty)} sample(s) have reads; {metric} needs {least} at least")
    return (table.select_samples(np.flatnonzero(depth > 0)) if empty else table), empty


def _finished(values: NDArray[Any], table: FeatureTable, metric: Metric) -> NDArray[Any]:
    """Refuse values that are undefined, and remove rounding: 0 on the diagonal, exact symmetry, nothing negative."""
    if values.ndim == 1:
        _require_finite(values, 0, table, metric)
        return values
    values = values.astype(np.float32, copy=False)
    np.fill_diagonal(values, 0)
    for start in range(0, len(values), _STRIP):
        rows, columns = values[start : start + _STRIP, start:], values[start:, start : start + _STRIP].T
        mean = np.maximum((rows + columns) / 2, 0)
        _require_finite(mean, start, table, metric)
        values[start : start + _STRIP, start:] = mean
        values[start:, start : start + _STRIP] = mean.T
    return values


def _require_finite(values: NDArray[Any], start: int, table: FeatureTable, metric: Metric) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        names = " and ".join(shown(table.sample_ids[start + i]) for i in wrong[0])
        raise DataError(f"{metric} of {names} is undefined; check the tree's branch lengths")


def _by_ssu(
    metric: Metric, table: FeatureTable, tree: Tree, tips: NDArray[np.int64], alpha: float, threads: int | None
) -> NDArray[Any]:
    if metric == "faith_pd":
        return ssu_faith_pd(table.counts, tree, tips, threads)
    arguments = ["-m", _SSU[metric]] + (["-a", repr(float(alpha))] if metric == "generalized_unifrac" else [])
    return ssu_distances(table.counts, tree, tips, arguments, threads)


def _by_scikit_bio(metric: Metric, table: FeatureTable, tree: Tree) -> NDArray[Any]:
    import psutil

    samples, asvs = table.shape
    need = 8 * samples * (3 * asvs + 2 * len(tree) + 2 * samples)
    free = psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"scikit-bio would need about {need / 1e9:.0f} GB for {samples} samples and {asvs} ASVs, and "
            f"{free / 1e9:.0f} GB are free; install ssu with {HOW_TO_INSTALL}"
        )
    from skbio import TreeNode
    from skbio.diversity import alpha_diversity, beta_diversity

    root = TreeNode.read([write_newick(tree)], format="newick", verify=False, convert_underscores=False)
    ids, taxa = table.sample_ids, table.feature_ids
    if metric == "weighted_unifrac":
        dense = table.counts.toarray()
        found = beta_diversity("weighted_unifrac", dense, ids, taxa=taxa, tree=root, normalized=True)
        return np.array(found.data, dtype=np.float32)
    present = (
        (table.counts > 0).astype(np.int64).toarray()
    )  # scikit-bio wants integers; which ones does not matter here
    if metric == "faith_pd":
        return np.asarray(alpha_diversity("faith_pd", present, ids, taxa=taxa, tree=root).to_numpy())
    return np.array(beta_diversity("unweighted_unifrac", present, ids, taxa=taxa, tree=root).data, dtype=np.float32)


def _jaccard(counts: csr_array) -> NDArray[np.float32]:
    present = csr_array((np.ones(counts.nnz), counts.indices, counts.indptr), shape=counts.shape)
    number = np.diff(counts.indptr)  # (N,)
    values = np.empty((len(number), len(number)), dtype=np.float32)
    for rows, shared in _products(present):
        either = number[rows, None] + number - shared  # (T, N)
        values[rows] = 1 - shared / either
    return values


def _aitchison(counts: csr_array) -> NDArray[np.float32]:
    """With y = log(c/pseudocount + 1), which is 0 where c is, d² = |y − y'|² − (Σy − Σy')²/A."""
    logs = csr_array((np.log1p(counts.data / PSEUDOCOUNT), counts.indices, counts.indptr), shape=counts.shape)
    total = logs.sum(axis=1)  # (N,)
    square = logs.power(2).sum(axis=1) - total**2 / counts.shape[1]
    values = np.empty((len(total), len(total)), dtype=np.float32)
    for rows, product in _products(logs):
        product -= total[rows, None] * total / counts.shape[1]
        scale = square[rows, None] + square  # (T, N)
        squared = scale - 2 * product
        squared[squared < 1e-13 * scale] = 0  # rounding between equal samples
        values[rows] = np.sqrt(squared)
    return values


def _products(matrix: csr_array) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Products of each sample with every one, a strip (T, N) at a time."""
    turned = csr_array(matrix.T)
    for start in range(0, matrix.shape[0], _STRIP):
        rows = slice(start, min(start + _STRIP, matrix.shape[0]))
        yield rows, (matrix[rows] @ turned).toarray()


def _bray_curtis(counts: csr_array) -> NDArray[np.float32]:
    depth = counts.sum(axis=1)  # (N,)
    values = np.empty((len(depth), len(depth)), dtype=np.float32)
    for i, other, own, _, theirs in _shared_entries(counts):
        shared = np.bincount(other, np.minimum(own, theirs), len(depth))
        values[i] = 1 - 2 * shared / (depth[i] + depth)
    return values


def _generalized(counts: csr_array, tree: Tree, tips: NDArray[np.int64], alpha: float) -> NDArray[np.float32]:
    """Sums over all branches, as those of each sample alone, put right for the branches that two samples share."""
    depth = counts.sum(axis=1)
    shares = csr_array(
        (counts.data / np.repeat(depth, np.diff(counts.indptr)), counts.indices, counts.indptr), shape=counts.shape
    )
    below = csr_array(shares @ _ancestors(tree, tips))  # (N, M)
    length = np.nan_to_num(tree.length)
    sample = np.repeat(np.arange(len(depth)), np.diff(below.indptr))
    alone = np.bincount(sample, length[below.indices] * below.data**alpha, len(depth))  # (N,)
    values = np.empty((len(depth), len(depth)), dtype=np.float32)
    for i, other, own, node, theirs in _shared_entries(below):
        both = own + theirs
        weight = length[node] * both**alpha
        apart = length[node] * (own**alpha + theirs**alpha)
        numerator = np.bincount(other, weight * np.abs(own - theirs) / both - apart, len(depth))
        denominator = np.bincount(other, weight - apart, len(depth))
        with np.errstate(invalid="ignore"):  # 0/0, where every branch has length 0, is refused later
            values[i] = (alone[i] + alone + numerator) / (alone[i] + alone + denominator)
    return values


def _ancestors(tree: Tree, tips: NDArray[np.int64]) -> csr_array:
    """Ones (A, M) where a node is a tip or above it."""
    asvs, nodes = [], []
    asv, node = np.arange(len(tips)), tips
    while len(node):
        asvs.append(asv)
        nodes.append(node)
        above = tree.parent[node]
        asv, node = asv[above >= 0], above[above >= 0]
    rows, columns = np.concatenate(asvs), np.concatenate(nodes)
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(tips), len(tree)))


def _shared_entries(
    matrix: csr_array,
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.float64], NDArray[Any], NDArray[np.float64]]]:
    """For each row: every entry in one of its columns, as (row, other row, own value, column, value there)."""
    by_column = sparse.csc_array(matrix)
    for i in range(matrix.shape[0]):
        here = slice(matrix.indptr[i], matrix.indptr[i + 1])
        columns = matrix.indices[here]
        begin = by_column.indptr[columns].astype(np.int64)
        size = by_column.indptr[columns + 1] - begin
        entries = np.repeat(begin - np.cumsum(size) + size, size) + np.arange(size.sum())
        own, column = np.repeat(matrix.data[here], size), np.repeat(columns, size)
        yield i, by_column.indices[entries], own, column, by_column.data[entries]


def _some(names: Sequence[Any], most: int = 3) -> str:
    shown_ = ", ".join(str(n) for n in names[:most])
    return shown_ if len(names) <= most else f"{shown_}, … ({len(names)} in all)"
