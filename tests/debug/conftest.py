"""The scripts of debug/, imported as they are when one is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.end_to_end.program import StudyFiles, simulate

sys.path.insert(0, str(Path(__file__).parents[2] / "debug"))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def training(study: StudyFiles) -> list[str]:
    """A run of `aam train` with distances beside it, as arguments."""
    matrix = ["--unifrac-matrix", study.matrix, "--metadata-column", "age", "--batch-size", "4", "--device", "cpu"]
    return [str(part) for part in [*study.train, *matrix]]
