"""Transformer blocks compiled in place: what ``--compile-model`` does."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aam.models.transformer import Transformer, TransformerBlock
from aam.training.tasks import Task
from aam.training.trainer import precision

__all__ = ["compile_blocks", "graphs_compiled"]

logger = logging.getLogger("aam")

# All blocks share their graphs. There is one for each of: with a mask or without, with dropout or without, training or
# not, learning or frozen, one element or more.
_MOST_GRAPHS = 32
_SHAPE = (5, 16)  # sequences and elements of the first inputs: unlike each other, lest they be taken for one size
_ALIGNED = 8


def compile_blocks(task: Task, mixed_precision: str, device: torch.device, padded: bool) -> bool:
    """Compile every transformer block of a model in place; names of weights do not change.

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
                transformer.fewest_sequences, transformer.elements_of = 2, _ALIGNED
                for block in transformer.blocks:
                    block.compile(dynamic=True)
            with _undisturbed(task, device), precision(mixed_precision, device):
                for transformer in transformers:
                    _try_out(
                        task, transformer, device, padded or transformer is not task.encoder.asv_encoder.transformer
                    )
    except Exception as error:  # of any kind: compilers and what they call fail in their own ways
        for transformer in transformers:
            transformer.fewest_sequences = transformer.elements_of = 1
            for block in transformer.blocks:
                block._compiled_call_impl = None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("--compile-model: nothing is compiled, since PyTorch cannot do it here (%s)", reason[0])
        return False
    logger.info("compiled the transformer blocks in %.0f s", time.monotonic() - began)
    return True


def graphs_compiled() -> int:
    """How many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _try_out(task: Task, transformer: Transformer, device: torch.device, masked: bool) -> None:
    """Compute with every kind of input that a run has."""
    block = transformer.blocks[0]
    assert isinstance(block, TransformerBlock)
    weight = block.expand.weight
    # A result of something, as the input of a block is, and not a leaf.
    x = torch.zeros(*_SHAPE, weight.shape[1], device=device, dtype=weight.dtype, requires_grad=weight.requires_grad) * 1
    mask = torch.ones(_SHAPE, device=device, dtype=torch.bool) if masked else None
    task.train()
    learnt: Tensor = block(x, mask)
    if learnt.requires_grad:
        learnt.sum().backward()
    task.model.eval()
    with torch.no_grad():
        block(x.detach(), mask)
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
