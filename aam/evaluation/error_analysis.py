"""Where a model errs: by group, by what is known of the samples, and on which samples most.

Shapes: ``n`` samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aam.data.dates import as_dates

__all__ = [
    "THE_TRUTH_ITSELF",
    "as_text",
    "errors_by_group",
    "explained_by_groups",
    "explaining_columns",
    "likely_reasons",
    "sample_errors",
    "short_names",
    "values_in_order",
    "without_twins",
]

THE_TRUTH_ITSELF = 0.95  # a column that goes with the truth at least so closely is the truth in other words

_MOST_CATEGORIES = 30
_FEWEST_SAMPLES = 8
_LOW, _HIGH = 0.05, 0.95
_FEWEST_OTHERS = 3  # samples of its group that one is compared with
_MOST_COLUMNS = 3  # that are named as a reason
_EDGE = 0.2  # of the samples have high, or low, values
_ENDS = {"numbers": ("high values", "low values"), "dates": ("late dates", "early dates")}


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


def explained_by_groups(errors: NDArray[np.float64], groups: NDArray[Any]) -> float | None:
    """How much of the ranks of the errors groups explain (ω², Hays 1963); None where they cannot be told apart."""
    from scipy.stats import rankdata

    labels = pd.Series(np.asarray(groups).astype(str))
    found = _of_categories(rankdata(errors), labels, most=len(labels))
    return None if found is None else max(0.0, found[0])


def explaining_columns(
    errors: NDArray[np.float64],
    columns: pd.DataFrame,
    groups: NDArray[Any] | None = None,
    actual: NDArray[Any] | None = None,
) -> pd.DataFrame:
    """Which columns tell large errors from small ones.

    Errors are ranked. A column of numbers explains what a line through its ranks does (adjusted R²), one of
    categories what their means do (ω², Hays 1963); p-values are of the F test, and q-values of Benjamini and Hochberg
    (1995). A column with one value in each group says something of groups alone: it is tested on the groups' means.

    Parameters
    ----------
    errors : ndarray (n,)
    columns : DataFrame
        ``n`` rows; text that is all numbers counts as such, and text that is all dates as time. Columns that are
        constant, or differ in almost every sample without being numbers or dates, are passed over.
    groups : ndarray (n,), optional
    actual : ndarray (n,), optional
        The truth: a column that is the truth in another unit or word tells what is hard, not why.

    Returns
    -------
    DataFrame
        ``column``, ``kind`` (numbers, dates or categories), ``unit`` (sample or group), ``units`` (how many),
        ``explained``, ``p``, ``q``, ``larger_errors`` (high values, low values, late dates, early dates, or a
        category) and ``like_truth``: Spearman's correlation of numbers or dates with the truth, without its sign, or
        Cramér's V of categories, or a few dates, with classes; the most telling first.
    """
    from scipy import stats

    rows = []
    for name in columns.columns:
        values = columns[name].replace("", np.nan)
        dates = as_dates(values)
        values = values if dates is None else dates
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
        numeric = dates is not None or (bool(numbers.notna().all()) and numbers.nunique() > 2)
        found = _of_numbers(ranks, stats.rankdata(numbers)) if numeric else _of_categories(ranks, some.astype(str))
        if found is not None:
            explained, statistic, between, within = found
            p = float(stats.f.sf(statistic, between, within))
            kind = "dates" if dates is not None else "numbers" if numeric else "categories"
            larger = _larger_errors(ranks, numbers if numeric else some.astype(str), kind)
            like = np.nan if actual is None else _like_truth(values[known], np.asarray(actual)[known], numeric)
            rows.append((str(name), kind, unit, len(some), explained, p, larger, like))
    names = ["column", "kind", "unit", "units", "explained", "p", "larger_errors", "like_truth"]
    frame = pd.DataFrame(rows, columns=names)
    frame.insert(6, "q", _false_discovery(frame["p"].to_numpy(dtype=np.float64)))
    return frame.sort_values(["q", "explained"], ascending=[True, False], ignore_index=True)


Found = tuple[float, float, int, int]  # explained, F, degrees of freedom between and within


def _of_numbers(ranks: NDArray[np.float64], by: NDArray[np.float64]) -> Found | None:
    n = len(ranks)
    if ranks.std() == 0 or by.std() == 0:
        return None
    r2 = min(float(np.corrcoef(ranks, by)[0, 1]) ** 2, 1 - 1e-12)
    return 1 - (1 - r2) * (n - 1) / (n - 2), r2 / (1 - r2) * (n - 2), 1, n - 2


def _larger_errors(ranks: NDArray[np.float64], by: pd.Series, kind: str) -> str:
    """Where errors are larger."""
    if kind != "categories":
        up = np.corrcoef(ranks, by.rank())[0, 1] > 0
        return _ENDS[kind][0 if up else 1]
    found = pd.Series(ranks).groupby(by.to_numpy(dtype=str)).agg(["mean", "size"])
    several = found[found["size"] > 1]
    return str((several if len(several) else found)["mean"].idxmax())


def _like_truth(values: pd.Series, actual: NDArray[Any], numeric: bool) -> float:
    """How closely a column goes with the truth, from 0 to 1; NaN of a kind that is not compared."""
    if pd.api.types.is_numeric_dtype(actual):
        if not numeric:
            return np.nan
        pair = pd.DataFrame({"column": pd.to_numeric(values).to_numpy(), "actual": actual}).rank().to_numpy()
        return float(abs(np.corrcoef(pair.T)[0, 1])) if (pair.std(axis=0) > 0).all() else np.nan
    if numeric and not (pd.api.types.is_datetime64_dtype(values) and _few(values.nunique(), len(values))):
        return np.nan
    table = pd.crosstab(values.astype(str).to_numpy(), np.asarray(actual).astype(str)).to_numpy(dtype=np.float64)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    fewer = min(table.shape) - 1
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / fewer)) if fewer else np.nan


def _few(categories: int, samples: int, most: int = _MOST_CATEGORIES) -> bool:
    """Whether categories are few enough to say something of samples."""
    return categories <= most and categories < samples / 2


def _of_categories(ranks: NDArray[np.float64], by: pd.Series, most: int = _MOST_CATEGORIES) -> Found | None:
    _, place = np.unique(by.to_numpy(dtype=str), return_inverse=True)
    sizes = np.bincount(place)
    k, n = len(sizes), len(ranks)
    if k < 2 or not _few(k, n, most) or ranks.std() == 0:
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


def values_in_order(values: pd.Series) -> NDArray[Any]:
    """Of a column of dates or numbers: datetime64, with NaT, or float64, with NaN, where there is none."""
    dates = as_dates(values)
    if dates is not None:
        return dates.to_numpy()
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)


def without_twins(explained: pd.DataFrame) -> pd.DataFrame:
    """Without columns that tell samples apart as one before them does, under another name."""
    return explained[~explained.duplicated(["kind", "unit", "units", "explained", "p"])]


def short_names(names: NDArray[Any]) -> NDArray[Any]:
    """Names of groups; whole numbers that a table has written with a decimal lose it."""
    text = np.asarray(names).astype(str)
    if all(name.endswith(".0") for name in text):
        return np.array([name.removesuffix(".0") for name in text])
    return text


def as_text(value: float) -> str:
    """A number as a person writes it: no more digits than tell something, thousands apart."""
    if value != value:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def likely_reasons(
    table: pd.DataFrame,
    known: Mapping[str, NDArray[np.float64]],
    groups: NDArray[Any] | None = None,
    columns: pd.DataFrame | None = None,
    explained: pd.DataFrame | None = None,
) -> list[str]:
    """What is unusual about each sample, in words; nothing where nothing is.

    Parameters
    ----------
    table : DataFrame (n rows)
        See `sample_errors`.
    known : mapping of str to ndarray (n,)
        Such as ``depth`` and ``ASVs``.
    groups : ndarray (n,), optional
    columns, explained : DataFrame, optional
        Given to and by `explaining_columns`: a sample with a value that goes with large errors is told.
    """
    said: list[list[str]] = [[] for _ in range(len(table))]
    for name, values in known.items():
        low, high = np.nanquantile(values, [_LOW, _HIGH])
        for place, value in enumerate(values):
            if value <= low < high:
                said[place].append(f"{name} among the lowest ({as_text(value)})")
            elif value >= high > low and name not in _BETTER_WHEN_HIGH:
                said[place].append(f"{name} among the highest ({as_text(value)})")
    errors = sample_errors(table)
    if pd.api.types.is_numeric_dtype(table["actual"]):
        actual = table["actual"].to_numpy(dtype=np.float64)
        low, high = np.nanquantile(actual, [_LOW, _HIGH])
        for place, (value, predicted) in enumerate(zip(actual, table["predicted"], strict=True)):
            drawn = predicted > value if value <= low < high else predicted < value if value >= high > low else False
            if drawn:
                side = "lowest" if value <= low else "highest"
                said[place].append(f"actual value among the {side} ({as_text(value)}), predicted nearer to the middle")
    else:
        counts = table["actual"].astype(str).value_counts(normalize=True)
        for place, name in enumerate(table["actual"].astype(str)):
            if counts[name] < 0.5 / len(counts):
                said[place].append(f"class {name} is rare ({100 * counts[name]:.0f} % of these)")
    if columns is not None and explained is not None:
        _say_columns(said, columns.drop(columns=list(known), errors="ignore"), explained)
    if groups is not None:
        _say_groups(said, errors, np.asarray(groups).astype(str))
    return ["; ".join(reasons) for reasons in said]


def _say_columns(said: list[list[str]], columns: pd.DataFrame, explained: pd.DataFrame) -> None:
    """Values of the columns that explain errors, where these are larger."""
    telling = explained[(explained["q"] < 0.05) & ~(explained["like_truth"] >= THE_TRUTH_ITSELF)]
    telling = without_twins(telling[telling["column"].isin(columns.columns)])
    telling = telling.sort_values("explained", ascending=False, kind="stable").head(_MOST_COLUMNS)
    for name, kind, larger in zip(
        *(telling[key].astype(str) for key in ("column", "kind", "larger_errors")), strict=True
    ):
        values = columns[name]
        if kind == "categories":
            for place in np.flatnonzero(values.astype(str) == larger):
                said[place].append(f"{name} is {larger}, where errors are larger")
            continue
        numbers = values_in_order(values)
        up = larger == _ENDS[kind][0]
        level = larger.split()[0]
        edge = pd.Series(numbers).quantile(1 - _EDGE if up else _EDGE)
        for place in np.flatnonzero(numbers >= edge if up else numbers <= edge):
            value = str(numbers[place])[:10] if kind == "dates" else as_text(numbers[place])
            said[place].append(f"{name} is {level} ({value}), where errors are larger")


def _say_groups(said: list[list[str]], errors: NDArray[np.float64], groups: NDArray[Any]) -> None:
    """Groups that are predicted badly as wholes, and in others bad samples for which there is no other reason."""
    grouped = pd.Series(errors).groupby(groups)
    of_group = grouped.transform("median").to_numpy()
    usual, much, most = np.quantile(errors, [0.5, 0.75, 0.95])
    for place, value in enumerate(of_group):
        if value > much:
            said[place].append(f"its whole group is predicted badly (median error {as_text(value)})")
        elif not said[place] and errors[place] >= most > usual >= value and _stands_out(place, errors, groups):
            said[place].append(
                f"unlike the rest of its group, which is predicted well (median error {as_text(value)}): an unusual or "
                "a mislabelled sample"
            )


def _stands_out(place: int, errors: NDArray[np.float64], groups: NDArray[Any]) -> bool:
    """Whether an error is far out of those of its group: three spreads of its quartiles beyond them (Tukey 1977)."""
    others = np.delete(errors, place)[np.delete(groups, place) == groups[place]]
    if len(others) < _FEWEST_OTHERS:
        return False
    first, median, third = np.quantile(others, [0.25, 0.5, 0.75])
    # Of a few errors quartiles may by chance be next to each other.
    return bool(errors[place] > max(third + 3 * (third - first), 2 * median))


_BETTER_WHEN_HIGH = {"depth"}
