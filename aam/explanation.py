"""What ``aam explain`` finds, and the files that hold it.

Shapes: ``n`` samples, ``A`` ASVs, ``T`` taxa, ``S`` ASVs of a sample, ``U`` ASVs whose bases are looked at, ``L``
tokens, ``K`` numbers of ASVs that are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from aam.data.taxonomy import RANKS, UNASSIGNED
from aam.errors import DataError
from aam.interpret.deletion import NUMBERS
from aam.interpret.importances import Importances
from aam.run_directory import names_in, write_json

__all__ = [
    "AttentionMap",
    "Bases",
    "Explanation",
    "Found",
    "Units",
    "asv_labels",
    "require_free",
    "short_taxon",
    "write_explanation",
]

_SHOWN = 20
_FIRST, _WRITTEN = "samples.tsv", "summary.json"  # the first and the last that is written
_FILES = (
    *(_WRITTEN, _FIRST, "importances*.tsv", "nucleotides.tsv", "per_sample/*.npz", "qiime2/*.tsv"),
    *("plots/*.png", "attention/*.tsv", "attention/*.png"),
)
_PREFIX = re.compile("^([a-z]|D_[0-9]+)__", re.IGNORECASE)
_NO_NAME = {"", UNASSIGNED, "uncultured"}


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
    error: NDArray[np.float64] | None = None  # (T,): increase of the mean error of samples whose truth is known
    parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # (T,): mean size of each part of an effect


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


def require_free(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds something.

    Raises
    ------
    DataError
    """
    held = names_in(directory)
    if not held:
        return
    names = [pattern.split("/")[0] for pattern in _FILES]
    begun = _FIRST in held and all(any(fnmatch(name, of) for of in names) for name in held)  # and interrupted
    if not begun and (_WRITTEN not in held or "config.json" in held):
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
        columns |= found.parts
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
    for pattern in _FILES:  # of an explanation that is replaced, which may have had more of them
        for path in directory.glob(pattern):
            path.unlink()
    explanation.samples.to_csv(directory / _FIRST, sep="\t", index=False)
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
