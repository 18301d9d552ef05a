"""Each optimizer against its update written out in NumPy; groups of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from aam.config import ModelConfig, OptimConfig
from aam.models.base_targets import BrayCurtis, FaithPD, UniFrac
from aam.models.sequence_predictor import SequencePredictor
from aam.training.checkpoint import build_encoder
from aam.training.optimizers import OPTIMIZERS, build_optimizer, parameter_groups, peak_learning_rates
from aam.training.schedules import build_schedule

LR, DECAY, STEPS = 0.02, 0.1, 12
B1, B2 = 0.9, 0.98


class Network(nn.Module):
    """A block, as the transformers have them, between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self) -> torch.Tensor:
        x = self.norm(self.embedding(torch.tensor([0, 3, 3, 1])))
        return (self.head(self.blocks[0](x).tanh()) - torch.tensor([1.0, -1.0, 0.5])).square().sum()


def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


# A reference takes a weight, its gradient, what it keeps of this weight, the number of the step and the decay.
Array = np.ndarray[Any, np.dtype[np.float64]]
Update = Callable[[Array, Array, dict[str, Any], int, float], Array]


def moments(g: Array, kept: dict[str, Any]) -> tuple[Array, Array]:
    kept["m"] = B1 * kept.get("m", 0) + (1 - B1) * g
    kept["v"] = B2 * kept.get("v", 0) + (1 - B2) * g**2
    return kept["m"], kept["v"]


def adamw(w: Array, g: Array, kept: dict[str, Any], t: int, decay: float) -> Array:
    m, v = moments(g, kept)
    return w - LR * decay * w - LR * m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + 1e-8)


def adam(w: Array, g: Array, kept: dict[str, Any], t: int, decay: float) -> Array:
    return adamw(w, g + decay * w, kept, t, 0.0)


def sgd(w: Array, g: Array, kept: dict[str, Any], t: int, decay: float) -> Array:
    kept["m"] = 0.9 * kept.get("m", 0) + g + decay * w
    return w - LR * kept["m"]


def radam(w: Array, g: Array, kept: dict[str, Any], t: int, decay: float) -> Array:
    """Algorithm 2 of Liu et al. 2020, with decoupled decay; torch adds epsilon before the correction of v."""
    m, v = moments(g, kept)
    w = w - LR * decay * w
    longest = 2 / (1 - B2) - 1
    length = longest - 2 * t * B2**t / (1 - B2**t)
    corrected = m / (1 - B1**t)
    if length <= 5:
        return w - LR * corrected
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return w - LR * r * corrected * np.sqrt(1 - B2**t) / (np.sqrt(v) + 1e-8)


def lamb(w: Array, g: Array, kept: dict[str, Any], t: int, decay: float) -> Array:
    """Algorithm 2 of You et al. 2020, moments as they are and weight norms up to 10 (version 3 of the paper)."""
    m, v = moments(g, kept)
    update = m / (np.sqrt(v) + 1e-6) + decay * w
    norm, of_update = min(10.0, float(np.linalg.norm(w))), float(np.linalg.norm(update))
    return w - LR * (norm / (of_update + 1e-6) if norm and of_update else 1.0) * update


REFERENCES: dict[str, Update] = {"adamw": adamw, "adam": adam, "sgd": sgd, "radam": radam, "lamb": lamb}


def by_hand(update: Update, model: Network, steps: int, lookahead: bool) -> list[Array]:
    """The weights after some steps."""
    parameters = list(model.parameters())
    kept: list[dict[str, Any]] = [{} for _ in parameters]
    slow = [p.detach().numpy().copy() for p in parameters]
    for t in range(1, steps + 1):
        gradients = torch.autograd.grad(model(), parameters)
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            new = update(p.detach().numpy(), g.numpy(), kept[i], t, DECAY if p.ndim >= 2 else 0.0)
            if lookahead and t % 5 == 0:  # Algorithm 1 of Zhang et al. 2019
                new = slow[i] = slow[i] + 0.5 * (new - slow[i])
            p.data.copy_(torch.from_numpy(new.copy()))
    return [p.detach().numpy() for p in parameters]


def train(model: Network, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_updates_are_the_papers(name, lookahead):
    model, other = network(), network()
    optim = OptimConfig(optimizer=name, lr=LR, weight_decay=DECAY, lookahead=lookahead)
    train(model, build_optimizer(model, optim), STEPS)
    for found, expected in zip(model.parameters(), by_hand(REFERENCES[name], other, STEPS, lookahead), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def orthogonal(matrix: Array) -> Array:
    """Five steps of Newton and Schulz's iteration, as Jordan et al. 2024 have it, in double precision."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def test_muon_orthogonalises_the_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    model = network()
    plain = copy.deepcopy(model)
    optimizer = build_optimizer(model, OptimConfig(optimizer="muon", lr=LR, weight_decay=DECAY))
    assert [group["name"] for group in optimizer.param_groups] == [
        "all matrices",
        "all vectors",
        "all matrices of blocks",
    ]
    train(model, optimizer, 1)
    gradient = torch.autograd.grad(plain(), list(plain.parameters()))
    for (name, found), before, g in zip(model.named_parameters(), plain.parameters(), gradient, strict=True):
        w = before.detach().numpy()
        if name != "blocks.0.weight":
            expected = adamw(w, g.numpy(), {}, 1, DECAY if w.ndim >= 2 else 0.0)
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)
            continue
        update = orthogonal(g.numpy())  # torch's is in bfloat16
        expected = w * (1 - LR * DECAY) - LR * 0.2 * np.sqrt(max(w.shape)) * update
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=0.05 * LR)


def test_the_configuration_names_what_is_registered():
    assert get_args(OptimConfig.model_fields["optimizer"].annotation) == tuple(OPTIMIZERS)
    assert all(name == record.name and record.description for name, record in OPTIMIZERS.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_on_matrices_alone(name):
    groups = build_optimizer(network(), OptimConfig(optimizer=name, weight_decay=0.5)).param_groups
    assert {(p.ndim >= 2, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, 0.5),
        (False, 0.0),
    }


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_loaded_it_goes_on_the_same(name, lookahead, tmp_path: Path):
    """After 3 steps and after 7: Lookahead is then on its way to a fifth."""
    optim = OptimConfig(optimizer=name, lr=LR, lookahead=lookahead)
    whole = network()
    optimizer = build_optimizer(whole, optim)
    schedule = build_schedule(optimizer, optim, 12)
    for step in range(12):
        if step in (3, 7):
            saved = copy.deepcopy({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
            torch.save(saved, tmp_path / f"{step}.ckpt")
        train(whole, optimizer, 1)
        schedule.step()
    for first in (3, 7):
        saved = torch.load(tmp_path / f"{first}.ckpt", weights_only=True)
        model = network()
        optimizer = build_optimizer(model, optim)
        schedule = build_schedule(optimizer, optim, 12)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict({"done": first, "begun": 0})
        for _ in range(first, 12):
            train(model, optimizer, 1)
            schedule.step()
        for found, expected in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(found, expected)


def test_frozen_parameters_are_left_out():
    model = network()
    model.embedding.requires_grad_(False)
    trained = [p for group in build_optimizer(model, OptimConfig()).param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p is not model.embedding.weight}


# ------------------------------------------------------------------------------------------------------------- groups

LAYERS = 2


@pytest.fixture(scope="module")
def predictor() -> SequencePredictor:
    config = ModelConfig(embedding_dim=8, attention_heads=2, attention_layers=LAYERS, max_bp=10, clades=4)
    return SequencePredictor(build_encoder(config, (UniFrac(), BrayCurtis(), FaithPD())), 1)


def rate_of(predictor: SequencePredictor, optim: OptimConfig) -> dict[str, float]:
    """The learning rate of every parameter, by name."""
    names = {id(p): name for name, p in predictor.named_parameters()}
    groups = parameter_groups(predictor, optim)
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_the_rate_falls_layer_by_layer_from_the_heads_to_the_nucleotides(predictor):
    optim = OptimConfig(lr=0.1, head_lr=0.7, layer_decay=0.8)
    rates = rate_of(predictor, optim)
    assert rates.keys() == {name for name, _ in predictor.named_parameters()}
    depths = {}
    for name, rate in rates.items():
        depths[name] = None if rate == 0.7 else round(np.log(rate / 0.1) / np.log(0.8))
    at = {
        "target_head.layers.0.weight": None,
        "count_head.bias": None,
        "encoder.clade_head.membership.weight": 0,
        "encoder.euclidean_head.projection.weight": 0,
        "encoder.nucleotide_head.bias": 0,
        "encoder.presence_projection.weight": 0,
        "encoder.norm.weight": 1,
        "encoder.pooling.out.weight": 1,
        "encoder.transformer.norm.bias": 1,
        "encoder.transformer.blocks.1.attention.qkv.weight": 1,
        "encoder.transformer.blocks.0.attention.qkv.bias": 2,
        "encoder.sample_encoder.transformer.norm.weight": 3,
        "encoder.sample_encoder.transformer.blocks.1.expand.weight": 3,
        "encoder.sample_encoder.transformer.blocks.0.expand.weight": 4,
        "encoder.sample_encoder.abundance.masked": 4,
        "encoder.asv_encoder.pooling.score.weight": 5,
        "encoder.asv_encoder.transformer.norm.weight": 5,
        "encoder.asv_encoder.transformer.blocks.1.norm_attention.weight": 5,
        "encoder.asv_encoder.transformer.blocks.0.norm_attention.weight": 6,
        "encoder.asv_encoder.position_shift.weight": 7,
        "encoder.asv_encoder.token_embedding.weight": 7,
    }
    assert {name: depths[name] for name in at} == at
    assert set(depths.values()) == {None, *range(8)}


def test_groups_have_names_and_the_first_has_the_rate_of_the_run(predictor):
    for name in OPTIMIZERS:
        optimizer = build_optimizer(predictor, OptimConfig(optimizer=name, lr=0.1, head_lr=0.7, layer_decay=0.5))
        rates = list(peak_learning_rates(optimizer))
        assert rates[0] == ("base heads matrices", 0.1)
        assert dict(rates)["layer 6 matrices"] == 0.05 and dict(rates)["head vectors"] == 0.7
        assert len(dict(rates)) == len(rates)
    assert [g["name"] for g in parameter_groups(predictor, OptimConfig(lr=0.1, head_lr=0.7))] == [
        "base matrices",
        "base vectors",
        "head matrices",
        "head vectors",
    ]
    assert [g["name"] for g in parameter_groups(predictor, OptimConfig())] == ["all matrices", "all vectors"]


def test_names_are_told_through_what_torch_wraps_around_a_model(predictor):
    optim = OptimConfig(lr=0.1, layer_decay=0.5)
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": predictor})})
    plain, found = parameter_groups(predictor, optim), parameter_groups(wrapped, optim)
    assert [(g["name"], g["lr"], len(g["params"])) for g in found] == [
        (g["name"], g["lr"], len(g["params"])) for g in plain
    ]
