"""What commands print at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from aam.launch import Launch

if TYPE_CHECKING:
    from aam.folds import FoldsResult
    from aam.run import RunResult

__all__ = ["metric_lines", "print_folds", "print_result", "table"]


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


def print_result(result: RunResult) -> None:
    """The metrics of a run, guess beside model, and where to look next. The first of several processes prints them."""
    if Launch.of_environment().rank > 0:
        return
    metrics = result.metrics
    if not metrics:
        return  # nothing was trained
    guess = metrics.get("baseline", {}).get("guess", {})
    parts = [part for part in ("val", "test") if part in metrics]
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
    click.echo(f"\nbest epoch: {metrics['best_epoch']}\n{table(rows)}\n")
    pictures = "  (plots/ holds pictures)" if (result.directory / "plots" / "history.png").exists() else ""
    click.echo(f"Run directory: {result.directory}{pictures}")
    click.echo(f"Curves: tensorboard --logdir {result.directory / 'tensorboard'}")


def print_folds(result: FoldsResult) -> None:
    """The pooled metrics of folds, guess beside model, with mean and standard deviation over the folds."""
    if Launch.of_environment().rank > 0:
        return
    metrics = result.metrics
    folds, pooled = metrics["folds"], metrics.get("oof", {})
    guess = metrics.get("baseline", {}).get("guess", {}).get("oof", {})
    rows = [("metric", *(["out of fold", "guess"] if pooled else []), "mean of folds", "sd")]
    for name in dict.fromkeys([*pooled, *folds["mean"]]):
        beside = [_number(pooled.get(name)), _number(guess.get(name))] if pooled else []
        rows.append((name, *beside, _number(folds["mean"].get(name)), _number(folds["sd"].get(name))))
    click.echo(f"\n{len(folds['each'])} folds\n{table(rows)}\n")
    click.echo(f"Run directory: {result.directory}  (fold_0/ and on hold a run each)")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
