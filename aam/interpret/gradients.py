"""Attributions by gradients: what of a prediction each ASV of a sample accounts for.

Shapes: ``n`` samples, ``nnz`` ASVs that they have in all, ``B`` samples of a chunk, ``S`` most ASVs of any of them,
``D`` width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.errors import DataError
from aam.interpret.output import BaselineKind, Explained, Inputs, Network
from aam.interpret.samples import Chunk, Samples

__all__ = ["Attributions", "closed", "gradient_shap", "integrated_gradients", "require_captum"]

_FIRST_STEPS, _MOST_STEPS = 16, 512


class Attributions(NamedTuple):
    """Of every ASV of every sample; where each part begins says `Samples`."""

    by_sequence: NDArray[np.float64]  # (nnz,): by which ASV it is
    by_abundance: NDArray[np.float64]  # (nnz,): by how much of it there is
    change: NDArray[np.float64]  # (n,): prediction less that of the baseline, which attributions should add up to
    missing: NDArray[np.float64]  # (n,): what they fall short of it
    steps: int  # most gradients of a sample
    standard_error: NDArray[np.float64]  # (n,): of the sum of attributions; 0 where nothing is drawn

    @property
    def values(self) -> NDArray[np.float64]:
        """Of both parts together, (nnz,)."""
        return self.by_sequence + self.by_abundance


def closed(inputs: Inputs, chunk: Chunk) -> Inputs:
    """The same with abundances that add up to what the samples' own do.

    Between two compositions, logarithms of abundances pass points that are none: a few percent of the reads are all
    there are, say. A network that weighs ASVs by abundance would be asked of samples such as it never saw.
    """
    present = torch.from_numpy(chunk.present).to(inputs.logs.device)
    total = torch.from_numpy(chunk.counts.sum(axis=1) / chunk.depth).to(inputs.logs)
    own = inputs.logs.masked_fill(~present, float("-inf")).logsumexp(dim=1)
    return inputs._replace(logs=torch.where(present, inputs.logs + (total.log() - own)[:, None], 0.0))


def _read(explained: Explained, network: Network, inputs: Inputs, chunk: Chunk) -> Tensor:
    return explained.read(network, closed(inputs, chunk), chunk)


class _Sums:
    """Attributions as they are found, a chunk of a network at a time."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        entries = len(samples.rows.asvs)
        self.parts = [np.zeros(entries), np.zeros(entries)]
        self.change, self.missing, self.variance = np.zeros((3, len(samples)))
        self.steps = 0

    def add(
        self,
        chunk: Chunk,
        parts: tuple[Tensor, Tensor],
        change: Tensor,
        weight: NDArray[np.float64],
        error: NDArray[np.float64] | float = 0.0,
    ) -> None:
        """Parts (B, S) and (B, S) of a change (B,), what they count for (B,), and the standard error (B,) of a sum."""
        sizes = chunk.present.sum(axis=1)
        starts = self.samples.rows.indptr[chunk.origin]
        rows, places = np.nonzero(chunk.present)
        assert (places < sizes[rows]).all()  # padding comes last
        entries = starts[rows] + places
        total = sum(part.double().sum(dim=1) for part in parts)
        for kept, part in zip(self.parts, parts, strict=True):
            kept[entries] += weight[rows] * part.double().cpu().numpy()[rows, places]
        self.change[chunk.origin] += weight * change.double().cpu().numpy()
        self.missing[chunk.origin] += weight * (change.double() - total).cpu().numpy()
        self.variance[chunk.origin] += (weight * error) ** 2

    def done(self) -> Attributions:
        return Attributions(self.parts[0], self.parts[1], self.change, self.missing, self.steps, np.sqrt(self.variance))


def integrated_gradients(
    explained: Explained, samples: Samples, *, baseline: BaselineKind = "mean", tolerance: float, scale: float
) -> Attributions:
    """Integrated gradients (Sundararajan et al. 2017) with respect to the embeddings and log abundances of ASVs.

    A path leads from a sample whose ASVs all are the baseline, equally abundant, straight to the sample; abundances
    are scaled so that the reads are all there everywhere on it (`closed`). The integral is by Gauss and Legendre's
    rule, with twice as many points until what is missing from the sum of the attributions is within the tolerance.

    Parameters
    ----------
    explained : Explained
    samples : Samples
    baseline : {"mean", "reference"}
    tolerance : float
        Share of the change of a prediction, or of ``scale`` where that is more, that may be missing.
    scale : float
    """
    sums = _Sums(samples)
    logs = np.log(samples.shares)
    for place, network in enumerate(explained.networks):
        start = network.baseline(baseline, samples.rows.asvs, logs)
        for whole, weights in explained.of_network(place, samples):
            chunk, weight, steps = whole, weights, _FIRST_STEPS
            while len(chunk.origin):
                inputs = network.inputs(chunk)
                at_start = Inputs(start.embedding.expand_as(inputs.embeddings), torch.full_like(inputs.logs, start.log))
                with torch.no_grad():
                    change = _read(explained, network, inputs, chunk) - _read(explained, network, at_start, chunk)
                parts = _along(explained, network, at_start, inputs, chunk, steps)
                missing = (change - sum(part.sum(dim=1) for part in parts)).abs()
                enough = missing <= tolerance * change.abs().clamp(min=scale)
                done = np.ones(len(chunk.origin), dtype=bool) if steps >= _MOST_STEPS else enough.cpu().numpy()
                sums.steps = max(sums.steps, steps)
                ended = torch.from_numpy(done).to(network.device)
                ended_parts = (parts[0][ended], parts[1][ended])
                sums.add(chunk.rows(done), ended_parts, change[ended], weight[done])
                # A sample's own path decides, and not its neighbours'.
                chunk, weight, steps = chunk.rows(~done), weight[~done], 2 * steps
    return sums.done()


def _along(
    explained: Explained, network: Network, start: Inputs, end: Inputs, chunk: Chunk, steps: int
) -> tuple[Tensor, Tensor]:
    """Attributions (B, S) to embeddings and to log abundances, of a path in so many points."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    way = Inputs(end.embeddings - start.embeddings, end.logs - start.logs)
    slopes = [torch.zeros_like(part) for part in way]
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        at = Inputs(*((a + float(point) * b).requires_grad_() for a, b in zip(start, way, strict=True)))
        found = torch.autograd.grad(_read(explained, network, at, chunk).sum(), at, materialize_grads=True)
        for slope, gradient in zip(slopes, found, strict=True):
            slope += float(weight) * gradient
    present = torch.from_numpy(chunk.present).to(network.device)
    by_sequence, by_abundance = (way.embeddings * slopes[0]).sum(dim=-1), way.logs * slopes[1]
    return by_sequence.masked_fill(~present, 0.0), by_abundance.masked_fill(~present, 0.0)


def require_captum() -> Any:
    """Captum's methods.

    Raises
    ------
    DataError
        If it is not installed.
    """
    try:
        import captum.attr
    except ImportError:
        raise DataError(
            "--method gradient-shap needs a package that is not installed: pip install 'aam[explain]'"
        ) from None
    return captum.attr


def gradient_shap(explained: Explained, samples: Samples, *, draws: int = 200, seed: int = 0) -> Attributions:
    """Expected gradients (Lundberg & Lee 2017; Erion et al. 2021), by Captum.

    Paths lead from samples of as many ASVs, each drawn from all that the samples have, with their abundances. In the
    mean attributions add up to the prediction less the mean prediction of such samples; what is missing shrinks with
    the square root of the number of draws, and the standard error says how much of it there is to expect.

    Parameters
    ----------
    explained : Explained
    samples : Samples
    draws : int
        Gradients of each sample, each at a random point of a path of its own.
    seed : int

    Raises
    ------
    DataError
        If Captum is not installed.
    """
    attr = require_captum()
    sums = _Sums(samples)
    sums.steps = draws
    rng = np.random.default_rng(seed)
    logs = np.log(samples.shares)
    for place, network in enumerate(explained.networks):
        for chunk, weight in explained.of_network(place, samples):
            inputs = network.inputs(chunk)

            def forward(embeddings: Tensor, logs: Tensor, network: Network = network, chunk: Chunk = chunk) -> Tensor:
                return _read(explained, network, Inputs(embeddings, logs), chunk)

            method = attr.GradientShap(forward)
            parts = (torch.zeros_like(inputs.logs), torch.zeros_like(inputs.logs))
            beyond = np.zeros((draws, len(chunk.origin)))  # how far attributions are beyond the change
            for draw in range(draws):
                drawn = rng.integers(0, len(logs), chunk.asvs.shape)  # the ASVs of each starting point
                asvs = torch.from_numpy(samples.rows.asvs[drawn]).to(network.device)
                starts = (network.embeddings[asvs], torch.from_numpy(logs[drawn]).to(inputs.logs))
                before = np.random.get_state()  # noqa: NPY002 - Captum draws from the global state
                np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
                try:
                    found, delta = method.attribute(
                        tuple(inputs), baselines=starts, n_samples=1, stdevs=0.0, return_convergence_delta=True
                    )
                finally:
                    np.random.set_state(before)  # noqa: NPY002
                present = torch.from_numpy(chunk.present).to(network.device)
                for part, own in zip(parts, (found[0].sum(dim=-1), found[1]), strict=True):
                    part += own.detach().masked_fill(~present, 0.0) / draws
                beyond[draw] = delta.double().cpu().numpy()
            change = parts[0].sum(dim=1) + parts[1].sum(dim=1) - torch.from_numpy(beyond.mean(axis=0)).to(parts[0])
            error = beyond.std(axis=0, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(len(chunk.origin), np.inf)
            sums.add(chunk, parts, change, weight, error)
    return sums.done()
