"""What a base model may learn of samples: one class for each base target, and their registry.

A class says of its target what it is, within which bounds, how the clade head reads it and how it is judged; heads,
losses, metrics, options and plots follow from that. A new one is one class::

    @register
    @dataclass(frozen=True)
    class Canberra(BaseTarget):
        name = "canberra"
        title = "Canberra distance"
        upper = 1.0

Importing this module does not import torch, so that the command line can list the names.

Shapes: ``N`` and ``M`` samples of two sets, ``K`` clades, ``T`` parts of a composition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BaseTarget",
    "Composition",
    "Kind",
    "base_target",
    "base_target_class",
    "base_target_names",
    "register",
    "require_readable",
    "targets_of",
]

Kind = Literal["pairwise", "value", "composition", "several"]
Memberships = Literal["presence", "abundance"]


@dataclass(frozen=True)
class BaseTarget:
    """A base target; its fields are the options it takes.

    Attributes
    ----------
    name : str
        Of the option, the labels and the metrics: lower-case letters, digits and underscores.
    title : str
        What plots call it.
    kind : {"pairwise", "value", "composition", "several"}
        A distance between two samples, one value a sample, shares of a sample that sum to 1, or other targets at once.
    lower, upper : float or None
        Bounds of its values. A distance with an upper bound is read from embeddings by ``upper tanh(d / scale)``, one
        without by ``d / scale``.
    clades : {"presence", "abundance"} or None
        What the clade head gives to `from_clades`: presences ``z``, abundance-weighted memberships ``u``, or nothing,
        where this target cannot be read from clades.
    loss : {"squared_error", "divergence"}
    metric : {"regression", "composition"}
    """

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Kind] = "pairwise"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = None
    clades: ClassVar[Memberships | None] = None
    loss: ClassVar[Literal["squared_error", "divergence"]] = "squared_error"
    metric: ClassVar[Literal["regression", "composition"]] = "regression"

    def from_clades(self, samples: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        """Read from clades.

        Parameters
        ----------
        samples : Tensor (N, K)
            Presences or abundances, as ``clades`` says.
        references : Tensor (M, K)
            Of the other samples; of no meaning for a value.
        weights : Tensor (K,)
            Branch lengths, not negative.

        Returns
        -------
        Tensor (N, M), or (N,) for a value
        """
        raise NotImplementedError(f"{self.name} is not read from clades")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; `base_target` makes it again."""
        return {"name": self.name, **asdict(self)}


_REGISTRY: dict[str, type[BaseTarget]] = {}
Target = TypeVar("Target", bound=type[BaseTarget])


def register(target: Target) -> Target:
    """Add a class to the registry (a decorator).

    Raises
    ------
    ValueError
        If its name is taken, or none that an option and a metric could have.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", target.name):
        raise ValueError(f"a base target cannot be called {target.name!r}; use lower-case letters, digits and _")
    if target.name in _REGISTRY:
        raise ValueError(f"there is a base target {target.name!r} already; call the new one something else")
    _REGISTRY[target.name] = target
    return target


def base_target_names() -> tuple[str, ...]:
    """All names, in the order of registration."""
    return tuple(_REGISTRY)


def base_target_class(name: str) -> type[BaseTarget]:
    """The class of a name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.
    """
    if name not in _REGISTRY:
        raise ValueError(f"no base target {name!r}; there are {', '.join(_REGISTRY)}")
    return _REGISTRY[name]


def base_target(name: str, **options: Any) -> BaseTarget:
    """A base target by its name, with those of the options that it takes; lists, as JSON gives them, become tuples."""
    target = base_target_class(name)
    taken = {field.name: options[field.name] for field in fields(target) if field.name in options}
    return target(**{key: tuple(value) if isinstance(value, list) else value for key, value in taken.items()})


def targets_of(name: str, labelled: Iterable[str]) -> tuple[str, ...]:
    """The targets that ``--base-target name`` learns of those that have labels, in the registry's order.

    Itself; or, of a target that stands for several, every other one.
    """
    chosen = set(labelled)
    if base_target_class(name).kind != "several":
        chosen &= {name}
    return tuple(known for known, target in _REGISTRY.items() if known in chosen and target.kind != "several")


def require_readable(name: str, distance_head: str) -> None:
    """Refuse a distance that the only head asked for cannot read.

    Raises
    ------
    ValueError
    """
    target = base_target_class(name)
    if distance_head == "clade" and target.kind == "pairwise" and target.clades is None:
        raise ValueError(
            f"--base-target {name} is not read from clades, and --distance-head clade reads from nothing else; "
            "use --distance-head euclidean"
        )


# ----------------------------------------------------------------------------------------------------------- distances


@dataclass(frozen=True)
class _OfPresence(BaseTarget):
    """Distances of which branches, or ASVs, are shared."""

    upper = 1.0
    clades = "presence"

    def from_clades(self, samples: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        from aam.models.distances import clade_distances

        return clade_distances(samples, references, weights)


@dataclass(frozen=True)
class _OfAbundance(BaseTarget):
    """Distances of how much of the reads is on each branch, or ASV."""

    upper = 1.0
    clades = "abundance"

    def from_clades(self, samples: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        from aam.models.distances import weighted_clade_distances

        return weighted_clade_distances(samples, references, weights)


@register
@dataclass(frozen=True)
class UniFrac(_OfPresence):
    """Unweighted UniFrac (Lozupone and Knight 2005)."""

    name = "unifrac"
    title = "UniFrac"


@register
@dataclass(frozen=True)
class WeightedUniFrac(_OfAbundance):
    """Weighted UniFrac, normalised (Lozupone et al. 2007)."""

    name = "weighted_unifrac"
    title = "weighted UniFrac"


@register
@dataclass(frozen=True)
class GeneralizedUniFrac(BaseTarget):
    """Generalised UniFrac (Chen et al. 2012).

    Parameters
    ----------
    alpha : float
        1 is weighted UniFrac, and 0 weighs rare lineages as common ones.
    """

    name = "generalized_unifrac"
    title = "generalized UniFrac"
    upper = 1.0
    clades = "abundance"

    alpha: float = 0.5

    def from_clades(self, samples: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        from aam.models.distances import generalized_clade_distances

        return generalized_clade_distances(samples, references, weights, self.alpha)


@register
@dataclass(frozen=True)
class BrayCurtis(_OfAbundance):
    """Bray-Curtis dissimilarity: weighted UniFrac's form with every ASV, or clade of like ones, a branch of its own."""

    name = "bray_curtis"
    title = "Bray-Curtis"


@register
@dataclass(frozen=True)
class Jaccard(_OfPresence):
    """Jaccard distance of presences: UniFrac's form with every ASV, or clade of like ones, a branch of its own."""

    name = "jaccard"
    title = "Jaccard"


@register
@dataclass(frozen=True)
class Aitchison(BaseTarget):
    """Euclidean distance of centred log ratios (Aitchison 1982): without an upper bound, and not read from clades."""

    name = "aitchison"
    title = "Aitchison"


# --------------------------------------------------------------------------------------------- values and compositions


@register
@dataclass(frozen=True)
class FaithPD(BaseTarget):
    """Faith's phylogenetic diversity (Faith 1992): the branch length that leads to a sample's ASVs."""

    name = "faith_pd"
    title = "Faith's PD"
    kind = "value"
    clades = "presence"

    def from_clades(self, samples: Tensor, references: Tensor, weights: Tensor) -> Tensor:
        return samples @ weights


@dataclass(frozen=True)
class Composition(BaseTarget):
    """Shares that sum to 1.

    Parameters
    ----------
    parts : tuple of str, T
        What they are shares of, known from the training samples.
    """

    kind = "composition"
    upper = 1.0
    loss = "divergence"
    metric = "composition"

    parts: tuple[str, ...] = ()


@register
@dataclass(frozen=True)
class Taxonomy(Composition):
    """Shares of the reads by taxon at one rank."""

    name = "taxonomy"
    title = "taxonomy"


@register
@dataclass(frozen=True)
class Combined(BaseTarget):
    """Every target that labels are given for, at once and with equal weights: one learned tree for the whole family."""

    name = "combined"
    title = "combined"
    kind = "several"
