"""``aam benchmark``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aam.cli.benchmark_report import command as report_command
from aam.cli.options import config_options, log_to_console, require_options, run_config, sections_of
from aam.cli.report import table

if TYPE_CHECKING:
    from aam.benchmarks.quality import QualityRow
    from aam.benchmarks.saving import MemoryFigures
    from aam.benchmarks.train import TrainBenchmark

__all__ = ["command"]


@click.group("benchmark")
def command() -> None:
    """Measure speed and memory."""


command.add_command(report_command)


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


@command.command("devices")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps that are measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("pretrain")
@click.pass_context
def devices(ctx: click.Context, steps: int, as_json: bool, **_: Any) -> None:
    """Time pre-training steps in one process, or in those that torchrun started: samples/s, memory."""
    config = run_config("pretrain", ctx, output_dir=Path("unused"))
    from aam.benchmarks.devices import benchmark_devices

    measured = benchmark_devices(config, steps)
    if measured is not None:  # in the first process
        record = measured.to_dict()
        rows = [(name, _shown(value)) for name, value in record.items()]
        click.echo(json.dumps(record, indent=2) if as_json else table(rows))


@command.command("explain")
@click.option(
    "--method",
    type=click.Choice(("integrated-gradients", "gradient-shap", "attention", "permutation")),
    multiple=True,
    help="May be given several times.  [default: all but gradient-shap]",
)
@click.option("--samples", type=click.IntRange(min=30), default=300, show_default=True, help="Of the study.")
@click.option("--asvs", type=click.IntRange(min=40), default=120, show_default=True, help="Of the study.")
@click.option("--clades", type=click.IntRange(min=1), default=3, show_default=True, help="That decide the target.")
@click.option("--epochs", type=click.IntRange(min=1), default=60, show_default=True, help="Of training.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of study and network.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the processor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(method: tuple[str, ...], as_json: bool, **sizes: Any) -> None:
    """Plant a target in a simulated study, train on it, and see which methods of `aam explain` find it."""
    from aam.benchmarks.explain import benchmark_explain
    from aam.explain import DEFAULT_METHODS

    records = [one.to_dict() for one in benchmark_explain(method or DEFAULT_METHODS, **sizes)]
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    rows = [tuple(records[0])] + [tuple(_shown(value) for value in record.values()) for record in records]
    click.echo(table(rows))


def _sizes(names: tuple[str, ...]) -> Any:
    """A click callback for positive numbers of these names, joined by ``x``."""

    def parse(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        parts = value.lower().replace("_", "").split("x")
        if len(parts) != len(names) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise click.BadParameter(f"{value!r} is not {'x'.join(names)}, as positive whole numbers", ctx, option)
        return tuple(int(part) for part in parts)

    return parse


@command.command("data")
@click.option(
    "--simulate",
    metavar="SAMPLESxASVSxNONZEROS",
    callback=_sizes(("SAMPLES", "ASVS", "NONZEROS")),
    help="Stream a simulated table and matrix of this size, each in a fresh process, beside those of --against "
    "samples. Unless said otherwise the network is 32 wide with 1 layer and 2 heads, and encodes 1024 ASVs at a time.",
)
@click.option("--against", type=click.IntRange(min=2), help="Samples of the smaller table.  [default: a tenth]")
@click.option(
    "--prune",
    metavar="TIPSxKEPT",
    callback=_sizes(("TIPS", "KEPT")),
    help="Read a simulated tree of so many tips and prune it to some, in a fresh process.",
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where simulated files are kept meanwhile.  [default: the system's temporary folder]",
)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps that are measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("pretrain")
@click.pass_context
def data(
    ctx: click.Context,
    simulate: tuple[int, int, int] | None,
    against: int | None,
    prune: tuple[int, int] | None,
    work_dir: Path | None,
    steps: int,
    as_json: bool,
    **_: Any,
) -> None:
    """Time reading and batches beside training, of a study or of simulated files; memory too."""
    if simulate is not None and prune is not None:
        raise click.UsageError("--simulate and --prune measure one thing each; give one of them")
    records: list[dict[str, Any]]
    lines: list[str] = []
    if prune is not None:
        tips, kept = prune
        if not 2 <= kept <= tips:
            raise click.UsageError(f"--prune {tips}x{kept}: keep at least 2 tips, and no more than there are")
        from aam.benchmarks.prune import benchmark_prune

        records = [benchmark_prune(tips, kept, ctx.params["seed"] or 0, work_dir).to_dict()]
    elif simulate is not None:
        records, lines = _simulated(ctx, simulate, against, steps, work_dir)
    else:
        config = run_config("pretrain", ctx, output_dir=Path("unused"))
        from aam.benchmarks.data import benchmark_study

        records = [benchmark_study(config, steps).to_dict()]
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        rows = [(name, *(_shown(record[name]) for record in records)) for name in records[0]]
        click.echo("\n".join([table(rows), *lines]))


@command.command("optimizers")
@click.option(
    "--compare",
    type=click.Choice(["optimizers", "schedules", "averages"]),
    multiple=True,
    help="What to compare, all by default  (may be given several times)",
)
@click.option(
    "--lr-factor",
    "factors",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=(1.0,),
    help="Times the usual learning rate of each optimizer; one row for each  (may be given several times)",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("pretrain")
@click.pass_context
def optimizers(
    ctx: click.Context, compare: tuple[Any, ...], factors: tuple[float, ...], as_json: bool, **_: Any
) -> None:
    """Pre-train for the same number of steps with each optimizer, schedule and average, and judge held-out samples.

    Unless said otherwise for 2 epochs in batches of 16. --lr is that of schedules and averages.
    """
    config = run_config("pretrain", ctx, output_dir=Path("unused"), preset={"epochs": 2, "batch_size": 16})
    from aam.benchmarks.optimizers import benchmark_optimizers

    records = []
    for figures in benchmark_optimizers(config, compare or ("optimizers", "schedules", "averages"), factors):
        records.append(figures.to_dict())
        if not as_json:  # what is known so far, since all of it takes minutes
            click.echo("  ".join(_optimizer_row(records[-1])), err=True)
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        click.echo(table([("", *list(records[0])[2:]), *map(_optimizer_row, records)]))


def _optimizer_row(record: dict[str, Any]) -> tuple[str, ...]:
    compared, name, lr, *rest = record.values()
    return f"{compared[:-1]} {name}", f"{lr:.3g}", *map(_shown, rest)


def _simulated(
    ctx: click.Context, simulate: tuple[int, int, int], against: int | None, steps: int, work_dir: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    samples, asvs, nonzeros = simulate
    against = max(2, samples // 10) if against is None else against
    if not samples <= nonzeros <= samples * asvs:
        raise click.UsageError(f"--simulate: {nonzeros} non-zeros are not 1 to {asvs} for each of {samples} samples")
    if not 2 <= against <= samples:
        raise click.UsageError(f"--against {against}: give at least 2 and at most the {samples} of --simulate")
    preset = {
        "table": (Path("simulated.biom"),),
        "unifrac_matrix": (Path("simulated.h5"),),
        "embedding_dim": 32,
        "attention_heads": 2,
        "attention_layers": 1,
        "asv_chunk_size": 1024,
        "streaming": True,
    }
    config = run_config("pretrain", ctx, output_dir=Path("unused"), preset=preset)
    from aam.benchmarks.data import benchmark_simulated
    from aam.benchmarks.simulated_files import Size

    measured = benchmark_simulated(config, Size(*simulate), against, steps, work_dir)
    records = [figures.to_dict() for figures in measured]
    smaller, larger = measured
    lines = ["", f"batch_ms, larger over smaller: {larger.batch_ms / smaller.batch_ms:.2f}"]
    return records, lines


@command.command("memory")
@click.option("--steps", type=click.IntRange(min=0), default=3, show_default=True, help="Steps that are timed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("pretrain")
@click.pass_context
def memory(ctx: click.Context, steps: int, as_json: bool, **_: Any) -> None:
    """Measure the memory of a pre-training step with gradient checkpointing, with chunks of ASVs, and with both.

    Of the study of --table, or else of random samples of about 50 ASVs. Unless said otherwise a batch has 16 samples,
    and a chunk 64 ASVs.
    """
    preset: dict[str, Any] = {"batch_size": 16}
    simulated = _nothing_to_read(ctx, preset)
    config = run_config("pretrain", ctx, output_dir=Path("unused"), preset=preset)
    from aam.benchmarks.saving import benchmark_memory

    def say(figures: MemoryFigures) -> None:
        if not as_json:  # what is known so far
            click.echo("  ".join(map(_shown, figures.to_dict().values())), err=True)

    records = [figures.to_dict() for figures in benchmark_memory(config, steps, simulated=simulated, report=say)]
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        click.echo(table([tuple(records[0]), *(tuple(map(_shown, record.values())) for record in records)]))


def _nothing_to_read(ctx: click.Context, preset: dict[str, Any]) -> bool:
    """Whether samples are to be random; names of files are made up then, which nobody reads."""
    simulated = not ctx.params["table"] and ctx.params["config_file"] is None
    if simulated:
        preset |= {"table": (Path("simulated.biom"),), "unifrac_matrix": (Path("simulated.h5"),)}
    return simulated


@command.command("gpu")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="What to measure: fp32, tf32, bf16, bf16-flash, bf16-mem_efficient, bf16-math, bf16-compile, "
    "bf16-compile-each (a graph of each block), bf16-compile-all (of all), bf16-checkpointing, "
    "bf16-compile-checkpointing or bf16-chunks.  (may be given several times)  [default: all but the last five]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=600),
    default=5.0,
    show_default=True,
    help="Time the steps of a variant for so long, and three at least; warming up and compiling come on top.",
)
@click.option("--kernels/--no-kernels", default=True, show_default=True, help="Look where the time of a step goes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each thing measured.")
@config_options("pretrain")
@click.pass_context
def gpu(ctx: click.Context, variants: tuple[str, ...], seconds: float, kernels: bool, as_json: bool, **_: Any) -> None:
    """Time pre-training steps in several precisions and with several kernels, against what the device can do.

    Of the study of --table, or else of random samples. Unless said otherwise the network is 768 wide with 12 layers
    and 12 heads, and a batch has 8 samples.
    """
    preset: dict[str, Any] = {
        "embedding_dim": 768,
        "attention_heads": 12,
        "attention_layers": 12,
        "batch_size": 8,
    }
    simulated = _nothing_to_read(ctx, preset)
    config = run_config("pretrain", ctx, output_dir=Path("unused"), preset=preset)
    from aam.benchmarks.gpu import VARIANTS, benchmark_gpu, record

    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}", ctx, param_hint="--variant")
    log_to_console()

    def show(figures: Any) -> None:
        click.echo(json.dumps(record(figures)) if as_json else _lines_of(figures))
        sys.stdout.flush()  # what follows may fail

    extra: dict[str, Any] = {} if kernels else {"profiled": ()}
    benchmark_gpu(config, variants or tuple(VARIANTS)[:-5], seconds, show, simulated=simulated, **extra)


@command.command("quality")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the studies, each in a folder of its own.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("quality"),
    show_default=True,
    help="Where runs are kept; those that are finished there are not repeated.",
)
@click.option("--study", "studies", multiple=True, help="Folder of a study.  (several; all by default)")
@click.option("--column", "columns", multiple=True, help="Column that is predicted.  (several; all by default)")
@click.option(
    "--settings",
    type=click.Choice(["default", "best", "both"]),
    default="both",
    show_default=True,
    help="The defaults of `aam train`, the settings that did best, or one beside the other.",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="Run with this option, in place of --settings."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Networks for each fold.")
@click.option(
    "--parallel", type=click.IntRange(min=1), default=1, show_default=True, help="Networks trained at the same time."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def quality(
    data: Path,
    output_dir: Path,
    studies: tuple[str, ...],
    columns: tuple[str, ...],
    settings: str,
    options: tuple[str, ...],
    seeds: int,
    parallel: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Cross-validate network and classical models on real studies, in five grouped folds.

    For each column: the network alone, the best classical model and both joined, with 95% intervals from resampling
    groups; held-out distances; how often intervals of 90% hold the truth; and the time it took.
    """
    log_to_console()
    from aam.benchmarks.quality import BEST, STUDIES, benchmark_quality, write_rows

    known = [study.folder for study in STUDIES]
    for name in studies:
        if name not in known:
            raise click.BadParameter(f"{name} is none of {', '.join(known)}", param_hint="--study")
    chosen: dict[str, dict[str, dict[str, Any]]] = {"default": {}} | ({"best": BEST} if BEST else {})
    if options:
        chosen = {" ".join(options): sections_of(options)}
        require_options(chosen[" ".join(options)])
    elif settings not in chosen and settings != "both":
        raise click.UsageError("no settings are known to do better than the defaults; give --option to try some")
    elif settings != "both":
        chosen = {settings: chosen[settings]}
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in benchmark_quality(
        data,
        output_dir,
        studies=studies,
        columns=columns,
        settings=chosen,
        seeds=seeds,
        parallel=parallel,
        threads=threads,
        device=device,
    ):
        rows.append(row)
        write_rows(output_dir / "quality.json", rows)
    if not rows:
        raise click.UsageError("none of the studies has such a column")
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    click.echo(_quality_table(rows))


def _quality_table(rows: Sequence[QualityRow]) -> str:
    header = ("study, column", "metric", "settings", "guess", "best classical", "AAM", "each seed", "joined", "bar")
    lines: list[tuple[str, ...]] = [(*header, "R²", "UniFrac R²", "90% holds", "width", "time")]
    for row in rows:
        best = f"{row.scores[row.best_baseline]:.3f} {row.best_baseline.replace('_', ' ')}"
        own = row.intervals["AAM"]
        covered = ""
        if "coverage" in row.other:
            covered = "{coverage:.0%} ({coverage_low:.0%} to {coverage_high:.0%})".format(**row.other)
        lines.append(
            (
                f"{row.study}, {row.column}",
                "MAE" if row.metric == "mae" else "balanced accuracy",
                row.settings,
                f"{row.scores['guess']:.3f}",
                best,
                f"{row.scores['AAM']:.3f} ({own.low:.3f} to {own.high:.3f})",
                " ".join(f"{value:.3f}" for value in row.seeds),
                f"{row.scores['joined']:.3f} ({row.joined_share:.0%} AAM)",
                "" if row.bar is None else f"{row.bar:.2f}",
                *(f"{row.other[name]:.3f}" if name in row.other else "" for name in ("r2", "unifrac_r2")),
                covered,
                f"{row.other['width']:.3g}" if "width" in row.other else "",
                f"{row.seconds / 60:.1f} min",
            )
        )
    said = []
    for row in rows:
        what = f"{row.study}, {row.column}, {row.settings}:"
        ends, name = row.against_best, row.best_baseline.replace("_", " ")
        said.append(
            f"{what} error against {name} {ends.value:+.3f} ({ends.interval.low:+.3f} to {ends.interval.high:+.3f}, "
            f"p {ends.p:.2g})" + ("" if row.better_than_guess else "; no better than the guess")
        )
    return table(lines) + "\n\n" + "\n".join(said)


def _lines_of(figures: Any) -> str:
    """What `aam benchmark gpu` prints of something measured."""
    from aam.benchmarks.gpu import Ceilings, Floors, Profile, VariantFigures

    if isinstance(figures, Ceilings):
        tf32 = "" if figures.tf32_flops_per_second is None else f", tf32 {figures.tf32_flops_per_second / 1e12:.3g}"
        return (
            f"{figures.device}, PyTorch {figures.torch}\nmeasured: products of matrices "
            f"bf16 {figures.bf16_flops_per_second / 1e12:.3g} TFLOP/s{tf32}, "
            f"fp32 {figures.fp32_flops_per_second / 1e12:.3g}; "
            f"copying {figures.copied_bytes_per_second / 1e9:,.0f} GB/s"
        )
    if isinstance(figures, Floors):
        return (
            f"a batch: {figures.samples} samples, {figures.asvs:.0f} ASVs ({figures.distinct_asvs:.0f} distinct), "
            f"{figures.tokens} tokens, {figures.padding_share:.0%} of places in samples empty; "
            f"{figures.parameters / 1e6:.1f} M weights\n"
            f"floor by arithmetic: {figures.flops / 1e12:.3g} TFLOP, {figures.arithmetic_ms:.1f} ms at the bf16 rate\n"
            f"floor by bytes: {figures.bytes / 1e9:.3g} GB, {figures.bytes_ms:.1f} ms at the rate of copying\n"
            + _VARIANT_LINE.format(*_VARIANT_HEADER)
        )
    if isinstance(figures, VariantFigures):
        if figures.error is not None:
            return f"{figures.variant:<26}  {figures.error}"
        record = vars(figures)
        shown = [_shown(record[name]) for name in _VARIANT_HEADER[1:]]
        return _VARIANT_LINE.format(figures.variant, *shown)
    if isinstance(figures, Profile):
        groups = ", ".join(
            f"{name} {milliseconds:.1f} ms ({milliseconds / figures.step_ms:.0%})"
            for name, milliseconds in figures.groups.items()
        )
        lines = [f"  where {figures.variant} spends a step: {groups}; {figures.kernels} kernels"]
        lines += [f"    {milliseconds:8.2f} ms {calls:5} x  {name}" for name, milliseconds, calls in figures.top]
        return "\n".join(lines)
    return (
        f"data: {figures.variant}, {figures.workers} workers: {figures.step_ms:.1f} ms a step, "
        f"{figures.step_ms_batches_at_hand:.1f} with batches at hand; one process builds a batch in "
        f"{figures.batch_ms:.1f} ms"
    )


_VARIANT_HEADER = (
    *("variant", "step_ms", "host_ms", "samples_per_second", "asvs_per_second", "flops_per_second", "bf16_rate_share"),
    *("peak_memory_mb", "graphs", "compile_seconds", "first_step_seconds", "steps", "first_loss"),
)
_VARIANT_LINE = "{:<26}" + "".join(f"  {{:>{max(8, len(name))}}}" for name in _VARIANT_HEADER[1:])


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
    if isinstance(value, int | str):
        return str(value)
    if abs(value) >= 1e9:
        return f"{value / 1e9:.1f} G"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
