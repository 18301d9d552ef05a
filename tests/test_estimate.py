"""The estimate of `aam check`: its counts against the network's own and torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aam.config import ModelConfig
from aam.data.dataset import BatchKey
from aam.estimate import REFERENCE_ASVS, BatchShape, activation_bytes, estimate, forward_flops, matrix_rate, parameters
from aam.models import asv_encoder
from aam.models.sequence_encoder import SequenceEncoder
from tests.conftest import MAX_BP, TinyStudy


def network(model: ModelConfig) -> SequenceEncoder:
    return SequenceEncoder(
        dim=model.embedding_dim,
        heads=model.attention_heads,
        layers=model.attention_layers,
        max_bp=model.max_bp,
        feed_forward_factor=model.feed_forward_factor,
        dropout=model.dropout,
        count_embedding=model.count_embedding,
        abundance_pooling=model.abundance_pooling,
        distance_head=model.distance_head,
        clades=model.clades,
    )


def test_reference_asvs_are_as_many_as_in_the_model() -> None:
    assert REFERENCE_ASVS == asv_encoder.REFERENCE_ASVS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_dim": 64, "attention_layers": 3, "feed_forward_factor": 2, "max_bp": 100},
        {"count_embedding": "concat", "distance_head": "clade", "clades": 32},
        {"count_embedding": "film", "distance_head": "euclidean"},
        {"count_embedding": "none", "attention_heads": 8, "abundance_pooling": False},
    ],
)
def test_weights_are_those_of_the_network(options: dict[str, Any]) -> None:
    model = ModelConfig(**options)
    weights = sum(weight.numel() for weight in network(model).parameters())
    assert parameters(model) == pytest.approx(weights, rel=1e-3)


def test_operations_are_those_that_torch_counts(equal_study: TinyStudy) -> None:
    model = ModelConfig(embedding_dim=64, attention_layers=2, clades=4, max_bp=MAX_BP, feed_forward_factor=3)
    encoder = network(model)
    batch = equal_study.dataset()[BatchKey(0, (0, 1, 2, 3))]
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        encoder(batch)
    shape = BatchShape(4, batch.asv_index.shape[1], *batch.tokens.shape)
    # The reference ASVs of a fresh network are as long as sequences can be; here these are shorter.
    fresh = forward_flops(model, BatchShape(0, 0, 0, MAX_BP + 1), restored_share=0)
    trimmed = forward_flops(model, BatchShape(0, 0, 0, shape.tokens), restored_share=0)
    counted = forward_flops(model, shape, restored_share=0) - trimmed + fresh
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("distance_head", ["clade", "euclidean"])
def test_activations_are_those_that_torch_keeps(equal_study: TinyStudy, distance_head: str) -> None:
    model = ModelConfig(embedding_dim=64, clades=64, max_bp=12, dropout=0, distance_head=distance_head)  # type: ignore[arg-type]
    encoder = network(model).train()
    batch = equal_study.dataset()[BatchKey(0, (0, 1, 2, 3))]
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoded = encoder(batch)
    own = {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}
    activations = sum(size for place, size in kept.items() if place not in own)
    assert encoded.embedding.requires_grad
    shape = BatchShape(4, batch.asv_index.shape[1], *batch.tokens.shape)
    assert activation_bytes(model, shape, restored_share=0) == pytest.approx(activations, rel=0.2)


def test_an_estimate_is_of_all_epochs_and_folds() -> None:
    shape = BatchShape(32, 100, 300, 101)

    def of(epochs: int = 10, runs: int = 1, whole_epochs: int | None = None, **options: Any) -> Any:
        return estimate(
            ModelConfig(embedding_dim=128, attention_heads=4, **options),
            [shape, shape],
            train_samples=320,
            val_samples=0,
            batch_size=32,
            epochs=epochs,
            restored_share=0.1,
            with_target=False,
            data_bytes=1e6,
            runs=runs,
            whole_epochs=whole_epochs,
            rate=1e11,
        )

    once = of()
    assert once.batch == shape
    assert once.steps_per_epoch == 10
    assert once.seconds == pytest.approx(10 * 10 * once.step_seconds)
    assert of(epochs=20, runs=5).seconds == pytest.approx(10 * once.seconds)
    assert of(whole_epochs=99).seconds == pytest.approx(once.seconds)
    # What is left of an epoch once ASVs are encoded: the two passes over 32 x 100 places of ASVs.
    places, d = 32 * 100, 128
    passes, layers, with_backward = 2, 2, 3
    of_samples = with_backward * passes * layers * places * (24 * d * d + 4 * 100 * d)
    cheap = of(whole_epochs=5).seconds - once.seconds / 2
    assert cheap / (once.seconds / 2) == pytest.approx(of_samples / once.flops_per_step, rel=1e-6)
    assert of(gradient_checkpointing=True).memory_bytes < once.memory_bytes
    assert once.memory_bytes == sum(once.memory.values()) > once.memory["activations"] > 0
    # `aam benchmark train` on a study of this size: 3.0 s and 1.34 GB beyond the program.
    assert 1.5 < once.step_seconds < 6
    assert 0.67e9 < once.memory_bytes - once.memory["program"] < 2.7e9


def test_the_rate_is_that_of_a_product() -> None:
    rate = matrix_rate(256, seconds=0.02)
    assert np.isfinite(rate)
    assert rate > 1e8
