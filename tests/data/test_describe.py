"""Descriptions of studies against plain counting."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.describe import overlap, quantiles

names = st.lists(st.sampled_from("abcdefgh"), unique=True)


@settings(max_examples=50)
@given(table=names, first=names, second=names)
def test_overlap_is_that_of_sets(table: list[str], first: list[str], second: list[str]) -> None:
    found = overlap(table, {"first": first, "second": second})
    assert found["table"] == len(table)
    assert found["all"] == sum(name in first and name in second for name in table)
    for name, samples in (("first", first), ("second", second)):
        file = found["files"][name]
        assert file["samples"] == len(samples)
        assert file["lacks"] == sum(sample not in samples for sample in table)
        assert file["not_in_table"] == sum(sample not in table for sample in samples)
        assert file["lacks_for_example"] == sorted(set(table) - set(samples))[:3]


def test_quantiles_lie_between_the_neighbours() -> None:
    found = quantiles(range(101))
    assert found == {"min": 0, "q5": 5, "q25": 25, "median": 50, "q75": 75, "q95": 95, "max": 100}
