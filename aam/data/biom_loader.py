"""Feature tables: BIOM 2.1 (HDF5), BIOM 1.0 (JSON), QIIME 2 artifacts and tab-separated text.

Shapes: `N` samples, `A` features (ASVs).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from aam.data.files import (
    HDF5_MAGIC,
    cells_of,
    check_ids,
    decode_text,
    has_hdf5,
    hdf5_vectors,
    open_hdf5,
    parse_floats,
    read_hdf5,
    read_hdf5_cells,
    read_hdf5_ids,
    read_head,
    read_text,
    require_file,
    shown,
    strip_ids,
)
from aam.data.qza import is_artifact, read_artifact
from aam.errors import DataError

__all__ = ["FeatureTable", "TableKind", "check_whole_counts", "load_table", "read_sample_metadata"]

# What stands above feature IDs; where a header has another name and is a cell short, it is a sample's.
_CORNERS = {"", "id", "feature id", "featureid", "feature", "otu id", "otuid", "otu", "asv id", "asvid", "asv"}
_CORNERS |= {"sequence", "seq", "taxon", "taxa", "name", "names", "row.names", "rownames", "x"}

TableKind = Literal["counts", "relative", "presence"]
_WHAT = "feature table"
_KIND_OF_TYPE: dict[str, TableKind] = {
    "FeatureTable[Frequency]": "counts",
    "FeatureTable[RelativeFrequency]": "relative",
    "FeatureTable[PresenceAbsence]": "presence",
}
_PIECE = 2**20
_SUM_TOLERANCE = 1e-3  # of relative frequencies that were rounded when written


@dataclass(frozen=True)
class FeatureTable:
    """Counts of features in samples.

    Attributes
    ----------
    counts : scipy.sparse.csr_array of shape (N, A), float64
        Non-negative, without explicit zeros, indices sorted within each sample.
    sample_ids : list of str, length N
    feature_ids : list of str, length A
    kind : {"counts", "relative", "presence"}
        What the values are: numbers of reads, fractions or percentages of a sample's reads, or 1 for presence.
    sample_metadata : pandas.DataFrame of N rows, optional
        What the file itself says of its samples: text cells, NaN where empty, indexed by ``sample_id``.
    """

    counts: sparse.csr_array
    sample_ids: list[str]
    feature_ids: list[str]
    kind: TableKind = "counts"
    sample_metadata: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        assert self.counts.shape == (len(self.sample_ids), len(self.feature_ids))
        assert self.sample_metadata is None or len(self.sample_metadata) == len(self.sample_ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of features, (N, A)."""
        return len(self.sample_ids), len(self.feature_ids)

    def select_samples(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> FeatureTable:
        """Keep the samples at `indices`, in that order; every feature stays.

        Parameters
        ----------
        indices : integers of shape (n,)
        """
        rows = np.asarray(indices, dtype=np.int64)
        metadata = None if self.sample_metadata is None else self.sample_metadata.iloc[rows]
        return replace(
            self, counts=self.counts[rows], sample_ids=[self.sample_ids[i] for i in rows], sample_metadata=metadata
        )


def load_table(path: Path, *, sample_metadata: bool = True) -> FeatureTable:
    """Read a feature table; its format is told from its content, not from its name.

    Parameters
    ----------
    path
        BIOM 2.1 HDF5, BIOM 1.0 JSON or tab-separated text with features in rows, the last two gzipped or not; or a
        QIIME 2 artifact of frequencies, relative frequencies or presences. A last column named ``taxonomy`` is ignored.
    sample_metadata
        Whether to read what a BIOM file says of its samples. Only columns of one text or number a sample are taken.

    Returns
    -------
    FeatureTable
        Samples without reads are kept: what to do about them is the caller's decision.

    Raises
    ------
    DataError
        If the file cannot be read, is no feature table, is damaged or empty, repeats an ID, or holds counts that are
        negative or not finite.
    """
    path = require_file(path, _WHAT)
    content: bytes | None = None
    kind: TableKind = "counts"
    if is_artifact(path):
        artifact = read_artifact(path, tuple(_KIND_OF_TYPE), _WHAT)
        kind = _KIND_OF_TYPE[artifact.type]
        content = artifact.read("feature-table.biom")
    if (read_head(path) if content is None else content).startswith(HDF5_MAGIC):
        table = _load_hdf5(path, content, sample_metadata)
    else:
        text = read_text(path, _WHAT) if content is None else decode_text(content, path, _WHAT)
        table = _parse_json(text, path, sample_metadata) if text.lstrip().startswith("{") else _parse_tsv(text, path)
    return replace(table, kind=_kind(table.counts) if kind == "counts" else kind)


def _kind(counts: sparse.csr_array) -> TableKind:
    """Relative frequencies are told by sums of 1, or 100, in every sample that is not empty."""
    if _first_broken(counts.data) is None:
        return "counts"
    sums = counts.sum(axis=1)
    sums = sums[sums > 0]
    relative = any(np.allclose(sums, total, rtol=_SUM_TOLERANCE, atol=0) for total in (1, 100))
    return "relative" if relative else "counts"


def _first_broken(values: np.ndarray[Any, Any]) -> int | None:
    """Place of the first value that is not whole."""
    for start in range(0, len(values), _PIECE):
        broken = values[start : start + _PIECE] % 1 != 0
        if broken.any():
            return start + int(broken.argmax())
    return None


def check_whole_counts(table: FeatureTable, path: Path, option: str = "--rarefy-depth") -> None:
    """Refuse a table that does not hold whole reads to draw from.

    Raises
    ------
    DataError
        Saying what it holds instead.
    """
    way_out = f"give the table of counts that it was made from, or leave {option} out"
    if table.kind == "presence":
        raise DataError(f"{path}: {option} draws reads, but the table holds presence and absence; {way_out}")
    entry = _first_broken(table.counts.data)
    if table.kind == "relative":
        entry = entry or 0
        feature = table.feature_ids[table.counts.indices[entry]]
        raise DataError(
            f"{path}: {option} draws whole reads, but the table holds relative frequencies "
            f"({table.counts.data[entry]:g} of feature {shown(feature)}); {way_out}"
        )
    if entry is not None:
        raise DataError(
            f"{path}: {option} draws whole reads, but the table holds {table.counts.data[entry]:g}; "
            f"give raw counts, or leave {option} out"
        )


def _load_hdf5(path: Path, content: bytes | None, sample_metadata: bool) -> FeatureTable:
    with open_hdf5(path, _WHAT, content) as file:
        feature_ids = read_hdf5_ids(file, "observation/ids", path, what=_WHAT)
        sample_ids = read_hdf5_ids(file, "sample/ids", path, what=_WHAT)
        _check_axes(sample_ids, feature_ids, path)
        if has_hdf5(file, "sample/matrix", path):
            counts = _read_csr(file, "sample/matrix", (len(sample_ids), len(feature_ids)), path)
        else:
            counts = _read_csr(file, "observation/matrix", (len(feature_ids), len(sample_ids)), path).T.tocsr()
        metadata = read_sample_metadata(file, sample_ids, path) if sample_metadata else None
    return _finish(counts, sample_ids, feature_ids, path, metadata)


def read_sample_metadata(file: h5py.File, sample_ids: list[str], path: Path) -> pd.DataFrame | None:
    """What a BIOM 2.1 file says of its samples; see `FeatureTable`.

    Raises
    ------
    DataError
        If a column has not one value a sample.
    """
    columns: dict[str, list[str]] = {}
    for member in hdf5_vectors(file, "sample/metadata", path):
        name = f"sample/metadata/{member}"
        cells = read_hdf5_cells(file, name, path, what=_WHAT)
        if len(cells) != len(sample_ids):
            raise DataError(
                f"{path}: {name!r} has {len(cells)} values for {len(sample_ids)} samples; export the table again"
            )
        columns[member.replace("@@SLASH@@", "/")] = cells  # biom-format's word for a slash in a name
    return _metadata_frame(columns, sample_ids)


def _metadata_frame(columns: dict[str, list[str]], sample_ids: list[str]) -> pd.DataFrame | None:
    if not columns:
        return None
    index = pd.Index(sample_ids, dtype=object, name="sample_id")
    frame = pd.DataFrame(columns, index=index, dtype=object)
    return frame.mask(frame == "", np.nan)


def _read_csr(file: h5py.File, group: str, shape: tuple[int, int], path: Path) -> sparse.csr_array:
    indptr = read_hdf5(file, f"{group}/indptr", path, what=_WHAT, kinds="iu", ndim=1)
    indices = read_hdf5(file, f"{group}/indices", path, what=_WHAT, kinds="iu", ndim=1)
    data = read_hdf5(file, f"{group}/data", path, what=_WHAT, kinds="iuf", ndim=1, dtype=np.float64)
    damaged = f"{path}: {group} is damaged (%s); export the table again"
    if len(indptr) != shape[0] + 1:
        raise DataError(damaged % f"indptr has {len(indptr)} values for {shape[0]} IDs")
    if len(indices) != len(data):
        raise DataError(damaged % f"{len(indices)} indices for {len(data)} values")
    if indptr[0] != 0 or indptr[-1] != len(data) or np.any(indptr[1:] < indptr[:-1]):
        raise DataError(damaged % f"indptr does not rise from 0 to {len(data)}")
    outside = (indices < 0) | (indices >= shape[1])
    if outside.any():
        raise DataError(damaged % f"index {indices[outside][0]} where there are {shape[1]} IDs")
    return sparse.csr_array((data, indices.astype(np.int64), indptr.astype(np.int64)), shape=shape)


def _parse_json(text: str, path: Path, sample_metadata: bool) -> FeatureTable:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: is not valid JSON ({reason}); the BIOM file is cut short or damaged, export it again"
        ) from error
    missing = [key for key in ("rows", "columns", "data") if key not in document]
    if missing:
        raise DataError(f"{path}: is JSON without {missing[0]!r}, so not a BIOM table; check which file is meant")
    feature_ids, sample_ids = (_json_ids(document, axis, path) for axis in ("rows", "columns"))
    _check_axes(sample_ids, feature_ids, path)
    metadata = _json_sample_metadata(document["columns"], sample_ids) if sample_metadata else None
    shape = (len(feature_ids), len(sample_ids))
    if document.get("shape", list(shape)) != list(shape):
        raise DataError(
            f"{path}: its shape {shown(document['shape'])} disagrees with its {shape[0]} rows and {shape[1]} columns; "
            "export the table again"
        )
    matrix_type = document.get("matrix_type", "sparse")
    if matrix_type not in ("sparse", "dense"):
        raise DataError(f"{path}: matrix_type is {shown(matrix_type)}; it must be 'sparse' or 'dense'")
    width = 3 if matrix_type == "sparse" else shape[1]
    try:
        values = np.array(document["data"] or np.empty((0, width)), dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != width or (matrix_type == "dense" and len(values) != shape[0]):
            raise ValueError(f"an array of shape {values.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: its {matrix_type} 'data' is not rows of {width} numbers ({shown(str(error), 100)}); "
            "export the table again"
        ) from error
    if matrix_type == "dense":
        return _finish(sparse.csr_array(values.T), sample_ids, feature_ids, path, metadata)
    entries = values[:, :2]
    wrong = ~((entries == np.floor(entries)) & (entries >= 0) & (entries < shape)).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{path}: entry {entries[wrong][0].tolist()} lies outside of its {shape[0]} rows and {shape[1]} columns; "
            "export the table again"
        )
    rows, columns = entries.astype(np.int64).T
    order = np.lexsort((rows, columns))
    repeated = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
    if repeated.any():
        _refuse_repeat(sample_ids[columns[order][1:][repeated][0]], path)
    counts = sparse.csr_array((values[:, 2], (columns, rows)), shape=shape[::-1])
    return _finish(counts, sample_ids, feature_ids, path, metadata)


def _json_ids(document: dict[str, Any], axis: str, path: Path) -> list[str]:
    entries = document[axis]
    if not isinstance(entries, list):
        raise DataError(f"{path}: {axis!r} is {shown(entries)}, not a list; export the table again")
    ids = []
    for entry in entries:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{path}: {axis!r} holds {shown(entry)}, which has no 'id'; export the table again")
        ids.append(str(name))
    return strip_ids(ids, path)


def _json_sample_metadata(entries: list[dict[str, Any]], sample_ids: list[str]) -> pd.DataFrame | None:
    described = [entry.get("metadata") for entry in entries]
    stated = [cells if isinstance(cells, dict) else {} for cells in described]
    names = dict.fromkeys(name for cells in stated for name, cell in cells.items() if _is_cell(cell))
    columns = {
        name: [str(cells[name]).strip() if _is_cell(cells.get(name)) else "" for cells in stated] for name in names
    }
    return _metadata_frame(columns, sample_ids)


def _is_cell(value: object) -> bool:
    return isinstance(value, str | int | float)


def _parse_tsv(text: str, path: Path) -> FeatureTable:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    while lines and lines[0][1].startswith("#") and "\t" not in lines[0][1]:
        lines.pop(0)
    if not lines or "\t" not in lines[0][1]:
        first = lines[0][1] if lines else ""
        raise DataError(
            f"{path}: is not a BIOM or tab-separated table (it begins {shown(first)}); "
            "give a .biom file, or text with features in rows and samples in columns"
        )
    header = _cells(lines.pop(0)[1], path)
    corner = header[0].strip().lower().replace("_", " ").replace("-", " ")
    named = corner.startswith("#") or corner in _CORNERS
    if not named and lines and len(_cells(lines[0][1], path)) == len(header) + 1:
        header.insert(0, "")  # the cell above the IDs, which R's write.table leaves out
    width = len(header) - (header[-1].strip().lower() == "taxonomy")
    sample_ids = strip_ids(header[1:width], path)
    feature_ids = []
    data: list[np.ndarray[Any, Any]] = []
    indices: list[np.ndarray[Any, Any]] = []
    for number, line in lines:
        cells = _cells(line, path)
        if len(cells) != len(header):
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells where the header has {len(header)}; "
                "make every row as long as the header"
            )
        feature = cells[0]

        def refuse(cell: str, feature: str = feature, number: int = number) -> DataError:
            return DataError(
                f"{path}: line {number}: the count {shown(cell)} of feature {shown(feature)} is not a number; "
                "correct it"
            )

        row = parse_floats(cells[1:width], refuse)
        nonzero = np.flatnonzero(row)
        feature_ids.append(feature)
        indices.append(nonzero)
        data.append(row[nonzero])
    feature_ids = strip_ids(feature_ids, path)
    _check_axes(sample_ids, feature_ids, path)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in data])])
    counts = sparse.csr_array(
        (np.concatenate(data), np.concatenate(indices), indptr), shape=(len(feature_ids), len(sample_ids))
    )
    return _finish(counts.T.tocsr(), sample_ids, feature_ids, path)


def _cells(line: str, path: Path) -> list[str]:
    """The cells of a line; quotation marks may also be part of a taxon's name, as RDP writes it."""
    try:
        return cells_of(line, "\t", path)
    except DataError:
        return line.split("\t")


def _check_axes(sample_ids: list[str], feature_ids: list[str], path: Path) -> None:
    for ids, what in ((sample_ids, "sample"), (feature_ids, "feature")):
        if not ids:
            raise DataError(f"{path}: the table has no {what}s; export it again or loosen its filters")
        check_ids(ids, f"{what} ID", path)


def _finish(
    counts: sparse.csr_array,
    sample_ids: list[str],
    feature_ids: list[str],
    path: Path,
    sample_metadata: pd.DataFrame | None = None,
) -> FeatureTable:
    """Validate counts of shape (N, A) and bring them into canonical form."""
    wrong = ~(np.isfinite(counts.data) & (counts.data >= 0))
    if wrong.any():
        entry = int(np.flatnonzero(wrong)[0])
        sample = int(np.searchsorted(counts.indptr, entry, side="right")) - 1
        value = counts.data[entry]
        kind = "negative" if value < 0 and np.isfinite(value) else "not a finite number"
        raise DataError(
            f"{path}: the count {value} of feature {shown(feature_ids[counts.indices[entry]])} in sample "
            f"{shown(sample_ids[sample])} is {kind} ({wrong.sum()} in all); give counts of reads"
        )
    stored = counts.nnz
    lengths = np.diff(counts.indptr)
    counts.sum_duplicates()
    if counts.nnz != stored:
        _refuse_repeat(sample_ids[int(np.flatnonzero(np.diff(counts.indptr) != lengths)[0])], path)
    counts.eliminate_zeros()
    if counts.nnz == 0:
        raise DataError(f"{path}: every count is zero; export the table again or loosen its filters")
    return FeatureTable(_canonical(counts), sample_ids, feature_ids, sample_metadata=sample_metadata)


def _canonical(counts: sparse.csr_array) -> sparse.csr_array:
    index_type = np.int32 if max(counts.nnz, *counts.shape) < 2**31 else np.int64
    indices, indptr = counts.indices.astype(index_type), counts.indptr.astype(index_type)
    return sparse.csr_array((counts.data, indices, indptr), shape=counts.shape)


def _refuse_repeat(sample: str, path: Path) -> None:
    raise DataError(f"{path}: sample {shown(sample)} lists one feature twice; the table is damaged, export it again")
