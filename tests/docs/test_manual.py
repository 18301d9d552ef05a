"""The manual: Sphinx builds it without a warning, and it leaves no command and no module out."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aam.cli.main import COMMANDS
from aam.config import OptimConfig
from aam.models import base_targets, covariates
from aam.training import schedules
from tests.docs.pages import DOCS, ROOT, blocks

REFERENCE = DOCS / "reference"
# What the API reference leaves out: programs, not interfaces.
OPTIONAL = {"ray"}  # packages that the tests do without
NOT_LISTED = {"cli", "benchmarks", "__main__", "demo"}


def modules_of_reference() -> list[str]:
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
    return re.findall(r"^\.\. automodule:: (\S+)$", pages, re.MULTILINE)


def test_every_command_has_a_page() -> None:
    index = (DOCS / "commands" / "index.md").read_text(encoding="utf-8")
    for name, (module, _) in COMMANDS.items():
        page = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
        assert f".. click:: aam.cli.{module}:command" in page and f":prog: aam {name}\n" in page
        assert f"({name}.md)" in index and re.search(rf"^{name}$", index, re.MULTILINE), name
    assert {page.stem for page in (DOCS / "commands").glob("*.md")} == {*COMMANDS, "index"}


def test_the_reference_has_every_module_that_is_for_use() -> None:
    listed = modules_of_reference()
    assert len(listed) == len(set(listed))
    for name in listed:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
    package = ROOT / "aam"
    public = {
        ".".join(("aam", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if "\n__all__ = " in path.read_text(encoding="utf-8")
        and path.relative_to(package).with_suffix("").parts[0] not in NOT_LISTED
    }
    assert public <= set(listed), public - set(listed)


def test_the_examples_of_what_can_be_added_work(monkeypatch: pytest.MonkeyPatch) -> None:
    target, fusion, curve, record = blocks(DOCS / "extending.md", "python")

    monkeypatch.setattr(base_targets, "_REGISTRY", dict(base_targets._REGISTRY))
    names = dict(vars(base_targets))
    exec(compile(target, "extending.md", "exec", dont_inherit=True), names)
    assert base_targets.base_target("canberra").upper == 1

    names = dict(vars(covariates))
    exec(compile(fusion, "extending.md", "exec", dont_inherit=True), names)
    torch.manual_seed(0)
    embedding, tokens = torch.randn(3, 8), torch.randn(3, 2, 8)
    torch.testing.assert_close(names["ScaledFusion"](8, 2)(embedding, tokens), embedding, atol=0.2, rtol=0.1)

    names = dict(vars(schedules))
    exec(compile(curve + "\nrecord = (" + record + ")", "extending.md", "exec"), names)
    config = OptimConfig(lr=1.0, min_lr=0.2)
    shares = [names["record"].curve(config, 8)(step) for step in (0, 4, 8, 9)]
    np.testing.assert_allclose(shares, [1, 0.6, 0.2, 0.2])


@pytest.mark.slow
def test_sphinx_builds_it_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_nb", "sphinx_click"):
        pytest.importorskip(package, reason="the extra `docs` is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        # The tutorials are run by tests/docs/test_tutorials.py.
        [
            *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
            *("-D", "nb_execution_mode=off", str(DOCS), str(tmp_path)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    for name in COMMANDS:
        page = (tmp_path / "commands" / f"{name}.html").read_text(encoding="utf-8")
        assert f'id="cmdoption-aam-{name}' in page or name == "benchmark"
    program = (tmp_path / "reference" / "program.html").read_text(encoding="utf-8")
    assert 'id="aam.predict.predict"' in program


def test_what_cells_print_is_in_one_piece():
    """Pieces that end within a line are no lines of their own."""
    pytest.importorskip("myst_nb", reason="pip install 'aam[docs]'")
    merged = runpy.run_path(str(DOCS / "conf.py"))["with_whole_lines"]
    pieces = [
        ("stdout", "mae  2.0"),
        ("stderr", "a war"),
        ("stdout", "76\nr2  "),
        ("stderr", "ning\n"),
        ("stdout", ".8\n"),
    ]
    outputs = [{"output_type": "stream", "name": name, "text": text} for name, text in pieces]
    picture = {"output_type": "display_data", "data": {}}
    found = merged([*outputs[:3], picture, *outputs[3:]])
    assert [each.get("text") for each in found] == ["mae  2.076\nr2  .8\n", "a warning\n", None]
