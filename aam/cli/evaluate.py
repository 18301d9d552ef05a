"""``aam evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aam.cli.options import log_to_console
from aam.cli.report import table as as_table

__all__ = ["command"]

_PATH = click.Path(path_type=Path, readable=False)


@click.command("evaluate")
@click.argument("paths", metavar="[RUN|PREDICTIONS]...", nargs=-1, type=_PATH)
@click.option(
    "--predictions",
    type=_PATH,
    multiple=True,
    help="What `aam predict` wrote, or a run directory, as the arguments; several are compared.",
)
@click.option("--output-dir", type=_PATH, required=True, help="Gets report.html, tables, pictures and metrics.json.")
@click.option("--metadata", type=_PATH, multiple=True, help="What may explain errors, and the truth if need be.")
@click.option("--metadata-column", help="The truth, where the predictions lack it; or which of several.")
@click.option("--group-column", help="Column (a subject, say) whose groups are resampled as wholes.")
@click.option("--table", type=_PATH, multiple=True, help="Feature table, for depth and richness of the samples.")
@click.option("--part", type=click.Choice(["oof", "test", "val"]), help="Which predictions of a run directory.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(
    paths: tuple[Path, ...],
    predictions: tuple[Path, ...],
    output_dir: Path,
    metadata: tuple[Path, ...],
    metadata_column: str | None,
    group_column: str | None,
    table: tuple[Path, ...],
    part: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Judge predictions against the truth: metrics with intervals, where the errors are, and which model is better.

    Of a run directory, the out-of-fold, else the test, else the validation predictions are judged, and its config.json
    says where metadata and table are and which column is which.
    """
    from aam.errors import DataError

    predictions = (*paths, *predictions)
    if not predictions:
        raise click.UsageError("give a run directory or a file that `aam predict` wrote")
    if output_dir.exists() and not output_dir.is_dir():
        raise DataError(f"{output_dir}: is a file; give another --output-dir")
    log_to_console()
    from aam.evaluate import evaluate

    result = evaluate(
        predictions,
        output_dir,
        metadata=metadata,
        metadata_column=metadata_column,
        group_column=group_column,
        table=table,
        part=part,
        overwrite=overwrite,
    )
    if as_json:
        click.echo(json.dumps({"predictions": result.metrics, "comparisons": result.comparisons}, indent=2))
        return
    for name, found in result.metrics.items():
        groups = f" of {found['groups']} groups" if "groups" in found else ""
        rows: list[tuple[str, ...]] = [("metric", "value", *(("95% from", "to") if found["intervals"] else ()))]
        for metric, value in found["metrics"].items():
            ends = found["intervals"].get(metric, ("", "")) if found["intervals"] else ()
            rows.append((metric, f"{value:.4f}", *(end if end == "" else f"{end:.4f}" for end in ends)))
        click.echo(f"\n{name}: {found['samples']} samples{groups}\n{as_table(rows)}")
        for caution in found["cautions"]:
            click.echo(caution)
    for each in result.comparisons:
        low, high = each["interval"]
        ends = "" if low is None else f" ({low:.4f} to {high:.4f})"
        click.echo(
            f"\n{each['first']} - {each['second']}: mean error differs by {each['difference']:.4f}{ends}, "
            f"p = {each['p']:.3g}, on the {each['samples']} samples of known truth that both predict"
        )
        for one in ("first", "second"):
            if each[f"only_{one}"]:
                click.echo(f"{each[f'only_{one}']} samples of {each[one]} are not compared.")
        for caution in each["cautions"]:
            click.echo(caution)
    click.echo(f"\nReport: {result.directory / 'report.html'}")
