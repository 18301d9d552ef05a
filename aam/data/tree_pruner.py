"""A tree cut down to the ASVs of a table, on which every phylogenetic measure is what it is on the whole tree.

Legend of shapes: ``M`` nodes of the whole tree, ``m`` of them kept tips or above one, ``n`` nodes of the pruned tree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aam.data.cache import SUFFIX
from aam.data.files import file_sha256, require_file, shown
from aam.data.newick import Tree, parents, read_newick, write_newick
from aam.errors import DataError, in_file

__all__ = ["PrunedTree", "prune", "pruned_tree", "require_rooted", "write_tree"]


class PrunedTree(NamedTuple):
    """A pruned tree, and how it came to be."""

    tree: Tree
    missing: list[str]  # names that the whole tree lacks
    naming: int = 0  # which of several ways to name the ASVs the tree's tips follow
    reused: bool = False  # whether it came from the cache


def prune(tree: Tree, names: Sequence[str], *, drop_missing: bool = False) -> PrunedTree:
    """Keep the tips of these names and what joins them to the root.

    A node with one branch left is taken out, and its branch's length is added to the one below. The root stays, even
    with one branch, and so do its own length and the way from it down to the first fork: UniFrac and Faith's PD count
    branches from the root of the whole tree, so they are what they were.

    Parameters
    ----------
    tree : Tree
    names : sequence of str
        Names of tips, in any order, as `Tree.find` understands them.
    drop_missing : bool
        Pass over names that are not among the tips.

    Returns
    -------
    PrunedTree
        The tips have the given names, in the order of ``tree``. A length is NaN where one of those it is the sum of is.

    Raises
    ------
    DataError
        If a name is not among the tips, or none is.
    """
    found = tree.find(names)
    missing = [name for name, node in zip(names, found.tolist(), strict=True) if node < 0]
    _check_missing(missing, len(names), drop_missing)
    order = np.argsort(found, kind="stable")[len(missing) :]
    tips = found[order]
    if (tips[1:] == tips[:-1]).any():
        twice = int(np.flatnonzero(tips[1:] == tips[:-1])[0])
        pair = " and ".join(shown(names[order[twice + i]]) for i in (0, 1))
        raise DataError(f"{pair} are one tip of the tree; give each ASV one name")

    kept = _with_ancestors(tree.depth, tips)  # (m,)
    parent = parents(tree.depth[kept])
    alone = np.bincount(parent[:-1], minlength=len(kept)) == 1  # (m,)
    alone[-1] = False
    # In postorder a node with one branch follows its only child: each chain is a run that its lowest node begins.
    first = np.flatnonzero(~alone)  # (n,)
    last = np.append(first[1:], len(kept)) - 1
    length = np.add.reduceat(tree.length[kept], first)
    run = np.cumsum(~alone) - 1  # (m,)
    depth = _depths(np.where(parent[last] < 0, -1, run[parent[last]]))

    nodes = kept[first]
    labels = [tree._label(node) for node in nodes.tolist()]
    for place, name in zip(np.searchsorted(nodes, tips).tolist(), order.tolist(), strict=True):
        labels[place] = names[name].encode()
    size = np.array([len(label) for label in labels], dtype=np.int64)
    stop = np.cumsum(size)
    text = np.frombuffer(b"".join(labels) + bytes(8), dtype=np.uint8)
    quoted = np.ones(len(nodes), dtype=bool)  # the names are meant to the letter
    return PrunedTree(Tree(depth, length, text, stop - size, stop, quoted), missing)


def pruned_tree(
    path: Path, *namings: Sequence[str], cache: Path | None = None, drop_missing: bool = False
) -> PrunedTree:
    """Read a tree and prune it, or find it pruned in a cache.

    Parameters
    ----------
    path : Path
        Newick file.
    *namings : sequence of str
        Names of tips; if several, ways to name the same ASVs, of which the first is taken that the tree knows best.
    cache : Path, optional
        Directory of pruned trees, which are kept by the SHA-256 of the file and of the names.
    drop_missing : bool
        Pass over names that are not among the tips.

    Raises
    ------
    DataError
        If the tree cannot be read or is not rooted, or a name is not among its tips.
    """
    places = _places(path, namings, cache)
    for naming, (names, place) in enumerate(zip(namings, places, strict=True)):
        kept = _read_kept(place)
        if kept is not None and place is not None:
            place.touch()  # used last now
            missing = [name for name, node in zip(names, kept.find(names).tolist(), strict=True) if node < 0]
            with in_file(path):
                _check_missing(missing, len(names), drop_missing)
            return PrunedTree(kept, missing, naming, reused=True)
    tree = read_newick(path)
    with in_file(path):
        require_rooted(tree)
        known = [int((tree.find(names) >= 0).sum()) for names in namings] if len(namings) > 1 else [0]
        naming = int(np.argmax(known))
        pruned = prune(tree, namings[naming], drop_missing=drop_missing)
    place = places[naming]
    if place is not None:
        write_tree(place, pruned.tree)
    return pruned._replace(naming=naming)


def _places(path: Path, namings: Sequence[Sequence[str]], cache: Path | None) -> list[Path | None]:
    """Where a cache keeps the tree pruned to each of these names."""
    if cache is None:
        return [None] * len(namings)
    file = file_sha256(require_file(path, "tree"))
    digests = (hashlib.sha256("\n".join([file, *sorted(names)]).encode()).hexdigest() for names in namings)
    return [cache / f"tree-{digest}{SUFFIX}" for digest in digests]


def require_rooted(tree: Tree) -> None:
    """Refuse a tree whose root has three branches or more, which is how an unrooted tree is written."""
    if tree.root_children > 2:
        raise DataError(
            f"the root has {tree.root_children} branches, so the tree is not rooted, and UniFrac needs a root; "
            "add one, with `qiime phylogeny midpoint-root` for example"
        )


def write_tree(path: Path, tree: Tree) -> None:
    """Write a tree to a file, which is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(write_newick(tree), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_kept(path: Path | None) -> Tree | None:
    """A tree of the cache; None if it is not there, or damaged, so that it is made again."""
    try:
        return read_newick(path) if path is not None and path.is_file() else None
    except DataError:
        return None


def _check_missing(missing: Sequence[str], number: int, drop_missing: bool) -> None:
    if missing and (not drop_missing or len(missing) == number):
        raise DataError(
            f"{len(missing)} of the table's {number} ASVs are not among its tips "
            f"({', '.join(shown(name) for name in missing[:3])}{', …' if len(missing) > 3 else ''}); "
            "place them in the tree or leave them out of the table"
        )


def _with_ancestors(depth: NDArray[np.int32], tips: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nodes (m,) in postorder that are among ``tips``, which rise, or above one of them.

    What is above a tip follows it in postorder, and each time the depth falls below all since that tip, it falls to the
    tip's next ancestor. Looking from each tip as far as the next one finds every ancestor once.
    """
    begin = int(tips[0])
    lowered = np.zeros(len(depth) - begin, dtype=np.int64)
    lowered[tips - begin] = int(depth.max()) + 1
    np.cumsum(lowered, out=lowered)
    np.subtract(depth[begin:], lowered, out=lowered)  # so that at each tip the depth falls below all before
    lowest = np.minimum.accumulate(lowered)
    falls = np.ones(len(lowered), dtype=bool)
    np.less(lowered[1:], lowest[:-1], out=falls[1:])
    return np.flatnonzero(falls) + begin


def _depths(parent: NDArray[np.int64]) -> NDArray[np.int32]:
    """Depths (n,) from parents (n,) in postorder, by paths that double in length."""
    above = np.where(parent < 0, len(parent) - 1, parent)
    depth = (parent >= 0).astype(np.int32)
    while (above != len(parent) - 1).any():
        depth += depth[above]
        above = above[above]
    return depth
