"""Runs kept by MLflow in SQLite and by Weights & Biases offline, read back with their own readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from aam.errors import DataError
from aam.integrations import require_installed, run_name, tracker

PARAMETERS = {f"option_{i}": i for i in range(150)} | {"command": "train", "classifier": False, "lr": 1e-3}
ROWS = [{"epoch": float(i), "train_loss": 1 / i, "val_r2": 0.1 * i} for i in range(1, 601)]
FINAL = {"best_epoch": 600.0, "final_val_r2": 60.0}


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "age"
    (directory / "plots").mkdir(parents=True)
    for name in ("val_predictions", "history"):
        Figure(figsize=(1, 1)).savefig(directory / "plots" / f"{name}.png")
    (directory / "best_model.safetensors").write_bytes(b"weights")
    return directory


def write_run(directory: Path, kind: str) -> str:
    """A run that is interrupted after 400 epochs and goes on; its ID."""
    first = tracker(kind, directory)
    run_id = first.start(None, PARAMETERS)
    first.log(ROWS[:1])
    first.log(ROWS[1:400])
    first.finish("interrupted")
    second = tracker(kind, directory)
    assert second.start(run_id, PARAMETERS) == run_id
    second.log(ROWS[400:])
    plots = sorted((directory / "plots").glob("*.png"))
    second.keep(FINAL, plots, directory / "best_model.safetensors")
    second.finish("finished")
    return run_id


# --------------------------------------------------------------------------------------------------------- without any


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"--track nosuchpackage .* pip install 'aam\[nosuchpackage\]'"):
        require_installed(["nosuchpackage"])
    require_installed([])


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb leaves a folder of its name, and ``python -m aam`` looks for packages where it is called."""
    (tmp_path / "nosuchtracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="not installed"):
        require_installed(["nosuchtracker"])


def test_a_fold_goes_by_two_names(tmp_path: Path) -> None:
    assert run_name(tmp_path / "age") == "age"
    assert run_name(tmp_path / "age" / "fold_2") == "age/fold_2"


# -------------------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="pip install 'aam[mlflow]' to test it")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # artifacts lie beside the working directory by default
    return uri


@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow_in_sqlite(mlflow_uri: str, run_directory: Path) -> None:
    run_id = write_run(run_directory, "mlflow")
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(mlflow_uri)
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "aam"
    assert run.info.run_name == "age" and run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in PARAMETERS.items()}
    for name in ("train_loss", "val_r2"):
        points = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        assert points == [(int(row["epoch"]), row[name]) for row in ROWS]
    assert {name: run.data.metrics[name] for name in FINAL} == FINAL
    found = {path.path for folder in ("plots", "model") for path in client.list_artifacts(run_id, folder)}
    assert found == {"plots/history.png", "plots/val_predictions.png", "model/best_model.safetensors"}
    fetched = Path(client.download_artifacts(run_id, "model/best_model.safetensors"))
    assert fetched.read_bytes() == b"weights"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_status_of_a_run_that_ended_otherwise(mlflow_uri: str, run_directory: Path) -> None:
    from mlflow.tracking import MlflowClient

    for status, theirs in (("interrupted", "KILLED"), ("failed", "FAILED")):
        one = tracker("mlflow", run_directory)
        run_id = one.start(None, PARAMETERS)
        one.finish(status)  # type: ignore[arg-type]
        assert MlflowClient(mlflow_uri).get_run(run_id).info.status == theirs


@pytest.mark.filterwarnings("ignore")
def test_mlflow_run_that_is_gone(mlflow_uri: str, run_directory: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)--track mlflow: .*0123.*remove .*tracking\.json"):
        tracker("mlflow", run_directory).start("0123", PARAMETERS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////dev/null/mlflow.db", "nosuchscheme://x"])
def test_mlflow_where_nothing_is(
    uri: str, mlflow_uri: str, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(DataError, match=r"(?s)--track mlflow: .*MLFLOW_TRACKING_URI") as caught:
        tracker("mlflow", run_directory).start(None, PARAMETERS)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- Weights & Biases


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    wandb = pytest.importorskip("wandb", reason="pip install 'aam[wandb]' to test it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    yield
    wandb.teardown()  # else the next run has this one's settings


def records(path: Path) -> list[Any]:
    """What a run's file holds: a log as LevelDB writes it, in blocks of 32 KiB, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, place, message = [], 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for another header: the block's end is padding
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind == 0:
            break
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(message))
            message = b""
    return found


def items(updates: Any) -> Mapping[str, str]:
    return {item.key or ".".join(item.nested_key): item.value_json for item in updates}


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(wandb_offline: None, run_directory: Path) -> None:
    run_id = write_run(run_directory, "wandb")
    folders = sorted((run_directory / "wandb").glob(f"offline-run-*-{run_id}*"))
    assert folders
    found = [record for folder in folders for record in records(folder / f"run-{run_id}.wandb")]
    begun = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert begun.project == "aam" and begun.display_name == "age"
    config = {name: json.loads(value) for name, value in items(begun.config.update).items()}
    assert {name: config[name] for name in PARAMETERS} == PARAMETERS
    history = [items(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]
    rows = [{name: json.loads(row[name]) for name in ROWS[0]} for row in history if "train_loss" in row]
    assert rows == ROWS
    last = [items(record.summary.update) for record in found if record.WhichOneof("record_type") == "summary"]
    summary = {name: json.loads(value) for update in last for name, value in update.items() if "." not in name}
    assert {name: summary[name] for name in FINAL} == FINAL and summary["status"] == "finished"
    artifacts = [record.request.log_artifact.artifact for record in found if record.request.HasField("log_artifact")]
    artifacts += [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    model = next(one for one in artifacts if one.type == "model")
    assert [entry.path for entry in model.manifest.contents] == ["best_model.safetensors"]
    pictures = sorted(path.name for folder in folders for path in folder.rglob("*.png"))
    assert [name.split("_")[0] for name in pictures] == ["history", "val"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_login(wandb_offline: None, run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(run_directory))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(DataError, match=r"--track wandb: .*wandb login.*WANDB_MODE=offline"):
        tracker("wandb", run_directory).start(None, PARAMETERS)
