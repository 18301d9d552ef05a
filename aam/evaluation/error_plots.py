"""Figures of errors: residuals, errors by group and by what is known of samples, curves and calibration of classes.

Shapes: ``n`` samples, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.evaluation.error_analysis import THE_TRUTH_ITSELF, short_names
from aam.evaluation.plots import BLUE, COLOURS, GREY, VERMILLION, _empty_figure, _figure, _square, _wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "calibration_plot",
    "comparison_plot",
    "curves_plot",
    "errors_against_plot",
    "explained_plot",
    "group_plot",
    "interval_plot",
    "residual_plot",
    "set_plot",
]

_MOST_GROUPS = 30
_BINS = 10


def residual_plot(actual: NDArray[Any], predicted: NDArray[Any], *, label: str = "") -> Figure:
    """Residuals against the actual values, with the median of equal parts of the samples, and their distribution."""
    actual = np.asarray(actual, dtype=float)
    residual = np.asarray(predicted, dtype=float) - actual
    figure = _empty_figure(8.6, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    left.scatter(actual, residual, s=22, alpha=0.5, color=BLUE, edgecolors="white", linewidths=0.4)
    if _draw_medians(left, actual, residual):
        left.legend(frameon=False, fontsize=8)
    right.hist(residual, bins="auto" if len(residual) > 1 else 1, orientation="horizontal", color=BLUE, alpha=0.8)
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel(_wrap(f"actual {label}".strip(), 60))
    left.set_ylabel(_wrap(f"predicted - actual {label}".strip(), 40))
    right.set_xlabel("samples")
    figure.suptitle(
        f"Residuals: mean (bias) {residual.mean():.3g}, standard deviation {residual.std():.3g}", fontsize=11
    )
    return figure


def _draw_medians(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    """Draw the median of equal parts of the samples; whether there are enough of them."""
    if len(np.unique(x)) <= 2 * _BINS:
        return False
    bins: Any = pd.qcut(x, min(_BINS, len(x) // 5 or 1), duplicates="drop")
    middle = pd.DataFrame({"x": x, "y": y}).groupby(bins, observed=True).median()
    name = "median of each tenth" if len(middle) == _BINS else "median of equal parts"
    axes.plot(middle["x"], middle["y"], color=VERMILLION, linewidth=1.8, marker="o", markersize=3, label=name)
    return True


def _scale_to(axes: Axes, values: NDArray[np.float64]) -> None:
    """A logarithmic axis where values are over decades, with numbers that can be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not (values.min() > 0 and values.max() > 20 * values.min()):
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 60 * values.min() else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _on_axis_of_dates(axes: Axes, values: NDArray[Any]) -> NDArray[np.float64]:
    """Dates as places on an axis, whose marks are dates; NaN for NaT."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    locator = AutoDateLocator(minticks=3, maxticks=7)  # with six it finds none for some spans, and warns
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return np.where(np.isnat(values), np.nan, date2num(values))


def errors_against_plot(errors: NDArray[Any], known: Mapping[str, NDArray[Any]], *, label: str) -> Figure:
    """Errors against each of some numbers, with the median of equal parts of the samples; or by category.

    Parameters
    ----------
    errors : ndarray (n,)
    known : mapping of str to ndarray (n,)
        Numbers, datetime64, or text for categories; NaN, NaT and empty text are left out.
    label : str
        What an error is.
    """
    across = min(3, max(1, len(known)))
    down = max(1, -(-len(known) // across))
    figure = _empty_figure(4.3 * across, 3.6 * down)
    panels = np.atleast_1d(figure.subplots(down, across, sharey=True, squeeze=False)).ravel()
    for place, (axes, (name, given)) in enumerate(zip(panels, known.items(), strict=False)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(_wrap(name, 40))
        if place % across == 0:
            axes.set_ylabel(label)
        values = np.asarray(given)
        if values.dtype.kind not in "fiuM":
            _draw_boxes(axes, errors, values.astype(str))
            continue
        dates = values.dtype.kind == "M"
        if dates:
            values = _on_axis_of_dates(axes, values)
        there = np.isfinite(values.astype(float))
        x, y = values.astype(float)[there], np.asarray(errors, dtype=float)[there]
        axes.scatter(x, y, s=16, alpha=0.5, color=BLUE, edgecolors="white", linewidths=0.3)
        if _draw_medians(axes, x, y) and place == 0:
            axes.legend(frameon=False, fontsize=8)
        if len(x) and not dates:
            _scale_to(axes, x)
    for axes in panels[len(known) :]:
        axes.set_axis_off()
    return figure


def _draw_boxes(axes: Axes, errors: NDArray[Any], groups: NDArray[Any], *, most: int = 8) -> None:
    """A box for each of the largest categories, the largest median error first."""
    frame = pd.DataFrame({"group": groups, "error": np.asarray(errors, dtype=float)})
    frame = frame[frame["group"] != ""]
    largest = frame["group"].value_counts(sort=True).index[:most]
    median = frame[frame["group"].isin(largest)].groupby("group")["error"].median()
    order = median.sort_values(ascending=False, kind="stable").index
    _boxes(axes, [frame.loc[frame["group"] == group, "error"].to_numpy() for group in order], list(order))


def _boxes(axes: Axes, boxes: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
    drawn = axes.boxplot(boxes, widths=0.6, showfliers=True, flierprops={"markersize": 3}, patch_artist=True)
    for box in drawn["boxes"]:
        box.set(facecolor=BLUE, alpha=0.5)
    for line in drawn["medians"]:
        line.set(color=VERMILLION, linewidth=1.6)
    short = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    shown = [f"{name} ({len(box)})" for name, box in zip(short, boxes, strict=True)]
    slant = 60 if len(shown) > 4 else 20 if max(map(len, shown), default=0) * len(shown) > 36 else 0
    axes.set_xticks(range(1, len(shown) + 1), shown, fontsize=8)
    for tick in axes.get_xticklabels() if slant else ():
        tick.set(rotation=slant, ha="right", rotation_mode="anchor")


def group_plot(errors: NDArray[Any], groups: NDArray[Any], *, label: str, name: str) -> Figure:
    """Errors of each group as a box, the worst first; of at most 30."""
    frame = pd.DataFrame({"group": short_names(groups), "error": errors})
    number = frame["group"].nunique()
    order = frame.groupby("group")["error"].median().sort_values(ascending=False).index[:_MOST_GROUPS]
    figure, axes = _figure(max(5.0, 1.5 + 0.32 * len(order)), 4.2)
    _boxes(axes, [frame.loc[frame["group"] == group, "error"].to_numpy() for group in order], list(order))
    axes.set_xlabel(f"{name} (number of samples)")
    axes.set_ylabel(label)
    which = f"the {len(order)} of {number} with the largest median" if number > len(order) else "largest median first"
    axes.set_title(_wrap(f"Errors by {name}, {which}", 90), fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def explained_plot(explained: pd.DataFrame, *, most: int = 20) -> Figure:
    """How much of the errors each column explains, the surest first.

    Parameters
    ----------
    explained : DataFrame
        See `aam.evaluation.error_analysis.explaining_columns`.
    most : int
        Columns, the most telling ones.
    """
    from matplotlib.patches import Patch

    shown = explained.head(most)[::-1]
    figure, axes = _figure(7.4, max(3.0, 1.3 + 0.27 * len(shown)))
    sure = (shown["q"] < 0.05).to_numpy()
    same = (shown["like_truth"] >= THE_TRUTH_ITSELF).to_numpy()
    colours = np.where(same, COLOURS[5], np.where(sure, BLUE, "#BBBBBB"))
    names = [name if len(name) <= 34 else f"{name[:33]}…" for name in shown["column"]]
    axes.barh(range(len(shown)), 100 * shown["explained"].clip(lower=0), color=colours)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_xlabel("explained, % of the ranks of the errors")
    axes.spines[["top", "right"]].set_visible(False)
    legend = {
        "more than chance (q < 0.05)": (BLUE, (sure & ~same).any()),
        "may be chance": ("#BBBBBB", (~sure & ~same).any()),
        "the truth in other words": (COLOURS[5], same.any()),
    }
    patches = [Patch(color=colour, label=name) for name, (colour, there) in legend.items() if there]
    axes.legend(handles=patches, frameon=False, fontsize=8, loc="lower right")
    return figure


def comparison_plot(
    first: NDArray[Any], second: NDArray[Any], groups: NDArray[Any] | None, *, names: tuple[str, str]
) -> Figure:
    """Mean errors of each group by one model against those by another; of each sample without groups.

    Parameters
    ----------
    first, second : ndarray (n,)
        Errors of the same samples.
    groups : ndarray (n,), optional
    names : tuple of two str
    """
    frame = pd.DataFrame({"x": np.asarray(first, dtype=float), "y": np.asarray(second, dtype=float), "n": 1})
    if groups is not None:
        frame = frame.groupby(np.asarray(groups).astype(str)).agg({"x": "mean", "y": "mean", "n": "size"})
    figure, axes = _figure(5.2, 5.0)
    ends = _square(axes, frame["x"].to_numpy(), frame["y"].to_numpy())
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    size = 18 if groups is None else 12 + 60 * frame["n"] / frame["n"].max()
    axes.scatter(frame["x"], frame["y"], s=size, alpha=0.6, color=BLUE, edgecolors="white", linewidths=0.4)
    axes.set_xlabel(_wrap(f"mean error by {names[0]}" if groups is not None else f"error by {names[0]}", 40))
    axes.set_ylabel(_wrap(f"mean error by {names[1]}" if groups is not None else f"error by {names[1]}", 40))
    better = int((frame["x"] < frame["y"]).sum())
    unit = "samples" if groups is None else "groups"
    axes.set_title(_wrap(f"{names[0]} errs less in {better} of {len(frame)} {unit}", 50), fontsize=11)
    return figure


def curves_plot(actual: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Receiver operating characteristic and precision against recall, of each class against the rest.

    Parameters
    ----------
    actual : ndarray (n,) of str
    probabilities : ndarray (n, K)
    classes : sequence of str
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure = _empty_figure(9.2, 4.4)
    left, right = figure.subplots(1, 2)
    shown = [1] if len(classes) == 2 else range(len(classes))
    for place, colour in zip(shown, COLOURS * (1 + len(classes) // len(COLOURS)), strict=False):
        positive = actual == classes[place]
        if not 0 < positive.sum() < len(positive):
            continue
        score = probabilities[:, place]
        false, true, _ = roc_curve(positive, score)
        precision, recall, _ = precision_recall_curve(positive, score)
        auc, average = roc_auc_score(positive, score), average_precision_score(positive, score)
        left.plot(false, true, color=colour, linewidth=1.6, label=f"{_wrap(classes[place], 24)}: area {auc:.3f}")
        name = _wrap(classes[place], 24)
        right.plot(recall, precision, color=colour, linewidth=1.6, label=f"{name}: average precision {average:.3f}")
        right.axhline(positive.mean(), color=colour, linewidth=0.8, linestyle=":")
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="chance")
    left.set_title("ROC curve", fontsize=11)
    right.set_title("Precision against recall (dotted: chance)", fontsize=11)
    for axes, x, y in ((left, "false positive rate", "true positive rate"), (right, "recall", "precision")):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="lower right" if axes is left else "lower left")
    return figure


def calibration_plot(actual: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]) -> Figure:
    """How often a class is the true one where it is given a probability; and how often which probabilities are given.

    Parameters
    ----------
    actual : ndarray (n,) of str
    probabilities : ndarray (n, K)
    classes : sequence of str
        All are pooled, but of two the second alone.
    """
    shown = [1] if len(classes) == 2 else list(range(len(classes)))
    given = probabilities[:, shown].ravel()
    true = np.stack([actual == classes[place] for place in shown], axis=1).ravel()
    figure = _empty_figure(5.4, 5.4)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.clip(np.digitize(given, edges) - 1, 0, _BINS - 1)
    numbers = np.bincount(bins, minlength=_BINS)
    filled = numbers > 0
    mean = np.bincount(bins, weights=given, minlength=_BINS)[filled] / numbers[filled]
    share = np.bincount(bins, weights=true, minlength=_BINS)[filled] / numbers[filled]
    # Wilson's interval (1927): an observed 0 or 1 of few samples is no certainty.
    n, z = numbers[filled], 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    reach = np.abs(np.stack([share - (centre - half), (centre + half) - share]).clip(min=0))
    above.errorbar(mean, share, yerr=reach, color=BLUE, marker="o", linewidth=1.4, capsize=2)
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    error = float((n * np.abs(mean - share)).sum() / n.sum())
    above.set_title(f"Calibration: expected calibration error {error:.3f}", fontsize=11)
    one = _wrap(classes[1], 24) if len(classes) == 2 else "the class"
    above.set_ylabel(f"share that is {one} (95 % interval)")
    below.bar(edges[:-1], numbers, width=1 / _BINS, align="edge", color=BLUE, alpha=0.7, edgecolor="white")
    below.set_xlabel(f"predicted probability of {one}")
    below.set_ylabel("samples" if len(classes) == 2 else "samples × classes")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def interval_plot(
    actual: NDArray[Any], predicted: NDArray[Any], low: NDArray[Any], high: NDArray[Any], *, label: str = ""
) -> Figure:
    """Predictions with their intervals, in the order of the predictions; those that miss the truth stand out."""
    order = np.argsort(predicted, kind="stable")
    inside = ((low <= actual) & (actual <= high))[order]
    place = np.arange(len(order))
    figure, axes = _figure(8.0, 4.2)
    axes.fill_between(place, low[order], high[order], step="mid", color=GREY, alpha=0.25, linewidth=0, label="interval")
    axes.plot(place, predicted[order], color=GREY, linewidth=1.2, label="predicted")
    axes.scatter(place[inside], actual[order][inside], s=9, color=BLUE, label="actual, inside")
    axes.scatter(
        place[~inside], actual[order][~inside], s=16, color=VERMILLION, marker="D", label="actual, outside", zorder=3
    )
    axes.set_xlabel("samples in the order of their prediction")
    axes.set_ylabel(_wrap(label, 40) or "value")
    width = float(np.mean(high - low))
    axes.set_title(f"{100 * inside.mean():.1f} % of the intervals hold the truth; mean width {width:.3g}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def set_plot(actual: NDArray[Any], within: NDArray[np.bool_], classes: Sequence[str]) -> Figure:
    """How many classes prediction sets have, and how often they hold the truth, by actual class.

    Parameters
    ----------
    actual : ndarray (n,) of str
    within : ndarray (n, K) of bool
        Whether a class is in a sample's set.
    classes : sequence of K str
    """
    held = within[np.arange(len(actual)), np.searchsorted(classes, actual)]
    sizes = within.sum(axis=1)
    figure = _empty_figure(8.6, 4.2)
    left, right = figure.subplots(1, 2)
    place = np.arange(sizes.min(), sizes.max() + 1)
    inside, outside = (np.array([(those & (sizes == size)).sum() for size in place]) for those in (held, ~held))
    left.bar(place, inside, width=0.7, color=BLUE, label="truth inside")
    left.bar(place, outside, width=0.7, bottom=inside, color=VERMILLION, label="truth outside")
    left.set_xticks(place)
    left.set_xlabel("classes in the set")
    left.set_ylabel("samples")
    left.legend(frameon=False, fontsize=9)
    occurring = [name for name in classes if (actual == name).any()][:_MOST_GROUPS]
    shares = [100 * held[actual == name].mean() for name in occurring]
    rows = np.arange(len(occurring))[::-1]
    right.barh(rows, shares, height=0.6, color=BLUE)
    right.axvline(100 * held.mean(), color=GREY, linestyle="--", linewidth=1)
    right.set_yticks(rows, [_wrap(str(name), 24) for name in occurring])
    right.set_xlim(0, 100)
    right.set_xlabel("% of sets that hold the truth; dashed: of all samples")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{100 * held.mean():.1f} % of the sets hold the truth; {sizes.mean():.3g} classes on average", fontsize=11
    )
    return figure
