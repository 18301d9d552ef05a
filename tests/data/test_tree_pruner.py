"""Pruning against a plain recursion and scikit-bio."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.newick import Tree, read_newick, write_newick
from aam.data.tree_pruner import prune, pruned_tree
from aam.errors import DataError
from tests.data.newick_reference import collapsed, nodes, postorder, pruned, write


def as_rows(tree: Tree) -> list[tuple[str, int]]:
    return list(zip(tree.labels(), tree.depth.tolist(), strict=True))


@settings(max_examples=150)
@given(data=st.data())
def test_equals_a_plain_recursion(data: st.DataObject) -> None:
    node = data.draw(nodes(lengths=data.draw(st.booleans())))
    tips = [label for label, *_, is_tip in postorder(node) if is_tip]
    kept = data.draw(st.lists(st.sampled_from(tips), min_size=1, unique=True))
    left = pruned(node, set(kept))
    assert left is not None
    expected = list(postorder(collapsed(left)))
    tree = prune(read_newick((write(node) + ";").encode()), kept).tree
    assert as_rows(tree) == [(label, depth) for label, _, depth, _ in expected]
    lengths = [np.nan if length is None else length for _, length, *_ in expected]
    np.testing.assert_allclose(tree.length, lengths, rtol=1e-14)
    assert sorted(tree.labels(tree.tips)) == sorted(kept)
    np.testing.assert_array_equal(read_newick(write_newick(tree)).length, tree.length)


def random_newick(tips: int, seed: int) -> str:
    """A random tree with lengths, labels in quotes and underscores."""
    rng = np.random.default_rng(seed)
    row = [f"{name}:{rng.random():.4f}" for name in (f"t_{i}" if i % 3 else f"'it''s {i}'" for i in range(tips))]
    while len(row) > 1:
        at = int(rng.integers(len(row) - 1))
        size = min(2 if len(row) < 4 else int(rng.integers(2, 4)), len(row) - at)
        row[at : at + size] = [f"({','.join(row[at : at + size])}):{rng.random():.4f}"]
    return row[0] + ";"


def branches(root: Any) -> dict[frozenset[str], float]:
    """Length of every branch by the tips under it, in scikit-bio's tree."""
    return {frozenset(t.name for t in n.tips(include_self=True)): n.length for n in root.postorder(include_self=False)}


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_shear(seed: int) -> None:
    from skbio import TreeNode

    def read(text: str) -> Any:
        return TreeNode.read([text], format="newick", convert_underscores=False)

    text = random_newick(60, seed)
    whole = read(text)
    rng = np.random.default_rng(seed)
    names = sorted(rng.choice([tip.name for tip in whole.tips()], 12, replace=False).tolist())
    ours = read(write_newick(prune(read_newick(text), names).tree))
    theirs = whole.shear(names, prune=True)
    expected = branches(theirs)
    found = branches(ours)
    found.pop(frozenset(names), None)  # the way from the root to the first fork, which shear drops
    assert found.keys() == expected.keys()
    for tips, length in expected.items():
        assert found[tips] == pytest.approx(length, rel=1e-12)
    heights = {tip.name: tip.distance(whole) for tip in whole.tips()}
    for tip in ours.tips():
        assert tip.distance(ours) == pytest.approx(heights[tip.name], rel=1e-12)
    assert ours.length == whole.length
    between, reference = ours.cophenet(names), whole.shear(names).cophenet(names)
    np.testing.assert_allclose(between.data, reference.data, rtol=1e-12)


def test_tips_take_the_names_that_were_asked_for() -> None:
    tree = read_newick("((a_b:1,c:2):1,(d e:1,'f''g':3):2);")
    text = write_newick(prune(tree, ["a b", "f'g", "d_e"]).tree)
    assert text == "('a b':2.0,(d_e:1.0,'f''g':3.0):2.0);\n"
    assert prune(read_newick(text), ["a b", "f'g", "d_e"]).missing == []


def test_missing_names() -> None:
    tree = read_newick("((A:1,B:2):1,C:3);")
    with pytest.raises(DataError, match=r"2 of the table's 3 ASVs are not among its tips \('x', 'y'\)"):
        prune(tree, ["x", "A", "y"])
    found = prune(tree, ["x", "A", "y", "C"], drop_missing=True)
    assert found.missing == ["x", "y"]
    assert write_newick(found.tree) == "(A:2.0,C:3.0);\n"
    with pytest.raises(DataError, match="2 of the table's 2"):
        prune(tree, ["x", "y"], drop_missing=True)
    with pytest.raises(DataError, match="'a_A' and 'a A' are one tip"):
        prune(read_newick("(a_A,B);"), ["a_A", "B", "a A"])


def test_a_deep_tree_is_pruned() -> None:
    depth = 100_000
    text = "(" * depth + "t0:1" + "".join(f",t{i}:1):1" for i in range(1, depth + 1)) + ";"
    tree = prune(read_newick(text), ["t5", "t99999", "t70000"]).tree
    assert write_newick(tree) == "(((t5:69996.0,t70000:1.0):29999.0,t99999:1.0):1.0):1.0;\n"


def test_a_large_tree_takes_little_time_and_memory(tmp_path: Path) -> None:
    bases = np.random.default_rng(0).choice(list("ACGT"), (100_000, 100))
    names = ["".join(row) for row in bases]
    row = [f"{name}:0.0123456" for name in names]
    while len(row) > 1:
        row = [f"({','.join(row[i : i + 2])}):0.0123456" for i in range(0, len(row), 2)]
    (tmp_path / "tree.nwk").write_text(row[0] + ";")
    (tmp_path / "names").write_text("\n".join(names[::50]))
    code = (
        "import resource; from pathlib import Path; from aam.data.tree_pruner import pruned_tree\n"
        "def used(): return resource.getrusage(resource.RUSAGE_SELF)\n"
        "names = Path('names').read_text().split(); before = used()\n"
        "tree = pruned_tree(Path('tree.nwk'), names).tree; after = used()\n"
        "print(len(tree.tips), after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    tips, seconds, megabytes = map(float, done.stdout.split())
    assert tips == 2000
    assert seconds < 3  # a tenth of a million tips, which are to take less than 10 s and 1 GB
    assert megabytes < 150


def test_cache(tmp_path: Path) -> None:
    path, cache = tmp_path / "tree.nwk", tmp_path / "cache" / "trees"
    path.write_text("(((A:1,B:2):1,C:3):1,D:1):5;")
    first = pruned_tree(path, ["A", "C"], cache=cache)
    again = pruned_tree(path, ["C", "A"], cache=cache)
    assert (first.reused, again.reused) == (False, True)
    assert write_newick(first.tree) == write_newick(again.tree) == "((A:2.0,C:3.0):1.0):5.0;\n"
    assert not pruned_tree(path, ["A", "D"], cache=cache).reused
    (kept,) = [file for file in cache.iterdir() if "C:3" in file.read_text()]
    kept.write_text("damaged")
    assert not pruned_tree(path, ["A", "C"], cache=cache).reused
    path.write_text("(((A:1,B:2):1,C:4):1,D:1):5;")
    changed = pruned_tree(path, ["A", "C"], cache=cache)
    assert not changed.reused
    assert changed.tree.length.tolist() == [2, 4, 1, 5]


def test_cache_of_a_tree_that_lacks_names(tmp_path: Path) -> None:
    path = tmp_path / "tree.nwk"
    path.write_text("((A:1,B:2):1,C:3);")
    for _ in range(2):
        found = pruned_tree(path, ["A", "x"], cache=tmp_path, drop_missing=True)
        assert found.missing == ["x"]
        with pytest.raises(DataError, match=r"tree.nwk: 1 of the table's 2 ASVs are not among its tips \('x'\)"):
            pruned_tree(path, ["A", "x"], cache=tmp_path)
    assert found.reused


def test_the_naming_that_the_tree_knows_best_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tree.nwk"
    path.write_text("((A:1,B:2):1,C:3);")
    for cache in (None, tmp_path, tmp_path):
        found = pruned_tree(path, ["1", "2"], ["A", "2"], ["A", "C"], ["C", "B"], cache=cache)
        assert found.naming == 2
    assert found.reused
    with pytest.raises(DataError, match="'1'"):
        pruned_tree(path, ["1", "2"], ["3", "4"])


def test_unrooted_trees_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.nwk"
    path.write_text("(A:1,B:2,C:3);")
    with pytest.raises(DataError, match=r"tree\.nwk: the root has 3 branches, so the tree is not rooted"):
        pruned_tree(path, ["A", "B"])
