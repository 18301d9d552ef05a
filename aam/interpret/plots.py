"""Pictures of importances and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_plot", "deletion_plot", "importance_plot", "matrix_plot"]

# Okabe & Ito's (2008), which the colour-blind can tell apart.
_RISES, _FALLS, _UNKNOWN = "#D55E00", "#0072B2", "#666666"
_COLOURS = (_FALLS, _RISES, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _plain(text: str) -> str:
    """Escape dollars, between which matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def importance_plot(
    labels: Sequence[str],
    importance: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    direction: NDArray[np.float64],
    *,
    title: str,
    what: str,
) -> Figure:
    """Bars of some units, the most important first, with intervals, coloured by direction.

    Parameters
    ----------
    labels : sequence of str, length T
    importance, low, high, direction : ndarray (T,)
        NaN where there is no interval, 0 where a direction is not known.
    title, what : str
        What is explained, and in which units importances are.
    """
    figure = _figure(7.2, 1.3 + 0.27 * max(4, len(labels)))
    axes = figure.subplots()
    places = np.arange(len(labels))[::-1]
    for sign, colour, name in ((1, _RISES, "raises"), (-1, _FALLS, "lowers"), (0, _UNKNOWN, "direction not known")):
        own = direction == sign
        if own.any():
            axes.barh(places[own], importance[own], color=colour, height=0.72, label=name)
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ends = np.abs(np.stack([(importance - low)[known], (high - importance)[known]]))
        axes.errorbar(importance[known], places[known], xerr=ends, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_yticks(places, [_plain(label) for label in labels], fontsize=8)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel(_plain(what), fontsize=9)
    axes.set_title(_plain(title), fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if (direction != 0).any():
        axes.legend(frameon=False, fontsize=8, loc="lower right", title="the prediction", title_fontsize=8)
    return figure


def deletion_plot(
    numbers: Sequence[int], curves: Mapping[str, Sequence[float]], random: Sequence[float], *, title: str, what: str
) -> Figure:
    """How far predictions move where the top ``k`` ASVs are left out, by method, and where as many random ones are.

    Parameters
    ----------
    numbers : sequence of int, length K
    curves : mapping of str to sequence of float, length K
        By method.
    random : sequence of float, length K
    title, what : str
    """
    figure = _figure(6.0, 4.2)
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        axes.plot(numbers, curve, marker="o", markersize=4, color=colour, label=name)
    axes.plot(numbers, random, marker="o", markersize=4, color=_UNKNOWN, linestyle="--", label="random ASVs")
    axes.set_xscale("log")
    axes.set_xticks(list(numbers), [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ASVs left out of each sample")
    axes.set_ylabel(_plain(what), fontsize=9)
    axes.set_title(_plain(title), fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def attention_plot(
    layers: Mapping[str, NDArray[np.floating[Any]]], labels: Sequence[str], pooling: NDArray[np.float64], *, title: str
) -> Figure:
    """Heat maps of attention within a sample, a panel for each layer, and what is pooled beside them.

    Parameters
    ----------
    layers : mapping of str to ndarray (S, S)
        From rows to columns.
    labels : sequence of str, length S
        Of the ASVs.
    pooling : ndarray (S,)
    title : str
    """
    number, size = len(layers), len(labels)
    side = 1.4 + 0.13 * size
    figure = _figure(2.6 + side * number, 1.6 + side)
    panels = figure.subplots(1, number + 1, squeeze=False, width_ratios=[*[size] * number, max(1.0, size / 12)])[0]
    most = max(float(np.quantile(weights, 0.99)) for weights in layers.values())
    image = None
    for panel, (name, weights) in zip(panels, layers.items(), strict=False):
        image = panel.imshow(weights, cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        panel.set_title(name, fontsize=9)
        panel.set_yticks([])
        panel.set_xticks(range(size), [_plain(label) for label in labels], fontsize=6, rotation=90)
    panels[0].set_yticks(range(size), [_plain(label) for label in labels], fontsize=6)
    panels[0].set_ylabel("from", fontsize=8)
    panels[-1].imshow(pooling[:, None], cmap="magma", vmin=0, aspect="auto", interpolation="nearest")
    panels[-1].set_title("in all", fontsize=9)
    panels[-1].set_xticks([])
    panels[-1].set_yticks([])
    if image is not None:
        figure.colorbar(image, ax=list(panels), shrink=0.6, label="attention", extend="max")
    figure.suptitle(_plain(title), fontsize=11)
    return figure


def matrix_plot(
    values: NDArray[np.floating[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    label: str,
    signed: bool = False,
    tick_every: int = 1,
    axes_labels: tuple[str, str] = ("", ""),
) -> Figure:
    """A heat map with names on both sides.

    Parameters
    ----------
    values : ndarray (R, C)
    rows, columns : sequence of str
    title, label : str
        The second of the colour bar.
    signed : bool
        Colours on both sides of 0.
    tick_every : int
        Name every so many columns alone.
    axes_labels : tuple of str
        Of the columns and of the rows.
    """
    wide = 0.22 * len(columns) if tick_every == 1 else 0.06 * len(columns)
    figure = _figure(3.6 + wide, 1.6 + 0.22 * len(rows))
    axes = figure.subplots()
    most = float(np.abs(values).max()) or 1.0
    style: dict[str, Any] = {"cmap": "viridis", "vmin": 0}
    if signed:
        style = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **style)
    places = range(0, len(columns), tick_every)
    axes.set_xticks(
        list(places), [_plain(columns[place]) for place in places], fontsize=7, rotation=90 if tick_every == 1 else 0
    )
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows], fontsize=7)
    axes.set_xlabel(axes_labels[0], fontsize=9)
    axes.set_ylabel(axes_labels[1], fontsize=9)
    axes.set_title(_plain(title), fontsize=11)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return figure
