from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aam.config import TaskConfig
from aam.data.targets import ClassTarget, NumericTarget, fit_targets, target_from_dict
from aam.errors import DataError

FAST = settings(max_examples=60, derandomize=True, deadline=None)
TRANSFORMS = ["none", "zscore", "minmax", "log-zscore", "log-minmax"]


def columns(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    values = arrays(np.float64, st.integers(2, 12), elements=st.floats(low, high, width=32))
    return values.filter(lambda x: np.ptp(x) > 1e-2)


@pytest.mark.parametrize("transform", TRANSFORMS)
@FAST
@given(st.data())
def test_round_trip(transform, data):
    values = data.draw(columns(-0.5, 1e5) if transform.startswith("log") else columns(-1e5, 1e5))
    target = NumericTarget.fit("age", transform, values)
    encoded = target.encode(values)
    assert encoded.dtype == np.float32 and target.outputs == 1
    tolerance = 1e-4 * (1 + np.abs(values)) if transform.startswith("log") else 1e-6 * (1 + np.abs(values).max())
    assert (np.abs(target.decode(encoded) - values) <= tolerance).all()
    restored = target_from_dict(json.loads(json.dumps(target.to_dict())))
    assert restored == target
    np.testing.assert_array_equal(restored.encode(values), encoded)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("none", [0, 1, 3, 7]),
        ("zscore", (np.array([0, 1, 3, 7]) - 2.75) / np.std([0, 1, 3, 7])),
        ("minmax", [0, 1 / 7, 3 / 7, 1]),
        ("log-zscore", (np.array([0, 1, 2, 3]) - 1.5) / np.std([0, 1, 2, 3])),
        ("log-minmax", [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_transforms(transform, expected):
    values = np.array([0.0, 1, 3, 7])  # log2(1 + y) is 0, 1, 2, 3
    target = NumericTarget.fit("age", transform, values)
    np.testing.assert_allclose(target.encode(values), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(target.decode(np.array(expected, dtype=np.float32)), values, rtol=1e-5, atol=1e-5)


def test_held_out_values_beyond_the_training_range():
    target = NumericTarget.fit("age", "minmax", np.array([0.0, 10]))
    np.testing.assert_allclose(target.encode(np.array([-5.0, 20])), [-0.5, 2])
    logs = NumericTarget.fit("age", "log-zscore", np.array([0.0, 10]))
    assert np.isnan(logs.encode(np.array([-1.0, -7, np.nan]))).all()
    assert np.isfinite(logs.decode(np.array([1e9, -1e9], dtype=np.float32))).all()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("values", [[4.0, 4, 4], [4.0]])
def test_constant(transform, values):
    with pytest.raises(DataError, match=r"'age' is 4 in every training sample"):
        NumericTarget.fit("age", transform, np.array(values))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("values", [[0.0, 5e-324], [1e16, 1e16 + 2]])
def test_what_rounding_makes_constant(transform, values):
    """Either refused or encoded as numbers, never as NaN."""
    values = np.array(values)
    with suppress(DataError):
        target = NumericTarget.fit("age", transform, values)
        assert np.isfinite(target.encode(values)).all()


@pytest.mark.parametrize("value", [-1.0, -3.5])
def test_no_logarithm(value):
    with pytest.raises(DataError, match=rf"log-minmax .*'age' holds {value:g}; use zscore or minmax"):
        NumericTarget.fit("age", "log-minmax", np.array([2.0, value]))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_quantiles_are_those_of_the_values_in_any_scale(transform):
    """A quantile in a scale that keeps the order is the quantile of the values."""
    values = np.random.default_rng(0).exponential(5, 101)
    levels = (0.05, 0.5, 0.95)  # of 101 values each is one of them, whatever lies between
    target = NumericTarget.fit("age", transform, values, quantiles=levels)
    assert target.outputs == 3
    output = np.tile(np.quantile(target.encode(values), levels), (4, 1)).astype(np.float32)
    output[1] = output[1, ::-1]  # quantiles that cross are put in order
    expected = np.tile(np.quantile(values, levels), (4, 1))
    np.testing.assert_allclose(target.decode_quantiles(output), expected, rtol=1e-4)
    np.testing.assert_allclose(target.predicted(output), expected[:, 1], rtol=1e-4)
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target


@pytest.mark.parametrize("transform", TRANSFORMS)
@FAST
@given(arrays(np.float32, (5, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_predictions_stay_within_the_bounds(transform, output):
    values = np.array([0.0, 4, 10])
    target = NumericTarget.fit("age", transform, values, quantiles=(0.1, 0.5, 0.9), lower=0, upper=12)
    read = target.decode_quantiles(output)
    assert (read >= 0).all() and (read <= 12).all() and (np.diff(read, axis=1) >= 0).all()
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target
    below = NumericTarget.fit("age", transform, values, upper=10)
    assert (below.predicted(output[:, :1]) <= 10).all()


@pytest.mark.parametrize(
    ("held_out", "train", "asked", "expected"),
    [(-3, 0, None, 0), (-3, -1, None, None), (5, 2, None, 0), (5, 2, -1000.0, -1000), (-3, 1, -5.0, -5)],
)
def test_predictions_of_what_is_never_negative_end_at_0(held_out, train, asked, expected):
    """Training samples decide: none of them below 0."""
    values = np.array([train, 4.0, 10, held_out])
    target = fit_targets(["age"], values, np.arange(3), TaskConfig(target_min=asked))
    assert target.lower == expected
    output = target.encode(np.array([-50.0, 3]))[:, None]
    np.testing.assert_allclose(
        target.predicted(output), [-50 if expected is None else max(expected, -50), 3], rtol=1e-5
    )


@pytest.mark.parametrize(("lower", "upper", "words"), [(1, None, "holds 0.*--target-min 1"), (0, 9, "holds 10.*max 9")])
def test_values_beyond_the_bounds(lower, upper, words):
    with pytest.raises(DataError, match=rf"'age' {words}; correct the value"):
        NumericTarget.fit("age", "zscore", np.array([0.0, 4, 10]), lower=lower, upper=upper)


@FAST
@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=8).filter(lambda x: len(set(x)) > 1))
def test_classes_round_trip(labels):
    labels = np.array(labels, dtype=object)
    target = ClassTarget.fit("diet", labels)
    places = target.encode(labels)
    assert places.dtype == np.int64 and target.outputs == len(set(labels.tolist()))
    assert target.classes == tuple(sorted(set(labels.tolist())))
    assert target.decode(places).tolist() == labels.tolist()
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_classes_are_refused():
    with pytest.raises(DataError, match="'diet' is 'x' in every training sample"):
        ClassTarget.fit("diet", np.array(["x", "x"], dtype=object))
    target = ClassTarget.fit("diet", np.array(["x", "y"], dtype=object))
    with pytest.raises(DataError, match="'diet': class 'a' is held out whole"):
        target.encode(np.array(["y", "b", "a"], dtype=object))
