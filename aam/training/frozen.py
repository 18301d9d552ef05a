"""What of the base stays as it is, for the whole run, its first epochs or its last, and is therefore encoded once.

A frozen part gives the same of a sample in every epoch, as long as no option varies the sample. So it is asked once,
before the first step, and batches carry what it gave (`aam.data.encoded`): of a frozen ASV encoder the embeddings of
their ASVs, of a frozen base what base targets and heads read of samples.

Shapes: ``N`` samples of a study, ``A`` ASVs, ``L`` tokens, ``D`` width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aam.config import FrozenPart
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, SampleDataset
from aam.data.encoded import EncodedASVs, EncodedStudy, empty_table, why_bases_change, why_samples_change
from aam.data.tokenizer import PAD
from aam.models.asv_encoder import ASVEncoder
from aam.models.sequence_encoder import SequenceEncoder
from aam.training.distributed import beside_passes
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer, end_workers, precision

__all__ = ["Frozen", "encode_asvs", "encode_samples", "frozen_module"]

logger = logging.getLogger("aam")

Thing = TypeVar("Thing")
Loader = Callable[[SampleDataset, BatchPlan, int | None], "DataLoader[Batch]"]

_ASVS_AT_A_TIME = 1024


def frozen_module(encoder: SequenceEncoder, part: FrozenPart) -> nn.Module:
    """The weights that a part of the base has."""
    return encoder if part == "base" else encoder.asv_encoder


@torch.no_grad()
def encode_asvs(
    encoder: ASVEncoder, tokens: NDArray[np.uint8], device: torch.device, heed: Callable[[], None] = lambda: None
) -> NDArray[Any]:
    """Embed every ASV of a study, sequences of a length together.

    Parameters
    ----------
    encoder : ASVEncoder
        In evaluation.
    tokens : ndarray (A, L) of uint8
    device : torch.device
    heed : callable
        Called between pieces of the work; may raise.

    Returns
    -------
    ndarray (A, D)
        In a temporary file where it is large.
    """
    lengths = np.concatenate(
        [(tokens[start : start + 2**16] != PAD).sum(axis=1) for start in range(0, len(tokens), 2**16)]
    )
    table: NDArray[Any] | None = None
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), _ASVS_AT_A_TIME):
        heed()
        some = np.sort(order[start : start + _ASVS_AT_A_TIME])
        longest, shortest = int(lengths[some].max()), int(lengths[some].min())
        rows = torch.from_numpy(np.ascontiguousarray(tokens[some, :longest])).to(device)
        embeddings = _as_array(encoder(rows, shortest < longest))
        if table is None:
            table = empty_table(len(tokens), embeddings.shape[1], embeddings.dtype)
        table[some] = embeddings
    assert table is not None
    return table


@torch.no_grad()
def encode_samples(
    encoder: SequenceEncoder, batches: Iterable[Batch], samples: NDArray[np.int64], size: int, *, clades: bool
) -> EncodedStudy:
    """Encode samples.

    Parameters
    ----------
    encoder : SequenceEncoder
        In evaluation.
    batches : iterable of Batch
        On the device; ``samples`` in their order.
    samples : ndarray (n,)
        Rows of the study.
    size : int
        ``N``.
    clades : bool
        Whether presences and abundances of clades are to be kept beside the embeddings.
    """
    place = np.full(size, -1)
    place[samples] = np.arange(len(samples))
    tables: list[NDArray[Any] | None] = []
    start = 0
    for batch in batches:
        summary = encoder(batch).summary
        parts = [None if part is None else _as_array(part) for part in (summary if clades else summary[:1])]
        if not tables:
            tables = [None if part is None else empty_table(len(samples), part.shape[1], part.dtype) for part in parts]
        for table, part in zip(tables, parts, strict=True):
            if table is not None and part is not None:
                table[start : start + len(part)] = part
        start += len(batch)
    assert start == len(samples)
    return EncodedStudy(place, (*tables, None, None)[:3])


def _as_array(values: Tensor) -> NDArray[Any]:
    return values.to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy()


class _Loaders(NamedTuple):
    """Of the training and the held-out samples."""

    train: DataLoader[Batch]
    val: DataLoader[Batch]


class Frozen(Callback):
    """Keeps a part of the base as it was loaded, for the whole run or its first epochs.

    While it does, the trainer's loaders give batches in which that part is encoded already, and what base targets of
    held-out samples come to by a frozen base is judged once.

    Parameters
    ----------
    part : {"base", "asv_encoder"}
    train, held_out : ndarray
        Rows of the samples that are learnt from, and of those that are judged, of the test split too.
    loader : callable
        Batches of a plan, given a data set, the plan, and the number of worker processes (None for the usual one).
    until : int, optional
        After so many epochs the part is trained as the rest of the model.
    since : int
        Until so many epochs have passed, likewise.
    once : bool
        False where it is to be asked again for every batch.
    """

    def __init__(
        self,
        part: FrozenPart,
        train: NDArray[np.int64],
        held_out: NDArray[np.int64],
        loader: Loader,
        until: int | None = None,
        since: int = 0,
        once: bool = True,
    ) -> None:
        self.part = part
        self.train = train
        self.held_out = held_out
        self.loader = loader
        self.until = until
        self.since = since
        self.once = once
        self.before: _Loaders | None = None  # the trainer's own, while the part is frozen
        self.weights: Sequence[nn.Parameter] = ()  # that are frozen here, and trained afterwards

    def on_start(self, trainer: Trainer) -> None:
        if self.before is None and self._frozen_after(trainer.state.epoch):
            self._freeze(trainer)

    def _frozen_after(self, epoch: int) -> bool:
        return self.since <= epoch and (self.until is None or epoch < self.until)

    def _freeze(self, trainer: Trainer) -> None:
        if self.since:
            # An average of the weights goes on with those that it was encoded by.
            trainer.average.settle(frozen_module(trainer.task.encoder, self.part).parameters())
        module = frozen_module(trainer.task.encoder, self.part)
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        for weight in self.weights:
            weight.requires_grad_(False)
        if self.part == "base" and self.once:
            trainer.task.judged_before = {}
        if trainer.state.history:
            last = trainer.state.history[-1]
            at_rest = [name for name in _PASSES[self.part] if f"val_{name}" in last]
            trainer.task.losses_at_rest = {name: last[f"val_{name}"] for name in at_rest}
        self.before = before = _Loaders(trainer.train_loader, trainer.val_loader)
        trainer.train_loader, trainer.val_loader = beside_passes(
            trainer.learner, trainer.processes, lambda: self._encoded(trainer, before)
        )

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        epoch = trainer.state.epoch
        if self.before is None and self.since and self._frozen_after(epoch) and epoch < trainer.config.last_epoch:
            for loader in (trainer.train_loader, trainer.val_loader):
                end_workers(loader)
            self._freeze(trainer)
            return
        if self.before is None or self._frozen_after(epoch):
            return
        for weight in self.weights:
            weight.requires_grad_(True)
        trainer.task.judged_before = None
        trainer.task.losses_at_rest = {}
        for loader in (trainer.train_loader, trainer.val_loader):
            end_workers(loader)
        trainer.train_loader, trainer.val_loader = self.before
        self.before = None
        logger.info("the %s is trained from here on", _NAMES[self.part])

    def _encoded(self, trainer: Trainer, plain: _Loaders) -> _Loaders:
        """Batches in which the frozen part is encoded already as far as may be."""
        train, held_out = (_without_passes(loader.dataset, self.part) for loader in plain)
        if not self.once:
            return self._loaders(train, held_out, plain)
        changing = why_bases_change(train) if self.part == "asv_encoder" else why_samples_change(train, self.train)
        if changing is not None:
            what = "ASVs" if self.part == "asv_encoder" else "samples"
            logger.info("%s of the training split are encoded anew in every epoch: %s anew", what, changing)
        asvs = self._asvs(trainer, train)
        if why_bases_change(train) is None:
            train = train.changed(encoded=asvs)
        held_out = held_out.changed(encoded=asvs)
        if self.part == "base":
            encoded = self._study(trainer, held_out, self._steady(held_out, changing))
            held_out = held_out.changed(encoded=encoded)
            train = train if changing else train.changed(encoded=encoded)
        return self._loaders(train, held_out, plain)

    def _loaders(self, train: SampleDataset, held_out: SampleDataset, plain: _Loaders) -> _Loaders:
        return _Loaders(self._loader(train, plain.train), self._loader(held_out, plain.val))

    def _loader(self, dataset: SampleDataset, plain: DataLoader[Batch]) -> DataLoader[Batch]:
        # Processes would take longer to hand rows of a table over than it takes to read them.
        workers = 0 if isinstance(dataset.encoded, EncodedStudy) else None
        plan: Any = plain.sampler
        return self.loader(dataset, plan, workers)

    def _steady(self, held_out: SampleDataset, changing: str | None) -> NDArray[np.int64]:
        """The samples that are the same whenever they are asked for, those that held-out ones refer to included."""
        others = self.train if changing is None else held_out.references_of(self.held_out, epoch=0)
        return np.union1d(self.held_out, others)

    def _asvs(self, trainer: Trainer, dataset: SampleDataset) -> EncodedASVs:
        began = time.monotonic()
        trainer.task.model.eval()
        with precision(trainer.config.mixed_precision, trainer.device):
            encoder = trainer.task.encoder.asv_encoder
            table = encode_asvs(encoder, dataset.tokens, trainer.device, trainer.heed_signal)
        _log_done(self.part, len(table), "ASVs", [table], began)
        return EncodedASVs(table)

    def _study(self, trainer: Trainer, dataset: SampleDataset, samples: NDArray[np.int64]) -> EncodedStudy:
        began = time.monotonic()
        plan = BatchPlan(samples, trainer.config.samples_per_batch, False, 0)
        unlabelled = dataset.changed(labels={}, references=samples[:0], target=None)
        batches = trainer.on_device(self.loader(unlabelled, plan, 0))
        with precision(trainer.config.mixed_precision, trainer.device):
            encoder, size = trainer.task.encoder, dataset.counts.shape[0]
            study = encode_samples(encoder, batches, samples, size, clades=bool(trainer.task.labelled))
        _log_done(self.part, len(samples), "samples", study.tables, began)
        return study


_NAMES: dict[FrozenPart, str] = {"base": "base", "asv_encoder": "ASV encoder"}
_PASSES: dict[FrozenPart, tuple[str, ...]] = {"base": ("nuc_loss", "count_loss"), "asv_encoder": ("nuc_loss",)}


def _without_passes(dataset: Any, part: FrozenPart) -> SampleDataset:
    """A data set without what only a frozen part would learn from."""
    assert isinstance(dataset, SampleDataset)
    options = replace(dataset.options, nuc_asv_fraction=0.0)
    return dataset.changed(options=replace(options, count_mask_ratio=0.0) if part == "base" else options)


def _log_done(part: FrozenPart, number: int, what: str, tables: Iterable[NDArray[Any] | None], began: float) -> None:
    size = sum(table.nbytes for table in tables if table is not None) / 1e6
    seconds = time.monotonic() - began
    logger.info("the %s is frozen: %d %s encoded once, in %.1f s (%.1f MB)", _NAMES[part], number, what, seconds, size)
