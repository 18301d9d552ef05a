"""The Newick reader and writer, against trees that are known before they are written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data import newick
from aam.data.newick import Tree, read_newick, write_newick
from aam.errors import DataError
from tests.data.newick_reference import assert_is, nodes, write
from tests.real_data import real_data


@settings(max_examples=150)
@given(data=st.data())
def test_reads_what_was_written(data: st.DataObject) -> None:
    node = data.draw(nodes())
    text = write(node, data.draw) + data.draw(st.sampled_from([";", " ;\n", ";[end]\r\n"]))
    tree = read_newick(text.encode())
    assert_is(tree, node)
    assert_is(read_newick(write_newick(tree)), node)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_of_the_text_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(('a (,;:' :1e-3,'it''s'[':('] : 2.5E+1)0.9:.5,(\n_b_:0,c) 'n n'\t:7.) r;"
    monkeypatch.setattr(newick, "_CHUNK", chunk)
    monkeypatch.setattr(newick, "_BLOCK_BYTES", newick._LONG * chunk)
    node = (
        "r",
        None,
        (
            ("0.9", 0.5, (("a (,;:", 0.001, ()), ("it's", 25.0, ()))),
            ("n n", 7.0, (("_b_", 0.0, ()), ("c", None, ()))),
        ),
    )
    assert_is(read_newick(text), node)


def test_sources(tmp_path: Path) -> None:
    text = "\n(A:1,B:2);\n"
    (tmp_path / "tree.nwk").write_text("\ufeff" + text)
    (tmp_path / "tree.nwk.gz").write_bytes(gzip.compress(text.encode()))
    node = ("", None, (("A", 1.0, ()), ("B", 2.0, ())))
    for source in (text, text.encode(), tmp_path / "tree.nwk", str(tmp_path / "tree.nwk"), tmp_path / "tree.nwk.gz"):
        assert_is(read_newick(source), node)


def test_single_tips() -> None:
    for text, length in (("A;", None), ("A:2;", 2.0), (" 'A' :2;", 2.0)):
        assert_is(read_newick(text), ("A", length, ()))
    assert_is(read_newick("((A:1));"), ("", None, (("", None, (("A", 1.0, ()),)),)))


def test_depth_has_no_limit() -> None:
    depth = 200_000
    text = "(" * depth + "t0:1" + "".join(f",t{i}:1):0.5" for i in range(1, depth + 1)) + ";"
    tree = read_newick(text)
    assert len(tree.tips) == depth + 1
    assert tree.depth[0] == depth
    assert write_newick(tree).count("(") == depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(A,B)", "no ';' at its end.* at byte 6"),
        ("((A,B);", "'\\(' that is never closed at byte 1"),
        ("((A,(B),(C);", "'\\(' that is never closed at byte 1"),
        ("(A,B));", "'\\)' without its '\\(' at byte 6"),
        ("(A,B),C;", "',' outside of parentheses at byte 6"),
        ("A,B;", "',' outside of parentheses at byte 2"),
        ("(A,B);(C,D);", "more follows its ';'.* at byte 6"),
        ("(A,B); C", "more follows its ';'.* at byte 8"),
        ("(A)(B);", "'\\(' without ',' before it at byte 4"),
        ("(A,x(B));", "a label before '\\(' at byte 4"),
        ("(A:1(B));", "'\\(' without ',' before it at byte 5"),
        ("(A:1:2,B);", "a second ':' at byte 5"),
        ("(A:x,B);", "the length 'x', no number, at byte 4"),
        ("(A:1_0,B);", "the length '1_0', no number"),
        ("(A:0x1,B);", "no number"),
        ("(A:1 2,B);", "no number"),
        ("(A:nan,B);", "no number"),
        ("(A:1e,B);", "no number"),
        ("(A:'1',B);", "no number"),
        ("(A:" + "1" * 2000 + "x,B);", "no number"),
        ("('A,B);", "a quote that is never closed at byte 2"),
        ("(a'b'c,B);", "a quote within a label that is not quoted"),
        ("('a'b'c',B);", "a quoted label with text after its end"),
        ("([a,B);", "'\\[' that is never closed at byte 2"),
        ("(A:1e999,B);", "a branch has length inf"),
        ("(A:-1e-9,B);", "a branch has length -1e-09"),
        ("(A,);", "a tip has no name"),
        ("();", "a tip has no name"),
        (";", "a tip has no name"),
        ("(A,'');", "a tip has no name"),
        ("(A,(B,A),B,C);", "several tips have one name \\('A', 'B'\\)"),
        ("(A,'A');", "several tips have one name \\('A'\\)"),
    ],
)
def test_what_is_no_tree_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_newick(text.encode())
    assert str(caught.value).startswith("tree: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n\0\0(A,B);", "binary file"),
        (b"(A,\xff);", "byte 4 is not UTF-8"),
        (b"sample\tage\n", "no ';'"),
        (b"\x1f\x8b\x08broken", "gzip"),
    ],
)
def test_files_that_are_no_trees_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.nwk"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"some.nwk.*{message}"):
        read_newick(path)


@settings(max_examples=200)
@given(st.text(alphabet="()[],:;' ab1.-e_\n", max_size=30).map(str.encode) | st.binary(max_size=30))
def test_any_bytes_give_a_tree_or_a_data_error(content: bytes) -> None:
    try:
        tree = read_newick(content)
    except DataError as error:
        message = str(error)
    else:
        message = ""
        again = read_newick(write_newick(tree).encode())
        assert again.labels() == tree.labels()
        np.testing.assert_array_equal(again.depth, tree.depth)
        np.testing.assert_array_equal(again.length, tree.length)
    assert "\n" not in message


def test_tips_are_found_in_either_spelling() -> None:
    tree = read_newick("(a_b,('c_d',e f),'g h',i_j,'i j')a_c;")
    names = tree.labels()
    wanted = ["a_b", "a b", "c_d", "c d", "e f", "e_f", "g h", "g_h", "i_j", "i j", "a_c", "", "zz"]
    found = [names[i] if i >= 0 else None for i in tree.find(wanted)]
    assert found == ["a_b", "a_b", "c_d", None, "e f", "e f", "g h", None, "i_j", "i j", None, None, None]


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newick, "_hashes", lambda text, start, stop: np.zeros(len(start), dtype=np.uint64))
    tree = read_newick("(A,(B,C));")
    assert [tree.label(i) for i in tree.find(["C", "A"])] == ["C", "A"]
    assert tree.find(["D"]).tolist() == [-1]
    with pytest.raises(DataError, match=r"one name \('B'\)"):
        read_newick("(A,(B,C),B);")


def test_long_names_and_numbers() -> None:
    names = ["A" * 1023, "A" * 1024, "A" * 1025, "C" * 5000, "G" * 5000, "T"]
    tree = read_newick("(" + ",".join(f"{name}:{'0' * 1500}{i}" for i, name in enumerate(names)) + ");")
    assert tree.labels()[:-1] == names
    assert tree.length[:-1].tolist() == [0, 1, 2, 3, 4, 5]
    assert tree.find(names[::-1]).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("study", ["ecam_infant_age", "ibd_crohns_2538"])
def test_real_trees_agree_with_scikit_bio(study: str) -> None:
    from skbio import TreeNode

    path = real_data(f"{study}/tree.nwk")
    reference = list(TreeNode.read(str(path), format="newick", convert_underscores=False).postorder())
    tree = read_newick(path)
    assert tree.labels() == [node.name or "" for node in reference]
    np.testing.assert_array_equal(tree.length, [np.nan if n.length is None else n.length for n in reference])
    place = {id(node): i for i, node in enumerate(reference)}
    assert tree.parent.tolist() == [-1 if n.parent is None else place[id(n.parent)] for n in reference]


def test_a_tree_knows_its_size() -> None:
    tree = read_newick("((A,B),C,D);")
    assert isinstance(tree, Tree)
    assert (len(tree), tree.root_children, tree.label(0)) == (6, 3, "A")
