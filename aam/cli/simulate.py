"""``aam simulate``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("simulate")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Directory to write the study to.")
@click.option("--samples", type=click.IntRange(2), default=200, show_default=True, help="Number of samples.")
@click.option("--asvs", type=click.IntRange(8), default=300, show_default=True, help="Number of ASVs.")
@click.option(
    "--subjects",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Number of subjects that the samples are taken from.",
)
@click.option("--length", type=click.IntRange(20), default=150, show_default=True, help="Bases of every sequence.")
@click.option("--depth", type=click.IntRange(1), default=5000, show_default=True, help="Median reads of a sample.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of every draw.")
@click.option(
    "--plant",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Add a column, planted, that so many clades alone decide: for what is to find them.",
)
@click.option("--overwrite", is_flag=True, help="Replace the study in --output-dir.")
def command(
    output_dir: Path,
    samples: int,
    asvs: int,
    subjects: int,
    length: int,
    depth: int,
    seed: int,
    plant: int,
    overwrite: bool,
) -> None:
    """Write a small study: table, tree, metadata, and the truth behind them.

    Sequences evolve along a tree; some of its clades grow or shrink with the age of a subject. So ages can be learnt,
    and UniFrac means something.
    """
    from aam.data.simulate import plant_target, simulate_study, write_study
    from aam.errors import DataError

    if (output_dir / "table.biom").exists() and not overwrite:
        raise DataError(f"{output_dir}: holds a study already; give --overwrite to replace it")
    study = simulate_study(samples=samples, asvs=asvs, subjects=subjects, length=length, depth=depth, seed=seed)
    if plant:
        study, _ = plant_target(study, clades=plant, seed=seed)
    for path in write_study(study, output_dir):
        click.echo(path)
