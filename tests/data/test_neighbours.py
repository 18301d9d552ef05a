from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from aam.data import neighbours
from aam.data.neighbours import nearest


@pytest.fixture(params=[1024, 3])
def points(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    monkeypatch.setattr(neighbours, "_BLOCK", request.param)
    rng = np.random.default_rng(0)
    return rng.normal(5, 1, (10, 4)).astype(np.float32), rng.normal(5, 1, (7, 4)).astype(np.float16)


def test_nearest_is_that_of_scipy(points: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(nearest(*points), cdist(*points).min(axis=1), rtol=1e-6)


def test_a_group_of_its_own_does_not_count(points: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 3, 10), rng.integers(0, 3, 7)
    apart = np.where(groups[0][:, None] == groups[1], np.inf, cdist(*points))
    np.testing.assert_allclose(nearest(*points, groups), apart.min(axis=1), rtol=1e-6)


def test_a_point_is_at_no_distance_from_itself(points: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(nearest(points[0], points[0]), 0, atol=1e-6)


def test_without_others_everything_is_infinitely_far(points: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.isinf(nearest(points[0], points[1][:0])).all()
    one_group = np.zeros(10, dtype=np.int64), np.zeros(7, dtype=np.int64)
    assert np.isinf(nearest(*points, one_group)).all()
