from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from aam.config import OptimConfig
from aam.training.optim import build_optimizer, build_schedule, warmup_cosine


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.tensor([0, 3, 3])).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_warmup_cosine():
    shares = [warmup_cosine(step, warmup=4, steps=24) for step in range(25)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[14] == pytest.approx((1 + 0.01) / 2)
    assert shares[24] == pytest.approx(0.01)
    assert (np.diff(shares[4:]) < 0).all()
    assert warmup_cosine(1000, 4, 24) == pytest.approx(0.01)
    assert warmup_cosine(0, 0, 1) == 1


@pytest.mark.parametrize(
    ("warmup_steps", "steps", "expected"), [(None, 100, 10), (None, 50_000, 500), (3, 100, 3), (0, 9, 0), (None, 1, 1)]
)
def test_schedule(warmup_steps, steps, expected):
    optimizer = torch.optim.SGD(network().parameters())
    schedule = build_schedule(optimizer, OptimConfig(warmup_steps=warmup_steps), steps)
    assert [schedule.lr_lambdas[0](i) for i in range(5)] == [warmup_cosine(i, expected, steps) for i in range(5)]


def test_weight_decay_on_matrices_alone():
    model = network()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(parameter, old * (1 - 0.1 * 0.5) if old.ndim == 2 else old)


def test_equals_plain_adamw():
    model = network()
    plain = copy.deepcopy(model)
    optimizer = build_optimizer(model, OptimConfig(lr=0.02, weight_decay=0.1))
    groups = [
        {"params": [plain[0].weight, plain[2].weight], "weight_decay": 0.1},
        {"params": [plain[1].weight, plain[1].bias, plain[2].bias], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.98), fused=False, foreach=False)
    for _ in range(3):
        step(model, optimizer)
        step(plain, expected)
    for found, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, other)


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    trained = [p for group in build_optimizer(model, OptimConfig()).param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for layer in (model[1], model[2]) for p in layer.parameters()}
