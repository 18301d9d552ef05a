"""The files of a study, aligned by sample ID.

Shapes: ``N`` samples that are used, ``A`` ASVs they hold, ``L`` tokens of the longest ASV.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from aam.config import DataConfig
from aam.data.biom_loader import FeatureTable, load_table
from aam.data.files import file_sha256
from aam.data.metadata import class_target, load_metadata, numeric_target, repeated_columns, require_column
from aam.data.sequences import load_fasta, merge_duplicate_sequences, resolve_sequences
from aam.data.splits import read_folds, read_splits
from aam.data.tokenizer import tokenize
from aam.data.unifrac_loader import DistanceMatrix, load_distances
from aam.errors import DataError

__all__ = ["Study", "StudyFiles", "align", "load_study", "read_files"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class StudyFiles:
    """What was read from each file, not yet aligned; None where a file was not given or could not be read."""

    table: FeatureTable | None
    sequences: list[str] | None  # of the table's features
    merged_features: int  # features that shared a sequence with another
    metadata: pd.DataFrame | None
    distances: DistanceMatrix | None


@dataclass(frozen=True)
class Study:
    """Samples that every given file knows, in the order of their IDs; their ASVs in the order of their sequences.

    The order of rows and columns in the files therefore changes nothing that is computed from a study.
    """

    sample_ids: list[str]
    table: sparse.csr_array  # (N, A), counts
    sequences: list[str]
    tokens: NDArray[np.uint8]  # (A, L)
    table_order: NDArray[np.int64]  # (A,): place of each ASV in the file
    file_order: NDArray[np.int64]  # (N,): place of each sample in the file
    distances: NDArray[np.float32] | None  # (N, N)
    metadata: pd.DataFrame | None  # N rows, text
    target: NDArray[Any] | None  # (N,): float64, NaN where unknown; or labels, None where unknown
    groups: NDArray[Any] | None  # (N,)
    samples_in_table: int
    left_out: dict[str, list[str]]  # reason: sample IDs
    warnings: list[str]
    checksums: dict[str, str] = field(default_factory=dict)  # option: sha256 of the file

    def __len__(self) -> int:
        return len(self.sample_ids)

    def rows_of(self, split: NDArray[Any], name: str) -> NDArray[np.int64]:
        """Rows (n,) whose entry of ``split`` (N,) is ``name``."""
        return np.flatnonzero(split == name)


def load_study(
    data: DataConfig, *, max_bp: int, classifier: bool = False, keep_unlabelled: bool = False, checksums: bool = True
) -> Study:
    """Read and align the files of a study.

    Parameters
    ----------
    data : DataConfig
    max_bp : int
        Bases after which sequences are cut.
    classifier : bool
        Whether the target holds labels.
    keep_unlabelled : bool
        Keep samples whose target is unknown.
    checksums : bool
        Whether to compute those of the files.

    Returns
    -------
    Study

    Raises
    ------
    DataError
        At the first problem.
    """
    study = align(read_files(data), data, max_bp=max_bp, classifier=classifier, keep_unlabelled=keep_unlabelled)
    if checksums:
        for name in ("table", "sequences", "unifrac_matrix", "metadata"):
            path = getattr(data, name)
            if path is not None:
                study.checksums[name] = file_sha256(path)
    return study


def read_files(data: DataConfig, problems: list[str] | None = None) -> StudyFiles:
    """Read each file by itself.

    Parameters
    ----------
    data : DataConfig
    problems : list of str, optional
        Collects problems, so that one does not hide the next.

    Raises
    ------
    DataError
        At the first problem, without ``problems``.
    """

    def attempt(read: Callable[..., Result], *arguments: Any) -> Result | None:
        try:
            return read(*arguments)
        except DataError as error:
            if problems is None:
                raise
            problems.append(str(error))
            return None

    table = attempt(load_table, data.table)
    fasta = attempt(load_fasta, data.sequences) if data.sequences is not None else None
    metadata = attempt(load_metadata, data.metadata) if data.metadata is not None else None
    sequences: list[str] | None = None
    distances: DistanceMatrix | None = None
    merged = 0
    if table is not None:
        if data.unifrac_matrix is not None:
            distances = attempt(load_distances, data.unifrac_matrix, table.sample_ids)
        if data.sequences is None or fasta is not None:
            sequences = attempt(resolve_sequences, table.feature_ids, fasta, data.table)
        if sequences is not None:
            table, sequences, merged = merge_duplicate_sequences(table, sequences)
    return StudyFiles(table, sequences, merged, metadata, distances)


def align(
    files: StudyFiles, data: DataConfig, *, max_bp: int, classifier: bool = False, keep_unlabelled: bool = False
) -> Study:
    """Keep the samples that every given file knows, and say why each other one is left out.

    Parameters
    ----------
    files : StudyFiles
        With a table and sequences.
    data, max_bp, classifier, keep_unlabelled
        See `load_study`.

    Raises
    ------
    DataError
        If no sample is left, or a column cannot serve.
    """
    assert files.table is not None
    assert files.sequences is not None
    ids = np.array(files.table.sample_ids, dtype=object)
    depth = files.table.counts.sum(axis=1)
    used = np.ones(len(ids), dtype=bool)
    left_out: dict[str, list[str]] = {}

    def leave_out(lacking: NDArray[np.bool_], reason: str) -> None:
        if (used & lacking).any():
            left_out[reason] = ids[used & lacking].tolist()
            used[lacking] = False

    leave_out(depth == 0, "no reads")
    if data.rarefy_depth is not None:
        _check_whole_counts(files.table, data.table)
        leave_out(depth < data.rarefy_depth, f"fewer reads than --rarefy-depth {data.rarefy_depth}")
    if files.distances is not None:
        leave_out(~np.isin(ids, np.array(files.distances.ids, dtype=object)), "not in the distance matrix")
    target: pd.Series | None = None
    if files.metadata is not None:
        assert data.metadata is not None
        lacking = ~np.isin(ids, files.metadata.index.to_numpy(dtype=object))
        if not keep_unlabelled:
            leave_out(lacking, "not in the metadata")
            if lacking.all():
                raise DataError(
                    f"{data.metadata}: names no sample of the table, which has {ids[0]!r} where it has "
                    f"{files.metadata.index[0]!r}; check that both name samples alike"
                )
        metadata = files.metadata.reindex(ids)
        if data.metadata_column is not None:
            column = require_column(files.metadata, data.metadata_column, data.metadata)
            target = _target(column.reindex(ids), classifier, data.metadata)
            if not keep_unlabelled:
                leave_out(target.isna().to_numpy(), f"no value of {data.metadata_column}")
                if target.isna().all():
                    raise DataError(
                        f"{data.metadata}: column {data.metadata_column!r} is empty for every sample of the table; "
                        "choose another --metadata-column"
                    )
        if data.group_column is not None:
            require_column(files.metadata, data.group_column, data.metadata)
            leave_out(class_target(metadata[data.group_column]).isna().to_numpy(), f"no value of {data.group_column}")
        if data.split_column is not None:
            require_column(files.metadata, data.split_column, data.metadata)
            leave_out(class_target(metadata[data.split_column]).isna().to_numpy(), f"no value of {data.split_column}")
    if data.splits is not None:
        named = (read_splits if data.folds is None else read_folds)(data.splits)
        leave_out(~np.isin(ids, np.array(list(named), dtype=object)), f"not in {data.splits}")
    if not used.any():
        raise DataError(f"{data.table}: no sample is left: {_reasons(left_out)}")

    samples = np.flatnonzero(used)
    samples = samples[np.argsort(ids[samples])]
    counts = files.table.counts[samples]
    present = np.flatnonzero(counts.sum(axis=0) > 0)
    asvs = present[np.argsort(np.array(files.sequences, dtype=object)[present])]
    counts = sparse.csr_array(counts[:, asvs])
    counts.sort_indices()
    sequences = [files.sequences[a] for a in asvs]
    distances = None
    if files.distances is not None:
        place = {name: i for i, name in enumerate(files.distances.ids)}
        distances = files.distances.block([place[name] for name in ids[samples]])
    frame = None if files.metadata is None else files.metadata.reindex(ids[samples])
    groups = None
    if frame is not None and data.group_column is not None:
        groups = frame[data.group_column].to_numpy(dtype=object)
    return Study(
        sample_ids=ids[samples].tolist(),
        table=counts,
        sequences=sequences,
        tokens=tokenize(sequences, max_bp),
        table_order=asvs.astype(np.int64),
        file_order=samples.astype(np.int64),
        distances=distances,
        metadata=frame,
        target=None if target is None else target.to_numpy()[samples],
        groups=groups,
        samples_in_table=len(ids),
        left_out=left_out,
        # What is said of the split means nothing where samples are only predicted.
        warnings=_warnings(files, data, sequences, max_bp, None if keep_unlabelled else frame),
    )


def _target(column: pd.Series, classifier: bool, path: Path) -> pd.Series:
    if classifier:
        return class_target(column).astype(object)
    return pd.Series(numeric_target(column, str(column.name), path), index=column.index)


def _check_whole_counts(table: FeatureTable, path: Path) -> None:
    broken = table.counts.data % 1 != 0
    if broken.any():
        raise DataError(
            f"{path}: --rarefy-depth draws whole reads, but the table holds {table.counts.data[broken][0]:g}; "
            "give raw counts, or leave --rarefy-depth out"
        )


def _reasons(left_out: dict[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {reason}" for reason, names in left_out.items())


def _warnings(
    files: StudyFiles, data: DataConfig, sequences: list[str], max_bp: int, metadata: pd.DataFrame | None
) -> list[str]:
    found = []
    if files.merged_features:
        found.append(f"{files.merged_features} features share their sequence with another and were merged into it")
    cut = sum(len(sequence) > max_bp for sequence in sequences)
    if cut:
        found.append(f"{cut} of {len(sequences)} sequences are longer than --max-bp {max_bp} and were cut")
    if metadata is not None and data.group_column is None:
        repeated = repeated_columns(metadata, data.metadata_column)
        if repeated:
            found.append(
                f"column {repeated[0]!r} repeats: samples of one value may fall on both sides of the split and make "
                f"the result look better than it is; consider --group-column {repeated[0]}"
            )
    return found
