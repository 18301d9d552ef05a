"""Classical models of abundances that predict together with networks.

They are stored as arrays within the model file: a linear model as its weights, trees as their nodes. Predicting with
them takes neither scikit-learn nor a pickled object.

Shapes: ``N`` samples, ``A`` ASVs of a table, ``F`` ASVs that a model reads, ``T`` trees, ``V`` nodes of all of them,
``C`` answers: one number (of the network quantiles), or the probabilities of classes; ``M`` models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import softmax

from aam.config import DataConfig
from aam.data.abundance_features import centred_log_ratios, log_abundance_features
from aam.data.dataset import DatasetOptions, SampleDataset
from aam.data.study import Study

__all__ = ["ClassicalModel", "Joined", "Linear", "Trees", "best_share", "counts_as_judged", "mixed"]

Reading = Literal["log_abundance", "clr"]

_BLOCK = 2**22  # entries of a table of features, or of places in trees, that are held at a time
_SHARES = tuple(np.linspace(0, 1, 21).tolist())


def counts_as_judged(study: Study, data: DataConfig, seed: int) -> csr_array:
    """The counts (N, A) of samples as they are read when they are judged: rarefied where a run rarefies.

    No ASV is left out, whatever ``--token-limit`` says.
    """
    whole = data.model_copy(update={"token_limit": max(1, study.counts.shape[1])})
    rows, _ = SampleDataset.of_study(study, DatasetOptions.of(whole, seed)).drawn(np.arange(len(study)), epoch=0)
    places = rows.asvs.astype(np.int32), rows.indptr.astype(np.int32)  # scikit-learn's trees take no others
    return csr_array((rows.counts, *places), shape=study.counts.shape)


class Linear(NamedTuple):
    """Answers, or the logarithms of what probabilities are in proportion to, as weighted sums."""

    weights: NDArray[np.float64]  # (F, C)
    offsets: NDArray[np.float64]  # (C,)

    def values(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, C) of features (N, F)."""
        found: NDArray[np.float64] = features @ self.weights + self.offsets
        return found


class Trees(NamedTuple):
    """Trees whose mean is the answer. A node with a feature below 0 is a leaf."""

    roots: NDArray[np.int64]  # (T,)
    feature: NDArray[np.int32]  # (V,)
    threshold: NDArray[np.float64]  # (V,): up to which it goes to the left
    left: NDArray[np.int32]  # (V,)
    right: NDArray[np.int32]  # (V,)
    answer: NDArray[np.float64]  # (V, C)

    def values(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, C) of features (N, F)."""
        found = np.empty((len(features), self.answer.shape[1]))
        rows = max(1, _BLOCK // len(self.roots))
        for start in range(0, len(features), rows):
            some = features[start : start + rows]
            node = np.tile(self.roots, (len(some), 1))  # (rows, T)
            row = np.arange(len(some))[:, None]
            while (inner := self.feature[node] >= 0).any():
                to_left = some[row, self.feature[node]] <= self.threshold[node]
                node = np.where(inner, np.where(to_left, self.left[node], self.right[node]), node)
            for place in range(self.answer.shape[1]):
                found[start : start + rows, place] = self.answer[node, place].mean(axis=1)
        return found


@dataclass(frozen=True)
class ClassicalModel:
    """A classical model of abundances.

    Attributes
    ----------
    reading : {"log_abundance", "clr"}
        See `aam.data.abundance_features`.
    sequences : tuple of str, F
        The ASVs that it reads. It knows nothing of others, though log abundances are shares of all reads.
    model : Linear or Trees
    classes : bool
        Whether it answers with probabilities.
    """

    reading: Reading
    sequences: tuple[str, ...]
    model: Linear | Trees
    classes: bool

    def answers(self, counts: csr_array, sequences: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What it says of samples (N, C), and which of them (N,) have any ASV that it reads.

        Parameters
        ----------
        counts : csr_array, shape (N, A)
        sequences : sequence of str, A
        """
        place = {sequence: i for i, sequence in enumerate(self.sequences)}
        here = [(i, place[sequence]) for i, sequence in enumerate(sequences) if sequence in place]
        columns, places = np.array(here, dtype=np.int64).reshape(-1, 2).T
        # The columns of the table as those that the model reads; what is not in the table is 0.
        shape = (len(sequences), len(self.sequences))
        pick = csr_array((np.ones(len(columns), dtype=np.float32), (columns, places)), shape=shape)
        source = log_abundance_features(counts) if self.reading == "log_abundance" else counts
        read = csr_array(source @ pick)
        known = np.diff(read.indptr) > 0
        found = []
        rows = max(1, _BLOCK // max(1, len(self.sequences)))
        for start in range(0, counts.shape[0], rows):
            some = read[start : start + rows]
            features = some.toarray() if self.reading == "log_abundance" else centred_log_ratios(some)
            found.append(self.model.values(features))
        values = np.concatenate(found)
        return (softmax(values, axis=1) if self.classes and isinstance(self.model, Linear) else values), known

    def to_dict(self) -> dict[str, Any]:
        """What of it is no tensor."""
        return {"reading": self.reading, "model": type(self.model).__name__.lower(), "classes": self.classes}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rest."""
        text = "\n".join(self.sequences).encode("ascii")
        return {"sequences": np.frombuffer(text, dtype=np.uint8).copy(), **self.model._asdict()}

    @classmethod
    def read(cls, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """From what `to_dict` and `arrays` gave.

        Raises
        ------
        ValueError
            If they are damaged.
        """
        kinds: dict[str, type[Linear | Trees]] = {"linear": Linear, "trees": Trees}
        try:
            kind = kinds[stored["model"]]
            model = kind(**{name: arrays[name] for name in kind._fields})
            sequences = tuple(arrays["sequences"].tobytes().decode("ascii").split("\n"))
            found = cls(stored["reading"], sequences, model, bool(stored["classes"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError("no classical model") from None
        if found.reading not in ("log_abundance", "clr") or not _sound(model, len(sequences)):
            raise ValueError("no classical model")
        return found


def _sound(model: Linear | Trees, features: int) -> bool:
    """Whether arrays fit each other, and every way through trees ends."""
    if isinstance(model, Linear):
        return model.weights.ndim == 2 and model.weights.shape == (features, len(model.offsets))
    nodes = len(model.feature)
    if not (model.threshold.shape == model.left.shape == model.right.shape == (nodes,)) or model.answer.ndim != 2:
        return False
    inner = np.flatnonzero(model.feature >= 0)
    after = all((side[inner] > inner).all() and (side[inner] < nodes).all() for side in (model.left, model.right))
    roots = len(model.roots) > 0 and bool(((model.roots >= 0) & (model.roots < nodes)).all())
    return after and roots and len(model.answer) == nodes and bool((model.feature < features).all())


@dataclass(frozen=True)
class Joined:
    """Classical models that predict with networks, a weighted mean of the two.

    Attributes
    ----------
    name : str
        Of `aam.evaluation.baseline.ABUNDANCE_MODELS`.
    share : float
        What the network weighs.
    models : tuple of ClassicalModel, M
        Of each fold; one without folds.
    lower, upper : float, optional
        Numbers do not go beyond.
    """

    name: str
    share: float
    models: tuple[ClassicalModel, ...]
    lower: float | None = None
    upper: float | None = None

    def answers(
        self, network: NDArray[np.float64], counts: csr_array, sequences: Sequence[str]
    ) -> tuple[NDArray[np.float64], int]:
        """Answers (N, M, C) of networks and classical models, and of how many samples the latter know nothing.

        For these the networks answer alone.
        """
        found = network.copy()
        unknown = np.ones(len(network), dtype=bool)
        for place, model in enumerate(self.models):
            classical, known = model.answers(counts, sequences)
            found[:, place] = self.together(network[:, place], classical, known)
            unknown &= ~known
        return found, int(unknown.sum())

    def together(
        self, network: NDArray[np.float64], classical: NDArray[np.float64], known: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """What a network and a classical model answer (n, C); where the latter knows nothing, the network alone."""
        found = np.where(known[:, None], mixed(network, classical, self.share, self.models[0].classes), network)
        low, high = -np.inf if self.lower is None else self.lower, np.inf if self.upper is None else self.upper
        return found.clip(low, high)

    def to_dict(self) -> dict[str, Any]:
        """What of it is no tensor."""
        bounds = {"lower": self.lower, "upper": self.upper}
        return {"name": self.name, "share": self.share, **bounds, "models": [each.to_dict() for each in self.models]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rest."""
        return {
            f"joined.{place}.{name}": array
            for place, model in enumerate(self.models)
            for name, array in model.arrays().items()
        }

    @classmethod
    def read(cls, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """From what `to_dict` and `arrays` gave.

        Raises
        ------
        ValueError
            If they are damaged.
        """
        try:
            models = []
            for place, of_model in enumerate(stored["models"]):
                prefix = f"joined.{place}."
                own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                models.append(ClassicalModel.read(of_model, own))
            bounds = [None if stored[name] is None else float(stored[name]) for name in ("lower", "upper")]
            found = cls(str(stored["name"]), float(stored["share"]), tuple(models), *bounds)
        except (KeyError, TypeError, AttributeError):
            raise ValueError("no joined models") from None
        if not models or not 0 <= found.share <= 1:
            raise ValueError("no joined models")
        return found


def mixed(
    network: NDArray[np.float64], classical: NDArray[np.float64], share: float, classes: bool
) -> NDArray[np.float64]:
    """The weighted mean of answers (n, C); of quantiles that of the medians, which take the network's others along."""
    if classes:
        return share * network + (1 - share) * classical
    middle, other = (answers[:, answers.shape[1] // 2] for answers in (network, classical))
    return network + (1 - share) * (other - middle)[:, None]


def best_share(
    network: NDArray[np.float64], classical: NDArray[np.float64], actual: NDArray[Any], classes: bool
) -> float:
    """What the network is to weigh for the least error on samples that neither has seen.

    Parameters
    ----------
    network, classical : ndarray (n, C)
    actual : ndarray (n,)
        Numbers, or the places of classes.
    classes : bool
        Whether balanced accuracy is what counts, in place of the absolute error.

    Returns
    -------
    float
        A multiple of 0.05; of those that are as good the one nearest to a half.
    """

    def error(share: float) -> float:
        answers = mixed(network, classical, share, classes)
        if not classes:
            return float(np.abs(answers[:, answers.shape[1] // 2] - actual).mean())
        right = answers.argmax(axis=1) == actual
        return -float(np.mean([right[actual == place].mean() for place in np.unique(actual)]))

    return min(_SHARES, key=lambda share: (error(share), abs(share - 0.5)))
