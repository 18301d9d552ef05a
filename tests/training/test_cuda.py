"""On an NVIDIA GPU: the same as on a CPU. Skipped where there is none."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from aam.cli.main import cli
from aam.config import ModelConfig, TrainConfig
from aam.data.batch import Batch, MaskedNucleotides
from aam.data.dataset import BatchKey, BatchPlan
from aam.errors import DataError
from aam.loaders import loader
from aam.training.checkpoint import load_checkpoint, save_checkpoint
from aam.training.compilation import compile_blocks
from aam.training.kernels import choose_attention, prepare_kernels, set_tf32
from aam.training.trainer import Trainer, precision
from tests.conftest import MAX_BP, TinyStudy
from tests.training import tiny

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
KINDS = ["pretrain", "regression", "classes"]


@pytest.fixture(autouse=True)
def heads_that_every_kernel_takes(monkeypatch):
    model = ModelConfig(embedding_dim=32, attention_heads=2, attention_layers=2, max_bp=MAX_BP, clades=6, dropout=0)
    monkeypatch.setattr(tiny, "MODEL", model)
    set_tf32(False, CUDA)


def loss_and_gradients(study: TinyStudy, kind: str, device: torch.device, name: str = "none", prepare=None):
    task = tiny.build_task(study, kind).to(device)
    task.train()
    if prepare is not None:
        prepare(task)
    batch = tiny.build_dataset(study, task)[BatchKey(1, (0, 1, 2, 3, 4))].to(device)
    with precision(name, device):
        loss = task.loss(batch)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    gradients = {name: p.grad.double().cpu() for name, p in task.model.named_parameters() if p.grad is not None}
    return {name: float(part) for name, part in loss.parts.items()}, gradients


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    off = sum(((found[name] - expected[name]) ** 2).sum() for name in expected)
    return float((off / sum((gradient**2).sum() for gradient in expected.values())).sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("study", ["equal_study", "unequal_study"])
def test_losses_and_gradients_are_those_of_a_cpu(study, kind, request):
    study = request.getfixturevalue(study)
    losses, gradients = loss_and_gradients(study, kind, CUDA)
    expected, expected_gradients = loss_and_gradients(study, kind, CPU)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert difference(gradients, expected_gradients) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_near_float32(kind, unequal_study):
    losses, gradients = loss_and_gradients(unequal_study, kind, CUDA, "bf16")
    expected, expected_gradients = loss_and_gradients(unequal_study, kind, CPU)
    assert losses == pytest.approx(expected, rel=0.1, abs=0.02)
    assert difference(gradients, expected_gradients) < 0.2


@pytest.mark.parametrize("kernel", ["flash", "mem_efficient", "math"])
@pytest.mark.parametrize("study", ["equal_study", "unequal_study"])
def test_every_attention_kernel_gives_the_same(kernel, study, request):
    padded = study == "unequal_study"
    study = request.getfixturevalue(study)
    config = TrainConfig(output_dir="unused", mixed_precision="bf16", attn_implementation=kernel)
    if kernel == "flash" and padded:
        with pytest.raises(DataError, match="sequences of different lengths"):
            choose_attention(tiny.build_task(study, "pretrain").to(CUDA), config, CUDA, padded)
        return
    losses, gradients = loss_and_gradients(
        study, "pretrain", CUDA, "bf16", lambda task: choose_attention(task, config, CUDA, padded)
    )
    expected, expected_gradients = loss_and_gradients(study, "pretrain", CPU)
    assert losses == pytest.approx(expected, rel=0.1, abs=0.02)
    assert difference(gradients, expected_gradients) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("none", 1e-3), ("bf16", 0.2)])
@pytest.mark.parametrize("study", ["equal_study", "unequal_study"])
def test_compiled_equals_eager(name, most, study, request):
    torch.compiler.reset()
    padded = study == "unequal_study"
    study = request.getfixturevalue(study)

    def compile_it(task):
        assert compile_blocks(task, name, CUDA, padded)

    with warnings.catch_warnings(action="ignore"):  # of PyTorch within its compiler
        losses, gradients = loss_and_gradients(study, "regression", CUDA, name, compile_it)
    expected, expected_gradients = loss_and_gradients(study, "regression", CUDA, name)
    assert losses == pytest.approx(expected, rel=most, abs=most / 10)
    assert difference(gradients, expected_gradients) < most


def on_cuda(trainer: Trainer) -> Trainer:
    trainer.device = CUDA
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, unequal_study, tmp_path):
    def fresh(epochs: int) -> Trainer:
        task = tiny.build_task(unequal_study, kind, dropout=0.1).to(CUDA)
        return on_cuda(tiny.build_trainer(unequal_study, task, tmp_path, epochs=epochs, scheduled_epochs=4))

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
    second.fit()
    assert [row["train_loss"] for row in second.state.history] == pytest.approx(
        [row["train_loss"] for row in whole.state.history], rel=1e-3
    )
    weights = whole.task.model.state_dict()
    for name, found in second.task.model.state_dict().items():
        torch.testing.assert_close(found, weights[name], rtol=1e-3, atol=1e-4, msg=name)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    masked = batch.masked_nucleotides
    assert isinstance(masked, MaskedNucleotides)
    return [*found, *batch.labels.values(), *(v for v in vars(masked).values() if isinstance(v, torch.Tensor))]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_from_pinned_memory(workers, unequal_study):
    task = tiny.build_task(unequal_study, "regression")
    plan = BatchPlan(np.arange(len(unequal_study)), 2, True, seed=1)
    plan.epoch = 1
    config = TrainConfig(output_dir="unused", num_workers=workers)
    batches = list(loader(tiny.build_dataset(unequal_study, task), plan, config, CUDA))
    assert sum(map(len, batches)) == len(unequal_study)
    for batch in batches:
        assert all(tensor.is_pinned() for tensor in tensors_of(batch))
        moved = batch.to(CUDA)
        for here, there in zip(tensors_of(batch), tensors_of(moved), strict=True):
            assert there.is_cuda and torch.equal(here, there.cpu())


@pytest.mark.parametrize("name", ["none", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("study", ["equal_study", "unequal_study"])
def test_a_step_does_not_wait_for_the_gpu(name, kind, study, request, tmp_path):
    study = request.getfixturevalue(study)
    task = tiny.build_task(study, kind, dropout=0.1).to(CUDA)
    trainer = on_cuda(tiny.build_trainer(study, task, tmp_path))
    trainer.config = TrainConfig(output_dir=tmp_path, mixed_precision=name)
    task.train()
    batch = trainer.train_loader.dataset[BatchKey(1, (0, 1, 2, 3))].pin_memory()
    trainer.train_step([batch])  # what is done once may wait
    with warnings.catch_warnings(action="ignore"):  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step([batch])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_checkpointing_takes_less_memory_and_gives_the_same(equal_study, monkeypatch):
    def with_checkpointing(task):
        for module in task.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True

    losses, gradients = loss_and_gradients(equal_study, "regression", CUDA, "none", with_checkpointing)
    expected, expected_gradients = loss_and_gradients(equal_study, "regression", CUDA)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert difference(gradients, expected_gradients) < 1e-4


def test_tf32_is_set_and_unset(equal_study):
    task = tiny.build_task(equal_study, "pretrain").to(CUDA)
    for allowed in (True, False):
        prepare_kernels(task, TrainConfig(output_dir="unused", tf32=allowed), CUDA, padded=False)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed


@pytest.mark.slow
def test_benchmark_measures_every_variant():
    arguments = ["benchmark", "gpu", "--embedding-dim", "64", "--attention-heads", "2", "--attention-layers", "1"]
    arguments += ["--batch-size", "4", "--num-workers", "0", "--seconds", "0.2", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    variants = [record for record in records if record["kind"] == "variantfigures"]
    assert len(variants) == 7
    for record in variants:
        assert record["error"] is None, record
        assert record["first_loss"] == pytest.approx(variants[0]["first_loss"], rel=0.02)
    profiles = [record for record in records if record["kind"] == "profile"]
    assert {profile["variant"] for profile in profiles} == {"bf16", "bf16-compile"}
    assert all(profile["groups"]["matrix products"] > 0 for profile in profiles)
