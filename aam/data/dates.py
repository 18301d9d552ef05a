"""Dates in sample metadata, in the forms that studies write them in."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pandas as pd

from aam.data.metadata import class_target

__all__ = ["as_dates"]

_FIRST_YEAR, _LAST_YEAR = 1900, 2100  # what only looks like a date seldom has a year between them
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = (
    r"(?:[T ] ?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d+)?)?"
    r"(?P<half> ?[AaPp][Mm])?(?P<zone>Z| ?[+-]\d{2}:?\d{2})?)?"
)
# A column is of one of these throughout; where days of all samples are 12 or less, 3/4/16 is a day of March.
_FORMS = tuple(
    re.compile(day + _TIME)
    for day in (
        r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})",
        r"(?P<year>\d{4})/(?P<month>\d{1,2})/(?P<day>\d{1,2})",
        r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4}|\d{2})",
        r"(?P<day>\d{1,2})/(?P<month>\d{1,2})/(?P<year>\d{4}|\d{2})",
        r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})",
        rf"(?P<day>\d{{1,2}})[- ](?P<month>(?i:{'|'.join(_MONTHS)}))[- ](?P<year>\d{{4}})",
    )
)


def as_dates(column: pd.Series) -> pd.Series | None:
    """The dates of a column; None where any of its values is something else.

    Parameters
    ----------
    column : pandas.Series (n,)
        Text: ``2016-03-18 10:00``, ``2012-06-17T08:30:00Z``, ``2016/3/18``, ``3/18/16``, ``18.3.2016`` or
        ``18-Mar-2016``, all in one form. Missing markers (``not collected``, …) are no date and no hindrance. A number
        is no date.

    Returns
    -------
    pandas.Series (n,) of datetime64, optional
        NaT where a value is missing.

    Examples
    --------
    >>> as_dates(pd.Series(["3/18/16", "not collected", "12/1/15"])).dt.year.tolist()
    [2016.0, nan, 2015.0]
    >>> as_dates(pd.Series(["3/18/16", "soon"])) is None
    True
    """
    if pd.api.types.is_numeric_dtype(column):
        return None
    known = class_target(pd.Series(column.dropna().unique(), dtype=object)).dropna()
    texts = list(dict.fromkeys(known))
    for form in _FORMS if texts else ():
        found: dict[str, datetime] = {}
        for text in texts:
            date = _date(form, text)
            if date is None:
                break
            found[text] = date
        else:
            return pd.to_datetime(class_target(column).map(found)).astype("datetime64[s]")
    return None


def _date(form: re.Pattern[str], text: str) -> datetime | None:
    match = form.fullmatch(text)
    if match is None:
        return None
    year, month = int(match["year"]), match["month"].lower()
    if len(match["year"]) == 2:  # no sample is of the future
        year += 2000 if 2000 + year <= datetime.now().year else 1900
    hour = int(match["hour"] or 0)
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (match["half"].strip().lower() == "pm")
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        return None
    try:
        found = datetime(
            year,
            _MONTHS.index(month) + 1 if month in _MONTHS else int(month),
            int(match["day"]),
            hour,
            int(match["minute"] or 0),
            int(match["second"] or 0),
        )
    except ValueError:
        return None
    zone = (match["zone"] or "Z").strip()
    if zone == "Z":
        return found
    sign = -1 if zone.startswith("-") else 1
    return found - sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
