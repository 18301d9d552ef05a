"""Averages of the weights against their definitions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from aam.config import OptimConfig
from aam.training.averaging import EMA, WeightAverage, build_average
from aam.training.callbacks import Checkpoints
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer
from tests.training.tiny import build_task, build_trainer

STEPS = 60


def walk(model: torch.nn.Module, average: WeightAverage, steps: int) -> np.ndarray:
    """Random steps; the weights after each, (steps, 2)."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update()
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy())
    return np.array(seen)


def averaged(model: torch.nn.Module, average: WeightAverage) -> np.ndarray:
    with average.in_model():
        return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy()


def model_of_two_weights() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(1, 1).double()


def test_ema_is_its_definition():
    model = model_of_two_weights()
    expected = np.array([p.item() for p in model.parameters()])
    average = build_average(model, OptimConfig(average="ema", ema_decay=0.8), STEPS)
    for number, weights in enumerate(walk(model, average, STEPS)):
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weights
    np.testing.assert_allclose(averaged(model, average), expected, rtol=1e-12)


def test_the_rising_decay_forgets_the_start():
    """The figures of the comment in `EMA`."""
    average = EMA(model_of_two_weights(), 0.999)
    left = 1.0
    for number in range(200):
        average.updates = number
        left *= average.decay_now
    assert left < 1e-12 and pytest.approx(0.82, abs=0.005) == 0.999**200
    assert average.decay_now == pytest.approx(0.957, abs=0.001)


def test_swa_is_the_mean_from_its_start_on():
    model = model_of_two_weights()
    average = build_average(model, OptimConfig(average="swa", swa_start=0.75), STEPS)
    first = walk(model, average, 20)
    np.testing.assert_array_equal(averaged(model, average), first[-1])  # as the weights, before it
    rest = walk(model, average, 40)
    np.testing.assert_allclose(averaged(model, average), rest[45 - 20 :].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("kind", ["none", "ema", "swa"])
def test_after_the_block_the_weights_are_as_before(kind):
    model = model_of_two_weights()
    average = build_average(model, OptimConfig(average=kind), STEPS)
    walk(model, average, STEPS)
    weights = copy.deepcopy(model.state_dict())

    def fail() -> None:
        with average.in_model():
            assert any(not torch.equal(model.state_dict()[n], w) for n, w in weights.items()) == (kind != "none")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("kind", ["none", "ema", "swa"])
def test_what_is_validated_and_saved_is_the_average(kind, equal_study, tmp_path):
    task = build_task(equal_study, "regression")
    after_steps: list[dict[str, torch.Tensor]] = []
    saved: list[tuple[dict[str, torch.Tensor], Evaluation]] = []

    class Recorder(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            after_steps.append(copy.deepcopy(task.model.state_dict()))

    def save_best(evaluation: Evaluation) -> None:
        saved.append((copy.deepcopy(task.model.state_dict()), evaluation))

    optim = OptimConfig(average=kind, swa_start=0.5 if kind == "swa" else None)
    saving = Checkpoints(save_best, tmp_path / "last.ckpt", {"config": {}})
    trainer = build_trainer(equal_study, task, tmp_path, epochs=2, optim=optim, callbacks=[Recorder(), saving])
    trainer.fit()
    weights, evaluation = saved[-1]
    epoch = trainer.state.best_epoch
    expected = {"none": 1, "swa": 3 if epoch == 2 else 1, "ema": None}[kind]
    steps = after_steps[: 3 * epoch]
    if expected is not None:
        for name, weight in weights.items():
            mean = torch.stack([each[name].double() for each in steps[-expected:]]).mean(dim=0)
            torch.testing.assert_close(weight.double(), mean, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(weights[n], steps[-1][n]) for n in weights) == (kind != "none" and expected != 1)
    final = after_steps[-1]
    assert all(torch.equal(weight, final[name]) for name, weight in task.model.state_dict().items())
    task.model.load_state_dict(weights)
    assert trainer.evaluate(trainer.val_loader).losses == pytest.approx(evaluation.losses, rel=1e-5)
