"""Figures of a search for settings: how it went, what mattered, and which values went with which figures.

Shapes: ``T`` trials, ``P`` options that are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aam.evaluation.plots import BLUE, GREY, VERMILLION, _empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Axis", "importances_plot", "parallel_plot", "trials_plot"]


class Axis(NamedTuple):
    """An option that is searched."""

    name: str
    log: bool = False
    labels: tuple[str, ...] = ()  # of choices, whose values are their places


def trials_plot(
    numbers: Sequence[int], values: Sequence[float], pruned: Sequence[bool], *, label: str, lower: bool
) -> Figure:
    """Plot the value of each trial, and the best one so far.

    Parameters
    ----------
    numbers : sequence of int, length T
        In increasing order.
    values : sequence of float, length T
        Of pruned trials what they had come to.
    pruned : sequence of bool, length T
    label : str
        What the values are.
    lower : bool
        Whether lower ones are better.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _empty_figure(6.4, 4.0)
    axes = figure.add_subplot()
    x, y, cut = np.asarray(numbers), np.asarray(values, dtype=np.float64), np.asarray(pruned, dtype=bool)
    if cut.any():
        axes.scatter(x[cut], y[cut], s=26, marker="x", color=GREY, linewidths=1.2, label="pruned")
    axes.scatter(x[~cut], y[~cut], s=30, color=BLUE, edgecolors="white", linewidths=0.4, label="trained to its end")
    best = (np.minimum if lower else np.maximum).accumulate(y[~cut])
    axes.step(x[~cut], best, where="post", color=VERMILLION, linewidth=1.4, label="best so far")
    ends = y[~cut]
    if cut.any() and len(ends) and np.ptp(ends):  # what was pruned may be worse by far
        low, high = float(ends.min()), float(ends.max())
        room = 0.5 * (high - low)
        axes.set_ylim(max(float(y.min()), low - room) - 0.1 * room, min(float(y.max()), high + room) + 0.1 * room)
    axes.set(xlabel="trial", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return figure


def importances_plot(importances: Mapping[str, float]) -> Figure:
    """Plot how much of the variance of the value each option explains, the most at the top.

    Parameters
    ----------
    importances : mapping of str to float
        Of P options; of none, the figure says so.
    """
    figure = _empty_figure(6.4, 1.2 + 0.32 * max(2, len(importances)))
    if not importances:
        figure.text(
            0.5, 0.5, "too few trials, or all alike, to tell what mattered", ha="center", va="center", color=GREY
        )
        return figure
    axes = figure.add_subplot()
    names = sorted(importances, key=importances.__getitem__)
    shares = [importances[name] for name in names]
    axes.barh(range(len(names)), shares, color=BLUE, height=0.65)
    for place, share in enumerate(shares):
        axes.text(share + 0.01 * max(shares), place, f"{share:.2f}", va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.set_xlabel("importance (share of the variance between trials)")
    return figure


def parallel_plot(axes_of: Sequence[Axis], rows: Any, values: Sequence[float], *, label: str, lower: bool) -> Figure:
    """Plot each trial as a line through the values of its options, in the colour of what it came to.

    Parameters
    ----------
    axes_of : sequence of Axis, length P
    rows : array_like (T, P)
        Values; of choices their places.
    values : sequence of float, length T
    label : str
    lower : bool
        Whether lower values are better; the better ones are dark and drawn last.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    points, y = np.asarray(rows, dtype=np.float64).reshape(len(values), len(axes_of)), np.asarray(values, dtype=float)
    figure = _empty_figure(max(6.4, 1.25 * (len(axes_of) + 1)), 4.2)
    axes = figure.add_subplot()
    low, high = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
    room = 0.0 if high > low else 0.5
    colours = ScalarMappable(Normalize(low - room, high + room), "viridis" if lower else "viridis_r")
    scaled = np.empty_like(points)
    for place, axis in enumerate(axes_of):
        column = np.log10(points[:, place]) if axis.log else points[:, place]
        first, last = (0.0, len(axis.labels) - 1.0) if axis.labels else (column.min(), column.max())
        scaled[:, place] = (column - first) / (last - first) if last > first else 0.5
        axes.axvline(place, color=GREY, linewidth=0.8)
        ticks = np.linspace(0, 1, len(axis.labels)) if len(axis.labels) > 1 else np.array([0.5])
        texts = list(axis.labels)
        if not axis.labels:
            few = not axis.log and last - first <= 6 and not (column % 1).any()  # whole numbers, each a tick
            ticks = np.linspace(0, 1, int(last - first) + 1 if few else 5) if last > first else np.array([0.5])
            at = first + ticks * (last - first)
            texts = [f"{value:.3g}" for value in (10**at if axis.log else at)]
        for tick, text in zip(ticks, texts, strict=True):
            axes.text(place + 0.04, float(tick), text, fontsize=7, va="center", color="black", zorder=5)
    order = np.argsort(-y if lower else y, kind="stable")
    for row in order:
        axes.plot(range(len(axes_of)), scaled[row], color=colours.to_rgba(y[row]), linewidth=1.3, alpha=0.85)
    axes.set_xticks(range(len(axes_of)), [axis.name for axis in axes_of], rotation=20, ha="right", fontsize=8)
    axes.set_xlim(-0.1, len(axes_of) - 0.6)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([])
    axes.spines[["left", "bottom", "top", "right"]].set_visible(False)
    figure.colorbar(colours, ax=axes, label=label, shrink=0.9)
    return figure
