"""One run from files to predictions: the straight line behind ``aam pretrain`` and ``aam train``."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aam import __version__
from aam.assembly import build_task
from aam.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from aam.data.augmentation import Augmentation, require_whole_counts
from aam.data.batch import Batch
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.labels import Pairs, common_references
from aam.data.leaks import leak_warnings
from aam.data.metadata import load_metadata
from aam.data.splits import read_splits, write_splits
from aam.data.study import Study, unknown_samples
from aam.data.study_splits import as_before, split_study
from aam.data.targets import ClassTarget, NumericTarget, require_repeated_classes
from aam.errors import DataError, in_file, named
from aam.inputs import load_inputs
from aam.models.base_targets import require_readable
from aam.run_directory import RunDirectory, write_json, write_table
from aam.training.callbacks import Checkpoints, Console, EarlyStopping, HistoryFile, TensorBoard
from aam.training.checkpoint import (
    MODEL_NAME,
    ModelFile,
    load_checkpoint,
    load_model_file,
    model_path,
    save_model_file,
)
from aam.training.metrics import classification_metrics, regression_metrics
from aam.training.optim import build_optimizer, build_schedule
from aam.training.tasks import Evaluation, Task, TrainTask, prediction_table
from aam.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RunResult",
    "choose_device",
    "loader",
    "pretrained_split_options",
    "require_same_config",
    "run",
]

logger = logging.getLogger("aam")

SPLIT_OPTIONS = {"val_size", "test_size", "group_column", "stratify"}
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

    Raises
    ------
    DataError
        If the inputs cannot be used; the run directory is then left as it was.
    """
    assert not config.data.cross_validated, "several runs are asked for: call aam.folds.run_folds"
    try:
        require_readable(config.task.base_target, config.model.distance_head)
    except ValueError as error:
        raise DataError(str(error)) from None
    directory = RunDirectory(config.train.output_dir)
    directory.require_free(resume=config.train.resume, overwrite=config.train.overwrite)
    device = choose_device(config.train)
    pretrained = _load_pretrained(config)
    takes_over = pretrained is not None and not _own_split_options(config.data, pretrained.config.data)
    if pretrained is not None:
        config = config.model_copy(update={"model": _pretrained_architecture(config, pretrained)})
        if takes_over:
            config = config.model_copy(update={"data": pretrained_split_options(config.data, pretrained.config.data)})
    study = load_inputs(config)
    if config.task.classifier and study.target is not None and config.data.metadata_column is not None:
        with in_file(config.data.metadata):
            require_repeated_classes(config.data.metadata_column, study.target)
    if config.augmentation.draws_reads:
        require_whole_counts(study.counts, config.data.table)
    split, leaked, notes = _split(config, study, takes_over)
    _require_pairs(config, study, split)
    task = build_task(config, study, split, pretrained).to(device)

    inputs = _fingerprint(study, split)
    resumed = _load_resumed(config, directory, inputs) if config.train.resume else None
    if resumed is None:
        directory.create(overwrite=config.train.overwrite)
    with directory.logging():
        _log_study(config, study, split, device)
        if pretrained is not None:
            _log_other_reading(config.data, pretrained.config.data)
        for note in notes:
            logger.info(note)
        for warning in _leaks(config, study, split):
            logger.warning(warning)
        header = _provenance(study, task)
        trainer = _build_trainer(config, study, split, task, device, directory, header, inputs)
        if resumed is not None:
            try:
                trainer.load_state_dict(resumed["trainer"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise DataError(
                    f"{directory / 'last.ckpt'}: does not fit this run ({type(error).__name__}); "
                    "start again with --overwrite"
                ) from None
            logger.info("resuming after epoch %d", trainer.state.epoch)
        write_json(directory / "config.json", config.model_dump(mode="json"))
        write_splits(directory / "splits.tsv", study.sample_ids, split)
        try:
            trainer.fit()
        finally:
            trainer.close()
        return _finish(config, study, split, task, trainer, directory, leaked)


def choose_device(config: TrainConfig) -> torch.device:
    """The device of ``--device``, with ``--threads`` set.

    Raises
    ------
    DataError
        If the machine has no such device.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[config.device]:
        raise DataError(f"--device {config.device}: PyTorch {torch.__version__} finds none here; use --device auto")
    return torch.device(config.device)


def loader(
    dataset: SampleDataset, plan: BatchPlan, config: TrainConfig, device: torch.device, *, workers: int | None = None
) -> DataLoader[Batch]:
    """Batches of a plan, built in worker processes.

    Parameters
    ----------
    dataset : SampleDataset
    plan : BatchPlan
    config : TrainConfig
    device : torch.device
        Batches for a GPU are pinned.
    workers : int, optional
        In place of the configured number.
    """
    if workers is None:
        workers = config.num_workers if config.num_workers is not None else min(4, _cores())
    return DataLoader(
        dataset,
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # Its own generator: the loader's draws must not move those of dropout.
        generator=torch.Generator(),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --------------------------------------------------------------------------------------------------- pre-trained base


def _load_pretrained(config: RunConfig) -> ModelFile | None:
    if config.train.pretrained_encoder is None:
        return None
    return load_model_file(model_path(config.train.pretrained_encoder))


def _pretrained_architecture(config: RunConfig, pretrained: ModelFile) -> ModelConfig:
    """The pre-trained model's architecture, with what this run may choose for itself."""
    own = {"dropout", "gradient_checkpointing", "asv_chunk_size"}
    asked = {name: getattr(config.model, name) for name in config.model.model_fields_set}
    for name, value in asked.items():
        theirs = getattr(pretrained.config.model, name)
        if name not in own and value != theirs:
            option = "--" + name.replace("_", "-")
            raise DataError(
                f"{option} {value} does not fit the pre-trained encoder, which has {theirs}; "
                f"leave {option} out, or pre-train with it"
            )
    return pretrained.config.model.model_copy(update={name: asked[name] for name in own & asked.keys()})


def _own_split_options(data: DataConfig, before: DataConfig) -> set[str]:
    """Options of the split that were given and are not the pre-trained run's (a stored configuration gives all)."""
    asked = data.model_fields_set & SPLIT_OPTIONS | {name for name in SPLIT_SOURCES if getattr(data, name)}
    return {name for name in asked if getattr(data, name) != getattr(before, name)}


def pretrained_split_options(data: DataConfig, before: DataConfig) -> DataConfig:
    """The options of the split come along with it; the group column only where these metadata have it."""
    update: dict[str, Any] = {"val_size": before.val_size, "test_size": before.test_size}
    group = before.group_column
    if group is not None and group != data.metadata_column and data.metadata:
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
        split, notes = split_study(study, data, config.train.seed)
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
    for part in ("train", "val"):
        if not (split == part).any():
            raise DataError(
                f"{config.train.pretrained_encoder}: none of these samples is in its {part} split; "
                "give another --val-size than its own for a split of their own"
            )
    return split


def _leaks(config: RunConfig, study: Study, split: NDArray[Any]) -> list[str]:
    return leak_warnings(
        study.sample_ids,
        study.counts,
        split,
        groups=study.groups,
        group_column=config.data.group_column,
        metadata=study.metadata,
        target=config.data.metadata_column,
    )


def _require_pairs(config: RunConfig, study: Study, split: NDArray[Any]) -> None:
    """Refuse to learn distances where there is no pair of samples to learn from, or for `pretrain` to judge by."""
    with in_file(config.data.unifrac_matrix):
        common_references(study.labels, study.rows_of(split, "train"))
    if config.task.unifrac_weight == 0 or not any(isinstance(labels, Pairs) for labels in study.labels.values()):
        return
    if config.train.batch_size == 1:
        raise DataError("--batch-size 1 has no pair of samples to learn distances from; give 2 or more")
    for part in ("train", "val") if config.command == "pretrain" else ("train",):
        if len(study.rows_of(split, part)) < 2:
            raise DataError(
                f"{named(config.data.table)}: the {part} split has one sample, which is no pair of a known distance; "
                "change --val-size, or add samples"
            )


# ------------------------------------------------------------------------------------------------------------ trainer


def _datasets(config: RunConfig, study: Study, split: NDArray[Any], task: Task) -> dict[str, SampleDataset]:
    """The study as each split sees it."""
    base_learns = not config.train.freeze_base
    options = replace(
        DatasetOptions.of(config.data, config.train.seed),
        nuc_asv_fraction=config.task.nuc_asv_fraction if config.task.nuc_weight > 0 and base_learns else 0.0,
        nuc_mask_ratio=config.task.nuc_mask_ratio,
        nuc_mask_strategy=config.task.nuc_mask_strategy,
        count_mask_ratio=(
            config.task.count_mask_ratio
            if config.command == "train"
            and config.task.count_weight > 0
            and base_learns
            and config.model.count_embedding != "none"
            else 0.0
        ),
    )
    encoded = None
    if isinstance(task, TrainTask):
        assert study.target is not None
        encoded = task.target.encode(study.target)
    labels = {name: known.labels for name, known in task.labelled.items()}
    train = study.rows_of(split, "train")
    classes = None
    if isinstance(task, TrainTask) and isinstance(task.target, ClassTarget):
        classes = task.target.encode(task.actual)
    augmentation = Augmentation.of(config.augmentation, config.train.seed, train, classes)
    datasets = {
        "train": SampleDataset.of_study(study, options, labels, encoded, references=train, augmentation=augmentation)
    }
    for part in ("val", "test"):
        rows = study.rows_of(split, part)
        if len(rows):
            datasets[part] = SampleDataset.of_study(
                study, options, labels, encoded, restore_once=rows, references=train
            )
    return datasets


def _build_trainer(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    device: torch.device,
    directory: RunDirectory,
    header: dict[str, Any],
    inputs: dict[str, str],
) -> Trainer:
    datasets = _datasets(config, study, split, task)
    studies = study.studies if config.data.study_batches == "alternate" else None
    plans = {
        part: BatchPlan(
            study.rows_of(split, part),
            config.train.batch_size,
            part == "train",
            config.train.seed,
            studies if part == "train" else None,
        )
        for part in datasets
    }
    optimizer = build_optimizer(task.model, config.optim)
    steps = -(-len(plans["train"]) // config.optim.accumulation_steps) * config.train.epochs

    def save_best(evaluation: Evaluation) -> None:
        metrics = {"val": evaluation.metrics}
        save_model_file(directory / MODEL_NAME, task.model, config, {**header, "metrics": metrics})

    shown = ("r2", "mae", "balanced_accuracy", *(f"{name}_r2" for name in task.reading_names))
    return Trainer(
        task,
        plans["train"],
        loader(datasets["train"], plans["train"], config.train, device),
        loader(datasets["val"], plans["val"], config.train, device),
        optimizer,
        build_schedule(optimizer, config.optim, steps),
        config.optim,
        config.train,
        device,
        callbacks=[
            Console(shown),
            HistoryFile(directory / "history.csv"),
            TensorBoard(directory / "tensorboard", lambda evaluation: figures(task, study, evaluation)),
            EarlyStopping(config.train.patience),
            Checkpoints(
                save_best, directory / "last.ckpt", {"config": config.model_dump(mode="json"), "inputs": inputs}
            ),
        ],
    )


def _fingerprint(study: Study, split: NDArray[Any]) -> dict[str, str]:
    """What a run that is resumed must find as it left it: the files, and which sample was held out."""
    lines = "\n".join(f"{name}\t{part}" for name, part in zip(study.sample_ids, split, strict=True))
    return {**study.checksums, "split": hashlib.sha256(lines.encode()).hexdigest()}


def _load_resumed(config: RunConfig, directory: RunDirectory, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The checkpoint of the run to be continued, if its inputs and its settings are this one's where it matters."""
    saved = load_checkpoint(directory / "last.ckpt")
    for name, digest in inputs.items():
        if saved.get("inputs", {}).get(name, digest) != digest:
            what = "the split of the samples" if name == "split" else f"the file of --{name.replace('_', '-')}"
            raise DataError(
                f"{directory.path}: cannot be resumed, since {what} is another than when it was begun; "
                "put it back, or start again with --overwrite"
            )
    require_same_config(config, saved["config"], directory.path)
    return saved


def require_same_config(config: RunConfig, stored: Mapping[str, Any], directory: Path) -> None:
    """Refuse to continue a run whose stored configuration differs where it matters.

    Raises
    ------
    DataError
    """
    free = {"output_dir", "epochs", "patience", "device", "threads", "num_workers", "resume", "overwrite"}
    now = config.model_dump(mode="json")
    moved = {str(Path(part["train"]["output_dir"]) / "splits.tsv") for part in (now, stored) if "train" in part}
    for section in now.keys() - {"command"}:
        for name, value in now[section].items():
            before = stored.get(section, {}).get(name, value)
            if name == "splits" and {before, value} <= moved:
                continue  # a fold's own, in a directory that has another name now
            if before != value and name not in free:
                option = "--" + name.replace("_", "-")
                raise DataError(f"{directory}: was begun with {option} {before}, and {option} {value} is asked for")


# ------------------------------------------------------------------------------------------------------------- ending


def _finish(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    task: Task,
    trainer: Trainer,
    directory: RunDirectory,
    leaked: list[str],
) -> RunResult:
    """Judge the best model on the held-out samples and write what a person reads."""
    from aam.evaluation.plots import history_plot, save_figure

    best = load_model_file(directory / MODEL_NAME)
    task.model.load_state_dict(best.weights)
    history = pd.DataFrame(trainer.state.history)
    metrics: dict[str, Any] = {"best_epoch": trainer.state.best_epoch}
    datasets = _datasets(config, study, split, task)
    for part in ("val", "test"):
        if part not in datasets:
            continue
        plan = BatchPlan(study.rows_of(split, part), config.train.batch_size, False, config.train.seed)
        evaluation = trainer.evaluate(loader(datasets[part], plan, config.train, trainer.device, workers=0))
        metrics[part] = evaluation.metrics
        for name, figure in figures(task, study, evaluation).items():
            save_figure(figure, directory / "plots" / f"{part}_{name}.png")
        if isinstance(task, TrainTask) and evaluation.output is not None:
            rows = evaluation.sample_index
            table = prediction_table(
                task.target, [study.sample_ids[i] for i in rows], evaluation.output, task.actual[rows]
            )
            write_table(directory / f"{part}_predictions.tsv", table)
    if isinstance(task, TrainTask):
        metrics["baseline"] = {"guess": _guess(task, split)}
    if config.train.pretrained_encoder is not None:
        metrics["pretrained_leak"] = len(leaked)
    save_figure(history_plot(history), directory / "plots" / "history.png")
    write_json(directory / "metrics.json", metrics)
    return RunResult(directory.path, metrics, history)


def _guess(task: TrainTask, split: NDArray[Any]) -> dict[str, dict[str, float]]:
    """What the best constant answer, the training split's median or most frequent class, comes to."""
    train = task.actual[split == "train"]
    found = {}
    for part in ("val", "test"):
        actual = task.actual[split == part]
        if not len(actual):
            continue
        if isinstance(task.target, NumericTarget):
            found[part] = regression_metrics(actual, np.full(len(actual), np.median(train)))
        else:
            frequencies = np.bincount(task.target.encode(train), minlength=task.target.outputs) / len(train)
            found[part] = classification_metrics(
                task.target.encode(actual),
                np.full(len(actual), frequencies.argmax()),
                np.tile(frequencies, (len(actual), 1)),
                task.target.classes,
            )
    return found


def figures(task: Task, study: Study, evaluation: Evaluation) -> dict[str, Figure]:
    """The plots of an evaluation: the target's, and one for each reading of a base target."""
    from aam.evaluation.plots import confusion_plot, distance_plot, regression_plot

    drawn: dict[str, Figure] = {}
    if isinstance(task, TrainTask) and evaluation.output is not None:
        table = prediction_table(
            task.target,
            [study.sample_ids[i] for i in evaluation.sample_index],
            evaluation.output,
            task.actual[evaluation.sample_index],
        )
        column = task.target.column
        if isinstance(task.target, ClassTarget):
            drawn["predictions"] = confusion_plot(
                table.actual.to_numpy(), table.predicted.to_numpy(), task.target.classes, title=column
            )
        else:
            drawn["predictions"] = regression_plot(
                table.actual.to_numpy(), table.predicted.to_numpy(), title=column, units_label=column
            )
    distances = [reading.target for reading in evaluation.readings.values() if reading.target.kind == "pairwise"]
    for reading in evaluation.readings.values():
        target, actual, predicted = reading.target, reading.actual, reading.predicted
        title = f"{target.title}, {reading.head} head"
        if target.kind == "pairwise":
            name = "distances" if target is distances[0] else target.name
            drawn[f"{name}_{reading.head}"] = distance_plot(actual, predicted, title=title)
        elif target.kind == "value":
            drawn[f"{target.name}_{reading.head}"] = regression_plot(
                actual, predicted, title=title, units_label=target.title
            )
        else:
            r2 = evaluation.metrics.get(f"{target.name}_r2")  # each part around its own mean
            drawn[target.name] = distance_plot(
                actual, predicted, title=target.title, what="share", counted="parts of samples", r2=r2
            )
    return drawn


def _provenance(study: Study, task: Task) -> dict[str, Any]:
    return {
        "target": task.target.to_dict() if isinstance(task, TrainTask) else None,
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


def _log_other_reading(data: DataConfig, before: DataConfig) -> None:
    """Say where samples are read in another way than the pre-trained encoder read them."""
    for name in ("rarefy_depth", "token_limit", "asv_sampling"):
        value, theirs = getattr(data, name), getattr(before, name)
        if value != theirs:
            option = "--" + name.replace("_", "-")
            logger.info("%s is %s here and was %s when the encoder was pre-trained", option, value, theirs)


def _log_study(config: RunConfig, study: Study, split: NDArray[Any], device: torch.device) -> None:
    logger.info("aam %s on %s, %d threads", config.command, device, torch.get_num_threads())
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
