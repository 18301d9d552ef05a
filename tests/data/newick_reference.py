"""Trees as nested tuples: a plain reader's answer is known, because the text is written from it.

A node is ``(label, length or None, children)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from aam.data.newick import Tree

Node = tuple[str, float | None, tuple[Any, ...]]
ODD = ["a_b", "it's", "x y", "(", "a,b:c;", "[n]", "''", "é", "_", "Q 7_2"]


@st.composite
def nodes(draw: st.DrawFn, most_tips: int = 12, lengths: bool = False) -> Node:
    """A tree with distinct tips, some with odd names, polytomies and single children."""
    number = draw(st.integers(1, most_tips))
    length = st.floats(0, 10) if lengths else st.none() | st.floats(0, 1e300)
    row: list[Node] = []
    for i in range(number):
        name = f"{draw(st.sampled_from(['', *ODD]))}t{i}"
        row.append((name, draw(length), ()))
    while len(row) > 1 or draw(st.integers(0, 3)) == 3:
        start = draw(st.integers(0, len(row) - 1))
        size = draw(st.integers(1, min(4, len(row) - start)))
        label = draw(st.sampled_from(["", "0.97", "it's", "a b"]))
        row[start : start + size] = [(label, draw(length), tuple(row[start : start + size]))]
    return row[0]


def write(node: Node, draw: Any = None) -> str:
    """Newick text; with ``draw``, blanks, comments and needless quotes are strewn in."""

    def decoration() -> str:
        return "" if draw is None else draw(st.sampled_from(["", "", "", " ", "\n", "\t[a [nested] 'comment]", "\r\n"]))

    label, length, children = node
    needed = any(mark in "()[]{}:;,'" or mark.isspace() for mark in label)
    if needed or (draw is not None and label and draw(st.booleans())):
        label = "'" + label.replace("'", "''") + "'"
    text = decoration()
    if children:
        text += "(" + ",".join(write(child, draw) for child in children) + ")" + decoration()
    text += label + decoration()
    if length is not None:
        text += f":{decoration()}{length!r}{decoration()}"
    return text


def postorder(node: Node, depth: int = 0, parent: int = -1) -> Iterator[tuple[str, float | None, int, bool]]:
    """Label, length, depth and whether it is a tip, of every node."""
    label, length, children = node
    for child in children:
        yield from postorder(child, depth + 1)
    yield label, length, depth, not children


def assert_is(tree: Tree, node: Node) -> None:
    expected = list(postorder(node))
    assert tree.labels() == [label for label, *_ in expected]
    np.testing.assert_array_equal(tree.length, [np.nan if length is None else length for _, length, *_ in expected])
    assert tree.depth.tolist() == [depth for *_, depth, _ in expected]
    assert tree.tips.tolist() == [i for i, row in enumerate(expected) if row[3]]
    for i, parent in enumerate(tree.parent.tolist()):
        later = [j for j in range(i + 1, len(expected)) if expected[j][2] == expected[i][2] - 1]
        assert parent == (later[0] if later else -1)


def pruned(node: Node, names: set[str]) -> Node | None:
    """What is left of a node above the tips of these names; nodes with one branch are kept."""
    label, length, children = node
    if not children:
        return node if label in names else None
    left = tuple(child for child in (pruned(child, names) for child in children) if child is not None)
    return (label, length, left) if left else None


def collapsed(node: Node) -> Node:
    """Without nodes that have one branch, the root aside."""
    label, length, children = node

    def collapse(node: Node) -> Node:
        label, length, children = node
        if len(children) == 1:
            below = collapse(children[0])
            total = None if length is None or below[1] is None else length + below[1]
            return below[0], total, below[2]
        return label, length, tuple(collapse(child) for child in children)

    return label, length, tuple(collapse(child) for child in children)
