"""What benchmark runs come to beside each other, and layouts within one: ratios with the spread of repeats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from aam.benchmarks.standard import BenchmarkRun, Measure, Settings
from aam.errors import DataError

__all__ = ["Compared", "Ratio", "compare", "ratios_within", "read_run", "require_settings"]

_RUN = TypeAdapter(BenchmarkRun)

# By what they say: which measure over which, and whether repeats of the two belong to each other (the same batches).
_WITHIN = {
    "training speed, distinct over padded": ("training, distinct", "training, padded", True),
    "memory of a step, padded over distinct": ("memory of a step, padded", "memory of a step, distinct", True),
    "encoded ASVs, padded over distinct": (
        "encoded ASVs of a batch, padded",
        "encoded ASVs of a batch, distinct",
        True,
    ),
}


class Ratio(NamedTuple):
    """A ratio, from its lowest to its highest over the repeats."""

    median: float
    low: float
    high: float
    number: int  # of ratios that these are of

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float], *, paired: bool = False) -> Ratio:
        """Of repeats that belong to each other, or else of each with each."""
        over, under = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
        each = over / under if paired else np.divide.outer(over, under)
        return cls(float(np.median(each)), float(each.min()), float(each.max()), each.size)

    @property
    def clear(self) -> bool:
        """Whether all repeats lie on one side of 1, and there are some."""
        return self.number > 1 and not self.low <= 1 <= self.high


class Compared(NamedTuple):
    """One measure of several runs: how many times as good each is as the first."""

    study: str
    name: str
    unit: str
    measures: tuple[Measure | None, ...]  # by run; None where it has none
    times_as_good: tuple[Ratio | None, ...]  # by run, but the first


def ratios_within(run: BenchmarkRun) -> list[tuple[str, str, Ratio]]:
    """What is compared within a run: what it is, the study, and the ratio."""
    found = []
    for what, (above, below, paired) in _WITHIN.items():
        for over in run.named(above):
            under = run.find(over.study, below)
            if under is not None:
                alike = paired and len(over.values) == len(under.values)
                found.append((what, over.study, Ratio.of(over.values, under.values, paired=alike)))
    for batch in run.named("building a batch"):
        speed = run.find(batch.study, "training, distinct")
        if speed is not None:
            steps = [1e3 * run.settings.batch_size / value for value in speed.values]
            found.append(("building a batch, over training on it", batch.study, Ratio.of(batch.values, steps)))
    return found


def compare(runs: Sequence[BenchmarkRun]) -> list[Compared]:
    """Hold runs against the first of them, measure by measure.

    Raises
    ------
    DataError
        If they have nothing in common with the first, or were measured with other settings.
    """
    first, *others = runs
    for other in others:
        if other.settings != first.settings:
            raise DataError(
                f"the benchmark runs {first.name!r} and {other.name!r} were measured on other studies or networks "
                "(--quick, or another version); measure one of them again"
            )
    found = []
    for measure in first.measures:
        theirs = [other.find(measure.study, measure.name) for other in others]
        found.append(
            Compared(
                measure.study,
                measure.name,
                measure.unit,
                (measure, *theirs),
                tuple(None if their is None else _times_as_good(their, measure) for their in theirs),
            )
        )
    return found


def require_settings(runs: Sequence[BenchmarkRun], settings: Settings) -> None:
    """Refuse runs that one with these settings, which is yet to be measured, could not be compared with.

    Raises
    ------
    DataError
    """
    for run in runs:
        if run.settings != settings:
            raise DataError(
                f"the benchmark run {run.name!r} was measured on other studies or networks than this one would be; "
                "give --quick to both or to neither, or measure it again with this version"
            )


def _times_as_good(measure: Measure, as_what: Measure) -> Ratio:
    if measure.better == "more":
        return Ratio.of(measure.values, as_what.values)
    return Ratio.of(as_what.values, measure.values)


def read_run(path: Path) -> BenchmarkRun:
    """Read the ``report.json`` of a run.

    Raises
    ------
    DataError
        If it is none.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the report.json of a benchmark run") from None
    try:
        return _RUN.validate_json(text)
    except (ValidationError, RecursionError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        where = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{path}: not the report.json of a benchmark run ({where + ': ' if where else ''}{problem['msg']}); "
            "write one with aam benchmark report"
        ) from None


def as_json(run: BenchmarkRun) -> dict[str, Any]:
    """A run as plain values; with medians and ratios, which reading passes over."""
    plain: dict[str, Any] = _RUN.dump_python(run, mode="json")
    for measure, of_run in zip(plain["measures"], run.measures, strict=True):
        measure["median"] = of_run.median
    plain["ratios"] = [{"what": what, "study": study, **ratio._asdict()} for what, study, ratio in ratios_within(run)]
    return plain
