"""``aam explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aam.cli.options import log_to_console, machine_options, usage_errors
from aam.cli.report import table as page

__all__ = ["command"]

_PATH = click.Path(path_type=Path, readable=False)
_METHODS = ("integrated-gradients", "gradient-shap", "attention", "permutation")
_RANKS = ("domain", "phylum", "class", "order", "family", "genus", "species")
_PRINTED = 10


@click.command("explain")
@click.option("--model", type=_PATH, required=True, help="Run directory of `aam train`, or its model file.")
@click.option("--table", type=_PATH, required=True, multiple=True, help="Feature table; several are added up.")
@click.option("--sequences", type=_PATH, multiple=True, help="FASTA or QIIME 2 artifact, where IDs are not DNA.")
@click.option("--metadata", type=_PATH, multiple=True, help="Covariates, groups, and the truth where it is known.")
@click.option("--taxonomy", type=_PATH, help="Names ASVs, and groups them: TSV or QIIME 2 artifact.")
@click.option("--output-dir", type=_PATH, required=True, help="Where tables, matrices and pictures go.")
@click.option("--overwrite", is_flag=True, help="Replace an explanation that is there.")
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    multiple=True,
    help="May be given several times.  [default: all but gradient-shap]",
)
@click.option(
    "--by",
    type=click.Choice(("asv", *_RANKS)),
    multiple=True,
    help="Beside ASVs, taxa of these ranks; may be given several times.  [default: genus, with --taxonomy]",
)
@click.option(
    "--split",
    type=click.Choice(("train", "val", "test", "cal")),
    multiple=True,
    help="Samples of these parts of the run's split alone; may be given several times. Of folds, test has each sample "
    "explained by the models that had not learnt from it.  [default: all samples]",
)
@click.option("--column", help="Of a model of several columns, the one that is explained.")
@click.option(
    "--class",
    "class_name",
    help="Of classes, the one whose log-odds are explained.  [default: the second of two, or the predicted one]",
)
@click.option(
    "--baseline",
    type=click.Choice(("mean", "reference")),
    default="mean",
    show_default=True,
    help="Where integrated gradients begin: the mean ASV of the samples, or the centre of the model's reference ASVs.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.01,
    show_default=True,
    help="Share of a change that integrated gradients may miss.",
)
@click.option("--draws", type=click.IntRange(min=2), default=200, show_default=True, help="Of gradient-shap.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Of permutation.")
@click.option("--layer", type=int, multiple=True, help="Attention of this layer alone, from 1; may be given again.")
@click.option("--head", type=int, multiple=True, help="Attention of this head alone, from 1; may be given again.")
@click.option(
    "--attention",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Draw attention in so many samples, from the lowest to the highest prediction, and between taxa.",
)
@click.option(
    "--nucleotides",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Look at the bases of so many ASVs, the most important by the first method.",
)
@click.option("--group-column", help="Intervals are from resampling groups of samples: subjects, say.")
@click.option(
    "--max-samples",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Of a larger table, so many samples are drawn.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws.")
@click.option("--streaming", is_flag=True, help="Leave the counts in the table's file (BIOM 2.1).")
@machine_options("device", "threads")
def command(
    model: Path,
    table: tuple[Path, ...],
    sequences: tuple[Path, ...],
    metadata: tuple[Path, ...],
    taxonomy: Path | None,
    output_dir: Path,
    overwrite: bool,
    method: tuple[str, ...],
    by: tuple[str, ...],
    split: tuple[str, ...],
    column: str | None,
    class_name: str | None,
    baseline: Any,
    tolerance: float,
    draws: int,
    repeats: int,
    layer: tuple[int, ...],
    head: tuple[int, ...],
    attention: int,
    nucleotides: int,
    group_column: str | None,
    max_samples: int,
    seed: int,
    streaming: bool,
    **machine: Any,
) -> None:
    """Say which ASVs, and which taxa, the predictions of a model depend on.

    Each method says how far it can be trusted: whether its attributions add up, and how much further predictions move
    when its most important ASVs are left out than when random ones are. An importance is of the model, and no cause.
    """
    from aam.config import TrainConfig

    log_to_console()
    with usage_errors():
        settings = TrainConfig(output_dir=output_dir, **{k: v for k, v in machine.items() if v is not None})
    from aam.explain import DEFAULT_METHODS, Question, explain
    from aam.explanation import require_free, write_explanation

    require_free(output_dir, overwrite=overwrite)
    ranks = tuple(dict.fromkeys(rank for rank in by if rank != "asv")) if by else ("genus",) * (taxonomy is not None)
    question = Question(
        methods=tuple(dict.fromkeys(method)) or DEFAULT_METHODS,
        ranks=ranks,
        splits=tuple(dict.fromkeys(split)),
        column=column,
        class_name=class_name,
        baseline=baseline,
        tolerance=tolerance,
        draws=draws,
        repeats=repeats,
        layers=layer,
        heads=head,
        group_column=group_column,
        max_samples=max_samples,
        attention=attention,
        nucleotides=nucleotides,
        seed=seed,
    )
    found = explain(
        *(model, table),
        sequences=sequences,
        metadata=metadata,
        taxonomy=taxonomy,
        streaming=streaming,
        question=question,
        settings=settings,
    )
    write_explanation(output_dir, found)
    _report(output_dir, found)


def _report(directory: Path, found: Any) -> None:
    from aam.explanation import asv_labels, short_taxon

    models, by = found.summary["models"], found.summary["each_by"]
    click.echo(
        f"{found.what}, {len(found.sample_ids)} samples and {len(found.feature_ids)} ASVs"
        + (f", {by}" if models > 1 else "")
        + f": {directory}"
    )
    for reason, names in found.left_out.items():
        click.echo(f"{len(names)} left out: {reason} ({', '.join(names[:5])}{', …' if names[5:] else ''})")
    for one in found.found:
        checks, own = found.summary["methods"][one.method], one.importances
        names = asv_labels(found) if one.units.name == "asv" else [short_taxon(name) for name in one.units.names]
        rows = [("", "importance", "low", "high", "direction")]
        for place in (-own.importance).argsort(kind="stable")[:_PRINTED]:
            sign = {1: "raises", -1: "lowers", 0: "-"}[int(own.direction[place])]
            numbers = (f"{values[place]:.4g}" for values in own[:3])
            rows.append((names[place], *numbers, sign))
        click.echo(f"\n{one.method}, {'ASVs' if one.units.name == 'asv' else one.units.name}\n{page(rows)}")
        if one.units.name == "asv":
            click.echo(_trust(checks))


def _trust(checks: dict[str, Any]) -> str:
    said = []
    if "largest_share_missing" in checks:
        said.append(
            f"attributions miss {checks['mean_share_missing']:.2%} of the change on average, "
            f"{checks['largest_share_missing']:.2%} at most"
            + (f" (standard error {error:.2%})" if (error := checks.get("mean_standard_error")) is not None else "")
        )
    deletion = checks["deletion"]
    moved = ", ".join(
        f"{number}: {top:.3g} ({random:.3g})"
        for number, top, random in zip(deletion["left_out"], deletion["top"], deletion["random"], strict=True)
    )
    said.append(f"mean change when the top ASVs are left out (random ones): {moved}")
    return "\n".join(said)
