"""Which options of ``aam train`` suit a study: ``aam tune``.

Each trial is judged by inner folds of the training samples (see `aam.trials`). What the split holds out, for validation
or for the test, has no part in the search, so its figures are honest once the best options are trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import yaml

from aam.config import RunConfig
from aam.data.augmentation import can_draw_reads, with_defaults
from aam.data.splits import write_splits
from aam.errors import DataError
from aam.launch import Launch
from aam.loaders import own_cores
from aam.run import encoder_fingerprint, fingerprint, pretrained_architecture, require_same_config
from aam.run_directory import RunDirectory, write_json, write_table
from aam.search_space import (
    DEFAULT_SPACE,
    WHERE,
    Choices,
    Space,
    given_options,
    label,
    read_space,
    refused,
    spelled,
    with_values,
)
from aam.trials import Objective, Setting, objective_of, setting_of

if TYPE_CHECKING:
    from aam.integrations.optuna import Asked, Outcome, Search, StudyOptions, Trial

__all__ = ["TuneOptions", "TuneResult", "tune"]

logger = logging.getLogger("aam")

Engine = Literal["optuna", "ray"]
_FILES = (
    *("study.json", "config.json", "space.yaml", "study.db", "splits.tsv", "folds.tsv"),
    *("trials.tsv", "best_config.json"),
)
_OTHERS = ("aam.log", "plots/trials.png", "plots/importances.png", "plots/parallel_coordinates.png")


@dataclass(frozen=True)
class TuneOptions:
    """How to search."""

    trials: int = 20
    folds: int | None = None  # 3; of a study that is resumed, as it was begun
    parallel: int = 1
    storage: str | None = None  # sqlite in the output directory
    pruner: Literal["median", "hyperband", "none"] | None = None  # median; likewise
    engine: Engine = "optuna"
    resume: bool = False
    overwrite: bool = False
    name: str | None = None  # in the storage; that of the output directory; of a study that is resumed, as it was begun

    @property
    def number_of_folds(self) -> int:
        """``folds``, where nobody asks for another number."""
        return 3 if self.folds is None else self.folds


@dataclass(frozen=True)
class TuneResult:
    """What a search came to."""

    directory: Path
    objective: Objective
    trials: list[Trial]
    best: Trial
    usual: Trial | None  # with the values that ``aam train`` would take by itself


def tune(config: RunConfig, space_file: Path | None, options: TuneOptions) -> TuneResult:
    """Search for options, and write the output directory.

    Parameters
    ----------
    config : RunConfig
        The fixed options, of ``aam train``; ``output_dir`` is that of the search.
    space_file : Path, optional
        By default the space that comes with the package, or that of the study to resume.
    options : TuneOptions

    Raises
    ------
    DataError
        If the inputs, the space or the storage cannot be used, or no trial came to an end.
    Interrupted
        If a signal asked to stop; ``resume`` goes on.
    """
    _require_extra(options.engine)
    _require_simple(config)
    directory = config.train.output_dir
    _require_free(directory, options)
    options = _settled(directory, options)
    setting = setting_of(config, options.number_of_folds)
    space = _space(setting, space_file, directory / "space.yaml" if options.resume else None)
    from aam.integrations.optuna import open_search

    directory.mkdir(parents=True, exist_ok=True)
    if options.overwrite and options.storage is None:
        (directory / "study.db").unlink(missing_ok=True)  # it may be damaged
    study_options = _study_options(config, directory, options)
    objective = objective_of(config)
    search = open_search(
        study_options,
        space,
        lower_is_better=objective.lower_is_better,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if options.overwrite:
        _remove(directory)
    begun_with = {
        "config": config.model_dump(mode="json"),
        "space": space.to_dict(),
        "inputs": _inputs(setting),
    }
    if options.resume:
        _require_same(config, begun_with, search.remembered(), directory)
    else:
        search.remember(begun_with)
        _write_settings(directory, setting, space)
        begun = {"name": study_options.name, "folds": study_options.folds, "pruner": study_options.pruner}
        write_json(directory / "study.json", {**begun, "own_storage": options.storage is None})
    with RunDirectory(directory).logging():
        _log_setting(setting, space, options, objective)
        _run(search, setting, options, objective, directory)
        return _finish(search, setting, directory, objective)


# ------------------------------------------------------------------------------------------------------------ beginning


def _require_extra(engine: Engine) -> None:
    from aam.integrations import require_package

    require_package("optuna", "`aam tune`", "tune")
    if engine == "ray":
        require_package("ray", "--engine ray", "ray")


def _require_simple(config: RunConfig) -> None:
    """Refuse what trials have no use for."""
    if len(config.data.columns) > 1:
        raise DataError(
            f"trials are compared by one --metadata-column, and {' and '.join(config.data.columns)} are given; "
            "leave all but one out"
        )
    if config.optim.lr_find != "none":
        raise DataError(f"--lr-find {config.optim.lr_find}: leave it out, lr is an option that is searched")
    if config.train.choose_epochs:
        raise DataError("--choose-epochs is no option of trials; give --epochs, or search epochs or stop-after")
    if config.model.head == "linear":
        raise DataError("--head linear is fitted when a run has ended, and trials are judged before; leave it out")
    if Launch.of_environment().by_torchrun:
        raise DataError("`aam tune` was started by torchrun; start it alone, and give --parallel")


def _require_free(directory: Path, options: TuneOptions) -> None:
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: is a file; give another --output-dir")
    if (directory / "last.ckpt").exists() or RunDirectory(directory).runs():
        raise DataError(f"{directory}: holds a run of `aam train` or `aam pretrain`; give another --output-dir")
    found = [name for name in _FILES if (directory / name).exists()]
    if options.resume and not (directory / "config.json").is_file():
        raise DataError(f"{directory}: holds no study to resume; leave --resume out")
    if found and not (options.resume or options.overwrite):
        raise DataError(
            f"{directory}: holds a study already; give --resume to continue it, --overwrite to replace it, or another "
            "--output-dir"
        )


def _settled(directory: Path, options: TuneOptions) -> TuneOptions:
    """The options, with those of the study that is resumed where they say nothing."""
    path = directory / "study.json"
    if not options.resume or not path.is_file():
        return options
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        folds, pruner = int(before["folds"]), str(before["pruner"])
        name, own_storage = str(before["name"]), bool(before["own_storage"])
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f"{path}: is damaged; start again with --overwrite") from None
    if pruner not in ("median", "hyperband", "none") or folds < 1:
        raise DataError(f"{path}: is damaged; start again with --overwrite")
    if options.folds not in (None, folds):
        raise DataError(f"{directory}: was begun with --folds {folds}, and --folds {options.folds} is asked for")
    if options.storage is None and not own_storage:  # which may hold a password, so it is not kept
        raise DataError(f"{directory}: was begun with --storage; give it again")
    return replace(options, folds=folds, pruner=options.pruner or pruner, name=name)  # type: ignore[arg-type]


def _remove(directory: Path) -> None:
    for name in {*_FILES, *_OTHERS} - {"study.db"}:
        (directory / name).unlink(missing_ok=True)


def _study_options(config: RunConfig, directory: Path, options: TuneOptions) -> StudyOptions:
    from aam.integrations.optuna import StudyOptions

    url = options.storage or f"sqlite:///{directory.absolute() / 'study.db'}"
    name = options.name or directory.absolute().name
    return StudyOptions(url, name, options.pruner or "median", options.number_of_folds, config.train.seed)


def _space(setting: Setting, given: Path | None, before: Path | None) -> Space:
    """The space, held against the fixed options.

    Raises
    ------
    DataError
        Naming its file, and the option that is wrong.
    """
    config, prepared = setting.config, setting.prepared
    path = given or (before if before is not None and before.is_file() else DEFAULT_SPACE)
    space, fixed = read_space(path), given_options(config)
    if path == DEFAULT_SPACE:
        space = space.without(set().union(fixed, _unfit(setting)))
        if not len(space):
            raise DataError("every option of the usual space is given, so nothing is left to search; give --space")
    both = sorted(fixed & space.options.keys())
    if both:
        raise DataError(f"{path}: {spelled(both[0])}: is searched and given to the command; leave one of them out")
    wrong = refused(space, config)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}")
    if prepared.pretrained is not None:
        for name, option in space.options.items():
            for value in option.tried() if WHERE[name] == "model" else ():
                try:
                    pretrained_architecture(with_values(config, {name: value}), prepared.pretrained)
                except DataError as error:
                    raise DataError(f"{path}: {spelled(name)}: {error}") from None
    return space


def _unfit(setting: Setting) -> set[str]:
    """Options of the usual space that these inputs leave no choice of."""
    names = set()
    if setting.prepared.pretrained is not None:
        names |= {"embedding_dim", "attention_layers"}
    if setting.config.train.freeze_base:
        names |= {"asv_dropout", "mix_samples"}
    if not can_draw_reads(setting.prepared.study.counts):
        names.add("mix_samples")
    if setting.config.model.attention_heads not in (1, 2, 4, 8, 16, 32):
        names.add("embedding_dim")
    return names


def _inputs(setting: Setting) -> dict[str, str]:
    encoder = setting.config.train.pretrained_encoder
    found = fingerprint(setting.prepared.study, setting.prepared.split)
    return found if encoder is None else {**found, "pretrained_encoder": encoder_fingerprint(encoder)}


def _require_same(config: RunConfig, now: dict[str, Any], before: dict[str, Any], directory: Path) -> None:
    """Refuse to continue a study whose trials would not be of one thing."""
    require_same_config(config, before["config"], directory, same_length=True)
    if json.loads(json.dumps(now["space"])) != before["space"]:
        raise DataError(f"{directory}: was begun with the space in {directory / 'space.yaml'}, and --space is another")
    for name, digest in now["inputs"].items():
        if before["inputs"].get(name) != digest:
            what = "the split of the samples" if name == "split" else f"the file of --{spelled(name)}"
            raise DataError(f"{directory}: {what} is another than when it was begun; put it back, or use --overwrite")


def _write_settings(directory: Path, setting: Setting, space: Space) -> None:
    write_json(directory / "config.json", setting.config.model_dump(mode="json", exclude_unset=True))
    text = yaml.safe_dump(space.to_dict(), sort_keys=False, default_flow_style=None)
    (directory / "space.yaml").write_text(text, encoding="utf-8")
    ids = setting.prepared.study.sample_ids
    write_splits(directory / "splits.tsv", ids, setting.prepared.split)
    of_sample = np.full(len(ids), -1)
    for place, parts in enumerate(setting.folds):
        of_sample[parts == "val"] = place
    write_splits(directory / "folds.tsv", ids, setting.prepared.split, of_sample)


def _log_setting(setting: Setting, space: Space, options: TuneOptions, objective: Objective) -> None:
    learnt = int((setting.prepared.split == "train").sum())
    held_out = len(setting.prepared.split) - learnt
    group = setting.prepared.config.data.group_column
    logger.info(
        "%d training samples in %s%s judge the trials by %s; %d held-out samples have no part in it",
        *(learnt, f"{options.number_of_folds} folds" if options.number_of_folds > 1 else "one inner split"),
        *(f", grouped by {group}" if group else "", objective.metric, held_out),
    )
    logger.info("searched: %s", ", ".join(map(spelled, space.options)))
    for note in setting.prepared.notes:
        logger.info(note)


# --------------------------------------------------------------------------------------------------------------- trials


def _run(search: Search, setting: Setting, options: TuneOptions, objective: Objective, directory: Path) -> None:
    again = search.redo_killed()
    if again:
        logger.info("%d trials were interrupted, count as failed, and are run again", again)
    missing = options.trials - search.done()
    if missing <= 0:
        logger.info("%d trials are done, and --trials asks for %d", search.done(), options.trials)
        return
    if not search.trials():
        usual = _usual_values(setting, search.space)
        if usual is not None:
            search.begin_with(usual)
            logger.info("trial 0 has the values that `aam train` would take by itself")

    def ended(asked: Asked, outcome: Outcome) -> None:
        trials, best = search.trials(), search.best()
        done, seconds = search.done(), trials[asked.number].seconds
        took = "" if seconds is None else f" in {seconds:.0f} s"
        so_far = "" if best is None else f"; the best is trial {best.number}, {best.value:.4g}"
        logger.info(
            "%d of %d done%s: trial %d, %s%s",
            *(done, options.trials, took, asked.number, _told(asked, outcome, objective), so_far),
        )
        _write_found(search, setting, directory)  # so that a search may be stopped at any time

    parallel = min(options.parallel, missing)
    of_trials = setting if parallel == 1 else setting._replace(config=_with_share_of_cores(setting.config, parallel))
    if options.engine == "ray":
        from aam.integrations.ray import run_trials_by_ray

        run_trials_by_ray(search, of_trials, missing, parallel, ended, directory / "ray")
        return
    from aam.integrations.optuna import run_trials

    run_trials(search, of_trials, missing, parallel, ended)


def _with_share_of_cores(config: RunConfig, parallel: int) -> RunConfig:
    """For a trial that is one of several at a time; the best options are trained alone, without it."""
    cores = max(1, own_cores() // parallel)
    own = {"threads": config.train.threads or cores}
    if config.train.num_workers is None:
        own["num_workers"] = min(4, cores) if cores > 1 else 0
    return config.model_copy(update={"train": config.train.model_copy(update=own)})


def _usual_values(setting: Setting, space: Space) -> dict[str, Any] | None:
    """What ``aam train`` would take of the options that are searched; None where the space has it not."""
    config = setting.config
    usual = config.model_copy(update={"augmentation": with_defaults(config, setting.prepared.study.counts)})
    values = {name: getattr(getattr(usual, WHERE[name]), name) for name in space.options}
    return values if all(space.options[name].has(value) for name, value in values.items()) else None


def _told(asked: Asked, outcome: Outcome, objective: Objective) -> str:
    shown = ", ".join(f"{spelled(name)} {_short(value)}" for name, value in asked.values.items())
    if outcome.value is None:
        return f"failed ({outcome.why}): {shown}"
    cut = "pruned at " if outcome.value.pruned else ""
    return f"{cut}{objective.metric} {outcome.value.value:.4g}: {shown}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))


# --------------------------------------------------------------------------------------------------------------- result


def _finish(search: Search, setting: Setting, directory: Path, objective: Objective) -> TuneResult:
    _write_found(search, setting, directory)
    trials, best = search.trials(), search.best()
    if best is None:
        failed = [trial for trial in trials if trial.why]
        why = f"; trial {failed[0].number}: {failed[0].why}" if failed else ""
        raise DataError(f"{directory}: none of {len(trials)} trials was trained to its end{why}")
    _plot(search, trials, directory / "plots", objective)
    return TuneResult(directory, objective, trials, best, search.usual())


def _write_found(search: Search, setting: Setting, directory: Path) -> None:
    """What is known so far."""
    write_table(directory / "trials.tsv", _table(search.trials(), search.space))
    best = search.best()
    if best is not None:
        write_json(directory / "best_config.json", _best_config(setting.config, best))


def _table(trials: Sequence[Trial], space: Space) -> pd.DataFrame:
    """A row for each trial; values of lists as JSON."""
    rows: list[dict[str, Any]] = []
    for trial in trials:
        row: dict[str, Any] = {"number": trial.number, "state": trial.state, "value": trial.value}
        row["seconds"] = None if trial.seconds is None else round(trial.seconds, 2)
        row |= {spelled(name): label(trial.values.get(name)) for name in space.options}
        rows.append({**row, "why": " ".join(trial.why.split())})
    return pd.DataFrame(rows, dtype=object)


def _best_config(config: RunConfig, best: Trial) -> dict[str, Any]:
    """What ``aam train --config`` takes: the fixed options and the best values, but not where to write."""
    content = with_values(config, best.values).model_dump(mode="json", exclude_unset=True)
    train = content["train"]
    del train["output_dir"]
    if all(train.get(name) is None for name in ("epochs", "stop_after", "patience")):
        train["choose_epochs"] = False  # for as long as the trials were trained
    return content


def _plot(search: Search, trials: Sequence[Trial], folder: Path, objective: Objective) -> None:
    from aam.evaluation.plots import save_figure
    from aam.evaluation.tuning_plots import Axis, importances_plot, parallel_plot, trials_plot

    name, lower = f"{objective.metric.replace('_', ' ')} of inner folds", objective.lower_is_better
    judged = [trial for trial in trials if trial.state in ("complete", "pruned") and trial.value is not None]
    values = [float(trial.value or 0.0) for trial in judged]
    pruned = [trial.state == "pruned" for trial in judged]
    history = trials_plot([trial.number for trial in judged], values, pruned, label=name, lower=lower)
    save_figure(history, folder / "trials.png")
    importances = {spelled(option): share for option, share in search.importances().items()}
    save_figure(importances_plot(importances), folder / "importances.png")
    axes, columns = [], []
    complete = [trial for trial in judged if trial.state == "complete"]
    for option_name, option in search.space.options.items():
        of_trials = [trial.values[option_name] for trial in complete]
        if isinstance(option, Choices):
            axes.append(Axis(spelled(option_name), labels=tuple(str(label(value)) for value in option.values)))
            columns.append([option.values.index(value) for value in of_trials])
        else:
            axes.append(Axis(spelled(option_name), option.log))
            columns.append(of_trials)
    rows = np.array(columns, dtype=np.float64).T
    of_complete = [float(trial.value or 0.0) for trial in complete]
    figure = parallel_plot(axes, rows, of_complete, label=name, lower=lower)
    save_figure(figure, folder / "parallel_coordinates.png")
