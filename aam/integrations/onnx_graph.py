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
from dataclasses import replace
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
_SAMPLES = ("tokens", "asv_index", "counts", "depth")
_GIVES = ("answer", "embedding", "output")
_MOST_BYTES = 2_000_000_000
_TRACED: dict[tuple[object, ...], Any] = {}  # the last graph, for other networks that are alike
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


class _Member(nn.Module):
    """A network of `aam train`, with what its outputs mean. All that is its own is among its parameters and buffers.

    Parameters
    ----------
    network : SequencePredictor
    target : Target or SeveralTargets
    share : float
        What its answers weigh.
    kinds : tuple of str
        The covariates that it is given: ``categories``, ``numbers`` or both.
    """

    scale: Tensor
    shift: Tensor
    share: Tensor

    def __init__(
        self, network: SequencePredictor, target: Target | SeveralTargets, share: float, kinds: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.network = network
        self.scaled = _Scaled(network.encoder)
        self.target = target
        self.kinds = kinds
        parts = [part.target for part in parts_of(target) for _ in range(part.target.outputs)]
        scales = [(part.scale, part.shift) if isinstance(part, NumericTarget) else (1.0, 0.0) for part in parts]
        self.register_buffer("scale", torch.tensor([scale for scale, _ in scales], dtype=torch.float32))
        self.register_buffer("shift", torch.tensor([shift for _, shift in scales], dtype=torch.float32))
        self.register_buffer("share", torch.tensor(share, dtype=torch.float32))

    @property
    def structure(self) -> tuple[object, ...]:
        """Shapes of the parameters and buffers, and all else: one graph leads through all networks that are alike."""
        unscaled = [
            replace(part.target, shift=0.0, scale=1.0) if isinstance(part.target, NumericTarget) else part.target
            for part in parts_of(self.target)
        ]
        shapes = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.state_dict().items()]
        options = [module.extra_repr() for module in self.modules()]
        return repr(unscaled), repr(shapes), repr(options), self.network.encoder.sample_encoder.abundance.mode

    def forward(
        self, tokens: Tensor, asv_index: Tensor, counts: Tensor, depth: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (U, L), places (B, S), counts (B, S), depths (B,), and places of categories (B, Q) and numbers (B, K),
        to answers (B, C), times their share, embeddings (B, D) and outputs (B, C).
        """
        covariates = dict(zip(self.kinds, given, strict=True))
        output, encoded = _answer(self.network, _batch(self.scaled(tokens), asv_index, counts, depth, covariates))
        return self.share * _decoded(self.target, output, self.scale, self.shift), encoded, output


def _answer(network: SequencePredictor, batch: Batch) -> tuple[Tensor, Tensor]:
    predicted = network(batch)
    return predicted.target, predicted.encoded.embedding


def _decoded(target: Target | SeveralTargets, output: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`aam.training.tasks.answers_of` in operations of a graph; scale and shift (C,) are the target's."""
    if isinstance(target, SeveralTargets):
        places = [(part.target, part.outputs) for part in parts_of(target)]
        return torch.cat([_decoded(part, output[:, own], scale[own], shift[own]) for part, own in places], dim=1)
    if isinstance(target, ClassTarget):
        return output.softmax(dim=1)
    assert isinstance(target, NumericTarget)
    values = (output.sort(dim=1).values if target.outputs > 1 else output) * scale + shift
    if target.transform.startswith("log"):
        values = values.clamp(max=50).exp() - 1  # ONNX has no expm1
    if target.lower is not None or target.upper is not None:
        values = values.clamp(target.lower, target.upper)
    return values


class PredictorGraph:
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
        of_fold = {fold: folds.count(fold) for fold in folds}
        self.networks, self.targets, self.sizes = list(networks), list(targets), sizes
        self.shares = [1 / (of_fold[fold] * len(of_fold)) for fold in folds]
        self.given = given_names(*sizes, len(networks))

    @property
    def signature(self) -> Signature:
        """``output`` is as the network gives it, ``prediction`` in the units of the column, or probabilities."""
        each = ("output",) if len(self.networks) == 1 else tuple(f"output_{i}" for i in range(len(self.networks)))
        given = tuple(name for names in self.given for name in names)
        return Signature((*_SAMPLES, *given), ("prediction", "embedding", *each))

    def model(self, max_bp: int, opset: int) -> Any:
        """As ONNX. Networks that are alike are traced once, and the graph is repeated with the weights of each."""
        import onnx_ir as ir

        kinds = tuple(name.partition("_")[0] for name in self.given[0])
        inputs: dict[str, Any] = {}
        answers, embeddings, outputs, nodes, weights = [], [], [], [], []
        model = None
        for place, (network, target, share) in enumerate(zip(self.networks, self.targets, self.shares, strict=True)):
            member = _Member(network, target, share, kinds).eval()
            key = (*member.structure, kinds, self.sizes, max_bp, opset)
            if key not in _TRACED:
                _TRACED.clear()  # it holds weights
                _TRACED[key] = _traced(member, (*_SAMPLES, *kinds), _GIVES, self.sizes, max_bp, opset)
            model = _TRACED[key]
            own = _copy(model.graph, member.state_dict(), f"network_{place}.")
            for kind, value in zip((*_SAMPLES, *kinds), own.inputs, strict=True):
                name = kind if kind in _SAMPLES else self.given[place][kinds.index(kind)]
                if name in inputs:
                    value.replace_all_uses_with(inputs[name])
                else:
                    value.name = name
                    inputs[name] = value
            answer, embedding, output = own.outputs
            answers.append(answer)
            embeddings.append(embedding)
            outputs.append(output)
            of_graph, of_weights = list(own), list(own.initializers.values())
            own.outputs.clear()
            own.inputs.clear()
            own.remove(of_graph)
            own.initializers.clear()
            nodes += of_graph
            weights += of_weights
        assert model is not None
        mean = ir.node("Sum", answers)
        mean.outputs[0].type, mean.outputs[0].shape = answers[0].type, answers[0].shape
        names = self.signature
        gives = [mean.outputs[0], embeddings[0], *outputs]
        for value, name in zip(gives, names.outputs, strict=True):
            value.name = name
        graph = ir.Graph(
            [inputs[name] for name in names.inputs],
            gives,
            nodes=[*nodes, mean],
            initializers=weights,
            opset_imports=dict(model.graph.opset_imports),
            name="aam",
        )
        return ir.Model(graph, ir_version=model.ir_version, producer_name="aam")


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

    @property
    def signature(self) -> Signature:
        """``unifrac_clade`` is what the clade head reads of UniFrac, and so on."""
        heads = {name: self.encoder.heads(target) for name, target in self.encoder.targets.items()}
        readings = (f"{name}_{head}" for name, of_target in heads.items() for head in of_target)
        return Signature(_SAMPLES, ("embedding", *readings))

    def forward(self, tokens: Tensor, asv_index: Tensor, counts: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
        """Embeddings (B, D); distances (B, B), values (B,), and shares (B, T)."""
        encoded = self.encoder(_batch(self.scaled(tokens), asv_index, counts, depth, {}))
        found = [encoded.embedding]
        for target in self.encoder.targets.values():
            for reading in self.encoder.read(target, encoded.summary).values():
                found.append(reading.exp() if target.kind == "composition" else reading)
        return tuple(found)

    def model(self, max_bp: int, opset: int) -> Any:
        """As ONNX."""
        return _traced(self.eval(), *self.signature, (0, 0), max_bp, opset)


def write_graph(
    path: Path,
    graph: PredictorGraph | EncoderGraph,
    *,
    opset: int,
    max_bp: int,
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
    header : mapping
        Whatever JSON takes: what a model file says of itself.
    arrays : mapping of str to Tensor
        What it knows beside its weights.
    reading : mapping
        How samples become inputs, for who does not read them by AAM.

    Raises
    ------
    DataError
        If PyTorch cannot express the networks so, or they are more than one file takes.
    """
    import onnx_ir as ir
    from safetensors.torch import save

    model = graph.model(max_bp, opset)
    if model.graph.opset_imports[""] != opset:
        raise DataError(f"--opset {opset}: came out as opset {model.graph.opset_imports['']}; give another")
    kept = base64.b64encode(save({name: array.contiguous() for name, array in arrays.items()})).decode("ascii")
    size = len(kept) + sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > _MOST_BYTES:
        raise DataError(f"{path}: would be {size / 1e9:.1f} GB, and an ONNX file holds 2; export one of its models")
    model.metadata_props.update({HEADER: json.dumps(header), READING: json.dumps(reading), ARRAYS: kept})
    ir.save(model, path)


def _traced(
    module: nn.Module,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: tuple[int, int],
    max_bp: int,
    opset: int,
) -> Any:
    """A module as ONNX, its parameters and buffers under their own names."""
    example, shapes = _example(inputs, max_bp, sizes)
    with _quietly(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                optimize=False,  # which would fold weights into others; runtimes do it themselves
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise DataError(f"PyTorch {torch.__version__} does not export this model: {reason}") from None
    assert program is not None
    _tidy(program.model.graph)
    return program.model


def _copy(graph: Any, state: Mapping[str, Tensor], prefix: str) -> Any:
    """A graph with other weights, under names that begin with ``prefix``."""
    import onnx_ir as ir

    copy = graph.clone()
    for name, value in list(copy.initializers.items()):
        if name in state:
            value.const_value = ir.tensor(state[name].numpy(), name=prefix + name)
        value.name = prefix + name
    for node in copy.all_nodes():
        node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            value.name = f"{prefix}{value.name}"
    return copy


def _tidy(graph: Any) -> None:
    """Without where in whose files each step stands, and with names within that are none of the outputs'."""
    given = {id(value) for value in graph.outputs}
    number = 0
    for place, node in enumerate(graph.all_nodes()):
        node.metadata_props.clear()
        node.doc_string = None
        node.name = f"step_{place}"
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in given:
                value.name = f"value_{number}"
                number += 1


def _example(inputs: Sequence[str], max_bp: int, sizes: tuple[int, int]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs of some shape, and which of their dimensions may differ."""
    number = _EXAMPLE | {"length": min(_EXAMPLE["length"], max_bp + 1)}
    dims = {name: torch.export.Dim(name) for name in _EXAMPLE}
    dims["length"] = torch.export.Dim("length", max=max_bp + 1)
    of_samples = number["samples"], number["asvs_per_sample"]
    counts = torch.ones(of_samples)
    tensors = {
        "tokens": torch.ones(number["asvs"], number["length"], dtype=torch.int64),
        "asv_index": torch.zeros(of_samples, dtype=torch.int64),
        "counts": counts,
        "depth": counts.sum(dim=1),
        "categories": torch.zeros(number["samples"], sizes[0], dtype=torch.int64),
        "numbers": torch.zeros(number["samples"], sizes[1]),
    }
    in_samples: dict[int, Any] = {0: dims["samples"], 1: dims["asvs_per_sample"]}
    shapes: list[Any] = [{0: dims["asvs"], 1: dims["length"]}, in_samples, in_samples, {0: dims["samples"]}]
    given = [{0: dims["samples"]} for _ in inputs[len(_SAMPLES) :]]
    if given:
        shapes.append(tuple(given))  # what `forward` takes as *given
    return tuple(tensors[name] for name in inputs), tuple(shapes)


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
