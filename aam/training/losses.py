"""The losses, each a plain function, and their weighted sum.

Shapes: ``B`` samples, ``S`` most ASVs of a sample, ``P`` masked nucleotides, ``C`` classes,
``T`` parts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BASE_LOSSES",
    "REGRESSION_LOSSES",
    "LossOutput",
    "above_diagonal",
    "class_loss",
    "count_loss",
    "divergence",
    "nucleotide_loss",
    "squared_error",
    "weighted",
]


class LossOutput(NamedTuple):
    """What is minimised, and what it is made of."""

    total: Tensor  # ()
    parts: dict[str, Tensor]  # each () and before its weight


def weighted(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> LossOutput:
    """The weighted sum of the parts."""
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return LossOutput(total, dict(parts))


def squared_error(predicted: Tensor, actual: Tensor, variance: float) -> Tensor:
    """Mean squared error in units of a variance, so that it reads as ``1 - R²``.

    Parameters
    ----------
    predicted, actual : Tensor
        Of one shape; what is not known is NaN in ``actual`` and does not count.
    variance : float
        In the training split, so that the loss means the same for every study and unit.

    Returns
    -------
    Tensor ()
        0 where nothing is known.
    """
    known = ~actual.isnan()
    errors = torch.where(known, predicted - actual, 0.0)
    return (errors**2).sum() / known.sum().clamp(min=1) / variance


def divergence(predicted: Tensor, actual: Tensor, scale: float) -> Tensor:
    """Mean divergence (Kullback and Leibler 1951) of compositions: cross-entropy less the entropy of the actual ones.

    Parameters
    ----------
    predicted : Tensor (B, T)
        Logarithms of shares.
    actual : Tensor (B, T)
        Shares; a row of NaN where they are not known.
    scale : float
        The mean divergence from the mean composition in the training split, so that the loss reads as ``1 - R²``.

    Returns
    -------
    Tensor ()
        0 where nothing is known.
    """
    known = ~actual.isnan().any(dim=1)  # (B,)
    shares = torch.where(known[:, None], actual, 0.0)
    each = (torch.xlogy(shares, shares) - shares * predicted).sum(dim=1)
    return each.sum() / known.sum().clamp(min=1) / scale


BASE_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "squared_error": squared_error,
    "divergence": divergence,
}


def above_diagonal(matrix: Tensor) -> Tensor:
    """The entries of a square matrix (n, n) above its diagonal: every pair once, (n (n - 1) / 2,)."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[rows, columns]


def nucleotide_loss(logits: Tensor, true_tokens: Tensor) -> Tensor:
    """Cross-entropy of the masked nucleotides.

    Parameters
    ----------
    logits : Tensor (P, 8)
    true_tokens : Tensor (P,) of uint8
    """
    return F.cross_entropy(logits.float(), true_tokens.long())


def count_loss(predicted: Tensor, actual: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of the withheld abundances, in standard deviations of the training split.

    Parameters
    ----------
    predicted, actual : Tensor (B, S)
        Standardised log abundances.
    hidden : Tensor (B, S) of bool

    Returns
    -------
    Tensor ()
        0 where none was withheld.
    """
    errors = ((predicted.float() - actual) ** 2) * hidden
    return errors.sum() / hidden.sum().clamp(min=1)


REGRESSION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "huber": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "mae": F.l1_loss,
}


def class_loss(logits: Tensor, places: Tensor, class_weights: Tensor | None) -> Tensor:
    """Cross-entropy, each class weighted, divided by the number of samples.

    Parameters
    ----------
    logits : Tensor (B, C)
    places : Tensor (B,) of int
    class_weights : Tensor (C,), optional
        With a mean of 1 over the training samples.

    Returns
    -------
    Tensor ()
        Not divided by the sum of the batch's weights (torch's own mean), which would weigh a sample differently in
        every batch it comes in.
    """
    return F.cross_entropy(logits.float(), places, weight=class_weights, reduction="sum") / len(places)
