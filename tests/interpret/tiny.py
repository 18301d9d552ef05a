"""Small networks, untrained, and samples for them to read."""

from __future__ import annotations

import numpy as np
import torch

from aam.data.counts import MemoryCounts, SampleRows
from aam.interpret.output import Explained, Network, Reading
from aam.interpret.samples import Samples
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.sequence_predictor import SequencePredictor
from tests.conftest import MAX_BP, TinyStudy


def samples_of(study: TinyStudy) -> Samples:
    rows = MemoryCounts(study.table).rows(np.arange(len(study)))
    return Samples(rows, rows.depth(), len(study.sequences))


def network_of(study: TinyStudy, outputs: int = 1, seed: int = 0, **options: object) -> Network:
    """A network whose predictions depend on ASVs and abundances by more than a little."""
    torch.manual_seed(seed)
    encoder = SequenceEncoder(dim=16, heads=2, layers=1, max_bp=MAX_BP, clades=8, targets=(), **options)  # type: ignore[arg-type]
    predictor = SequencePredictor(encoder, outputs).eval()
    with torch.no_grad():
        embeddings = encoder.asv_encoder(torch.from_numpy(study.tokens), True)
    return Network(predictor, embeddings)


def explained_of(study: TinyStudy, networks: int = 1, **options: object) -> Explained:
    return Explained([network_of(study, seed=seed, **options) for seed in range(networks)], Reading(slice(0, 1)))


def rows_of(samples: Samples, kept: list[int]) -> Samples:
    """Some samples."""
    parts = [samples[sample] for sample in kept]
    indptr = np.concatenate([[0], np.cumsum([len(part.asvs) for part in parts])])
    rows = SampleRows(
        indptr, np.concatenate([part.asvs for part in parts]), np.concatenate([part.counts for part in parts])
    )
    return Samples(rows, np.array([part.depth for part in parts]), samples.asvs)
