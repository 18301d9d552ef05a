"""`aam benchmark gpu`: a training step in several precisions and with several kernels, against what the device can do.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``D`` width.
"""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from aam.assembly import labelled_targets
from aam.benchmarks.memory import PeakOwnMemory
from aam.benchmarks.train import forward_flops
from aam.config import RunConfig
from aam.data.batch import Batch
from aam.data.counts import MemoryCounts
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.labels import PairLabels
from aam.data.tokenizer import tokenize
from aam.inputs import load_inputs
from aam.loaders import choose_device, loader
from aam.models.base_targets import base_target
from aam.models.sequence_encoder import SequenceEncoder
from aam.training.checkpoint import build_encoder
from aam.training.compilation import BLOCKS_AT_ONCE, graphs_compiled
from aam.training.kernels import prepare_kernels, set_tf32
from aam.training.optimizers import build_optimizer
from aam.training.schedules import build_schedule
from aam.training.tasks import LabelledTarget, PretrainTask
from aam.training.trainer import Trainer

__all__ = [
    "VARIANTS",
    "BenchmarkData",
    "Ceilings",
    "Floors",
    "Profile",
    "VariantFigures",
    "benchmark_gpu",
    "kind_of_kernel",
    "set_memory_saving",
    "simulated_data",
    "study_data",
]

# By name, what differs from the plain configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "bf16": {"mixed_precision": "bf16"},
    "bf16-flash": {"mixed_precision": "bf16", "attn_implementation": "flash"},
    "bf16-mem_efficient": {"mixed_precision": "bf16", "attn_implementation": "mem_efficient"},
    "bf16-math": {"mixed_precision": "bf16", "attn_implementation": "math"},
    "bf16-compile": {"mixed_precision": "bf16", "compile_model": True},
    "bf16-compile-each": {"mixed_precision": "bf16", "compile_model": True, "blocks_at_once": 1},
    "bf16-compile-all": {"mixed_precision": "bf16", "compile_model": True, "blocks_at_once": 1000},
    "bf16-checkpointing": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "bf16-compile-checkpointing": {"mixed_precision": "bf16", "compile_model": True, "gradient_checkpointing": True},
    "bf16-chunks": {"mixed_precision": "bf16", "asv_chunk_size": 64},
}
_PROFILED = ("bf16", "bf16-compile")
_WARM_UP = 2  # steps after the first
_FEWEST = 3  # steps that are timed

Report = Callable[[Any], None]


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best, measured: plain products of matrices, and a copy."""

    device: str
    torch: str
    bf16_flops_per_second: float
    tf32_flops_per_second: float | None  # None but on an NVIDIA GPU
    fp32_flops_per_second: float
    copied_bytes_per_second: float  # read and written


@dataclass(frozen=True)
class Floors:
    """What no step can be faster than, on average over the batches."""

    samples: int
    asvs: float  # occurrences in samples
    distinct_asvs: float
    tokens: int  # of a sequence
    padding_share: float  # of places in samples
    parameters: int
    flops: float  # of a step's matrix products
    bytes: float
    arithmetic_ms: float  # at the measured bf16 rate
    bytes_ms: float  # at the measured rate of copying


@dataclass(frozen=True)
class VariantFigures:
    """A variant's steps; medians."""

    variant: str
    error: str | None = None
    step_ms: float | None = None
    host_ms: float | None = None  # of a batch next to nothing: what a step costs the host, below which none comes
    samples_per_second: float | None = None
    asvs_per_second: float | None = None  # occurrences in samples
    distinct_asvs_per_second: float | None = None
    flops_per_second: float | None = None
    bf16_rate_share: float | None = None  # of the measured rate of plain products
    peak_memory_mb: float | None = None  # of all tensors on a GPU; on a CPU what the process came to need
    graphs: int | None = None  # compiled
    compile_seconds: float | None = None
    first_step_seconds: float | None = None
    steps: int | None = None
    first_loss: float | None = None  # same weights and samples for all


@dataclass(frozen=True)
class Profile:
    """Where the time of a step goes, in ms."""

    variant: str
    step_ms: float  # as timed without a profiler
    groups: dict[str, float]  # and what is left of the step: ``idle``
    top: list[tuple[str, float, int]]  # kernels, with ms and calls a step
    kernels: int  # that a step launches; on a CPU operators


@dataclass(frozen=True)
class Waiting:
    """Steps with batches from worker processes, beside those with batches at hand."""

    variant: str
    workers: int
    batch_ms: float  # one process building one batch
    step_ms: float
    step_ms_batches_at_hand: float


class BenchmarkData(NamedTuple):
    """Samples, what is known of them, and which of them are for training."""

    dataset: SampleDataset
    labelled: dict[str, LabelledTarget]
    rows: np.ndarray[Any, Any]


def benchmark_gpu(
    config: RunConfig,
    variants: tuple[str, ...],
    seconds: float,
    report: Report,
    *,
    simulated: bool = False,
    profiled: tuple[str, ...] = _PROFILED,
) -> None:
    """Measure pre-training steps of each variant and hand over every figure as soon as it is there.

    A step is the trainer's own: copying the batch, forward, backward, clipping, optimizer, schedule. A variant that
    fails is reported with its error, and the next one follows.

    Parameters
    ----------
    config : RunConfig
    variants : tuple of str
        Of `VARIANTS`.
    seconds : float
        For which the steps of a variant are timed, three of them at least; warming up and compiling come on top.
    report : callable
        Given `Ceilings`, `Floors`, then `VariantFigures`, `Profile` and `Waiting` as they come.
    simulated : bool
        Random samples in place of the study of ``config``.
    profiled : tuple of str
        Variants of which it is looked at where the time goes.
    """
    device = choose_device(config.train)
    ceilings = measure_ceilings(device)
    report(ceilings)
    torch.manual_seed(config.train.seed)
    data = simulated_data(config) if simulated else study_data(config)
    plan = BatchPlan(data.rows, config.train.samples_per_batch, True, config.train.seed)
    batches = [data.dataset[key] for key in islice(plan, 3) if len(key.samples) == config.train.samples_per_batch]
    batches = batches or [data.dataset[next(iter(plan))]]
    encoder = build_encoder(config.model, tuple(known.target for known in data.labelled.values()))
    encoder.asv_encoder.set_reference(batches[0].tokens[:, 1:])
    floors = _floors(encoder, batches, ceilings)
    report(floors)
    if device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    last: _Last | None = None
    for name in variants:
        last = None  # its model makes room
        figures, last = _measure(name, config, data, plan, encoder, batches, seconds, device, floors, ceilings)
        report(figures)
        if last is not None and name in profiled:
            assert figures.step_ms is not None
            _try(name, report, partial(_profile, name, last, batches, device))
    if last is not None:
        _try(variants[-1], report, partial(_waiting, variants[-1], last, data))


class _Last(NamedTuple):
    """A variant that is still at hand."""

    trainer: Trainer
    step_ms: float


def _try(name: str, report: Report, measure: Callable[[], object]) -> None:
    try:
        report(measure())
    except Exception as error:  # of any kind: the other figures are worth having
        report(VariantFigures(name, error=_in_one_line(error)))


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


# ------------------------------------------------------------------------------------------------- what would be best


def measure_ceilings(device: torch.device) -> Ceilings:
    """Rates of plain products of random matrices, and of a copy within the device's memory."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 512

    def rate(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return 2 * size**3 / _seconds(lambda: a @ b, device, 10 if cuda else 3)

    set_tf32(False, device)
    fp32 = rate(torch.float32)
    tf32 = None
    if cuda:
        set_tf32(True, device)
        tf32 = rate(torch.float32)
        set_tf32(False, device)
    source = torch.randn(2**29 if cuda else 2**24, device=device)
    target = torch.empty_like(source)
    copying = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device, 10 if cuda else 3)
    name = torch.cuda.get_device_name(device) if cuda else device.type
    return Ceilings(name, torch.__version__, rate(torch.bfloat16), tf32, fp32, copying)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of one call, after one that is not timed."""
    work()
    marks = [_mark(device)]
    for _ in range(repeats):
        work()
        marks.append(_mark(device))
    return float(np.median(_differences(marks, device)))


def _mark(device: torch.device) -> Any:
    """A point in the device's time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _differences(marks: list[Any], device: torch.device) -> list[float]:
    """Seconds between points."""
    if device.type != "cuda":
        return np.diff(marks).tolist()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def _floors(encoder: SequenceEncoder, batches: list[Batch], ceilings: Ceilings) -> Floors:
    flops = float(np.mean([3 * forward_flops(encoder, batch) for batch in batches]))
    moved = float(np.mean([least_bytes(encoder, batch) for batch in batches]))
    return Floors(
        samples=len(batches[0]),
        asvs=float(np.mean([int((batch.counts > 0).sum()) for batch in batches])),
        distinct_asvs=float(np.mean([len(batch.tokens) for batch in batches])),
        tokens=max(batch.tokens.shape[1] for batch in batches),
        padding_share=float(np.mean([(batch.counts == 0).float().mean() for batch in batches])),
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        flops=flops,
        bytes=moved,
        arithmetic_ms=1e3 * flops / ceilings.bf16_flops_per_second,
        bytes_ms=1e3 * moved / ceilings.copied_bytes_per_second,
    )


def least_bytes(encoder: SequenceEncoder, batch: Batch) -> float:
    """What a step must read and write where every activation that the backward pass needs is kept.

    Weights are read, their gradients written and read, and AdamW reads and writes weights and two moments, all in
    single precision: 36 bytes a weight. Of a token in a layer the inputs of the matrix products, query, key and value,
    and the feed-forward network before its activation are written once and read once, in half precision:
    ``(6 + 2 F) D`` values.
    """
    b, s = batch.asv_index.shape
    sequences = [batch.tokens.shape, encoder.asv_encoder.reference.shape]
    if batch.masked_nucleotides is not None:
        sequences.append(batch.masked_nucleotides.tokens.shape)
    passes = [(encoder.asv_encoder.transformer, n * length) for n, length in sequences]
    passes += [(encoder.sample_encoder.transformer, b * s), (encoder.transformer, b * s)]
    activations = 0
    for transformer, tokens in passes:
        expand: Any = transformer.blocks[0].expand
        values = 6 * expand.in_features + 2 * expand.out_features
        activations += 2 * 2 * values * tokens * len(transformer.blocks)
    return float(activations + 36 * sum(parameter.numel() for parameter in encoder.parameters()))


# --------------------------------------------------------------------------------------------------------------- data


def study_data(config: RunConfig) -> BenchmarkData:
    """The study of a configuration, all of it for training."""
    study = load_inputs(config)
    rows = np.arange(len(study))
    labelled = labelled_targets(config, study, rows)
    labels = {name: known.labels for name, known in labelled.items()}
    return BenchmarkData(SampleDataset.of_study(study, _options(config), labels), labelled, rows)


def simulated_data(config: RunConfig, samples: int = 256, asvs: int = 4000, typical: int = 90) -> BenchmarkData:
    """Random samples of ``typical`` ASVs, more or less, of which some are common and most are rare; 150 bases each."""
    draws = np.random.default_rng(config.train.seed)
    length = min(150, config.model.max_bp)
    sequences = sorted({"".join(row) for row in draws.choice(list("ACGT"), (asvs, length))})
    richness = np.clip(draws.lognormal(np.log(typical), 0.4, samples), 8, len(sequences) // 2).astype(int)
    shares = 1 / (np.arange(len(sequences)) + 20.0)
    shares = draws.permutation(shares / shares.sum())
    columns = [np.sort(draws.choice(len(sequences), number, replace=False, p=shares)) for number in richness]
    indptr = np.concatenate([[0], np.cumsum(richness)])
    reads = np.ceil(draws.lognormal(2.0, 1.5, indptr[-1]))
    table = sparse.csr_array((reads, np.concatenate(columns), indptr), shape=(samples, len(sequences)))
    points = draws.random((samples, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1).astype(np.float32) / 2
    target = base_target("unifrac")
    rows = np.arange(samples)
    labelled = {"unifrac": LabelledTarget.of(target, PairLabels(distances), rows)}
    dataset = SampleDataset(
        MemoryCounts(table),
        tokenize(sequences, config.model.max_bp),
        [f"sample{row}" for row in rows],
        sequences,
        np.arange(len(sequences)),
        _options(config),
        {"unifrac": PairLabels(distances)},
    )
    return BenchmarkData(dataset, labelled, rows)


def _options(config: RunConfig) -> DatasetOptions:
    return replace(
        DatasetOptions.of(config.data, config.train.seed),
        nuc_asv_fraction=config.task.nuc_asv_fraction if config.task.nuc_weight > 0 else 0.0,
        nuc_mask_ratio=config.task.nuc_mask_ratio,
        nuc_mask_strategy=config.task.nuc_mask_strategy,
    )


# ----------------------------------------------------------------------------------------------------------- variants


def _measure(
    name: str,
    config: RunConfig,
    data: BenchmarkData,
    plan: BatchPlan,
    encoder: SequenceEncoder,
    batches: list[Batch],
    seconds: float,
    device: torch.device,
    floors: Floors,
    ceilings: Ceilings,
) -> tuple[VariantFigures, _Last | None]:
    _make_room(device)
    try:
        with ExitStack() as stack:
            peak = None if device.type == "cuda" else stack.enter_context(PeakOwnMemory())
            return _timed(name, config, data, plan, encoder, batches, seconds, device, floors, ceilings, peak)
    except Exception as error:  # of any kind, such as a lack of memory or a compiler's: the next may fare better
        return VariantFigures(name, error=_in_one_line(error)), None


def _make_room(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _timed(
    name: str,
    config: RunConfig,
    data: BenchmarkData,
    plan: BatchPlan,
    encoder: SequenceEncoder,
    batches: list[Batch],
    seconds: float,
    device: torch.device,
    floors: Floors,
    ceilings: Ceilings,
    peak: PeakOwnMemory | None,
) -> tuple[VariantFigures, _Last]:
    changed = VARIANTS[name]
    train = config.train.model_copy(update={k: v for k, v in changed.items() if hasattr(config.train, k)})
    model = copy.deepcopy(encoder)
    set_memory_saving(model, changed)
    task = PretrainTask(model, config.task, data.labelled, train.seed)
    task.to(device).train()
    graphs, began = graphs_compiled(), time.perf_counter()
    at_once = changed.get("blocks_at_once", BLOCKS_AT_ONCE)
    prepare_kernels(task, train, device, any(batch.padded for batch in batches), at_once)
    compile_seconds = time.perf_counter() - began if train.compile_model else None
    optimizer = build_optimizer(model, config.optim)
    batches_of_training = loader(data.dataset, plan, train, device)
    schedule = build_schedule(optimizer, config.optim, 10**6)
    trainer = Trainer(
        task, plan, batches_of_training, batches_of_training, optimizer, schedule, config.optim, train, device
    )
    torch.manual_seed(train.seed)
    began = time.perf_counter()
    first = float(trainer.train_step([batches[0]]).parts["loss"])
    first_seconds = time.perf_counter() - began
    step_seconds, order = _step_seconds(trainer, batches, seconds, device)
    step = float(np.median(step_seconds))
    of_batches = [3 * forward_flops(model, batch) for batch in batches]
    flops = float(np.median([of_batches[place] / t for place, t in zip(order, step_seconds, strict=True)]))
    if device.type == "cuda":
        memory = float(torch.cuda.max_memory_allocated(device))
    else:
        assert peak is not None
        memory = float(peak.highest)
    pairs = {name for name, known in data.labelled.items() if known.target.kind == "pairwise"}
    small = _next_to_nothing(batches[0], pairs)
    small = small.pin_memory() if device.type == "cuda" else small
    host_seconds, _ = _step_seconds(trainer, [small], min(seconds, 1.0), device)
    figures = VariantFigures(
        variant=name,
        step_ms=1e3 * step,
        host_ms=1e3 * float(np.median(host_seconds)),
        samples_per_second=floors.samples / step,
        asvs_per_second=floors.asvs / step,
        distinct_asvs_per_second=floors.distinct_asvs / step,
        flops_per_second=flops,
        bf16_rate_share=flops / ceilings.bf16_flops_per_second,
        peak_memory_mb=memory / 1e6,
        graphs=graphs_compiled() - graphs if train.compile_model else None,
        compile_seconds=compile_seconds,
        first_step_seconds=first_seconds,
        steps=len(step_seconds),
        first_loss=first,
    )
    return figures, _Last(trainer, 1e3 * step)


def set_memory_saving(model: SequenceEncoder, changed: Mapping[str, Any]) -> None:
    """Let a model checkpoint gradients, or take ASVs in chunks, where ``changed`` says anything of it."""
    if "gradient_checkpointing" in changed:
        for transformer in (model.asv_encoder.transformer, model.sample_encoder.transformer, model.transformer):
            transformer.gradient_checkpointing = changed["gradient_checkpointing"]
    if "asv_chunk_size" in changed:
        model.asv_encoder.chunk_size = changed["asv_chunk_size"]


def _step_seconds(
    trainer: Trainer, batches: list[Batch], seconds: float, device: torch.device
) -> tuple[list[float], list[int]]:
    """Times of steps one right after the other, as in training, and which batch each had.

    The device may lag two steps behind the host, so that neither waits for the other, and no more, so that the end of
    the time is seen.
    """
    places = cycle(range(len(batches)))
    for place in islice(places, _WARM_UP):
        trainer.train_step([batches[place]])
    marks = [_mark(device)]
    order: list[int] = []
    began = time.perf_counter()
    while len(order) < _FEWEST or time.perf_counter() - began < seconds:
        place = next(places)
        trainer.train_step([batches[place]])
        marks.append(_mark(device))
        order.append(place)
        if device.type == "cuda" and len(marks) > 2:
            marks[-3].synchronize()
    return _differences(marks, device), order


def _next_to_nothing(batch: Batch, pairs: set[str], samples: int = 2, asvs: int = 16, tokens: int = 16) -> Batch:
    """A few ASVs of a few samples, cut short: for a GPU hardly work, for the host as much as the whole batch.

    ``pairs`` are the base targets that are distances; those to references are left out.
    """
    masked = batch.masked_nucleotides
    if masked is not None:
        places = masked.places[:asvs, :tokens].contiguous()
        masked = replace(
            masked,
            tokens=masked.tokens[:asvs, :tokens].contiguous(),
            true_tokens=masked.true_tokens[:asvs, :tokens].contiguous(),
            places=places,
            flat=places.flatten().nonzero().flatten(),
        )
    of_batch = batch.tokens[:asvs, :tokens].contiguous()
    counts = batch.counts[:samples, :asvs].contiguous()
    labels = {
        name: (of[:samples, :samples] if name in pairs else of[:samples]).contiguous()
        for name, of in batch.labels.items()
        if name not in pairs or not batch.references
    }
    return replace(
        batch,
        sample_index=batch.sample_index[:samples].contiguous(),
        tokens=of_batch,
        asv_index=batch.asv_index[:samples, :asvs] % len(of_batch),
        counts=counts,
        depth=batch.depth[:samples].contiguous(),
        ragged=bool((counts == 0).any()),
        labels=labels,
        references=0,
        masked_nucleotides=masked,
    )


# ------------------------------------------------------------------------------------------------- where the time goes


def _profile(name: str, last: _Last, batches: list[Batch], device: torch.device, steps: int = 2) -> Profile:
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with warnings.catch_warnings(action="ignore"):
        with torch.profiler.profile(activities=activities) as profiler:
            for batch in islice(cycle(batches), steps):
                last.trainer.train_step([batch])
            if cuda:
                torch.cuda.synchronize(device)
        times = list(_kernel_times(profiler, cuda))
    groups: dict[str, float] = defaultdict(float)
    for kernel, milliseconds, _ in times:
        groups[kind_of_kernel(kernel)] += milliseconds / steps
    groups["idle"] = max(0.0, last.step_ms - sum(groups.values()))
    times.sort(key=lambda entry: -entry[1])
    top = [(kernel[:90], milliseconds / steps, calls // steps) for kernel, milliseconds, calls in times[:12]]
    kernels = sum(calls for _, _, calls in times) // steps
    return Profile(name, last.step_ms, dict(sorted(groups.items(), key=lambda group: -group[1])), top, kernels)


def _kernel_times(profiler: torch.profiler.profile, cuda: bool) -> Iterator[tuple[str, float, int]]:
    """Names, ms and calls of kernels; on a CPU of operators."""
    for event in profiler.key_averages():
        if not cuda:
            yield event.key, event.self_cpu_time_total / 1e3, event.count
        elif event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            yield event.key, event.self_device_time_total / 1e3, event.count


_KINDS = {  # the first that fits
    "elementwise": ("triton",),  # compiled ones are named by all that they do, copies among it
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": (
        "gemm",
        "gemv",
        "nvjet",
        "cutlass",
        "xmma",
        "splitk",
        "cublas",
        "::mm",
        "::addmm",
        "::bmm",
    ),
    "optimizer": ("adam", "multi_tensor", "lpnorm", "foreach"),
    "copies": ("memcpy", "memset", "copy", "catarray", "::cat", "fill"),
}


def kind_of_kernel(name: str) -> str:
    """What a kernel of that name does: attention, matrix products, optimizer, copies, or else elementwise."""
    lower = name.lower()
    return next((kind for kind, parts in _KINDS.items() if any(part in lower for part in parts)), "elementwise")


def _waiting(name: str, last: _Last, data: BenchmarkData) -> Waiting:
    """Steps with batches as training has them. There are more steps than batches that workers hold ready."""
    trainer, device = last.trainer, last.trainer.device
    began = time.perf_counter()
    keys = list(islice(trainer.plan, 4))
    for key in keys:
        data.dataset[key]
    batch_ms = 1e3 * (time.perf_counter() - began) / len(keys)
    workers = trainer.train_loader.num_workers
    ready = workers * (trainer.train_loader.prefetch_factor or 0)
    several = (batch for _ in cycle([None]) for batch in trainer.train_loader)
    for batch in islice(several, 2):
        trainer.train_step([batch])
    marks = [_mark(device)]
    for batch in islice(several, ready + 6):
        trainer.train_step([batch])
        marks.append(_mark(device))
    seconds = _differences(marks, device)[ready:]
    trainer.close()
    return Waiting(name, workers, batch_ms, 1e3 * float(np.mean(seconds)), last.step_ms)


def record(figures: Any) -> dict[str, Any]:
    """Figures by name, with what they are of."""
    return {"kind": type(figures).__name__.lower(), **asdict(figures)}
