"""What a trained network makes of the samples that it has learnt from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.config import RunConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, SampleDataset
from aam.loaders import loader
from aam.training.distributed import beside_passes
from aam.training.trainer import Trainer, precision

__all__ = ["read_training_samples"]


def read_training_samples(
    config: RunConfig, rows: NDArray[np.int64], trainer: Trainer, read: Callable[[Batch], Tensor]
) -> NDArray[np.float32] | None:
    """Read training samples as `aam predict` would: nothing of them varied or masked.

    Every process reads its share.

    Parameters
    ----------
    config : RunConfig
    rows : ndarray (n,)
        Of the study.
    trainer : Trainer
        With the weights that are kept.
    read : callable
        What is wanted of the samples of a batch, (B, F).

    Returns
    -------
    ndarray (n, F), or None
        On the first process.
    """
    processes, dataset = trainer.processes, trainer.train_loader.dataset  # with what of the base is frozen
    assert isinstance(dataset, SampleDataset)
    options = replace(dataset.options, nuc_asv_fraction=0.0, count_mask_ratio=0.0)
    plain = dataset.changed(labels={}, references=rows[:0], target=None, augmentation=None, options=options)
    if trainer.state.best_epoch <= (config.train.freeze_asvs_after or 0):
        plain = plain.changed(encoded=None)  # by a later ASV encoder than this model's
    plan = BatchPlan(rows, config.train.samples_per_batch, False, config.train.seed, share=processes.share)
    batches = loader(plain, plan, config.train, trainer.device, workers=0)
    trainer.task.model.eval()

    def own_share() -> list[NDArray[Any]]:
        return [read(batch)[: len(batch)].float().cpu().numpy() for batch in trainer.on_device(batches)]

    with precision(trainer.config.mixed_precision, trainer.device), torch.no_grad():
        own = beside_passes(trainer.learner, processes, own_share)
    everyones = processes.gather_objects(own)  # lists of equal length
    if not processes.first:
        return None
    return np.concatenate([part for shares in zip(*everyones, strict=True) for part in shares])
