"""Self-attention, and which of PyTorch's kernels computes it.

Shapes: ``N`` sequences, ``T`` elements of a sequence, ``D`` width, ``H`` heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["KERNELS", "SelfAttention", "choose_kernel", "kernels_that_run"]

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Its weights know no dropout, unlike what it adds to: on a processor no kernel but the plain one drops weights, and
    that one takes half of the time of a step in which ASVs are encoded already.

    Parameters
    ----------
    dim : int
        Width ``D``.
    heads : int
        Heads ``H``; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.kernels: dict[bool, SDPBackend] = {}  # with a mask or without; PyTorch's own choice where none is named

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # each (N, H, T, D/H)
        with self._kernel(mask is not None):
            attended = _attend(q, k, v, mask)
        return self.out(attended.transpose(1, 2).reshape(n, t, d))

    def _kernel(self, masked: bool) -> AbstractContextManager[Any]:
        # Around every call, for checkpointing repeats it in the backward pass.
        return sdpa_kernel(self.kernels[masked]) if masked in self.kernels else nullcontext()


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    key_mask = None if mask is None else mask[:, None, None, :]  # (N, 1, 1, T)
    if key_mask is not None and torch.compiler.is_exporting():
        # Of a mask of bool an exporter makes twice the work: what if a sequence had no element at all.
        key_mask = torch.zeros_like(key_mask, dtype=q.dtype).masked_fill(~key_mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)


def kernels_that_run(masked: bool, device: torch.device, dtype: torch.dtype, head_width: int) -> set[str]:
    """Those of `KERNELS` that compute a small attention and its gradient here, found by trying."""
    found = set()
    for name, backend in KERNELS.items():
        q, k, v = torch.zeros(3, 2, 1, 16, head_width, device=device, dtype=dtype, requires_grad=True)
        mask = torch.ones(2, 16, device=device, dtype=torch.bool) if masked else None
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel(backend):  # why a kernel does not run
                _attend(q, k, v, mask).sum().backward()
        except RuntimeError:
            continue
        found.add(name)
    return found


def choose_kernel(model: nn.Module, kernels: Mapping[bool, str]) -> None:
    """Let all self-attention with a mask, or without, be computed so; what is not named by PyTorch's own choice."""
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.kernels = {masked: KERNELS[name] for masked, name in kernels.items()}
