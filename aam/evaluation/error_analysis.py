"""Where a model errs: by group, by what is known of the samples, and on which samples most.

Shapes: ``n`` samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["errors_by_group", "explaining_columns", "likely_reasons", "sample_errors"]

_MOST_CATEGORIES = 30
_FEWEST_SAMPLES = 8
_LOW, _HIGH = 0.05, 0.95


def sample_errors(table: pd.DataFrame) -> NDArray[np.float64]:
    """The error (n,) of each prediction: its distance from the truth, or 1 less the probability of the true class.

    Parameters
    ----------
    table : DataFrame
        With ``actual`` and ``predicted``; of classes with ``prob_<class>``, or an error is 0 or 1.
    """
    probabilities = [name for name in table.columns if str(name).startswith("prob_")]
    if not probabilities and pd.api.types.is_numeric_dtype(table["actual"]):
        return (table["predicted"] - table["actual"]).abs().to_numpy(dtype=np.float64)
    actual = table["actual"].astype(str)
    if not probabilities:
        return np.asarray(actual != table["predicted"].astype(str), dtype=np.float64)
    found = np.ones(len(table))
    for name in probabilities:
        here = (actual == name.removeprefix("prob_")).to_numpy()
        found[here] = 1 - table[name].to_numpy(dtype=np.float64)[here]
    return found


def errors_by_group(errors: NDArray[np.float64], groups: NDArray[Any]) -> pd.DataFrame:
    """``group``, ``samples``, ``mean_error`` and ``median_error``, the worst first."""
    frame = pd.DataFrame({"group": np.asarray(groups).astype(str), "error": errors})
    found = frame.groupby("group")["error"].agg(["size", "mean", "median"])
    found.columns = ["samples", "mean_error", "median_error"]
    return found.sort_values(["mean_error", "samples"], ascending=[False, False]).reset_index()


def explaining_columns(
    errors: NDArray[np.float64], columns: pd.DataFrame, groups: NDArray[Any] | None = None
) -> pd.DataFrame:
    """Which columns tell large errors from small ones.

    Errors are ranked. A column of numbers explains what a line through its ranks does (adjusted R²), one of
    categories what their means do (ω², Hays 1963); p-values are of the F test, and q-values of Benjamini and Hochberg
    (1995). A column with one value in each group says something of groups alone: it is tested on the groups' means.

    Parameters
    ----------
    errors : ndarray (n,)
    columns : DataFrame
        ``n`` rows; text that is all numbers counts as such. Columns that are constant, or differ in almost every
        sample without being numbers, are passed over.
    groups : ndarray (n,), optional

    Returns
    -------
    DataFrame
        ``column``, ``kind``, ``unit`` (sample or group), ``units`` (how many), ``explained``, ``p``, ``q``; the most
        telling first.
    """
    from scipy import stats

    rows = []
    for name in columns.columns:
        values = columns[name].replace("", np.nan)
        known = values.notna().to_numpy()
        if known.sum() < _FEWEST_SAMPLES or values[known].nunique() < 2:
            continue
        unit, some, of_unit = "sample", values[known], errors[known]
        if groups is not None:
            frame = pd.DataFrame({"group": np.asarray(groups)[known].astype(str), "value": some.to_numpy()})
            if frame.groupby("group")["value"].nunique().max() == 1:
                frame["error"] = of_unit
                grouped = frame.groupby("group")
                unit, some, of_unit = "group", grouped["value"].first(), grouped["error"].mean().to_numpy()
        if len(some) < 4:
            continue
        ranks = stats.rankdata(of_unit)
        numbers = pd.to_numeric(some, errors="coerce")
        numeric = bool(numbers.notna().all()) and numbers.nunique() > 2
        found = _of_numbers(ranks, stats.rankdata(numbers)) if numeric else _of_categories(ranks, some.astype(str))
        if found is not None:
            explained, statistic, between, within = found
            p = float(stats.f.sf(statistic, between, within))
            kind = "numbers" if numeric else "categories"
            rows.append((str(name), kind, unit, len(some), explained, p))
    frame = pd.DataFrame(rows, columns=["column", "kind", "unit", "units", "explained", "p"])
    frame["q"] = _false_discovery(frame["p"].to_numpy(dtype=np.float64))
    return frame.sort_values(["q", "explained"], ascending=[True, False], ignore_index=True)


Found = tuple[float, float, int, int]  # explained, F, degrees of freedom between and within


def _of_numbers(ranks: NDArray[np.float64], by: NDArray[np.float64]) -> Found | None:
    n = len(ranks)
    if ranks.std() == 0 or by.std() == 0:
        return None
    r2 = min(float(np.corrcoef(ranks, by)[0, 1]) ** 2, 1 - 1e-12)
    return 1 - (1 - r2) * (n - 1) / (n - 2), r2 / (1 - r2) * (n - 2), 1, n - 2


def _of_categories(ranks: NDArray[np.float64], by: pd.Series) -> Found | None:
    _, place = np.unique(by.to_numpy(dtype=str), return_inverse=True)
    sizes = np.bincount(place)
    k, n = len(sizes), len(ranks)
    if k < 2 or k > _MOST_CATEGORIES or k >= n / 2 or ranks.std() == 0:
        return None
    means = np.bincount(place, weights=ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum())
    within = max(float(((ranks - means[place]) ** 2).sum()), 1e-12)
    noise = within / (n - k)
    explained = (between - (k - 1) * noise) / (between + within + noise)
    return explained, between / (k - 1) / noise, k - 1, n - k


def _false_discovery(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """q-values of Benjamini and Hochberg (1995)."""
    if not len(p):
        return p
    order = np.argsort(p)[::-1]
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    return np.minimum(q, 1)


def likely_reasons(
    table: pd.DataFrame, known: Mapping[str, NDArray[np.float64]], groups: NDArray[Any] | None = None
) -> list[str]:
    """What is unusual about each sample, in words; nothing where nothing is.

    Parameters
    ----------
    table : DataFrame (n rows)
        See `sample_errors`.
    known : mapping of str to ndarray (n,)
        Such as ``depth``, ``ASVs`` and ``share of reads seen in training``.
    groups : ndarray (n,), optional
    """
    said: list[list[str]] = [[] for _ in range(len(table))]
    for name, values in known.items():
        low, high = np.nanquantile(values, [_LOW, _HIGH])
        for place, value in enumerate(values):
            if value <= low < high:
                said[place].append(f"{name} among the lowest ({value:,.4g})")
            elif value >= high > low and name not in _BETTER_WHEN_HIGH:
                said[place].append(f"{name} among the highest ({value:,.4g})")
    if pd.api.types.is_numeric_dtype(table["actual"]):
        actual = table["actual"].to_numpy(dtype=np.float64)
        low, high = np.nanquantile(actual, [_LOW, _HIGH])
        for place, value in enumerate(actual):
            if value <= low < high or value >= high > low:
                side = "lowest" if value <= low else "highest"
                said[place].append(f"actual value among the {side} ({value:,.4g}), where few samples are to learn from")
    else:
        counts = table["actual"].astype(str).value_counts(normalize=True)
        for place, name in enumerate(table["actual"].astype(str)):
            if counts[name] < 0.5 / len(counts):
                said[place].append(f"class {name} is rare ({100 * counts[name]:.0f} % of these)")
    if groups is not None:
        errors = sample_errors(table)
        of_group = pd.Series(errors).groupby(np.asarray(groups).astype(str)).transform("median").to_numpy()
        overall = np.quantile(errors, 0.75)
        for place, value in enumerate(of_group):
            if value > overall:
                said[place].append("its whole group is predicted badly")
    return ["; ".join(reasons) for reasons in said]


_BETTER_WHEN_HIGH = {"depth", "share of reads seen in training", "share of ASVs seen in training"}
