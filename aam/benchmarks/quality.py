"""What predictions are worth on real studies: the network, classical models and both joined, on grouped folds.

Shapes: ``n`` samples, ``S`` seeds, ``K`` classes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.baselines import run_baselines
from aam.config import DataConfig, RunConfig
from aam.data.metadata import load_metadata
from aam.distances import distances
from aam.errors import DataError
from aam.evaluation.baseline import BASELINES
from aam.evaluation.intervals import (
    Difference,
    Interval,
    errors_that_count,
    paired_difference,
    resampled_intervals,
)
from aam.folds import run_folds
from aam.inputs import label_files
from aam.joined import best_share, mixed
from aam.run_directory import write_json

__all__ = [
    "BEST",
    "STUDIES",
    "QualityRow",
    "QualityStudy",
    "Target",
    "benchmark_quality",
    "joined",
    "score",
    "write_rows",
]

logger = logging.getLogger("aam")

FOLDS = 5
# Settings that did better than the defaults on these studies, the same for all; none are known yet.
BEST: dict[str, dict[str, Any]] = {}


class Target(NamedTuple):
    """A column to predict, and what is known of how well it can be."""

    column: str
    classes: bool
    bar: float | None  # to be reached: balanced accuracy, or mean absolute error


@dataclass(frozen=True)
class QualityStudy:
    """A study in a folder below ``--data``."""

    folder: str
    targets: tuple[Target, ...]
    table: str = "table.biom"
    sequences: str | None = None
    tree: str = "tree.nwk"
    matrix: str | None = "unifrac.h5"
    group: str = "host_subject_id"


STUDIES = (
    QualityStudy(
        "ecam_infant_age",
        (Target("month_of_life", False, 2.79), Target("delivery", True, 0.66)),
    ),
    QualityStudy("mouse_sleep_apnea_10422", (Target("age", False, 0.70),)),
    QualityStudy("ibd_crohns_2538", (Target("ibd", True, 0.87),)),
    QualityStudy(
        "udca_qza",
        (Target("host_age", False, None),),
        table="table.qza",
        sequences="rep-seqs.qza",
        tree="rooted-tree.qza",
        matrix=None,
    ),
)


@dataclass(frozen=True)
class QualityRow:
    """A column of a study, predicted out of fold."""

    study: str
    column: str
    settings: str
    samples: int
    groups: int
    metric: str  # mae, or balanced_accuracy
    bar: float | None
    scores: dict[str, float]  # by model; "AAM" is of the mean of the seeds' predictions
    intervals: dict[str, Interval]
    seeds: list[float]  # the score of each seed by itself
    best_baseline: str
    joined_share: float  # what the network weighs in "joined", a mean over the folds
    against_best: Difference  # error of the network less that of the best classical model
    against_guess: Difference
    other: dict[str, float] = field(default_factory=dict)  # r2, unifrac_r2, coverage, width
    seconds: float = 0.0

    @property
    def better_than_guess(self) -> bool:
        """Whether the samples say so, beyond the chance of which groups there are."""
        return self.against_guess.interval.high < 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: value for name, value in self.__dict__.items() if name not in ("intervals", "other")}
        for name in ("against_best", "against_guess"):
            found: Difference = plain[name]
            plain[name] = {"value": found.value, "low": found.interval.low, "high": found.interval.high, "p": found.p}
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return plain | self.other | {"intervals": intervals, "better_than_guess": self.better_than_guess}


def benchmark_quality(
    data: Path,
    output_dir: Path,
    *,
    studies: Sequence[str] = (),
    columns: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seeds: int = 3,
    parallel: int = 1,
    threads: int | None = None,
    device: str = "auto",
) -> Iterator[QualityRow]:
    """Cross-validate network and classical models on each column of each study.

    What is finished in ``output_dir`` is taken from there, so a benchmark that was interrupted goes on.

    Parameters
    ----------
    data : Path
        Folder of the studies.
    output_dir : Path
    studies, columns : sequence of str
        Folders and columns; all by default.
    settings : mapping
        By name, options in sections as in ``config.json``.
    seeds : int
    parallel : int
        Networks that are trained at a time.
    threads : int, optional
    device : str

    Raises
    ------
    DataError
        If none of the studies is there, or one cannot be used.
    """
    asked = [study for study in STUDIES if not studies or study.folder in studies]
    there = [study for study in asked if (data / study.folder / study.table).is_file()]
    for study in asked:
        if study not in there:
            logger.warning("%s: has no %s; it is passed over", data / study.folder, study.table)
    if not there:
        raise DataError(f"{data}: holds none of {', '.join(study.folder for study in asked)}; give --data their folder")
    for study in there:
        matrix = _matrix(study, data / study.folder, output_dir)
        for target in study.targets:
            if columns and target.column not in columns:
                continue
            for name, options in settings.items():
                run = _Run(study, target, name, options, data / study.folder, matrix, output_dir, seeds)
                yield _row(run, parallel, threads, device)


class _Run(NamedTuple):
    study: QualityStudy
    target: Target
    settings: str
    options: Mapping[str, Mapping[str, Any]]
    folder: Path
    matrix: Path
    output_dir: Path
    seeds: int

    @property
    def data(self) -> dict[str, Any]:
        """The section of the configuration."""
        sequences = self.study.sequences
        return {
            "table": self.folder / self.study.table,
            "sequences": () if sequences is None else (self.folder / sequences,),
            "unifrac_matrix": self.matrix,
            "metadata": self.folder / "metadata.tsv",
            "metadata_column": self.target.column,
            "group_column": self.study.group,
            "folds": FOLDS,
        }

    @property
    def directory(self) -> Path:
        return self.output_dir / self.study.folder / self.target.column


def _matrix(study: QualityStudy, folder: Path, output_dir: Path) -> Path:
    """The distances of a study; computed from its tree where it has none."""
    if study.matrix is not None and (folder / study.matrix).is_file():
        return folder / study.matrix
    path = output_dir / study.folder / "unifrac.h5"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        sequences = None if study.sequences is None else folder / study.sequences
        logger.info("computing unweighted UniFrac of %s", study.folder)
        distances("unifrac", folder / study.table, path, sequences=sequences, tree=folder / study.tree)
    return path


def _row(run: _Run, parallel: int, threads: int | None, device: str) -> QualityRow:
    # No network is trained meanwhile: what is allowed of the machine to all of them is allowed to these.
    classical = _classical(run, None if threads is None else threads * parallel)
    directory = run.directory / run.settings
    began = time.monotonic()
    finished = (directory / "metrics.json").is_file()
    train = {"output_dir": directory, "seeds": run.seeds, "plots": False, "device": device}
    train |= {"parallel": parallel}
    train |= {"threads": threads, **run.options.get("train", {})}
    sections = {name: dict(part) for name, part in run.options.items()}
    sections["data"] = run.data | sections.get("data", {})
    sections["task"] = {"classifier": run.target.classes} | sections.get("task", {})
    sections["train"] = {**train, "resume": (directory / "config.json").is_file()}
    config = RunConfig.model_validate({"command": "train", **sections})
    logger.info("%s, %s, %s settings", run.study.folder, run.target.column, run.settings)
    spent = directory / "seconds.json"
    seconds = float(json.loads(spent.read_text())) if spent.is_file() else 0.0
    try:
        metrics = run_folds(config).metrics
    finally:  # of a run that was interrupted, too
        if not finished and directory.is_dir():
            seconds += time.monotonic() - began
            spent.write_text(json.dumps(seconds))
    table = pd.read_csv(directory / "oof_predictions.tsv", sep="\t", dtype={"sample_id": str}).set_index("sample_id")
    members = [_members(directory, seed) for seed in range(config.train.seed, config.train.seed + config.train.seeds)]
    return _compared(run, table, members, classical, metrics, seconds)


def _members(directory: Path, seed: int) -> pd.DataFrame:
    """Held-out predictions of one seed in all folds."""
    paths = sorted(directory.glob(f"fold_*_seed_{seed}/test_predictions.tsv"))
    paths = paths or sorted(directory.glob("fold_*/test_predictions.tsv"))
    return pd.concat([pd.read_csv(path, sep="\t", dtype={"sample_id": str}) for path in paths]).set_index("sample_id")


def _classical(run: _Run, threads: int | None) -> dict[str, pd.DataFrame]:
    """Held-out predictions of the classical models, by name."""
    folder = run.directory / "baseline"
    if not (folder / "metrics.json").is_file():
        logger.info("%s, %s, classical models", run.study.folder, run.target.column)
        config = DataConfig(**run.data)
        labels = label_files(config, "unifrac")
        run_baselines(
            config,
            labels,
            classifier=run.target.classes,
            n_jobs=threads or -1,
            output_dir=folder,
            overwrite=True,
        )
    found = {}
    for name in BASELINES:
        path = folder / f"{name}_oof_predictions.tsv"
        if path.is_file():
            found[name] = pd.read_csv(path, sep="\t", dtype={"sample_id": str}).set_index("sample_id")
    return found


def _compared(
    run: _Run,
    table: pd.DataFrame,
    members: Sequence[pd.DataFrame],
    classical: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, Any],
    seconds: float,
) -> QualityRow:
    classes = run.target.classes
    groups = load_metadata([run.folder / "metadata.tsv"])[run.study.group].loc[table.index].to_numpy().astype(str)
    models = {"AAM": table} | {name: found.loc[table.index] for name, found in classical.items()}
    scores = {name: score(found, classes) for name, found in models.items()}
    best = _best({name: scores[name] for name in classical if name != "guess"}, classes)
    others = {name: models[name] for name in classical if name != "guess"}
    both, share = joined(table, others, table["fold"].to_numpy(), classes)
    models["joined"], scores["joined"] = both, score(both, classes)
    intervals = {
        name: _interval(models[name], groups, classes) for name in ("AAM", best, "joined", "guess") if name in models
    }
    errors = {
        name: errors_that_count(found["actual"].to_numpy(), found["predicted"].to_numpy(), classes=classes)
        for name, found in models.items()
    }
    truth = table["actual"].to_numpy() if classes else None
    other = {name: float(metrics["oof"][name]) for name in ("r2", "roc_auc") if name in metrics["oof"]}
    distances = metrics["folds"]["mean"].get("unifrac_r2")
    if distances is not None:
        other["unifrac_r2"] = float(distances)
    coverage = (metrics.get("calibration") or {}).get("coverage")
    if coverage is not None:
        other |= {
            "coverage": coverage["coverage"],
            "coverage_low": coverage["low"],
            "coverage_high": coverage["high"],
            "width": coverage["width"],
        }
    return QualityRow(
        study=run.study.folder,
        column=run.target.column,
        settings=run.settings,
        samples=len(table),
        groups=len(set(groups.tolist())),
        metric="balanced_accuracy" if classes else "mae",
        bar=run.target.bar,
        scores=scores,
        intervals=intervals,
        seeds=[score(member.loc[table.index], classes) for member in members],
        best_baseline=best,
        joined_share=share,
        against_best=paired_difference(errors["AAM"], errors[best], groups, classes=truth),
        against_guess=paired_difference(errors["AAM"], errors["guess"], groups, classes=truth, constant=True),
        other=other,
        seconds=seconds,
    )


def _interval(table: pd.DataFrame, groups: NDArray[Any], classes: bool) -> Interval:
    def metrics(rows: NDArray[np.int64]) -> dict[str, float]:
        return {"score": score(table.iloc[rows], classes)}

    return resampled_intervals(metrics, len(table), groups)["score"]


def score(table: pd.DataFrame, classes: bool) -> float:
    """Balanced accuracy, or the mean absolute error, of a table with ``actual`` and ``predicted``."""
    if not classes:
        return float((table["predicted"] - table["actual"]).abs().mean())
    right = table["predicted"].astype(str) == table["actual"].astype(str)
    return float(right.groupby(table["actual"].astype(str).to_numpy()).mean().mean())


def _best(scores: Mapping[str, float], classes: bool) -> str:
    """Of these models the one with the highest balanced accuracy, or the least error."""
    better: Callable[..., str] = max if classes else min
    return better(scores, key=scores.__getitem__)


def joined(
    first: pd.DataFrame, others: Mapping[str, pd.DataFrame], folds: NDArray[np.int64], classes: bool
) -> tuple[pd.DataFrame, float]:
    """The predictions of a model averaged with those of one of the others.

    Which of the others, and with which weights, is for each fold what did best on the other folds.

    Parameters
    ----------
    first : DataFrame of n rows
        ``actual`` and ``predicted``, with ``prob_<class>`` of classes.
    others : mapping of str to DataFrame
        Such, by name.
    folds : ndarray (n,) of int
        In which a sample is held out.
    classes : bool

    Returns
    -------
    table : DataFrame
    share : float
        What the first weighs, a mean over the folds.
    """
    columns = [name for name in first.columns if name.startswith("prob_")] if classes else ["predicted"]
    one = first[columns].to_numpy(dtype=np.float64)
    names = [name.removeprefix("prob_") for name in columns]
    actual = first["actual"].to_numpy()
    truth = np.array([names.index(str(name)) for name in actual]) if classes else actual
    parts, shares = [], []
    for fold in np.unique(folds):
        here = folds == fold
        name = _best({name: score(other[~here], classes) for name, other in others.items()}, classes)
        two = others[name][columns].to_numpy(dtype=np.float64)
        shares.append(best_share(one[~here], two[~here], truth[~here], classes))
        answers = mixed(one[here], two[here], shares[-1], classes)
        predicted = np.array(names)[answers.argmax(axis=1)] if classes else answers[:, 0]
        parts.append(pd.DataFrame({"actual": first["actual"][here], "predicted": predicted}))
    return pd.concat(parts).loc[first.index], float(np.mean(shares))


def write_rows(path: Path, rows: Sequence[QualityRow]) -> None:
    """As JSON, beside those of other studies, columns and settings that are there already."""
    new = [row.to_dict() for row in rows]
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []

    def which(row: Mapping[str, Any]) -> tuple[str, ...]:
        return row["study"], row["column"], row["settings"]

    replaced = {which(row) for row in new}
    write_json(path, {"rows": [row for row in known if which(row) not in replaced] + new})
