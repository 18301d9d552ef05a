"""Figures of benchmark runs: bars for medians, points for every repeat. The style is that of `aam.evaluation.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from aam.benchmarks.comparison import Compared, Ratio, ratios_within
from aam.benchmarks.standard import BenchmarkRun, Measure
from aam.evaluation.plots import BLUE, COLOURS, GREY, VERMILLION, _empty_figure, _wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["letter", "other_plot", "ratio_plot", "side_by_side_plot", "training_plot"]

_NEAR_ONE = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4)

Series = Sequence[tuple[str, str, Sequence[Measure | None]]]  # label, colour, and a measure for each group


def letter(place: int) -> str:
    """What a run is called in tables and figures: A, B, …"""
    return chr(ord("A") + place) if place < 26 else f"run {place + 1}"


def training_plot(run: BenchmarkRun) -> Figure:
    """Speed and memory of a training step by study, distinct layout beside the padded one."""
    figure = _empty_figure(9.0, 4.0)
    panels = figure.subplots(1, 2)
    studies = [study.name for study in run.settings.studies]
    for axes, what, title in (
        (panels[0], "training", "training speed, distinct over padded"),
        (panels[1], "memory of a step", "memory of a step, padded over distinct"),
    ):
        series = [
            (layout, colour, [run.find(study, f"{what}, {layout}") for study in studies])
            for layout, colour in (("distinct", BLUE), ("padded", VERMILLION))
        ]
        _bars(axes, studies, series, title)
        _say_ratios(axes, series, {study: ratio for said, study, ratio in ratios_within(run) if said == title})
        axes.set_xlabel("samples × ASVs of the study")
    _legend(figure, panels[0])
    return figure


def other_plot(run: BenchmarkRun) -> Figure:
    """Reading, batches, predictions, and files of a model."""
    figure = _empty_figure(9.0, 6.4)
    panels = figure.subplots(2, 2).ravel()
    studies = [study.name for study in run.settings.studies]
    for axes, name in zip(panels, ("reading the study", "building a batch", "predicting"), strict=False):
        _bars(axes, studies, [("", BLUE, [run.find(study, name) for study in studies])], name)
        axes.set_xlabel("samples × ASVs of the study")
    names = ("saving a model", "loading a model", "saving a checkpoint", "loading a checkpoint")
    files = [next(iter(run.named(name)), None) for name in names]
    labels = [name.replace(" a ", "\n") for name in names]
    _bars(panels[3], labels, [("", BLUE, files)], "files of a small model")
    return figure


def side_by_side_plot(runs: Sequence[BenchmarkRun]) -> Figure:
    """Each measure by study, a bar for each run."""
    names = list(dict.fromkeys(m.name for m in runs[0].measures if m.study and not m.name.startswith("encoded")))
    across = 3
    down = -(-len(names) // across)
    figure = _empty_figure(11.0, 0.5 + 2.6 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        studies = [measure.study for measure in runs[0].named(name)]
        series = [
            (_label(place, run), COLOURS[place % len(COLOURS)], [run.find(study, name) for study in studies])
            for place, run in enumerate(runs)
        ]
        _bars(axes, studies, series, name)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    _legend(figure, panels[0])
    return figure


def ratio_plot(runs: Sequence[BenchmarkRun], compared: Sequence[Compared]) -> Figure:
    """How many times as good as the first run the others are, from the lowest to the highest over the repeats."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    shown = [row for row in compared if not row.name.startswith("encoded") and any(row.times_as_good)]
    figure = _empty_figure(8.4, 1.3 + 0.3 * len(shown) * (1 + 0.35 * (len(runs) - 2)))
    axes = figure.subplots()
    apart = 0.7 / max(1, len(runs) - 1)
    for place, run in enumerate(runs[1:]):
        rows = [(y, row.times_as_good[place]) for y, row in enumerate(shown)]
        known = [(y, ratio) for y, ratio in rows if ratio is not None]
        middle = np.array([ratio.median for _, ratio in known])
        ends = np.array([[ratio.median - ratio.low, ratio.high - ratio.median] for _, ratio in known]).T
        heights = np.array([y for y, _ in known]) + apart * (place - (len(runs) - 2) / 2)
        axes.errorbar(
            middle,
            heights,
            xerr=ends.clip(min=0),
            fmt="o",
            markersize=5,
            linewidth=1.4,
            capsize=2.5,
            color=COLOURS[(place + 1) % len(COLOURS)],
            label=_label(place + 1, run),
        )
    axes.axvline(1, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.25))
    if high / low < 4:
        axes.xaxis.set_major_locator(FixedLocator(_NEAR_ONE))
    else:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(shown)), [f"{row.name}, {row.study}" if row.study else row.name for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        f"times as good as {letter(0)}: faster, or less memory\n(lines: lowest to highest over the repeats)"
    )
    _legend(figure, axes)
    return figure


def _label(place: int, run: BenchmarkRun) -> str:
    return f"{letter(place)}: {shorten(run.name, 42, placeholder='…')}"


def _bars(axes: Axes, groups: Sequence[str], series: Series, title: str) -> None:
    """A bar at the median of each measure, and a point for each of its repeats."""
    width = 0.8 / len(series)
    unit = ""
    for place, (label, colour, measures) in enumerate(series):
        x = np.arange(len(groups)) + width * (place - (len(series) - 1) / 2)
        heights = [np.nan if measure is None else measure.median for measure in measures]
        axes.bar(x, heights, 0.92 * width, color=colour, alpha=0.75, label=label or None)
        for at, measure in zip(x, measures, strict=True):
            if measure is not None:
                unit = measure.unit
                spread = np.linspace(-0.25, 0.25, len(measure.values)) * width if len(measure.values) > 1 else [0.0]
                style: Any = {"s": 12, "color": "black", "alpha": 0.6, "linewidths": 0, "zorder": 3}
                axes.scatter(at + np.asarray(spread), measure.values, **style)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.set_title(_wrap(title, 40), fontsize=10)
    if len(groups) == 1:  # else its bar would be as wide as the panel
        axes.set_xlim(-1, 1)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _say_ratios(axes: Axes, series: Series, ratios: dict[str, Ratio]) -> None:
    """Write above the bars of each study how many times the one is the other."""
    top = axes.get_ylim()[1]
    for place, pair in enumerate(zip(*(measures for _, _, measures in series), strict=True)):
        known = [measure for measure in pair if measure is not None]
        if known and known[0].study in ratios:
            height = max(value for measure in known for value in measure.values)
            text = f"{ratios[known[0].study].median:.2f} ×"
            axes.text(place, height + 0.02 * top, text, ha="center", va="bottom", fontsize=9)
    axes.set_ylim(top=1.12 * top)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    across = 2 if max(map(len, names), default=0) > 12 else len(names)
    figure.legend(handles, names, loc="outside upper center", ncols=max(1, across), frameon=False, fontsize=9)
