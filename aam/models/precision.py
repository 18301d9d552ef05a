"""Where arithmetic in half precision would not do: pooling, everything after it, distances and heads.

What tells ASVs apart is a tenth of what they have in common, so rounding a pooled ASV to half precision costs ten times
as much of its normalised embedding. Transformer blocks take nearly all of the time, and the rest nearly none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["at_least_float32", "in_float32", "without_autocast"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision, as autocast gives it, widened; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Arithmetic in the precision of its operands, on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, whatever autocast says."""
    with without_autocast(x):
        applied: Tensor = layer(at_least_float32(x))
    return applied
