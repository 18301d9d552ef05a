"""Figures of errors: what is on their axes, and that nothing covers what they show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from aam.evaluation.error_plots import comparison_plot, errors_against_plot, interval_plot


def test_dates_are_on_an_axis_of_dates() -> None:
    rng = np.random.default_rng(0)
    dates = pd.Series(pd.date_range("2016-02-23", periods=60)).to_numpy().copy()
    dates[5] = np.datetime64("NaT")
    figure = errors_against_plot(rng.random(60), {"collection_timestamp": dates}, label="error")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.collections[0].get_offsets()) == 59
    assert "Mar" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize("days", [0.12, 1, 2.8, 40, 966, 1066, 9000])
@pytest.mark.filterwarnings("error")
def test_any_span_of_dates_has_marks(days: float) -> None:
    """Some spans have none of so few marks as were once allowed, and matplotlib warns of it."""
    dates = np.datetime64("2012-04-03T10:00") + np.linspace(0, days * 86400, 30).astype("timedelta64[s]")
    figure = errors_against_plot(np.arange(30.0), {"collection_timestamp": dates}, label="error")
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 8


def test_the_legend_of_intervals_covers_nothing() -> None:
    rng = np.random.default_rng(0)
    actual = rng.random(80)
    figure = interval_plot(actual, actual + rng.normal(0, 0.3, 80), actual - 0.4, actual + 0.2, label="age")
    figure.canvas.draw()
    (axes,) = figure.axes
    (legend,) = [axes.get_legend()] if axes.get_legend() else figure.legends
    assert len(legend.get_texts()) == 4
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_a_comparison_shows_the_range_of_the_errors() -> None:
    first, second = np.array([10.0, 10.2, 10.4]), np.array([10.1, 10.8, 11.0])
    figure = comparison_plot(first, second, np.array(["a", "b", "c"]), names=("good", "bad"))
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert (low, high) == axes.get_ylim() and axes.get_aspect() == 1
    assert 9.8 < low < 10 and 11 < high < 11.2
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[low, low], [high, high]])  # as good as each other
    comparison_plot(np.zeros(3), np.zeros(3), None, names=("good", "bad")).canvas.draw()
