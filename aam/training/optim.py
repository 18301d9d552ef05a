"""The optimizer and its schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from aam.config import OptimConfig

__all__ = ["build_optimizer", "build_schedule", "warmup_cosine"]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) on what is not frozen, with decay on matrices alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at an optimizer step: linear up, then half a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int) -> LambdaLR:
    """Warm-up and cosine over the run's own number of optimizer steps."""
    warmup = config.warmup_steps if config.warmup_steps is not None else min(500, math.ceil(steps / 10))
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
