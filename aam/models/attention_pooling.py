"""A sequence of vectors to one vector, by learned attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aam.models.precision import at_least_float32

__all__ = ["AttentionPooling"]


class AttentionPooling(nn.Module):
    """Weighted means of the elements, one for each head, joined and projected.

    Parameters
    ----------
    dim, heads : int
        Width ``D`` and number of heads ``H``; each head weighs its own ``D/H`` channels.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.score = nn.Linear(dim, heads)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Parameters
        ----------
        x : Tensor (N, T, D)
        mask : Tensor (N, T) of bool, optional
            True where an element is real; at least one of each row.

        Returns
        -------
        Tensor (N, D)
        """
        n, t, d = x.shape
        scores = at_least_float32(self.score(x))  # (N, T, H)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
        weights = scores.softmax(dim=1).to(x.dtype)
        pooled = torch.einsum("nth,nthc->nhc", weights, x.view(n, t, self.heads, d // self.heads))
        return self.out(pooled.reshape(n, d))
