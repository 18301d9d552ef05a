"""Regions are told by words at their places, whatever the organisms."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aam.data.regions import BASES, REGIONS, Region, word_codes
from aam.data.sequences import reverse_complement
from aam.data.simulate import simulate_study
from aam.data.tokenizer import tokenize

MAX_BP = 150


def names(region: Region, sequences: list[str]) -> list[str]:
    return [REGIONS[i] for i in region.names(tokenize(sequences, MAX_BP), sequences)]


@pytest.fixture(scope="module")
def halves() -> tuple[list[str], list[str]]:
    """Two halves of the ASVs of one tree, of 130 bases."""
    sequences = simulate_study(samples=10, asvs=120, subjects=5, length=130, seed=1).sequences
    order = np.random.default_rng(0).permutation(len(sequences))
    return [sequences[i] for i in order[:60]], [sequences[i] for i in order[60:]]


@pytest.fixture(scope="module")
def region(halves: tuple[list[str], list[str]]) -> Region:
    return Region.of(tokenize(halves[0], MAX_BP), np.arange(60))


def test_words_are_numbers_to_base_4() -> None:
    tokens = tokenize(["ACGTACGT", "AANAAAAA", "AAAAAAC", "ACG"], MAX_BP)
    assert word_codes(tokens).tolist() == [
        [int("012301", 4), int("123012", 4), int("230123", 4)],
        [-1, -1, -1],
        [0, 1, -1],
        [-1, -1, -1],
    ]
    assert word_codes(tokenize(["ACG"], MAX_BP)).shape == (1, 0)


def test_shares_are_those_of_a_plain_count(halves: tuple[list[str], list[str]], region: Region) -> None:
    known, new = halves
    starts = range(BASES - 6 + 1)
    usual = Counter((i, sequence[i : i + 6]) for sequence in known for i in starts)

    def share(sequence: str, counts: Counter[tuple[int, str]]) -> float:
        near = [max(counts[i + d, sequence[i : i + 6]] for d in range(-2, 3)) for i in starts]
        return float(np.mean([count >= 1 for count in near]))

    expected = [share(sequence, usual) for sequence in new]
    np.testing.assert_allclose(region.shares(tokenize(new, MAX_BP)), expected)
    without_itself = [share(s, usual - Counter((i, s[i : i + 6]) for i in starts)) for s in known]
    assert region.typical == pytest.approx(np.median(without_itself), abs=0.02)  # words that repeat within 2 bases


def test_new_asvs_of_the_region_are_of_the_region(halves: tuple[list[str], list[str]], region: Region) -> None:
    assert region.recognisable
    assert set(names(region, halves[0])) == {"same"}
    assert names(region, halves[1]).count("same") >= 57


def test_reverse_complements_are_recognised(halves: tuple[list[str], list[str]], region: Region) -> None:
    turned = [reverse_complement(sequence) for sequence in halves[1]]
    assert names(region, turned).count("reverse complement") == names(region, halves[1]).count("same")


@pytest.mark.parametrize(
    ("begin", "before"),
    [(12, ""), (30, ""), (0, "GTGCCAGCAGCCGCGGTAA"), (0, "ACGTC")],
)
def test_other_trimming_is_told_by_how_much(
    halves: tuple[list[str], list[str]], region: Region, begin: int, before: str
) -> None:
    moved = [before + sequence[begin:] for sequence in halves[1]]
    assert set(names(region, moved)) == {"other"}
    assert region.begin_later(tokenize(moved, MAX_BP)) == begin - len(before)


def test_another_part_of_the_gene_is_another_region(region: Region) -> None:
    other = simulate_study(samples=10, asvs=60, subjects=5, length=130, seed=9).sequences
    tokens = tokenize(other, MAX_BP)
    assert set(names(region, other)) == {"other"}
    assert region.shares(tokens).max() < 0.2
    assert region.begin_later(tokens) == 0


def test_sequences_that_have_nothing_in_common_are_of_no_region() -> None:
    rng = np.random.default_rng(0)
    tokens = tokenize(["".join(rng.choice(list("ACGT"), 50)) for _ in range(30)], MAX_BP)
    assert not Region.of(tokens, np.arange(30)).recognisable
    assert not Region.of(tokens, np.arange(1)).recognisable
    assert not Region.of(tokenize(["ACG", "ACC"], MAX_BP), np.arange(2)).recognisable


def test_what_is_short_or_ambiguous_is_of_no_region(region: Region) -> None:
    assert names(region, ["ACG", "N" * 80]) == ["other", "other"]
