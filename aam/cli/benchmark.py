"""``aam benchmark``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aam.cli.options import config_options, run_config
from aam.cli.report import table

if TYPE_CHECKING:
    from aam.benchmarks.train import TrainBenchmark

__all__ = ["command"]


@click.group("benchmark")
def command() -> None:
    """Measure speed and memory."""


@command.command("train")
@click.option(
    "--layout",
    type=click.Choice(["distinct", "padded", "both"]),
    default="distinct",
    show_default=True,
    help="Each distinct ASV encoded once, every occurrence padded to the longest sample, or one beside the other.",
)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps that are measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("pretrain")
@click.pass_context
def train(ctx: click.Context, layout: str, steps: int, as_json: bool, **_: Any) -> None:
    """Time pre-training steps: samples/s, memory, waiting for data, share of the machine's matrix rate."""
    config = run_config("pretrain", ctx, output_dir=Path("unused"))
    from aam.benchmarks.train import benchmark_train

    layouts: Any = ("distinct", "padded") if layout == "both" else (layout,)
    measured = benchmark_train(config, layouts, steps)
    click.echo(json.dumps([m.to_dict() for m in measured], indent=2) if as_json else _page(measured))


def _page(measured: list[TrainBenchmark]) -> str:
    records = [m.to_dict() for m in measured]
    rows = [("", *(str(record["layout"]) for record in records))]
    rows += [(name, *(_shown(record[name]) for record in records)) for name in records[0] if name != "layout"]
    lines = [table(rows)]
    if len(measured) == 2:
        distinct, padded = measured
        encoded = padded.encoded_sequences / distinct.encoded_sequences
        encoder = padded.encoder_seconds / distinct.encoder_seconds
        lines += [
            "",
            f"encoded sequences, padded over distinct: {encoded:.2f}",
            f"time in the ASV encoder, padded over distinct: {encoder:.2f} ({encoder / encoded:.0%} of that ratio)",
            f"samples/s, distinct over padded: {distinct.samples_per_second / padded.samples_per_second:.2f}",
            f"memory growth, distinct over padded: {distinct.memory_growth_mb / padded.memory_growth_mb:.2f}",
        ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if abs(value) >= 1e9:
        return f"{value / 1e9:.1f} G"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
