"""The two files of a run that hold weights: the model file for use, the checkpoint for resuming.

Both are written beside their final name and moved there whole, so a kill leaves the previous one.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aam.config import ModelConfig, RunConfig
from aam.data.covariates import Covariates, covariates_from_dict
from aam.data.targets import SeveralTargets, Target, target_from_dict
from aam.errors import DataError
from aam.models.asv_encoder import PAD
from aam.models.base_targets import BaseTarget, UniFrac, base_target, base_target_names
from aam.models.covariates import CovariateFusion
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor

__all__ = [
    "FORMAT_VERSION",
    "MODEL_NAME",
    "ModelFile",
    "build_encoder",
    "build_model",
    "build_predictor",
    "header_of",
    "load_base",
    "load_checkpoint",
    "load_model_file",
    "load_weights",
    "model_path",
    "read_base_targets",
    "read_covariates",
    "read_header",
    "read_target",
    "reference_length",
    "runs_within",
    "save_checkpoint",
    "save_model_file",
    "stored_config",
    "without_base_heads",
]

FORMAT_VERSION = 2  # from which on a file may hold several models
MODEL_NAME = "best_model.safetensors"


_BESIDE = "beside."


class ModelFile(NamedTuple):
    """A model file, read."""

    config: RunConfig
    header: dict[str, Any]  # target, covariates, metrics, provenance, checksums, format_version
    weights: dict[str, Tensor]
    beside: dict[str, Tensor]  # tensors that are no weights: what is known of the training samples, say


def build_encoder(config: ModelConfig, targets: Sequence[BaseTarget] = (UniFrac(),)) -> SequenceEncoder:
    """The base model that a configuration describes, with heads for these base targets."""
    return SequenceEncoder(
        dim=config.embedding_dim,
        heads=config.attention_heads,
        layers=config.attention_layers,
        max_bp=config.max_bp,
        feed_forward_factor=config.feed_forward_factor,
        dropout=config.dropout,
        count_embedding=config.count_embedding,
        abundance_pooling=config.abundance_pooling,
        distance_head=config.distance_head,
        clades=config.clades,
        gradient_checkpointing=config.gradient_checkpointing,
        asv_chunk_size=config.asv_chunk_size,
        targets=targets,
    )


def build_model(
    config: ModelConfig,
    outputs: int | None,
    targets: Sequence[BaseTarget] = (UniFrac(),),
    covariates: Covariates | None = None,
) -> SequenceEncoder | SequencePredictor:
    """The whole model: the base alone for pre-training, with heads where there are ``outputs``."""
    encoder = build_encoder(config, targets)
    return encoder if outputs is None else build_predictor(encoder, config, outputs, covariates)


def build_predictor(
    encoder: SequenceEncoder, config: ModelConfig, outputs: int, covariates: Covariates | None = None
) -> SequencePredictor:
    """A base with the heads that a target of so many outputs needs, and what joins covariates where there are any."""
    fusion = None
    if covariates is not None:
        shape = (config.embedding_dim, config.attention_heads, covariates.sizes, len(covariates.numeric))
        fusion = CovariateFusion(*shape, config.fusion)
    linear = config.head == "linear"
    return SequencePredictor(encoder, outputs, config.dropout, config.head_width, fusion, linear)


def model_path(run: Path, *, finished: bool = True) -> Path:
    """The model file of a run directory, or the file itself.

    Parameters
    ----------
    run : Path
    finished : bool
        Whether a directory whose run has not ended will not do.

    Raises
    ------
    DataError
        If there is none.
    """
    if run.is_dir():
        if not (run / MODEL_NAME).is_file():
            runs = runs_within(run)
            if runs:
                raise _no_common_model(run, runs)
            raise DataError(f"{run}: holds no {MODEL_NAME}; give the directory of a finished run")
        if finished and not (run / "metrics.json").is_file():
            raise DataError(
                f"{run}: its run has not ended; continue it with --resume, or give its best model so far, "
                f"{run / MODEL_NAME}"
            )
        return run / MODEL_NAME
    if not run.is_file():
        raise DataError(f"{run}: no such run directory or model file")
    return run


def runs_within(path: Path) -> list[Path]:
    """The directories of the runs for each fold or seed of a run that has some, in their order."""
    if not path.is_dir():
        return []
    name = re.compile(r"fold_\d{1,9}(_seed_\d{1,10})?|seed_\d{1,10}")
    found = [path for path in path.iterdir() if name.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split("_") if part.isdigit()])


def _no_common_model(run: Path, runs: list[Path]) -> DataError:
    ended = [path for path in runs if (path / "metrics.json").is_file() and (path / MODEL_NAME).is_file()]
    if (run / "metrics.json").is_file():  # pre-training leaves a model of each fold alone
        return DataError(f"{run}: holds several runs, and no model of them all; give one of them, {runs[0]} say")
    state = f"{len(ended)} of those begun have ended" if ended else "none has ended yet"
    instead = f", or give one that has ended, {ended[0]} say" if ended else ""
    return DataError(
        f"{run}: holds several runs, and {state}; continue them by the same command with --resume{instead}"
    )


def save_model_file(
    path: Path,
    model: nn.Module | Mapping[str, Tensor],
    config: RunConfig,
    header: Mapping[str, Any],
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights and everything that prediction needs as one safetensors file.

    Parameters
    ----------
    path : Path
    model : nn.Module or mapping of str to Tensor
        Or its whole weights, where it is sharded.
    config : RunConfig
    header : mapping
        Whatever JSON takes.
    beside : mapping of str to Tensor, optional
        Tensors that are no weights.
    """
    from safetensors.torch import save_file

    weights = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {**weights, **{_BESIDE + name: tensor for name, tensor in (beside or {}).items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {"format_version": FORMAT_VERSION, "config": config.model_dump(mode="json"), **header}
    unfinished = path.with_name(path.name + ".tmp")
    save_file(tensors, unfinished, metadata={"aam": json.dumps(whole)})
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_model_file(path: Path, *, several: bool = False) -> ModelFile:
    """Read a model file.

    Parameters
    ----------
    path : Path
    several : bool
        Whether it may hold several models, all of whose weights it then gives: see `aam.training.ensemble`.

    Raises
    ------
    DataError
        If it is not one, or of a later version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    if "members" in header and not several:
        raise DataError(f"{path}: holds several models, which predict together; give the run of one of them")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); train again, or take another copy") from None
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BESIDE)}
    beside = {name.removeprefix(_BESIDE): tensors[name] for name in tensors.keys() - weights.keys()}
    return ModelFile(RunConfig.model_validate(header.pop("config")), header, weights, beside)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put weights into a model.

    Raises
    ------
    DataError
        If names or shapes are not the model's.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise DataError(f"{source}: its weights are not those of its configuration ({lines[1]}); train again") from None


def read_header(path: Path) -> dict[str, Any]:
    """What a model file says of itself, without its weights.

    Raises
    ------
    DataError
        See `load_model_file`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})["aam"]
    except (SafetensorError, OSError, KeyError):
        raise _not_a_model(path) from None
    return header_of(text, path)


def header_of(text: str, path: Path) -> dict[str, Any]:
    """A header, as a model file has it.

    Raises
    ------
    DataError
        If it is none, or of a later version.
    """
    from pydantic import ValidationError

    try:
        header: dict[str, Any] = json.loads(text)
        version = header["format_version"]
        if version <= FORMAT_VERSION:
            stored_config(header["config"])
    except (KeyError, AttributeError, TypeError, ValueError, ValidationError, RecursionError):
        raise _not_a_model(path) from None
    if version > FORMAT_VERSION:
        raise DataError(f"{path}: format {version} is newer than this AAM reads ({FORMAT_VERSION}); update AAM")
    return header


def stored_config(stored: dict[str, Any]) -> RunConfig:
    """The configuration in a header. One that says nothing of means by abundance is from before there were any.

    Raises
    ------
    ValueError, AttributeError, TypeError
        If it is none.
    """
    stored.setdefault("model", {}).setdefault("abundance_pooling", False)
    return RunConfig.model_validate(stored)


def _not_a_model(path: Path) -> DataError:
    return DataError(f"{path}: not a model file of AAM; give a run directory or its {MODEL_NAME}")


def read_target(header: Mapping[str, Any], path: Path) -> Target | SeveralTargets | None:
    """The fitted target in the header of a model file; None for a pre-trained encoder.

    Raises
    ------
    DataError
        If it is damaged.
    """
    stored = header.get("target")
    try:
        return None if stored is None else target_from_dict(stored)
    except ValueError:
        raise DataError(f"{path}: what it says of its target is damaged; train again, or take another copy") from None


def read_covariates(header: Mapping[str, Any], path: Path) -> Covariates | None:
    """The fitted covariates in the header of a model file; None where the model has none.

    Raises
    ------
    DataError
        If they are damaged.
    """
    stored = header.get("covariates")
    try:
        return None if stored is None else covariates_from_dict(stored)
    except ValueError:
        raise DataError(
            f"{path}: what it says of its covariates is damaged; train again, or take another copy"
        ) from None


def read_base_targets(header: Mapping[str, Any], path: Path, *, known_alone: bool = False) -> tuple[BaseTarget, ...]:
    """The base targets that a model file has heads for; UniFrac in files that do not say.

    Parameters
    ----------
    header : mapping
    path : Path
    known_alone : bool
        Pass over those that are not registered here.

    Raises
    ------
    DataError
        If what it says is damaged, or names one that is not registered.
    """
    stored = header.get("base_targets", [{"name": UniFrac.name}])
    try:
        return tuple(
            base_target(**options) for options in stored if not known_alone or options["name"] in base_target_names()
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}; register it before the model is read") from None
    except (KeyError, TypeError):
        raise DataError(
            f"{path}: what it says of its base targets is damaged; train again, or take another copy"
        ) from None


def load_base(
    encoder: SequenceEncoder,
    weights: Mapping[str, Tensor],
    targets: Iterable[BaseTarget],
    source: Path,
    *,
    other_heads: bool = False,
) -> set[str]:
    """Put a pre-trained base into an encoder that may have other base targets, other heads or fewer positions.

    Parameters
    ----------
    encoder : SequenceEncoder
    weights : mapping of str to Tensor
    targets : iterable of BaseTarget
        Those of ``weights``.
    source : Path
    other_heads : bool
        Whether the encoder may have heads that ``weights`` lack, or lack some. Clades that are new are joined to the
        sample embedding with a weight of 0, so that it starts as it was.

    Returns
    -------
    set of str
        Base targets of the encoder of which a head is as it was.

    Raises
    ------
    DataError
        See `load_weights`.
    """
    before = {target.name: target for target in targets}
    kept = {name for name, target in encoder.targets.items() if before.get(name) == target}
    own = encoder.state_dict()
    taken = {name: _cut(name, weight, own) for name, weight in weights.items() if _target_of(name) in {None, *kept}}
    fresh = {name: weight for name, weight in own.items() if _target_of(name) not in {None, *kept}}
    if other_heads:
        taken = {name: weight for name, weight in taken.items() if name in own or not _of_head(name)}
        fresh |= {name: weight for name, weight in own.items() if name not in taken and _of_head(name)}
        joining = (name for name in fresh if name.startswith("presence_projection."))
        fresh |= {name: torch.zeros_like(own[name]) for name in joining}
    load_weights(encoder, taken | fresh, source)
    return (encoder.targets.keys() - kept) | {name for name in map(_target_of, fresh) if name is not None}


def reference_length(weights: Mapping[str, Tensor]) -> int:
    """Bases of the longest ASV that an encoder measures others by; 0 where its weights do not say."""
    found = [tokens for name, tokens in weights.items() if name.removeprefix("encoder.") in _REFERENCE_TOKENS]
    return max((int((tokens != PAD).sum(dim=1).max()) - 1 for tokens in found if tokens.ndim == 2), default=0)


_REFERENCE_TOKENS = {"asv_encoder.reference_tokens": 1}
_POSITIONS = {"asv_encoder.position_scale.weight": 0, "asv_encoder.position_shift.weight": 0, **_REFERENCE_TOKENS}


def _cut(name: str, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Without the positions that an encoder has no places for."""
    dim = _POSITIONS.get(name)
    if dim is None or weight.ndim != own[name].ndim:
        return weight
    return weight.narrow(dim, 0, min(weight.shape[dim], own[name].shape[dim]))


def _of_head(weight: str) -> bool:
    return weight.partition(".")[0] in {"clade_head", "presence_projection", "euclidean_head", "target_heads"}


def without_base_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without those of the base targets' own heads, on which a sample's embedding does not depend."""
    return {name: weight for name, weight in weights.items() if _target_of(name.removeprefix("encoder.")) is None}


def _target_of(weight: str) -> str | None:
    """The base target whose own a weight of the encoder is; None for those that all share."""
    module, *within = weight.split(".")
    if module == "euclidean_head":
        return UniFrac.name
    return within[0] if module == "target_heads" else None


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write what resuming needs: tensors and plain values, loadable with ``weights_only``."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about how unusual a foreign file is
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: there is nothing to resume; leave --resume out") from None
    except Exception as error:  # of any kind: a damaged file misleads the unpickler anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a checkpoint of AAM ({reason}); start again with --overwrite") from None
    if not isinstance(saved, dict) or not {"trainer", "config"} <= saved.keys():
        raise DataError(f"{path}: not a checkpoint of AAM; start again with --overwrite")
    return saved
