"""Newick trees as NumPy arrays: millions of tips, any depth, no Python object for a node.

Legend of shapes: ``M`` nodes, ``T`` tips, ``K`` marks of structure (``( ) , : ;`` outside of quotes and comments).

Nodes stand in postorder: children before their parent, in their order in the file, the root last. Each node but the
root ends at a comma or closing parenthesis, so this is the order of those marks, and the number of parentheses that are
open there is the node's depth. Depths in postorder say everything about a tree: the nodes of one depth, taken in order,
fall into families, and the parent of a family is the node after its last member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aam.data.files import read_head, reading, require_file, shown
from aam.data.qza import read_newick_text
from aam.errors import DataError

__all__ = ["Tree", "parents", "read_newick", "write_newick"]

_OPEN, _CLOSE, _COMMA, _COLON, _END, _QUOTE = b"(),:;'"
_BLANKS = b" \t\n\r\v\f"
_IS_BLANK = np.isin(np.arange(256), list(_BLANKS))
_IN_NUMBER = np.isin(np.arange(256), list(b"\0+-.0123456789Ee"))  # \0 pads
_NEEDS_QUOTES = frozenset("()[]{}:;,'\"")
_PADDING = 8
_CHUNK = 1 << 22
_BLOCK_BYTES = 1 << 24
_LONG = 1 << 10


@dataclass(frozen=True)
class Tree:
    """A rooted tree, its nodes in postorder.

    Attributes
    ----------
    depth : ndarray of int32, shape (M,)
        Branches between the node and the root, which is the last node and has 0.
    length : ndarray of float64, shape (M,)
        Length of the branch above the node; finite, not negative, NaN where the file has none.
    text : ndarray of uint8
        Holds the labels.
    label_start, label_stop : ndarray of int, shape (M,)
        Where in ``text`` the label of a node is, without quotes; empty if it has none.
    quoted : ndarray of bool, shape (M,)
        Whether the label stood in quotes.
    """

    depth: NDArray[np.int32]
    length: NDArray[np.float64]
    text: NDArray[np.uint8]
    label_start: NDArray[np.integer[Any]]
    label_stop: NDArray[np.integer[Any]]
    quoted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.depth)

    @cached_property
    def parent(self) -> NDArray[np.int64]:
        """Index (M,) of each node's parent; -1 for the root."""
        return parents(self.depth)

    @cached_property
    def tips(self) -> NDArray[np.int64]:
        """Indices (T,) of the tips, in their order in the file."""
        return np.flatnonzero(np.diff(self.depth, prepend=self.depth.dtype.type(-1)) >= 0)

    @property
    def root_children(self) -> int:
        """Number of branches that leave the root."""
        return int((self.depth == 1).sum())

    def label(self, node: int) -> str:
        """Label of a node; empty if it has none."""
        return self._label(node).decode()

    def labels(self, nodes: NDArray[np.int64] | None = None) -> list[str]:
        """Labels of some nodes, or of all."""
        return [self.label(node) for node in (range(len(self)) if nodes is None else nodes.tolist())]

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Find tips by name.

        A tip is named as it is written: underscores stay. The Newick standard reads an unquoted ``_`` as a space, so
        where no tip has the very name, an unquoted one that differs in these two characters alone is taken.

        Returns
        -------
        ndarray of int64, shape (len(names),)
            Nodes; -1 where no tip has the name.
        """
        nodes = self._find([name.encode() for name in names])
        for old, new in ((" ", "_"), ("_", " ")):
            other = [i for i, node in enumerate(nodes) if node < 0 and old in names[i]]
            found = self._find([names[i].replace(old, new).encode() for i in other])
            usable = (found >= 0) & ~self.quoted[found]
            nodes[np.array(other, dtype=np.int64)[usable]] = found[usable]
        return nodes

    def repeated_tips(self) -> list[str]:
        """Names that several tips have."""
        hashes, nodes = self._index
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        suspects = np.union1d(nodes[equal], nodes[equal + 1])
        return sorted(name for name, number in Counter(self.labels(suspects)).items() if number > 1)

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes (T,) of the tips' names in rising order, and the tips (T,) in that order."""
        tips = self.tips
        hashes = _hashes(self.text, self.label_start[tips], self.label_stop[tips])
        order = np.argsort(hashes)
        return hashes[order], tips[order]

    def _label(self, node: int) -> bytes:
        return self.text[self.label_start[node] : self.label_stop[node]].tobytes()

    def _find(self, names: list[bytes]) -> NDArray[np.int64]:
        hashes, nodes = self._index
        text = np.frombuffer(b"".join(names) + bytes(_PADDING), dtype=np.uint8)
        stop = np.cumsum([len(name) for name in names], dtype=np.int64)
        wanted = _hashes(text, stop - [len(name) for name in names], stop)
        first, last = (np.searchsorted(hashes, wanted, side=side).tolist() for side in ("left", "right"))
        found = np.full(len(names), -1, dtype=np.int64)
        for i, name in enumerate(names):
            for node in nodes[first[i] : last[i]].tolist():
                if self._label(node) == name:
                    found[i] = node
        return found


def read_newick(source: str | bytes | Path) -> Tree:
    """Read a Newick tree.

    Quoted labels (with ``''`` for a quote within), nested ``[comments]``, labels of internal nodes, polytomies, line
    ends and missing lengths are understood. Underscores are kept: they belong to the names of many ASVs.

    Parameters
    ----------
    source : str, bytes or Path
        A file, gzipped or not, or a QIIME 2 artifact; or the tree itself, as bytes or as text that begins with ``(`` or
        ends with ``;``.

    Returns
    -------
    Tree

    Raises
    ------
    DataError
        If it cannot be read or is no single Newick tree (the message says where it stops to be one), a tip has no name
        or another's, or a length is negative or not finite.
    """
    if isinstance(source, str) and not (source.lstrip().startswith("(") or source.rstrip().endswith(";")):
        source = Path(source)
    if isinstance(source, Path):
        name, raw = str(source), _read(source)
    else:
        name, raw = "tree", bytearray(source if isinstance(source, bytes) else source.encode())
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: byte {error.start + 1} is not UTF-8; write the tree again as UTF-8") from None
    if raw.startswith(b"\xef\xbb\xbf"):  # byte-order mark
        raw[:3] = b"   "
    raw += b" " * _PADDING
    try:
        tree = _parse(raw)
    except _NewickError as error:
        raise DataError(f"{name}: not a Newick tree ({error}); export the tree again") from None
    wrong = np.flatnonzero(~np.isnan(tree.length) & ~((tree.length >= 0) & (tree.length < np.inf)))
    if len(wrong):
        raise DataError(f"{name}: a branch has length {tree.length[wrong[0]]:g}; lengths are finite and not negative")
    nameless = np.flatnonzero(tree.label_start[tree.tips] == tree.label_stop[tree.tips])
    if len(nameless):
        where = tree.label_start[tree.tips[nameless[0]]] + 1
        raise DataError(f"{name}: a tip has no name (at byte {where}); name every tip")
    repeated = tree.repeated_tips()
    if repeated:
        some = ", ".join(map(shown, repeated[:3])) + (f", … ({len(repeated)} in all)" if len(repeated) > 3 else "")
        raise DataError(f"{name}: several tips have one name ({some}); make the names unique")
    return tree


def write_newick(tree: Tree) -> str:
    """Write a tree as Newick text with a line end.

    Labels are quoted where they need it, and lengths are written so that they are read as the same numbers.
    """
    opened = np.maximum(np.diff(tree.depth, prepend=tree.depth.dtype.type(0)), 0).tolist()  # above 0 for tips alone
    last = np.diff(tree.depth, append=tree.depth.dtype.type(0)) < 0
    parts = []
    for label, length, open_, close in zip(tree.labels(), tree.length.tolist(), opened, last.tolist(), strict=True):
        branch = f":{length!r}" if length == length else ""
        parts.append(f"{'(' * open_}{_quote(label)}{branch}{')' if close else ','}")
    parts[-1] = parts[-1][:-1] + ";\n"
    return "".join(parts)


def parents(depth: NDArray[np.int32]) -> NDArray[np.int64]:
    """Parent (M,) of each node, -1 for the root, from the depths (M,) in postorder."""
    parent = np.full(len(depth), -1, dtype=np.int64)
    small = int(depth.max()) < 2**16  # NumPy sorts these by radix
    order = np.argsort(depth.astype(np.uint16) if small else depth, kind="stable")[1:]  # families, without the root
    last = np.flatnonzero(depth[order] > depth[order + 1])
    parent[order] = np.repeat(order[last] + 1, np.diff(last, prepend=-1))
    return parent


def _quote(label: str) -> str:
    if not label or not (any(mark in _NEEDS_QUOTES or mark.isspace() for mark in label)):
        return label
    return "'" + label.replace("'", "''") + "'"


def _read(path: Path) -> bytearray:
    path = require_file(path, "tree")
    head = read_head(path)
    if head.startswith((b"\x1f\x8b", b"PK")):  # packed: read whole, as they come
        return bytearray(read_newick_text(path).encode())
    with reading(path, "a tree"), path.open("rb") as file:
        raw = bytearray(path.stat().st_size)
        del raw[file.readinto(raw) :]
    if b"\0" in raw:
        raise DataError(f"{path}: is a binary file (it holds NUL bytes), not a tree; check the path")
    return raw


class _NewickError(Exception):
    """What is wrong and where; `where` counts bytes from 0."""

    def __init__(self, what: str, where: int | np.integer[Any]) -> None:
        super().__init__(f"{what} at byte {int(where) + 1}")


def _parse(raw: bytearray) -> Tree:
    """Parse a padded buffer, in which comments are blanked and quoted labels may be unescaped."""
    if b"[" in raw:
        _blank_comments(raw)
    text = np.frombuffer(raw, dtype=np.uint8)
    at, quotes = _marks(raw, text)
    kind = text[at]  # (K,)
    ends = np.flatnonzero(kind == _END)
    if not len(ends):
        raise _NewickError("no ';' at its end, so it was cut short or is something else,", len(text) - _PADDING)
    if ends[0] != len(at) - 1:
        raise _NewickError("more follows its ';': there must be one tree", at[ends[0]])
    gap = np.empty_like(at)  # where the text before each mark begins
    gap[0] = 0
    np.add(at[:-1], 1, out=gap[1:])
    start, stop = _trim(text, at[-1:] + 1, np.array([len(text)], dtype=at.dtype))
    if start[0] < stop[0]:
        raise _NewickError("more follows its ';': there must be one tree", start[0])

    before = np.empty_like(kind)  # the mark before each; what stands before the first may be what follows a '('
    before[0] = _OPEN
    before[1:] = kind[:-1]
    opening = kind == _OPEN
    wrong = np.flatnonzero(opening & (before != _OPEN) & (before != _COMMA))
    if len(wrong):
        raise _NewickError("'(' without ',' before it", at[wrong[0]])
    filled = np.flatnonzero(opening & (at > gap))
    start, stop = _trim(text, gap[filled], at[filled])
    if (start < stop).any():
        raise _NewickError("a label before '('", start[start < stop][0])
    wrong = np.flatnonzero((kind == _COLON) & (before == _COLON))
    if len(wrong):
        raise _NewickError("a second ':'", at[wrong[0]])
    depth = np.cumsum(opening.view(np.int8) - (kind == _CLOSE).view(np.int8), dtype=np.int32)  # after each mark
    if depth.min() < 0:
        raise _NewickError("')' without its '('", at[np.argmax(depth < 0)])
    if depth[-1] > 0:
        closed = np.flatnonzero(depth == 0)
        raise _NewickError("'(' that is never closed", at[closed[-1] + 1 if len(closed) else 0])
    wrong = np.flatnonzero((kind == _COMMA) & (depth == 0))
    if len(wrong):
        raise _NewickError("',' outside of parentheses", at[wrong[0]])

    end = np.flatnonzero(~opening & (kind != _COLON))  # (M,): the mark at which each node ends
    depth = depth[end] + (kind[end] == _CLOSE)  # (M,)
    with_length = before[end] == _COLON
    label_end = end - with_length
    label_start, label_stop, quoted = _labels(text, gap[label_end], at[label_end], quotes)
    length = np.full(len(end), np.nan)
    number = end[with_length]
    length[with_length] = _numbers(text, *_trim(text, gap[number], at[number]))
    return Tree(depth, length, text, label_start, label_stop, quoted)


def _blank_comments(raw: bytearray) -> None:
    """Overwrite ``[comments]``, nested ones too, with spaces."""
    text = np.frombuffer(raw, dtype=np.uint8)
    inside = False  # a quoted label
    depth = begin = 0
    marks = np.flatnonzero((text == ord("[")) | (text == ord("]")) | (text == _QUOTE))
    for position, mark in zip(marks.tolist(), text[marks].tobytes(), strict=True):
        if mark == _QUOTE:
            inside ^= depth == 0
        elif inside:
            continue
        elif mark == ord("["):
            begin = begin if depth else position
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                text[begin : position + 1] = _BLANKS[0]
    if depth:
        raise _NewickError("'[' that is never closed", begin)


def _marks(raw: bytearray, text: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions (K,) of the marks of structure outside of quotes, and the positions of all quotes."""
    dtype: Any = np.int32 if len(text) < 2**31 - 2 * _PADDING else np.int64
    any_quotes = b"'" in raw
    inside = np.uint8(0)
    marks, quotes = [], [np.empty(0, dtype)]
    for begin in range(0, len(text), _CHUNK):
        chunk = text[begin : begin + _CHUNK]
        found = (chunk == _OPEN) | (chunk == _CLOSE) | (chunk == _COMMA) | (chunk == _COLON) | (chunk == _END)
        if any_quotes:
            quote = chunk == _QUOTE
            quotes.append(np.flatnonzero(quote).astype(dtype) + dtype(begin))
            parity = np.bitwise_xor.accumulate(quote.view(np.uint8)) ^ inside
            found &= parity == 0
            inside = parity[-1]
        marks.append(np.flatnonzero(found).astype(dtype) + dtype(begin))
    if inside:
        raise _NewickError("a quote that is never closed", quotes[-1][-1] if len(quotes[-1]) else len(text))
    return np.concatenate(marks), np.concatenate(quotes)


def _trim(text: NDArray[np.uint8], start: NDArray[Any], stop: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Take the blanks at both ends from stretches of text."""
    start, stop = start.copy(), stop.copy()
    for edge, step, look in ((start, 1, 0), (stop, -1, -1)):
        left = np.flatnonzero(start < stop)
        for _ in range(64):
            left = left[_IS_BLANK[text[edge[left] + look]]]
            if not len(left):
                break
            edge[left] += step
            left = left[start[left] < stop[left]]
        for i in left.tolist():  # the few with more blanks than that
            stretch = text[start[i] : stop[i]].tobytes()
            edge[i] += step * (len(stretch) - len(stretch.lstrip(_BLANKS) if step > 0 else stretch.rstrip(_BLANKS)))
    return start, stop


def _labels(
    text: NDArray[np.uint8], start: NDArray[Any], stop: NDArray[Any], quotes: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Bounds of labels without blanks and quotes around them; a label with quotes within is unescaped in place."""
    start, stop = _trim(text, start, stop)
    quoted = np.zeros(len(start), dtype=bool)
    if not len(quotes):
        return start, stop, quoted
    number = np.searchsorted(quotes, stop) - np.searchsorted(quotes, start)
    quoted = number > 0
    hit = np.flatnonzero(quoted)
    whole = (text[start[hit]] == _QUOTE) & (text[stop[hit] - 1] == _QUOTE)
    if not whole.all():
        raise _NewickError("a quote within a label that is not quoted", start[hit[~whole][0]])
    start[hit] += 1
    stop[hit] -= 1
    for i in np.flatnonzero(number > 2).tolist():
        content = text[start[i] : stop[i]].tobytes()
        label = content.replace(b"''", b"'")
        if 2 * (len(content) - len(label)) != content.count(b"'"):
            raise _NewickError("a quoted label with text after its end", start[i])
        text[start[i] : start[i] + len(label)] = np.frombuffer(label, dtype=np.uint8)
        stop[i] = start[i] + len(label)
    return start, stop, quoted


def _numbers(text: NDArray[np.uint8], start: NDArray[Any], stop: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers (n,) written in stretches of text; NaN where one is empty."""
    values = np.full(len(start), np.nan)
    for rows, content in _stretches(text, start, stop):
        try:
            if not _IN_NUMBER[content].all():
                raise ValueError
            parsed = np.full(len(content), np.nan)
            filled = content[:, 0] != 0
            with np.errstate(over="ignore"):
                parsed[filled] = content[filled].view(f"S{content.shape[1]}")[:, 0].astype(np.float64)
        except ValueError:
            for row in rows.tolist():
                number = text[start[row] : stop[row]].tobytes()
                if number and not _is_number(number):
                    what = f"the length {shown(number.decode(errors='replace'))}, no number,"
                    raise _NewickError(what, start[row]) from None
            raise AssertionError from None  # one of them is none
        values[rows] = parsed + 0.0  # no -0
    return values


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return bool(_IN_NUMBER[list(text)].all())


def _hashes(text: NDArray[np.uint8], start: NDArray[Any], stop: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit hash (n,) of each stretch of text: its words of 8 bytes, each mixed with its place, and summed."""
    hashes = np.zeros(len(start), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for rows, content in _stretches(text, start, stop):
            words = content.view(np.uint64)  # (n, words)
            place = np.arange(words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            words *= place * np.uint64(0x9E3779B97F4A7C15)
            words ^= words >> np.uint64(32)
            words *= np.uint64(0xBF58476D1CE4E5B9)
            words ^= words >> np.uint64(29)
            hashes[rows] = words.sum(axis=1, dtype=np.uint64)
    return hashes


def _stretches(
    text: NDArray[np.uint8], start: NDArray[Any], stop: NDArray[Any]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Stretches of text as rows of bytes, a block at a time: their numbers (n,) and content (n, width), 0-padded.

    The width is a multiple of 8. ``text`` goes on for 8 bytes at least after the last stretch.
    """
    size = (stop - start).astype(np.int64)
    long = np.flatnonzero(size > _LONG)
    short = np.flatnonzero(size <= _LONG)
    per_block = _BLOCK_BYTES // _LONG
    blocks = [short[i : i + per_block] for i in range(0, len(short), per_block)] + list(long[:, None])
    for rows in blocks:
        width = max(8, -(-int(size[rows].max()) // 8) * 8)
        window = np.ndarray((max(len(text) - width + 1, 1),), dtype=f"V{width}", buffer=text, strides=(1,))
        from_ = np.minimum(start[rows], len(window) - 1)
        content = window[from_].view(np.uint8).reshape(len(rows), width)
        for i in np.flatnonzero(from_ < start[rows]).tolist():  # the window would reach over the end
            stretch = text[start[rows[i]] : stop[rows[i]]]
            content[i, : len(stretch)] = stretch
        content *= np.arange(width) < size[rows, None]
        yield rows, content
