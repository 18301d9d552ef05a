"""Trials of ``aam tune`` run by Ray Tune, on this machine or on the cluster of ``RAY_ADDRESS``.

The study stays Optuna's: it says what is tried next and keeps what was found, so that both engines search one space
alike and one goes on where the other stopped. Ray places the trials on machines and ends the worse ones early by
asynchronous successive halving (ASHA, Li et al. 2020).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aam.config import RunConfig
from aam.errors import DataError
from aam.integrations.optuna import WARMUP_TENTHS, Asked, Outcome, Search
from aam.loaders import own_cores
from aam.trials import TENTHS, Setting, TrialValue, objective_of, run_trial, setting_of

# Read by Ray as it is imported and started: nothing is sent anywhere, nor written beside the study.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",  # a trial goes on as one of the other engine does, on a busy machine too
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

__all__ = ["run_trials_by_ray"]

logger = logging.getLogger("aam")

_STORE_BYTES = 100_000_000  # of Ray's shared memory: a configuration is all that goes through it


def run_trials_by_ray(
    search: Search, setting: Setting, number: int, parallel: int, ended: Callable[[Asked, Outcome], None], folder: Path
) -> None:
    """Run so many trials more.

    Parameters
    ----------
    search : Search
    setting : Setting
    number : int
    parallel : int
        At most so many at a time.
    ended : callable
        Told of each that is done.
    folder : Path
        Where Ray may write; on a cluster, all machines have to see it, and the inputs. It is removed in the end.

    Raises
    ------
    DataError
        If there is no cluster at ``RAY_ADDRESS``.
    """
    threads = setting.config.train.threads or max(1, own_cores() // parallel)
    _connect(parallel * threads)
    objective, folds = objective_of(setting.config), search.options.folds
    mode = "min" if objective.lower_is_better else "max"
    asking = _Asking(search, number, folds, mode, ended)
    last = TENTHS * folds
    scheduler = FIFOScheduler()
    if search.options.pruner != "none":
        scheduler = ASHAScheduler(time_attr="tenths", max_t=last, grace_period=WARMUP_TENTHS, reduction_factor=3)
    train = setting.config.train
    workers = 0 if train.num_workers is None else train.num_workers
    config = setting.config.model_copy(update={"train": train.model_copy(update={"num_workers": workers})})
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, config=config, folds=folds, folder=str(Path.cwd())),
            _resources(config, threads),
        ),
        tune_config=tune.TuneConfig(
            metric="value",
            mode=mode,
            search_alg=asking,
            scheduler=scheduler,
            num_samples=number,
            max_concurrent_trials=parallel,
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(folder.absolute()), verbose=0),
    )
    try:
        tuner.fit()
    finally:
        for asked in asking.running.values():
            search.redo(asked.number)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(cores: int) -> None:
    """Of this machine at least so many, be they there or not: what asks for more than there are would wait forever."""
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            ray.init(**quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"RAY_ADDRESS {address}: there is no cluster ({lines[0]}); start it, or unset it") from None
        return
    ray.init(num_cpus=max(own_cores(), cores), include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)


def _resources(config: RunConfig, threads: int) -> dict[str, float]:
    """What a trial takes of a machine: its threads, and where there are any a GPU."""
    gpus = ray.cluster_resources().get("GPU", 0)
    wants_gpu = gpus >= 1 and config.train.device in ("auto", "cuda")
    return {"cpu": threads, **({"gpu": 1} if wants_gpu else {})}


class _Asking(Searcher):
    """Asks the study for what Ray runs, and tells it what that came to."""

    def __init__(
        self, search: Search, number: int, folds: int, mode: str, ended: Callable[[Asked, Outcome], None]
    ) -> None:
        super().__init__(metric="value", mode=mode)
        self.search, self.left, self.ended = search, number, ended
        self.running: dict[str, Asked] = {}

    def suggest(self, trial_id: str) -> Any:
        if not self.left:
            return Searcher.FINISHED
        self.left -= 1
        self.running[trial_id] = asked = self.search.ask()
        return {"values": json.dumps(asked.values)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if not result.get("finished"):
            self.search.report(self.running[trial_id], int(result["tenths"]), float(result["value"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        asked = self.running.pop(trial_id, None)
        if asked is None:
            return
        if error or result is None or "value" not in result:
            outcome = Outcome(None, "its process has ended without a word, out of memory perhaps")
        elif result.get("why"):
            outcome = Outcome(None, str(result["why"]))
        else:
            pruned = not result.get("finished", False)
            if pruned:  # Ray tells of what made it end a trial here alone
                self.search.report(asked, int(result["tenths"]), float(result["value"]))
            outcome = Outcome(TrialValue(float(result["value"]), pruned))
        self.search.tell(asked, outcome)
        self.ended(asked, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def _trial(given: dict[str, Any], config: RunConfig, folds: int, folder: str) -> None:
    """A trial, in a process of Ray's."""
    os.chdir(folder)  # paths of the inputs may be relative
    logging.getLogger("aam").addHandler(logging.NullHandler())
    last = TENTHS * folds

    def report(step: int, value: float) -> bool:
        if step < last:
            tune.report({"tenths": step, "value": value, "finished": False})  # it does not return where Ray ends it
        return True

    try:
        found = run_trial(setting_of(config, folds), json.loads(given["values"]), report)
    except DataError as error:
        worst = math.inf if objective_of(config).lower_is_better else -math.inf
        tune.report({"tenths": last, "value": worst, "finished": True, "why": str(error)})
        return
    tune.report({"tenths": last, "value": found.value, "finished": True})
