"""What a metadata column becomes for the network, and how its answers become the column's values again.

A target is fitted on the training split alone and stored with the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from aam.errors import DataError

__all__ = [
    "ClassTarget",
    "NumericTarget",
    "Transform",
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


def require_repeated_classes(column: str, labels: NDArray[Any]) -> None:
    """Refuse labels (n,) of a study of which one occurs once.

    Raises
    ------
    DataError
        Such a class cannot be both learnt and tested. A study of one class alone is `ClassTarget.fit`'s to refuse.
    """
    names, sizes = np.unique(labels.astype(str), return_counts=True)
    if len(names) > 1 and sizes.min() == 1:
        raise DataError(
            f"column {column!r}: class {str(names[sizes.argmin()])!r} has one sample, which cannot be both learnt and "
            "tested; merge it with another class, or empty its cell"
        )


def target_from_dict(stored: dict[str, Any]) -> NumericTarget | ClassTarget:
    """The target that `to_dict` stored.

    Raises
    ------
    ValueError
        If it did not.
    """
    if not isinstance(stored, dict) or stored.get("kind") not in ("numeric", "classes"):
        raise ValueError("no target")
    kind: type[NumericTarget | ClassTarget] = NumericTarget if stored["kind"] == "numeric" else ClassTarget
    fields = {name: value for name, value in stored.items() if name not in ("kind", "outputs")}
    return TypeAdapter(kind).validate_python(fields)
