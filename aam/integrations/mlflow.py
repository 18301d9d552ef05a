"""Runs kept by MLflow: on a server, or in a SQLite file.

Where is for MLflow to say: ``MLFLOW_TRACKING_URI`` and, for the experiment, ``MLFLOW_EXPERIMENT_NAME`` (else ``aam``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aam.errors import DataError
from aam.integrations import run_name
from aam.training.tracking import first_line

if TYPE_CHECKING:
    from aam.training.tracking import Status

__all__ = ["MLflow"]

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
MOST_IN_A_CALL = {"params": 100, "metrics": 1000}  # as MLflow's servers allow


class MLflow:
    """A run in MLflow.

    Parameters
    ----------
    directory : Path
        Of the run.
    """

    name = "mlflow"

    def __init__(self, directory: Path) -> None:
        # The run's values go to the tracker that was named, and nothing to anyone else.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Of seven tries, as MLflow makes, the last ones take minutes, and training waits for them.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self.directory = directory
        self.client: Any = None
        self.run_id = ""

    def start(self, run_id: str | None, parameters: Mapping[str, str | float | bool]) -> str:
        """See `aam.training.tracking.Tracker`."""
        from mlflow import get_tracking_uri
        from mlflow.tracking import MlflowClient

        where = get_tracking_uri()
        try:
            self.client = MlflowClient()
            if run_id is not None:
                self.client.update_run(run_id, status="RUNNING")
                self.run_id = run_id
                return run_id
            run = self.client.create_run(self._experiment(), run_name=run_name(self.directory))
            self.run_id = run.info.run_id
            self._log_parameters(parameters)
        except Exception as error:  # of MLflow, its database, its driver or the file system
            before = f", where it had run {run_id}" if run_id is not None else ""
            raise DataError(
                f"--track mlflow: {first_line(error)} ({where}{before}); look at MLFLOW_TRACKING_URI"
                + (f", or remove {self.directory / 'tracking.json'} to begin a new one" if run_id is not None else "")
            ) from None
        return self.run_id

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "aam")
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another run was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log_parameters(self, parameters: Mapping[str, str | float | bool]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in parameters.items()]
        for start in range(0, len(params), MOST_IN_A_CALL["params"]):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_IN_A_CALL["params"]])

    def log(self, rows: Sequence[Mapping[str, float]]) -> None:
        """See `aam.training.tracking.Tracker`."""
        self._log_metrics(
            [(name, value, int(row["epoch"])) for row in rows for name, value in row.items() if name != "epoch"]
        )

    def _log_metrics(self, values: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, epoch) for name, value, epoch in values]
        for start in range(0, len(metrics), MOST_IN_A_CALL["metrics"]):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST_IN_A_CALL["metrics"]])

    def keep(self, metrics: Mapping[str, float], plots: Sequence[Path], model: Path) -> None:
        """See `aam.training.tracking.Tracker`."""
        self._log_metrics([(name, value, int(metrics["best_epoch"])) for name, value in metrics.items()])
        for plot in plots:
            self.client.log_artifact(self.run_id, str(plot), "plots")
        self.client.log_artifact(self.run_id, str(model), "model")

    def finish(self, status: Status) -> None:
        """See `aam.training.tracking.Tracker`."""
        self.client.set_tag(self.run_id, "aam.status", status)
        self.client.set_terminated(self.run_id, STATUS[status])
