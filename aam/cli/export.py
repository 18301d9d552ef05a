"""``aam export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aam.cli.options import log_to_console, machine_options, usage_errors
from aam.cli.report import table as text_table

if TYPE_CHECKING:
    from aam.export import Exported

__all__ = ["command"]

_PATH = click.Path(path_type=Path, readable=False)


@click.command("export")
@click.option("--model", type=_PATH, required=True, help="Run directory of `aam train` or `aam pretrain`.")
@click.option("--output", type=_PATH, required=True, help="ONNX file to write.")
@click.option(
    "--opset",
    type=click.Choice(["18", "19", "20"]),
    default="18",
    show_default=True,
    help="Version of the operators; older runtimes know the lower ones alone.",
)
@click.option(
    "--table",
    type=_PATH,
    multiple=True,
    help="Feature table of samples to check the file on; by default that of the run, where it still is.",
)
@click.option("--sequences", type=_PATH, multiple=True, help="FASTA or QIIME 2 artifact, where IDs are not DNA.")
@click.option("--metadata", type=_PATH, multiple=True, help="Covariates of these samples, where the model reads any.")
@click.option("--benchmark", is_flag=True, help="Print how long predictions take in PyTorch and in ONNX Runtime.")
@machine_options("batch_size", "threads", "num_workers")
def command(
    model: Path,
    output: Path,
    opset: str,
    table: tuple[Path, ...],
    sequences: tuple[Path, ...],
    metadata: tuple[Path, ...],
    benchmark: bool,
    **machine: Any,
) -> None:
    """Write a model as ONNX, for programs without PyTorch; `aam predict` takes the file, too.

    It is written once ONNX Runtime has given the same answers as PyTorch, to samples of --table, or of the run's own
    table, or to simulated ones.
    """
    from aam.config import TrainConfig
    from aam.errors import DataError

    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"{output}: cannot be written; give a file in an existing directory")
    if output.absolute() in {source.absolute() for source in (*table, *sequences, *metadata, model)}:
        raise DataError(f"{output}: is an input, which would be replaced; give another")
    if (sequences or metadata) and not table:
        raise click.UsageError("--sequences and --metadata are of --table; give it, too")
    log_to_console()
    with usage_errors():
        settings = TrainConfig(output_dir=output.parent, **{k: v for k, v in machine.items() if v is not None})
    from aam.export import export

    done = export(
        *(model, output),
        opset=int(opset),
        table=table,
        sequences=sequences,
        metadata=metadata,
        benchmark=benchmark,
        settings=settings,
    )
    _print(done, output)


def _print(done: Exported, output: Path) -> None:
    from aam.export import TOLERANCE

    size = output.stat().st_size / 1e6
    models = "1 model" if done.models == 1 else f"{done.models} models in one graph"
    click.echo(f"{output}: {models}, opset {done.opset}, {size:.1f} MB")
    click.echo(f"inputs: {', '.join(done.inputs)}\noutputs: {', '.join(done.outputs)}")
    if done.joined is not None:
        click.echo(f"the joined {done.joined.replace('_', ' ')} is kept beside the graph: `aam predict` applies it")
    click.echo(f"\nagainst PyTorch, {done.samples} samples in {done.batches} batches (allowed: {TOLERANCE:g} of scale)")
    rows = [(name, f"{largest:.1e}", f"{scale:.3g}") for name, largest, scale in done.differences]
    click.echo(text_table([("output", "largest difference", "scale"), *rows]))
    for reason, names in done.left_out.items():
        click.echo(f"{len(names)} left out: {reason} ({', '.join(names[:5])}{', …' if names[5:] else ''})")
    if done.timings:
        times = [
            (
                f"{each.samples} samples, {each.asvs} ASVs of {each.length} tokens",
                f"{1000 * each.pytorch:.1f}",
                f"{1000 * each.onnx:.1f}",
            )
            for each in done.timings
        ]
        click.echo("\n" + text_table([("batch", "PyTorch, ms", "ONNX Runtime, ms"), *times]))
