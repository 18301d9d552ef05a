"""``aam distances``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["command"]

METRICS = ["unifrac", "weighted_unifrac", "generalized_unifrac", "bray_curtis", "jaccard", "aitchison", "faith_pd"]
PATH: Any = click.Path(path_type=Path, readable=False)


@click.command("distances")
@click.option("--table", type=PATH, required=True, help="Feature table.")
@click.option(
    "--metric",
    "--base-target",
    "--unifrac-metric",
    "metric",
    type=click.Choice(METRICS),
    default="unifrac",
    show_default=True,
    help="What to compute.",
)
@click.option("--tree", type=PATH, help="Rooted Newick tree with branch lengths, for UniFrac and Faith's PD.")
@click.option("--sequences", type=PATH, help="FASTA, where table and tree do not name ASVs alike.")
@click.option("--output", type=PATH, required=True, help="File to write: .h5, .tsv, .npz or .npy; faith_pd: .tsv.")
@click.option("--alpha", default=0.5, show_default=True, help="Weight of abundance in generalized UniFrac, 0 to 1.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "ssu", "skbio"]),
    default="auto",
    show_default=True,
    help="ssu (and faithpd), scikit-bio (or NumPy, where it lacks the metric), or ssu where it is installed.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of ssu; all cores by default.")
@click.option("--rarefy-depth", type=click.IntRange(1), help="Draw this many reads of each sample first.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of that draw.")
@click.option("--drop-missing", is_flag=True, help="Leave out ASVs that the tree lacks.")
@click.option("--cache-dir", "cache", type=PATH, help="Directory that keeps pruned trees and results.")
@click.option(
    "--cache-size", default=10.0, show_default=True, help="Its largest size in GB; the oldest use goes first."
)
@click.option("--save-pruned-tree", type=PATH, help="File to write the tree to, pruned to the table's ASVs.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def command(**options: Any) -> None:
    """Compute distances between samples, or Faith's PD of each, and write them to a file.

    A tree is pruned to the table's ASVs first, so it may be as large as they come.
    """
    from aam.distances import distances

    done = distances(**options)
    for note in done.notes:
        click.echo(f"Note: {note}", err=True)
    asvs = "" if done.asvs is None else f" with a tree of {done.asvs} ASVs"
    click.echo(
        f"{options['output']}: {done.result.metric} of {len(done.result.ids)} samples{asvs}, "
        f"by {done.result.engine} in {done.seconds:.1f} s"
    )
