"""From a model file and a table to importances of ASVs: the straight line behind ``aam explain``.

Shapes: ``n`` samples, ``A`` ASVs, ``nnz`` ASVs that the samples have in all, ``T`` taxa.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aam.config import DataConfig, RunConfig, TrainConfig
from aam.data.counts import SampleRows
from aam.data.covariates import Covariates
from aam.data.dataset import DatasetOptions, SampleDataset
from aam.data.metadata import load_metadata, require_column
from aam.data.splits import has_folds, read_folds, read_splits
from aam.data.study import Study, load_study
from aam.data.targets import ClassTarget, NumericTarget, Part, SeveralTargets, Target, parts_of
from aam.data.taxonomy import load_taxonomy, taxa_at
from aam.data.tokenizer import PAD
from aam.errors import DataError, named
from aam.explanation import AttentionMap, Bases, Explanation, Found, Units
from aam.interpret.attention import attention_flow, attention_of_chunk, attention_weights, nucleotide_attention
from aam.interpret.deletion import NUMBERS, deletion_curve, random_ranking
from aam.interpret.gradients import Attributions, gradient_shap, integrated_gradients, require_captum
from aam.interpret.importances import importances, summed
from aam.interpret.nucleotides import base_attributions, mean_gradients
from aam.interpret.output import BaselineKind, Explained, Network, Reading
from aam.interpret.permutation import permutation
from aam.interpret.samples import Samples, chunks
from aam.loaders import choose_device
from aam.models.sequence_predictor import SequencePredictor
from aam.networks import require_network_of_torch
from aam.predict import data_as_trained
from aam.training.checkpoint import (
    build_model,
    load_weights,
    model_path,
    read_covariates,
    read_target,
    without_base_heads,
)
from aam.training.ensemble import Member, load_ensemble
from aam.training.frozen import encode_asvs
from aam.training.tasks import answers_of

__all__ = ["DEFAULT_METHODS", "METHODS", "SPLITS", "Question", "explain"]

logger = logging.getLogger("aam")

METHODS = ("integrated-gradients", "gradient-shap", "attention", "permutation")
DEFAULT_METHODS = ("integrated-gradients", "attention", "permutation")
SPLITS = ("train", "val", "test", "cal")
_RANDOM_CURVES = 3
_MOST_EXPECTED = 0.1  # standard error of a sum of attributions, as a share of the change


@dataclass(frozen=True)
class Question:
    """What is asked of a model."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    ranks: tuple[str, ...] = ()  # at which taxa are looked at, beside ASVs
    splits: tuple[str, ...] = ()  # of the run, whose samples are explained; all samples if none is named
    column: str | None = None
    class_name: str | None = None
    baseline: BaselineKind = "mean"
    tolerance: float = 0.01
    draws: int = 200  # of gradient-shap
    repeats: int = 1  # of permutation
    layers: tuple[int, ...] = ()  # from 1
    heads: tuple[int, ...] = ()  # from 1
    group_column: str | None = None
    max_samples: int = 2000
    attention: int = 0  # samples whose attention is drawn
    nucleotides: int = 0  # ASVs whose bases are looked at
    seed: int = 0


def explain(
    model: Path,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path] = (),
    metadata: Sequence[Path] = (),
    taxonomy: Path | None = None,
    streaming: bool = False,
    question: Question,
    settings: TrainConfig,
) -> Explanation:
    """Find out which ASVs predictions depend on.

    Parameters
    ----------
    model : Path
        Run directory of ``aam train``, or its model file. Of several models the mean is explained.
    table : Path, or several
    sequences : Path, or several
        Of the features.
    metadata : sequence of Path
        For covariates, groups, and the truth where it is known.
    taxonomy : Path, optional
        Of the features.
    streaming : bool
        Leave the counts in the table's file.
    question : Question
    settings : TrainConfig
        Device and threads.

    Raises
    ------
    DataError
        If the model or the table cannot be used, or what is asked for is not there.
    """
    # In the order in which they are read, whatever the order in which they are named.
    question = replace(question, layers=tuple(sorted(set(question.layers))), heads=tuple(sorted(set(question.heads))))
    if question.ranks and taxonomy is None:
        raise DataError(f"--by {question.ranks[0]}: taxa are named by --taxonomy; give one")
    if question.group_column is not None and not metadata:
        raise DataError(f"--group-column {question.group_column} is a column of --metadata; give one")
    if "gradient-shap" in question.methods:
        require_captum()
    device = choose_device(settings)
    lineages = None if taxonomy is None else load_taxonomy(taxonomy)
    asked = _asked(model, question)
    split, held_out_by = _split_of(asked.path, question.splits)
    columns = load_metadata(tuple(metadata)) if metadata else None
    study, data = _study(asked, table, sequences=sequences, metadata=metadata, streaming=streaming)
    rows = _chosen(study, question, split)
    samples, used = _samples(study, DatasetOptions.of(data, asked.config.train.seed), rows)
    networks = _networks(asked, study, rows, used, device)
    names = [study.sample_ids[row] for row in rows]
    shares = _shares(asked, [held_out_by[name] for name in names]) if held_out_by else None
    explained, what, units = _explained(networks, asked.part, samples, question, shares)
    actual, truth = _truth(columns, names, asked.part, explained)
    groups = _groups(columns, names, question, metadata)
    feature_ids = [study.feature_ids[column] for column in used]
    letters = [study.sequences[column] for column in used]
    taxa = None if lineages is None else _taxa(lineages, feature_ids, letters, taxonomy)
    kinds = _kinds(feature_ids, taxa, question.ranks)

    values = explained.values(samples)
    if not np.isfinite(values).all():
        name = names[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise DataError(f"the prediction of sample {name!r} by {asked.path} is not finite; look at its counts")
    spread = float(values.std()) or 1.0
    by_method = [
        _by_method(method, explained, samples, kinds, question, truth, groups, spread) for method in question.methods
    ]
    curves = _curves(explained, samples, by_method, question.seed)
    summary = {
        "model": str(asked.path),
        "models": len(networks),
        "column": asked.part.target.column,
        "explains": what,
        "units": units,
        "split": list(question.splits) or "all",
        "each_by": "each by the fold that held it out" if held_out_by else f"mean of {len(networks)} models",
        "samples": len(samples),
        "samples_in_table": len(study),
        "asvs": len(used),
        "sd_of_predictions": spread,
        "intervals": "samples" if groups is None else f"groups of {question.group_column}",
        "methods": {one.method: one.checks | {"deletion": _deletion(curves, one.method)} for one in by_method},
    }
    bases = None
    if question.nucleotides:
        bases, summary["bases_largest_share_missing"] = _bases(
            explained, samples, by_method[0].found[0].importances.importance, study.tokens[used], question.nucleotides
        )
    maps, flow = [], {}
    if question.attention:
        maps = _maps(explained, samples, values, question)
        read = _places(question)
        flow = {unit.name: attention_flow(explained, samples, unit.of_asv, *read) for unit in kinds[1:]}
    return Explanation(
        *(names, feature_ids, letters, taxa, samples.prevalence),
        samples=_table_of_samples(names, values, explained, asked.part, actual, by_method),
        found=[found for one in by_method for found in one.found],
        curves=curves,
        summary=summary,
        what=what,
        left_out=study.left_out,
        maps=maps,
        flow=flow,
        bases=bases,
    )


# ------------------------------------------------------------------------------------------------ the model, the study


class _Asked(NamedTuple):
    """A model file, read, and the column of it that is explained."""

    path: Path
    config: RunConfig  # of the first model, as of all of them
    members: list[Member]
    targets: list[Target | SeveralTargets]  # of each model
    covariates: list[Covariates | None]
    part: Part


def _asked(model: Path, question: Question) -> _Asked:
    path = model_path(model)
    require_network_of_torch(path)
    ensemble = load_ensemble(path)
    members = ensemble.members
    targets = [target for member in members if (target := read_target(member.file.header, path)) is not None]
    if len(targets) < len(members):
        raise DataError(f"{model}: a pre-trained encoder, which predicts no column; give a run of `aam train`")
    first = targets[0]
    of_classes = isinstance(parts_of(first)[0].target, ClassTarget)
    if any(other.outputs != first.outputs or (of_classes and other != first) for other in targets):
        raise DataError(f"{path}: its models do not predict the same; train them together")
    if "joined" in ensemble.header:
        logger.warning("%s: the network alone is explained, and not the classical model that was joined to it", path)
    config = members[0].file.config
    _require_layers(question, 2 * config.model.attention_layers, config.model.attention_heads)
    covariates = [read_covariates(member.file.header, path) for member in members]
    return _Asked(path, config, members, targets, covariates, _part(parts_of(first), question))


def _study(
    asked: _Asked,
    table: Path | Sequence[Path],
    *,
    sequences: Path | Sequence[Path],
    metadata: Sequence[Path],
    streaming: bool,
) -> tuple[Study, DataConfig]:
    """The table, read as that of the training was, with covariates where the model reads any."""
    known = [covariates for covariates in asked.covariates if covariates is not None]
    data = data_as_trained(
        *(asked.config, table), sequences=sequences, metadata=metadata if known else (), streaming=streaming
    )
    if known:
        reads = {name: getattr(asked.config.data, name) for name in ("categorical_columns", "numeric_columns")}
        data = data.model_copy(update=reads)
    study = load_study(data, max_bp=asked.config.model.max_bp, keep_unlabelled=True, checksums=False)
    told = [] if study.covariates is None else [one.unknown(study.covariates) for one in known]
    for sentence in (*study.warnings, *dict.fromkeys(chain(*told))):
        logger.warning(sentence)
    return study, data


def _chosen(study: Study, question: Question, split: Mapping[str, str]) -> NDArray[np.int64]:
    """Rows of the samples that are explained, by their IDs: what is drawn must not hang on the order of a table."""
    order = np.arange(len(study))
    if question.splits:
        order = order[[split.get(study.sample_ids[row]) in question.splits for row in order]]
        if not len(order):
            raise DataError(
                f"--split {' '.join(question.splits)}: of the {len(study)} samples of the table none is in it; "
                f"splits.tsv of the run names {_counted(split)}"
            )
    if len(order) <= question.max_samples:
        return order
    kept = np.random.default_rng(question.seed).choice(len(order), question.max_samples, replace=False)
    logger.info("%d of %d samples are explained; --max-samples says how many", question.max_samples, len(order))
    return order[np.sort(kept)]


def _split_of(path: Path, splits: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """The split of each sample of the run that a model file is of; of folds, which one holds it out."""
    if not splits:
        return {}, {}
    file = path.parent / "splits.tsv"
    if not file.is_file():
        raise DataError(
            f"--split: there is no splits.tsv beside {path}, so nobody can say which samples were held out; "
            "give the run directory, or a --table of these samples alone"
        )
    if not has_folds(file):
        return read_splits(file), {}
    if set(splits) != {"test"}:
        raise DataError(
            f"--split {' '.join(splits)}: each fold of {path.parent} has learnt from samples of its own; --split test "
            f"has every sample explained by the fold that held it out, and --model {path.parent / 'fold_0'} is one fold"
        )
    folds = read_folds(file)
    return dict.fromkeys(folds, "test"), folds


def _shares(asked: _Asked, held_out_by: Sequence[int]) -> NDArray[np.float64]:
    """What each of M models says of each of n samples, (M, n): only those of the fold that held it out say anything."""
    own = np.array([[member.fold == fold for fold in held_out_by] for member in asked.members], dtype=float)
    if not own.any(axis=0).all():
        raise DataError(f"{asked.path}: no model of it is of fold {held_out_by[int(own.sum(axis=0).argmin())]}")
    shares: NDArray[np.float64] = own / own.sum(axis=0)
    return shares


def _counted(split: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in Counter(split.values()).items())


def _samples(study: Study, options: DatasetOptions, rows: NDArray[np.int64]) -> tuple[Samples, NDArray[np.int64]]:
    """What is read of the samples, its ASVs numbered from 0; and which of the study's these are, (A,)."""
    drawn, depth = SampleDataset.of_study(study, options).drawn(rows, 0)
    used, place = np.unique(drawn.asvs, return_inverse=True)
    return Samples(SampleRows(drawn.indptr, place.astype(np.int64), drawn.counts), depth, len(used)), used


def _networks(
    asked: _Asked, study: Study, rows: NDArray[np.int64], used: NDArray[np.int64], device: torch.device
) -> list[Network]:
    networks = []
    for member, fitted, beside in zip(asked.members, asked.targets, asked.covariates, strict=True):
        predictor = build_model(member.file.config.model, fitted.outputs, (), beside)
        assert isinstance(predictor, SequencePredictor)
        load_weights(predictor, without_base_heads(member.file.weights), asked.path)
        predictor.to(device).eval()
        embeddings = np.asarray(encode_asvs(predictor.encoder.asv_encoder, study.tokens[used], device))
        categories = numbers = None
        if beside is not None:
            assert study.covariates is not None
            known = beside.encode(study.covariates)
            categories, numbers = torch.from_numpy(known.categories[rows]), torch.from_numpy(known.numbers[rows])
        own = next(part.target for part in parts_of(fitted) if part.target.column == asked.part.target.column)
        scale, shift = (own.scale, own.shift) if isinstance(own, NumericTarget) else (1.0, 0.0)
        networks.append(
            Network(predictor, torch.from_numpy(embeddings).float().to(device), categories, numbers, scale, shift)
        )
    return networks


def _groups(
    columns: pd.DataFrame | None, names: list[str], question: Question, metadata: Sequence[Path]
) -> NDArray[Any] | None:
    """The group of each sample, (n,)."""
    if question.group_column is None:
        return None
    assert columns is not None
    of_sample = require_column(columns, question.group_column, metadata[0]).reindex(names)
    if of_sample.isna().any():
        lacking = names[int(np.flatnonzero(of_sample.isna())[0])]
        raise DataError(f"{named(tuple(metadata))}: {question.group_column} of sample {lacking!r} is not known")
    return of_sample.to_numpy(dtype=object)


def _taxa(lineages: Mapping[str, str], feature_ids: list[str], letters: list[str], taxonomy: Path | None) -> list[str]:
    """Whole lineages of the ASVs, named by their IDs or by their sequences; empty where there is none."""
    taxa = [lineages.get(name, lineages.get(bases, "")) for name, bases in zip(feature_ids, letters, strict=True)]
    if not any(taxa):
        raise DataError(f"{taxonomy}: names none of the features of the table, such as {feature_ids[0][:40]!r}")
    return taxa


def _kinds(feature_ids: list[str], taxa: list[str] | None, ranks: Sequence[str]) -> list[Units]:
    """ASVs, and the taxa of each rank that is asked for."""
    kinds = [Units("asv", np.arange(len(feature_ids)), feature_ids)]
    for rank in ranks:
        assert taxa is not None
        at_rank = taxa_at(dict(zip(feature_ids, taxa, strict=True)), feature_ids, rank)
        of_rank, of_asv = np.unique(np.array(at_rank, dtype=object).astype(str), return_inverse=True)
        kinds.append(Units(rank, of_asv, of_rank.tolist()))
    return kinds


# ------------------------------------------------------------------------------------------------------- what is found


class _ByMethod(NamedTuple):
    """What one method found, and how it checks itself."""

    method: str
    found: list[Found]  # of each kind of units
    ranking: NDArray[np.float64]  # (nnz,): the ASVs of each sample, the most important the highest
    checks: dict[str, Any]
    attributions: Attributions | None = None


def _by_method(
    method: str,
    explained: Explained,
    samples: Samples,
    kinds: Sequence[Units],
    question: Question,
    truth: NDArray[np.float64] | None,
    groups: NDArray[Any] | None,
    spread: float,
) -> _ByMethod:
    logger.info("%s of %d samples and %d ASVs", method, len(samples), samples.asvs)
    if method == "permutation":
        draws: dict[str, Any] = {"repeats": question.repeats, "seed": question.seed, "truth": truth}
        found = []
        for unit in kinds:
            permuted = permutation(explained, samples, unit.of_asv, **draws)
            of_unit = importances(permuted.change, permuted.direction, groups, seed=question.seed)
            error = None
            if permuted.error is not None and truth is not None:
                # Signs count: an ASV that the model is better off without has a negative one.
                error = np.asarray(permuted.error.sum(axis=0)).ravel() / np.isfinite(truth).sum()
            found.append(Found(method, unit, permuted.change, of_unit, error))
        checks = {"repeats": question.repeats, "truth_known": truth is not None}
        return _ByMethod(method, found, found[0].importances.importance[samples.rows.asvs], checks)
    per_entry, checks, attributions = _of_entries(method, explained, samples, question, spread)
    by_sample = samples.matrix(per_entry)
    found = []
    for unit in kinds:
        within = summed(by_sample, unit.of_asv)
        unsigned = np.zeros(len(unit.names)) if method == "attention" else None
        of_unit = importances(within, unsigned, groups, seed=question.seed)
        parts = {}
        for name in ("by_sequence", "by_abundance") if attributions is not None else ():
            sizes = abs(summed(samples.matrix(getattr(attributions, name)), unit.of_asv))
            parts[name] = np.asarray(sizes.sum(axis=0)).ravel() / len(samples)
        found.append(Found(method, unit, within, of_unit, parts=parts))
    return _ByMethod(method, found, np.abs(per_entry), checks, attributions)


def _curves(
    explained: Explained, samples: Samples, by_method: Sequence[_ByMethod], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Deletion curves, of each method and of ASVs drawn at random."""
    curves = {one.method: deletion_curve(explained, samples, one.ranking) for one in by_method}
    draws = (random_ranking(samples, seed + draw) for draw in range(_RANDOM_CURVES))
    curves["random"] = np.mean([deletion_curve(explained, samples, ranking) for ranking in draws], axis=0)
    return curves


def _deletion(curves: Mapping[str, NDArray[np.float64]], method: str) -> dict[str, Any]:
    top, random = curves[method], curves["random"]
    return {
        "left_out": list(NUMBERS),
        "top": top.round(6).tolist(),
        "random": random.round(6).tolist(),
        "beyond_random": bool((top > random).all()),
        "ratio": round(float(top.sum() / max(random.sum(), 1e-12)), 4),
    }


def _table_of_samples(
    names: list[str],
    values: NDArray[np.float64],
    explained: Explained,
    part: Part,
    actual: NDArray[Any] | None,
    by_method: Sequence[_ByMethod],
) -> pd.DataFrame:
    frame = pd.DataFrame({"sample_id": names, "explained": values})
    if explained.reading.classes is not None:
        assert isinstance(part.target, ClassTarget)
        frame["class"] = part.target.decode(explained.reading.classes)
    if actual is not None:
        frame["actual"] = actual
    for one in by_method:
        if one.attributions is not None:
            frame[f"{one.method}_change"] = one.attributions.change
            frame[f"{one.method}_missing"] = one.attributions.missing
    return frame


def _bases(
    explained: Explained, samples: Samples, scores: NDArray[np.float64], tokens: NDArray[np.uint8], number: int
) -> tuple[Bases, float]:
    """The bases of the ASVs with the highest scores (A,); and the largest share that their attributions miss."""
    top = np.argsort(-scores, kind="stable")[:number]
    own = tokens[top]
    own = own[:, : int((own != PAD).sum(axis=1).max())]
    found = base_attributions(explained, mean_gradients(explained, samples), top, own)
    missing = float((np.abs(found.missing) / np.abs(found.change).clip(1e-12)).max())
    return Bases(top, found.values, nucleotide_attention(explained.networks[0], own)), missing


def _maps(
    explained: Explained, samples: Samples, values: NDArray[np.float64], question: Question
) -> list[AttentionMap]:
    """Attention in some samples, from the lowest to the highest of the values (n,), of the first model of each."""
    places = np.linspace(0, len(samples) - 1, min(question.attention, len(samples))).round().astype(int)
    rows = np.argsort(values, kind="stable")[places]
    first = np.zeros(len(samples), dtype=int) if explained.shares is None else explained.shares.argmax(axis=0)
    return [_map(explained.networks[first[row]], samples, int(row), question) for row in rows]


def _map(network: Network, samples: Samples, row: int, question: Question) -> AttentionMap:
    (chunk,) = chunks([samples[row]])
    found = attention_of_chunk(network, chunk, *_places(question))
    names = [f"layer {number}" for number in question.layers or range(1, len(found.layers) + 1)]
    drawn = {name: weights[0].mean(dim=0) for name, weights in zip(names, found.layers, strict=True)}
    drawn["rollout"] = found.rollout[0]
    maps = {name: weights.cpu().numpy() for name, weights in drawn.items()}
    return AttentionMap(row, chunk.asvs[0], maps, found.weights[0].cpu().numpy())


def _part(parts: Sequence[Part], question: Question) -> Part:
    names = [part.target.column for part in parts]
    if question.column is None:
        if len(parts) > 1:
            raise DataError(f"the model predicts {', '.join(names)}; say which is explained with --column")
        return parts[0]
    if question.column not in names:
        raise DataError(f"--column {question.column}: the model predicts {', '.join(names)}")
    return parts[names.index(question.column)]


def _places(question: Question) -> tuple[list[int], list[int]]:
    """Layers and heads that are read, counted from 0; none where all are."""
    return [number - 1 for number in question.layers], [number - 1 for number in question.heads]


def _require_layers(question: Question, layers: int, heads: int) -> None:
    for option, given, most in (("--layer", question.layers, layers), ("--head", question.heads, heads)):
        for number in given:
            if not 1 <= number <= most:
                raise DataError(f"{option} {number}: the model has {most}, counted from 1")


def _explained(
    networks: list[Network], part: Part, samples: Samples, question: Question, shares: NDArray[np.float64] | None
) -> tuple[Explained, str, str]:
    """What is explained, in words, and its units."""
    target, own = part.target, part.outputs
    if isinstance(target, NumericTarget):
        if question.class_name is not None:
            raise DataError(f"--class {question.class_name}: {target.column} is a number; leave it out")
        units = f"log(1 + {target.column})" if target.transform.startswith("log") else target.column
        return Explained(networks, Reading(own), shares), f"predicted {units}", f"units of {units}"
    names = list(target.classes)
    if question.class_name is not None and question.class_name not in names:
        raise DataError(f"--class {question.class_name}: {target.column} has the classes {', '.join(names)}")
    chosen = question.class_name or (names[1] if len(names) == 2 else None)
    if chosen is not None:
        classes = np.full(len(samples), names.index(chosen))
        said = f"log-odds of {target.column} = {chosen}"
    else:
        blind = Explained(networks, Reading(own))
        answers = [answers_of(target, found[:, own]) for found in blind.outputs(samples)]
        weights = None if shares is None else np.broadcast_to(shares[:, :, None], np.shape(answers))
        probabilities = np.average(answers, axis=0, weights=weights)
        classes = probabilities.argmax(axis=1)
        said = f"log-odds of the predicted {target.column}"
    return Explained(networks, Reading(own, classes=classes), shares), said, "log-odds"


def _truth(
    columns: pd.DataFrame | None, names: list[str], part: Part, explained: Explained
) -> tuple[NDArray[Any] | None, NDArray[np.float64] | None]:
    """What the metadata say, (n,), and the same as what is explained: of classes whether it is the one, as 1 or 0."""
    if columns is None or part.target.column not in columns.columns:
        return None, None
    said = columns[part.target.column].reindex(names)
    target = part.target
    if isinstance(target, NumericTarget):
        numbers = pd.to_numeric(said, errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(numbers).any():
            return None, None
        with np.errstate(invalid="ignore", divide="ignore"):
            return numbers, np.log1p(numbers) if target.transform.startswith("log") else numbers
    assert explained.reading.classes is not None
    labels = said.to_numpy(dtype=object)
    one = target.decode(explained.reading.classes)
    known = said.isin(target.classes).to_numpy()
    truth = np.where(known, (labels == one).astype(float), np.nan)
    return (labels, truth) if known.any() else (None, None)


def _of_entries(
    method: str, explained: Explained, samples: Samples, question: Question, spread: float
) -> tuple[NDArray[np.float64], dict[str, Any], Attributions | None]:
    """What a method says of every ASV of every sample, (nnz,), and how it checks itself."""
    if method == "attention":
        weights = attention_weights(explained, samples, *_places(question))
        sums = samples.matrix(weights).sum(axis=1)
        checks: dict[str, Any] = {
            "layers": list(question.layers) or "all",
            "heads": list(question.heads) or "all",
            "largest_distance_of_a_sum_from_1": float(np.abs(sums - 1).max()),
        }
        return weights, checks, None
    if method == "integrated-gradients":
        found = integrated_gradients(
            explained, samples, baseline=question.baseline, tolerance=question.tolerance, scale=spread
        )
        checks = {"baseline": question.baseline, "tolerance": question.tolerance}
    else:
        found = gradient_shap(explained, samples, draws=question.draws, seed=question.seed)
        checks = {"baseline": "random ASVs"}
    of_change = np.maximum(np.abs(found.change), spread)
    share = np.abs(found.missing) / np.where(of_change > 0, of_change, 1.0)  # a model that guesses changes nothing
    checks |= {
        "steps": found.steps,
        "largest_share_missing": float(share.max()),
        "mean_share_missing": float(share.mean()),
        "share_by_abundance": float(np.abs(found.by_abundance).sum() / (np.abs([*found[:2]]).sum() or 1.0)),
    }
    if method == "gradient-shap":
        expected = float((found.standard_error / np.where(of_change > 0, of_change, 1.0)).mean())
        checks["mean_standard_error"] = expected if np.isfinite(expected) else None
        if not expected <= _MOST_EXPECTED:
            logger.warning(
                "gradient-shap of %d draws is still noisy: its sums have a standard error of %.0f%% of the change; "
                "give more --draws",
                *(question.draws, 100 * expected),
            )
        return found.values, checks, found
    within = share <= question.tolerance
    checks |= {"complete": bool(within.all()), "samples_beyond_tolerance": int((~within).sum())}
    if not within.all():
        logger.warning(
            "integrated gradients of %d samples miss more than %g of the change; the most is %.3g",
            *(int((~within).sum()), question.tolerance, share.max()),
        )
    return found.values, checks, found
