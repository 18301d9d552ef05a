from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from aam.config import AugmentationConfig, DataConfig, TrainConfig
from aam.data.augmentation import Augmentation
from aam.data.batch import Batch, MaskedNucleotides, Share
from aam.data.biom_loader import FeatureTable
from aam.data.dataset import BatchKey, BatchPlan, DatasetOptions, SampleDataset, mask_nucleotides
from aam.data.draws import stable_keys
from aam.data.labels import PairLabels
from aam.data.study import StudyFiles, TableFile, align
from aam.data.tokenizer import MASK, PAD, START, detokenize, tokenize
from aam.data.unifrac_loader import DistanceMatrix
from aam.loaders import loader
from tests.conftest import MAX_BP, TinyStudy
from tests.data.test_batch import as_dictionaries

ALL = DatasetOptions(seed=3, nuc_asv_fraction=0.5, count_mask_ratio=0.3, token_limit=3, rarefy_depth=12)


def same(a: Batch, b: Batch) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor):
            return (
                isinstance(y, torch.Tensor)
                and x.dtype == y.dtype
                and np.array_equal(x, y, equal_nan=x.is_floating_point())
            )
        if isinstance(x, dict):
            return isinstance(y, dict) and x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        if isinstance(x, MaskedNucleotides):
            return all(equal(getattr(x, field.name), getattr(y, field.name)) for field in fields(x))
        return x == y

    return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


@pytest.fixture(scope="module")
def study() -> TinyStudy:
    """Twelve samples of enough reads to be rarefied."""
    found = TinyStudy([6, 7, 9, 9, 12, 13, 15, 18, 20, 20], samples=12, seed=5)
    assert min(sum(sample.values()) for sample in found.samples) >= 12
    return found


def ranked_by_abundance(study: TinyStudy, sample: dict[str, float]) -> list[str]:
    return sorted(sample, key=lambda sequence: (-sample[sequence], sequence))


# -------------------------------------------------------------------------------------------------------------- table


def test_batches_hold_the_table_with_distances_and_target(study):
    dataset = study.dataset(labels=study.base_labels, target=study.values.astype(np.float32))
    batch = dataset[BatchKey(4, (7, 2, 11))]
    assert as_dictionaries(batch) == [study.samples[i] for i in (7, 2, 11)]
    for i, a in enumerate((7, 2, 11)):
        assert batch.target[i] == np.float32(study.values[a])
        for j, b in enumerate((7, 2, 11)):
            assert batch.labels["unifrac"][i, j] == study.distances[a, b]
    assert batch.masked_nucleotides is None and batch.hidden_counts is None


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_most_abundant(limit, study):
    samples = (0, 4, 9)
    batch = study.dataset(DatasetOptions(token_limit=limit))[BatchKey(2, samples)]
    expected = [
        {name: study.samples[i][name] for name in ranked_by_abundance(study, study.samples[i])[:limit]} for i in samples
    ]
    assert as_dictionaries(batch) == expected
    assert batch.depth.tolist() == [sum(study.samples[i].values()) for i in samples]


def test_ties_in_abundance_break_by_sequence():
    study = TinyStudy([9] * 8, samples=1)
    study.table.data[:] = 5.0
    batch = study.dataset(DatasetOptions(token_limit=2))[BatchKey(0, (0,))]
    assert list(as_dictionaries(batch)[0]) == sorted(study.samples[0])[:2]


def test_first_in_the_table(study):
    order = np.random.default_rng(0).permutation(len(study.sequences))
    options = DatasetOptions(token_limit=2, asv_sampling="first")
    batch = study.dataset(options, table_order=order)[BatchKey(0, (3, 6))]
    place = dict(zip(study.sequences, order, strict=True))
    expected = [set(sorted(study.samples[i], key=place.__getitem__)[:2]) for i in (3, 6)]
    assert [set(sample) for sample in as_dictionaries(batch)] == expected


def test_random_asvs(study):
    dataset = study.dataset(DatasetOptions(token_limit=2, asv_sampling="random"))

    def chosen(epoch: int, samples: tuple[int, ...]) -> list[tuple[str, ...]]:
        return [tuple(sample) for sample in as_dictionaries(dataset[BatchKey(epoch, samples)])]

    seen = set()
    for epoch in range(40):
        together = chosen(epoch, (5, 1, 8))
        assert all(len(names) == min(2, len(study.samples[i])) for names, i in zip(together, (5, 1, 8), strict=True))
        assert together == [chosen(epoch, (i,))[0] for i in (5, 1, 8)]
        seen |= set(together[0])
    assert seen == set(study.samples[5])


# -------------------------------------------------------------------------------------------------------- rarefaction


def test_rarefaction(study):
    dataset = study.dataset(DatasetOptions(rarefy_depth=12))
    everyone = tuple(range(len(study)))
    whole = as_dictionaries(dataset[BatchKey(1, everyone)])
    for sample, original in zip(whole, study.samples, strict=True):
        assert sum(sample.values()) == 12
        assert all(count <= original[name] for name, count in sample.items())
    order = tuple(np.random.default_rng(0).permutation(everyone).tolist())
    for batch_size in (1, 5):
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            assert as_dictionaries(dataset[BatchKey(1, some)]) == [whole[i] for i in some]
    assert as_dictionaries(dataset[BatchKey(2, everyone)]) != whole
    assert dataset[BatchKey(1, everyone)].depth.unique().tolist() == [12]


def test_rarefaction_is_hypergeometric(study):
    dataset = study.dataset(DatasetOptions(rarefy_depth=12))
    draws = [as_dictionaries(dataset[BatchKey(epoch, (0,))])[0] for epoch in range(400)]
    depth = sum(study.samples[0].values())
    for name, count in study.samples[0].items():
        mean = np.mean([draw.get(name, 0) for draw in draws])
        share = count / depth
        deviation = np.sqrt(12 * share * (1 - share) * (depth - 12) / (depth - 1) / 400)
        assert abs(mean - 12 * share) < 4 * deviation


# ------------------------------------------------------------------------------------------------------------- masks


def restored(batch: Batch) -> list[str]:
    return [] if batch.masked_nucleotides is None else detokenize(batch.masked_nucleotides.true_tokens.numpy())


def test_masked_nucleotides_are_of_the_batch(study):
    dataset = study.dataset(DatasetOptions(nuc_asv_fraction=0.5))
    shares = []
    for epoch in range(60):
        batch = dataset[BatchKey(epoch, (0, 1, 2))]
        masked = batch.masked_nucleotides
        names = restored(batch)
        assert len(set(names)) == len(names) and set(names) <= set(detokenize(batch.tokens.numpy()))
        shares.append(len(names) / len(batch.tokens))
        if masked is not None:
            assert torch.equal(masked.tokens == MASK, masked.places)
            assert torch.equal(masked.tokens[~masked.places], masked.true_tokens[~masked.places])
            assert masked.places.any(dim=1).all()
            assert masked.tokens.shape[1] == 1 + max(map(len, names))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert restored(study.dataset(DatasetOptions(nuc_asv_fraction=1.0))[BatchKey(0, (0,))]) == list(study.samples[0])


OPTIONS = [
    DatasetOptions(nuc_asv_fraction=0.7),
    DatasetOptions(nuc_asv_fraction=0.7, rarefy_depth=12),
    DatasetOptions(nuc_asv_fraction=0.7, token_limit=2),
    DatasetOptions(nuc_asv_fraction=0.7, token_limit=2, asv_sampling="random", rarefy_depth=12),
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "rarefied", "limited", "both"])
def test_each_held_out_asv_is_restored_once(options, study):
    held_out = np.array([9, 2, 4, 7, 10, 1])
    dataset = study.dataset(options, restore_once=held_out)
    found = []
    for batch_size in (1, 2, 4, 6):
        plan = BatchPlan(held_out, batch_size, shuffle=False, seed=0)
        names = [name for key in plan for name in restored(dataset[key])]
        assert len(names) == len(set(names)) > 0
        found.append(sorted(names))
    everything = study.dataset(options)[BatchKey(0, tuple(held_out.tolist()))]
    assert all(names == sorted(restored(everything)) for names in found)


def test_hidden_counts(study):
    dataset = study.dataset(DatasetOptions(count_mask_ratio=0.3))
    hidden_pairs: dict[tuple[int, str], bool] = {}
    shares = []
    for epoch in range(80):
        whole = dataset[BatchKey(epoch, tuple(range(12)))]
        assert not whole.hidden_counts[whole.counts == 0].any()
        shares.append(float(whole.hidden_counts.sum() / (whole.counts > 0).sum()))
        if epoch == 3:
            names = detokenize(whole.tokens.numpy())
            for b, s in torch.nonzero(whole.counts).tolist():
                hidden_pairs[b, names[whole.asv_index[b, s]]] = bool(whole.hidden_counts[b, s])
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    alone = dataset[BatchKey(3, (6,))]
    names = detokenize(alone.tokens.numpy())
    for s, row in enumerate(alone.asv_index[0].tolist()):
        assert hidden_pairs[6, names[row]] == bool(alone.hidden_counts[0, s])


@pytest.mark.parametrize("strategy", ["random", "span"])
@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.5])
def test_mask_nucleotides(strategy, ratio):
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), length)) for length in [*[150] * 80, *[1, 3, 20]]]
    tokens, keys = tokenize(sequences, 150), stable_keys(sequences)
    places = mask_nucleotides(tokens, keys, ratio, strategy, seed=0, epoch=1)
    assert places.shape == tokens.shape and places.dtype == bool
    assert not places[(tokens == PAD) | (tokens == START)].any()
    assert places.any(axis=1).all()
    assert places[:80, 1:].mean() == pytest.approx(ratio, abs=0.02)
    alone = np.array([3, 81, 40])
    np.testing.assert_array_equal(
        mask_nucleotides(tokens[alone], keys[alone], ratio, strategy, seed=0, epoch=1), places[alone]
    )
    assert (mask_nucleotides(tokens, keys, ratio, strategy, seed=0, epoch=2) != places).any()
    assert (mask_nucleotides(tokens, keys, ratio, strategy, seed=1, epoch=1) != places).any()
    if strategy == "span":
        edges = np.diff(places[:80, 1:].astype(int), axis=1, prepend=0)
        assert places[:80].sum() / (edges == 1).sum() >= 4.5  # bases a run
    narrow = mask_nucleotides(tokens[80:82, :4], keys[80:82], ratio, strategy, seed=0, epoch=1)
    np.testing.assert_array_equal(narrow, places[80:82, :4])


def test_a_row_without_nucleotides_has_no_mask():
    tokens = np.array([[START, PAD], [START, 1]], dtype=np.uint8)
    places = mask_nucleotides(tokens, stable_keys(["", "A"]), 0.1, "random", 0, 0)
    assert places.tolist() == [[False, False], [False, True]]


# ------------------------------------------------------------------------------------------------- order and workers


def test_order_in_the_files_changes_no_batch(study):
    rng = np.random.default_rng(1)
    options = ALL

    def batches(rows: np.ndarray, columns: np.ndarray) -> list[Batch]:
        names = [study.sequences[a] for a in columns]
        table = FeatureTable(study.table[rows][:, columns].tocsr(), [study.sample_ids[i] for i in rows], names)
        distances = DistanceMatrix(table.sample_ids, study.distances[np.ix_(rows, rows)])
        config = DataConfig(table=Path("table.tsv"), rarefy_depth=12)
        aligned = align(
            StudyFiles([TableFile(config.table[0], table, names)], None, {"unifrac": [distances]}),
            config,
            max_bp=MAX_BP,
        )
        dataset = SampleDataset(
            aligned.counts,
            aligned.tokens,
            aligned.sample_ids,
            aligned.sequences,
            aligned.table_order,
            options,
            aligned.labels,
        )
        return [dataset[key] for key in BatchPlan(np.arange(len(aligned)), 5, True, seed=0)]

    rows, columns = np.arange(len(study)), np.arange(len(study.sequences))
    expected = batches(rows, columns)
    for _ in range(3):
        found = batches(rng.permutation(rows), rng.permutation(columns))
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_plan():
    samples = np.array([4, 8, 15, 16, 23, 42, 99])
    plan = BatchPlan(samples, 3, shuffle=True, seed=7)
    assert len(plan) == 3
    orders = []
    for epoch in range(3):
        plan.epoch = epoch
        keys = list(plan)
        assert [len(key.samples) for key in keys] == [3, 3, 1] and {key.epoch for key in keys} == {epoch}
        order = [i for key in keys for i in key.samples]
        assert sorted(order) == samples.tolist()
        assert [i for key in plan for i in key.samples] == order
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    again, other = BatchPlan(samples, 3, True, seed=7), BatchPlan(samples, 3, True, seed=8)
    again.epoch = other.epoch = 2
    assert [i for key in again for i in key.samples] == orders[2] != [i for key in other for i in key.samples]
    assert [key.samples for key in BatchPlan(samples, 4, False, 7)] == [(4, 8, 15, 16), (23, 42, 99)]


def test_workers_change_no_batch(study, tmp_path):
    dataset = study.dataset(ALL, labels=study.base_labels)
    config = TrainConfig(output_dir=tmp_path)
    found = []
    for workers in (0, 2):
        plan = BatchPlan(np.arange(len(study)), 5, True, seed=1)
        batches = loader(dataset, plan, config, torch.device("cpu"), workers=workers)
        epochs = []
        for epoch in (1, 2):
            plan.epoch = epoch
            epochs += list(batches)
        found.append(epochs)
    assert len(found[0]) == len(found[1]) == 6
    assert all(same(a, b) for a, b in zip(*found, strict=True))
    assert not same(found[0][0], found[0][3])


# ------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("samples", [(7, 2, 11, 0, 5), (4,)])
@pytest.mark.parametrize("references", [None, np.array([1, 3, 8])])
def test_shares_of_a_batch_are_the_batch(study, samples, references):
    """Of three processes: samples, labels, target and abundances one after the other, each ASV to restore once."""
    dataset = study.dataset(
        DatasetOptions(seed=3, nuc_asv_fraction=0.5, count_mask_ratio=0.3),
        labels={"unifrac": PairLabels(study.distances, references)},
        target=study.values.astype(np.float32),
        augmentation=Augmentation.of(AugmentationConfig(mix_samples=0.5), 3, np.arange(len(study))),
    )
    whole = dataset[BatchKey(2, samples)]
    parts = [dataset[BatchKey(2, samples, Share(rank, 3))] for rank in range(3)]
    assert sum(map(len, parts)) == len(whole) == len(samples)
    assert all(tuple(part.everyone.tolist()) == samples for part in parts)
    assert all(len(part.sample_index) > 0 for part in parts)
    rows = [as_dictionaries(part)[: len(part)] for part in parts]
    assert [row for part in rows for row in part] == as_dictionaries(whole)[: len(samples)]
    labels = np.concatenate([part.labels["unifrac"] for part in parts])
    np.testing.assert_array_equal(labels, whole.labels["unifrac"])
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    hidden = [sorted(part.counts[:n][part.hidden_counts[:n]].tolist()) for part in parts for n in [len(part)]]
    expected = whole.counts[: len(whole)][whole.hidden_counts[: len(whole)]]
    assert sorted(count for part in hidden for count in part) == sorted(expected.tolist())
    masked = [
        (tuple(row.tolist()), tuple(where.tolist()))
        for part in parts
        for row, where in zip(part.masked_nucleotides.true_tokens, part.masked_nucleotides.places, strict=True)
        if where.any()
    ]
    assert len(masked) == len(set(masked)) == len(whole.masked_nucleotides.places)
    assert {sum(where) for _, where in masked} == set(whole.masked_nucleotides.places.sum(dim=1).tolist())
