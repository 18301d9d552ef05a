"""The losses, each a plain function, and their weighted sum.

Shapes: ``B`` samples, ``S`` most ASVs of a sample, ``P`` masked nucleotides, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "REGRESSION_LOSSES",
    "LossOutput",
    "class_loss",
    "count_loss",
    "nucleotide_loss",
    "pairwise_loss",
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


def pairwise_loss(predicted: Tensor, actual: Tensor, variance: float, mixed: Tensor | None = None) -> Tensor:
    """Mean squared error over all pairs, in units of the distances' variance, so that it reads as ``1 - R²``.

    Parameters
    ----------
    predicted, actual : Tensor (B, B)
        Symmetric; the diagonal is left out and every pair counts once.
    variance : float
        Of the distances in the training split, so that the loss means the same for every study and metric.
    mixed : Tensor (B,) of bool, optional
        Samples whose distances are not known; their pairs are left out.

    Returns
    -------
    Tensor ()
        0 where there is no pair.
    """
    rows, columns = torch.triu_indices(len(actual), len(actual), offset=1, device=actual.device)
    if not len(rows):
        return predicted.sum() * 0
    if mixed is None:
        return F.mse_loss(predicted[rows, columns], actual[rows, columns]) / variance
    known = ~(mixed[rows] | mixed[columns])
    errors = (predicted[rows, columns] - actual[rows, columns]) ** 2 * known
    return errors.sum() / known.sum().clamp(min=1) / variance


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
