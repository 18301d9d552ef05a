"""``aam predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aam.cli.options import log_to_console, machine_options, usage_errors
from aam.cli.report import metric_lines

__all__ = ["command"]


@click.command("predict")
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help="Run directory of `aam train`; folds are averaged."
)
@click.option("--table", type=click.Path(path_type=Path), required=True, help="Feature table of the samples.")
@click.option("--sequences", type=click.Path(path_type=Path), help="FASTA, where feature IDs are not DNA themselves.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="Where it holds the predicted column, the truth stands beside the predictions.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="TSV to write.")
@machine_options
def command(
    model: Path, table: Path, sequences: Path | None, metadata: Path | None, output: Path, **machine: Any
) -> None:
    """Predict new samples with a trained model, in original units or labels.

    No distance matrix is needed. Samples that cannot be predicted are named with the reason.
    """
    from aam.config import TrainConfig
    from aam.errors import DataError

    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"{output}: cannot be written; give --output a file in an existing directory")
    log_to_console()
    with usage_errors():
        settings = TrainConfig(output_dir=output.parent, **{k: v for k, v in machine.items() if v is not None})
    from aam.predict import predict

    result = predict(model, table, sequences=sequences, metadata=metadata, settings=settings)
    unfinished = output.with_name(output.name + ".tmp")
    result.table.to_csv(unfinished, sep="\t", index=False)
    unfinished.replace(output)
    click.echo(f"{len(result.table)} samples predicted: {output}")
    for reason, names in result.left_out.items():
        click.echo(f"{len(names)} left out: {reason} ({', '.join(names[:5])}{', …' if names[5:] else ''})")
    if result.metrics:
        click.echo(metric_lines(result.metrics))
