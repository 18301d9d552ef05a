"""Reads the formats of distance matrices and of per-sample values; what they say is judged in `unifrac_loader`.

Shapes: `N` rows (samples) and `M` columns of the file.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from aam.data.files import (
    HDF5_MAGIC,
    ZIP_MAGIC,
    cells_of,
    failure_reason,
    has_hdf5,
    open_hdf5,
    parse_floats,
    read_hdf5,
    read_hdf5_ids,
    read_head,
    reading,
    require_file,
    shown,
    strip_ids,
    zip_first_name,
)
from aam.data.hdf5_layout import hdf5_layout
from aam.data.lazy_matrix import LazyMatrix, MappedMatrix, MeanMatrix, lazy_hdf5, mean_of
from aam.data.qza import read_artifact
from aam.errors import DataError

__all__ = ["MatrixFile", "ValuesFile", "read_distance_file"]

_WHAT = "distance matrix"
_NPY_MAGIC = b"\x93NUMPY"
_GZIP_MAGIC = b"\x1f\x8b"
_ARTIFACTS = {
    "DistanceMatrix": "distance-matrix.tsv",
    "SampleData[AlphaDiversity]": "alpha-diversity.tsv",
}
_ID_NAMES = ("order", "ids", "sample_ids", "samples", "row_ids", "rows")
_REFERENCE_NAMES = (
    "reference_ids",
    "references",
    "reference_order",
    "stripe_order",
    "column_ids",
    "columns",
    "col_ids",
)
_MATRIX_NAMES = ("matrix", "distances", "distance_matrix", "stripes", "stripe", "dm", "data", "values", "arr_0")
_ID_HEADERS = re.compile(r"#?\s*(sample|feature|otu)?[ _.-]?(id|name)s?|#?\s*samples?", re.IGNORECASE)
_MAX_TEXT_BYTES = 2**32
_MAX_LINE = 2**26
_MAX_PACKING = 1100  # deflate reaches 1032:1
_MAX_LARGE_PACKING = 100


@dataclass(frozen=True)
class MatrixFile:
    """A matrix as it is in a file.

    Attributes
    ----------
    row_ids, column_ids : list of str, length N and M, or None
        None where the file does not name them.
    matrix : numpy.ndarray of shape (N, M), float32, or LazyMatrix
    """

    row_ids: list[str] | None
    column_ids: list[str] | None
    matrix: NDArray[np.float32] | LazyMatrix


@dataclass(frozen=True)
class ValuesFile:
    """A value for each sample as it is in a file.

    Attributes
    ----------
    ids : list of str, length N
    values : numpy.ndarray of shape (N,), float64
    name : str
        Of the column.
    """

    ids: list[str]
    values: NDArray[np.float64]
    name: str


def read_distance_file(path: Path, memory_limit: int) -> MatrixFile | ValuesFile:
    """Read a file whose format is told from its content.

    Parameters
    ----------
    path
        `.npy`, `.npz`, HDF5, text (tab- or comma-separated, gzipped or not) or a QIIME 2 artifact.
    memory_limit
        Bytes above which a matrix (as float32) stays in its file, where its format allows that.

    Raises
    ------
    DataError
        If it cannot be read as any of these.
    """
    path = require_file(path, _WHAT)
    head = read_head(path)
    try:
        if head.startswith(_NPY_MAGIC):
            return MatrixFile(None, None, _matrix_npy(path, memory_limit))
        if _is_hdf5(path, head):
            return _read_hdf5(path, memory_limit)
        if head.startswith(ZIP_MAGIC):
            return _read_npz(path, memory_limit) if zip_first_name(path).endswith(".npy") else _read_qza(path)
        with path.open("rb") as raw:
            if not head.startswith(_GZIP_MAGIC):
                return _read_text(raw, path)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read_text(unpacked, path)
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit into memory; give it as .npy or contiguous HDF5, read in parts"
        ) from error


def _in_memory(shape: tuple[int, ...], memory_limit: int) -> bool:
    return int(np.prod(shape, dtype=object)) * 4 <= memory_limit


def _npy_header(file: IO[bytes], path: Path, name: str = "") -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array of numbers or text that begins here; afterwards its data do."""
    with reading(path, "a .npy array"):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = read(file)
        if any(side < 0 for side in shape):
            raise ValueError(f"the shape {shape}")
    if dtype.hasobject:
        way_out = "save it as numbers: np.save(path, matrix.astype('float32'))"
        if name:
            way_out = "save the matrix as numbers and the IDs as np.array(ids, dtype=str)"
        which = f"{shown(name)} " if name else ""
        raise DataError(f"{path}: {which}holds Python objects, which could run code when read; {way_out}")
    return shape, column_major, dtype


def _check_numbers(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> tuple[int, int]:
    if len(shape) != 2 or 0 in shape:
        text = " × ".join(map(str, shape)) or "a single value"
        raise DataError(f"{path}: is {text}, not a square matrix; give the distances between all pairs of samples")
    if dtype.kind not in "iuf":
        raise DataError(f"{path}: holds values of type {dtype}; save it as numbers (float32)")
    return shape[0], shape[1]


def _matrix_npy(path: Path, memory_limit: int, start: int = 0) -> NDArray[np.float32] | LazyMatrix:
    """The matrix of a `.npy` that begins at a byte of a file."""
    with path.open("rb") as file:
        file.seek(start)
        shape, column_major, dtype = _npy_header(file, path)
        mapped = MappedMatrix(path, _check_numbers(shape, dtype, path), dtype, file.tell(), column_major)
    return mapped.whole() if _in_memory(shape, memory_limit) else mapped


class _Head(NamedTuple):
    """What the header of an array in an `.npz` says."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _read_npz(path: Path, memory_limit: int) -> MatrixFile:
    with reading(path, "an .npz archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        heads = _npz_heads(archive, path, memory_limit)
        matrices = [name for name, head in heads.items() if len(head.shape) == 2 and head.dtype.kind in "iuf"]
        chosen = [name for name in _MATRIX_NAMES if name in matrices] or matrices
        if not chosen or (len(matrices) > 1 and chosen[0] not in _MATRIX_NAMES):
            raise DataError(
                f"{path}: holds {', '.join(map(shown, heads)) or 'nothing'} and not one matrix of numbers; save it as "
                "np.savez(path, matrix=matrix, ids=ids)"
            )

        def vector(names: tuple[str, ...]) -> list[str] | None:
            found = next((name for name in names if name in heads and name != chosen[0]), None)
            return None if found is None else _npz_ids(archive, found, heads[found], path)

        row_ids, column_ids = vector(_ID_NAMES), vector(_REFERENCE_NAMES)
        member, shape, dtype = heads[chosen[0]]
        _check_numbers(shape, dtype, path)
        matrix: NDArray[np.float32] | LazyMatrix
        if member.compress_type == zipfile.ZIP_STORED:
            matrix = _matrix_npy(path, memory_limit, _member_start(path, member))
        else:
            with np.errstate(over="ignore"):
                matrix = np.ascontiguousarray(_npz_array(archive, member, path), dtype=np.float32)
    return MatrixFile(row_ids, column_ids, matrix)


def _npz_heads(archive: zipfile.ZipFile, path: Path, memory_limit: int) -> dict[str, _Head]:
    """Headers of all arrays, by name; the archive is refused if one claims more than it holds."""
    heads = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: holds {shown(member.filename)}, which NumPy does not write; save it again")
        with reading(path, "an .npz archive"), archive.open(member) as file:
            shape, _, dtype = _npy_header(file, path, name)
            size = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
            cut_short = member.header_offset + member.compress_size > path.stat().st_size
        packing = _MAX_PACKING if member.file_size <= memory_limit else _MAX_LARGE_PACKING
        if cut_short or size != member.file_size or size > packing * member.compress_size + 2**10:
            raise DataError(f"{path}: {shown(name)} claims {shape} values, more than the file holds; save it again")
        heads[name] = _Head(member, shape, dtype)
    return heads


def _npz_ids(archive: zipfile.ZipFile, name: str, head: _Head, path: Path) -> list[str]:
    if len(head.shape) != 1 or head.dtype.kind not in "US":
        raise DataError(
            f"{path}: {shown(name)} is not a vector of text IDs (it is {head.dtype} of shape {head.shape}); save it as "
            f"{name}=np.array(ids, dtype=str)"
        )
    values = _npz_array(archive, head.member, path)
    with reading(path, "text IDs"):
        ids = (np.char.decode(values, "utf-8") if head.dtype.kind == "S" else values).tolist()
    return strip_ids(ids, path)


def _npz_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    with reading(path, "an .npz archive"), archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _member_start(path: Path, member: zipfile.ZipInfo) -> int:
    """First byte of a member that is stored as it is."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(30)
    return member.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")


def _is_hdf5(path: Path, head: bytes) -> bool:
    """Whether a file is HDF5, also after a block of something else (at byte 512, 1024, …)."""
    if head.startswith(HDF5_MAGIC):
        return True
    with reading(path, f"a {_WHAT}"):
        return not head.startswith(ZIP_MAGIC) and bool(h5py.is_hdf5(path))


def _read_hdf5(path: Path, memory_limit: int) -> MatrixFile:
    with open_hdf5(path, _WHAT) as file:

        def vector(names: tuple[str, ...]) -> list[str] | None:
            found = next((other for other in names if has_hdf5(file, other, path)), None)
            return None if found is None else read_hdf5_ids(file, found, path, what=_WHAT)

        row_ids, column_ids = vector(_ID_NAMES), vector(_REFERENCE_NAMES)
        # ssu numbers the matrices of several rarefactions of one table.
        with reading(path, f"an HDF5 {_WHAT}"):
            there = set(file)
        candidates = (f"matrix:{number}" for number in itertools.count())
        names = list(itertools.takewhile(there.__contains__, candidates)) or ["matrix"]
        matrices = [_matrix_hdf5(file, name, path, memory_limit // len(names)) for name in names]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise DataError(
            f"{path}: holds matrices of several sizes (matrix:0, matrix:1, …); write one matrix to the file"
        )
    if len(matrices) == 1:
        return MatrixFile(row_ids, column_ids, matrices[0])
    lazy = [matrix for matrix in matrices if isinstance(matrix, LazyMatrix)]
    if lazy:
        return MatrixFile(row_ids, column_ids, MeanMatrix(path, lazy))
    return MatrixFile(row_ids, column_ids, mean_of(list(map(np.asarray, matrices))))


def _matrix_hdf5(file: h5py.File, name: str, path: Path, memory_limit: int) -> NDArray[np.float32] | LazyMatrix:
    layout = hdf5_layout(file, name, path)
    small = _in_memory(layout.shape, memory_limit)
    if layout.parts is not None or not small:
        matrix = lazy_hdf5(file, name, path, layout)
        return matrix.whole() if small else matrix
    return read_hdf5(file, name, path, what=_WHAT, kinds="iuf", ndim=2, dtype=np.float32)


def _read_qza(path: Path) -> MatrixFile | ValuesFile:
    artifact = read_artifact(path, tuple(_ARTIFACTS), _WHAT)
    with artifact.open(_ARTIFACTS[artifact.type]) as stream:
        found = _read_text(stream, path)
    single = isinstance(found, ValuesFile) and found.name not in found.ids  # and no matrix of one sample
    if single is (artifact.type == "DistanceMatrix"):
        raise DataError(f"{path}: is of type {artifact.type} but its data are of another kind; export it again")
    return found


def _read_text(stream: IO[bytes] | gzip.GzipFile, path: Path) -> MatrixFile | ValuesFile:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)
    try:
        return _parse(_lines(text, path), path)
    finally:
        text.detach()  # who opened the stream closes it


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Lines of UTF-8 text that are not blank, without their ends, read one at a time."""
    total = 0
    try:
        while line := text.readline(_MAX_LINE):
            total += len(line)
            if len(line) == _MAX_LINE or total > _MAX_TEXT_BYTES:
                raise DataError(f"{path}: is too long for text; give the distances as HDF5 or .npy")
            if "\0" in line:
                raise DataError(f"{path}: is a binary file (it holds NUL bytes), not a {_WHAT}; check the path")
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path}: is not UTF-8 text (byte 0x{byte:02x}); save the {_WHAT} as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({failure_reason(error)}); copy it again") from error


def _parse(lines: Iterator[str], path: Path) -> MatrixFile | ValuesFile:
    header = _header(lines)
    delimiter = "\t" if "\t" in header else ","
    columns = cells_of(header, delimiter, path)
    if len(columns) < 2:
        instead = "a square table with sample IDs" if header.strip().isdigit() else "what `ssu` writes"
        kind = " (PHYLIP?)" if header.strip().isdigit() else ""
        raise DataError(
            f"{path}: is not a distance matrix that can be read{kind}: it begins {shown(header)}; give {instead}, or "
            ".npy in the table's order"
        )
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    values: list[float] = []
    corner = True  # whether the header has a cell above the IDs; R's write.table leaves it out
    for line in lines:
        if line.startswith("#"):
            continue
        name, *cells = cells_of(line, delimiter, path)
        names.append(name)
        if not rows and not values:
            corner = len(cells) != len(columns)
        width = len(columns) - corner
        if len(cells) != width:
            if len(names) == 1 and len(cells) <= 1:
                raise DataError(
                    f"{path}: is a triangle (its first row, {shown(name)}, has {len(cells)} distances for {width} "
                    "samples); give the square matrix"
                )
            raise DataError(f"{path}: row {shown(name)} has {len(cells)} distances for {width} samples; complete it")
        numbers = _numbers(cells, name, path)
        if width == 1:
            values.append(float(numbers[0]))
        else:
            with np.errstate(over="ignore"):
                rows.append(numbers.astype(np.float32))
    columns = columns[corner:]
    if not names:
        raise DataError(f"{path}: is 0 × {len(columns)}, not a square matrix; give a row for each sample")
    names = strip_ids(names, path)
    if len(columns) == 1:
        return ValuesFile(names, np.array(values), columns[0].strip())
    return MatrixFile(names, strip_ids(columns, path), np.stack(rows))


def _header(lines: Iterator[str]) -> str:
    """The first line that is no comment; one that names the ID column may begin with ``#``."""
    for line in lines:
        first = line.split("\t" if "\t" in line else ",")
        if not line.startswith("#") or (len(first) > 1 and _ID_HEADERS.fullmatch(first[0].strip().strip('"'))):
            return line
    return ""


def _numbers(cells: list[str], name: str, path: Path) -> NDArray[np.float64]:
    def refuse(cell: str) -> DataError:
        return DataError(f"{path}: the distance {shown(cell)} of sample {shown(name)} is not a number; correct it")

    return parse_floats(cells, refuse)
