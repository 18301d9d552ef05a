"""Predictions against the truth: the straight line behind ``aam evaluate``.

Shapes: ``n`` samples, ``K`` classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.data.biom_loader import load_table
from aam.data.metadata import load_metadata, require_column
from aam.errors import DataError
from aam.evaluation.error_analysis import errors_by_group, explaining_columns, likely_reasons, sample_errors
from aam.evaluation.html_report import Page
from aam.evaluation.intervals import Difference, Interval, paired_difference, resampled_intervals
from aam.run_directory import write_json, write_table
from aam.training.metrics import classification_metrics, regression_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EvaluationResult", "evaluate"]

logger = logging.getLogger("aam")

PARTS = ("oof", "test", "val")
_WORST = 15


@dataclass(frozen=True)
class EvaluationResult:
    """What predictions are worth."""

    directory: Path
    metrics: dict[str, dict[str, Any]]  # by the name of the predictions: samples, groups, metrics, intervals
    comparisons: list[dict[str, Any]]


@dataclass(frozen=True)
class _Predictions:
    """Predictions with the truth, and what is known of their samples."""

    name: str
    table: pd.DataFrame  # sample_id, actual, predicted, …; the truth is known
    classes: tuple[str, ...]  # none for numbers
    metadata: pd.DataFrame | None  # (n rows)
    groups: NDArray[Any] | None  # (n,)
    known: dict[str, NDArray[np.float64]]  # numbers that are known of the samples: depth, ASVs

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """(n, K), where the table has them."""
        columns = [f"prob_{name}" for name in self.classes]
        if not self.classes or not set(columns) <= set(self.table.columns):
            return None
        return self.table[columns].to_numpy(dtype=np.float64)

    def metrics(self, rows: NDArray[np.int64] | slice = slice(None)) -> dict[str, float]:
        """Of some of the samples."""
        actual, predicted = (self.table[name].to_numpy()[rows] for name in ("actual", "predicted"))
        if not self.classes:
            return regression_metrics(actual.astype(np.float64), predicted.astype(np.float64))
        truth, guess = (np.searchsorted(self.classes, values.astype(str)) for values in (actual, predicted))
        probabilities = self.probabilities
        if probabilities is None:
            found = classification_metrics(truth, guess, np.eye(len(self.classes))[guess], self.classes)
            found.pop("roc_auc", None)
            return found
        return classification_metrics(truth, guess, probabilities[rows], self.classes)


def evaluate(
    predictions: Sequence[Path],
    output_dir: Path,
    *,
    metadata: Sequence[Path] = (),
    metadata_column: str | None = None,
    group_column: str | None = None,
    table: Sequence[Path] = (),
    part: str | None = None,
    overwrite: bool = False,
) -> EvaluationResult:
    """Judge predictions, find where they err, compare them, and write a report.

    Parameters
    ----------
    predictions : sequence of Path
        Files as ``aam predict`` writes them, or run directories: of these the out-of-fold, test or validation
        predictions, and the files and columns that their ``config.json`` names, where they are still there.
    output_dir : Path
        Gets ``report.html``, ``metrics.json``, ``comparison.tsv``, and by predictions ``errors.tsv``, ``columns.tsv``,
        ``groups.tsv`` and ``plots/``.
    metadata : sequence of Path
        What may explain errors; the truth, where the predictions lack it.
    metadata_column : str, optional
        The truth.
    group_column : str, optional
        Whole groups are resampled.
    table : sequence of Path
        Feature tables, for depth and richness.
    part : {"oof", "test", "val"}, optional
        Of run directories.
    overwrite : bool
        Replace an earlier report.

    Raises
    ------
    DataError
        If a file cannot be read, or there is no sample whose truth is known.
    """
    if (output_dir / "report.html").exists() and not overwrite:
        raise DataError(f"{output_dir}: holds a report already; give --overwrite, or another --output-dir")
    sizes = _sizes(table) if table else None
    found = []
    for name, path in zip(_names(predictions), predictions, strict=True):
        found.append(_read(name, path, metadata, metadata_column, group_column, sizes, part))
    output_dir.mkdir(parents=True, exist_ok=True)
    page = Page(f"Evaluation: {', '.join(each.name for each in found)}")
    metrics = {}
    for each in found:
        folder = output_dir if len(found) == 1 else output_dir / each.name
        metrics[each.name] = _judge(each, folder, page)
    comparisons = [_compare(a, b) for a, b in combinations(found, 2)]
    _write_comparisons(comparisons, output_dir, page)
    write_json(output_dir / "metrics.json", {"predictions": metrics, "comparisons": comparisons})
    (output_dir / "report.html").write_text(str(page), encoding="utf-8")
    return EvaluationResult(output_dir, metrics, comparisons)


# ------------------------------------------------------------------------------------------------------------- reading


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ."""
    names = [path.name if path.is_dir() else path.stem for path in map(Path.absolute, paths)]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}_{name}" for path, name in zip(paths, names, strict=True)]
    return [f"{name}_{place}" if name in names[:place] else name for place, name in enumerate(names)]


def _read(
    name: str,
    path: Path,
    metadata: Sequence[Path],
    column: str | None,
    group_column: str | None,
    sizes: pd.DataFrame | None,
    part: str | None,
) -> _Predictions:
    source = path
    if path.is_dir():
        source = _of_run(path, part)
        stored = _stored_data(path)
        metadata = metadata or [Path(file) for file in stored.get("metadata") or () if Path(file).is_file()]
        column = column or stored.get("metadata_column")
        group_column = group_column or stored.get("group_column")
        if sizes is None:
            tables = [Path(file) for file in stored.get("table") or ()]
            sizes = _sizes(tables) if tables and all(file.is_file() for file in tables) else None
    table = _read_predictions(source)
    read = load_metadata(tuple(metadata)).reindex(table["sample_id"]) if metadata else None
    if "actual" not in table:
        if read is None or column is None:
            raise DataError(f"{source}: has no column actual; give --metadata and --metadata-column for the truth")
        table.insert(1, "actual", require_column(read, column, metadata[0]).to_numpy())
    table, classes = _typed(table, source)
    kept = table.index.to_numpy()
    groups = None
    if group_column is not None:
        if read is None:
            raise DataError(f"--group-column {group_column} is a column of the metadata; give --metadata")
        groups = require_column(read, group_column, metadata[0]).fillna("unknown").to_numpy()[kept]
    known = {}
    if sizes is not None:
        of_sample = sizes.reindex(table["sample_id"])
        known = {str(key): of_sample[key].to_numpy(dtype=float) for key in of_sample if of_sample[key].notna().all()}
    left = None if read is None else read.iloc[kept].drop(columns=[column] if column in read.columns else [])
    return _Predictions(name, table.reset_index(drop=True), classes, left, groups, known)


def _of_run(run: Path, part: str | None) -> Path:
    for each in PARTS if part is None else (part,):
        if (run / f"{each}_predictions.tsv").is_file():
            return run / f"{each}_predictions.tsv"
    raise DataError(f"{run}: holds no {part or 'oof, test or val'} predictions; give a finished run of `aam train`")


def _stored_data(run: Path) -> dict[str, Any]:
    try:
        data = json.loads((run / "config.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_predictions(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype={"sample_id": str}, keep_default_na=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file that `aam predict` wrote, or a run") from None
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError):
        raise DataError(f"{path}: is no tab-separated table; give a file that `aam predict` wrote") from None
    for name in ("sample_id", "predicted"):
        if name not in table:
            raise DataError(f"{path}: has no column {name}; give a file that `aam predict` wrote, or a run")
    if table["sample_id"].duplicated().any():
        twice = table.loc[table["sample_id"].duplicated(), "sample_id"].iloc[0]
        raise DataError(f"{path}: sample {twice!r} occurs twice")
    return table


def _typed(table: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows whose truth is known, as numbers or as classes; rows keep their place as index."""
    probabilities = [str(name) for name in table.columns if str(name).startswith("prob_")]
    numbers = pd.to_numeric(table["predicted"], errors="coerce")
    if not probabilities and numbers.notna().all():
        actual = pd.to_numeric(table["actual"], errors="coerce")
        if not actual.notna().any():
            raise DataError(f"{source}: no sample has a number as its actual value, and predicted are numbers")
        return table.assign(actual=actual, predicted=numbers)[actual.notna()], ()
    known = table["actual"].notna()
    if not known.any():
        raise DataError(f"{source}: the truth of no sample is known")
    table = table[known].assign(actual=table["actual"].astype(str), predicted=table["predicted"].astype(str))
    names = {name.removeprefix("prob_") for name in probabilities} | set(table["actual"]) | set(table["predicted"])
    if probabilities:
        table = table.assign(**{f"prob_{name}": table.get(f"prob_{name}", 0.0) for name in names})
    return table, tuple(sorted(names))


def _sizes(paths: Sequence[Path]) -> pd.DataFrame:
    """Reads and ASVs of every sample."""
    frames = []
    for path in paths:
        table = load_table(path)
        depth, richness = np.asarray(table.counts.sum(axis=1)), np.diff(table.counts.indptr)
        frames.append(pd.DataFrame({"depth": depth, "ASVs": richness}, index=table.sample_ids, dtype=float))
    return pd.concat(frames).groupby(level=0).sum()


# ------------------------------------------------------------------------------------------------------------- judging


def _judge(each: _Predictions, folder: Path, page: Page) -> dict[str, Any]:
    table, groups = each.table, each.groups
    number = 0 if groups is None else len(np.unique(groups.astype(str)))
    metrics = each.metrics()
    intervals = resampled_intervals(each.metrics, len(table), groups)
    errors = sample_errors(table)
    columns = pd.DataFrame(each.known, index=range(len(table)))
    if each.metadata is not None:
        columns = pd.concat([columns, each.metadata.reset_index(drop=True)], axis=1)
    explained = explaining_columns(errors, columns, groups)
    reasons = likely_reasons(table, each.known, groups)
    listed = table.assign(error=errors, **each.known)
    if groups is not None:
        listed.insert(1, "group", groups)
    listed = listed.assign(likely_reason=reasons).sort_values("error", ascending=False, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "errors.tsv", listed)
    write_table(folder / "columns.tsv", explained)
    of_group = None if groups is None else errors_by_group(errors, groups)
    if of_group is not None:
        write_table(folder / "groups.tsv", of_group)

    page.heading(each.name)
    page.text(f"{len(table):,} samples" + (f" of {number:,} groups" if groups is not None else ""))
    resampled = "groups" if groups is not None else "samples"
    page.table(
        ["metric", "value", "95 % from", "to"],
        [(name, value, *intervals.get(name, ("", ""))) for name, value in metrics.items()],
    )
    page.text(f"Intervals are from resampling {resampled}.", note=True)
    for name, figure in _figures(each, errors):
        (folder / "plots").mkdir(exist_ok=True)
        figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
        page.figure(figure, f"{each.name}: {name}")
    _tell_columns(explained, page)
    if of_group is not None and len(of_group) > 1:
        page.heading("Groups with the largest errors", 3)
        page.table(list(of_group.columns), of_group.head(_WORST).values.tolist())
    page.heading("Samples with the largest errors", 3)
    shown = [name for name in listed.columns if not str(name).startswith("prob_")]
    page.table(shown, listed[shown].head(_WORST).values.tolist())
    found: dict[str, Any] = {"samples": len(table), "metrics": metrics}
    if groups is not None:
        found["groups"] = number
    found["intervals"] = {name: list(interval) for name, interval in intervals.items()}
    if {"lower", "upper"} <= set(table.columns):
        found["coverage"] = _coverage(table, groups, page)
    return found


def _coverage(table: pd.DataFrame, groups: NDArray[Any] | None, page: Page) -> dict[str, Any]:
    """How many of the intervals hold the truth, and how wide they are."""
    inside = ((table["lower"] <= table["actual"]) & (table["actual"] <= table["upper"])).to_numpy()
    width = float((table["upper"] - table["lower"]).mean())

    def share(rows: NDArray[np.int64]) -> Mapping[str, float]:
        return {"coverage": float(inside[rows].mean())}

    interval: Any = resampled_intervals(share, len(table), groups).get("coverage", Interval(np.nan, np.nan))
    low, high = (100 * end for end in interval)
    page.text(
        f"{100 * inside.mean():.1f} % of the prediction intervals hold the truth (95 % interval {low:.1f} to "
        f"{high:.1f}), and they are {width:.3g} wide on average."
    )
    ends = [None if np.isnan(end) else float(end) for end in interval]
    return {"value": float(inside.mean()), "interval": ends, "mean_width": width}


def _tell_columns(explained: pd.DataFrame, page: Page) -> None:
    page.heading("What goes with large errors", 3)
    if not len(explained):
        page.text("There is no column to look at.", note=True)
        return
    telling = explained[explained["q"] < 0.05]
    if len(telling):
        first = telling.iloc[0]
        page.text(f"{first['column']} goes with {100 * first['explained']:.0f} % of the ranks of the errors.")
    else:
        page.text("No column goes with the errors more than chance would have it (q below 0.05).")
    shown = explained.head(_WORST)
    page.table(list(shown.columns), shown.values.tolist())
    page.text(
        "explained: adjusted R² of ranks for numbers, ω² for categories. unit: group where a column has one value in "
        "each group. q: p corrected for the number of columns.",
        note=True,
    )


def _figures(each: _Predictions, errors: NDArray[np.float64]) -> Iterator[tuple[str, Figure]]:
    from aam.evaluation.error_plots import (
        calibration_plot,
        curves_plot,
        errors_against_plot,
        group_plot,
        interval_plot,
        residual_plot,
    )
    from aam.evaluation.plots import confusion_plot, regression_plot

    actual, predicted = each.table["actual"].to_numpy(), each.table["predicted"].to_numpy()
    label = "absolute error"
    if each.classes:
        label = "error"
        yield "predictions", confusion_plot(actual, predicted, each.classes, title=each.name)
        probabilities = each.probabilities
        if probabilities is not None:
            label = "1 - probability of the true class"
            yield "curves", curves_plot(actual.astype(str), probabilities, each.classes)
            yield "calibration", calibration_plot(actual.astype(str), probabilities, each.classes)
    else:
        yield "predictions", regression_plot(actual, predicted, title=each.name)
        yield "residuals", residual_plot(actual, predicted)
        if {"lower", "upper"} <= set(each.table.columns):
            low, high = (each.table[name].to_numpy(dtype=float) for name in ("lower", "upper"))
            yield "intervals", interval_plot(actual, predicted, low, high)
    if each.known:
        yield "errors_by_size", errors_against_plot(errors, each.known, label=label)
    if each.groups is not None and 1 < len(np.unique(each.groups.astype(str))) < len(errors):
        yield "errors_by_group", group_plot(errors, each.groups, label=label, name="group")


def _compare(a: _Predictions, b: _Predictions) -> dict[str, Any]:
    """The mean errors of two models on the samples that both predict."""
    first, second = (each.table.set_index("sample_id") for each in (a, b))
    common = [name for name in first.index if name in second.index]
    if bool(a.classes) != bool(b.classes) or not common:
        raise DataError(f"{a.name} and {b.name}: have no samples of one kind in common, and cannot be compared")
    groups = None if a.groups is None else pd.Series(a.groups, index=first.index)[common].to_numpy()
    own, other = (sample_errors(frame.loc[common].reset_index()) for frame in (first, second))
    found: Difference = paired_difference(own, other, groups)
    return {
        "first": a.name,
        "second": b.name,
        "samples": len(common),
        "mean_error_first": float(own.mean()),
        "mean_error_second": float(other.mean()),
        "difference": found.value,
        "interval": list(found.interval),
        "p": found.p,
    }


def _write_comparisons(comparisons: list[dict[str, Any]], directory: Path, page: Page) -> None:
    if not comparisons:
        return
    rows = [
        {**{key: value for key, value in each.items() if key != "interval"}, "low": low, "high": high}
        for each in comparisons
        for low, high in [each["interval"]]
    ]
    frame = pd.DataFrame(rows)
    write_table(directory / "comparison.tsv", frame)
    page.heading("Comparison")
    page.table(list(frame.columns), frame.values.tolist())
    page.text(
        "Mean errors (absolute, or 1 less the probability of the true class) on the samples that both predict. A "
        "difference below 0 speaks for the first; its 95 % interval is from resampling groups, its p from exchanging "
        "the two within groups.",
        note=True,
    )
