"""The tutorials of the manual: each runs from its first cell to its last, and what its text says is so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HINT = "the tutorials are run by {}: pip install 'aam[dev]'"
pytest.importorskip("ipykernel", reason=HINT.format("ipykernel"))
jupytext = pytest.importorskip("jupytext", reason=HINT.format("jupytext"))
nbclient = pytest.importorskip("nbclient", reason=HINT.format("nbclient"))
nbformat = pytest.importorskip("nbformat", reason=HINT.format("nbformat"))

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"

pytestmark = pytest.mark.slow


class Page(NamedTuple):
    """A page that has been run."""

    values: dict[str, Any]  # what was asked of it at its end
    shown: str  # all that its cells print


@pytest.fixture
def run_page(monkeypatch: pytest.MonkeyPatch):
    """Runs a page in a kernel of its own; an error in any cell, or a command that fails, is raised."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(name: str, **asked: str) -> Page:
        notebook = jupytext.read(TUTORIALS / f"{name}.md")
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        expressions = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
        answer = nbformat.v4.new_code_cell(f"import json; print(json.dumps({{{expressions}}}, default=float))")
        notebook.cells.append(answer)
        nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", coalesce_streams=True).execute()
        texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
        assert max(len(text.splitlines()) for text in texts) < 45, "a cell floods the page"
        assert "image/png" in cells[-1].outputs[-1].get("data", {}), "a tutorial ends with a plot"
        return Page(json.loads(answer.outputs[0].text), "\n".join(texts))

    return run


def test_every_tutorial_is_here():
    assert {path.stem[0] for path in TUTORIALS.glob("[1-9]_*.md")} == set("12345")


def test_training(run_page):
    page = run_page(
        "1_training",
        mae="metrics['test']['mae']",
        r2="metrics['test']['r2']",
        guess="metrics['baseline']['guess']['test']['mae']",
        again="difference",
        on_both_sides="len(set(metadata.subject_id[splits == 'test']) & set(metadata.subject_id[splits != 'test']))",
        loss="history.val_target_loss.tolist()",
        drawn="[float(errors.AAM.mean()), float(errors.guess.mean())]",
    )
    said = page.values
    assert said["mae"] < 0.6 * said["guess"]
    assert said["r2"] > 0.5
    assert said["again"] < 0.01
    assert said["on_both_sides"] == 0
    assert min(said["loss"][-3:]) < 0.5 * said["loss"][0]
    assert said["drawn"] == pytest.approx([said["mae"], said["guess"]])  # four samples of each child
    assert "No problem found." in page.shown
    assert "better than a guess" in page.shown


def test_pretraining(run_page):
    page = run_page(
        "2_pretraining",
        unifrac="history[['val_unifrac_r2', 'val_unifrac_euclidean_r2']].iloc[-1].tolist()",
        along="along.abs().max()",
        errors="results.to_dict()",
        labelled="(splits == 'train').sum()",
    )
    said = page.values
    assert said["unifrac"][0] > 0.6 > said["unifrac"][1] > 0.2
    assert said["along"] > 0.4
    error = said["errors"]
    assert set(error) == {"pre-trained", "from scratch", "random forest", "guess"}
    assert max(map(int, error["guess"])) * 4 <= said["labelled"]
    for number, guess in error.pop("guess").items():
        assert max(of_model[number] for of_model in error.values()) < 0.85 * guess
    networks = error["pre-trained"]["4"], error["from scratch"]["4"]
    assert max(networks) < 0.9 * error["random forest"]["4"]
    assert abs(networks[0] - networks[1]) < 1  # which of them is ahead is up to the seed
    assert error["random forest"]["36"] < min(error["pre-trained"]["36"], error["from scratch"]["36"]) + 0.2


def test_evaluation(run_page):
    page = run_page(
        "3_evaluation",
        columns="columns.set_index('column')[['explained', 'q']].to_dict()",
        worst="groups['group'][0]",
        comparison="pd.read_csv('report/comparison.tsv', sep='\\t').iloc[0].to_dict()",
        error="errors['error'].mean()",
        good="errors['error'][(plate != 'C') & ~bad].mean()",
        failed="errors['error'][(plate == 'C') & ~bad].mean()",
        guess="guess",
        worse_than_a_guess="by_child.index[by_child > guess].tolist()",
    )
    said = page.values
    assert max(said["columns"]["q"][name] for name in ("plate", "depth")) < 0.05
    assert said["columns"]["q"]["storage_days"] > 0.05
    assert said["worst"] == "subject50"
    assert said["worse_than_a_guess"] == ["subject50"]
    assert said["good"] < said["error"] < said["guess"]
    assert said["good"] < 0.6 * said["failed"]
    between = said["comparison"]
    assert between["low"] < 0 < between["high"]


def test_importance(run_page):
    page = run_page(
        "4_importance",
        planted="int((planted['effect'] != 0).sum())",
        auc="auc",
        top="permutation['effect'].head(4).tolist()",
        direction="(np.sign(permutation['effect']) * permutation['direction']).head(4).tolist()",
        mae="json.loads(Path('runs/age/metrics.json').read_text())['test']['mae']",
    )
    said = page.values
    assert said["planted"] == 8
    assert min(said["auc"].values()) > 0.8
    assert all(said["top"])
    assert said["direction"] == [1, 1, 1, 1]  # what grows with age makes the prediction higher
    assert "better than a guess" in page.shown


def test_custom_target(run_page):
    page = run_page(
        "5_custom_target",
        formula="float(np.abs(formula - hellinger).max())",
        r2="found",
        metrics="json.loads(Path('runs/hellinger/metrics.json').read_text())['test']",
        orders="orders",
        bias="float((read['clade'].numpy()[upper] - actual).mean())",
        samples="len(names)",
    )
    said = page.values
    assert said["formula"] < 0.01
    assert min(said["r2"].values()) > 0.3
    assert said["bias"] < 0
    assert said["orders"]["clade"] > said["orders"]["euclidean"] > 0.6
    assert said["r2"]["clade"] < said["orders"]["clade"] ** 2 - 0.05
    assert said["r2"]["clade"] == pytest.approx(said["metrics"]["hellinger_r2"], abs=0.005)
    assert said["r2"]["euclidean"] == pytest.approx(said["metrics"]["hellinger_euclidean_r2"], abs=0.005)
    assert said["samples"] == 48
