"""Matrices too large for memory: single entries read from where they lie in a file.

Shapes: `N` rows and `M` columns of the file, `K` entries that are asked for.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from aam.data.files import open_hdf5, reading, shown
from aam.errors import DataError

__all__ = ["LazyMatrix", "MappedMatrix", "lazy_hdf5"]

_WHAT = "distance matrix"
_PAGE = 4096
_SPAN_BYTES = 2**24  # most bytes of one positioned read
_RELEASE_AFTER = 2**13  # entries read through a mapping before its pages are let go
_MAX_CHUNK_BYTES = 2**26
_MAX_GRID = 2**24


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
        self._refused = False
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
        """The whole matrix (N, M), float32, in memory."""
        with reading(self.path, f"a {_WHAT}"):
            values = np.fromfile(self.path, self.dtype, self.shape[0] * self.shape[1], offset=self.offset)
            values = values.reshape(self.shape, order="F" if self.column_major else "C")
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values, dtype=np.float32)

    def _mapped(self) -> NDArray[Any] | None:
        """All numbers of the file in their order (N · M,), not read yet; None where mapping is refused."""
        if self._values is None and not self._refused:
            start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
            count = self.shape[0] * self.shape[1]
            size = self.offset - start + count * self.dtype.itemsize
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
            except (OSError, ValueError, MemoryError, OverflowError):
                self._refused = True
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
        with reading(self.path, f"a {_WHAT}"):
            handle = os.open(self.path, os.O_RDONLY)
            try:
                for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(places)], strict=True):
                    first, last = int(places[start]), int(places[stop - 1])
                    content = os.pread(handle, (last - first + 1) * item, self.offset + first * item)
                    found[start:stop] = np.frombuffer(content, self.dtype)[places[start:stop] - first]
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
        cells = [np.searchsorted(edges, at, "right") - 1 for edges, at in zip(self._edges, (rows, columns), strict=True)]
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


def lazy_hdf5(file: h5py.File, name: str, path: Path) -> LazyMatrix:
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

    Raises
    ------
    DataError
        If it is missing, no matrix of numbers, truncated, points to files elsewhere, or is packed in such a way that
        single entries cannot be read.
    """
    return _lazy(file, name, path, {})


def _lazy(file: h5py.File, name: str, path: Path, known: dict[tuple[Path, str], LazyMatrix] | None) -> LazyMatrix:
    """`known` collects the sources of a virtual data set; None if this is one, which may not be virtual itself."""
    dataset = _dataset(file, name, path)
    with reading(path, f"an HDF5 {_WHAT}"):
        shape: tuple[int, int] = dataset.shape if len(dataset.shape) == 2 else (1, dataset.shape[0])
        if dataset.external:
            raise DataError(f"{path}: {name!r} points to another file; export the {_WHAT} into one file")
        if dataset.is_virtual:
            if known is None:
                raise DataError(f"{path}: {name!r} is virtual, of parts that are virtual; write it into one file")
            tiles = [_tile(source, file, path, known) for source in dataset.virtual_sources()]
            return VirtualMatrix(path, shape, tiles)
        offset = None if dataset.chunks else dataset.id.get_offset()
        if offset is not None:
            mapped = MappedMatrix(path, shape, dataset.dtype, offset)
            if dataset.id.get_storage_size() == dataset.nbytes and _agrees(mapped, dataset):
                return mapped
        chunk = dataset.chunks or (1, dataset.shape[-1])
        if int(np.prod(chunk)) * dataset.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise DataError(
                f"{path}: {name!r} is stored in chunks of {' × '.join(map(str, chunk))}, each of which would have to be "
                f"unpacked for a single distance; write it in one piece: `h5repack -l {name}:CONTI old.h5 new.h5`"
            )
        if len(dataset.shape) != 2:
            raise DataError(f"{path}: {name!r} is chunked, of one dimension; write the matrix into one data set")
        return ChunkedMatrix(path, name, shape, chunk)


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A data set of one or two dimensions of numbers, found without following a link to another file."""
    with reading(path, f"an HDF5 {_WHAT}"):
        node: Any = file
        for part in name.strip("/").split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise DataError(f"{path}: is an HDF5 file without {name!r}, so not a {_WHAT}; check which file is meant")
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{path}: {name!r} points to another file; export the {_WHAT} into one file")
            node = node[part]
        if not isinstance(node, h5py.Dataset) or not node.shape or len(node.shape) > 2:
            raise DataError(f"{path}: {name!r} is not an array of 2 dimension(s); export the {_WHAT} again")
        if node.dtype.kind not in "iuf":
            raise DataError(f"{path}: {name!r} has type {node.dtype}; export the {_WHAT} again")
        return node


def _agrees(mapped: MappedMatrix, dataset: h5py.Dataset) -> bool:
    """Whether the bytes of a contiguous data set are what HDF5 makes of them: no odd number type, no shifted address."""
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)):
        return False
    rows, columns = (np.unique(np.linspace(0, side - 1, 5).astype(np.int64)) for side in mapped.shape)
    for row in rows:
        read = dataset[row] if dataset.ndim == 2 and mapped.shape[1] <= _PAGE else None
        for column in columns:
            place = (row, column) if dataset.ndim == 2 else (column,)
            expected = np.float32(dataset[place] if read is None else read[column])
            found = mapped.entries(np.array([row]), np.array([column]))[0]
            if found != expected and not (np.isnan(found) and np.isnan(expected)):
                return False
    return True


def _tile(source: Any, file: h5py.File, path: Path, known: dict[tuple[Path, str], LazyMatrix]) -> Tile:
    corner, size = _rectangle(source.vspace)
    start, there = _rectangle(source.src_space)
    if size != there:
        raise DataError(f"{path}: is virtual, of parts that are not rectangles; write the matrix into one file")
    place = path if source.file_name == "." else path.parent / source.file_name
    if place.parent.resolve() != path.parent.resolve() or place.resolve().parent != path.parent.resolve():
        raise DataError(
            f"{path}: is virtual and points to {shown(source.file_name)}, in another folder; put the files beside each "
            "other, or write the matrix into one file"
        )
    key = (place, source.dset_name)
    if key not in known:
        if place == path:
            known[key] = _lazy(file, source.dset_name, place, None)
        elif not place.is_file():
            raise DataError(f"{path}: is virtual and lacks {shown(source.file_name)}; put the files beside each other")
        else:
            with open_hdf5(place, _WHAT) as other:
                known[key] = _lazy(other, source.dset_name, place, None)
    matrix = known[key]
    if any(a + b > side for a, b, side in zip(start, size, matrix.shape, strict=True)):
        raise DataError(f"{path}: is virtual and takes more from {shown(source.file_name)} than is there; write it again")
    return Tile(corner, size, matrix, start)


def _rectangle(space: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corner and size of a selection of one or two dimensions that is a rectangle."""
    first, last = space.get_select_bounds()
    corner = tuple(int(at) for at in first)
    size = tuple(int(b) - int(a) + 1 for a, b in zip(first, last, strict=True))
    if len(corner) not in (1, 2) or space.get_select_npoints() != int(np.prod(size)):
        raise ValueError("a virtual data set of parts that are not rectangles")
    return ((0, *corner), (1, *size)) if len(corner) == 1 else (corner, size)  # type: ignore[return-value]
