"""Figures of a search: what is drawn, and that any outcome of a search can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aam.evaluation.plots import save_figure
from aam.evaluation.tuning_plots import Axis, importances_plot, parallel_plot, trials_plot


@pytest.mark.parametrize("lower", [True, False])
def test_the_best_so_far_is_of_trials_that_were_trained_to_their_end(lower: bool) -> None:
    values = [3.0, 5.0, 0.0 if lower else 9.0, 2.0, 4.0]
    figure = trials_plot([0, 1, 2, 4, 7], values, [False, False, True, False, False], label="mae", lower=lower)
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 1, 4, 7]
    assert line.get_ydata().tolist() == ([3, 3, 2, 2] if lower else [3, 5, 5, 5])


def test_the_most_important_option_is_at_the_top() -> None:
    axes = importances_plot({"lr": 0.2, "dropout": 0.7, "clades": 0.1}).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["clades", "lr", "dropout"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.7]


def test_lines_go_through_the_values_of_a_trial() -> None:
    axes_of = [Axis("lr", log=True), Axis("loss", labels=("huber", "mse", "mae"))]
    rows = [[1e-4, 0], [1e-3, 2], [1e-2, 1]]
    figure = parallel_plot(axes_of, rows, [3.0, 1.0, 2.0], label="mae", lower=True)
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(set(line.get_xdata())) == 2]
    assert np.allclose(drawn, [[0, 0], [1, 0.5], [0.5, 1]])  # the best one last, and so on top


def test_values_above_a_hundred_are_written_as_they_are() -> None:
    figure = parallel_plot([Axis("embedding-dim")], [[64], [128], [192], [256]], [1, 2, 3, 4], label="mae", lower=True)
    assert {"64", "112", "256"} <= {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [5.0, 6.0]])
@pytest.mark.parametrize("axis", [Axis("lr", labels=("0.001", "1e+30")), Axis("lr", log=True), Axis("dropout")])
def test_few_trials_can_be_drawn(tmp_path: Path, axis: Axis, values: list[float]) -> None:
    rows = np.full((len(values), 1), 1.0)
    save_figure(parallel_plot([axis], rows, values, label="mae", lower=False), tmp_path / "p.png")
    save_figure(
        trials_plot(range(len(values)), values, [False] * len(values), label="mae", lower=True), tmp_path / "t.png"
    )
    save_figure(importances_plot({}), tmp_path / "i.png")
    assert len(list(tmp_path.iterdir())) == 3
