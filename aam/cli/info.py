"""``aam info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("info")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(run: Path, as_json: bool) -> None:
    """Say what RUN, a run directory or model file, is: task, settings, provenance, inputs, metrics."""
    from aam.training.checkpoint import model_path, read_header

    path = model_path(run)
    header = read_header(path)
    final = path.with_name("metrics.json")
    if final.is_file():
        header["metrics"] = json.loads(final.read_text(encoding="utf-8"))
    if as_json:
        click.echo(json.dumps(header, indent=2))
        return
    config, provenance = header["config"], header["provenance"]
    target = header["target"]
    if target is None:
        task = "pretrain: distances and masked nucleotides"
    elif target["kind"] == "classes":
        task = f"train: {target['column']}, classes {', '.join(target['classes'])}"
    else:
        task = f"train: {target['column']}, a number (learnt as {target['transform']})"
    click.echo(f"{path}\n{task}")
    click.echo(
        f"format {header['format_version']}, written {provenance['created']} by AAM {provenance['aam']} with PyTorch "
        f"{provenance['torch']} from {provenance['samples']} samples and {provenance['asvs']} ASVs"
    )
    for section in ("data", "model", "task", "optim", "train"):
        settings = "  ".join(f"{k}={v}" for k, v in config[section].items() if v is not None)
        click.echo(f"\n{section}: {settings}")
    click.echo("\ninputs (sha256):")
    for name, digest in header["checksums"].items():
        click.echo(f"  {name}  {digest}")
    click.echo("\nmetrics:")
    click.echo(json.dumps(header["metrics"], indent=2))
