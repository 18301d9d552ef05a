"""Where a number that is none comes from: the first module, loss, gradient or weight of a run that is not finite.

python debug/nan_hunt.py RUN [--steps N] [--poison WHERE --at-step N]
python debug/nan_hunt.py [--steps N] -- train --table table.biom --metadata metadata.tsv --metadata-column age

Trains as the run would, writes nothing, and looks at everything in every step, so it is slow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from training import WHAT, config_of, ready

from aam.data.batch import Batch
from aam.errors import DataError
from aam.training.losses import LossOutput
from aam.training.trainer import Callback, Step, Trainer


@dataclass(eq=False)
class Finding(Exception):
    """What was not finite first."""

    what: str  # output, input, loss, gradient, weight
    name: str
    step: int  # from 1
    samples: tuple[str, ...]  # of the batch; those that are not finite first, where that can be told
    lines: tuple[str, ...]  # ranges and counts

    def __str__(self) -> str:
        some = ", ".join(self.samples[:8]) + (f", … ({len(self.samples)})" if self.samples[8:] else "")
        return "\n".join([f"step {self.step}: {self.what} of {self.name}", *self.lines, f"samples: {some}"])


class Done(Exception):
    """As many steps as were asked for."""


class Hunt(Callback):
    """Looks at a run.

    Parameters
    ----------
    sample_ids : list of str
    steps : int
        After which it stops looking.
    poison : str, optional
        Where to plant a NaN, to see that it is found: a weight, a module (its output), ``counts``, ``gradient:WEIGHT``.
    at_step : int
        When to plant it.
    """

    def __init__(self, sample_ids: list[str], steps: int, poison: str | None = None, at_step: int = 1) -> None:
        self.sample_ids = sample_ids
        self.steps = steps
        self.poison = poison
        self.at_step = at_step
        self.step = 1
        self.batch: Batch | None = None
        self.last_finite = "the loss"  # on the way back
        self.before: dict[str, str] = {}  # ranges, as they were in the last step or before the poison

    def watch(self, trainer: Trainer) -> None:
        """Put hooks everywhere."""
        model = trainer.task.model
        self.model = model
        # An overflow is what a loss scale is for; the optimizer's step is then left out.
        self.gradients = not trainer.scaler.is_enabled()
        if self.poison is not None:
            self._require_known(self.poison)
        model.register_forward_pre_hook(self._begin)
        for name, module in model.named_modules():
            module.register_forward_hook(self._output_hook(name or "the model"))
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.register_hook(self._gradient_hook(f"weight {name}", name))
        trainer.learner.register_forward_hook(self._loss_hook)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        for name, weight in self.model.named_parameters():
            if not _finite(weight):
                self._found("weight", f"{name}, after the optimizer's step", {"it": weight}, name)
        self._note_weights()
        self.step += 1
        if self.step > self.steps:
            raise Done

    def _require_known(self, where: str) -> None:
        weights, modules = dict(self.model.named_parameters()), dict(self.model.named_modules())
        if where != "counts" and where.removeprefix("gradient:") not in weights and where not in modules:
            raise DataError(
                f"--poison {where}: no weight or module of the model; it has {', '.join(list(modules)[1:12])}, …"
            )

    @property
    def _planting(self) -> bool:
        return self.poison is not None and self.step == self.at_step and self.model.training

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Look at what a step begins with: the batch, and the weights."""
        (batch,) = inputs
        assert isinstance(batch, Batch)
        self.last_finite = "the loss"
        weights = dict(model.named_parameters())
        if self.step == 1:
            self._note_weights()
        changed = None
        if self._planting and self.poison == "counts":
            counts = batch.counts.clone()
            counts[0, 0] = torch.nan
            batch = replace(batch, counts=counts)
            changed = (batch,)
        if self._planting and self.poison in weights:
            with torch.no_grad():
                weights[self.poison].view(-1)[0] = torch.nan
        self.batch = batch
        for name in ("counts", "depth"):
            values = getattr(batch, name)
            if not _finite(values):
                self._found("input", f"the batch, its {name}", {"it": values}, rows=values)
        for name, weight in weights.items():
            if not _finite(weight):
                self._found("weight", f"{name}, before the step", {"it": weight}, name)
        return changed

    def _note_weights(self) -> None:
        self.before |= {name: _range(weight) for name, weight in self.model.named_parameters()}

    def _output_hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            tensors = dict(_tensors(output))
            changed = None
            if self._planting and self.poison == name and isinstance(output, Tensor):
                changed = output.clone(memory_format=torch.contiguous_format)
                changed.reshape(-1)[0] = torch.nan
                tensors = {"": changed}
            for part, values in tensors.items():
                key = f"{name}{part}"
                if not _finite(values):
                    beside = {f"input{at}": value for at, value in _tensors(inputs)}
                    # Outputs of all modules before were finite: what came in was not made by one.
                    bad = next((at for at, value in beside.items() if not _finite(value)), None)
                    beside |= {f"weight {at}": value for at, value in module.named_parameters(recurse=False)}
                    if bad is not None:
                        of = f"{name} ({type(module).__name__}), made between modules: {bad}"
                        self._found("input", of, {"its output": values, **beside}, rows=values)
                    self._found(
                        "output", f"{key} ({type(module).__name__})", {"it": values, **beside}, key, rows=values
                    )
                self.before[key] = _range(values)
                if values.requires_grad:
                    values.register_hook(self._gradient_hook(f"output of {key}", f"gradient of {key}"))
            return changed

        return look

    def _gradient_hook(self, name: str, key: str) -> Any:
        def look(gradient: Tensor) -> Tensor | None:
            changed = None
            if self._planting and self.poison == f"gradient:{key}":
                changed = gradient.clone(memory_format=torch.contiguous_format)
                changed.reshape(-1)[0] = torch.nan
                gradient = changed
            if self.gradients and not _finite(gradient):
                self._found(
                    "gradient",
                    f"the {name}; the last finite one on the way back: {self.last_finite}",
                    {"it": gradient},
                    key,
                )
            self.last_finite = name
            return changed

        return look

    def _loss_hook(self, learner: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, LossOutput):
            return  # held-out samples
        for name, part in {**output.parts, "loss": output.total}.items():
            if not _finite(part):
                self._found("loss", f"{name}, though every module's output is finite", {"it": part}, name)
            self.before[name] = _range(part)

    def _found(
        self, what: str, name: str, values: Mapping[str, Tensor], key: str = "", rows: Tensor | None = None
    ) -> None:
        assert self.batch is not None
        lines = [f"  {at}: {_range(tensor)}" for at, tensor in values.items()]
        if key in self.before:
            lines.append(f"  it, in the step before: {self.before[key]}")
        samples = [self.sample_ids[int(row)] for row in self.batch.sample_index]
        if rows is not None and rows.ndim and len(rows) == len(samples):
            finite = rows.detach().isfinite().reshape(len(rows), -1).all(dim=1).tolist()
            samples = [sample for sample, is_finite in zip(samples, finite, strict=True) if not is_finite]
        raise Finding(what, name, self.step, tuple(samples), tuple(lines))


def _tensors(value: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """The numbers within an input or an output, and where."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield at, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name in value._fields:
            yield from _tensors(getattr(value, name), f"{at}.{name}")
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _tensors(part, f"{at}[{place}]")
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _tensors(part, f"{at}[{name}]")
    elif is_dataclass(value):
        for field in fields(value):
            if field.name not in ("labels", "target", "numbers"):  # where NaN says that it is not known
                yield from _tensors(getattr(value, field.name), f"{at}.{field.name}")


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _range(values: Tensor) -> str:
    """Shape, least and largest of what is finite, and how much is not."""
    values = values.detach().float()
    finite = values[values.isfinite()]
    ends = f"{finite.min():.4g} to {finite.max():.4g}" if finite.numel() else "nothing finite"
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return f"{tuple(values.shape)} {ends}" + (f", {nan} NaN, {infinite} infinite" if nan or infinite else "")


def hunt(arguments: list[str], steps: int, poison: str | None = None, at_step: int = 1) -> tuple[Finding | None, int]:
    """Train, and stop at the first thing that is not finite; what it is, and the steps that were done before."""
    trainer, sample_ids = ready(config_of(arguments))
    looking = Hunt(sample_ids, steps, poison, at_step)
    looking.watch(trainer)
    trainer.callbacks = [*trainer.callbacks, looking]
    try:
        trainer.fit()
    except Done:
        pass
    except Finding as found:
        return found, looking.step - 1
    finally:
        trainer.close()
    return None, looking.step - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="+", help=WHAT)
    parser.add_argument("--steps", type=int, default=1000, help="look at so many [1000]")
    parser.add_argument(
        "--poison", metavar="WHERE", help="plant a NaN: in a weight, a module's output, counts, or gradient:WEIGHT"
    )
    parser.add_argument("--at-step", type=int, default=1, help="when [1]")
    given = parser.parse_args()
    try:
        found, done = hunt(given.run, given.steps, given.poison, given.at_step)
    except DataError as error:
        sys.exit(f"Error: {error}")
    print(f"everything was finite in {done} steps" if found is None else found)
    sys.exit(found is not None)


if __name__ == "__main__":
    main()
