"""Transformer blocks compiled in place: what ``--compile-model`` does.

A call of compiled code costs the host about a millisecond forward and one backward, in which an H100 is done with a
block of a few hundred ASVs. So several blocks are compiled as one graph, where nothing is done between them.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aam.models.transformer import Transformer, through
from aam.training.tasks import Task
from aam.training.trainer import precision

__all__ = ["BLOCKS_AT_ONCE", "compile_blocks", "graphs_compiled"]

logger = logging.getLogger("aam")

# All groups of blocks share their graphs. There is one for each of: with a mask or without, with dropout or without,
# training or not, learning or frozen, one element or more.
_MOST_GRAPHS = 32
_SHAPE = (5, 16)  # sequences and elements of the first inputs: unlike each other, lest they be taken for one size
_ALIGNED = 8
BLOCKS_AT_ONCE = 4  # of a graph: what more would save the host is little, and the compiler takes longer with each


def compile_blocks(
    task: Task, mixed_precision: str, device: torch.device, padded: bool, at_once: int = BLOCKS_AT_ONCE
) -> bool:
    """Compile the transformer blocks of a model in place; names of weights do not change.

    Numbers of sequences and of elements are symbols in the compiled code, so that a handful of graphs does for batches
    of any shape. What training and validation need is compiled here, on small inputs: a machine without a compiler is
    told from the first, and no batch waits.

    Parameters
    ----------
    task : Task
        On the device, and not yet wrapped for several processes.
    mixed_precision : str
    device : torch.device
    padded : bool
        Whether the study's sequences differ in length.
    at_once : int
        Most blocks of a graph; so many as divide them evenly, and 1 where blocks are computed again in the backward
        pass. Where each is a unit of its own, as FSDP shards them, it has to be 1.

    Returns
    -------
    bool
        False where nothing can be compiled here; a warning then says why, and the model is computed as it was.
    """
    began = time.monotonic()
    transformers = [module for module in task.model.modules() if isinstance(module, Transformer)]
    try:
        with _quiet():
            import torch._dynamo as dynamo

            dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MOST_GRAPHS)
            for transformer in transformers:
                _compile(transformer, 1 if transformer.gradient_checkpointing else at_once)
            with _undisturbed(task, device), precision(mixed_precision, device):
                for transformer in transformers:
                    _try_out(
                        task, transformer, device, padded or transformer is not task.encoder.asv_encoder.transformer
                    )
    except Exception as error:  # of any kind: compilers and what they call fail in their own ways
        for transformer in transformers:
            _leave_plain(transformer)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("--compile-model: nothing is compiled, since PyTorch cannot do it here (%s)", reason[0])
        return False
    logger.info("compiled the transformer blocks in %.0f s", time.monotonic() - began)
    return True


def _compile(transformer: Transformer, at_once: int) -> None:
    transformer.fewest_sequences, transformer.elements_of = 2, _ALIGNED
    number = len(transformer.blocks)
    transformer.blocks_at_once = max(size for size in range(1, at_once + 1) if number % size == 0)
    if transformer.blocks_at_once > 1:
        transformer.through = torch.compile(through, dynamic=True)
        return
    for block in transformer.blocks:  # as modules, whose hooks are kept
        block.compile(dynamic=True)


def _leave_plain(transformer: Transformer) -> None:
    transformer.fewest_sequences = transformer.elements_of = transformer.blocks_at_once = 1
    transformer.through = through
    for block in transformer.blocks:
        block._compiled_call_impl = None


def graphs_compiled() -> int:
    """How many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _try_out(task: Task, transformer: Transformer, device: torch.device, masked: bool) -> None:
    """Compute with every kind of input that a run has."""
    blocks = list(transformer.blocks)[: transformer.blocks_at_once]
    weight = transformer.norm.weight
    # A result of something, as the input of a block is, and not a leaf.
    x = torch.zeros(*_SHAPE, len(weight), device=device, dtype=weight.dtype, requires_grad=weight.requires_grad) * 1
    mask = torch.ones(_SHAPE, device=device, dtype=torch.bool) if masked else None
    task.train()
    learnt: Tensor = transformer.through(blocks, x, mask)
    if learnt.requires_grad:
        learnt.sum().backward()
    task.model.eval()
    with torch.no_grad():
        transformer.through(blocks, x.detach(), mask)
    task.train()


@contextmanager
def _undisturbed(task: Task, device: torch.device) -> Iterator[None]:
    """Leave no gradient behind, and draw nothing that training would draw."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    task.model.zero_grad(set_to_none=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch warns of within its compiler, and logs of an error that is told in one line."""
    logs = logging.getLogger("torch")
    level = logs.level
    logs.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logs.setLevel(level)
