"""What a network attends to as it learns, in TensorBoard's pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aam.training.tasks import Evaluation
from aam.training.trainer import Callback, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AttentionMaps"]


class AttentionMaps(Callback):
    """Draws attention every so many epochs and at the end, with the weights that the run would keep.

    Parameters
    ----------
    directory : Path
        Of the event files.
    draw : callable
        Draws the model of the task, in evaluation, to figures by name; draws nothing at random.
    every : int
        Epochs.
    """

    first_process_only = True

    def __init__(self, directory: Path, draw: Callable[[], Mapping[str, Figure]], every: int) -> None:
        self.directory = directory
        self.draw = draw
        self.every = every
        self.drawn = 0  # the last epoch that is
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.writer = SummaryWriter(str(self.directory), purge_step=trainer.state.epoch + 1)

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if trainer.state.epoch % self.every == 0:
            self._draw(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self.drawn != trainer.state.epoch:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        model = trainer.task.model
        trained = model.training
        model.eval()
        try:
            with trainer.average.in_model():
                figures = self.draw()
        finally:
            model.train(trained)
        for name, figure in figures.items():
            self.writer.add_figure(f"attention/{name}", figure, trainer.state.epoch)
        self.writer.flush()
        self.drawn = trainer.state.epoch

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
