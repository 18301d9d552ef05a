from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aam.models.distances import (
    CladeHead,
    EuclideanHead,
    clade_distances,
    compute_pairwise_distances,
    compute_stripe_distances,
)

FAST = settings(max_examples=50, derandomize=True, deadline=None)
PRESENCE = arrays(np.float32, (4, 5), elements=st.floats(0, 1, width=32))
LENGTHS = arrays(np.float32, 5, elements=st.floats(0.0009765625, 8, width=32))
EMBEDDINGS = arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32))


def embeddings(samples: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 3, (samples, 4)).astype(np.float32))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_pairwise_is_tanh_of_euclidean(scale):
    x = embeddings()
    euclidean = np.linalg.norm(x.numpy()[:, None] - x.numpy()[None], axis=-1)
    np.testing.assert_allclose(compute_pairwise_distances(x, scale=scale), np.tanh(euclidean / scale), rtol=1e-5)
    np.testing.assert_allclose(compute_pairwise_distances(x, normalize=False, scale=scale), euclidean, rtol=1e-5)


@FAST
@given(EMBEDDINGS)
def test_pairwise_is_a_distance(x):
    found = compute_pairwise_distances(torch.from_numpy(x), scale=20.0).numpy()
    assert (np.diag(found) == 0).all()
    assert (found == found.T).all()
    assert (found >= 0).all() and (found < 1).all()


def test_gradient_at_identical_samples_is_zero():
    x = torch.ones(3, 4, requires_grad=True)
    compute_pairwise_distances(x).sum().backward()
    assert (x.grad == 0).all()


def test_stripes_are_blocks_of_pairwise():
    x = embeddings(6)
    whole = compute_pairwise_distances(x, scale=3.0)
    torch.testing.assert_close(compute_stripe_distances(x[:2], x[1:], scale=3.0), whole[:2, 1:])


def test_euclidean_head_gives_gradients_to_its_scale():
    torch.manual_seed(0)
    head = EuclideanHead(4, scale=2.0)
    found = head(embeddings(3), embeddings(5))
    projected = [head.projection(embeddings(n)).detach().numpy() for n in (3, 5)]
    euclidean = np.linalg.norm(projected[0][:, None] - projected[1][None], axis=-1)
    np.testing.assert_allclose(found.detach(), np.tanh(euclidean / 2), rtol=1e-5, atol=1e-7)
    found.sum().backward()
    assert head.log_scale.grad < 0  # a larger scale, smaller distances


def naive_clade_distance(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> float:
    unshared = total = 0.0
    for x, y, length in zip(a.tolist(), b.tolist(), lengths.tolist(), strict=True):
        unshared += length * abs(x - y)
        total += length * max(x, y)
    return unshared / total if total > 1e-9 else 0.0


@FAST
@given(PRESENCE, PRESENCE, LENGTHS)
def test_clade_distances_are_the_formula(a, b, lengths):
    found = clade_distances(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(lengths)).numpy()
    assert not np.isnan(found).any()
    for i, j in np.ndindex(found.shape):
        if max(a[i].max(), b[j].max()) > 1e-4:
            assert found[i, j] == pytest.approx(naive_clade_distance(a[i], b[j], lengths), abs=1e-5)


@FAST
@given(PRESENCE, LENGTHS)
def test_clade_distances_are_distances(presence, lengths):
    presence[1] = 0  # a sample in no clade
    a = torch.from_numpy(presence)
    found = clade_distances(a, a, torch.from_numpy(lengths))
    assert not found.isnan().any()
    assert (found.diagonal() == 0).all()
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-6)
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()


def test_clade_distances_of_a_tree_are_unweighted_unifrac():
    # ((a:1,b:2)x:3,(c:4,d:5)y:6); the branches in the order a b x c d y
    lengths = torch.tensor([1.0, 2, 3, 4, 5, 6])
    branches = {"a": "ax", "b": "bx", "c": "cy", "d": "dy"}
    samples = ["a", "ab", "c", "bcd"]
    presence = torch.tensor(
        [[float(any(branch in branches[tip] for tip in sample)) for branch in "abxcdy"] for sample in samples]
    )
    expected = [
        [0, 2 / 6, 1, 18 / 21],  # {a}, {ab}: b is not shared of a, b, x
        [2 / 6, 0, 1, 16 / 21],
        [1, 1, 0, 10 / 20],
        [18 / 21, 16 / 21, 10 / 20, 0],
    ]
    torch.testing.assert_close(clade_distances(presence, presence, lengths), torch.tensor(expected))


def test_scikit_bio_gives_the_same_unifrac():
    from io import StringIO

    from skbio import TreeNode
    from skbio.diversity.beta import unweighted_unifrac

    tree = TreeNode.read(StringIO("((a:1,b:2)x:3,(c:4,d:5)y:6);"))
    found = unweighted_unifrac([1, 1, 0, 0], [0, 1, 1, 1], taxa=list("abcd"), tree=tree)
    assert found == pytest.approx(16 / 21)


def test_presence_is_that_of_the_strongest_member():
    torch.manual_seed(0)
    head = CladeHead(dim=4, clades=3, sharpness=2.0)
    asvs = embeddings(5)
    index = torch.tensor([[0, 2, 4], [3, 0, 0]])
    present = torch.tensor([[True, True, True], [True, False, False]])
    memberships = torch.sigmoid(2.0 * (asvs @ head.membership.weight.T + head.membership.bias))
    expected = torch.stack([memberships[[0, 2, 4]].amax(dim=0), memberships[3]])
    torch.testing.assert_close(head.presence(asvs, index, present), expected)
    assert (head.weights > 0).all()
