"""Checkpoints whose sharded tensors each process writes for itself, for models of which no process holds all.

``last.ckpt`` says where they are: in a folder beside it, in safetensors files, written and read by
`torch.distributed.checkpoint` for any number of processes. Its own format would be unpickled; this one is not.
"""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aam.errors import DataError
from aam.training.checkpoint import save_checkpoint
from aam.training.distributed import Processes, is_sharded

if TYPE_CHECKING:
    from aam.training.trainer import Trainer

__all__ = ["SHARDS", "fill_in_shards", "remove_shards", "save_sharded"]

SHARDS = "shards"  # the folder beside last.ckpt

Place = tuple[str | int, ...]  # keys that lead to a tensor


def save_sharded(path: Path, state: Mapping[str, Any], processes: Processes) -> None:
    """Write a state with sharded tensors. Every process has to call it.

    Parameters
    ----------
    path : Path
        Of the checkpoint, which the first process writes last: until then the one before is whole.
    state : mapping
        With ``trainer``, the trainer's own.
    processes : Processes
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    tensors = dict(_sharded(state))
    unused = _unused(path.parent / SHARDS, state["trainer"]["state"]["step"]) if processes.first else None
    folder: Path = processes.broadcast(unused)
    storage = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    checkpoint.save({_name(place): tensor for place, tensor in tensors.items()}, storage_writer=storage)
    processes.barrier()
    if not processes.first:
        return
    rest = _without(state, set(tensors))
    shapes = [(place, tuple(tensor.shape)) for place, tensor in tensors.items()]
    save_checkpoint(path, {**rest, "shards": {"folder": folder.name, "tensors": shapes}})
    remove_shards(path, except_for=folder.name)


def remove_shards(path: Path, except_for: str = "") -> None:
    """Remove shards beside a checkpoint that it does not speak of."""
    folder = path.parent / SHARDS
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != except_for and _is_ours(other.name):
            shutil.rmtree(other, ignore_errors=True)
    with suppress(OSError):  # it is not there, or holds something
        folder.rmdir()


def fill_in_shards(path: Path, saved: dict[str, Any], trainer: Trainer) -> None:
    """Put into a checkpoint what `save_sharded` left out of it: of each tensor what this process holds, or all.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    saved : dict
        As it was read; changed.
    trainer : Trainer
        That is going to load it.

    Raises
    ------
    DataError
        If shards are missing or damaged.
    """
    shards = saved.get("shards")
    if shards is None:
        return
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    if not _is_ours(str(shards["folder"])):
        raise DataError(f"{path}: names {shards['folder']!r} for its shards; start again with --overwrite")
    folder = path.parent / SHARDS / shards["folder"]
    try:
        known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors = {
            tuple(place): _room_for(_holder(trainer, place), tuple(shape), known[_name(place)])
            for place, shape in shards["tensors"]
        }
        with warnings.catch_warnings(action="ignore"):  # that a process which is alone is alone
            checkpoint.load(
                {_name(place): tensor for place, tensor in tensors.items()},
                storage_reader=HuggingFaceStorageReader(str(folder)),
                no_dist=True,
            )
    except Exception as error:  # of any kind: files of which one is missing or cut mislead the reader anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{folder}: its shards are not those of {path} ({reason}); start again with --overwrite"
        ) from None
    for (*keys, last), tensor in tensors.items():
        inner = saved
        for key in keys:
            inner = inner[key]
        inner[last] = tensor


def _sharded(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Every sharded tensor in nested mappings, and where it is."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _sharded(value, (*place, key))
    elif is_sharded(tree):
        yield place, tree


def _without(tree: Any, places: set[Place], place: Place = ()) -> Any:
    """The same with None at some places."""
    if place in places:
        return None
    if isinstance(tree, Mapping):
        return {key: _without(value, places, (*place, key)) for key, value in tree.items()}
    return tree


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def _unused(folder: Path, step: int) -> Path:
    """A place for the shards of a step, beside those of which the checkpoint still speaks."""
    folder.mkdir(exist_ok=True)
    number = 0
    while (folder / f"step_{step}_{number}").exists():
        number += 1
    return folder / f"step_{step}_{number}"


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"step_\d{1,18}_\d{1,9}", name) is not None


def _holder(trainer: Trainer, place: Place) -> object:
    """The weight that a stored tensor is, or belongs to."""
    section, *keys = place[1:]  # within `trainer`
    if section in ("model", "average"):
        return dict(trainer.task.model.named_parameters()).get(str(keys[-1]))
    if section == "optimizer":
        parameters: list[nn.Parameter] = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        return parameters[int(keys[1])]
    return None


def _room_for(holder: object, shape: tuple[int, ...], known: Any) -> Tensor:
    """An empty tensor, sharded as the weight is that it belongs to, for what the files are known to hold."""
    held = sum(math.prod(chunk.sizes) for chunk in known.chunks)
    if tuple(known.size) != shape or held != math.prod(shape):  # the reader would leave the rest as it is
        raise ValueError("parts are missing")
    dtype = known.properties.dtype
    if not is_sharded(holder) or holder.shape != shape:  # type: ignore[attr-defined]
        return torch.empty(shape, dtype=dtype)
    from torch.distributed.tensor import empty

    return empty(shape, dtype=dtype, device_mesh=holder.device_mesh, placements=holder.placements)  # type: ignore[attr-defined]
