"""Speed and memory of training steps in one process, or in several that torchrun started."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from aam.benchmarks.train import pretraining
from aam.config import RunConfig
from aam.data.batch import Batch
from aam.inputs import load_inputs
from aam.loaders import choose_device, loader
from aam.training.distributed import clip_gradients, distribute, is_sharded, start
from aam.training.optimizers import build_optimizer
from aam.training.trainer import precision

__all__ = ["DevicesBenchmark", "benchmark_devices"]


@dataclass(frozen=True)
class DevicesBenchmark:
    """Medians over the measured steps. Of memory, what the process has that has most."""

    strategy: str
    processes: int
    device: str
    steps: int
    samples: int  # of a step, of all processes together
    step_seconds: float  # with waiting for data
    samples_per_second: float  # of all processes together
    state_mb: float  # of weights and the optimizer's state
    memory_mb: float  # at its highest: allocated on a GPU, or resident on a CPU with the inputs and all else

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return asdict(self)


def benchmark_devices(config: RunConfig, steps: int) -> DevicesBenchmark | None:
    """Measure pre-training steps on a study as ``--strategy`` says; what came of it, in the first process.

    Parameters
    ----------
    config : RunConfig
    steps : int
        After a first one that is not measured.
    """
    device = choose_device(config.train)
    processes = start(config.train, device)
    dataset, plan, run = pretraining(config, load_inputs(config), device)
    plan.share = processes.share
    model = run.task.model
    learner = distribute(run.task, processes, reshard_after_forward=config.train.reshard_after_forward)
    optimizer = build_optimizer(model, config.optim)

    def step(batch: Batch) -> None:
        with precision(config.train.mixed_precision, device):
            loss = learner(batch.to(device)).total
        loss.backward()
        clip_gradients(list(model.parameters()), config.optim.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: list[float] = []
    samples: list[int] = []
    batches = loader(dataset, plan, config.train, device)
    while len(seconds) <= steps:
        plan.epoch += 1
        began = time.perf_counter()
        for batch in batches:
            step(batch)
            seconds.append(time.perf_counter() - began)
            samples.append(len(batch.everyone))
            began = time.perf_counter()
            if len(seconds) > steps:
                break
    state = processes.largest(_state_bytes(model, optimizer))
    memory = processes.largest(_most_memory(device))
    if not processes.first:
        return None
    return DevicesBenchmark(
        strategy=processes.strategy,
        processes=processes.number,
        device=device.type,
        steps=steps,
        samples=int(np.median(samples[1:])),
        step_seconds=float(np.median(seconds[1:])),
        samples_per_second=float(np.median(np.divide(samples[1:], seconds[1:]))),
        state_mb=state / 1e6,
        memory_mb=memory / 1e6,
    )


def _state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """What this process holds of the weights and of what the optimizer keeps of each."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    own = [tensor.to_local() if is_sharded(tensor) else tensor for tensor in [*model.parameters(), *kept]]  # type: ignore[attr-defined]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def _most_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
