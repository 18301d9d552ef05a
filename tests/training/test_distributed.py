"""Several processes on the CPU against one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from aam.config import OptimConfig, RunConfig, TrainConfig
from aam.data.batch import Share
from aam.data.labels import PairLabels
from aam.errors import DataError, Interrupted
from aam.searches import require_alone
from aam.trainer_setup import require_sharding
from aam.training.callbacks import Checkpoints
from aam.training.checkpoint import load_checkpoint
from aam.training.distributed import Processes, is_sharded, start, whole
from aam.training.sharded import SHARDS, fill_in_shards
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.processes import together
from tests.training.tiny import CPU, build_task, build_trainer

ALONE = Processes()


class OddStudy(TinyStudy):
    """Eleven samples: batches of five are of five, five and one, of which a second process has no share."""

    def __init__(self, stripes: bool = False) -> None:
        super().__init__([6, 7, 9, 9, 12, 13, 15, 18, 20, 20], samples=11)
        self.stripes = stripes

    @property
    def base_labels(self) -> dict[str, PairLabels]:
        references = np.array([1, 4, 6, 9]) if self.stripes else None
        return {"unifrac": PairLabels(self.distances, references)}


class Losses(Callback):
    """Keeps those of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_step(self, trainer: Trainer, step: Step) -> None:
        self.steps.append({name: float(part) for name, part in step.parts.items()})


def trainer_of(
    processes: Processes,
    folder: Path,
    *,
    kind: str = "regression",
    stripes: bool = False,
    little_memory: bool = False,
    frozen: bool = False,
    in_one_piece: bool = False,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> Trainer:
    """Batches of five; in double precision, so that sums in another order differ little."""
    study = OddStudy(stripes)
    task = build_task(study, kind)
    task.model.double()
    task.encoder.requires_grad_(not frozen)
    if in_one_piece:  # as on a GPU
        task.encoder.asv_encoder.in_one_piece = lambda device: True
    if little_memory:
        task.encoder.asv_encoder.chunk_size = 3
        for module in task.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
    return build_trainer(study, task, folder, batch_size=5, callbacks=callbacks, processes=processes, **options)


def run(processes: Processes, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Epochs of three batches each."""
    losses = Losses()
    trainer = trainer_of(processes, folder, callbacks=(losses,), **({"epochs": 3} | options))
    trainer.fit()
    return {"steps": losses.steps, "history": trainer.state.history, "weights": all_weights(trainer)}


def all_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in whole(trainer.task.model.state_dict()).items()}


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]], about: Any = "") -> None:
    """Losses and metrics, to 1e-5."""
    assert len(found) == len(expected), about
    for row, own in zip(found, expected, strict=True):
        assert row.keys() == own.keys(), about
        for name, value in own.items():
            assert row[name] == pytest.approx(value, abs=1e-5, nan_ok=True), (name, about)


# ------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8])
def test_shares_divide_a_batch(number):
    parts = [list(range(number))[Share(rank, 3).of(number)] for rank in range(3)]
    assert [place for part in parts for place in part] == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def gathered(processes: Processes, number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    own = torch.arange(number * 2.0).reshape(number, 2)[processes.share.of(number)].requires_grad_()
    everyone = processes.gather(own, number)
    (everyone**2 * (processes.rank + 1)).sum().backward()
    return everyone.detach(), own.grad


@pytest.mark.parametrize("number", [1, 5])
def test_gathering_shares_and_their_gradients(number):
    """Of what the processes make of it: x² the one, and 2 x² the other."""
    results = together(gathered, 2, "ddp", number)
    expected = torch.arange(number * 2.0).reshape(number, 2)
    for everyone, _ in results:
        assert torch.equal(everyone, expected)
    assert torch.equal(torch.cat([gradient for _, gradient in results]), 6 * expected)


def agreements(processes: Processes) -> tuple[Any, ...]:
    rank = processes.rank
    processes.seed(seed=0, step=0)
    return (
        processes.largest(rank),
        processes.any(rank == 1),
        processes.any(False),
        processes.gather_objects(f"of {rank}"),
        processes.broadcast(f"of {rank}"),
        processes.averages({"a": torch.tensor(2.0 + rank)})["a"].item(),
        torch.rand(()).item(),
    )


def test_what_processes_agree_on():
    first, second = together(agreements, 2, "ddp")
    assert first[:3] == second[:3] == (1, True, False)
    assert (first[3], second[3]) == (["of 0", "of 1"], [])
    assert first[4:6] == second[4:6] == ("of 0", 2.5)
    assert first[6] != second[6], "they drop the same units out"


# --------------------------------------------------------------------------------------------------------- as one


def each(processes: Processes, folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run(processes, folder, options) for options in cases]


CASES: dict[tuple[str, int], list[dict[str, Any]]] = {
    ("ddp", 2): [
        {"kind": "pretrain", "epochs": 7},
        {"kind": "regression", "optim": OptimConfig(accumulation_steps=2, gradient_clip=0.05)},
        {"kind": "pretrain", "stripes": True},
        {"kind": "classes", "frozen": True},
        {"optim": OptimConfig(average="ema", optimizer="radam")},
    ],
    ("fsdp", 2): [
        {"kind": "pretrain", "epochs": 7},
        {"kind": "regression", "optim": OptimConfig(accumulation_steps=2, gradient_clip=0.05)},
        {"kind": "regression", "little_memory": True},
        {"kind": "regression", "in_one_piece": True},
        {"kind": "classes", "frozen": True},
        {"optim": OptimConfig(average="ema", optimizer="radam")},
        {"optim": OptimConfig(average="ema"), "reshard_after_forward": False},
        {"optim": OptimConfig(average="swa", optimizer="sgd", lr=0.05)},
        {"optim": OptimConfig(optimizer="adam", head_lr=0.01)},
    ],
    ("ddp", 3): [{"kind": "classes"}],
    ("fsdp", 3): [{"kind": "classes"}],
}


@pytest.mark.parametrize(("strategy", "number"), CASES, ids=str)
def test_processes_follow_one(strategy, number, tmp_path):
    """Losses of each batch and all that is said of the held-out samples; shares are unequal, and some empty."""
    cases = CASES[strategy, number]
    of_processes = together(each, number, strategy, tmp_path, cases)
    for options, *found in zip(cases, *of_processes, strict=True):
        alone = run(ALONE, tmp_path, options)
        steps = 2 if options.get("optim", OptimConfig()).accumulation_steps == 2 else 3
        assert len(alone["steps"]) == steps * options.get("epochs", 3)
        assert len(found) == number
        for process in found:
            assert_alike(process["steps"], alone["steps"], options)
            assert_alike(process["history"], alone["history"], options)
            for name, tensor in alone["weights"].items():
                about = f"{name} of {options}"
                torch.testing.assert_close(process["weights"][name], tensor, rtol=1e-4, atol=1e-6, msg=about)


def held(processes: Processes, folder: Path) -> tuple[int, int, set[str]]:
    trainer = trainer_of(processes, folder)
    trainer.train_epoch()
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    weights = list(trainer.task.model.parameters())
    assert all(map(is_sharded, [*weights, *states]))
    return (
        sum(weight.to_local().numel() for weight in weights),  # type: ignore[attr-defined]
        sum(state.to_local().numel() for state in states),
        set(trainer.task.model.state_dict()),
    )


def test_fsdp_leaves_each_process_a_part(tmp_path):
    parts = together(held, 2, "fsdp", tmp_path)
    alone = trainer_of(ALONE, tmp_path).task.model
    number = sum(weight.numel() for weight in alone.parameters())
    assert sum(weights for weights, _, _ in parts) == number
    assert all(weights < 0.6 * number and states == 2 * weights for weights, states, _ in parts)
    assert all(names == set(alone.state_dict()) for _, _, names in parts)


# ------------------------------------------------------------------------------------------------------------- resume


AVERAGED = OptimConfig(average="ema")  # there is then one more tensor to save of each weight


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.state.step == self.step and trainer.processes.rank == trainer.processes.number - 1:
            trainer.stop_soon(15)


def saved_after(processes: Processes, folder: Path, step: int | None, resumed: bool, sharded: bool) -> dict[str, Any]:
    """Seven epochs or up to a step, from the start or from a checkpoint; another one is left."""
    checkpoints = Checkpoints(lambda evaluation: None, folder / "last.ckpt", {"config": {}})
    callbacks = (checkpoints,) if step is None else (checkpoints, StopAfter(step))
    trainer = trainer_of(processes, folder, callbacks=callbacks, epochs=7, sharded_checkpoints=sharded, optim=AVERAGED)
    if resumed:
        saved = load_checkpoint(folder / "last.ckpt")
        fill_in_shards(folder / "last.ckpt", saved, trainer)
        trainer.load_state_dict(saved["trainer"])
    try:
        trainer.fit()
    except Interrupted:
        assert step is not None
    return {"step": trainer.state.step, "history": trainer.state.history, "weights": all_weights(trainer)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return saved_after(ALONE, tmp_path_factory.mktemp("alone"), None, False, False)


@pytest.mark.parametrize(
    ("before", "after", "sharded"),
    [
        ((2, "ddp"), (1, "single"), False),
        ((2, "fsdp"), (1, "single"), False),
        ((1, "single"), (2, "fsdp"), False),
        ((2, "fsdp"), (1, "single"), True),
        ((2, "fsdp"), (3, "fsdp"), True),
    ],
    ids=str,
)
def test_resumed_by_another_number_of_processes(before, after, sharded, uninterrupted, tmp_path):
    """Stopped in the middle of the third epoch by a signal to the last process."""

    def go(number: int, strategy: str, step: int | None, resumed: bool) -> list[dict[str, Any]]:
        arguments = tmp_path, step, resumed, sharded and strategy == "fsdp"
        return [saved_after(ALONE, *arguments)] if number == 1 else together(saved_after, number, strategy, *arguments)

    expected = uninterrupted
    assert [process["step"] for process in go(*before, 7, False)] == [7] * before[0]
    assert (tmp_path / SHARDS).exists() == sharded
    for process in go(*after, None, True):
        assert (tmp_path / SHARDS).exists() == (sharded and after[1] == "fsdp")
        assert process["step"] == 21
        assert_alike(process["history"], expected["history"])
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(process["weights"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_the_checkpoint_is_as_that_of_one(tmp_path):
    folders = {}
    for strategy in ("single", "fsdp"):
        folders[strategy] = tmp_path / strategy
        folders[strategy].mkdir()
        if strategy == "single":
            saved_after(ALONE, folders[strategy], 2, False, False)
        else:
            together(saved_after, 2, strategy, folders[strategy], 2, False, False)
    alone, shared = (load_checkpoint(folder / "last.ckpt")["trainer"] for folder in folders.values())

    def shape(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: shape(value) for key, value in tree.items()}
        return (tree.shape, tree.dtype, type(tree)) if isinstance(tree, torch.Tensor) else type(tree)

    for section in ("model", "optimizer", "average", "schedule", "scaler", "state", "epoch_parts"):
        assert shape(shared[section]) == shape(alone[section]), section


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    together(saved_after, 2, "fsdp", folder, 2, False, True)
    return folder


@pytest.mark.parametrize("damage", ["first lost", "last lost", "cut", "elsewhere"])
def test_damaged_shards_are_an_error(damage, in_shards, tmp_path):
    shutil.copytree(in_shards, tmp_path, dirs_exist_ok=True)
    saved = load_checkpoint(tmp_path / "last.ckpt")
    first, last = sorted((tmp_path / SHARDS).rglob("*.safetensors"))
    if "lost" in damage:
        (first if damage == "first lost" else last).unlink()
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:-100])
    else:
        saved["shards"]["folder"] = "../../elsewhere"
    with pytest.raises(DataError, match="--overwrite"):
        fill_in_shards(tmp_path / "last.ckpt", saved, trainer_of(ALONE, tmp_path))


# ------------------------------------------------------------------------------------------------------------- errors


def fail_on_one(processes: Processes) -> None:
    if processes.rank == 1:
        raise DataError("the matrix is broken")
    dist.barrier()


def test_an_error_on_one_process_ends_all():
    """The other waits in a collective, which by itself would end after half an hour."""
    began = time.monotonic()
    with pytest.raises(DataError, match="the matrix is broken"):
        together(fail_on_one, 2, "ddp")
    assert time.monotonic() - began < 120


@pytest.mark.parametrize(
    ("strategy", "environment", "said"),
    [
        ("ddp", {}, "torchrun --standalone --nproc-per-node 2 -m aam … --strategy ddp"),
        ("fsdp", {}, "--strategy fsdp runs in several processes"),
        ("single", {"RANK": "0", "WORLD_SIZE": "2"}, "--strategy single is one process, and torchrun started 2"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 is not below WORLD_SIZE 2"),
        ("auto", {"RANK": "one", "WORLD_SIZE": "2"}, "RANK 'one' in the environment is no number"),
    ],
)
def test_a_strategy_that_does_not_fit_how_it_was_started(strategy, environment, said, tmp_path, monkeypatch):
    if environment:
        for name, value in (environment | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
    with pytest.raises(DataError) as error:
        start(TrainConfig(output_dir=tmp_path, strategy=strategy), CPU)
    assert said in str(error.value)


def config_of(train: dict[str, Any], optim: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "command": "pretrain",
            "data": {"table": ["t.biom"], "unifrac_matrix": ["u.h5"]},
            "train": {"output_dir": "run", **train},
            "optim": optim,
        }
    )


@pytest.mark.parametrize(
    ("optim", "named"),
    [
        ({"optimizer": "muon"}, "--optimizer muon"),
        ({"optimizer": "lamb"}, "--optimizer lamb"),
        ({"lookahead": True}, "--lookahead"),
    ],
)
def test_what_needs_whole_tensors_is_refused_by_name(optim, named):
    require_sharding(config_of({"strategy": "ddp"}, optim))
    require_sharding(config_of({"strategy": "fsdp"}, {"optimizer": "sgd"}))
    with pytest.raises(DataError, match=f"^{named} computes with whole tensors"):
        require_sharding(config_of({"strategy": "fsdp"}, optim))


@pytest.mark.parametrize(
    ("train", "optim", "named"),
    [({"batch_size": "auto"}, {}, "--batch-size auto"), ({}, {"lr_find": "apply"}, "--lr-find")],
)
def test_searches_are_for_one_process(train, optim, named):
    require_alone(config_of(train, optim), ALONE)
    with pytest.raises(DataError, match=f"^{named} searches in one process, and torchrun started 2"):
        require_alone(config_of(train, optim), Processes(0, 2, "ddp"))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"sharded_checkpoints": True}, "--sharded-checkpoints is for --strategy fsdp, and --strategy is auto"),
        (
            {"strategy": "ddp", "reshard_after_forward": False},
            "--no-reshard-after-forward is for --strategy fsdp, and --strategy is ddp",
        ),
        ({"strategy": "fsdp", "mixed_precision": "fp16"}, "--mixed-precision fp16 needs gradients"),
    ],
)
def test_options_of_another_strategy(train, said):
    with pytest.raises(ValueError, match=said):
        config_of(train, {})
