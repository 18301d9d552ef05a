"""The files of a study, aligned by sample ID.

Shapes: ``N`` samples that are used, ``A`` ASVs they hold, ``L`` tokens of the longest ASV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.config import DataConfig
from aam.data.biom_loader import FeatureTable, check_whole_counts, load_table
from aam.data.cache import Cache
from aam.data.counts import Counts, JoinedCounts, MemoryCounts, TablePart, present_asvs
from aam.data.covariates import read_covariates
from aam.data.draws import MOST_READS
from aam.data.files import file_sha256, near_matches, shown, written_differently
from aam.data.labels import FilePairs, LabelFiles, Labels, MatrixPart, PairLabels, StripePairs, ValueLabels
from aam.data.metadata import (
    class_target,
    load_metadata,
    numbers_of,
    numeric_target,
    repeated_columns,
    require_column,
    spelled_alike,
)
from aam.data.sequences import count_ambiguous, load_sequences, resolve_sequences
from aam.data.splits import read_folds, read_splits
from aam.data.streamed_table import StreamedTable
from aam.data.tokenizer import PAD, token_rows
from aam.data.unifrac_loader import DistanceMatrix, SampleValues, StripeMatrix, UniFracLoader, load_reference_ids
from aam.errors import DataError, named

__all__ = [
    "STUDY",
    "LabelFile",
    "Study",
    "StudyFiles",
    "TableFile",
    "align",
    "load_study",
    "read_files",
    "study_names",
    "unknown_samples",
]

Result = TypeVar("Result")
LabelFile = DistanceMatrix | StripeMatrix | SampleValues

_LARGEST_TARGET = 1e30
STUDY = "study"  # the group column that stands for the table a sample is from
_COUNTS = (1e-30, 1e30)  # what single precision holds, with room for sums


class TableFile(NamedTuple):
    """A feature table, and the sequences of its features where these are known."""

    path: Path
    table: FeatureTable | StreamedTable
    sequences: list[str] | None

    @property
    def counts(self) -> Counts:
        """Its samples by row."""
        return self.table if isinstance(self.table, StreamedTable) else MemoryCounts(self.table.counts)

    @property
    def depth(self) -> NDArray[np.float64]:
        """Reads of its samples."""
        if isinstance(self.table, StreamedTable):
            return self.table.depth
        return np.asarray(self.table.counts.sum(axis=1), dtype=np.float64)

    @property
    def relative(self) -> bool:
        """Whether it holds something else than counts of reads."""
        if isinstance(self.table, StreamedTable):
            return self.table.fraction is not None
        return self.table.kind != "counts"

    @property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest count that is not zero."""
        if isinstance(self.table, StreamedTable):
            return self.table.extent
        return float(self.table.counts.data.min()), float(self.table.counts.data.max())


@dataclass(frozen=True)
class StudyFiles:
    """What was read from each file, not yet aligned; None where a file was not given or could not be read."""

    tables: list[TableFile | None]
    metadata: pd.DataFrame | None
    labels: dict[str, list[LabelFile | None]]  # by base target; of every table one, or one of all
    notes: list[str] = field(default_factory=list)  # what was put right in reading

    @property
    def samples(self) -> int:
        """Samples of all tables."""
        return len({name for file in self.tables if file is not None for name in file.table.sample_ids})

    @property
    def labelled(self) -> list[str]:
        """Samples of all matrices."""
        return [name for found in self.labels.values() for labels in found if labels is not None for name in labels.ids]

    @property
    def complete(self) -> bool:
        """Whether every table was read and its sequences are known."""
        return all(file is not None and file.sequences is not None for file in self.tables)


@dataclass(frozen=True)
class Study:
    """Samples that every given file knows, in the order of their IDs; their ASVs in the order of their sequences.

    The order of rows and columns in the files therefore changes nothing that is computed from a study.
    """

    sample_ids: list[str]
    counts: Counts  # (N, A)
    sequences: list[str]
    tokens: NDArray[np.uint8]  # (A, L)
    table_order: NDArray[np.int64]  # (A,): place of each ASV in the file
    file_order: NDArray[np.int64]  # (N,): place of each sample in the file
    labels: dict[str, Labels]  # by base target
    feature_ids: list[str]  # what the first table to have an ASV calls it
    studies: NDArray[np.int64] | None  # (N,), where several are kept apart
    study_names: tuple[str, ...]
    metadata: pd.DataFrame | None  # N rows, text
    target: NDArray[Any] | None  # (N,), of several columns (N, T): float64 or labels, NaN where unknown
    groups: NDArray[Any] | None  # (N,)
    samples_in_table: int
    left_out: dict[str, list[str]]  # reason: sample IDs
    unknown: dict[str, int]  # metadata or distance matrix: how many of its samples no table has
    warnings: list[str]
    checksums: dict[str, str] = field(default_factory=dict)  # option: sha256 of the file
    covariates: pd.DataFrame | None = None  # N rows: a column each, labels or float64, NaN where unknown

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def padded(self) -> bool:
        """Whether sequences differ in length."""
        return bool((self.tokens[:, -1] == PAD).any())

    def rows_of(self, split: NDArray[Any], name: str) -> NDArray[np.int64]:
        """Rows (n,) whose entry of ``split`` (N,) is ``name``."""
        return np.flatnonzero(split == name)


def unknown_samples(study: Study) -> list[str]:
    """A sentence for each file that names samples which no table has."""
    return [f"{number} samples of the {where} are not in the table" for where, number in study.unknown.items()]


def load_study(
    data: DataConfig,
    labels: Mapping[str, LabelFiles] | None = None,
    *,
    max_bp: int,
    classifier: bool = False,
    keep_unlabelled: bool = False,
    checksums: bool = True,
) -> Study:
    """Read and align the files of a study.

    Parameters
    ----------
    data : DataConfig
    labels : mapping of str to LabelFiles, optional
        By base target.
    max_bp : int
        Bases after which sequences are cut.
    classifier : bool
        Whether the target holds labels.
    keep_unlabelled : bool
        Keep samples whose target is unknown, or is no number; a covariate of which nothing is known at all is none to
        refuse then.
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
    study = align(read_files(data, labels), data, max_bp=max_bp, classifier=classifier, keep_unlabelled=keep_unlabelled)
    if checksums:
        inputs = {name: getattr(data, name) for name in ("table", "sequences", "metadata")}
        inputs["unifrac_matrix"] = tuple(path for files in (labels or {}).values() for path in files.paths)
        inputs |= {name: (path,) for name in ("taxonomy", "reference_ids") if (path := getattr(data, name)) is not None}
        for name, paths in inputs.items():
            for number, path in enumerate(paths, 1):
                study.checksums[name if len(paths) == 1 else f"{name} {number}"] = file_sha256(path)
    return study


def read_files(
    data: DataConfig, labels: Mapping[str, LabelFiles] | None = None, problems: list[str] | None = None
) -> StudyFiles:
    """Read each file by itself.

    Parameters
    ----------
    data : DataConfig
    labels : mapping of str to LabelFiles, optional
        By base target.
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

    read_table: Callable[[Path], FeatureTable | StreamedTable] = StreamedTable if data.streaming else load_table
    read = [attempt(read_table, path) for path in data.table]
    known = attempt(_load_sequences, data.sequences) if data.sequences else None
    notes: list[str] = []
    metadata = attempt(load_metadata, data.metadata, notes) if data.metadata else _embedded_metadata(read)
    references = None if data.reference_ids is None else attempt(load_reference_ids, data.reference_ids)
    tables: list[TableFile | None] = []
    for path, table in zip(data.table, read, strict=True):
        sequences = None
        if table is not None and (known is not None or not data.sequences):
            sequences = attempt(resolve_sequences, table.feature_ids, known, path, table.sample_ids)
        tables.append(None if table is None else TableFile(path, table, sequences))
    found: dict[str, list[LabelFile | None]] = {}
    for name, files in (labels or {}).items():
        if len(files.paths) not in (1, len(data.table)):
            attempt(_refuse_number, files, len(data.table))
            found[name] = [None]
            continue
        found[name] = []
        for number, path in enumerate(files.paths):
            of_it = read if len(files.paths) == 1 else read[number : number + 1]
            ids = dict.fromkeys(sample for table in of_it if table is not None for sample in table.sample_ids)
            matrix = attempt(_load_labels, name, path, files, list(ids), references) if None not in of_it else None
            found[name].append(matrix)
    return StudyFiles(tables, metadata, found, notes)


def _refuse_number(files: LabelFiles, tables: int) -> None:
    raise DataError(
        f"{named(files.paths)}: {len(files.paths)} files of {files.title} for {tables} tables; "
        "give one for all, or one for each, in their order"
    )


def _load_labels(
    name: str, path: Path, files: LabelFiles, table_ids: list[str], references: list[str] | None
) -> LabelFile:
    loader = UniFracLoader(path, table_ids, upper=files.upper, reference_ids=references, metric_name=files.title)
    found = loader.load_matrix()
    if isinstance(found, SampleValues) != (files.kind == "value"):
        holds = "one value a sample" if isinstance(found, SampleValues) else "distances between samples"
        wants = "one value a sample" if files.kind == "value" else "distances"
        raise DataError(f"{path}: holds {holds}, and --base-target {name} is {wants}; make them agree")
    return found


def _embedded_metadata(tables: Sequence[FeatureTable | StreamedTable | None]) -> pd.DataFrame | None:
    """What tables themselves say of their samples; the first table to name a sample is believed."""
    read = [table for table in tables if table is not None]
    known = [table.sample_metadata for table in read if table.sample_metadata is not None]
    if not known:
        return None
    joined, *others = spelled_alike(known)
    for frame in others:
        joined = joined.combine_first(frame)
    # A table that says nothing of its samples is used all the same, but for what needs a column.
    return joined.reindex(list(dict.fromkeys(name for table in read for name in table.sample_ids)))


def _load_sequences(paths: Sequence[Path]) -> dict[str, str]:
    """The sequences of several files, which must agree where they share an ID."""
    found: dict[str, str] = {}
    for path in paths:
        for name, sequence in load_sequences(path).items():
            if found.setdefault(name, sequence) != sequence:
                earlier = named(paths[: paths.index(path)])
                raise DataError(
                    f"{path}: the sequence of {shown(name)} is another one than in {earlier}; "
                    "give the representative sequences of these very tables"
                )
    return found


def align(
    files: StudyFiles, data: DataConfig, *, max_bp: int, classifier: bool = False, keep_unlabelled: bool = False
) -> Study:
    """Keep the samples that every given file knows, and say why each other one is left out.

    Parameters
    ----------
    files : StudyFiles
        Complete.
    data, max_bp, classifier, keep_unlabelled
        See `load_study`.

    Raises
    ------
    DataError
        If no sample is left, or a column cannot serve.
    """
    assert files.complete
    joined = _Joined([file for file in files.tables if file is not None])
    ids, depth = joined.sample_ids, joined.depth
    used = np.ones(len(ids), dtype=bool)
    left_out: dict[str, list[str]] = {}

    def leave_out(lacking: NDArray[np.bool_], reason: str) -> None:
        if (used & lacking).any():
            left_out[reason] = ids[used & lacking].tolist()
            used[lacking] = False

    for table in joined.tables:
        _check_extent(table)
    kept_apart = any(len(found) > 1 for found in files.labels.values())
    _check_shared(joined, data, kept_apart=kept_apart or _groups_by_table(data, files.metadata))
    leave_out(depth == 0, "no reads")
    if data.rarefy_depth is not None:
        for table in joined.tables:
            _check_whole_counts(table)
        too_deep = np.flatnonzero(depth >= MOST_READS)
        if len(too_deep):
            reads = f"{depth[too_deep[0]]:g} reads, and --rarefy-depth draws from fewer than {MOST_READS:g}"
            raise DataError(f"{named(data.table)}: sample {ids[too_deep[0]]!r} has {reads}; leave the sample out")
        leave_out(depth < data.rarefy_depth, f"fewer reads than --rarefy-depth {data.rarefy_depth}")
    studies = joined.studies if kept_apart else None
    known = {name: found for name, found in files.labels.items() if None not in found}
    for name, found in known.items():
        leave_out(_places(found, ids, studies).max(axis=0) < 0, _lacking(name, found))
    target: pd.DataFrame | None = None
    unread: list[str] = []
    covariates: pd.DataFrame | None = None
    columns = data.categorical_columns, data.numeric_columns
    if files.metadata is None:
        _refuse_columns(data, may_lack=keep_unlabelled)
        if data.covariates:
            covariates = read_covariates(pd.DataFrame(index=ids), *columns, Path(named(data.table)), may_lack=True)
    else:
        source = Path(named(data.metadata or data.table))
        lacking = ~pd.Index(ids).isin(files.metadata.index)
        if not keep_unlabelled:
            leave_out(lacking, "not in the metadata")
            if lacking.all():
                hint = near_matches(ids.tolist(), list(files.metadata.index)) or "check that both name samples alike"
                raise DataError(
                    f"{source}: names no sample of the table, which has {ids[0]!r} where it has "
                    f"{files.metadata.index[0]!r}; {hint}"
                )
        metadata = files.metadata.reindex(ids)
        if data.columns:
            values = {name: require_column(files.metadata, name, source).reindex(ids) for name in data.columns}
            told = unread if keep_unlabelled else None
            target = pd.DataFrame({name: _target(values[name], classifier, source, told) for name in data.columns})
            if not keep_unlabelled:
                leave_out(target.isna().all(axis=1).to_numpy(), f"no value of {' or '.join(data.columns)}")
                for name in data.columns:
                    if target[name].isna().all():
                        raise DataError(
                            f"{source}: column {name!r} is empty for every sample of the table; "
                            "choose another --metadata-column"
                        )
        if data.covariates:
            covariates = read_covariates(metadata, *columns, source, may_lack=keep_unlabelled)
        if data.group_column is not None and not _groups_by_table(data, files.metadata):
            require_column(files.metadata, data.group_column, source)
            leave_out(class_target(metadata[data.group_column]).isna().to_numpy(), f"no value of {data.group_column}")
        if data.split_column is not None:
            require_column(files.metadata, data.split_column, source)
            leave_out(class_target(metadata[data.split_column]).isna().to_numpy(), f"no value of {data.split_column}")
    if data.splits is not None:
        listed = (read_splits if data.folds is None else read_folds)(data.splits)
        leave_out(~pd.Index(ids).isin(list(listed)), f"not in {data.splits}")
    if not used.any():
        raise DataError(f"{named(data.table)}: no sample is left: {_reasons(left_out)}")

    samples = np.flatnonzero(used)
    samples = samples[np.argsort(ids[samples])]
    counts, asvs = joined.select(samples, in_memory=not data.streaming)
    sequences = [joined.sequences[a] for a in asvs]
    cache = None if data.cache_dir is None else Cache(data.cache_dir, data.cache_size)
    of_study = None if studies is None else studies[samples]
    labels = {name: _labels(found, ids[samples], of_study, named(data.table)) for name, found in known.items()}
    frame = None if files.metadata is None else files.metadata.reindex(ids[samples])
    groups = None
    if _groups_by_table(data, files.metadata):
        groups = np.array(study_names(data.table), dtype=object)[joined.studies[samples]]
    elif frame is not None and data.group_column is not None:
        groups = frame[data.group_column].to_numpy(dtype=object)
    return Study(
        sample_ids=ids[samples].tolist(),
        counts=counts,
        sequences=sequences,
        tokens=token_rows(sequences, max_bp, cache),
        table_order=asvs,
        file_order=samples.astype(np.int64),
        labels=labels,
        feature_ids=[joined.feature_ids[a] for a in asvs],
        studies=of_study,
        study_names=() if studies is None else study_names(data.table),
        metadata=frame,
        target=None if target is None else (target if len(data.columns) > 1 else target.iloc[:, 0]).to_numpy()[samples],
        groups=groups,
        samples_in_table=len(ids),
        left_out=left_out,
        unknown=_unknown(files, ids),
        # What is said of the split means nothing where samples are only predicted.
        warnings=files.notes
        + unread
        + _near_misses(files, data, ids)
        + _warnings(joined, data, sequences, max_bp, classifier, None if keep_unlabelled else frame),
        covariates=None if covariates is None else covariates.iloc[samples],
    )


class _Joined:
    """Tables as one: every sample and every distinct sequence of any, in the order of their first appearance."""

    def __init__(self, tables: Sequence[TableFile]) -> None:
        self.tables = tables
        place: dict[str, int] = {}
        for table in tables:
            for name in table.table.sample_ids:
                place.setdefault(name, len(place))
        self.sample_ids = np.array(list(place), dtype=object)
        self.rows = np.full((len(tables), len(place)), -1)  # row in each table
        self.depth = np.zeros(len(place))
        for number, table in enumerate(tables):
            places = [place[name] for name in table.table.sample_ids]
            self.rows[number, places] = np.arange(len(places))
            self.depth[places] += table.depth
        of_sequence: dict[str, int] = {}
        self.columns = [
            np.array([of_sequence.setdefault(sequence, len(of_sequence)) for sequence in table.sequences or ()])
            for table in tables
        ]
        self.sequences = list(of_sequence)
        of_feature: dict[int, str] = {}
        for table, column in zip(tables, self.columns, strict=True):
            for place_, name in zip(column.tolist(), table.table.feature_ids, strict=True):
                of_feature.setdefault(place_, name)
        self.feature_ids = [of_feature[place_] for place_ in range(len(self.sequences))]

    @property
    def studies(self) -> NDArray[np.int64]:
        """The first table that has each sample, (N,)."""
        return np.asarray((self.rows >= 0).argmax(axis=0))

    @property
    def merged(self) -> int:
        """Features that share their sequence with another of their table."""
        return sum(len(column) - len(np.unique(column)) for column in self.columns)

    def select(self, samples: NDArray[np.int64], *, in_memory: bool) -> tuple[Counts, NDArray[np.int64]]:
        """Counts of samples over the ASVs that they have, these in the order of their sequences; and the ASVs."""
        everything = self._over(samples, np.arange(len(self.sequences)))
        present = np.flatnonzero(present_asvs(everything, np.arange(len(samples))))
        asvs = present[np.argsort(np.array(self.sequences, dtype=object)[present])]
        goes = np.full(len(self.sequences), -1)
        goes[asvs] = np.arange(len(asvs))
        counts = self._over(samples, goes)
        return (counts.in_memory() if in_memory else counts), asvs

    def _over(self, samples: NDArray[np.int64], goes: NDArray[np.int64]) -> JoinedCounts:
        parts = [
            TablePart(table.counts, rows[samples], goes[column])
            for table, rows, column in zip(self.tables, self.rows, self.columns, strict=True)
        ]
        return JoinedCounts(parts, (len(samples), int(goes.max()) + 1))


def _groups_by_table(data: DataConfig, metadata: pd.DataFrame | None) -> bool:
    """Whether ``--group-column study`` means the table that a sample is from."""
    known = metadata is not None and STUDY in metadata.columns
    return data.group_column == STUDY and len(data.table) > 1 and not known


def study_names(tables: Sequence[Path]) -> tuple[str, ...]:
    """What studies are called: by their tables' names, or where these are the same, by their folders'.

    Examples
    --------
    >>> study_names([Path("a/gut.biom"), Path("b/skin.biom")]), study_names([Path("a/t.biom"), Path("b/t.biom")])
    (('gut', 'skin'), ('a', 'b'))
    """
    for names in ([path.name.split(".")[0] for path in tables], [path.absolute().parent.name for path in tables]):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"study {number}" for number in range(1, len(tables) + 1))


def _places(
    found: Sequence[LabelFile | None], ids: NDArray[Any], studies: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Place of each sample (N,) in each file (files, N); -1 where it lacks it, or is of another study."""
    places = np.full((len(found), len(ids)), -1)
    for number, labels in enumerate(found):
        if labels is not None:
            place = {name: i for i, name in enumerate(labels.ids)}
            places[number] = [place.get(name, -1) for name in ids]
            if studies is not None and len(found) > 1:
                places[number, studies != number] = -1
    return places


def _lacking(name: str, found: Sequence[LabelFile | None]) -> str:
    if any(isinstance(labels, SampleValues) for labels in found):
        return f"no value of {name}"
    return "not in the distance matrix" if name == "unifrac" else f"not in the matrix of {name}"


def _labels(
    found: Sequence[LabelFile | None], ids: NDArray[Any], studies: NDArray[np.int64] | None, table: str
) -> Labels:
    """The labels of samples (N,) that every file has."""
    places = _places(found, ids, studies)
    first = found[0]
    if isinstance(first, SampleValues):
        values = np.full(len(ids), np.nan, dtype=np.float32)
        for labels, place in zip(found, places, strict=True):
            assert isinstance(labels, SampleValues)
            values[place >= 0] = labels.values[place[place >= 0]]
        return ValueLabels(values)
    if isinstance(first, StripeMatrix):
        if len(found) > 1:
            raise DataError(f"{table}: of several studies, distances to references cannot be learnt; give all pairs")
        column = {name: i for i, name in enumerate(first.reference_ids)}
        references = np.array([row for row, name in enumerate(ids) if name in column], dtype=np.int64)
        if not len(references):
            raise DataError(f"{table}: none of the {len(column)} reference samples is among those that are used")
        return StripePairs(first, places[0], references, np.array([column[ids[row]] for row in references]))
    parts = []
    for labels, place in zip(found, places, strict=True):
        if not isinstance(labels, DistanceMatrix):
            raise DataError(f"{table}: of several studies, distances to references cannot be learnt; give all pairs")
        parts.append(MatrixPart(labels, place))
    if len(parts) == 1 and parts[0].matrix.in_memory:
        return PairLabels(parts[0].matrix.block(parts[0].place))
    return FilePairs(parts)


def _refuse_columns(data: DataConfig, *, may_lack: bool) -> None:
    """Refuse options that name a column where there are no metadata, but covariates that may be lacking."""
    named_by: dict[str, str | None] = {
        "metadata_column": next(iter(data.columns), None),
        "group_column": None if _groups_by_table(data, None) else data.group_column,
        "split_column": data.split_column,
    }
    if not may_lack:
        for name in ("categorical_columns", "numeric_columns"):
            named_by[name] = next(iter(getattr(data, name)), None)
    for name, column in named_by.items():
        if column is not None:
            option = "--" + name.replace("_", "-")
            raise DataError(
                f"{named(data.table)}: holds no sample metadata, which {option} {column!r} needs; add --metadata"
            )


def _target(column: pd.Series, classifier: bool, path: Path, unread: list[str] | None) -> pd.Series:
    """A target; where predictions are only held against it, what is no number is unknown, and ``unread`` tells it."""
    if classifier:
        return class_target(column).astype(object)
    name = str(column.name)
    if unread is None:
        values = numeric_target(column, name, path)
        extreme = np.abs(values) > _LARGEST_TARGET
        if extreme.any():
            raise DataError(
                f"{path}: column {name!r} holds {values[extreme][0]:g}, too large to learn; give it in another "
                "unit, or its logarithm"
            )
        return pd.Series(values, index=column.index)
    labels, values = numbers_of(column)
    usable = np.abs(values) <= _LARGEST_TARGET
    wrong = labels[~usable].dropna()
    if len(wrong):
        unread.append(
            f"{path}: column {shown(name)} has {len(wrong)} value(s) that are no usable numbers "
            f"({shown(wrong.iloc[0])} of sample {shown(wrong.index[0])}, say); the truth of these samples is taken for "
            "unknown"
        )
    return pd.Series(np.where(usable, values, np.nan), index=column.index)


def _check_whole_counts(table: TableFile) -> None:
    if isinstance(table.table, FeatureTable):
        check_whole_counts(table.table, table.path)
    elif table.table.fraction is not None:
        raise DataError(
            f"{table.path}: --rarefy-depth draws whole reads, but the table holds {table.table.fraction:g}; "
            "give raw counts, or leave --rarefy-depth out"
        )


def _check_shared(joined: _Joined, data: DataConfig, *, kept_apart: bool) -> None:
    """Refuse samples of several tables where these are kept apart, or where their values cannot be added up."""
    shared = np.flatnonzero((joined.rows >= 0).sum(axis=0) > 1)
    if len(shared) and kept_apart:
        raise DataError(
            f"{named(data.table)}: {len(shared)} samples, {shown(joined.sample_ids[shared[0]])} first, are in several "
            "tables that are kept apart as studies; rename them if they are different samples, or give one "
            "--unifrac-matrix for all tables to add their reads up"
        )
    for table, rows in zip(joined.tables, joined.rows, strict=True):
        here = shared[rows[shared] >= 0]
        if len(here) and table.relative:
            raise DataError(
                f"{table.path}: sample {shown(joined.sample_ids[here[0]])} is in another table too, and this one holds "
                "no counts of reads, which alone can be added up; give tables of counts"
            )


def _check_extent(table: TableFile) -> None:
    low, high = table.extent
    if low < _COUNTS[0] or high > _COUNTS[1]:
        raise DataError(
            f"{table.path}: holds {low if low < _COUNTS[0] else high:g}, which is no count of reads and no relative "
            "abundance; give one or the other"
        )


def _near_misses(files: StudyFiles, data: DataConfig, ids: NDArray[Any]) -> list[str]:
    """Sentences on samples that the files seem to spell differently."""
    others = {
        named(data.metadata): () if files.metadata is None else list(files.metadata.index),
        named(data.unifrac_matrix): files.labelled,
    }
    found = []
    for name, names in others.items():
        known = set(names)
        left = [sample for sample in ids if sample not in known] if known else []
        near = near_matches(left, names) if left else None
        if near:
            found.append(f"{len(left)} samples of the table are not in {name}: {near}")
    return found


def _two_spellings(metadata: pd.DataFrame, data: DataConfig, classifier: bool) -> list[str]:
    """Sentences on columns whose values are told apart by how they are written."""
    columns = [*(data.columns if classifier else ()), *data.categorical_columns]
    columns += [] if data.group_column is None else [data.group_column]
    found = []
    for column in dict.fromkeys(name for name in columns if name in metadata.columns):
        pairs = written_differently(class_target(metadata[column]).dropna())
        if pairs:
            example = " and ".join(map(shown, pairs[0]))
            found.append(
                f"column {shown(column)} holds values that differ only in how they are written ({example}"
                f"{'' if len(pairs) == 1 else f', and {len(pairs) - 1} more'}): they are taken for different ones; "
                "write them alike if they are not"
            )
    return found


def _unknown(files: StudyFiles, ids: NDArray[Any]) -> dict[str, int]:
    """How many samples of the other files no table has."""
    others = {
        "metadata": None if files.metadata is None else files.metadata.index,
        "distance matrix": files.labelled or None,
    }
    known = set(ids)
    found = {name: len(set(names) - known) for name, names in others.items() if names is not None}
    return {name: number for name, number in found.items() if number}


def _reasons(left_out: dict[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {reason}" for reason, names in left_out.items())


def _warnings(
    joined: _Joined,
    data: DataConfig,
    sequences: list[str],
    max_bp: int,
    classifier: bool,
    metadata: pd.DataFrame | None,
) -> list[str]:
    found = []
    if joined.merged:
        found.append(f"{joined.merged} features share their sequence with another and were merged into it")
    ambiguous = count_ambiguous(sequences)
    if ambiguous:
        found.append(
            f"{ambiguous} of {len(sequences)} sequences hold letters other than A, C, G and T, which are read as N"
        )
    cut = sum(len(sequence) > max_bp for sequence in sequences)
    if cut:
        found.append(f"{cut} of {len(sequences)} sequences are longer than --max-bp {max_bp} and were cut")
    if metadata is not None and data.group_column is None:
        repeated = repeated_columns(metadata.drop(columns=list(data.columns[1:])), next(iter(data.columns), None))
        if repeated:
            found.append(
                f"column {repeated[0]!r} repeats: samples of one value may fall on both sides of the split and make "
                f"the result look better than it is; consider --group-column {repeated[0]}"
            )
    return found if metadata is None else found + _two_spellings(metadata, data, classifier)
