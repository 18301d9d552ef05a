from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from aam.config import AugmentationConfig, TrainConfig
from aam.data.augmentation import (
    Augmentation,
    draw_reads,
    drop_asvs,
    joined,
    log_uniform_depths,
    noisy_counts,
    require_whole_counts,
    substitute_bases,
)
from aam.data.batch import Batch, SampleRows
from aam.data.counts import MemoryCounts
from aam.data.dataset import BatchKey, BatchPlan, DatasetOptions, SampleDataset
from aam.data.draws import stable_keys
from aam.data.labels import PairLabels
from aam.data.tokenizer import detokenize, tokenize
from aam.errors import DataError
from aam.loaders import loader
from tests.conftest import MAX_BP, TinyStudy
from tests.data.test_batch import as_dictionaries
from tests.data.test_dataset import same

EVERYTHING = AugmentationConfig(
    augment_rarefy="5:40", asv_dropout=0.2, count_noise=0.4, mix_samples=0.5, base_noise=0.1
)
EACH = [
    {"augment_rarefy": "5:40"},
    {"asv_dropout": 0.2},
    {"count_noise": 0.4},
    {"mix_samples": 0.5},
    {"base_noise": 0.1},
]
TRAIN = np.array([0, 1, 2, 4, 5, 7, 8, 10, 11])


@pytest.fixture(scope="module")
def study() -> TinyStudy:
    """Twelve samples, nine of which are for training."""
    return TinyStudy([6, 7, 9, 9, 12, 13, 15, 18, 20, 20], samples=12, seed=5)


def rows_of(*samples: dict[int, float]) -> SampleRows:
    """Samples as dictionaries from ASV to count."""
    sizes = [len(sample) for sample in samples]
    return SampleRows(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([asv for sample in samples for asv in sorted(sample)], dtype=np.int64),
        np.array([sample[asv] for sample in samples for asv in sorted(sample)], dtype=np.float64),
    )


def dictionaries(rows: SampleRows) -> list[dict[int, float]]:
    return [
        dict(zip(rows.asvs[a:b].tolist(), rows.counts[a:b].tolist(), strict=True))
        for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    ]


def augmented(
    study: TinyStudy, config: AugmentationConfig, options: DatasetOptions | None = None, classes: bool = False
) -> SampleDataset:
    target = np.array([int(label[-1]) for label in study.labels]) if classes else study.values.astype(np.float32)
    made = Augmentation.of(config, 3, TRAIN, target if classes else None)
    return study.dataset(options, labels={"unifrac": PairLabels(study.distances)}, target=target, augmentation=made)


# ------------------------------------------------------------------------------------------------------ one at a time


def test_nothing_asked_for_is_nothing():
    assert Augmentation.of(AugmentationConfig(), 0, TRAIN) is None


def test_reads_are_drawn_as_numpy_draws_them():
    """Mean and variance are those of the hypergeometric distribution."""
    sample = {0: 30.0, 2: 10.0, 7: 5.0}
    keys = stable_keys(["a", "b"])
    counts = defaultdict(list)
    for epoch in range(600):
        first, whole = dictionaries(draw_reads(rows_of(sample, {1: 4.0}), np.array([12, 4]), keys, "test", 0, epoch))
        assert sum(first.values()) == 12 and all(first[asv] <= sample[asv] for asv in first)
        assert whole == {1: 4.0}
        for asv in sample:
            counts[asv].append(first.get(asv, 0))
    for asv, count in sample.items():
        expected = stats.hypergeom(45, int(count), 12)
        assert np.mean(counts[asv]) == pytest.approx(expected.mean(), abs=4 * expected.std() / 600**0.5)
        assert np.var(counts[asv]) == pytest.approx(expected.var(), rel=0.3)


def test_depths_are_log_uniform():
    keys = stable_keys([str(i) for i in range(4000)])
    depths = log_uniform_depths(10, 1000, keys, 0, 1)
    assert (depths % 1 == 0).all() and depths.min() >= 10 and depths.max() <= 1000
    assert stats.kstest(np.log(depths + 0.5), stats.uniform(np.log(10), np.log(100.1)).cdf).pvalue > 0.001
    assert set(log_uniform_depths(7, 7, keys, 0, 1)) == {7}
    assert set(log_uniform_depths(1, 3, keys, 0, 1)) == {1, 2, 3}
    assert (log_uniform_depths(10, 1000, keys, 0, 2) != depths).mean() > 0.9


def test_joined_is_the_sum():
    a, b = rows_of({0: 1.0, 3: 2.0}, {5: 1.0}, {2: 7.0}), rows_of({3: 4.0, 9: 1.0}, {5: 2.0, 6: 1.0}, {})
    assert dictionaries(joined(a, b)) == [{0: 1.0, 3: 6.0, 9: 1.0}, {5: 3.0, 6: 1.0}, {2: 7.0}]
    dense = joined(a, b)
    assert all((np.diff(dense.asvs[i:j]) > 0).all() for i, j in zip(dense.indptr[:-1], dense.indptr[1:], strict=True))


def test_asv_dropout():
    keys, asv_keys = stable_keys(["a", "b", "c"]), stable_keys([f"asv {i}" for i in range(200)])
    rows = rows_of(dict.fromkeys(range(200), 2.0), dict.fromkeys(range(150), 1.0), {4: 3.0})
    kept = [drop_asvs(rows, keys, asv_keys, 0.3, 0, epoch) for epoch in range(20)]
    assert np.mean([len(drawn.asvs) - 1 for drawn in kept]) / 350 == pytest.approx(0.7, abs=0.02)
    assert all(dictionaries(drawn)[2] == {4: 3.0} for drawn in kept)
    together = dictionaries(kept[0])
    alone = drop_asvs(rows_of(dict.fromkeys(range(150), 1.0)), keys[1:2], asv_keys, 0.3, 0, 0)
    assert dictionaries(alone) == [together[1]]
    assert together[0].keys() & set(range(150)) != together[1].keys()


def test_count_noise_is_log_normal():
    asv_keys = stable_keys([f"asv {i}" for i in range(3000)])
    rows = rows_of(dict.fromkeys(range(3000), 10.0))
    noisy = noisy_counts(rows, stable_keys(["a"]), asv_keys, 0.5, 0, 1)
    assert stats.kstest(np.log(noisy.counts / 10), stats.norm(0, 0.5).cdf).pvalue > 0.001
    assert (noisy.counts > 0).all() and np.isfinite(noisy.counts).all()


def test_bases_are_substituted():
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGTN"), length)) for length in [*[150] * 60, 1, 20]]
    tokens, keys = tokenize(sequences, 150), stable_keys(sequences)
    noisy = substitute_bases(tokens, keys, 0.1, 0, 1)
    assert noisy.dtype == np.uint8 and noisy.shape == tokens.shape
    bases = np.isin(tokens, [1, 2, 3, 4])
    assert (noisy[~bases] == tokens[~bases]).all() and np.isin(noisy[bases], [1, 2, 3, 4]).all()
    changed = noisy != tokens
    assert changed[bases].mean() == pytest.approx(0.1, abs=0.01)
    for base in (1, 2, 3, 4):
        others = np.bincount(noisy[changed & (tokens == base)], minlength=5)[1:]
        assert others[base - 1] == 0
        assert stats.chisquare(np.delete(others, base - 1)).pvalue > 0.001
    some = substitute_bases(tokens[[3, 61], :21], keys[[3, 61]], 0.1, 0, 1)
    np.testing.assert_array_equal(some, noisy[[3, 61], :21])
    assert (substitute_bases(tokens, keys, 0.1, 0, 2) != noisy).any()


def test_partners_are_other_training_samples(study):
    augmentation = Augmentation.of(AugmentationConfig(mix_samples=0.5), 0, TRAIN)
    keys = stable_keys(study.sample_ids)
    met, mixed, shares = set(), [], []
    for epoch in range(1, 200):
        partners = augmentation.partners(TRAIN, keys[TRAIN], epoch)
        mixed.append(partners.mixed.mean())
        shares += partners.share[partners.mixed].tolist()
        assert (partners.rows[partners.mixed] != TRAIN[partners.mixed]).all()
        assert (partners.rows[~partners.mixed] == TRAIN[~partners.mixed]).all()
        met |= {(a, b) for a, b, m in zip(TRAIN, partners.rows, partners.mixed, strict=True) if m}
    assert met == {(a, b) for a in TRAIN for b in TRAIN if a != b}
    assert np.mean(mixed) == pytest.approx(0.5, abs=0.05)
    assert stats.kstest(shares, "uniform").pvalue > 0.001


def test_partners_are_of_the_same_class():
    classes = np.array([0, 0, 0, 1, 1, 2])
    augmentation = Augmentation.of(AugmentationConfig(mix_samples=0.9), 0, np.arange(6), classes)
    for epoch in range(30):
        partners = augmentation.partners(np.arange(6), stable_keys([str(i) for i in range(6)]), epoch)
        assert (classes[partners.rows] == classes).all()
        assert not partners.mixed[5]


# ------------------------------------------------------------------------------------------------------- in a dataset


def test_off_is_as_if_it_were_not_there(study):
    options = DatasetOptions(seed=3, rarefy_depth=5, nuc_asv_fraction=0.5, count_mask_ratio=0.3, token_limit=3)
    plain = study.dataset(
        options, labels={"unifrac": PairLabels(study.distances)}, target=study.values.astype(np.float32)
    )
    # What is on changes its own part of a batch and nothing else.
    bases = augmented(study, AugmentationConfig(base_noise=1e-12), options)
    off = augmented(study, AugmentationConfig(), options)
    for key in BatchPlan(TRAIN, 4, True, seed=1):
        assert same(plain[key], off[key])
        assert same(plain[key], bases[key])


def test_rarefying_to_one_depth_is_rarefying(study):
    plain = study.dataset(DatasetOptions(seed=3, rarefy_depth=5))
    other = study.dataset(DatasetOptions(seed=3), augmentation=Augmentation(3, depths=(5, 5)))
    key = BatchKey(2, (0, 4, 7))
    assert same(plain[key], other[key])


def test_shallow_samples_stay_as_they_are(study):
    config = AugmentationConfig(augment_rarefy="100000")
    batch = augmented(study, config)[BatchKey(1, (0, 4))]
    assert as_dictionaries(batch) == [study.samples[i] for i in (0, 4)]


def test_depth_varies_with_the_epoch(study):
    dataset = augmented(study, AugmentationConfig(augment_rarefy="5:40"))
    depths = [dataset[BatchKey(epoch, (0,))].depth.item() for epoch in range(40)]
    reads = sum(study.samples[0].values())
    assert all(5 <= depth <= min(40, reads) for depth in depths) and len(set(depths)) > 10


def test_mixed_samples(study):
    """A mixture has reads of both and no more than either gives; its number lies between theirs."""
    dataset = augmented(study, AugmentationConfig(mix_samples=0.6))
    assert dataset.augmentation is not None
    seen = 0
    for epoch in range(30):
        batch = dataset[BatchKey(epoch, tuple(TRAIN.tolist()))]
        partners = dataset.augmentation.partners(TRAIN, dataset.sample_keys[TRAIN], epoch)
        mixed = torch.from_numpy(partners.mixed)
        distances = batch.labels["unifrac"]
        assert torch.equal(distances.isnan(), mixed[:, None] | mixed[None, :])
        known = distances.nan_to_num(0).numpy() == study.distances[np.ix_(TRAIN, TRAIN)]
        assert known[~distances.isnan().numpy()].all()
        for b, sample in enumerate(as_dictionaries(batch)):
            a, c, share = TRAIN[b], partners.rows[b], partners.share[b]
            if not partners.mixed[b]:
                assert sample == study.samples[a] and batch.target[b] == np.float32(study.values[a])
                continue
            seen += 1
            depth = sum(sample.values())
            limits = {name: study.samples[a].get(name, 0) + study.samples[c].get(name, 0) for name in sample}
            assert all(0 < count <= limits[name] and count % 1 == 0 for name, count in sample.items())
            assert depth <= sum(study.samples[a].values())
            foreign = sum(count for name, count in sample.items() if name not in study.samples[a])
            assert foreign <= round((1 - share) * depth) + 1
            expected = share * study.values[a] + (1 - share) * study.values[c]
            assert batch.target[b].item() == pytest.approx(expected, rel=1e-5)
    assert seen > 50


def test_classes_are_not_mixed(study):
    dataset = augmented(study, AugmentationConfig(mix_samples=0.9), classes=True)
    batch = dataset[BatchKey(1, tuple(TRAIN.tolist()))]
    assert batch.target.tolist() == [int(study.labels[i][-1]) for i in TRAIN]
    assert batch.labels["unifrac"].isnan().any()


@pytest.mark.parametrize("config", [*EACH, EVERYTHING.model_dump()], ids=[*(next(iter(c)) for c in EACH), "all"])
@pytest.mark.parametrize("depth", [None, 5])
def test_a_sample_is_the_same_in_any_batch(config, depth, study):
    options = DatasetOptions(seed=3, token_limit=4, rarefy_depth=depth, count_mask_ratio=0.3)
    dataset = augmented(study, AugmentationConfig(**config), options)

    def described(batch: Batch) -> list[tuple[object, ...]]:
        # In the batch, sequences that noise has made alike are still two.
        names = detokenize(batch.tokens.numpy())
        return [
            (
                sorted((names[u], c) for u, c in zip(index, counts, strict=True) if c > 0),
                batch.depth[b].item(),
                batch.target[b].item(),
                batch.labels["unifrac"][b, b].isnan().item(),
            )
            for b, (index, counts) in enumerate(zip(batch.asv_index.tolist(), batch.counts.tolist(), strict=True))
        ]

    for epoch in (1, 2):
        whole = dict(zip(TRAIN, described(dataset[BatchKey(epoch, tuple(TRAIN.tolist()))]), strict=True))
        order = np.random.default_rng(epoch).permutation(TRAIN)
        for size in (1, 4):
            for start in range(0, len(order), size):
                some = order[start : start + size]
                assert described(dataset[BatchKey(epoch, tuple(some.tolist()))]) == [whole[i] for i in some]
    assert described(dataset[BatchKey(1, (0, 1, 2))]) != described(dataset[BatchKey(2, (0, 1, 2))])


def test_partners_do_not_depend_on_the_order_of_the_training_samples(study):
    config, keys = AugmentationConfig(mix_samples=0.9), stable_keys(study.sample_ids)[TRAIN]
    first = Augmentation.of(config, 3, TRAIN).partners(TRAIN, keys, 1)
    order = np.random.default_rng(4).permutation(len(TRAIN))
    again = Augmentation.of(config, 3, TRAIN[order]).partners(TRAIN[order], keys[order], 1)
    np.testing.assert_array_equal(again.rows, first.rows[order])
    np.testing.assert_array_equal(again.share, first.share[order])


def test_workers_change_no_batch(study, tmp_path):
    dataset = augmented(study, EVERYTHING, DatasetOptions(seed=3, token_limit=4, nuc_asv_fraction=0.5))
    config = TrainConfig(output_dir=tmp_path)
    found = []
    for workers in (0, 2):
        plan = BatchPlan(TRAIN, 4, True, seed=1)
        plan.epoch = 3
        found.append(list(loader(dataset, plan, config, torch.device("cpu"), workers=workers)))
    assert all(same(a, b) for a, b in zip(*found, strict=True))


def test_restored_nucleotides_are_the_true_ones(study):
    options = DatasetOptions(seed=3, nuc_asv_fraction=1.0)
    key = BatchKey(1, tuple(TRAIN.tolist()))
    batch = augmented(study, AugmentationConfig(base_noise=0.3), options)[key]
    assert set(detokenize(batch.masked_nucleotides.true_tokens.numpy())) <= set(study.sequences)
    assert set(detokenize(batch.tokens.numpy())) - set(study.sequences)
    assert batch.tokens.shape[1] <= MAX_BP + 1


def test_masks_are_over_what_is_left(study):
    dataset = augmented(study, EVERYTHING, DatasetOptions(seed=3, count_mask_ratio=0.5))
    batch = dataset[BatchKey(1, tuple(TRAIN.tolist()))]
    assert batch.hidden_counts.any() and not batch.hidden_counts[batch.counts == 0].any()


def test_fractions_cannot_be_drawn_from():
    require_whole_counts(MemoryCounts(sparse.csr_array(np.array([[1.0, 20.0]]))), [Path("t.biom")])
    with pytest.raises(
        DataError, match=r"t\.biom: --augment-rarefy and --mix-samples draw whole reads, .* holds 0\.25"
    ):
        require_whole_counts(MemoryCounts(sparse.csr_array(np.array([[1.0, 0.25]]))), [Path("t.biom")])


def test_a_seed_of_its_own(study):
    dataset = augmented(study, EVERYTHING)
    assert dataset.augmentation is not None
    other = augmented(study, EVERYTHING)
    other.augmentation = replace(dataset.augmentation, seed=4)
    key = BatchKey(1, tuple(TRAIN.tolist()))
    assert not same(dataset[key], other[key])
