"""How distances between samples are read from embeddings: one small class per head.

Shapes: ``B`` samples, ``N`` and ``M`` samples of two sets, ``U`` distinct ASVs, ``S`` ASVs of a sample, ``D`` width,
``K`` clades.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aam.models.precision import at_least_float32

__all__ = [
    "CladeHead",
    "EuclideanHead",
    "clade_distances",
    "compute_pairwise_distances",
    "compute_stripe_distances",
]


def compute_stripe_distances(
    embeddings: Tensor, reference_embeddings: Tensor, normalize: bool = True, scale: float | Tensor = 10.0
) -> Tensor:
    """Euclidean distances from samples to reference samples.

    Parameters
    ----------
    embeddings : Tensor (N, D)
    reference_embeddings : Tensor (M, D)
    normalize : bool
        Map onto [0, 1) by ``tanh(d / scale)``.
    scale : float or Tensor ()
        Distance that is mapped onto ``tanh(1) = 0.76``.

    Returns
    -------
    Tensor (N, M)
        0 between identical embeddings, where the gradient is 0 too (the square root's own would be NaN).
    """
    # Differences, not the faster |a|^2 + |b|^2 - 2ab, which leaves rounding noise where distances are near zero.
    distances = torch.cdist(
        at_least_float32(embeddings),
        at_least_float32(reference_embeddings),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    return torch.tanh(distances / scale) if normalize else distances


def compute_pairwise_distances(embeddings: Tensor, normalize: bool = True, scale: float | Tensor = 10.0) -> Tensor:
    """Euclidean distances between all samples: `compute_stripe_distances` with themselves.

    Parameters
    ----------
    embeddings : Tensor (B, D)
    normalize, scale
        See `compute_stripe_distances`.

    Returns
    -------
    Tensor (B, B)
        Symmetric, 0 on the diagonal.
    """
    return compute_stripe_distances(embeddings, embeddings, normalize, scale)


def clade_distances(presence: Tensor, reference_presence: Tensor, weights: Tensor) -> Tensor:
    r"""Unweighted UniFrac over soft clades.

    .. math:: d(A, B) = \frac{\sum_k w_k |z_{Ak} - z_{Bk}|}{\sum_k w_k \max(z_{Ak}, z_{Bk})}

    which for presences of 0 and 1 and branch lengths `w` is unweighted UniFrac (Lozupone and Knight 2005): the
    unshared over all branch length. As ``2 max(a, b) = a + b + |a - b|``, one weighted L1 distance gives both sums.

    Parameters
    ----------
    presence : Tensor (N, K)
        In [0, 1].
    reference_presence : Tensor (M, K)
    weights : Tensor (K,)
        Branch lengths, not negative.

    Returns
    -------
    Tensor (N, M)
        Within [0, 1].
    """
    a = presence * weights
    b = reference_presence * weights
    unshared = torch.cdist(a, b, p=1.0)  # (N, M)
    total = (a.sum(-1)[:, None] + b.sum(-1)[None, :] + unshared) / 2
    return unshared / total.clamp(min=1e-12)


class CladeHead(nn.Module):
    """Distances with UniFrac's own shape, from memberships of ASVs in learned soft clades.

    A sample has clade ``k`` as far as its strongest member does.

    Parameters
    ----------
    dim : int
        Width of the ASV embeddings.
    clades : int
        ``K``.
    sharpness : float
        ``beta`` in ``p = sigmoid(beta (W x + b))``.
    """

    def __init__(self, dim: int, clades: int, sharpness: float = 4.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.membership = nn.Linear(dim, clades)
        # For standardised embeddings: clades from a five-hundredth of the ASVs to a seventh, as a tree has small and
        # large ones.
        nn.init.normal_(self.membership.weight, std=dim**-0.5)
        shares = torch.exp(torch.linspace(math.log(0.002), math.log(0.15), clades))
        with torch.no_grad():
            self.membership.bias.copy_(torch.distributions.Normal(0.0, 1.0).icdf(shares))
        self.log_weights = nn.Parameter(torch.zeros(clades))

    @property
    def weights(self) -> Tensor:
        """Branch lengths of the clades, (K,), positive; only their ratios matter."""
        return F.softplus(self.log_weights)

    def presence(self, asv_embeddings: Tensor, asv_index: Tensor, present: Tensor) -> Tensor:
        """How far each sample has each clade.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        asv_index : Tensor (B, S) of int
        present : Tensor (B, S) of bool
            False at padding.

        Returns
        -------
        Tensor (B, K)
            In [0, 1].
        """
        logits = self.sharpness * at_least_float32(self.membership(asv_embeddings))  # (U, K)
        # The sigmoid is monotone: the strongest member is that of the largest logit.
        in_samples = F.embedding(asv_index, logits).masked_fill(~present[:, :, None], -math.inf)  # (B, S, K)
        return in_samples.amax(dim=1).sigmoid()

    @torch.no_grad()
    def calibrate(self, asv_embeddings: Tensor, asv_index: Tensor, present: Tensor, mean_distance: float) -> None:
        """Widen or narrow all clades alike until the mean distance of these samples is the one given.

        Parameters
        ----------
        asv_embeddings, asv_index, present
            See `presence`.
        mean_distance : float
        """
        bias = self.membership.bias.clone()
        low, high = -8.0, 8.0
        for _ in range(20):  # the mean distance falls as clades widen
            middle = (low + high) / 2
            self.membership.bias.copy_(bias + middle)
            presence = self.presence(asv_embeddings, asv_index, present)
            low, high = (middle, high) if _mean_of_pairs(self(presence, presence)) > mean_distance else (low, middle)

    def forward(self, presence: Tensor, reference_presence: Tensor) -> Tensor:
        """Distances (N, M) from presences (N, K) and (M, K)."""
        return clade_distances(at_least_float32(presence), at_least_float32(reference_presence), self.weights)


class EuclideanHead(nn.Module):
    """Distances between pooled sample embeddings, `compute_stripe_distances` with a learned scale.

    Parameters
    ----------
    dim : int
        Width of the sample embeddings.
    scale : float
        Where the scale starts.
    """

    def __init__(self, dim: int, scale: float = 10.0) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, embeddings: Tensor, reference_embeddings: Tensor) -> Tensor:
        """Distances (N, M) from sample embeddings (N, D) and (M, D)."""
        return compute_stripe_distances(
            self.projection(embeddings), self.projection(reference_embeddings), scale=self.log_scale.exp()
        )

    @torch.no_grad()
    def calibrate(self, embeddings: Tensor, mean_distance: float) -> None:
        """Choose the scale at which the mean distance of these samples (B, D) is about the one given."""
        projected = self.projection(embeddings)
        mean = _mean_of_pairs(compute_pairwise_distances(projected, normalize=False))
        if mean > 0:
            self.log_scale.fill_(math.log(mean / math.atanh(min(max(mean_distance, 0.01), 0.99))))


def _mean_of_pairs(distances: Tensor) -> float:
    rows, columns = torch.triu_indices(len(distances), len(distances), offset=1, device=distances.device)
    return float(distances[rows, columns].mean())
