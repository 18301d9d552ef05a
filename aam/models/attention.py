"""Self-attention, and which of PyTorch's kernels computes it.

Shapes: ``N`` sequences, ``T`` elements of a sequence, ``D`` width, ``H`` heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["KERNELS", "Call", "SelfAttention", "choose_kernel", "kernels_that_run"]

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class Call(NamedTuple):
    """What decides whether a kernel can compute attention, beside device, precision and width."""

    masked: bool
    dropout: bool


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Parameters
    ----------
    dim : int
        Width ``D``.
    heads : int
        Heads ``H``; divides ``dim``.
    dropout : float
        Dropout on the attention weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.kernels: dict[Call, SDPBackend] = {}  # PyTorch's own choice where none is named

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # each (N, H, T, D/H)
        dropout = self.dropout if self.training else 0.0
        with self._kernel(Call(mask is not None, dropout > 0)):
            attended = _attend(q, k, v, mask, dropout)
        return self.out(attended.transpose(1, 2).reshape(n, t, d))

    def _kernel(self, call: Call) -> AbstractContextManager[Any]:
        # Around every call, for checkpointing repeats it in the backward pass.
        return sdpa_kernel(self.kernels[call]) if call in self.kernels else nullcontext()


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    key_mask = None if mask is None else mask[:, None, None, :]  # (N, 1, 1, T)
    if key_mask is not None and torch.compiler.is_exporting():
        # Of a mask of bool an exporter makes twice the work: what if a sequence had no element at all.
        key_mask = torch.zeros_like(key_mask, dtype=q.dtype).masked_fill(~key_mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)


def kernels_that_run(call: Call, device: torch.device, dtype: torch.dtype, head_width: int) -> set[str]:
    """Those of `KERNELS` that compute a small attention and its gradient here, found by trying."""
    found = set()
    for name, backend in KERNELS.items():
        q, k, v = torch.zeros(3, 2, 1, 16, head_width, device=device, dtype=dtype, requires_grad=True)
        mask = torch.ones(2, 16, device=device, dtype=torch.bool) if call.masked else None
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel(backend):  # why a kernel does not run
                _attend(q, k, v, mask, 0.1 if call.dropout else 0.0).sum().backward()
        except RuntimeError:
            continue
        found.add(name)
    return found


def choose_kernel(model: nn.Module, kernels: Mapping[Call, str]) -> None:
    """Let all self-attention of a model be computed so; a call that is not named by PyTorch's own choice."""
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.kernels = {call: KERNELS[name] for call, name in kernels.items()}
