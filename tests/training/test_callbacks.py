"""Every callback goes through the same events of a tiny run; then what each one writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from aam.training.callbacks import Checkpoints, Console, EarlyStopping, HistoryFile, TensorBoard
from aam.training.checkpoint import load_checkpoint
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback
from tests.training.tiny import build_task, build_trainer


def no_figures(evaluation: Evaluation) -> dict[str, Figure]:
    return {}


CALLBACKS: dict[str, Callable[[Path], Callback]] = {
    "Callback": lambda path: Callback(),
    "Checkpoints": lambda path: Checkpoints(lambda evaluation: None, path / "last.ckpt", {}),
    "Console": lambda path: Console(("r2",)),
    "EarlyStopping": lambda path: EarlyStopping(3),
    "HistoryFile": lambda path: HistoryFile(path / "history.csv"),
    "TensorBoard": lambda path: TensorBoard(path / "tensorboard", no_figures),
}


def test_every_callback_is_here():
    import aam.training.callbacks as module

    assert set(module.__all__) | {"Callback"} == set(CALLBACKS)


@pytest.mark.parametrize("kind", ["pretrain", "regression", "classes"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_events(name, kind, equal_study, tmp_path):
    callback = CALLBACKS[name](tmp_path)
    trainer = build_trainer(equal_study, build_task(equal_study, kind), tmp_path, epochs=2, callbacks=[callback])
    assert trainer.fit().epoch == 2
    evaluation = trainer.evaluate(trainer.val_loader)
    callback.on_start(trainer)  # and once more, as in a run that is resumed
    callback.on_step(trainer, {"loss": torch.tensor(1.0)})
    callback.on_epoch(trainer, evaluation)
    callback.on_end(trainer)
    assert not list(tmp_path.glob("*.tmp"))


def test_console_on_a_terminal(equal_study, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    callback = Console(("r2",))
    trainer = build_trainer(
        equal_study, build_task(equal_study, "regression"), tmp_path, epochs=2, callbacks=[callback]
    )
    with caplog.at_level(logging.INFO, logger="aam"):
        trainer.fit()
    assert callback.progress is None
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    assert len(lines) == 2 and lines[0].startswith("epoch 1/2  loss ") and "r2" in lines[0]


def test_history_file(equal_study, tmp_path):
    callback = HistoryFile(tmp_path / "history.csv")
    trainer = build_trainer(
        equal_study, build_task(equal_study, "regression"), tmp_path, epochs=2, callbacks=[callback]
    )
    history = trainer.fit().history
    found = pd.read_csv(tmp_path / "history.csv")
    assert found.to_dict("records") == [pytest.approx(row) for row in history]
    assert found.epoch.dtype.kind == found.step.dtype.kind == "i"


def test_checkpoints(equal_study, tmp_path):
    saved: list[float] = []
    callback = Checkpoints(
        lambda evaluation: saved.append(evaluation.losses["target_loss"]),
        tmp_path / "last.ckpt",
        {"config": {"a": {"b": 1}}},
    )
    trainer = build_trainer(
        equal_study, build_task(equal_study, "regression"), tmp_path, epochs=3, callbacks=[callback]
    )
    state = trainer.fit()
    monitored = [row["val_target_loss"] for row in state.history]
    assert saved == [value for i, value in enumerate(monitored) if value == min(monitored[: i + 1])]
    found = load_checkpoint(tmp_path / "last.ckpt")
    assert found["config"] == {"a": {"b": 1}} and found["trainer"]["state"]["epoch"] == 3


def test_tensorboard(equal_study, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def figures(evaluation: Evaluation) -> dict[str, Figure]:
        return {"predictions": Figure(figsize=(1, 1))}

    callback = TensorBoard(tmp_path, figures)
    trainer = build_trainer(equal_study, build_task(equal_study, "pretrain"), tmp_path, epochs=2, callbacks=[callback])
    history = trainer.fit().history
    read = {}
    for name in ("train", "validation"):
        read[name] = EventAccumulator(str(tmp_path / name)).Reload()
    for name, prefix in (("train", "train_"), ("validation", "val_")):
        for tag in ("loss", "unifrac_loss", "nuc_loss"):
            values = [(event.step, event.value) for event in read[name].Scalars(f"loss/{tag}")]
            assert values == [(i + 1, pytest.approx(row[prefix + tag])) for i, row in enumerate(history)]
    assert [event.value for event in read["train"].Scalars("learning_rate")] == pytest.approx(
        [row["lr"] for row in history]
    )
    assert [event.step for event in read["validation"].Images("predictions")] == [1, 2]
