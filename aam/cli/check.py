"""``aam check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command("check")
@click.option("--table", type=click.Path(path_type=Path), required=True, help="Feature table.")
@click.option("--sequences", type=click.Path(path_type=Path), help="FASTA of the features' sequences.")
@click.option("--unifrac-matrix", type=click.Path(path_type=Path), help="Distances between samples.")
@click.option("--metadata", type=click.Path(path_type=Path), help="Sample metadata.")
@click.option("--metadata-column", help="Column to predict.")
@click.option("--classifier", is_flag=True, help="The column holds classes.")
@click.option("--group-column", help="Column that keeps samples together.")
@click.option("--rarefy-depth", type=click.IntRange(min=1), help="Reads that samples would be subsampled to.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(as_json: bool, classifier: bool, **data: Any) -> None:
    """Read the inputs as `aam train` would and say what was found, or every problem at once.

    Exits with 0 if there is no problem, else with 1.
    """
    from aam.check import check
    from aam.config import DataConfig

    if data["metadata"] is None and (data["metadata_column"] or data["group_column"]):
        option = "--metadata-column" if data["metadata_column"] else "--group-column"
        raise click.UsageError(f"{option} {data['metadata_column'] or data['group_column']!r} needs --metadata")
    report = check(DataConfig(**data), classifier=classifier)
    click.echo(json.dumps(report, indent=2) if as_json else _page(report))
    sys.exit(1 if report["problems"] else 0)


def _page(report: dict[str, Any]) -> str:
    lines = []
    samples, asvs, distances, target = report["samples"], report["asvs"], report["distances"], report["target"]
    if samples is not None:
        lines.append(f"samples     {samples['used']} of {samples['table']} are used")
        lines += [f"            {number} left out: {reason}" for reason, number in samples["left_out"].items()]
    if asvs is not None:
        lines.append(f"ASVs        {asvs['count']}, {asvs['length_min']} to {asvs['length_max']} bases")
    if distances is not None:
        lines.append(f"distances   {distances['samples']} samples, mean {distances['mean']:.3f}")
        lines[-1] += f", largest {distances['max']:.3f}"
    if target is not None:
        lines.append("target      " + ", ".join(f"{name} {value}" for name, value in target.items()))
    lines += [f"Warning: {text}" for text in report["warnings"]]
    lines += [f"Problem: {text}" for text in report["problems"]]
    return "\n".join([*lines, "" if report["problems"] else "No problem found."]).rstrip()
