"""How a model is computed changes no result beyond rounding."""

from __future__ import annotations

import logging

import pytest
import torch

from aam.config import TrainConfig
from aam.data.dataset import BatchKey
from aam.errors import DataError
from aam.models.attention import KERNELS, Call, SelfAttention, choose_kernel, kernels_that_run
from aam.training.compilation import compile_blocks, graphs_compiled
from aam.training.kernels import choose_attention, prepare_kernels
from aam.training.tasks import Task
from tests.conftest import TinyStudy
from tests.training import tiny
from tests.training.tiny import build_dataset, build_task, build_trainer

CPU = torch.device("cpu")


def config(**options) -> TrainConfig:
    return TrainConfig(output_dir="unused", **options)


def loss_and_gradients(study: TinyStudy, task: Task, samples: tuple[int, ...] = (0, 1, 2, 3)):
    task.train()
    loss = task.loss(build_dataset(study, task)[BatchKey(1, samples)])
    task.model.zero_grad(set_to_none=True)
    loss.total.backward()
    return loss.total.detach(), {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


def agree(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    off = sum(((found[1][name] - gradient) ** 2).sum() for name, gradient in expected[1].items())
    assert off < 1e-8 * sum((gradient**2).sum() for gradient in expected[1].values())


def test_kernels_are_found_by_trying():
    for masked in (False, True):
        assert kernels_that_run(Call(masked, False), CPU, torch.float32, 8) == {"flash", "math"}
    assert kernels_that_run(Call(False, True), CPU, torch.float32, 8) == {"math"}


@pytest.mark.parametrize("name", ["flash", "math"])
def test_a_named_kernel_gives_what_pytorch_s_own_choice_gives(name, unequal_study):
    expected = loss_and_gradients(unequal_study, build_task(unequal_study, "regression"))
    task = build_task(unequal_study, "regression")
    prepare_kernels(task, config(attn_implementation=name), CPU, padded=True)
    for module in task.model.modules():
        if isinstance(module, SelfAttention):
            assert module.kernels[Call(True, False)] == KERNELS[name]
    agree(loss_and_gradients(unequal_study, task), expected)


def test_auto_leaves_the_choice_to_pytorch(equal_study):
    task = build_task(equal_study, "pretrain")
    choose_kernel(task.model, {Call(False, False): "math"})
    choose_attention(task, config(), CPU, padded=False)
    assert all(not module.kernels for module in task.model.modules() if isinstance(module, SelfAttention))


def test_a_kernel_that_is_not_here_is_refused(equal_study):
    task = build_task(equal_study, "pretrain")
    with pytest.raises(
        DataError, match=r"--attn-implementation mem_efficient.*on cpu in float32; there are flash, math"
    ):
        choose_attention(task, config(attn_implementation="mem_efficient"), CPU, padded=False)


def test_a_kernel_that_takes_no_dropout_is_replaced_there_alone(equal_study, caplog):
    task = build_task(equal_study, "pretrain", dropout=0.1)
    with caplog.at_level(logging.WARNING, logger="aam"):
        choose_attention(task, config(attn_implementation="flash"), CPU, padded=False)
    (record,) = caplog.records
    assert "flash takes no dropout on cpu" in record.message and "computed by math" in record.message
    kernels = task.encoder.transformer.blocks[0].attention.kernels
    assert (kernels[Call(False, False)], kernels[Call(True, True)]) == (KERNELS["flash"], KERNELS["math"])


def test_tf32_is_for_gpus(equal_study, caplog):
    with caplog.at_level(logging.INFO, logger="aam"):
        prepare_kernels(build_task(equal_study, "pretrain"), config(tf32=True), CPU, padded=False)
    assert "--tf32 does nothing on cpu" in caplog.text


def test_sizes_for_compiled_blocks_change_nothing(unequal_study):
    for samples in [(0,), (0, 1, 2)]:
        expected = loss_and_gradients(unequal_study, build_task(unequal_study, "regression"), samples)
        task = build_task(unequal_study, "regression")
        for transformer in (task.encoder.asv_encoder.transformer, task.encoder.transformer):
            transformer.fewest_sequences, transformer.elements_of = 2, 8
        agree(loss_and_gradients(unequal_study, task, samples), expected)


@pytest.mark.parametrize("kind", ["pretrain", "regression"])
def test_encoding_in_one_piece_as_on_a_gpu_changes_nothing(kind, unequal_study):
    for samples in [(0,), (0, 1, 2, 3)]:
        expected = loss_and_gradients(unequal_study, build_task(unequal_study, kind), samples)
        task = build_task(unequal_study, kind)
        task.encoder.asv_encoder.in_one_piece = lambda device: True
        agree(loss_and_gradients(unequal_study, task, samples), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_in_groups_change_nothing(checkpointing, unequal_study, monkeypatch):
    monkeypatch.setattr(tiny, "MODEL", tiny.MODEL.model_copy(update={"attention_layers": 3}))
    expected = loss_and_gradients(unequal_study, build_task(unequal_study, "regression"))
    task = build_task(unequal_study, "regression")
    for transformer in (task.encoder.asv_encoder.transformer, task.encoder.transformer):
        transformer.blocks_at_once, transformer.gradient_checkpointing = 2, checkpointing
    agree(loss_and_gradients(unequal_study, task), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch within its compiler
def test_compiled_equals_eager_in_few_graphs(unequal_study, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "MODEL", tiny.MODEL.model_copy(update={"attention_layers": 2}))
    torch.compiler.reset()
    batches = [(0, 1, 2, 3), (1, 2), (0,), (0, 1, 2, 3, 4)]
    eager, task = build_task(unequal_study, "regression"), build_task(unequal_study, "regression")
    before = graphs_compiled()
    assert compile_blocks(task, "none", CPU, padded=True)
    compiled = graphs_compiled() - before
    assert 0 < compiled <= 4
    for samples in batches:
        agree(loss_and_gradients(unequal_study, task, samples), loss_and_gradients(unequal_study, eager, samples))
    assert graphs_compiled() - before <= compiled + 2  # a batch whose ASVs happen to be of one length has no mask
    assert task.model.state_dict().keys() == eager.model.state_dict().keys()
    losses = [build_trainer(unequal_study, of, tmp_path).fit().best_value for of in (task, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch within its compiler, and of files that it leaves open
def test_without_a_compiler_one_warning_and_the_plain_model(equal_study, caplog, monkeypatch):
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    expected = loss_and_gradients(equal_study, build_task(equal_study, "regression"))
    task = build_task(equal_study, "regression")
    with caplog.at_level(logging.WARNING, logger="aam"):
        prepare_kernels(task, config(compile_model=True), CPU, padded=False)
    (record,) = (record for record in caplog.records if record.name == "aam")  # and what PyTorch has to say
    assert "--compile-model: nothing is compiled" in record.message
    torch.compiler.reset()  # leaves no graph behind to other tests
    agree(loss_and_gradients(equal_study, task), expected)
