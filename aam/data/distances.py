"""Distances between samples from a table and a tree, and the file that they are kept in.

Legend of shapes: ``N`` samples, ``A`` ASVs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from aam.errors import DataError

__all__ = ["unweighted_unifrac", "write_distances_h5"]


def unweighted_unifrac(
    counts: csr_array, sequences: Sequence[str], tree: str | Path, sample_ids: Sequence[str]
) -> NDArray[np.float32]:
    """Compute unweighted UniFrac with scikit-bio.

    The share of the branch length leading to either sample's ASVs that leads to one sample's alone (Lozupone & Knight
    2005). scikit-bio takes a dense table, so this is for studies of up to a few thousand samples and ASVs.

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
    from skbio.diversity import beta_diversity

    name, root = _read_tree(tree)
    _check_tree(name, root, sequences)
    empty = [i for i, depth in zip(sample_ids, np.asarray(counts.sum(axis=1)), strict=True) if depth == 0]
    if empty:
        raise DataError(f"UniFrac of samples without counts is undefined: {_some(empty)}; leave them out of the table")
    present = (counts > 0).astype(np.int64).toarray()  # scikit-bio wants integers; which ones does not matter here
    distances = beta_diversity("unweighted_unifrac", present, list(sample_ids), taxa=list(sequences), tree=root)
    matrix: NDArray[np.float32] = distances.data.astype(np.float32)
    return matrix


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
    import h5py

    assert matrix.shape == (len(ids), len(ids)), f"{len(ids)} IDs for a matrix of {matrix.shape}"
    with h5py.File(path, "w") as handle:
        handle["format"] = np.array([b"BDSM"])
        handle["version"] = np.array([b"2020.12"])
        handle.create_dataset("order", data=[i.encode() for i in ids], dtype=h5py.string_dtype("ascii"))
        handle["matrix"] = np.ascontiguousarray(matrix, dtype=np.float32)


def _read_tree(tree: str | Path) -> tuple[str, Any]:
    """Read a Newick tree; returns what to call it in messages, and scikit-bio's root node."""
    from skbio import TreeNode
    from skbio.io import NewickFormatError

    is_text = isinstance(tree, str) and tree.lstrip().startswith("(")
    name = "tree" if is_text else f"tree {tree}"
    try:
        text = str(tree) if is_text else Path(tree).read_text()
        return name, TreeNode.read([text], format="newick", verify=False, convert_underscores=False)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (NewickFormatError, ValueError) as error:
        raise DataError(f"{name}: not a Newick tree ({error})") from error


def _check_tree(name: str, root: Any, sequences: Sequence[str]) -> None:
    if len(root.children) > 2:
        raise DataError(
            f"{name}: its root has {len(root.children)} branches, so the tree is not rooted, and UniFrac needs a root; "
            "add one, with `qiime phylogeny midpoint-root` for example"
        )
    without = [node for node in root.traverse(include_self=False) if node.length is None]
    if without:
        raise DataError(f"{name}: {len(without)} of its branches have no length; UniFrac needs all of them")
    negative = [node for node in root.traverse(include_self=False) if not 0 <= node.length < np.inf]
    if negative:
        raise DataError(f"{name}: a branch has length {negative[0].length}; lengths are finite and not negative")
    tips = Counter(tip.name for tip in root.tips(include_self=True))
    repeated = sorted(str(tip) for tip, number in tips.items() if number > 1)
    if repeated:
        raise DataError(f"{name}: several tips have one name ({_some(repeated)})")
    missing = sorted(set(sequences) - set(tips))
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of the table's {len(sequences)} ASVs are not among its tips ({_some(missing)}); "
            "place them in the tree or leave them out of the table"
        )


def _some(names: Sequence[Any], most: int = 3) -> str:
    shown = ", ".join(str(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
