"""Networks as one ONNX graph, which any runtime computes without PyTorch.

The steps are those of the modules that were trained, with three differences that change no answer: every batch is
masked, ASVs are encoded all at once, and the scale that reference ASVs give is a constant.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``C`` outputs, ``Q`` categorical
and ``K`` numeric covariates, ``D`` width, ``M`` networks.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aam.data.batch import Batch
from aam.data.targets import ClassTarget, NumericTarget, SeveralTargets, Target, parts_of
from aam.errors import DataError
from aam.models.asv_encoder import ReferenceScale
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor

__all__ = [
    "ARRAYS",
    "HEADER",
    "OPSETS",
    "READING",
    "EncoderGraph",
    "PredictorGraph",
    "Signature",
    "given_names",
    "require_exporter",
    "write_graph",
]

OPSETS = (18, 19, 20)
HEADER, ARRAYS, READING = "aam", "aam_arrays", "aam_reading"  # of the metadata of a file
_EXAMPLE = {"asvs": 7, "length": 6, "samples": 3, "asvs_per_sample": 5}  # sizes that stand for any


def require_exporter() -> None:
    """Refuse to begin without the packages that write a graph and check it.

    Raises
    ------
    DataError
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"aam export needs the package {package}, which is not installed: pip install 'aam[onnx]'")


class Signature(NamedTuple):
    """What a graph takes and gives, by name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def given_names(categorical: int, numeric: int, networks: int) -> tuple[tuple[str, ...], ...]:
    """The inputs for covariates of each network, which knows their categories and their scale by its own samples."""
    of_kind = [name for name, number in (("categories", categorical), ("numbers", numeric)) if number]
    suffixes = [""] if networks == 1 else [f"_{place}" for place in range(networks)]
    return tuple(tuple(name + suffix for name in of_kind) for suffix in suffixes)


class _Scaled(nn.Module):
    """An encoder of ASVs whose reference ASVs are measured once."""

    mean: Tensor
    spread: Tensor

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.asv_encoder = encoder.asv_encoder
        with torch.no_grad():
            scale = self.asv_encoder.reference_scale()
        self.register_buffer("mean", scale.mean)
        self.register_buffer("spread", scale.spread)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.asv_encoder.embed_all_at_once(tokens, True, ReferenceScale(self.mean, self.spread))


def _batch(asvs: Tensor, asv_index: Tensor, counts: Tensor, depth: Tensor, given: Mapping[str, Tensor]) -> Batch:
    return Batch(
        sample_index=asv_index[:, 0],
        tokens=asvs,  # which are not read any more
        padded=True,
        asv_index=asv_index,
        counts=counts,
        depth=depth,
        categories=given.get("categories", asv_index[:, :0]),
        numbers=given.get("numbers", counts[:, :0]),
        asv_embeddings=asvs,
    )


class PredictorGraph(nn.Module):
    """Networks of `aam train`, and the mean of what they answer.

    Parameters
    ----------
    networks : sequence of SequencePredictor, length M
    targets : sequence of Target or SeveralTargets, length M
    folds : sequence of int, length M
        Networks of one fold count together as much as those of another.
    sizes : tuple of int
        Categorical and numeric covariates.
    """

    def __init__(
        self,
        networks: Sequence[SequencePredictor],
        targets: Sequence[Target | SeveralTargets],
        folds: Sequence[int],
        sizes: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.scaled = nn.ModuleList(_Scaled(network.encoder) for network in networks)
        self.targets = list(targets)
        of_fold = {fold: folds.count(fold) for fold in folds}
        self.shares = [1 / (of_fold[fold] * len(of_fold)) for fold in folds]
        self.given = given_names(*sizes, len(networks))

    @property
    def signature(self) -> Signature:
        """``output`` is as the network gives it, ``prediction`` in the units of the column, or probabilities."""
        each = ("output",) if len(self.networks) == 1 else tuple(f"output_{i}" for i in range(len(self.networks)))
        given = tuple(name for names in self.given for name in names)
        return Signature(("tokens", "asv_index", "counts", "depth", *given), ("prediction", "embedding", *each))

    def forward(
        self, tokens: Tensor, asv_index: Tensor, counts: Tensor, depth: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens (U, L), places (B, S), counts (B, S), depths (B,), and of each network places of categories (B, Q)
        and numbers (B, K), to predictions (B, C), embeddings (B, D) of the first and outputs (B, C) of each.
        """
        remaining = iter(given)
        outputs, embeddings = [], []
        for network, scaled, names in zip(self.networks, self.scaled, self.given, strict=True):
            own = {name.partition("_")[0]: next(remaining) for name in names}
            predicted = network(_batch(scaled(tokens), asv_index, counts, depth, own))
            outputs.append(predicted.target)
            embeddings.append(predicted.encoded.embedding)
        answers = [
            share * _decoded(target, output)
            for target, output, share in zip(self.targets, outputs, self.shares, strict=True)
        ]
        return (sum(answers[1:], start=answers[0]), embeddings[0], *outputs)


def _decoded(target: Target | SeveralTargets, output: Tensor) -> Tensor:
    """`aam.training.tasks.answers_of` in operations of a graph."""
    if isinstance(target, SeveralTargets):
        return torch.cat([_decoded(part.target, output[:, part.outputs]) for part in parts_of(target)], dim=1)
    if isinstance(target, ClassTarget):
        return output.softmax(dim=1)
    assert isinstance(target, NumericTarget)
    values = (output.sort(dim=1).values if target.outputs > 1 else output) * target.scale + target.shift
    if target.transform.startswith("log"):
        values = values.clamp(max=50).exp() - 1  # ONNX has no expm1
    if target.lower is not None or target.upper is not None:
        values = values.clamp(target.lower, target.upper)
    return values


class EncoderGraph(nn.Module):
    """An encoder of `aam pretrain`: embeddings, and what each head reads of each base target.

    Parameters
    ----------
    encoder : SequenceEncoder
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.scaled = _Scaled(encoder)
        self.given: tuple[tuple[str, ...], ...] = ((),)

    @property
    def signature(self) -> Signature:
        """``unifrac_clade`` is what the clade head reads of UniFrac, and so on."""
        heads = {name: self.encoder.heads(target) for name, target in self.encoder.targets.items()}
        readings = (f"{name}_{head}" for name, of_target in heads.items() for head in of_target)
        return Signature(("tokens", "asv_index", "counts", "depth"), ("embedding", *readings))

    def forward(self, tokens: Tensor, asv_index: Tensor, counts: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
        """Embeddings (B, D); distances (B, B), values (B,), and shares (B, T)."""
        encoded = self.encoder(_batch(self.scaled(tokens), asv_index, counts, depth, {}))
        found = [encoded.embedding]
        for target in self.encoder.targets.values():
            for reading in self.encoder.read(target, encoded.summary).values():
                found.append(reading.exp() if target.kind == "composition" else reading)
        return tuple(found)


def write_graph(
    path: Path,
    graph: PredictorGraph | EncoderGraph,
    *,
    opset: int,
    max_bp: int,
    sizes: tuple[int, int],
    header: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    reading: Mapping[str, Any],
) -> None:
    """Write a graph, for batches of any size.

    Parameters
    ----------
    path : Path
    graph : PredictorGraph or EncoderGraph
    opset : int
        One of `OPSETS`.
    max_bp : int
        Most bases of an ASV.
    sizes : tuple of int
        Categorical and numeric covariates.
    header : mapping
        Whatever JSON takes: what a model file says of itself.
    arrays : mapping of str to Tensor
        What it knows beside its weights.
    reading : mapping
        How samples become inputs, for who does not read them by AAM.

    Raises
    ------
    DataError
        If PyTorch cannot express the networks so.
    """
    from safetensors.torch import save

    example, shapes = _example(graph, max_bp, sizes)
    signature = graph.signature
    with _quietly(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.eval(),
                example,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise DataError(f"{path}: PyTorch {torch.__version__} does not export this model: {reason}") from None
        assert program is not None
        if program.model.opset_imports[""] != opset:
            raise DataError(
                f"--opset {opset}: the model came out in {program.model.opset_imports['']}; give another opset"
            )
        _tidy(program.model.graph)
        program.model.metadata_props.update(
            {
                HEADER: json.dumps(header),
                READING: json.dumps(reading),
                ARRAYS: base64.b64encode(save({k: v.contiguous() for k, v in arrays.items()})).decode("ascii"),
            }
        )
        program.save(path)


def _tidy(graph: Any) -> None:
    """Without where in whose files each step stands, and with names within that are none of the outputs'."""
    given = {id(value) for value in graph.outputs}
    number = 0
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in given:
                value.name = f"value_{number}"
                number += 1


def _example(
    graph: PredictorGraph | EncoderGraph, max_bp: int, sizes: tuple[int, int]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs of some shape, and which of their dimensions may differ."""
    number = _EXAMPLE | {"length": min(_EXAMPLE["length"], max_bp + 1)}
    dims = {name: torch.export.Dim(name) for name in _EXAMPLE}
    dims["length"] = torch.export.Dim("length", max=max_bp + 1)

    def of(*names: str) -> tuple[int, ...]:
        return tuple(number[name] for name in names)

    counts = torch.ones(of("samples", "asvs_per_sample"))
    tensors = [
        torch.ones(of("asvs", "length"), dtype=torch.int64),
        torch.zeros(of("samples", "asvs_per_sample"), dtype=torch.int64),
        counts,
        counts.sum(dim=1),
    ]
    of_samples: dict[int, Any] = {0: dims["samples"], 1: dims["asvs_per_sample"]}
    shapes: list[Any] = [{0: dims["asvs"], 1: dims["length"]}, of_samples, of_samples, {0: dims["samples"]}]
    given = []
    for names in graph.given:
        for name in names:
            kind = name.partition("_")[0]
            width, dtype = (sizes[0], torch.int64) if kind == "categories" else (sizes[1], torch.float32)
            given.append(torch.zeros(number["samples"], width, dtype=dtype))
    if given:
        shapes.append(tuple({0: dims["samples"]} for _ in given))  # what `forward` takes as *given
    return (*tensors, *given), tuple(shapes)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says to who develops it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
