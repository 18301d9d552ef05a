"""Models that `aam export` wrote, computed by ONNX Runtime."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from aam.config import RunConfig
from aam.data.batch import Batch
from aam.errors import DataError
from aam.integrations.onnx_graph import ARRAYS, HEADER, READING
from aam.training.checkpoint import ModelFile, header_of
from aam.training.ensemble import Ensemble, ensemble_of

if TYPE_CHECKING:
    import onnxruntime

    from aam.networks import Answer

__all__ = ["OnnxNetworks", "feeds", "header_of_onnx", "read_onnx", "run", "session_of"]


def session_of(
    source: Path | bytes,
    *,
    threads: int | None = None,
    device: str = "cpu",
    optimized: bool = True,
    name: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A graph, ready to run.

    Parameters
    ----------
    source : Path or bytes
        The file, or its content.
    threads : int, optional
    device : {"auto", "cpu", "cuda", "mps"}
    optimized : bool
        Whether it is to be quick, which takes a while first.
    name : Path, optional
        What messages call it; by default the file.

    Raises
    ------
    DataError
        If ONNX Runtime is missing, finds no such device, or cannot read the file.
    """
    if name is None and isinstance(source, Path):
        name = source
    if importlib.util.find_spec("onnxruntime") is None:
        raise DataError(f"{name}: needs the package onnxruntime, which is not installed: pip install 'aam[onnx]'")
    import onnxruntime as ort

    of_device = {"auto": "CUDAExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}
    wanted, there = of_device.get(device), ort.get_available_providers()
    if device != "auto" and wanted is not None and wanted not in there:
        raise DataError(f"--device {device}: ONNX Runtime {ort.__version__} finds none here; use --device auto")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = [wanted] if wanted in there else []
    try:
        return ort.InferenceSession(
            str(source) if isinstance(source, Path) else source,
            options,
            providers=[*providers, "CPUExecutionProvider"],
        )
    except Exception as error:  # its own kinds, of no common base
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: not a model that ONNX Runtime reads ({reason[:150]}); export it again, or take another copy"
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


def header_of_onnx(path: Path) -> dict[str, Any]:
    """What an exported model says of itself, as `aam.training.checkpoint.read_header` gives it, and its ``opset``.

    Raises
    ------
    DataError
        See `session_of` and `read_onnx`.
    """
    session = session_of(path, optimized=False)
    read_onnx(session, path)
    said = session.get_modelmeta().custom_metadata_map
    try:
        opset = json.loads(said[READING])["opset"]
    except (KeyError, TypeError, ValueError):
        opset = "?"
    return {**header_of(said[HEADER], path), "opset": opset}


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
        self.threads, self.chosen = threads, device
        session = session_of(path, optimized=False)
        self.ensemble: Ensemble = ensemble_of(read_onnx(session, path), path)
        outputs = {each.name for each in session.get_outputs()}
        predicts = self.ensemble.members[0].file.header.get("target") is not None
        wanted = {"embedding", *(map(self._output, range(len(self.ensemble.members))) if predicts else ())}
        if (
            not {"tokens", "asv_index", "counts"} <= {each.name for each in session.get_inputs()}
            or not wanted <= outputs
        ):
            raise DataError(f"{path}: damaged (its inputs and outputs are not those of AAM); export it again")

    def _output(self, place: int) -> str:
        return "output" if len(self.ensemble.members) == 1 else f"output_{place}"

    @cached_property
    def _graph(self) -> Any:
        if importlib.util.find_spec("onnx_ir") is None:
            raise DataError(
                f"{self.path}: needs the package onnxscript, which is not installed: pip install 'aam[onnx]'"
            )
        import onnx_ir as ir

        try:
            return ir.load(self.path)
        except Exception as error:  # of any kind: a damaged file misleads the reader anywhere
            raise _damaged(self.path, error) from None

    def network(self, place: int) -> Callable[[Batch], Answer]:
        """What one of them answers to batches, with an embedding of the first alone."""
        from aam.networks import Answer

        names = [self._output(place), *(["embedding"] if place == 0 else [])]
        several = len(self.ensemble.members) > 1
        source = _part(self._graph, names, self.path) if several else self.path
        session = session_of(source, threads=self.threads, device=self.chosen, name=self.path)
        inputs = [each.name for each in session.get_inputs()]

        def answer(batch: Batch) -> Answer:
            found = run(session, names, feeds(batch, inputs), self.path)
            embedding = found[1] if place == 0 else np.empty((len(batch), 0), dtype=np.float32)
            return Answer(found[0], embedding)

        return answer


def run(
    session: onnxruntime.InferenceSession, names: Sequence[str], inputs: Mapping[str, NDArray[Any]], path: Path
) -> list[NDArray[Any]]:
    """Outputs of these names.

    Raises
    ------
    DataError
        If they cannot be computed.
    """
    try:
        found: list[NDArray[Any]] = session.run(list(names), dict(inputs))
    except Exception as error:  # its own kinds, of no common base
        raise DataError(f"{path}: ONNX Runtime could not compute it ({' '.join(str(error).split())[:150]})") from None
    return found


def _part(model: Any, outputs: Sequence[str], path: Path) -> bytes:
    """What of a graph leads to some of its outputs; for a runtime computes all, whatever it is asked for."""
    import onnx_ir as ir
    from onnx_ir.convenience import extract

    try:
        part = extract(model.graph, [value.name or "" for value in model.graph.inputs], list(outputs))
        written: bytes = ir.to_proto(ir.Model(part, ir_version=model.ir_version)).SerializeToString()
    except Exception as error:  # of any kind: see above
        raise _damaged(path, error) from None
    return written


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged ({' '.join(str(error).split())[:150]}); export it again, or take another copy")
