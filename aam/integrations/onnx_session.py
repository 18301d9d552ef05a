"""Models that `aam export` wrote, computed by ONNX Runtime."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from aam.config import RunConfig
from aam.data.batch import Batch
from aam.errors import DataError
from aam.integrations.onnx_graph import ARRAYS, HEADER
from aam.training.checkpoint import ModelFile, header_of
from aam.training.ensemble import Ensemble, ensemble_of

if TYPE_CHECKING:
    import onnxruntime

    from aam.networks import Answer

__all__ = ["OnnxNetworks", "feeds", "read_onnx", "session_of"]


def session_of(path: Path, *, threads: int | None = None, device: str = "cpu") -> onnxruntime.InferenceSession:
    """A graph, ready to run.

    Parameters
    ----------
    path : Path
    threads : int, optional
    device : {"auto", "cpu", "cuda", "mps"}

    Raises
    ------
    DataError
        If ONNX Runtime is missing, finds no such device, or cannot read the file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise DataError(f"{path}: needs the package onnxruntime, which is not installed: pip install 'aam[onnx]'")
    import onnxruntime as ort

    of_device = {"auto": "CUDAExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}
    wanted, there = of_device.get(device), ort.get_available_providers()
    if device != "auto" and wanted is not None and wanted not in there:
        raise DataError(f"--device {device}: ONNX Runtime {ort.__version__} finds none here; use --device auto")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = [wanted] if wanted in there else []
    try:
        return ort.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # its own kinds, of no common base
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a model that ONNX Runtime reads ({reason[:150]}); export it again, or take another copy"
        ) from None


def read_onnx(session: onnxruntime.InferenceSession, path: Path) -> ModelFile:
    """What an exported model says of itself, without weights.

    Raises
    ------
    DataError
        If AAM did not write it, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    said = session.get_modelmeta().custom_metadata_map
    if HEADER not in said:
        raise DataError(f"{path}: an ONNX model, but none of AAM; give one that `aam export` wrote")
    header = header_of(said[HEADER], path)
    try:
        arrays = load(base64.b64decode(said[ARRAYS], validate=True))
    except (KeyError, ValueError, SafetensorError):
        raise DataError(f"{path}: damaged; export it again, or take another copy") from None
    weights = {name: array for name, array in arrays.items() if name.startswith("members.")}
    beside = {name: array for name, array in arrays.items() if name not in weights}
    return ModelFile(RunConfig.model_validate(header.pop("config")), header, weights, beside)


def feeds(
    batch: Batch,
    names: Sequence[str],
    given: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """A batch as the inputs of these names.

    Parameters
    ----------
    batch : Batch
    names : sequence of str
    given : mapping of str to ndarray, optional
        What stands in for the batch's own.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        if given is not None and name in given:
            found[name] = given[name]
            continue
        kind = name if name in ("tokens", "asv_index", "counts", "depth") else name.partition("_")[0]
        values: NDArray[Any] = getattr(batch, kind).cpu().numpy()
        found[name] = values.astype(np.int64) if kind == "tokens" else values
    return found


class OnnxNetworks:
    """The networks of an exported model; see `aam.networks.Networks`.

    Parameters
    ----------
    path : Path
    threads : int, optional
    device : {"auto", "cpu", "cuda", "mps"}

    Raises
    ------
    DataError
        See `session_of` and `read_onnx`.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str = "cpu") -> None:
        self.path = path
        self.device = torch.device("cpu")  # where batches are made
        self.session = session_of(path, threads=threads, device=device)
        self.ensemble: Ensemble = ensemble_of(read_onnx(self.session, path), path)
        self.inputs = [each.name for each in self.session.get_inputs()]
        outputs = {each.name for each in self.session.get_outputs()}
        predicts = "target" in self.ensemble.members[0].file.header
        wanted = {"embedding", *(map(self._output, range(len(self.ensemble.members))) if predicts else ())}
        if not {"tokens", "asv_index", "counts"} <= set(self.inputs) or not wanted <= outputs:
            raise DataError(f"{path}: damaged (its inputs and outputs are not those of AAM); export it again")

    def _output(self, place: int) -> str:
        return "output" if len(self.ensemble.members) == 1 else f"output_{place}"

    def network(self, place: int) -> Callable[[Batch], Answer]:
        """What one of them answers to batches; the others are not computed."""
        import onnxruntime as ort

        from aam.networks import Answer

        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True
        options.log_severity_level = 4
        names = [self._output(place), *(["embedding"] if place == 0 else [])]

        def answer(batch: Batch) -> Answer:
            try:
                found = self.session.run(names, feeds(batch, self.inputs), options)
            except Exception as error:  # its own kinds, of no common base
                reason = " ".join(str(error).split())
                raise DataError(f"{self.path}: ONNX Runtime could not compute it ({reason[:150]})") from None
            embedding = found[1] if place == 0 else np.empty((len(batch), 0), dtype=np.float32)
            return Answer(found[0], embedding)

        return answer
