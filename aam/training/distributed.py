"""Several processes that train together: what each has of a batch, what they agree on, and how the model is spread.

torchrun starts them (see `aam.launch`). Each computes its share of every batch; losses, gradients and metrics are those
of the whole batch on one device. Small things that are agreed on are kept off the GPUs, so that none is waited for.

Shapes: ``G`` samples of a batch, ``B`` of them this process's own, ``D`` width.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aam.config import TrainConfig
from aam.data.batch import Batch, Share
from aam.errors import DataError
from aam.launch import Launch, connect
from aam.models.asv_encoder import ASVEncoder
from aam.models.transformer import TransformerBlock
from aam.training.losses import LossOutput, LossSum

if TYPE_CHECKING:
    from aam.training.tasks import Evaluation, Judged, Task

__all__ = [
    "Learner",
    "Processes",
    "all_finite",
    "beside_passes",
    "clip_gradients",
    "distribute",
    "is_sharded",
    "joining",
    "judge_together",
    "judging",
    "load_optimizer_state",
    "load_weights_into",
    "random_state",
    "require_whole_tensors",
    "set_random_state",
    "shard_like",
    "start",
    "whole",
    "wrap_again",
]

logger = logging.getLogger("aam")

Strategy = Literal["single", "ddp", "fsdp"]
Result = TypeVar("Result")
_TIMEOUT = timedelta(minutes=30)


# ---------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them. `Processes()` is one alone, and costs nothing."""

    rank: int = 0
    number: int = 1
    strategy: Strategy = "single"

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What this process has of every batch."""
        return Share(self.rank, self.number)

    def gather(self, own: Tensor, number: int) -> Tensor:
        """The shares of all processes, put together.

        Parameters
        ----------
        own : Tensor (B, ...)
        number : int
            ``G``, from which each process knows how much the others have.

        Returns
        -------
        Tensor (G, ...)
            Gradients of what any process makes of it come back to ``own``.
        """
        return own if self.number == 1 else _Gather.apply(own, self, number)

    def means(self, sums: Mapping[str, LossSum]) -> dict[str, Tensor]:
        """Parts of the loss, whose averages over the processes are the means over the whole batch.

        Every process has the same parts, be it with nothing in them.
        """
        if self.number == 1 or not sums:
            return {name: part.mean for name, part in sums.items()}
        device = next(iter(sums.values())).total.device
        numbers = [torch.as_tensor(part.number, dtype=torch.float64, device=device) for part in sums.values()]
        together = self.sum(torch.stack(numbers)).clamp(min=1)
        scales = (self.number / together).unbind()
        return {
            name: part.total * scale.to(part.total.dtype)
            for (name, part), scale in zip(sums.items(), scales, strict=True)
        }

    def averages(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each value, averaged over the processes, without gradients."""
        if self.number == 1:
            return {name: value.detach() for name, value in values.items()}
        together = self.sum(torch.stack([value.detach() for value in values.values()])) / self.number
        return dict(zip(values, together.unbind(), strict=True))

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the processes, without gradients."""
        if self.number > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int) -> int:
        """Over the processes."""
        if self.number == 1:
            return value
        found = torch.tensor(value)  # on the CPU: no GPU is waited for
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return self.largest(int(flag)) > 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.largest(0)

    def gather_objects(self, own: Any) -> list[Any]:
        """What every process has, in their order, on the first; nothing on the others."""
        if self.number == 1:
            return [own]
        found: list[Any] | None = [None] * self.number if self.first else None
        dist.gather_object(own, found)
        return found or []

    def broadcast(self, of_first: Any) -> Any:
        """What the first process has, on every one."""
        if self.number == 1:
            return of_first
        holder = [of_first]
        dist.broadcast_object_list(holder)
        return holder[0]

    def seed(self, seed: int, step: int) -> None:
        """Let the processes draw (dropout, that is) differently from here on; one that is alone goes on as it was."""
        if self.number > 1:
            self.seed_anew(seed, step)

    def seed_anew(self, seed: int, step: int) -> None:
        """Draw by a seed of this process's own."""
        digest = hashlib.blake2b(f"{seed}/{step}/{self.rank}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "little"))


class _Gather(torch.autograd.Function):
    """Unequal shares to the whole; the gradient of the whole, summed over the processes, to the share."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, number: int) -> Tensor:
        places = [Share(rank, processes.number).of(number) for rank in range(processes.number)]
        ctx.own = places[processes.rank]
        sizes = [place.stop - place.start for place in places]
        assert sizes[processes.rank] == len(own)
        padded = own.new_zeros(max(sizes), *own.shape[1:])  # the collectives want equal shares
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        together = gradients[0].contiguous().clone()
        dist.all_reduce(together)
        return together[ctx.own], None, None


def start(config: TrainConfig, device: torch.device) -> Processes:
    """Join the processes that torchrun started, if it did; again and again if need be.

    Parameters
    ----------
    config : TrainConfig
        Its ``strategy``.
    device : torch.device
        Of this process.

    Raises
    ------
    DataError
        If the strategy does not fit how the program was started.
    """
    launch, strategy = Launch.of_environment(), config.strategy
    if strategy == "auto":
        strategy = "ddp" if launch.processes > 1 else "single"
    if strategy == "single":
        if launch.processes > 1:
            raise DataError(
                f"--strategy single is one process, and torchrun started {launch.processes}; "
                "leave --strategy out, or start one"
            )
        return Processes()
    if not launch.by_torchrun:
        raise DataError(
            f"--strategy {strategy} runs in several processes, which torchrun starts: "
            f"torchrun --standalone --nproc-per-node 2 -m aam … --strategy {strategy}, with as many as there are GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise DataError(f"--device {device.type} is for one process; use --device cpu, or leave torchrun out")
    if not dist.is_initialized():
        _join(launch, device)
    if launch.rank > 0:
        logging.getLogger("aam").setLevel(logging.CRITICAL + 1)
        warnings.simplefilter("ignore")
    return Processes(launch.rank, launch.processes, strategy)


def _join(launch: Launch, device: torch.device) -> None:
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_store = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = f"aam/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        stores = [
            dist.TCPStore(*address, is_master=master, wait_for_workers=False, timeout=_TIMEOUT)
            for master in (hosts_store, False)  # the second for a thread of its own
        ]
    except dist.DistError as error:
        raise DataError(
            f"the process with rank {launch.rank} cannot reach {address[0]}:{address[1]} "
            f"({str(error).splitlines()[0]}); see --rdzv-endpoint of torchrun"
        ) from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, of_alarm = (dist.PrefixStore(attempt, found) for found in stores)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.processes,
        timeout=_TIMEOUT,
    )
    alarm = _Alarm(of_alarm)
    alarm.start()

    def first_to(event: str) -> bool:
        alarm.off.set()
        return store.add(event, 1) == 1

    connect(first_to)
    atexit.register(_leave, alarm)


def _leave(alarm: _Alarm) -> None:
    alarm.off.set()
    if dist.is_initialized():
        dist.destroy_process_group()


class _Alarm(threading.Thread):
    """Ends this process where another has failed, though it wait for that one in a collective for ever.

    The one that failed says why.
    """

    def __init__(self, store: dist.Store) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.off = threading.Event()

    def run(self) -> None:
        while not self.off.wait(0.5):
            try:
                failed = self.store.check(["failed"])
            except RuntimeError:  # the process that keeps the store has ended
                return
            if failed and not self.off.wait(1.0):  # unless it is about to end by itself
                os._exit(1)


# ------------------------------------------------------------------------------------------------------------- learner


class Learner(nn.Module):
    """A task as one module, so that what wraps modules sees all of a pass as one call.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Batch, judging: bool = False) -> LossOutput | Judged:
        """The loss of a training batch, its parts without gradients; or a held-out batch, judged."""
        if judging:
            return self.task.judge_batch(batch)
        loss = self.task.loss(batch)
        return LossOutput(loss.total, {name: part.detach() for name, part in loss.parts.items()}, loss.numbers)

    def within(self, work: Callable[[], Result]) -> Result:
        """Do something as if it were a pass; see `beside_passes`."""
        return work()


def distribute(task: Task, processes: Processes, *, reshard_after_forward: bool = True) -> nn.Module:
    """Spread a task over the processes. Its optimizer is made afterwards.

    Parameters
    ----------
    task : Task
        On the device; told of the processes.
    processes : Processes
    reshard_after_forward : bool
        Of FSDP: let go of gathered parameters between forward and backward pass.

    Returns
    -------
    nn.Module
        A `Learner`, wrapped as the strategy says.
    """
    task.processes = processes
    learner = Learner(task)
    if processes.strategy == "single":
        return learner
    for tensor in task.model.state_dict().values():
        dist.broadcast(tensor, src=0)
    if processes.strategy == "ddp":
        return _ddp(learner)
    return _fsdp(learner, reshard_after_forward)


def _ddp(learner: nn.Module) -> nn.Module:
    # What nothing was drawn for in a step has no gradient; that is the same on every process, but not in every step.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    # Buffers are alike everywhere and stay so. The option goes by two names; see PyTorch 2.13.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    buffers: Any = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return _Replicated(learner, find_unused_parameters=True, **buffers)


class _Replicated(DistributedDataParallel):
    """DDP that knows which parameters it was made for."""

    trained: frozenset[nn.Parameter]

    def __init__(self, learner: nn.Module, **options: Any) -> None:
        super().__init__(learner, **options)
        self.trained = _trained(learner)


def _trained(module: nn.Module) -> frozenset[nn.Parameter]:
    return frozenset(parameter for parameter in module.parameters() if parameter.requires_grad)


def _fsdp(learner: Learner, reshard_after_forward: bool) -> nn.Module:
    """Shard every transformer block by itself, and the rest as one.

    Each unit is gathered by all processes together, so all must call it equally often. Where an ASV encoder takes its
    ASVs in chunks, their number is each process's own: it is then one unit, which a pass calls once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(learner.parameters()).device
    options: Any = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "reshard_after_forward": reshard_after_forward,
    }
    in_unit: set[nn.Module] = set()
    for module in learner.modules():
        if isinstance(module, ASVEncoder) and not module.in_one_piece(device):
            in_unit |= set(module.modules())
            fully_shard(module, **options)
            register_fsdp_forward_method(module, "encode_places")
        elif isinstance(module, TransformerBlock) and module not in in_unit:
            fully_shard(module, **options)
    fully_shard(learner, mesh=options["mesh"])
    register_fsdp_forward_method(learner, "within")
    return learner


def wrap_again(learner: nn.Module) -> nn.Module:
    """The learner for an epoch: DDP made anew where other parameters are trained than when it was made."""
    if not isinstance(learner, _Replicated):
        return learner
    return learner if learner.trained == _trained(learner.module) else _ddp(learner.module)


def joining(learner: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """Whether the gradients of a pass within are joined over the processes at once, or with those of a later one."""
    return learner.no_sync() if isinstance(learner, _Replicated) and not now else nullcontext()


@contextmanager
def judging(learner: Any, processes: Processes) -> Iterator[None]:
    """Let go of gathered parameters at the end, which without a backward pass nobody else does."""
    try:
        yield
    finally:
        if processes.strategy == "fsdp":
            from torch.distributed.fsdp import FSDPModule

            for module in learner.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


def beside_passes(learner: Any, processes: Processes, work: Callable[[], Result]) -> Result:
    """Do something that calls parts of the model by themselves. Every process has to, and equally often."""
    if processes.strategy != "fsdp":
        return work()
    with judging(learner, processes):
        result: Result = learner.within(work)
    return result


def judge_together(task: Task, learner: Any, judged: list[Judged]) -> Evaluation:
    """The evaluation of held-out samples of which each process has judged its own.

    Losses, metrics and what is not finite are the same on every process, each of which may be the one to tell of them;
    the first alone has the samples' own.
    """
    processes = task.processes
    if processes.number > 1:
        judged = [of_batch.to(torch.device("cpu")) for of_batch in judged]
    if processes.strategy == "fsdp":
        learner.unshard()  # the heads that read pairs
    everyones = processes.gather_objects(judged)  # lists of equal length
    evaluation = None
    if processes.first:
        evaluation = task.summarise([of_batch for batches in zip(*everyones, strict=True) for of_batch in batches])
    own = None if evaluation is None else (evaluation.losses, evaluation.metrics, evaluation.not_finite)
    said = processes.broadcast(own)
    return task.evaluation_elsewhere(*said) if evaluation is None else evaluation


# ------------------------------------------------------------------------------------------------------ sharded tensors


def is_sharded(value: object) -> bool:
    """Whether a tensor is one of which this process holds a part."""
    if not isinstance(value, Tensor) or type(value) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(tree: Any, keep: bool = True) -> Any:
    """Nested dictionaries, lists and tuples with sharded tensors put together, on the CPU.

    Every process has to call it. Where ``keep`` is false a process helps and gets None in place of them.
    """
    if isinstance(tree, dict):
        return {key: whole(value, keep) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value, keep) for value in tree)
    if not is_sharded(tree):
        return tree
    together = tree.detach().full_tensor()
    return together.cpu() if keep else None


def shard_like(value: Any, own: object) -> Any:
    """A whole tensor as this process holds it of a tensor that is sharded; anything else as it is."""
    if not is_sharded(own) or not isinstance(value, Tensor) or is_sharded(value) or value.shape != own.shape:  # type: ignore[attr-defined]
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def load_weights_into(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put whole weights, or those of this process, into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(value, own.get(name)) for name, value in weights.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Put a state of whole tensors, or of those of this process, into an optimizer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(map(is_sharded, parameters)):
        state = {
            place: {name: shard_like(value, parameters[place]) for name, value in of_parameter.items()}
            for place, of_parameter in saved["state"].items()
        }
        saved = {**saved, "state": state}
    optimizer.load_state_dict(dict(saved))


def require_whole_tensors(config: TrainConfig, option: str) -> None:
    """Refuse what computes with whole matrices, or keeps plain copies of weights, where every tensor is sharded.

    Parameters
    ----------
    config : TrainConfig
    option : str
        With its value, as typed: ``--optimizer muon``.

    Raises
    ------
    DataError
    """
    if config.strategy == "fsdp":
        raise DataError(
            f"{option} computes with whole tensors, of which --strategy fsdp leaves each process a part; "
            f"use --strategy ddp, or leave {option} out"
        )


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to a norm over all of them, on every process, and give the norm they had; 0 for no limit."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if largest > 0:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm.full_tensor() if is_sharded(norm) else norm  # type: ignore[attr-defined]


def all_finite(model: nn.Module) -> bool:
    """Whether this process's part of every parameter is finite."""
    own = (p.to_local() if is_sharded(p) else p for p in model.parameters())  # type: ignore[attr-defined]
    return all(bool(part.isfinite().all()) for part in own)


# ------------------------------------------------------------------------------------------------------- random numbers


def random_state(device: torch.device) -> dict[str, Tensor]:
    """What this process draws next, on the CPU and on its GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw next what was drawn after `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
