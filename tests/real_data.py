"""Real studies for tests; the project ships none, so tests that need them skip where they are missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """Path of a file or folder of the real studies, `$AAM_DATA/name`; skips the test if it is missing."""
    path = Path(os.environ.get("AAM_DATA") or _DEFAULT) / name
    if not path.exists():
        pytest.skip(f"no real data at {path}; set AAM_DATA")
    return path
