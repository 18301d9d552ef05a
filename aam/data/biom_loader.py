"""Feature tables: BIOM 2.1 (HDF5), BIOM 1.0 (JSON) and tab-separated text.

Shapes: `N` samples, `A` features (ASVs).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from aam.data.files import (
    HDF5_MAGIC,
    check_ids,
    has_hdf5,
    open_hdf5,
    parse_floats,
    read_hdf5,
    read_hdf5_ids,
    read_head,
    read_text,
    require_file,
    shown,
)
from aam.errors import DataError

__all__ = ["FeatureTable", "load_table"]

_WHAT = "feature table"


@dataclass(frozen=True)
class FeatureTable:
    """Counts of features in samples.

    Attributes
    ----------
    counts : scipy.sparse.csr_array of shape (N, A), float64
        Non-negative, without explicit zeros, indices sorted within each sample.
    sample_ids : list of str, length N
    feature_ids : list of str, length A
    """

    counts: sparse.csr_array
    sample_ids: list[str]
    feature_ids: list[str]

    def __post_init__(self) -> None:
        assert self.counts.shape == (len(self.sample_ids), len(self.feature_ids))

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
        return FeatureTable(self.counts[rows], [self.sample_ids[i] for i in rows], self.feature_ids)


def load_table(path: Path) -> FeatureTable:
    """Read a feature table; its format is told from its content, not from its name.

    Parameters
    ----------
    path
        BIOM 2.1 HDF5, BIOM 1.0 JSON or tab-separated text with features in rows, the last two gzipped or not.
        A last column named ``taxonomy`` is ignored.

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
    if read_head(path).startswith(HDF5_MAGIC):
        return _load_hdf5(path)
    text = read_text(path, _WHAT)
    return _parse_json(text, path) if text.lstrip().startswith("{") else _parse_tsv(text, path)


def _load_hdf5(path: Path) -> FeatureTable:
    with open_hdf5(path, _WHAT) as file:
        feature_ids = read_hdf5_ids(file, "observation/ids", path, what=_WHAT)
        sample_ids = read_hdf5_ids(file, "sample/ids", path, what=_WHAT)
        _check_axes(sample_ids, feature_ids, path)
        if has_hdf5(file, "sample/matrix", path):
            counts = _read_csr(file, "sample/matrix", (len(sample_ids), len(feature_ids)), path)
        else:
            counts = _read_csr(file, "observation/matrix", (len(feature_ids), len(sample_ids)), path).T.tocsr()
    return _finish(counts, sample_ids, feature_ids, path)


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


def _parse_json(text: str, path: Path) -> FeatureTable:
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
        return _finish(sparse.csr_array(values.T), sample_ids, feature_ids, path)
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
    return _finish(sparse.csr_array((values[:, 2], (columns, rows)), shape=shape[::-1]), sample_ids, feature_ids, path)


def _json_ids(document: dict[str, Any], axis: str, path: Path) -> list[str]:
    entries = document[axis]
    if not isinstance(entries, list):
        raise DataError(f"{path}: {axis!r} is {shown(entries)}, not a list; export the table again")
    ids = []
    for entry in entries:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{path}: {axis!r} holds {shown(entry)}, which has no 'id'; export the table again")
        ids.append(str(name).strip())
    return ids


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
    header = [cell.strip() for cell in lines.pop(0)[1].split("\t")]
    width = len(header) - (header[-1].lower() == "taxonomy")
    sample_ids = header[1:width]
    feature_ids = []
    data: list[np.ndarray[Any, Any]] = []
    indices: list[np.ndarray[Any, Any]] = []
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells where the header has {len(header)}; "
                "make every row as long as the header"
            )
        feature = cells[0].strip()

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
    _check_axes(sample_ids, feature_ids, path)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in data])])
    counts = sparse.csr_array(
        (np.concatenate(data), np.concatenate(indices), indptr), shape=(len(feature_ids), len(sample_ids))
    )
    return _finish(counts.T.tocsr(), sample_ids, feature_ids, path)


def _check_axes(sample_ids: list[str], feature_ids: list[str], path: Path) -> None:
    for ids, what in ((sample_ids, "sample"), (feature_ids, "feature")):
        if not ids:
            raise DataError(f"{path}: the table has no {what}s; export it again or loosen its filters")
        check_ids(ids, f"{what} ID", path)


def _finish(counts: sparse.csr_array, sample_ids: list[str], feature_ids: list[str], path: Path) -> FeatureTable:
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
    index_type = np.int32 if max(counts.nnz, *counts.shape) < 2**31 else np.int64
    return FeatureTable(
        sparse.csr_array(
            (counts.data, counts.indices.astype(index_type), counts.indptr.astype(index_type)), shape=counts.shape
        ),
        sample_ids,
        feature_ids,
    )


def _refuse_repeat(sample: str, path: Path) -> None:
    raise DataError(f"{path}: sample {shown(sample)} lists one feature twice; the table is damaged, export it again")
