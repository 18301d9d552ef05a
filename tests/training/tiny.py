"""Tiny tasks and trainers, built as `aam.run` builds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from aam.config import ModelConfig, OptimConfig, TaskConfig, TrainConfig
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.targets import ClassTarget, NumericTarget
from aam.models.base_targets import base_target
from aam.models.sequence_predictor import SequencePredictor
from aam.training.averaging import build_average
from aam.training.checkpoint import build_encoder
from aam.training.distributed import Processes, distribute
from aam.training.optimizers import build_optimizer
from aam.training.schedules import Schedule, build_schedule
from aam.training.tasks import LabelledTarget, PretrainTask, Task, TrainTask
from aam.training.trainer import Callback, Trainer
from tests.conftest import MAX_BP, TinyStudy

MODEL = ModelConfig(embedding_dim=8, attention_heads=2, attention_layers=1, max_bp=MAX_BP, clades=6, dropout=0)
OPTIONS = DatasetOptions(seed=1, nuc_asv_fraction=0.6, nuc_mask_ratio=0.3, count_mask_ratio=0.3)
CPU = torch.device("cpu")


def build_task(study: TinyStudy, kind: str, dropout: float = 0.0) -> Task:
    """``regression``, ``classes`` or ``pretrain``."""
    torch.manual_seed(0)
    encoder = build_encoder(MODEL.model_copy(update={"dropout": dropout}))
    rows = np.arange(len(study))
    labelled = {name: LabelledTarget.of(base_target(name), labels, rows) for name, labels in study.base_labels.items()}
    if kind == "pretrain":
        return PretrainTask(encoder, TaskConfig(), labelled, seed=0)
    if kind == "classes":
        labels = ClassTarget.fit("diet", study.labels)
        weights = np.array([0.5, 1.0, 2.0], dtype=np.float32)
        predictor = SequencePredictor(encoder, labels.outputs, dropout)
        return TrainTask(predictor, TaskConfig(classifier=True), labels, study.labels, [weights], labelled, seed=0)
    target = NumericTarget.fit("age", "zscore", study.values)
    predictor = SequencePredictor(encoder, 1, dropout)
    return TrainTask(predictor, TaskConfig(), target, study.values, [None], labelled, seed=0)


def constant(optimizer: torch.optim.Optimizer) -> Schedule:
    """A schedule that leaves the learning rate as it is."""
    return Schedule(optimizer, lambda steps: lambda step: 1.0, steps=1)


def build_dataset(study: TinyStudy, task: Task, held_out: bool = False, **arrays: Any) -> SampleDataset:
    if isinstance(task, TrainTask) and "target" not in arrays:
        arrays["target"] = task.target.encode(task.actual)
    if held_out:
        arrays["restore_once"] = np.arange(len(study))
    options = OPTIONS if isinstance(task, TrainTask) else DatasetOptions(seed=1, nuc_asv_fraction=0.6)
    return study.dataset(options, labels=study.base_labels, **arrays)


def build_trainer(
    study: TinyStudy,
    task: Task,
    directory: Path,
    *,
    batch_size: int = 2,
    epochs: int = 2,
    scheduled_epochs: int | None = None,
    optim: OptimConfig | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Schedule | None = None,
    callbacks: Sequence[Callback] = (),
    processes: Processes = Processes(),  # noqa: B008 - immutable
    sharded_checkpoints: bool = False,
    reshard_after_forward: bool = True,
    patience: int | None = 99,
    **arrays: Any,
) -> Trainer:
    """A trainer that validates on what it trains on."""
    optim = optim or OptimConfig()
    samples = np.arange(len(study))
    plan = BatchPlan(samples, batch_size, True, seed=1, share=processes.share)
    held_out = BatchPlan(samples, batch_size, False, seed=1, share=processes.share)
    learner = distribute(task, processes, reshard_after_forward=reshard_after_forward)
    optimizer = optimizer or build_optimizer(task.model, optim)
    steps = -(-len(plan) // optim.accumulation_steps) * (scheduled_epochs or epochs)
    return Trainer(
        task,
        plan,
        DataLoader(build_dataset(study, task, **arrays), sampler=plan, batch_size=None, generator=torch.Generator()),
        DataLoader(build_dataset(study, task, True), sampler=held_out, batch_size=None, generator=torch.Generator()),
        optimizer,
        schedule or build_schedule(optimizer, optim, steps),
        optim,
        TrainConfig(
            output_dir=directory,
            epochs=epochs,
            batch_size=batch_size,
            strategy=processes.strategy,
            sharded_checkpoints=sharded_checkpoints,
            patience=patience,
        ),
        CPU,
        callbacks,
        build_average(task.model, optim, steps),
        learner,
    )
