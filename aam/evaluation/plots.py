"""Figures of predictions and training curves.

Drawn with matplotlib's object interface on the Agg canvas: no global state, no display, safe in threads. Colours are
viridis and Okabe & Ito's (2008), which the colour-blind can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.evaluation.ordination import align, pcoa

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "confusion_plot",
    "distance_plot",
    "history_plot",
    "ordination_plot",
    "range_test_plot",
    "regression_plot",
    "save_figure",
    "scatter_plot",
]

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"
MARKERS_UP_TO = 40  # epochs; longer curves are drawn without points
PANELS_PER_ROW = 3
# For classes: Okabe & Ito's without the yellow that vanishes on white, and a purple.
COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F3C8D")


def regression_plot(
    actual: Sequence[float] | NDArray[Any],
    predicted: Sequence[float] | NDArray[Any],
    *,
    title: str = "",
    units_label: str = "",
) -> Figure:
    """Plot predicted against actual values, with the identity line, R² and MAE.

    Parameters
    ----------
    actual, predicted : array_like, shape (N,)
        In the units that a person reads; pairs with a NaN are left out, and the plot says how many.
    title : str
    units_label : str
        What the values are, for both axes: ``age (months)``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    y, p, left_out = _finite_pairs(actual, predicted)
    figure, axes = _figure(5.6, 5.2)
    low, high = _square(axes, y, p)
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--", zorder=1)
    size, alpha = (28, 0.65) if len(y) <= 500 else (10, 0.35)
    axes.scatter(y, p, s=size, alpha=alpha, color=BLUE, edgecolors="white", linewidths=0.4, zorder=2)
    _label(axes, title, units_label)
    _note(axes, _fit_text(y, p, left_out))
    return figure


def distance_plot(
    actual: Sequence[float] | NDArray[Any],
    predicted: Sequence[float] | NDArray[Any],
    *,
    title: str = "",
    what: str = "distance",
    counted: str = "pairs of samples",
    r2: float | None = None,
) -> Figure:
    """Plot the density of predicted against actual distances between samples, with the identity line, R² and MAE.

    Parameters
    ----------
    actual, predicted : array_like
        The same pairs of samples in the same order, whatever the shape; pairs with a NaN are left out.
    title : str
    what, counted : str
        What is plotted, and of what there are so many: other things than distances can be as dense.
    r2 : float, optional
        Where it is not 1 - SS_residual / SS_total of what is plotted.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    y, p, left_out = _finite_pairs(actual, predicted)
    figure, axes = _figure(6.2, 5.2)
    low, high = _square(axes, y, p)
    if len(y):
        cells = int(np.clip(np.sqrt(len(y)), 15, 60))
        pairs = axes.hexbin(
            y, p, gridsize=cells, extent=(low, high, low, high), mincnt=1, cmap="viridis", linewidths=0.1
        )
        most = int(np.asarray(pairs.get_array()).max())
        pairs.set_norm(LogNorm(1, most) if most >= 100 else Normalize(0, most))
        bar = figure.colorbar(pairs, ax=axes, label=counted, shrink=0.9)
        if most < 100:
            bar.locator = MaxNLocator(6, integer=True)
    axes.plot([low, high], [low, high], color=VERMILLION, linewidth=1.2, linestyle="--")
    _label(axes, title, what)
    _note(axes, _fit_text(y, p, left_out, r2))
    return figure


def confusion_plot(
    actual_labels: Sequence[Any] | NDArray[Any],
    predicted_labels: Sequence[Any] | NDArray[Any],
    classes: Sequence[Any] | NDArray[Any],
    title: str = "",
) -> Figure:
    """Plot a confusion matrix: counts in the cells, the share of the actual class as colour.

    Balanced accuracy, in the title, is the mean recall over the classes that occur among the actual labels; where one
    alone does, it is plain accuracy, and called so.

    Parameters
    ----------
    actual_labels, predicted_labels : array_like, shape (N,)
        Labels out of ``classes``.
    classes : array_like, shape (K,)
        In the order in which they are to be shown.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = [str(c) for c in classes]
    position = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    rows = [position[str(label)] for label in actual_labels]
    columns = [position[str(label)] for label in predicted_labels]
    np.add.at(counts, (rows, columns), 1)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    occurs = total[:, 0] > 0
    measure = "accuracy" if occurs.sum() == 1 else "balanced accuracy"
    mean = f"{share.diagonal()[occurs].mean():.3f}" if occurs.any() else "n/a"

    side = float(np.clip(0.36 * len(names) + 1.6, 3.6, 14.0))
    cell = 72 * (side - 1.6) / max(1, len(names))  # side of a cell, about, in points
    figure, axes = _figure(side + 1.8, side + 0.9)
    image = axes.imshow(share, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the actual class", shrink=0.85)
    shown = [_plain(name if len(name) <= 24 else f"{name[:23]}…") for name in names]
    slanted = len(names) > 6 or max(map(len, shown), default=0) > 10
    axes.set_xticks(range(len(names)), shown, rotation=60 if slanted else 0, ha="right" if slanted else "center")
    if slanted:
        for tick in axes.get_xticklabels():
            tick.set_rotation_mode("anchor")
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0, labelsize=float(np.clip(0.7 * cell, 3, 9)))
    axes.spines[:].set_visible(False)
    for i, j in np.argwhere(counts > 0) if cell >= 10 else ():  # else the numbers would run into each other
        color = "black" if share[i, j] > 0.6 else "white"
        axes.text(
            j, i, str(counts[i, j]), ha="center", va="center", size=float(np.clip(0.35 * cell, 5, 10)), color=color
        )
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    figure.suptitle("\n".join(filter(None, [_wrap(title, int(9 * side)), f"{measure} {mean}"])), fontsize=11)
    return figure


def ordination_plot(
    actual: NDArray[Any],
    predicted: NDArray[Any],
    *,
    title: str = "",
    colours: NDArray[Any] | None = None,
    colours_label: str = "",
) -> Figure:
    """Draw samples by their actual and by their predicted distances, side by side and on one scale.

    Parameters
    ----------
    actual, predicted : ndarray (N, N)
        Distances; the predicted ordination is turned (and mirrored) onto the actual one.
    title : str
    colours : ndarray (N,), optional
        A number or a class of each sample.
    colours_label : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    truth, guess = pcoa(actual), pcoa(predicted)
    turned, correlation = align(guess.coordinates, truth.coordinates)
    # Turned axes are no principal ones: each has its own share of what both explain.
    spread = np.square(turned - turned.mean(axis=0)).sum(axis=0)
    share = spread / max(spread.sum(), 1e-300) * guess.explained.sum()

    figure = _empty_figure(9.4, 4.9)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, points, explained in zip(
        panels,
        ("actual distances", "predicted distances, turned to match"),
        (truth.coordinates, turned),
        (truth.explained, share),
        strict=True,
    ):
        marks = _scatter(axes, points, colours)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(f"PC1 ({100 * explained[0]:.1f} %)")
        axes.set_ylabel(f"PC2 ({100 * explained[1]:.1f} %)")
        axes.tick_params(labelleft=True)
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
        axes.axvline(0, color=GREY, linewidth=0.5, zorder=0)
    both = np.concatenate([truth.coordinates, turned])
    centre, reach = (both.max(axis=0) + both.min(axis=0)) / 2, np.ptp(both, axis=0) / 2
    reach = 1.08 * np.maximum(reach, 0.6 * reach.max() or 1.0)  # 0 where all samples are one point
    panels[0].set_xlim(centre[0] - reach[0], centre[0] + reach[0])
    panels[0].set_ylim(centre[1] - reach[1], centre[1] + reach[1])
    _explain_colours(figure, list(panels), marks, colours, colours_label)
    told = f"PCoA of {len(turned):,} samples, Procrustes correlation {correlation:.3f}"
    figure.suptitle("\n".join(filter(None, [_wrap(title, 90), told])), fontsize=11)
    return figure


def scatter_plot(
    points: NDArray[Any],
    *,
    labels: tuple[str, str],
    title: str = "",
    colours: NDArray[Any] | None = None,
    colours_label: str = "",
) -> Figure:
    """Draw samples on two axes.

    Parameters
    ----------
    points : ndarray (N, 2)
    labels : tuple of two str
        Of the axes.
    title : str
    colours : ndarray (N,), optional
        A number or a class of each sample.
    colours_label : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = _empty_figure(7.2, 5.2)
    axes = figure.subplots()
    marks = _scatter(axes, points, colours)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    _explain_colours(figure, [axes], marks, colours, colours_label)
    figure.suptitle(_wrap(title, 90), fontsize=11)
    return figure


def _explain_colours(
    figure: Figure, panels: Sequence[Axes], marks: Any, colours: NDArray[Any] | None, colours_label: str
) -> None:
    """A bar of the numbers that `_scatter` coloured points by, or a legend of the classes."""
    label = _wrap(colours_label, 40)
    if marks is not None:
        figure.colorbar(marks, ax=panels, label=label, shrink=0.9)
    elif colours is not None:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, title=label, loc="outside right center", frameon=False, fontsize=9)


def history_plot(history: pd.DataFrame) -> Figure:
    """Plot training and validation curves over the epochs.

    Parameters
    ----------
    history : pandas.DataFrame
        One row per epoch, with a column ``epoch``; each metric ``X`` that has both a column ``train_X`` and a column
        ``val_X`` gets a panel of its own, in the order of the columns.

    Returns
    -------
    matplotlib.figure.Figure
    """
    metrics = [
        str(column).removeprefix("train_")
        for column in history.columns
        if str(column).startswith("train_") and f"val_{str(column).removeprefix('train_')}" in history.columns
    ]
    across = 2 if len(metrics) == 4 else min(PANELS_PER_ROW, max(1, len(metrics)))
    down = max(1, -(-len(metrics) // across))
    figure = _empty_figure(max(4.6, 3.6 * across), 0.4 + 2.7 * down)
    if not metrics:
        figure.text(0.5, 0.5, "no metric of training and validation both", ha="center", va="center", color=GREY)
        return figure

    panels = figure.subplots(down, across, squeeze=False).ravel()
    marker = "o" if len(history) <= MARKERS_UP_TO else None
    for axes, metric in zip(panels, metrics, strict=False):
        for part, color, style in (("train", BLUE, "-"), ("val", VERMILLION, "--")):
            curve = history[["epoch", f"{part}_{metric}"]].to_numpy(dtype=np.float64)  # (epochs, 2)
            curve = curve[np.isfinite(curve).all(axis=1)]
            label = {"train": "training", "val": "validation"}[part]
            axes.plot(*curve.T, color=color, linestyle=style, marker=marker, markersize=3, label=label)
        axes.set_title(metric, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if history["epoch"].nunique() == 1:  # else the axis would be marked in thousandths of an epoch
            axes.set_xlim(history["epoch"].iloc[0] - 1, history["epoch"].iloc[0] + 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def range_test_plot(
    lr: NDArray[np.float64], loss: NDArray[np.float64], smoothed: NDArray[np.float64], suggestion: float | None
) -> Figure:
    """Plot a learning-rate range test, with the rate that is suggested.

    Parameters
    ----------
    lr, loss, smoothed : ndarray (n,)
        Of every step.
    suggestion : float, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _figure(6.4, 4.2)
    axes.plot(lr, loss, color=GREY, linewidth=0.8, alpha=0.6, label="loss of each step")
    axes.plot(lr, smoothed, color=BLUE, linewidth=1.8, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color=VERMILLION, linestyle="--", linewidth=1.2, label=f"suggested: {suggestion:.2g}")
    known = smoothed[np.isfinite(smoothed)]
    if len(known):  # a loss that runs away must not flatten the rest
        low, start = min(known.min(), np.nanmin(loss)), known[: max(1, len(known) // 4)].max()
        axes.set_ylim(low - 0.1 * (start - low) - 1e-9, start + 0.5 * (start - low) + 1e-9)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the format is the path's suffix (``.png``, ``.svg``, ``.pdf``). Missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _scatter(axes: Axes, points: NDArray[np.float64], colours: NDArray[Any] | None) -> Any:
    """Draw the samples; what a colour bar is made of where the colours are numbers."""
    x, y = points.T
    style: Any = {"s": 26, "alpha": 0.8, "edgecolors": "white", "linewidths": 0.4}
    if colours is None:
        axes.scatter(x, y, color=COLOURS[0], **style)
        return None
    if colours.dtype.kind in "fiu":
        return axes.scatter(x, y, c=colours, cmap="viridis", **style)
    text = colours.astype(str)
    names, sizes = np.unique(text, return_counts=True)
    frequent = names[np.argsort(-sizes, kind="stable")]
    own = frequent if len(frequent) <= len(COLOURS) else frequent[: len(COLOURS) - 1]
    for name, colour in zip(own, COLOURS, strict=False):
        shown = name if len(name) <= 24 else f"{name[:23]}…"
        axes.scatter(x[text == name], y[text == name], color=colour, label=shown, **style)
    if len(own) < len(frequent):
        others = ~np.isin(text, own)
        label = f"{len(frequent) - len(own)} others"
        axes.scatter(x[others], y[others], color="#bbbbbb", label=label, zorder=0.5, **style)
    return None


def _empty_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _empty_figure(width, height)
    return figure, figure.subplots()


def _finite_pairs(actual: Any, predicted: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    y, p = np.asarray(actual, dtype=np.float64).ravel(), np.asarray(predicted, dtype=np.float64).ravel()
    assert y.shape == p.shape, f"{y.size} actual and {p.size} predicted values"
    finite = np.isfinite(y) & np.isfinite(p)
    return y[finite], p[finite], int((~finite).sum())


def _square(axes: Axes, y: NDArray[np.float64], p: NDArray[np.float64]) -> tuple[float, float]:
    """Give both axes one range, so that the identity line is the diagonal."""
    from matplotlib.ticker import MaxNLocator

    both = np.concatenate([y, p])
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(scilimits=(-3, 5), useMathText=True)
    axes.spines[["top", "right"]].set_visible(False)
    return low, high


def _fit_text(y: NDArray[np.float64], p: NDArray[np.float64], left_out: int, known_r2: float | None = None) -> str:
    r2 = mae = "n/a"
    if y.size:
        error = float(np.abs(y - p).mean())
        mae = f"{error:,.0f}" if error >= 1000 else f"{error:.3g}"
        spread = np.square(y - y.mean()).sum()
        if spread > 0:  # else all actual values are the same, and there is no variance to explain
            r2 = f"{1 - np.square(y - p).sum() / spread if known_r2 is None else known_r2:.3f}"
    lines = [f"R² = {r2}", f"MAE = {mae}", f"n = {y.size:,}"]
    if left_out:
        lines.append(f"{left_out:,} without a value left out")
    return "\n".join(lines)


def _label(axes: Axes, title: str, what: str) -> None:
    axes.set_title(_wrap(title, 56), fontsize=11)
    axes.set_xlabel(_wrap(f"actual {what}".strip(), 56))
    axes.set_ylabel(_wrap(f"predicted {what}".strip(), 56))


def _note(axes: Axes, text: str) -> None:
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "#cccccc", "alpha": 0.85}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, ha="left", va="top", fontsize=9, bbox=box, zorder=3)


def _wrap(text: str, width: int) -> str:
    from textwrap import fill

    return _plain(fill(text, width))


def _plain(text: str) -> str:
    """Escape dollars, between which matplotlib would read mathematics."""
    return text.replace("$", r"\$")
