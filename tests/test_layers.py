"""Imports go one way: config ← {data, models} ← training ← run ← cli; leaves are imported where they are used."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aam

ROOT = Path(aam.__file__).parent
LEAVES = {"evaluation", "interpret", "integrations", "benchmarks"}
FRONT = {
    "cli",
    "baselines",
    "calibration",
    "calibrators",
    "inputs",
    "estimate",
    "assembly",
    "run_directory",
    "loaders",
    "familiarity",
    "answers",
    "joining",
    "outcome_plots",
    "outcome",
    "searches",
    "trainer_setup",
    "run",
    "folds",
    "predict",
    "embed",
    "explain",
    "explanation",
    "networks",
    "export",
    "evaluate",
    "check",
    "demo",
    "distances",
    "search_space",
    "trials",
    "tune",
}
OF_OUTCOME = {"answers", "calibrators", "joining", "outcome_plots"}
# What a part must never import, at the top of a module or within a function.
FORBIDDEN = {
    "errors": {"config", "data", "models", "training", *FRONT, *LEAVES},
    "resampling": {"config", "data", "models", "training", *FRONT, *LEAVES},
    "config": {"data", "models", "training", *FRONT, *LEAVES},
    "data": {"models", "training", *FRONT, *LEAVES},
    "models": {"config", "data", "training", *FRONT, *LEAVES},
    "training": {*FRONT, *LEAVES},
    "evaluation": {"models", "training", *FRONT, *(LEAVES - {"evaluation"})},
    "inputs": {"training", *(FRONT - {"inputs"}), *LEAVES},
    "run_directory": {"config", "data", "models", *(FRONT - {"run_directory"}), *LEAVES},
    "assembly": {*(FRONT - {"assembly"}), *LEAVES},
    "loaders": {*(FRONT - {"loaders"}), *LEAVES},
    "familiarity": {"models", *(FRONT - {"familiarity", "loaders"}), *LEAVES},
    "answers": {"models", *(FRONT - {"answers", "run_directory"}), *(LEAVES - {"evaluation"})},
    "calibrators": {"config", "models", "training", *(FRONT - {"answers", "calibration", "calibrators"}), *LEAVES},
    "joining": {"models", *(FRONT - {"joining", "answers", "baselines", "run_directory"}), *LEAVES},
    "outcome_plots": {"config", "models", *(FRONT - {"outcome_plots", "answers"}), *(LEAVES - {"evaluation"})},
    "outcome": {
        *(FRONT - {"outcome", "loaders", "run_directory", "baselines", "familiarity"} - OF_OUTCOME),
        *(LEAVES - {"evaluation"}),
    },
    "calibration": {"config", "data", "models", "training", *(FRONT - {"calibration"}), *LEAVES},
    "searches": {"cli", "run", "folds", "predict", "check", "demo", "assembly", "trainer_setup", "benchmarks"},
    "trainer_setup": {"cli", "run", "folds", "predict", "check", "demo", "assembly", "benchmarks"},
    "run": {"cli", "folds", "predict", "check", "demo", "benchmarks"},
    "folds": {"cli", "predict", "check", "demo", "benchmarks"},
    "networks": {*(FRONT - {"networks", "loaders"}), *(LEAVES - {"integrations"})},
    "export": {*(FRONT - {"export", "networks", "loaders", "predict"}), *(LEAVES - {"integrations"})},
    "predict": {"cli", "export", "embed", "check", "demo", *LEAVES},
    "evaluate": {"cli", "models", *(FRONT - {"evaluate", "run_directory"}), *(LEAVES - {"evaluation"})},
    "embed": {"cli", "check", "demo", *LEAVES},
    "explain": {"cli", "check", "demo", *(LEAVES - {"evaluation", "interpret"})},
    "explanation": {
        *("cli", "config", "models", "training", *(FRONT - {"explanation", "run_directory"})),
        *(LEAVES - {"evaluation", "interpret"}),
    },
    "interpret": {"config", "training", *FRONT, *(LEAVES - {"interpret"})},
    "baselines": {"cli", "models", *(FRONT - {"baselines", "run_directory"}), *(LEAVES - {"evaluation"})},
    "distances": {"cli", "models", "training", "run", "folds", "predict", "check", "demo", *LEAVES},
    "estimate": {"data", "models", "training", *(FRONT - {"estimate"}), *LEAVES},
    "search_space": {"data", "models", "training", *(FRONT - {"search_space"}), *LEAVES},
    "trials": {"cli", "models", "folds", "predict", "embed", "evaluate", "check", "demo", "tune", *LEAVES},
    "tune": {"cli", "models", "training", "folds", "predict", "embed", "evaluate", "check", "demo", "benchmarks"},
    "check": {"cli", "models", "training", "run", "folds", "predict", "demo", *LEAVES},
}
# What may be imported within a function, but not when the module is.
LAZY_ONLY = {
    "networks": LEAVES,
    "run": LEAVES,
    "answers": LEAVES,
    "joining": {"baselines"},
    "outcome_plots": LEAVES,
    "outcome": LEAVES | {"baselines"},
    "searches": LEAVES,
    "trainer_setup": LEAVES,
    "folds": LEAVES,
    "tune": LEAVES,
    "cli": {"data", "models", "training", *FRONT - {"cli"}, *LEAVES},
}
HEAVY = {
    "torch",
    "pytorch_optimizer",
    "numpy",
    "pandas",
    "scipy",
    "h5py",
    "biom",
    "skbio",
    "sklearn",
    "matplotlib",
    "optuna",
    "ray",
    "tensorboard",
    "rich",
    "captum",
    "shap",
    "onnx",
    "onnxruntime",
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Full names of the modules that a module imports, those for type checking left out."""
    package = ["aam", *path.relative_to(ROOT).parent.parts]

    def walk(nodes: list[ast.AST]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, node.module] if node.module else base)
                yield from (f"{source}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(list(node.orelse))
            elif not (at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
                yield from walk(list(ast.iter_child_nodes(node)))

    return walk([ast.parse(path.read_text(encoding="utf-8"))])


def parts_imported(path: Path, *, at_import_only: bool = False) -> set[str]:
    names = (name.split(".") for name in imports(path, at_import_only=at_import_only))
    return {name[1] for name in names if name[0] == "aam" and len(name) > 1}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert not parts_imported(path) & FORBIDDEN.get(part, set())
    assert not parts_imported(path, at_import_only=True) & LAZY_ONLY.get(part, set())


def test_the_contract_names_parts_that_exist() -> None:
    parts = {part_of(path) for path in modules()}
    assert FORBIDDEN.keys() <= parts
    assert LAZY_ONLY.keys() <= parts


def test_the_contract_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    module = tmp_path / "models" / "module.py"
    module.parent.mkdir()
    module.write_text(
        "from typing import TYPE_CHECKING\nimport aam.run\nfrom aam import config\nfrom ..data import batch\n"
        "if TYPE_CHECKING:\n    import aam.cli\ndef f():\n    from aam.training.losses import weighted\n"
    )
    assert parts_imported(module) == {"run", "config", "data", "training"}
    assert parts_imported(module, at_import_only=True) == {"run", "config", "data"}


def test_models_log_and_read_nothing() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert not {"logging", "pathlib", "json", "os"} & set(imports(path)), path


@pytest.mark.parametrize("code", ["import aam.cli.main", "from aam.cli.main import cli; cli(['--help'])"])
def test_help_loads_nothing_heavy(code: str) -> None:
    report = f"import sys, atexit; atexit.register(lambda: print('LOADED', *sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("LOADED", 1)[1].split())
    assert not loaded & HEAVY
    assert "aam.config" not in loaded


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "aam", "--help"], capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5
