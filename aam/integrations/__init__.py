"""Other people's tools, each imported where an option asks for it and installed by an extra of its name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aam.errors import DataError

if TYPE_CHECKING:
    from aam.training.tracking import Tracker

__all__ = ["require_installed", "require_package", "run_name", "tracker"]


def require_installed(kinds: Sequence[str]) -> None:
    """Refuse trackers whose package is missing, before anything is done.

    Raises
    ------
    DataError
    """
    for kind in kinds:
        require_package(kind, f"--track {kind}", kind)


def require_package(name: str, asked: str, extra: str) -> None:
    """Refuse what needs a package that is missing.

    Parameters
    ----------
    name : str
        Of the package.
    asked : str
        What the user asked for.
    extra : str
        That brings it.

    Raises
    ------
    DataError
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, as wandb leaves one, is no package
        raise DataError(f"{asked} needs a package that is not installed: pip install 'aam[{extra}]'")


def tracker(kind: str, directory: Path) -> Tracker:
    """The tracker of ``--track``.

    Parameters
    ----------
    kind : {"mlflow", "wandb"}
    directory : Path
        Of the run, which goes by its name.
    """
    if kind == "mlflow":
        from aam.integrations.mlflow import MLflow

        return MLflow(directory)
    assert kind == "wandb", kind
    from aam.integrations.wandb import WeightsAndBiases

    return WeightsAndBiases(directory)


def run_name(directory: Path) -> str:
    """What a run is called: by its directory, and for a fold by the one above it, too."""
    path = directory.absolute()
    return f"{path.parent.name}/{path.name}" if path.name.startswith(("fold_", "seed_")) else path.name
