"""``aam embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aam.cli.options import log_to_console, machine_options, usage_errors

__all__ = ["command"]

_PATH = click.Path(path_type=Path, readable=False)
_MOST_POINTS = 5000


@click.command("embed")
@click.option("--model", type=_PATH, required=True, help="Run directory of `aam pretrain` or `aam train`.")
@click.option("--table", type=_PATH, required=True, multiple=True, help="Feature table; several are added up.")
@click.option("--sequences", type=_PATH, multiple=True, help="FASTA or QIIME 2 artifact, where IDs are not DNA.")
@click.option("--metadata", type=_PATH, multiple=True, help="Goes into .h5ad, and colours the plot.")
@click.option("--output", type=_PATH, help="Embeddings of the samples: .tsv, .npz (with those of ASVs) or .h5ad.")
@click.option("--asvs", type=_PATH, help="Embeddings of the ASVs: .tsv, .npz or .h5ad.")
@click.option("--ordination", type=_PATH, help="Principal components, as scikit-bio and QIIME 2's Emperor read them.")
@click.option("--plot", type=_PATH, help="A picture of the samples: .png, .svg or .pdf.")
@click.option("--layout", type=click.Choice(["pca", "tsne"]), default="pca", show_default=True, help="Of the picture.")
@click.option("--color-column", help="Column of the metadata that colours the picture.")
@click.option("--streaming", is_flag=True, help="Leave the counts in the table's file (BIOM 2.1).")
@machine_options()
def command(
    model: Path,
    table: tuple[Path, ...],
    sequences: tuple[Path, ...],
    metadata: tuple[Path, ...],
    output: Path | None,
    asvs: Path | None,
    ordination: Path | None,
    plot: Path | None,
    layout: str,
    color_column: str | None,
    streaming: bool,
    **machine: Any,
) -> None:
    """Embed samples and ASVs as a model reads them, for other programs.

    Rows are in the order of the table. Samples that are near each other are alike to the model.
    """
    from aam.config import TrainConfig
    from aam.errors import DataError

    written = [path for path in (output, asvs, ordination, plot) if path is not None]
    if not written:
        raise click.UsageError("give at least one of --output, --asvs, --ordination and --plot")
    if color_column is not None and (plot is None or not metadata):
        raise click.UsageError("--color-column needs --plot and --metadata")
    for path in written:
        if path.is_dir() or not path.parent.is_dir():
            raise DataError(f"{path}: cannot be written; give a file in an existing directory")
        if path.absolute() in {source.absolute() for source in (*table, *sequences, *metadata, model)}:
            raise DataError(f"{path}: is an input, which would be replaced; give another")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"{plot}: a picture is .png, .svg or .pdf")
    log_to_console()
    with usage_errors():
        settings = TrainConfig(output_dir=Path(), **{k: v for k, v in machine.items() if v is not None})
    from aam.embed import colours_of, embed, require_format, write_embeddings

    for path in filter(None, (output, asvs)):
        require_format(path)
    found = embed(model, table, sequences=sequences, metadata=metadata, streaming=streaming, settings=settings)
    colours = None if color_column is None else colours_of(found, color_column, metadata)
    if output is not None:
        write_embeddings(output, found)
    if asvs is not None:
        write_embeddings(asvs, found, of_asvs=True)
    if ordination is not None:
        from aam.evaluation.ordination import principal_components, write_ordination

        write_ordination(ordination, found.sample_ids, principal_components(found.samples))
    if plot is not None:
        _draw(plot, found.samples, colours, color_column or "", layout)
    number, width = found.samples.shape
    click.echo(
        f"{number} samples and {len(found.sequences)} ASVs in {width} dimensions: {', '.join(map(str, written))}"
    )
    for reason, names in found.left_out.items():
        click.echo(f"{len(names)} left out: {reason} ({', '.join(names[:5])}{', …' if names[5:] else ''})")


def _draw(path: Path, samples: Any, colours: Any, label: str, layout: str) -> None:
    import numpy as np

    from aam.evaluation.ordination import principal_components
    from aam.evaluation.plots import save_figure, scatter_plot

    if len(samples) > _MOST_POINTS:
        kept = np.sort(np.random.default_rng(0).choice(len(samples), _MOST_POINTS, replace=False))
        samples, colours = samples[kept], None if colours is None else colours[kept]
    title = f"Embeddings of {len(samples):,} samples"
    found = principal_components(samples, 2)
    labels = tuple(f"PC{axis} ({100 * share:.1f} %)" for axis, share in enumerate(found.explained, 1))
    points = found.coordinates
    if layout == "tsne" and len(samples) > 3:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(samples) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(samples)
        labels, title = ("t-SNE 1", "t-SNE 2"), f"{title}, t-SNE"
    if points.shape[1] < 2:
        points, labels = np.column_stack([points, np.zeros(len(points))]), (labels[0], "")
    save_figure(
        scatter_plot(points, labels=(labels[0], labels[1]), title=title, colours=colours, colours_label=label), path
    )
