"""`aam benchmark report`: ratios against plain arithmetic, runs against each other, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from aam.benchmarks.comparison import Ratio, as_json, compare, ratios_within, read_run
from aam.benchmarks.report import require_free, write_report
from aam.benchmarks.report_plots import ratio_plot
from aam.benchmarks.standard import QUICK, BenchmarkRun, Machine, Measure
from aam.cli.main import cli
from aam.errors import DataError
from aam.run_directory import write_json
from tests.end_to_end.program import aam, assert_one_line_error

STUDY = QUICK.studies[0].name


def run_of(name: str = "one", speed: float = 1.0, **measures: list[float]) -> BenchmarkRun:
    """A run of which everything is known; ``speed`` times as fast as another."""
    machine = Machine("processor | of mine", 2, 2, 16.0, None, None, "Linux", "3.11", "2.13", "0.1")
    made = [
        Measure(STUDY, "training, distinct", "samples/s", "more", (8.0 * speed, 9.0 * speed, 10.0 * speed)),
        Measure(STUDY, "training, padded", "samples/s", "more", (4.0 * speed, 3.0 * speed, 2.0 * speed)),
        Measure(STUDY, "memory of a step, distinct", "MB", "less", (100.0,)),
        Measure(STUDY, "memory of a step, padded", "MB", "less", (250.0,)),
        Measure(STUDY, "building a batch", "ms", "less", (1.0 / speed, 2.0 / speed)),
        Measure("", "matrix product", "GFLOP/s", "more", (20.0 * speed,)),
    ]
    return BenchmarkRun(name, "2026-01-01", machine, QUICK, 3, tuple(made))


def test_a_ratio_is_of_each_repeat_with_each_or_of_those_that_belong_together():
    over, under = [2.0, 6.0], [1.0, 4.0, 3.0]
    each = [a / b for a in over for b in under]
    assert Ratio.of(over, under) == (np.median(each), min(each), max(each), 6)
    assert Ratio.of([2.0, 9.0], [1.0, 3.0], paired=True) == (2.5, 2.0, 3.0, 2)
    assert Ratio(1.5, 1.1, 2.0, 9).clear and Ratio(0.5, 0.1, 0.9, 9).clear
    assert not Ratio(1.5, 0.9, 2.0, 9).clear and not Ratio(1.5, 1.5, 1.5, 1).clear


def test_layouts_are_compared_on_the_same_batches():
    found = {what: ratio for what, study, ratio in ratios_within(run_of()) if study == STUDY}
    assert found["training speed, distinct over padded"] == (3.0, 2.0, 5.0, 3)
    assert found["memory of a step, padded over distinct"] == (2.5, 2.5, 2.5, 1)
    steps = [1e3 * QUICK.batch_size / speed for speed in (8, 9, 10)]
    shares = [batch / step for batch in (1, 2) for step in steps]
    expected = (np.median(shares), min(shares), max(shares), 6)
    assert found["building a batch, over training on it"] == pytest.approx(expected)


def test_more_than_one_is_better_for_speeds_and_for_times():
    found = {row.name: row.times_as_good[0] for row in compare([run_of(), run_of("two", 10.0)])}
    for name in ("training, distinct", "building a batch", "matrix product"):
        assert found[name] is not None and found[name].median == pytest.approx(10.0)
    assert found["memory of a step, distinct"] == (1.0, 1.0, 1.0, 1)
    assert not found["memory of a step, distinct"].clear


def test_runs_of_other_studies_are_not_compared():
    other = replace(run_of("two"), settings=replace(QUICK, batch_size=99))
    with pytest.raises(DataError, match="'one' and 'two' were measured on other studies"):
        compare([run_of(), other])


def test_a_run_of_other_studies_is_refused_before_anything_is_measured(tmp_path: Path):
    write_json(tmp_path / "quick.json", as_json(run_of("tiny")))
    call = ("benchmark", "report", "--against", tmp_path / "quick.json", "--output-dir", tmp_path / "report")
    assert_one_line_error(aam(*call), 1, "'tiny' was measured on other studies", "--quick")


def test_all_of_a_figure_is_within_it():
    runs = [run_of("one"), run_of("two", 2.0), run_of("three", 3.0)]
    figure = ratio_plot(runs, compare(runs))
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0 and label.x1 <= figure.bbox.x1


def test_what_a_run_lacks_is_left_open(tmp_path: Path):
    less = replace(run_of("two"), measures=run_of().measures[:2])
    assert [row.times_as_good[0] is None for row in compare([run_of(), less])] == [False] * 2 + [True] * 4
    write_report(tmp_path / "report", None, [run_of(), less])
    assert "| memory of a step, padded | 24 × 48, 40 bases | - |" in (tmp_path / "report" / "report.md").read_text()


def test_a_run_is_read_as_it_was_written(tmp_path: Path):
    write_json(tmp_path / "run.json", as_json(run_of()))
    assert read_run(tmp_path / "run.json") == run_of()


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.pop("machine"),
        lambda run: run["measures"][0].update(values=[]),
        lambda run: run["measures"][0].update(values=[0]),
        lambda run: run["measures"][0].update(values=["fast"]),
        lambda run: run["measures"][0].update(better="yes"),
        lambda run: run.update(measures=[]),
    ],
)
def test_what_is_no_run_is_refused(change, tmp_path: Path):
    run = as_json(run_of())
    change(run)
    write_json(tmp_path / "run.json", run)
    with pytest.raises(DataError, match=r"not the report\.json of a benchmark run"):
        read_run(tmp_path / "run.json")


@pytest.mark.parametrize("text", ["", "[" * 100000, "NaN", "{}", "[1]", "\x00\xff"])
def test_a_file_that_is_something_else_is_refused(text, tmp_path: Path):
    (tmp_path / "run.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"run\.json: not the report"):
        read_run(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"none\.json: No such file"):
        read_run(tmp_path / "none.json")


def test_runs_are_compared_without_measuring(tmp_path: Path):
    sources = []
    for name, speed in (("slow | one", 1.0), ("fast", 4.0), ("faster", 8.0)):
        write_json(tmp_path / f"{name}.json", as_json(run_of(name, speed)))
        sources += ["--from", str(tmp_path / f"{name}.json")]
    arguments = ["benchmark", "report", *sources, "--output-dir", str(tmp_path / "report")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "B, times as good as A" in result.stdout and "4.00 (3.20 to 5.00)" in result.stdout
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.md", "comparison.json", "ratios.png", "side_by_side.png"}
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["slow | one", "fast", "faster"]
    ratio = next(r for r in found["times_as_good"] if (r["measure"], r["run"]) == ("matrix product", "C"))
    assert (ratio["median"], ratio["number"], ratio["clear"]) == (8.0, 1, False)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| run | slow \\| one | fast | faster |" in page
    assert all(f"]({name})" in page for name in files if name.endswith(".png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "a.json"], "at least twice"),
        (["--from", "a.json", "--from", "b.json", "--against", "c.json"], "give one of them"),
    ],
)
def test_calls_that_say_two_things_are_refused(arguments, words, tmp_path: Path):
    assert_one_line_error(aam("benchmark", "report", "--output-dir", tmp_path / "r", *arguments), 2, words)


def test_nothing_but_a_report_is_replaced(tmp_path: Path):
    write_report(tmp_path / "report", None, [run_of(), run_of("two")])
    with pytest.raises(DataError, match="--overwrite to replace it"):
        require_free(tmp_path / "report", overwrite=False)
    require_free(tmp_path / "report", overwrite=True)
    (tmp_path / "report" / "thesis.docx").touch()
    with pytest.raises(DataError, match=r"holds other files, thesis\.docx"):
        require_free(tmp_path / "report", overwrite=True)


@pytest.mark.slow
def test_this_machine_is_measured_and_held_against_another(tmp_path: Path):
    write_json(tmp_path / "other.json", as_json(run_of("other")))
    arguments = ["--quick", "--repeats", "2", "--threads", "1", "--device", "cpu", "--name", "mine"]
    arguments += ["--against", str(tmp_path / "other.json"), "--output-dir", str(tmp_path / "report")]
    result = CliRunner().invoke(cli, ["benchmark", "report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    run = read_run(tmp_path / "report" / "report.json")
    assert (run.name, run.repeats, run.machine.threads, run.machine.gpu) == ("mine", 2, 1, None)
    assert len(run.measures) == 14 and all(measure.median > 0 for measure in run.measures)
    for layout in ("distinct", "padded"):
        assert len(run.find(STUDY, f"training, {layout}").values) == 2
    assert len(run.find(STUDY, "predicting").values) == 2
    encoded = [run.find(STUDY, f"encoded ASVs of a batch, {layout}").median for layout in ("padded", "distinct")]
    said = json.loads((tmp_path / "report" / "report.json").read_text())["ratios"]
    ratio = next(r["median"] for r in said if r["what"] == "encoded ASVs, padded over distinct")
    assert 1.3 < ratio == pytest.approx(encoded[0] / encoded[1], rel=0.3)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Within this run" in page and "## Runs beside each other" in page
    assert str(tmp_path) not in page and str(tmp_path) not in (tmp_path / "report" / "report.json").read_text()
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"training.png", "other.png", "ratios.png", "side_by_side.png"}
