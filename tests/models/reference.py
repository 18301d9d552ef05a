"""The oracle: a plain padded implementation of the model, which shares weights with the real one and nothing else.

Every occurrence of an ASV is encoded by itself, padded to ``max_bp + 1`` tokens; every sample has ``token_limit``
places, most of them empty. Attention is ``softmax(Q K^T / sqrt(d) + mask) V`` written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS = {letter: number for number, letter in enumerate(".ACGT^?N")}  # PAD, bases, START, MASK, N
Sample = dict[str, float]  # sequence to count


def additive(real: Tensor) -> Tensor:
    """0 where real, minus infinity where not."""
    return torch.zeros(real.shape, dtype=torch.float64).masked_fill(~real, -torch.inf)


def gelu(x: Tensor) -> Tensor:
    """Exact, with the error function."""
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@dataclass
class ReferenceOutput:
    """What the reference makes of samples."""

    asvs: Tensor  # (B, token_limit, D)
    embedding: Tensor  # (B, D)
    presence: Tensor | None  # (B, K)
    target: Tensor | None  # (B, C)
    distances: dict[str, Tensor]  # by head, (B, B)


@dataclass
class Reference:
    """The model as a function of its weights, float64."""

    weights: dict[str, Tensor]
    heads: int
    layers: int
    max_bp: int
    count_embedding: str
    token_limit: int = 12
    base: str = "encoder."  # what the names of the encoder's weights begin with
    sharpness: float = 4.0

    # ------------------------------------------------------------------------------------------------------- layers

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, x: Tensor, real: Tensor) -> Tensor:
        width = x.shape[-1]
        size = width // self.heads
        queries, keys, values = self.linear(f"{name}.qkv", x).split(width, dim=-1)
        heads = []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[..., part] @ keys[..., part].transpose(-1, -2) / size**0.5
            heads.append(torch.softmax(scores + additive(real)[:, None, :], dim=-1) @ values[..., part])
        return self.linear(f"{name}.out", torch.cat(heads, dim=-1))

    def transformer(self, name: str, x: Tensor, real: Tensor) -> Tensor:
        for layer in range(self.layers):
            block = f"{name}.blocks.{layer}"
            x = x + self.attention(f"{block}.attention", self.norm(f"{block}.norm_attention", x), real)
            hidden = gelu(self.linear(f"{block}.expand", self.norm(f"{block}.norm_feed_forward", x)))
            x = x + self.linear(f"{block}.contract", hidden)
        return self.norm(f"{name}.norm", x)

    def pool(self, name: str, x: Tensor, real: Tensor) -> Tensor:
        scores = self.linear(f"{name}.score", x) + additive(real)[:, :, None]
        size = x.shape[-1] // self.heads
        pooled = []
        for head in range(self.heads):
            weight = torch.softmax(scores[:, :, head], dim=1)
            pooled.append((weight[:, :, None] * x[:, :, head * size : (head + 1) * size]).sum(dim=1))
        return self.linear(f"{name}.out", torch.cat(pooled, dim=-1))

    # ----------------------------------------------------------------------------------------------------- encoders

    def tokens(self, sequences: list[str]) -> Tensor:
        rows = [("^" + sequence).ljust(self.max_bp + 1, ".") for sequence in sequences]
        return torch.tensor([[TOKENS[letter] for letter in row] for row in rows])

    def encode_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Every nucleotide in its context (n, max_bp + 1, D), and which are real."""
        name = f"{self.base}asv_encoder"
        scale = self.weights[f"{name}.position_scale.weight"]
        x = self.weights[f"{name}.token_embedding.weight"][tokens] * scale
        x = x + self.weights[f"{name}.position_shift.weight"]
        return self.transformer(f"{name}.transformer", x, tokens != 0), tokens != 0

    def places(self, samples: list[Sample]) -> tuple[list[str], Tensor]:
        """The sequence of every place, "" where empty, and the counts (B, token_limit)."""
        sequences: list[str] = []
        counts = torch.zeros(len(samples), self.token_limit, dtype=torch.float64)
        for b, sample in enumerate(samples):
            assert len(sample) <= self.token_limit
            sequences += list(sample) + [""] * (self.token_limit - len(sample))
            counts[b, : len(sample)] = torch.tensor(list(sample.values()))
        return sequences, counts

    def encode_asvs(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        """Every occurrence of an ASV and every empty place (B, token_limit, D), and the counts."""
        sequences, counts = self.places(samples)
        name = f"{self.base}asv_encoder"
        pooled = self.pool(f"{name}.pooling", *self.encode_tokens(self.tokens(sequences)))
        reference = self.weights[f"{name}.reference_tokens"].long()
        normal = self.pool(f"{name}.pooling", *self.encode_tokens(reference))
        mean = normal.mean(dim=0)
        variance = ((normal - mean) ** 2).mean(dim=0)
        asvs = (pooled - mean) / (variance + 1e-5) ** 0.5
        return asvs.view(len(samples), self.token_limit, -1), counts

    def log_abundances(self, counts: Tensor, depth: list[float]) -> Tensor:
        """Standardised by the buffers."""
        name = f"{self.base}sample_encoder.abundance"
        logs = torch.zeros_like(counts)
        for b, row in enumerate(counts):
            for place, count in enumerate(row):
                if count > 0:
                    logs[b, place] = torch.log(count / depth[b])
        return (logs - self.weights[f"{name}.mean"]) / self.weights[f"{name}.sd"]

    def encode_in_samples(
        self, asvs: Tensor, counts: Tensor, depth: list[float], hidden: Tensor | None = None
    ) -> Tensor:
        name = f"{self.base}sample_encoder"
        x = asvs
        if self.count_embedding != "none":
            first = self.linear(f"{name}.abundance.embed.0", self.log_abundances(counts, depth)[:, :, None])
            abundance = self.linear(f"{name}.abundance.embed.2", gelu(first))
            if hidden is not None:
                masked = self.weights[f"{name}.abundance.masked"]
                abundance = torch.where(hidden[:, :, None], masked, abundance)
            if self.count_embedding == "add":
                x = asvs + abundance
            elif self.count_embedding == "concat":
                x = self.linear(f"{name}.abundance.join", torch.cat([asvs, abundance], dim=-1))
            else:
                film = self.linear(f"{name}.abundance.join", abundance)
                width = asvs.shape[-1]
                x = asvs + asvs * film[..., :width] + film[..., width:]
        return self.transformer(f"{name}.transformer", x, counts > 0)

    def forward(self, samples: list[Sample], depth: list[float] | None = None) -> ReferenceOutput:
        depth = depth or [sum(sample.values()) for sample in samples]
        asvs, counts = self.encode_asvs(samples)
        real = counts > 0
        in_samples = self.encode_in_samples(asvs, counts, depth)
        pooled = self.pool(f"{self.base}pooling", self.transformer(f"{self.base}transformer", in_samples, real), real)
        if f"{self.base}abundance_projection.weight" in self.weights:
            pooled = pooled + self.linear(f"{self.base}abundance_projection", self.abundance_means(asvs, counts, depth))
        presence = None
        distances: dict[str, Tensor] = {}
        if f"{self.base}clade_head.log_weights" in self.weights:
            memberships = torch.sigmoid(self.sharpness * self.linear(f"{self.base}clade_head.membership", asvs))
            presence = torch.stack(
                [memberships[b, : len(sample)].max(dim=0).values for b, sample in enumerate(samples)]
            )
            pooled = pooled + self.linear(f"{self.base}presence_projection", presence)
            distances["clade"] = self.clade_distances(presence)
        embedding = self.norm(f"{self.base}norm", pooled)
        if f"{self.base}euclidean_head.log_scale" in self.weights:
            distances["euclidean"] = self.euclidean_distances(embedding)
        target = None
        if "target_head.layers.0.weight" in self.weights:
            target = self.linear("target_head.layers.3", gelu(self.linear("target_head.layers.0", embedding)))
        return ReferenceOutput(asvs, embedding, presence, target, distances)

    def abundance_means(self, asvs: Tensor, counts: Tensor, depth: list[float]) -> Tensor:
        means = []
        for embeddings, row, reads in zip(asvs, counts, depth, strict=True):
            logs = [math.log(1 + 10_000 * float(count) / reads) for count in row]
            by_share = sum(x * (float(count) / reads) for x, count in zip(embeddings, row, strict=True))
            by_log = sum(x * log for x, log in zip(embeddings, logs, strict=True)) / sum(logs)
            means.append(torch.cat([by_share, by_log]))
        return torch.stack(means)

    # -------------------------------------------------------------------------------------------------------- heads

    def clade_distances(self, presence: Tensor) -> Tensor:
        lengths = torch.log1p(torch.exp(self.weights[f"{self.base}clade_head.log_weights"]))
        rows = []
        for a in presence:
            shared = [(lengths * torch.maximum(a, b)).sum() for b in presence]
            unshared = [(lengths * (a - b).abs()).sum() for b in presence]
            rows.append(torch.stack([x / y for x, y in zip(unshared, shared, strict=True)]))
        return torch.stack(rows)

    def euclidean_distances(self, embedding: Tensor) -> Tensor:
        projected = self.linear(f"{self.base}euclidean_head.projection", embedding)
        scale = self.weights[f"{self.base}euclidean_head.log_scale"].exp()
        zero = torch.zeros((), dtype=torch.float64)
        rows = []
        for i, a in enumerate(projected):
            row = [zero if i == j else ((a - b) ** 2).sum().sqrt() for j, b in enumerate(projected)]
            rows.append(torch.tanh(torch.stack(row) / scale))
        return torch.stack(rows)

    def nucleotide_logits(self, masked: list[str]) -> Tensor:
        """Logits (P, 8) of every ``?``, sequence by sequence."""
        x, _ = self.encode_tokens(self.tokens(masked))
        places = [(i, 1 + j) for i, sequence in enumerate(masked) for j, letter in enumerate(sequence) if letter == "?"]
        return self.linear(f"{self.base}nucleotide_head", torch.stack([x[i, j] for i, j in places]))

    def restored_counts(self, samples: list[Sample], hidden: Tensor) -> Tensor:
        """Standardised log abundances (B, token_limit) with those at ``hidden`` withheld."""
        asvs, counts = self.encode_asvs(samples)
        depth = [sum(sample.values()) for sample in samples]
        return self.linear("count_head", self.encode_in_samples(asvs, counts, depth, hidden))[..., 0]

    # ------------------------------------------------------------------------------------------------------- losses

    def target_loss(self, output: ReferenceOutput, values: Tensor) -> Tensor:
        assert output.target is not None
        return ((output.target[:, 0] - values) ** 2).mean()

    def distance_loss(self, output: ReferenceOutput, actual: Tensor, variance: float) -> Tensor:
        """Of all heads, each pair once."""
        n = len(actual)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        per_head = [
            torch.stack([(predicted[i, j] - actual[i, j]) ** 2 for i, j in pairs]).mean() / variance
            for predicted in output.distances.values()
        ]
        return torch.stack(per_head).sum()

    def nucleotide_loss(self, masked: list[str], true: list[str]) -> Tensor:
        logs = self.nucleotide_logits(masked).log_softmax(dim=-1)
        hidden = [
            TOKENS[true[i][j]]
            for i, sequence in enumerate(masked)
            for j, letter in enumerate(sequence)
            if letter == "?"
        ]
        return -torch.stack([logs[p, token] for p, token in enumerate(hidden)]).mean()

    def count_loss(self, samples: list[Sample], hidden: Tensor) -> Tensor:
        _, counts = self.places(samples)
        depth = [sum(sample.values()) for sample in samples]
        errors = self.restored_counts(samples, hidden) - self.log_abundances(counts, depth)
        return (errors[hidden] ** 2).mean()
