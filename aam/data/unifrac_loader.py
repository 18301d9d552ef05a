"""Distances between samples: `.npy` in table order, the HDF5 that `ssu` writes, and square text.

Shapes: `N` samples of the file, `B` samples of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    reading,
    require_file,
    shown,
)
from aam.errors import DataError

__all__ = ["DistanceMatrix", "load_distances"]

_WHAT = "distance matrix"
_NPY_MAGIC = b"\x93NUMPY"
_TOLERANCE = 1e-4
_TILE = 1024


@dataclass(frozen=True)
class DistanceMatrix:
    """Distances between all pairs of samples.

    Attributes
    ----------
    ids : list of str, length N
    values : numpy.ndarray of shape (N, N), float32
        Finite, non-negative, exactly symmetric, zero on the diagonal.
    """

    ids: list[str]
    values: np.ndarray[Any, np.dtype[np.float32]]

    def block(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Distances among the samples at `indices`.

        Parameters
        ----------
        indices : integers of shape (B,)

        Returns
        -------
        numpy.ndarray of shape (B, B), float32
        """
        rows = np.asarray(indices, dtype=np.int64)
        return self.values[rows[:, None], rows]  # (B, B)


def load_distances(path: Path, table_ids: Sequence[str], upper: float | None = 1.0) -> DistanceMatrix:
    """Read a distance matrix; its format is told from its content.

    Parameters
    ----------
    path
        `.npy` whose rows are in the table's order, HDF5 with `order` and `matrix`, or square tab-separated text.
    table_ids : sequence of str
        Sample IDs of the table, in its order.
    upper
        Largest distance that the metric can give (1 for unweighted UniFrac); None if it has no bound.

    Returns
    -------
    DistanceMatrix
        Every sample of the file, in its order. Rounding up to 1e-4 is removed: opposite entries are averaged, and
        values are brought within [0, `upper`] and to 0 on the diagonal.

    Raises
    ------
    DataError
        If the file cannot be read, is not square or not of the table's size (`.npy`), repeats an ID, shares no sample
        with the table, or holds distances that are missing, infinite, negative, above `upper`, non-zero on the
        diagonal or asymmetric.
    """
    path = require_file(path, _WHAT)
    head = read_head(path)
    if head.startswith(_NPY_MAGIC):
        ids, values = list(table_ids), _load_npy(path, len(table_ids))
    else:
        ids, values = _load_hdf5(path) if head.startswith(HDF5_MAGIC) else _load_tsv(path)
        check_ids(ids, "sample ID", path)
        if not set(ids) & set(table_ids):
            raise DataError(
                f"{path}: none of its {len(ids)} samples is in the table (it has {shown(ids[0])}, the table "
                f"{shown(table_ids[0]) if table_ids else 'none'}); give the matrix of this table"
            )
    _validate_and_symmetrise(values, ids, upper, path)
    return DistanceMatrix(ids, values)


def _load_npy(path: Path, samples: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    with reading(path, "a .npy distance matrix"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            if "Python objects" in str(error):
                raise DataError(
                    f"{path}: holds Python objects, which could run code when read; save it as numbers: "
                    "np.save(path, matrix.astype('float32'))"
                ) from error
            raise
    _check_square(stored.shape, path)
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{path}: holds values of type {stored.dtype}; save it as numbers (float32)")
    if len(stored) != samples:
        raise DataError(
            f"{path}: has {len(stored)} rows but the table has {samples} samples; a .npy file must be in the table's "
            "order, or give HDF5 or text with sample IDs"
        )
    with np.errstate(over="ignore"):
        return np.array(stored, dtype=np.float32, order="C")


def _load_hdf5(path: Path) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    with open_hdf5(path, _WHAT) as file:
        if has_hdf5(file, "matrix:1", path):
            raise DataError(f"{path}: holds several matrices (matrix:0, matrix:1, …); write one matrix to the file")
        name = "matrix:0" if has_hdf5(file, "matrix:0", path) else "matrix"
        ids = read_hdf5_ids(file, "order", path, what=_WHAT)
        values = read_hdf5(file, name, path, what=_WHAT, kinds="iuf", ndim=2, dtype=np.float32)
    _check_square(values.shape, path)
    if len(values) != len(ids):
        raise DataError(f"{path}: has {len(ids)} IDs in 'order' for {len(values)} rows; write the matrix again")
    return ids, values


def _load_tsv(path: Path) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    lines = [line for line in read_text(path, _WHAT).split("\n") if line.strip() and not line.startswith("#")]
    ids = [cell.strip() for cell in lines[0].split("\t")[1:]] if lines else []
    if not ids:
        raise DataError(
            f"{path}: is not a distance matrix (it begins {shown(lines[0] if lines else '')}); give what `ssu` writes, "
            "or .npy in the table's order"
        )
    _check_square((len(lines) - 1, len(ids)), path)
    rows = []
    for expected, line in zip(ids, lines[1:], strict=True):
        name, *cells = line.split("\t")
        if name.strip() != expected:
            raise DataError(
                f"{path}: row {shown(name)} stands where the header has {shown(expected)}; "
                "rows and columns must be in one order"
            )
        if len(cells) != len(ids):
            raise DataError(f"{path}: row {shown(name)} has {len(cells)} distances for {len(ids)} samples; complete it")

        def refuse(cell: str, name: str = name) -> DataError:
            return DataError(f"{path}: the distance {shown(cell)} of sample {shown(name)} is not a number; correct it")

        with np.errstate(over="ignore"):
            rows.append(parse_floats(cells, refuse).astype(np.float32))
    return ids, np.stack(rows)


def _check_square(shape: tuple[int, ...], path: Path) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        text = " × ".join(map(str, shape)) or "a single value"
        raise DataError(f"{path}: is {text}, not a square matrix; give the distances between all pairs of samples")


def _validate_and_symmetrise(
    values: np.ndarray[Any, np.dtype[np.float32]], ids: list[str], upper: float | None, path: Path
) -> None:
    """Check (N, N) distances and clean them in place, a strip at a time so that no second matrix is needed."""
    for start in range(0, len(values), _TILE):
        stop = start + _TILE
        rows = values[start:stop]  # (T, N)

        def refuse(wrong: np.ndarray[Any, Any], what: str, way_out: str, rows: Any = rows, start: int = start) -> None:
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                pair = f"{shown(ids[start + row])} and {shown(ids[column])}"
                raise DataError(f"{path}: the distance between {pair} is {rows[row, column]:g}{what}; {way_out}")

        refuse(np.isnan(rows), "", "recompute it, and check that the tree has branch lengths")
        refuse(np.isinf(rows), "", "recompute the matrix")
        refuse(rows < -_TOLERANCE, ", a negative value", "give distances, not similarities or coordinates")
        if upper is not None:
            bound = "unweighted UniFrac is bounded by 1" if upper == 1 else f"this metric is bounded by {upper:g}"
            refuse(rows > upper + _TOLERANCE, "", f"{bound}, so give a matrix of that metric")

    diagonal = np.abs(np.diagonal(values))
    if diagonal.max() > _TOLERANCE:
        worst = int(diagonal.argmax())
        raise DataError(
            f"{path}: the distance of sample {shown(ids[worst])} to itself is {values[worst, worst]:g}, not 0; "
            "give distances, not similarities"
        )

    for start in range(0, len(values), _TILE):
        stop = start + _TILE
        rows, columns = values[start:stop, start:], values[start:, start:stop].T  # (T, N - start) each
        gap = np.abs(rows - columns)
        if gap.max() > _TOLERANCE:
            row, column = np.unravel_index(int(gap.argmax()), gap.shape)
            pair = f"{shown(ids[start + row])} and {shown(ids[start + column])}"
            raise DataError(
                f"{path}: is not symmetric: {pair} are {rows[row, column]:g} apart one way and "
                f"{columns[row, column]:g} the other; recompute the matrix"
            )
        mean = np.clip((rows + columns) / 2, 0, upper)
        values[start:stop, start:] = mean
        values[start:, start:stop] = mean.T
    np.fill_diagonal(values, 0)
