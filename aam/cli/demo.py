"""``aam demo``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("demo")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Directory to write everything to.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of every draw.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of PyTorch.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
def command(output_dir: Path, seed: int, threads: int | None, overwrite: bool) -> None:
    """Simulate a study and take it through the whole program.

    Simulate, compute distances, pre-train, train, predict; then compare with a guess and a random forest on subjects
    that none of them has seen. Takes minutes on a laptop.
    """
    from aam.cli.options import log_to_console
    from aam.cli.report import table

    log_to_console()
    from aam.demo import demo

    result = demo(output_dir, seed=seed, overwrite=overwrite, threads=threads)
    rows = [("months of age", "MAE", "R²", "of the guess's error")]
    guess = next(iter(result.rows.values()))["mae"]
    for name, metrics in result.rows.items():
        rows.append((name, f"{metrics['mae']:.2f}", f"{metrics['r2']:.2f}", f"{metrics['mae'] / guess:.0%}"))
    click.echo(f"\n{result.samples} held-out samples of subjects that none of these has seen:\n\n{table(rows)}\n")
    click.echo("Plots:")
    for path in result.plots:
        click.echo(f"  {path}")
    click.echo(f"Curves:  tensorboard --logdir {result.directory}")
    click.echo("What the model file is:  aam info " + str(result.directory / "train"))
