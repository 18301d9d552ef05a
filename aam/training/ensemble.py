"""Several models in one file: those of folds and of seeds, which predict together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.config import RunConfig
from aam.errors import DataError
from aam.training.checkpoint import ModelFile, load_model_file, save_model_file, stored_config

__all__ = ["Ensemble", "Member", "ensemble_of", "load_ensemble", "save_ensemble", "without_weights"]

_MEMBERS = "members"


class Member(NamedTuple):
    """A model of several."""

    name: str  # of its run, below that of all: fold_0, say
    fold: int  # models of one fold, with different seeds, have learnt from the same samples
    file: ModelFile


class Ensemble(NamedTuple):
    """A file that predicts: one model or several."""

    header: dict[str, Any]
    beside: dict[str, Tensor]
    members: list[Member]

    @property
    def folds(self) -> list[int]:
        """The fold of each member."""
        return [member.fold for member in self.members]


def save_ensemble(
    path: Path,
    members: list[Member],
    config: RunConfig,
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Write several models as one file.

    Parameters
    ----------
    path : Path
    members : list of Member
    config : RunConfig
        That of all of them together.
    header : mapping
        Whatever JSON takes.
    arrays : mapping of str to ndarray
        Kept beside the weights.
    """
    weights: dict[str, Tensor] = {}
    known = []
    for place, (name, fold, file) in enumerate(members):
        weights |= {f"{_MEMBERS}.{place}.weights.{key}": tensor for key, tensor in file.weights.items()}
        weights |= {f"{_MEMBERS}.{place}.beside.{key}": tensor for key, tensor in file.beside.items()}
        known.append({"name": name, "fold": fold, "config": file.config.model_dump(mode="json"), "header": file.header})
    beside = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_model_file(path, weights, config, {**header, _MEMBERS: known}, beside)


def load_ensemble(path: Path) -> Ensemble:
    """Read a model file, of one model or of several.

    Raises
    ------
    DataError
        If it is not one.
    """
    return ensemble_of(load_model_file(path, several=True), path)


def ensemble_of(file: ModelFile, path: Path) -> Ensemble:
    """The models of a file that has been read.

    Raises
    ------
    DataError
        If what it says of them is damaged.
    """
    if _MEMBERS not in file.header:
        return Ensemble(file.header, file.beside, [Member("", 0, file)])
    members = []
    try:
        for place, known in enumerate(file.header[_MEMBERS]):
            parts: dict[str, dict[str, Tensor]] = {"weights": {}, "beside": {}}
            for kind, tensors in parts.items():
                prefix = f"{_MEMBERS}.{place}.{kind}."
                tensors |= {k.removeprefix(prefix): t for k, t in file.weights.items() if k.startswith(prefix)}
            own = ModelFile(stored_config(known["config"]), dict(known["header"]), **parts)
            members.append(Member(str(known["name"]), int(known["fold"]), own))
        if not members:
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: what it says of its models is damaged; train again, or take another copy") from None
    return Ensemble(file.header, file.beside, members)


def without_weights(file: ModelFile) -> ModelFile:
    """What a file of one model or of several knows beside the weights, as `ensemble_of` takes it."""
    kept = {name: tensor for name, tensor in file.weights.items() if name.split(".")[2:3] == ["beside"]}
    return file._replace(weights=kept if _MEMBERS in file.header else {})
