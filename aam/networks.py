"""The networks of a model file, whatever computes them: PyTorch, or of an exported model ONNX Runtime.

Shapes: ``B`` samples of a batch, ``C`` outputs, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from aam.config import TrainConfig
from aam.data.batch import Batch
from aam.errors import DataError
from aam.loaders import choose_device
from aam.models.sequence_predictor import SequencePredictor
from aam.training.checkpoint import build_model, load_weights, read_covariates, read_target, without_base_heads
from aam.training.ensemble import Ensemble, load_ensemble
from aam.training.trainer import precision

__all__ = ["Answer", "Networks", "TorchNetworks", "is_onnx", "open_networks", "require_network_of_torch"]


class Answer(NamedTuple):
    """What a network says of the samples of a batch."""

    output: NDArray[np.float32]  # (B, C)
    embedding: NDArray[np.float32]  # (B, D)


class Networks(Protocol):
    """The networks of a model file."""

    ensemble: Ensemble  # what the file says of them
    device: torch.device  # on which batches are to be

    def network(self, place: int) -> Callable[[Batch], Answer]:
        """What one of the file's models answers to batches."""


def open_networks(path: Path, settings: TrainConfig) -> Networks:
    """The networks of a model file of `aam train`, or of one that `aam export` wrote.

    Raises
    ------
    DataError
        If it is neither, or the machine has no such device.
    """
    if is_onnx(path):
        from aam.integrations.onnx_session import OnnxNetworks

        return OnnxNetworks(path, threads=settings.threads, device=settings.device)
    return TorchNetworks(path, choose_device(settings))


def require_network_of_torch(path: Path) -> None:
    """Refuse an exported model.

    Raises
    ------
    DataError
    """
    if is_onnx(path):
        raise DataError(f"{path}: an exported model, which `aam predict` and `aam info` take; give the run it is of")


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, or is called one."""
    if path.suffix == ".onnx":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    # The first field of an ONNX file is its version; a header in JSON begins at the ninth byte of a model file.
    return start[:1] == b"\x08" and start[8:] != b"{"


class TorchNetworks:
    """The networks of a model file, computed by PyTorch; see `Networks`.

    Parameters
    ----------
    path : Path
    device : torch.device
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.ensemble = load_ensemble(path)

    def module(self, place: int) -> SequencePredictor:
        """One of them, on the device."""
        file = self.ensemble.members[place].file
        target, covariates = read_target(file.header, self.path), read_covariates(file.header, self.path)
        if target is None:
            raise DataError(f"{self.path}: holds a model that predicts nothing; train them together")
        predictor = build_model(file.config.model, target.outputs, (), covariates)
        assert isinstance(predictor, SequencePredictor)
        load_weights(predictor, without_base_heads(file.weights), self.path)
        return predictor.to(self.device).eval()

    def network(self, place: int) -> Callable[[Batch], Answer]:
        """See `Networks`."""
        predictor, trained = self.module(place), self.ensemble.members[place].file.config.train

        def answer(batch: Batch) -> Answer:
            # In the arithmetic that the model was judged in: half precision rounds in the third digit.
            with torch.no_grad(), precision(trained.mixed_precision, self.device):
                found = predictor(batch.to(self.device))
            return Answer(_array(found.target), _array(found.encoded.embedding))

        return answer


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
