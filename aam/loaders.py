"""From a study and its split to batches: what each split sees of the study, and the processes that build batches."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam.config import RunConfig, TrainConfig
from aam.data.augmentation import Augmentation
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.study import Study
from aam.errors import DataError
from aam.launch import Launch
from aam.training.callbacks import Signals
from aam.training.tasks import Task, TrainTask

__all__ = ["choose_device", "datasets_of", "loader"]

_OUTLIVE_SECONDS = 600  # by far more than a step takes
_HIDDEN_COVARIATES = 0.05  # of those of training samples, so that the model learns what to do where one is unknown


def choose_device(config: TrainConfig) -> torch.device:
    """The device of ``--device`` for this process, with ``--threads`` set.

    Raises
    ------
    DataError
        If the machine has no such device, or fewer than processes.
    """
    chosen = _kind_of_device(config)
    launch = Launch.of_environment()
    if chosen.type != "cuda" or launch.processes == 1:
        return chosen
    if launch.local_rank >= torch.cuda.device_count():
        raise DataError(
            f"{launch.local_processes} processes were started on a machine with {torch.cuda.device_count()} GPUs; "
            f"give torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", launch.local_rank)


def _kind_of_device(config: TrainConfig) -> torch.device:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[config.device]:
        raise DataError(f"--device {config.device}: PyTorch {torch.__version__} finds none here; use --device auto")
    return torch.device(config.device)


def loader(
    dataset: SampleDataset, plan: BatchPlan, config: TrainConfig, device: torch.device, *, workers: int | None = None
) -> DataLoader[Batch]:
    """Batches of a plan, built in worker processes.

    Parameters
    ----------
    dataset : SampleDataset
    plan : BatchPlan
    config : TrainConfig
    device : torch.device
        Batches for a GPU are pinned.
    workers : int, optional
        In place of the configured number.
    """
    if workers is None:
        cores = own_cores() // Launch.of_environment().local_processes
        workers = config.num_workers if config.num_workers is not None else min(4, cores)
    return DataLoader(
        dataset,
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_outlive_signals,
        pin_memory=device.type == "cuda",
        # Its own generator: the loader's draws must not move those of dropout.
        generator=torch.Generator(),
    )


def _outlive_signals(worker: int) -> None:
    """Go on for a while at a signal to stop.

    Batch systems and terminals send it to all processes of a job. The trainer still wants batches until its step is
    done; then it ends its workers itself, and saves the run.
    """
    for name in Signals.HEEDED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: signal.alarm(_OUTLIVE_SECONDS))


def own_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def datasets_of(config: RunConfig, study: Study, split: NDArray[Any], task: Task) -> dict[str, SampleDataset]:
    """The study as each split sees it."""
    frozen = config.train.frozen_part if config.train.unfreeze_after is None else None
    options = replace(
        DatasetOptions.of(config.data, config.train.seed),
        nuc_asv_fraction=config.task.nuc_asv_fraction if config.task.nuc_weight > 0 and frozen is None else 0.0,
        nuc_mask_ratio=config.task.nuc_mask_ratio,
        nuc_mask_strategy=config.task.nuc_mask_strategy,
        count_mask_ratio=(
            config.task.count_mask_ratio
            if config.command == "train"
            and config.task.count_weight > 0
            and frozen != "base"
            and config.model.count_embedding != "none"
            else 0.0
        ),
    )
    encoded = None
    if isinstance(task, TrainTask):
        assert study.target is not None
        encoded = task.target.encode(study.target)
    labels = {name: known.labels for name, known in task.labelled.items()}
    train = study.rows_of(split, "train")
    covariates = None
    if isinstance(task, TrainTask) and task.covariates is not None:
        assert study.covariates is not None
        covariates = task.covariates.encode(study.covariates)
    classes = None
    if encoded is not None and encoded.dtype.kind == "i":  # of several columns, what is alike in all of them
        classes = np.unique(encoded, axis=0, return_inverse=True)[1].reshape(-1)
    augmentation = Augmentation.of(config.augmentation, config.train.seed, train, classes)
    datasets = {
        "train": SampleDataset.of_study(
            study,
            options if covariates is None else replace(options, hidden_covariates=_HIDDEN_COVARIATES),
            labels,
            encoded,
            references=train,
            augmentation=augmentation,
            covariates=covariates,
        )
    }
    for part in ("val", "test", "cal"):
        rows = study.rows_of(split, part)
        if len(rows):
            datasets[part] = SampleDataset.of_study(
                study, options, labels, encoded, restore_once=rows, references=train, covariates=covariates
            )
    return datasets
