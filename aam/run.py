"""One run from files to predictions: the straight line behind ``aam pretrain`` and ``aam train``."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from aam import __version__
from aam.assembly import build_task
from aam.config import DataConfig, ModelConfig, RunConfig, refusals
from aam.data.augmentation import require_whole_counts, with_defaults
from aam.data.files import file_sha256
from aam.data.labels import Pairs, common_references
from aam.data.leaks import leak_warnings
from aam.data.metadata import load_metadata
from aam.data.splits import read_splits, watched_part, write_splits
from aam.data.study import Study, unknown_samples
from aam.data.study_splits import as_before, split_study, thin_parts
from aam.data.targets import require_repeated_classes
from aam.epochs import EpochSearch, SearchIsOver, encoder_knows
from aam.errors import DataError, in_file, named
from aam.inputs import load_inputs
from aam.joining import require_unseen
from aam.loaders import choose_device
from aam.models.base_targets import require_readable
from aam.outcome import judge_best
from aam.run_directory import RunDirectory, write_json
from aam.searches import (
    as_found,
    as_searched,
    require_alone,
    search_learning_rate,
    with_average,
    with_batch_size,
    with_epochs,
    with_learning_rate,
)
from aam.trainer_setup import build_callbacks, build_trainer, require_sharding, resume
from aam.training.checkpoint import (
    ModelFile,
    load_checkpoint,
    load_model_file,
    model_path,
    reference_length,
)
from aam.training.distributed import Processes, start
from aam.training.tasks import Task, TrainTask
from aam.training.trainer import Trainer

__all__ = [
    "Prepared",
    "RunResult",
    "encoder_fingerprint",
    "fingerprint",
    "prepare",
    "pretrained_architecture",
    "pretrained_split_options",
    "require_same_config",
    "require_trackers",
    "run",
]

logger = logging.getLogger("aam")

SPLIT_OPTIONS = {"val_size", "test_size", "cal_size", "group_column", "stratify"}
SPLIT_SOURCES = {"split_column", "splits", "leave_out"}


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    directory: Path
    metrics: dict[str, Any]  # as in metrics.json
    history: pd.DataFrame


def run(config: RunConfig) -> RunResult:
    """Pre-train or train, and write the run directory.

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    RunResult
        Without metrics where ``--lr-find print`` asks for no training.

    Raises
    ------
    DataError
        If the inputs cannot be used; the run directory is then left as it was.
    """
    assert not config.several_runs, "several runs are asked for: call aam.folds.run_folds"
    if config.train.parallel > 1:
        raise DataError(f"--parallel {config.train.parallel}: there is one run; it is for --folds and --seeds")
    try:
        require_readable(config.task.base_target, config.model.distance_head)
    except ValueError as error:
        raise DataError(str(error)) from None
    device = choose_device(config.train)
    processes = start(config.train, device)
    directory = RunDirectory(config.train.output_dir)
    if processes.first:
        directory.require_free(resume=config.train.resume, overwrite=config.train.overwrite)
    processes.barrier()
    require_trackers(config)
    config, study, split, pretrained, leaked, notes = prepare(config)
    _require_pairs(config, study, split)
    require_unseen(config, split)
    inputs = fingerprint(study, split)
    resumed, searched = _load_resumed(config, directory, inputs, processes)
    searches_alone = config.optim.lr_find == "print"
    if resumed is not None:
        config = as_found(config, resumed["config"])
    if searched is not None:
        config = as_searched(config, searched["config"])
    if config.model.head == "linear":
        config = _read_linearly(config)
    task = build_task(config, study, split, pretrained).to(device)
    require_alone(config, processes)
    require_sharding(config)
    if resumed is None and processes.first:
        directory.create(overwrite=config.train.overwrite and not searches_alone)
    processes.barrier()
    with directory.logging() if processes.first and not searches_alone else nullcontext():
        _log_study(config, study, split, device, processes)
        if pretrained is not None:
            _log_other_reading(config, pretrained, study)
        for note in (*notes, *_unknown_covariates(study, task)):
            logger.info(note)
        for warning in _split_warnings(config, study, split):
            logger.warning(warning)
        header = _provenance(study, task)
        config = with_batch_size(config, study, split, task, device)
        config = with_epochs(config, len(study.rows_of(split, "train")))
        _require_readable_back(config)
        trainer: Trainer | None = None
        if config.optim.lr_find != "none":  # before epochs are searched for, at the rate that is found
            trainer = build_trainer(config, study, split, task, device, processes)
            if searches_alone:
                search_learning_rate(trainer, directory)
                trainer.close()
                return RunResult(directory.path, {}, pd.DataFrame())
            config = with_learning_rate(config, trainer, directory)
        config = _searched_for(config, study, split)
        if resumed is None and config.train.choose_epochs and config.train.stop_after is None:
            if processes.first:
                if searched is None or searched["config"]["train"]["epochs"] != config.train.epochs:
                    directory.forget_search()
                _write_settings(config, study, split, directory)
            processes.barrier()
            search = EpochSearch(config, study, split, pretrained, device, processes, directory, inputs)
            searched_for, config = config, search.settled()
            if config.model != searched_for.model:
                task = build_task(config, study, split, pretrained).to(device)
            if trainer is not None:
                trainer.close()
                trainer = None
        if trainer is None:
            trainer = build_trainer(config, study, split, task, device, processes)
        if resumed is not None:
            resume(trainer, directory / "last.ckpt", resumed)
        callbacks = build_callbacks(config, study, split, task, directory, header, inputs, trainer.callbacks)
        trainer.callbacks = [*callbacks, SearchIsOver(directory)]
        if processes.first:
            _write_settings(config, study, split, directory)
        try:
            trainer.fit()
            metrics = judge_best(config, study, split, task, trainer, directory, leaked)
            trainer.finish(metrics)
        finally:
            trainer.close()
        return RunResult(directory.path, metrics, pd.DataFrame(trainer.state.history))


class Prepared(NamedTuple):
    """What a run begins with."""

    config: RunConfig  # with what the study and a pre-trained encoder settle
    study: Study
    split: NDArray[Any]  # (N,) of str
    pretrained: ModelFile | None
    leaked: list[str]  # held-out samples that the encoder has learnt from
    notes: list[str]  # what was decided that nobody asked for


def prepare(config: RunConfig) -> Prepared:
    """Read the inputs of a run, and settle its split.

    Raises
    ------
    DataError
        If they cannot be used.
    """
    pretrained = _load_pretrained(config)
    takes_over = pretrained is not None and not _own_split_options(config.data, pretrained.config.data)
    if pretrained is not None:
        config = config.model_copy(update={"model": pretrained_architecture(config, pretrained)})
        if takes_over:
            config = config.model_copy(update={"data": pretrained_split_options(config.data, pretrained.config.data)})
    study = load_inputs(config)
    if config.task.classifier and study.target is not None:
        with in_file(config.data.metadata):
            require_repeated_classes(config.data.columns, study.target)
    if config.augmentation.draws_reads:
        require_whole_counts(study.counts, config.data.table)
    config = with_average(config.model_copy(update={"augmentation": with_defaults(config, study.counts)}))
    split, leaked, notes = _split(config, study, takes_over)
    return Prepared(config, study, split, pretrained, leaked, notes)


def require_trackers(config: RunConfig) -> None:
    """Refuse ``--track`` where its package is missing.

    Raises
    ------
    DataError
    """
    from aam.integrations import require_installed

    require_installed(config.train.track)


# --------------------------------------------------------------------------------------------------- pre-trained base


def _load_pretrained(config: RunConfig) -> ModelFile | None:
    if config.train.pretrained_encoder is None:
        return None
    return load_model_file(model_path(config.train.pretrained_encoder))


def pretrained_architecture(config: RunConfig, pretrained: ModelFile) -> ModelConfig:
    """The pre-trained model's architecture, with what this run may choose for itself."""
    own = {"dropout", "gradient_checkpointing", "asv_chunk_size", "distance_head", "max_bp"}
    own |= {"head", "head_width", "fusion"}
    asked = {name: getattr(config.model, name) for name in config.model.model_fields_set}
    for name, value in asked.items():
        theirs = getattr(pretrained.config.model, name)
        if name not in own and value != theirs:
            option = "--" + name.replace("_", "-")
            raise DataError(
                f"{option} {value} does not fit the pre-trained encoder, which has {theirs}; "
                f"leave {option} out, or pre-train with it"
            )
    # A new head, and what joins covariates is of it: theirs may have none of these.
    of_head = {name: getattr(config.model, name) for name in ("head", "head_width", "fusion")}
    update = {name: asked[name] for name in own & asked.keys()} | of_head
    architecture = pretrained.config.model.model_copy(update=update)
    _require_known_bases(architecture.max_bp, pretrained)
    theirs = pretrained.config.model.distance_head
    if config.train.freeze_base and architecture.distance_head == "euclidean" != theirs:
        raise DataError(
            f"--distance-head euclidean leaves out what the pre-trained encoder reads from clades (it has {theirs}), "
            "and with --freeze-base nothing else can take its place; leave one of them out"
        )
    return architecture


def _require_known_bases(max_bp: int, pretrained: ModelFile) -> None:
    """Refuse to read bases that the encoder has no places for, or to cut the ASVs that it measures others by."""
    theirs, references = pretrained.config.model.max_bp, reference_length(pretrained.weights)
    if max_bp > theirs:
        raise DataError(
            f"--max-bp {max_bp} does not fit the pre-trained encoder, which has {theirs} and has learnt nothing of "
            "bases beyond; leave --max-bp out, and longer sequences are cut there"
        )
    if max_bp < references:
        raise DataError(
            f"--max-bp {max_bp} would cut the reference ASVs of the pre-trained encoder, of up to {references} bases; "
            "leave --max-bp out (shorter sequences need no other), or pre-train with it"
        )


def _own_split_options(data: DataConfig, before: DataConfig) -> set[str]:
    """Options of the split that were given and are not the pre-trained run's (a stored configuration gives all)."""
    asked = data.model_fields_set & SPLIT_OPTIONS | {name for name in SPLIT_SOURCES if getattr(data, name)}
    return {name for name in asked if getattr(data, name) != getattr(before, name)}


def pretrained_split_options(data: DataConfig, before: DataConfig) -> DataConfig:
    """The options of the split come along with it; the group column only where these metadata have it."""
    update: dict[str, Any] = {name: getattr(before, name) for name in ("val_size", "test_size", "cal_size")}
    group = before.group_column
    if group is not None and group in data.covariates:
        raise DataError(
            f"{group!r} is the --group-column of the pre-trained encoder, whose split is taken over, and a column that "
            "the prediction is given, too; leave it out of the latter"
        )
    if group is not None and group not in data.columns and data.metadata:
        update["group_column"] = group if group in load_metadata(data.metadata).columns else None
    return data.model_copy(update=update)


# -------------------------------------------------------------------------------------------------------------- split


def _split(config: RunConfig, study: Study, takes_over: bool) -> tuple[NDArray[Any], list[str], list[str]]:
    """The split of every sample, the held-out ones that a pre-trained encoder has learnt from, and what to tell."""
    data = config.data
    before: dict[str, str] = {}
    notes: list[str] = []
    if config.train.pretrained_encoder is not None:
        folder = model_path(config.train.pretrained_encoder).parent
        if (folder / "splits.tsv").is_file():
            before = read_splits(folder / "splits.tsv")
        elif not config.train.allow_pretrained_leak:
            raise DataError(
                f"{folder}: holds no splits.tsv, so nobody can say which samples the encoder has seen; "
                "give the whole run directory, or --allow-pretrained-leak"
            )
    if before and takes_over and set(before) & set(study.sample_ids):
        split = _taken_over(config, study, before)
    else:
        split, notes = split_study(study, data, config.train.seed, validate=config.chooses_by_validation)
    leaked = [
        name
        for name, part in zip(study.sample_ids, split, strict=True)
        if part != "train" and before.get(name) == "train"
    ]
    if leaked and not config.train.allow_pretrained_leak:
        raise DataError(
            f"{len(leaked)} held-out samples, {leaked[0]!r} first, are among those that the pre-trained encoder "
            "learnt from; leave out the options of the split to take its own over, or give --allow-pretrained-leak"
        )
    return split, leaked, notes


def _taken_over(config: RunConfig, study: Study, before: dict[str, str]) -> NDArray[Any]:
    """The split of the pre-trained run. A sample that it did not have goes with its group, else into training."""
    split = np.array(as_before(study, before, "train"), dtype="<U5")
    new = sum(name not in before for name in study.sample_ids)
    logger.info(
        "split taken over from the pre-trained encoder%s",
        f"; {new} samples that it did not have go with their group, or into training" if new else "",
    )
    if config.chooses_by_validation and not (split == "val").any():
        raise DataError(
            f"{config.train.pretrained_encoder}: has no validation samples in its split, which is taken over, and only "
            "such may say when training ends or how fast it is; pre-train with some, or leave --patience, --schedule "
            "plateau and --restart-on-plateau out"
        )
    for part in ("train", watched_part(split)):
        if not (split == part).any():
            raise DataError(
                f"{config.train.pretrained_encoder}: none of these samples is in its {part} split; "
                "give another --val-size than its own for a split of their own"
            )
    return split


def _split_warnings(config: RunConfig, study: Study, split: NDArray[Any]) -> list[str]:
    """How held-out samples may look better predicted than others would be, and what they cannot say."""
    thin: list[str] = []
    if config.data.splits != config.train.output_dir.parent / "splits.tsv":  # of folds all samples together count
        classifier, group_column = config.task.classifier, config.data.group_column
        thin = thin_parts(study, split, classifier=classifier, group_column=group_column)
    return thin + leak_warnings(
        study.sample_ids,
        study.counts,
        split,
        groups=study.groups,
        group_column=config.data.group_column,
        metadata=study.metadata,
        targets=config.data.columns,
    )


def _require_pairs(config: RunConfig, study: Study, split: NDArray[Any]) -> None:
    """Refuse to learn distances where there is no pair of samples to learn from, or for `pretrain` to judge by."""
    with in_file(config.data.unifrac_matrix):
        common_references(study.labels, study.rows_of(split, "train"))
    if config.task.unifrac_weight == 0 or not any(isinstance(labels, Pairs) for labels in study.labels.values()):
        return
    if config.train.batch_size == 1:
        raise DataError("--batch-size 1 has no pair of samples to learn distances from; give 2 or more")
    for part in ("train", watched_part(split)) if config.command == "pretrain" else ("train",):
        if len(study.rows_of(split, part)) < 2:
            raise DataError(
                f"{named(config.data.table)}: the {part} split has one sample, which is no pair of a known distance; "
                "change --val-size, or add samples"
            )


def _read_linearly(config: RunConfig) -> RunConfig:
    """A configuration with a linear head, which asks for no search, even where the command that is resumed does.

    Raises
    ------
    DataError
        If what a pre-trained encoder or another command settled stands against it.
    """
    if config.why_not_linear is not None:
        raise DataError(f"--head linear: {config.why_not_linear}")
    return config.model_copy(update={"train": config.train.model_copy(update={"choose_epochs": False})})


def _searched_for(config: RunConfig, study: Study, split: NDArray[Any]) -> RunConfig:
    """A configuration that asks for no search where those that would judge are known by the encoder already."""
    if not config.train.choose_epochs or not encoder_knows(config, study, split):
        return config
    logger.info("all epochs are run: the encoder has learnt the column of training samples, which cannot judge then")
    return config.model_copy(update={"train": config.train.model_copy(update={"choose_epochs": False})})


def _require_readable_back(config: RunConfig) -> None:
    """Refuse what was settled where nobody could have typed it, before a model is trained that nobody could read.

    Raises
    ------
    DataError
    """
    try:
        RunConfig.model_validate(config.model_dump(mode="json"))
    except ValidationError as error:
        raise DataError("; ".join(refusals(error))) from None


def _write_settings(config: RunConfig, study: Study, split: NDArray[Any], directory: RunDirectory) -> None:
    write_json(directory / "config.json", config.model_dump(mode="json"))
    write_splits(directory / "splits.tsv", study.sample_ids, split)


# ------------------------------------------------------------------------------------------------------------- resume


def fingerprint(study: Study, split: NDArray[Any]) -> dict[str, str]:
    """What a run that is resumed must find as it left it: the files, and which sample was held out."""
    lines = "\n".join(f"{name}\t{part}" for name, part in zip(study.sample_ids, split, strict=True))
    return {**study.checksums, "split": hashlib.sha256(lines.encode()).hexdigest()}


def encoder_fingerprint(encoder: Path) -> str:
    """The SHA-256 of a pre-trained encoder's model file."""
    return file_sha256(model_path(encoder))


class _Resumed(NamedTuple):
    """The checkpoint of the run to be continued."""

    run: dict[str, Any] | None
    search: dict[str, Any] | None  # of a run that got no further than the search for its number of epochs


def _load_resumed(
    config: RunConfig, directory: RunDirectory, inputs: Mapping[str, str], processes: Processes
) -> _Resumed:
    """What there is to be continued, if its inputs and its settings are this one's where it matters."""
    checkpoint = processes.broadcast(directory.checkpoint() if config.train.resume else None)
    of_run = checkpoint == directory / "last.ckpt"
    found = config.model.head == "linear" or config.train.choose_epochs is False  # the search is over
    if checkpoint is None or (found and not of_run):
        return _Resumed(None, None)
    saved = load_checkpoint(checkpoint)
    for name, digest in inputs.items():
        if saved.get("inputs", {}).get(name, digest) != digest:
            what = "the split of the samples" if name == "split" else f"the file of --{name.replace('_', '-')}"
            raise DataError(
                f"{directory.path}: cannot be resumed, since {what} is another than when it was begun; "
                "put it back, or start again with --overwrite"
            )
    require_same_config(as_found(config, saved["config"]), saved["config"], directory.path)
    return _Resumed(saved, None) if of_run else _Resumed(None, saved)


def require_same_config(
    config: RunConfig, stored: Mapping[str, Any], directory: Path, *, same_length: bool = False
) -> None:
    """Refuse to continue a run whose stored configuration differs where it matters.

    Parameters
    ----------
    config : RunConfig
    stored : mapping
    directory : Path
    same_length : bool
        Whether it matters, too, how long a run trains.

    Raises
    ------
    DataError
    """
    machine = {"output_dir", "device", "threads", "num_workers", "parallel", "save_every_minutes"}
    machine |= {"tf32", "attn_implementation", "compile_model", "gradient_checkpointing", "asv_chunk_size"}
    machine |= {"strategy", "reshard_after_forward", "sharded_checkpoints"}
    watched = {"baseline", "join", "plots", "log_histograms", "log_attention", "profile", "track"}
    length = {"epochs", "choose_epochs", "stop_after", "patience"}
    free = machine | watched | {"resume", "overwrite"} | (set() if same_length else length)
    now, typed = config.model_dump(mode="json"), config.model_dump()
    moved = {str(Path(part["train"]["output_dir"]) / "splits.tsv") for part in (now, stored) if "train" in part}
    for section in now.keys() - {"command"}:
        for name, value in now[section].items():
            before = stored.get(section, {}).get(name, value)
            if name == "splits" and {before, value} <= moved:
                continue  # a fold's own, in a directory that has another name now
            if _holds_paths(typed[section][name]) and _spelled_out(before) == _spelled_out(value):
                continue
            if before != value and name not in free:
                option = "--" + name.replace("_", "-")
                raise DataError(f"{directory}: was begun with {option} {before}, and {option} {value} is asked for")


def _holds_paths(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_paths, value.values()))
    return isinstance(value, Path) or (isinstance(value, list | tuple) and any(map(_holds_paths, value)))


def _spelled_out(value: Any) -> Any:
    """Paths, alone or in lists and mappings, so that two spellings of one are the same."""
    if isinstance(value, Mapping):
        return {name: _spelled_out(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_spelled_out(part) for part in value]
    return os.path.realpath(value) if isinstance(value, str) else value


def _unknown_covariates(study: Study, task: Task) -> list[str]:
    if not isinstance(task, TrainTask) or task.covariates is None:
        return []
    assert study.covariates is not None
    return task.covariates.unknown(study.covariates)


def _provenance(study: Study, task: Task) -> dict[str, Any]:
    covariates = task.covariates if isinstance(task, TrainTask) else None
    return {
        "target": task.target.to_dict() if isinstance(task, TrainTask) else None,
        **({} if covariates is None else {"covariates": covariates.to_dict()}),
        "base_targets": [target.to_dict() for target in task.encoder.targets.values()],
        "checksums": study.checksums,
        "provenance": {
            "aam": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "samples": len(study),
            "asvs": len(study.sequences),
        },
    }


def _log_other_reading(config: RunConfig, pretrained: ModelFile, study: Study) -> None:
    """Say where samples are read in another way than the pre-trained encoder read them."""
    for name in ("rarefy_depth", "token_limit", "asv_sampling", "max_bp", "distance_head"):
        value, theirs = (
            (part.data.model_dump() | part.model.model_dump())[name] for part in (config, pretrained.config)
        )
        if value != theirs:
            option = "--" + name.replace("_", "-")
            logger.info("%s is %s here and was %s when the encoder was pre-trained", option, value, theirs)
    longest, known = study.tokens.shape[1] - 1, reference_length(pretrained.weights)
    if longest > 1.1 * known > 0:
        logger.warning(
            "ASVs here have up to %d bases, and those that the pre-trained encoder measures others by have up to %d: "
            "of the bases beyond it may have learnt nothing",
            longest,
            known,
        )


def _log_study(
    config: RunConfig, study: Study, split: NDArray[Any], device: torch.device, processes: Processes
) -> None:
    logger.info("aam %s on %s, %d threads", config.command, device, torch.get_num_threads())
    if processes.strategy != "single":
        logger.info("%s in %d processes", processes.strategy, processes.number)
    logger.info("%d of %d samples, %d ASVs", len(study), study.samples_in_table, len(study.sequences))
    for reason, names in study.left_out.items():
        logger.info("left out: %d %s (%s%s)", len(names), reason, ", ".join(names[:3]), ", …" if names[3:] else "")
    for sentence in unknown_samples(study):
        logger.info(sentence)
    for warning in study.warnings:
        logger.warning(warning)
    parts, sizes = np.unique(split, return_counts=True)
    sizes_text = ", ".join(f"{size} {part}" for part, size in zip(parts, sizes, strict=True))
    grouped = f", grouped by {config.data.group_column}" if config.data.group_column else ""
    logger.info("split: %s%s", sizes_text, grouped)
    if (split == "cal").any():
        logger.info("the samples marked cal are neither learnt from nor judged: they are kept for calibration")
