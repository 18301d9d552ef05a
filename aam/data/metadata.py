"""Sample metadata: tab- or comma-separated text, as QIIME 2 reads it, and the targets within it."""

from __future__ import annotations

import csv
import difflib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aam.data.files import check_ids, near_matches, read_text, shown, strip_ids
from aam.errors import DataError

__all__ = [
    "class_target",
    "load_metadata",
    "numbers_of",
    "numeric_target",
    "repeated_columns",
    "require_column",
    "spelled_alike",
]

_ID_HEADERS = ("id", "sampleid", "sample id", "sample-id", "sample_id", "sample name", "sample_name")
_ID_HEADERS_EXACT = ("#SampleID", "#Sample ID", "#OTUID", "#OTU ID")
_TYPES_DIRECTIVE = "#q2:types"
_MISSING = frozenset(
    {
        "",
        "nan",
        "na",
        "n/a",
        "null",
        "missing",
        "not applicable",
        "not available",
        "not collected",
        "not provided",
        "missing: not collected",
        "missing: not provided",
        "missing: restricted access",
        "restricted access",
    }
)
# Words that are no number, but may well be a class ("antibiotics: none").
_NO_NUMBER = _MISSING | {"none", "unknown"}
# In order of how surely a repeated value names one living source of several samples.
_SUBJECT_WORDS = (
    "subject",
    "patient",
    "individual",
    "participant",
    "person",
    "infant",
    "mouse",
    "animal",
    "donor",
    "twin",
    "host",
    "cage",
    "family",
)
_SUBJECT_PART = re.compile(f"({'|'.join(_SUBJECT_WORDS)})s?(id|no|num|number|code)?")
_ID_PARTS = frozenset({"id", "ids", "identifier", "number", "num", "no", "code"})
_NAME_PARTS = _ID_PARTS | {"name", "label", "anonymized", "deidentified"}
_OTHER_PARTS = frozenset({"taxon", "tax", "ncbi", "species", "sample", "samples", "visit", "read", "reads"})


def load_metadata(paths: Path | Sequence[Path], notes: list[str] | None = None) -> pd.DataFrame:
    """Read sample metadata from one file or several.

    Parameters
    ----------
    paths
        Tab-separated text, or comma-separated if the header has commas and no tab. The first column holds the sample
        IDs; its name may be left out, as R's ``write.table`` and ``write.csv`` do. Lines whose first cell begins with
        ``#`` are comments, but for ``#q2:types``: columns that it declares numeric are checked. Of several files,
        samples and columns are joined, in the order of their appearance.
    notes : list of str, optional
        Collects what was put right: rows that repeat.

    Returns
    -------
    pandas.DataFrame
        Cells as stripped text, empty ones NaN, indexed by ``sample_id``.

    Raises
    ------
    DataError
        If a file cannot be read, the first column is not named as an ID, a column repeats, rows or files disagree
        about a sample, a row is not as long as the header, a numeric column holds text, or there is no row.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    assert files
    found = [] if notes is None else notes
    frame, *others = spelled_alike([_load_file(path, found) for path in files])
    for place, (path, other) in enumerate(zip(files[1:], others, strict=True), 1):
        near = None if frame.index.isin(other.index).any() else near_matches(list(other.index), list(frame.index))
        if near:
            found.append(f"{path}: has no sample of {files[0]}; {near}")
        frame = _join(frame, other, files[:place], path)
    return frame


def _load_file(path: Path, notes: list[str]) -> pd.DataFrame:
    lines = read_text(path, "metadata file").split("\n")
    start, delimiter, unnamed = _find_header(lines, path)
    reader = csv.reader((line + "\n" for line in lines[start:]), delimiter=delimiter, strict=True)
    header: list[str] = []
    types: list[str] = []
    ids: list[str] = []
    rows: list[list[str]] = []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            is_types = bool(row) and row[0].lower() == _TYPES_DIRECTIVE
            if not any(row) or (header and row[0].startswith("#") and not is_types):
                continue
            del row[max(len(header), 1, len(row) - _empty_last(row)) :]
            if not header:
                header = ["", *row] if unnamed else row
                continue
            if len(row) > len(header):
                raise DataError(
                    f"{path}: line {start + reader.line_num} has {len(row)} cells where the header has {len(header)}; "
                    "make every row as long as the header"
                )
            row += [""] * (len(header) - len(row))  # spreadsheets leave empty last cells out
            if is_types:
                types = row[1:]
            else:
                ids.append(cells[0])
                rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {start + reader.line_num} cannot be read ({error}); check the quotation marks"
        ) from error
    columns = header[1:]
    check_ids(columns, "column name", path)
    if not rows:
        raise DataError(f"{path}: has a header but no samples; add a row for every sample")
    check_ids(list(dict.fromkeys(strip_ids(ids, path))), "sample ID", path)
    rows = _drop_repeats(rows, columns, path, notes)
    index = pd.Index([row[0] for row in rows], dtype=object, name="sample_id")
    frame = pd.DataFrame([row[1:] for row in rows], index=index, columns=columns, dtype=object)
    frame = frame.mask(frame == "", np.nan)
    for name, declared in zip(columns, types, strict=False):
        _check_declared(frame[name], name, declared, path)
    return frame


def _drop_repeats(rows: list[list[str]], columns: list[str], path: Path, notes: list[str]) -> list[list[str]]:
    """Rows without those that say once more what an earlier one says."""
    kept: dict[str, list[str]] = {}
    for row in rows:
        first = kept.setdefault(row[0], row)
        if first != row:
            place = next(place for place, cell in enumerate(row) if cell != first[place])
            raise DataError(
                f"{path}: has the duplicate sample ID {shown(row[0])} with differing rows ({shown(first[place])} and "
                f"{shown(row[place])} in column {shown(columns[place - 1])}); keep one"
            )
    if len(kept) < len(rows):
        notes.append(f"{path}: {len(rows) - len(kept)} row(s) repeat another one cell by cell and were passed over")
    return list(kept.values())


def _check_declared(column: pd.Series, name: str, declared: str, path: Path) -> None:
    kind = declared.lower()
    if kind not in ("", "categorical", "numeric"):
        raise DataError(
            f"{path}: {_TYPES_DIRECTIVE} declares column {shown(name)} as {shown(declared)}; write numeric, "
            "categorical or nothing"
        )
    if kind == "numeric":
        try:
            numeric_target(column, name, path)
        except DataError as error:
            reason = str(error).rpartition(";")[0]
            raise DataError(f"{reason}, but {_TYPES_DIRECTIVE} declares it numeric; correct one of them") from None


def _join(frame: pd.DataFrame, other: pd.DataFrame, sources: Sequence[Path], path: Path) -> pd.DataFrame:
    """Samples and columns of both; what both state must agree."""
    shared = [column for column in other.columns if column in frame.columns]
    ids = [name for name in other.index if name in frame.index]
    mine, theirs = frame.loc[ids, shared], other.loc[ids, shared]
    for row, column in np.argwhere((mine.notna() & theirs.notna() & (mine != theirs)).to_numpy()):
        one, two = str(mine.iat[row, column]), str(theirs.iat[row, column])
        number = _parse_number(one)
        if number is None or number != _parse_number(two):
            source = " or ".join(map(str, sources))
            raise DataError(
                f"{path}: says {shown(two)} of sample {shown(ids[row])} in column {shown(shared[column])}, where "
                f"{source} says {shown(one)}; correct one of them, or rename the column"
            )
    index = pd.Index(dict.fromkeys([*frame.index, *other.index]), dtype=object, name="sample_id")
    columns = list(dict.fromkeys([*frame.columns, *other.columns]))
    first, second = (part.reindex(index=index, columns=columns) for part in (frame, other))
    return first.where(first.notna(), second)


def spelled_alike(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Whole numbers of a column that one table writes as ``1`` and another as ``1.0``: as ``1`` in all.

    So writes pandas one column, where cells of it are empty in one table alone; and subject 1 is one subject.
    """
    found = list(frames)
    times = Counter(name for frame in frames for name in frame.columns)
    for column in (name for name, number in times.items() if number > 1):
        kinds = [_kind_of_whole_numbers(frame[column]) if column in frame else None for frame in frames]
        for place, kind in enumerate(kinds):
            if kind == "with .0" and "plain" in kinds:
                found[place] = found[place].assign(**{column: found[place][column].str.removesuffix(".0")})
    return found


def _kind_of_whole_numbers(column: pd.Series) -> str | None:
    known = class_target(column).dropna()
    if not len(known):
        return None
    if known.str.fullmatch(r"-?(0|[1-9][0-9]*)").all():
        return "plain"
    return "with .0" if known.str.fullmatch(r"-?(0|[1-9][0-9]*)\.0").all() else None


def _find_header(lines: list[str], path: Path) -> tuple[int, str, bool]:
    """Line index of the header, what separates its cells, and whether it has none above the sample IDs."""
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        delimiter = "," if "," in line and "\t" not in line else "\t"
        first = line.split(delimiter)[0].strip().strip('"').strip()
        if first.lower() in _ID_HEADERS or first in _ID_HEADERS_EXACT or (not first and delimiter in line):
            return number, delimiter, False
        if not line.startswith("#"):
            if _is_cell_short(lines[number:], delimiter):
                return number, delimiter, True
            break
    else:
        first = ""
    raise DataError(
        f"{path}: has no sample ID column (its first column is {shown(first)}); name it one of "
        f"{', '.join(_ID_HEADERS + _ID_HEADERS_EXACT)}"
    )


def _is_cell_short(lines: list[str], delimiter: str) -> bool:
    """Whether the longest rows have just one cell more than their header, as R's ``write.table`` leaves it."""
    rows = csv.reader((line + "\n" for line in lines if line.strip() and not line.startswith("#")), delimiter=delimiter)
    try:
        header = len(next(rows))
        return max((len(row) - _empty_last(row) for row in rows), default=0) == header + 1
    except csv.Error:  # said where the rows are read
        return False


def _empty_last(row: Sequence[str]) -> int:
    """How many of the last cells are empty, as spreadsheets leave them."""
    return sum(1 for _ in takewhile(lambda cell: not cell.strip(), reversed(row)))


def require_column(frame: pd.DataFrame, name: str, path: Path) -> pd.Series:
    """The column called `name`.

    Raises
    ------
    DataError
        If there is none, with the names that come close.
    """
    if name in frame.columns:
        return frame[name]
    lower = {str(column).lower(): str(column) for column in frame.columns}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]
    if close:
        hint = f"did you mean {' or '.join(map(shown, close))}?"
    else:
        hint = f"it has {', '.join(map(str, frame.columns[:10])) or 'none'}{', …' if frame.shape[1] > 10 else ''}"
    raise DataError(f"{path}: has no column {shown(name)}; {hint}")


def class_target(column: pd.Series) -> pd.Series:
    """Labels of a column of any type, stripped, with every missing marker (``NA``, ``not collected``, …) as NaN."""
    text = column.map(lambda value: str(value).strip(), na_action="ignore").astype(object)
    return text.mask(text.isna() | text.str.lower().isin(_MISSING), np.nan)


def numeric_target(column: pd.Series, name: str, path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers of a column.

    Parameters
    ----------
    column : pandas.Series of length N
    name, path
        Column and file, for messages.

    Returns
    -------
    numpy.ndarray of shape (N,), float64
        NaN where the value is missing.

    Raises
    ------
    DataError
        If a value is text or infinite.
    """
    labels, values = numbers_of(column)
    no_numbers = labels[np.isnan(values)].dropna()
    if len(no_numbers):
        wrong = no_numbers.unique()
        raise DataError(
            f"{path}: column {shown(name)} has {len(no_numbers)} value(s) that are not numbers: "
            f"{', '.join(map(shown, wrong[:3]))}{', …' if len(wrong) > 3 else ''}; "
            "correct them, or train with --classifier to predict classes"
        )
    infinite = np.isinf(values)
    if infinite.any():
        raise DataError(
            f"{path}: column {shown(name)} has {infinite.sum()} infinite value(s), "
            f"first {shown(labels[infinite].iloc[0])}; correct them or leave the cells empty"
        )
    return values


def numbers_of(column: pd.Series) -> tuple[pd.Series, np.ndarray[Any, np.dtype[np.float64]]]:
    """The text of N cells, NaN where the value is missing, and their numbers, NaN also where there is none."""
    labels = class_target(column)
    labels = labels.mask(labels.str.lower().isin(_NO_NUMBER), np.nan)
    parsed = {text: _parse_number(text) for text in labels.dropna().unique()}
    return labels, labels.map(parsed).to_numpy(dtype=np.float64, na_value=np.nan)


def _parse_number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def repeated_columns(frame: pd.DataFrame, target: str | None) -> list[str]:
    """Columns that look like the identity of something sampled more than once, surest first.

    Splitting such samples at random lets the model recognise a subject that it was trained on. A column counts if its
    name says subject, patient, host, cage and the like, alone or with ``id``, ``number`` and their kin (``host_age``
    does not), it has two values or more, and at least half of its samples share theirs with another sample.

    Parameters
    ----------
    frame : pandas.DataFrame
        Metadata of the samples in use.
    target
        Column to be predicted, which is never named.
    """
    ranked = []
    for column in frame.columns:
        rank = _subject_rank(str(column))
        if rank is None or column == target:
            continue
        sizes = class_target(frame[column]).value_counts()
        if len(sizes) >= 2 and sizes[sizes >= 2].sum() >= sizes.sum() / 2:
            ranked.append((rank, str(column)))
    return [column for _, column in sorted(ranked, key=lambda item: item[0])]


def _subject_rank(column: str) -> int | None:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    parts = [part for part in re.split(r"[^a-z]+", spaced.lower()) if part]
    found = {part: match for part in parts if (match := _SUBJECT_PART.fullmatch(part))}
    others = set(parts) - set(found)
    identifies = bool(others & _ID_PARTS) or any(match.group(2) for match in found.values())
    if not found or others & _OTHER_PARTS or not (identifies or others <= _NAME_PARTS):
        return None
    return min(_SUBJECT_WORDS.index(match.group(1)) for match in found.values())
