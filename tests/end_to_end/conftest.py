"""Runs that several tests read; none may change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.program import StudyFiles, simulate, succeed


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def pretrained(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `aam pretrain`, grouped by subject, with a test split."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    succeed(
        *study.pretrain,
        *("--metadata", study.metadata, "--group-column", "subject_id", "--test-size", "0.25"),
        *("--nuc-asv-fraction", "0.5", "--plots", "--output-dir", run),
    )
    return run


@pytest.fixture(scope="session")
def trained(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `aam train` on age, with distances beside it and a test split."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    succeed(
        *study.train,
        *("--unifrac-matrix", study.matrix, "--metadata-column", "age", "--test-size", "0.25"),
        *("--nuc-asv-fraction", "0.5", "--plots", "--output-dir", run),
    )
    return run
