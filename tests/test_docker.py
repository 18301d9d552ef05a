"""The Dockerfile and what it is given; its builder stage is run by hand with `python -m tests.dockerfile`."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from aam.cli.main import COMMANDS
from tests.dockerfile import ROOT, Stage, context, ignored, run_builder, stages

BUILDER, FINAL = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stage", [BUILDER, FINAL], ids=["builder", "final"])
def test_bases_are_of_a_version_that_the_program_runs_on(stage: Stage, project: dict):
    image, _, tag = stage.base.partition(":")
    assert image == "python" and tag != "latest"
    version = re.match(r"(\d+)\.(\d+)-", tag)
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["project"]["requires-python"])
    assert version and least and tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


def test_stages_have_one_python_since_an_environment_is_bound_to_its_own():
    assert BUILDER.base == FINAL.base
    (copied,) = FINAL.of("COPY")
    origin, source, target = copied.words
    assert origin == f"--from={BUILDER.name}" and source == target
    assert BUILDER.of("RUN")[0].text == f"python -m venv {source}"
    assert f"PATH={source}/bin:$PATH" in FINAL.of("ENV")[0].words


def test_it_runs_the_program_as_an_ordinary_user(project: dict):
    names = [instruction.name for instruction in FINAL.instructions]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    (user,) = FINAL.of("USER")
    number, _, group = user.text.partition(":")
    assert int(number) > 0 and int(group) > 0
    assert f"useradd --uid {number} " in FINAL.of("RUN")[0].text
    (entry,), (default,) = FINAL.of("ENTRYPOINT"), FINAL.of("CMD")
    assert entry.text.startswith("[") and default.text.startswith("[")  # so that signals reach the program
    assert entry.words == ["aam"] and "aam" in project["project"]["scripts"]
    assert default.words[0] == "--help" or default.words[0] in COMMANDS


def test_what_is_copied_is_there_and_not_ignored():
    given = set(context())
    for instruction in BUILDER.of("COPY"):
        *sources, _ = instruction.words
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(path == source or path.startswith(f"{source}/") for path in given), source


def test_all_of_the_package_is_given_and_nothing_else():
    given = set(context())
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "aam").rglob("*.py")} <= given
    assert "aam/default_space.yaml" in given
    assert {path for path in given if not path.startswith("aam/")} == {"constraints.txt", "pyproject.toml", "LICENSE"}


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("aam/cli/main.py", False),
        ("aam/cli/__pycache__/main.cpython-311.pyc", True),
        ("aam/stray.pyc", True),
        ("constraints.txt", False),
        (".git/config", True),
        ("runs/age/best_model.safetensors", True),
        ("data/metadata.tsv", True),
        ("tests/test_docker.py", True),
    ],
)
def test_patterns_are_read_as_docker_reads_them(path: str, verdict: bool):
    patterns = ["*", "!aam", "!constraints.txt", "**/__pycache__", "**/*.pyc"]
    assert ignored(path, patterns) is verdict


def test_pytorch_is_installed_in_the_version_of_the_constraints():
    torch = next(step.text for step in BUILDER.of("RUN") if "--index-url" in step.text)
    assert "grep '^torch==' constraints.txt" in torch and "--no-deps" in torch
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("torch==") for line in lines) == 1
    assert any("--constraint constraints.txt" in step.text for step in BUILDER.of("RUN"))


def test_steps_are_run_in_order_until_one_fails(tmp_path: Path):
    text = (
        "FROM base:1 AS builder\nARG WORD=hello\nARG TWICE=${WORD}${WORD}\nCOPY LICENSE ./\n"
        'RUN mkdir -p /opt/aam \\\n    && echo "${TWICE}" > /opt/aam/said \\\n    && test -f LICENSE\n'
    )
    (tmp_path / "Dockerfile").write_text(text)
    run_builder(tmp_path / "built", {"WORD": "so"}, tmp_path / "Dockerfile")
    assert (tmp_path / "built" / "opt" / "aam" / "said").read_text() == "soso\n"
    (tmp_path / "Dockerfile").write_text(text + "RUN false\nRUN touch /opt/aam/never\n")
    with pytest.raises(subprocess.CalledProcessError):
        run_builder(tmp_path / "broken", {}, tmp_path / "Dockerfile")
    assert not (tmp_path / "broken" / "opt" / "aam" / "never").exists()
