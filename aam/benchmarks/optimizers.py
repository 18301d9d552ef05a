"""What optimizers, schedules and averages of the weights come to on held-out samples after the same number of steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from aam.assembly import build_task
from aam.config import USUAL_LR, OptimConfig, RunConfig
from aam.data.study_splits import split_study
from aam.errors import DataError
from aam.inputs import load_inputs
from aam.loaders import choose_device
from aam.trainer_setup import build_trainer
from aam.training.callbacks import FiniteLosses
from aam.training.optimizers import OPTIMIZERS
from aam.training.schedules import SCHEDULES
from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Step, Trainer

__all__ = ["Comparison", "OptimizerBenchmark", "benchmark_optimizers", "variants"]

Comparison = Literal["optimizers", "schedules", "averages"]


@dataclass(frozen=True)
class OptimizerBenchmark:
    """A short pre-training run, judged on the validation split after its last step."""

    compared: Comparison
    name: str
    lr: float
    steps: int
    metric: str
    value: float | None  # of the metric; None where training diverged
    loss: float | None  # of validation
    step_seconds: float | None  # the median, data and all; None where no step follows another in an epoch

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        names = {"value": self.metric}
        return {names.get(name, name): value for name, value in asdict(self).items() if name != "metric"}


def variants(
    optim: OptimConfig, compared: Comparison, factors: tuple[float, ...] = (1.0,)
) -> Iterator[tuple[str, OptimConfig]]:
    """What is compared, by name.

    Parameters
    ----------
    optim : OptimConfig
    compared : {"optimizers", "schedules", "averages"}
    factors : tuple of float
        Of the usual learning rate of each optimizer; schedules and averages have that of ``optim``.
    """
    if compared == "optimizers":
        for name, optimizer, lookahead in [*((each, each, False) for each in OPTIMIZERS), _LOOKAHEAD]:
            usual = USUAL_LR.get(optimizer, OptimConfig.model_fields["lr"].default)
            chosen = {"optimizer": optimizer, "lookahead": lookahead, "min_lr": None}
            for factor in factors:
                yield name, optim.model_copy(update={**chosen, "lr": float(f"{usual * factor:.3g}")})
    elif compared == "schedules":
        for name in SCHEDULES:
            yield name, optim.model_copy(update={"schedule": name})
    else:
        for average in ("none", "ema", "swa"):
            yield average, optim.model_copy(update={"average": average})


_LOOKAHEAD = ("adamw, lookahead", "adamw", True)


def benchmark_optimizers(
    config: RunConfig, compared: tuple[Comparison, ...], factors: tuple[float, ...] = (1.0,)
) -> Iterator[OptimizerBenchmark]:
    """Pre-train once for each variant, from the same weights on the same batches.

    Parameters
    ----------
    config : RunConfig
        Its epochs say how many steps, and its options what is not compared.
    compared : tuple of {"optimizers", "schedules", "averages"}
    factors : tuple of float
        See `variants`.
    """
    device = choose_device(config.train)
    study = load_inputs(config)
    split, _ = split_study(study, config.data, config.train.seed, validate=True)
    found: dict[OptimConfig, dict[str, Any]] = {}
    for kind in compared:
        for name, optim in variants(config.optim, kind, factors):
            if optim not in found:
                variant = config.model_copy(update={"optim": optim})
                task = build_task(variant, study, split, None).to(device)
                trainer = build_trainer(variant, study, split, task, device)
                timer = _Timer()
                trainer.callbacks = [timer, FiniteLosses(study.sample_ids)]
                metric = f"{task.reading_names[0]}_r2"
                row: dict[str, float] = {}
                try:
                    row = trainer.fit().history[-1]
                except DataError:  # a loss that is not finite
                    pass
                finally:
                    trainer.close()
                found[optim] = {
                    "steps": trainer.state.step,
                    "metric": metric,
                    "value": row.get(f"val_{metric}"),
                    "loss": row.get("val_loss"),
                    "step_seconds": timer.median,
                }
            yield OptimizerBenchmark(kind, name, optim.lr, **found[optim])


class _Timer(Callback):
    """The time from step to step, those before and after which something else is done left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last: float | None = None

    def on_step(self, trainer: Trainer, step: Step) -> None:
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.last = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None
