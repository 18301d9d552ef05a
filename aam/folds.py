"""Cross-validation: a run for each fold, and what all of them come to.

Shapes: ``N`` samples, ``K`` folds, ``C`` classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.config import DataConfig, RunConfig
from aam.data.splits import read_folds, read_splits, write_splits
from aam.data.study import Study
from aam.data.study_splits import StudyFolds, as_before, fold_study
from aam.data.targets import require_repeated_classes
from aam.errors import DataError, in_file
from aam.inputs import load_inputs
from aam.loaders import choose_device
from aam.run import pretrained_split_options, require_same_config, require_trackers, run
from aam.run_directory import RunDirectory, write_json
from aam.training.checkpoint import MODEL_NAME, load_model_file, model_path
from aam.training.distributed import Processes, start
from aam.training.metrics import classification_metrics, regression_metrics

__all__ = ["FoldsResult", "asks_for_folds", "finished_folds", "fold_summary", "run_folds"]

logger = logging.getLogger("aam")

PREDICTIONS = "oof_predictions.tsv"


@dataclass(frozen=True)
class FoldsResult:
    """What the runs of all folds came to."""

    directory: Path
    metrics: dict[str, Any]  # as in metrics.json


@dataclass(frozen=True)
class _Plan:
    """The folds, and what of the study is needed once they are trained."""

    sample_ids: list[str]
    folds: StudyFolds
    encoders: list[Path]  # of each fold, where the run goes on from one with folds
    actual: NDArray[Any] | None  # (N,)
    guess: NDArray[Any] | None  # (N,) or (N, C): the best constant of the training part that a sample is held out from
    classes: tuple[str, ...]  # none for a number


def asks_for_folds(config: RunConfig) -> bool:
    """Whether a configuration is one of several runs: by its options, or as it goes on from an encoder that was."""
    return config.data.cross_validated or bool(_encoder_folds(config))


def run_folds(config: RunConfig) -> FoldsResult:
    """Pre-train or train once for each fold, and pool what they say of the samples that they hold out.

    Parameters
    ----------
    config : RunConfig
        One that `asks_for_folds`. ``--resume`` keeps the folds that are finished.

    Returns
    -------
    FoldsResult

    Raises
    ------
    DataError
        If the inputs or the folds cannot be used.
    """
    processes = start(config.train, choose_device(config.train))
    encoders = _encoder_folds(config)
    if config.optim.lr_find == "print":
        raise DataError(
            f"--lr-find print is for one run, and {config.train.pretrained_encoder} has folds; give one of them"
        )
    if encoders:
        before = load_model_file(model_path(encoders[0])).config.data
        config = config.model_copy(update={"data": _group_of_encoder(config.data, before)})
    directory = RunDirectory(config.train.output_dir)
    if config.train.resume:
        require_same_config(config, _stored_config(directory), directory.path)
    elif processes.first:
        directory.require_free(resume=False, overwrite=config.train.overwrite)
    processes.barrier()
    require_trackers(config)
    plan = _plan(config, encoders)
    if not config.train.resume and processes.first:
        directory.create(overwrite=config.train.overwrite)
    processes.barrier()
    number = len(plan.folds.splits)
    results = []
    with directory.logging() if processes.first else nullcontext():
        if processes.first:
            write_json(directory / "config.json", config.model_dump(mode="json"))
            held_out = np.where(plan.folds.of_sample >= 0, "test", "train")
            write_splits(directory / "splits.tsv", plan.sample_ids, held_out, plan.folds.of_sample)
        for fold in range(number):
            logger.info("fold_%d (%d of %d)", fold, fold + 1, number)
            try:
                results.append(_run_fold(config, plan, directory, fold, processes))
            except DataError as error:
                raise DataError(f"fold {fold}: {error}") from None
        return processes.broadcast(_finish(config, plan, directory, results) if processes.first else None)


def finished_folds(path: Path) -> list[Path]:
    """The runs of the folds of a run; none where it has no folds.

    Raises
    ------
    DataError
        If some of them are still to be trained.
    """
    directory = RunDirectory(path)
    if not directory.folds() or not (directory / "splits.tsv").is_file() or (directory / MODEL_NAME).is_file():
        return []
    if not (directory / "metrics.json").is_file():
        raise DataError(f"{path}: not all of its folds are trained; continue it with --resume")
    number = max(read_folds(directory / "splits.tsv").values()) + 1
    return [directory / f"fold_{fold}" for fold in range(number)]


def _encoder_folds(config: RunConfig) -> list[Path]:
    encoder = config.train.pretrained_encoder
    return [] if encoder is None else finished_folds(encoder)


# --------------------------------------------------------------------------------------------------------------- plan


def _plan(config: RunConfig, encoders: list[Path]) -> _Plan:
    study = load_inputs(config, checksums=False)
    if config.task.classifier and study.target is not None and config.data.metadata_column is not None:
        with in_file(config.data.metadata):
            require_repeated_classes(config.data.metadata_column, study.target)
    if encoders:
        folds = _folds_of_encoder(config, study, encoders)
    else:
        folds = fold_study(study, config.data, classifier=config.task.classifier, seed=config.train.seed)
        _refuse_leaks(config, study)
    if study.target is None:
        return _Plan(study.sample_ids, folds, encoders, None, None, ())
    guess, classes = _guess(study.target, folds, config.task.classifier)
    return _Plan(study.sample_ids, folds, encoders, study.target, guess, classes)


def _folds_of_encoder(config: RunConfig, study: Study, encoders: list[Path]) -> StudyFolds:
    """The folds of the encoder's run. A sample that it did not have goes with its group, else into training."""
    encoder = config.train.pretrained_encoder
    assert encoder is not None
    number = len(encoders)
    for name in ("splits", "split_column", "leave_out", "test_size"):
        value = getattr(config.data, name)
        if value:
            given = " ".join(value) if name == "leave_out" else value
            raise DataError(
                f"{encoder}: has {number} folds, which say what is held out, and --{name.replace('_', '-')} {given} "
                f"does so too; leave it out, or give one fold, {encoder / 'fold_0'} say"
            )
    asked = config.data.folds
    if config.data.leave_one_group_out and study.groups is not None:
        asked = len(set(study.groups.astype(str)))
    if asked is not None and asked != number:
        option = "--folds" if config.data.folds else "--leave-one-group-out, that is"
        raise DataError(f"{encoder}: has {number} folds, and {option} {asked} is asked for; leave it out to take these")
    stored = read_folds(encoder / "splits.tsv")
    of_sample = np.array(as_before(study, stored, -1), dtype=np.int64)
    new = [name for name, fold in zip(study.sample_ids, of_sample, strict=True) if fold < 0]
    if new:
        logger.info(
            "%d samples that the pre-trained encoder did not have (%s first) are learnt from in every fold and have no "
            "out-of-fold prediction",
            len(new),
            new[0],
        )
    splits = []
    for path in encoders:
        parts = np.array(as_before(study, read_splits(path / "splits.tsv"), "train"), dtype="<U5")
        absent = {"train", "val", "test"} - set(parts.tolist())
        if absent:
            raise DataError(f"{path}: none of these samples is in its {min(absent)} split; pre-train on them, too")
        splits.append(parts)
    return StudyFolds(of_sample, splits)


def _group_of_encoder(data: DataConfig, before: DataConfig) -> DataConfig:
    """The encoder's group column comes along with its folds, where these metadata have it."""
    group = pretrained_split_options(data, before).group_column if data.group_column is None else data.group_column
    return data.model_copy(update={"group_column": group})


def _refuse_leaks(config: RunConfig, study: Study) -> None:
    """Refuse an encoder without folds: what it has learnt from is held out in one fold or another."""
    encoder = config.train.pretrained_encoder
    if encoder is None or config.train.allow_pretrained_leak:
        return
    path = (encoder if encoder.is_dir() else encoder.parent) / "splits.tsv"
    if not path.is_file():
        raise DataError(
            f"{path.parent}: holds no splits.tsv, so nobody can say which samples the encoder has seen; "
            "give the whole run directory, or --allow-pretrained-leak"
        )
    before = read_splits(path)
    leaked = [name for name in study.sample_ids if before.get(name) == "train"]
    if leaked:
        raise DataError(
            f"{encoder}: {len(leaked)} samples that folds hold out, {leaked[0]!r} first, are among those that the "
            "pre-trained encoder learnt from; run `aam pretrain` with the same folds, or give --allow-pretrained-leak"
        )


def _guess(actual: NDArray[Any], folds: StudyFolds, classifier: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Median (N,), or frequencies of the classes (N, C), among the samples that each fold learns from."""
    if not classifier:
        medians = [np.median(actual[parts == "train"]) for parts in folds.splits]
        return np.array(medians)[folds.of_sample], ()
    classes = tuple(sorted(set(actual.tolist())))
    learnt = [actual[parts == "train"] for parts in folds.splits]
    shares = np.array([[np.mean(labels == name) for name in classes] for labels in learnt])  # (K, C)
    return shares[folds.of_sample], classes


# ---------------------------------------------------------------------------------------------------------- one fold


def _run_fold(config: RunConfig, plan: _Plan, above: RunDirectory, fold: int, processes: Processes) -> dict[str, Any]:
    """The metrics of a fold: of the run as it is, continued or begun."""
    directory = RunDirectory(above / f"fold_{fold}")
    own = _fold_config(config, directory, plan.encoders[fold] if plan.encoders else None)
    if processes.broadcast(config.train.resume and _is_finished(own, directory)):
        logger.info("finished before: %s", directory.path)
        return _stored_metrics(directory)
    resume = processes.broadcast(config.train.resume and (directory / "last.ckpt").is_file())
    if not resume and processes.first:
        directory.create(overwrite=True)  # what a fold that was interrupted in its first epoch has left
        write_splits(directory / "splits.tsv", plan.sample_ids, plan.folds.splits[fold])
    processes.barrier()
    train = own.train.model_copy(update={"resume": resume, "overwrite": not resume})
    return run(own.model_copy(update={"train": train})).metrics


def _fold_config(config: RunConfig, directory: RunDirectory, encoder: Path | None) -> RunConfig:
    """A run of its own: the split is the one that stands in its directory."""
    data: dict[str, Any] = {"splits": directory / "splits.tsv", "folds": None, "leave_one_group_out": False}
    train: dict[str, Any] = {"output_dir": directory.path, "baseline": False}  # that of all folds is pooled
    if encoder is not None:
        train["pretrained_encoder"] = encoder
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
    )


def _is_finished(config: RunConfig, directory: RunDirectory) -> bool:
    """Whether a fold has come to its end and is not to be trained for longer now."""
    if not (directory / "metrics.json").is_file():
        return False
    before = _stored_config(directory)["train"]
    return all(before.get(name) == getattr(config.train, name) for name in ("epochs", "patience"))


def _stored_config(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    content = _read_json(directory / "config.json")
    sections = {name: part for name, part in content.items() if name != "command"}
    if "train" not in sections or not all(isinstance(part, dict) for part in sections.values()):
        raise DataError(f"{directory / 'config.json'}: is damaged; start again with --overwrite")
    return sections


def _stored_metrics(directory: RunDirectory) -> dict[str, Any]:
    content = _read_json(directory / "metrics.json")
    tested = content.get("test", {})
    if not isinstance(tested, dict) or not all(isinstance(value, float | int) for value in tested.values()):
        raise DataError(f"{directory / 'metrics.json'}: is damaged; remove {directory.path} to train this fold again")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is nothing to resume; leave --resume out") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged; start again with --overwrite")
    return content


# ------------------------------------------------------------------------------------------------------------- ending


def _finish(
    config: RunConfig, plan: _Plan, directory: RunDirectory, results: Sequence[Mapping[str, Any]]
) -> FoldsResult:
    """Pool the predictions of held-out samples and write what a person reads."""
    metrics: dict[str, Any] = {"folds": fold_summary(results)}
    if config.command == "train":
        table = _pooled_predictions(directory, plan)
        table.to_csv(directory / PREDICTIONS, sep="\t", index=False)
        place = {name: i for i, name in enumerate(plan.sample_ids)}
        rows = np.array([place[name] for name in table["sample_id"]])
        assert plan.actual is not None
        assert plan.guess is not None
        actual, guess = plan.actual[rows], plan.guess[rows]
        if plan.classes:
            probabilities = table[[f"prob_{name}" for name in plan.classes]].to_numpy(dtype=float)
            pooled = _class_metrics(actual, probabilities, plan.classes)
            guessed = _class_metrics(actual, guess, plan.classes)
        else:
            pooled = regression_metrics(actual, table["predicted"].to_numpy(dtype=float))
            guessed = regression_metrics(actual, guess)
        baseline = {"guess": {"oof": guessed}}
        if config.train.baseline:
            from aam.baselines import baselines_of_folds

            logger.info("fitting the classical models in all folds")
            found = baselines_of_folds(
                load_inputs(config, checksums=False),
                plan.folds.of_sample,
                config.data,
                classifier=config.task.classifier,
                seed=config.train.seed,
                n_jobs=config.train.threads or -1,
            )
            baseline = found | baseline
        metrics = {"oof": pooled, **metrics, "baseline": baseline}
        if config.train.plots:
            _plot(config, plan, directory, table)
    if config.train.pretrained_encoder is not None:
        metrics["pretrained_leak"] = sum(int(result.get("pretrained_leak", 0)) for result in results)
    write_json(directory / "metrics.json", metrics)
    return FoldsResult(directory.path, metrics)


def fold_summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of each fold's held-out samples, with their mean and standard deviation over the folds.

    Parameters
    ----------
    results : sequence of mapping, K
        As in the folds' ``metrics.json``.

    Returns
    -------
    dict
        ``mean`` and ``sd`` (of a sample, with K - 1), each over the folds that have a metric, and ``each``.
    """
    tested = [result.get("test", {}) for result in results]
    values = {name: [part[name] for part in tested if name in part] for part in tested for name in part}
    return {
        "mean": {name: float(np.mean(found)) for name, found in values.items()},
        "sd": {name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1},
        "each": [{"fold": fold, **result} for fold, result in enumerate(results)],
    }


def _pooled_predictions(directory: RunDirectory, plan: _Plan) -> pd.DataFrame:
    """The predictions of all folds, cells as they are written there, in the order of the sample IDs."""
    numbers = [f"prob_{name}" for name in plan.classes] or ["actual", "predicted"]
    tables = []
    for fold, parts in enumerate(plan.folds.splits):
        path = directory / f"fold_{fold}" / "test_predictions.tsv"
        held_out = [name for name, part in zip(plan.sample_ids, parts, strict=True) if part == "test"]
        try:
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
            if sorted(table["sample_id"]) != held_out or not np.isfinite(table[numbers].astype(float)).all(axis=None):
                raise ValueError
        except (OSError, ValueError, KeyError):  # of a fold that was trained before and has been changed since
            raise DataError(
                f"{path}: does not hold the fold's predictions; remove {path.parent} and --resume"
            ) from None
        table.insert(1, "fold", fold)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).sort_values("sample_id", kind="stable", ignore_index=True)


def _class_metrics(
    actual: NDArray[Any], probabilities: NDArray[np.float64], classes: tuple[str, ...]
) -> dict[str, float]:
    places = np.array([classes.index(label) for label in actual])
    return classification_metrics(places, probabilities.argmax(axis=1), probabilities, classes)


def _plot(config: RunConfig, plan: _Plan, directory: RunDirectory, table: pd.DataFrame) -> None:
    from aam.evaluation.plots import confusion_plot, regression_plot, save_figure

    column = config.data.metadata_column
    assert column is not None
    title = f"{column}, out of fold"
    if plan.classes:
        figure = confusion_plot(table["actual"].to_numpy(), table["predicted"].to_numpy(), plan.classes, title=title)
    else:
        numbers = table[["actual", "predicted"]].astype(float)
        figure = regression_plot(
            numbers["actual"].to_numpy(), numbers["predicted"].to_numpy(), title=title, units_label=column
        )
    save_figure(figure, directory / "plots" / "oof_predictions.png")
