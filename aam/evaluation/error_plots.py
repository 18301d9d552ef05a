"""Figures of errors: residuals, errors by group and by what is known of samples, curves and calibration of classes.

Shapes: ``n`` samples, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.evaluation.plots import BLUE, COLOURS, GREY, VERMILLION, _empty_figure, _figure, _wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_plot", "curves_plot", "errors_against_plot", "group_plot", "interval_plot", "residual_plot"]

_MOST_GROUPS = 30
_BINS = 10


def residual_plot(actual: NDArray[Any], predicted: NDArray[Any], *, label: str = "") -> Figure:
    """Residuals against the actual values, and their distribution."""
    residual = np.asarray(predicted, dtype=float) - np.asarray(actual, dtype=float)
    figure = _empty_figure(8.6, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    left.scatter(actual, residual, s=22, alpha=0.6, color=BLUE, edgecolors="white", linewidths=0.4)
    right.hist(residual, bins="auto" if len(residual) > 1 else 1, orientation="horizontal", color=BLUE, alpha=0.8)
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel(f"actual {_wrap(label, 40)}")
    left.set_ylabel("predicted - actual")
    right.set_xlabel("samples")
    figure.suptitle(f"Residuals: mean {residual.mean():.3g}, standard deviation {residual.std():.3g}", fontsize=11)
    return figure


def errors_against_plot(errors: NDArray[Any], known: Mapping[str, NDArray[Any]], *, label: str) -> Figure:
    """Errors against each of some numbers, with the median of equal parts of the samples."""
    figure = _empty_figure(4.3 * max(1, len(known)), 3.8)
    panels = np.atleast_1d(figure.subplots(1, max(1, len(known)), sharey=True))
    for axes, (name, values) in zip(panels, known.items(), strict=False):
        values = np.asarray(values, dtype=float)
        axes.scatter(values, errors, s=16, alpha=0.5, color=BLUE, edgecolors="white", linewidths=0.3)
        if len(np.unique(values)) > 2 * _BINS:
            bins: Any = pd.qcut(values, min(_BINS, len(values) // 5 or 1), duplicates="drop")
            middle = pd.DataFrame({"x": values, "y": errors}).groupby(bins, observed=True).median()
            axes.plot(middle["x"], middle["y"], color=VERMILLION, linewidth=1.8, marker="o", markersize=3)
        if values.min() > 0 and values.max() > 20 * values.min():
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(label)
    return figure


def group_plot(errors: NDArray[Any], groups: NDArray[Any], *, label: str, name: str) -> Figure:
    """Errors of each group as a box, the worst first; of at most 30."""
    frame = pd.DataFrame({"group": np.asarray(groups).astype(str), "error": errors})
    order = frame.groupby("group")["error"].median().sort_values(ascending=False).index[:_MOST_GROUPS]
    figure, axes = _figure(max(5.0, 1.5 + 0.32 * len(order)), 4.2)
    boxes = [frame.loc[frame["group"] == group, "error"].to_numpy() for group in order]
    drawn = axes.boxplot(boxes, widths=0.6, showfliers=True, flierprops={"markersize": 3}, patch_artist=True)
    for box in drawn["boxes"]:
        box.set(facecolor=BLUE, alpha=0.5)
    for line in drawn["medians"]:
        line.set(color=VERMILLION)
    short = [group if len(group) <= 16 else f"{group[:15]}…" for group in order]
    names = [f"{group} ({len(box)})" for group, box in zip(short, boxes, strict=True)]
    axes.set_xticks(range(1, len(order) + 1), names, rotation=60, ha="right", fontsize=8)
    axes.set_ylabel(label)
    axes.set_title(
        f"Errors by {name}" + (f", the worst {len(order)}" if len(order) == _MOST_GROUPS else ""), fontsize=11
    )
    axes.spines[["top", "right"]].set_visible(False)
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
        left.plot(false, true, color=colour, linewidth=1.6, label=f"{_wrap(classes[place], 24)}: AUC {auc:.3f}")
        right.plot(recall, precision, color=colour, linewidth=1.6, label=f"average precision {average:.3f}")
        right.axhline(positive.mean(), color=colour, linewidth=0.8, linestyle=":")
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
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
    above.set_title(f"Calibration: expected error {error:.3f}", fontsize=11)
    above.set_ylabel("share that is of the class")
    below.bar(edges[:-1], numbers, width=1 / _BINS, align="edge", color=BLUE, alpha=0.7, edgecolor="white")
    below.set_xlabel("probability given")
    below.set_ylabel("number")
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
    axes.vlines(place, low[order], high[order], color=GREY, alpha=0.4, linewidth=1)
    axes.scatter(place, predicted[order], s=6, color=GREY, label="predicted")
    axes.scatter(place[inside], actual[order][inside], s=10, color=BLUE, label="actual, inside")
    axes.scatter(place[~inside], actual[order][~inside], s=16, color=VERMILLION, label="actual, outside")
    axes.set_xlabel("samples by their prediction")
    axes.set_ylabel(_wrap(label, 40))
    width = float(np.mean(high - low))
    axes.set_title(f"{100 * inside.mean():.1f} % inside, mean width {width:.3g}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
