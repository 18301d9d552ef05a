"""Where the time of a training step goes: waiting for data, each part of the forward pass, losses, backward, optimizer.

python debug/step_profile.py RUN [--steps N] [--trace FOLDER]
python debug/step_profile.py [--steps N] -- train --table table.biom --metadata metadata.tsv --metadata-column age

Steps that are looked at take turns with steps that are not, whose time is what the parts are held against. A part's
time is its own: that of the parts within it is theirs. On a GPU each part waits for the device, which costs time that a
run does not lose.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from training import WHAT, config_of, ready

from aam.cli.report import table
from aam.data.batch import Batch
from aam.errors import DataError
from aam.models.sequence_predictor import SequencePredictor
from aam.training.profiler import WARM_UP_STEPS, Profile
from aam.training.trainer import Trainer

DATA = "waiting for data"
REST = "rest of the step (copies to the device, bookkeeping)"


class Stopwatch:
    """The time that each part of a step takes by itself.

    Parameters
    ----------
    device : torch.device
        Waited for at either end of a part.
    clock : callable
        Seconds.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)  # of the step under way
        self.within: list[float] = []  # for each part that is open, the time of the parts within it
        self.put_back: list[Callable[[], object]] = []

    def call(self, part: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call and time it."""
        began = self.now()
        self.within.append(0.0)
        try:
            return work(*arguments, **named)
        finally:
            took = self.now() - began
            self.seconds[part] += took - self.within.pop()
            if self.within:
                self.within[-1] += took

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Time every call of a method, until `unwrap`."""
        work = getattr(owner, method)
        if isinstance(owner, type):
            setattr(owner, method, lambda *arguments, **named: self.call(part, work, *arguments, **named))
            self.put_back.append(lambda: setattr(owner, method, work))
        else:
            object.__setattr__(owner, method, lambda *arguments, **named: self.call(part, work, *arguments, **named))
            self.put_back.append(lambda: object.__delattr__(owner, method))

    def unwrap(self) -> None:
        """Leave everything as it was."""
        while self.put_back:
            self.put_back.pop()()

    def now(self) -> float:
        """Seconds, once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def parts_of(trainer: Trainer) -> list[tuple[Any, str, str]]:
    """What is timed: the owner of a method, the method, and what it is a part of."""
    task = trainer.task
    model, encoder = task.model, task.encoder
    parts: list[tuple[Any, str, str]] = [
        (trainer, "train_step", REST),
        (task, "loss", "losses"),
        (encoder, "forward", "forward: rest of the model"),
        (encoder.asv_encoder, "forward", "forward: ASV encoder"),
        (encoder.asv_encoder, "embed_and_encode_places", "forward: ASV encoder"),
        (encoder.asv_encoder, "encode_places", "forward: ASV encoder, masked nucleotides"),
        (encoder.sample_encoder, "forward", "forward: sample encoder"),
        (encoder.transformer, "forward", "forward: transformer of samples, pooling"),
        (encoder.pooling, "forward", "forward: transformer of samples, pooling"),
        (encoder.nucleotide_head, "forward", "forward: heads"),
        (encoder, "read", "forward: heads"),
        (torch.Tensor, "backward", "backward"),
        (trainer, "_apply_gradients", "optimizer (clipping, step, schedule, average)"),
    ]
    if encoder.clade_head is not None:
        parts += [(encoder.clade_head, method, "forward: heads") for method in ("presence", "abundance")]
    if isinstance(model, SequencePredictor):
        parts.append((model, "forward", "forward: rest of the model"))
        parts += [(model.target_head, "forward", "forward: heads"), (model.count_head, "forward", "forward: heads")]
    return parts


class StepProfile(NamedTuple):
    """What steps came to, in seconds."""

    parts: dict[str, float]  # medians; in the order of their time
    looked_at: list[float]  # each step by a clock of its own, outside of all parts
    plain: list[float]  # each step that was not looked at
    added_up: float  # all parts of all steps

    @property
    def covered(self) -> float:
        """What the parts add up to, of the time of the steps that they are of."""
        return self.added_up / sum(self.looked_at)

    @property
    def overhead(self) -> float:
        """What looking costs: the median of steps that are looked at, over that of those that are not."""
        return float(np.median(self.looked_at) / np.median(self.plain))


def profile(
    trainer: Trainer,
    steps: int,
    warm_up: int = WARM_UP_STEPS,
    trace: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StepProfile:
    """Train for some steps of either kind, after a few that are not counted; traced ones come last."""
    watch = Stopwatch(trainer.device, clock)
    batches = _forever(trainer)
    some = trainer.optim.accumulation_steps  # batches of a step
    for _ in range(warm_up):
        trainer.train_step([next(batches) for _ in range(some)])
    each: list[dict[str, float]] = []
    looked_at, plain = [], []
    for _ in range(steps):
        with _looking(watch, trainer):
            began = watch.now()
            trainer.train_step([watch.call(DATA, next, batches) for _ in range(some)])
            looked_at.append(watch.now() - began)
        each.append(dict(watch.seconds))
        began = watch.now()
        trainer.train_step([next(batches) for _ in range(some)])
        plain.append(watch.now() - began)
    if trace is not None:
        tracing = Profile(trace, steps)
        tracing.done = WARM_UP_STEPS
        tracing.on_epoch_start(trainer)
        for _ in range(steps):
            tracing.on_step(trainer, trainer.train_step([next(batches) for _ in range(some)]))
        tracing.close()
    names = {name for of_step in each for name in of_step}
    medians = {name: float(np.median([of_step.get(name, 0.0) for of_step in each])) for name in names}
    in_order = dict(sorted(medians.items(), key=lambda item: -item[1]))
    return StepProfile(in_order, looked_at, plain, sum(sum(of_step.values()) for of_step in each))


@contextmanager
def _looking(watch: Stopwatch, trainer: Trainer) -> Iterator[None]:
    watch.seconds.clear()
    for owner, method, part in parts_of(trainer):
        watch.wrap(owner, method, part)
    try:
        yield
    finally:
        watch.unwrap()


def _forever(trainer: Trainer) -> Iterator[Batch]:
    trainer.task.train()
    while True:
        trainer.plan.epoch += 1
        yield from trainer.train_loader


def page(found: StepProfile) -> str:
    """The parts as a table, and how they add up."""
    step = float(np.median(found.looked_at))
    rows = [("part of a step", "ms", "share")]
    rows += [(name, f"{1e3 * seconds:.2f}", f"{seconds / step:.1%}") for name, seconds in found.parts.items()]
    plain = float(np.median(found.plain))
    return "\n".join(
        [
            table(rows),
            "",
            f"a step that is looked at: {1e3 * step:.2f} ms, of which the parts are {found.covered:.1%}",
            f"a step that is not: {1e3 * plain:.2f} ms, so that looking costs {found.overhead - 1:+.1%} "
            f"(medians of {len(found.plain)} of either kind)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="+", help=WHAT)
    parser.add_argument("--steps", type=int, default=10, help="of either kind [10]")
    parser.add_argument("--trace", type=Path, help="new folder for traced steps: trace.json.gz and operations.txt")
    given = parser.parse_args()
    try:
        trainer, _ = ready(config_of(given.run))
    except DataError as error:
        sys.exit(f"Error: {error}")
    try:
        trainer._tell("on_start")
        trainer._tell("on_epoch_start")
        print(page(profile(trainer, given.steps, trace=given.trace)))
    finally:
        trainer.close()
    if given.trace is not None:
        print(f"\n{given.trace}")


if __name__ == "__main__":
    main()
