"""The model equals a plain padded implementation: outputs, and gradients of every parameter."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aam.config import TaskConfig
from aam.data.batch import Batch, padded_layout
from aam.data.dataset import BatchKey, DatasetOptions
from aam.data.targets import NumericTarget
from aam.models.base_targets import UniFrac
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from aam.training.tasks import LabelledTarget, PretrainTask, TrainTask
from tests.conftest import MAX_BP, TinyStudy
from tests.models.reference import TOKENS, Reference

DIM, HEADS, LAYERS = 8, 2, 2
LETTERS = {number: letter for letter, number in TOKENS.items()} | {TOKENS["."]: "", TOKENS["^"]: ""}
WEIGHTS = {"unifrac_weight": 0.7, "nuc_weight": 0.3, "count_weight": 0.5, "target_weight": 1.3}
SAMPLES = (3, 0, 4, 1)


def build(model: dict[str, Any], study: TinyStudy) -> SequencePredictor:
    """A predictor with weights that no initialisation would give, so that every part of it matters."""
    torch.manual_seed(1)
    options = {"count_embedding": "add", "distance_head": "both", "clades": 5} | model
    encoder = SequenceEncoder(dim=DIM, heads=HEADS, layers=LAYERS, max_bp=MAX_BP, **options)
    encoder.asv_encoder.set_reference(torch.from_numpy(study.tokens[::2, 1:]))
    predictor = SequencePredictor(encoder, outputs=1).double()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += 0.25 * torch.randn(parameter.shape, dtype=torch.float64)
    return predictor


def reference_of(module: torch.nn.Module, base: str, count_embedding: str = "add") -> Reference:
    weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for name, _ in module.named_parameters():
        weights[name].requires_grad_(True)
    return Reference(weights, HEADS, LAYERS, MAX_BP, count_embedding, base=base)


def draw(study: TinyStudy) -> Batch:
    options = DatasetOptions(seed=2, nuc_asv_fraction=0.6, nuc_mask_ratio=0.25, count_mask_ratio=0.4)
    dataset = study.dataset(options, labels=study.base_labels, target=study.values.astype(np.float32))
    return dataset[BatchKey(1, SAMPLES)]


def letters(tokens: Tensor) -> list[str]:
    return ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]


def agree(real: Tensor, expected: Tensor, scale: float | None = None) -> None:
    scale = expected.abs().max().item() if scale is None else scale
    torch.testing.assert_close(real.double(), expected, rtol=0, atol=1e-5 * scale)


def places_of(batch: Batch, samples: list[dict[str, float]]) -> list[tuple[int, int, int]]:
    """(sample, place in the batch, place in the reference) of every occurrence."""
    sequences = letters(batch.tokens)
    found = []
    for b, sample in enumerate(samples):
        place = {sequence: i for i, sequence in enumerate(sample)}
        for s in torch.nonzero(batch.counts[b])[:, 0].tolist():
            found.append((b, s, place[sequences[batch.asv_index[b, s]]]))
    assert len(found) == sum(map(len, samples))
    return found


def check_outputs(predictor: SequencePredictor, batch: Batch, study: TinyStudy, count_embedding: str) -> None:
    samples = [study.samples[i] for i in SAMPLES]
    reference = reference_of(predictor, "encoder.", count_embedding)
    predictions = predictor(batch)
    encoded = predictions.encoded
    expected = reference.forward(samples)
    places = places_of(batch, samples)
    for b, s, place in places:
        agree(encoded.asv_embeddings[batch.asv_index[b, s]], expected.asvs[b, place])
    agree(encoded.embedding, expected.embedding)
    agree(predictions.target, expected.target)
    if expected.presence is None:
        assert encoded.presence is None
    else:
        agree(encoded.presence, expected.presence, scale=1.0)
    distances = predictor.encoder.read(UniFrac(), encoded.summary)
    assert list(distances) == list(expected.distances)
    for head, matrix in distances.items():
        agree(matrix, expected.distances[head], scale=1.0)

    masked = batch.masked_nucleotides
    logits = predictor.encoder.restore_nucleotides(masked.tokens, batch.padded, masked.places)
    agree(logits, reference.nucleotide_logits(letters(masked.tokens)))

    hidden = reference_hidden(batch, samples, reference)
    restored = predictor.restore_counts(encoded.asv_embeddings, batch, batch.hidden_counts)
    in_reference = reference.restored_counts(samples, hidden)
    agree(
        torch.stack([restored[b, s] for b, s, _ in places]),
        torch.stack([in_reference[b, place] for b, _, place in places]),
    )


def reference_hidden(batch: Batch, samples: list[dict[str, float]], reference: Reference) -> Tensor:
    hidden = torch.zeros(len(samples), reference.token_limit, dtype=torch.bool)
    for b, s, place in places_of(batch, samples):
        hidden[b, place] = batch.hidden_counts[b, s]
    assert hidden.sum() == batch.hidden_counts.sum() > 0
    return hidden


def train_task(predictor: SequencePredictor, study: TinyStudy) -> TrainTask:
    config = TaskConfig(loss="mse", target_transform="none", **WEIGHTS)
    target = NumericTarget.fit("age", "none", study.values)
    return TrainTask(predictor, config, target, study.values, [None], labelled(study), seed=0)


def labelled(study: TinyStudy) -> dict[str, LabelledTarget]:
    return {"unifrac": LabelledTarget(UniFrac(), study.base_labels["unifrac"], scale=0.05, mean=np.float64(0.5))}


def reference_loss(reference: Reference, batch: Batch, study: TinyStudy, train: bool) -> Tensor:
    samples = [study.samples[i] for i in SAMPLES]
    output = reference.forward(samples)
    distances = torch.from_numpy(study.distances[np.ix_(SAMPLES, SAMPLES)]).double()
    masked = batch.masked_nucleotides
    total = WEIGHTS["unifrac_weight"] * reference.distance_loss(output, distances, 0.05)
    total = total + WEIGHTS["nuc_weight"] * reference.nucleotide_loss(
        letters(masked.tokens), letters(masked.true_tokens)
    )
    if train:
        values = torch.from_numpy(study.values[list(SAMPLES)])
        total = total + WEIGHTS["target_weight"] * reference.target_loss(output, values)
        if reference.count_embedding != "none":
            hidden = reference_hidden(batch, samples, reference)
            total = total + WEIGHTS["count_weight"] * reference.count_loss(samples, hidden)
    return total


def check_gradients(model: torch.nn.Module, loss: Tensor, reference: Reference, expected: Tensor) -> None:
    agree(loss, expected)
    loss.backward()
    expected.backward()
    gradients = {name: reference.weights[name].grad for name, _ in model.named_parameters()}
    overall = max(gradient.abs().max().item() for gradient in gradients.values() if gradient is not None)
    for name, parameter in model.named_parameters():
        gradient = gradients[name]
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        # A score's bias has no gradient but rounding, hence the floor.
        scale = max(gradient.abs().max().item(), 0.05 * overall)
        assert parameter.grad is not None, name
        agree(parameter.grad, gradient, scale)


@pytest.mark.parametrize("lengths", ["equal", "unequal"])
@pytest.mark.parametrize("count_embedding", ["add", "concat", "film", "none"])
@pytest.mark.parametrize("distance_head", ["both", "clade", "euclidean"])
def test_architectures(lengths, count_embedding, distance_head, request):
    study = request.getfixturevalue(f"{lengths}_study")
    batch = draw(study)
    assert batch.padded == (lengths == "unequal")
    check_both(study, batch, {"count_embedding": count_embedding, "distance_head": distance_head})


def test_without_means_weighted_by_abundance(unequal_study):
    check_both(unequal_study, draw(unequal_study), {"abundance_pooling": False})


@pytest.mark.parametrize("lengths", ["equal", "unequal"])
@pytest.mark.parametrize("layout", ["distinct", "padded"])
@pytest.mark.parametrize(
    ("asv_chunk_size", "gradient_checkpointing"), list(itertools.product([1, 3, None], [False, True]))
)
def test_ways_to_compute(lengths, layout, asv_chunk_size, gradient_checkpointing, request):
    study = request.getfixturevalue(f"{lengths}_study")
    batch = draw(study)
    if layout == "padded":
        batch = padded_layout(batch)
    check_both(study, batch, {"asv_chunk_size": asv_chunk_size, "gradient_checkpointing": gradient_checkpointing})


def check_both(study: TinyStudy, batch: Batch, model: dict[str, Any]) -> None:
    predictor = build(model, study)
    count_embedding = model.get("count_embedding", "add")
    check_outputs(predictor, batch, study, count_embedding)
    if count_embedding == "none":
        batch = replace(batch, hidden_counts=None)
    reference = reference_of(predictor, "encoder.", count_embedding)
    loss = train_task(predictor, study).loss(batch).total
    check_gradients(predictor, loss, reference, reference_loss(reference, batch, study, train=True))


def test_pretraining(unequal_study):
    encoder = build({"distance_head": "both"}, unequal_study).encoder
    batch = draw(unequal_study)
    reference = reference_of(encoder, "")
    task = PretrainTask(encoder, TaskConfig(**WEIGHTS), labelled(unequal_study), seed=0)
    expected = reference_loss(reference, batch, unequal_study, train=False)
    check_gradients(encoder, task.loss(batch).total, reference, expected)


def test_abundance_is_relative_to_the_whole_sample(unequal_study):
    dataset = unequal_study.dataset(DatasetOptions(token_limit=2))
    batch = dataset[BatchKey(0, SAMPLES)]
    assert batch.counts.shape[1] == 2
    predictor = build({}, unequal_study)
    read, depth = [], []
    for i in SAMPLES:
        ranked = sorted(unequal_study.samples[i].items(), key=lambda item: (-item[1], item[0]))
        read.append(dict(ranked[:2]))
        depth.append(sum(unequal_study.samples[i].values()))
    assert any(sum(sample.values()) < whole for sample, whole in zip(read, depth, strict=True))
    expected = reference_of(predictor, "encoder.").forward(read, depth)
    agree(predictor(batch).encoded.embedding, expected.embedding)
