"""``aam check``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from aam.cli.options import study_options, usage_errors

__all__ = ["command"]


@click.command("check")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(as_json: bool, **typed: Any) -> None:
    """Read the inputs as `aam train` would and say what was found, or every problem at once.

    Exits with 0 if there is no problem, else with 1.
    """
    from aam.check import check
    from aam.config import DataConfig

    given = {name: value for name, value in typed.items() if value not in (None, ())}
    if "table" not in given:
        raise click.UsageError("Missing option '--table'.")
    options = {
        name: given.pop(name)
        for name in ("max_bp", "classifier", "target_transform", "base_target", "seed")
        if name in given
    }
    with usage_errors():
        data = DataConfig(**given)
    report = check(data, **options)
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
