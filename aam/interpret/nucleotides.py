"""Which bases of an ASV its part in predictions comes from.

Shapes: ``n`` samples, ``A`` ASVs, ``U`` ASVs that are asked about, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aam.interpret.output import Explained, Inputs, Network
from aam.interpret.samples import Samples
from aam.models.asv_encoder import PAD

__all__ = ["BaseAttributions", "base_attributions", "mean_gradients"]

_BASES = slice(1, 5)  # A, C, G and T among the tokens


class BaseAttributions(NamedTuple):
    """Of every token of some ASVs."""

    values: NDArray[np.float64]  # (U, L), 0 at START and at padding
    change: NDArray[np.float64]  # (U,): what they should add up to
    missing: NDArray[np.float64]  # (U,): what they fall short of it


def mean_gradients(explained: Explained, samples: Samples) -> list[Tensor]:
    """How what is explained rises with the embedding of each ASV, (A, D): the mean over samples with it.

    By network, each as far as it has something to say of the samples: together they add up to the mean.
    """
    times = torch.from_numpy(np.bincount(samples.rows.asvs, minlength=samples.asvs)).clamp(min=1)
    found = []
    for place, network in enumerate(explained.networks):
        sums = torch.zeros_like(network.embeddings)
        for chunk, shares in explained.of_network(place, samples):
            given = network.inputs(chunk)
            at = given.embeddings.requires_grad_()
            read = explained.read(network, Inputs(at, given.logs), chunk)
            (gradient,) = torch.autograd.grad(read @ torch.from_numpy(shares).to(read), at)
            present = torch.from_numpy(chunk.present).to(network.device)
            sums.index_add_(0, torch.from_numpy(chunk.asvs).to(network.device)[present], gradient[present])
        found.append(sums / times[:, None].to(sums))
    return found


def base_attributions(
    explained: Explained,
    gradients: list[Tensor],
    asvs: NDArray[np.int64],
    tokens: NDArray[np.uint8],
    *,
    steps: int = 32,
) -> BaseAttributions:
    """Integrated gradients with respect to the bases of ASVs.

    What is integrated is an ASV's embedding in the direction in which, in the mean over the samples with it,
    predictions rise. A path begins where every base is the mean of the four.

    Parameters
    ----------
    explained : Explained
    gradients : list of Tensor (A, D)
        From `mean_gradients`.
    asvs : ndarray (U,)
        Which ASVs.
    tokens : ndarray (U, L) of uint8
        Theirs.
    steps : int
        Points of Gauss and Legendre's rule.
    """
    values = np.zeros(tokens.shape)
    change, missing = np.zeros((2, len(tokens)))
    for network, of_network in zip(explained.networks, gradients, strict=True):
        for place, (asv, row) in enumerate(zip(asvs, tokens, strict=True)):
            own = torch.from_numpy(row[row != PAD][None]).to(network.device)
            found, moved = _of_asv(network, own, of_network[asv], steps)
            values[place, : own.shape[1]] += found
            change[place] += moved
            missing[place] += moved - found.sum()
    return BaseAttributions(values, change, missing)


def _of_asv(network: Network, tokens: Tensor, direction: Tensor, steps: int) -> tuple[NDArray[np.float64], float]:
    """Attributions (L,) of an ASV (1, L), and what they should add up to."""
    encoder = network.predictor.encoder.asv_encoder
    length = tokens.shape[1]
    scale, shift = encoder.position_scale.weight[:length], encoder.position_shift.weight[:length]
    no_base = encoder.token_embedding.weight[_BASES].mean(dim=0) * scale + shift  # (L, D)
    no_base[0] = encoder.token_embedding.weight[int(tokens[0, 0])] * scale[0] + shift[0]  # START stays

    def along(point: float) -> tuple[Tensor, Tensor, Tensor]:
        """The projected embedding at a point of the path, its gradient (L, D) there, and the whole way (L, D)."""
        kept: dict[str, Any] = {}

        def replace(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if kept:  # the reference ASVs, where they are encoded in a pass of their own
                return None
            x, *others = arguments
            kept["way"] = (x[0, :length] - no_base).detach()
            kept["at"] = (no_base + point * kept["way"]).detach().requires_grad_()
            rest = x[:, length:] if x.shape[1] > length else None
            first = kept["at"][None] if rest is None else torch.cat([kept["at"][None], rest[:1]], dim=1)
            return torch.cat([first, x[1:]]), *others

        hook = encoder.transformer.register_forward_pre_hook(replace)
        try:
            value = encoder(tokens, False)[0] @ direction
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(value, kept["at"])
        return value.detach(), gradient, kept["way"]

    total = torch.zeros(length, device=network.device)
    points, weights = np.polynomial.legendre.leggauss(steps)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        _, gradient, way = along(float(point))
        total += float(weight) * (gradient * way).sum(dim=-1)
    return total.double().cpu().numpy(), float(along(1.0)[0] - along(0.0)[0])
