"""Optimizers by name, and the groups of parameters that each learns at a rate of its own.

A further optimizer is one entry of `OPTIMIZERS` and its name in `aam.config.OptimConfig`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aam.config import OptimConfig

__all__ = [
    "OPTIMIZERS",
    "Group",
    "Joined",
    "OptimizerRecord",
    "build_optimizer",
    "parameter_groups",
    "peak_learning_rates",
]

Group = dict[
    str, Any
]  # as torch has it: params, lr, weight_decay; and name, peak_lr (what the schedule takes a share of)

_BETAS = (0.9, 0.98)  # the second moment of runs of a few hundred steps must not remember for a thousand


@dataclass(frozen=True)
class OptimizerRecord:
    """An optimizer that ``--optimizer`` may name."""

    name: str
    build: Callable[[list[Group]], torch.optim.Optimizer]
    sharded: bool  # whether it takes parameters of which each process holds a part (DTensor), with the same result
    description: str


def _adamw(groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=_BETAS, fused=True)


def _adam(groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=_BETAS, fused=True)


def _sgd(groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


def _radam(groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.RAdam(groups, betas=_BETAS, decoupled_weight_decay=True)


def _lamb(groups: list[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lamb

    # As in the paper, where decay is part of the update whose norm is compared with that of the weights. Without
    # adam_debias, a step would be divided by 1 - 0.9^t: the first would be ten times as long as the learning rate says.
    return Lamb(groups, betas=_BETAS, weight_decouple=False, adam_debias=True)


def _muon(groups: list[Group]) -> torch.optim.Optimizer:
    of_blocks = [group for group in groups if group["name"].endswith(_OF_BLOCKS)]
    others = [group for group in groups if not group["name"].endswith(_OF_BLOCKS)]
    # With this scaling an update is as large as AdamW's, so that one learning rate serves both (Liu et al. 2025).
    muon = [torch.optim.Muon(of_blocks, adjust_lr_fn="match_rms_adamw")] if of_blocks else []
    return Joined([*([_adamw(others)] if others else []), *muon])


OPTIMIZERS: dict[str, OptimizerRecord] = {
    record.name: record
    for record in (
        OptimizerRecord("adamw", _adamw, True, "Adam with decoupled decay (Loshchilov and Hutter 2019)"),
        OptimizerRecord("adam", _adam, True, "Adam with decay in the gradient (Kingma and Ba 2015)"),
        OptimizerRecord("sgd", _sgd, True, "gradient descent with momentum 0.9"),
        OptimizerRecord("radam", _radam, True, "Adam, rectified where it knows little yet (Liu et al. 2020)"),
        OptimizerRecord("lamb", _lamb, False, "Adam scaled by each tensor's norm (You et al. 2020)"),
        OptimizerRecord("muon", _muon, False, "orthogonalised updates of the blocks' matrices, AdamW elsewhere"),
    )
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of what is not frozen, with decay on matrices alone.

    Its parameter groups have a ``name`` and a ``peak_lr``, of which a schedule gives them a share.
    """
    optimizer = OPTIMIZERS[config.optimizer].build(parameter_groups(model, config))
    if config.lookahead:
        from pytorch_optimizer import Lookahead

        optimizer = Lookahead(optimizer, k=5, alpha=0.5)  # the paper's (Zhang et al. 2019)
    return optimizer


# ------------------------------------------------------------------------------------------------------------- groups

_MATRICES, _OF_BLOCKS, _VECTORS = " matrices", " matrices of blocks", " vectors"
_WRAPPED = re.compile(r"\b(_orig_mod|module)\.")  # what torch.compile and DDP put into names
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[Group]:
    """Parameters that learn at one rate and decay alike, in groups; the first has the rate of ``--lr``.

    Parameters
    ----------
    model : nn.Module
        Frozen parameters are left out.
    config : OptimConfig
    """
    trained = [(_WRAPPED.sub("", name), p) for name, p in model.named_parameters() if p.requires_grad]
    place = _places([name for name, _ in trained], config)
    found: dict[tuple[float, str, str], list[Tensor]] = defaultdict(list)
    for name, parameter in trained:
        label, lr = place(name)
        kind = _VECTORS if parameter.ndim < 2 else _MATRICES
        if config.optimizer == "muon" and parameter.ndim == 2 and _BLOCK.search(name):
            kind = _OF_BLOCKS
        found[lr, label, kind].append(parameter)
    kinds = (_MATRICES, _OF_BLOCKS, _VECTORS)
    order = sorted(found, key=lambda key: (key[1] == "head", -key[0], kinds.index(key[2])))
    return [
        {
            "name": label + kind,
            "params": found[lr, label, kind],
            "lr": lr,
            "peak_lr": lr,
            "weight_decay": 0.0 if kind == _VECTORS else config.weight_decay,
        }
        for lr, label, kind in order
    ]


def _places(names: list[str], config: OptimConfig) -> Callable[[str], tuple[str, float]]:
    """A parameter's name to the label of its group and its peak learning rate."""
    whole = not any(name.startswith("encoder.") for name in names)
    if whole or (config.head_lr is None and config.layer_decay is None):
        return lambda name: ("all", config.lr)
    layers = max((int(block[1]) + 1 for name in names if (block := _BLOCK.search(name))), default=1)
    head_lr = config.lr if config.head_lr is None else config.head_lr

    def place(name: str) -> tuple[str, float]:
        if not name.startswith("encoder."):
            return "head", head_lr
        if config.layer_decay is None:
            return "base", config.lr
        depth = _depth(name.removeprefix("encoder."), layers)
        if depth is None:
            return "base heads", config.lr
        return f"layer {depth}", config.lr * config.layer_decay ** (3 * layers + 1 - depth)

    return place


# Where a module of the base stands: the transformer that it belongs to, and at which end of it.
_STACK = (("asv_encoder.", 0), ("sample_encoder.", 1), ("transformer.", 2), ("pooling.", 2), ("norm.", 2))
_INPUTS = ("asv_encoder.token_embedding", "asv_encoder.position_")


def _depth(name: str, layers: int) -> int | None:
    """How far from the nucleotides, 0 for their embedding, a parameter of the base stands; None for its heads.

    The blocks of its three transformers, ``layers`` each, are counted through. What joins abundance goes with the block
    that reads it, a pooling or a final normalisation with the block before it.
    """
    if name.startswith(_INPUTS):
        return 0
    for prefix, stack in _STACK:
        if name.startswith(prefix):
            block = _BLOCK.search(name)
            if block is not None:
                return stack * layers + int(block[1]) + 1
            return stack * layers + 1 if name.startswith("sample_encoder.abundance.") else (stack + 1) * layers
    return None


def peak_learning_rates(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, float]]:
    """Every group's name and peak learning rate."""
    for group in optimizer.param_groups:
        yield group["name"], group["peak_lr"]


class Joined(torch.optim.Optimizer):
    """Several optimizers, each of some of the parameters, as one.

    Its groups and its state are theirs: a change of a group's rate reaches the optimizer that has the group.

    Parameters
    ----------
    optimizers : list of torch.optim.Optimizer
        At least one.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self._share()

    def add_param_group(self, param_group: Group) -> None:
        """Take a group of one of the optimizers as it is."""
        self.param_groups.append(param_group)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for each in self.optimizers:
            each.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for each in self.optimizers:
            each.state = self.state
            each.param_groups = [next(groups) for _ in each.param_groups]
