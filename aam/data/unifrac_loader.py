"""Distances between samples, and values of samples, as base targets: validated, in memory or read as batches need them.

Shapes: `N` samples of the file, `M` reference samples of the file, `B` samples and `C` references of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aam.data.distance_files import MatrixFile, ValuesFile, read_distance_file
from aam.data.files import check_ids, near_matches, read_text, shown, strip_ids
from aam.data.lazy_matrix import LazyMatrix
from aam.errors import DataError

__all__ = [
    "DistanceMatrix",
    "SampleValues",
    "StripeMatrix",
    "UniFracLoader",
    "load_distances",
    "load_reference_ids",
]

MEMORY_LIMIT = 2**28  # bytes of float32 above which a matrix stays in its file

_TOLERANCE = 1e-4
_TILE = 1024
_CHECKED_SAMPLES = 64
_CHECKED_ROWS = 4

Places = Sequence[int] | NDArray[Any]


@dataclass(frozen=True)
class _Rules:
    """What distances must be, and the errors where they are not."""

    path: Path
    upper: float | None
    metric: str

    def check(self, values: NDArray[np.float32], row_ids: Sequence[str], column_ids: Sequence[str]) -> None:
        """Refuse distances (R, C) that are missing, infinite, negative or above the bound."""

        def refuse(wrong: NDArray[np.bool_], what: str, way_out: str) -> None:
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                pair = f"{shown(row_ids[row])} and {shown(column_ids[column])}"
                raise DataError(f"{self.path}: the distance between {pair} is {values[row, column]:g}{what}; {way_out}")

        if not values.size:
            return
        low, high = values.min(), values.max()  # NaN if any is
        if low >= -_TOLERANCE and high <= (np.finfo(np.float32).max if self.upper is None else self.upper):
            return
        refuse(np.isnan(values), "", "recompute it, and check that the tree has branch lengths")
        refuse(np.isinf(values), "", "recompute the matrix")
        refuse(values < -_TOLERANCE, ", a negative value", "give distances, not similarities or coordinates")
        if self.upper is not None:
            refuse(
                values > self.upper + _TOLERANCE,
                f", above {self.upper:g}",
                f"{self.metric} is bounded by {self.upper:g}, so this is probably unnormalised weighted UniFrac: "
                "compute `weighted_normalized` with `ssu -m`, or choose a target without a bound",
            )

    def check_diagonal(self, diagonal: NDArray[np.float32], ids: Sequence[str], hint: str = "") -> None:
        """Refuse distances (R,) of samples to themselves that are not 0."""
        if len(diagonal) and np.abs(diagonal).max() > _TOLERANCE:
            worst = int(np.abs(diagonal).argmax())
            raise DataError(
                f"{self.path}: the distance of sample {shown(ids[worst])} to itself is {diagonal[worst]:g}, not 0; "
                f"give distances, not similarities{hint}"
            )

    def check_symmetry(
        self,
        one_way: NDArray[np.float32],
        other_way: NDArray[np.float32],
        row_ids: Sequence[str],
        column_ids: Sequence[str],
    ) -> None:
        """Refuse distances (R, C) that differ from those in the opposite direction (R, C)."""
        gap = np.abs(one_way - other_way)
        if gap.size and gap.max() > _TOLERANCE:
            row, column = divmod(int(gap.argmax()), gap.shape[1])
            raise DataError(
                f"{self.path}: is not symmetric: {shown(row_ids[row])} and {shown(column_ids[column])} are "
                f"{one_way[row, column]:g} apart one way and {other_way[row, column]:g} the other; recompute the matrix"
            )

    def clean(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring distances within [0, upper], from which they may be a rounding error away."""
        return np.clip(values, 0, self.upper, out=values)


@dataclass(frozen=True)
class LazyDistances:
    """A matrix that stays in its file, whose entries are checked as they are read."""

    matrix: LazyMatrix
    rules: _Rules

    def block(
        self,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        row_ids: Sequence[str],
        column_ids: Sequence[str],
        symmetric: bool = False,
    ) -> NDArray[np.float32]:
        """Checked distances (R, C), 0 from a sample to itself.

        Parameters
        ----------
        rows, columns : ndarray of int64, shape (R,) and (C,)
            Places in the file.
        row_ids, column_ids : sequence of str
            Those of the whole file.
        symmetric : bool
            See `LazyMatrix.block`.
        """
        values = self.matrix.block(rows, columns, symmetric)
        row_names, column_names = [row_ids[row] for row in rows], [column_ids[column] for column in columns]
        self.rules.check(values, row_names, column_names)
        same = np.array(row_names, dtype=object)[:, None] == np.array(column_names, dtype=object)  # (R, C)
        self.rules.check_diagonal(values[same], [row_names[row] for row in np.nonzero(same)[0]])
        values[same] = 0
        return self.rules.clean(values)


@dataclass(frozen=True)
class DistanceMatrix:
    """Distances between all pairs of samples, in memory or in their file.

    Attributes
    ----------
    ids : list of str, length N
    source : numpy.ndarray of shape (N, N), float32, or where the distances are in the file
        In memory they are finite, non-negative, exactly symmetric, and zero on the diagonal.
    """

    ids: list[str]
    source: NDArray[np.float32] | LazyDistances

    @property
    def values(self) -> NDArray[np.float32]:
        """All distances (N, N), which must be in memory."""
        assert isinstance(self.source, np.ndarray), "the distances are read as they are needed: use block()"
        return self.source

    @property
    def in_memory(self) -> bool:
        """Whether the distances are in memory; they are read from their file with each block if not."""
        return isinstance(self.source, np.ndarray)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples of the file, twice."""
        return len(self.ids), len(self.ids)

    def block(self, rows: Places, columns: Places | None = None) -> NDArray[np.float32]:
        """Distances between samples at places in the file.

        A pair's distance does not depend on what else is in the block.

        Parameters
        ----------
        rows : integers of shape (B,)
        columns : integers of shape (C,), optional
            The rows if not given.

        Returns
        -------
        numpy.ndarray of shape (B, C), float32

        Raises
        ------
        DataError
            If distances that stay in the file are wrong, or cannot be read any more.
        """
        row = np.asarray(rows, dtype=np.int64)
        column = row if columns is None else np.asarray(columns, dtype=np.int64)
        if isinstance(self.source, np.ndarray):
            return self.source[row[:, None], column]  # (B, C)
        return self.source.block(row, column, self.ids, self.ids, symmetric=True)


@dataclass(frozen=True)
class StripeMatrix:
    """Distances of all samples to some reference samples, in memory or in their file.

    Attributes
    ----------
    ids : list of str, length N
    reference_ids : list of str, length M
    source : numpy.ndarray of shape (N, M), float32, or where the distances are in the file
        In memory they are finite and non-negative.
    """

    ids: list[str]
    reference_ids: list[str]
    source: NDArray[np.float32] | LazyDistances

    @property
    def values(self) -> NDArray[np.float32]:
        """All distances (N, M), which must be in memory."""
        assert isinstance(self.source, np.ndarray), "the distances are read as they are needed: use block()"
        return self.source

    @property
    def in_memory(self) -> bool:
        """Whether the distances are in memory; they are read from their file with each block if not."""
        return isinstance(self.source, np.ndarray)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and reference samples of the file."""
        return len(self.ids), len(self.reference_ids)

    def block(self, rows: Places, reference_columns: Places | None = None) -> NDArray[np.float32]:
        """Distances of samples to reference samples at places in the file.

        Parameters
        ----------
        rows : integers of shape (B,)
        reference_columns : integers of shape (C,), optional
            All references if not given.

        Returns
        -------
        numpy.ndarray of shape (B, C), float32

        Raises
        ------
        DataError
            If distances that stay in the file are wrong, or cannot be read any more.
        """
        row = np.asarray(rows, dtype=np.int64)
        column = np.asarray(
            np.arange(len(self.reference_ids)) if reference_columns is None else reference_columns, dtype=np.int64
        )
        if isinstance(self.source, np.ndarray):
            return self.source[row[:, None], column]  # (B, C)
        return self.source.block(row, column, self.ids, self.reference_ids)


@dataclass(frozen=True)
class SampleValues:
    """One value for each sample, such as Faith's PD.

    Attributes
    ----------
    ids : list of str, length N
    values : numpy.ndarray of shape (N,), float64
        Finite, non-negative.
    name : str
        What the file calls them.
    """

    ids: list[str]
    values: NDArray[np.float64]
    name: str = ""

    def block(self, rows: Places) -> NDArray[np.float64]:
        """Values (B,) of the samples at places (B,) in the file."""
        return self.values[np.asarray(rows, dtype=np.int64)]


class UniFracLoader:
    """Reads distances between samples, or a value for each, and gives what a batch needs of them.

    Parameters
    ----------
    path
        `.npy`, `.npz`, HDF5, text or a QIIME 2 artifact; told from its content.
    table_ids : sequence of str
        Sample IDs of the table, in its order: the samples of a file without IDs.
    upper
        Largest distance that the metric can give (1 for unweighted UniFrac); None if it has no bound.
    reference_ids : sequence of str, optional
        Samples in the columns of a file that does not name them.
    metric_name
        For messages.
    memory_limit
        Bytes (of float32) above which a matrix stays in its file: batches then cost what they read of it.
    """

    def __init__(
        self,
        path: Path,
        table_ids: Sequence[str],
        *,
        upper: float | None = 1.0,
        reference_ids: Sequence[str] | None = None,
        metric_name: str = "unweighted UniFrac",
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.path = Path(path)
        self.table_ids = list(table_ids)
        self.reference_ids = None if reference_ids is None else list(reference_ids)
        self.memory_limit = memory_limit
        self._rules = _Rules(self.path, upper, metric_name)
        self._matrix: DistanceMatrix | StripeMatrix | SampleValues | None = None
        self._places: dict[str, int] = {}
        self._reference_places: dict[str, int] = {}

    def load_matrix(self) -> DistanceMatrix | StripeMatrix | SampleValues:
        """Read the file, once.

        Returns
        -------
        DistanceMatrix
            If rows and columns are the same samples. Rounding up to 1e-4 is removed: opposite entries are averaged
            (of a matrix that stays in its file, the one above the diagonal is taken), and values are brought within
            [0, `upper`] and to 0 on the diagonal.
        StripeMatrix
            If the columns are other samples than the rows.
        SampleValues
            If there is one value a sample.

        Raises
        ------
        DataError
            If the file cannot be read, its shape or IDs do not fit, it shares no sample with the table or has
            references that the table lacks, or if it holds distances that are missing, infinite, negative, above
            `upper`, not 0 on the diagonal or asymmetric. Of a matrix that stays in its file a sample is checked here,
            and each distance when it is read.
        """
        if self._matrix is None:
            found = read_distance_file(self.path, self.memory_limit)
            if isinstance(found, ValuesFile) and found.name in {*found.ids, *self.table_ids}:
                column = found.values.astype(np.float32)[:, None]
                found = MatrixFile(found.ids, [found.name], column)  # one sample, not a name of values
            self._matrix = self._values(found) if isinstance(found, ValuesFile) else self._distances(found)
            self._places = {name: i for i, name in enumerate(self._matrix.ids)}
            if isinstance(self._matrix, StripeMatrix):
                self._reference_places = {name: i for i, name in enumerate(self._matrix.reference_ids)}
        return self._matrix

    def extract_batch_distances(self, sample_ids: Sequence[str]) -> NDArray[np.float32]:
        """Distances among the samples of a batch.

        Parameters
        ----------
        sample_ids : sequence of str, length B

        Returns
        -------
        numpy.ndarray of shape (B, B), float32

        Raises
        ------
        DataError
            If a sample is not in the file, or this holds no distances between all pairs.
        """
        matrix = self.load_matrix()
        if not isinstance(matrix, DistanceMatrix):
            raise DataError(f"{self.path}: {_is_no_square(matrix)}; give the distances between all pairs of samples")
        return matrix.block(self._find(sample_ids, self._places, "sample"))

    def extract_batch_stripe_distances(
        self, sample_ids: Sequence[str], reference_ids: Sequence[str]
    ) -> NDArray[np.float32]:
        """Distances of the samples of a batch to reference samples.

        Parameters
        ----------
        sample_ids : sequence of str, length B
        reference_ids : sequence of str, length C
            Of the file's references; any samples where the file has the distances between all pairs.

        Returns
        -------
        numpy.ndarray of shape (B, C), float32

        Raises
        ------
        DataError
            If a sample or reference is not in the file, or this holds no distances.
        """
        matrix = self.load_matrix()
        if isinstance(matrix, SampleValues):
            raise DataError(f"{self.path}: {_is_no_square(matrix)}; give distances between samples")
        references = self._reference_places if isinstance(matrix, StripeMatrix) else self._places
        rows = self._find(sample_ids, self._places, "sample")
        return matrix.block(rows, self._find(reference_ids, references, "reference"))

    def extract_batch_values(self, sample_ids: Sequence[str]) -> NDArray[np.float64]:
        """Values (B,) of the samples of a batch, from a file of one value a sample."""
        matrix = self.load_matrix()
        if not isinstance(matrix, SampleValues):
            raise DataError(f"{self.path}: holds distances; give a file with one value a sample")
        return matrix.block(self._find(sample_ids, self._places, "sample"))

    def _find(self, ids: Sequence[str], places: dict[str, int], what: str) -> NDArray[np.int64]:
        lacking = [name for name in ids if name not in places]
        if lacking:
            raise DataError(
                f"{self.path}: {len(lacking)} of {len(ids)} {what}s are not in it, first {shown(lacking[0])}; "
                "leave them out"
            )
        return np.array([places[name] for name in ids], dtype=np.int64)

    def _values(self, found: ValuesFile) -> SampleValues:
        self._check_samples(found.ids)
        wrong = ~np.isfinite(found.values) | (found.values < 0)
        if wrong.any():
            worst = int(wrong.argmax())
            raise DataError(
                f"{self.path}: the value of sample {shown(found.ids[worst])} is {found.values[worst]:g}; values are "
                "finite and not negative, so recompute it or leave the sample out"
            )
        return SampleValues(found.ids, found.values, found.name)

    def _distances(self, found: MatrixFile) -> DistanceMatrix | StripeMatrix:
        rows, columns = found.matrix.shape
        if rows != columns and found.column_ids is None and self.reference_ids is None:
            raise DataError(
                f"{self.path}: is {rows} × {columns}, not a square matrix, and does not name its {columns} reference "
                "samples; give the distances between all pairs of samples, or --reference-ids with the references"
            )
        ids = self._row_ids(found.row_ids, rows)
        references = self._column_ids(found.column_ids, ids, columns, named=found.row_ids is not None)
        self._check_samples(ids)
        matrix = found.matrix
        if references is None or references == ids:
            return self._pairwise(ids, matrix)
        check_ids(references, "reference ID", self.path)
        if isinstance(matrix, np.ndarray) and set(references) == set(ids):
            place = {name: i for i, name in enumerate(references)}
            return self._pairwise(ids, np.ascontiguousarray(matrix[:, [place[name] for name in ids]]))
        self._check_references(references)
        return self._stripe(ids, references, matrix)

    def _row_ids(self, ids: list[str] | None, rows: int) -> list[str]:
        if ids is None:
            if rows != len(self.table_ids):
                raise DataError(
                    f"{self.path}: has {rows} rows but the table has {len(self.table_ids)} samples; a file without IDs "
                    "must be in the table's order, or give HDF5 or text with sample IDs"
                )
            return self.table_ids
        if len(ids) != rows:
            raise DataError(f"{self.path}: has {len(ids)} IDs in 'order' for {rows} rows; write the matrix again")
        return ids

    def _column_ids(self, ids: list[str] | None, row_ids: list[str], columns: int, named: bool) -> list[str] | None:
        """Those of the references; None if rows and columns are the same samples."""
        given = self.reference_ids
        if ids is not None:
            if len(ids) != columns:
                raise DataError(
                    f"{self.path}: has {len(ids)} reference IDs for {columns} columns; write the matrix again"
                )
            if given is not None and given != ids and ids != row_ids:
                raise DataError(
                    f"{self.path}: names its {columns} references itself, and otherwise than --reference-ids (it has "
                    f"{shown(ids[0])} where that has {shown(given[0]) if given else 'none'}); leave --reference-ids out"
                )
            return ids
        if given is None:
            return None
        if columns == len(given):
            return given
        if columns == len(row_ids) and named:
            return None  # all pairs, so also those of the references
        raise DataError(
            f"{self.path}: has {columns} columns but --reference-ids names {len(given)} samples; give the references "
            "of this file, in its order"
        )

    def _check_samples(self, ids: list[str]) -> None:
        check_ids(ids, "sample ID", self.path)
        if set(ids).isdisjoint(self.table_ids):
            way_out = near_matches(ids, self.table_ids) or "give the matrix of this table"
            raise DataError(
                f"{self.path}: none of its {len(ids)} samples is in the table (it has {shown(ids[0])}, the table "
                f"{shown(self.table_ids[0]) if self.table_ids else 'none'}); {way_out}"
            )

    def _check_references(self, references: list[str]) -> None:
        table = set(self.table_ids)
        lacking = [name for name in references if name not in table]
        if lacking:
            way_out = near_matches(lacking, self.table_ids) or (
                "add these samples to the table, or leave them out of the matrix"
            )
            raise DataError(
                f"{self.path}: {len(lacking)} of its {len(references)} references are not in the table: "
                f"{', '.join(map(shown, lacking[:3]))}{', …' if len(lacking) > 3 else ''}; {way_out}"
            )

    def _pairwise(self, ids: list[str], matrix: NDArray[np.float32] | LazyMatrix) -> DistanceMatrix:
        if isinstance(matrix, LazyMatrix):
            self._spot_check_pairs(ids, matrix)
            return DistanceMatrix(ids, LazyDistances(matrix, self._rules))
        _validate_and_symmetrise(matrix, ids, self._rules)
        return DistanceMatrix(ids, matrix)

    def _stripe(self, ids: list[str], references: list[str], matrix: NDArray[np.float32] | LazyMatrix) -> StripeMatrix:
        place = {name: i for i, name in enumerate(ids)}
        columns = np.array([i for i, name in enumerate(references) if name in place], dtype=np.int64)
        if isinstance(matrix, LazyMatrix):
            columns = _some(columns)
            self._spot_check(ids, references, matrix)
        # What the file knows of its references' distances to each other shows whether their IDs are in order.
        names = [references[column] for column in columns]
        rows = np.array([place[name] for name in names], dtype=np.int64)
        square = matrix.block(rows, columns) if isinstance(matrix, LazyMatrix) else matrix[rows[:, None], columns]
        self._rules.check(square, names, names)
        self._rules.check_diagonal(np.diagonal(square), names, ", and check the order of the reference IDs")
        self._rules.check_symmetry(square, square.T, names, names)
        if isinstance(matrix, LazyMatrix):
            return StripeMatrix(ids, references, LazyDistances(matrix, self._rules))
        for start in range(0, len(matrix), _TILE):
            self._rules.check(matrix[start : start + _TILE], ids[start : start + _TILE], references)
        self._rules.clean(matrix)
        matrix[rows, columns] = 0
        return StripeMatrix(ids, references, matrix)

    def _spot_check(self, ids: list[str], column_ids: list[str], matrix: LazyMatrix) -> None:
        """Check distances between some samples, and whole rows of a few, of a matrix that is too large for all."""
        samples, columns = _some(np.arange(len(ids))), _some(np.arange(len(column_ids)))
        for rows, across in ((samples, columns), (samples[:_CHECKED_ROWS], np.arange(len(column_ids)))):
            values = matrix.block(rows, across)
            self._rules.check(values, [ids[row] for row in rows], [column_ids[column] for column in across])

    def _spot_check_pairs(self, ids: list[str], matrix: LazyMatrix) -> None:
        self._spot_check(ids, ids, matrix)
        places = _some(np.arange(len(ids)))
        square, names = matrix.block(places, places), [ids[place] for place in places]
        self._rules.check_diagonal(np.diagonal(square), names)
        self._rules.check_symmetry(square, square.T, names, names)


def load_distances(path: Path, table_ids: Sequence[str], upper: float | None = 1.0) -> DistanceMatrix:
    """Read distances between all pairs of samples.

    Parameters
    ----------
    path, table_ids, upper
        See `UniFracLoader`.

    Returns
    -------
    DistanceMatrix
        Every sample of the file, in its order.

    Raises
    ------
    DataError
        See `UniFracLoader.load_matrix`; also if the file has reference samples or one value a sample.
    """
    matrix = UniFracLoader(path, table_ids, upper=upper).load_matrix()
    if not isinstance(matrix, DistanceMatrix):
        raise DataError(f"{path}: {_is_no_square(matrix)}; give the distances between all pairs of samples")
    return matrix


def load_reference_ids(path: Path) -> list[str]:
    """Read the IDs of reference samples, one a line.

    Blank lines, and those that begin with ``#``, are passed over.

    Raises
    ------
    DataError
        If the file is no text, or an ID is repeated or holds a tab.
    """
    what = "list of reference IDs"
    lines = [line for line in read_text(path, what).split("\n") if line.strip() and not line.startswith("#")]
    ids = strip_ids(lines, path)
    if not ids:
        raise DataError(f"{path}: has no ID; give a {what}, one a line")
    check_ids(ids, "reference ID", path)
    return ids


def _is_no_square(matrix: DistanceMatrix | StripeMatrix | SampleValues) -> str:
    if isinstance(matrix, SampleValues):
        return f"holds one value a sample ({shown(matrix.name)}), not a square matrix"
    assert isinstance(matrix, StripeMatrix)
    if len(matrix.ids) == len(matrix.reference_ids):
        pairs = zip(matrix.ids, matrix.reference_ids, strict=True)
        row, column = next((row, column) for row, column in pairs if row != column)
        return f"has row {shown(row)} where the header has {shown(column)}, so it is not a square matrix of one set"
    return f"is {len(matrix.ids)} × {len(matrix.reference_ids)}, not a square matrix"


def _some(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to a fixed number of places, drawn with a fixed seed, ascending."""
    if len(places) <= _CHECKED_SAMPLES:
        return places
    return np.sort(np.random.default_rng(0).choice(places, _CHECKED_SAMPLES, replace=False))


def _validate_and_symmetrise(values: NDArray[np.float32], ids: list[str], rules: _Rules) -> None:
    """Check (N, N) distances and clean them in place, a strip at a time so that no second matrix is needed."""
    for start in range(0, len(values), _TILE):
        stop = start + _TILE
        rules.check(values[start:stop], ids[start:stop], ids)  # (T, N)
    rules.check_diagonal(np.diagonal(values), ids)
    for start in range(0, len(values), _TILE):
        stop = start + _TILE
        rows, columns = values[start:stop, start:], values[start:, start:stop].T  # (T, N - start) each
        rules.check_symmetry(rows, columns, ids[start:stop], ids[start:])
        mean = rules.clean((rows + columns) * np.float32(0.5))
        values[start:stop, start:] = mean
        values[start:, start:stop] = mean.T
    np.fill_diagonal(values, 0)
