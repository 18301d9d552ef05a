"""Predictions against the truth: the straight line behind ``aam evaluate``.

Shapes: ``n`` samples, ``K`` classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.data.files import shown
from aam.errors import DataError
from aam.evaluation.error_analysis import (
    THE_TRUTH_ITSELF,
    as_text,
    errors_by_group,
    explained_by_groups,
    explaining_columns,
    likely_reasons,
    sample_errors,
    short_names,
    values_in_order,
    without_twins,
)
from aam.evaluation.html_report import Page
from aam.evaluation.intervals import Difference, Interval, caution, paired_difference, resampled_intervals
from aam.predictions import Predictions, read_predictions, short_file_names, sizes_of_samples
from aam.run_directory import write_json, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EvaluationResult", "evaluate"]

logger = logging.getLogger("aam")

_WORST = 15
_ROUNDING = 1e-3  # of a number, or of how much they vary, from one table to another
_FEWEST_PANELS, _PANELS = 3, 6  # columns whose errors are drawn, as many as go with them more than chance

_METRICS = {
    "mae": "mean absolute error (MAE)",
    "rmse": "root mean squared error (RMSE)",
    "bias": "bias: mean of predicted - actual",
    "r2": "R²",
    "spearman": "Spearman's correlation",
    "accuracy": "accuracy: share of samples whose class is found",
    "balanced_accuracy": "balanced accuracy: mean share of each class found",
    "f1_macro": "F1, mean over classes",
    "roc_auc": "area under the ROC curve",
    "average_precision": "average precision: area under precision and recall",
    "brier": "Brier score: squared error of the probabilities",
    "coverage": "coverage: share of intervals, or sets, with the truth",
    "width": "mean width of the intervals",
    "classes_in_set": "mean number of classes in a set",
}
_HEADS = {
    "sample_id": "sample",
    "ASVs": "ASVs (richness)",
    "depth": "reads (depth)",
    "likely_reason": "likely reason",
    "mean_error": "mean error",
    "median_error": "median error",
    "unit": "tested on",
    "units": "how many",
    "explained": "explained",
    "larger_errors": "larger errors with",
    "like_truth": "likeness to the truth",
    "mean_error_first": "its mean error",
    "mean_error_second": "mean error of the second",
    "low": "95 % from",
    "high": "to",
}
_CAPTIONS = {
    "predictions": "Predicted against actual: on the dashed line a prediction is the truth.",
    "confusion": "How many samples of each actual class (row) are predicted to be of which class (column).",
    "residuals": "Errors with their sign. A falling line says that predictions are drawn to the middle.",
    "intervals": "Prediction intervals, and whether they hold the truth.",
    "sets": "Left: how many classes sets have, and whether they hold the truth. Right: how often they do, by class.",
    "curves": "How well probabilities put the class before the others, at every threshold.",
    "calibration": "Above: on the dashed line, probabilities keep their word. Below: how often each is given.",
    "errors_by_size": "Errors against sequencing depth and richness.",
    "explained": "How much of the errors goes with each column.",
    "errors_by_column": "Errors against the columns that go most with them.",
    "errors_by_group": "Boxes hold half of a group's samples; the line is the median.",
}


@dataclass(frozen=True)
class EvaluationResult:
    """What predictions are worth."""

    directory: Path
    metrics: dict[str, dict[str, Any]]  # by the name of the predictions: samples, groups, metrics, intervals
    comparisons: list[dict[str, Any]]


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
    sizes = sizes_of_samples(table) if table else None
    found = []
    for name, path in zip(short_file_names(predictions), predictions, strict=True):
        found.append(read_predictions(name, path, metadata, metadata_column, group_column, sizes, part))
    output_dir.mkdir(parents=True, exist_ok=True)
    labels = dict.fromkeys(each.label for each in found if each.label)
    page = Page(f"Evaluation of {', '.join(each.name for each in found)}" + "".join(f" ({name})" for name in labels))
    comparisons = _compare_all(found, output_dir, page)
    metrics = {}
    for each in found:
        folder = output_dir if len(found) == 1 else output_dir / each.name
        metrics[each.name] = _judge(each, folder, page)
    write_json(output_dir / "metrics.json", {"predictions": metrics, "comparisons": comparisons})
    (output_dir / "report.html").write_text(str(page), encoding="utf-8")
    return EvaluationResult(output_dir, metrics, comparisons)


# ------------------------------------------------------------------------------------------------------------- judging


def _judge(each: Predictions, folder: Path, page: Page) -> dict[str, Any]:
    from aam.evaluation.plots import save_figure

    table, groups = each.table, each.groups
    number = 0 if groups is None else len(np.unique(groups.astype(str)))
    metrics = each.metrics()
    intervals = resampled_intervals(each.metrics, len(table), groups)
    errors = sample_errors(table)
    columns = pd.DataFrame(each.known, index=range(len(table)))
    if each.metadata is not None:
        columns = pd.concat([columns, each.metadata.reset_index(drop=True)], axis=1)
    actual = table["actual"].to_numpy()
    explained = explaining_columns(errors, columns, groups, actual)
    reasons = likely_reasons(table, each.known, groups, columns, explained)
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
    page.text(f"{len(table):,} samples" + (f" of {number:,} groups ({each.group_column})" if number else "") + ".")
    resampled = f"whole groups of {each.group_column}" if groups is not None else "samples"
    ends = {name: intervals.get(name, ("", "")) if intervals else () for name in metrics}
    page.table(
        ["metric", "value", *(("95 % from", "to") if intervals else ())],
        [(_METRICS.get(name, name), value, *ends[name]) for name, value in metrics.items()],
    )
    cautions = [said] if (said := caution(number or len(table), "group" if number else "sample")) else []
    if each.only_class is not None:
        cautions.append(
            f"All samples are of class {each.only_class}: nothing can be said of how well classes are told apart; "
            "accuracy is the share that is found."
        )
    if each.learnt_groups:
        cautions.append(
            f"The model has learnt from other samples of {each.learnt_groups} of the {number} groups "
            f"({each.group_column}); its errors may be larger in groups that are new to it."
        )
    for said in cautions:
        page.text(said)
    unit = f"Errors are in the unit of {each.label or 'the actual values'}." if not each.classes else ""
    drawn = f"Intervals are from resampling {resampled}. " if intervals else ""
    page.text(f"{drawn}{unit}", note=True)
    pictures = {}
    for name, figure in _figures(each, errors, columns, explained):
        pictures[name] = folder / "plots" / f"{name}.png"
        save_figure(figure, pictures[name])

    def show(*names: str) -> None:
        for name in names:
            if name in pictures:
                caption = _CAPTIONS["confusion" if each.classes and name == "predictions" else name]
                page.picture(pictures[name], f"{each.name}: {name}", caption)

    show("predictions", "residuals")
    found: dict[str, Any] = {"samples": len(table), "metrics": metrics}
    if groups is not None:
        found["groups"] = number
    found["intervals"] = {name: list(interval) for name, interval in intervals.items()}
    found["cautions"] = cautions
    if "coverage" in metrics:
        judged = _coverage_of_sets if each.classes else _coverage
        found["coverage"] = judged(each, metrics, intervals.get("coverage"), page)
    show("intervals", "sets", "curves", "calibration")
    _tell_columns(explained, each, page)
    show("explained", "errors_by_size", "errors_by_column")
    if of_group is not None and len(of_group) > 1:
        _tell_groups(of_group, errors, each, page)
        show("errors_by_group")
    page.heading("Samples with the largest errors", 3)
    kept = [name for name in listed.columns if not str(name).startswith(("prob_", "quantile_", "fold"))]
    told: dict[str, Any] = {"likely_reason": listed["likely_reason"].replace("", "—")}
    if groups is not None:
        told["group"] = short_names(listed["group"].to_numpy())
    worst = listed[kept].assign(**told).head(_WORST)
    page.table(
        [each.group_column if name == "group" else _HEADS.get(str(name), str(name)) for name in kept],
        worst.values.tolist(),
    )
    error = "the distance from the truth"
    if each.classes:
        error = (
            "1 less the probability of the true class" if each.probabilities is not None else "1 where wrong, else 0"
        )
    page.text(f"An error is {error}. errors.tsv lists all samples; — where nothing unusual is known of one.", note=True)
    return found


def _coverage(each: Predictions, metrics: Mapping[str, float], interval: Interval | None, page: Page) -> dict[str, Any]:
    """How many of the prediction intervals hold the truth, and how wide they are."""
    page.heading("Prediction intervals", 3)
    asked = "" if each.nominal is None else f", and {100 * each.nominal:.3g} % are meant to"
    page.text(
        f"{100 * metrics['coverage']:.1f} % of the intervals hold the truth{_ends(interval)}{asked}. They are "
        f"{metrics['width']:.3g} wide on average."
    )
    found = {
        "value": metrics["coverage"],
        "interval": [None, None] if interval is None else list(interval),
        "mean_width": metrics["width"],
    }
    return found if each.nominal is None else found | {"nominal": each.nominal}


def _ends(interval: Interval | None) -> str:
    """Those of a share, in percent."""
    return "" if interval is None else f" (95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _coverage_of_sets(
    each: Predictions, metrics: Mapping[str, float], interval: Interval | None, page: Page
) -> dict[str, Any]:
    """How many of the prediction sets hold the truth, how large they are, and how it is by class."""
    within, held = each.sets, each.held
    assert within is not None and held is not None
    sizes, actual = within.sum(axis=1), each.table["actual"].to_numpy().astype(str)
    page.heading("Prediction sets", 3)
    one, empty = 100 * (sizes == 1).mean(), 100 * (sizes == 0).mean()
    page.text(
        f"{100 * metrics['coverage']:.1f} % of the sets hold the truth{_ends(interval)}. They have "
        f"{metrics['classes_in_set']:.3g} classes on average; {one:.3g} % of them name one alone"
        + (f", {empty:.3g} % none." if empty else ".")
    )
    of_class = {name: held[actual == name] for name in each.classes if (actual == name).any()}
    page.table(
        ["actual class", "samples", "sets that hold it"],
        [(name, len(those), f"{100 * those.mean():.1f} %") for name, those in of_class.items()],
    )
    return {
        "value": metrics["coverage"],
        "interval": [None, None] if interval is None else list(interval),
        "mean_classes": metrics["classes_in_set"],
        "of_class": {name: float(those.mean()) for name, those in of_class.items()},
    }


def _tell_columns(explained: pd.DataFrame, each: Predictions, page: Page) -> None:
    page.heading("What goes with large errors", 3)
    if not len(explained):
        page.text("There is no column to look at; give --metadata and --table.", note=True)
        return
    same = explained["like_truth"] >= THE_TRUTH_ITSELF
    telling = explained[(explained["q"] < 0.05) & ~same]
    if len(telling):
        first = telling.sort_values("explained", ascending=False, kind="stable").iloc[0]
        said = [_HEADS.get(name, name) for name in telling["column"] if name != first["column"]][:4]
        others = f" Others that do so more than chance: {', '.join(said)}." if said else ""
        page.text(
            f"{_HEADS.get(first['column'], first['column'])} goes most with the errors: "
            f"{100 * first['explained']:.0f} % of their ranks, and they are larger with {first['larger_errors']}."
            f"{others}"
        )
    else:
        page.text("No column goes with the errors more than chance would have it (q below 0.05).")
    if same.any():
        names = ", ".join(explained.loc[same, "column"])
        page.text(f"The truth in other words, which tells what is hard to predict but not why: {names}.")
    strongest = explained.head(_WORST)
    page.table(
        ["column", "it holds", "tested on", "explained", "larger errors with", "p", "q", "likeness to the truth"],
        [
            (
                _HEADS.get(row["column"], row["column"]),
                row["kind"],
                f"{row['units']:,} {row['unit']}s",
                f"{100 * max(0.0, row['explained']):.1f} %",
                row["larger_errors"],
                row["p"],
                row["q"],
                "" if np.isnan(row["like_truth"]) else f"{row['like_truth']:.2f}",
            )
            for row in strongest.to_dict("records")
        ],
    )
    page.text(
        "Explained is the adjusted R² of ranks for numbers and dates, ω² for categories. Columns with one value in "
        "each group are tested on groups, others on samples as if these were independent. q is p corrected for their "
        "number. Likeness to the truth: Spearman's correlation, or Cramér's V. What goes with errors need not cause "
        "them.",
        note=True,
    )


def _tell_groups(of_group: pd.DataFrame, errors: NDArray[np.float64], each: Predictions, page: Page) -> None:
    assert each.groups is not None
    page.heading(f"Errors by {each.group_column}", 3)
    share = explained_by_groups(errors, each.groups)
    if share is not None:
        page.text(f"Which {each.group_column} a sample is of explains {100 * share:.0f} % of the ranks of the errors.")
    page.table(
        [each.group_column, *(_HEADS.get(name, name) for name in of_group.columns[1:])],
        of_group.assign(group=short_names(of_group["group"].to_numpy())).head(_WORST).values.tolist(),
    )
    if len(of_group) > _WORST:
        page.text(f"The {_WORST} of {len(of_group):,} with the largest mean error; groups.tsv lists all.", note=True)


def _figures(
    each: Predictions, errors: NDArray[np.float64], columns: pd.DataFrame, explained: pd.DataFrame
) -> Iterator[tuple[str, Figure]]:
    from aam.evaluation.error_plots import (
        calibration_plot,
        curves_plot,
        errors_against_plot,
        explained_plot,
        group_plot,
        interval_plot,
        residual_plot,
        set_plot,
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
            if each.only_class is None:
                yield "curves", curves_plot(actual.astype(str), probabilities, each.classes)
                yield "calibration", calibration_plot(actual.astype(str), probabilities, each.classes)
        within = each.sets
        if within is not None:
            yield "sets", set_plot(actual.astype(str), within, each.classes)
    else:
        yield "predictions", regression_plot(actual, predicted, title=each.name, units_label=each.label)
        yield "residuals", residual_plot(actual, predicted, label=each.label)
        if {"lower", "upper"} <= set(each.table.columns):
            low, high = (each.table[name].to_numpy(dtype=float) for name in ("lower", "upper"))
            yield "intervals", interval_plot(actual, predicted, low, high, label=each.label)
    if each.known:
        sizes = {_HEADS.get(name, name): values for name, values in each.known.items()}
        yield "errors_by_size", errors_against_plot(errors, sizes, label=label)
    if len(explained) > 1:
        yield "explained", explained_plot(explained)
    drawn = without_twins(explained[~explained["column"].isin(each.known)])
    drawn = drawn.head(int(np.clip((drawn["q"] < 0.05).sum(), _FEWEST_PANELS, _PANELS)))
    if len(drawn):
        panels: dict[str, NDArray[Any]] = {}
        for name, kind in zip(drawn["column"], drawn["kind"], strict=True):
            values = columns[name]
            panels[name] = values.fillna("").astype(str).to_numpy() if kind == "categories" else values_in_order(values)
        yield "errors_by_column", errors_against_plot(errors, panels, label=label)
    if each.groups is not None and 1 < len(np.unique(each.groups.astype(str))) < len(errors):
        yield "errors_by_group", group_plot(errors, each.groups, label=label, name=each.group_column)


# ----------------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class _Paired:
    """The errors of two models on the samples that both predict."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    groups: NDArray[Any] | None
    unit: str  # what is drawn

    @classmethod
    def of(cls, a: Predictions, b: Predictions) -> _Paired:
        first, second = (each.table.set_index("sample_id") for each in (a, b))
        common = [name for name in first.index if name in second.index]
        if bool(a.classes) != bool(b.classes) or not common:
            raise DataError(f"{a.name} and {b.name}: have no samples of one kind in common, and cannot be compared")
        first, second = first.loc[common], second.loc[common]
        truths = [frame["actual"].to_numpy() for frame in (first, second)]
        same = truths[0] == truths[1]
        if not a.classes:
            one, other = (truth.astype(np.float64) for truth in truths)
            same = np.isclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * float(one.std()))
        if not same.all():
            where = int(np.argmin(same))
            said = [shown(str(truth[where])) for truth in truths]
            raise DataError(
                f"{a.name} and {b.name}: predict different things, and cannot be compared; sample "
                f"{shown(common[where])} is {said[0]} in truth by the one, {said[1]} by the other"
            )
        each = [None if x.groups is None else pd.Series(x.groups, x.table["sample_id"])[common] for x in (a, b)]
        known = [x.to_numpy() for x in each if x is not None]
        if len(known) > 1 and (pd.factorize(known[0])[0] != pd.factorize(known[1])[0]).any():
            raise DataError(
                f"{a.name} and {b.name}: have other groups, {shown(a.group_column)} and {shown(b.group_column)}; "
                "say by --group-column which samples are alike"
            )
        own, other = (sample_errors(frame.reset_index()) for frame in (first, second))
        unit = "sample"
        if known:
            unit = f"group ({a.group_column if a.groups is not None else b.group_column})"
        return cls(own, other, known[0] if known else None, unit)


def _compare_all(found: Sequence[Predictions], directory: Path, page: Page) -> list[dict[str, Any]]:
    """Every two of the models: their mean errors, tested, written and drawn."""
    if len(found) < 2:
        return []
    from aam.evaluation.error_plots import comparison_plot
    from aam.evaluation.plots import save_figure

    by_name = {each.name: each for each in found}
    pairs = {(a.name, b.name): _Paired.of(a, b) for a, b in combinations(found, 2)}
    comparisons: list[dict[str, Any]] = []
    for (first, second), paired in pairs.items():
        difference: Difference = paired_difference(paired.first, paired.second, paired.groups)
        number, unit = len(paired.first), "sample"
        if paired.groups is not None:
            number, unit = len(np.unique(paired.groups.astype(str))), "group"
        comparisons.append(
            {
                "first": first,
                "second": second,
                "samples": len(paired.first),
                "only_first": len(by_name[first].table) - len(paired.first),
                "only_second": len(by_name[second].table) - len(paired.first),
                "drawn": paired.unit,
                "mean_error_first": float(paired.first.mean()),
                "mean_error_second": float(paired.second.mean()),
                "difference": difference.value,
                "interval": list(difference.interval) if number > 1 else [None, None],
                "p": difference.p,
                "cautions": [said] if (said := caution(number, unit)) else [],
            }
        )
    rows = [
        {**{key: value for key, value in each.items() if key not in ("interval", "cautions")}, "low": low, "high": high}
        for each in comparisons
        for low, high in [each["interval"]]
    ]
    write_table(directory / "comparison.tsv", pd.DataFrame(rows))

    page.heading("Comparison")
    metrics = {each.name: each.metrics() for each in found}
    names = dict.fromkeys(name for of_model in metrics.values() for name in of_model)
    page.table(
        ["metric", *metrics],
        [(_METRICS.get(name, name), *(of_model.get(name, "") for of_model in metrics.values())) for name in names],
    )
    for each in comparisons:
        page.text(" ".join([_verdict(each), *each["cautions"]]))
    page.table(
        ["first", "second", "samples", "drawn", "mean error, first", "second", "difference", "95 % from", "to", "p"],
        [
            tuple(
                row[name] for name in ("first", "second", "samples", "drawn", "mean_error_first", "mean_error_second")
            )
            + tuple("" if row[name] is None else row[name] for name in ("difference", "low", "high", "p"))
            for row in rows
        ],
    )
    page.text(
        "Mean errors (absolute, or 1 less the probability of the true class) on the samples that both predict. A "
        "difference below 0 speaks for the first; its interval is from drawing whole groups, or samples where groups "
        "are unknown, its p from exchanging the two models within them.",
        note=True,
    )
    for (first, second), paired in pairs.items():
        figure = comparison_plot(paired.first, paired.second, paired.groups, names=(first, second))
        path = directory / "plots" / f"comparison_{first}_{second}.png"
        save_figure(figure, path)
        side = "above" if paired.first.mean() <= paired.second.mean() else "below"
        page.picture(
            path,
            f"{first} against {second}",
            f"Each point is a {'sample' if paired.groups is None else 'group, the larger the more samples it has'}; "
            f"{side} the dashed line, {first if side == 'above' else second} is the better.",
        )
    return comparisons


def _verdict(each: Mapping[str, Any]) -> str:
    """A comparison in a sentence."""
    better, other = ("first", "second") if each["difference"] <= 0 else ("second", "first")
    means = f"mean error {as_text(each[f'mean_error_{better}'])} against {as_text(each[f'mean_error_{other}'])}"
    told = f"on the {each['samples']:,} samples of known truth that both predict, p = {as_text(each['p'])}"
    left = [f"{each[f'only_{one}']:,} samples of {each[one]}" for one in ("first", "second") if each[f"only_{one}"]]
    if left:
        told += f"; {' and '.join(left)} are not compared"
    if each["p"] < 0.05:
        return f"{each[better]} errs less than {each[other]}: {means}, {told}."
    return f"{each[better]} and {each[other]} cannot be told apart: {means}, {told}."
