"""`aam benchmark memory`: what gradient checkpointing and chunks of ASVs save, and what they cost."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from aam.benchmarks.gpu import set_memory_saving, simulated_data, study_data
from aam.benchmarks.memory import PeakOwnMemory, fresh_process, own_memory
from aam.config import RunConfig
from aam.data.dataset import BatchPlan
from aam.loaders import choose_device
from aam.training.checkpoint import build_encoder
from aam.training.kernels import prepare_kernels
from aam.training.optimizers import build_optimizer
from aam.training.schedules import Schedule
from aam.training.tasks import PretrainTask
from aam.training.trainer import Trainer

__all__ = ["MemoryFigures", "benchmark_memory"]

_CHUNK = 64  # ASVs, unless --asv-chunk-size says otherwise
_TYPICAL_ASVS = 50  # of a simulated sample


@dataclass(frozen=True)
class MemoryFigures:
    """One way to train; the same model and batch for all."""

    saving: str
    samples: int
    distinct_asvs: int
    growth_mb: float  # the most that a step takes beyond weights, gradients and optimizer state
    growth_share: float  # of what it takes with neither
    step_seconds: float | None  # median of the steps after the first; None where there are none
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return asdict(self)


def benchmark_memory(
    config: RunConfig, steps: int = 3, *, simulated: bool = False, report: Callable[[MemoryFigures], None] | None = None
) -> list[MemoryFigures]:
    """Measure a pre-training step with neither, with checkpointing, with chunks, and with both.

    Parameters
    ----------
    config : RunConfig
    steps : int
        That are timed, after the one whose memory is measured.
    simulated : bool
        Random samples in place of the study of ``config``.
    report : callable, optional
        Given each as soon as it is measured.
    """
    size = config.model.asv_chunk_size or _CHUNK
    ways: dict[str, dict[str, Any]] = {
        "neither": {"gradient_checkpointing": False, "asv_chunk_size": None},
        "checkpointing": {"gradient_checkpointing": True, "asv_chunk_size": None},
        f"chunks of {size}": {"gradient_checkpointing": False, "asv_chunk_size": size},
        f"checkpointing, chunks of {size}": {"gradient_checkpointing": True, "asv_chunk_size": size},
    }
    figures: list[MemoryFigures] = []
    for name, way in ways.items():
        with fresh_process() as call:  # which holds no memory that a step before it has left
            found = call(_measure, config, steps, simulated, way)
        share = found["growth_mb"] / figures[0].growth_mb if figures else 1.0
        figures.append(MemoryFigures(saving=name, growth_share=share, **found))
        if report is not None:
            report(figures[-1])
    return figures


def _measure(config: RunConfig, steps: int, simulated: bool, way: dict[str, Any]) -> dict[str, Any]:
    device = choose_device(config.train)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    data = simulated_data(config, typical=_TYPICAL_ASVS) if simulated else study_data(config)
    plan = BatchPlan(data.rows, config.train.samples_per_batch, True, config.train.seed)
    batch = data.dataset[next(iter(plan))]
    encoder = build_encoder(config.model, tuple(known.target for known in data.labelled.values()))
    encoder.asv_encoder.set_reference(batch.tokens[:, 1:])
    set_memory_saving(encoder, way)
    task = PretrainTask(encoder, config.task, data.labelled, config.train.seed)
    task.to(device).train()
    prepare_kernels(task, config.train, device, batch.padded)
    optimizer = build_optimizer(encoder, config.optim)
    schedule = Schedule(optimizer, lambda steps: lambda step: 1.0, steps=1)
    trainer = Trainer(task, plan, [], [], optimizer, schedule, config.optim, config.train, device)  # type: ignore[arg-type]
    state = copy.deepcopy(encoder.state_dict())
    _allocate_state(trainer)
    encoder.load_state_dict(state)
    del state
    gc.collect()
    with _Growth(device) as growth:
        torch.manual_seed(config.train.seed)
        loss = float(trainer.train_step([batch]).parts["loss"])
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        float(trainer.train_step([batch]).parts["loss"])
        seconds.append(time.perf_counter() - began)
    return {
        "samples": len(batch),
        "distinct_asvs": len(batch.tokens),
        "growth_mb": growth.highest / 1e6,
        "step_seconds": float(np.median(seconds)) if seconds else None,
        "loss": loss,
    }


def _allocate_state(trainer: Trainer) -> None:
    """Let the optimizer have its moments, and the weights gradients that are let go of again."""
    for parameter in trainer.task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()


class _Growth:
    """The most memory that a block takes beyond what was there before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest = 0

    def __enter__(self) -> _Growth:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = own_memory()
            self.peak = PeakOwnMemory()
            self.peak.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.highest = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.peak.__exit__(*error)
            self.highest = self.peak.highest - self.before
