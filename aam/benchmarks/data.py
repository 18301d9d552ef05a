"""Time and memory of reading data, beside training on them: of a study, and of simulated tables of two sizes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aam.benchmarks.memory import PeakOwnMemory, fresh_process, own_memory, own_memory_kind, stoppable
from aam.benchmarks.simulated_files import Size, simulated_sequences, write_matrix, write_table
from aam.benchmarks.timing import seconds_of
from aam.benchmarks.train import pretraining
from aam.config import RunConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchKey, BatchPlan
from aam.inputs import load_inputs
from aam.loaders import choose_device

__all__ = ["SimulatedBenchmark", "StudyBenchmark", "benchmark_simulated", "benchmark_study"]

_ROUNDS = 20
_BATCHES_OF_A_ROUND = 5


@dataclass(frozen=True)
class StudyBenchmark:
    """Reading a study and building the batches of an epoch, in this process, beside training for an epoch."""

    samples: int
    asvs: int
    read_seconds: float  # from files to an aligned study, checksums included
    batches: int  # of an epoch
    batches_seconds: float  # building all of them
    batch_ms: float  # median
    step_seconds: float  # median
    epoch_seconds: float  # of steps alone
    batches_share: float  # of the epoch
    data_share: float  # reading and building, of the epoch
    own_memory_mb: float  # with the study read and the batches built
    own_memory_is: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return asdict(self)


def benchmark_study(config: RunConfig, steps: int) -> StudyBenchmark:
    """Measure a study as `pretrain` would read it.

    Parameters
    ----------
    config : RunConfig
    steps : int
        Measured steps, after a first one.
    """
    device = choose_device(config.train)
    began = time.perf_counter()
    study = load_inputs(config)
    read_seconds = time.perf_counter() - began
    dataset, plan, run = pretraining(config, study, device)
    plan.epoch = 1
    each: list[float] = []
    some: list[Batch] = []
    for key in plan:
        began = time.perf_counter()
        batch = dataset[key]
        each.append(time.perf_counter() - began)
        if len(some) <= steps:
            some.append(batch)
    memory = own_memory()
    seconds = []
    for number in range(steps + 1):
        on_device = some[number % len(some)].to(device)
        began = time.perf_counter()
        run.train(on_device)
        seconds.append(time.perf_counter() - began)
    step = float(np.median(seconds[1:]))
    epoch = step * len(plan)
    return StudyBenchmark(
        samples=len(study),
        asvs=len(study.sequences),
        read_seconds=read_seconds,
        batches=len(plan),
        batches_seconds=sum(each),
        batch_ms=1e3 * float(np.median(each)),
        step_seconds=step,
        epoch_seconds=epoch,
        batches_share=sum(each) / epoch,
        data_share=(read_seconds + sum(each)) / epoch,
        own_memory_mb=memory / 1e6,
        own_memory_is=own_memory_kind(),
    )


@dataclass(frozen=True)
class SimulatedBenchmark:
    """A simulated table of one size and its matrix, read as they are trained on, in a process of its own."""

    samples: int
    asvs: int  # of the file
    nonzeros: int
    table_mb: float
    matrix_mb: float
    read_seconds: float  # from files to an aligned study, without checksums
    batch_ms: float  # median of building a batch
    counts_ms: float  # median of reading the counts of a batch, other batches
    distances_ms: float  # median of reading the distances of a batch, still others
    step_ms: float  # median of training on a batch
    own_memory_before_mb: float  # the interpreter and its packages
    own_memory_mb: float  # after the last step
    own_memory_peak_mb: float
    own_memory_is: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return asdict(self)


def benchmark_simulated(
    config: RunConfig, size: Size, against: int, steps: int, work_dir: Path | None = None
) -> list[SimulatedBenchmark]:
    """Measure a table that is read from its file batch by batch, and a smaller one whose samples are alike.

    Each is read in a fresh process. These take turns, so that a machine whose speed drifts does not favour one.

    Parameters
    ----------
    config : RunConfig
        Its table and its matrix are replaced.
    size : Size
    against : int
        Samples of the smaller table.
    steps : int
        Training steps of each.
    work_dir : Path, optional
        Where the temporary files go.

    Returns
    -------
    list of SimulatedBenchmark
        Of the smaller table, and of the larger.
    """
    seed = config.train.seed
    sequences = simulated_sequences(size.asvs, seed)
    sizes = [size.of(against), size.of(size.samples)]
    with (
        stoppable(),
        tempfile.TemporaryDirectory(prefix="aam-benchmark-", dir=work_dir) as folder,
        ExitStack() as stack,
    ):
        files = [(Path(folder) / f"table{number}.biom", Path(folder) / f"distances{number}.h5") for number in (0, 1)]
        for of, (table, matrix) in zip(sizes, files, strict=True):
            write_table(table, of, sequences, seed)
            write_matrix(matrix, of.samples)
        readers = []
        for table, matrix in files:
            data = config.data.model_copy(update={"table": (table,), "unifrac_matrix": (matrix,), "streaming": True})
            call = stack.enter_context(fresh_process())
            readers.append(partial(call, _ask, config.model_copy(update={"data": data})))
        read = [reader("read") for reader in readers]
        times: list[dict[str, list[float]]] = [{what: [] for what in ("batch", "counts", "distances")} for _ in files]
        for turn in range(_ROUNDS):
            for number in (0, 1) if turn % 2 else (1, 0):
                for what, found in times[number].items():
                    found += readers[number](what, _BATCHES_OF_A_ROUND)
        stepped = [reader("train", steps) for reader in readers]
        memory = [reader("memory") for reader in readers]
        return [
            SimulatedBenchmark(
                *sizes[number],
                table_mb=files[number][0].stat().st_size / 1e6,
                matrix_mb=files[number][1].stat().st_size / 1e6,
                read_seconds=read[number],
                batch_ms=1e3 * float(np.median(times[number]["batch"])),
                counts_ms=1e3 * float(np.median(times[number]["counts"])),
                distances_ms=1e3 * float(np.median(times[number]["distances"])),
                step_ms=1e3 * float(np.median(stepped[number][1:] or stepped[number])),
                **memory[number],
            )
            for number in (0, 1)
        ]


_reader: _Reader | None = None  # of a process of its own


def _ask(config: RunConfig, what: str, *arguments: int) -> Any:
    """Run in a fresh process, where the first call reads the study."""
    global _reader
    _reader = _reader or _Reader(config)
    return getattr(_reader, what)(*arguments)


class _Reader:
    """A study in a process that measures its own memory."""

    def __init__(self, config: RunConfig) -> None:
        self.before = own_memory()
        with PeakOwnMemory() as peak:
            device = choose_device(config.train)
            began = time.perf_counter()
            study = load_inputs(config, checksums=False)  # those of zeros that lie nowhere say nothing
            self.seconds = time.perf_counter() - began
            self.dataset, plan, self.steps = pretraining(config, study, device)
        self.highest = peak.highest
        self.keys = _endless(plan)

    def read(self) -> float:
        return self.seconds

    def batch(self, number: int) -> list[float]:
        return [seconds_of(self.dataset.__getitem__, next(self.keys)) for _ in range(number)]

    def counts(self, number: int) -> list[float]:
        read = self.dataset.counts.rows
        return [seconds_of(read, np.array(next(self.keys).samples)) for _ in range(number)]

    def distances(self, number: int) -> list[float]:
        (labels,) = self.dataset.labels.values()
        return [seconds_of(labels.batch, np.array(next(self.keys).samples)) for _ in range(number)]

    def train(self, number: int) -> list[float]:
        with PeakOwnMemory() as peak:
            seconds = [seconds_of(self.steps.train, self.dataset[next(self.keys)]) for _ in range(number)]
        self.highest = max(self.highest, peak.highest)
        return seconds

    def memory(self) -> dict[str, Any]:
        found = {"_before": self.before, "": own_memory(), "_peak": self.highest}
        return {f"own_memory{name}_mb": size / 1e6 for name, size in found.items()} | {
            "own_memory_is": own_memory_kind()
        }


def _endless(plan: BatchPlan) -> Iterator[BatchKey]:
    """Full batches of one epoch after the other."""
    while True:
        plan.epoch += 1
        for key in plan:
            if len(key.samples) == min(plan.batch_size, len(plan.samples)):
                yield key
