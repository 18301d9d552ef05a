from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from aam.config import TaskConfig
from aam.data.dataset import BatchKey, BatchPlan
from aam.data.labels import PairLabels
from aam.data.targets import ClassTarget, NumericTarget
from aam.models.base_targets import UniFrac
from aam.training.tasks import Evaluation, LabelledTarget, Task, prediction_table
from tests.conftest import TinyStudy
from tests.training.tiny import build_dataset, build_task

KINDS = ["pretrain", "regression", "classes"]


def judge(study: TinyStudy, task: Task, batch_size: int) -> Evaluation:
    dataset = build_dataset(study, task, held_out=True)
    task.model.eval()
    return task.judge(dataset[key] for key in BatchPlan(np.arange(len(study)), batch_size, False, seed=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", ["equal", "unequal"])
def test_batch_size_changes_no_evaluation(kind, lengths, request):
    study = request.getfixturevalue(f"{lengths}_study")
    task = build_task(study, kind)
    expected = judge(study, task, len(study))
    parts = {"unifrac_loss", "unifrac_euclidean_loss", "nuc_loss"}
    parts |= set() if kind == "pretrain" else {"target_loss", "count_loss"}
    assert set(expected.losses) == parts | {"loss"}
    assert {"unifrac_mae", "unifrac_r2", "unifrac_spearman", "unifrac_euclidean_r2"} <= set(expected.metrics)
    for batch_size in (1, 3):
        found = judge(study, task, batch_size)
        assert found.losses == pytest.approx(expected.losses, rel=1e-5, abs=1e-6)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-5, abs=1e-6)
        assert found.sample_index.tolist() == expected.sample_index.tolist()
        assert list(found.readings) == list(expected.readings) == ["unifrac", "unifrac_euclidean"]
        for name, reading in expected.readings.items():
            np.testing.assert_array_equal(found.readings[name].actual, reading.actual)
            np.testing.assert_allclose(found.readings[name].predicted, reading.predicted, atol=1e-6)
        if kind != "pretrain":
            np.testing.assert_allclose(found.output, expected.output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_all_samples_is_the_evaluations(kind, equal_study):
    task = build_task(equal_study, kind)
    batch = build_dataset(equal_study, task)[BatchKey(0, tuple(range(len(equal_study))))]
    loss = task.loss(batch)
    expected = judge(equal_study, task, 2).losses
    assert {"loss": loss.total.item()} | {name: part.item() for name, part in loss.parts.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_labels_are_smoothed_in_training_alone(equal_study):
    task = build_task(equal_study, "classes")
    batch = build_dataset(equal_study, task)[BatchKey(0, tuple(range(len(equal_study))))]
    plain = task.loss(batch).parts["target_loss"].item()
    task.config = task.config.model_copy(update={"label_smoothing": 0.2})
    task.train()
    smoothed = task.loss(batch).parts["target_loss"].item()
    assert smoothed != pytest.approx(plain)
    assert judge(equal_study, task, 2).losses["target_loss"] == pytest.approx(plain, rel=1e-5)


def test_losses_without_weight_are_not_computed(equal_study):
    task = build_task(equal_study, "regression")
    without = task.__class__(
        task.predictor, TaskConfig(unifrac_weight=0), task.target, task.actual, [None], task.labelled, seed=0
    )
    assert not [name for name in judge(equal_study, without, 2).losses if "unifrac" in name]
    assert "unifrac_r2" in judge(equal_study, without, 2).metrics


def test_one_held_out_sample_has_no_pairs(equal_study):
    task = build_task(equal_study, "regression")
    dataset = build_dataset(equal_study, task, held_out=True)
    found = task.judge([dataset[BatchKey(0, (2,))]])
    assert found.readings == {} and set(found.metrics) == {"mae", "rmse"}


def test_metrics_are_in_original_units(equal_study):
    task = build_task(equal_study, "regression")
    found = judge(equal_study, task, 2)
    values = equal_study.values
    predicted = found.output[:, 0].astype(float) * values.std() + values.mean()
    assert found.metrics["mae"] == pytest.approx(np.abs(predicted - values).mean())
    assert found.metrics["rmse"] == pytest.approx(np.sqrt(((predicted - values) ** 2).mean()))


def test_the_scale_of_distances_is_the_variance_of_the_training_pairs():
    values = np.random.default_rng(0).random((5, 5)).astype(np.float32)
    train = np.array([0, 2, 4])
    expected = np.var([values[0, 2], values[0, 4], values[2, 4]])
    labels = PairLabels(values)
    assert LabelledTarget.of(UniFrac(), labels, train).scale == pytest.approx(expected, rel=1e-6)
    assert LabelledTarget.of(UniFrac(), labels, train[:1]).scale == 1
    assert LabelledTarget.of(UniFrac(), labels, train[:2]).scale == 1


def test_prediction_table():
    ids = ["a", "b"]
    numbers = NumericTarget("age", "none", 2.0, 3.0)
    found = prediction_table(numbers, ids, np.array([[0.0], [1.0]], dtype=np.float32), np.array([1.0, 2.0]))
    expected = pd.DataFrame({"sample_id": ids, "actual": [1.0, 2.0], "predicted": [2.0, 5.0]})
    pd.testing.assert_frame_equal(found, expected)
    labels = ClassTarget("diet", ("x", "y"))
    logits = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32))
    found = prediction_table(labels, ids, logits, None)
    assert found.columns.tolist() == ["sample_id", "predicted", "prob_x", "prob_y"]
    assert found.predicted.tolist() == ["y", "x"]
    np.testing.assert_allclose(found[["prob_x", "prob_y"]], [[0.25, 0.75], [0.9, 0.1]], rtol=1e-6)


def test_a_frozen_base_stays_in_evaluation(equal_study):
    task = build_task(equal_study, "regression", dropout=0.5)
    task.train()
    assert task.encoder.training and task.predictor.target_head.training
    task.encoder.requires_grad_(False)
    task.train()
    assert not any(module.training for module in task.encoder.modules())
    assert task.predictor.target_head.training
    batch = build_dataset(equal_study, task)[BatchKey(0, (0, 1))]
    assert torch.equal(task.encoder(batch).embedding, task.encoder(batch).embedding)
