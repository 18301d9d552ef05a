from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aam.config import OptimConfig, TrainConfig
from aam.data.batch import Batch
from aam.errors import DataError, Interrupted
from aam.training.callbacks import Checkpoints, EarlyStopping, FiniteLosses
from aam.training.checkpoint import load_checkpoint, save_checkpoint
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_dataset, build_task, build_trainer, constant

KINDS = ["pretrain", "regression", "classes"]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("accumulation_steps", [2, 3])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_weighs_samples(kind, clip, accumulation_steps, equal_study, tmp_path):
    """Batches of 2, 2 and 1 samples: in groups of two (four samples, then a single one), or all in one."""
    task = build_task(equal_study, kind)
    task.model.double()  # sums of gradients in another order differ by rounding
    by_hand = copy.deepcopy(task)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    schedule = constant(optimizer)
    optim = OptimConfig(accumulation_steps=accumulation_steps, gradient_clip=clip)
    trainer = build_trainer(equal_study, task, tmp_path, optim=optim, optimizer=optimizer, schedule=schedule)
    losses = trainer.train_epoch()
    assert trainer.state.step == (2 if accumulation_steps == 2 else 1)

    dataset, plan = build_dataset(equal_study, by_hand), trainer.plan
    batches = [dataset[key] for key in plan]
    assert [len(batch) for batch in batches] == [2, 2, 1] and {key.epoch for key in plan} == {1}
    totals: list[float] = []
    norms: list[float] = []
    parameters = list(by_hand.model.parameters())
    for group in filter(None, (batches[:accumulation_steps], batches[accumulation_steps:])):
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in group:
            loss = by_hand.loss(batch).total
            totals.append(loss.item() * len(batch))
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for gradient, new in zip(gradients, found, strict=True):
                gradient += new * len(batch) / sum(map(len, group))
        norms.append(math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)))
        norm = norms[-1]
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        assert not clip or factor < 1
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * factor * gradient
    assert losses["loss"] == pytest.approx(sum(totals) / 5, rel=1e-5)
    assert losses["gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    for found, expected in zip(task.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_the_mean_of_a_part_is_over_all_that_it_is_known_of(accumulation_steps, equal_study, tmp_path):
    """A batch in which no nucleotide is masked says nothing about their loss."""
    task = build_task(equal_study, "pretrain")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    trainer = build_trainer(
        equal_study,
        task,
        tmp_path,
        batch_size=1,
        optim=OptimConfig(accumulation_steps=accumulation_steps),
        optimizer=optimizer,
        schedule=constant(optimizer),
    )
    dataset = trainer.train_loader.dataset
    trainer.plan.epoch = 1

    def with_loss(seed: int) -> int:
        """In how many batches there is something to restore."""
        dataset.options = replace(dataset.options, seed=seed, nuc_asv_fraction=0.1)
        return sum(dataset[key].masked_nucleotides is not None for key in trainer.plan)

    assert any(0 < with_loss(seed) < len(equal_study) for seed in range(30))
    found = trainer.train_epoch()["nuc_loss"]
    batches = [dataset[key] for key in trainer.plan]
    losses = [task.loss(batch) for batch in batches]
    known = [
        (loss.parts["nuc_loss"].item(), float(loss.numbers["nuc_loss"])) for loss in losses if "nuc_loss" in loss.parts
    ]
    assert 0 < len(known) < len(losses)
    means, numbers = zip(*known, strict=True)
    assert found == pytest.approx(np.average(means, weights=numbers), rel=1e-5)


def test_a_batch_without_pairs_says_nothing_of_distances(equal_study, tmp_path):
    """Of 5 samples the last is a batch by itself."""
    task = build_task(equal_study, "pretrain")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    trainer = build_trainer(
        equal_study, task, tmp_path, batch_size=4, optimizer=optimizer, schedule=constant(optimizer)
    )
    trainer.plan.epoch = 1
    batches = [trainer.train_loader.dataset[key] for key in trainer.plan]
    assert [len(batch) for batch in batches] == [4, 1]
    expected = task.loss(batches[0]).parts["unifrac_loss"].item()
    assert task.loss(batches[1]).numbers["unifrac_loss"] == 0
    assert trainer.train_epoch()["unifrac_loss"] == pytest.approx(expected, rel=1e-5)


def test_history(equal_study, tmp_path):
    trainer = build_trainer(equal_study, build_task(equal_study, "regression"), tmp_path, epochs=3)
    state = trainer.fit()
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert [row["step"] for row in state.history] == [3, 6, 9]
    for row in state.history:
        for part in ("loss", "target_loss", "nuc_loss", "count_loss", "unifrac_loss", "unifrac_euclidean_loss"):
            assert math.isfinite(row[f"train_{part}"]) and math.isfinite(row[f"val_{part}"])
        assert {"val_r2", "val_mae", "val_unifrac_r2", "lr"} <= set(row)
    monitored = [row["val_target_loss"] for row in state.history]
    assert state.best_value == min(monitored) and state.best_epoch == 1 + monitored.index(min(monitored))


def test_it_learns(equal_study, tmp_path):
    options = {"batch_size": 5, "epochs": 25, "optim": OptimConfig(lr=1e-2)}
    trainer = build_trainer(equal_study, build_task(equal_study, "regression"), tmp_path, **options)
    history = trainer.fit().history
    assert history[-1]["train_target_loss"] < 0.8 * history[0]["train_target_loss"]


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, unequal_study, tmp_path):
    def fresh(epochs: int) -> Trainer:
        task = build_task(unequal_study, kind, dropout=0.1)
        return build_trainer(unequal_study, task, tmp_path, epochs=epochs, scheduled_epochs=4)

    torch.manual_seed(5)
    whole = fresh(4)
    torch.manual_seed(6)
    whole.fit()

    first = fresh(2)
    torch.manual_seed(6)
    first.fit()
    save_checkpoint(tmp_path / "last.ckpt", {"trainer": first.state_dict(), "config": {}})
    torch.manual_seed(99)
    second = fresh(4)
    second.load_state_dict(load_checkpoint(tmp_path / "last.ckpt")["trainer"])
    assert second.state.epoch == 2
    second.fit()

    assert second.state == whole.state
    for (name, found), expected in zip(weights_of(second).items(), weights_of(whole).values(), strict=True):
        assert torch.equal(found, expected), name
    assert any(
        not torch.equal(a, b) for a, b in zip(weights_of(first).values(), weights_of(whole).values(), strict=True)
    )


class StopAt(Callback):
    """Asks for an end at an event, the so-manieth time."""

    def __init__(self, event: str, number: int) -> None:
        self.event, self.number = event, number

    def tell(self, trainer: Trainer, event: str) -> None:
        self.number -= event == self.event
        if self.number == 0:
            trainer.stop_soon(15)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        self.tell(trainer, "step")

    def on_epoch(self, trainer: Trainer, evaluation: object) -> None:
        self.tell(trainer, "epoch")


@pytest.mark.parametrize("event", ["step", "epoch", "held-out batch"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_and_resumed_equals_uninterrupted(kind, accumulation_steps, event, unequal_study, tmp_path):
    optim = OptimConfig(accumulation_steps=accumulation_steps)

    def fresh(*callbacks: Callback) -> Trainer:
        task = build_task(unequal_study, kind, dropout=0.1)
        saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
        return build_trainer(
            unequal_study, task, tmp_path, batch_size=1, epochs=3, optim=optim, callbacks=[*callbacks, saving]
        )

    whole = fresh()
    torch.manual_seed(6)
    whole.fit()
    for number in (1, 2, 4) if event == "step" else (1, 2):
        first = fresh(StopAt(event, number))
        if event == "held-out batch":
            first.val_loader = Stopping(first.val_loader, first, number)
        torch.manual_seed(6)
        with pytest.raises(Interrupted):
            first.fit()
        torch.manual_seed(99)
        second = fresh()
        second.load_state_dict(load_checkpoint(tmp_path / "last.ckpt")["trainer"])
        assert second.state.step == first.state.step < whole.state.step
        second.fit()
        assert second.state == whole.state
        for (name, found), expected in zip(weights_of(second).items(), weights_of(whole).values(), strict=True):
            assert torch.equal(found, expected), name


class Stopping:
    """Held-out batches, at the so-manieth of which after the first the run is asked to stop."""

    def __init__(self, batches: Iterable[Batch], trainer: Trainer, left: int) -> None:
        self.batches, self.trainer, self.left = batches, trainer, left

    def __iter__(self) -> Iterator[Batch]:
        for place, batch in enumerate(self.batches):
            if place == self.left:
                self.trainer.stop_soon(15)
            yield batch


# ------------------------------------------------------------------------------------------------------- early stopping


class Recorder(Callback):
    """Writes down what is called."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.events.append("start")

    def on_step(self, trainer: Trainer, step: Step) -> None:
        assert "loss" in step.parts and all(not part.requires_grad for part in step.parts.values())
        self.events.append("step")

    def on_epoch(self, trainer: Trainer, evaluation: object) -> None:
        self.events.append("epoch")

    def on_end(self, trainer: Trainer) -> None:
        self.events.append("end")


def test_early_stopping_and_the_order_of_events(equal_study, tmp_path):
    recorder = Recorder()
    task = build_task(equal_study, "regression")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)  # nothing ever improves on the first epoch
    trainer = build_trainer(
        equal_study,
        task,
        tmp_path,
        epochs=9,
        optimizer=optimizer,
        schedule=constant(optimizer),
        callbacks=[EarlyStopping(2), recorder],
    )
    state = trainer.fit()
    assert state.epoch == 3 and state.best_epoch == 1 and state.stop
    assert recorder.events == ["start", *["step", "step", "step", "epoch"] * 3, "end"]


# ------------------------------------------------------------------------------------------------------------- freezing


def test_a_frozen_base_does_not_change(equal_study, tmp_path):
    task = build_task(equal_study, "regression", dropout=0.3)
    task.encoder.requires_grad_(False)
    trainer = build_trainer(equal_study, task, tmp_path, optim=OptimConfig(weight_decay=0.5, lr=1e-2))
    before = weights_of(trainer)
    trainer.fit()
    for name, tensor in weights_of(trainer).items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, before[name]), name
        elif name.startswith("target_head"):
            assert not torch.equal(tensor, before[name]), name
    trainer.task.train()
    assert not task.encoder.training


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_explode_are_refused(kind, equal_study, tmp_path):
    """Nothing is written of the epoch."""
    task = build_task(equal_study, kind)
    with torch.no_grad():
        task.encoder.asv_encoder.pooling.out.weight.fill_(torch.nan)
    recorder = Recorder()
    guard = FiniteLosses(equal_study.sample_ids)
    with pytest.raises(DataError, match=r"_loss is nan at step 1, in epoch 1, .*--lr than 0\.001"):
        build_trainer(equal_study, task, tmp_path, callbacks=[guard, recorder]).fit()
    assert "epoch" not in recorder.events


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_near_float32(kind, equal_study: TinyStudy, tmp_path: Path):
    task = build_task(equal_study, kind)
    trainer = build_trainer(equal_study, task, tmp_path)
    expected = trainer.evaluate(trainer.val_loader)
    trainer.config = TrainConfig(output_dir=tmp_path, mixed_precision="bf16")
    found = trainer.evaluate(trainer.val_loader)
    assert found.losses == pytest.approx(expected.losses, rel=0.1, abs=0.1)
    assert found.losses != expected.losses
    assert trainer.train_epoch()["loss"] > 0
    assert all(parameter.dtype == torch.float32 for parameter in task.model.parameters())
