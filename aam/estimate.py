"""About how long a run takes and how much memory, told from its settings and from counts alone.

Shapes: ``B`` samples of a batch, ``S`` most ASVs of any of them, ``U`` distinct ASVs, ``L`` tokens of the longest,
``D`` width, ``F`` factor of the feed-forward width, ``K`` clades.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from aam.config import ModelConfig

__all__ = ["BatchShape", "Estimate", "activation_bytes", "estimate", "forward_flops", "matrix_rate", "parameters"]

REFERENCE_ASVS = 32  # encoded beside those of every batch; as in aam.models.asv_encoder
_VOCABULARY = 8
_CPU_CHUNK_ELEMENTS = 2**19  # as in aam.models.asv_encoder
_FLOAT = 4  # bytes
# Widths that a token of a checkpointed layer takes: one is kept, and memory that is freed between what is kept is not
# given back. Measured, as below.
_CHECKPOINTED = 6
# The interpreter, the libraries and what they set up in the first step.
_PROGRAM_BYTES = 0.6e9


class BatchShape(NamedTuple):
    """The size of a batch."""

    samples: int  # B
    asvs_per_sample: int  # S
    distinct_asvs: int  # U
    tokens: int  # L


@dataclass(frozen=True)
class Estimate:
    """What a run of these settings comes to on this machine's processor."""

    batch: BatchShape  # a typical one
    parameters: int
    flops_per_step: float
    steps_per_epoch: int
    epochs: int
    runs: int  # folds, or 1
    searches: bool  # whether the number of epochs is found out first, which is not in `seconds`
    step_seconds: float
    seconds: float  # of all epochs, validation included, and of all runs
    memory: dict[str, float]  # bytes: weights, activations, data, program

    @property
    def memory_bytes(self) -> float:
        """Of everything."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**asdict(self), "batch": self.batch._asdict(), "memory_bytes": self.memory_bytes}


def estimate(
    model: ModelConfig,
    batches: Sequence[BatchShape],
    *,
    train_samples: int,
    val_samples: int,
    batch_size: int,
    epochs: int,
    restored_share: float,
    with_target: bool,
    data_bytes: float,
    runs: int = 1,
    searches: bool = False,
    whole_epochs: int | None = None,
    rate: float | None = None,
) -> Estimate:
    """Time and memory of a run.

    Parameters
    ----------
    model : ModelConfig
    batches : sequence of BatchShape
        Some batches of the run: time is that of their mean, memory that of the largest.
    train_samples, val_samples : int
    batch_size, epochs : int
    restored_share : float
        Of a batch's distinct ASVs, whose masked nucleotides are restored.
    with_target : bool
        Whether a column is learnt, which adds the pass that restores abundances.
    data_bytes : float
        What is kept of the study.
    runs : int
        Folds.
    searches : bool
        Whether a run first finds out how many epochs are good, which is not in the time.
    whole_epochs : int, optional
        Of them, those in which ASVs are encoded; all if left out.
    rate : float, optional
        Operations a second of a matrix product; measured if left out.
    """
    size = parameters(model)
    forward = float(
        np.mean([forward_flops(model, b, restored_share=restored_share, with_target=with_target) for b in batches])
    )
    # The backward pass is two products for each of the forward pass, which checkpointing repeats.
    flops = forward * (4 if model.gradient_checkpointing else 3)
    steps, val_steps = -(-train_samples // batch_size), -(-val_samples // batch_size)
    of_epoch = flops * train_samples / batch_size + forward * val_samples / batch_size
    per_second = (matrix_rate() if rate is None else rate) * _efficiency(model.embedding_dim)
    if max(steps, val_steps) == 1:  # batches that are smaller than asked for
        of_epoch = flops + forward * val_samples / max(train_samples, 1)
    whole = epochs if whole_epochs is None else min(epochs, whole_epochs)
    of_samples = float(np.mean([_sample_flops(model, b, with_target) for b in batches])) / forward
    epochs_as_whole = whole + (epochs - whole) * of_samples
    kept = max(activation_bytes(model, b, restored_share=restored_share, with_target=with_target) for b in batches)
    return Estimate(
        batch=BatchShape(*(round(float(np.mean(column))) for column in zip(*batches, strict=True))),
        parameters=size,
        flops_per_step=flops,
        steps_per_epoch=steps,
        epochs=epochs,
        runs=runs,
        searches=searches,
        step_seconds=flops / per_second,
        seconds=runs * epochs_as_whole * of_epoch / per_second,
        memory={
            "weights": float(4 * _FLOAT * size),  # weights, gradients, and the two moments of AdamW
            "activations": kept,
            "data": float(data_bytes),
            "program": _PROGRAM_BYTES,
        },
    )


def _efficiency(width: int) -> float:
    """The share of a plain matrix product's rate that training steps reach on a CPU.

    What is done to every element weighs the more the narrower the matrices are. Fitted to `aam benchmark train`, one
    core: .04, .07, .17, .42, .54 and .75 at widths 8, 16, 32, 64, 128 and 256.
    """
    return width / (width + 90 + 1000 / width)


def parameters(model: ModelConfig) -> int:
    """Weights of the encoder that learns UniFrac; heads of other targets are left out."""
    d, f, k = model.embedding_dim, model.feed_forward_factor, model.clades
    block = 4 * d * d + 2 * f * d * d + (4 + f + 1) * d + 4 * d  # linear maps, their biases, two normalisations
    pooling = d * d + d + (d + 1) * model.attention_heads
    total = 3 * (model.attention_layers * block + 2 * d) + 2 * pooling
    total += _VOCABULARY * d + 2 * (model.max_bp + 1) * d  # tokens and positions
    total += 2 * d + (d + 1) * _VOCABULARY  # normalisation of samples, nucleotide head
    total += {"add": d * d + 4 * d, "concat": 3 * d * d + 5 * d, "film": 3 * d * d + 6 * d, "none": d}[
        model.count_embedding
    ]
    if model.abundance_pooling:
        total += 2 * d * d + d
    if model.distance_head != "euclidean":
        total += (d + 1) * k + k + (k + 1) * d
    if model.distance_head != "clade":
        total += d * d + d + 1
    return total


def forward_flops(model: ModelConfig, batch: BatchShape, *, restored_share: float, with_target: bool = False) -> float:
    """Operations of the matrix products of a forward pass, two for a multiplication and addition.

    A token of a layer costs ``2 D² (4 + 2 F)`` in linear maps and ``4 T D`` in attention over ``T`` tokens; embeddings,
    pooling and heads are left out.
    """
    encoded = batch.distinct_asvs * (1 + restored_share) + REFERENCE_ASVS
    return _transformer_flops(model, encoded, batch.tokens) + _sample_flops(model, batch, with_target)


def _sample_flops(model: ModelConfig, batch: BatchShape, with_target: bool) -> float:
    """Of the passes over samples alone, which are all there is where ASVs are encoded already."""
    passes = 3 if with_target else 2
    return passes * _transformer_flops(model, batch.samples, batch.asvs_per_sample)


def _transformer_flops(model: ModelConfig, sequences: float, tokens: int) -> float:
    d, f = model.embedding_dim, model.feed_forward_factor
    return model.attention_layers * sequences * tokens * (2 * d * d * (4 + 2 * f) + 4 * tokens * d)


def activation_bytes(
    model: ModelConfig, batch: BatchShape, *, restored_share: float, with_target: bool = False
) -> float:
    """What the forward pass keeps for the backward pass, in single precision.

    A block keeps of every token its input, both normalised inputs, queries, keys, values, what was attended to and
    the sum after it (``8 D``), and the feed-forward layer before and after its non-linearity (``2 F D``). Dropout
    keeps what it was applied to and its mask, over attention weights too. ASVs are encoded in chunks, but what each
    of these keeps is held until the backward pass; with checkpointing it is the inputs of blocks and one block.
    """
    d, f, layers = model.embedding_dim, model.feed_forward_factor, model.attention_layers
    block = (8 + 2 * f) * d
    encoded = (batch.distinct_asvs * (1 + restored_share) + REFERENCE_ASVS) * batch.tokens
    places = batch.samples * batch.asvs_per_sample
    attention = 3 * model.attention_heads * batch.asvs_per_sample if model.dropout > 0 else 0
    of_place = block + (4 * d if model.dropout > 0 else 0) + attention
    sample_passes = 3 if with_target else 2
    if model.gradient_checkpointing:
        chunk = model.asv_chunk_size or max(1, _CPU_CHUNK_ELEMENTS // (batch.tokens * d))
        at_once = min(batch.distinct_asvs, chunk) * batch.tokens
        of_layers = layers * _CHECKPOINTED * d + 4 * d
        kept = (encoded + places * sample_passes) * of_layers
        kept += max(at_once * block, places * of_place)
    else:
        kept = encoded * (layers * block + 4 * d) + places * sample_passes * (layers * of_place + 4 * d)
    if model.distance_head != "euclidean":
        kept += 2 * places * model.clades
    return float(_FLOAT * kept)


def matrix_rate(size: int = 1024, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a plain float32 matrix product here, the quickest of a few.

    Not their median: other programs may be at work, and the quickest shows what the machine can do.
    """
    draws = np.random.default_rng(0)
    a, b = (draws.random((size, size), dtype=np.float32) for _ in range(2))
    a @ b  # starts the library's threads
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 50):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)
