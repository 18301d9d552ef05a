"""Every figure draws, saves, says the right numbers, and keeps its text within its edges."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score

from aam.evaluation.plots import (
    confusion_plot,
    distance_plot,
    history_plot,
    ordination_plot,
    range_test_plot,
    regression_plot,
    save_figure,
)

_draws = np.random.default_rng(0)
ACTUAL = _draws.uniform(0, 24, 80)
PREDICTED = ACTUAL + _draws.normal(0, 4, 80)
POINTS = _draws.normal(size=(30, 2))


@pytest.fixture
def rng() -> np.random.Generator:
    """Draws that no other test has a part in."""
    return np.random.default_rng(1)


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def check(figure: Figure, folder: Path) -> str:
    """Save the figure, see that nothing sticks out of it, and return all its text."""
    save_figure(figure, folder / "plots" / "figure.png")
    assert (folder / "plots" / "figure.png").read_bytes().startswith(b"\x89PNG")
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # both in inches
    assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.02, "something is cut off"
    return texts(figure)


@pytest.mark.parametrize("plot", [regression_plot, distance_plot])
def test_fit_is_that_of_sklearn(plot: object, tmp_path: Path) -> None:
    assert callable(plot)
    text = check(
        plot(ACTUAL, PREDICTED, title="a title that is far too long for one line of a figure this wide"), tmp_path
    )
    assert f"R² = {r2_score(ACTUAL, PREDICTED):.3f}" in text
    assert f"MAE = {mean_absolute_error(ACTUAL, PREDICTED):.3g}" in text
    assert "n = 80" in text


def test_regression_axes_carry_the_units(tmp_path: Path) -> None:
    text = check(regression_plot(ACTUAL, PREDICTED, units_label="age (months)"), tmp_path)
    assert "actual age (months)" in text
    assert "predicted age (months)" in text


@pytest.mark.parametrize("plot", [regression_plot, distance_plot])
@pytest.mark.parametrize(
    ("actual", "predicted", "expected"),
    [
        ([], [], "n = 0"),
        ([1.0], [2.0], "R² = n/a"),
        ([3.0, 3.0], [1.0, 5.0], "R² = n/a"),
        ([3.0, 3.0], [3.0, 3.0], "MAE = 0"),
        ([1.0, np.nan, 3.0, 4.0], [1.0, 2.0, np.inf, 4.0], "2 without a value left out"),
        ([1e6, 2e6, 5e6], [2e6, 1e6, 4e6], "MAE = 1,000,000"),
    ],
)
def test_odd_values_still_draw(
    plot: object, actual: list[float], predicted: list[float], expected: str, tmp_path: Path
) -> None:
    assert callable(plot)
    assert expected in check(plot(actual, predicted), tmp_path)


def test_many_pairs(rng: np.random.Generator, tmp_path: Path) -> None:
    actual = rng.beta(8, 4, (300, 300))
    assert "n = 90,000" in check(distance_plot(actual, actual**1.1), tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3, 24])
def test_confusion(number: int, rng: np.random.Generator, tmp_path: Path) -> None:
    classes = [f"healthy control of site {i}" for i in range(number)]
    actual = np.array(classes * 10)
    predicted = np.where(rng.random(len(actual)) < 0.7, actual, rng.permutation(actual))
    text = check(confusion_plot(actual, predicted, classes, "disease, validation"), tmp_path)
    if number > 1:  # sklearn warns of a single class
        assert f"balanced accuracy {balanced_accuracy_score(actual, predicted):.3f}" in text
    assert str(int(((actual == classes[0]) & (predicted == classes[0])).sum())) in text.split("\n")


def test_confusion_with_a_class_that_never_occurs(tmp_path: Path) -> None:
    text = check(confusion_plot(["a", "a", "b"], ["a", "c", "b"], ["a", "b", "c"]), tmp_path)
    assert "balanced accuracy 0.750" in text
    assert "n/a" in check(confusion_plot([], [], ["a", "b"]), tmp_path)
    one = check(confusion_plot(["a", "a"], ["a", "b"], ["a", "b"]), tmp_path)
    assert "accuracy 0.500" in one and "balanced" not in one


def test_history_draws_the_metrics_of_both_parts(tmp_path: Path) -> None:
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "lr": 1e-3,
            "train_loss": [3.0, 2.0, 1.0],
            "val_loss": [3.0, np.nan, 2.0],
            "train_nuc_loss": [1.0, 1.0, 1.0],
            "val_nuc_loss": [1.0, 2.0, 1.0],
            "train_only": 0.0,
            "val_r2": 0.0,
        }
    )
    figure = history_plot(history)
    text = check(figure, tmp_path).split("\n")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "nuc_loss"]
    assert {"training", "validation", "epoch"} <= set(text)
    assert check(history_plot(history.head(1)), tmp_path)
    assert "no metric" in check(history_plot(history[["epoch", "lr"]]), tmp_path)
    many = pd.DataFrame({f"{part}_{i}": [1.0, 2.0] for i in range(7) for part in ("train", "val")} | {"epoch": [0, 1]})
    assert check(history_plot(many), tmp_path)


@pytest.mark.parametrize("suggestion", [None, 2e-3])
def test_range_test_shows_the_curve_where_it_falls(suggestion: float | None, tmp_path: Path) -> None:
    lr = np.geomspace(1e-6, 1, 50)
    smoothed = (np.log10(lr) + 2) ** 2
    loss = smoothed + np.sin(np.arange(50))
    loss[-1] = smoothed[-1] = np.nan
    smoothed[-2] = 1e9  # where it runs away
    figure = range_test_plot(lr, loss, smoothed, suggestion)
    shown = check(figure, tmp_path)
    assert ("suggested: 0.002" in shown) == (suggestion is not None)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_ylim()[1] < 50


def test_dollars_are_not_mathematics(tmp_path: Path) -> None:
    name = r"$\nothing$"
    check(regression_plot(ACTUAL, PREDICTED, title=name, units_label=name), tmp_path)
    check(confusion_plot([name], [name], [name], name), tmp_path)


def test_no_global_state() -> None:
    regression_plot(ACTUAL, PREDICTED)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_an_r2_that_is_known_is_the_one_shown():
    figure = distance_plot([0.0, 1.0], [0.0, 0.5], r2=0.25)
    assert any("R² = 0.250" in text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


CLASSES = np.array([f"a class with a name that is far too long for a legend {i % 11}" for i in range(30)])


@pytest.mark.parametrize("colours", [None, np.arange(30) / 7, np.arange(30), CLASSES, CLASSES[:1].repeat(30)])
def test_ordinations_side_by_side(colours: np.ndarray | None, rng: np.random.Generator, tmp_path: Path) -> None:
    """In a plane, distances say all of the points; so the correlation is SciPy's of these."""
    others = POINTS + rng.normal(scale=0.3, size=POINTS.shape)
    actual, predicted = squareform(pdist(POINTS)), squareform(pdist(others))
    text = check(ordination_plot(actual, predicted, title="UniFrac", colours=colours, colours_label="age"), tmp_path)
    _, _, disparity = procrustes(POINTS, others)
    assert f"PCoA of 30 samples, Procrustes correlation {np.sqrt(1 - disparity):.3f}" in text
    assert "UniFrac" in text and "actual distances" in text and "predicted distances" in text
    assert ("age" in text) == (colours is not None)
    if colours is CLASSES:
        assert "4 others" in text


@pytest.mark.parametrize("predicted", [np.zeros((5, 5)), 1 - np.eye(5)])
def test_ordination_of_collapsed_distances(predicted: np.ndarray, tmp_path: Path) -> None:
    text = check(ordination_plot(squareform(pdist(POINTS[:5])), predicted), tmp_path)
    assert "nan" not in text
    assert "nan" not in check(ordination_plot(np.zeros((5, 5)), predicted), tmp_path)
