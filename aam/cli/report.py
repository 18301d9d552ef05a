"""What commands print at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from aam.launch import Launch

if TYPE_CHECKING:
    from aam.folds import FoldsResult
    from aam.run import RunResult

__all__ = ["metric_lines", "model_table", "print_folds", "print_result", "table"]

_MOST_METRICS = 6  # beside each other


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, the first row the header; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def metric_lines(metrics: Mapping[str, float]) -> str:
    """Metrics as a table of two columns."""
    return table([("metric", "value"), *((name, f"{value:.4f}") for name, value in metrics.items())])


def model_table(models: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each model, a column for each metric that any of them has; of many metrics the other way round."""
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    many = len(names) > _MOST_METRICS
    rows = [("metric" if many else "model", *names)]
    for model, metrics in models.items():
        rows.append((model.replace("_", " "), *(_number(metrics.get(name)) for name in names)))
    return table(list(zip(*rows, strict=True)) if many else rows)


def print_result(result: RunResult) -> None:
    """The metrics of a run, guess beside model, and where to look next. The first of several processes prints them."""
    if Launch.of_environment().rank > 0:
        return
    metrics = result.metrics
    if not metrics:
        return  # nothing was trained
    baseline = _models_beside(metrics)
    parts = [part for part in ("val", "test") if part in metrics]
    if len(baseline) > 1:
        of_part = {part: _beside(metrics[part], baseline, part) for part in parts}
        shown = "\n\n".join(f"{part}\n{model_table(models)}" for part, models in of_part.items())
    else:
        shown = _metrics_beside_guess(metrics, parts, baseline.get("guess", {}))
    click.echo(f"\nepoch kept: {metrics['best_epoch']}\n{shown}\n")
    _print_verdicts(metrics)
    pictures = "  (plots/ holds pictures)" if (result.directory / "plots" / "history.png").exists() else ""
    click.echo(f"Run directory: {result.directory}{pictures}")
    click.echo(f"Curves: tensorboard --logdir {result.directory / 'tensorboard'}")


def _beside(own: Mapping[str, float], baseline: Mapping[str, Any], part: str) -> dict[str, Mapping[str, float]]:
    """The network first, then what it is compared with."""
    return {"AAM": own, **{name: parts[part] for name, parts in baseline.items() if part in parts}}


def _models_beside(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The classical models and the guess; of a joined model first what it is made of."""
    alone = {f"{name} alone": parts for name, parts in metrics.get("joined", {}).get("alone", {}).items()}
    return alone | metrics.get("baseline", {})


def _metrics_beside_guess(metrics: Mapping[str, Any], parts: Sequence[str], guess: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for part in parts for name in metrics[part]))
    header = ["metric"]
    for part in parts:
        header += [part] + ([f"guess ({part})"] if part in guess else [])
    rows = [tuple(header)]
    for name in names:
        row = [name]
        for part in parts:
            row.append(_number(metrics[part].get(name)))
            if part in guess:
                row.append(_number(guess[part].get(name)))
        rows.append(tuple(row))
    return table(rows)


def print_folds(result: FoldsResult) -> None:
    """The pooled metrics of folds, guess beside model, with mean and standard deviation over the folds."""
    if Launch.of_environment().rank > 0:
        return
    metrics = result.metrics
    if "seeds" in metrics:
        _print_seeds(result)
        return
    folds, pooled = metrics["folds"], metrics.get("oof", {})
    guess = metrics.get("baseline", {}).get("guess", {}).get("oof", {})
    rows = [("metric", *(["out of fold", "guess"] if pooled else []), "mean of folds", "sd")]
    for name in dict.fromkeys([*pooled, *folds["mean"]]):
        beside = [_number(pooled.get(name)), _number(guess.get(name))] if pooled else []
        rows.append((name, *beside, _number(folds["mean"].get(name)), _number(folds["sd"].get(name))))
    runs = len(folds["each"])
    click.echo(f"\n{runs} {'runs' if any('run' in one for one in folds['each']) else 'folds'}\n{table(rows)}\n")
    if len(baseline := _models_beside(metrics)) > 1:
        click.echo(f"out of fold\n{model_table(_beside(pooled, baseline, 'oof'))}\n")
    _print_verdicts(metrics)
    together = "; the model file is the mean of all" if pooled else ""
    click.echo(f"Run directory: {result.directory}  (fold_… hold a run each{together})")


def _print_seeds(result: FoldsResult) -> None:
    """The metrics of the mean of several seeds' models, guess beside it."""
    metrics = result.metrics
    baseline = _models_beside(metrics)
    parts = [part for part in ("val", "test") if part in metrics]
    shown = [f"{part}\n{model_table(_beside(metrics[part], baseline, part))}" for part in parts]
    click.echo(f"\nthe mean of {len(metrics['seeds']['each'])} seeds\n" + "\n\n".join(shown) + "\n")
    _print_verdicts(metrics)
    click.echo(f"Run directory: {result.directory}  (seed_… hold a run each; the model file is the mean of all)")


def _print_verdicts(metrics: Mapping[str, Any]) -> None:
    """What can be said of predictions beyond their metrics."""
    compared = metrics.get("against_guess") or {}
    for column, found in {"": compared}.items() if "better" in compared else compared.items():
        if found is None:  # nothing of it is known
            continue
        of_column = f"{column}: " if column else ""
        if found["better"] is None:
            click.echo(f"{of_column}nothing can be said of whether this is better than a guess: {found['why']}")
            continue
        verdict = f"{of_column}{'better' if found['better'] else 'NO BETTER'} than a guess"
        difference, low, high = (found[name] for name in ("error", "low", "high"))
        name = "mean absolute error"
        if found["measure"] == "balanced_accuracy":  # 1 less the error
            name, difference, low, high = "balanced accuracy", -difference, -high, -low
        units = f"{found['units']} {found['unit']}"
        click.echo(
            f"{verdict}: {name} {abs(difference):.3g} {'higher' if difference > 0 else 'lower'} than that of the guess "
            f"(difference {low:+.3g} to {high:+.3g}, 95% by resampling {units})"
        )
    if joined := metrics.get("joined"):
        model, share = joined["model"].replace("_", " "), joined["share_of_network"]
        click.echo(f"AAM is the network (weight {share:g}) and {model} (weight {1 - share:g}) together")
    _print_coverage(metrics)


def _print_coverage(metrics: Mapping[str, Any]) -> None:
    """How often intervals or sets hold the truth, where there are enough groups to say."""
    known = metrics.get("calibration") or {}
    each = {"": known} if isinstance(known.get("source"), str) else known
    for column, of_column in each.items():
        if of_column is not None:
            click.echo(f"{column and f'{column}: '}{_coverage(of_column)}")
    if known:
        click.echo()


def _coverage(known: Mapping[str, Any]) -> str:
    found, unit = known["coverage"], "groups" if known["groups"] < known["samples"] else "samples"
    if found is None:
        are = f"1 {unit[:-1]} is" if known["groups"] == 1 else f"{known['groups']} {unit} are"
        more = "" if known["source"] == "oof" else "; with --folds all serve for that"
        return f"{are} too few to calibrate intervals of 90%{more}"
    what, of = ("sets", "classes on average") if known["classes"] else ("intervals", "wide on average")
    return (
        f"{what} of {found['level']:.0%} hold the truth of {found['coverage']:.1%} ({found['low']:.1%} to "
        f"{found['high']:.1%}, by {known['groups']} {unit}), {found['width']:.3g} {of}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
