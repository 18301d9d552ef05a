"""Averages of the weights along a run, which are often better than the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from aam.config import OptimConfig
from aam.training.distributed import shard_like

__all__ = ["EMA", "SWA", "WeightAverage", "build_average"]


class WeightAverage:
    """No average: what the loop calls where none is asked for."""

    def update(self) -> None:
        """An optimizer step is done."""

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block, the model has the averaged weights."""
        yield

    def settle(self, weights: Iterable[Tensor]) -> None:
        """Let some of the model's weights be their average from here on, as they are trained no longer."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


class _Average(WeightAverage):
    """An average kept beside the model, in tensors like its own (sharded ones too).

    Parameters
    ----------
    model : nn.Module
        Buffers, which no step changes, are not averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.averages = [weight.clone() for weight in self.weights]
        self.updates = 0

    @property
    def weights(self) -> list[Tensor]:
        """The model's own memory."""
        return [parameter.detach() for parameter in self.model.parameters()]

    def update(self) -> None:
        self._average(self.averages, self.weights)
        self.updates += 1

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        raise NotImplementedError

    @contextmanager
    def in_model(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def settle(self, weights: Iterable[Tensor]) -> None:
        settled = {weight.data_ptr() for weight in weights}
        for weight, average in zip(self.weights, self.averages, strict=True):
            if weight.data_ptr() in settled:
                weight.copy_(average)

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange average and weights, one tensor at a time: no third copy of the model is needed."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        names = [name for name, _ in self.model.named_parameters()]
        return {"updates": self.updates, "averages": dict(zip(names, self.averages, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.updates = saved["updates"]
        for (name, _), average in zip(self.model.named_parameters(), self.averages, strict=True):
            average.copy_(shard_like(saved["averages"][name], average))


class EMA(_Average):
    """Exponential moving average.

    Parameters
    ----------
    model : nn.Module
    decay : float
        Share of the old average that an update leaves, once there have been many.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @property
    def decay_now(self) -> float:
        """The decay of the next update.

        After 200 updates at 0.999, 0.82 of the average would still be the weights that training began with. So it
        rises to the decay asked for: 0.1 at first, then 0.96 after 200 updates, an average over about the last 20.
        """
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        get_ema_multi_avg_fn(self.decay_now)(averages, weights, None)


class SWA(_Average):
    """Mean of the weights after every optimizer step from one on; before it, the weights themselves.

    Parameters
    ----------
    model : nn.Module
    start : int
        Optimizer steps that come before.
    """

    def __init__(self, model: nn.Module, start: int) -> None:
        super().__init__(model)
        self.start = start

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        get_swa_multi_avg_fn()(averages, weights, max(0, self.updates - self.start))


def build_average(model: nn.Module, config: OptimConfig, steps: int) -> WeightAverage:
    """The average of ``--average``, of a run of so many optimizer steps."""
    if config.average == "ema":
        return EMA(model, 0.999 if config.ema_decay is None else config.ema_decay)
    if config.average == "swa":
        return SWA(model, int((0.75 if config.swa_start is None else config.swa_start) * steps))
    return WeightAverage()
