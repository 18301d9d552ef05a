"""From a model file and a table to importances of ASVs: the straight line behind ``aam explain``.

Shapes: ``n`` samples, ``A`` ASVs, ``nnz`` ASVs that the samples have in all, ``T`` taxa.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from aam.config import TrainConfig
from aam.data.counts import SampleRows
from aam.data.dataset import DatasetOptions, SampleDataset
from aam.data.metadata import load_metadata, require_column
from aam.data.study import Study, load_study
from aam.data.targets import ClassTarget, NumericTarget, Part, parts_of
from aam.data.taxonomy import RANKS, UNASSIGNED, load_taxonomy, taxa_at
from aam.data.tokenizer import PAD
from aam.errors import DataError, named
from aam.interpret.attention import attention_flow, attention_of_chunk, attention_weights, nucleotide_attention
from aam.interpret.deletion import NUMBERS, deletion_curve, random_ranking
from aam.interpret.gradients import Attributions, gradient_shap, integrated_gradients, require_captum
from aam.interpret.importances import Importances, importances, summed
from aam.interpret.nucleotides import base_attributions, mean_gradients
from aam.interpret.output import BaselineKind, Explained, Network, Reading
from aam.interpret.permutation import Permuted, permutation
from aam.interpret.samples import Samples, chunks
from aam.loaders import choose_device
from aam.models.sequence_predictor import SequencePredictor
from aam.predict import data_as_trained
from aam.run_directory import write_json
from aam.training.checkpoint import (
    build_model,
    load_weights,
    model_path,
    read_covariates,
    read_target,
    without_base_heads,
)
from aam.training.ensemble import load_ensemble
from aam.training.frozen import encode_asvs
from aam.training.tasks import answers_of

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "Explanation",
    "Found",
    "Question",
    "explain",
    "require_free",
    "write_explanation",
]

logger = logging.getLogger("aam")

METHODS = ("integrated-gradients", "gradient-shap", "attention", "permutation")
DEFAULT_METHODS = ("integrated-gradients", "attention", "permutation")
_RANDOM_CURVES = 3
_SHOWN = 20
_PREFIX = re.compile("^([a-z]|D_[0-9]+)__", re.IGNORECASE)
_NO_NAME = {"", UNASSIGNED, "uncultured"}


@dataclass(frozen=True)
class Question:
    """What is asked of a model."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    ranks: tuple[str, ...] = ()  # at which taxa are looked at, beside ASVs
    column: str | None = None
    class_name: str | None = None
    baseline: BaselineKind = "mean"
    tolerance: float = 0.01
    draws: int = 50  # of gradient-shap
    repeats: int = 1  # of permutation
    layers: tuple[int, ...] = ()  # from 1
    heads: tuple[int, ...] = ()  # from 1
    group_column: str | None = None
    max_samples: int = 2000
    attention: int = 0  # samples whose attention is drawn
    nucleotides: int = 0  # ASVs whose bases are looked at
    seed: int = 0


@dataclass(frozen=True)
class Units:
    """What importances are of: ASVs, or the taxa of a rank."""

    name: str  # asv, or the rank
    of_asv: NDArray[np.int64]  # (A,)
    names: list[str]


@dataclass(frozen=True)
class Found:
    """What one method found of the units of one kind."""

    method: str
    units: Units
    by_sample: sparse.csr_array  # (n, T)
    importances: Importances
    error: NDArray[np.float64] | None = None  # (T,): increase of the mean error, where the truth is known


@dataclass(frozen=True)
class AttentionMap:
    """What the first model attends to in a sample."""

    sample: int  # row of the samples
    asvs: NDArray[np.int64]  # (S,)
    layers: dict[str, NDArray[np.float32]]  # (S, S): the heads' mean of each layer, and rollout
    weights: NDArray[np.float32]  # (S,): of each ASV in all


@dataclass(frozen=True)
class Bases:
    """What the bases of some ASVs have to do with predictions."""

    asvs: NDArray[np.int64]  # (U,)
    values: NDArray[np.float64]  # (U, L): attributions
    attention: NDArray[np.float64]  # (U, L): of the first model


@dataclass(frozen=True)
class Explanation:
    """Importances, and how far they can be trusted."""

    sample_ids: list[str]
    feature_ids: list[str]  # (A,)
    sequences: list[str]  # (A,)
    taxa: list[str] | None  # (A,): whole lineages
    prevalence: NDArray[np.float64]  # (A,)
    samples: pd.DataFrame  # a row a sample: what is explained, and the truth
    found: list[Found]
    curves: dict[str, NDArray[np.float64]]  # by method, and `random`, (K,)
    summary: dict[str, Any]
    what: str  # that is explained, for a person to read
    left_out: dict[str, list[str]] = field(default_factory=dict)
    maps: list[AttentionMap] = field(default_factory=list)
    flow: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # by rank, (T, T)
    bases: Bases | None = None


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
    if question.ranks and taxonomy is None:
        raise DataError(f"--by {question.ranks[0]}: taxa are named by --taxonomy; give one")
    if "gradient-shap" in question.methods:
        require_captum()
    lineages = None if taxonomy is None else load_taxonomy(taxonomy)
    device = choose_device(settings)
    path = model_path(model)
    ensemble = load_ensemble(path)
    first = ensemble.members[0].file
    targets = [read_target(member.file.header, path) for member in ensemble.members]
    covariates = [read_covariates(member.file.header, path) for member in ensemble.members]
    target = targets[0]
    if target is None:
        raise DataError(f"{model}: a pre-trained encoder, which predicts no column; give a run of `aam train`")
    of_classes = isinstance(parts_of(target)[0].target, ClassTarget)
    alike = [fitted is not None and fitted.outputs == target.outputs for fitted in targets]
    if not all(alike) or (of_classes and any(fitted != target for fitted in targets)):
        raise DataError(f"{path}: its models do not predict the same; train them together")
    part = _part(parts_of(target), question)
    if "joined" in ensemble.header:
        logger.warning("%s: the network alone is explained, and not the classical model that was joined to it", path)
    config = first.config
    _require_layers(question, 2 * config.model.attention_layers, config.model.attention_heads)

    columns = None if not metadata else load_metadata(tuple(metadata))
    reads = {name: getattr(config.data, name) for name in ("categorical_columns", "numeric_columns")}
    with_covariates = any(known is not None for known in covariates)
    read = metadata if with_covariates else ()
    data = data_as_trained(config, table, sequences=sequences, metadata=read, streaming=streaming)
    if with_covariates:
        data = data.model_copy(update=reads)
    study = load_study(data, max_bp=config.model.max_bp, keep_unlabelled=True, checksums=False)
    for warning in study.warnings:
        logger.warning(warning)
    if study.covariates is not None:
        told = [known.unknown(study.covariates) for known in covariates if known is not None]
        for sentence in dict.fromkeys(chain(*told)):
            logger.warning(sentence)

    rows = _chosen(study, question)
    dataset = SampleDataset.of_study(study, DatasetOptions.of(data, config.train.seed))
    drawn, depth = dataset.drawn(rows, 0)
    used, place = np.unique(drawn.asvs, return_inverse=True)
    samples = Samples(SampleRows(drawn.indptr, place.astype(np.int64), drawn.counts), depth, len(used))
    networks = []
    for member, fitted, beside in zip(ensemble.members, targets, covariates, strict=True):
        assert fitted is not None
        predictor = build_model(member.file.config.model, fitted.outputs, (), beside)
        assert isinstance(predictor, SequencePredictor)
        load_weights(predictor, without_base_heads(member.file.weights), path)
        predictor.to(device).eval()
        table_of_asvs = encode_asvs(predictor.encoder.asv_encoder, study.tokens[used], device)
        categories = numbers = None
        if beside is not None:
            assert study.covariates is not None
            known = beside.encode(study.covariates)
            categories, numbers = torch.from_numpy(known.categories[rows]), torch.from_numpy(known.numbers[rows])
        like = next(other.target for other in parts_of(fitted) if other.target.column == part.target.column)
        scale, shift = (like.scale, like.shift) if isinstance(like, NumericTarget) else (1.0, 0.0)
        embeddings = torch.from_numpy(np.asarray(table_of_asvs)).float().to(device)
        networks.append(Network(predictor, embeddings, categories, numbers, scale, shift))

    names = [study.sample_ids[row] for row in rows]
    explained, what, units = _explained(networks, part, samples, question)
    actual, truth = _truth(columns, names, part, explained)
    groups = None
    if question.group_column is not None:
        if columns is None:
            raise DataError(f"--group-column {question.group_column} is a column of --metadata; give one")
        of_sample = require_column(columns, question.group_column, metadata[0]).reindex(names)
        if of_sample.isna().any():
            lacking = names[int(np.flatnonzero(of_sample.isna())[0])]
            raise DataError(f"{named(tuple(metadata))}: {question.group_column} of sample {lacking!r} is not known")
        groups = of_sample.to_numpy(dtype=object)

    feature_ids = [study.feature_ids[column] for column in used]
    letters = [study.sequences[column] for column in used]
    taxa = None
    if lineages is not None:
        taxa = [lineages.get(name, lineages.get(bases, "")) for name, bases in zip(feature_ids, letters, strict=True)]
        if not any(taxa):
            raise DataError(f"{taxonomy}: names none of the features of the table, such as {feature_ids[0][:40]!r}")
    kinds = [Units("asv", np.arange(len(used)), feature_ids)]
    for rank in question.ranks:
        assert taxa is not None
        at_rank = taxa_at(dict(zip(feature_ids, taxa, strict=True)), feature_ids, rank)
        of_rank, of_asv = np.unique(np.array(at_rank, dtype=object).astype(str), return_inverse=True)
        kinds.append(Units(rank, of_asv, of_rank.tolist()))

    values = explained.values(samples)
    if not np.isfinite(values).all():
        name = names[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise DataError(f"the prediction of sample {name!r} by {path} is not finite; look at its counts")
    frame = pd.DataFrame({"sample_id": names, "explained": values})
    if explained.reading.classes is not None:
        assert isinstance(part.target, ClassTarget)
        frame["class"] = part.target.decode(explained.reading.classes)
    if actual is not None:
        frame["actual"] = actual

    found: list[Found] = []
    curves: dict[str, NDArray[np.float64]] = {}
    checks: dict[str, Any] = {}
    spread = float(values.std()) or 1.0
    for method in question.methods:
        logger.info("%s of %d samples and %d ASVs", method, len(samples), len(used))
        if method == "permutation":
            own = [
                _of_permutation(
                    unit,
                    permutation(
                        explained, samples, unit.of_asv, repeats=question.repeats, seed=question.seed, truth=truth
                    ),
                    groups,
                    question.seed,
                )
                for unit in kinds
            ]
            ranking = own[0].importances.importance[samples.rows.asvs]  # of an ASV the same in every sample
            checks[method] = {"repeats": question.repeats, "truth_known": truth is not None}
        else:
            per_entry, checks[method], attributions = _of_entries(method, explained, samples, question, spread)
            if attributions is not None:
                frame[f"{method}_change"] = attributions.change
                frame[f"{method}_missing"] = attributions.missing
            by_sample = samples.matrix(per_entry)
            own = []
            for unit in kinds:
                of_unit = summed(by_sample, unit.of_asv)
                unsigned = np.zeros(len(unit.names)) if method == "attention" else None
                own.append(Found(method, unit, of_unit, importances(of_unit, unsigned, groups, seed=question.seed)))
            ranking = np.abs(per_entry)
        found += own
        curves[method] = deletion_curve(explained, samples, ranking)
    draws = (random_ranking(samples, question.seed + draw) for draw in range(_RANDOM_CURVES))
    curves["random"] = np.mean([deletion_curve(explained, samples, ranking) for ranking in draws], axis=0)
    for method in question.methods:
        checks[method]["deletion"] = {
            "left_out": list(NUMBERS),
            "top": curves[method].round(6).tolist(),
            "random": curves["random"].round(6).tolist(),
            "beyond_random": bool((curves[method] > curves["random"]).all()),
            "ratio": round(float(curves[method].sum() / max(curves["random"].sum(), 1e-12)), 4),
        }
    summary = {
        "model": str(path),
        "models": len(networks),
        "column": part.target.column,
        "explains": what,
        "units": units,
        "samples": len(samples),
        "samples_in_table": len(study),
        "asvs": len(used),
        "sd_of_predictions": spread,
        "intervals": "groups of " + str(question.group_column) if groups is not None else "samples",
        "methods": checks,
    }
    bases = None
    if question.nucleotides:
        score = found[0].importances.importance
        top = np.argsort(-score, kind="stable")[: question.nucleotides]
        tokens = study.tokens[used[top]]
        tokens = tokens[:, : int((tokens != PAD).sum(axis=1).max())]
        of_bases = base_attributions(explained, mean_gradients(explained, samples), top, tokens)
        summary["bases_largest_share_missing"] = float(
            (np.abs(of_bases.missing) / np.abs(of_bases.change).clip(1e-12)).max()
        )
        bases = Bases(top, of_bases.values, nucleotide_attention(networks[0], tokens))
    maps, flow = [], {}
    if question.attention:
        spread_out = np.linspace(0, len(samples) - 1, min(question.attention, len(samples))).round().astype(int)
        maps = [_map(networks[0], samples, int(row), question) for row in np.argsort(values, kind="stable")[spread_out]]
        flow = {unit.name: attention_flow(explained, samples, unit.of_asv) for unit in kinds[1:]}
    return Explanation(
        *(names, feature_ids, letters, taxa, samples.prevalence, frame, found, curves, summary, what),
        left_out=study.left_out,
        maps=maps,
        flow=flow,
        bases=bases,
    )


def _map(network: Network, samples: Samples, row: int, question: Question) -> AttentionMap:
    layers, heads = ([number - 1 for number in given] for given in (question.layers, question.heads))
    (chunk,) = chunks([samples[row]])
    found = attention_of_chunk(network, chunk, layers, heads)
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


def _require_layers(question: Question, layers: int, heads: int) -> None:
    for option, given, most in (("--layer", question.layers, layers), ("--head", question.heads, heads)):
        for number in given:
            if not 1 <= number <= most:
                raise DataError(f"{option} {number}: the model has {most}, counted from 1")


def _chosen(study: Study, question: Question) -> NDArray[np.int64]:
    """Rows of the samples that are explained, in the order of the table."""
    order = np.argsort(study.file_order)
    if len(order) <= question.max_samples:
        return order
    kept = np.random.default_rng(question.seed).choice(len(order), question.max_samples, replace=False)
    logger.info("%d of %d samples are explained; --max-samples says how many", question.max_samples, len(order))
    return order[np.sort(kept)]


def _explained(networks: list[Network], part: Part, samples: Samples, question: Question) -> tuple[Explained, str, str]:
    """What is explained, in words, and its units."""
    target, own = part.target, part.outputs
    if isinstance(target, NumericTarget):
        if question.class_name is not None:
            raise DataError(f"--class {question.class_name}: {target.column} is a number; leave it out")
        units = f"log(1 + {target.column})" if target.transform.startswith("log") else target.column
        return Explained(networks, Reading(own)), f"predicted {units}", f"units of {units}"
    names = list(target.classes)
    if question.class_name is not None and question.class_name not in names:
        raise DataError(f"--class {question.class_name}: {target.column} has the classes {', '.join(names)}")
    chosen = question.class_name or (names[1] if len(names) == 2 else None)
    if chosen is not None:
        classes = np.full(len(samples), names.index(chosen))
        said = f"log-odds of {target.column} = {chosen}"
    else:
        blind = Explained(networks, Reading(own))
        probabilities = np.mean([answers_of(target, found[:, own]) for found in blind.outputs(samples)], axis=0)
        classes = probabilities.argmax(axis=1)
        said = f"log-odds of the predicted {target.column}"
    return Explained(networks, Reading(own, classes=classes)), said, "log-odds"


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


def _of_permutation(units: Units, permuted: Permuted, groups: NDArray[Any] | None, seed: int) -> Found:
    # Signs count: an ASV that the model is better off without has a negative one.
    error = None if permuted.error is None else np.asarray(permuted.error.mean(axis=0)).ravel()
    return Found(
        "permutation",
        units,
        permuted.change,
        importances(permuted.change, permuted.direction, groups, seed=seed),
        error,
    )


def _of_entries(
    method: str, explained: Explained, samples: Samples, question: Question, spread: float
) -> tuple[NDArray[np.float64], dict[str, Any], Attributions | None]:
    """What a method says of every ASV of every sample, (nnz,), and how it checks itself."""
    if method == "attention":
        layers, heads = ([number - 1 for number in given] for given in (question.layers, question.heads))
        weights = attention_weights(explained, samples, layers, heads)
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
    share = np.abs(found.missing) / np.maximum(np.abs(found.change), spread)
    checks |= {
        "steps": found.steps,
        "largest_share_missing": float(share.max()),
        "mean_share_missing": float(share.mean()),
        "share_by_abundance": float(np.abs(found.by_abundance).sum() / np.abs([*found[:2]]).sum()),
    }
    if method == "integrated-gradients":
        within = share <= question.tolerance
        checks |= {"complete": bool(within.all()), "samples_beyond_tolerance": int((~within).sum())}
        if not within.all():
            logger.warning(
                "integrated gradients of %d samples miss more than %g of the change; the most is %.3g",
                *(int((~within).sum()), question.tolerance, share.max()),
            )
    return found.values, checks, found


# ------------------------------------------------------------------------------------------------------------- writing

_WRITTEN = "summary.json"


def require_free(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds something.

    Raises
    ------
    DataError
    """
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: is a file; give another --output-dir")
    held = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    if not held:
        return
    if _WRITTEN not in held or "config.json" in held:
        raise DataError(f"{directory}: holds other files, {held[0]} say; give an empty or a new --output-dir")
    if not overwrite:
        raise DataError(f"{directory}: holds an explanation already; give --overwrite to replace it")


def table_of(explanation: Explanation, kind: str) -> pd.DataFrame:
    """Importances of the ASVs or of the taxa of a rank, the methods one after the other, the highest first."""
    blocks = []
    for found in explanation.found:
        units, own = found.units, found.importances
        if units.name != kind:
            continue
        columns: dict[str, Any] = {"method": found.method}
        if kind == "asv":
            columns["feature_id"] = explanation.feature_ids
            columns["sequence"] = explanation.sequences
            columns["md5"] = [hashlib.md5(bases.encode()).hexdigest() for bases in explanation.sequences]
            if explanation.taxa is not None:
                columns["taxon"] = explanation.taxa
            columns["prevalence"] = explanation.prevalence
        else:
            columns["taxon"] = units.names
            columns["asvs"] = np.bincount(units.of_asv)
        columns |= {
            "importance": own.importance,
            "low": own.low,
            "high": own.high,
            "direction": own.direction.astype(int),
        }
        if found.error is not None:
            columns["error_increase"] = found.error
        blocks.append(pd.DataFrame(columns).sort_values("importance", ascending=False, kind="stable"))
    return pd.concat(blocks, ignore_index=True)


def write_explanation(directory: Path, explanation: Explanation) -> None:
    """Write tables, matrices, pictures and the summary; the summary last.

    Parameters
    ----------
    directory : Path
        Made where it is missing.
    explanation : Explanation
    """
    from aam.evaluation.plots import save_figure
    from aam.interpret.plots import deletion_plot, importance_plot

    directory.mkdir(parents=True, exist_ok=True)
    (directory / _WRITTEN).unlink(missing_ok=True)
    explanation.samples.to_csv(directory / "samples.tsv", sep="\t", index=False)
    kinds = list(dict.fromkeys(found.units.name for found in explanation.found))
    for kind in kinds:
        name = "importances.tsv" if kind == "asv" else f"importances_{kind}.tsv"
        table_of(explanation, kind).to_csv(directory / name, sep="\t", index=False, float_format="%.6g")
    for folder in ("per_sample", "qiime2"):
        (directory / folder).mkdir(exist_ok=True)
    labels = asv_labels(explanation)
    for found in explanation.found:
        kind, own = found.units.name, found.importances
        suffix = found.method if kind == "asv" else f"{found.method}_{kind}"
        matrix = found.by_sample
        np.savez_compressed(
            directory / "per_sample" / f"{suffix}.npz",
            format=np.array("csr"),  # as scipy.sparse.load_npz reads it
            shape=np.array(matrix.shape),
            data=matrix.data.astype(np.float32),
            indices=matrix.indices,
            indptr=matrix.indptr,
            sample_ids=np.array(explanation.sample_ids, dtype=np.str_),
            names=np.array(found.units.names, dtype=np.str_),
        )
        if kind == "asv":
            scores = pd.DataFrame({"feature-id": explanation.feature_ids, "importance": own.importance})
            scores.to_csv(directory / "qiime2" / f"{found.method}.tsv", sep="\t", index=False, float_format="%.6g")
        top = np.argsort(-own.importance, kind="stable")[:_SHOWN]
        names = labels if kind == "asv" else [short_taxon(name) for name in found.units.names]
        measure = "share of attention" if found.method == "attention" else f"mean change of {explanation.what}"
        figure = importance_plot(
            [names[place] for place in top],
            *(values[top] for values in own),
            title=f"{found.method}, {'ASVs' if kind == 'asv' else kind}",
            what=measure,
        )
        save_figure(figure, directory / "plots" / f"{suffix}.png")
    curves = {name: curve.tolist() for name, curve in explanation.curves.items() if name != "random"}
    figure = deletion_plot(
        NUMBERS,
        curves,
        explanation.curves["random"].tolist(),
        title="Leaving out the most important ASVs",
        what=f"mean change of {explanation.what}",
    )
    save_figure(figure, directory / "plots" / "deletion.png")
    _write_attention(directory / "attention", explanation, labels)
    if explanation.bases is not None:
        _write_bases(directory, explanation, explanation.bases, labels)
    write_json(directory / _WRITTEN, explanation.summary)


def _write_attention(folder: Path, explanation: Explanation, labels: list[str]) -> None:
    from aam.evaluation.plots import save_figure
    from aam.interpret.plots import attention_plot, matrix_plot

    if explanation.maps or explanation.flow:
        folder.mkdir(exist_ok=True)
    for number, found in enumerate(explanation.maps, 1):
        name = explanation.sample_ids[found.sample]
        stem = f"{number:02d}_" + "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        own = [explanation.feature_ids[asv] for asv in found.asvs]
        pairs = pd.MultiIndex.from_product([own, own], names=["from", "to"])
        columns = {layer: weights.ravel() for layer, weights in found.layers.items()}
        frame = pd.DataFrame(columns, index=pairs)
        frame.to_csv(folder / f"{stem}.tsv", sep="\t", float_format="%.6g")
        top = np.argsort(-found.weights, kind="stable")[:_SHOWN]
        value = explanation.samples["explained"].iloc[found.sample]
        figure = attention_plot(
            {layer: weights[np.ix_(top, top)] for layer, weights in found.layers.items()},
            [labels[found.asvs[place]] for place in top],
            found.weights[top].astype(np.float64),
            title=f"{name}: {explanation.what} {value:.3g}, its {len(top)} most attended ASVs of {len(own)}",
        )
        save_figure(figure, folder / f"{stem}.png")
    for rank, flow in explanation.flow.items():
        lineages = next(found.units.names for found in explanation.found if found.units.name == rank)
        pd.DataFrame(flow, index=pd.Index(lineages, name="from"), columns=lineages).to_csv(
            folder / f"flow_{rank}.tsv", sep="\t", float_format="%.6g"
        )
        top = np.argsort(-flow.sum(axis=0), kind="stable")[:_SHOWN]
        shown = [short_taxon(lineages[place]) for place in top]
        title = f"Attention from {rank} to {rank}"
        style: dict[str, Any] = {"label": "share of all attention", "axes_labels": ("to", "from")}
        figure = matrix_plot(flow[np.ix_(top, top)], shown, shown, title=title, **style)
        save_figure(figure, folder / f"flow_{rank}.png")


def _write_bases(directory: Path, explanation: Explanation, bases: Bases, labels: list[str]) -> None:
    from aam.evaluation.plots import save_figure
    from aam.interpret.plots import matrix_plot

    blocks = []
    for place, asv in enumerate(bases.asvs):
        letters = explanation.sequences[asv][: bases.values.shape[1] - 1]  # sequences may have been cut
        part = slice(1, len(letters) + 1)
        blocks.append(
            pd.DataFrame(
                {
                    "feature_id": explanation.feature_ids[asv],
                    "position": np.arange(1, len(letters) + 1),
                    "base": list(letters),
                    "attribution": bases.values[place, part],
                    "attention": bases.attention[place, part],
                }
            )
        )
    pd.concat(blocks).to_csv(directory / "nucleotides.tsv", sep="\t", index=False, float_format="%.6g")
    names = [labels[asv] for asv in bases.asvs]
    positions = [str(position) for position in range(1, bases.values.shape[1])]
    for name, values, label, signed in (
        ("nucleotides", bases.values, "attribution", True),
        ("nucleotides_attention", bases.attention, "share of attention", False),
    ):
        title = f"Bases of the {len(names)} most important ASVs"
        style: dict[str, Any] = {"signed": signed, "tick_every": 10, "axes_labels": ("position in the ASV", "")}
        figure = matrix_plot(values[:, 1:], names, positions, title=title, label=label, **style)
        save_figure(figure, directory / "plots" / f"{name}.png")


def asv_labels(explanation: Explanation) -> list[str]:
    """What pictures call the ASVs: their taxon, and their ID, or of sequences the beginning of their MD5 hash."""
    found = []
    for place, (name, bases) in enumerate(zip(explanation.feature_ids, explanation.sequences, strict=True)):
        short = hashlib.md5(bases.encode()).hexdigest()[:6] if name == bases else name[:12]
        taxon = "" if explanation.taxa is None else short_taxon(explanation.taxa[place])
        found.append(f"{taxon} {short}".strip())
    return found


def short_taxon(lineage: str) -> str:
    """The last rank of a lineage that has a name, a species with its genus; and that one below it has none."""
    parts = [part.strip() for part in lineage.split(";")]
    names = [_PREFIX.sub("", part) for part in parts]
    known = [name for name in names if name.lower() not in _NO_NAME]
    if not known:
        return "unassigned"
    if len(names) == len(RANKS) == len(known) and " " not in known[-1]:
        return f"{known[-2]} {known[-1]}"
    return f"{known[-1]} (unassigned)" if names[-1] == UNASSIGNED else known[-1]
