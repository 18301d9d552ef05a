"""The standard studies of `aam benchmark report`, and what is measured on them.

A measure is every repeat of one figure on one study. Repeats of what is compared within a run take turns, so that a
machine whose speed drifts favours neither.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import torch
from pydantic import Field

from aam import __version__
from aam.benchmarks.memory import fresh_process, stoppable
from aam.benchmarks.timing import seconds_of
from aam.benchmarks.train import Layout, layout_memory, measure_layouts, pretraining
from aam.config import RunConfig, TrainConfig
from aam.data.distances import write_distances_h5
from aam.data.simulate import simulate_study, write_study
from aam.inputs import load_inputs
from aam.loaders import choose_device, own_cores
from aam.predict import predict
from aam.run import run
from aam.training.checkpoint import (
    load_checkpoint,
    load_model_file,
    model_path,
    save_checkpoint,
    save_model_file,
)

__all__ = ["QUICK", "STANDARD", "BenchmarkRun", "Machine", "Measure", "Settings", "StandardStudy", "measure_standard"]

logger = logging.getLogger("aam")

LAYOUTS: tuple[Layout, ...] = ("distinct", "padded")
PREDICTED = "age"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class StandardStudy:
    """A simulated study of one size; the same for everybody."""

    samples: int
    asvs: int
    length: int = 100  # bases

    @property
    def name(self) -> str:
        """By which runs are compared, so it says all there is to a size."""
        return f"{self.samples} × {self.asvs}" + ("" if self.length == 100 else f", {self.length} bases")


@dataclass(frozen=True)
class Settings:
    """What is measured, beside the machine: runs of different settings are not compared."""

    studies: tuple[StandardStudy, ...]
    embedding_dim: int
    attention_layers: int
    batch_size: int


STANDARD = Settings((StandardStudy(48, 100), StandardStudy(96, 200), StandardStudy(192, 400)), 64, 2, 8)
QUICK = Settings((StandardStudy(24, 48, 40),), 16, 1, 4)


@dataclass(frozen=True)
class Machine:
    """What a run was measured on, without names or paths."""

    processor: str
    cores: int  # that the process may use
    threads: int  # of PyTorch
    memory_gb: float
    gpu: str | None  # where it was used
    cuda: str | None
    system: str
    python: str
    torch: str
    aam: str


@dataclass(frozen=True)
class Measure:
    """Every repeat of one figure."""

    study: str
    name: str
    unit: str
    better: Literal["more", "less"]
    values: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @property
    def median(self) -> float:
        """Of the repeats."""
        return float(np.median(self.values))


@dataclass(frozen=True)
class BenchmarkRun:
    """What one run of `aam benchmark report` measured."""

    name: str
    date: str
    machine: Machine
    settings: Settings
    repeats: int
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)]

    def find(self, study: str, name: str) -> Measure | None:
        """The measure of this name on this study."""
        return next((m for m in self.measures if (m.study, m.name) == (study, name)), None)

    def named(self, name: str) -> list[Measure]:
        """The measures of this name, in the order of the studies."""
        return [measure for measure in self.measures if measure.name == name]


def measure_standard(
    settings: Settings,
    repeats: int,
    *,
    name: str = "",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
    seed: int = 0,
    work_dir: Path | None = None,
) -> BenchmarkRun:
    """Measure the standard studies on this machine.

    Parameters
    ----------
    settings : Settings
    repeats : int
        Of every figure but memory, which is that of one step in a process of its own.
    name : str
        Of the run; its processor or GPU by default.
    device, threads, seed
        As `aam train` has them.
    work_dir : Path, optional
        Where simulated files and a run are kept meanwhile.
    """
    train = TrainConfig(output_dir=Path("unused"), device=device, threads=threads, seed=seed, num_workers=0)
    where = choose_device(train)
    machine = _machine(where)
    measures: list[Measure] = []
    with stoppable(), tempfile.TemporaryDirectory(prefix="aam-benchmark-", dir=work_dir) as folder:
        configs = [_write(study, settings, train, Path(folder)) for study in settings.studies]
        rates: list[float] = []
        for study, config in zip(settings.studies, configs, strict=True):
            logger.info("%s samples × ASVs: reading, batches, training", study.name)
            found, of_study = _training(study.name, config, repeats)
            measures += of_study
            rates += found
            measures += [_memory(study.name, config, layout) for layout in LAYOUTS]
            measures += _data(study.name, config, repeats)
        logger.info("predicting, saving, loading")
        model = _train_model(configs[0], Path(folder) / "run")
        measures += _prediction(model, settings.studies, configs, repeats)
        measures += _files(model, settings.studies[0].name, repeats)
        measures.append(Measure("", "matrix product", "GFLOP/s", "more", tuple(rate / 1e9 for rate in rates)))
    return BenchmarkRun(
        name=name or machine.gpu or machine.processor,
        date=time.strftime("%Y-%m-%d"),
        machine=machine,
        settings=settings,
        repeats=repeats,
        measures=tuple(measures),
    )


def _write(study: StandardStudy, settings: Settings, train: TrainConfig, folder: Path) -> RunConfig:
    """Write a study; how it is trained on. Distances are those along its gradient: no figure depends on which."""
    files = folder / f"{study.samples}x{study.asvs}"
    drawn = simulate_study(
        samples=study.samples, asvs=study.asvs, subjects=study.samples // 4, length=study.length, depth=2000
    )
    write_study(drawn, files)
    ages = drawn.metadata[PREDICTED].to_numpy(dtype=np.float32) / 25
    write_distances_h5(files / "distances.h5", drawn.sample_ids, np.abs(np.subtract.outer(ages, ages)))
    return RunConfig.model_validate(
        {
            "command": "pretrain",
            "data": {"table": (files / "table.biom",), "unifrac_matrix": (files / "distances.h5",)},
            "model": {
                "embedding_dim": settings.embedding_dim,
                "attention_heads": 2,
                "attention_layers": settings.attention_layers,
            },
            "train": train.model_copy(update={"batch_size": settings.batch_size}),
        }
    )


def _training(study: str, config: RunConfig, repeats: int) -> tuple[list[float], list[Measure]]:
    """Rates of matrix products, and steps of both layouts on the same batches."""
    found = measure_layouts(config, load_inputs(config), LAYOUTS, repeats, encoder_alone=False)
    measures = []
    for layout, steps in found.steps.items():
        speeds = tuple(step.samples / step.seconds for step in steps)
        measures.append(Measure(study, f"training, {layout}", "samples/s", "more", speeds))
        rows = tuple(float(step.encoded) for step in steps)
        measures.append(Measure(study, f"encoded ASVs of a batch, {layout}", "ASVs", "less", rows))
    return found.matrix_rates, measures


def _memory(study: str, config: RunConfig, layout: Layout) -> Measure:
    with fresh_process() as call:  # which holds no memory that a step before it has left
        return Measure(study, f"memory of a step, {layout}", "MB", "less", (call(layout_memory, config, layout),))


def _data(study: str, config: RunConfig, repeats: int) -> list[Measure]:
    """Reading a study, and building its batches."""
    reading = tuple(1e3 * seconds_of(load_inputs, config) for _ in range(repeats))
    dataset, plan, _ = pretraining(config, load_inputs(config), choose_device(config.train))
    plan.epoch = 1
    keys = list(islice(cycle(plan), max(repeats, 10)))
    batches = tuple(1e3 * seconds_of(dataset.__getitem__, key) for key in keys)
    return [
        Measure(study, "reading the study", "ms", "less", reading),
        Measure(study, "building a batch", "ms", "less", batches),
    ]


def _train_model(pretrain: RunConfig, directory: Path) -> Path:
    """A model to predict with: how good it is does not matter, so it learns for an epoch."""
    metadata = pretrain.data.table[0].with_name("metadata.tsv")
    update = {"output_dir": directory, "epochs": 1, "choose_epochs": False, "plots": False}
    config = RunConfig.model_validate(
        {
            "command": "train",
            "data": {"table": pretrain.data.table, "metadata": (metadata,), "metadata_column": (PREDICTED,)},
            "model": pretrain.model,
            "train": pretrain.train.model_copy(update=update),
        }
    )
    with _quiet():
        run(config)
    return directory


def _prediction(
    model: Path, studies: Sequence[StandardStudy], configs: Sequence[RunConfig], repeats: int
) -> list[Measure]:
    """`aam predict` from files to predictions; the studies take turns."""
    speeds: list[list[float]] = [[] for _ in studies]
    for _ in range(repeats + 1):
        for study, config, speed in zip(studies, configs, speeds, strict=True):
            settings = config.train
            with _quiet():
                speed.append(study.samples / seconds_of(lambda: predict(model, config.data.table, settings=settings)))  # noqa: B023
    first = 1  # which is not counted: packages are imported in it
    return [
        Measure(study.name, "predicting", "samples/s", "more", tuple(speed[first:]))
        for study, speed in zip(studies, speeds, strict=True)
    ]


def _files(directory: Path, study: str, repeats: int) -> list[Measure]:
    """Writing and reading a model file and a checkpoint, to the disk and from its cache."""
    path, copy = model_path(directory), directory / "copy"
    config, header, weights, beside = load_model_file(path)
    state = load_checkpoint(directory / "last.ckpt")
    work: dict[str, Callable[[], Any]] = {
        "saving a model": lambda: save_model_file(copy, weights, config, header, beside),
        "loading a model": lambda: load_model_file(path),
        "saving a checkpoint": lambda: save_checkpoint(copy, state),
        "loading a checkpoint": lambda: load_checkpoint(directory / "last.ckpt"),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(max(repeats, 5)):
        for name, do in work.items():
            times[name].append(1e3 * seconds_of(do))
    return [Measure(study, name, "ms", "less", tuple(values)) for name, values in times.items()]


class _quiet:
    """Nothing is said of a run, or of predictions, that nobody asked for."""

    def __enter__(self) -> None:
        self.level = logger.level
        logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logger.setLevel(self.level)


def _machine(device: torch.device) -> Machine:
    cuda = device.type == "cuda"
    return Machine(
        processor=_processor(),
        cores=own_cores(),
        threads=torch.get_num_threads(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=torch.cuda.get_device_name(device) if cuda else (device.type if device.type != "cpu" else None),
        cuda=torch.version.cuda if cuda else None,
        system=platform.system(),
        python=platform.python_version(),
        torch=torch.__version__,
        aam=__version__,
    )


def _processor() -> str:
    """Its model where the system tells, else its kind."""
    return next(_models_told(), platform.processor() or platform.machine())


def _models_told() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("model name") and line.partition(":")[2].strip():
            yield " ".join(line.partition(":")[2].split())
