"""The largest batch that can occur is no smaller than any that does; the search keeps to the memory allowed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import psutil
import pytest
import torch

from aam.data.augmentation import Augmentation
from aam.data.dataset import BatchKey, DatasetOptions
from aam.errors import DataError
from aam.training.batch_size import BatchBounds, _Memory, find_batch_size, largest_batch, memory_budget
from tests.conftest import TinyStudy
from tests.training.tiny import CPU, build_dataset, build_task

ROWS = np.arange(9)


@pytest.fixture(scope="module", autouse=True)
def nothing_else_is_collected() -> Iterator[None]:
    """The search collects garbage before each try; what other tests have imported is not looked through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def study() -> TinyStudy:
    return TinyStudy([12, 12, 9, 12, 7, 10, 12, 11, 12, 8, 12, 12, 6, 12], samples=9, seed=4)


def test_no_samples_have_more_distinct_asvs_than_the_bound(study):
    bounds = BatchBounds.of(study.dataset(), ROWS)
    present = study.counts > 0
    for size in range(1, 10):
        most = max(present[list(rows)].any(axis=0).sum() for rows in combinations(range(9), size))
        assert most <= bounds.distinct(size) <= min(present.any(axis=0).sum(), 1.3 * most)
    assert bounds.distinct(1) == present.sum(axis=1).max()
    assert bounds.distinct(9) == present.any(axis=0).sum()


@pytest.mark.parametrize("options", [{}, {"token_limit": 4}, {"nuc_asv_fraction": 0.5, "rarefy_depth": 20}], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_no_batch_is_larger_than_the_largest(study, options, mixed):
    augmentation = Augmentation(5, mix_samples=0.9, candidates=ROWS) if mixed else None
    dataset = study.dataset(DatasetOptions(**options), augmentation=augmentation)
    bounds = BatchBounds.of(dataset, ROWS)
    for size in (1, 2, 4, 9):
        largest = largest_batch(dataset, bounds, size)
        for epoch in range(30):
            rows = np.random.default_rng(epoch).permutation(ROWS)[:size]
            batch = dataset[BatchKey(epoch, tuple(rows.tolist()))]
            assert len(batch) == len(largest)
            assert all(np.less_equal(batch.tokens.shape, largest.tokens.shape))
            assert all(np.less_equal(batch.counts.shape, largest.counts.shape))
            if batch.masked_nucleotides is not None:
                assert largest.masked_nucleotides is not None
                assert all(
                    np.less_equal(batch.masked_nucleotides.tokens.shape, largest.masked_nucleotides.tokens.shape)
                )


@pytest.mark.parametrize("kind", ["pretrain", "regression", "classification"])
def test_it_is_learnt_from_as_any_other(study, kind):
    task = build_task(study, kind)
    dataset = build_dataset(study, task)
    batch = largest_batch(dataset, BatchBounds.of(dataset, ROWS), 4)
    loss = task.loss(batch).total
    loss.backward()
    assert loss.isfinite()


def find(study, task, most=None, fraction=None):
    return find_batch_size(
        task, build_dataset(study, task), ROWS, CPU, mixed_precision="none", fraction=fraction, copies=2, most=most
    )


def test_the_search_leaves_nothing_behind(study):
    task = build_task(study, "regression", dropout=0.2)
    before = copy.deepcopy(task.model.state_dict())
    random = torch.get_rng_state()
    find(study, task, most=9)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_as_many_samples_as_there_are_or_are_asked_for_where_memory_allows(study):
    task = build_task(study, "regression")
    assert find(study, task, most=9).samples == 9
    assert find(study, task, most=100).samples == 9
    assert find(study, task, most=5).samples == 5
    found = find(study, task)  # 9 samples: an eighth is one, and two are the least
    assert found.samples == 2 and found.bytes < found.budget


def test_memory_that_two_samples_exceed_is_refused(study):
    with pytest.raises(DataError, match=r"--batch-size auto: 2 samples take .* raise --max-memory-fraction"):
        find(study, build_task(study, "regression"), fraction=1e-9)


def test_the_budget_is_a_share_of_what_is_free():
    free = psutil.virtual_memory().available
    assert 0 < memory_budget(CPU, 0.25) <= 0.3 * free
    assert memory_budget(CPU, None) == pytest.approx(2 * memory_budget(CPU, 0.25), rel=0.1)


def test_memory_is_measured_at_its_height_and_given_back():
    memory = _Memory(CPU)
    size = 200 * 2**20

    def work() -> None:
        torch.ones(size // 4).add_(1)

    assert memory.of(work) == pytest.approx(size, rel=0.1)
    assert memory.of(lambda: None) < size / 4
