"""``aam info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command("info")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(run: Path, as_json: bool) -> None:
    """Say what RUN, a run directory or model file, is: task, settings, provenance, inputs, metrics."""
    from aam.data.targets import ClassTarget
    from aam.errors import DataError
    from aam.training.checkpoint import model_path, read_header, read_target

    path = model_path(run)
    header = read_header(path)
    target = read_target(header, path)
    final = path.with_name("metrics.json")
    if final.is_file():
        try:
            header["metrics"] = json.loads(final.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"{final}: is not JSON; remove it to see what the model file itself says") from None
    if as_json:
        click.echo(json.dumps(header, indent=2))
        return
    if target is None:
        task = "pretrain: distances and masked nucleotides"
    elif isinstance(target, ClassTarget):
        task = f"train: {target.column}, classes {', '.join(target.classes)}"
    else:
        task = f"train: {target.column}, a number (learnt as {target.transform})"
    click.echo(f"{path}\n{task}")
    provenance = _part(header, "provenance")
    created, version, torch, samples, asvs = (
        provenance.get(name, "?") for name in ("created", "aam", "torch", "samples", "asvs")
    )
    click.echo(
        f"format {header['format_version']}, written {created} by AAM {version} with PyTorch {torch} "
        f"from {samples} samples and {asvs} ASVs"
    )
    for section in ("data", "model", "task", "optim", "train", "augmentation"):
        settings = "  ".join(f"{k}={v}" for k, v in _part(header["config"], section).items() if v is not None)
        click.echo(f"\n{section}: {settings}")
    click.echo("\ninputs (sha256):")
    for name, digest in _part(header, "checksums").items():
        click.echo(f"  {name}  {digest}")
    click.echo("\nmetrics:")
    click.echo(json.dumps(_part(header, "metrics"), indent=2))


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within JSON; empty where a file made elsewhere lacks it."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}
