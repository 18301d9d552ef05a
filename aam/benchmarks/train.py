"""Speed and memory of training steps, for the distinct layout and the padded one.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``D`` width.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from aam.assembly import labelled_targets
from aam.config import RunConfig
from aam.data.batch import Batch, padded_layout
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.study import Study
from aam.inputs import load_inputs
from aam.loaders import choose_device, loader
from aam.models.sequence_encoder import SequenceEncoder
from aam.training.checkpoint import build_encoder
from aam.training.optimizers import build_optimizer
from aam.training.tasks import PretrainTask
from aam.training.trainer import precision

__all__ = [
    "Layout",
    "LayoutFigures",
    "MeasuredStep",
    "TrainBenchmark",
    "TrainingSteps",
    "benchmark_train",
    "forward_flops",
    "layout_memory",
    "matrix_rate",
    "measure_layouts",
    "pretraining",
]

Layout = Literal["distinct", "padded"]


@dataclass(frozen=True)
class TrainBenchmark:
    """Medians over the measured steps of one layout."""

    layout: Layout
    steps: int
    samples: int  # of a step
    encoded_sequences: float  # of a step
    step_seconds: float
    encoder_seconds: float  # of a step: the ASV encoder alone, forward and backward
    samples_per_second: float
    asvs_per_second: float  # occurrences in samples
    distinct_asvs_per_second: float
    waiting_share: float | None  # of a step, for data; of the first layout alone
    memory_growth_mb: float  # highest over what the process held before the first step
    flops_per_second: float
    matrix_flops_per_second: float  # of a plain product of 2048 x 2048 matrices

    @property
    def rate_share(self) -> float:
        """Achieved over the plain product's rate."""
        return self.flops_per_second / self.matrix_flops_per_second

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return {**asdict(self), "rate_share": self.rate_share}


def benchmark_train(config: RunConfig, layouts: tuple[Layout, ...], steps: int) -> list[TrainBenchmark]:
    """Measure pre-training steps on a study.

    A step is one batch: forward, backward, clipping and AdamW, without accumulation or loss scaling. The layouts take
    turns batch by batch, so that a machine whose speed drifts does not favour one; memory is measured
    in a first step of each.

    Parameters
    ----------
    config : RunConfig
    layouts : tuple of {"distinct", "padded"}
    steps : int
        Measured steps of each layout, on the same batches.
    """
    measured = measure_layouts(config, load_inputs(config), layouts, steps)
    rate = float(np.median(measured.matrix_rates))
    waiting = {layouts[0]: measured.waiting_share}
    return [
        _summary(layout, measured.steps[layout], measured.memory_growth[layout], rate, waiting.get(layout))
        for layout in layouts
    ]


class LayoutFigures(NamedTuple):
    """What was measured of several layouts that took turns, step by step."""

    steps: dict[Layout, list[MeasuredStep]]
    memory_growth: dict[Layout, float]  # MB, of a first step that is not among them
    matrix_rates: list[float]  # before each step
    waiting_share: float  # of the first layout


def measure_layouts(
    config: RunConfig, study: Study, layouts: tuple[Layout, ...], steps: int, *, encoder_alone: bool = True
) -> LayoutFigures:
    """Every figure that `benchmark_train` takes the medians of; ``encoder_seconds`` are NaN unless asked for."""
    device = choose_device(config.train)
    dataset, plan, run = pretraining(config, study, device)
    train_loader = loader(dataset, plan, config.train, device)
    batches = _forever(train_loader, plan)

    first = next(batches)
    memory = {
        layout: _memory_growth(device, partial(run.step, _laid_out(first, layout), encoder_alone)) for layout in layouts
    }
    measured: dict[Layout, list[MeasuredStep]] = {layout: [] for layout in layouts}
    rates = []
    for _ in range(steps):
        batch = next(batches)
        rates.append(matrix_rate(device))
        for layout in layouts:
            measured[layout].append(run.step(_laid_out(batch, layout), encoder_alone))
    return LayoutFigures(measured, memory, rates, _waiting_share(run, batches, layouts[0], train_loader))


def layout_memory(config: RunConfig, layout: Layout) -> float:
    """What a first step takes, in MB, beyond what the process held before: for a process that has done nothing else."""
    device = choose_device(config.train)
    dataset, plan, run = pretraining(config, load_inputs(config), device)
    plan.epoch = 1
    batch = _laid_out(dataset[next(iter(plan))], layout)
    return _memory_growth(device, partial(run.train, batch.to(device)))


def pretraining(
    config: RunConfig, study: Study, device: torch.device
) -> tuple[SampleDataset, BatchPlan, TrainingSteps]:
    """Pre-training on all samples of a study: its data, its batches, and its steps."""
    torch.manual_seed(config.train.seed)
    rows = np.arange(len(study))
    labelled = labelled_targets(config, study, rows)
    labels = {name: known.labels for name, known in labelled.items()}
    encoder = build_encoder(config.model, tuple(known.target for known in labelled.values()))
    task = PretrainTask(encoder, config.task, labelled, config.train.seed)
    task.to(device).train()
    options = replace(
        DatasetOptions.of(config.data, config.train.seed),
        nuc_asv_fraction=config.task.nuc_asv_fraction if config.task.nuc_weight > 0 else 0.0,
        nuc_mask_ratio=config.task.nuc_mask_ratio,
        nuc_mask_strategy=config.task.nuc_mask_strategy,
    )
    plan = BatchPlan(rows, config.train.samples_per_batch, True, config.train.seed)
    steps = TrainingSteps(task, encoder, build_optimizer(encoder, config.optim), device, config)
    return SampleDataset.of_study(study, options, labels), plan, steps


def _waiting_share(
    run: TrainingSteps, batches: Iterator[Batch], layout: Layout, train_loader: DataLoader[Batch]
) -> float:
    """The share of steps, one right after the other as in training, that is spent waiting for the next batch.

    There are more steps than batches that workers hold ready beforehand.
    """
    ready = train_loader.num_workers * (train_loader.prefetch_factor or 0)
    waited, began = 0.0, time.perf_counter()
    for _ in range(ready + 3):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        run.train(_laid_out(batch, layout).to(run.device))
    return waited / (time.perf_counter() - began)


@dataclass(frozen=True)
class MeasuredStep:
    """One step of one layout."""

    seconds: float
    encoder_seconds: float
    samples: int
    occurrences: int
    distinct: int
    encoded: int
    flops: float


class TrainingSteps:
    """Training steps, timed."""

    def __init__(
        self,
        task: PretrainTask,
        encoder: SequenceEncoder,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        config: RunConfig,
    ) -> None:
        self.task, self.encoder, self.optimizer, self.device = task, encoder, optimizer, device
        self.mixed_precision = config.train.mixed_precision
        self.gradient_clip = config.optim.gradient_clip

    def train(self, batch: Batch) -> None:
        with precision(self.mixed_precision, self.device):
            loss = self.task.loss(batch).total
        loss.backward()
        if self.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()

    def step(self, batch: Batch, encoder_alone: bool = True) -> MeasuredStep:
        on_device = batch.to(self.device)
        self._wait()
        began = time.perf_counter()
        self.train(on_device)
        seconds = time.perf_counter() - began
        return MeasuredStep(
            seconds=seconds,
            encoder_seconds=self._encoder_seconds(on_device) if encoder_alone else float("nan"),
            samples=len(batch),
            occurrences=int((batch.counts > 0).sum()),
            distinct=len(torch.unique(batch.tokens, dim=0)),
            encoded=len(batch.tokens),
            flops=3 * forward_flops(self.encoder, batch),
        )

    def _encoder_seconds(self, batch: Batch) -> float:
        """The ASV encoder alone on the same batch, forward and backward."""
        began = time.perf_counter()
        with precision(self.mixed_precision, self.device):
            embeddings = self.encoder.asv_encoder(batch.tokens, batch.padded)
        embeddings.sum().backward()
        self._wait()
        seconds = time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _forever(batches: DataLoader[Batch], plan: BatchPlan) -> Iterator[Batch]:
    while True:
        plan.epoch += 1
        yield from batches


def _laid_out(batch: Batch, layout: Layout) -> Batch:
    return batch if layout == "distinct" else padded_layout(batch)


def _summary(
    layout: Layout, steps: list[MeasuredStep], memory_growth: float, rate: float, waiting: float | None
) -> TrainBenchmark:
    seconds = np.array([step.seconds for step in steps])
    return TrainBenchmark(
        layout=layout,
        steps=len(steps),
        samples=steps[0].samples,
        encoded_sequences=float(np.mean([step.encoded for step in steps])),
        step_seconds=float(np.median(seconds)),
        encoder_seconds=float(np.median([step.encoder_seconds for step in steps])),
        samples_per_second=float(np.median([step.samples / step.seconds for step in steps])),
        asvs_per_second=float(np.median([step.occurrences / step.seconds for step in steps])),
        distinct_asvs_per_second=float(np.median([step.distinct / step.seconds for step in steps])),
        waiting_share=waiting,
        memory_growth_mb=memory_growth,
        flops_per_second=float(np.median([step.flops / step.seconds for step in steps])),
        matrix_flops_per_second=rate,
    )


def forward_flops(encoder: SequenceEncoder, batch: Batch) -> float:
    """Floating-point operations of the matrix products of a forward pass, two for a multiplication and addition.

    A token of a layer costs ``2 D² (4 + 2 F)`` in linear maps (query, key, value, output, and the feed-forward
    network of width ``F D``) and ``4 T D`` in attention over ``T`` tokens. Embeddings, normalisation, pooling and
    heads are left out: they are below a hundredth.
    """
    u, tokens = batch.tokens.shape
    b, s = batch.asv_index.shape
    total = _transformer_flops(encoder.asv_encoder.transformer, u, tokens)
    total += _transformer_flops(encoder.asv_encoder.transformer, *encoder.asv_encoder.reference.shape)
    if batch.masked_nucleotides is not None:
        total += _transformer_flops(encoder.asv_encoder.transformer, *batch.masked_nucleotides.tokens.shape)
    total += _transformer_flops(encoder.sample_encoder.transformer, b, s)
    return total + _transformer_flops(encoder.transformer, b, s)


def _transformer_flops(transformer: Any, sequences: int, tokens: int) -> float:
    layers = len(transformer.blocks)
    width = transformer.blocks[0].expand.in_features
    hidden = transformer.blocks[0].expand.out_features
    linear = 2 * (4 * width * width + 2 * width * hidden)
    return float(layers * sequences * tokens * (linear + 4 * tokens * width))


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second of a plain float32 matrix product, the median of three."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.median(times))


def _memory_growth(device: torch.device, work: Callable[[], object]) -> float:
    """The most memory that ``work`` takes beyond what the process held before, in MB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    process = psutil.Process()
    before = process.memory_info().rss
    with _PeakMemory(process) as peak:
        work()
    return (peak.highest - before) / 1e6


class _PeakMemory:
    """Highest resident memory while a block runs, looked at every 5 ms."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.highest = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.done.is_set():
            self.highest = max(self.highest, self.process.memory_info().rss)
            self.done.wait(0.005)

    def __enter__(self) -> _PeakMemory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.highest = max(self.highest, self.process.memory_info().rss)
