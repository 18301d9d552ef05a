"""``aam benchmark report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aam.cli.options import log_to_console
from aam.cli.report import table

__all__ = ["command"]


@click.command("report")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), required=True, help="Where report, figures and plots go."
)
@click.option("--quick", is_flag=True, help="Tiny studies and a tiny network, in seconds: to try it out.")
@click.option("--repeats", type=click.IntRange(min=1, max=1000), default=5, show_default=True, help="Of what is timed.")
@click.option("--name", default="", help="Of this run.  [default: its processor or GPU]")
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path, readable=False),
    metavar="JSON",
    help="Hold this run against the report.json of another.  (may be given several times)",
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, readable=False),
    metavar="JSON",
    help="Measure nothing; compare these, with the first.  (at least twice)",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where."
)
@click.option("--threads", type=click.IntRange(min=1, max=1024), help="CPU threads of PyTorch.")
@click.option("--overwrite", is_flag=True, help="Replace a report in --output-dir.")
def command(
    output_dir: Path,
    quick: bool,
    repeats: int,
    against: tuple[Path, ...],
    sources: tuple[Path, ...],
    overwrite: bool,
    **machine: Any,
) -> None:
    """Measure simulated studies of standard sizes, or compare runs and machines; Markdown, JSON and plots.

    Measured are training steps with each distinct ASV encoded once and with every occurrence padded, their memory,
    reading and batches, predictions, and the files of a model.
    """
    if sources and against:
        raise click.UsageError("--from compares runs without measuring, and --against measures one; give one of them")
    if len(sources) == 1:
        raise click.UsageError("--from: give it at least twice; the first is what the others are held against")
    log_to_console()
    from aam.benchmarks.comparison import compare, read_run, require_settings
    from aam.benchmarks.report import comparison_rows, require_free, run_rows, write_report
    from aam.benchmarks.standard import QUICK, STANDARD, measure_standard

    require_free(output_dir, overwrite=overwrite)
    others = [read_run(path) for path in sources or against]
    measured = None
    if not sources:
        settings = QUICK if quick else STANDARD
        require_settings(others, settings)  # before minutes of measuring
        measured = measure_standard(settings, repeats, **machine)
    write_report(output_dir, measured, others)
    if measured is not None:
        click.echo(table(run_rows(measured)) + "\n")
    runs = [*others, *([] if measured is None else [measured])]
    if len(runs) > 1:
        click.echo(table(comparison_rows(runs, compare(runs))) + "\n")
    click.echo(f"Report: {output_dir / 'report.md'}")
