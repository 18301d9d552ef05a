"""Figures of errors: what is on their axes, and that nothing covers what they show."""

from __future__ import annotations

import numpy as np
import pandas as pd

from aam.evaluation.error_plots import errors_against_plot


def test_dates_are_on_an_axis_of_dates() -> None:
    rng = np.random.default_rng(0)
    dates = pd.Series(pd.date_range("2016-02-23", periods=60)).to_numpy().copy()
    dates[5] = np.datetime64("NaT")
    figure = errors_against_plot(rng.random(60), {"collection_timestamp": dates}, label="error")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.collections[0].get_offsets()) == 59
    assert "Mar" in [label.get_text() for label in axes.get_xticklabels()]
