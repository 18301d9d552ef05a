"""Several runs: one for each fold and each seed, what all of them come to, and the one model that they make.

Shapes: ``N`` samples, ``n`` held-out samples, ``K`` folds, ``C`` classes, or quantiles of a number.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam import __version__
from aam.answers import (
    AllAnswers,
    Answers,
    against_guess,
    answer_metrics,
    best_constant,
    by_column,
    write_answers,
)
from aam.calibrators import Calibrators
from aam.config import DataConfig, RunConfig
from aam.data.splits import has_folds, read_folds, read_splits, write_splits
from aam.data.study import Study
from aam.data.study_splits import StudyFolds, as_before, fold_study, split_study
from aam.data.targets import (
    ClassTarget,
    Part,
    SeveralTargets,
    Target,
    known_values,
    parts_of,
    require_repeated_classes,
)
from aam.errors import DataError, in_file
from aam.inputs import load_inputs
from aam.joined import Joined
from aam.joining import FittedClassical, join_classical, joined_summary, require_unseen
from aam.loaders import choose_device, own_cores
from aam.outcome_plots import plot_answers
from aam.run import pretrained_split_options, require_same_config, require_trackers, run
from aam.run_directory import RunDirectory, write_json, write_table
from aam.side_by_side import side_by_side
from aam.training.checkpoint import MODEL_NAME, load_model_file, model_path, read_target
from aam.training.distributed import Processes, start
from aam.training.ensemble import Member, save_ensemble
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.tasks import answer_columns, answer_table, answers_in

__all__ = ["FoldsResult", "asks_for_folds", "finished_folds", "fold_summary", "run_folds"]

logger = logging.getLogger("aam")

PREDICTIONS = "oof_predictions.tsv"
ALONE = Processes()


class MemberRun(NamedTuple):
    """One of the runs."""

    name: str  # of its directory
    fold: int
    seed: int


@dataclass(frozen=True)
class FoldsResult:
    """What the runs of all folds, or of all seeds, came to."""

    directory: Path
    metrics: dict[str, Any]  # as in metrics.json


@dataclass(frozen=True)
class _Plan:
    """The folds, and what of the study is needed once they are trained."""

    sample_ids: list[str]
    folds: StudyFolds | None  # none where one split is learnt with several seeds
    encoders: list[Path]  # of each fold, where the run goes on from one with folds
    members: list[MemberRun]
    groups: NDArray[Any] | None  # (N,)
    actual: NDArray[Any] | None  # (N,), of several columns (N, T)
    guesses: list[_Guess]  # of each column, with folds


class _Guess(NamedTuple):
    """The best constant of what each sample is held out from."""

    values: NDArray[Any]  # (N,), or of classes (N, C)
    classes: tuple[str, ...]  # none for a number


def asks_for_folds(config: RunConfig) -> bool:
    """Whether a configuration is one of several runs: by its options, or as it goes on from an encoder that was."""
    return config.several_runs or bool(_encoder_folds(config))


def run_folds(config: RunConfig) -> FoldsResult:
    """Pre-train or train once for each fold and seed, and pool what they say of the samples that they hold out.

    Parameters
    ----------
    config : RunConfig
        One that `asks_for_folds`. ``--resume`` keeps the runs that are finished.

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
    with directory.logging() if processes.first else nullcontext():
        if processes.first:
            write_json(directory / "config.json", config.model_dump(mode="json"))
            if plan.folds is not None:
                held_out = np.where(plan.folds.of_sample >= 0, "test", "train")
                write_splits(directory / "splits.tsv", plan.sample_ids, held_out, plan.folds.of_sample)
        if config.train.parallel > 1:
            results = _side_by_side(config, plan, directory, processes)
        else:
            results = []
            for place, member in enumerate(plan.members):
                logger.info("%s (%d of %d)", member.name, place + 1, len(plan.members))
                results.append(_run_member(config, plan, directory, member, processes))
        return processes.broadcast(_finish(config, plan, directory, results) if processes.first else None)


def finished_folds(path: Path) -> list[Path]:
    """The runs of the folds of a run; none where it has no folds.

    Raises
    ------
    DataError
        If some of them are still to be trained.
    """
    directory = RunDirectory(path)
    if not directory.runs() or not has_folds(directory / "splits.tsv"):
        return []
    if not (directory / "metrics.json").is_file():
        raise DataError(f"{path}: not all of its folds are trained; continue it with --resume")
    number = max(read_folds(directory / "splits.tsv").values()) + 1
    runs = {int(path.name.split("_")[1]): path for path in reversed(directory.runs()) if path.name[0] == "f"}
    absent = set(range(number)) - runs.keys()
    if absent:
        raise DataError(f"{path}: has no run of fold {min(absent)} any more; put it back, or continue with --resume")
    return [runs[fold] for fold in range(number)]


def _encoder_folds(config: RunConfig) -> list[Path]:
    encoder = config.train.pretrained_encoder
    return [] if encoder is None else finished_folds(encoder)


# --------------------------------------------------------------------------------------------------------------- plan


def _plan(config: RunConfig, encoders: list[Path]) -> _Plan:
    study = load_inputs(config, checksums=False)
    validates = config.chooses_by_validation
    if config.task.classifier and study.target is not None:
        with in_file(config.data.metadata):
            require_repeated_classes(config.data.columns, study.target)
    folds: StudyFolds | None = None
    if encoders:
        folds = _folds_of_encoder(config, study, encoders)
    elif config.data.cross_validated:
        folds = fold_study(
            study,
            config.data,
            classifier=config.task.classifier,
            seed=config.train.seed,
            validate=validates,
        )
        _refuse_leaks(config, study)
    members = _members(config, None if folds is None else len(folds.splits))
    if folds is None and config.train.join and config.train.pretrained_encoder is None:
        # The first run settles the split; so it would do for nothing where no weights can be fitted in the end.
        require_unseen(config, split_study(study, config.data, config.train.seed, validate=validates)[0])
    if study.target is None:
        return _Plan(study.sample_ids, folds, encoders, members, study.groups, None, [])
    guesses = []
    if folds is not None:
        columns = zip(config.data.columns, study.target.reshape(len(study), -1).T, strict=True)
        guesses = [_guess(column, values, folds, config.task.classifier) for column, values in columns]
    return _Plan(study.sample_ids, folds, encoders, members, study.groups, study.target, guesses)


def _members(config: RunConfig, folds: int | None) -> list[MemberRun]:
    """All runs: of each fold with each seed, or of one split with each."""
    seeds = range(config.train.seed, config.train.seed + config.train.seeds)
    if folds is None:
        return [MemberRun(f"seed_{seed}", 0, seed) for seed in seeds]
    if len(seeds) == 1:
        return [MemberRun(f"fold_{fold}", fold, seeds[0]) for fold in range(folds)]
    return [MemberRun(f"fold_{fold}_seed_{seed}", fold, seed) for fold in range(folds) for seed in seeds]


def _folds_of_encoder(config: RunConfig, study: Study, encoders: list[Path]) -> StudyFolds:
    """The folds of the encoder's run. A sample that it did not have goes with its group, else into training."""
    encoder = config.train.pretrained_encoder
    assert encoder is not None
    number = len(encoders)
    for name in ("splits", "split_column", "leave_out", "test_size", "cal_size"):
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
        absent = {"train", "test"} - set(parts.tolist())
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


def _guess(column: str, actual: NDArray[Any], folds: StudyFolds, classifier: bool) -> _Guess:
    """Median, or frequencies of the classes, among the samples (N,) that each fold learns from and knows."""
    known = known_values(actual)
    learnt = [actual[known & (parts == "train")] for parts in folds.splits]
    for fold, values in enumerate(learnt):
        if not len(values):  # which a second column may be
            raise DataError(
                f"column {column!r} is empty for every training sample of fold {fold}; choose another --metadata-column"
            )
    if not classifier:
        medians = [np.median(values.astype(np.float64)) if len(values) else np.nan for values in learnt]
        return _Guess(np.array(medians)[folds.of_sample], ())
    classes = tuple(sorted(set(actual[known].tolist())))
    shares = np.array([[np.mean(labels == name) for name in classes] for labels in learnt])  # (K, C)
    return _Guess(shares[folds.of_sample], classes)


# ---------------------------------------------------------------------------------------------------------- one fold


def _side_by_side(config: RunConfig, plan: _Plan, above: RunDirectory, processes: Processes) -> list[dict[str, Any]]:
    """The metrics of all runs, several of which go at a time."""
    if processes.strategy != "single":
        raise DataError(
            f"--parallel {config.train.parallel}: the processes that torchrun started train each run together; "
            "leave one of them out"
        )
    number = min(config.train.parallel, len(plan.members))
    cores = max(1, own_cores() // number)
    workers = config.train.num_workers
    own = {
        "threads": config.train.threads or cores,
        "num_workers": (min(4, cores) if cores > 1 else 0) if workers is None else workers,
    }
    config = config.model_copy(update={"train": config.train.model_copy(update=own)})
    logger.info("%d runs, %d at a time (--threads %d of each)", len(plan.members), number, own["threads"])
    done: list[str] = []
    # Other seeds learn for as long as the first has found to be best, and may begin when it has.
    members = sorted(plan.members, key=lambda member: member.seed != config.train.seed)

    def ended(place: int, metrics: Mapping[str, Any]) -> None:
        done.append(members[place].name)
        told = metrics.get("test") or metrics.get("val") or {}
        shown = ", ".join(f"{name} {value:.3g}" for name, value in list(told.items())[:3])
        logger.info("%s is done (%d of %d): %s", done[-1], len(done), len(plan.members), shown)

    def ready(place: int) -> bool:
        first = _first_seed(config, plan, members[place])
        if first == members[place] or first.name in done:
            return True
        # Its first checkpoint comes after what its searches found; one of a run before says nothing.
        return _is_newer(above / first.name / "last.ckpt", above / "config.json")

    found = side_by_side(_run_member, [(config, plan, above, member) for member in members], number, ended, ready)
    results = dict(zip(members, found, strict=True))
    return [results[member] for member in plan.members]


def _first_seed(config: RunConfig, plan: _Plan, member: MemberRun) -> MemberRun:
    """The run of a fold whose search counts for all of its seeds."""
    return next(other for other in plan.members if other.fold == member.fold and other.seed == config.train.seed)


def _is_newer(file: Path, than: Path) -> bool:
    try:
        return file.stat().st_mtime_ns >= than.stat().st_mtime_ns
    except OSError:
        return False


def _run_member(
    config: RunConfig, plan: _Plan, above: RunDirectory, member: MemberRun, processes: Processes = ALONE
) -> dict[str, Any]:
    """The metrics of a run: as it is, continued or begun."""
    try:
        return _run_or_take(config, plan, above, member, processes)
    except DataError as error:
        raise DataError(f"{member.name.replace('_', ' ', 1)}: {error}") from None


def _run_or_take(
    config: RunConfig, plan: _Plan, above: RunDirectory, member: MemberRun, processes: Processes
) -> dict[str, Any]:
    directory = RunDirectory(above / member.name)
    own = _member_config(config, plan, above, member)
    if processes.broadcast(config.train.resume and _is_finished(own, directory)):
        logger.info("finished before: %s", directory.path)
        return _stored_metrics(directory)
    resume = processes.broadcast(config.train.resume and directory.checkpoint() is not None)
    if not resume and processes.first:
        directory.create(overwrite=True)  # what a run that was interrupted in its first epoch has left
        if plan.folds is not None:
            write_splits(directory / "splits.tsv", plan.sample_ids, plan.folds.splits[member.fold])
    processes.barrier()
    train = own.train.model_copy(update={"resume": resume, "overwrite": not resume})
    return run(own.model_copy(update={"train": train})).metrics


def _member_config(config: RunConfig, plan: _Plan, above: RunDirectory, member: MemberRun) -> RunConfig:
    """A run of its own: the split is the one that stands in its directory, or in that of the first seed."""
    directory = above / member.name
    data: dict[str, Any] = {}
    model = config.model
    train: dict[str, Any] = {"output_dir": directory, "seed": member.seed, "seeds": 1, "parallel": 1}
    train |= {"baseline": False, "join": None}
    if plan.folds is not None:
        data = {"splits": directory / "splits.tsv", "folds": None, "leave_one_group_out": False}
    elif member != plan.members[0]:
        data = {"splits": above / plan.members[0].name / "splits.tsv", "split_column": None, "leave_out": ()}
        data |= {"test_size": 0.0, "cal_size": 0.0}
    if member.seed != config.train.seed:  # the first seed has found out how long is best
        found = _stored_config(RunDirectory(above / _first_seed(config, plan, member).name))
        train |= {"choose_epochs": False, "stop_after": found["train"].get("stop_after")}
        model = model.model_copy(update={"head": found.get("model", {}).get("head", model.head)})
    if plan.encoders:
        train["pretrained_encoder"] = plan.encoders[member.fold]
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": model,
            "train": config.train.model_copy(update=train),
        }
    )


def _is_finished(config: RunConfig, directory: RunDirectory) -> bool:
    """Whether a fold has come to its end and is not to be trained for longer now."""
    if not (directory / "metrics.json").is_file():
        return False
    before = _stored_config(directory)["train"]
    asked = config.train
    run = before.get("stop_after") or before.get("epochs")
    if asked.stop_after is not None and isinstance(run, int) and asked.stop_after > run:
        return False
    return before.get("patience") == asked.patience and asked.epochs in (None, before.get("epochs"))


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
    """Pool the predictions of held-out samples, and write what a person reads and the one model that predicts."""
    metrics: dict[str, Any] = {}
    if config.command == "train":
        members = [
            Member(run.name, run.fold, load_model_file(model_path(directory / run.name))) for run in plan.members
        ]
        path = directory / plan.members[0].name / MODEL_NAME
        target = read_target(members[0].file.header, path)
        assert target is not None
        if plan.folds is None:
            metrics, calibrators, joined = _judge_seeds(config, plan, directory, target, results)
        else:
            metrics, calibrators, joined = _judge_folds(config, plan, directory, target)
        _write_ensemble(config, directory, members, calibrators, joined)
    summary = fold_summary(results)
    if plan.folds is None or config.train.seeds > 1:
        summary["each"] = [{"run": run.name, **result} for run, result in zip(plan.members, results, strict=True)]
    metrics["seeds" if plan.folds is None else "folds"] = summary
    if config.train.pretrained_encoder is not None:
        metrics["pretrained_leak"] = sum(int(result.get("pretrained_leak", 0)) for result in results)
    write_json(directory / "metrics.json", metrics)
    return FoldsResult(directory.path, metrics)


def _judge_folds(
    config: RunConfig, plan: _Plan, directory: RunDirectory, target: Target | SeveralTargets
) -> tuple[dict[str, Any], Calibrators, Joined | None]:
    """Metrics of the samples that folds hold out, and what these say of how far predictions are off."""
    table = _pooled_predictions(directory, plan, target)
    place = {name: i for i, name in enumerate(plan.sample_ids)}
    rows = np.array([place[name] for name in table["sample_id"]])
    assert plan.actual is not None
    answers = AllAnswers(target, rows, answers_in(table, target), plan.actual[rows])
    metrics: dict[str, Any] = {}
    joined = None
    if config.train.join:
        joined, answers = _join_in_folds(config, plan, table["fold"].to_numpy(), answers, directory, metrics)
        table = table[["sample_id", "fold"]].merge(
            answer_table(target, table["sample_id"].tolist(), answers.values, answers.actual), on="sample_id"
        )
    guessed: dict[str, float] = {}
    for part, guess in zip(parts_of(target), plan.guesses, strict=True):
        guessed |= {f"{part.prefix}{name}": value for name, value in _guess_metrics(answers.of(part), guess).items()}
    compared = by_column(target, lambda part: _against_guess(plan, answers.of(part), plan.guesses[part.place or 0]))
    metrics = {"oof": answer_metrics(answers), **metrics}
    calibrators = Calibrators.of(answers, plan.groups, table["fold"].to_numpy(dtype=np.int64), "oof")
    if calibrators.by_name:
        metrics["calibration"] = calibrators.summary(answers)
    write_table(directory / PREDICTIONS, calibrators.own_intervals(table, answers))
    baseline = {"guess": {"oof": guessed}}
    if config.train.baseline:
        from aam.baselines import baselines_of_folds

        logger.info("fitting the classical models in all folds")
        assert plan.folds is not None
        found = baselines_of_folds(
            load_inputs(config, checksums=False),
            plan.folds.of_sample,
            config.data,
            classifier=config.task.classifier,
            seed=config.train.seed,
            n_jobs=config.train.threads or -1,
        )
        baseline = found | baseline
    if config.train.plots:
        plot_answers(answers, directory / "plots", "oof", "out of fold")
    return {**metrics, "baseline": baseline, "against_guess": compared}, calibrators, joined


def _join_in_folds(
    config: RunConfig,
    plan: _Plan,
    fold_of: NDArray[np.int64],
    network: AllAnswers,
    directory: RunDirectory,
    metrics: dict[str, Any],
) -> tuple[Joined, AllAnswers]:
    """A classical model of each fold, and what it says with the networks of the samples (n,) that the fold holds out.

    Each fold's weights are those that do best on the samples of the other folds; what predicts new samples has those
    that do best on all.
    """
    assert plan.folds is not None
    study = load_inputs(config, checksums=False)
    fitted = FittedClassical.of(config, study, plan.folds.splits, network.target)
    folds = range(len(plan.folds.splits))
    alone, together = np.empty_like(network.values), np.empty_like(network.values)
    known = np.empty(len(network.rows), dtype=bool)

    def of(here: NDArray[np.bool_], values: NDArray[np.float64]) -> AllAnswers:
        return AllAnswers(network.target, network.rows[here], values[here], network.actual[here])

    for fold in folds:
        here = fold_of == fold
        answers, known[here] = fitted.alone(fold, of(here, network.values))
        alone[here] = answers.values
    shares = []
    for fold in folds:
        here = fold_of == fold
        shares.append(fitted.share(of(~here, network.values), of(~here, alone)))
        together[here] = fitted.joined(shares[-1]).together(network.values[here], alone[here], known[here])
    classical = network._replace(values=alone)
    joined = fitted.joined(fitted.share(network, classical))
    write_answers(study, network, directory / "oof_network_predictions.tsv")
    write_answers(study, classical, directory / "oof_classical_predictions.tsv")
    metrics["joined"] = joined_summary(joined, {"oof": network}, {"oof": classical})
    metrics["joined"]["share_in_folds"] = shares
    return joined, network._replace(values=together)


def _guess_metrics(answers: Answers, guess: _Guess) -> dict[str, float]:
    if not len(answers.rows):
        return {}
    values = guess.values[answers.rows]
    return (
        _class_metrics(answers.actual, values, guess.classes)
        if guess.classes
        else regression_metrics(answers.actual, values)
    )


def _against_guess(plan: _Plan, answers: Answers, guess: _Guess) -> dict[str, Any] | None:
    values = guess.values[answers.rows]
    if guess.classes:
        values = np.array(guess.classes, dtype=object)[values.argmax(axis=1)]
    return against_guess(answers, values, None if plan.groups is None else plan.groups[answers.rows])


def _judge_seeds(
    config: RunConfig,
    plan: _Plan,
    directory: RunDirectory,
    target: Target | SeveralTargets,
    results: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], Calibrators | None, Joined | None]:
    """Metrics of the mean of several seeds' predictions, and what held-out samples say of how far these are off."""
    runs = [directory / run.name for run in plan.members]
    (directory / "splits.tsv").write_bytes((runs[0] / "splits.tsv").read_bytes())
    place = {name: i for i, name in enumerate(plan.sample_ids)}
    metrics: dict[str, Any] = {}
    calibrators = None
    unseen = "cal" if (runs[0] / "cal_predictions.tsv").is_file() else "val"
    split = read_splits(runs[0] / "splits.tsv")
    assert plan.actual is not None
    parts = np.array([split[name] for name in plan.sample_ids], dtype="<U5")
    learnt = plan.actual[parts == "train"]
    known: dict[str, AllAnswers] = {}
    for part in ("val", "test", "cal"):
        if not (runs[0] / f"{part}_predictions.tsv").is_file():
            continue
        table = _mean_table(runs, part, target, None)
        rows = np.array([place[name] for name in table["sample_id"]])
        known[part] = AllAnswers(target, rows, answers_in(table, target), plan.actual[rows])
        if part != "cal":
            metrics[part] = answer_metrics(known[part])
    joined = None
    require_unseen(config, parts)
    study = load_inputs(config, checksums=False) if config.train.join or config.train.baseline else None
    if config.train.join:
        assert study is not None
        joined, known = join_classical(config, study, parts, known, directory, metrics)
    for part, answers in known.items():
        rows = answers.rows
        ids = [plan.sample_ids[row] for row in rows]
        write_table(directory / f"{part}_predictions.tsv", answer_table(target, ids, answers.values, answers.actual))
        if part != "cal" and config.train.plots:
            plot_answers(answers, directory / "plots", part, part)
        if part == unseen and (part == "cal" or not config.chooses_by_validation):
            calibrators = Calibrators.of(answers, plan.groups, np.zeros(len(rows), dtype=np.int64), part)
            if calibrators.by_name:
                metrics["calibration"] = calibrators.summary(answers)
        if part != "cal":
            metrics["against_guess"] = by_column(target, partial(_against_training, plan, answers, learnt))
    metrics["baseline"] = results[0].get("baseline", {})
    if config.train.baseline:
        from aam.baselines import baselines_of_split

        logger.info("fitting the classical models")
        assert study is not None
        found = baselines_of_split(
            study,
            parts,
            config.data,
            classifier=config.task.classifier,
            seed=config.train.seed,
            n_jobs=config.train.threads or -1,
        )
        metrics["baseline"] = found | metrics["baseline"]
    return metrics, calibrators, joined


def _against_training(plan: _Plan, answers: AllAnswers, learnt: NDArray[Any], part: Part) -> dict[str, Any] | None:
    """How predictions compare with the best constant answer of the training samples."""
    of_part = answers.of(part)
    guess = np.full(len(of_part.rows), best_constant(part, learnt), dtype=object)
    return against_guess(of_part, guess, None if plan.groups is None else plan.groups[of_part.rows])


def _write_ensemble(
    config: RunConfig,
    directory: RunDirectory,
    members: list[Member],
    calibrators: Calibrators | None,
    joined: Joined | None,
) -> None:
    """The one file that predicts as the mean of all models."""
    first = members[0].file.header
    header = {"target": first["target"], "base_targets": first["base_targets"], "checksums": first["checksums"]}
    header["provenance"] = {**first["provenance"], "aam": __version__, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    arrays: dict[str, NDArray[Any]] = {}
    if calibrators is not None and calibrators.by_name:
        header["calibration"] = calibrators.to_dict()
        arrays |= calibrators.arrays()
    if joined is not None:
        header["joined"] = joined.to_dict()
        arrays |= joined.arrays()
    save_ensemble(directory / MODEL_NAME, members, config, header, arrays)


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


def _pooled_predictions(directory: RunDirectory, plan: _Plan, target: Target | SeveralTargets) -> pd.DataFrame:
    """The predictions of all folds, in the order of the sample IDs."""
    assert plan.folds is not None
    tables = []
    for fold, parts in enumerate(plan.folds.splits):
        runs = [directory / run.name for run in plan.members if run.fold == fold]
        held_out = [name for name, part in zip(plan.sample_ids, parts, strict=True) if part == "test"]
        table = _mean_table(runs, "test", target, held_out)
        table.insert(1, "fold", fold)
        tables.append(table)
    return pd.concat(tables, ignore_index=True).sort_values("sample_id", kind="stable", ignore_index=True)


def _mean_table(
    runs: Sequence[Path], part: str, target: Target | SeveralTargets, expected: Sequence[str] | None
) -> pd.DataFrame:
    """The mean of what runs with several seeds say of a part; with one, what it says."""
    tables: list[pd.DataFrame] = []
    numbers, texts = answer_columns(target), ["sample_id"]
    for of_column in parts_of(target):
        if isinstance(of_column.target, ClassTarget):
            texts += [f"{of_column.prefix}actual", f"{of_column.prefix}predicted"]
        elif of_column.place is None:  # of several columns, some of a sample may be unknown
            numbers = [*numbers, "actual"]
    for directory in runs:
        path = directory / f"{part}_predictions.tsv"
        try:
            # As text, for Python reads each number as it was written to the last bit.
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
            numeric = [name for name in table.columns if name not in texts]
            table[numeric] = table[numeric].replace("", "nan").astype(float)
            ids = table["sample_id"].tolist()
            if sorted(ids) != (sorted(ids) if expected is None else list(expected)):
                raise ValueError
            if not np.isfinite(table[numbers]).all(axis=None):
                raise ValueError
            if tables and ids != tables[0]["sample_id"].tolist():
                raise ValueError
        except (OSError, ValueError, KeyError):  # of a run that was trained before and has been changed since
            raise DataError(f"{path}: does not hold the run's predictions; remove {path.parent} and --resume") from None
        tables.append(table)
    if len(tables) == 1:
        return tables[0]
    mean = np.mean([answers_in(table, target) for table in tables], axis=0)
    actual = np.stack([tables[0][f"{of_column.prefix}actual"].to_numpy() for of_column in parts_of(target)], axis=1)
    return answer_table(
        target, tables[0]["sample_id"].tolist(), mean, actual if isinstance(target, SeveralTargets) else actual[:, 0]
    )


def _class_metrics(
    actual: NDArray[Any], probabilities: NDArray[np.float64], classes: tuple[str, ...]
) -> dict[str, float]:
    places = np.array([classes.index(label) for label in actual])
    return classification_metrics(places, probabilities.argmax(axis=1), probabilities, classes)
