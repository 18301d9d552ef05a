"""The number that is explained: one output of a network, or its mean over several, as a function of samples.

The ASVs are encoded once. What is asked of a network after that takes the embeddings of the ASVs of each sample,
gathered for that sample alone, so that gradients are by sample.

Shapes: ``n`` samples, ``A`` ASVs, ``B`` samples of a chunk, ``S`` most ASVs of any, ``D`` width, ``C`` outputs, ``M``
networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.data.batch import Batch
from aam.interpret.samples import Chunk, Variant, chunks
from aam.models.sequence_predictor import SequencePredictor

__all__ = ["Baseline", "BaselineKind", "Explained", "Inputs", "Network", "Reading"]

BaselineKind = Literal["mean", "reference"]


@dataclass(frozen=True)
class Reading:
    """Which number is read from outputs (B, C).

    Of a number, the middle one of ``outputs``. Of classes, where ``classes`` says which for every sample, the log-odds
    of that class, ``log(p / (1 - p))``.
    """

    outputs: slice
    classes: NDArray[np.int64] | None = None  # (n,)

    def __call__(self, outputs: Tensor, origin: NDArray[np.int64]) -> Tensor:
        """(B, C) of variants of the samples ``origin`` (B,) to (B,)."""
        own = outputs[:, self.outputs]
        if self.classes is None:
            return own[:, own.shape[1] // 2]
        chosen = torch.from_numpy(self.classes[origin]).to(own.device)[:, None]
        others = own.scatter(1, chosen, float("-inf"))
        return own.gather(1, chosen)[:, 0] - others.logsumexp(dim=1)


class Inputs(NamedTuple):
    """What gradients are taken with respect to."""

    embeddings: Tensor  # (B, S, D)
    logs: Tensor  # (B, S): natural logarithms of relative abundances, 0 at padding


class Baseline(NamedTuple):
    """The ASV that says nothing, which stands in every place of a sample where a path begins."""

    embedding: Tensor  # (D,)
    log: float


class Network:
    """A predictor and what it has made of the ASVs.

    Parameters
    ----------
    predictor : SequencePredictor
        In evaluation; its weights are frozen here.
    embeddings : Tensor (A, D)
        On its device.
    categories, numbers : Tensor, optional
        Covariates of the ``n`` samples.
    scale, shift : float
        Of its outputs: each network has fitted its own scale of learning, and only in one of all can they be averaged.
    """

    def __init__(
        self,
        predictor: SequencePredictor,
        embeddings: Tensor,
        categories: Tensor | None = None,
        numbers: Tensor | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self.predictor = predictor.eval().requires_grad_(False)
        self.embeddings = embeddings
        self.categories = categories
        self.numbers = numbers
        self.scale = scale
        self.shift = shift

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    def inputs(self, chunk: Chunk) -> Inputs:
        """Of the samples of a chunk."""
        embeddings = self.embeddings[torch.from_numpy(chunk.asvs).to(self.device)]
        with np.errstate(divide="ignore"):
            logs = np.where(chunk.present, np.log(chunk.counts / chunk.depth[:, None]), 0.0).astype(np.float32)
        return Inputs(embeddings, torch.from_numpy(logs).to(self.device))

    def outputs(self, inputs: Inputs, present: Tensor, origin: NDArray[np.int64]) -> Tensor:
        """What the predictor says, (B, C).

        Parameters
        ----------
        inputs : Inputs
        present : Tensor (B, S) of bool
        origin : ndarray (B,)
            Samples whose covariates these have.
        """
        b, s = present.shape
        shares = torch.where(present, inputs.logs.exp(), 0.0)
        rows = torch.from_numpy(origin)
        batch = Batch(
            sample_index=rows,
            tokens=torch.zeros(0, 0, dtype=torch.uint8),
            padded=False,
            asv_index=torch.arange(b * s, device=self.device).view(b, s),
            counts=shares,
            depth=torch.ones(b, device=self.device),  # shares of it
            ragged=not bool(present.all()),
            categories=None if self.categories is None else self.categories[rows].to(self.device),
            numbers=None if self.numbers is None else self.numbers[rows].to(self.device),
            asv_embeddings=inputs.embeddings.reshape(b * s, -1),
        )
        found: Tensor = self.predictor(batch).target
        return found * self.scale + self.shift

    def baseline(self, kind: BaselineKind, asvs: NDArray[np.int64], logs: NDArray[np.float64]) -> Baseline:
        """The mean of ASVs as samples have them, (nnz,), or the centre of the network's reference ASVs."""
        abundance = self.predictor.encoder.sample_encoder.abundance
        if kind == "reference":
            return Baseline(torch.zeros_like(self.embeddings[0]), float(abundance.mean))
        times = np.bincount(asvs, minlength=len(self.embeddings)) / len(asvs)
        weights = torch.from_numpy(times).to(self.embeddings)
        return Baseline(weights @ self.embeddings, float(logs.mean()))


class Explained:
    """The mean of what is read from several networks, or what is read from one.

    Parameters
    ----------
    networks : sequence of Network, length M
    reading : Reading
    shares : ndarray (M, n), optional
        What each network has to say of each sample: 0 of one that it has learnt from, say. Columns add up to 1. By
        default all networks say the same.
    """

    def __init__(
        self, networks: Sequence[Network], reading: Reading, shares: NDArray[np.float64] | None = None
    ) -> None:
        self.networks = list(networks)
        self.reading = reading
        self.shares = shares

    def of_network(self, place: int, variants: Iterable[Variant]) -> Iterator[tuple[Chunk, NDArray[np.float64]]]:
        """The variants that a network has something to say of, laid out, and what that counts for, (B,)."""
        for chunk in chunks(variants):
            shares = self._shares_of(place, chunk)
            if shares.any():
                yield chunk.rows(shares > 0), shares[shares > 0]

    def _shares_of(self, place: int, chunk: Chunk) -> NDArray[np.float64]:
        if self.shares is None:
            return np.full(len(chunk.origin), 1 / len(self.networks))
        return self.shares[place, chunk.origin]

    def read(self, network: Network, inputs: Inputs, chunk: Chunk) -> Tensor:
        """What is read from a network, (B,), given other inputs at the places of a chunk."""
        present = torch.from_numpy(chunk.present).to(network.device)
        return self.reading(network.outputs(inputs, present, chunk.origin), chunk.origin)

    @torch.no_grad()
    def outputs(self, variants: Iterable[Variant]) -> list[NDArray[np.float32]]:
        """What each network says of ``m`` variants, (m, C), whatever its share."""
        found: list[list[Tensor]] = [[] for _ in self.networks]
        places = []
        for chunk in chunks(variants):
            present = torch.from_numpy(chunk.present)
            places.append(chunk.place)
            for network, of_network in zip(self.networks, found, strict=True):
                outputs = network.outputs(network.inputs(chunk), present.to(network.device), chunk.origin)
                of_network.append(outputs.float().cpu())
        order = np.argsort(np.concatenate(places))
        return [torch.cat(of_network).numpy()[order] for of_network in found]

    @torch.no_grad()
    def values(self, variants: Iterable[Variant]) -> NDArray[np.float64]:
        """Of ``m`` variants, (m,); they are read a few at a time."""
        found, places = [np.empty(0)], [np.empty(0, dtype=np.int64)]
        for chunk in chunks(variants):
            places.append(chunk.place)
            found.append(np.zeros(len(chunk.place)))
            for place, network in enumerate(self.networks):
                shares = self._shares_of(place, chunk)
                if shares.any():
                    own = chunk.rows(shares > 0)
                    read = self.read(network, network.inputs(own), own).double().cpu().numpy()
                    found[-1][shares > 0] += shares[shares > 0] * read
        values = np.concatenate(found)
        values[np.concatenate(places)] = values.copy()
        return values
