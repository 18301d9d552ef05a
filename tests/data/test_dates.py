"""What is a date in metadata, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from aam.data.dates import as_dates


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2016-03-18 10:00", "2016-02-23"], ["2016-03-18T10:00", "2016-02-23"]),
        (["2012-06-17T08:30:15.5Z", "2012-06-17 23:30-07:00"], ["2012-06-17T08:30:15", "2012-06-18T06:30"]),
        (["2016/3/18", "2016/12/1"], ["2016-03-18", "2016-12-01"]),
        (["3/18/16", "12/1/15 1:05 PM"], ["2016-03-18", "2015-12-01T13:05"]),
        (["18/3/2016", "1/12/2015"], ["2016-03-18", "2015-12-01"]),
        (["3/4/2016", "1/12/2015"], ["2016-03-04", "2015-01-12"]),
        (["6/1/48", "6/1/12"], ["1948-06-01", "2012-06-01"]),
        (["18.3.2016", "01.12.2015"], ["2016-03-18", "2015-12-01"]),
        (["18-Mar-2016", "1 dec 2015"], ["2016-03-18", "2015-12-01"]),
    ],
)
def test_dates(texts: list[str], expected: list[str]) -> None:
    found = as_dates(pd.Series(texts))
    assert found is not None and found.tolist() == [pd.Timestamp(text) for text in expected]


def test_missing_values_are_no_hindrance() -> None:
    found = as_dates(pd.Series(["2016-03-18", np.nan, "Not collected", ""], index=list("abcd")))
    assert found is not None and found.isna().tolist() == [False, True, True, True]
    assert found.index.tolist() == list("abcd")


@pytest.mark.parametrize(
    "texts",
    [
        ["2016", "2017"],
        ["20160318", "20160319"],
        ["16.5", "17.25"],
        ["2016-03", "2016-04"],
        ["2009-10", "2010-11"],
        ["2016-13-01", "2016-12-01"],
        ["2016-02-30", "2016-02-01"],
        ["1001-01-12", "1002-01-12"],
        ["2001-1-12", "2002-1-12"],
        ["3-18-16", "12-1-15"],
        ["1.2.10", "2.1.12"],
        ["9:45", "11:15"],
        ["3/18", "12/1"],
        ["120/80", "130/85"],
        ["3/18/16", "2016-03-18"],
        ["2016-03-18", "visit 2"],
        ["2016-03-18 25:00", "2016-03-18"],
        ["2016-03-18b", "2016-03-19b"],
        ["May", "June"],
        ["1", "2"],
        ["gut", "skin"],
        ["", "not collected"],
        [],
    ],
)
def test_what_is_no_date(texts: list[str]) -> None:
    assert as_dates(pd.Series(texts, dtype=object)) is None


def test_numbers_are_no_dates() -> None:
    assert as_dates(pd.Series([20160318.0, 20160319.0])) is None
