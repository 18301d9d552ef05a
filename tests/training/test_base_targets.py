"""Every base target through a task: losses, metrics, studies, references, and one that a user makes up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from aam.config import ModelConfig, RunConfig, TaskConfig
from aam.data.batch import Batch
from aam.data.dataset import BatchKey, BatchPlan, DatasetOptions
from aam.data.labels import CompositionLabels, Labels, PairLabels, ValueLabels
from aam.errors import DataError
from aam.models import base_targets
from aam.models.base_targets import (
    Aitchison,
    BaseTarget,
    FaithPD,
    Taxonomy,
    UniFrac,
    WeightedUniFrac,
    base_target,
    base_target_class,
    base_target_names,
    register,
    targets_of,
)
from aam.models.distances import mean_of_pairs
from aam.models.sequence_encoder import Level, SequenceEncoder
from aam.training.checkpoint import (
    build_encoder,
    load_base,
    load_model_file,
    load_weights,
    read_base_targets,
    reference_length,
    save_model_file,
    without_base_heads,
)
from aam.training.tasks import Evaluation, LabelledTarget, PretrainTask
from tests.conftest import MAX_BP, TinyStudy
from tests.training.tiny import MODEL

REGRESSION = {"mae", "rmse", "r2", "spearman"}
SINGLE = [name for name in base_target_names() if base_target_class(name).kind != "several"]


@pytest.fixture(scope="module")
def study() -> TinyStudy:
    return TinyStudy([12] * 9, samples=8, seed=3)


def labels_of(study: TinyStudy, name: str) -> Labels:
    """True ones, or of the same form."""
    shares = study.counts / study.counts.sum(axis=1, keepdims=True)
    kind = base_target_class(name).kind
    if kind == "value":
        return ValueLabels((study.counts > 0).sum(axis=1).astype(np.float32) * 10)
    if kind == "composition":
        taxa = np.add.reduceat(shares, [0, 4, 6], axis=1).astype(np.float32)
        return CompositionLabels(taxa, ("x", "y", "other"))
    if name == "aitchison":
        logs = np.log(study.counts + 1)
        return PairLabels(squareform(pdist(logs - logs.mean(axis=1, keepdims=True))).astype(np.float32))
    if base_target_class(name).clades == "presence":
        return PairLabels(squareform(pdist(study.counts > 0, "jaccard")).astype(np.float32))
    return PairLabels(squareform(pdist(shares, "braycurtis")).astype(np.float32))


def labelled(study: TinyStudy, *names: str, labels: dict[str, Labels] | None = None) -> dict[str, LabelledTarget]:
    found = {}
    for name in names:
        known = (labels or {}).get(name) or labels_of(study, name)
        target = base_target(name, parts=known.names if isinstance(known, CompositionLabels) else ())
        found[name] = LabelledTarget.of(target, known, np.arange(len(study)))
    return found


def task_of(study: TinyStudy, targets: dict[str, LabelledTarget], head: str = "both", **options: Any) -> PretrainTask:
    torch.manual_seed(0)
    config = MODEL.model_copy(update={"distance_head": head, "clades": 12})
    encoder = build_encoder(config, [known.target for known in targets.values()])
    encoder.asv_encoder.set_reference(torch.from_numpy(study.tokens[:, 1:]))
    if options.pop("calibrate", True):
        levels = {
            name: Level(
                torch.tensor(mean_of_pairs(torch.from_numpy(known.labels.values)))
                if isinstance(known.labels, PairLabels)
                else torch.from_numpy(known.mean).float(),
                math.sqrt(known.scale),
            )
            for name, known in targets.items()
        }
        encoder.eval()
        encoder.calibrate(study.dataset()[BatchKey(0, tuple(range(len(study))))], levels)
    config = TaskConfig(**({"nuc_weight": 0.0} | options.pop("config", {})))
    return PretrainTask(encoder, config, targets, seed=0, **options)


def batch_of(study: TinyStudy, targets: dict[str, LabelledTarget], samples: tuple[int, ...] | None = None) -> Batch:
    labels = {name: known.labels for name, known in targets.items()}
    return study.dataset(DatasetOptions(), labels=labels)[BatchKey(0, samples or tuple(range(len(study))))]


def judge(study: TinyStudy, task: PretrainTask, batch_size: int) -> Evaluation:
    labels = {name: known.labels for name, known in task.labelled.items()}
    dataset = study.dataset(DatasetOptions(), labels=labels)
    task.model.eval()
    return task.judge(dataset[key] for key in BatchPlan(np.arange(len(study)), batch_size, False, seed=0))


def train(task: PretrainTask, batch: Batch, steps: int, lr: float = 1e-2) -> list[dict[str, float]]:
    optimizer = torch.optim.Adam(task.model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        loss = task.loss(batch)
        history.append({name: part.item() for name, part in loss.parts.items()} | {"loss": loss.total.item()})
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return history


# --------------------------------------------------------------------------------------------------------- each target


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (name, head)
        for name in SINGLE
        for head in ("both", "clade", "euclidean")
        if (name, head) != ("aitchison", "clade")  # there is no such reading
    ],
)
def test_each_target_is_learnt(name, head, study):
    targets = labelled(study, name)
    task = task_of(study, targets, head)
    history = train(task, batch_of(study, targets), 100, lr=3e-3)
    for part, value in history[-1].items():
        assert value < 0.8 * history[0][part], part
    evaluation = judge(study, task, 3)
    assert all(evaluation.metrics[f"{reading}_r2"] > 0.2 for reading in task.reading_names)


@pytest.mark.parametrize("name", SINGLE)
def test_names_and_batch_size(name, study):
    targets = labelled(study, name)
    task = task_of(study, targets)
    expected = judge(study, task, len(study))
    readings = [name] if name in ("aitchison", "taxonomy") else [name, f"{name}_euclidean"]
    kinds = {"bray_curtis", "r2"} if name == "taxonomy" else REGRESSION
    assert list(task.reading_names) == list(expected.readings) == readings
    assert set(expected.losses) == {"loss", *(f"{reading}_loss" for reading in readings)}
    assert set(expected.metrics) == {f"{reading}_{metric}" for reading in readings for metric in kinds}
    loss = task.loss(batch_of(study, targets))
    assert {"loss": loss.total.item()} | {part: value.item() for part, value in loss.parts.items()} == pytest.approx(
        expected.losses, rel=1e-5
    )
    for batch_size in (1, 3):
        found = judge(study, task, batch_size)
        assert found.losses == pytest.approx(expected.losses, rel=1e-4)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)


def test_all_at_once(study):
    names = targets_of("combined", SINGLE)
    assert list(names) == SINGLE
    targets = labelled(study, *names)
    task = task_of(study, targets, config={"unifrac_weight": 0.5})
    batch = batch_of(study, targets)
    first = task.loss(batch)
    assert list(first.parts) == [f"{name}_loss" for name in task.reading_names]
    assert first.total.item() == pytest.approx(0.5 * sum(part.item() for part in first.parts.values()), rel=1e-5)
    history = train(task, batch, 40)
    for part, value in history[-1].items():
        assert value < 0.9 * history[0][part], part


def test_several_targets_move_one_tree(study):
    """The branch lengths get gradients from each of them."""
    for name in ("unifrac", "weighted_unifrac", "generalized_unifrac", "faith_pd"):
        targets = labelled(study, name)
        task = task_of(study, targets, "clade")
        task.loss(batch_of(study, targets)).total.backward()
        head = task.encoder.clade_head
        assert head.log_weights.grad.abs().max() > 0 and head.membership.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", SINGLE)
def test_the_loss_of_the_best_constant_is_one(name, study):
    known = labelled(study, name)[name]
    actual = known.labels.batch(np.arange(len(study)))
    if name == "taxonomy":
        entropy = -np.where(actual > 0, actual * np.log(np.maximum(actual, 1e-30)), 0).sum(axis=1)
        cross = -(actual * np.log(known.mean)).sum(axis=1)
        assert known.scale == pytest.approx((cross - entropy).mean(), rel=1e-5)
    else:
        values = actual if name == "faith_pd" else actual[np.triu_indices(len(study), 1)]
        assert known.scale == pytest.approx(values.astype(float).var(), rel=1e-6)
        assert known.mean == pytest.approx(values.astype(float).mean(), rel=1e-6)


def test_taxonomy_metrics_are_those_of_the_samples(study):
    task = task_of(study, labelled(study, "taxonomy"))
    found = judge(study, task, 3)
    reading = found.readings["taxonomy"]
    actual = labels_of(study, "taxonomy").values
    np.testing.assert_array_equal(reading.actual, actual)
    np.testing.assert_allclose(reading.predicted.sum(axis=1), 1, rtol=1e-5)
    distances = [pdist([a, b], "braycurtis")[0] for a, b in zip(actual, reading.predicted, strict=True)]
    assert found.metrics["taxonomy_bray_curtis"] == pytest.approx(np.mean(distances), rel=1e-5)
    residual, total = ((actual - reading.predicted) ** 2).sum(), ((actual - actual.mean(axis=0)) ** 2).sum()
    assert found.metrics["taxonomy_r2"] == pytest.approx(1 - residual / total, rel=1e-5)


def test_a_sample_whose_values_are_unknown_is_left_out(study):
    values, shares = labels_of(study, "faith_pd").values.copy(), labels_of(study, "taxonomy").values.copy()
    values[[1, 4]], shares[2] = np.nan, np.nan
    labels = {"faith_pd": ValueLabels(values), "taxonomy": CompositionLabels(shares, ("x", "y", "other"))}
    targets = labelled(study, "faith_pd", "taxonomy", labels=labels)
    assert targets["faith_pd"].scale == pytest.approx(np.nanvar(values.astype(float)), rel=1e-6)
    task = task_of(study, targets)
    whole = task.loss(batch_of(study, targets))
    whole.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())
    alone = task.loss(batch_of(study, targets, (0, 2, 3, 5, 6, 7)))
    assert whole.parts["faith_pd_loss"].item() == pytest.approx(alone.parts["faith_pd_loss"].item(), rel=1e-5)
    alone = task.loss(batch_of(study, targets, (0, 1, 3, 4, 5, 6, 7)))
    assert whole.parts["taxonomy_loss"].item() == pytest.approx(alone.parts["taxonomy_loss"].item(), rel=1e-5)
    found = judge(study, task, 3)
    assert len(found.readings["faith_pd"].actual) == 6 and len(found.readings["taxonomy"].actual) == 7
    assert found.losses["faith_pd_loss"] == pytest.approx(whole.parts["faith_pd_loss"].item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- studies


def test_pairs_of_different_studies_do_not_count(study):
    """Samples of two studies in turn: the loss is over pairs within each, and metrics are given by study too."""
    of_study = np.arange(len(study)) % 2
    values = labels_of(study, "unifrac").values.copy()
    values[of_study[:, None] != of_study] = np.nan
    targets = labelled(study, "unifrac", "faith_pd", labels={"unifrac": PairLabels(values)})
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8) if of_study[i] == of_study[j]]
    known = np.array([values[pair] for pair in pairs], dtype=float)
    assert targets["unifrac"].scale == pytest.approx(known.var(), rel=1e-6)

    task = task_of(study, targets, studies=of_study, study_names=("ecam", "mouse"))
    batch = batch_of(study, targets)
    predicted = task.encoder.read(UniFrac(), task.encoder(batch).summary)["clade"].detach().numpy()
    errors = np.array([predicted[pair] - values[pair] for pair in pairs], dtype=float)
    loss = task.loss(batch)
    assert loss.parts["unifrac_loss"].item() == pytest.approx((errors**2).mean() / known.var(), rel=1e-4)
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())

    found = judge(study, task, 3)
    assert found.losses["unifrac_loss"] == pytest.approx(loss.parts["unifrac_loss"].item(), rel=1e-5)
    assert found.metrics["unifrac_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    for place, name in enumerate(("ecam", "mouse")):
        within = np.array([of_study[i] == place for i, _ in pairs])
        assert found.metrics[f"unifrac_mae/{name}"] == pytest.approx(np.abs(errors[within]).mean(), rel=1e-4)
        alone = judge(study, task_of(study, targets), 3).readings["faith_pd"]
        here = np.abs(alone.predicted - alone.actual)[of_study == place]
        assert found.metrics[f"faith_pd_mae/{name}"] == pytest.approx(here.mean(), rel=1e-4)
    assert f"unifrac_euclidean_r2/{name}" in found.metrics


def test_a_batch_without_a_known_pair_has_a_loss_of_zero(study):
    values = np.full((8, 8), np.nan, dtype=np.float32)
    targets = labelled(study, "unifrac", labels={"unifrac": PairLabels(values)})
    task = task_of(study, targets, calibrate=False)
    loss = task.loss(batch_of(study, targets)).total
    loss.backward()
    assert loss.item() == 0
    assert judge(study, task, 3).readings == {}


def test_a_batch_may_lack_labels_of_which_it_knows_nothing(study):
    targets = labelled(study, "unifrac", "faith_pd")
    task = task_of(study, targets)
    batch = batch_of(study, targets)
    without = replace(batch, labels={"unifrac": batch.labels["unifrac"]})
    whole, found = task.loss(batch).parts, task.loss(without).parts
    assert {name: part.item() for name, part in found.items()} == {
        name: part.item() for name, part in whole.items() if name.startswith("unifrac")
    }
    assert list(task.judge([without]).readings) == ["unifrac", "unifrac_euclidean"]


# ------------------------------------------------------------------------------------------------------------- stripes


@dataclass(frozen=True)
class Stripes(PairLabels):
    """Distances to three reference samples; anything else must not be asked for."""

    def block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        assert set(columns) <= set(self.references)
        return super().block(rows, columns)


def with_references(study: TinyStudy, targets: dict[str, LabelledTarget], samples: tuple[int, ...]) -> Batch:
    """A batch of samples and, after them, the references 1, 4 and 6."""
    rows, references = np.array(samples), np.array([1, 4, 6])
    batch = study.dataset(DatasetOptions())[BatchKey(0, (*samples, 1, 4, 6))]
    labels = {
        name: torch.from_numpy(
            known.labels.block(rows, references)
            if isinstance(known.labels, PairLabels)
            else known.labels.batch(np.concatenate([rows, references]))
        )
        for name, known in targets.items()
    }
    return replace(batch, labels=labels, references=3)


def test_references_are_only_referred_to(study):
    stripes = Stripes(labels_of(study, "unifrac").values, references=np.array([1, 4, 6]))
    targets = labelled(study, "unifrac", "faith_pd", labels={"unifrac": stripes})
    task = task_of(study, targets, calibrate=False)
    samples = (0, 4, 7)  # as many as references, and one of them
    pairs = [(i, j) for i in samples for j in (1, 4, 6) if i != j]
    batch = with_references(study, targets, samples)
    assert len(batch) == 3
    whole = task.encoder.read(UniFrac(), task.encoder(batch_of(study, labelled(study, "unifrac"))).summary)
    for head, name in (("clade", "unifrac"), ("euclidean", "unifrac_euclidean")):
        predicted = whole[head].detach().numpy()
        errors = np.array([predicted[pair] - stripes.values[pair] for pair in pairs])
        found = task.loss(batch).parts[f"{name}_loss"].item()
        assert found == pytest.approx((errors**2).mean() / targets["unifrac"].scale, rel=1e-4)
    alone = task_of(study, labelled(study, "faith_pd"), calibrate=False)
    alone.encoder.load_state_dict(task.encoder.state_dict(), strict=False)
    expected = alone.loss(batch_of(study, labelled(study, "faith_pd"), samples)).parts["faith_pd_loss"].item()
    assert task.loss(batch).parts["faith_pd_loss"].item() == pytest.approx(expected, rel=1e-5)

    task.model.eval()
    judged = task.judge(with_references(study, targets, part) for part in ((0, 4), (7,)))
    assert judged.sample_index.tolist() == [0, 4, 7]
    np.testing.assert_allclose(judged.readings["unifrac"].actual, [stripes.values[pair] for pair in pairs])
    np.testing.assert_allclose(
        judged.readings["unifrac"].predicted, [whole["clade"].detach().numpy()[pair] for pair in pairs], rtol=1e-4
    )
    assert judged.losses["faith_pd_loss"] == pytest.approx(expected, rel=1e-5)
    everyone = range(len(study))
    expected_scale = np.var([stripes.values[i, j] for i in everyone for j in (1, 4, 6) if i != j], dtype=float)
    assert targets["unifrac"].scale == pytest.approx(expected_scale, rel=1e-6)


# --------------------------------------------------------------------------------------------------------------- scale


class Counted:
    """Distances that nobody holds: |i - j| of many samples."""

    references = None

    def __init__(self) -> None:
        self.largest = 0

    def block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, len(rows) * len(columns))
        return np.abs(rows[:, None] - columns[None]).astype(np.float32)

    def batch(self, rows: np.ndarray) -> np.ndarray:
        return self.block(rows, rows)


def test_the_scale_of_many_samples_needs_no_whole_matrix():
    labels, samples = Counted(), 100_000
    found = LabelledTarget.of(Aitchison(), labels, np.arange(samples), seed=1)
    assert labels.largest <= 2000**2
    assert found.mean == pytest.approx(samples / 3, rel=0.05)  # of |x - y|, x and y uniform
    assert found.scale == pytest.approx(samples**2 / 18, rel=0.05)
    assert found.scale == LabelledTarget.of(Aitchison(), labels, np.arange(samples), seed=1).scale


@pytest.mark.parametrize(("name", "allowed"), [("weighted_unifrac", False), ("aitchison", True), ("faith_pd", True)])
def test_labels_out_of_bounds_are_refused(name, allowed):
    values = np.array([[0, 0.4, 1.8], [0.4, 0, 0.2], [1.8, 0.2, 0]], dtype=np.float32)
    labels = ValueLabels(values[0]) if name == "faith_pd" else PairLabels(values)
    if allowed:
        LabelledTarget.of(base_target(name), labels, np.arange(3))
        return
    with pytest.raises(DataError, match=r"weighted_unifrac is within 0 and 1, .* 1\.8; .*unnormalised"):
        LabelledTarget.of(base_target(name), labels, np.arange(3))
    with pytest.raises(DataError, match=r"-0\.4"):
        LabelledTarget.of(base_target("aitchison"), PairLabels(-values), np.arange(3))


# ------------------------------------------------------------------------------------------------------- a user's own


@pytest.fixture
def canberra() -> Iterator[type[BaseTarget]]:
    @register
    @dataclass(frozen=True)
    class Canberra(BaseTarget):
        name = "canberra"
        title = "Canberra distance"
        upper = 2.0
        clades = "abundance"

        power: float = 1.0

        def from_clades(self, samples: torch.Tensor, references: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            a, b = samples[:, None], references[None]
            return 2 * ((a - b).abs() / (a + b) * weights).sum(-1) / weights.sum()

    yield Canberra
    del base_targets._REGISTRY["canberra"]


def test_a_distance_of_ones_own(canberra, study, tmp_path: Path):
    shares = study.counts / study.counts.sum(axis=1, keepdims=True)
    values = 2 * squareform(pdist(shares, "canberra")).astype(np.float32) / 9
    labels: dict[str, Labels] = {"canberra": PairLabels(values)}
    assert base_target_names()[-1] == "canberra"
    assert targets_of("combined", labels) == ("canberra",)
    targets = labelled(study, "canberra", labels=labels)
    task = task_of(study, targets)
    assert task.reading_names == ("canberra", "canberra_euclidean")
    history = train(task, batch_of(study, targets), 25)
    for part, value in history[-1].items():
        assert value < 0.9 * history[0][part], part
    found = judge(study, task, 3)
    assert set(found.metrics) == {f"{reading}_{metric}" for reading in task.reading_names for metric in REGRESSION}
    assert found.readings["canberra"].predicted.max() > 1  # its bound is 2

    restored = saved_and_loaded(task.encoder, tmp_path)
    batch = batch_of(study, targets)
    task.encoder.eval()
    target = base_target("canberra")
    expected, again = (e.read(target, e(batch).summary) for e in (task.encoder, restored))
    assert all(torch.equal(again[head], expected[head]) for head in expected)


def test_a_model_says_which_target_is_not_registered_here(canberra, study, tmp_path: Path):
    task = task_of(study, labelled(study, "canberra", labels={"canberra": labels_of(study, "jaccard")}))
    saved_and_loaded(task.encoder, tmp_path)
    file = load_model_file(tmp_path / "model.safetensors")
    del base_targets._REGISTRY["canberra"]
    try:
        with pytest.raises(DataError, match=r"model\.safetensors: no base target 'canberra'.*register"):
            read_base_targets(file.header, tmp_path / "model.safetensors")
        assert read_base_targets(file.header, tmp_path, known_alone=True) == ()
    finally:
        base_targets._REGISTRY["canberra"] = canberra


# --------------------------------------------------------------------------------------------------------------- files


def saved_and_loaded(encoder: SequenceEncoder, folder: Path) -> SequenceEncoder:
    """Written as a run does and built again from the file alone."""
    path = folder / "model.safetensors"
    model = MODEL.model_copy(update={"clades": 12})
    data = {"table": "t.biom", "unifrac_matrix": "d.h5"}
    config = RunConfig(command="pretrain", data=data, train={"output_dir": "run"}, model=model)  # type: ignore[arg-type]
    stored = {"target": None, "base_targets": [target.to_dict() for target in encoder.targets.values()]}
    save_model_file(path, encoder, config, stored)
    file = load_model_file(path)
    restored = build_encoder(file.config.model, read_base_targets(file.header, path))
    load_weights(restored, file.weights, path)
    return restored.eval()


def test_what_is_read_survives_the_model_file(study, tmp_path):
    targets = labelled(study, *SINGLE)
    task = task_of(study, targets)
    task.encoder.eval()
    restored = saved_and_loaded(task.encoder, tmp_path)
    assert restored.targets == task.encoder.targets
    batch = batch_of(study, targets)
    for target in task.encoder.targets.values():
        expected, found = (e.read(target, e(batch).summary) for e in (task.encoder, restored))
        for head, values in expected.items():
            assert torch.equal(found[head], values)


@pytest.mark.parametrize("stored", [5, [5], [{}], [{"alpha": 1}], [{"name": "unifrac", "of": 1}, 3], {"name": "x"}])
def test_damaged_targets_are_refused(stored, tmp_path):
    with pytest.raises(DataError, match=r"damaged|no base target"):
        read_base_targets({"base_targets": stored}, tmp_path)


def test_files_from_before_have_unifrac(tmp_path):
    assert read_base_targets({}, tmp_path) == (UniFrac(),)


def test_a_base_is_taken_over_with_the_heads_that_fit(tmp_path):
    config = ModelConfig(embedding_dim=8, attention_heads=2, attention_layers=1, max_bp=MAX_BP, clades=6)
    before = [UniFrac(), WeightedUniFrac(), Taxonomy(("a", "b"))]
    torch.manual_seed(0)
    weights = build_encoder(config, before).state_dict()
    torch.manual_seed(1)
    encoder = build_encoder(config, [WeightedUniFrac(), FaithPD(), Taxonomy(("a", "b", "c"))])
    fresh = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert load_base(encoder, weights, before, tmp_path) == {"faith_pd", "taxonomy"}
    for name, tensor in encoder.state_dict().items():
        own = name.startswith(("target_heads.faith_pd", "target_heads.taxonomy"))
        assert torch.equal(tensor, fresh[name] if own else weights[name]), name
    bare = build_encoder(config, ())
    load_weights(bare, without_base_heads(weights), tmp_path)
    with pytest.raises(DataError):
        load_base(encoder, {name: w for name, w in weights.items() if "pooling" not in name}, before, tmp_path)


HEADS = ["both", "clade", "euclidean"]


@pytest.mark.parametrize("ours", HEADS)
@pytest.mark.parametrize("theirs", HEADS)
def test_a_base_is_taken_over_with_other_heads(theirs, ours, study, tmp_path):
    targets = [UniFrac(), WeightedUniFrac(), FaithPD()]
    torch.manual_seed(0)
    before = build_encoder(MODEL.model_copy(update={"distance_head": theirs}), targets)
    torch.manual_seed(1)
    encoder = build_encoder(MODEL.model_copy(update={"distance_head": ours}), targets)
    weights, start = before.state_dict(), {name: weight.clone() for name, weight in encoder.state_dict().items()}
    new = load_base(encoder, weights, targets, tmp_path, other_heads=True)
    lacking = set(HEADS[1:] if ours == "both" else [ours]) - set(HEADS[1:] if theirs == "both" else [theirs])
    own = {"clade": {"faith_pd"}, "euclidean": {"unifrac", "weighted_unifrac", "faith_pd"}}  # beside the clades
    assert new == set().union(*(own[head] for head in lacking))
    for name, weight in encoder.state_dict().items():
        if name in weights:
            assert torch.equal(weight, weights[name]), name
        elif not name.startswith("presence_projection"):
            assert torch.equal(weight, start[name]), name
    if ours != "euclidean" or theirs == "euclidean":  # else the part that clades have in it is gone
        batch = batch_of(study, {})
        assert torch.equal(encoder(batch).embedding, before(batch).embedding)
    if theirs != ours:
        with pytest.raises(DataError):
            load_base(encoder, weights, targets, tmp_path)
    damaged = {name: weight for name, weight in weights.items() if not name.startswith("pooling")}
    with pytest.raises(DataError):
        load_base(encoder, damaged, targets, tmp_path, other_heads=True)


def test_a_base_of_more_positions_reads_shorter_sequences_as_before(tmp_path):
    study = TinyStudy([9, 11, 12, 12], samples=3)
    before = build_encoder(MODEL)
    before.asv_encoder.set_reference(torch.from_numpy(study.tokens[:, 1:]))
    encoder = build_encoder(MODEL.model_copy(update={"max_bp": 12}))
    load_base(encoder, before.state_dict(), [UniFrac()], tmp_path)
    assert reference_length(before.state_dict()) == reference_length(encoder.state_dict()) == 12
    batch = batch_of(study, {})
    assert torch.equal(encoder(batch).embedding, before(batch).embedding)
    assert reference_length({f"encoder.{name}": weight for name, weight in before.state_dict().items()}) == 12
    assert reference_length({}) == 0
