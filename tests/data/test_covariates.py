from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.augmentation import Augmentation
from aam.data.covariates import (
    CategoricalCovariate,
    Covariates,
    NumericCovariate,
    covariates_from_dict,
    read_covariates,
)
from aam.data.dataset import BatchKey, DatasetOptions
from aam.data.draws import stable_keys
from aam.errors import DataError
from tests.conftest import TinyStudy

PATH = Path("metadata.tsv")
TEXT = pd.DataFrame(
    {"diet": ["meat", "fish", "NA", "meat"], "age": ["1", "3", np.nan, "not collected"], "word": ["a", "b", "c", "d"]},
    index=["s1", "s2", "s3", "s4"],
)


@pytest.fixture
def frame() -> pd.DataFrame:
    return read_covariates(TEXT, ["diet"], ["age"], PATH)


@pytest.fixture
def fitted(frame: pd.DataFrame) -> Covariates:
    return Covariates.fit(frame, ["diet"], ["age"])


class TestReading:
    def test_labels_and_numbers(self, frame):
        assert frame["diet"].tolist()[:2] == ["meat", "fish"] and frame["diet"].isna().tolist() == [0, 0, 1, 0]
        np.testing.assert_array_equal(frame["age"], [1, 3, np.nan, np.nan])

    def test_a_column_that_is_missing(self):
        with pytest.raises(DataError, match=r"metadata.tsv: has no column 'diets'; did you mean 'diet'\?"):
            read_covariates(TEXT, ["diets"], [], PATH)
        lacking = read_covariates(TEXT, ["diets"], ["height"], PATH, may_lack=True)
        assert lacking.isna().all(axis=None) and lacking["height"].dtype == np.float64

    @pytest.mark.parametrize(
        ("value", "says"), [("x", "not numbers: 'x'"), ("inf", "infinite"), ("1e300", "too large")]
    )
    def test_what_is_no_number(self, value, says):
        with pytest.raises(DataError, match=says):
            read_covariates(TEXT.assign(age=value), [], ["age"], PATH)

    def test_text_is_for_the_other_option(self):
        with pytest.raises(DataError, match="correct them, or give the column to --categorical-columns"):
            read_covariates(TEXT, [], ["word"], PATH)


class TestFitting:
    def test_encoding(self, frame, fitted):
        found = fitted.encode(frame)
        np.testing.assert_array_equal(found.categories, [[2], [1], [0], [2]])
        np.testing.assert_allclose(found.numbers, [[-1], [1], [np.nan], [np.nan]])

    def test_of_the_training_samples_alone(self, frame):
        found = Covariates.fit(frame.iloc[[0, 3]], ["diet"], ["age"])
        assert found.categorical == (CategoricalCovariate("diet", ("meat",)),)
        assert found.numeric == (NumericCovariate("age", 1.0, 1.0),)  # one value has no spread
        assert found.encode(frame).categories[:, 0].tolist() == [1, 0, 0, 1]

    def test_a_column_of_nothing(self, frame):
        with pytest.raises(DataError, match="'age' is empty for every training sample; leave it out of --numeric"):
            Covariates.fit(frame.iloc[2:], [], ["age"])
        with pytest.raises(DataError, match="leave it out of --categorical-columns"):
            Covariates.fit(frame.iloc[[2]], ["diet"], [])

    def test_a_number_that_is_far_out_stays_finite(self):
        known = NumericCovariate("age", 0.0, 1e-300)
        assert known.encode(np.array([1e30, -1e30, 0.0])).tolist() == [100, -100, 0]

    @pytest.mark.parametrize("number", [7.4, 36.6, 0.1])
    def test_a_number_that_is_all_the_same(self, number):
        """Its deviation is 0 but for rounding, and another one is not far out by that."""
        for n in range(2, 20):
            fitted = Covariates.fit(pd.DataFrame({"ph": [number] * n}), (), ("ph",))
            values = fitted.encode(pd.DataFrame({"ph": [number, number + 0.5]})).numbers
            np.testing.assert_allclose(values[:, 0], [0, 0.5], atol=1e-6)

    def test_what_is_unknown_is_told(self, frame, fitted):
        other = frame.assign(diet=["meat", "grass", "grass", "hay"])
        assert fitted.unknown(frame) == [
            "column 'diet': 1 of 4 samples have no value; read as unknown",
            "column 'age': 2 of 4 samples have no value; read as unknown",
        ]
        assert fitted.unknown(other)[1:] == [
            "column 'diet': training has not seen 'grass', 'hay' (3 of 4 samples); read as unknown"
        ]


text = st.text(max_size=8)
numbers = st.floats(-1e30, 1e30)


@settings(max_examples=25)
@given(
    st.dictionaries(text, st.lists(text, min_size=1, max_size=4, unique=True), max_size=3),
    st.dictionaries(text, st.tuples(numbers, st.floats(1e-300, 1e30)), max_size=3),
)
def test_round_trip(categorical, numeric):
    known = Covariates(
        tuple(CategoricalCovariate(name, tuple(found)) for name, found in categorical.items()),
        tuple(NumericCovariate(name, *found) for name, found in numeric.items()),
    )
    assert covariates_from_dict(json.loads(json.dumps(known.to_dict()))) == known


@pytest.mark.parametrize(
    "stored",
    [
        *(None, [], {}, {"categorical": []}, {"categorical": [{"column": "a"}], "numeric": []}),
        {"categorical": [], "numeric": [{"column": "a", "mean": 0, "sd": 0}]},
        {"categorical": [], "numeric": [{"column": "a", "mean": float("nan"), "sd": 1}]},
    ],
)
def test_what_was_not_stored_is_refused(stored):
    with pytest.raises(ValueError):
        covariates_from_dict(stored)


class TestBatches:
    @pytest.fixture
    def values(self, equal_study: TinyStudy):
        frame = pd.DataFrame({"diet": np.array(list("abcab"), dtype=object), "age": [1.0, 2, np.nan, 4, 5]})
        return Covariates.fit(frame, ["diet"], ["age"]).encode(frame)

    def test_of_every_sample_references_included(self, equal_study, values):
        dataset = equal_study.dataset(covariates=values)
        batch = dataset[BatchKey(1, (3, 0))]
        np.testing.assert_array_equal(batch.categories, values.categories[[3, 0]])
        np.testing.assert_array_equal(batch.numbers, values.numbers[[3, 0]])
        assert equal_study.dataset()[BatchKey(1, (3, 0))].categories is None

    def test_some_are_hidden_by_name_and_epoch(self, values):
        many = values.rows(np.repeat(np.arange(5), 2000))
        keys = stable_keys([f"sample {i}" for i in range(10_000)])
        found = many.hidden(0.05, keys, seed=1, epoch=3)
        hides = found.categories[:, 0] != many.categories[:, 0]
        assert (found.categories[hides] == 0).all() and 0.04 < hides.mean() < 0.06
        gone = np.isnan(found.numbers[:, 0]) & ~np.isnan(many.numbers[:, 0])
        assert 0.03 < gone.mean() < 0.05  # of four in five that are known
        assert 0 < (hides & gone).mean() < 0.01  # each by itself
        order = np.random.default_rng(0).permutation(10_000)
        again = many.rows(order).hidden(0.05, keys[order], seed=1, epoch=3)
        np.testing.assert_array_equal(again.categories, found.categories[order])
        np.testing.assert_array_equal(again.numbers, found.numbers[order])
        other = many.hidden(0.05, keys, seed=1, epoch=4).categories
        assert (other != found.categories).any()

    def test_only_where_it_is_asked_for(self, equal_study, values):
        everyone = BatchKey(1, (0, 1, 2, 3, 4))
        hidden = equal_study.dataset(DatasetOptions(hidden_covariates=1.0), covariates=values)[everyone]
        assert (hidden.categories == 0).all() and hidden.numbers.isnan().all()

    def test_of_a_mixture(self, equal_study, values):
        mixing = Augmentation(1, mix_samples=0.9, candidates=np.arange(5))
        dataset = equal_study.dataset(covariates=values, augmentation=mixing)
        samples = np.arange(5)
        batch = dataset[BatchKey(2, tuple(samples.tolist()))]
        partners = mixing.partners(samples, dataset.sample_keys, 2)
        assert partners.mixed.any()
        for i, (other, share) in enumerate(zip(partners.rows, partners.share, strict=True)):
            one, two = values.categories[i, 0], values.categories[other, 0]
            assert batch.categories[i, 0] == (one if one == two or share == 1 else 0)
            expected = share * values.numbers[i, 0] + (1 - share) * values.numbers[other, 0]
            np.testing.assert_allclose(batch.numbers[i, 0], expected, rtol=1e-5)
