"""From a study and its split to the task that learns it: labels, a fitted target, and a network that starts well."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aam.config import RunConfig, TrainConfig
from aam.data.counts import present_asvs
from aam.data.covariates import Covariates
from aam.data.dataset import BatchPlan, DatasetOptions, SampleDataset
from aam.data.draws import generator
from aam.data.labels import CompositionLabels, Labels, Pairs, taxon_labels
from aam.data.study import Study
from aam.data.targets import NumericTarget, Part, fit_targets, parts_of
from aam.data.taxonomy import load_taxonomy, names_in_taxonomy, taxa_at
from aam.errors import DataError, in_file
from aam.models.asv_encoder import REFERENCE_ASVS
from aam.models.base_targets import BaseTarget, UniFrac, base_target, require_readable, targets_of
from aam.models.distances import mean_of_pairs
from aam.models.sequence_encoder import Level, SequenceEncoder
from aam.training.checkpoint import ModelFile, build_encoder, build_predictor, load_base, read_base_targets
from aam.training.frozen import frozen_module
from aam.training.tasks import LabelledTarget, PretrainTask, Task, TrainTask

__all__ = ["build_task", "labelled_targets"]

logger = logging.getLogger("aam")

_ENOUGH_ABUNDANCES = 2**22


def build_task(config: RunConfig, study: Study, split: NDArray[Any], pretrained: ModelFile | None) -> Task:
    torch.manual_seed(config.train.seed)
    train = study.rows_of(split, "train")
    labelled = labelled_targets(config, study, train)
    targets = tuple(known.target for known in labelled.values()) or _unlabelled_targets(config, pretrained)
    encoder = build_encoder(config.model, targets)
    dataset = SampleDataset.of_study(study, DatasetOptions.of(config.data, config.train.seed))
    if pretrained is not None:
        _load_pretrained(encoder, config, pretrained, dataset, train, labelled)
    else:
        _fit_abundance(encoder, dataset, train)
        _set_reference(encoder, config.train, study, train)
        _calibrate(encoder, config.train, dataset, train, labelled)
    if config.train.frozen_part is not None and config.train.unfreeze_after is None:  # else the optimizer holds it
        frozen_module(encoder, config.train.frozen_part).requires_grad_(False)
    if config.command == "pretrain":
        return PretrainTask(
            encoder, config.task, labelled, config.train.seed, studies=study.studies, study_names=study.study_names
        )

    with in_file(config.data.metadata):
        assert study.target is not None
        target = fit_targets(config.data.columns, study.target, train, config.task)
        covariates = _fit_covariates(config, study, train)
    for column in config.data.columns:
        if len(config.data.columns) > 1 and column in encoder.targets:
            raise DataError(
                f"column {column!r} has the name of a base target, as which its figures would go; rename it"
            )
    predictor = build_predictor(encoder, config.model, target.outputs, covariates)
    assert study.target is not None
    return TrainTask(
        predictor,
        config.task,
        target,
        study.target,
        [_class_weights(config, part, study.target[train]) for part in parts_of(target)],
        labelled,
        config.train.seed,
        studies=study.studies,
        study_names=study.study_names,
        covariates=covariates,
    )


def _load_pretrained(
    encoder: SequenceEncoder,
    config: RunConfig,
    pretrained: ModelFile,
    dataset: SampleDataset,
    train: NDArray[np.int64],
    labelled: Mapping[str, LabelledTarget],
) -> None:
    """Take over what was learnt; what was not starts at the level of the training samples."""
    source = config.train.pretrained_encoder
    assert source is not None
    weights = _encoder_weights(pretrained)
    before = read_base_targets(pretrained.header, source, known_alone=True)
    theirs, ours = pretrained.config.model.distance_head, config.model.distance_head
    new_clades = theirs == "euclidean" != ours

    def load() -> set[str]:
        return load_base(encoder, weights, before, source, other_heads=theirs != ours)

    new = load()
    calibrated = {name: known for name, known in labelled.items() if new_clades or name in new}
    if calibrated or new_clades:
        _calibrate(encoder, config.train, dataset, train, calibrated, widths=new_clades)
        load()  # of the heads that were calibrated, some had been learnt
    if calibrated and config.train.freeze_base and config.train.unfreeze_after is None:
        logger.warning("--freeze-base: what the encoder lacks to read %s is not learnt", ", ".join(calibrated))


def _labels(config: RunConfig, study: Study, train: NDArray[np.int64]) -> dict[str, Labels]:
    """What is known of the samples, by base target."""
    labels = dict(study.labels)
    if config.data.taxonomy is not None:
        taxonomy = load_taxonomy(config.data.taxonomy)
        names, lacking = names_in_taxonomy(taxonomy, study.feature_ids, study.sequences, config.data.taxonomy)
        if lacking:
            logger.warning("%s: names no taxon of %d of %d features", config.data.taxonomy, lacking, len(names))
        labels["taxonomy"] = taxon_labels(study.counts, taxa_at(taxonomy, names, config.task.taxonomy_level), train)
    return labels


def labelled_targets(config: RunConfig, study: Study, train: NDArray[np.int64]) -> dict[str, LabelledTarget]:
    """The base targets that are learnt, each with its labels, measured on the training split."""
    labels = _labels(config, study, train)
    found = {}
    learnt = targets_of(config.task.base_target, labels)
    if config.data.taxonomy is not None and "taxonomy" not in learnt:
        logger.warning("--taxonomy is not used: --base-target is %s", config.task.base_target)
    for name in learnt:
        known = labels[name]
        parts = known.names if isinstance(known, CompositionLabels) else ()
        target = base_target(name, alpha=config.task.unifrac_alpha, parts=parts)
        found[name] = LabelledTarget.of(target, known, train, config.train.seed)
        try:
            require_readable(name, config.model.distance_head)
        except ValueError as error:
            raise DataError(str(error)) from None
    if config.command == "pretrain" and not found:
        raise DataError(f"--base-target {config.task.base_target}: nothing to learn it from was given")
    return found


def _unlabelled_targets(config: RunConfig, pretrained: ModelFile | None) -> tuple[BaseTarget, ...]:
    """The base targets whose heads come along where none is learnt."""
    if pretrained is None:
        return (UniFrac(),)
    assert config.train.pretrained_encoder is not None
    return read_base_targets(pretrained.header, config.train.pretrained_encoder, known_alone=True)


def _fit_abundance(encoder: SequenceEncoder, dataset: SampleDataset, train: NDArray[np.int64]) -> None:
    """Standardise log abundances by the training samples'."""
    found: list[NDArray[np.float64]] = []
    order = generator("samples whose abundances are standardised by", dataset.options.seed, 0).permutation(train)
    for start in range(0, len(order), 64):
        rows, depth = dataset.drawn(order[start : start + 64], epoch=0)
        found.append(np.log(rows.counts / depth[rows.samples]))
        if sum(map(len, found)) > _ENOUGH_ABUNDANCES:
            break
    logs = np.concatenate(found)
    abundance = encoder.sample_encoder.abundance
    abundance.mean.fill_(float(logs.mean()))
    abundance.sd.fill_(float(logs.std()) or 1.0)


def _set_reference(encoder: SequenceEncoder, config: TrainConfig, study: Study, train: NDArray[np.int64]) -> None:
    """Give a fresh network reference ASVs of the training samples."""
    present = np.flatnonzero(present_asvs(study.counts, train))
    chosen = np.sort(generator("reference ASVs", config.seed, 0).permutation(present)[:REFERENCE_ASVS])
    encoder.asv_encoder.set_reference(torch.from_numpy(study.tokens[chosen, 1:]))


def _calibrate(
    encoder: SequenceEncoder,
    config: TrainConfig,
    dataset: SampleDataset,
    train: NDArray[np.int64],
    labelled: Mapping[str, LabelledTarget],
    *,
    widths: bool = True,
) -> None:
    """Start what is read of samples at the level of real values, by some training samples."""
    some = next(iter(BatchPlan(train, 64, True, config.seed)))
    if len(some.samples) < 2:
        return
    rows = np.array(some.samples)
    levels = {name: _level(known, rows) for name, known in labelled.items()}
    if not labelled and UniFrac.name in encoder.targets:
        levels = {UniFrac.name: Level(torch.tensor(0.5))}
    encoder.eval()
    encoder.calibrate(dataset[some], levels, widths=widths)


def _level(known: LabelledTarget, rows: NDArray[np.int64]) -> Level:
    """The level of a base target in the training split; that of distances, in these very samples where it is known."""
    if isinstance(known.labels, Pairs) and known.labels.references is None:
        mean = mean_of_pairs(torch.from_numpy(known.labels.block(rows, rows)))
        if math.isfinite(mean):
            return Level(torch.tensor(mean))
    return Level(torch.as_tensor(known.mean, dtype=torch.float32), math.sqrt(known.scale))


def _fit_covariates(config: RunConfig, study: Study, train: NDArray[np.int64]) -> Covariates | None:
    if study.covariates is None:
        return None
    return Covariates.fit(study.covariates.iloc[train], config.data.categorical_columns, config.data.numeric_columns)


def _class_weights(config: RunConfig, part: Part, values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Inverse frequencies with a mean of 1 over the training samples."""
    target = part.target
    if isinstance(target, NumericTarget) or config.task.class_weights == "none":
        return None
    _, labels = part.known(values)
    sizes = np.bincount(target.encode(labels), minlength=target.outputs)
    return (len(labels) / (target.outputs * sizes)).astype(np.float32)


def _encoder_weights(pretrained: ModelFile) -> dict[str, torch.Tensor]:
    if pretrained.config.command == "pretrain":
        return pretrained.weights
    prefix = "encoder."
    return {name.removeprefix(prefix): w for name, w in pretrained.weights.items() if name.startswith(prefix)}
