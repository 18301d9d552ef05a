"""``aam tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aam.cli.options import config_options, log_to_console, run_config
from aam.cli.report import table

if TYPE_CHECKING:
    from aam.tune import TuneResult

__all__ = ["command"]

# What says how one run is written, or asks for several: a study has options of these names of its own.
_OWN = {"output_dir", "folds", "leave_one_group_out", "seeds", "parallel", "resume", "overwrite", "lr_find"}
_SHOWN = 5


@click.command("tune")
@click.option("--output-dir", "study_dir", type=click.Path(path_type=Path), required=True, help="Where to write.")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Trials of the study in all.")
@click.option(
    "--space",
    type=click.Path(path_type=Path, readable=False),
    help="YAML: options of `aam train`, each with {low, high, log} or {choices}; a usual space by default.",
)
@click.option(
    "--folds",
    "inner_folds",
    type=click.IntRange(min=1),
    help="Folds of the training samples that judge each trial, by --group-column; 1 for one inner split.  [default: 3]",
)
@click.option(
    "--parallel",
    "at_a_time",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Run so many trials at a time, each in a process of its own with its share of the cores.",
)
@click.option("--storage", help="URL of Optuna's storage; by default sqlite, in study.db of --output-dir.")
@click.option(
    "--pruner",
    type=click.Choice(["median", "hyperband", "none"]),
    help="End trials early that are worse than others at the same point.  [default: median]",
)
@click.option(
    "--engine",
    type=click.Choice(["optuna", "ray"]),
    default="optuna",
    show_default=True,
    help="What runs the trials; ray on this machine, or on the cluster of RAY_ADDRESS.",
)
@click.option("--resume", "go_on", is_flag=True, help="Continue the study in --output-dir, to --trials in all.")
@click.option("--overwrite", "replace", is_flag=True, help="Replace the study in --output-dir.")
@config_options("train", without=_OWN)
@click.pass_context
def command(
    ctx: click.Context,
    study_dir: Path,
    trials: int,
    space: Path | None,
    inner_folds: int | None,
    at_a_time: int,
    storage: str | None,
    pruner: Any,
    engine: Any,
    go_on: bool,
    replace: bool,
    **_: Any,
) -> None:
    """Search for the options of `aam train` that suit a study.

    Options of `aam train` that are given are fixed; --space says which others are tried. Trials are judged by folds of
    the training samples, so what the split holds out (--val-size, --test-size, --splits, …) has no part in it.
    best_config.json is for `aam train --config`.
    """
    if go_on and replace:
        raise click.UsageError("--resume continues a study and --overwrite replaces it; give one of them")
    before = study_dir / "config.json"
    if go_on and ctx.params["config_file"] is None and before.is_file():
        ctx.params["config_file"] = before
    config = run_config("train", ctx, output_dir=study_dir)
    if config.several_runs:
        raise click.UsageError(
            "the configuration asks for folds or seeds of `aam train`; give them to the best options"
        )
    log_to_console()
    from aam.tune import TuneOptions, tune

    options = TuneOptions(trials, inner_folds, at_a_time, storage, pruner, engine, go_on, replace)
    _print(tune(config, space, options))


def _print(result: TuneResult) -> None:
    objective = result.objective
    complete = [trial for trial in result.trials if trial.state == "complete" and trial.value is not None]
    complete.sort(key=lambda trial: (1 if objective.lower_is_better else -1) * (trial.value or 0.0))
    names = list(result.best.values)
    rows = [("trial", objective.metric, *(name.replace("_", "-") for name in names))]
    rows += [
        (str(trial.number), f"{trial.value:.4f}", *(_shown(trial.values[name]) for name in names))
        for trial in complete[:_SHOWN]
    ]
    states = [trial.state for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    click.echo(f"\n{len(states)} trials: {counts}\n{table(rows)}\n")
    usual = result.usual
    if usual is not None and usual.value is not None and usual.state == "complete":
        click.echo(f"Trial {usual.number}, {objective.metric} {usual.value:.4f}, has the usual values of `aam train`.")
        if usual.number == result.best.number:
            click.echo("None was better, so there is nothing to change.")
    click.echo(f"Train with the best: aam train --config {result.directory / 'best_config.json'} --output-dir RUN")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
