"""What a network attends to, read beside its usual pass: nothing is kept, or computed twice, unless it is asked for.

Shapes: ``N`` sequences, ``T`` elements of a sequence, ``D`` width, ``H`` heads; ``n`` samples, ``nnz`` ASVs that they
have, ``B`` samples of a chunk, ``S`` most ASVs of any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aam.interpret.output import Explained, Network
from aam.interpret.samples import Chunk, Samples
from aam.models.asv_encoder import PAD
from aam.models.attention import SelfAttention
from aam.models.attention_pooling import AttentionPooling
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.transformer import Transformer, TransformerBlock, through

__all__ = [
    "Recorded",
    "SampleAttention",
    "attention_flow",
    "attention_of_chunk",
    "attention_weights",
    "attention_while",
    "attentive_layers",
    "nucleotide_attention",
    "recorded",
    "rollout",
]


class Recorded:
    """Attention weights of the modules that are watched, in the order in which they were called."""

    def __init__(self) -> None:
        self.attention: list[Tensor] = []  # (N, H, T, T): from the rows to the columns; rows add up to 1
        self.pooling: list[Tensor] = []  # (N, T, H): of each head, add up to 1 over T


def _self_attention(module: SelfAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """The weights that are within the kernel, (N, H, T, T)."""
    n, t, d = x.shape
    q, k, _ = module.qkv(x).view(n, t, 3, module.heads, d // module.heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(d // module.heads)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    return scores.softmax(dim=-1)


def _pooling(module: AttentionPooling, x: Tensor, mask: Tensor | None = None) -> Tensor:
    scores: Tensor = module.score(x.float())
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    return scores.softmax(dim=1)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[Recorded]:
    """Watch modules while the context lasts: `SelfAttention`, whose kernels give no weights, and `AttentionPooling`."""
    found = Recorded()

    def watch(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, SelfAttention):
            found.attention.append(_self_attention(module, *arguments))
        else:
            assert isinstance(module, AttentionPooling)
            found.pooling.append(_pooling(module, *arguments))

    hooks = [module.register_forward_pre_hook(watch) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): how much of each input there is in each output.

    The heads' mean, averaged with what the residual connection passes on, multiplied from layer to layer.

    Parameters
    ----------
    layers : sequence of Tensor (N, H, T, T)
        From the first to the last.

    Returns
    -------
    Tensor (N, T, T)
        Rows add up to 1.
    """
    joined: Tensor | None = None
    for weights in layers:
        mean = weights.mean(dim=1)
        step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        joined = step if joined is None else step @ joined
    assert joined is not None
    return joined


def attentive_layers(*transformers: Transformer) -> list[SelfAttention]:
    """Self-attention of transformers that follow each other, from the first layer to the last."""
    found = []
    for block in (block for transformer in transformers for block in transformer.blocks):
        assert isinstance(block, TransformerBlock)
        found.append(block.attention)
    return found


class SampleAttention(NamedTuple):
    """What a network attends to in the samples of a chunk."""

    layers: list[Tensor]  # (B, H, S, S)
    rollout: Tensor  # (B, S, S)
    pooling: Tensor  # (B, S), the heads' mean

    @property
    def weights(self) -> Tensor:
        """How much of each ASV there is in what is pooled, (B, S); adds up to 1."""
        return torch.einsum("bt,bts->bs", self.pooling, self.rollout)


@contextmanager
def _uncompiled(*transformers: Transformer) -> Iterator[None]:
    """Let hooks be called, which compiled blocks pass over."""
    blocks = [block for transformer in transformers for block in transformer.blocks]
    whole, single = [one.through for one in transformers], [block._compiled_call_impl for block in blocks]
    try:
        for transformer in transformers:
            transformer.through = through
        for block in blocks:
            block._compiled_call_impl = None
        yield
    finally:
        for transformer, own in zip(transformers, whole, strict=True):
            transformer.through = own
        for block, call in zip(blocks, single, strict=True):
            block._compiled_call_impl = call


@torch.no_grad()
def attention_while(
    read: Callable[[], object],
    encoder: SequenceEncoder,
    shape: tuple[int, int],
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
) -> SampleAttention:
    """Attention over the ASVs of samples while these are read.

    Parameters
    ----------
    read : callable
        Makes the encoder read ``B`` samples of at most ``S`` ASVs, once.
    encoder : SequenceEncoder
        In evaluation.
    shape : tuple of int
        ``B`` and ``S``.
    layers, heads : sequence of int
        The ones that are read, from 0; all if none is named. Others are passed over, as if they had attended to nothing
        but what the residual connection passes on.
    """
    transformers = encoder.sample_encoder.transformer, encoder.transformer
    watched = attentive_layers(*transformers)
    if layers:
        watched = [watched[layer] for layer in layers]
    with _uncompiled(*transformers), recorded([*watched, encoder.pooling]) as found:
        read()
    samples, width = shape
    cut = [weights[:samples, :, :width, :width] for weights in found.attention]
    pooling = found.pooling[0]
    if heads:
        cut, pooling = [weights[:, list(heads)] for weights in cut], pooling[..., list(heads)]
    return SampleAttention(cut, rollout(cut), pooling.mean(dim=-1))


def attention_of_chunk(
    network: Network, chunk: Chunk, layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> SampleAttention:
    """Attention over the ASVs of the samples of a chunk; see `attention_while`."""
    present = torch.from_numpy(chunk.present).to(network.device)

    def read() -> None:
        network.outputs(network.inputs(chunk), present, chunk.origin)

    return attention_while(read, network.predictor.encoder, chunk.present.shape, layers, heads)


def attention_weights(
    explained: Explained, samples: Samples, layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> NDArray[np.float64]:
    """How much each ASV of each sample is attended to, (nnz,): rollout through the layers, then pooling.

    Of a sample they add up to 1. What reaches the prediction past attention, by way of clades and of means
    weighted by abundance, they do not say.
    """
    found = np.zeros(len(samples.rows.asvs))
    for place, network in enumerate(explained.networks):
        for chunk, shares in explained.of_network(place, samples):
            weights = attention_of_chunk(network, chunk, layers, heads).weights.double().cpu().numpy()
            rows, places = np.nonzero(chunk.present)
            entries = samples.rows.indptr[chunk.origin][rows] + places
            found[entries] += shares[rows] * weights[rows, places]
    return found


def attention_flow(
    explained: Explained,
    samples: Samples,
    units: NDArray[np.int64],
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
) -> NDArray[np.float64]:
    """How much is read by way of the ASVs of one unit from those of another, (T, T), from rows to columns.

    Rollout, weighed by pooling and averaged over the samples: all of it adds up to 1, and columns to the units' shares
    of attention.

    Parameters
    ----------
    explained : Explained
    samples : Samples
    units : ndarray (A,)
        The unit of each ASV, from 0.
    layers, heads : sequence of int
        See `attention_while`.
    """
    number = int(units.max()) + 1
    found = np.zeros(number * number)
    for place, network in enumerate(explained.networks):
        for chunk, shares in explained.of_network(place, samples):
            attention = attention_of_chunk(network, chunk, layers, heads)
            flow = (attention.pooling[:, :, None] * attention.rollout).double().cpu().numpy()  # (B, S, S)
            flow *= shares[:, None, None]
            of_place = units[chunk.asvs]
            pairs = of_place[:, :, None] * number + of_place[:, None, :]
            known, place = np.unique(pairs, return_inverse=True)
            found[known] += np.bincount(place.ravel(), weights=flow.ravel())  # 0 at padding
    return (found / len(samples)).reshape(number, number)


@torch.no_grad()
def nucleotide_attention(network: Network, tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How much each token of some ASVs is attended to in their embeddings, (U, L), START included; rows add up to 1."""
    encoder = network.predictor.encoder.asv_encoder
    layers = attentive_layers(encoder.transformer)
    found = []
    for row in tokens:  # one at a time: attention takes L² of each head and layer
        own = torch.from_numpy(row[row != PAD][None]).to(network.device)
        with recorded([*layers, encoder.pooling]) as weights:
            encoder.pooling(encoder.encode_tokens(own, False))
        shares = torch.einsum("bt,bts->bs", weights.pooling[0].mean(dim=-1), rollout(weights.attention))
        found.append(np.pad(shares[0].double().cpu().numpy(), (0, len(row) - own.shape[1])))
    return np.stack(found)
