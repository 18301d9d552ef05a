"""Predictions read with the truth and with what is known of their samples.

Shapes: ``n`` samples, ``K`` classes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.data.biom_loader import load_table
from aam.data.files import near_matches, shown
from aam.data.metadata import class_target, load_metadata, numbers_of, numeric_target, require_column
from aam.data.splits import learnt_samples
from aam.errors import DataError
from aam.evaluation.baseline import BASELINES
from aam.training.metrics import classification_metrics, regression_metrics

__all__ = ["PARTS", "Predictions", "read_predictions", "short_file_names", "sizes_of_samples"]

logger = logging.getLogger("aam")

PARTS = ("oof", "test", "val")
_UNKNOWN = "unknown"  # the group of samples whose group is not known


@dataclass(frozen=True)
class Predictions:
    """Predictions with the truth, and what is known of their samples."""

    name: str
    table: pd.DataFrame  # sample_id, actual, predicted, …; the truth is known
    classes: tuple[str, ...]  # none for numbers
    metadata: pd.DataFrame | None  # (n rows)
    groups: NDArray[Any] | None  # (n,)
    known: dict[str, NDArray[np.float64]]  # numbers that are known of the samples: depth, ASVs
    label: str  # the column that is predicted, where its name is known
    group_column: str
    nominal: float | None  # the share of the truth that intervals are to hold, where it is known
    learnt_groups: int = 0  # of those that are tested on, of how many the run has learnt from other samples

    @cached_property
    def probabilities(self) -> NDArray[np.float64] | None:
        """(n, K), where the table has them."""
        columns = [f"prob_{name}" for name in self.classes]
        if not self.classes or not set(columns) <= set(self.table.columns):
            return None
        return self.table[columns].to_numpy(dtype=np.float64)

    @cached_property
    def only_class(self) -> str | None:
        """The true class of all samples, where there is one alone: they say nothing of how classes are told apart."""
        occurring = set(self.table["actual"].astype(str)) if self.classes else set()
        return occurring.pop() if len(occurring) == 1 else None

    @cached_property
    def sets(self) -> NDArray[np.bool_] | None:
        """(n, K), whether a class is in a sample's prediction set, where the table has sets."""
        if not self.classes or "set" not in self.table:
            return None
        each = [_in_set(names, self.classes) for names in self.table["set"].fillna("").astype(str)]
        return np.array([[name in found for name in self.classes] for found in each])

    @cached_property
    def held(self) -> NDArray[np.bool_] | None:
        """(n,), whether the prediction set of a sample has its class, where the table has sets."""
        if self.sets is None:
            return None
        places = np.searchsorted(self.classes, self.table["actual"].to_numpy().astype(str))
        found: NDArray[np.bool_] = self.sets[np.arange(len(places)), places]
        return found

    def metrics(self, rows: NDArray[np.int64] | slice = slice(None)) -> dict[str, float]:
        """Of some of the samples."""
        actual, predicted = (self.table[name].to_numpy()[rows] for name in ("actual", "predicted"))
        if not self.classes:
            found = regression_metrics(actual.astype(np.float64), predicted.astype(np.float64))
            found["bias"] = float((predicted.astype(np.float64) - actual.astype(np.float64)).mean())
            if {"lower", "upper"} <= set(self.table.columns):
                low, high = (self.table[name].to_numpy(dtype=np.float64)[rows] for name in ("lower", "upper"))
                found |= {"coverage": float(((low <= actual) & (actual <= high)).mean())}
                found |= {"width": float((high - low).mean())}
            return found
        truth, guess = (np.searchsorted(self.classes, values.astype(str)) for values in (actual, predicted))
        probabilities, within, held = self.probabilities, self.sets, self.held
        if probabilities is None:
            found = classification_metrics(truth, guess, np.eye(len(self.classes))[guess], self.classes)
            found.pop("roc_auc", None)
        else:
            found = classification_metrics(truth, guess, probabilities[rows], self.classes)
            found |= _of_probabilities(truth, probabilities[rows])
        if self.only_class is not None:
            for name in ("balanced_accuracy", "f1_macro"):  # means over classes
                del found[name]
        if within is not None and held is not None:
            found |= {"coverage": float(held[rows].mean()), "classes_in_set": float(within[rows].sum(axis=1).mean())}
        return found


def _in_set(text: str, classes: Sequence[str]) -> set[str]:
    """The classes of a set as it is written, with a bar between names, which may themselves hold bars."""
    pieces, found, start = text.split("|"), set(), 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        end = next((end for end in ends if "|".join(pieces[start:end]) in classes), None)
        if end is not None:
            found.add("|".join(pieces[start:end]))
        start = end or start + 1
    return found


def _of_probabilities(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Average precision (of two classes that of the second, else the mean over those that occur) and Brier score."""
    count = probabilities.shape[1]
    is_class = np.eye(count)[truth]
    shown = [1] if count == 2 else list(range(count))
    found = {}
    occurring = [place for place in shown if 0 < is_class[:, place].sum() < len(truth)]
    if occurring:
        each = [_average_precision(is_class[:, place], probabilities[:, place]) for place in occurring]
        found["average_precision"] = float(np.mean(each))
    squared = ((probabilities - is_class) ** 2).sum(axis=1).mean()
    return found | {"brier": float(squared / 2 if count == 2 else squared)}


def _average_precision(positive: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    """Precision at each threshold, weighed by the recall that it adds; scikit-learn's is slow a thousand times."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of samples with one probability
    hits = np.cumsum(positive[order])
    precision = (hits / np.arange(1, len(order) + 1))[last]
    return float((np.diff(hits[last] / hits[-1], prepend=0) * precision).sum())


def short_file_names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ."""
    names = [path.name if path.is_dir() else path.stem for path in map(Path.absolute, paths)]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}_{name}" for path, name in zip(paths, names, strict=True)]
    return [f"{name}_{place}" if name in names[:place] else name for place, name in enumerate(names)]


def read_predictions(
    name: str,
    path: Path,
    metadata: Sequence[Path],
    column: str | None,
    group_column: str | None,
    sizes: pd.DataFrame | None,
    part: str | None,
) -> Predictions:
    source, asked = path, sizes is not None
    if path.is_dir():
        source = _of_run(path, part)
        stored = _stored_data(path)
        metadata = metadata or [Path(file) for file in stored.get("metadata") or () if Path(file).is_file()]
        trained_on = stored.get("metadata_column")
        column = column or (trained_on if isinstance(trained_on, str) else None)
        group_column = group_column or stored.get("group_column")
        if sizes is None:
            tables = [Path(file) for file in stored.get("table") or ()]
            sizes = sizes_of_samples(tables) if tables and all(file.is_file() for file in tables) else None
    table = _table_of(source, column)
    ids = table["sample_id"].tolist()
    loaded = load_metadata(tuple(metadata)) if metadata else None
    read = None if loaded is None else _metadata_of(ids, loaded, metadata, source)
    if "actual" not in table:
        if read is None or column is None:
            raise DataError(f"{source}: has no column actual; give --metadata and --metadata-column for the truth")
        table.insert(1, "actual", require_column(read, column, metadata[0]).to_numpy())
    table, classes = _typed(table, source)
    if len(table) < len(ids):
        unknown = sorted(set(ids) - set(table["sample_id"]))
        hint = None if loaded is None else near_matches(unknown, list(loaded.index))
        told = f"{source}: the truth of {len(unknown)} of {len(ids)} samples is unknown, of {shown(unknown[0])} say"
        logger.warning("%s; they are left out%s", told, f"; {hint}" if hint else "")
    kept = table.index.to_numpy()
    groups = None
    if group_column is not None:
        if read is None:
            raise DataError(f"--group-column {group_column} is a column of the metadata; give --metadata")
        groups = require_column(read, group_column, metadata[0]).fillna(_UNKNOWN).to_numpy()[kept]
    known = {}
    if sizes is not None:
        if asked and not table["sample_id"].isin(sizes.index).any():
            raise DataError(
                f"--table: has none of the samples of {source}, {shown(table['sample_id'].iloc[0])} say, but "
                f"{shown(sizes.index[0])}; give the table that was predicted"
            )
        of_sample = sizes.reindex(table["sample_id"])
        known = {str(key): of_sample[key].to_numpy(dtype=float) for key in of_sample if of_sample[key].notna().all()}
    passed_over = {column, group_column}
    left = None if read is None else read.iloc[kept].drop(columns=[x for x in read.columns if x in passed_over])
    table, nominal = _with_intervals(table.reset_index(drop=True), classes)
    learnt = 0
    if groups is not None and loaded is not None and group_column is not None:
        learnt = _learnt_groups(source, table, groups, loaded[group_column])
    label, grouped_by = column or "", group_column or "group"
    return Predictions(name, table, classes, left, groups, known, label, grouped_by, nominal, learnt)


def _learnt_groups(source: Path, table: pd.DataFrame, groups: NDArray[Any], of_sample: pd.Series) -> int:
    """How many groups that are tested on have samples that a run has learnt from, as far as its directory tells.

    Of folds each sample is tested by models that have learnt from all others.
    """
    tested = set(groups.astype(str)) - {_UNKNOWN}
    if "fold" in table:
        folds = table["fold"].groupby(groups.astype(str)).nunique()
        return sum(folds[name] > 1 for name in tested)
    if not source.name.endswith(("test_predictions.tsv", "val_predictions.tsv")):
        return 0
    learnt = of_sample.index.isin(learnt_samples(source.parent / "splits.tsv"))
    return len(tested & set(of_sample[learnt].dropna().astype(str)))


def _metadata_of(ids: list[str], read: pd.DataFrame, metadata: Sequence[Path], source: Path) -> pd.DataFrame:
    """What is known of samples, a row of each; refused where it is of others."""
    if not read.index.isin(ids).any():
        hint = near_matches(ids, list(read.index)) or "check that both name samples alike"
        example = f"{source} has {shown(ids[0])} where it has {shown(read.index[0])}" if ids else f"{source} is empty"
        raise DataError(f"{', '.join(map(str, metadata))}: holds none of the {len(ids)} samples; {example}; {hint}")
    return read.reindex(ids).apply(class_target)  # `not collected` and its kin are no values


def _with_intervals(table: pd.DataFrame, classes: tuple[str, ...]) -> tuple[pd.DataFrame, float | None]:
    """Outer quantiles as intervals where there are no others, and the share of the truth that they are to hold."""
    levels = {level: name for name in table.columns if (level := _quantile_of(name)) is not None}
    if classes or {"lower", "upper"} <= set(table.columns) or len(levels) < 2:
        return table, None
    low, high = min(levels), max(levels)
    return table.assign(lower=table[levels[low]], upper=table[levels[high]]), high - low


def _quantile_of(column: str) -> float | None:
    """Which quantile a column holds."""
    try:
        return float(column.removeprefix("quantile_")) if column.startswith("quantile_") else None
    except ValueError:
        return None


def _of_run(run: Path, part: str | None) -> Path:
    there = [each for each in PARTS if (run / f"{each}_predictions.tsv").is_file()]
    if there and part in (None, *there):
        return run / f"{part or there[0]}_predictions.tsv"
    if there:
        raise DataError(f"{run}: holds no {part} predictions, but {' and '.join(there)}; give another --part")
    classical = [f"{name}_{each}_predictions.tsv" for name in BASELINES for each in PARTS]
    found = [name for name in classical if (run / name).is_file()]
    if found:
        raise DataError(f"{run}: holds predictions of classical models; give one or more of {', '.join(found)}")
    raise DataError(f"{run}: holds no {part or 'oof, test or val'} predictions; give a finished run of `aam train`")


def _stored_data(run: Path) -> dict[str, Any]:
    try:
        data = json.loads((run / "config.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def _table_of(path: Path, column: str | None) -> pd.DataFrame:
    """Of the one column, or of that of several which is asked for."""
    try:
        # As text: a class may be called TRUE, 01 or None.
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).fillna("")
        if len(table.columns) == 1 and "," in str(table.columns[0]):
            table = pd.read_csv(path, dtype=str, keep_default_na=False).fillna("")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file that `aam predict` wrote, or a run") from None
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError):
        raise DataError(f"{path}: is no tab-separated table; give a file that `aam predict` wrote") from None
    several = [str(name).removesuffix("_predicted") for name in table.columns if str(name).endswith("_predicted")]
    if "predicted" not in table and several:
        if column not in several:
            raise DataError(f"{path}: holds predictions of {', '.join(several)}; give one of them by --metadata-column")
        own = re.compile(rf"{re.escape(column)}_(actual|predicted|lower|upper|set|(prob|quantile)_.*)")
        others = [f"{name}_" for name in several if name != column and name.startswith(f"{column}_")]
        found = {
            name: match[1]
            for name in table.columns
            if (match := own.fullmatch(str(name))) and not str(name).startswith(tuple(others))
        }
        fold = ["fold"] if "fold" in table else []
        table = table[["sample_id", *fold, *found]].rename(columns=found)
    for name in ("sample_id", "predicted"):
        if name not in table:
            raise DataError(f"{path}: has no column {name}; give a file that `aam predict` wrote, or a run")
    if table["sample_id"].duplicated().any():
        twice = table.loc[table["sample_id"].duplicated(), "sample_id"].iloc[0]
        raise DataError(f"{path}: sample {twice!r} occurs twice")
    return table


def _typed(table: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows whose truth is known, as numbers or as classes; rows keep their place as index."""
    columns = [str(name) for name in table.columns]
    nothing = [name for name in columns if _holds_numbers(name) and not table[name].str.strip().any()]
    table = table.drop(columns=nothing)
    probabilities = [name for name in columns if name.startswith("prob_") and name not in nothing]
    table = table.assign(**{name: class_target(table[name]) for name in ("actual", "predicted")})
    empty = table["predicted"].isna()
    if empty.any():
        first = shown(table.loc[empty, "sample_id"].iloc[0])
        raise DataError(f"{source}: nothing is predicted for {empty.sum()} samples, {first} say; leave them out")
    numbers = pd.to_numeric(table["predicted"], errors="coerce")
    if not probabilities and numbers.notna().all():
        words = table["actual"][pd.to_numeric(table["actual"], errors="coerce").isna()].dropna()
        if len(words) == table["actual"].notna().sum() > 0:
            raise DataError(f"{source}: no sample has a number as its actual value, and predicted are numbers")
        actual = pd.Series(numeric_target(table["actual"], "actual", source), index=table.index)
        if not actual.notna().any():
            raise DataError(f"{source}: no sample has a number as its actual value, and predicted are numbers")
        return _with_numbers(table.assign(actual=actual, predicted=numbers)[actual.notna()], source), ()
    known = table["actual"].notna()
    if not known.any():
        raise DataError(f"{source}: the truth of no sample is known")
    table = _with_numbers(table[known], source)
    names = {name.removeprefix("prob_") for name in probabilities} | set(table["actual"]) | set(table["predicted"])
    if probabilities:
        table = table.assign(**{f"prob_{name}": table.get(f"prob_{name}", 0.0) for name in names})
    return table, tuple(sorted(names))


def _holds_numbers(column: str) -> bool:
    return column in ("lower", "upper") or column.startswith("prob_") or _quantile_of(column) is not None


def _with_numbers(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """A table whose bounds, quantiles and probabilities are finite numbers."""
    for name in filter(_holds_numbers, map(str, table.columns)):
        _, values = numbers_of(table[name])
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            first = shown(str(table[name].iloc[wrong[0]])), shown(table["sample_id"].iloc[wrong[0]])
            raise DataError(
                f"{source}: column {shown(name)} has {len(wrong)} value(s) that are no finite numbers ({first[0]} of "
                f"sample {first[1]}, say); correct them, or leave the column out"
            )
        table = table.assign(**{name: values})
    return table


def sizes_of_samples(paths: Sequence[Path]) -> pd.DataFrame:
    """Reads and ASVs of every sample."""
    frames = []
    for path in paths:
        table = load_table(path)
        depth, richness = np.asarray(table.counts.sum(axis=1)), np.diff(table.counts.indptr)
        frames.append(pd.DataFrame({"depth": depth, "ASVs": richness}, index=table.sample_ids, dtype=float))
    return pd.concat(frames).groupby(level=0).sum()
