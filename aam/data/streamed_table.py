"""Feature tables that stay in their file: BIOM 2.1, read by sample as batches need them.

Shapes: ``N`` samples, ``A`` features, ``n`` samples asked for, ``nnz`` entries.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aam.data.biom_loader import read_sample_metadata
from aam.data.counts import SampleRows
from aam.data.files import (
    HDF5_MAGIC,
    check_ids,
    has_hdf5,
    hdf5_dataset,
    open_hdf5,
    read_hdf5,
    read_hdf5_ids,
    read_head,
    reading,
    require_file,
    shown,
)
from aam.errors import DataError

__all__ = ["StreamedTable"]

_WHAT = "feature table"
_MATRIX = "sample/matrix"
_SCAN = 2**20  # entries read at a time where all are
_SAMPLES_OF_A_CHUNK = 4  # above which a table is copied
_ENTRY = np.dtype([("asv", np.int64), ("count", np.float64)])  # of the copy


class StreamedTable:
    """A BIOM 2.1 table of which memory holds the IDs and where each sample stands, but no counts.

    The file is opened once by each process that reads it: HDF5 handles do not survive a fork. Where a chunk of the file
    holds many samples, reading one unpacks them all, the more the larger the table is: such a table is copied,
    unpacked, to a temporary file without a name, where there is room for it.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    sample_ids : list of str, length N
    feature_ids : list of str, length A
    depth : ndarray (N,)
        Reads of every sample.
    fraction : float or None
        The first count that is not whole.
    extent : tuple of two floats
        The smallest and the largest count that is not zero.
    sample_metadata : pandas.DataFrame of N rows, optional
        What the file itself says of its samples.

    Raises
    ------
    DataError
        If the file cannot be read by sample, or is damaged; every entry is looked at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = require_file(path, _WHAT)
        if not read_head(path).startswith(HDF5_MAGIC):
            raise DataError(
                f"{path}: --streaming reads BIOM 2.1 (HDF5) alone; convert it with `biom convert --to-hdf5`, or get it "
                "out of a QIIME 2 artifact with `qiime tools export`"
            )
        self._handle: tuple[int, h5py.File] | None = None
        with open_hdf5(path, _WHAT) as file:
            self.feature_ids = read_hdf5_ids(file, "observation/ids", path, what=_WHAT)
            self.sample_ids = read_hdf5_ids(file, "sample/ids", path, what=_WHAT)
            for ids, what in ((self.sample_ids, "sample"), (self.feature_ids, "feature")):
                if not ids:
                    raise DataError(f"{path}: the table has no {what}s; export it again or loosen its filters")
                check_ids(ids, f"{what} ID", path)
            if not has_hdf5(file, _MATRIX, path):
                raise DataError(
                    f"{path}: has no {_MATRIX!r}, which --streaming reads samples from; write the table again with "
                    "biom-format, or leave --streaming out"
                )
            indptr = read_hdf5(file, f"{_MATRIX}/indptr", path, what=_WHAT, kinds="iu", ndim=1)
            self._indptr = indptr.astype(np.int64)
            self._check_shapes(file)
            self._copy = self._begin_copy(file)
            self.depth, self.fraction, self.extent = self._scan(file)
            self.sample_metadata = read_sample_metadata(file, self.sample_ids, path)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of features, (N, A)."""
        return len(self.sample_ids), len(self.feature_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_copy": None}

    def rows(self, samples: NDArray[np.int64]) -> SampleRows:
        """Samples in the order asked for; see `aam.data.counts.Counts`.

        Raises
        ------
        DataError
            If the file has changed or cannot be read any more.
        """
        starts, stops = self._indptr[samples], self._indptr[samples + 1]
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        if self._copy is not None:
            with reading(self.path, f"an unpacked copy of the {_WHAT}"):
                entries = self._copy.entries(starts, stops)
            rows = SampleRows(indptr, entries["asv"].copy(), entries["count"].copy())
            return rows.keep(rows.counts != 0)
        file = self._file()
        # Neighbours in the file are read at once.
        begins = np.flatnonzero(np.concatenate([[True], starts[1:] != stops[:-1]]))
        ends = np.concatenate([begins[1:], [len(samples)]]) - 1
        with reading(self.path, f"an HDF5 {_WHAT}"):
            indices, data = file[f"{_MATRIX}/indices"], file[f"{_MATRIX}/data"]
            spans = [slice(starts[a], stops[b]) for a, b in zip(begins, ends, strict=True)]
            asvs = np.concatenate([indices[span] for span in spans]).astype(np.int64)
            counts = np.concatenate([data[span] for span in spans]).astype(np.float64)
        rows = SampleRows(indptr, asvs, counts)
        order = np.lexsort((asvs, rows.samples))  # a file may list the features of a sample in any order
        rows = SampleRows(indptr, asvs[order], counts[order])
        return rows.keep(rows.counts != 0)

    def _file(self) -> h5py.File:
        if self._handle is None or self._handle[0] != os.getpid():
            with reading(self.path, f"an HDF5 {_WHAT}"):
                self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1]

    def _begin_copy(self, file: h5py.File) -> _Copy | None:
        """An empty copy, where it is worth its room and has it."""
        entries = int(self._indptr[-1])
        with reading(self.path, f"an HDF5 {_WHAT}"):
            chunks = file[f"{_MATRIX}/data"].chunks
        if chunks is None or chunks[0] * len(self.sample_ids) <= _SAMPLES_OF_A_CHUNK * entries:
            return None
        try:
            room = shutil.disk_usage(tempfile.gettempdir()).free
            return _Copy() if hasattr(os, "pread") and room > 2 * entries * _ENTRY.itemsize else None
        except OSError:
            return None

    def _continue_copy(self, sample: NDArray[np.int64], indices: NDArray[np.int64], data: NDArray[np.float64]) -> None:
        """Add the next entries, those of each sample in rising order."""
        if self._copy is not None:
            entries = np.empty(len(data), _ENTRY)
            order = np.lexsort((indices, sample))
            entries["asv"], entries["count"] = indices[order], data[order]
            try:
                self._copy.append(entries)
            except OSError:  # no room after all
                self._copy = None

    def _check_shapes(self, file: h5py.File) -> None:
        damaged = f"{self.path}: {_MATRIX} is damaged (%s); export the table again"
        indptr = self._indptr
        indices = hdf5_dataset(file, f"{_MATRIX}/indices", self.path, what=_WHAT, kinds="iu", ndim=1)
        data = hdf5_dataset(file, f"{_MATRIX}/data", self.path, what=_WHAT, kinds="iuf", ndim=1)
        if len(indptr) != len(self.sample_ids) + 1:
            raise DataError(damaged % f"indptr has {len(indptr)} values for {len(self.sample_ids)} IDs")
        if len(indices) != len(data):
            raise DataError(damaged % f"{len(indices)} indices for {len(data)} values")
        if indptr[0] != 0 or indptr[-1] != len(data) or np.any(np.diff(indptr) < 0):
            raise DataError(damaged % f"indptr does not rise from 0 to {len(data)}")

    def _scan(self, file: h5py.File) -> tuple[NDArray[np.float64], float | None, tuple[float, float]]:
        """Look at every entry once, some samples at a time."""
        depth = np.zeros(len(self.sample_ids))
        fraction: float | None = None
        extent = (np.inf, 0.0)
        features = len(self.feature_ids)
        starts = [0]
        while starts[-1] < len(self.sample_ids):
            fits = int(np.searchsorted(self._indptr, self._indptr[starts[-1]] + _SCAN, side="right")) - 1
            starts.append(min(max(fits, starts[-1] + 1), len(self.sample_ids)))
        for begin, end in pairwise(starts):
            span = slice(self._indptr[begin], self._indptr[end])
            with reading(self.path, f"an HDF5 {_WHAT}"):
                indices = file[f"{_MATRIX}/indices"][span].astype(np.int64)
                data = file[f"{_MATRIX}/data"][span].astype(np.float64)
            sample = np.repeat(np.arange(begin, end), np.diff(self._indptr[begin : end + 1]))
            if len(indices) and (indices.min() < 0 or indices.max() >= features):
                raise DataError(
                    f"{self.path}: {_MATRIX} is damaged (index {indices.max()} where there are {features} IDs); "
                    "export the table again"
                )
            wrong = ~(np.isfinite(data) & (data >= 0))
            if wrong.any():
                entry = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{self.path}: the count {data[entry]} of feature {shown(self.feature_ids[indices[entry]])} in "
                    f"sample {shown(self.sample_ids[sample[entry]])} is negative or not finite; give counts of reads"
                )
            keys = np.sort(sample * features + indices)
            repeated = np.flatnonzero(np.diff(keys) == 0)
            if len(repeated):
                name = self.sample_ids[keys[repeated[0]] // features]
                raise DataError(
                    f"{self.path}: sample {shown(name)} lists one feature twice; the table is damaged, export it again"
                )
            depth += np.bincount(sample, weights=data, minlength=len(depth))
            positive = data[data > 0]
            if len(positive):
                extent = (min(extent[0], float(positive.min())), max(extent[1], float(positive.max())))
            self._continue_copy(sample, indices, data)
            broken = data % 1 != 0
            if fraction is None and broken.any():
                fraction = float(data[broken][0])
        if not depth.any():
            raise DataError(f"{self.path}: every count is zero; export the table again or loosen its filters")
        return depth, fraction, extent


class _Copy:
    """Entries in a temporary file without a name, which is gone with the last process that holds it."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)

    def append(self, entries: NDArray[Any]) -> None:
        rest = memoryview(entries.view(np.uint8).data)
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def entries(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[Any]:
        """Those from each start to its stop; read by position, as processes share the place that the handle is at."""
        size = _ENTRY.itemsize
        spans = zip(starts.tolist(), stops.tolist(), strict=True)
        parts = [os.pread(self._handle, (stop - start) * size, start * size) for start, stop in spans]
        return np.frombuffer(b"".join(parts), _ENTRY, int((stops - starts).sum()))
