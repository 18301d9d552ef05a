"""A sequence of vectors to one vector, by learned attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aam.models.precision import at_least_float32, without_autocast

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
            In float32 at least.
        """
        n, t, d = x.shape
        x = at_least_float32(x)
        with without_autocast(x):
            scores = self.score(x)  # (N, T, H)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
            weights = scores.softmax(dim=1)
            pooled = torch.einsum("nth,nthc->nhc", weights, x.view(n, t, self.heads, d // self.heads))
            return self.out(pooled.reshape(n, d))
