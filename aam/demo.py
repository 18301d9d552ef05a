"""The program taken once through a simulated study: what ``aam demo`` does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from aam.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from aam.data.distances import unweighted_unifrac, write_distances_h5
from aam.data.simulate import SimulatedStudy, simulate_study, write_study
from aam.data.splits import read_splits
from aam.evaluation.baseline import guess_baseline, random_forest_baseline
from aam.predict import predict
from aam.run import run
from aam.run_directory import RunDirectory
from aam.training.metrics import regression_metrics

__all__ = ["DemoResult", "demo"]

logger = logging.getLogger("aam")

COLUMN, GROUP = "age", "subject_id"


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to."""

    directory: Path
    samples: int  # held out
    rows: dict[str, dict[str, float]]  # by predictor: mae, r2, …
    plots: list[Path]


def demo(directory: Path, *, seed: int = 0, overwrite: bool = False, threads: int | None = None) -> DemoResult:
    """Simulate a study, compute UniFrac, pre-train, train, predict, and compare on held-out subjects.

    Parameters
    ----------
    directory : Path
        Gets ``study/``, ``pretrain/``, ``train/`` and ``predictions.tsv``.
    seed : int
    overwrite : bool
        Replace an earlier demo there.
    threads : int, optional

    Raises
    ------
    DataError
        If ``directory`` holds a demo and ``overwrite`` is not given.
    """
    folder = directory / "study"
    for name in ("pretrain", "train"):
        RunDirectory(directory / name).require_free(resume=False, overwrite=overwrite)
    logger.info("1/5  simulating a study: infants whose microbiome ages")
    study = simulate_study(seed=seed)
    write_study(study, folder)
    logger.info("2/5  computing unweighted UniFrac with scikit-bio")
    matrix = unweighted_unifrac(study.counts, study.sequences, study.tree, study.sample_ids)
    write_distances_h5(folder / "unifrac.h5", study.sample_ids, matrix)

    data = DataConfig(
        table=(folder / "table.biom",),
        unifrac_matrix=(folder / "unifrac.h5",),
        metadata=(folder / "metadata.tsv",),
        group_column=GROUP,
        test_size=0.25,
    )
    model = ModelConfig(embedding_dim=64, attention_heads=2)
    train = TrainConfig(
        output_dir=directory / "pretrain", epochs=12, batch_size=16, seed=seed, overwrite=overwrite, threads=threads
    )
    optim = OptimConfig(lr=5e-4)
    logger.info("3/5  aam pretrain: learning sequences and communities from distances")
    run(RunConfig(command="pretrain", data=data, model=model, optim=optim, train=train))

    logger.info("4/5  aam train: learning %s from the pre-trained encoder", COLUMN)
    fine_tuned = run(
        RunConfig(
            command="train",
            data=DataConfig(
                table=data.table, unifrac_matrix=data.unifrac_matrix, metadata=data.metadata, metadata_column=(COLUMN,)
            ),
            optim=optim,
            train=train.model_copy(
                update={
                    "output_dir": directory / "train",
                    "epochs": 12,
                    "pretrained_encoder": directory / "pretrain",
                }
            ),
        )
    )
    logger.info("5/5  aam predict")
    result = predict(directory / "train", data.table, metadata=data.metadata, settings=train)
    result.table.to_csv(directory / "predictions.tsv", sep="\t", index=False)

    split = read_splits(directory / "train" / "splits.tsv")
    held_out = result.table[[split[name] == "test" for name in result.table["sample_id"]]]
    rows = _baselines(study, split, seed)
    rows["AAM"] = regression_metrics(held_out["actual"].to_numpy(), held_out["predicted"].to_numpy())
    plots = [fine_tuned.directory / "plots" / f"{name}.png" for name in ("test_predictions", "history")]
    plots.append(directory / "pretrain" / "plots" / "test_distances_clade.png")
    return DemoResult(directory, len(held_out), rows, plots)


def _baselines(study: SimulatedStudy, split: dict[str, str], seed: int) -> dict[str, dict[str, float]]:
    """What a guess and a random forest come to on the same held-out samples."""
    ages = study.metadata[COLUMN].to_numpy(dtype=float)
    part = np.array([split[name] for name in study.sample_ids])
    # The forest needs no validation samples to know when to stop, so it may learn from those too.
    learnt, held_out = np.flatnonzero(part != "test"), np.flatnonzero(part == "test")
    counts = sparse.csr_array(study.counts)
    forest = random_forest_baseline(counts[learnt], ages[learnt], counts[held_out], classifier=False, seed=seed)
    guess = guess_baseline(ages[learnt], len(held_out), False)
    return {
        "guess (median)": regression_metrics(ages[held_out], guess.predicted),
        "random forest": regression_metrics(ages[held_out], forest.predicted),
    }
