"""The losses, each a plain function that gives a sum and of how many, and the weighted sum of their means.

A mean is over a batch that several processes may share: sums and numbers add up over them, means would not.

Shapes: ``B`` samples, ``S`` most ASVs of a sample, ``P`` masked nucleotides, ``C`` classes,
``T`` parts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BASE_LOSSES",
    "REGRESSION_LOSSES",
    "LossOutput",
    "LossSum",
    "asymmetric_loss",
    "class_loss",
    "count_loss",
    "divergence",
    "nucleotide_loss",
    "quantile_loss",
    "squared_error",
    "weighted",
]


class LossSum(NamedTuple):
    """A mean in the making."""

    total: Tensor  # ()
    number: Tensor | int  # of what is summed; () where it is a tensor

    @property
    def mean(self) -> Tensor:
        """(); 0 where nothing is summed."""
        return self.total / (self.number.clamp(min=1) if isinstance(self.number, Tensor) else max(1, self.number))


class LossOutput(NamedTuple):
    """What is minimised, and what it is made of."""

    total: Tensor  # ()
    parts: dict[str, Tensor]  # each () and before its weight
    numbers: dict[str, Tensor]  # each (): of how much a part is the mean


def weighted(
    parts: Mapping[str, Tensor], weights: Mapping[str, float], numbers: Mapping[str, Tensor | int]
) -> LossOutput:
    """The weighted sum of the parts, each the mean of so many."""
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    counted = {name: _on_device(number, total) for name, number in numbers.items()}
    return LossOutput(total, dict(parts), counted)


def _on_device(number: Tensor | int, like: Tensor) -> Tensor:
    """As a tensor beside another, without waiting for the device."""
    if isinstance(number, Tensor):
        return number.to(like.device, torch.float32)
    return torch.full((), number, dtype=torch.float32, device=like.device)


def squared_error(predicted: Tensor, actual: Tensor, variance: float) -> LossSum:
    """Squared error in units of a variance, so that it reads as ``1 - R²``.

    Parameters
    ----------
    predicted, actual : Tensor
        Of one shape; what is not known is NaN in ``actual`` and does not count.
    variance : float
        In the training split, so that the loss means the same for every study and unit.

    Returns
    -------
    LossSum
        Over what is known.
    """
    known = ~actual.isnan()
    errors = torch.where(known, predicted - actual, 0.0)
    return LossSum((errors**2).sum() / variance, known.sum())


def divergence(predicted: Tensor, actual: Tensor, scale: float) -> LossSum:
    """Divergence (Kullback and Leibler 1951) of compositions: cross-entropy less the entropy of the actual ones.

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
    LossSum
        Over the samples that are known.
    """
    known = ~actual.isnan().any(dim=1)  # (B,)
    shares = torch.where(known[:, None], actual, 0.0)
    each = (torch.xlogy(shares, shares) - shares * predicted).sum(dim=1)
    return LossSum(each.sum() / scale, known.sum())


BASE_LOSSES: dict[str, Callable[[Tensor, Tensor, float], LossSum]] = {
    "squared_error": squared_error,
    "divergence": divergence,
}


def nucleotide_loss(logits: Tensor, true_tokens: Tensor) -> LossSum:
    """Cross-entropy of the masked nucleotides.

    Parameters
    ----------
    logits : Tensor (P, 8)
    true_tokens : Tensor (P,) of uint8
    """
    return LossSum(F.cross_entropy(logits.float(), true_tokens.long(), reduction="sum"), len(true_tokens))


def count_loss(predicted: Tensor, actual: Tensor, hidden: Tensor) -> LossSum:
    """Squared error of the withheld abundances, in standard deviations of the training split.

    Parameters
    ----------
    predicted, actual : Tensor (B, S)
        Standardised log abundances.
    hidden : Tensor (B, S) of bool
    """
    errors = ((predicted.float() - actual) ** 2) * hidden
    return LossSum(errors.sum(), hidden.sum())


def _over_samples(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], LossSum]:
    return lambda predicted, actual: LossSum(loss(predicted, actual, reduction="sum"), len(actual))


REGRESSION_LOSSES: dict[str, Callable[[Tensor, Tensor], LossSum]] = {
    "huber": _over_samples(F.smooth_l1_loss),
    "mse": _over_samples(F.mse_loss),
    "mae": _over_samples(F.l1_loss),
}


def quantile_loss(predicted: Tensor, actual: Tensor, quantiles: Sequence[float]) -> LossSum:
    """Twice the pinball loss (Koenker and Bassett 1978), averaged over quantiles; of the median, the absolute error.

    Parameters
    ----------
    predicted : Tensor (B, Q)
    actual : Tensor (B,)
    quantiles : sequence of float, length Q
    """
    levels = torch.as_tensor(quantiles, dtype=predicted.dtype, device=predicted.device)
    missing = actual[:, None] - predicted
    each = torch.maximum(levels * missing, (levels - 1) * missing)
    return LossSum(2 * each.mean(dim=1).sum(), len(actual))


def asymmetric_loss(predicted: Tensor, actual: Tensor, overestimate_cost: float) -> LossSum:
    """Huber's loss, of which too much and too little are weighed differently, with a mean weight of 1.

    Parameters
    ----------
    predicted, actual : Tensor (B,)
    overestimate_cost : float
        In underestimates of the same size.
    """
    each = F.smooth_l1_loss(predicted, actual, reduction="none")
    over = torch.where(predicted > actual, overestimate_cost, 1.0)
    return LossSum((each * over).sum() * (2 / (1 + overestimate_cost)), len(actual))


def class_loss(logits: Tensor, places: Tensor, class_weights: Tensor | None, label_smoothing: float = 0.0) -> LossSum:
    """Cross-entropy, each class weighted.

    Parameters
    ----------
    logits : Tensor (B, C)
    places : Tensor (B,) of int
    class_weights : Tensor (C,), optional
        With a mean of 1 over the training samples.
    label_smoothing : float
        Share of a sample's target that is spread over all classes (Szegedy et al. 2016).

    Returns
    -------
    LossSum
        Over the samples, not over the sum of the batch's weights (torch's own mean), which would weigh a sample
        differently in every batch it comes in.
    """
    total = F.cross_entropy(
        logits.float(), places, weight=class_weights, reduction="sum", label_smoothing=label_smoothing
    )
    return LossSum(total, len(places))
