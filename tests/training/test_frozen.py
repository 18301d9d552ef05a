"""What is frozen, and encoded once, next to the same run by hand: frozen too, but encoded anew for every batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from aam.config import FrozenPart, OptimConfig
from aam.data.augmentation import Augmentation
from aam.data.dataset import BatchKey, BatchPlan, DatasetOptions, SampleDataset
from aam.data.encoded import EncodedASVs, EncodedStudy
from aam.errors import Interrupted
from aam.models.base_targets import UniFrac
from aam.training import frozen as module
from aam.training.callbacks import Checkpoints, EarlyStopping
from aam.training.checkpoint import load_checkpoint
from aam.training.frozen import Frozen, encode_asvs, frozen_module
from aam.training.optimizers import OPTIMIZERS
from aam.training.tasks import LabelledTarget, Task, TrainTask
from aam.training.trainer import Callback, Trainer
from tests.conftest import TinyStudy
from tests.training import tiny
from tests.training.test_base_targets import Stripes
from tests.training.test_trainer import StopAt

PARTS: list[FrozenPart] = ["base", "asv_encoder"]
KINDS = ["regression", "classes"]
CPU = torch.device("cpu")


def loader(dataset: SampleDataset, plan: BatchPlan, workers: int | None) -> DataLoader[Any]:
    return DataLoader(dataset, sampler=plan, batch_size=None, generator=torch.Generator())


def callback(study: TinyStudy, part: FrozenPart, until: int | None = None, once: bool = True, since: int = 0) -> Frozen:
    rows = np.arange(len(study))
    return Frozen(part, rows, rows, loader, until, since, once)


def without_passes(options: DatasetOptions, part: FrozenPart) -> DatasetOptions:
    """Nothing is masked for what does not learn."""
    options = replace(options, nuc_asv_fraction=0.0)
    return replace(options, count_mask_ratio=0.0) if part == "base" else options


def datasets(trainer: Trainer) -> list[SampleDataset]:
    return [trainer.train_loader.dataset, trainer.val_loader.dataset]


def freeze_by_hand(trainer: Trainer, part: FrozenPart, frozen: bool = True) -> None:
    frozen_module(trainer.task.encoder, part).requires_grad_(not frozen)
    for dataset in datasets(trainer):
        if frozen:
            dataset.options = without_passes(dataset.options, part)


def trainer_of(study: TinyStudy, kind: str, directory: Path, callbacks: Sequence[Callback], **more: Any) -> Trainer:
    """With dropout in the head, whose draws must stay the same."""
    task = tiny.build_task(study, kind, dropout=0.3)
    task.model.double()  # sums in another order differ by little
    torch.manual_seed(3)
    return tiny.build_trainer(study, task, directory, callbacks=callbacks, **more)


def assert_equal_runs(found: Trainer, expected: Trainer, tolerance: float = 1e-5) -> None:
    assert len(found.state.history) == len(expected.state.history)
    for row, other in zip(found.state.history, expected.state.history, strict=True):
        assert list(row) == list(other)
        # Ranks of what is equal but for rounding are anything.
        row, other = ({name: value for name, value in r.items() if "spearman" not in name} for r in (row, other))
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    for (name, weight), other in zip(
        found.task.model.state_dict().items(), expected.task.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=tolerance, atol=tolerance, msg=name)


# -------------------------------------------------------------------------------------------------------- the same run


@pytest.mark.parametrize("lengths", ["equal", "unequal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_encoded_once_equals_encoded_anew(part, kind, lengths, request, tmp_path):
    study = request.getfixturevalue(f"{lengths}_study")
    found = trainer_of(study, kind, tmp_path, [callback(study, part)], epochs=3)
    start = {name: weight.clone() for name, weight in found.task.model.state_dict().items()}
    found.fit()
    expected = trainer_of(study, kind, tmp_path, [], epochs=3)
    freeze_by_hand(expected, part)
    expected.fit()
    assert_equal_runs(found, expected)
    assert isinstance(datasets(found)[0].encoded, EncodedStudy if part == "base" else EncodedASVs)
    assert {"train_unifrac_loss", "val_unifrac_loss", "val_unifrac_r2"} < found.state.history[0].keys()
    assert ("train_count_loss" in found.state.history[0]) == (part == "asv_encoder")
    assert "train_nuc_loss" not in found.state.history[0]
    prefix = "encoder." if part == "base" else "encoder.asv_encoder."
    moved = {name for name, weight in found.task.model.state_dict().items() if not torch.equal(weight, start[name])}
    assert not any(name.startswith(prefix) for name in moved)
    assert any(name.startswith("target_head") for name in moved)
    assert (part == "base") != any(name.startswith("encoder.transformer") for name in moved)
    evaluation = found.evaluate(found.val_loader).output
    np.testing.assert_allclose(evaluation, expected.evaluate(expected.val_loader).output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", PARTS)
def test_once_or_anew_as_asked(part, unequal_study, tmp_path):
    found, anew = (
        trainer_of(unequal_study, "regression", tmp_path, [callback(unequal_study, part, 2, once)], epochs=3)
        for once in (True, False)
    )
    found.fit()
    anew.callbacks[0].on_start(anew)
    assert all(dataset.encoded is None for dataset in datasets(anew))
    assert not any(weight.requires_grad for weight in frozen_module(anew.task.encoder, part).parameters())
    torch.manual_seed(3)
    anew.fit()
    assert_equal_runs(found, anew)


@pytest.mark.parametrize("part", PARTS)
def test_no_base_is_encoded_again(part, unequal_study, tmp_path):
    """The frozen part could be gone."""
    found = trainer_of(unequal_study, "regression", tmp_path, [callback(unequal_study, part)], epochs=2)
    if part == "base":  # the heads of base targets are in it
        found.task.labelled = {}
        for dataset in datasets(found):
            dataset.labels = {}

    class Ruin(Callback):
        def on_step(self, trainer: Trainer, step: object) -> None:
            for weight in frozen_module(trainer.task.encoder, part).parameters():
                weight.data.fill_(torch.nan)

    found.callbacks = [*found.callbacks, Ruin()]
    assert np.isfinite(found.fit().best_value)


def test_a_table_in_a_file(unequal_study, tmp_path, monkeypatch):
    expected = trainer_of(unequal_study, "regression", tmp_path, [callback(unequal_study, "base")])
    expected.fit()
    monkeypatch.setattr("aam.data.encoded._MOST_IN_MEMORY", 0)
    found = trainer_of(unequal_study, "regression", tmp_path, [callback(unequal_study, "base")])
    found.fit()
    assert all(isinstance(table, np.memmap) for table in datasets(found)[0].encoded.tables[:2])
    assert found.state == expected.state


@pytest.mark.parametrize("size", [1, 3, 100])
def test_asvs_are_encoded_as_in_a_batch(size, unequal_study, monkeypatch):
    monkeypatch.setattr(module, "_ASVS_AT_A_TIME", size)
    encoder = tiny.build_task(unequal_study, "regression").encoder.asv_encoder
    tokens = torch.from_numpy(unequal_study.tokens)
    found = encode_asvs(encoder, unequal_study.tokens, CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encoder(tokens, True).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_references_of_stripes(unequal_study, tmp_path):
    """Held-out samples refer to training samples, of which no two draws are the same."""
    study, rows = unequal_study, np.arange(len(unequal_study))
    stripes = Stripes(study.distances, references=np.array([1, 3]))
    held_out, learnt = rows[3:], rows[:3]

    def stripe_trainer(callbacks: Sequence[Callback]) -> Trainer:
        made = trainer_of(study, "regression", tmp_path, callbacks)
        made.task.labelled = {"unifrac": LabelledTarget.of(UniFrac(), stripes, rows)}
        options = replace(tiny.OPTIONS, rarefy_depth=3, stripe_references=1)
        arrays = {"labels": {"unifrac": stripes}, "references": learnt, "target": made.task.target.encode(study.values)}
        made.plan.parts, made.val_loader.sampler.parts = [learnt], [held_out]
        plans = made.plan, made.val_loader.sampler
        made.train_loader, made.val_loader = (loader(study.dataset(options, **arrays), plan, 0) for plan in plans)
        return made

    found = stripe_trainer([Frozen("base", learnt, held_out, loader)])
    found.fit()
    expected = stripe_trainer([])
    freeze_by_hand(expected, "base")
    expected.fit()
    assert_equal_runs(found, expected)
    assert "val_unifrac_r2" in found.state.history[0]
    assert datasets(found)[1].encoded.place.tolist() == [-1, 0, -1, 1, 2]


# ------------------------------------------------------------------------------------------------- what forbids a table

VARIED = {
    "--rarefy-depth 3": {"rarefy_depth": 3},
    "--asv-sampling random": {"token_limit": 2, "asv_sampling": "random"},
    "--augment-rarefy": {"depths": (2, 5)},
    "--asv-dropout 0.3": {"asv_dropout": 0.3},
    "--count-noise 0.5": {"count_noise": 0.5},
    "--mix-samples 0.5": {"mix_samples": 0.5},
    "--base-noise 0.2": {"base_noise": 0.2},
}
STEADY = {
    "the most abundant": {"token_limit": 2},
    "the first": {"token_limit": 2, "asv_sampling": "first"},
    "random, but all are read": {"token_limit": 10, "asv_sampling": "random"},
}


def varied_trainer(
    study: TinyStudy, kind: str, directory: Path, callbacks: Sequence[Callback], varied: dict[str, Any]
) -> Trainer:
    made = trainer_of(study, kind, directory, callbacks)
    options = {name: value for name, value in varied.items() if hasattr(tiny.OPTIONS, name)}
    augmented = {name: value for name, value in varied.items() if name not in options}
    for dataset in datasets(made):
        dataset.options = replace(dataset.options, **options)
    if augmented:
        datasets(made)[0].augmentation = Augmentation(1, candidates=np.arange(len(study)), **augmented)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("option", VARIED | STEADY)
def test_options_that_vary_samples(option, part, kind, equal_study, tmp_path, caplog):
    varied = (VARIED | STEADY)[option]
    if kind == "classes" and "mix_samples" in varied:
        varied = {**varied, "classes": np.arange(len(equal_study)) % 3}
    found = varied_trainer(equal_study, kind, tmp_path, [callback(equal_study, part)], varied)
    with caplog.at_level(logging.INFO, logger="aam"):
        found.fit()
    expected = varied_trainer(equal_study, kind, tmp_path, [], varied)
    freeze_by_hand(expected, part)
    expected.fit()
    assert_equal_runs(found, expected)

    train, held_out = (type(dataset.encoded) for dataset in datasets(found))
    assert held_out is (EncodedStudy if part == "base" else EncodedASVs)  # which nothing varies
    if "base_noise" in varied:
        assert train is type(None)
    elif part == "asv_encoder" or option in VARIED:
        assert train is EncodedASVs
    else:
        assert train is EncodedStudy
    said = [record.getMessage() for record in caplog.records if "encoded anew" in record.getMessage()]
    forbidden = option in VARIED and (part == "base" or "base_noise" in varied)
    assert len(said) == forbidden
    assert all(option in sentence for sentence in said)


# ----------------------------------------------------------------------------------------------------------- unfreezing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_unfreezing_equals_two_phases_by_hand(part, kind, unequal_study, tmp_path):
    study = unequal_study
    found = trainer_of(study, kind, tmp_path, [callback(study, part, until=2)], epochs=4)
    found.fit()
    first = trainer_of(study, kind, tmp_path, [], epochs=2, scheduled_epochs=4)
    freeze_by_hand(first, part)
    first.fit()
    between = first.state_dict()  # with the state of the random draws
    second = trainer_of(study, kind, tmp_path, [], epochs=4)
    second.load_state_dict(between)
    second.fit()
    assert_equal_runs(found, second)
    history = found.state.history
    assert ["train_nuc_loss" in row for row in history] == [False, False, True, True]
    assert ["val_count_loss" in row for row in history] == [part == "asv_encoder"] * 2 + [True] * 2
    assert all(dataset.encoded is None for dataset in datasets(found))
    assert found.task.judged_before is None
    assert all(weight.requires_grad for weight in found.task.model.parameters())


@pytest.mark.parametrize("event", ["step", "epoch"])
@pytest.mark.parametrize("part", PARTS)
def test_stopped_anywhere_and_resumed_equals_uninterrupted(part, event, unequal_study, tmp_path):
    """Before, at and after the end of epoch 2."""

    def fresh(*callbacks: Callback) -> Trainer:
        task = tiny.build_task(unequal_study, "regression", dropout=0.3)
        saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
        before = [*callbacks, callback(unequal_study, part, until=2), saving]
        optim = OptimConfig(lookahead=True, average="ema")
        return tiny.build_trainer(unequal_study, task, tmp_path, epochs=4, callbacks=before, optim=optim)

    whole = fresh()
    torch.manual_seed(6)
    whole.fit()
    for number in (1, 2, 3, 5, 6, 7, 8) if event == "step" else (1, 2, 3):
        first = fresh(StopAt(event, number))
        torch.manual_seed(6)
        with pytest.raises(Interrupted):
            first.fit()
        torch.manual_seed(99)
        second = fresh()
        second.load_state_dict(load_checkpoint(tmp_path / "last.ckpt")["trainer"])
        assert second.state.step == first.state.step < whole.state.step
        second.fit()
        assert second.state == whole.state
        for (name, weight), other in zip(
            second.task.model.state_dict().items(), whole.task.model.state_dict().values(), strict=True
        ):
            assert torch.equal(weight, other), name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("optimizer", "lookahead"), [*((name, False) for name in OPTIMIZERS), ("adamw", True)])
def test_every_optimizer_leaves_what_is_frozen_alone(optimizer, lookahead, part, unequal_study, tmp_path):
    optim = OptimConfig(optimizer=optimizer, lookahead=lookahead, average="ema")
    found = trainer_of(
        unequal_study, "regression", tmp_path, [callback(unequal_study, part, until=2)], epochs=3, optim=optim
    )
    frozen = frozen_module(found.task.encoder, part)
    start = [weight.detach().clone() for weight in frozen.parameters()]
    changed = []

    class Watch(Callback):
        def on_epoch(self, trainer: Trainer, evaluation: object) -> None:
            with trainer.average.in_model():
                averages = [weight.detach().clone() for weight in frozen.parameters()]
            now = [*frozen.parameters(), *averages]
            changed.append([not torch.equal(weight, was) for weight, was in zip(now, start * 2, strict=True)])

    found.callbacks = [*found.callbacks, Watch()]
    found.fit()
    assert not any(changed[0] + changed[1])
    assert sum(changed[2]) > len(changed[2]) / 2


# -------------------------------------------------------------------------------------------------- freezing in the end


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_equals_two_phases_by_hand(kind, unequal_study, tmp_path):
    study = unequal_study
    found = trainer_of(study, kind, tmp_path, [callback(study, "asv_encoder", since=2)], epochs=4)
    found.fit()
    first = trainer_of(study, kind, tmp_path, [], epochs=2, scheduled_epochs=4)
    first.fit()
    between = first.state_dict()
    second = trainer_of(study, kind, tmp_path, [], epochs=4)
    second.load_state_dict(between)
    freeze_by_hand(second, "asv_encoder")
    second.task.losses_at_rest = {"nuc_loss": first.state.history[-1]["val_nuc_loss"]}
    second.fit()
    assert_equal_runs(found, second)
    history = found.state.history
    assert len({row["val_nuc_loss"] for row in history[1:]}) == 1
    assert ["train_nuc_loss" in row for row in history] == [True, True, False, False]
    assert all(isinstance(dataset.encoded, EncodedASVs) for dataset in datasets(found))


@pytest.mark.parametrize("average", ["none", "ema", "swa"])
@pytest.mark.parametrize(("optimizer", "lookahead"), [("adamw", False), ("muon", False), ("sgd", True)])
def test_what_was_frozen_is_what_is_encoded(optimizer, lookahead, average, unequal_study, tmp_path):
    """The model that is saved reads ASVs as the table of its last epochs does."""
    optim = OptimConfig(optimizer=optimizer, lookahead=lookahead, average=average)
    frozen = callback(unequal_study, "asv_encoder", since=2)
    found = trainer_of(unequal_study, "regression", tmp_path, [frozen], epochs=4, optim=optim)
    found.fit()
    with found.average.in_model():
        by_table = found.evaluate(found.val_loader).output
        for dataset in datasets(found):
            dataset.encoded = None
        np.testing.assert_allclose(found.evaluate(found.val_loader).output, by_table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event", ["step", "epoch"])
def test_stopped_around_freezing_and_resumed_equals_uninterrupted(event, unequal_study, tmp_path):
    """Before, at and after the end of epoch 2."""

    def fresh(*callbacks: Callback) -> Trainer:
        task = tiny.build_task(unequal_study, "regression", dropout=0.3)
        saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
        before = [*callbacks, callback(unequal_study, "asv_encoder", since=2), saving]
        optim = OptimConfig(average="ema")
        return tiny.build_trainer(unequal_study, task, tmp_path, epochs=4, callbacks=before, optim=optim)

    whole = fresh()
    torch.manual_seed(6)
    whole.fit()
    for number in (1, 3, 4, 5, 6, 7) if event == "step" else (1, 2, 3):
        first = fresh(StopAt(event, number))
        torch.manual_seed(6)
        with pytest.raises(Interrupted):
            first.fit()
        torch.manual_seed(99)
        second = fresh()
        second.load_state_dict(load_checkpoint(tmp_path / "last.ckpt")["trainer"])
        second.fit()
        assert second.state == whole.state
        for (name, weight), other in zip(
            second.task.model.state_dict().items(), whole.task.model.state_dict().values(), strict=True
        ):
            assert torch.equal(weight, other), name


def test_frozen_too_late_is_not_frozen(unequal_study, tmp_path):
    frozen = callback(unequal_study, "asv_encoder", since=3)
    found = trainer_of(unequal_study, "regression", tmp_path, [frozen], epochs=3)
    found.fit()
    expected = trainer_of(unequal_study, "regression", tmp_path, [], epochs=3)
    expected.fit()
    assert found.state == expected.state and frozen.before is None


def test_stopped_while_it_encodes(unequal_study, tmp_path):
    def fresh() -> Trainer:
        task = tiny.build_task(unequal_study, "regression", dropout=0.3)
        saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
        return tiny.build_trainer(unequal_study, task, tmp_path, callbacks=[callback(unequal_study, "base"), saving])

    torch.manual_seed(6)
    first = fresh()
    first.stop_soon(15)
    with pytest.raises(Interrupted):
        first.fit()
    saved = load_checkpoint(tmp_path / "last.ckpt")["trainer"]
    assert saved["state"]["step"] == 0
    second, whole = fresh(), fresh()
    for trainer in (second, whole):
        trainer.load_state_dict(saved)
        trainer.fit()
    assert second.state == whole.state


def test_nobody_loses_patience_while_the_base_is_frozen(equal_study, tmp_path):
    """Nothing improves; patience is counted from the end of epoch 4."""
    task = tiny.build_task(equal_study, "regression")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    state = tiny.build_trainer(
        equal_study,
        task,
        tmp_path,
        epochs=9,
        optimizer=optimizer,
        schedule=tiny.constant(optimizer),
        callbacks=[callback(equal_study, "base", until=4), EarlyStopping(2, 4)],
    ).fit()
    assert (state.epoch, state.best_epoch) == (6, 1)


# ---------------------------------------------------------------------------------------------------------- judged once


def test_base_targets_are_judged_once_while_the_base_is_frozen(unequal_study, tmp_path):
    trainer = trainer_of(unequal_study, "regression", tmp_path, [callback(unequal_study, "base", until=2)], epochs=4)
    seen = []

    class Reader(Callback):
        def on_epoch(self, trainer: Trainer, evaluation: Any) -> None:
            seen.append(evaluation.readings["unifrac"])

    trainer.callbacks = [*trainer.callbacks, Reader()]
    trainer.fit()
    assert seen[0] is seen[1]
    assert seen[1] is not seen[2] is not seen[3]
    metrics = [row["val_unifrac_r2"] for row in trainer.state.history]
    assert metrics[0] == metrics[1] != metrics[2]


def test_other_held_out_samples_are_judged_for_themselves(unequal_study):
    task: Task = tiny.build_task(unequal_study, "regression")
    task.model.eval()
    dataset = tiny.build_dataset(unequal_study, task, held_out=True)
    batches = [[dataset[BatchKey(0, rows)]] for rows in ((0, 1, 2), (1, 2, 3, 4))]
    expected = [task.judge(some) for some in batches]
    task.judged_before = {}
    for _ in range(2):
        for some, evaluation in zip(batches, expected, strict=True):
            found = task.judge(some)
            assert found.metrics == evaluation.metrics
            assert found.losses == evaluation.losses
            assert list(found.metrics) == list(evaluation.metrics)
    assert expected[0].metrics["unifrac_mae"] != expected[1].metrics["unifrac_mae"]


def test_without_base_targets_embeddings_alone_are_kept(equal_study, tmp_path):
    task = tiny.build_task(equal_study, "regression")
    assert isinstance(task, TrainTask)
    task.labelled = {}
    trainer = tiny.build_trainer(equal_study, task, tmp_path, callbacks=[callback(equal_study, "base")])
    for dataset in datasets(trainer):
        dataset.labels = {}
    trainer.fit()
    embeddings, *clades = datasets(trainer)[0].encoded.tables
    assert embeddings.shape == (len(equal_study), tiny.MODEL.embedding_dim)
    assert clades == [None, None]


def test_it_may_be_told_twice_that_a_run_begins(equal_study, tmp_path):
    trainer = trainer_of(equal_study, "regression", tmp_path, [])
    frozen = callback(equal_study, "base", until=1)
    plain = trainer.train_loader
    frozen.on_start(trainer)
    first = trainer.train_loader
    frozen.on_start(trainer)
    assert trainer.train_loader is first is not plain
    trainer.state.epoch = 1
    frozen.on_epoch(trainer, trainer.evaluate(trainer.val_loader))
    assert trainer.train_loader is plain
    frozen.on_start(trainer)
    frozen.on_end(trainer)
    frozen.close()
    assert trainer.train_loader is plain
