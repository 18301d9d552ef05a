"""How a model is computed on this machine: TF32, attention kernels, compiled blocks. Results differ by rounding."""

from __future__ import annotations

import logging

import torch

from aam.config import TrainConfig
from aam.errors import DataError
from aam.models.attention import Call, SelfAttention, choose_kernel, kernels_that_run
from aam.training.compilation import BLOCKS_AT_ONCE, compile_blocks
from aam.training.tasks import Task
from aam.training.trainer import arithmetic_type

__all__ = ["choose_attention", "prepare_kernels", "set_tf32"]

logger = logging.getLogger("aam")

_CALLS = tuple(Call(masked, dropout) for masked in (False, True) for dropout in (False, True))


def prepare_kernels(
    task: Task, config: TrainConfig, device: torch.device, padded: bool, blocks_at_once: int = BLOCKS_AT_ONCE
) -> None:
    """Set up what ``--tf32``, ``--attn-implementation`` and ``--compile-model`` ask for.

    Parameters
    ----------
    task : Task
        On the device, and not yet wrapped for several processes.
    config : TrainConfig
    device : torch.device
    padded : bool
        Whether the study's sequences differ in length.
    blocks_at_once : int
        Most blocks that are compiled as one graph.

    Raises
    ------
    DataError
        If the attention kernel cannot run here.
    """
    set_tf32(config.tf32, device)
    choose_attention(task, config, device, padded)
    if config.compile_model:
        at_once = 1 if config.strategy == "fsdp" else blocks_at_once  # FSDP gathers the weights of each by itself
        compile_blocks(task, config.mixed_precision, device, padded, at_once)


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Let matrix products of float32 on an NVIDIA GPU round their factors to TF32, or not."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    elif allowed:
        logger.info("--tf32 does nothing on %s: it is for NVIDIA GPUs", device.type)


def choose_attention(task: Task, config: TrainConfig, device: torch.device, padded: bool) -> None:
    """Let attention be computed by the kernel that was asked for wherever it can; say where it cannot.

    See `prepare_kernels`.
    """
    name = config.attn_implementation
    if name == "auto":
        choose_kernel(task.model, {})
        return
    attention = next(module for module in task.model.modules() if isinstance(module, SelfAttention))
    dtype = arithmetic_type(config.mixed_precision)
    head_width = attention.qkv.in_features // attention.heads
    runs = {call: kernels_that_run(call, device, dtype, head_width) for call in _CALLS}
    with_dropout = any(module.dropout > 0 for module in task.model.modules() if isinstance(module, SelfAttention))
    asvs, samples = Call(padded, False), Call(True, with_dropout)
    here = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    if name not in runs[asvs] | runs[samples]:
        possible = ", ".join(kernel for kernel in ("flash", "mem_efficient", "math") if kernel in runs[asvs])
        raise DataError(
            f"--attn-implementation {name}: PyTorch {torch.__version__} has no such kernel {here}"
            f"{' for sequences of different lengths' if padded else ''}; there are {possible}, and auto takes the best"
        )
    chosen = {call: _nearest(name, kernels) for call, kernels in runs.items()}
    before = attention.kernels
    choose_kernel(task.model, chosen)
    if attention.kernels == before:  # chosen before, when a batch size was searched for, and told then
        return
    for what, call in {"nucleotides": asvs, "the ASVs of samples in training": samples}.items():
        if chosen[call] != name:
            lacks = "dropout" if call.dropout and name in runs[call._replace(dropout=False)] else "mask"
            logger.warning(
                "--attn-implementation %s takes no %s %s: attention over %s is computed by %s",
                *(name, lacks, here, what, chosen[call]),
            )


def _nearest(name: str, kernels: set[str]) -> str:
    """The kernel of that name, or else the one that needs the least memory."""
    return next(kernel for kernel in (name, "flash", "mem_efficient", "math") if kernel in kernels)
