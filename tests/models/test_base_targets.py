from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from aam.data.batch import padded_layout
from aam.data.dataset import BatchKey, DatasetOptions
from aam.data.tokenizer import PAD, tokenize
from aam.models import distances
from aam.models.base_targets import (
    Aitchison,
    BaseTarget,
    BrayCurtis,
    FaithPD,
    GeneralizedUniFrac,
    Jaccard,
    Taxonomy,
    UniFrac,
    WeightedUniFrac,
    base_target,
    base_target_class,
    base_target_names,
    register,
    require_readable,
    targets_of,
)
from aam.models.sequence_encoder import Level, SampleSummary, SequenceEncoder
from tests.conftest import MAX_BP, TinyStudy

PAIRWISE = [
    UniFrac(),
    WeightedUniFrac(),
    GeneralizedUniFrac(0.0),
    GeneralizedUniFrac(0.5),
    GeneralizedUniFrac(1.0),
    BrayCurtis(),
    Jaccard(),
]
ALL = [*PAIRWISE[:2], PAIRWISE[3], *PAIRWISE[5:], Aitchison(), FaithPD(), Taxonomy(("a", "b", "other"))]
DEPTH = 200
by_name = pytest.mark.parametrize("target", PAIRWISE, ids=repr)


def encoder_with(*targets: BaseTarget, dim: int = 8, clades: int = 6, head: str = "both") -> SequenceEncoder:
    torch.manual_seed(0)
    options: dict[str, Any] = {"distance_head": head, "clades": clades, "max_bp": MAX_BP}
    return SequenceEncoder(dim=dim, heads=2, layers=1, targets=targets, **options)


# ----------------------------------------------------------------------------------------------------------- registry


def test_the_registry_has_the_targets_of_the_design():
    expected = "unifrac weighted_unifrac generalized_unifrac bray_curtis jaccard aitchison faith_pd taxonomy combined"
    assert base_target_names() == tuple(expected.split())
    kinds = {name: base_target_class(name).kind for name in base_target_names()}
    assert {kind for name, kind in kinds.items() if name not in ("faith_pd", "taxonomy", "combined")} == {"pairwise"}
    assert (kinds["faith_pd"], kinds["taxonomy"], kinds["combined"]) == ("value", "composition", "several")


def test_names_are_known_without_torch():
    code = "import sys; from aam.models.base_targets import base_target_names as n; assert n(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "reason"), [("unifrac", "already"), ("Uni Frac", "lower-case"), ("a.b", "lower-case")]
)
def test_a_name_that_cannot_be_registered_is_refused(name, reason):
    @dataclass(frozen=True)
    class Other(BaseTarget):
        pass

    Other.name = name
    with pytest.raises(ValueError, match=reason):
        register(Other)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'unifrag'; there are unifrac, weighted_unifrac, .*combined"):
        base_target("unifrag")


@pytest.mark.parametrize("target", ALL, ids=repr)
def test_a_target_is_made_again_from_what_is_stored(target):
    stored = target.to_dict()
    stored = {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}  # as in JSON
    assert base_target(**stored) == target


def test_which_targets_are_learnt():
    labelled = ["taxonomy", "faith_pd", "unifrac"]
    assert targets_of("combined", labelled) == ("unifrac", "faith_pd", "taxonomy")
    assert targets_of("faith_pd", labelled) == ("faith_pd",)
    assert targets_of("jaccard", labelled) == ()


def test_what_is_not_read_from_clades_needs_the_other_head():
    with pytest.raises(ValueError, match=r"aitchison.*--distance-head clade"):
        require_readable("aitchison", "clade")
    for name in base_target_names():
        require_readable(name, "both")
        require_readable(name, "euclidean")
    require_readable("taxonomy", "clade")


# -------------------------------------------------------------------------------------------------- a tree as clades


class Tree:
    """A random tree of 12 tips, samples over them, and a clade head whose clades are its branches."""

    def __init__(self, seed: int = 0) -> None:
        from skbio import TreeNode

        rng = np.random.default_rng(seed)
        subtrees = [f"t{i}:{rng.uniform(0.1, 2):.6f}" for i in range(12)]
        while len(subtrees) > 2:
            a, b = (subtrees.pop(int(rng.integers(len(subtrees)))) for _ in range(2))
            subtrees.append(f"({a},{b}):{rng.uniform(0.1, 2):.6f}")
        self.tree = TreeNode.read(StringIO(f"({','.join(subtrees)});"))
        self.taxa = [f"t{i}" for i in range(12)]
        nodes = list(self.tree.traverse(include_self=False))
        below = [{tip.name for tip in node.tips(include_self=True)} for node in nodes]
        members = torch.tensor([[float(tip in tips) for tips in below] for tip in self.taxa])  # (tips, branches)
        self.counts = np.zeros((6, 12), dtype=np.int64)
        for sample in self.counts:
            chosen = rng.choice(12, rng.integers(1, 7), replace=False)
            sample[chosen] = rng.multinomial(DEPTH - len(chosen), rng.dirichlet(np.ones(len(chosen)))) + 1
        self.counts[5] = self.counts[4]

        self.head = distances.CladeHead(dim=12, clades=len(nodes)).double()
        lengths = torch.tensor([node.length for node in nodes], dtype=torch.float64)
        with torch.no_grad():
            self.head.membership.weight.copy_((400 * members - 200).T)  # a sigmoid of this is 0 or 1
            self.head.membership.bias.zero_()
            self.head.log_weights.copy_(lengths.expm1().log())
        self.index = torch.arange(12).expand(6, 12)
        self.asvs = torch.eye(12, dtype=torch.float64)

    @property
    def summary(self) -> SampleSummary:
        counts = torch.from_numpy(self.counts).double()
        presence = self.head.presence(self.asvs, self.index, counts > 0)
        abundance = self.head.abundance(self.asvs, self.index, counts / DEPTH)
        return SampleSummary(torch.zeros(6, 12, dtype=torch.float64), presence, abundance)

    def read(self, target: BaseTarget, references: slice = slice(None)) -> np.ndarray:
        encoder = encoder_with(target, dim=12, clades=self.index.shape[1])
        encoder.clade_head = self.head
        return encoder.read(target, self.summary, self.summary.rows(references))["clade"].detach().numpy()

    def naive_generalized(self, alpha: float) -> np.ndarray:
        found = np.zeros((6, 6))
        for i, j in np.ndindex(6, 6):
            above = below = 0.0
            for node in self.tree.traverse(include_self=False):
                tips = [self.taxa.index(tip.name) for tip in node.tips(include_self=True)]
                a, b = (self.counts[row, tips].sum() / DEPTH for row in (i, j))
                if a + b > 0:
                    above += node.length * (a + b) ** alpha * abs(a - b) / (a + b)
                    below += node.length * (a + b) ** alpha
            found[i, j] = above / below
        return found


@pytest.fixture(scope="module", params=[0, 1])
def tree(request: pytest.FixtureRequest) -> Tree:
    return Tree(request.param)


def scikit_bio(metric: str, tree: Tree, **options: Any) -> np.ndarray:
    from skbio.diversity import beta_diversity

    return beta_diversity(metric, tree.counts, taxa=tree.taxa, tree=tree.tree, **options).data


def test_branches_as_clades_give_unweighted_unifrac(tree):
    np.testing.assert_allclose(tree.read(UniFrac()), scikit_bio("unweighted_unifrac", tree), atol=1e-7)


def test_branches_as_clades_give_normalised_weighted_unifrac(tree):
    expected = scikit_bio("weighted_unifrac", tree, normalized=True)
    np.testing.assert_allclose(tree.read(WeightedUniFrac()), expected, atol=1e-7)
    np.testing.assert_allclose(tree.read(GeneralizedUniFrac(alpha=1.0)), expected, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_branches_as_clades_give_generalised_unifrac(alpha, tree):
    np.testing.assert_allclose(tree.read(GeneralizedUniFrac(alpha)), tree.naive_generalized(alpha), atol=1e-9)


def test_branches_as_clades_give_faiths_pd(tree):
    from skbio.diversity import alpha_diversity

    expected = alpha_diversity("faith_pd", tree.counts, taxa=tree.taxa, tree=tree.tree)
    np.testing.assert_allclose(tree.read(FaithPD()), expected, rtol=1e-7)


def test_tips_as_clades_give_bray_curtis_and_jaccard(tree):
    tips = Tree()
    tips.counts = tree.counts
    tips.head = distances.CladeHead(dim=12, clades=12).double()
    with torch.no_grad():
        tips.head.membership.weight.copy_(400 * torch.eye(12) - 200)
        tips.head.membership.bias.zero_()
    np.testing.assert_allclose(tips.read(BrayCurtis()), squareform(pdist(tree.counts, "braycurtis")), atol=1e-9)
    np.testing.assert_allclose(tips.read(Jaccard()), squareform(pdist(tree.counts > 0, "jaccard")), atol=1e-9)


@by_name
def test_stripes_are_blocks_of_pairs(target, tree):
    np.testing.assert_allclose(tree.read(target, slice(1, 3)), tree.read(target)[:, 1:3], atol=1e-12)


@pytest.mark.parametrize("limit", [50, 2])
def test_abundance_is_the_sum_over_a_samples_reads_in_any_layout(limit, unequal_study: TinyStudy):
    encoder = encoder_with(WeightedUniFrac()).double()
    batch = unequal_study.dataset(DatasetOptions(token_limit=limit))[BatchKey(0, (3, 0, 4))]
    head, found = encoder.clade_head, encoder(batch).abundance
    for row, sample in enumerate((3, 0, 4)):
        expected = torch.zeros(6, dtype=torch.float64)
        ranked = sorted(unequal_study.samples[sample].items(), key=lambda item: (-item[1], item[0]))
        for sequence, count in ranked[:limit]:
            tokens = torch.from_numpy(tokenize([sequence], MAX_BP))
            embedding = encoder.asv_encoder(tokens, bool((tokens == PAD).any()))[0]
            member = torch.sigmoid(4 * (head.membership.weight @ embedding + head.membership.bias))
            expected += count / sum(unequal_study.samples[sample].values()) * member
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(encoder(padded_layout(batch)).abundance, found)


def test_what_a_token_limit_leaves_out_is_in_no_clade(tree):
    counts = torch.from_numpy(tree.counts).double()
    kept = counts.argsort(dim=1, descending=True)[:, :2]
    found = tree.head.abundance(tree.asvs, kept, counts.gather(1, kept) / DEPTH)
    assert (found <= tree.summary.abundance + 1e-12).all()
    assert (found.amax(dim=1) < 1).any()


# ---------------------------------------------------------------------------------------------------------- gradients


def memberships(seed: int, samples: int = 3, clades: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, clades, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("target", [*PAIRWISE, FaithPD()], ids=repr)
def test_gradients_are_those_of_differences(target):
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(target.from_clades, (memberships(0), memberships(1), weights))


@by_name
def test_gradients_are_finite_at_identical_and_empty_samples(target):
    x = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 1.0], [0.4, 0.0, 1.0], [1.0, 1.0, 1.0]], requires_grad=True)
    weights = torch.ones(3, requires_grad=True)
    found = target.from_clades(x, x, weights)
    found.sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all() and weights.grad.isfinite().all()
    assert (found.diagonal() == 0).all() and found[1, 2] == 0
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()


def test_generalised_unifrac_in_chunks(monkeypatch):
    def found() -> list[torch.Tensor]:
        a, b, weights = memberships(0, 7), memberships(1, 5), torch.ones(4, dtype=torch.float64, requires_grad=True)
        read = distances.generalized_clade_distances(a, b, weights, 0.5)
        (read**2).sum().backward()
        return [read.detach(), a.grad, b.grad, weights.grad]

    whole = found()
    for most in (1, 45):  # one row at a time; two
        monkeypatch.setattr(distances, "_MOST_ELEMENTS", most)
        for part, expected in zip(found(), whole, strict=True):
            torch.testing.assert_close(part, expected)


# -------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("target", "head", "expected"),
    [
        (UniFrac(), "both", ("clade", "euclidean")),
        (FaithPD(), "both", ("clade", "euclidean")),
        (FaithPD(), "euclidean", ("euclidean",)),
        (Aitchison(), "both", ("euclidean",)),
        (Aitchison(), "euclidean", ("euclidean",)),
        (WeightedUniFrac(), "clade", ("clade",)),
        (Taxonomy(("a",)), "clade", ("euclidean",)),
    ],
    ids=repr,
)
def test_which_heads_read_a_target(target, head, expected, unequal_study: TinyStudy):
    encoder = encoder_with(target, head=head)
    assert encoder.heads(target) == expected
    batch = unequal_study.dataset()[BatchKey(0, (0, 1, 2))]
    encoded = encoder(batch)
    assert tuple(encoder.read(target, encoded.summary)) == expected
    assert (encoded.abundance is not None) == (target.clades == "abundance" and "clade" in expected)


@pytest.mark.parametrize("target", ALL, ids=repr)
def test_half_precision_stops_before_what_is_read(target, unequal_study: TinyStudy):
    encoder = encoder_with(target).eval()
    batch = unequal_study.dataset()[BatchKey(0, (0, 1, 2, 3))]
    with torch.no_grad():
        expected = encoder.read(target, encoder(batch).summary)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = encoder.read(target, encoder(batch).summary)
    for head, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, expected[head], rtol=0.1, atol=0.1)


def test_the_clades_are_shared_and_all_else_is_a_targets_own():
    together = encoder_with(UniFrac(), WeightedUniFrac(), FaithPD()).state_dict()
    assert {name.split(".")[0] for name in together.keys() - encoder_with(UniFrac()).state_dict().keys()} == {
        "target_heads"
    }
    assert {name.split(".")[1] for name in together if name.startswith("target_heads")} == {
        "weighted_unifrac",
        "faith_pd",
    }


def test_an_unbounded_distance_is_in_proportion_to_that_of_embeddings():
    head = distances.EuclideanHead(4, scale=0.5, upper=None)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    projected = head.projection(x).detach().numpy()
    expected = np.linalg.norm(projected[:, None] - projected[None], axis=-1) / 0.5
    np.testing.assert_allclose(head(x, x).detach(), expected, rtol=1e-5, atol=1e-6)
    head.calibrate(x, 40.0)
    assert distances.mean_of_pairs(head(x, x)) == pytest.approx(40, rel=1e-5)


def test_mean_of_pairs_is_of_those_that_are_known():
    matrix = torch.tensor([[0.0, 1.0, torch.nan], [9.0, 0.0, 4.0], [9.0, 9.0, 0.0]])
    assert distances.mean_of_pairs(matrix) == 2.5
    assert np.isnan(distances.mean_of_pairs(matrix[:1, :1]))


@pytest.mark.parametrize("target", ALL, ids=repr)
def test_a_fresh_network_starts_at_the_level_of_real_values(target, unequal_study: TinyStudy):
    encoder = encoder_with(target, clades=64)
    encoder.asv_encoder.set_reference(torch.from_numpy(unequal_study.tokens[:, 1:]))
    batch = unequal_study.dataset()[BatchKey(0, (0, 1, 2, 3, 4))]
    mean = {"pairwise": 0.6, "value": 130.0, "composition": [0.5, 0.4, 0.1]}[target.kind]
    mean = 17.0 if target.name == "aitchison" else mean
    encoder.calibrate(batch, {target.name: Level(torch.tensor(mean), sd=20.0)})
    with torch.no_grad():
        read = encoder.read(target, encoder(batch).summary)
    for head, values in read.items():
        if target.kind == "pairwise":
            assert distances.mean_of_pairs(values) == pytest.approx(mean, rel=0.2), head
        elif target.kind == "value":
            assert values.mean().item() == pytest.approx(mean, abs=1e-3 if head == "clade" else 30), head
        else:
            assert values.exp().sum(dim=1) == pytest.approx(1)
            np.testing.assert_allclose(values.exp().mean(dim=0), mean, atol=0.25)
