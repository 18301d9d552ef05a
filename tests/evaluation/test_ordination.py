"""Principal coordinates against scikit-bio, Procrustes against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import braycurtis, pdist, squareform

from aam.evaluation.ordination import align, pcoa, square_of_pairs

rng = np.random.default_rng(0)


@pytest.mark.filterwarnings("ignore:The result contains negative eigenvalues")
@pytest.mark.parametrize("metric", ["euclidean", braycurtis])
def test_pcoa_is_that_of_skbio(metric: object) -> None:
    """Bray-Curtis distances are not Euclidean: some eigenvalues are negative."""
    skbio_pcoa = pytest.importorskip("skbio.stats.ordination").pcoa
    distances = squareform(pdist(rng.exponential(size=(10, 5)) ** 3, metric))
    found, expected = pcoa(distances, axes=3), skbio_pcoa(distances, method="eigh")
    theirs = expected.samples.to_numpy()[:, :3]
    signs = np.sign((found.coordinates * theirs).sum(axis=0))
    np.testing.assert_allclose(found.coordinates * signs, theirs, atol=1e-8)
    np.testing.assert_allclose(found.explained, expected.proportion_explained.to_numpy()[:3])


def test_points_of_a_plane_come_back() -> None:
    points = rng.normal(size=(9, 2))
    distances = squareform(pdist(points))
    coordinates, explained = pcoa(distances)
    np.testing.assert_allclose(squareform(pdist(coordinates)), distances)
    assert explained.sum() == pytest.approx(1)


def test_turned_and_mirrored_points_are_laid_over_the_others() -> None:
    onto = rng.normal(size=(7, 2))
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])
    turned, correlation = align(onto @ turn + 5, onto)
    np.testing.assert_allclose(turned, onto)
    assert correlation == pytest.approx(1)


def test_procrustes_is_that_of_scipy() -> None:
    a, b = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    moved, correlation = align(b, a)
    _, _, disparity = procrustes(a, b)
    assert correlation == pytest.approx(np.sqrt(1 - disparity))
    np.testing.assert_allclose(squareform(pdist(moved)), squareform(pdist(b)))  # turned, not stretched


def test_one_point_has_no_shape() -> None:
    nothing = np.zeros((4, 4))
    coordinates, explained = pcoa(nothing)
    assert not coordinates.any() and not explained.any()
    turned, correlation = align(coordinates, rng.normal(size=(4, 2)))
    assert np.isfinite(turned).all() and correlation == 0


def test_pairs_become_a_square() -> None:
    distances = squareform(rng.uniform(size=10)).astype(np.float32)
    square = square_of_pairs(distances[np.triu_indices(5, 1)], 5)
    np.testing.assert_array_equal(square, distances)
    assert square_of_pairs(np.ones(9), 5) is None
