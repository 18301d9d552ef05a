"""Samples to embeddings, with the self-supervised heads.

Shapes: ``U`` distinct ASVs, ``L`` tokens, ``B`` samples, ``S`` most ASVs of a sample, ``D`` width, ``K`` clades,
``M`` ASVs with masked nucleotides, ``P`` masked nucleotides, ``T`` parts of a composition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aam.models.asv_encoder import VOCABULARY_SIZE, ASVEncoder
from aam.models.attention_pooling import AttentionPooling
from aam.models.base_targets import BaseTarget, Composition, UniFrac
from aam.models.distances import CladeHead, EuclideanHead
from aam.models.precision import at_least_float32, in_float32, without_autocast
from aam.models.sample_sequence_encoder import CountEmbedding, SampleSequenceEncoder
from aam.models.transformer import Transformer
from aam.models.value_heads import CladeValueHead, CompositionHead, ValueHead

__all__ = [
    "DistanceHead",
    "EncodedSamples",
    "Level",
    "SampleBatch",
    "SampleSummary",
    "SequenceEncoder",
    "abundance_means",
]

DistanceHead = Literal["both", "clade", "euclidean"]


class MaskedTokens(Protocol):
    """ASVs whose nucleotides are to be restored (`aam.data.batch.MaskedNucleotides` is one)."""

    @property
    def tokens(self) -> Tensor:
        """(M, L) of uint8, a part of them masked."""

    @property
    def padded(self) -> bool:
        """Whether any token is PAD."""

    @property
    def places(self) -> Tensor:
        """(M, L) of bool: the ``P`` masked ones."""

    @property
    def flat(self) -> Tensor:
        """(P,) of int: the same places, numbered row by row."""


class SampleBatch(Protocol):
    """What the encoders read of a batch (`aam.data.batch.Batch` is one)."""

    @property
    def tokens(self) -> Tensor:
        """(U, L) of uint8."""

    @property
    def padded(self) -> bool:
        """Whether any token is PAD."""

    @property
    def asv_index(self) -> Tensor:
        """(B, S) of int: rows of `tokens`."""

    @property
    def counts(self) -> Tensor:
        """(B, S): reads, 0 at padding."""

    @property
    def ragged(self) -> bool:
        """Whether any place of `asv_index` is padding."""

    @property
    def depth(self) -> Tensor:
        """(B,): reads of each sample."""

    @property
    def asv_embeddings(self) -> Tensor | None:
        """(U, D), where a frozen encoder has made them before; tokens are not read then."""

    @property
    def summary(self) -> tuple[Any, ...] | None:
        """A `SampleSummary`, where a frozen encoder has made it before; nothing else is read then."""

    @property
    def categories(self) -> Tensor | None:
        """(B, C) of int: places of the covariates' categories, which a target head may read; 0 where unknown."""

    @property
    def numbers(self) -> Tensor | None:
        """(B, K): covariates that are numbers, NaN where unknown."""

    @property
    def masked_nucleotides(self) -> MaskedTokens | None:
        """What is to be restored beside."""


class SampleSummary(NamedTuple):
    """What base targets are read from."""

    embedding: Tensor  # (B, D)
    presence: Tensor | None  # (B, K), with a clade head
    abundance: Tensor | None  # (B, K), where a base target reads it

    def rows(self, rows: Any) -> SampleSummary:
        """Of these samples alone (a slice, or places)."""
        of_clades = (None if part is None else part[rows] for part in self[1:])
        return SampleSummary(self.embedding[rows], *of_clades)

    def to(self, device: torch.device) -> SampleSummary:
        """On a device."""
        return SampleSummary(
            self.embedding.to(device), *(None if part is None else part.to(device) for part in self[1:])
        )

    @classmethod
    def cat(cls, summaries: Sequence[SampleSummary]) -> SampleSummary:
        """Of the samples of several, one after the other."""
        embeddings, *of_clades = zip(*summaries, strict=True)
        return cls(torch.cat(embeddings), *(None if parts[0] is None else torch.cat(parts) for parts in of_clades))


class EncodedSamples(NamedTuple):
    """What `SequenceEncoder` makes of a batch."""

    asv_embeddings: Tensor  # (U, D)
    embedding: Tensor  # (B, D)
    presence: Tensor | None  # (B, K), with a clade head
    abundance: Tensor | None = None  # (B, K), where a base target reads it
    nucleotides: Tensor | None = None  # (P, 8): logits over tokens, where any are to be restored

    @classmethod
    def of_summary(cls, summary: SampleSummary) -> EncodedSamples:
        """Samples of whose ASVs nothing is known any more."""
        asvs = summary.embedding.new_zeros(0, summary.embedding.shape[1])
        return cls(asvs, summary.embedding, summary.presence, summary.abundance)

    @property
    def summary(self) -> SampleSummary:
        """What base targets are read from."""
        return SampleSummary(self.embedding, self.presence, self.abundance)


class Level(NamedTuple):
    """Where a base target's values are, for a fresh network to start there."""

    mean: Tensor  # (), or (T,) of a composition
    sd: float = 1.0


class SequenceEncoder(nn.Module):
    """The base model: ASV encoder, sample encoder, a further transformer, attention pooling.

    Parameters
    ----------
    dim, heads, layers, feed_forward_factor : int
        Of each of the three transformers.
    max_bp : int
        Most bases of a sequence.
    dropout : float
        In the two transformers over samples.
    count_embedding : {"add", "concat", "film", "none"}
    abundance_pooling : bool
        Whether means of a sample's ASV embeddings, weighted by abundance, join what attention pools.
    distance_head : {"both", "clade", "euclidean"}
        The clade head trains the ASV encoder alone, the Euclidean one all of the base.
    clades : int
    gradient_checkpointing : bool
    asv_chunk_size : int, optional
    targets : sequence of BaseTarget
        What is read of samples beside their embedding. The clades are the same for all of them; other heads are each
        target's own.
    """

    def __init__(
        self,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        max_bp: int = 300,
        feed_forward_factor: int = 4,
        dropout: float = 0.0,
        count_embedding: CountEmbedding = "add",
        abundance_pooling: bool = True,
        distance_head: DistanceHead = "both",
        clades: int = 256,
        gradient_checkpointing: bool = False,
        asv_chunk_size: int | None = None,
        targets: Sequence[BaseTarget] = (UniFrac(),),
    ) -> None:
        super().__init__()
        self.dim = dim
        self.targets = {target.name: target for target in targets}
        self.asv_encoder = ASVEncoder(
            dim, heads, layers, max_bp, feed_forward_factor, gradient_checkpointing, asv_chunk_size
        )
        self.sample_encoder = SampleSequenceEncoder(
            dim, heads, layers, feed_forward_factor, dropout, count_embedding, gradient_checkpointing
        )
        self.transformer = Transformer(dim, heads, layers, feed_forward_factor, dropout, gradient_checkpointing)
        self.pooling = AttentionPooling(dim, heads)
        self.abundance_projection = nn.Linear(2 * dim, dim) if abundance_pooling else None
        self.norm = nn.LayerNorm(dim)
        self.nucleotide_head = nn.Linear(dim, VOCABULARY_SIZE)
        self.clade_head = CladeHead(dim, clades) if distance_head in ("clade", "both") else None
        self.presence_projection = nn.Linear(clades, dim) if self.clade_head is not None else None
        # UniFrac's own is not among `target_heads`: so it was called before there were other targets.
        self.read_from_embedding = distance_head in ("euclidean", "both")
        with_unifrac = self.read_from_embedding and "unifrac" in self.targets
        self.euclidean_head = EuclideanHead(dim) if with_unifrac else None
        self.target_heads = nn.ModuleDict(
            {
                target.name: nn.ModuleDict({head: self._new_head(target, head) for head in self._with_weights(target)})
                for target in targets
                if self._with_weights(target)
            }
        )

    def heads(self, target: BaseTarget) -> tuple[str, ...]:
        """The heads that read a target, the leading one first: ``clade`` where it can be read from clades."""
        clade = self.clade_head is not None and target.clades is not None
        embedding = self.read_from_embedding or not clade
        return ("clade",) * clade + ("euclidean",) * embedding

    def forward(self, batch: SampleBatch) -> EncodedSamples:
        """Encode the samples of a batch, but what of it has been encoded before, and guess its masked nucleotides."""
        if batch.summary is not None:
            return EncodedSamples.of_summary(SampleSummary(*batch.summary))
        asv_embeddings, masked, nucleotides = batch.asv_embeddings, batch.masked_nucleotides, None  # (U, D)
        if asv_embeddings is None and masked is not None and self.asv_encoder.in_one_piece(batch.tokens.device):
            asv_embeddings, at_places = self.asv_encoder.embed_and_encode_places(
                batch.tokens, batch.padded, masked.tokens, masked.padded, masked.flat
            )
            nucleotides = in_float32(self.nucleotide_head, at_places)
        else:
            if asv_embeddings is None:
                asv_embeddings = self.asv_encoder(batch.tokens, batch.padded)
            if masked is not None:
                nucleotides = self.restore_nucleotides(masked.tokens, masked.padded, masked.places, masked.flat)
        return self.encode_samples(asv_embeddings, batch)._replace(nucleotides=nucleotides)

    def encode_samples(self, asv_embeddings: Tensor, batch: SampleBatch) -> EncodedSamples:
        """Encode samples whose ASVs are encoded already.

        Parameters
        ----------
        asv_embeddings : Tensor (U, D)
        batch : SampleBatch
        """
        present = batch.counts > 0 if batch.ragged else None  # (B, S)
        in_samples = self.sample_encoder(  # (B, S, D)
            asv_embeddings, batch.asv_index, batch.counts, batch.depth, ragged=batch.ragged
        )
        pooled = self.pooling(self.transformer(in_samples, present), present)  # (B, D)
        if self.abundance_projection is not None:
            pooled = pooled + in_float32(self.abundance_projection, abundance_means(asv_embeddings, batch))
        presence = None
        if self.clade_head is not None and self.presence_projection is not None:
            presence = self.clade_head.presence(asv_embeddings, batch.asv_index, present)  # (B, K)
            pooled = pooled + in_float32(self.presence_projection, presence)
        abundance = None
        if self.clade_head is not None and any(target.clades == "abundance" for target in self.targets.values()):
            abundance = self.clade_head.abundance(asv_embeddings, batch.asv_index, _shares(batch))  # (B, K)
        return EncodedSamples(asv_embeddings, self.norm(pooled), presence, abundance)

    @torch.no_grad()
    def calibrate(self, batch: SampleBatch, levels: Mapping[str, Level], *, widths: bool = True) -> None:
        """Let what a fresh network reads start at the level of real values.

        Parameters
        ----------
        batch : SampleBatch
            Training samples, at least two.
        levels : mapping of str to Level
            By base target. The first distance that is read from clades decides how wide these start.
        widths : bool
            False where the clades have been learnt and only a target's own heads are new.
        """
        asv_embeddings = self.asv_encoder(batch.tokens, batch.padded)
        if self.clade_head is not None and widths:
            distances = [target for target in self.targets.values() if target.kind == "pairwise" and target.clades]
            leading = next((target for target in distances if target.name in levels), None)
            mean = 0.5 if leading is None else float(levels[leading.name].mean)
            self.clade_head.calibrate(asv_embeddings, batch.asv_index, _shares(batch), mean, leading)
        summary = self.encode_samples(asv_embeddings, batch).summary
        for name, level in levels.items():
            target = self.targets[name]
            for head in self.heads(target):
                module = self._head(target, head)
                if isinstance(module, EuclideanHead):
                    module.calibrate(summary.embedding, float(level.mean))
                elif isinstance(module, CladeValueHead):
                    module.calibrate(self._from_clades(target, summary, summary), float(level.mean))
                elif isinstance(module, ValueHead):
                    module.calibrate(float(level.mean), level.sd)
                elif isinstance(module, CompositionHead):
                    module.calibrate(level.mean)

    def restore_nucleotides(
        self, masked_tokens: Tensor, padded: bool, places: Tensor, flat: Tensor | None = None
    ) -> Tensor:
        """Guess masked nucleotides from their context.

        Parameters
        ----------
        masked_tokens : Tensor (M, L) of uint8
            Some ASVs with a part of their nucleotides masked.
        padded : bool
            Whether any token is PAD.
        places : Tensor (M, L) of bool
            The ``P`` masked ones; the head is applied to these alone.
        flat : Tensor (P,) of int, optional
            The same places, numbered row by row. A GPU need not be waited for then.

        Returns
        -------
        Tensor (P, 8)
            Logits over tokens.
        """
        return in_float32(self.nucleotide_head, self.asv_encoder.encode_places(masked_tokens, padded, places, flat))

    def read(
        self, target: BaseTarget, samples: SampleSummary, references: SampleSummary | None = None
    ) -> dict[str, Tensor]:
        """Read a base target as each of its heads does.

        Parameters
        ----------
        target : BaseTarget
            One of ``targets``.
        samples : SampleSummary
            Of N samples, from `forward`.
        references : SampleSummary, optional
            Of M samples to which distances are read; the same N if left out.

        Returns
        -------
        dict of str to Tensor
            By head, the leading one first: distances (N, M), values (N,), or the logarithms of shares (N, T).
        """
        references = samples if references is None else references
        with without_autocast(samples.embedding):
            return {head: self._read(target, head, samples, references) for head in self.heads(target)}

    def _read(self, target: BaseTarget, head: str, samples: SampleSummary, references: SampleSummary) -> Tensor:
        module = self._head(target, head)
        if head == "clade":
            read = self._from_clades(target, samples, references)
            return read if module is None else module(read)
        assert module is not None
        dtype = next(module.parameters()).dtype
        embedding = samples.embedding.to(dtype)
        if target.kind == "pairwise":
            return module(embedding, embedding if references is samples else references.embedding.to(dtype))
        return module(embedding)

    def _from_clades(self, target: BaseTarget, samples: SampleSummary, references: SampleSummary) -> Tensor:
        assert self.clade_head is not None
        if target.clades == "abundance":
            assert samples.abundance is not None and references.abundance is not None
            return self.clade_head(target, samples.abundance, references.abundance)
        assert samples.presence is not None and references.presence is not None
        return self.clade_head(target, samples.presence, references.presence)

    def _with_weights(self, target: BaseTarget) -> tuple[str, ...]:
        """The heads of a target that have weights of its own, kept in ``target_heads``."""
        heads = self.heads(target)
        if target.kind == "pairwise":
            heads = () if target.name == "unifrac" else tuple(head for head in heads if head == "euclidean")
        return heads

    def _new_head(self, target: BaseTarget, head: str) -> nn.Module:
        if target.kind == "pairwise":
            return EuclideanHead(self.dim, upper=target.upper)
        if target.kind == "value":
            return CladeValueHead() if head == "clade" else ValueHead(self.dim)
        assert isinstance(target, Composition)
        return CompositionHead(self.dim, len(target.parts))

    def _head(self, target: BaseTarget, head: str) -> nn.Module | None:
        """The weights of a target's own in this head; None where it has none."""
        if target.name == "unifrac":
            return self.euclidean_head if head == "euclidean" else None
        if head not in self._with_weights(target):
            return None
        of_target = self.target_heads[target.name]
        assert isinstance(of_target, nn.ModuleDict)
        return of_target[head]


def abundance_means(asv_embeddings: Tensor, batch: SampleBatch) -> Tensor:
    """Means of a sample's ASV embeddings (B, 2 D): weighted by relative abundance, and by its logarithm.

    An ASV with a share ``p`` of the reads weighs log(1 + 10,000 p) in the second, so that rare ones are heard too.
    """
    shares = _shares(batch)
    logs = torch.log1p(1e4 * shares)
    weights = torch.stack([shares, logs / logs.sum(dim=1, keepdim=True)], dim=1)  # (B, 2, S)
    with without_autocast(asv_embeddings):
        embeddings = F.embedding(batch.asv_index, at_least_float32(asv_embeddings))  # (B, S, D)
        return torch.matmul(weights.to(embeddings.dtype), embeddings).flatten(1)


def _shares(batch: SampleBatch) -> Tensor:
    """Relative abundances (B, S), 0 at padding."""
    return batch.counts / batch.depth[:, None]
