"""The tutorials of the manual: each runs from its first cell to its last, and what its text says is so."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="the tutorials are read by jupytext: pip install 'aam[dev]'")
nbclient = pytest.importorskip("nbclient", reason="the tutorials are run by nbclient: pip install 'aam[dev]'")
nbformat = pytest.importorskip("nbformat", reason="the tutorials are run by nbclient: pip install 'aam[dev]'")
pytest.importorskip("ipykernel", reason="the tutorials are run by ipykernel: pip install 'aam[dev]'")

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"


def run_page(name: str, values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """Run a page, and say what these Python expressions come to at its end, and what each code cell shows."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(TUTORIALS / f"{name}.md")
    of_page = [cell for cell in notebook.cells if cell.cell_type == "code"]
    asked = ", ".join(f"{key!r}: {expression}" for key, expression in values.items())
    last = nbformat.v4.new_code_cell(f"import json; print(json.dumps({{{asked}}}))")
    notebook.cells.append(last)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True).execute()
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in of_page]
    last_picture = of_page[-1].outputs[-1]
    assert "image/png" in last_picture.get("data", {}), "a tutorial ends with a plot"
    for text in shown:
        assert "Traceback" not in text
        assert len(text.splitlines()) < 45, text  # no page is flooded
    (answer,) = (output["text"] for output in last.outputs)
    return json.loads(answer), shown
