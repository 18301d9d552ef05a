"""What a metadata column becomes for the network, and how its answers become the column's values again.

A target is fitted on the training split alone and stored with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from aam.config import TaskConfig
from aam.errors import DataError

__all__ = [
    "ClassTarget",
    "NumericTarget",
    "Part",
    "SeveralTargets",
    "Target",
    "Transform",
    "fit_targets",
    "known_values",
    "parts_of",
    "require_bounds",
    "require_logarithms",
    "require_repeated_classes",
    "target_from_dict",
]

Transform = Literal["none", "zscore", "minmax", "log-zscore", "log-minmax"]


@dataclass(frozen=True)
class NumericTarget:
    """A number, learnt as ``(f(y) - shift) / scale`` with ``f`` the identity or ``log(1 + y)``.

    Attributes
    ----------
    column : str
    transform : {"none", "zscore", "minmax", "log-zscore", "log-minmax"}
    shift, scale : float
        Mean and standard deviation, or minimum and range, of the training values after ``f``.
    quantiles : tuple of float
        An odd number of them, rising, the median in the middle, where not one number is learnt but several.
    lower, upper : float, optional
        Bounds of the values.
    """

    column: str
    transform: Transform
    shift: float
    scale: float
    quantiles: tuple[float, ...] = ()
    lower: float | None = None
    upper: float | None = None

    @property
    def outputs(self) -> int:
        return max(1, len(self.quantiles))

    @classmethod
    def fit(
        cls,
        column: str,
        transform: Transform,
        values: NDArray[np.float64],
        *,
        quantiles: tuple[float, ...] = (),
        lower: float | None = None,
        upper: float | None = None,
    ) -> Self:
        """Fit on the training values (n,).

        Raises
        ------
        DataError
            If they are constant, out of bounds, or negative where a logarithm is asked for.
        """
        require_bounds(column, values, lower, upper)
        if transform.startswith("log"):
            require_logarithms(column, transform, values)
        seen = np.log1p(values) if transform.startswith("log") else values
        shift, scale = 0.0, 1.0
        if transform.endswith("zscore"):
            shift, scale = float(seen.mean()), float(seen.std())
        elif transform.endswith("minmax"):
            shift, scale = float(seen.min()), float(seen.max() - seen.min())
        if values.min() == values.max() or scale == 0:
            raise DataError(
                f"column {column!r} is {values[0]:g} in every training sample, so there is nothing to "
                "learn; choose another --metadata-column"
            )
        return cls(column, transform, shift, scale, quantiles, lower, upper)

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values (n,) in the scale of learning. One that no logarithm exists for becomes NaN."""
        if self.transform.startswith("log"):
            values = np.log1p(np.where(values > -1, values, np.nan))
        return ((values - self.shift) / self.scale).astype(np.float32)

    def decode(self, encoded: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The inverse of `encode`: original units, within the bounds."""
        values = encoded.astype(np.float64) * self.scale + self.shift
        # Beyond e^50 a prediction is wrong in any unit; it must still be a number.
        values = np.expm1(values.clip(max=50)) if self.transform.startswith("log") else values
        return self.within(values)

    def within(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values in original units, ended at the bounds."""
        return values.clip(-np.inf if self.lower is None else self.lower, np.inf if self.upper is None else self.upper)

    def decode_quantiles(self, output: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Outputs (n, C) in original units, rising in each row; a single one is the median."""
        return self.decode(np.sort(output, axis=1))

    def predicted(self, output: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What outputs (n, C) predict, (n,): the number that is learnt, or the median."""
        return self.decode_quantiles(output)[:, self.outputs // 2]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "numeric", **asdict(self)}


@dataclass(frozen=True)
class ClassTarget:
    """Labels, learnt as their place in the sorted list of those seen in training.

    Attributes
    ----------
    column : str
    classes : tuple of str
    """

    column: str
    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @classmethod
    def fit(cls, column: str, labels: NDArray[Any]) -> Self:
        """Fit on the training labels (n,).

        Raises
        ------
        DataError
            If there is only one.
        """
        classes = tuple(sorted(set(labels.tolist())))
        if len(classes) < 2:
            raise DataError(
                f"column {column!r} is {classes[0]!r} in every training sample, so there is nothing to "
                "learn; choose another --metadata-column"
            )
        return cls(column, classes)

    def encode(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Labels (n,) as places.

        Raises
        ------
        DataError
            For a label that training did not see.
        """
        place = {label: i for i, label in enumerate(self.classes)}
        unseen = sorted(set(labels.tolist()) - set(place))
        if unseen:
            raise DataError(
                f"column {self.column!r}: class {unseen[0]!r} is held out whole, so training never sees it; "
                "use --stratify, another --seed, or leave its samples out"
            )
        return np.array([place[label] for label in labels], dtype=np.int64)

    def decode(self, places: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The inverse of `encode`."""
        return np.array(self.classes, dtype=object)[places]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "classes", "column": self.column, "classes": list(self.classes)}


Target = NumericTarget | ClassTarget


@dataclass(frozen=True)
class SeveralTargets:
    """Several columns, all of numbers or all of classes, learnt together; a sample may lack some of them.

    Shapes: ``T`` columns, with ``C`` outputs together.

    Attributes
    ----------
    parts : tuple of NumericTarget or of ClassTarget, length T
    """

    parts: tuple[Target, ...]

    @property
    def outputs(self) -> int:
        return sum(part.outputs for part in self.parts)

    @property
    def column(self) -> str:
        """All of them, for a person to read."""
        return ", ".join(part.column for part in self.parts)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where among the outputs those of each column are."""
        ends = np.cumsum([part.outputs for part in self.parts]).tolist()
        return tuple(slice(end - part.outputs, end) for part, end in zip(self.parts, ends, strict=True))

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (n, T) in the scale of learning: NaN, or of classes -1, where they are unknown."""
        columns = []
        for place, part in enumerate(self.parts):
            known = known_values(values[:, place])
            codes = part.encode(_typed(part, values[known, place]))
            column = np.full(len(values), -1 if isinstance(part, ClassTarget) else np.nan, dtype=codes.dtype)
            column[known] = codes
            columns.append(column)
        return np.stack(columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "several", "parts": [part.to_dict() for part in self.parts]}


class Part(NamedTuple):
    """One column of those that a model predicts."""

    prefix: str  # of the names of its metrics: none where it is alone
    target: Target
    outputs: slice
    place: int | None  # its column among the values; None where these have no columns

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Its own of values (n,) or (n, T)."""
        return values if self.place is None else values[:, self.place]

    def known(self, values: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Which of its own (n,) are known, and these."""
        own = self.of(values)
        known = known_values(own)
        return known, _typed(self.target, own[known])


def parts_of(target: Target | SeveralTargets) -> tuple[Part, ...]:
    """Each column of a target."""
    if not isinstance(target, SeveralTargets):
        return (Part("", target, slice(0, target.outputs), None),)
    places = enumerate(zip(target.parts, target.slices, strict=True))
    return tuple(Part(f"{part.column}_", part, outputs, place) for place, (part, outputs) in places)


def known_values(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of values (n,), numbers or labels, are known."""
    return np.array([value == value and value is not None for value in values.tolist()], dtype=bool)


def _typed(target: Target, values: NDArray[Any]) -> NDArray[Any]:
    return values if isinstance(target, ClassTarget) else values.astype(np.float64)


def require_logarithms(column: str, transform: Transform, values: NDArray[np.float64]) -> None:
    """Refuse values (n,) that ``log(1 + y)`` is not defined for.

    Raises
    ------
    DataError
    """
    if values.min() <= -1:
        raise DataError(
            f"--target-transform {transform} takes log(1 + y), but column {column!r} holds {values.min():g}; "
            "use zscore or minmax"
        )


def require_bounds(column: str, values: NDArray[np.float64], lower: float | None, upper: float | None) -> None:
    """Refuse values (n,) beyond the bounds that are said to hold.

    Raises
    ------
    DataError
    """
    for name, bound, found, beyond in (
        ("--target-min", lower, values.min(), lower is not None and values.min() < lower),
        ("--target-max", upper, values.max(), upper is not None and values.max() > upper),
    ):
        if beyond:
            raise DataError(
                f"column {column!r} holds {found:g}, which is beyond {name} {bound:g}; correct the value, or leave "
                f"{name} out"
            )


def require_repeated_classes(columns: Sequence[str], labels: NDArray[Any]) -> None:
    """Refuse labels (n,) of a study, or (n, T) of several columns, of which one occurs once.

    Raises
    ------
    DataError
        Such a class cannot be both learnt and tested. A study of one class alone is `ClassTarget.fit`'s to refuse.
    """
    for column, of_column in zip(columns, labels.reshape(len(labels), -1).T, strict=True):
        names, sizes = np.unique(of_column[known_values(of_column)].astype(str), return_counts=True)
        if len(names) > 1 and sizes.min() == 1:
            raise DataError(
                f"column {column!r}: class {str(names[sizes.argmin()])!r} has one sample, which cannot be both learnt "
                "and tested; merge it with another class, or empty its cell"
            )


def fit_targets(
    columns: Sequence[str], values: NDArray[Any], train: NDArray[np.int64], task: TaskConfig
) -> Target | SeveralTargets:
    """What of columns a network learns, fitted on the training samples, that serves for all.

    Parameters
    ----------
    columns : sequence of str, length T
    values : ndarray (n,), of several columns (n, T)
    train : ndarray of int
        Rows of the training samples.
    task : TaskConfig

    Raises
    ------
    DataError
        If there is none such.
    """
    if len(columns) == 1:
        return _fit_column(columns[0], values, train, task)
    parts = []
    for place, column in enumerate(columns):
        known = known_values(values[:, place])
        learnt = train[known[train]]
        if not len(learnt):
            raise DataError(f"column {column!r} is empty for every training sample; choose another --metadata-column")
        own = values[known, place]
        of_known = np.cumsum(known) - 1  # the place of each row among those that are known
        parts.append(_fit_column(column, own if task.classifier else own.astype(np.float64), of_known[learnt], task))
    return SeveralTargets(tuple(parts))


def _fit_column(column: str, values: NDArray[Any], train: NDArray[np.int64], task: TaskConfig) -> Target:
    if not task.classifier:
        if task.target_transform.startswith("log"):
            require_logarithms(column, task.target_transform, values)
        require_bounds(column, values, task.target_min, task.target_max)
        half = task.quantile_range / 2
        # An age, a weight or a share is never below 0, and a prediction that is would be taken for a fault.
        lower = 0.0 if task.target_min is None and values[train].min() >= 0 else task.target_min
        return NumericTarget.fit(
            column,
            task.target_transform,
            values[train],
            quantiles=(0.5 - half, 0.5, 0.5 + half) if task.loss == "quantile" else (),
            lower=lower,
            upper=task.target_max,
        )
    labels = ClassTarget.fit(column, values[train])
    labels.encode(values)  # a class that is held out whole is refused here, before anything is written
    return labels


def target_from_dict(stored: dict[str, Any]) -> Target | SeveralTargets:
    """The target that `to_dict` stored.

    Raises
    ------
    ValueError
        If it did not.
    """
    if isinstance(stored, dict) and stored.get("kind") == "several" and isinstance(stored.get("parts"), list):
        parts = [target_from_dict(part) for part in stored["parts"]]
        if len(parts) > 1 and not any(isinstance(part, SeveralTargets) for part in parts):
            return SeveralTargets(tuple(part for part in parts if not isinstance(part, SeveralTargets)))
    if not isinstance(stored, dict) or stored.get("kind") not in ("numeric", "classes"):
        raise ValueError("no target")
    kind: type[NumericTarget | ClassTarget] = NumericTarget if stored["kind"] == "numeric" else ClassTarget
    fields = {name: value for name, value in stored.items() if name not in ("kind", "outputs")}
    return TypeAdapter(kind).validate_python(fields)
