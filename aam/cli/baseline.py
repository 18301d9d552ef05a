"""``aam baseline``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aam.cli.options import baseline_options, log_to_console, usage_errors
from aam.cli.report import model_table

__all__ = ["command"]

_MODELS = ("guess", "random_forest", "extra_trees", "linear", "neighbours")


@click.command("baseline")
@baseline_options
@click.option(
    "--model",
    "models",
    type=click.Choice(_MODELS),
    multiple=True,
    help="Which of them; may be given several times.  [default: all, neighbours with --unifrac-matrix]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default all cores.")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, readable=False),
    help="Write metrics.json, splits.tsv and the predictions of each model there.",
)
@click.option("--overwrite", is_flag=True, help="Replace what stands in --output-dir.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(
    models: tuple[str, ...],
    threads: int | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    **typed: Any,
) -> None:
    """Predict a metadata column with classical models: what a network has to beat.

    A guess, a random forest, extra trees, ridge or logistic regression on components of centred log-ratios, and, where
    distances are given, nearest neighbours; on the split or the folds that `aam train` would take with these options.
    """
    from aam.config import DataConfig

    given = {name: value for name, value in typed.items() if value not in (None, ())}
    for name in ("table", "metadata_column"):
        if name not in given:
            raise click.UsageError(f"Missing option '--{name.replace('_', '-')}'.")
    base_target = given.pop("base_target", "unifrac")
    classifier, seed = bool(given.pop("classifier", False)), int(given.pop("seed", 0))
    with usage_errors():
        data = DataConfig(**given)
    log_to_console()
    from aam.baselines import run_baselines
    from aam.inputs import label_files

    result = run_baselines(
        data,
        label_files(data, base_target),
        classifier=classifier,
        models=models,
        seed=seed,
        n_jobs=threads or -1,
        output_dir=output_dir,
        overwrite=overwrite,
    )
    if as_json:
        click.echo(json.dumps({"samples": result.samples, "baseline": result.metrics}, indent=2))
        return
    for part, number in result.samples.items():
        title = {"val": "validation", "test": "test", "oof": "out of fold"}[part]
        rows = {name: parts[part] for name, parts in result.metrics.items()}
        click.echo(f"\n{number} samples, {title}\n{model_table(rows)}")
    if result.directory is not None:
        click.echo(f"\nPredictions: {result.directory}")
