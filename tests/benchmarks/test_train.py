"""`aam benchmark train`: its count of operations against torch's own, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from aam.benchmarks.train import forward_flops
from aam.cli.main import cli
from aam.data.batch import padded_layout
from aam.data.counts import MemoryCounts
from aam.data.dataset import BatchKey, DatasetOptions, SampleDataset
from aam.data.simulate import simulate_study, write_study
from aam.data.tokenizer import tokenize
from aam.models.sequence_encoder import SequenceEncoder


@pytest.fixture(scope="module")
def simulated():
    return simulate_study(samples=12, asvs=20, subjects=6, length=40, depth=300, seed=1)


@pytest.mark.parametrize("layout", [lambda batch: batch, padded_layout])
def test_operations_are_those_that_torch_counts(simulated, layout):
    counts = simulated.counts.tocsr()
    dataset = SampleDataset(
        MemoryCounts(counts.astype(np.float64)),
        tokenize(simulated.sequences, 40),
        simulated.sample_ids,
        simulated.sequences,
        np.arange(len(simulated.sequences)),
        DatasetOptions(),
    )
    batch = layout(dataset[BatchKey(0, (0, 1, 2, 3))])
    encoder = SequenceEncoder(dim=64, heads=4, layers=2, max_bp=40, clades=4)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        encoder(batch)
        encoder.restore_nucleotides(batch.tokens[:1], batch.padded, batch.tokens[:1] == 1)
    with FlopCounterMode(display=False) as one, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        encoder.asv_encoder.encode_tokens(batch.tokens[:1], batch.padded)  # the restored one: not in this batch
    counted = counter.get_total_flops() - one.get_total_flops()
    assert forward_flops(encoder, batch) == pytest.approx(counted, rel=0.03)


def test_it_prints_every_figure(simulated, tmp_path: Path):
    write_study(simulated, tmp_path)
    distances = np.abs(np.subtract.outer(np.linspace(0, 0.9, 12), np.linspace(0, 0.9, 12)))
    np.save(tmp_path / "d.npy", distances.astype(np.float32))
    arguments = ["benchmark", "train", "--table", str(tmp_path / "table.biom"), "--unifrac-matrix"]
    arguments += [str(tmp_path / "d.npy"), "--layout", "both", "--steps", "1", "--embedding-dim", "16", "--clades", "4"]
    arguments += ["--attention-layers", "1", "--batch-size", "6", "--num-workers", "0", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    distinct, padded = json.loads(result.stdout)
    assert (distinct["layout"], padded["layout"]) == ("distinct", "padded")
    assert padded["encoded_sequences"] > distinct["encoded_sequences"] > 0
    assert 0 <= distinct["waiting_share"] < 1
    assert padded["waiting_share"] is None
    for figures in (distinct, padded):
        assert 0 < figures["rate_share"] < 1
        assert figures["samples_per_second"] > 0
