"""The range test leaves nothing behind, and suggests what its curve says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from aam.config import OptimConfig
from aam.training.lr_finder import HIGHEST, LOWEST, range_test, suggest
from aam.training.trainer import Trainer
from tests.conftest import TinyStudy
from tests.training.test_resume import flat
from tests.training.tiny import build_task, build_trainer


def fresh(study: TinyStudy, directory: Path, workers: int = 0, **optim: Any) -> Trainer:
    torch.manual_seed(3)
    task = build_task(study, "regression", dropout=0.2)
    trainer = build_trainer(study, task, directory, epochs=3, optim=OptimConfig(**optim))
    if workers:
        dataset = trainer.train_loader.dataset
        trainer.train_loader = DataLoader(
            dataset, None, sampler=trainer.plan, num_workers=workers, persistent_workers=True
        )
    return trainer


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    found, expected = dict(flat("", found)), dict(flat("", expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "schedule": "plateau", "average": "swa"},
        {"optimizer": "lamb", "lookahead": True, "average": "ema", "accumulation_steps": 2},
        {"optimizer": "muon", "schedule": "onecycle"},
    ],
    ids=str,
)
def test_everything_is_as_before(options, unequal_study, tmp_path):
    trainer, untouched = (fresh(unequal_study, tmp_path, **options) for _ in range(2))
    torch.manual_seed(8)
    before = copy.deepcopy(trainer.state_dict())
    found = range_test(trainer, steps=20)
    assert len(np.unique(found.loss)) > 10
    require_equal(trainer.state_dict(), before)
    assert all(parameter.grad is None for parameter in trainer.task.model.parameters())
    torch.manual_seed(9)
    trainer.fit()
    torch.manual_seed(9)
    untouched.fit()
    require_equal(trainer.state_dict(), untouched.state_dict())


def test_with_worker_processes_too(unequal_study, tmp_path):
    """Which have batches ready that the test no longer needs."""
    trainer, untouched = fresh(unequal_study, tmp_path, workers=1), fresh(unequal_study, tmp_path)
    range_test(trainer, steps=7)
    for each in (trainer, untouched):
        torch.manual_seed(9)
        each.fit()
        each.close()
    require_equal(trainer.state_dict(), untouched.state_dict())


def test_the_rate_rises_exponentially_and_groups_keep_their_ratio(equal_study, tmp_path):
    trainer = fresh(equal_study, tmp_path, optimizer="sgd")
    for group, peak in zip(trainer.optimizer.param_groups, (0.1, 0.03), strict=True):
        group["peak_lr"] = peak
    seen: list[list[float]] = []
    train_step = trainer.train_step

    class Watched(Trainer):
        def train_step(self, group):
            seen.append([each["lr"] for each in self.optimizer.param_groups])
            return train_step(group)

    trainer.__class__ = Watched
    found = range_test(trainer, steps=9)
    assert not found.diverged or len(seen) < 9
    expected = np.geomspace(LOWEST, HIGHEST, 9)[: len(seen)]
    np.testing.assert_allclose(found.lr, expected)
    np.testing.assert_allclose(seen, np.stack([expected, 0.3 * expected], axis=1))


def test_it_ends_where_the_loss_diverges(equal_study, tmp_path):
    trainer = fresh(equal_study, tmp_path, optimizer="sgd", gradient_clip=0)
    found = range_test(trainer, steps=60)
    assert found.diverged and len(found.lr) < 60
    assert trainer.state.step == 0 and all(p.isfinite().all() for p in trainer.task.model.parameters())


def test_losses_are_smoothed_by_their_mean_so_far(equal_study, tmp_path):
    found = range_test(fresh(equal_study, tmp_path), steps=12)
    for n in range(len(found.loss)):
        weights = 0.9 ** np.arange(n, -1, -1)
        assert found.smoothed[n] == pytest.approx((weights * found.loss[: n + 1]).sum() / weights.sum())


def test_the_suggestion_is_a_tenth_of_the_lowest():
    lr = np.geomspace(1e-6, 1, 100)
    place = np.log10(lr)
    assert suggest(lr, (place + 2) ** 2) == pytest.approx(1e-3, rel=0.1)
    assert suggest(lr, np.where(place > -1, np.nan, (place + 2) ** 2)) == pytest.approx(1e-3, rel=0.1)
    lucky = np.where(place < -5.9, 0.0, (place + 2) ** 2)
    assert suggest(lr, lucky) == pytest.approx(1e-3, rel=0.1)
    assert suggest(lr, 1 + lr) is None
    assert suggest(lr, np.full(100, np.nan)) is None
