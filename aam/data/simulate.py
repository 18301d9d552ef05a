"""A small 16S study whose truth is known: a tree, sequences evolved along it, communities that answer to a gradient.

Legend of shapes: ``N`` samples, ``A`` ASVs, ``M = 2A − 1`` nodes of the tree, ``C`` clades, ``U`` subjects.

1. *Tree.* A Yule tree, drawn backwards: two of the ``k`` lineages left merge after an exponential time of mean ``1/k``.
2. *Sequences.* Jukes & Cantor (1969): along a branch of ``t`` expected substitutions a base is another one than before
   with ``P(change) = 3/4 · (1 − exp(−4t/3))``, each of the three others being as likely.
3. *Clades.* The tree is cut into the largest subtrees of at most ``A/12`` tips. Some of them *respond*: their abundance
   follows a hidden gradient ``x`` in [0, 1], and their ASVs turn over along it, so that UniFrac sees it too.
4. *Carriage.* Each subject carries its own few ASVs of a clade. ASVs of one clade are therefore interchangeable, and
   what one subject's ASVs teach about another's is in their sequences.
5. *Counts.* Log-normal noise by subject, sample and ASV, drop-out, then a multinomial draw at a log-normal depth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix
from scipy.special import expit

from aam.errors import DataError

__all__ = ["SimulatedStudy", "plant_target", "simulate_study", "write_study"]

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
GROUPS = ("infant", "toddler", "child")

TREE_DEPTH = 0.2  # root to tip, in expected substitutions per site: the most distant tips differ at about 30% of sites
HEIGHT_EXPONENT = 1.5  # > 1 draws splits towards the tips, so that clades are tight and far from each other
CLADE_SHARE = 12  # a clade holds at most A / CLADE_SHARE tips
RESPONDING = 8  # clades that follow the gradient (fewer in tiny studies), half of them rising
EFFECT = (3.0, 5.0)  # change of a clade's log abundance over the whole gradient
TURNOVER = 12.0  # steepness of the clade's appearance (or disappearance) along x
ONSET = (0.05, 0.95)  # where along x half of a responding clade's ASVs are present
CARRIAGE = 0.5  # share of a clade's ASVs that a subject carries
CLADE_CARRIAGE = 0.6  # share of subjects in which a clade that does not respond lives at all
DROPOUT = 0.1  # share of the ASVs that could be present in a sample and are not
SUBJECT_SPAN = 0.9  # width of the part of the gradient over which one subject's samples are spread
NOISE_SUBJECT, NOISE_SAMPLE, NOISE_ASV, NOISE_ASV_SAMPLE = 0.3, 0.3, 1.0, 0.5  # standard deviations of log abundance
NOISE_DEPTH = 0.3  # standard deviation of log depth
AGE_MAX, NOISE_AGE = 24.0, 0.8  # months
NOISE_GROUP = 0.05  # in units of x


@dataclass(frozen=True)
class SimulatedStudy:
    """A simulated study; rows of ``counts`` are ``sample_ids``, columns are ``sequences``.

    Attributes
    ----------
    tree : str
        Rooted, bifurcating Newick tree with branch lengths; its tips are named by their sequences.
    sequences : list of str, length A
        Distinct DNA sequences, which are the feature IDs too.
    counts : csr_array of int32, shape (N, A)
    sample_ids : list of str, length N
    metadata : pandas.DataFrame, N rows
        Indexed by sample ID: ``subject_id``, ``age`` (months), ``group`` (label), ``storage_days`` (unrelated
        to all else).
    truth : dict
        What the study was made from, fit for JSON: ``parameters``, ``clades``, ``asvs`` and ``samples``.
    """

    tree: str
    sequences: list[str]
    counts: csr_array
    sample_ids: list[str]
    metadata: pd.DataFrame
    truth: dict[str, Any]


def simulate_study(
    *,
    samples: int = 200,
    asvs: int = 300,
    subjects: int = 50,
    length: int = 150,
    depth: int = 5000,
    seed: int = 0,
) -> SimulatedStudy:
    """Draw a study with a phylogenetic signal.

    Parameters
    ----------
    samples, asvs, subjects : int
        How many of each; samples are dealt out evenly to the subjects.
    length : int
        Bases per sequence.
    depth : int
        Median number of reads per sample.
    seed : int
        The same arguments and seed give the same study.

    Raises
    ------
    DataError
        If a study of this size cannot be drawn.

    Examples
    --------
    >>> study = simulate_study(samples=12, asvs=40, subjects=4)
    >>> study.counts.shape
    (12, 40)
    """
    _check_size(samples=samples, asvs=asvs, subjects=subjects, length=length, depth=depth, seed=seed)
    rng = np.random.default_rng(seed)

    parent, height = _draw_tree(asvs, rng, tip_length=1 / length)
    branch = height[parent] - height  # (M,), 0 for the root, which is its own parent
    sequences = _evolve(parent, branch, asvs, length, rng)
    clade = _cut_into_clades(parent, asvs)  # (A,)
    effect, onset = _choose_responding(clade, rng)  # (C,), (C,)

    subject = np.sort(np.arange(samples) % subjects)  # (N,)
    x = _place_on_gradient(subject, rng)  # (N,)
    counts = _draw_counts(x, subject, clade, effect, onset, depth, rng)

    subject_ids = _numbered("subject", subjects)
    visit = np.arange(samples) - np.searchsorted(subject, subject)
    sample_ids = [f"{subject_ids[s]}.visit{v + 1:02d}" for s, v in zip(subject, visit, strict=True)]
    metadata = _draw_metadata(x, [subject_ids[s] for s in subject], sample_ids, rng)
    truth = {
        "parameters": {
            "samples": samples,
            "asvs": asvs,
            "subjects": subjects,
            "length": length,
            "depth": depth,
            "seed": seed,
            "tree_depth": TREE_DEPTH,
        },
        "clades": [
            {
                "clade": f"clade{c:03d}",
                "asvs": int((clade == c).sum()),
                "effect": round(float(effect[c]), 4),
                "onset": round(float(onset[c]), 4) if effect[c] else None,
            }
            for c in range(len(effect))
        ],
        "asvs": [{"sequence": s, "clade": f"clade{c:03d}"} for s, c in zip(sequences, clade, strict=True)],
        "samples": [{"sample_id": i, "x": round(float(v), 6)} for i, v in zip(sample_ids, x, strict=True)],
    }
    return SimulatedStudy(_newick(parent, branch, sequences), sequences, counts, sample_ids, metadata, truth)


def write_study(study: SimulatedStudy, directory: str | Path) -> list[Path]:
    """Write a study as the files that the other commands read.

    ``table.biom`` (HDF5, BIOM 2.1; feature IDs are the sequences), ``tree.nwk``, ``metadata.tsv``, and the truth:
    ``truth.json``, and ``truth.tsv`` with one row per ASV: ``sequence``, ``clade``, ``effect`` (change of the clade's
    log abundance over the gradient, 0 where it does not respond) and ``onset`` (empty there). Equal studies give equal
    bytes.

    Parameters
    ----------
    study : SimulatedStudy
    directory : path
        Made where it is missing; files of these names in it are replaced.

    Returns
    -------
    list of Path
        The files, in the order of their names.
    """
    from datetime import datetime

    import biom
    import h5py

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    by_asv = csr_matrix(study.counts.T, dtype=np.float64)  # biom-format does not take sparse arrays
    table = biom.Table(by_asv, study.sequences, study.sample_ids, type="OTU table")
    with h5py.File(directory / "table.biom", "w") as handle:
        table.to_hdf5(handle, "aam simulate", creation_date=datetime(2000, 1, 1))
    (directory / "tree.nwk").write_text(study.tree + "\n")
    study.metadata.to_csv(directory / "metadata.tsv", sep="\t", lineterminator="\n")
    (directory / "truth.json").write_text(json.dumps(study.truth, indent=1) + "\n")
    asvs = pd.DataFrame(study.truth["asvs"]).merge(
        pd.DataFrame(study.truth["clades"])[["clade", "effect", "onset"]], on="clade", how="left", validate="m:1"
    )
    asvs.to_csv(directory / "truth.tsv", sep="\t", index=False, lineterminator="\n")
    return [directory / name for name in ("metadata.tsv", "table.biom", "tree.nwk", "truth.json", "truth.tsv")]


def _check_size(**sizes: int) -> None:
    least = {"samples": 2, "asvs": 8, "subjects": 1, "length": 20, "depth": 1, "seed": 0}
    for name, value in sizes.items():
        if value < least[name]:
            raise DataError(f"simulate: {name} is {value}, and {least[name]} is the least it can be")
    if sizes["subjects"] > sizes["samples"]:
        raise DataError(
            f"simulate: {sizes['subjects']} subjects cannot share {sizes['samples']} samples; "
            "ask for more samples or fewer subjects"
        )


def _draw_tree(
    tips: int, rng: np.random.Generator, *, tip_length: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw a Yule tree: the parent and the height above the tips of each node; tips come first, the root last.

    Every tip ends in at least ``tip_length`` of its own branch, so that few sequences come out equal.
    """
    nodes = 2 * tips - 1
    parent = np.full(nodes, nodes - 1)
    height = np.zeros(nodes)
    alive = list(range(tips))
    time = 0.0
    for node in range(tips, nodes):
        time += rng.exponential(1 / len(alive))
        height[node] = time
        for child in sorted(rng.choice(len(alive), size=2, replace=False), reverse=True):
            parent[alive.pop(child)] = node
        alive.append(node)
    height[tips:] = tip_length + (TREE_DEPTH - tip_length) * (height[tips:] / time) ** HEIGHT_EXPONENT
    return parent, height


def _evolve(
    parent: NDArray[np.int64], branch: NDArray[np.float64], tips: int, length: int, rng: np.random.Generator
) -> list[str]:
    """Evolve one sequence from the root to every tip (Jukes–Cantor), and make equal tips differ by a base."""
    changed = rng.random((len(parent), length)) < 0.75 * (1 - np.exp(-4 / 3 * branch))[:, None]  # (M, L)
    shift = rng.integers(1, 4, size=(len(parent), length), dtype=np.uint8) * changed  # (M, L): to another base
    state = np.empty((len(parent), length), dtype=np.uint8)
    state[-1] = rng.integers(0, 4, size=length)
    for node in range(len(parent) - 2, -1, -1):  # parents come after their children, so walk down from the root
        state[node] = (state[parent[node]] + shift[node]) % 4

    seen: set[bytes] = set()
    for row in state[:tips]:
        while row.tobytes() in seen:
            site = rng.integers(length)
            row[site] = (row[site] + rng.integers(1, 4)) % 4
        seen.add(row.tobytes())
    return [BASES[row].tobytes().decode() for row in state[:tips]]


def _newick(parent: NDArray[np.int64], branch: NDArray[np.float64], names: list[str]) -> str:
    subtree = [*names, *([""] * (len(parent) - len(names)))]
    for node in range(len(parent) - 1):  # children come before their parents
        subtree[parent[node]] += f"{',' if subtree[parent[node]] else ''}{subtree[node]}:{branch[node]:.8f}"
        if node + 1 >= len(names):  # the next node is internal, and has both its children
            subtree[node + 1] = f"({subtree[node + 1]})"
    return subtree[-1] + ";"


def _cut_into_clades(parent: NDArray[np.int64], tips: int) -> NDArray[np.int64]:
    """Number the largest subtrees of at most ``tips / CLADE_SHARE`` tips; returns the number of each tip's, (A,)."""
    size = np.zeros(len(parent), dtype=np.int64)
    size[:tips] = 1
    for node in range(len(parent) - 1):
        size[parent[node]] += size[node]
    most = max(2, tips // CLADE_SHARE)
    clade = np.full(len(parent), -1)
    number = 0
    for node in range(len(parent) - 2, -1, -1):
        if clade[parent[node]] >= 0:
            clade[node] = clade[parent[node]]
        elif size[node] <= most:
            clade[node] = number
            number += 1
    return clade[:tips]


def _choose_responding(
    clade: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw each clade's effect on log abundance (half rise, half fall, the rest 0) and its onset along x."""
    size = np.bincount(clade)
    number = min(RESPONDING, 2 * max(1, len(size) // 4))
    large = np.argsort(-size, kind="stable")[: 2 * number]
    responding = rng.choice(large, size=number, replace=False)
    effect = np.zeros(len(size))
    effect[responding] = rng.uniform(*EFFECT, size=number) * np.where(np.arange(number) % 2, -1, 1)
    onset = np.zeros(len(size))
    # Rising and falling clades come in pairs; spread the onsets of the pairs so that no part of x goes untold.
    edges = np.linspace(*ONSET, number // 2 + 1)
    onset[responding] = rng.uniform(np.repeat(edges[:-1], 2), np.repeat(edges[1:], 2))
    return effect, onset


def _place_on_gradient(subject: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Place samples on the gradient: each subject's lie, in order, within a span of its own."""
    start = rng.uniform(0, 1 - SUBJECT_SPAN, size=subject[-1] + 1)
    within = rng.random(len(subject))
    within = within[np.lexsort((within, subject))]
    return start[subject] + SUBJECT_SPAN * within


def _draw_counts(
    x: NDArray[np.float64],
    subject: NDArray[np.int64],
    clade: NDArray[np.int64],
    effect: NDArray[np.float64],
    onset: NDArray[np.float64],
    depth: int,
    rng: np.random.Generator,
) -> csr_array:
    subjects, samples, asvs, clades = subject[-1] + 1, len(x), len(clade), len(effect)
    responds = effect != 0

    lives = responds | (rng.random((subjects, clades)) < CLADE_CARRIAGE)  # (U, C)
    ticket = rng.random((subjects, asvs))
    first = np.ones_like(ticket)
    for c in range(clades):  # one ASV at least of every clade that lives in the subject
        first[:, clade == c] = ticket[:, clade == c].min(axis=1, keepdims=True)
    carries = ((ticket < CARRIAGE) | (ticket == first)) & lives[:, clade]  # (U, A)

    turnover = np.where(responds, expit(TURNOVER * np.sign(effect) * (x[:, None] - onset)), 1.0)  # (N, C)
    present = carries[subject] & (rng.random((samples, asvs)) < (1 - DROPOUT) * turnover[:, clade])  # (N, A)
    nothing = ~present.any(axis=1)
    present[nothing] = carries[subject[nothing]]

    clade_log = (
        effect * (x[:, None] - 0.5)
        + NOISE_SUBJECT * rng.standard_normal((subjects, clades))[subject]
        + NOISE_SAMPLE * rng.standard_normal((samples, clades))
    )  # (N, C)
    log_abundance = (
        clade_log[:, clade]
        + NOISE_ASV * rng.standard_normal(asvs)
        + NOISE_ASV_SAMPLE * rng.standard_normal((samples, asvs))
    )  # (N, A)
    abundance = np.where(present, np.exp(log_abundance), 0.0)
    reads = np.maximum(1, np.rint(depth * np.exp(NOISE_DEPTH * rng.standard_normal(samples)))).astype(np.int64)
    counts = rng.multinomial(reads, abundance / abundance.sum(axis=1, keepdims=True))  # (N, A)

    # A table has no empty features: an ASV without a read gets one in the sample where it is likeliest.
    unseen = np.flatnonzero(counts.sum(axis=0) == 0)
    counts[log_abundance[:, unseen].argmax(axis=0), unseen] = 1
    return csr_array(counts.astype(np.int32))


def _draw_metadata(
    x: NDArray[np.float64], subject_ids: list[str], sample_ids: list[str], rng: np.random.Generator
) -> pd.DataFrame:
    age = np.clip(AGE_MAX * x + NOISE_AGE * rng.standard_normal(len(x)), 0, AGE_MAX)
    noisy = x + NOISE_GROUP * rng.standard_normal(len(x))
    group = np.searchsorted(np.quantile(noisy, [1 / 3, 2 / 3]), noisy)
    return pd.DataFrame(
        {
            "subject_id": subject_ids,
            "age": age.round(1),
            "group": [GROUPS[g] for g in group],
            "storage_days": rng.integers(1, 366, size=len(x)),
        },
        index=pd.Index(sample_ids, name="sample_id"),
    )


def _numbered(prefix: str, number: int) -> list[str]:
    width = max(2, len(str(number)))
    return [f"{prefix}{i + 1:0{width}d}" for i in range(number)]


def plant_target(
    study: SimulatedStudy, *, clades: int = 3, noise: float = 0.2, seed: int = 0
) -> tuple[SimulatedStudy, list[str]]:
    """Give a study a column that a few clades alone decide, for what is to find them.

    ``planted`` is the sum of the logarithms of the clades' relative abundances (0.1% added), each with a mean of 0, a
    standard deviation of 1 and a sign of its own, and of noise. The clades are among those that do not follow the
    gradient, so that nothing else goes along with them.

    Parameters
    ----------
    study : SimulatedStudy
    clades : int
    noise : float
        Standard deviation, of that of the rest.
    seed : int

    Returns
    -------
    SimulatedStudy
        With the column in its metadata, and the clades' names as ``planted`` in the truth.
    list of str
        The sequences of the clades' ASVs.

    Raises
    ------
    DataError
        If there are not so many clades.
    """
    rng = np.random.default_rng(seed)
    of_asv = np.array([asv["clade"] for asv in study.truth["asvs"]])
    shares = study.counts.toarray() / study.counts.sum(axis=1)[:, None]
    idle = [clade["clade"] for clade in study.truth["clades"] if clade["effect"] == 0 and clade["asvs"] > 1]
    of_clade = {name: shares[:, of_asv == name].sum(axis=1) for name in idle}
    candidates = [name for name in idle if (of_clade[name] > 0).mean() > 0.1]
    if len(candidates) < clades:
        raise DataError(f"{len(candidates)} clades follow no gradient, and {clades} are to be planted; give more ASVs")
    chosen = sorted(rng.choice(candidates, size=clades, replace=False).tolist())
    logs = np.log(np.stack([of_clade[name] for name in chosen]) + 1e-3)  # (clades, N)
    standard = (logs - logs.mean(axis=1, keepdims=True)) / logs.std(axis=1, keepdims=True)
    signs = np.where(np.arange(clades) % 2, -1.0, 1.0)
    decided = signs @ standard
    planted = decided + noise * decided.std() * rng.standard_normal(len(decided))
    causal = [bases for bases, name in zip(study.sequences, of_asv.tolist(), strict=True) if name in chosen]
    metadata = study.metadata.assign(planted=planted.round(4))
    return replace(study, metadata=metadata, truth={**study.truth, "planted": chosen}), causal
