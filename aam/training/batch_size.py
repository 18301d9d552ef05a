"""The largest batch that memory allows, found by training on batches that no later one can exceed.

Shapes: ``N`` training samples, ``A`` ASVs, ``B`` samples of a batch, ``U`` distinct ASVs, ``S`` most ASVs of a sample,
``L`` tokens, ``M`` ASVs with masked nucleotides.
"""

from __future__ import annotations

import ctypes
import gc
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aam.data.batch import Batch, MaskedNucleotides
from aam.data.counts import in_blocks
from aam.data.dataset import BatchKey, SampleDataset
from aam.data.tokenizer import PAD
from aam.errors import DataError
from aam.training.tasks import Task
from aam.training.trainer import precision

__all__ = ["BatchBounds", "FoundBatchSize", "find_batch_size", "grown", "memory_budget"]

_LEAST_BATCHES = 8  # of an epoch: a batch of the whole study would leave one step in it


class FoundBatchSize(NamedTuple):
    """A batch size, and what it takes."""

    samples: int
    bytes: float  # by the largest batch of this size that can occur
    budget: float  # bytes


# ------------------------------------------------------------------------------------------------------ largest batch


@dataclass(frozen=True)
class BatchBounds:
    """How many ASVs batches of training samples can have at most.

    Which ``B`` samples have the most distinct ASVs together is hard to find. But where any set of samples has ``f`` of
    them, no ``B`` samples have more than ``f`` and the ``B`` largest numbers of ASVs that a sample has beyond these
    (Nemhauser, Wolsey and Fisher 1978). The sets tried are the 1, 2, 4, … largest samples.
    """

    order: NDArray[np.int64]  # (N,): rows of the study, the largest sample first
    sizes: NDArray[np.int64]  # (N,): ASVs that are read of these
    covered: NDArray[np.int64]  # (k,): f of each set
    gains: NDArray[np.int64]  # (N, k): ASVs beyond each set, most first in every column
    present: int  # ASVs of all samples

    @classmethod
    def of(cls, dataset: SampleDataset, rows: NDArray[np.int64]) -> Self:
        """Of the training samples of a study, whatever is drawn of them."""
        sizes = np.concatenate([np.diff(block.indptr) for block in in_blocks(dataset.counts, rows)])
        largest = np.argsort(-sizes, kind="stable")
        ends = 2 ** np.arange(int(math.log2(len(rows))) + 1)  # of the sets
        asvs = dataset.counts.shape[1]
        first = np.full(asvs, len(ends))  # the first set that has an ASV
        place = 0
        for block in in_blocks(dataset.counts, rows[largest[: ends[-1]]]):
            of_set = np.searchsorted(ends, place + block.samples + 1)
            np.minimum.at(first, block.asvs, of_set)
            place += len(block.indptr) - 1
        beyond = []
        present = np.zeros(asvs, dtype=bool)
        for block in in_blocks(dataset.counts, rows):
            present[block.asvs] = True
            counted = np.zeros((len(block.indptr) - 1, len(ends) + 1), dtype=np.int64)
            np.add.at(counted, (block.samples, first[block.asvs]), 1)
            beyond.append(counted[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])  # those first had by a later set, or by none
        covered = np.bincount(first, minlength=len(ends) + 1)[: len(ends)].cumsum()
        gains = -np.sort(-np.concatenate(beyond), axis=0)
        read = np.minimum(sizes[largest], dataset.options.token_limit)
        return cls(rows[largest], read, covered, gains, int(present.sum()))

    def distinct(self, samples: int) -> int:
        """The most distinct ASVs of so many samples."""
        by_sets = (self.covered + self.gains[:samples].sum(axis=0)).min()
        return int(min(self.present, self.sizes[:samples].sum(), by_sets))


def largest_batch(dataset: SampleDataset, bounds: BatchBounds, samples: int) -> Batch:
    """A batch of the largest samples, grown to what no batch of so many samples can exceed."""
    batch = dataset[BatchKey(1, tuple(bounds.order[:samples].tolist()))]
    mixed = dataset.augmentation is not None and dataset.augmentation.mix_samples > 0
    read = (samples + batch.references) * (2 if mixed else 1)  # a mixed sample has the ASVs of two
    widest = min(dataset.options.token_limit, int(bounds.sizes[: 2 if mixed else 1].sum()))
    tokens = 1 + int(np.flatnonzero(dataset.tokens.any(axis=0))[-1])
    share = dataset.options.nuc_asv_fraction
    asvs = max(bounds.distinct(read), len(batch.tokens))
    restored = math.ceil(share * asvs + 3 * math.sqrt(share * (1 - share) * asvs)) if share > 0 else 0
    width = max(widest, batch.counts.shape[1])
    return grown(batch, asvs, width, tokens, min(asvs, restored), dataset.options.nuc_mask_ratio)


def grown(batch: Batch, asvs: int, width: int, tokens: int, restored: int, mask_ratio: float) -> Batch:
    """A batch that takes as much memory as one of this size.

    Parameters
    ----------
    batch : Batch
    asvs, width, tokens : int
        ``U``, ``S`` and ``L``, at least the batch's own.
    restored : int
        ``M``.
    mask_ratio : float
        Of their nucleotides.
    """
    more = width - batch.counts.shape[1]
    taller = _repeated(batch.tokens, asvs, tokens)
    masked = None
    if restored:
        true_tokens = taller[:restored]
        places = torch.zeros_like(true_tokens, dtype=torch.bool)
        places[:, 1 : 1 + math.ceil(mask_ratio * (tokens - 1))] = True
        pads = bool((true_tokens[:, -1] == PAD).any())
        masked = MaskedNucleotides(true_tokens, true_tokens, places, places.flatten().nonzero()[:, 0], pads)
    return replace(
        batch,
        tokens=taller,
        padded=bool((taller[:, -1] == PAD).any()),
        asv_index=F.pad(batch.asv_index, (0, more)),
        counts=F.pad(batch.counts, (0, more), value=1.0),
        masked_nucleotides=masked,
        hidden_counts=None if batch.hidden_counts is None else F.pad(batch.hidden_counts, (0, more)),
    )


def _repeated(tokens: Tensor, rows: int, columns: int) -> Tensor:
    padded = F.pad(tokens, (0, columns - tokens.shape[1]), value=PAD)
    return padded[torch.arange(rows) % len(padded)]


# ------------------------------------------------------------------------------------------------------------- memory


def memory_budget(device: torch.device, fraction: float | None) -> float:
    """Bytes that training may take.

    Parameters
    ----------
    device : torch.device
    fraction : float, optional
        By default 0.8 of a GPU's memory, less what other programs hold; elsewhere 0.5 of what the computer, or the job
        that this process is in, has free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return (0.8 if fraction is None else fraction) * total - others
    free = psutil.virtual_memory().available
    limit, used = (_read_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return (0.5 if fraction is None else fraction) * free


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not Linux, or no limit
        return None


class _Memory:
    """What work takes at its height: on a GPU all that is reserved, elsewhere what it adds to the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _free_memory(device)
        self.before = 0 if device.type == "cuda" else _resident()

    def of(self, work: Callable[[], None]) -> float:
        """Bytes; infinity where there are not enough."""
        _free_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            try:
                work()
            except torch.OutOfMemoryError:
                return math.inf
            return torch.cuda.max_memory_reserved(self.device)
        highest = _resident()
        done = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not done.wait(0.002):
                highest = max(highest, _resident())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            work()
        finally:
            done.set()
            thread.join()
        return max(highest, _resident()) - self.before


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _free_memory(device: torch.device) -> None:
    """Give back what is held in reserve, or a small batch after a large one would look like it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if hasattr(ctypes, "RTLD_GLOBAL") else None
    if trim is not None:  # glibc
        trim(0)


# ------------------------------------------------------------------------------------------------------------- search


def find_batch_size(
    task: Task,
    dataset: SampleDataset,
    rows: NDArray[np.int64],
    device: torch.device,
    *,
    mixed_precision: str,
    fraction: float | None,
    copies: int,
    most: int | None = None,
) -> FoundBatchSize:
    """The largest batch size whose largest batch fits into memory; nothing is learnt.

    Sizes are doubled as long as they fit (on a processor, as long as twice the memory would do, so that the computer
    never runs out of it); one try between the last two follows.

    Parameters
    ----------
    task : Task
        On the device.
    dataset : SampleDataset
        Of training.
    rows : ndarray (N,)
        The training samples.
    device : torch.device
    mixed_precision : str
        See `aam.training.trainer.precision`.
    fraction : float, optional
        See `memory_budget`.
    copies : int
        What the optimizer and an average of the weights keep, in copies of the weights.
    most : int, optional
        Samples; by default so many that an epoch has eight batches.

    Raises
    ------
    DataError
        If not even two samples fit.
    """
    bounds = BatchBounds.of(dataset, rows)
    most = max(2, len(rows) // _LEAST_BATCHES) if most is None else most
    most = min(most, len(rows))
    random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    kept = copies * sum(p.numel() * p.element_size() for p in task.model.parameters() if p.requires_grad)
    task.train()

    def work(samples: int) -> None:
        batch = largest_batch(dataset, bounds, samples).to(device)
        with precision(mixed_precision, device):
            loss = task.loss(batch).total
        loss.backward()

    def taken(samples: int) -> float:
        found = memory.of(lambda: work(samples)) + kept
        task.model.zero_grad(set_to_none=True)
        return found

    size = min(2, most)
    with suppress(torch.OutOfMemoryError):
        work(size)  # what the libraries set up once is no part of a batch
    task.model.zero_grad(set_to_none=True)
    budget = memory_budget(device, fraction)
    memory = _Memory(device)
    takes = taken(size)
    if takes > budget:
        raise DataError(
            f"--batch-size auto: {size} samples take {_shown(takes)}, and there are {_shown(budget)}; raise "
            "--max-memory-fraction, or encode ASVs in pieces with --asv-chunk-size 256"
        )
    while size < most:
        double = min(2 * size, most)
        if device.type != "cuda" and takes * double / size > budget:
            break
        takes_double = taken(double)
        if takes_double > budget:
            break
        size, takes = double, takes_double
    between = _round(min(most, int(0.95 * size * budget / takes), 2 * size - 1))
    if between > size and (takes_between := taken(between)) <= budget:
        size, takes = between, takes_between
    torch.set_rng_state(random[0])
    if random[1]:
        torch.cuda.set_rng_state_all(random[1])
    return FoundBatchSize(size, takes, budget)


def _round(samples: int) -> int:
    """Down to a multiple of 8, from 16 on."""
    return samples // 8 * 8 if samples >= 16 else samples


def _shown(size: float) -> str:
    return "more than there is" if math.isinf(size) else f"{size / 1e9:.2f} GB"
