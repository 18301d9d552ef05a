"""Small studies that the tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from scipy import sparse

from aam.data.counts import MemoryCounts
from aam.data.dataset import DatasetOptions, SampleDataset
from aam.data.labels import PairLabels
from aam.data.tokenizer import tokenize

MAX_BP = 20

# No test fails because the machine is busy, or passes by a lucky draw.
settings.register_profile("aam", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aam")

# Tensors this small gain nothing from threads, which wait for each other where other programs run.
torch.set_num_threads(1)


class TinyStudy:
    """Samples as dictionaries from sequence to count, and the same as arrays.

    Parameters
    ----------
    lengths : sequence of int
        Of the ASVs.
    samples : int
    seed : int
    """

    def __init__(self, lengths: list[int], samples: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.sequences = sorted("".join(rng.choice(list("ACGTN"), length, p=[0.24] * 4 + [0.04])) for length in lengths)
        assert len(set(self.sequences)) == len(lengths)
        counts = rng.integers(1, 40, (samples, len(lengths))) * (rng.random((samples, len(lengths))) < 0.5)
        counts[np.arange(samples), rng.integers(0, len(lengths), samples)] += 3
        self.counts = counts.astype(np.float64)
        self.sample_ids = [f"sample {i}" for i in range(samples)]
        self.samples = [
            {sequence: float(count) for sequence, count in zip(self.sequences, row, strict=True) if count}
            for row in self.counts
        ]
        self.table = sparse.csr_array(self.counts)
        self.tokens = tokenize(self.sequences, MAX_BP)
        points = rng.random((samples, 3))
        self.distances = (np.linalg.norm(points[:, None] - points[None], axis=-1) / 2).astype(np.float32)
        self.values = rng.normal(3, 2, samples)
        self.labels = np.array([f"class {i % 3}" for i in range(samples)], dtype=object)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def base_labels(self) -> dict[str, PairLabels]:
        """The distances as labels."""
        return {"unifrac": PairLabels(self.distances)}

    def dataset(self, options: DatasetOptions | None = None, **arrays: Any) -> SampleDataset:
        """The study as a dataset; ``arrays`` are the optional ones of `SampleDataset`."""
        table_order = arrays.pop("table_order", np.arange(len(self.sequences))[::-1].copy())
        return SampleDataset(
            MemoryCounts(self.table),
            self.tokens,
            self.sample_ids,
            self.sequences,
            table_order,
            options or DatasetOptions(),
            **arrays,
        )


@pytest.fixture(scope="session")
def equal_study() -> TinyStudy:
    """Five samples whose nine ASVs are of one length."""
    return TinyStudy([12] * 9, samples=5)


@pytest.fixture(scope="session")
def unequal_study() -> TinyStudy:
    """Five samples whose ten ASVs are of 6 to 20 bases."""
    return TinyStudy([6, 7, 9, 9, 12, 13, 15, 18, 20, 20], samples=5)
