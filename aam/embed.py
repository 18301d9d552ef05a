"""From a model file and a table to embeddings of samples and ASVs: the straight line behind ``aam embed``.

Shapes: ``N`` samples, ``A`` ASVs, ``D`` width, ``K`` axes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aam.config import TrainConfig
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.files import near_matches, shown
from aam.data.metadata import load_metadata, require_column
from aam.data.study import Study, load_study
from aam.data.tokenizer import PAD
from aam.errors import DataError, named
from aam.folds import finished_folds
from aam.loaders import choose_device, loader
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from aam.networks import require_network_of_torch
from aam.predict import data_as_trained, tracked
from aam.training.checkpoint import (
    ModelFile,
    build_model,
    load_model_file,
    load_weights,
    model_path,
    read_covariates,
    read_target,
    without_base_heads,
)
from aam.training.trainer import precision

__all__ = ["FORMATS", "Embeddings", "colours_of", "embed", "load_encoder", "require_format", "write_embeddings"]

logger = logging.getLogger("aam")

_ASVS_AT_ONCE = 2048


@dataclass(frozen=True)
class Embeddings:
    """Samples, and the ASVs they have, as a model reads them."""

    sample_ids: list[str]  # in the order of the table file
    samples: NDArray[np.float32]  # (N, D)
    sequences: list[str]  # in the order of the table file
    asvs: NDArray[np.float32]  # (A, D)
    metadata: pd.DataFrame | None  # a row for each sample
    left_out: dict[str, list[str]]  # reason: sample IDs


def embed(
    model: Path,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path] = (),
    metadata: Path | Sequence[Path] = (),
    streaming: bool = False,
    settings: TrainConfig,
) -> Embeddings:
    """Embed samples and ASVs.

    Parameters
    ----------
    model : Path
        Run directory of ``aam pretrain`` or ``aam train``, or its model file.
    table : Path, or several
    sequences : Path, or several
        Of the features.
    metadata : Path, or several
        Goes along with the samples; none is left out for lacking it.
    streaming : bool
        Leave the counts in the table's file.
    settings : TrainConfig
        Device, threads, workers and batch size.

    Raises
    ------
    DataError
        If the model or the table cannot be used.
    """
    folds = finished_folds(model)
    if folds:
        raise DataError(f"{model}: has a model for each fold, and each its own space; give one of them, {folds[0]} say")
    device = choose_device(settings)
    path = model_path(model)
    require_network_of_torch(path)
    file = load_model_file(path)
    encoder = load_encoder(file, path).to(device).eval()
    data = data_as_trained(file.config, table, sequences=sequences, streaming=streaming)
    study = load_study(data, max_bp=file.config.model.max_bp, checksums=False)
    for warning in study.warnings:
        logger.warning(warning)
    options = DatasetOptions.of(data, file.config.train.seed)
    with torch.no_grad(), precision(file.config.train.mixed_precision, device):
        samples = _samples(encoder, study, options, settings, device)
        asvs = _asvs(encoder, study.tokens, device)
    order = np.argsort(study.file_order)
    ids = [study.sample_ids[i] for i in order]
    in_table = np.argsort(study.table_order)
    return Embeddings(
        ids,
        samples[order],
        [study.sequences[i] for i in in_table],
        asvs[in_table],
        _metadata(metadata, ids),
        study.left_out,
    )


def load_encoder(file: ModelFile, path: Path) -> SequenceEncoder:
    """The base of a model, be it pre-trained or trained.

    Raises
    ------
    DataError
        If the weights are not those of its configuration.
    """
    target, covariates = read_target(file.header, path), read_covariates(file.header, path)
    network = build_model(file.config.model, None if target is None else target.outputs, (), covariates)
    load_weights(network, without_base_heads(file.weights), path)
    return network.encoder if isinstance(network, SequencePredictor) else network


def _samples(
    encoder: SequenceEncoder, study: Study, options: DatasetOptions, settings: TrainConfig, device: torch.device
) -> NDArray[np.float32]:
    dataset = SampleDataset.of_study(study, options)
    plan = BatchPlan(np.arange(len(study)), settings.samples_per_batch, False, 0)
    batches = tracked(loader(dataset, plan, settings, device), "embedding")
    return torch.cat([encoder(batch.to(device)).embedding for batch in batches]).float().cpu().numpy()


def _asvs(encoder: SequenceEncoder, tokens: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Of all ASVs (A, D); those of one length go together, so that little is padded."""
    lengths = (tokens != PAD).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    found = np.empty((len(tokens), encoder.dim), dtype=np.float32)
    for start in range(0, len(order), _ASVS_AT_ONCE):
        some = order[start : start + _ASVS_AT_ONCE]
        rows = torch.from_numpy(tokens[some][:, : int(lengths[some].max())]).to(device)
        padded = bool(lengths[some].min() < lengths[some].max())
        found[some] = encoder.asv_encoder(rows, padded).float().cpu().numpy()
    return found


def _metadata(paths: Path | Sequence[Path], ids: list[str]) -> pd.DataFrame | None:
    if not paths:
        return None
    files = (paths,) if isinstance(paths, Path) else tuple(paths)
    read = load_metadata(files)
    known = set(read.index)
    lacking = [name for name in ids if name not in known]
    if lacking:
        hint = near_matches(lacking, list(read.index))
        told = f"{named(files)}: has nothing of {len(lacking)} of {len(ids)} samples, of {shown(lacking[0])} say"
        logger.warning("%s%s", told, f"; {hint}" if hint else "")
    return read.reindex(ids)


# ------------------------------------------------------------------------------------------------------------- writing


def write_embeddings(path: Path, found: Embeddings, *, of_asvs: bool = False) -> None:
    """Write embeddings whole or not at all; the suffix is one of `FORMATS`.

    Parameters
    ----------
    path : Path
    found : Embeddings
    of_asvs : bool
        Of the ASVs; else of the samples. ``.npz`` holds both.

    Raises
    ------
    DataError
        If a package is missing that the format needs.
    """
    unfinished = path.with_name(f"{path.stem}.tmp{path.suffix}")
    FORMATS[path.suffix](unfinished, found, of_asvs)
    unfinished.replace(path)


def require_format(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises
    ------
    DataError
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: no format is known by this suffix; use one of {', '.join(FORMATS)}")
    if path.suffix == ".h5ad":
        _anndata(path)


def _write_tsv(path: Path, found: Embeddings, of_asvs: bool) -> None:
    names, values = (found.sequences, found.asvs) if of_asvs else (found.sample_ids, found.samples)
    frame = pd.DataFrame(values, columns=[f"e{i}" for i in range(values.shape[1])])
    frame.insert(0, "sequence" if of_asvs else "sample_id", names)
    frame.to_csv(path, sep="\t", index=False)


def _write_npz(path: Path, found: Embeddings, of_asvs: bool) -> None:
    np.savez_compressed(
        path,
        sample_ids=np.array(found.sample_ids, dtype=np.str_),
        samples=found.samples,
        sequences=np.array(found.sequences, dtype=np.str_),
        asvs=found.asvs,
    )


def _write_h5ad(path: Path, found: Embeddings, of_asvs: bool) -> None:
    anndata = _anndata(path)
    names, values = (found.sequences, found.asvs) if of_asvs else (found.sample_ids, found.samples)
    # Text as objects: pandas' own strings are refused, as earlier versions of anndata cannot read them.
    rows = pd.DataFrame(index=pd.Index(names, dtype=object))
    if found.metadata is not None and not of_asvs:
        for name, column in found.metadata.items():
            rows[_without_slashes(str(name), rows.columns)] = _for_anndata(column)
        rows.columns = pd.Index(rows.columns, dtype=object)
    columns = pd.DataFrame(index=pd.Index([f"e{i}" for i in range(values.shape[1])], dtype=object))
    anndata.AnnData(values, obs=rows, var=columns).write_h5ad(path)


def _for_anndata(column: pd.Series) -> NDArray[np.float64] | pd.Categorical:
    """Numbers where all that is known is such and no code (``007``), else categories; both may be missing."""
    numbers = pd.to_numeric(column, errors="coerce")
    codes = column.astype(str).str.fullmatch("0[0-9]+").any()
    if numbers.notna().sum() == column.notna().sum() and not codes:
        return numbers.to_numpy(dtype=np.float64)
    texts = column.astype(object).map(str, na_action="ignore").to_numpy(dtype=object)
    kinds = pd.Index(np.array(sorted(set(texts[column.notna()])), dtype=object), dtype=object)
    return pd.Categorical(texts, categories=kinds)


def _without_slashes(name: str, taken: pd.Index) -> str:
    """The name of a column, in which HDF5 would take a slash for a path."""
    name = name.replace("/", "_")
    while name in taken:
        name += "_"
    return name


def _anndata(path: Path) -> Any:
    try:
        import anndata
    except ImportError:
        raise DataError(f"{path}: .h5ad needs the package anndata; pip install 'aam[h5ad]'") from None
    return anndata


FORMATS: dict[str, Callable[[Path, Embeddings, bool], None]] = {
    ".tsv": _write_tsv,
    ".npz": _write_npz,
    ".h5ad": _write_h5ad,
}


def colours_of(found: Embeddings, column: str, source: Sequence[Path]) -> NDArray[Any]:
    """A column of the metadata as numbers where it holds such alone, else as text; what is missing as ``unknown``.

    Raises
    ------
    DataError
        If there is no such column.
    """
    assert found.metadata is not None
    values = require_column(found.metadata, column, source[0])
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() == values.notna().sum() > 0 and numbers.nunique() > 2:
        return numbers.to_numpy(dtype=float)
    return values.fillna("unknown").astype(str).to_numpy(dtype=object)
