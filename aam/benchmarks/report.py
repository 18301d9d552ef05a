"""`aam benchmark report`: what benchmark runs measured, as Markdown, JSON and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aam.benchmarks.comparison import Compared, Ratio, as_json, compare, ratios_within
from aam.benchmarks.report_plots import letter, other_plot, ratio_plot, side_by_side_plot, training_plot
from aam.benchmarks.standard import BenchmarkRun, Machine, Measure
from aam.errors import DataError
from aam.evaluation.plots import save_figure
from aam.run_directory import names_in, write_json

__all__ = ["comparison_rows", "require_free", "run_rows", "write_report"]

PAGE, JSON, COMPARISON = "report.md", "report.json", "comparison.json"
_PLOTS = ("training.png", "other.png", "ratios.png", "side_by_side.png")

Rows = list[tuple[str, ...]]  # the first is the header


def require_free(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds something else, or a report that is to be kept.

    Raises
    ------
    DataError
    """
    held = set(names_in(directory))
    if others := held - {PAGE, JSON, COMPARISON, *_PLOTS}:
        raise DataError(f"{directory}: holds other files, {min(others)} say; give an empty or a new --output-dir")
    if held and not overwrite:
        raise DataError(f"{directory}: holds a report already; give --overwrite to replace it")


def write_report(directory: Path, measured: BenchmarkRun | None, against: Sequence[BenchmarkRun] = ()) -> None:
    """Write the report of a run, of a comparison of runs, or of both.

    Parameters
    ----------
    directory : Path
        Made where it is missing; a report in it is replaced.
    measured : BenchmarkRun, optional
        On this machine, now.
    against : sequence of BenchmarkRun
        The first is what the others, and the one that was measured, are held against.

    Raises
    ------
    DataError
        If runs cannot be compared.
    """
    runs = [*against, *([] if measured is None else [measured])]
    compared = compare(runs) if len(runs) > 1 else []
    directory.mkdir(parents=True, exist_ok=True)
    for name in (PAGE, JSON, COMPARISON, *_PLOTS):
        (directory / name).unlink(missing_ok=True)
    lines = ["# Benchmark of AAM", ""]
    if measured is not None:
        write_json(directory / JSON, as_json(measured))
        save_figure(training_plot(measured), directory / "training.png")
        save_figure(other_plot(measured), directory / "other.png")
        lines += _page_of_run(measured)
    if compared:
        write_json(directory / COMPARISON, _comparison_json(runs, compared))
        save_figure(ratio_plot(runs, compared), directory / "ratios.png")
        save_figure(side_by_side_plot(runs), directory / "side_by_side.png")
        lines += _page_of_comparison(runs, compared)
    (directory / PAGE).write_text("\n".join(lines), encoding="utf-8")


def run_rows(run: BenchmarkRun) -> Rows:
    """What is compared within a run, for a table."""
    rows = [(what, study, *_ratio_cells(ratio)) for what, study, ratio in ratios_within(run)]
    return [("ratio of", "samples × ASVs", "median", "lowest", "highest"), *rows]


def comparison_rows(runs: Sequence[BenchmarkRun], compared: Sequence[Compared]) -> Rows:
    """How many times as good runs are as the first of them, for a table."""
    rows: Rows = [("measure", "samples × ASVs", *(_header(place) for place in range(1, len(runs))))]
    for row in compared:
        if not row.name.startswith("encoded"):  # which is of the studies, not of a machine
            rows.append((row.name, row.study or "-", *map(_times, row.times_as_good)))
    return rows


def _header(place: int) -> str:
    return f"{letter(place)}, times as good as {letter(0)}"


def _times(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.number == 1:
        return f"{ratio.median:.2f}, of one measurement each"
    ends = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return ends if ratio.clear else f"{ends}, no clear difference"


def _ratio_cells(ratio: Ratio) -> tuple[str, str, str]:
    low, middle, high = (f"{value:.3g}" for value in (ratio.low, ratio.median, ratio.high))
    return (middle, low, high) if ratio.number > 1 else (middle, "-", "-")


def _markdown(rows: Rows) -> list[str]:
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    header, *rest = [f"| {' | '.join(row)} |" for row in escaped]
    return [header, "|" + "---|" * len(rows[0]), *rest, ""]


def _machine_rows(runs: Sequence[BenchmarkRun]) -> Rows:
    machines: list[Machine] = [run.machine for run in runs]
    facts: list[tuple[str, list[str]]] = [
        ("run", [run.name for run in runs]),
        ("date", [run.date for run in runs]),
        ("processor", [m.processor for m in machines]),
        ("cores, threads of PyTorch", [f"{m.cores}, {m.threads}" for m in machines]),
        ("memory", [f"{m.memory_gb:g} GiB" for m in machines]),
        ("GPU", [m.gpu or "none used" for m in machines]),
        ("CUDA", [m.cuda or "-" for m in machines]),
        ("system, Python", [f"{m.system}, {m.python}" for m in machines]),
        ("PyTorch", [m.torch for m in machines]),
        ("AAM", [m.aam for m in machines]),
        ("repeats", [str(run.repeats) for run in runs]),
    ]
    header = ("", *(letter(place) for place in range(len(runs)))) if len(runs) > 1 else ("", "this machine")
    return [header, *((name, *values) for name, values in facts)]


def _page_of_run(run: BenchmarkRun) -> list[str]:
    network = run.settings
    layers = "1 layer" if network.attention_layers == 1 else f"{network.attention_layers} layers"
    return [
        "## This machine",
        "",
        *_markdown(_machine_rows([run])),
        f"The network is {network.embedding_dim} wide with {layers} in each part, and a batch "
        f"has {network.batch_size} samples; studies are simulated.",
        "",
        "## Within this run",
        "",
        "A batch is laid out in two ways: *distinct*, as AAM does it, with each of its distinct ASVs encoded once, and "
        "*padded*, with every occurrence of an ASV encoded and samples padded to the longest. Where one "
        "is held against the other, distinct is better above 1. Building a batch, over training on it, is a share of a "
        "step's time: the less, the better.",
        "",
        "Ratios of what was measured in turns, so that a busy machine slows both sides down: the median over the "
        "repeats, with the lowest and the highest. Memory is that of one step in a process of its own.",
        "",
        *_markdown(run_rows(run)),
        "![Training](training.png)",
        "",
        "## Everything that was measured",
        "",
        "A time by itself says little of a machine that others use too; compare runs with `--against`.",
        "",
        *_markdown([_MEASURED, *(_measure_cells(measure) for measure in run.measures)]),
        "![Data, predictions, files](other.png)",
        "",
    ]


_MEASURED = ("measure", "samples × ASVs", "unit", "median", "lowest", "highest", "repeats")


def _measure_cells(measure: Measure) -> tuple[str, ...]:
    low, high = min(measure.values), max(measure.values)
    numbers = [f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in (measure.median, low, high)]
    if len(measure.values) == 1:
        numbers[1:] = "-", "-"
    return (measure.name, measure.study or "-", measure.unit, *numbers, str(len(measure.values)))


def _page_of_comparison(runs: Sequence[BenchmarkRun], compared: Sequence[Compared]) -> list[str]:
    return [
        "## Runs beside each other",
        "",
        *_markdown(_machine_rows(runs)),
        f"How many times as good as {letter(0)}: above 1 is faster, or takes less memory. The median of the ratios of "
        "every repeat to every repeat, with the lowest and the highest. Where these lie on both sides of 1, there is "
        "no clear difference.",
        "",
        *_markdown(comparison_rows(runs, compared)),
        "![Ratios](ratios.png)",
        "",
        "![Side by side](side_by_side.png)",
        "",
    ]


def _comparison_json(runs: Sequence[BenchmarkRun], compared: Sequence[Compared]) -> dict[str, object]:
    return {
        "runs": [{"run": letter(place), **as_json(run)} for place, run in enumerate(runs)],
        "against": letter(0),
        "times_as_good": [
            {
                "measure": row.name,
                "study": row.study,
                "run": letter(place),
                **({} if ratio is None else {**ratio._asdict(), "clear": ratio.clear}),
            }
            for row in compared
            for place, ratio in enumerate(row.times_as_good, start=1)
        ],
    }
