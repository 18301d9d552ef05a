"""Runs kept by Weights & Biases: on its server, or with ``WANDB_MODE=offline`` in files that `wandb sync` sends later.

Where is for its own variables to say: ``WANDB_PROJECT`` (else ``aam``), ``WANDB_ENTITY``, ``WANDB_BASE_URL`` and so on;
its files are in ``WANDB_DIR`` (else the run directory).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aam.errors import DataError
from aam.integrations import run_name
from aam.training.tracking import first_line

if TYPE_CHECKING:
    from aam.training.tracking import Status

__all__ = ["WeightsAndBiases"]


class WeightsAndBiases:
    """A run in Weights & Biases.

    Parameters
    ----------
    directory : Path
        Of the run.
    """

    name = "wandb"

    def __init__(self, directory: Path) -> None:
        import wandb

        self.wandb: Any = wandb
        self.directory = directory
        self.run: Any = None

    def start(self, run_id: str | None, parameters: Mapping[str, str | float | bool]) -> str:
        """See `aam.training.tracking.Tracker`."""
        folder = None if "WANDB_DIR" in os.environ else str(self.directory.absolute())
        # Its copy of what is printed would hold every state of the progress line; aam.log has the lines.
        settings = self.wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True)
        try:
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", "aam"),
                name=run_name(self.directory),
                id=run_id,
                resume="allow",
                dir=folder,
                config=dict(parameters),
                settings=settings,
            )
        except Exception as error:  # of its settings, its process, the network or the file system
            raise DataError(
                f"--track wandb: {first_line(error)}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None
        self.run.summary["status"] = "running"
        return str(self.run.id)

    def log(self, rows: Sequence[Mapping[str, float]]) -> None:
        """See `aam.training.tracking.Tracker`."""
        for row in rows:
            self.run.log(dict(row), step=int(row["epoch"]))

    def keep(self, metrics: Mapping[str, float], plots: Sequence[Path], model: Path) -> None:
        """See `aam.training.tracking.Tracker`."""
        self.run.summary.update(dict(metrics))
        self.run.log({f"plots/{plot.stem}": self.wandb.Image(str(plot)) for plot in plots})
        artifact = self.wandb.Artifact(f"model-{self.run.id}", type="model", metadata=dict(metrics))
        artifact.add_file(str(model))
        self.run.log_artifact(artifact)

    def finish(self, status: Status) -> None:
        """See `aam.training.tracking.Tracker`."""
        self.run.summary["status"] = status
        if status == "interrupted":
            self.run.mark_preempting()  # the server then shows the run as preempted, not as crashed
        self.run.finish(exit_code=0 if status == "finished" else 1)
