"""`aam evaluate`: reports on predictions whose worth is known."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, balanced_accuracy_score, mean_absolute_error, roc_auc_score

from tests.end_to_end.program import StudyFiles, aam, assert_one_line_error, read_metrics, simulate, succeed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


def predictions(study: StudyFiles, path: Path, noise: float, seed: int = 0) -> Path:
    """Ages, with an error of this size."""
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    draws = np.random.default_rng(seed)
    table = pd.DataFrame({"actual": metadata["age"], "predicted": metadata["age"] + draws.normal(0, noise, 24)})
    table.index.name = "sample_id"
    table.to_csv(path, sep="\t")
    return path


class _Checker(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_numbers_with_all_that_is_known(study: StudyFiles, tmp_path: Path) -> None:
    table = predictions(study, tmp_path / "p.tsv", noise=1.0)
    files = ("--metadata", study.metadata, "--group-column", "subject_id", "--table", study.table)
    out = succeed("evaluate", "--predictions", table, *files, "--output-dir", tmp_path / "report").out
    assert "p: 24 samples of 8 groups" in out and "report.html" in out
    found = read_metrics(tmp_path / "report")["predictions"]["p"]
    read = pd.read_csv(table, sep="\t")
    assert found["metrics"]["mae"] == pytest.approx(mean_absolute_error(read["actual"], read["predicted"]))
    low, high = found["intervals"]["mae"]
    assert low < found["metrics"]["mae"] < high
    errors = pd.read_csv(tmp_path / "report" / "errors.tsv", sep="\t")
    assert len(errors) == 24 and errors["error"].is_monotonic_decreasing
    assert {"depth", "ASVs", "group", "likely_reason"} <= set(errors.columns)
    assert found["metrics"]["bias"] == pytest.approx((read["predicted"] - read["actual"]).mean())
    groups = pd.read_csv(tmp_path / "report" / "groups.tsv", sep="\t")
    assert groups["samples"].sum() == 24 and len(groups) == 8
    columns = pd.read_csv(tmp_path / "report" / "columns.tsv", sep="\t")
    assert {"column", "explained", "q", "larger_errors", "like_truth"} <= set(columns.columns)
    assert "subject_id" not in columns["column"].tolist()  # the groups are told of by themselves
    page = (tmp_path / "report" / "report.html").read_text()
    assert "mean absolute error (MAE)" in page and "Errors by subject_id" in page and "likely_reason" not in page
    assert re.search(r"<td>[^<]*\.\d{6}", page) is None  # no more digits than tell something
    for name in ("predictions", "residuals", "explained", "errors_by_size", "errors_by_column", "errors_by_group"):
        with Image.open(tmp_path / "report" / "plots" / f"{name}.png") as image:
            assert min(image.size) > 400


def test_sets_of_classes(study: StudyFiles, tmp_path: Path) -> None:
    """Of 24 sets 12 hold the truth alone, 6 beside another class, 4 another class, 2 nothing."""
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    actual = np.array(["a", "a|y", "c"] * 8)  # a bar within a name, of which another is part
    other = {"a": "c", "a|y": "c", "c": "a|y"}
    sets = list(actual[:12])
    sets += [f"{name}|{other[name]}" for name in actual[12:18]]
    sets += [other[name] for name in actual[18:22]] + ["", ""]
    table = pd.DataFrame({"sample_id": metadata.index, "actual": actual, "predicted": actual, "set": sets})
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    files = ("--metadata", study.metadata, "--group-column", "subject_id")
    succeed("evaluate", "--predictions", tmp_path / "p.tsv", *files, "--output-dir", tmp_path / "report")
    found = read_metrics(tmp_path / "report")["predictions"]["p"]
    assert found["metrics"]["coverage"] == pytest.approx(18 / 24)
    assert found["metrics"]["classes_in_set"] == pytest.approx((12 + 2 * 6 + 4) / 24)
    low, high = found["intervals"]["coverage"]
    assert low < 18 / 24 < high
    assert found["coverage"]["of_class"] == pytest.approx({"a": 6 / 8, "c": 6 / 8, "a|y": 6 / 8})
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Prediction sets" in page and "% none" in page
    with Image.open(tmp_path / "report" / "plots" / "sets.png") as image:
        assert min(image.size) > 400


@pytest.mark.parametrize(
    "classes", [("FALSE", "TRUE"), ("01", "02"), ("0", "1"), ("None", "penicillin"), ("1.0", "2e3")], ids="/".join
)
def test_classes_are_taken_as_they_are_written(classes: tuple[str, str], study: StudyFiles, tmp_path: Path) -> None:
    """Beside a truth that is unknown, and a set that is empty."""
    rng = np.random.default_rng(0)
    places = np.arange(24) % 2
    second = np.clip(np.where(places == 1, 0.7, 0.3) + rng.normal(0, 0.2, 24), 0.01, 0.99)
    actual, predicted = np.array(classes, dtype=object)[places], np.array(classes)[(second > 0.5).astype(int)]
    expected = {
        "balanced_accuracy": balanced_accuracy_score(actual[1:].astype(str), predicted[1:]),
        "roc_auc": roc_auc_score(places[1:], second[1:]),
        "coverage": ((actual == predicted)[1:] & (np.arange(1, 24) != 5)).mean(),
    }
    actual[0] = ""
    probabilities = {f"prob_{classes[0]}": 1 - second, f"prob_{classes[1]}": second}
    ids = pd.read_csv(study.metadata, sep="\t")["sample_id"]
    sets = np.where(np.arange(24) == 5, "", predicted)
    table = {"sample_id": ids, "actual": actual, "predicted": predicted, "set": sets}
    pd.DataFrame(table | probabilities).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    succeed("evaluate", "--predictions", tmp_path / "p.tsv", "--output-dir", tmp_path / "r")
    found = read_metrics(tmp_path / "r")["predictions"]["p"]
    assert found["samples"] == 23
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected)


def test_samples_without_a_truth_are_told(study: StudyFiles, tmp_path: Path) -> None:
    table = pd.read_csv(predictions(study, tmp_path / "p.tsv", noise=1), sep="\t").drop(columns="actual")
    table["sample_id"] = table["sample_id"].mask(table.index < 3, "X" + table["sample_id"])
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    files = ("--metadata", study.metadata, "--metadata-column", "age")
    outcome = succeed("evaluate", "--predictions", tmp_path / "p.tsv", *files, "--output-dir", tmp_path / "r")
    assert "3 of 24 samples is unknown" in outcome.err and "X" in outcome.err
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str)
    metadata.assign(age=metadata["age"].mask(metadata.index == 5, "27,5")).to_csv(
        tmp_path / "m.tsv", sep="\t", index=False
    )
    files = ("--metadata", tmp_path / "m.tsv", "--metadata-column", "age", "--output-dir", tmp_path / "t")
    outcome = aam("evaluate", "--predictions", tmp_path / "p.tsv", *files)
    assert_one_line_error(outcome, 1, "27,5", "not numbers")


def test_groups_of_one_number_each(study: StudyFiles, tmp_path: Path) -> None:
    """Some draws have a single group alone, and equal numbers whose mean is not quite the same."""
    metadata = pd.read_csv(study.metadata, sep="\t")
    actual = np.repeat([7.1, 6.3, 5.9, 7.3], 6)
    table = {"sample_id": metadata["sample_id"], "actual": actual, "predicted": actual + np.arange(24) / 10}
    pd.DataFrame(table).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    pd.DataFrame({"sample_id": metadata["sample_id"], "site": actual.astype(str)}).to_csv(
        tmp_path / "m.tsv", sep="\t", index=False
    )
    files = ("--metadata", tmp_path / "m.tsv", "--group-column", "site")
    succeed("evaluate", "--predictions", tmp_path / "p.tsv", *files, "--output-dir", tmp_path / "r")
    low, high = read_metrics(tmp_path / "r")["predictions"]["p"]["intervals"]["r2"]
    assert -1000 < low < high < 1


def test_a_table_of_other_samples_is_refused(study: StudyFiles, tmp_path: Path) -> None:
    table = predictions(study, tmp_path / "p.tsv", noise=1.0)
    read = pd.read_csv(table, sep="\t")
    read.assign(sample_id="other" + read["sample_id"]).to_csv(table, sep="\t", index=False)
    outcome = aam("evaluate", "--predictions", table, "--table", study.table, "--output-dir", tmp_path / "report")
    assert_one_line_error(outcome, 1, "othersubject", "--table")


def test_markers_of_what_is_missing_are_no_values(study: StudyFiles, tmp_path: Path) -> None:
    """A column of numbers stays one, and no class is named after what was not collected."""
    table = predictions(study, tmp_path / "p.tsv", noise=1.0)
    read = pd.read_csv(table, sep="\t").drop(columns="actual")
    read.assign(predicted=["a", "b"] * 12).to_csv(table, sep="\t", index=False)
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    metadata["weight"] = [*map(str, np.random.default_rng(0).normal(70, 9, 23)), "not collected"]
    metadata["site"] = ["a", "b", "b"] * 7 + ["missing", "b", "not collected"]
    metadata.to_csv(tmp_path / "m.tsv", sep="\t")
    given = ("--metadata", tmp_path / "m.tsv", "--metadata-column", "site")
    succeed("evaluate", "--predictions", table, *given, "--output-dir", tmp_path / "report")
    assert read_metrics(tmp_path / "report")["predictions"]["p"]["samples"] == 22
    columns = pd.read_csv(tmp_path / "report" / "columns.tsv", sep="\t").set_index("column")
    assert columns["kind"]["weight"] == "numbers"


def test_the_page_stands_by_itself(study: StudyFiles, tmp_path: Path) -> None:
    table = predictions(study, tmp_path / "<b>p&.tsv", noise=1.0)
    succeed("evaluate", "--predictions", table, "--metadata", study.metadata, "--output-dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    checker = _Checker()
    checker.feed(text)
    assert not checker.open and len(checker.images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in checker.images)
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text
    assert "<b>p&" not in text and "&lt;b&gt;p&amp;" in text


def test_classes(study: StudyFiles, tmp_path: Path) -> None:
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    names = sorted(metadata["group"].unique())
    scores = np.random.default_rng(0).random((24, len(names))) + (metadata["group"].to_numpy()[:, None] == names)
    scores /= scores.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"predicted": np.array(names)[scores.argmax(axis=1)]}, index=metadata.index)
    for place, name in enumerate(names):
        table[f"prob_{name}"] = scores[:, place]
    table.to_csv(tmp_path / "p.tsv", sep="\t")
    files = ("--metadata", study.metadata, "--metadata-column", "group")
    out = succeed("evaluate", "--predictions", tmp_path / "p.tsv", *files, "--output-dir", tmp_path / "r", "--json").out
    found = json.loads(out)["predictions"]["p"]["metrics"]
    expected = balanced_accuracy_score(metadata["group"], table["predicted"])
    assert found["balanced_accuracy"] == pytest.approx(expected)
    if len(names) == 2:
        assert found["roc_auc"] == pytest.approx(roc_auc_score(metadata["group"] == names[1], scores[:, 1]))
    shown = [1] if len(names) == 2 else range(len(names))
    each = [average_precision_score(metadata["group"] == names[i], scores[:, i]) for i in shown]
    assert found["average_precision"] == pytest.approx(np.mean(each))
    is_class = (metadata["group"].to_numpy()[:, None] == np.array(names)).astype(float)
    brier = ((is_class - scores) ** 2).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(brier / 2 if len(names) == 2 else brier)
    plots = {path.stem for path in (tmp_path / "r" / "plots").iterdir()}
    assert {"predictions", "curves", "calibration"} <= plots


def test_intervals_of_predictions(study: StudyFiles, tmp_path: Path) -> None:
    table = pd.read_csv(predictions(study, tmp_path / "p.tsv", noise=1.0), sep="\t")
    table["lower"], table["upper"] = table["predicted"] - 1.5, table["predicted"] + 1.5
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    succeed("evaluate", "--predictions", tmp_path / "p.tsv", "--output-dir", tmp_path / "r")
    found = read_metrics(tmp_path / "r")["predictions"]["p"]["coverage"]
    assert found["value"] == pytest.approx(((table["predicted"] - table["actual"]).abs() <= 1.5).mean())
    assert found["mean_width"] == pytest.approx(3)
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert (tmp_path / "r" / "plots" / "intervals.png").is_file()
    assert "nominal" not in found


def test_quantiles_are_intervals_too(study: StudyFiles, tmp_path: Path) -> None:
    table = pd.read_csv(predictions(study, tmp_path / "p.tsv", noise=1.0), sep="\t")
    table["quantile_0.1"], table["quantile_0.9"] = table["predicted"] - 1, table["predicted"] + 2
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    succeed("evaluate", tmp_path / "p.tsv", "--output-dir", tmp_path / "r")
    found = read_metrics(tmp_path / "r")["predictions"]["p"]["coverage"]
    assert (found["nominal"], found["mean_width"]) == pytest.approx((0.8, 3))
    off = table["actual"] - table["predicted"]
    assert found["value"] == pytest.approx(off.between(-1, 2).mean())
    assert "80 % are meant to" in (tmp_path / "r" / "report.html").read_text()


def test_bounds_of_samples_without_a_truth_may_be_empty(study: StudyFiles, tmp_path: Path) -> None:
    table = pd.read_csv(predictions(study, tmp_path / "p.tsv", noise=1.0), sep="\t")
    table = table.assign(lower=table["predicted"] - 1.5, upper=table["predicted"] + 1.5, quantile=1, **{"0": "text"})
    expected = ((table["predicted"] - table["actual"]).abs() <= 1.5)[5:].mean()
    table.loc[:4, ["actual", "lower", "upper"]] = np.nan
    table.columns = ["sample_id", *(f"age_{name}" for name in table.columns[1:5]), *table.columns[5:]]
    table.assign(bmi_predicted=1.0).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    one = ("--metadata-column", "age", "--output-dir", tmp_path / "r")
    succeed("evaluate", tmp_path / "p.tsv", *one)
    assert read_metrics(tmp_path / "r")["predictions"]["p"]["coverage"]["value"] == pytest.approx(expected)


def test_empty_probabilities_are_none(study: StudyFiles, tmp_path: Path) -> None:
    names = pd.read_csv(study.metadata, sep="\t")["sample_id"]
    actual = np.array(["a", "b"])[np.arange(24) % 2]
    table = pd.DataFrame({"sample_id": names, "actual": actual, "predicted": actual, "prob_a": "", "prob_b": ""})
    table.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    succeed("evaluate", tmp_path / "p.tsv", "--output-dir", tmp_path / "r")
    found = read_metrics(tmp_path / "r")["predictions"]["p"]["metrics"]
    assert found["balanced_accuracy"] == 1 and not {"roc_auc", "brier", "average_precision"} & set(found)


def test_two_models(study: StudyFiles, tmp_path: Path) -> None:
    good = predictions(study, tmp_path / "good.tsv", noise=0.2)
    bad = predictions(study, tmp_path / "bad.tsv", noise=3, seed=1)
    files = ("--metadata", study.metadata, "--group-column", "subject_id", "--output-dir", tmp_path / "r")
    out = succeed("evaluate", "--predictions", good, "--predictions", bad, *files).out
    (found,) = read_metrics(tmp_path / "r")["comparisons"]
    assert found["difference"] < 0 and found["interval"][1] < 0 and found["p"] < 0.05
    assert "good - bad" in out
    assert {path.name for path in (tmp_path / "r").iterdir()} >= {"good", "bad", "comparison.tsv", "report.html"}
    assert (tmp_path / "r" / "plots" / "comparison_good_bad.png").is_file()
    assert "good errs less than bad" in (tmp_path / "r" / "report.html").read_text()


def test_it_says_on_how_many_samples_two_models_are_compared(study: StudyFiles, tmp_path: Path) -> None:
    good = predictions(study, tmp_path / "good.tsv", noise=0.2)
    table = pd.read_csv(predictions(study, tmp_path / "bad.csv", noise=3, seed=1), sep="\t")
    table.head(15).to_csv(tmp_path / "bad.csv", index=False)  # with commas, too
    out = succeed("evaluate", good, tmp_path / "bad.csv", "--output-dir", tmp_path / "r").out
    (found,) = read_metrics(tmp_path / "r")["comparisons"]
    assert (found["samples"], found["only_first"], found["only_second"]) == (15, 9, 0)
    assert "on the 15 samples of known truth that both predict" in out and "9 samples of good are not compared" in out
    assert "samples of bad" not in out
    page = (tmp_path / "r" / "report.html").read_text()
    assert "on the 15 samples of known truth that both predict" in page and "9 samples of good are not" in page


@pytest.mark.parametrize("part", ["oof", "test", "val"])
def test_groups_that_a_run_has_learnt_from_are_told(part: str, study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    predictions(study, tmp_path / "all.tsv", noise=1)
    table = pd.read_csv(tmp_path / "all.tsv", sep="\t")
    places = np.arange(24)
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    # Two samples of each pair are tested together but for the last three pairs.
    metadata.assign(pair=np.where(places < 2, np.nan, places // 2)).to_csv(tmp_path / "m.tsv", sep="\t")
    fold = np.where(places >= 18, places % 2, places // 2 % 2)
    if part == "oof":
        table = table.assign(fold=fold)
        tested = 11
    else:
        split = np.where(fold == 0, part, "train")
        pd.DataFrame({"sample_id": table["sample_id"], "split": split}).to_csv(
            run / "splits.tsv", sep="\t", index=False
        )
        table = table[fold == 0]
        tested = table.index.to_series().floordiv(2).loc[2:].nunique()
    table.to_csv(run / f"{part}_predictions.tsv", sep="\t", index=False)
    files = ("--metadata", tmp_path / "m.tsv", "--group-column", "pair")
    out = succeed("evaluate", run, *files, "--output-dir", tmp_path / "r").out
    told = f"The model has learnt from other samples of 3 of the {tested + 1} groups (pair)"
    assert told in out and told in read_metrics(tmp_path / "r")["predictions"]["run"]["cautions"][-1]
    if part == "oof":  # of one column among several, too
        several = table.rename(columns={name: f"age_{name}" for name in ("actual", "predicted")})
        several.assign(bmi_predicted=0.0).to_csv(run / "oof_predictions.tsv", sep="\t", index=False)
        one = ("--metadata-column", "age", "--output-dir", tmp_path / "o")
        assert told in succeed("evaluate", run, *files, *one).out
        table.to_csv(run / "oof_predictions.tsv", sep="\t", index=False)
    same = metadata.assign(half=np.array(["a", "b"])[fold])
    same.to_csv(tmp_path / "m.tsv", sep="\t")
    files = ("--metadata", tmp_path / "m.tsv", "--group-column", "half")
    assert "learnt from" not in succeed("evaluate", run, *files, "--output-dir", tmp_path / "s").out


def test_two_models_of_different_things_are_not_compared(study: StudyFiles, tmp_path: Path) -> None:
    good = predictions(study, tmp_path / "good.tsv", noise=0.2)
    table = pd.read_csv(good, sep="\t")
    table.to_csv(tmp_path / "rounded.tsv", sep="\t", index=False, float_format="%.4g")
    both = ("--predictions", good, "--predictions", tmp_path / "rounded.tsv", "--output-dir", tmp_path / "b")
    succeed("evaluate", *both)
    table.assign(actual=10 * table["actual"]).to_csv(tmp_path / "days.tsv", sep="\t", index=False)
    outcome = aam(
        "evaluate", "--predictions", good, "--predictions", tmp_path / "days.tsv", "--output-dir", tmp_path / "r"
    )
    assert_one_line_error(outcome, 1, "good and days", "cannot be compared")


@pytest.mark.parametrize("order", [("with", "without"), ("without", "with")])
def test_groups_of_either_run_are_those_of_both(order: tuple[str, str], study: StudyFiles, tmp_path: Path) -> None:
    runs = {}
    for name, group_column in (("with", "subject_id"), ("without", None)):
        runs[name] = tmp_path / name
        runs[name].mkdir()
        predictions(study, runs[name] / "val_predictions.tsv", noise=len(name))
        data = {"metadata": [str(study.metadata)], "metadata_column": "age", "group_column": group_column}
        (runs[name] / "config.json").write_text(json.dumps({"data": data}))
    succeed("evaluate", *(runs[name] for name in order), "--output-dir", tmp_path / "r")
    (found,) = read_metrics(tmp_path / "r")["comparisons"]
    assert found["drawn"] == "group (subject_id)" and "8 groups" in found["cautions"][0]


def test_a_run_says_where_everything_is(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--metadata-column", "age", "--group-column", "subject_id", "--test-size", 0.25, "--epochs", 1)
    succeed(*study.train, *options, "--output-dir", run)
    succeed("evaluate", run, "--output-dir", tmp_path / "r")
    found = read_metrics(tmp_path / "r")["predictions"]["run"]
    expected = {name: value for name, value in read_metrics(run)["test"].items() if "unifrac" not in name}
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert "Evaluation of run (age)" in (tmp_path / "r" / "report.html").read_text()
    assert found["groups"] >= 2 and "depth" in (tmp_path / "r" / "errors.tsv").read_text()
    succeed("evaluate", "--predictions", run, "--part", "val", "--output-dir", tmp_path / "v")
    assert read_metrics(tmp_path / "v")["predictions"]["run"]["metrics"]["mae"] == pytest.approx(
        read_metrics(run)["val"]["mae"], rel=1e-4
    )


def test_what_is_refused(study: StudyFiles, tmp_path: Path) -> None:
    table = predictions(study, tmp_path / "p.tsv", noise=1)
    report = ("--output-dir", tmp_path / "r")
    assert_one_line_error(aam("evaluate", *report), 2, "run directory")
    without = pd.read_csv(table, sep="\t")
    without.drop(columns="actual").to_csv(tmp_path / "q.tsv", sep="\t", index=False)
    outcome = aam("evaluate", "--predictions", tmp_path / "q.tsv", *report)
    assert_one_line_error(outcome, 1, tmp_path / "q.tsv", "--metadata-column")
    without.drop(columns="predicted").to_csv(tmp_path / "n.tsv", sep="\t", index=False)
    assert_one_line_error(aam("evaluate", "--predictions", tmp_path / "n.tsv", *report), 1, "no column predicted")
    without.assign(predicted=without["predicted"].mask(without.index == 3)).to_csv(
        tmp_path / "e.tsv", sep="\t", index=False
    )
    outcome = aam("evaluate", "--predictions", tmp_path / "e.tsv", *report)
    assert_one_line_error(outcome, 1, "nothing is predicted for 1 samples", without["sample_id"][3])
    pd.concat([without, without]).to_csv(tmp_path / "d.tsv", sep="\t", index=False)
    assert_one_line_error(aam("evaluate", "--predictions", tmp_path / "d.tsv", *report), 1, "occurs twice")
    assert_one_line_error(aam("evaluate", "--predictions", tmp_path / "no.tsv", *report), 1, tmp_path / "no.tsv")
    (tmp_path / "b.tsv").write_bytes(b"\x00\xff\xfe")
    assert aam("evaluate", "--predictions", tmp_path / "b.tsv", *report).code == 1
    assert_one_line_error(aam("evaluate", "--predictions", tmp_path, *report), 1, tmp_path, "finished run")
    without.assign(lower=0.0, upper=np.where(without.index == 3, np.inf, 9.0)).to_csv(
        tmp_path / "i.tsv", sep="\t", index=False
    )
    outcome = aam("evaluate", tmp_path / "i.tsv", *report)
    assert_one_line_error(outcome, 1, "column 'upper'", f"('inf' of sample '{without['sample_id'][3]}', say)")
    (tmp_path / "models").mkdir()
    for name in ("linear", "extra_trees"):
        without.to_csv(tmp_path / "models" / f"{name}_oof_predictions.tsv", sep="\t", index=False)
    outcome = aam("evaluate", tmp_path / "models", *report)
    assert_one_line_error(outcome, 1, "classical models", "extra_trees_oof_predictions.tsv, linear_oof_predictions.tsv")
    without.to_csv(tmp_path / "models" / "test_predictions.tsv", sep="\t", index=False)
    outcome = aam("evaluate", tmp_path / "models", "--part", "oof", *report)
    assert_one_line_error(outcome, 1, "holds no oof predictions, but test; give another --part")
    group = ("--group-column", "subject_id")
    assert_one_line_error(aam("evaluate", "--predictions", table, *group, *report), 1, "--metadata")
    assert not (tmp_path / "r").exists()
    succeed("evaluate", "--predictions", table, *report)
    assert_one_line_error(aam("evaluate", "--predictions", table, *report), 1, "--overwrite")
    succeed("evaluate", "--predictions", table, *report, "--overwrite")


def test_few_groups_are_said_to_be_few(study: StudyFiles, tmp_path: Path) -> None:
    metadata = pd.read_csv(study.metadata, sep="\t", index_col=0)
    places = np.arange(24)
    metadata.assign(three=places % 3, one="x", many=places // 2).to_csv(tmp_path / "m.tsv", sep="\t")
    tables = [
        predictions(study, tmp_path / f"{name}.tsv", noise, seed) for name, noise, seed in (("p", 1, 0), ("q", 3, 1))
    ]
    out, page, found = {}, {}, {}
    for column in ("three", "one", "many"):
        files = ("--metadata", tmp_path / "m.tsv", "--group-column", column, "--output-dir", tmp_path / column)
        out[column] = succeed("evaluate", *tables, *files).out
        page[column] = (tmp_path / column / "report.html").read_text()
        found[column] = read_metrics(tmp_path / column)
    few = "The 95 % intervals are from 3 groups: too few to be relied on."
    none = "There are no 95 % intervals: they come from resampling groups, and all samples are of one."
    for said in (out, page):
        assert said["three"].count(few) == 3 and said["one"].count(none) == 3  # of each, and of their difference
        assert "too few" not in said["many"] and "no 95" not in said["many"]
    assert found["three"]["predictions"]["p"]["cautions"] == [few]
    assert found["one"]["predictions"]["p"]["intervals"] == {}
    assert found["one"]["comparisons"][0]["interval"] == [None, None]
    assert "95% from" not in out["one"] and "95% from" in out["three"]
    assert pd.read_csv(tmp_path / "one" / "comparison.tsv", sep="\t")[["low", "high"]].isna().all(axis=None)


def test_metadata_of_another_study_is_named(study: StudyFiles, tmp_path: Path) -> None:
    table = predictions(study, tmp_path / "p.tsv", noise=1)
    other = pd.read_csv(study.metadata, sep="\t", index_col=0)
    first = other.index[0]
    other.index = pd.Index([f"mouse{place}" for place in range(24)], name="sample_id")
    other.to_csv(tmp_path / "other.tsv", sep="\t")
    files = ("--metadata", tmp_path / "other.tsv", "--metadata-column", "age", "--output-dir", tmp_path / "r")
    said = (tmp_path / "other.tsv", "none of the 24 samples", tmp_path / "p.tsv", f"'{first}'", "'mouse0'")
    assert_one_line_error(aam("evaluate", table, *files), 1, *said)
    pd.read_csv(table, sep="\t").drop(columns="actual").to_csv(table, sep="\t", index=False)
    assert_one_line_error(aam("evaluate", table, *files), 1, *said)
    other.index = pd.Index([f"study.{name}" for name in pd.read_csv(table, sep="\t")["sample_id"]], name="sample_id")
    other.to_csv(tmp_path / "other.tsv", sep="\t")
    assert_one_line_error(aam("evaluate", table, *files), 1, "none of the 24", "lack 'study.' in front")


def test_samples_of_one_class_say_nothing_of_telling_classes_apart(study: StudyFiles, tmp_path: Path) -> None:
    names = pd.read_csv(study.metadata, sep="\t", index_col=0).index
    chance = np.random.default_rng(0).random(24)
    table = pd.DataFrame({"sample_id": names, "actual": "gut", "predicted": np.where(chance > 0.3, "gut", "skin")})
    table.assign(prob_gut=chance, prob_skin=1 - chance).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    out = succeed("evaluate", tmp_path / "p.tsv", "--output-dir", tmp_path / "r").out
    found = read_metrics(tmp_path / "r")["predictions"]["p"]
    said = "All samples are of class gut: nothing can be said of how well classes are told apart"
    assert said in out and said in (tmp_path / "r" / "report.html").read_text() and said in found["cautions"][0]
    assert found["metrics"].keys() == {"accuracy", "brier"}  # none that is a mean over classes
    assert found["metrics"]["accuracy"] == pytest.approx((chance > 0.3).mean())
    plots = {path.stem for path in (tmp_path / "r" / "plots").iterdir()}
    assert "predictions" in plots and not {"curves", "calibration"} & plots
