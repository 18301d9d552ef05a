"""Matrices too large for memory: single entries read from where they lie in a file.

Shapes: `N` rows and `M` columns of the file, `K` entries that are asked for.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from aam.data.files import open_hdf5, reading, shown
from aam.data.hdf5_layout import HDF5Layout, HDF5Part, hdf5_layout
from aam.errors import DataError

__all__ = ["LazyMatrix", "MappedMatrix", "MeanMatrix", "lazy_hdf5", "mean_of"]

_WHAT = "distance matrix"
_PAGE = 4096
_STRIP_ENTRIES = 2**20  # most entries that are looked up at a time
_SPAN_BYTES = 2**24  # most bytes of one positioned read
_RELEASE_AFTER = 2**13  # entries read through a mapping before its pages are let go
_MAX_CHUNK_BYTES = 2**26
_MAX_GRID = 2**24
_MAX_MAPPED_SOURCES = 64  # each mapping holds a file open


class LazyMatrix(ABC):
    """A matrix of numbers that stays in its file.

    It holds no open file that a fork or a pickle would share, and notices a file that changes while it is read.

    Parameters
    ----------
    path
        The file.
    shape : (N, M)
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path = path
        self.shape = shape
        self._version = _version(path)

    @abstractmethod
    def entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single entries of the matrix.

        Parameters
        ----------
        rows, columns : ndarray of int64, shape (K,)
            Places in the file.

        Returns
        -------
        ndarray of float32, shape (K,)

        Raises
        ------
        DataError
            If the file cannot be read any more.
        """

    def block(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], symmetric: bool = False
    ) -> NDArray[np.float32]:
        """The entries where rows (B,) and columns (C,) cross.

        Parameters
        ----------
        rows, columns : ndarray of int64, shape (B,) and (C,)
            Places in the file.
        symmetric : bool
            Read entry (i, j) above the diagonal, whichever of i and j is the row, so that it does not depend on the
            block it is in.

        Returns
        -------
        ndarray of float32, shape (B, C)
        """
        found = np.empty((len(rows), len(columns)), np.float32)
        strip = max(1, _STRIP_ENTRIES // max(1, len(columns)))
        for start in range(0, len(rows), strip):
            part = rows[start : start + strip]
            row, column = np.repeat(part, len(columns)), np.tile(columns, len(part))
            if symmetric:
                row, column = np.minimum(row, column), np.maximum(row, column)
            found[start : start + strip] = self.entries(row, column).reshape(len(part), len(columns))
        return found

    def whole(self) -> NDArray[np.float32]:
        """The whole matrix (N, M), in memory."""
        return self.block(np.arange(self.shape[0]), np.arange(self.shape[1]))

    def _check_unchanged(self) -> None:
        if _version(self.path) != self._version:
            raise DataError(f"{self.path}: changed while it was being read; start again with the file as it is now")


class MappedMatrix(LazyMatrix):
    """Numbers that lie in one piece of a file, as in `.npy` and contiguous HDF5.

    The file is mapped into memory, of which each entry touches one page. Where mapping is refused (`ulimit -v`), the
    entries are read one by one.

    Parameters
    ----------
    path
        The file.
    shape : (N, M)
    dtype
        Type and byte order of the numbers in the file.
    offset
        Bytes before the first number.
    column_major
        Whether columns, not rows, lie in one piece (Fortran order).
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any], offset: int, column_major: bool = False
    ) -> None:
        super().__init__(path, shape)
        self.dtype = dtype
        self.offset = offset
        self.column_major = column_major
        self._map: mmap.mmap | None = None
        self._values: NDArray[Any] | None = None
        self.mapping = True
        self._touched = 0
        end = offset + shape[0] * shape[1] * dtype.itemsize
        if end > self._version.size:
            raise DataError(
                f"{path}: is truncated: {shape[0]} × {shape[1]} distances need {end} bytes and it has "
                f"{self._version.size}; copy it again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None, "_values": None, "_touched": 0}

    def entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        self._check_unchanged()
        height, width = self.shape
        wanted = columns * height + rows if self.column_major else rows * width + columns
        places, back = np.unique(wanted, return_inverse=True)  # in the order of the file, each once
        values = self._mapped()
        if values is None:
            found = self._read(places)
        else:
            self._prefetch(places)
            found = values[places]
            self._release(len(places))
        with np.errstate(over="ignore"):
            return found.astype(np.float32)[back]

    def whole(self) -> NDArray[np.float32]:
        with reading(self.path, f"a {_WHAT}"):
            values = np.fromfile(self.path, self.dtype, self.shape[0] * self.shape[1], offset=self.offset)
            values = values.reshape(self.shape, order="F" if self.column_major else "C")
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values, dtype=np.float32)

    def _mapped(self) -> NDArray[Any] | None:
        """All numbers of the file in their order (N · M,), not read yet; None where mapping is refused."""
        if self._values is None and self.mapping:
            start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
            count = self.shape[0] * self.shape[1]
            size = self.offset - start + count * self.dtype.itemsize
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
            except (OSError, ValueError, MemoryError, OverflowError):
                self.mapping = False
                return None
            if hasattr(mmap, "MADV_RANDOM"):  # or the system reads 128 KiB around every entry
                self._map.madvise(mmap.MADV_RANDOM)
            self._values = np.frombuffer(self._map, self.dtype, count, self.offset - start)
        return self._values

    def _prefetch(self, places: NDArray[np.int64]) -> None:
        """Ask for all pages before the first is waited for: the disk then serves them at the same time."""
        assert self._map is not None
        if hasattr(mmap, "MADV_WILLNEED"):
            shift = self.offset % mmap.ALLOCATIONGRANULARITY
            pages = np.unique((places * self.dtype.itemsize + shift) // mmap.PAGESIZE)
            for page in (pages * mmap.PAGESIZE).tolist():
                self._map.madvise(mmap.MADV_WILLNEED, page, mmap.PAGESIZE)

    def _release(self, entries: int) -> None:
        """Let go of the pages once there are many, so that the process does not seem to hold the whole file."""
        self._touched += entries
        if self._map is not None and self._touched >= _RELEASE_AFTER:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)

    def _read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Numbers at ascending places (K,), read by position; those that share a page in one go."""
        found = np.empty(len(places), self.dtype)
        item = self.dtype.itemsize
        apart = np.diff(places) * item > _PAGE
        pieces = places * item // _SPAN_BYTES
        starts = np.flatnonzero(np.concatenate([[len(places) > 0], apart | (np.diff(pieces) > 0)]))
        stops = [*starts[1:].tolist(), len(places)]
        first = self.offset + places[starts] * item
        sizes = (places[np.array(stops[: len(starts)], dtype=np.int64) - 1] - places[starts] + 1) * item
        with reading(self.path, f"a {_WHAT}"):
            handle = os.open(self.path, os.O_RDONLY)
            try:
                spans = list(zip(first.tolist(), sizes.tolist(), strict=True))
                if hasattr(os, "posix_fadvise"):
                    for offset, size in spans:
                        os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)
                for (offset, size), start, stop in zip(spans, starts.tolist(), stops, strict=False):
                    content = np.frombuffer(os.pread(handle, size, offset), self.dtype)
                    found[start:stop] = content[places[start:stop] - places[start]]
            finally:
                os.close(handle)
        return found


class ChunkedMatrix(LazyMatrix):
    """An HDF5 data set that is stored in chunks, compressed or not; every chunk that is needed is read once.

    The file is opened for each call alone: an HDF5 handle must not be shared by processes.

    Parameters
    ----------
    path
        The file.
    name
        Of the data set.
    shape : (N, M)
    chunk : (int, int)
        Rows and columns of a chunk.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, int], chunk: tuple[int, int]) -> None:
        super().__init__(path, shape)
        self.name = name
        self.chunk = chunk

    def entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        self._check_unchanged()
        found = np.empty(len(rows), np.float32)
        across = -(-self.shape[1] // self.chunk[1])
        chunks = rows // self.chunk[0] * across + columns // self.chunk[1]
        with open_hdf5(self.path, _WHAT) as file, reading(self.path, f"an HDF5 {_WHAT}"), np.errstate(over="ignore"):
            dataset = file[self.name]
            for group in _groups(chunks):
                row, column = rows[group], columns[group]
                top, left = row.min(), column.min()
                part = dataset[top : row.max() + 1, left : column.max() + 1]
                found[group] = part[row - top, column - left]
        return found


def mean_of(matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of matrices of one shape; exact where they are alike."""
    found: NDArray[np.float32] = np.stack(matrices).mean(axis=0, dtype=np.float64).astype(np.float32)
    return found


class MeanMatrix(LazyMatrix):
    """The mean of matrices of one shape.

    Parameters
    ----------
    path
        Their file.
    matrices : list of LazyMatrix
    """

    def __init__(self, path: Path, matrices: list[LazyMatrix]) -> None:
        super().__init__(path, matrices[0].shape)
        self.matrices = matrices

    def entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        return mean_of([matrix.entries(rows, columns) for matrix in self.matrices])


class VirtualMatrix(LazyMatrix):
    """A virtual HDF5 data set: a grid of rectangles, each of which lies in another data set.

    Parameters
    ----------
    path
        The file of the virtual data set.
    shape : (N, M)
    tiles : list of Tile
        That cover the matrix and do not overlap.
    """

    def __init__(self, path: Path, shape: tuple[int, int], tiles: list[Tile]) -> None:
        super().__init__(path, shape)
        self.tiles = tiles
        mapped = {id(tile.source): tile.source for tile in tiles if isinstance(tile.source, MappedMatrix)}
        if len(mapped) > _MAX_MAPPED_SOURCES:
            for source in mapped.values():
                source.mapping = False
        corners = np.array([tile.corner for tile in tiles], dtype=np.int64).reshape(-1, 2)
        ends = corners + np.array([tile.size for tile in tiles], dtype=np.int64).reshape(-1, 2)
        self._edges = [np.unique(np.concatenate([[0], corners[:, axis], ends[:, axis]])) for axis in (0, 1)]
        if len(self._edges[0]) * len(self._edges[1]) > _MAX_GRID:
            raise DataError(f"{path}: is virtual, of too many parts ({len(tiles)}); write the matrix into one file")
        self._grid = np.full((len(self._edges[0]) - 1, len(self._edges[1]) - 1), -1, dtype=np.int64)
        for number, (corner, end) in enumerate(zip(corners, ends, strict=True)):
            top, left = (int(np.searchsorted(edges, at)) for edges, at in zip(self._edges, corner, strict=True))
            bottom, right = (int(np.searchsorted(edges, at)) for edges, at in zip(self._edges, end, strict=True))
            if (self._grid[top:bottom, left:right] >= 0).any():
                raise DataError(f"{path}: is virtual, of parts that overlap; write the matrix into one file")
            self._grid[top:bottom, left:right] = number
        if (self._grid < 0).any() or any(edges[-1] != side for edges, side in zip(self._edges, shape, strict=True)):
            raise DataError(f"{path}: is virtual, with parts that lie nowhere; write the matrix into one file")

    def entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        self._check_unchanged()
        found = np.empty(len(rows), np.float32)
        cells = [
            np.searchsorted(edges, at, "right") - 1 for edges, at in zip(self._edges, (rows, columns), strict=True)
        ]
        numbers = self._grid[cells[0], cells[1]]
        # Tiles of one source in one go.
        sources: dict[int, list[tuple[NDArray[np.int64], Tile]]] = {}
        for group in _groups(numbers):
            tile = self.tiles[numbers[group[0]]]
            sources.setdefault(id(tile.source), []).append((group, tile))
        for parts in sources.values():
            group = np.concatenate([places for places, _ in parts])
            row = np.concatenate([rows[places] + (tile.start[0] - tile.corner[0]) for places, tile in parts])
            column = np.concatenate([columns[places] + (tile.start[1] - tile.corner[1]) for places, tile in parts])
            found[group] = parts[0][1].source.entries(row, column)
        return found


class Tile(NamedTuple):
    """A rectangle of a virtual matrix, and where it lies."""

    corner: tuple[int, int]  # in the virtual matrix
    size: tuple[int, int]
    source: LazyMatrix
    start: tuple[int, int]  # in the source


class _Version(NamedTuple):
    size: int
    modified: int


def _version(path: Path) -> _Version:
    with reading(path, f"a {_WHAT}"):
        state = path.stat()
    return _Version(state.st_size, state.st_mtime_ns)


def _groups(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Places of each distinct number."""
    order = np.argsort(numbers, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []


def lazy_hdf5(file: h5py.File, name: str, path: Path, layout: HDF5Layout) -> LazyMatrix:
    """A matrix of an open HDF5 file, to be read when the file is closed again.

    Contiguous data sets are mapped. Chunked ones are read by chunk. Virtual ones may take their parts from the same
    file and from files beside it.

    Parameters
    ----------
    file : h5py.File
    name
        Of the data set.
    path
        The file.
    layout : HDF5Layout
        Of the data set.

    Raises
    ------
    DataError
        If it is truncated, points to files elsewhere, or is packed in such a way that
        single entries cannot be read.
    """
    return _lazy(file, name, path, layout, {})


def _lazy(
    file: h5py.File, name: str, path: Path, layout: HDF5Layout, known: dict[tuple[Path, str], LazyMatrix] | None
) -> LazyMatrix:
    """`known` collects the sources of a virtual data set; None if this is one, which may not be virtual itself."""
    if layout.parts is not None:
        if known is None:
            raise DataError(f"{path}: {name!r} is virtual, of parts that are virtual; write the matrix into one file")
        return VirtualMatrix(path, layout.shape, [_tile(part, file, path, known) for part in layout.parts])
    if layout.offset is not None:
        mapped = MappedMatrix(path, layout.shape, layout.dtype, layout.offset)
        if _agrees(mapped, file, name, layout.ndim):
            return mapped
    if layout.chunk[0] * layout.chunk[1] * layout.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise DataError(
            f"{path}: {name!r} is stored in chunks of {layout.chunk[0]} × {layout.chunk[1]}, each of which would have "
            f"to be unpacked for a single distance; write it in one piece: `h5repack -l {name}:CONTI old.h5 new.h5`"
        )
    if layout.ndim == 1:
        raise DataError(f"{path}: {name!r} is a part of a virtual matrix, and chunked; write the matrix into one file")
    return ChunkedMatrix(path, name, layout.shape, layout.chunk)


def _agrees(mapped: MappedMatrix, file: h5py.File, name: str, ndim: int) -> bool:
    """Whether the bytes in the file are what HDF5 makes of them, as they are unless their address is shifted."""
    rows, columns = (np.unique(np.linspace(0, side - 1, 4).astype(np.int64)) for side in mapped.shape)
    places = [(row, column)[-ndim:] for row in rows.tolist() for column in columns.tolist()]
    with reading(mapped.path, f"an HDF5 {_WHAT}"), np.errstate(over="ignore"):
        expected = np.array([file[name][place] for place in places]).astype(np.float32)
    return np.array_equal(mapped.block(rows, columns).ravel(), expected, equal_nan=True)


def _tile(part: HDF5Part, file: h5py.File, path: Path, known: dict[tuple[Path, str], LazyMatrix]) -> Tile:
    place = path if part.file_name == "." else path.parent / part.file_name
    with reading(path, f"a virtual {_WHAT}"):
        folder, present = path.parent.resolve(), place.is_file()
        beside = place == path or place.parent.resolve() == place.resolve().parent == folder
    if not beside:
        raise DataError(
            f"{path}: is virtual and points to {shown(part.file_name)}, in another folder; put the files beside each "
            "other, or write the matrix into one file"
        )
    key = (place, part.name)
    if key not in known:
        if place == path:
            known[key] = _lazy(file, part.name, place, hdf5_layout(file, part.name, place, (1, 2)), None)
        elif not present:
            raise DataError(f"{path}: is virtual and lacks {shown(part.file_name)}; put the files beside each other")
        else:
            with open_hdf5(place, _WHAT) as other:
                known[key] = _lazy(other, part.name, place, hdf5_layout(other, part.name, place, (1, 2)), None)
    source = known[key]
    if any(a + b > side for a, b, side in zip(part.start, part.size, source.shape, strict=True)):
        raise DataError(f"{path}: is virtual and takes more from {shown(part.file_name)} than is there; write it again")
    return Tile(part.corner, part.size, source, part.start)
