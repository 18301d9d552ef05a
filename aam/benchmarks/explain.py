"""Do importances find what decides? A study with a planted target, a network that learns it, and each method."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aam.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TaskConfig, TrainConfig
from aam.data.simulate import plant_target, simulate_study, write_study
from aam.explain import Question, explain
from aam.run import run

__all__ = ["PlantedBenchmark", "benchmark_explain"]

TOP = 20


@dataclass(frozen=True)
class PlantedBenchmark:
    """How well one method finds the ASVs that decide."""

    method: str
    precision: float  # share of the top 20 that are of the planted clades
    most: float  # what it would be if all of these were among the top 20
    chance: float  # the same of ASVs drawn at random
    auc: float  # probability that one that decides stands above one that does not
    deletion_ratio: float  # change when the top ASVs are left out, over that when random ones are
    r2: float  # of the network, on the held-out subjects

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark_explain(
    methods: tuple[str, ...],
    *,
    samples: int = 300,
    asvs: int = 120,
    clades: int = 3,
    length: int = 80,
    epochs: int = 60,
    dim: int = 32,
    seed: int = 0,
    threads: int | None = None,
) -> list[PlantedBenchmark]:
    """Plant a target, train on it, explain all samples, and compare with the truth.

    Parameters
    ----------
    methods : tuple of str
        Of `aam.explain.METHODS`.
    samples, asvs, clades, length : int
        Of the study, see `aam.data.simulate`.
    epochs, dim : int
        Of the network.
    seed : int
    threads : int, optional
    """
    from sklearn.metrics import roc_auc_score

    drawn = simulate_study(samples=samples, asvs=asvs, subjects=samples // 3, length=length, seed=seed)
    study, causal = plant_target(drawn, clades=clades, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_study(study, directory)
        machine: dict[str, Any] = {"threads": threads, "num_workers": 0, "device": "cpu"}
        config = RunConfig(
            command="train",
            data=DataConfig(
                table=directory / "table.biom",  # type: ignore[arg-type]
                metadata=directory / "metadata.tsv",  # type: ignore[arg-type]
                metadata_column="planted",  # type: ignore[arg-type]
                group_column="subject_id",
                val_size=0.2,
            ),
            model=ModelConfig(embedding_dim=dim, attention_heads=2, attention_layers=1, clades=64, max_bp=length),
            task=TaskConfig(nuc_weight=0.0),
            optim=OptimConfig(lr=2e-3),
            train=TrainConfig(
                output_dir=directory / "run",
                epochs=epochs,
                choose_epochs=False,
                batch_size=32,
                seed=seed,
                plots=False,
                **machine,
            ),
        )
        result = run(config)
        found = explain(
            directory / "run",
            directory / "table.biom",
            question=Question(methods=methods, seed=seed),
            settings=TrainConfig(output_dir=directory, **machine),
        )
    decides = np.isin(found.sequences, causal)
    measured = []
    for one in found.found:
        top = np.argsort(-one.importances.importance, kind="stable")[:TOP]
        measured.append(
            PlantedBenchmark(
                one.method,
                precision=float(decides[top].mean()),
                most=min(1.0, int(decides.sum()) / TOP),
                chance=float(decides.mean()),
                auc=float(roc_auc_score(decides, one.importances.importance)),
                deletion_ratio=found.summary["methods"][one.method]["deletion"]["ratio"],
                r2=float(result.metrics["val"]["r2"]),
            )
        )
    return measured
