"""QIIME 2 artifacts (`.qza`): zip archives whose members are read into memory, never unpacked to disk.

An artifact holds one folder, named by its UUID, with ``metadata.yaml`` (UUID, semantic type, format), ``VERSION``, the
files of its data in ``data/``, and how it was made in ``provenance/`` (Bolyen et al. 2019).
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml

from aam.data.files import (
    ZIP_MAGIC,
    decode_text,
    failure_reason,
    read_head,
    read_text,
    require_file,
    shown,
    zip_first_name,
)
from aam.errors import DataError

__all__ = ["Artifact", "is_artifact", "read_artifact", "read_newick_text"]

_MAX_DIRECTORY_BYTES = 2**23
_MAX_YAML_BYTES = 2**14
_MAX_MEMBER_BYTES = 2**32
_SMALL_BYTES = 2**24
_MAX_EXPANSION = 200  # text of numbers or sequences packs to a fifth, the best of it to a thirtieth
_PIECE = 2**20
_PROPERTIES = re.compile(r"\s*%\s*Properties\(.*?\)")
_AGAIN = "copy it again, or export it again from QIIME 2"

# What to give instead of an artifact whose type begins so, where a type that begins so is expected.
_INSTEAD = (
    ("Visualization", "", "it is made to be looked at: give the artifact (.qza) that it was made from"),
    ("FeatureData[AlignedSequence]", "FeatureData[Sequence]", "give the sequences before alignment (rep-seqs.qza)"),
    ("FeatureTable", "FeatureTable", "give the table of counts, FeatureTable[Frequency]"),
    ("SampleData[AlphaDiversity]", "", "it has one value a sample: give a {what}"),
    ("SampleData[", "Feature", "denoise the reads first, for example with `qiime dada2`, and give the {what}"),
    ("PCoAResults", "DistanceMatrix", "give the distances that it was computed from"),
    (
        "Phylogeny[Unrooted]",
        "Phylogeny",
        "UniFrac needs a root: `qiime phylogeny midpoint-root` adds one, give the tree it writes",
    ),
)
_OPTIONS = {
    "FeatureTable[Frequency]": "--table",
    "FeatureData[Sequence]": "--sequences",
    "FeatureData[Taxonomy]": "--taxonomy",
    "Phylogeny[Rooted]": "--tree",
    "DistanceMatrix": "--unifrac-matrix",
}


@dataclass(frozen=True)
class Artifact:
    """What an artifact says of itself, and the way to its data.

    Attributes
    ----------
    path : pathlib.Path
    type : str
        Semantic type without its properties, ``"FeatureTable[Frequency]"``.
    uuid : str
    names : tuple of str
        Files in its ``data`` folder, named from there: ``"feature-table.biom"``.
    """

    path: Path
    type: str
    uuid: str
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """All bytes of a data file.

        Raises
        ------
        DataError
            If there is no such file, it is damaged, expands more than data do, or holds over 4 GiB.
        """
        with self._member(name) as member:
            if member.size > _MAX_MEMBER_BYTES:
                raise DataError(
                    f"{self.path}: {shown(name)} holds over {_MAX_MEMBER_BYTES >> 30} GiB; export it with "
                    "`qiime tools export` and give the file inside"
                )
            return member.readall()

    def open(self, name: str) -> BinaryIO:
        """A data file of any size as a stream, to be closed by the caller; reading raises what `read` raises."""
        return io.BufferedReader(self._member(name), _PIECE)

    def _member(self, name: str) -> _Member:
        if name not in self.names:
            found = ", ".join(map(shown, self.names[:3])) or "nothing"
            raise DataError(
                f"{self.path}: is an artifact of type {self.type} without {name!r} (it holds {found}); {_AGAIN}"
            )
        return _Member(self.path, f"{self.uuid}/data/{name}")


def is_artifact(path: Path) -> bool:
    """Whether a file is to be read as an artifact: it is a zip archive, and none that NumPy wrote (`.npz`)."""
    return read_head(path).startswith(ZIP_MAGIC) and not zip_first_name(path).endswith(".npy")


def read_artifact(path: Path, types: Sequence[str], what: str) -> Artifact:
    """Open an artifact of one of the given types.

    Parameters
    ----------
    path
        The file, of any name.
    types : sequence of str
        Semantic types that will do, ``("FeatureTable[Frequency]",)``; properties (``% Properties('phylogenetic')``)
        are passed over.
    what
        What it should hold, for messages: ``"feature table"``.

    Raises
    ------
    DataError
        If the file is no artifact, is damaged, encrypted or hostile, or its type is another; it is then said which,
        and what to give instead.
    """
    path = require_file(path, what)
    with _open_zip(path) as archive:
        members = archive.infolist()
        root = _check_names(members, path, what)
        names = {member.filename for member in members}
        for name in ("VERSION", "metadata.yaml"):
            if f"{root}/{name}" not in names:
                raise DataError(
                    f"{path}: is a zip archive but no QIIME 2 artifact (it has no {name} in its folder "
                    f"{shown(root)}); give the {what} itself"
                )
    version = _read_small(path, f"{root}/VERSION")
    if not version.startswith(b"QIIME 2"):
        raise DataError(f"{path}: is a zip archive whose VERSION is not QIIME 2's; give the {what} itself")
    metadata = _parse_yaml(_read_small(path, f"{root}/metadata.yaml"), path)
    uuid, type_ = metadata.get("uuid"), metadata.get("type")
    if not isinstance(type_, str) or not type_.strip() or uuid != root:
        raise DataError(
            f"{path}: its metadata.yaml says type {shown(type_)} and uuid {shown(uuid)} in the folder {shown(root)}, "
            f"so the artifact was altered; {_AGAIN}"
        )
    type_ = _PROPERTIES.sub("", type_).strip()
    if type_ not in types:
        _refuse_type(path, type_, types, what)
    start = f"{root}/data/"
    inside = [name.removeprefix(start) for name in sorted(names) if name.startswith(start) and not name.endswith("/")]
    return Artifact(path, type_, root, tuple(inside))


def read_newick_text(path: Path) -> str:
    """Text of a rooted tree: a newick file, gzipped or not, or a QIIME 2 artifact of type ``Phylogeny[Rooted]``.

    Raises
    ------
    DataError
        If it cannot be read, or the artifact holds something else, an unrooted tree say.
    """
    what = "rooted tree"
    path = require_file(path, what)
    if not is_artifact(path):
        return read_text(path, what)
    return decode_text(read_artifact(path, ("Phylogeny[Rooted]",), what).read("tree.nwk"), path, what)


def _refuse_type(path: Path, type_: str, types: Sequence[str], what: str) -> None:
    if type_ in _OPTIONS:
        instead = f"give a {what} ({_OPTIONS[type_]} is the option for this one)"
    else:
        fitting = (
            text
            for start, expected, text in _INSTEAD
            if type_.startswith(start) and any(wanted.startswith(expected) for wanted in types)
        )
        instead = next(fitting, "give a {what}").format(what=what)
    kind = "visualization (.qzv)" if type_ == "Visualization" else f"artifact of type {shown(type_)[1:-1]}"
    raise DataError(f"{path}: is a QIIME 2 {kind} where a {what} ({' or '.join(types)}) is expected; {instead}")


class _CautiousFile(io.BufferedReader):
    """Never asked for more at once than a sensible directory of members needs."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(_CautiousFile(io.FileIO(path)))
            archive = stack.enter_context(zipfile.ZipFile(raw))
        except Exception as error:
            raise DataError(
                f"{path}: is a zip archive that is cut short or damaged ({failure_reason(error)}); {_AGAIN}"
            ) from error
        yield archive


def _check_names(members: Sequence[zipfile.ZipInfo], path: Path, what: str) -> str:
    """Refuse members that no artifact has; return the one folder that all are in."""
    seen: set[str] = set()
    roots: dict[str, None] = {}
    for member in members:
        name = member.orig_filename
        parts = name.removesuffix("/").split("/")
        if "\\" in name or "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise DataError(
                f"{path}: holds a member named {shown(name)}, which would lie outside of its folder; no QIIME 2 "
                f"artifact does, so do not trust this file: get the {what} from its source again"
            )
        if name in seen:
            raise DataError(f"{path}: holds two members named {shown(name)}; {_AGAIN}")
        seen.add(name)
        roots[parts[0]] = None
    if len(roots) != 1:
        found = ", ".join(map(shown, list(roots)[:3])) or "none"
        raise DataError(
            f"{path}: is a zip archive but no QIIME 2 artifact, which has one folder ({found} found); give the "
            f"{what} itself, or the artifact as QIIME 2 wrote it"
        )
    return next(iter(roots))


def _read_small(path: Path, member: str) -> bytes:
    with _Member(path, member) as stream:
        if stream.size <= _MAX_YAML_BYTES:
            return stream.readall()
    name = member.rpartition("/")[2]
    raise DataError(f"{path}: its {name} holds over {_MAX_YAML_BYTES} bytes, where a few lines belong; {_AGAIN}")


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, by which a few lines can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def _parse_yaml(content: bytes, path: Path) -> dict[Any, Any]:
    try:
        metadata = yaml.load(content.decode("utf-8"), _PlainLoader)
    except Exception as error:
        raise DataError(f"{path}: its metadata.yaml is not YAML ({failure_reason(error)}); {_AGAIN}") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: its metadata.yaml holds no properties; {_AGAIN}")
    return metadata


class _Member(io.RawIOBase):
    """The bytes of a member, unpacked piece by piece; what is wrong with them is a `DataError`."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        self._path = path
        self._name = name
        with ExitStack() as stack:
            self._stream = self._open(stack.enter_context(_open_zip(path)))
            stack.enter_context(self._stream)
            self._stack = stack.pop_all()

    def _open(self, archive: zipfile.ZipFile) -> IO[bytes]:
        info = archive.getinfo(self._name)
        if info.flag_bits & 0x1:
            raise DataError(f"{self._path}: {shown(self._name)} is encrypted; give the artifact without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{self._path}: {shown(self._name)} is packed by method {info.compress_type}, which QIIME 2 does not "
                f"use; {_AGAIN}"
            )
        self.size = info.file_size
        packed = min(info.compress_size, self._path.stat().st_size)
        # More than the size stated here is never unpacked: zipfile stops there, and finds the checksum wrong.
        if info.file_size > max(_SMALL_BYTES, _MAX_EXPANSION * packed):
            raise DataError(
                f"{self._path}: {shown(self._name)} expands to {info.file_size} bytes, over {_MAX_EXPANSION} times its "
                "size in the archive, as data never do (a zip bomb?); get the artifact from its source again"
            )
        try:
            return archive.open(info)
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self._path}: {shown(self._name)} is damaged ({failure_reason(error)}); {_AGAIN}")

    def readable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(_PIECE) or b"", b""))

    def readinto(self, buffer: Any, /) -> int:
        try:
            piece = self._stream.read(min(len(buffer), _PIECE))
        except Exception as error:
            raise self._damaged(error) from error
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if hasattr(self, "_stack"):
                self._stack.close()
