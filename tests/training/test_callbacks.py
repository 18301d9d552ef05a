"""Every callback goes through the same events of a tiny run; then what each one writes."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from aam.errors import DataError, Interrupted
from aam.training.callbacks import Checkpoints, EarlyStopping, FiniteLosses, HistoryFile, Plateau, Signals
from aam.training.checkpoint import load_checkpoint
from aam.training.console import Console
from aam.training.meter import Meter
from aam.training.profiler import Profile
from aam.training.tasks import Evaluation
from aam.training.tensorboard import StepCurves, TensorBoard
from aam.training.tracking import Tracking
from aam.training.trainer import Callback, Step, Trainer
from tests.training.tiny import build_task, build_trainer


def no_figures(evaluation: Evaluation) -> dict[str, Figure]:
    return {}


CALLBACKS: dict[str, Callable[[Path, Meter], Callback]] = {
    "Callback": lambda path, meter: Callback(),
    "Checkpoints": lambda path, meter: Checkpoints(lambda evaluation: None, path / "last.ckpt", {}),
    "Console": lambda path, meter: Console(("r2",), meter),
    "EarlyStopping": lambda path, meter: EarlyStopping(3),
    "FiniteLosses": lambda path, meter: FiniteLosses(list("abcdef"), path / "last.ckpt"),
    "HistoryFile": lambda path, meter: HistoryFile(path / "history.csv"),
    "Meter": lambda path, meter: Meter(),
    "Plateau": lambda path, meter: Plateau(1, restart=True),
    "Profile": lambda path, meter: Profile(path / "profile", 1),
    "Signals": lambda path, meter: Signals(),
    "StepCurves": lambda path, meter: StepCurves(path / "tensorboard" / "steps", meter),
    "TensorBoard": lambda path, meter: TensorBoard(path / "tensorboard", no_figures, {"lr": 0.1}, ("r2",), True),
    "Tracking": lambda path, meter: Tracking([], {}, path / "plots", path / "model", path / "tracking.json"),
}


def test_every_callback_is_here():
    import aam.training

    found = {"Callback"}
    for module in pkgutil.iter_modules(aam.training.__path__):
        content = vars(importlib.import_module(f"aam.training.{module.name}"))
        found |= {name for name, one in content.items() if isinstance(one, type) and issubclass(one, Callback)}
    assert found == {"AttentionMaps", "Frozen", "Reports", *CALLBACKS}  # these have tests of their own


@pytest.mark.parametrize("kind", ["pretrain", "regression", "classes"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_events(name, kind, equal_study, tmp_path):
    meter = Meter(every_seconds=0)
    callback = CALLBACKS[name](tmp_path, meter)
    trainer = build_trainer(equal_study, build_task(equal_study, kind), tmp_path, epochs=2, callbacks=[meter, callback])
    assert trainer.fit().epoch == 2
    evaluation = trainer.evaluate(trainer.val_loader)
    callback.on_start(trainer)  # and once more, as in a run that is resumed
    callback.on_epoch_start(trainer)
    batch = next(iter(trainer.train_loader))
    callback.on_step(trainer, Step({"loss": torch.tensor(1.0)}, [batch], torch.tensor(0.5)))
    callback.on_step(trainer, Step({"loss": torch.tensor(1.0)}, [batch], None))
    callback.on_validation(trainer)
    callback.on_epoch(trainer, evaluation)
    callback.on_end(trainer)
    callback.on_result(trainer, {"best_epoch": 2, "val": evaluation.metrics})
    callback.on_interrupt(trainer)
    callback.close()
    assert not list(tmp_path.glob("*.tmp"))


MEASURED = ["seconds", "samples_per_second", "memory_mb"]


def test_history_file(equal_study, tmp_path):
    callbacks = [Meter(), HistoryFile(tmp_path / "history.csv"), HistoryFile(tmp_path / "speed.csv", "measured")]
    trainer = build_trainer(equal_study, build_task(equal_study, "regression"), tmp_path, epochs=3, callbacks=callbacks)
    history = trainer.fit().history
    found, speed = pd.read_csv(tmp_path / "history.csv"), pd.read_csv(tmp_path / "speed.csv")
    # Numbers are written so that they are read back bit for bit.
    assert found.to_dict("records") == history
    assert list(speed.columns) == ["epoch", *MEASURED] and (speed > 0).all(axis=None)
    assert speed.epoch.tolist() == [1, 2, 3]
    assert found.epoch.dtype.kind == found.step.dtype.kind == "i"


def test_history_file_of_a_resumed_run(equal_study, tmp_path):
    """It has the rows of before, whatever a kill left of the file, and new columns where there are some."""
    path = tmp_path / "history.csv"

    def fresh(epochs: int) -> Trainer:
        callbacks = [HistoryFile(path)]
        return build_trainer(
            equal_study, build_task(equal_study, "pretrain"), tmp_path, epochs=epochs, callbacks=callbacks
        )

    first = fresh(2)
    first.fit()
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    second = fresh(4)
    second.load_state_dict(first.state_dict())

    class Column(Callback):
        def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
            if trainer.state.epoch == 4:
                trainer.state.history[-1]["val_new"] = 5.0

    second.callbacks = [Column(), *second.callbacks]
    second.fit()
    lines = path.read_text().splitlines()
    found = pd.read_csv(path)
    assert found.epoch.tolist() == [1, 2, 3, 4] and found.val_new.dropna().tolist() == [5.0]
    without = found.drop(columns="val_new").head(2).to_csv(index=False)
    assert without == before and len(lines) == 5


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


def test_held_out_samples_without_a_finite_loss_are_named(equal_study, tmp_path):
    """Nothing is written of their epoch."""
    task = build_task(equal_study, "regression")
    trainer = build_trainer(equal_study, task, tmp_path, batch_size=2)
    trainer.val_loader.dataset.target[3] = math.nan  # in the second batch, with the one before
    history = HistoryFile(tmp_path / "history.csv")
    trainer.callbacks = [FiniteLosses(equal_study.sample_ids, tmp_path / "last.ckpt"), history]
    two = ", ".join(equal_study.sample_ids[2:4])
    with pytest.raises(DataError, match=rf"^target_loss is nan of held-out samples in epoch 1, of 2 samples: {two}\. "):
        trainer.fit()
    assert not history.path.exists()


def test_the_very_sample_is_named_whose_embedding_is_not_finite(equal_study, tmp_path):
    task = build_task(equal_study, "regression")
    trainer = build_trainer(equal_study, task, tmp_path, batch_size=2)
    judged = [task.judge_batch(batch) for batch in trainer.val_loader]
    assert task.summarise(judged).not_finite == ()
    judged[1].summary.embedding[1] = math.nan
    found = task.summarise(judged)
    assert math.isnan(found.losses["unifrac_euclidean_loss"]) and found.not_finite == (3,)


# ------------------------------------------------------------------------------------------------------------- signals


def test_nobody_builds_batches_any_more_while_the_run_is_saved(equal_study, tmp_path):
    class Stop(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            self.there = len(multiprocessing.active_children())
            trainer.stop_soon(signal.SIGTERM)

        def on_interrupt(self, trainer: Trainer) -> None:
            self.left = len(multiprocessing.active_children())

    stop, before = Stop(), len(multiprocessing.active_children())
    trainer = build_trainer(equal_study, build_task(equal_study, "pretrain"), tmp_path, callbacks=[stop])
    loader = trainer.train_loader
    trainer.train_loader = DataLoader(
        loader.dataset, sampler=loader.sampler, batch_size=None, num_workers=2, persistent_workers=True
    )
    with pytest.raises(Interrupted):
        trainer.fit()
    assert (stop.there, stop.left) == (before + 2, before)


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
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    finally:
        trainer.close()
        signal.signal(signal.SIGINT, inherited)
