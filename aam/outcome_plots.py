"""The pictures of what a run came to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aam.answers import AllAnswers
from aam.data.study import Study
from aam.data.targets import ClassTarget, parts_of
from aam.training.tasks import Evaluation, Reading, Task, TrainTask, answer_table, answers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "figures",
    "file_name",
    "plot_answers",
]

_MOST_SAMPLES_ON_AXES = 300


def figures(task: Task, study: Study, evaluation: Evaluation) -> dict[str, Figure]:
    """The plots of an evaluation: the target's, and one for each reading of a base target."""
    from aam.evaluation.plots import confusion_plot, distance_plot, regression_plot

    drawn: dict[str, Figure] = {}
    if isinstance(task, TrainTask) and evaluation.output is not None:
        for part in task.parts:
            known, actual = part.known(task.actual[evaluation.sample_index])
            if not len(actual):
                continue
            answers = answers_of(part.target, evaluation.output[known, part.outputs])
            table = answer_table(part.target, [""] * len(actual), answers, actual)
            column, predicted = part.target.column, table.predicted.to_numpy()
            if isinstance(part.target, ClassTarget):
                figure = confusion_plot(actual, predicted, part.target.classes, title=column)
            else:
                figure = regression_plot(actual, predicted, title=column, units_label=column)
            drawn["predictions" if part.place is None else f"predictions_{file_name(column)}"] = figure
    distances = [reading.target for reading in evaluation.readings.values() if reading.target.kind == "pairwise"]
    for reading in evaluation.readings.values():
        target, actual, predicted = reading.target, reading.actual, reading.predicted
        title = f"{target.title}, {reading.head} head"
        if target.kind == "pairwise":
            name = "distances" if target is distances[0] else target.name
            drawn[f"{name}_{reading.head}"] = distance_plot(actual, predicted, title=title)
            ordination = _ordination(task, evaluation, reading, title)
            if ordination is not None:
                name = "pcoa" if target is distances[0] else f"{target.name}_pcoa"
                drawn[f"{name}_{reading.head}"] = ordination
        elif target.kind == "value":
            drawn[f"{target.name}_{reading.head}"] = regression_plot(
                actual, predicted, title=title, units_label=target.title
            )
        else:
            r2 = evaluation.metrics.get(f"{target.name}_r2")  # each part around its own mean
            drawn[target.name] = distance_plot(
                actual, predicted, title=target.title, what="share", counted="parts of samples", r2=r2
            )
    return drawn


def plot_answers(answers: AllAnswers, folder: Path, name: str, which: str) -> None:
    """Predictions beside the truth, a picture of each column."""
    from aam.evaluation.plots import confusion_plot, regression_plot, save_figure

    for part in parts_of(answers.target):
        of_part = answers.of(part)
        if not len(of_part.rows):
            continue
        target, values = of_part.target, of_part.values
        title = f"{target.column}, {which}"
        if isinstance(target, ClassTarget):
            predicted = target.decode(values.argmax(axis=1))
            figure = confusion_plot(of_part.actual, predicted, target.classes, title=title)
        else:
            predicted = values[:, target.outputs // 2]
            figure = regression_plot(of_part.actual, predicted, title=title, units_label=target.column)
        own = "" if part.place is None else f"_{file_name(target.column)}"
        save_figure(figure, folder / f"{name}_predictions{own}.png")


def file_name(column: str) -> str:
    """A column's name as a part of a file's."""
    return re.sub(r"[^\w.-]+", "_", column)


def _ordination(task: Task, evaluation: Evaluation, reading: Reading, title: str) -> Figure | None:
    """Held-out samples by predicted and by actual distances, where these are known of all their pairs."""
    from aam.evaluation.ordination import square_of_pairs
    from aam.evaluation.plots import ordination_plot

    if evaluation.paired is None or len(evaluation.paired) < 3:
        return None
    number = len(evaluation.paired)
    actual, predicted = (square_of_pairs(pairs, number) for pairs in (reading.actual, reading.predicted))
    if actual is None or predicted is None:
        return None
    some = np.unique(np.linspace(0, number - 1, min(number, _MOST_SAMPLES_ON_AXES)).round().astype(np.int64))
    target, colours = "", None
    if isinstance(task, TrainTask) and task.parts[0].known(task.actual[evaluation.paired[some]])[0].all():
        target, colours = task.parts[0].target.column, task.parts[0].of(task.actual[evaluation.paired[some]])
    return ordination_plot(
        actual[np.ix_(some, some)],
        predicted[np.ix_(some, some)],
        title=title,
        colours=colours,
        colours_label=target,
    )
