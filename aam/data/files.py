"""Reading files at the border: what every loader checks before it trusts a byte."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from aam.errors import DataError

__all__ = [
    "HDF5_MAGIC",
    "ZIP_MAGIC",
    "cells_of",
    "check_ids",
    "decode_text",
    "failure_reason",
    "file_sha256",
    "has_hdf5",
    "hdf5_dataset",
    "hdf5_vectors",
    "near_matches",
    "open_hdf5",
    "parse_floats",
    "read_hdf5",
    "read_hdf5_cells",
    "read_hdf5_ids",
    "read_head",
    "read_text",
    "reading",
    "require_file",
    "shown",
    "strip_ids",
    "written_differently",
    "zip_first_name",
]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP_MAGIC = b"PK\x05\x06"
_OFFICE_MEMBER = "[Content_Types].xml"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAX_TEXT_BYTES = 2**32
_HEAP_MAGIC = b"GCOL\1"
_MAX_HEAP_BYTES = 2**28  # HDF5 makes heaps of 4 KiB, and larger ones for a single long text
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_CELL_KINDS = "OSUiufb"
_PIECE = 2**22
_TRIED = 20  # IDs that a common beginning or end is looked for in
_MAX_HDF5_EXPANSION = 2000  # deflate reaches 1032:1; a data set that claims more holds no data


def shown(value: object, limit: int = 60) -> str:
    """Quote an offending value on one line, cut to `limit` characters."""
    text = str(value)
    return repr(text if len(text) <= limit else text[:limit] + "…")


def require_file(path: Path, what: str) -> Path:
    """Return `path` if it is a readable regular file.

    Parameters
    ----------
    path
        The file as the user named it.
    what
        What it should hold, for the message: ``"feature table"``.

    Raises
    ------
    DataError
        If it is missing, a directory, a device or pipe, not permitted, or empty.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file; give the path of the {what}")
        if path.is_dir():
            raise DataError(f"{path}: is a directory; give the path of the {what}")
        if not path.is_file():
            raise DataError(f"{path}: is not a regular file; save the {what} to a file first")
        if not os.access(path, os.R_OK):
            raise DataError(f"{path}: permission denied; make the {what} readable (chmod u+r)")
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be opened ({failure_reason(error)}); give the path of the {what}") from error
    if size == 0:
        raise DataError(f"{path}: is empty; the {what} must be written again")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_head(path: Path, size: int = 16) -> bytes:
    """First `size` bytes of a file, which tell its format."""
    with reading(path, "file"), path.open("rb") as file:
        return file.read(size)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a third-party parser raises on broken bytes into a `DataError`.

    Wrap calls of the parser alone: a mistake of ours must stay a traceback.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: needs more memory than there is to be read as {what}; allow more") from error
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as {what} ({failure_reason(error)}); the file is damaged or of another kind, "
            "copy or export it again"
        ) from error


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file, gzipped or not, with line ends as ``\\n`` and without a byte-order mark.

    Raises
    ------
    DataError
        If the file is missing, a zip archive, not UTF-8, a broken gzip, or over 4 GiB when unpacked.
    """
    path = require_file(path, what)
    head = read_head(path)
    if head.startswith((ZIP_MAGIC, _EMPTY_ZIP_MAGIC)):
        if zip_first_name(path) == _OFFICE_MEMBER:
            raise DataError(
                f"{path}: is a spreadsheet or document of an office program, not a text file; save the {what} as "
                "tab-separated text"
            )
        raise DataError(
            f"{path}: is a zip archive (a QIIME 2 artifact?), and a {what} is not read from one; give the text file "
            "itself"
        )
    with reading(path, f"a {what}"), path.open("rb") as raw:
        if head.startswith(_GZIP_MAGIC):
            content = _gunzip(raw, path)
        else:
            content = _read_bounded(raw)
    return decode_text(content, path, what)


def decode_text(content: bytes | bytearray, path: Path, what: str) -> str:
    """Bytes as text, with line ends as ``\\n`` and without a byte-order mark.

    Parameters
    ----------
    content
        Unpacked bytes of a file, or of a member of an archive.
    path, what
        Where they are from and what they should be, for messages.

    Raises
    ------
    DataError
        If they are not UTF-8, hold NUL bytes, nothing but white space, or over 4 GiB.
    """
    if len(content) > _MAX_TEXT_BYTES:
        raise DataError(f"{path}: holds over {_MAX_TEXT_BYTES >> 30} GiB of text; give a smaller {what} or use HDF5")
    if content.startswith(_UTF16_MARKS):
        raise DataError(f"{path}: is UTF-16 text; save the {what} as UTF-8, or convert it: iconv -f UTF-16 -t UTF-8")
    if content.startswith(HDF5_MAGIC):
        raise DataError(
            f"{path}: is an HDF5 file where a text {what} is expected; check the path, "
            "and unpack it first if it is gzipped"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if _CONTROL.search(content):
            raise DataError(f"{path}: is a binary file, not a {what}; check the path") from error
        byte, line = content[error.start], content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: is not UTF-8 text (byte 0x{byte:02x} on line {line}); save the {what} as UTF-8, or convert it: "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: is a binary file (it holds NUL bytes), not a {what}; check the path")
    if not text.strip():
        raise DataError(f"{path}: is empty; the {what} must be written again")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bounded(stream: IO[bytes] | gzip.GzipFile) -> bytearray:
    """All bytes, or some more than the most that is taken; memory is asked for only as they come."""
    content = bytearray()
    while len(content) <= _MAX_TEXT_BYTES and (piece := stream.read(_PIECE)):
        content += piece
    return content


def _gunzip(raw: io.BufferedReader, path: Path) -> bytearray:
    try:
        with gzip.GzipFile(fileobj=raw) as file:
            return _read_bounded(file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is a broken gzip file ({failure_reason(error)}); copy it again") from error


def zip_first_name(path: Path) -> str:
    """Name of the first member of a zip archive, damaged or not; empty where the file is none."""
    head = read_head(path, 30)
    if not head.startswith(ZIP_MAGIC) or len(head) < 30:
        return ""
    length = int.from_bytes(head[26:28], "little")
    return read_head(path, 30 + length)[30:].decode("utf-8", "replace")


class _HDF5File(h5py.File):
    """An HDF5 file that knows the bytes it is read from, where these are in memory, and its checked text heaps."""

    content: bytes | None = None
    heaps: dict[int, dict[int, int]] | None = None


@contextmanager
def open_hdf5(path: Path, what: str, content: bytes | None = None) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; one that HDF5 cannot open is a `DataError`.

    Parameters
    ----------
    path, what
        The file and what it should hold.
    content
        Its bytes, where they are not those of `path` itself but of a member of that archive.
    """
    with reading(path, f"an HDF5 {what}"):
        file = _HDF5File(path if content is None else io.BytesIO(content), "r")
        file.content = content
    try:
        yield file
    finally:
        with reading(path, f"an HDF5 {what}"):
            file.close()


def has_hdf5(file: h5py.File, name: str, path: Path) -> bool:
    """Whether an HDF5 file has a group or data set of this name."""
    with reading(path, "an HDF5 file"):
        return _follow(file, name) is not None


def hdf5_vectors(file: h5py.File, name: str, path: Path) -> list[str]:
    """Names of the vectors of text or numbers in a group of an HDF5 file; none where there is no such group."""
    with reading(path, "an HDF5 file"):
        group = _follow(file, name)
        if not isinstance(group, h5py.Group):
            return []
        nodes = {member: _follow(group, member) for member in group}
        return [
            member
            for member, node in nodes.items()
            if isinstance(node, h5py.Dataset) and node.shape is not None and len(node.shape) == 1
            if node.dtype.kind in _CELL_KINDS
        ]


def _follow(group: h5py.Group, name: str) -> Any:
    """What lies at a path, None if nothing does, or the first link on the way that leads elsewhere."""
    node: Any = group
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            return link
        node = node[part]
    return node


def read_hdf5(
    file: h5py.File,
    name: str,
    path: Path,
    *,
    what: str,
    kinds: str,
    ndim: int,
    dtype: type[np.generic] | None = None,
) -> np.ndarray[Any, Any]:
    """Read one data set whose bytes lie in the file itself.

    Parameters
    ----------
    dtype
        Type to convert to while reading.
    name, path, what, kinds, ndim
        See `hdf5_dataset`, which also says what is refused.
    """
    node = hdf5_dataset(file, name, path, what=what, kinds=kinds, ndim=ndim)
    with reading(path, f"an HDF5 {what}"):
        return np.asarray(node[()] if dtype is None else node.astype(dtype)[()])


def hdf5_dataset(file: h5py.File, name: str, path: Path, *, what: str, kinds: str, ndim: int) -> h5py.Dataset:
    """One data set whose bytes lie in the file itself, not yet read.

    Parameters
    ----------
    name
        Path within the file, ``"sample/matrix/data"``.
    kinds
        NumPy kind letters that are accepted, ``"iuf"``.
    ndim
        Number of dimensions that it must have.

    Raises
    ------
    DataError
        If it is missing, a link to another file, of another type or rank, or claims more than the file can hold.
    """
    with reading(path, f"an HDF5 {what}"):
        node = _follow(file, name)
        if node is None:
            raise DataError(f"{path}: is an HDF5 file without {name!r}, so not a {what}; check which file is meant")
        if isinstance(node, h5py.ExternalLink | h5py.SoftLink):
            raise DataError(f"{path}: {name!r} points to another file or place; export the {what} into one file")
        if not isinstance(node, h5py.Dataset) or node.shape is None or len(node.shape) != ndim:
            raise DataError(f"{path}: {name!r} is not an array of {ndim} dimension(s); export the {what} again")
        if node.dtype.kind not in kinds:
            raise DataError(f"{path}: {name!r} has type {node.dtype}; export the {what} again")
        if node.is_virtual or node.external:
            raise DataError(f"{path}: {name!r} points to another file; export the {what} into one file")
        if node.nbytes > _MAX_HDF5_EXPANSION * node.id.get_storage_size():
            raise DataError(
                f"{path}: {name!r} claims {node.shape} values, more than the file holds; export the {what} again"
            )
        if node.dtype.kind == "O":
            _check_text_heap(file, name, path, what)
        return node


def cells_of(line: str, delimiter: str, path: Path) -> list[str]:
    """The cells of a line of text, without the quotation marks that they may stand in."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise DataError(
            f"{path}: the line {shown(line)} cannot be read ({error}); check its quotation marks"
        ) from error


def read_hdf5_ids(file: h5py.File, name: str, path: Path, *, what: str) -> list[str]:
    """Read a vector of IDs stored as bytes or text."""
    raw = read_hdf5(file, name, path, what=what, kinds="OSU", ndim=1)
    return strip_ids([_as_text(value, name, path, what) for value in raw.tolist()], path)


def read_hdf5_cells(file: h5py.File, name: str, path: Path, *, what: str) -> list[str]:
    """Read a vector of text or numbers as stripped text."""
    raw = read_hdf5(file, name, path, what=what, kinds=_CELL_KINDS, ndim=1)
    if raw.dtype.kind in "OSU":
        return [_as_text(value, name, path, what).strip() for value in raw.tolist()]
    return [str(value) for value in raw.tolist()]


def _as_text(value: object, name: str, path: Path, what: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {name!r} holds {shown(value)}, not UTF-8; rename it and export again") from error
    if not isinstance(value, str):
        raise DataError(f"{path}: {name!r} holds {shown(value)} instead of text; export the {what} again")
    return value


def _check_text_heap(file: h5py.File, name: str, path: Path, what: str) -> None:
    """Refuse variable-length text whose references or heap are damaged: libhdf5 can loop on them without end.

    Such a data set stores, for each text, a length, the address of a heap and an index within it:
    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, sections III.E and VIII.
    """
    damaged = DataError(f"{path}: the text in {name!r} is damaged; copy the {what} or export it again")
    with reading(path, f"an HDF5 {what}"):
        dataset = file[name]
        usual_sizes = file.id.get_create_plist().get_sizes() == (8, 8)
        text = h5py.check_string_dtype(dataset.dtype)
    if not usual_sizes or text is None:
        raise damaged
    if text.length is not None:
        return
    heaps = file.heaps if isinstance(file, _HDF5File) and file.heaps is not None else {}
    if isinstance(file, _HDF5File):
        file.heaps = heaps
    with _content(file, path) as content, reading(path, f"an HDF5 {what}"):
        references = _text_references(dataset, content)
        for length, address, index in references.tolist():
            if length and address not in heaps:
                heaps[address] = _heap_objects(content, address)
            if length and length > heaps[address].get(index, 0):
                raise damaged


class _FileBytes:
    """The bytes of a file, of which only the slices that are asked for are read."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._size = os.fstat(raw.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, wanted: slice) -> bytes:
        start, stop, _ = wanted.indices(self._size)
        self._raw.seek(start)
        return self._raw.read(max(stop - start, 0))


@contextmanager
def _content(file: h5py.File, path: Path) -> Iterator[bytes | _FileBytes]:
    if isinstance(file, _HDF5File) and file.content is not None:
        yield file.content
        return
    with path.open("rb") as raw:
        yield _FileBytes(raw)


def _heap_objects(content: bytes | _FileBytes, start: int) -> dict[int, int]:
    """Size of every object of the global heap at an address, by index; none if the heap is damaged."""
    head = content[start : start + 16]
    length = int.from_bytes(head[8:16], "little")
    if not head.startswith(_HEAP_MAGIC) or length > min(len(content) - start, _MAX_HEAP_BYTES):
        return {}
    heap = content[start : start + length]
    sizes: dict[int, int] = {}
    position = 16
    while position + 16 <= length:
        index = int.from_bytes(heap[position : position + 2], "little")
        size = int.from_bytes(heap[position + 8 : position + 16], "little")
        sizes[index] = size
        position += 16 + -(-size // 8) * 8 if index else size
        if position > length or (not index and size < 16):
            return {}
    return sizes


def _text_references(dataset: h5py.Dataset, content: bytes | _FileBytes) -> np.ndarray[Any, Any]:
    """Stored references of a vector of variable-length text, in any order."""
    count = dataset.shape[0]
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        stored = b"" if offset is None else content[offset : offset + count * _REFERENCE.itemsize]
        return np.frombuffer(stored, _REFERENCE, count)
    if dataset.compression not in (None, "gzip") or dataset.scaleoffset is not None:
        raise ValueError(f"text is packed with {dataset.compression}")
    parts = [np.empty(0, _REFERENCE)]
    size = dataset.chunks[0] * _REFERENCE.itemsize
    for number in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(number)
        stored = content[chunk.byte_offset : chunk.byte_offset + chunk.size]
        if dataset.fletcher32:
            stored = stored[:-4]
        if dataset.compression == "gzip":
            stored = zlib.decompressobj().decompress(stored, size)
        if dataset.shuffle:
            stored = np.frombuffer(stored, np.uint8).reshape(_REFERENCE.itemsize, -1).T.tobytes()
        parts.append(np.frombuffer(stored, _REFERENCE)[: count - chunk.chunk_offset[0]])
    return np.concatenate(parts)


def strip_ids(ids: Sequence[str], path: Path) -> list[str]:
    """IDs without the white space around them, which must not be all that tells two of them apart."""
    first: dict[str, str] = {}
    for name in ids:
        other = first.setdefault(name.strip(), name)
        if other != name:
            raise DataError(
                f"{path}: the IDs {shown(other)} and {shown(name)} differ by white space alone, which is not part of "
                "an ID; rename one, or remove it if both are the same"
            )
    return [name.strip() for name in ids]


def check_ids(ids: Sequence[str], what: str, path: Path) -> None:
    """Refuse IDs that are empty, repeated, or that a tab-separated file could not hold.

    Parameters
    ----------
    what
        The kind of ID in the singular, ``"sample ID"``.
    """
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name in ids:
        if not name:
            raise DataError(f"{path}: has an empty {what} (number {len(seen) + 1}); give it a name")
        if any(mark in name for mark in "\t\n\r\0"):
            raise DataError(f"{path}: the {what} {shown(name)} holds a tab, line end or NUL; rename it")
        if name in seen:
            repeated[name] = None
        seen.add(name)
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} duplicate {what}(s), first {shown(next(iter(repeated)))}; "
            f"make every {what} unique"
        )


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # no text of any encoding but UTF-16 has these
_PUNCTUATION = re.compile(r"[\s._-]+")
_NUMBER = re.compile(r"0*([0-9]+)(\.0+)?")


def _plain_number(name: str) -> str:
    match = _NUMBER.fullmatch(name)
    return match.group(1) if match else name


_ALIKE = "write them alike in both files"
# What may be all that tells two spellings of an ID apart, how to undo it, and what to do about it.
_SPELLINGS: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("the white space around them", str.strip, "remove it in both files"),
    ("upper and lower case", str.casefold, _ALIKE),
    (
        "leading zeros or a decimal point",
        _plain_number,
        "give the IDs as they were before a spreadsheet took them for numbers",
    ),
    (
        "dots, dashes, underscores or spaces",
        lambda name: _PUNCTUATION.sub(".", name),
        _ALIKE,
    ),
    (
        "case and punctuation",
        lambda name: _plain_number(_PUNCTUATION.sub(".", name.strip().casefold())),
        _ALIKE,
    ),
)


def near_matches(ids: Sequence[str], others: Sequence[str]) -> str | None:
    """What tells IDs of one file apart from those of another, where it is little enough to be a slip.

    Parameters
    ----------
    ids, others : sequence of str
        The IDs of the two files. Those in both are passed over.

    Returns
    -------
    str or None
        A sentence with an example and the way out; None where no ID comes close to another.

    Examples
    --------
    >>> near_matches(["S1", "S2", "S3"], ["s1", "s2", "S3"])
    "2 of them differ only by upper and lower case ('S1' and 's1'); write them alike in both files"
    >>> near_matches(["1.a", "1.b"], ["2538.1.a", "2538.1.b"])
    "2 of them lack '2538.' in front ('1.a' and '2538.1.a'); write them alike in both files"
    """
    known, asked = set(others), set(ids)
    left = [name for name in dict.fromkeys(ids) if name not in known]
    right = [name for name in dict.fromkeys(others) if name not in asked]
    best, sentence = 0, None
    for difference, undo, way_out in _SPELLINGS:
        spelled = {undo(name): name for name in right}
        found = [name for name in left if undo(name) in spelled]
        if len(found) > best:
            example = f"{shown(found[0])} and {shown(spelled[undo(found[0])])}"
            best, sentence = len(found), f"{len(found)} of them differ only by {difference} ({example}); {way_out}"
    for shorter, longer, verb in ((left, right, "lack"), (right, left, "have")):
        there = set(longer)
        for front in (True, False):
            affix = _common_affix(shorter, longer, front=front)
            with_affix = {name: affix + name if front else name + affix for name in shorter}
            found = [name for name in shorter if with_affix[name] in there]
            if affix and len(found) > best:
                pair = (found[0], with_affix[found[0]])
                example = " and ".join(map(shown, pair if verb == "lack" else pair[::-1]))
                place = "in front" if front else "at the end"
                best = len(found)
                sentence = f"{best} of them {verb} {shown(affix)} {place} ({example}); {_ALIKE}"
    return sentence


def written_differently(values: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of values that only case, punctuation, leading zeros or a decimal point tell apart: slips, maybe.

    Examples
    --------
    >>> written_differently(["S1", "S2", "s1", "1", "1.0"])
    [('S1', 's1'), ('1', '1.0')]
    """
    _, undo, _ = _SPELLINGS[-1]
    first: dict[str, str] = {}
    pairs = [(first.setdefault(undo(value), value), value) for value in dict.fromkeys(values)]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _common_affix(shorter: Sequence[str], longer: Sequence[str], *, front: bool) -> str:
    """What stands before, or after, most of a few short IDs in the long ones; empty where nothing does.

    A number is nothing: it could be chance.
    """
    found: Counter[str] = Counter()
    some = shorter[:: max(1, len(shorter) // _TRIED)][:_TRIED]
    for name in filter(None, some):
        if front:
            found.update({other.removesuffix(name) for other in longer if other.endswith(name)})
        else:
            found.update({other.removeprefix(name) for other in longer if other.startswith(name)})
    likely = [(affix, count) for affix, count in found.most_common() if affix and not affix.isdigit()]
    return likely[0][0] if likely and likely[0][1] >= max(2, len(some) / 2) else ""


def parse_floats(cells: Sequence[str], refuse: Callable[[str], DataError]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Parse text cells as numbers; `refuse` makes the error for the first cell that is none."""
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        for cell in cells:
            try:
                float(cell)
            except ValueError:
                raise refuse(cell) from None
        raise


def failure_reason(error: BaseException) -> str:
    """What an exception of a third-party parser says, on one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
