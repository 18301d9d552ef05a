"""``aam predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aam.cli.options import log_to_console, machine_options, usage_errors
from aam.cli.report import metric_lines

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["command"]


@click.command("predict")
@click.option(
    "--model",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    help="Run directory of `aam train`, or its model file; folds and seeds are averaged.",
)
@click.option(
    "--table",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    multiple=True,
    help="Feature table of the samples; several are added up.",
)
@click.option(
    "--sequences",
    type=click.Path(path_type=Path, readable=False),
    multiple=True,
    help="FASTA or QIIME 2 artifact, where feature IDs are not DNA themselves.",
)
@click.option(
    "--metadata",
    type=click.Path(path_type=Path, readable=False),
    multiple=True,
    help="Where it holds the predicted column, the truth stands beside the predictions.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Add the interval, or the set of classes, that holds the truth of this share of new samples: 0.9, say.",
)
@click.option("--output", type=click.Path(path_type=Path, readable=False), required=True, help="TSV to write.")
@click.option(
    "--familiarity",
    type=click.Path(path_type=Path, readable=False),
    help="TSV to write of how like the training samples each sample is, with a flag where it is not.",
)
@click.option("--streaming", is_flag=True, help="Leave the counts in the table's file (BIOM 2.1).")
@machine_options()
def command(
    model: Path,
    table: tuple[Path, ...],
    sequences: tuple[Path, ...],
    metadata: tuple[Path, ...],
    output: Path,
    familiarity: Path | None,
    streaming: bool,
    interval: float | None,
    **machine: Any,
) -> None:
    """Predict new samples with a trained model, in original units or labels.

    No distance matrix is needed. Samples that cannot be predicted are named with the reason, and those that are far
    from anything the model has learnt from are said to be.
    """
    from aam.config import TrainConfig
    from aam.errors import DataError

    for option, path in (("--output", output), ("--familiarity", familiarity)):
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise DataError(f"{path}: cannot be written; give {option} a file in an existing directory")
        for source in (*table, *sequences, *metadata, model):
            if path.absolute() == source.absolute():
                what = "the predictions" if path is output else "the table of familiarity"
                raise DataError(f"{path}: is an input, which {what} would replace; give another {option}")
    if familiarity is not None and familiarity.absolute() == output.absolute():
        raise DataError(f"{output}: cannot hold both tables; give --familiarity another file than --output")
    log_to_console()
    with usage_errors():
        settings = TrainConfig(output_dir=output.parent, **{k: v for k, v in machine.items() if v is not None})
    from aam.predict import predict

    result = predict(
        *(model, table),
        sequences=sequences,
        metadata=metadata,
        streaming=streaming,
        interval=interval,
        settings=settings,
        profile_needed=familiarity is not None,
    )
    familiar = result.familiarity
    _write(output, result.table)
    if familiarity is not None and familiar is not None:
        _write(familiarity, familiar.table)
    click.echo(f"{len(result.table)} samples predicted: {output}")
    for reason, names in result.left_out.items():
        click.echo(f"{len(names)} left out: {reason} ({', '.join(names[:5])}{', …' if names[5:] else ''})")
    if result.learnt_from:
        click.echo(
            f"{result.learnt_from} of these the model has learnt from: how well it predicts them says nothing of how "
            "well it predicts new ones"
        )
    if familiar is not None:
        click.echo(familiar.summary + ("" if familiarity is None else f": {familiarity}"))
    if result.metrics:
        click.echo(metric_lines(result.metrics))


def _write(path: Path, table: DataFrame) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    table.to_csv(unfinished, sep="\t", index=False)
    unfinished.replace(path)
