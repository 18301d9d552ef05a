"""What else is known of a sample: columns of the metadata that the prediction of another one is given.

Fitted on the training split alone and stored with the model.

Shapes: ``N`` samples, ``C`` categorical and ``K`` numeric covariates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from aam.data.draws import stable_keys, uniform
from aam.data.metadata import class_target, numeric_target, require_column
from aam.errors import DataError

__all__ = [
    "CategoricalCovariate",
    "CovariateValues",
    "Covariates",
    "NumericCovariate",
    "covariates_from_dict",
    "read_covariates",
]

_LARGEST = 1e30  # what single precision holds, as of targets
_MOST_DEVIATIONS = 100.0  # a number may be a slip of the keyboard; what is made of it must be finite
_MOST_NAMED = 5


def read_covariates(
    frame: pd.DataFrame, categorical: Sequence[str], numeric: Sequence[str], path: Path, *, may_lack: bool = False
) -> pd.DataFrame:
    """The columns of some covariates.

    Parameters
    ----------
    frame : pandas.DataFrame
        Metadata of N samples, text.
    categorical, numeric : sequence of str
        Names of columns.
    path : Path
        Of the metadata, for messages.
    may_lack : bool
        Whether a column that is not there is one of which nothing is known.

    Returns
    -------
    pandas.DataFrame
        A column each: labels, or float64; NaN where unknown.

    Raises
    ------
    DataError
        If a column is missing, or a number is none.
    """
    columns: dict[str, Any] = {}
    for name in (*categorical, *numeric):
        if may_lack and name not in frame.columns:
            columns[name] = np.full(len(frame), np.nan, dtype=object if name in categorical else np.float64)
            continue
        column = require_column(frame, name, path)
        if name in categorical:
            columns[name] = class_target(column).to_numpy(dtype=object)
            continue
        try:
            values = numeric_target(column, name, path)
        except DataError as error:
            reason = str(error).rpartition(";")[0]
            raise DataError(f"{reason}; correct them, or give the column to --categorical-columns") from None
        beyond = values[np.abs(values) > _LARGEST]
        if len(beyond):
            raise DataError(f"{path}: column {name!r} holds {beyond[0]:g}, too large to read; give it in another unit")
        columns[name] = values
    return pd.DataFrame(columns, index=frame.index)


@dataclass(frozen=True)
class CategoricalCovariate:
    """Labels, read as their place, from 1 on, among those seen in training; 0 is any other and none.

    Attributes
    ----------
    column : str
    categories : tuple of str
        Sorted.
    """

    column: str
    categories: tuple[str, ...]

    def encode(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Labels (N,), NaN where unknown, as places."""
        place = {label: i for i, label in enumerate(self.categories, 1)}
        return np.array([place.get(label, 0) for label in labels], dtype=np.int64)


@dataclass(frozen=True)
class NumericCovariate:
    """A number, read in standard deviations from the mean of the training samples.

    Attributes
    ----------
    column : str
    mean, sd : float
    """

    column: str
    mean: float
    sd: float

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values (N,), NaN where unknown, standardised; at most 100 standard deviations from the mean."""
        with np.errstate(over="ignore"):
            return ((values - self.mean) / self.sd).clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS).astype(np.float32)


class CovariateValues(NamedTuple):
    """Covariates of samples as the network reads them."""

    categories: NDArray[np.int64]  # (N, C): 0 where unknown
    numbers: NDArray[np.float32]  # (N, K): NaN where unknown
    column_keys: NDArray[np.uint64]  # (C + K,): for draws

    def rows(self, samples: NDArray[np.int64]) -> CovariateValues:
        """Of some of the samples."""
        return self._replace(categories=self.categories[samples], numbers=self.numbers[samples])

    def mixed(self, other: CovariateValues, share: NDArray[np.float64]) -> CovariateValues:
        """Of mixtures with other samples: numbers as the samples are mixed, and unknown categories where two differ.

        Parameters
        ----------
        other : CovariateValues
            Of the same shapes.
        share : ndarray (N,)
            Of each sample in its mixture; 1 where it is not mixed.
        """
        alone = (share == 1)[:, None]
        categories = np.where(alone | (self.categories == other.categories), self.categories, 0)
        blend = share[:, None] * self.numbers + (1 - share[:, None]) * other.numbers
        return self._replace(categories=categories, numbers=np.where(alone, self.numbers, blend).astype(np.float32))

    def hidden(self, share: float, keys: NDArray[np.uint64], seed: int, epoch: int) -> CovariateValues:
        """With some of the values unknown, drawn for each sample and covariate by itself.

        Parameters
        ----------
        share : float
            Of the values that are hidden.
        keys : ndarray (N,)
            Of the samples.
        seed, epoch : int
        """
        hides = uniform("covariates to hide", seed, epoch, keys[:, None], self.column_keys) < share  # (N, C + K)
        first = self.categories.shape[1]
        return self._replace(
            categories=np.where(hides[:, :first], 0, self.categories),
            numbers=np.where(hides[:, first:], np.float32(np.nan), self.numbers),
        )


@dataclass(frozen=True)
class Covariates:
    """What is fitted of covariates.

    Attributes
    ----------
    categorical : tuple of CategoricalCovariate
    numeric : tuple of NumericCovariate
    """

    categorical: tuple[CategoricalCovariate, ...]
    numeric: tuple[NumericCovariate, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        return (*(known.column for known in self.categorical), *(known.column for known in self.numeric))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Categories of each categorical one, (C,)."""
        return tuple(len(known.categories) for known in self.categorical)

    @classmethod
    def fit(cls, train: pd.DataFrame, categorical: Sequence[str], numeric: Sequence[str]) -> Self:
        """Fit on the training samples' columns, as `read_covariates` gives them.

        Raises
        ------
        DataError
            If nothing is known of one.
        """
        for name in (*categorical, *numeric):
            if train[name].isna().all():
                option = "--categorical-columns" if name in categorical else "--numeric-columns"
                raise DataError(f"column {name!r} is empty for every training sample; leave it out of {option}")
        labels = {name: tuple(sorted(set(train[name].dropna()))) for name in categorical}
        numbers = {name: train[name].dropna().to_numpy(dtype=np.float64) for name in numeric}
        return cls(
            tuple(CategoricalCovariate(name, found) for name, found in labels.items()),
            tuple(
                # Of equal numbers the deviation can be off from 0 by rounding.
                NumericCovariate(
                    name, float(values.mean()), 1.0 if values.min() == values.max() else float(values.std())
                )
                for name, values in numbers.items()
            ),
        )

    def encode(self, frame: pd.DataFrame) -> CovariateValues:
        """Columns of N samples, as `read_covariates` gives them."""
        shape = len(frame), 0
        places = [known.encode(frame[known.column].to_numpy(dtype=object)) for known in self.categorical]
        values = [known.encode(frame[known.column].to_numpy(dtype=np.float64)) for known in self.numeric]
        return CovariateValues(
            np.stack(places, axis=1) if places else np.empty(shape, dtype=np.int64),
            np.stack(values, axis=1) if values else np.empty(shape, dtype=np.float32),
            stable_keys(self.columns),
        )

    def unknown(self, frame: pd.DataFrame) -> list[str]:
        """A sentence for each column of which some samples (N) have no value, or one that training did not see."""
        found = []
        for name in self.columns:
            lacking = int(frame[name].isna().sum())
            if lacking:
                found.append(f"column {name!r}: {lacking} of {len(frame)} samples have no value; read as unknown")
        for known in self.categorical:
            others = frame[known.column][frame[known.column].notna() & ~frame[known.column].isin(known.categories)]
            if len(others):
                names = sorted(set(others))
                shown = ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
                found.append(
                    f"column {known.column!r}: training has not seen {shown} ({len(others)} of {len(frame)} samples); "
                    "read as unknown"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "categorical": [
                {"column": known.column, "categories": list(known.categories)} for known in self.categorical
            ],
            "numeric": [asdict(known) for known in self.numeric],
        }


def covariates_from_dict(stored: Any) -> Covariates:
    """The covariates that `to_dict` stored.

    Raises
    ------
    ValueError
        If it did not.
    """
    found = TypeAdapter(Covariates).validate_python(stored)
    if not all(math.isfinite(known.mean) and 0 < known.sd < math.inf for known in found.numeric):
        raise ValueError("a mean or a standard deviation that is none")
    return found
