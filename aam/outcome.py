"""What a run came to: its best model judged on the held-out samples, and what a person reads of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch.utils.data import DataLoader

from aam.calibration import Calibrator
from aam.config import RunConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, SampleDataset
from aam.data.study import Study
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.errors import DataError
from aam.familiarity import keep_profile
from aam.joined import ClassicalModel, Joined, best_share, counts_as_judged, mixed
from aam.loaders import datasets_of, loader
from aam.run_directory import RunDirectory, write_json, write_table
from aam.training.checkpoint import MODEL_NAME, load_model_file, save_model_file
from aam.training.distributed import load_weights_into
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import Evaluation, Reading, Task, TrainTask, answer_table, answers_of
from aam.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LEVEL",
    "AllAnswers",
    "Answers",
    "FittedClassical",
    "add_to_model",
    "against_guess",
    "answer_metrics",
    "best_constant",
    "by_column",
    "calibrated_by",
    "calibration_summary",
    "figures",
    "file_name",
    "join_classical",
    "joined_summary",
    "judge_best",
    "plot_answers",
    "require_unseen",
    "write_answers",
]

logger = logging.getLogger("aam")

LEVEL = 0.9  # of the intervals that are judged
UNSEEN = ("cal", "val")  # samples that neither training nor the test looks at, the first of these that there are
_MOST_SAMPLES_ON_AXES = 300


def judge_best(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    trainer: Trainer,
    directory: RunDirectory,
    leaked: list[str],
) -> dict[str, Any]:
    """Judge the best model on the held-out samples, and write what a person reads; what ``metrics.json`` holds.

    The model file of a predictor then says what its training samples were like.

    Every process judges its share; the first alone reads and writes files.
    """
    from aam.evaluation.plots import history_plot, save_figure

    processes = trainer.processes
    best = load_model_file(directory / MODEL_NAME).weights if processes.first else None
    load_weights_into(task.model, processes.broadcast(best))
    metrics: dict[str, Any] = {"best_epoch": trainer.state.best_epoch}
    datasets = datasets_of(config, study, split, task)
    held_out = trainer.val_loader.dataset
    assert isinstance(held_out, SampleDataset)
    known: dict[str, AllAnswers] = {}
    for part in ("val", "test", "cal"):
        if part not in datasets or (part == "cal" and not isinstance(task, TrainTask)):
            continue
        plan = BatchPlan(
            study.rows_of(split, part), config.train.samples_per_batch, False, config.train.seed, share=processes.share
        )
        dataset = datasets[part]
        if trainer.state.best_epoch > (config.train.freeze_asvs_after or 0):
            dataset = dataset.changed(encoded=held_out.encoded)  # by what of the base is frozen
        batches = loader(dataset, plan, config.train, trainer.device, workers=0)
        evaluation = trainer.evaluate(batches)
        answers = _answers(task, trainer, plan, batches, evaluation, config.data.prediction_passes)
        if part != "cal":
            metrics[part] = evaluation.metrics
            if answers is not None and config.data.prediction_passes > 1:
                metrics[part] = metrics[part] | answer_metrics(answers)
        if not processes.first:
            continue
        if config.train.plots and part != "cal":
            for name, figure in figures(task, study, evaluation).items():
                save_figure(figure, directory / "plots" / f"{part}_{name}.png")
        if answers is not None:
            known[part] = answers
    if processes.first and config.train.join and known:
        joined, known = join_classical(config, study, split, known, directory, metrics)
        add_to_model(directory / MODEL_NAME, {"joined": joined.to_dict()}, joined.arrays())
        if config.train.plots:
            for part in known.keys() - {"cal"}:
                plot_answers(known[part], directory / "plots", part, part)
    if processes.first:
        for part, answers in known.items():
            write_answers(study, answers, directory / f"{part}_predictions.tsv")
        _calibrate(config, study, directory, known, metrics)
    if isinstance(task, TrainTask):
        keep_profile(config, study, study.rows_of(split, "train"), trainer, directory / MODEL_NAME)
        metrics["baseline"] = {"guess": _guess(task, split)}
        if processes.first:
            judged = known.get("test", known.get("val"))
            assert judged is not None
            train = task.actual[split == "train"]

            def compared(part: Part) -> dict[str, Any] | None:
                of_part = judged.of(part)
                guess = np.full(len(of_part.rows), best_constant(part, train), dtype=object)
                return against_guess(of_part, guess, None if study.groups is None else study.groups[of_part.rows])

            metrics["against_guess"] = by_column(task.target, compared)
        if config.train.baseline and processes.first:
            from aam.baselines import baselines_of_split

            logger.info("fitting the classical models")
            found = baselines_of_split(
                study,
                split,
                config.data,
                classifier=config.task.classifier,
                seed=config.train.seed,
                n_jobs=config.train.threads or -1,
            )
            metrics["baseline"] = found | metrics["baseline"]  # the guess by the training samples alone
    if config.train.pretrained_encoder is not None:
        metrics["pretrained_leak"] = len(leaked)
    if processes.first:
        if config.train.plots:
            save_figure(history_plot(pd.DataFrame(trainer.state.history)), directory / "plots" / "history.png")
        write_json(directory / "metrics.json", metrics)
    return metrics


class Answers(NamedTuple):
    """What a model says of held-out samples whose truth is known."""

    target: Target
    rows: NDArray[np.int64]  # (n,) of the study
    values: NDArray[np.float64]  # (n, C): see `aam.training.tasks.answers_of`
    actual: NDArray[Any]  # (n,)


class AllAnswers(NamedTuple):
    """Likewise of every column, which may be several: of these (n, T) are actual, and some unknown."""

    target: Target | SeveralTargets
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    actual: NDArray[Any]

    @property
    def alone(self) -> Answers | None:
        """Of the one column; None where there are several."""
        return None if isinstance(self.target, SeveralTargets) else Answers(self.target, *self[1:])

    def of(self, part: Part) -> Answers:
        """Of a column, where it is known."""
        known, actual = part.known(self.actual)
        return Answers(part.target, self.rows[known], self.values[known, part.outputs], actual)


def answer_metrics(answers: AllAnswers) -> dict[str, float]:
    """The metrics of answers, in original units; of several columns each after its name."""
    metrics: dict[str, float] = {}
    for part in parts_of(answers.target):
        of_part = answers.of(part)
        if len(of_part.rows):
            metrics |= {f"{part.prefix}{name}": value for name, value in _column_metrics(of_part).items()}
    return metrics


def by_column(target: Target | SeveralTargets, found: Callable[[Part], Any]) -> Any:
    """What is found of the one column, or of each of several by its name."""
    if not isinstance(target, SeveralTargets):
        return found(parts_of(target)[0])
    return {part.target.column: found(part) for part in parts_of(target)}


def _column_metrics(answers: Answers) -> dict[str, float]:
    target, values = answers.target, answers.values
    if isinstance(target, ClassTarget):
        places = target.encode(answers.actual)
        return classification_metrics(places, values.argmax(axis=1), values, target.classes)
    return regression_metrics(answers.actual, values[:, target.outputs // 2])


def against_guess(answers: Answers, guess: NDArray[Any], groups: NDArray[Any] | None) -> dict[str, Any] | None:
    """The mean error less that of a guess (n,): absolute, or 1 less balanced accuracy; and whether that is chance.

    Groups are resampled for the interval (95%), and for the p-value the two exchanged within groups.
    """
    from aam.evaluation.intervals import errors_that_count, paired_difference

    target, actual = answers.target, answers.actual
    if not len(actual):
        return None
    classes = isinstance(target, ClassTarget)
    if isinstance(target, ClassTarget):
        predicted: NDArray[Any] = target.decode(answers.values.argmax(axis=1))
    else:
        predicted = answers.values[:, target.outputs // 2]
    own, other = (errors_that_count(actual, values, classes=classes) for values in (predicted, guess))
    found = paired_difference(own, other, groups)
    low, high = found.interval
    return {"error": found.value, "low": low, "high": high, "p": found.p, "better": high < 0}


def best_constant(part: Part, train: NDArray[Any]) -> Any:
    """The best constant answer by the training samples' values: their median, or the most frequent class."""
    _, known = part.known(train)
    if isinstance(part.target, NumericTarget):
        return float(np.median(known))
    frequencies = np.bincount(part.target.encode(known), minlength=part.target.outputs)
    return part.target.classes[int(frequencies.argmax())]


def _answers(
    task: Task,
    trainer: Trainer,
    plan: BatchPlan,
    batches: DataLoader[Batch],
    evaluation: Evaluation,
    passes: int,
) -> AllAnswers | None:
    """Of all passes together, the first of which is judged already; None on all processes but the first."""
    values = []
    for number in range(passes):
        plan.epoch = number  # which draws of reads and of ASVs depend on
        judged = evaluation if number == 0 else trainer.evaluate(batches)
        if isinstance(task, TrainTask) and judged.output is not None:
            values.append(answers_of(task.target, judged.output))
    if not values:
        return None
    assert isinstance(task, TrainTask)
    rows = evaluation.sample_index
    return AllAnswers(task.target, rows, np.mean(values, axis=0), task.actual[rows])


def _calibrate(
    config: RunConfig,
    study: Study,
    directory: RunDirectory,
    known: Mapping[str, AllAnswers],
    metrics: dict[str, Any],
) -> None:
    """Let the model file say how far off it is on samples that neither learning nor choosing has seen."""
    part = "cal" if "cal" in known else "val"
    if part not in known or (part == "val" and config.chooses_by_validation):
        return
    answers = known[part].alone
    if answers is None:
        return
    groups = None if study.groups is None else study.groups[answers.rows]
    calibrator = calibrated_by(answers, groups, np.zeros(len(answers.rows), dtype=np.int64), part)
    metrics["calibration"] = calibration_summary(calibrator, answers.values)
    add_to_model(directory / MODEL_NAME, {"calibration": calibrator.to_dict()}, calibrator.arrays())


def add_to_model(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Let a model file say more, beside its weights."""
    file = load_model_file(path)
    beside = file.beside | {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_model_file(path, file.weights, file.config, {**file.header, **header}, beside)


def write_answers(study: Study, answers: AllAnswers, path: Path) -> None:
    """As a table, the truth beside them."""
    ids = [study.sample_ids[i] for i in answers.rows]
    write_table(path, answer_table(answers.target, ids, answers.values, answers.actual))


def require_unseen(config: RunConfig, split: NDArray[Any]) -> None:
    """Refuse ``--join`` where no samples of a split (N,) can say what the two are to weigh.

    Raises
    ------
    DataError
    """
    if config.train.join and not np.isin(split, UNSEEN).any():
        raise DataError(
            f"--join {config.train.join} fits its weights on samples that are not learnt from, nor tested on; give "
            "--folds, --val-size or --cal-size"
        )


def join_classical(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    known: Mapping[str, AllAnswers],
    directory: RunDirectory,
    metrics: dict[str, Any],
) -> tuple[Joined, dict[str, AllAnswers]]:
    """Fit the classical model of ``--join``, and let it answer with the network.

    The weights are those that do best on the samples for calibration or, where there are none, for validation. What
    each of the two says by itself is written, and told in ``metrics``, where what they say together takes its place.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
    known : mapping of str to AllAnswers
        Of the network, by part.
    directory : RunDirectory
    metrics : dict

    Returns
    -------
    joined : Joined
    answers : dict of str to AllAnswers
    """
    fitted = FittedClassical.of(config, study, [split], next(iter(known.values())).target)
    told = {part: fitted.alone(0, answers) for part, answers in known.items()}
    alone = {part: answers for part, (answers, _) in told.items()}
    unseen = next(part for part in UNSEEN if part in known)
    joined = fitted.joined(fitted.share(known[unseen], alone[unseen]))
    together = {
        part: answers._replace(values=joined.together(answers.values, alone[part].values, told[part][1]))
        for part, answers in known.items()
    }
    judged = [part for part in known if part != "cal"]
    for part in judged:
        metrics[part] = metrics[part] | answer_metrics(together[part])
        write_answers(study, known[part], directory / f"{part}_network_predictions.tsv")
        write_answers(study, alone[part], directory / f"{part}_classical_predictions.tsv")
    metrics["joined"] = joined_summary(
        joined, {part: known[part] for part in judged}, {part: alone[part] for part in judged}
    )
    return joined, together


def joined_summary(
    joined: Joined, network: Mapping[str, AllAnswers], classical: Mapping[str, AllAnswers]
) -> dict[str, Any]:
    """What ``metrics.json`` says of a joined model: the weight, and each of the two by itself."""
    alone = {"network": network, joined.name: classical}
    return {
        "model": joined.name,
        "share_of_network": joined.share,
        "alone": {name: {part: answer_metrics(of) for part, of in parts.items()} for name, parts in alone.items()},
    }


@dataclass(frozen=True)
class FittedClassical:
    """The classical models of ``--join``, of each fold, and what they answer to a study's samples."""

    target: Target
    name: str
    models: tuple[ClassicalModel, ...]
    counts: csr_array  # (N, A)
    sequences: Sequence[str]

    @classmethod
    def of(
        cls, config: RunConfig, study: Study, splits: Sequence[NDArray[Any]], target: Target | SeveralTargets
    ) -> Self:
        """Fit them on the training samples of each split (N,)."""
        from aam.baselines import classical_models

        assert config.train.join is not None
        assert not isinstance(target, SeveralTargets)
        logger.info("fitting %s to predict with the network", config.train.join.replace("_", " "))
        classes = target.classes if isinstance(target, ClassTarget) else ()
        shared = {"seed": config.train.seed, "n_jobs": config.train.threads or -1}
        counts = counts_as_judged(study, config.data, config.train.seed)
        models = classical_models(config.train.join, study, counts, splits, classes=classes, **shared)
        return cls(target, config.train.join, tuple(models), counts, study.sequences)

    def alone(self, place: int, network: AllAnswers) -> tuple[AllAnswers, NDArray[np.bool_]]:
        """What the model of a fold answers to the samples that a network has answered, and of which it knows any ASV.

        Of a network's quantiles the median is the model's, and the others are as far from it as the network's.
        """
        values, known = self.models[place].answers(self.counts[network.rows], self.sequences)
        classes = isinstance(self.target, ClassTarget)
        return network._replace(values=mixed(network.values, values, 0.0, classes)), known

    def share(self, network: AllAnswers, classical: AllAnswers) -> float:
        """See `aam.joined.best_share`."""
        target, actual = self.target, network.actual
        actual = target.encode(actual) if isinstance(target, ClassTarget) else actual
        return best_share(network.values, classical.values, actual, isinstance(target, ClassTarget))

    def joined(self, share: float) -> Joined:
        """What a model file holds."""
        target = self.target
        bounds = (target.lower, target.upper) if isinstance(target, NumericTarget) else (None, None)
        return Joined(self.name, share, self.models, *bounds)


def calibrated_by(answers: Answers, groups: NDArray[Any] | None, models: NDArray[np.int64], source: str) -> Calibrator:
    """See `aam.calibration.Calibrator`."""
    if isinstance(answers.target, ClassTarget):
        places = answers.target.encode(answers.actual)
        return Calibrator.of_classes(answers.values, places, groups, models, source)
    return Calibrator.of_numbers(answers.values, answers.actual, groups, models, source)


def calibration_summary(calibrator: Calibrator, values: NDArray[np.float64]) -> dict[str, Any]:
    """What ``metrics.json`` says of it: the samples, and how intervals or sets of 90% do on them."""
    found = calibrator.to_dict()
    coverage = calibrator.coverage(calibrator.calibrated(values), LEVEL)
    return found | {"coverage": None if coverage is None else coverage._asdict()}


def _guess(task: TrainTask, split: NDArray[Any]) -> dict[str, dict[str, float]]:
    """What the best constant answer, the training split's median or most frequent class, comes to."""
    train = task.actual[split == "train"]
    found: dict[str, dict[str, float]] = {}
    for part in ("val", "test"):
        actual = task.actual[split == part]
        if not len(actual):
            continue
        found[part] = {}
        for column in task.parts:
            of_column = _guess_metrics(column, train, column.known(actual)[1])
            found[part] |= {f"{column.prefix}{name}": value for name, value in of_column.items()}
    return found


def _guess_metrics(column: Part, train: NDArray[Any], actual: NDArray[Any]) -> dict[str, float]:
    if not len(actual):
        return {}
    if isinstance(column.target, NumericTarget):
        return regression_metrics(actual, np.full(len(actual), best_constant(column, train)))
    learnt = column.target.encode(column.known(train)[1])
    frequencies = np.bincount(learnt, minlength=column.target.outputs) / len(learnt)
    return classification_metrics(
        column.target.encode(actual),
        np.full(len(actual), frequencies.argmax()),
        np.tile(frequencies, (len(actual), 1)),
        column.target.classes,
    )


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
