from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.cache import Cache
from aam.data.tokenizer import PAD, START, detokenize, sequence_lengths, token_rows, tokenize

FAST = settings(max_examples=100, derandomize=True, deadline=None)
IUPAC = "ACGTURYSWKMBDHVN"
TOKENS = {"A": 1, "C": 2, "G": 3, "T": 4, "U": 4}


@FAST
@given(st.lists(st.text("ACGTN", min_size=1, max_size=12), max_size=6), st.integers(1, 12))
def test_round_trip(sequences, max_bp):
    assert detokenize(tokenize(sequences, max_bp)) == [sequence[:max_bp] for sequence in sequences]


@FAST
@given(st.lists(st.text(IUPAC + IUPAC.lower(), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 14))
def test_every_letter(sequences, max_bp):
    cut = [sequence[:max_bp].upper() for sequence in sequences]
    longest = max(map(len, cut))
    expected = [[5, *(TOKENS.get(x, 7) for x in sequence), *[0] * (longest - len(sequence))] for sequence in cut]
    found = tokenize(sequences, max_bp)
    assert found.dtype == np.uint8
    assert found.tolist() == expected
    assert sequence_lengths(sequences, max_bp).tolist() == list(map(len, cut))


def test_no_row_is_all_padding():
    rows = tokenize(["", "A"], max_bp=5)
    assert rows.tolist() == [[START, PAD], [START, 1]]
    assert tokenize([], max_bp=5).shape == (0, 1)


def test_rows_in_a_file_are_the_same(tmp_path, monkeypatch):
    sequences = ["".join(np.random.default_rng(i).choice(list(IUPAC), 5 + i % 7)) for i in range(50)]
    expected = tokenize(sequences, 9)
    monkeypatch.setattr("aam.data.tokenizer._BLOCK", 7)
    cache = Cache(tmp_path)
    for _ in range(2):
        found = token_rows(sequences, 9, cache)
        assert isinstance(found, np.memmap)
        np.testing.assert_array_equal(found, expected)
    assert len(list(tmp_path.iterdir())) == 1
    token_rows(sequences, 8, cache)
    token_rows(sequences[:-1], 9, cache)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr("aam.data.tokenizer._MOST_IN_MEMORY", 10)
    found = token_rows(sequences, 9)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected)
