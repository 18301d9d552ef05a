"""How a matrix is stored in an HDF5 file, so that its entries can be read without HDF5.

HDF5 itself crashes on damaged virtual data sets, as soon as one is opened, so that is done by a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from aam.data.files import open_hdf5, reading
from aam.errors import DataError

__all__ = ["HDF5Layout", "HDF5Part", "hdf5_layout"]

_WHAT = "distance matrix"
_SECONDS = 60
_HEADER_BYTES = 2**12
# The message "data layout" (8) of an object header, of version 4 and class 3, which is virtual:
# https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, sections IV.A.1 and IV.A.2.i.
_VIRTUAL = re.compile(rb"\x08.{3,7}\x04\x03", re.DOTALL)


class HDF5Part(NamedTuple):
    """A rectangle of a virtual data set, and where it lies."""

    corner: tuple[int, int]
    size: tuple[int, int]
    file_name: str  # "." for the file of the virtual data set
    name: str
    start: tuple[int, int]


class HDF5Layout(NamedTuple):
    """How a data set is stored; one of a single dimension is a row."""

    ndim: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    chunk: tuple[int, int]
    offset: int | None  # None if it is not in one piece
    parts: list[HDF5Part] | None  # None if it is not virtual


def hdf5_layout(file: h5py.File, name: str, path: Path, ndim: tuple[int, ...] = (2,)) -> HDF5Layout:
    """Find a data set of numbers, without following a link to another file.

    Parameters
    ----------
    file : h5py.File
    name
        Of the data set.
    path
        The file.
    ndim : tuple of int
        Numbers of dimensions that will do.

    Raises
    ------
    DataError
        If there is none of this name, it is no matrix of numbers, or it is damaged.
    """
    with reading(path, f"an HDF5 {_WHAT}"):
        node: Any = file
        for part in name.strip("/").split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise DataError(
                    f"{path}: is an HDF5 file without {name!r}, so not a {_WHAT}; check which file is meant"
                )
            if not isinstance(link, h5py.HardLink):
                raise DataError(f"{path}: {name!r} points to another file or place; export the {_WHAT} into one file")
            if _may_be_virtual(node, part, path):
                return _ask_child(path, name, ndim)
            node = node[part]
        return _layout(node, name, path, ndim)


def _may_be_virtual(group: h5py.Group, name: str, path: Path) -> bool:
    """Whether the header of an object, which is read without opening it, seems to be of a virtual data set."""
    address = h5py.h5o.get_info(group.id, name.encode()).addr
    with path.open("rb") as raw:
        raw.seek(group.file.userblock_size + address)
        return _VIRTUAL.search(raw.read(_HEADER_BYTES)) is not None


def _layout(node: Any, name: str, path: Path, ndim: tuple[int, ...]) -> HDF5Layout:
    if not isinstance(node, h5py.Dataset) or not node.shape or len(node.shape) not in ndim:
        raise DataError(f"{path}: {name!r} is not an array of {ndim[-1]} dimension(s); export the {_WHAT} again")
    if node.dtype.kind not in "iuf":
        raise DataError(f"{path}: {name!r} has type {node.dtype}; export the {_WHAT} again")
    if node.external:
        raise DataError(f"{path}: {name!r} points to another file; export the {_WHAT} into one file")
    *rows, columns = node.shape
    shape = (rows[0] if rows else 1, columns)
    parts = None
    if node.is_virtual:
        parts = []
        for source in node.virtual_sources():
            corner, size = _rectangle(source.vspace, shape)
            start, there = _rectangle(source.src_space, size)
            if size != there:
                raise ValueError("its parts are not rectangles")
            parts.append(HDF5Part(corner, size, source.file_name, source.dset_name, start))
    *chunk_rows, chunk_columns = node.chunks or (1, columns)
    offset = None
    native = node.id.get_type().equal(h5py.h5t.py_create(node.dtype))
    if native and parts is None and not node.chunks and node.id.get_storage_size() == node.nbytes:
        offset = node.id.get_offset()
    return HDF5Layout(node.ndim, shape, node.dtype, (chunk_rows[0] if chunk_rows else 1, chunk_columns), offset, parts)


def _rectangle(space: Any, whole: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corner and size of a selection of one or two dimensions that is a rectangle; `whole` is the size of all."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:  # which does not say how much that is
        return (0, 0), whole
    first, last = space.get_select_bounds()
    corner = [int(at) for at in first]
    size = [int(b) - int(a) + 1 for a, b in zip(first, last, strict=True)]
    if len(corner) not in (1, 2) or space.get_select_npoints() != int(np.prod(size)):
        raise ValueError("its parts are not rectangles")
    (top, left), (height, width) = [0, *corner][-2:], [1, *size][-2:]
    return (top, left), (height, width)


def _ask_child(path: Path, name: str, ndim: tuple[int, ...]) -> HDF5Layout:
    """What `_layout` finds in a process that may crash."""
    damaged = DataError(f"{path}: {name!r} is damaged; copy the {_WHAT} or write it again")
    arguments = [sys.executable, "-m", __name__, str(path), name, *map(str, ndim)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(arguments, capture_output=True, timeout=_SECONDS, check=False, env=environment)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise damaged from error
    if done.returncode:
        raise damaged
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise DataError(answer["refused"])
    pairs = {key: tuple(answer[key]) for key in ("shape", "chunk")}
    parts = answer["parts"] and [
        HDF5Part(tuple(corner), tuple(size), file_name, source, tuple(start))
        for corner, size, file_name, source, start in answer["parts"]
    ]
    return HDF5Layout(**(answer | pairs | {"dtype": np.dtype(answer["dtype"]), "parts": parts}))


def _answer(path: Path, name: str, ndim: tuple[int, ...]) -> str:
    try:
        with open_hdf5(path, _WHAT) as file, reading(path, f"an HDF5 {_WHAT}"):
            layout = _layout(file[name], name, path, ndim)
    except DataError as error:
        return json.dumps({"refused": str(error)})
    return json.dumps(layout._asdict() | {"dtype": layout.dtype.str})


if __name__ == "__main__":
    print(_answer(Path(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3:]))))
