"""From a model file to one that runs without PyTorch: the straight line behind ``aam export``.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``Q`` categorical and ``K``
numeric covariates.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aam.config import RunConfig, TrainConfig
from aam.data.batch import Batch, arrange
from aam.data.counts import SampleRows
from aam.data.covariates import Covariates
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.study import load_study
from aam.data.targets import SeveralTargets, Target
from aam.data.tokenizer import PAD
from aam.errors import DataError
from aam.integrations.onnx_graph import (
    EncoderGraph,
    PredictorGraph,
    given_names,
    require_exporter,
    write_graph,
)
from aam.integrations.onnx_session import feeds, run, session_of
from aam.loaders import loader
from aam.models.sequence_encoder import SequenceEncoder
from aam.networks import TorchNetworks
from aam.predict import data_as_trained, tracked
from aam.training.checkpoint import (
    FORMAT_VERSION,
    build_model,
    load_model_file,
    load_weights,
    model_path,
    read_base_targets,
    read_covariates,
    read_target,
)
from aam.training.ensemble import without_weights
from aam.training.tasks import answers_of

__all__ = ["TOLERANCE", "Difference", "Exported", "Timing", "export"]

TOLERANCE = 1e-5  # of the largest value of an output, and at least of 1
_MOST_SAMPLES = 256  # of the run's own table, that a file is checked on
_SHAPES = ((1, 1, 1, 0.2), (2, 3, 5, 1.0), (5, 17, 23, 0.6), (16, 40, 60, 1.0))  # B, S, U, and of L the share
_TIMED = ((1, 50, 50, 1.0), (8, 100, 300, 1.0), (32, 100, 600, 1.0))
_RUNS = 5


class Difference(NamedTuple):
    """How far an exported model was from PyTorch, at most."""

    output: str
    largest: float  # difference
    scale: float  # the largest value of PyTorch's, or 1


class Timing(NamedTuple):
    """Median seconds of a batch."""

    samples: int
    asvs: int
    length: int
    pytorch: float
    onnx: float


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what it was checked on."""

    models: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differences: list[Difference]
    samples: int  # that it was checked on
    batches: int
    timings: list[Timing]
    left_out: dict[str, list[str]]  # of the table that it was checked on, reason: sample IDs
    joined: str | None  # a classical model that is not in the graph, but beside it


class _Given(NamedTuple):
    """Covariates of the samples of a batch, as one network reads them."""

    categories: NDArray[np.int64]  # (B, Q)
    numbers: NDArray[np.float32]  # (B, K)


class _Source(NamedTuple):
    """A model that is exported."""

    graph: PredictorGraph | EncoderGraph
    covariates: list[Covariates | None]  # of each network
    sizes: tuple[int, int]  # categorical and numeric covariates


def export(
    model: Path,
    output: Path,
    *,
    opset: int = 18,
    table: Path | Sequence[Path] = (),
    sequences: Path | Sequence[Path] = (),
    metadata: Path | Sequence[Path] = (),
    benchmark: bool = False,
    settings: TrainConfig,
) -> Exported:
    """Write a model as an ONNX file, once it has given the same answers as PyTorch.

    Parameters
    ----------
    model : Path
        Run directory of ``aam train`` or ``aam pretrain``, or its model file.
    output : Path
    opset : int
        Of the operators: 18, 19 or 20.
    table : Path, or several
        Samples to check on, which are read as the model's own were. Otherwise some of the samples that it was trained
        with, or where their table is there no more, samples drawn from the model's reference ASVs.
    sequences, metadata : Path, or several
        Of the table: its features' sequences, and covariates.
    benchmark : bool
        Whether to time both.
    settings : TrainConfig
        Threads, workers and batch size.

    Raises
    ------
    DataError
        If a package is missing, the model or the table cannot be used, or the answers differ.
    """
    require_exporter()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    path = model_path(model)
    file = load_model_file(path, several=True)
    source = _source(path)
    apart = without_weights(file)
    unfinished = output.with_name(output.name + ".tmp")
    header = {"format_version": FORMAT_VERSION, "config": file.config.model_dump(mode="json"), **file.header}
    try:
        write_graph(
            unfinished,
            source.graph,
            opset=opset,
            max_bp=file.config.model.max_bp,
            header=header,
            arrays={**apart.weights, **apart.beside},
            reading={"opset": opset, **_reading(file.config, header)},
        )
        session = session_of(unfinished, threads=settings.threads, name=output)
        batches, left_out = _batches(source, file.config, table, sequences, metadata, settings)
        differences, samples, number = _compare(source, session, batches, output)
        _require_equal(differences, output)
        timings = _time(source, session) if benchmark else []
        with unfinished.open("rb+") as written:
            os.fsync(written.fileno())
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    inputs, outputs = source.graph.signature
    joined = file.header.get("joined")
    return Exported(
        models=len(source.covariates),
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        differences=differences,
        samples=samples,
        batches=number,
        timings=timings,
        left_out=left_out,
        joined=None if joined is None else str(joined.get("name")),
    )


def _source(path: Path) -> _Source:
    networks = TorchNetworks(path, torch.device("cpu"))
    members = networks.ensemble.members
    first = members[0].file
    if read_target(first.header, path) is None:
        targets = read_base_targets(first.header, path)
        encoder = build_model(first.config.model, None, targets)
        assert isinstance(encoder, SequenceEncoder)
        load_weights(encoder, first.weights, path)
        return _Source(EncoderGraph(encoder.eval()), [None], (0, 0))
    fitted = [read_target(member.file.header, path) for member in members]
    covariates = [read_covariates(member.file.header, path) for member in members]
    known = covariates[0]
    sizes = (0, 0) if known is None else (len(known.categorical), len(known.numeric))
    modules = [networks.module(place) for place in range(len(members))]
    predicted: list[Target | SeveralTargets] = [target for target in fitted if target is not None]
    return _Source(PredictorGraph(modules, predicted, networks.ensemble.folds, sizes), covariates, sizes)


def _reading(config: RunConfig, header: dict[str, Any]) -> dict[str, Any]:
    """How samples become inputs and outputs answers, for who reads them by other means than AAM."""
    said: dict[str, Any] = {
        "tokens": "rows of distinct ASVs: 5 (start), then A 1, C 2, G 3, T 4, other letters 7; 0 after the end",
        "max_bp": config.model.max_bp,
        "asv_index": "of each sample, the rows of its ASVs; any row where counts are 0",
        "counts": "reads of each ASV of a sample; 0 where there is none",
        "depth": "reads of a sample, those of ASVs that are left out included",
        "rarefy_depth": config.data.rarefy_depth,
        "token_limit": config.data.token_limit,
        "asv_sampling": config.data.asv_sampling,
        "prediction_passes": config.data.prediction_passes,
    }
    first = header["members"][0]["header"] if header.get("members") else header
    for name in ("target", "covariates", "base_targets"):
        if first.get(name) is not None:
            said[name] = first[name]
    if "target" in said:
        said["prediction"] = "mean of all models: numbers (or rising quantiles) in their own units, or probabilities"
        said["output"] = "of each model, before it is in units of the target, or softmax makes probabilities of it"
    return said


# ------------------------------------------------------------------------------------------------------------ checking


def _batches(
    source: _Source,
    config: RunConfig,
    table: Path | Sequence[Path],
    sequences: Path | Sequence[Path],
    metadata: Path | Sequence[Path],
    settings: TrainConfig,
) -> tuple[Iterator[tuple[Batch, list[_Given]]], dict[str, list[str]]]:
    """Batches to check on, with what each network reads of their covariates; and samples that were left out."""
    reads = {name: getattr(config.data, name) for name in ("categorical_columns", "numeric_columns")}
    most = None
    if not table:
        own = config.data
        metadata = own.metadata if any(reads.values()) else ()
        if not all(path.is_file() for path in (*own.table, *own.sequences, *metadata)):
            rng = np.random.default_rng(0)
            return (_drawn(source, rng, *shape) for shape in _SHAPES), {}
        table, sequences, most = own.table, own.sequences, _MOST_SAMPLES
    data = data_as_trained(config, table, sequences=sequences, metadata=metadata)
    data = data.model_copy(update=reads)
    study = load_study(data, max_bp=config.model.max_bp, keep_unlabelled=True, checksums=False)
    dataset = SampleDataset.of_study(study, DatasetOptions.of(data, config.train.seed))
    rows = np.sort(np.random.default_rng(0).permutation(len(study))[:most])
    plan = BatchPlan(rows, settings.samples_per_batch, False, 0)
    encoded = [None if known is None else known.encode(study.covariates) for known in source.covariates]  # type: ignore[arg-type]

    def read() -> Iterator[tuple[Batch, list[_Given]]]:
        for batch in tracked(loader(dataset, plan, settings, torch.device("cpu")), "checking"):
            rows = batch.sample_index.numpy()
            yield batch, [_Given(*values.rows(rows)[:2]) for values in encoded if values is not None]

    return read(), study.left_out


def _drawn(
    source: _Source, rng: np.random.Generator, samples: int, most: int, asvs: int, share: float
) -> tuple[Batch, list[_Given]]:
    """Samples of ASVs that are like the model's reference ASVs; ``share`` is of their length."""
    encoder = source.graph.encoder if isinstance(source.graph, EncoderGraph) else source.graph.networks[0].encoder
    assert isinstance(encoder, SequenceEncoder)
    reference = encoder.asv_encoder.reference.numpy()
    tokens = reference[rng.integers(0, len(reference), asvs)].copy()  # (U, L)
    mutated = (rng.random(tokens.shape) < 0.05) & (tokens != PAD)
    mutated[:, 0] = False
    tokens[mutated] = rng.integers(1, 5, int(mutated.sum()))
    longest = max(2, int(share * tokens.shape[1]))
    ends = np.where(rng.random(asvs) < 0.3, rng.integers(2, longest + 1, asvs), longest)
    tokens[np.arange(tokens.shape[1]) >= ends[:, None]] = PAD
    numbers = rng.integers(1, min(most, asvs) + 1, samples)
    numbers[0] = min(most, asvs)
    places = np.concatenate([np.sort(rng.permutation(asvs)[:number]) for number in numbers])
    counts = rng.geometric(0.02, len(places)).astype(np.float64)
    indptr = np.concatenate([[0], np.cumsum(numbers)])
    rows = SampleRows(indptr=indptr, asvs=places, counts=counts)
    depth = np.add.reduceat(counts, indptr[:-1])
    batch, _ = arrange(rows, depth, tokens, np.arange(samples))
    given = []
    for known in source.covariates:
        if known is not None:
            categories = [rng.integers(0, size + 1, samples) for size in known.sizes]
            values = rng.normal(size=(samples, len(known.numeric))).astype(np.float32)
            values[rng.random(values.shape) < 0.2] = np.nan
            empty = np.zeros((samples, 0), dtype=np.int64)
            given.append(_Given(np.stack(categories, axis=1) if categories else empty, values))
    return batch, given


def _inputs(source: _Source, batch: Batch, given: Sequence[_Given]) -> dict[str, NDArray[Any]]:
    names = given_names(*source.sizes, len(source.covariates))
    own = {
        name: getattr(of_network, name.partition("_")[0])
        for of_names, of_network in zip(names, given, strict=False)
        for name in of_names
    }
    return feeds(batch, source.graph.signature.inputs, own)


def _by_pytorch(source: _Source, batch: Batch, given: Sequence[_Given]) -> list[NDArray[np.float32]]:
    """What the modules that were trained say, by their own steps, in the order of the graph's outputs."""
    graph = source.graph
    with torch.no_grad():
        if isinstance(graph, EncoderGraph):
            encoded = graph.encoder(batch)
            found = [encoded.embedding]
            for target in graph.encoder.targets.values():
                readings = graph.encoder.read(target, encoded.summary).values()
                found += [reading.exp() if target.kind == "composition" else reading for reading in readings]
            return [tensor.numpy() for tensor in found]
        outputs, embeddings = [], []
        for place, network in enumerate(graph.networks):
            own = batch
            if given:
                categories, numbers = (torch.from_numpy(values) for values in given[place])
                own = replace(batch, categories=categories, numbers=numbers)
            predicted = network(own)
            outputs.append(predicted.target.numpy())
            embeddings.append(predicted.encoded.embedding.numpy())
    answers = [
        share * answers_of(target, output)
        for target, output, share in zip(graph.targets, outputs, graph.shares, strict=True)
    ]
    return [np.sum(answers, axis=0), embeddings[0], *outputs]


def _compare(
    source: _Source, session: Any, batches: Iterator[tuple[Batch, list[_Given]]], path: Path
) -> tuple[list[Difference], int, int]:
    """The largest difference of each output over all batches, and how many samples and batches these were."""
    names = source.graph.signature.outputs
    largest, scales = np.zeros(len(names)), np.ones(len(names))
    samples = number = 0
    for batch, given in batches:
        expected = _by_pytorch(source, batch, given)
        found = run(session, names, _inputs(source, batch, given), path)
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one.shape != other.shape:
                raise DataError(f"{path}: {names[place]} has the shape {other.shape} where PyTorch has {one.shape}")
            # Where either is not finite the difference is not, which is refused.
            largest[place] = np.fmax(largest[place], np.nan_to_num(np.abs(one - other).max(), nan=np.inf))
            scales[place] = max(scales[place], np.abs(one).max())
        samples, number = samples + len(batch), number + 1
    return [Difference(*row) for row in zip(names, largest.tolist(), scales.tolist(), strict=True)], samples, number


def _require_equal(differences: Sequence[Difference], output: Path) -> None:
    for name, largest, scale in differences:
        if not largest <= TOLERANCE * scale:
            raise DataError(
                f"{output}: not written, as ONNX Runtime and PyTorch differ in {name} by {largest:.2g} where its "
                f"largest value is {scale:.3g}, which is more than {TOLERANCE:g} of it; try another --opset"
            )


# -------------------------------------------------------------------------------------------------------------- timing


def _time(source: _Source, session: Any) -> list[Timing]:
    """Median times of batches of a few shapes, all outputs computed."""
    found = []
    for shape in _TIMED:
        batch, given = _drawn(source, np.random.default_rng(1), *shape)
        inputs, names = _inputs(source, batch, given), list(source.graph.signature.outputs)
        pytorch = _median(lambda b=batch, g=given: _by_pytorch(source, b, g))  # type: ignore[misc]
        onnx = _median(lambda n=names, i=inputs: session.run(n, i))  # type: ignore[misc]
        asvs, length = batch.tokens.shape
        found.append(Timing(len(batch), asvs, length, pytorch, onnx))
    return found


def _median(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
