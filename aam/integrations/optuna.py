"""The search of ``aam tune`` as a study of Optuna: what is asked, what was told, and what mattered.

Values are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011). Its draws depend on the seed and on how
many trials there are but for those that were interrupted: a study that is continued goes on as if it had not stopped.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from aam.config import RunConfig
from aam.errors import DataError, Interrupted
from aam.search_space import Choices, Range, Space, label
from aam.side_by_side import side_by_side
from aam.training.callbacks import Signals
from aam.trials import TENTHS, Setting, TrialValue, objective_of, run_trial, setting_of

__all__ = ["Asked", "Outcome", "Search", "StudyOptions", "Trial", "open_search", "run_trials"]

Pruner = Literal["median", "hyperband", "none"]
STARTUP_TRIALS = 5  # that the median needs
WARMUP_TENTHS = 3  # before which nothing is pruned


class StudyOptions(NamedTuple):
    """Where a study is kept, and how it prunes. A process of its own opens it by these."""

    url: str
    name: str
    pruner: Pruner
    folds: int
    seed: int


class Asked(NamedTuple):
    """A trial that is to be run."""

    number: int
    trial_id: int
    values: dict[str, Any]  # by the name of the field


class Outcome(NamedTuple):
    """What it came to."""

    value: TrialValue | None
    why: str = ""  # it failed


class Trial(NamedTuple):
    """A trial of a study."""

    number: int
    state: str  # complete, pruned, failed, interrupted, running, waiting
    value: float | None
    seconds: float | None
    values: dict[str, Any]
    why: str


class Search:
    """A study, and the space that it searches."""

    def __init__(self, study: optuna.Study, space: Space, options: StudyOptions) -> None:
        self.study = study
        self.space = space
        self.options = options
        self.distributions = {name: _distribution(option) for name, option in space.options.items()}

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Keep what the study was begun with, as JSON."""
        self.study.set_user_attr("aam", json.dumps(settings))

    def remembered(self) -> dict[str, Any]:
        """What the study was begun with.

        Raises
        ------
        DataError
        """
        try:
            return dict(json.loads(self.study.user_attrs["aam"]))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.options.url}: study {self.options.name!r} was not begun by `aam tune`") from None

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Have these values tried first: what is searched for is to be better than them."""
        params = {name: label(list(value) if isinstance(value, tuple) else value) for name, value in values.items()}
        self.study.enqueue_trial(params, user_attrs={"usual": True})

    def usual(self) -> Trial | None:
        """The trial of the values that `begin_with` was given."""
        found = [frozen for frozen in self.study.get_trials(deepcopy=False) if frozen.user_attrs.get("usual")]
        return self._trial(found[-1]) if found else None

    def ask(self) -> Asked:
        """The next trial: one that was interrupted, or new values."""
        place = sum(trial.state != "interrupted" for trial in self.trials())
        seed = np.random.SeedSequence([self.options.seed, place]).generate_state(1)[0]
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        trial = self.study.ask(self.distributions)
        return Asked(trial.number, trial._trial_id, self._values(trial.params))

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """Keep what a trial came to."""
        if outcome.value is None:
            optuna.trial.Trial(self.study, asked.trial_id).set_user_attr("why", outcome.why)
            self.study.tell(asked.number, state=TrialState.FAIL)
        elif outcome.value.pruned:
            self.study.tell(asked.number, state=TrialState.PRUNED)
        else:
            self.study.tell(asked.number, outcome.value.value)

    def report(self, asked: Asked, step: int, value: float) -> None:
        """Keep what a trial has come to so far."""
        optuna.trial.Trial(self.study, asked.trial_id).report(value, step)

    def redo(self, number: int, **told: Any) -> None:
        """Count a trial that was interrupted as failed, and run it again later."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        self.study.tell(number, state=TrialState.FAIL)
        kept = {name: value for name, value in frozen.user_attrs.items() if name in ("usual", "killed")}
        self.study.enqueue_trial(frozen.params, user_attrs={**kept, "again": number, **told})

    def redo_killed(self) -> int:
        """Have all whose process was killed run again; how many.

        One that was killed when it ran again has failed, or no search could go on past a trial that takes more memory
        than there is.
        """
        left = [frozen for frozen in self.study.get_trials() if frozen.state == TrialState.RUNNING]
        again = [frozen.number for frozen in left if not frozen.user_attrs.get("killed")]
        for frozen in left:
            if frozen.number in again:
                self.redo(frozen.number, killed=True)
            else:
                why = "its process was killed twice, out of memory perhaps"
                self.tell(Asked(frozen.number, frozen._trial_id, {}), Outcome(None, why))
        return len(again)

    def trials(self) -> list[Trial]:
        """All trials, in their order."""
        return [self._trial(frozen) for frozen in self.study.get_trials(deepcopy=False)]

    def done(self) -> int:
        """Trials that have come to an end, be it that they failed by themselves."""
        return sum(trial.state in ("complete", "pruned", "failed") for trial in self.trials())

    def best(self) -> Trial | None:
        """The best one that was trained to its end; the first of several."""
        complete = [trial for trial in self.trials() if trial.state == "complete" and trial.value is not None]
        sign = 1 if self.study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        return min(complete, key=lambda trial: sign * float(trial.value or 0.0), default=None)

    def importances(self) -> dict[str, float]:
        """Share of the variance of the value that each option explains by itself (fANOVA, Hutter et al. 2014).

        Empty where there are fewer than four complete trials, or all of them are equally good.
        """
        complete = [trial for trial in self.trials() if trial.state == "complete"]
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.options.seed)
        try:
            found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except RuntimeError as error:
            if "zero total variance" not in str(error):
                raise
            return {}  # all of its trees hold one value, as they may of few trials that are nearly all alike
        return {name: float(share) for name, share in found.items()}

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in params.items():
            option = self.space.options[name]
            if isinstance(option, Choices):
                value = next(choice for choice in option.values if label(choice) == value)
            found[name] = value
        return found

    def _trial(self, frozen: FrozenTrial) -> Trial:
        states = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.RUNNING: "running",
            TrialState.WAITING: "waiting",
            TrialState.FAIL: "failed" if "why" in frozen.user_attrs else "interrupted",
        }
        seconds = None if frozen.duration is None else frozen.duration.total_seconds()
        why = str(frozen.user_attrs.get("why", ""))
        return Trial(frozen.number, states[frozen.state], frozen.value, seconds, self._values(frozen.params), why)


def open_search(
    options: StudyOptions, space: Space, *, lower_is_better: bool, resume: bool = False, overwrite: bool = False
) -> Search:
    """Begin a study, or open the one that is there.

    Parameters
    ----------
    options : StudyOptions
    space : Space
    lower_is_better : bool
    resume, overwrite : bool

    Raises
    ------
    DataError
        If the storage cannot be used, or there is a study already, or none to resume.
    """
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = _storage(options.url)
        names = optuna.get_all_study_names(storage)
        if resume and options.name not in names:
            raise DataError(f"{options.url}: holds no study {options.name!r} to resume; leave --resume out")
        if options.name in names and not resume:
            if not overwrite:
                raise DataError(
                    f"{options.url}: holds a study {options.name!r} already; give --resume to continue it, --overwrite "
                    "to replace it, or another --output-dir"
                )
            optuna.delete_study(study_name=options.name, storage=storage)
        study = optuna.create_study(
            storage=storage,
            study_name=options.name,
            direction="minimize" if lower_is_better else "maximize",
            pruner=_pruner(options),
            load_if_exists=True,
        )
    except (ImportError, SQLAlchemyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"--storage {options.url}: cannot be used ({lines[0]}); sqlite:///FILE needs no server"
        ) from None
    return Search(study, space, options)


def _storage(url: str) -> optuna.storages.RDBStorage:
    wait = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}  # for those that write beside
    return optuna.storages.RDBStorage(url, engine_kwargs=wait)


def _pruner(options: StudyOptions) -> optuna.pruners.BasePruner:
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_TENTHS)
    if options.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=WARMUP_TENTHS, max_resource=TENTHS * options.folds)
    return optuna.pruners.NopPruner()


def _distribution(option: Range | Choices) -> BaseDistribution:
    if isinstance(option, Choices):
        return CategoricalDistribution([label(value) for value in option.values])
    if option.whole:
        return IntDistribution(int(option.low), int(option.high), log=option.log, step=int(option.step or 1))
    return FloatDistribution(option.low, option.high, log=option.log, step=option.step)


# ------------------------------------------------------------------------------------------------------------- running


def run_trials(
    search: Search, setting: Setting, number: int, parallel: int, ended: Callable[[Asked, Outcome], None]
) -> None:
    """Run so many trials more.

    Parameters
    ----------
    search : Search
    setting : Setting
    number : int
    parallel : int
        So many at a time, each in a process of its own.
    ended : callable
        Told of each that is done.

    Raises
    ------
    Interrupted
        If a signal asked to stop. What was under way will be run again.
    """
    if parallel > 1:
        _run_side_by_side(search, setting, number, parallel, ended)
        return
    for _ in range(number):
        asked = search.ask()
        try:
            with _heeding_signals():
                outcome = _run(search.study, setting, asked)
        except (Interrupted, KeyboardInterrupt):
            search.redo(asked.number)
            raise
        search.tell(asked, outcome)
        ended(asked, outcome)


class _Jobs(Sequence[tuple[Any, ...]]):
    """What processes are given to do: asked for as each begins, so that it knows of what has ended until then."""

    def __init__(self, search: Search, config: RunConfig, number: int) -> None:
        self.search, self.config, self.number = search, config, number
        self.asked: dict[int, Asked] = {}

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: Any) -> tuple[Any, ...]:
        if place >= self.number:
            raise IndexError(place)
        self.asked[place] = self.search.ask()
        return (self.search.options, self.search.space, self.config, self.asked[place])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        raise TypeError("each job is asked for once, by its place")


def _run_side_by_side(
    search: Search, setting: Setting, number: int, parallel: int, ended: Callable[[Asked, Outcome], None]
) -> None:
    jobs = _Jobs(search, setting.config, number)
    done: set[int] = set()

    def tell(place: int, outcome: Outcome) -> None:
        search.tell(jobs.asked[place], outcome)
        done.add(place)
        ended(jobs.asked[place], outcome)

    try:
        side_by_side(_run_alone, jobs, min(parallel, number), tell)
    finally:
        for place, asked in jobs.asked.items():
            if place not in done:
                search.redo(asked.number)


def _run_alone(options: StudyOptions, space: Space, config: RunConfig, asked: Asked) -> Outcome:
    """A trial in a process of its own."""
    lower = objective_of(config).lower_is_better
    search = open_search(options, space, lower_is_better=lower, resume=True)
    with _heeding_signals():
        return _run(search.study, setting_of(config, options.folds), asked)


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """Let a signal to stop end a trial before it trains, too; while it does, the trainer heeds it."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    heeded = [getattr(signal, name) for name in Signals.HEEDED if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(study: optuna.Study, setting: Setting, asked: Asked) -> Outcome:
    trial = optuna.trial.Trial(study, asked.trial_id)
    try:
        return Outcome(run_trial(setting, asked.values, partial(_report, trial)))
    except DataError as error:
        return Outcome(None, str(error))


def _report(trial: optuna.trial.Trial, step: int, value: float) -> bool:
    trial.report(value, step)
    return not trial.should_prune()
