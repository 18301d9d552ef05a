"""How distances between samples are read from embeddings: one small class per head.

Shapes: ``B`` samples, ``N`` and ``M`` samples of two sets, ``U`` distinct ASVs, ``S`` ASVs of a sample, ``D`` width,
``K`` clades.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aam.models.base_targets import BaseTarget, UniFrac
from aam.models.precision import at_least_float32, in_float32, without_autocast

__all__ = [
    "CladeHead",
    "EuclideanHead",
    "clade_distances",
    "compute_pairwise_distances",
    "compute_stripe_distances",
    "generalized_clade_distances",
    "mean_of_pairs",
    "weighted_clade_distances",
]

_MOST_ELEMENTS = 2**24  # of an intermediate result over pairs and clades


def _distances(a: Tensor, b: Tensor, p: float) -> Tensor:
    """Minkowski distances (N, M) of degree 1 or 2 from vectors (N, D) to vectors (M, D)."""
    if torch.compiler.is_exporting():  # to other programs, which have no such operator
        differences = a[:, None] - b[None]  # (N, M, D)
        return differences.abs().sum(-1) if p == 1.0 else differences.square().sum(-1).sqrt()
    # Differences, not the faster |a|^2 + |b|^2 - 2ab, which leaves rounding noise where distances are near zero.
    return torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def _sigmoid(x: Tensor) -> Tensor:
    """The logistic function, near 0 exact in as many digits as elsewhere."""
    # ONNX Runtime's own is off by 1e-7 anywhere, which near 0 leaves no digit; generalised UniFrac sees that.
    if torch.compiler.is_exporting():
        return 1 / (1 + (-x).exp())
    return x.sigmoid()


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
    distances = _distances(at_least_float32(embeddings), at_least_float32(reference_embeddings), 2.0)
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
    unshared = _distances(a, b, 1.0)  # (N, M)
    total = (a.sum(-1)[:, None] + b.sum(-1)[None, :] + unshared) / 2
    return unshared / total.clamp(min=1e-12)


def weighted_clade_distances(abundance: Tensor, reference_abundance: Tensor, weights: Tensor) -> Tensor:
    r"""Normalised weighted UniFrac over soft clades.

    .. math:: d(A, B) = \frac{\sum_k w_k |u_{Ak} - u_{Bk}|}{\sum_k w_k (u_{Ak} + u_{Bk})}

    which for memberships of 0 and 1 and branch lengths `w` is that of Lozupone et al. (2007), and with every ASV a
    clade of its own and equal weights Bray-Curtis.

    Parameters
    ----------
    abundance : Tensor (N, K)
        Share of a sample's reads in each clade.
    reference_abundance : Tensor (M, K)
    weights : Tensor (K,)
        Branch lengths, not negative.

    Returns
    -------
    Tensor (N, M)
        Within [0, 1].
    """
    a = abundance * weights
    b = reference_abundance * weights
    total = a.sum(-1)[:, None] + b.sum(-1)[None, :]  # (N, M)
    return _distances(a, b, 1.0) / total.clamp(min=1e-12)


def generalized_clade_distances(
    abundance: Tensor, reference_abundance: Tensor, weights: Tensor, alpha: float
) -> Tensor:
    r"""Generalised UniFrac over soft clades (Chen et al. 2012).

    .. math:: d(A, B) = \frac{\sum_k w_k s_k^\alpha |u_{Ak} - u_{Bk}| / s_k}{\sum_k w_k s_k^\alpha},
              \quad s_k = u_{Ak} + u_{Bk}

    over the clades that either sample has. No product of matrices gives these sums, so rows are taken in chunks.

    Parameters
    ----------
    abundance, reference_abundance, weights
        See `weighted_clade_distances`, which this is for an ``alpha`` of 1.
    alpha : float
        Within [0, 1].

    Returns
    -------
    Tensor (N, M)
        Within [0, 1].
    """

    def of_rows(rows: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        total = rows[:, None] + references[None]  # (n, M, K)
        known = total > 1e-12  # the power's own gradient at 0 is infinite
        safe = torch.where(known, total, 1.0)
        importance = torch.where(known, weights * safe**alpha, 0.0)
        unshared = (rows[:, None] - references[None]).abs() / safe
        return (importance * unshared).sum(-1) / importance.sum(-1).clamp(min=1e-12)

    if torch.compiler.is_exporting():
        return of_rows(abundance, reference_abundance, weights)
    chunk = max(1, _MOST_ELEMENTS // max(1, reference_abundance.numel()))
    if chunk >= len(abundance):
        return of_rows(abundance, reference_abundance, weights)
    blocks = [
        checkpoint(of_rows, rows, reference_abundance, weights, use_reentrant=False) for rows in abundance.split(chunk)
    ]
    return torch.cat(blocks)


class CladeHead(nn.Module):
    """Distances with UniFrac's own shape, from memberships of ASVs in learned soft clades.

    A sample has clade ``k`` as far as its strongest member does (presence), and as much of it as its members' shares of
    the reads (abundance). The clades and their branch lengths are the same for every base target: one learned tree.

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

    def presence(self, asv_embeddings: Tensor, asv_index: Tensor, present: Tensor | None = None) -> Tensor:
        """How far each sample has each clade.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        asv_index : Tensor (B, S) of int
        present : Tensor (B, S) of bool, optional
            False at padding; left out where there is none.

        Returns
        -------
        Tensor (B, K)
            In [0, 1].
        """
        logits = self._logits(asv_embeddings)  # (U, K)
        # The sigmoid is monotone: the strongest member is that of the largest logit.
        in_samples = F.embedding(asv_index, logits)  # (B, S, K)
        if present is not None:
            in_samples = in_samples.masked_fill(~present[:, :, None], -math.inf)
        return _sigmoid(in_samples.amax(dim=1))

    def abundance(self, asv_embeddings: Tensor, asv_index: Tensor, shares: Tensor) -> Tensor:
        """How much of each sample is in each clade.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        asv_index : Tensor (B, S) of int
        shares : Tensor (B, S)
            Of the sample's reads, 0 at padding. They sum to less than 1 where a token limit leaves ASVs out: what is
            not read is in no clade.

        Returns
        -------
        Tensor (B, K)
            In [0, 1].
        """
        memberships = _sigmoid(self._logits(asv_embeddings))  # (U, K)
        shares = shares.to(memberships.dtype)
        with without_autocast(memberships):
            # Not len(), which a graph for any number of samples could not hold.
            of_asvs = shares.new_zeros(shares.shape[0], memberships.shape[0]).scatter_add_(
                1, asv_index, shares
            )  # (B, U)
            return of_asvs @ memberships

    def _logits(self, asv_embeddings: Tensor) -> Tensor:
        return self.sharpness * in_float32(self.membership, asv_embeddings)

    @torch.no_grad()
    def calibrate(
        self,
        asv_embeddings: Tensor,
        asv_index: Tensor,
        shares: Tensor,
        mean_distance: float,
        target: BaseTarget | None = None,
    ) -> None:
        """Widen or narrow all clades alike until the mean distance of these samples is the one given, or nearly.

        Parameters
        ----------
        asv_embeddings, asv_index, shares
            See `abundance`.
        mean_distance : float
        target : BaseTarget, optional
            The distance; unweighted UniFrac if left out.
        """
        target = target or UniFrac()
        bias = self.membership.bias.clone()
        low, high = -3.0, 8.0  # clades that no ASV is in by more than a hundredth would learn slowly
        for _ in range(20):  # the mean distance falls as clades widen
            middle = (low + high) / 2
            self.membership.bias.copy_(bias + middle)
            if target.clades == "abundance":
                samples = self.abundance(asv_embeddings, asv_index, shares)
            else:
                samples = self.presence(asv_embeddings, asv_index, shares > 0)
            mean = mean_of_pairs(self(target, samples, samples))
            low, high = (middle, high) if mean > mean_distance else (low, middle)

    def forward(self, target: BaseTarget, samples: Tensor, references: Tensor) -> Tensor:
        """What ``target`` reads from presences or abundances (N, K) and (M, K)."""
        return target.from_clades(at_least_float32(samples), at_least_float32(references), self.weights)


class EuclideanHead(nn.Module):
    """Distances between pooled sample embeddings, `compute_stripe_distances` with a learned scale.

    Parameters
    ----------
    dim : int
        Width of the sample embeddings.
    scale : float
        Where the scale starts.
    upper : float, optional
        Distances are within [0, ``upper``) by a hyperbolic tangent; without an upper bound they are in proportion to
        those of the embeddings.
    """

    def __init__(self, dim: int, scale: float = 10.0, upper: float | None = 1.0) -> None:
        super().__init__()
        self.upper = upper
        self.projection = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))  # not (), which cannot be sharded

    def forward(self, embeddings: Tensor, reference_embeddings: Tensor) -> Tensor:
        """Distances (N, M) from sample embeddings (N, D) and (M, D)."""
        samples, references = self.projection(embeddings), self.projection(reference_embeddings)
        if self.upper is None:
            return compute_stripe_distances(samples, references, normalize=False) / self.log_scale.exp()
        return self.upper * compute_stripe_distances(samples, references, scale=self.log_scale.exp())

    @torch.no_grad()
    def calibrate(self, embeddings: Tensor, mean_distance: float) -> None:
        """Choose the scale at which the mean distance of these samples (B, D) is about the one given."""
        projected = self.projection(embeddings)
        mean = mean_of_pairs(compute_pairwise_distances(projected, normalize=False))
        if self.upper is not None:
            mean_distance = math.atanh(min(max(mean_distance / self.upper, 0.01), 0.99))
        if mean > 0 and mean_distance > 0:
            self.log_scale.fill_(math.log(mean / mean_distance))


def mean_of_pairs(distances: Tensor) -> float:
    """The mean of a square matrix (n, n) above its diagonal, of what is known (not NaN) there; NaN if nothing is."""
    rows, columns = torch.triu_indices(len(distances), len(distances), offset=1, device=distances.device)
    return float(distances.detach()[rows, columns].nanmean())
