"""Every callback goes through the same events of a tiny run; then what each one writes."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from aam.errors import DataError, Interrupted
from aam.training.callbacks import (
    Checkpoints,
    Console,
    EarlyStopping,
    FiniteLosses,
    HistoryFile,
    Plateau,
    Signals,
    TensorBoard,
)
from aam.training.checkpoint import load_checkpoint
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer
from tests.training.tiny import build_task, build_trainer


def no_figures(evaluation: Evaluation) -> dict[str, Figure]:
    return {}


CALLBACKS: dict[str, Callable[[Path], Callback]] = {
    "Callback": lambda path: Callback(),
    "Checkpoints": lambda path: Checkpoints(lambda evaluation: None, path / "last.ckpt", {}),
    "Console": lambda path: Console(("r2",)),
    "EarlyStopping": lambda path: EarlyStopping(3),
    "FiniteLosses": lambda path: FiniteLosses(list("abcdef"), path / "last.ckpt"),
    "HistoryFile": lambda path: HistoryFile(path / "history.csv"),
    "Plateau": lambda path: Plateau(1, restart=True),
    "Signals": lambda path: Signals(),
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
    batch = next(iter(trainer.train_loader))
    callback.on_step(trainer, Step({"loss": torch.tensor(1.0)}, [batch], torch.tensor(0.5)))
    callback.on_epoch(trainer, evaluation)
    callback.on_end(trainer)
    callback.on_interrupt(trainer)
    callback.close()
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


# -------------------------------------------------------------------------------------------------------- what it saves


def test_checkpoints_between_epochs(equal_study, tmp_path):
    """With no time between them, one after every step; the first before any step."""
    steps: list[tuple[int, int, int]] = []

    class Reader(Callback):
        def read(self, trainer: Trainer) -> None:
            state = load_checkpoint(tmp_path / "last.ckpt")["trainer"]["state"]
            steps.append((state["epoch"], state["batch"], state["step"]))

        def on_start(self, trainer: Trainer) -> None:
            self.read(trainer)

        def on_step(self, trainer: Trainer, step: Step) -> None:
            self.read(trainer)

    saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}}, every_minutes=0)
    task = build_task(equal_study, "pretrain")
    build_trainer(equal_study, task, tmp_path, epochs=2, callbacks=[saving, Reader()]).fit()
    assert steps == [(0, 0, 0), *((0, i, i) for i in (1, 2, 3)), *((1, i, 3 + i) for i in (1, 2, 3))]


def test_weights_that_are_not_finite_are_not_saved(equal_study, tmp_path):
    saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}}, every_minutes=0)
    task = build_task(equal_study, "pretrain")

    class Ruin(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            if trainer.state.step == 2:
                next(iter(trainer.task.model.parameters())).data.fill_(math.inf)

    trainer = build_trainer(equal_study, task, tmp_path, callbacks=[Ruin(), saving])
    with pytest.raises(DataError, match=r"no longer finite at step 2; .*last\.ckpt is as it was"):
        trainer.fit()
    assert load_checkpoint(tmp_path / "last.ckpt")["trainer"]["state"]["step"] == 1


def test_a_loss_that_is_not_finite_is_named_with_its_samples(equal_study, tmp_path):
    task = build_task(equal_study, "regression")
    target = task.target.encode(equal_study.values)
    target[2] = math.nan
    guard = FiniteLosses(equal_study.sample_ids, tmp_path / "last.ckpt")
    trainer = build_trainer(equal_study, task, tmp_path, batch_size=2, target=target, callbacks=[guard])
    with pytest.raises(DataError, match=r"^target_loss is nan at step \d, in epoch 1, of \d samples: ") as refused:
        trainer.fit()
    samples = str(refused.value).split(": ")[1].split(". ")[0].split(", ")
    assert equal_study.sample_ids[2] in samples and len(samples) <= 2


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", Signals.HEEDED)
def test_a_signal_ends_the_run_after_its_step(name, equal_study, tmp_path):
    before = {each: signal.getsignal(getattr(signal, each)) for each in Signals.HEEDED}

    class Sender(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            if trainer.state.step == 2:
                os.kill(os.getpid(), getattr(signal, name))

    saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
    task = build_task(equal_study, "pretrain")
    trainer = build_trainer(equal_study, task, tmp_path, callbacks=[Signals(), Sender(), saving])
    with pytest.raises(Interrupted, match=name):
        trainer.fit()
    trainer.close()
    assert load_checkpoint(tmp_path / "last.ckpt")["trainer"]["state"]["step"] == 2
    assert before == {each: signal.getsignal(getattr(signal, each)) for each in Signals.HEEDED}


def test_a_second_interrupt_does_not_wait(equal_study, tmp_path):
    class Sender(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    trainer = build_trainer(equal_study, build_task(equal_study, "pretrain"), tmp_path, callbacks=[Signals(), Sender()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.close()
