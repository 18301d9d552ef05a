"""``aam info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["command"]

SECTIONS = ("data", "model", "task", "optim", "train", "augmentation")


@click.command("info")
@click.argument("run", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(run: Path, as_json: bool) -> None:
    """Say what RUN, a run directory or model file, is: task, settings, provenance, inputs, metrics."""
    from aam.data.targets import ClassTarget, SeveralTargets
    from aam.errors import DataError
    from aam.integrations.onnx_session import header_of_onnx
    from aam.networks import is_onnx
    from aam.training.checkpoint import MODEL_NAME, model_path, read_header, read_target

    if run.is_dir() and not (run / MODEL_NAME).is_file() and any(run.glob("fold_0*")):
        _print_folds(run, as_json)
        return
    path = model_path(run, finished=False)
    header = header_of_onnx(path) if is_onnx(path) else read_header(path)
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
    if isinstance(target, SeveralTargets):
        kind = "classes" if isinstance(target.parts[0], ClassTarget) else "numbers"
        task = f"train: {target.column}, {kind}, together"
    elif target is None:
        task = "pretrain: distances and masked nucleotides"
    elif isinstance(target, ClassTarget):
        task = f"train: {target.column}, classes {', '.join(target.classes)}"
    else:
        task = f"train: {target.column}, a number (learnt as {target.transform})"
    data = _part(header["config"], "data")
    given = [*data.get("categorical_columns", ()), *data.get("numeric_columns", ())]
    if given:
        task += f"; given {', '.join(given)}"
    members = header.get("members", [])
    together = f", the mean of {len(members)} models: {', '.join(member['name'] for member in members)}"
    if joined := _part(header, "joined"):
        share = joined.get("share", 0.0)
        task += f"; the network (weight {share:g}) with {joined.get('name', '?').replace('_', ' ')} ({1 - share:g})"
    click.echo(f"{path}\n{task}{together if members else ''}")
    if "opset" in header:
        click.echo(f"ONNX, opset {header['opset']}: `aam predict` takes it, and any program with ONNX Runtime")
    if run.is_dir() and not final.is_file():
        click.echo("not finished: this is the best model so far; --resume continues the run")
    provenance = _part(header, "provenance")
    created, version, torch, samples, asvs = (
        provenance.get(name, "?") for name in ("created", "aam", "torch", "samples", "asvs")
    )
    click.echo(
        f"format {header['format_version']}, written {created} by AAM {version} with PyTorch {torch} "
        f"from {samples} samples and {asvs} ASVs"
    )
    for section in SECTIONS:
        click.echo(_settings(header["config"], section))
    click.echo("\ninputs (sha256):")
    for name, digest in _part(header, "checksums").items():
        click.echo(f"  {name}  {digest}")
    if metrics := _part(header, "metrics"):
        click.echo(f"\nmetrics:\n{json.dumps(_rounded(metrics), indent=2)}")


def _print_folds(run: Path, as_json: bool) -> None:
    """Of a run with folds: its settings, and its metrics once all folds are trained."""
    from aam.errors import DataError
    from aam.run_directory import RunDirectory

    runs = RunDirectory(run).runs()
    content: dict[str, Any] = {}
    for name in ("config", "metrics"):
        path = run / f"{name}.json"
        try:
            content[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            raise DataError(f"{path}: is not JSON; look at one run, {runs[0]} say") from None
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    config = content["config"] if isinstance(content["config"], dict) else {}
    parts = [dict(zip(path.name.split("_")[::2], path.name.split("_")[1::2], strict=True)) for path in runs]
    numbers = [(len({each[kind] for each in parts if kind in each}), kind) for kind in ("fold", "seed")]
    members = " of ".join(f"{number} {kind}s" for number, kind in numbers if number)
    columns = _part(config, "data").get("metadata_column")
    column = ", ".join(columns) if isinstance(columns, list) else columns
    state = "" if content["metrics"] else ", not all of them trained (--resume goes on)"
    click.echo(f"{run}\n{config.get('command', '?')}{f': {column}' if column else ''}, {members}{state}")
    for section in SECTIONS:
        click.echo(_settings(config, section))
    if content["metrics"]:
        click.echo(f"\nmetrics:\n{json.dumps(_rounded(content['metrics']), indent=2)}")
    click.echo(f"\n`aam info {runs[0]}` says more of one of them.")


def _settings(config: dict[str, Any], section: str) -> str:
    settings = "  ".join(f"{k}={v}" for k, v in _part(config, section).items() if v is not None)
    return f"\n{section}: {settings}"


def _rounded(content: Any) -> Any:
    """Numbers to the digits that tell something; ``--json`` has all."""
    if isinstance(content, dict):
        return {name: _rounded(part) for name, part in content.items()}
    if isinstance(content, list):
        return [_rounded(part) for part in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within JSON; empty where a file made elsewhere lacks it."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}
