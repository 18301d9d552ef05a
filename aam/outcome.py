"""What a run came to: its best model judged on the held-out samples, and what a person reads of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam.answers import (
    AllAnswers,
    against_guess,
    answer_metrics,
    best_constant,
    by_column,
    write_answers,
)
from aam.calibrators import Calibrators
from aam.config import RunConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, SampleDataset
from aam.data.encoded import EncodedStudy
from aam.data.study import Study
from aam.data.targets import NumericTarget, Part
from aam.familiarity import keep_profile
from aam.joining import join_classical
from aam.linear_head import fit_linear_head
from aam.loaders import datasets_of, loader
from aam.outcome_plots import figures, plot_answers
from aam.run_directory import RunDirectory, write_json
from aam.training.checkpoint import MODEL_NAME, load_model_file, save_model_file
from aam.training.distributed import load_weights_into
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import Evaluation, Task, TrainTask, answers_of
from aam.training.trainer import Trainer

__all__ = [
    "judge_best",
]

logger = logging.getLogger("aam")


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
    if isinstance(task, TrainTask) and task.predictor.linear:
        metrics["linear_head"] = fit_linear_head(config, study, split, task, trainer, directory / MODEL_NAME)
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
            encoded = held_out.encoded  # by what of the base is frozen
            if config.data.prediction_passes > 1 and isinstance(encoded, EncodedStudy):
                encoded = None  # of one draw alone
            dataset = dataset.changed(encoded=encoded)
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
    if "linear_head" in metrics and processes.first:  # until now the model file says how good it was before
        add_to_model(directory / MODEL_NAME, {"metrics": {"val": metrics.get("val", metrics.get("test"))}}, {})
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
    answers = known[part]
    calibrators = Calibrators.of(answers, study.groups, np.zeros(len(answers.rows), dtype=np.int64), part)
    if not calibrators.by_name:
        return
    metrics["calibration"] = calibrators.summary(answers)
    add_to_model(directory / MODEL_NAME, {"calibration": calibrators.to_dict()}, calibrators.arrays())


def add_to_model(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Let a model file say more, beside its weights."""
    file = load_model_file(path)
    beside = file.beside | {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_model_file(path, file.weights, file.config, {**file.header, **header}, beside)


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
