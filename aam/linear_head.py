"""A head that is fitted when the base has learnt all that it will: linear and penalised, its penalty chosen.

Where the signal of a column is weak, gradient steps teach a network the training samples by heart before they teach it
anything else. What distances have taught the base holds for all samples alike, and a linear model of it can be shrunk
as far as the training samples ask for, down to a guess. See ``docs/quality.md``.

Shapes: ``n`` samples, ``F`` features, ``C`` outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aam.config import RunConfig
from aam.data.study import Study
from aam.data.targets import ClassTarget
from aam.epochs import encoder_knows, inner_splits
from aam.errors import DataError
from aam.models.sequence_predictor import LinearHead
from aam.reading import read_training_samples
from aam.training.checkpoint import load_model_file, save_model_file
from aam.training.distributed import load_weights_into
from aam.training.tasks import TrainTask
from aam.training.trainer import Trainer

__all__ = ["PENALTIES", "Linear", "choose_penalty", "fit_linear_head", "penalised"]

logger = logging.getLogger("aam")

Loss = Callable[[Tensor, Tensor], Tensor]  # of outputs (n, C) and what they should be

# From a guess to next to nothing. Features have a variance of 1 on average, and losses are means over samples.
PENALTIES = (math.inf, *(10 ** (half / 2) for half in range(6, -5, -1)))
_WITHOUT_CHOICE = 10**0.5  # what real columns mostly have
_MOST_STEPS = 200


class Linear(NamedTuple):
    """A linear map of features."""

    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)

    def __call__(self, features: Tensor) -> Tensor:
        """(n, F) to (n, C)."""
        return features @ self.weight.T + self.bias


def penalised(features: Tensor, actual: Tensor, outputs: int, loss: Loss, blocks: int, penalty: float) -> Linear:
    """Minimise a loss plus half the penalty times the sum of all squared weights of centred and scaled features.

    Features of a block share a scale, by which their variance is 1 on average. So of an embedding the directions in
    which samples differ most are shrunk least, which predicts better than shrinking all alike; and no block outweighs
    another. The bias is free, so that what an infinite penalty leaves is the best constant. By L-BFGS (Liu and Nocedal
    1989).

    Parameters
    ----------
    features : Tensor (n, F)
        In blocks of equal width.
    actual : Tensor
        Of n samples.
    outputs : int
    loss : callable
    blocks : int
        How many; as many as there are features standardise each of them.
    penalty : float

    Returns
    -------
    Linear
        Of the features as they are.
    """
    mean = features.mean(dim=0)
    variance = features.var(dim=0, correction=0).view(blocks, -1).mean(dim=1)
    scale = torch.where(variance > 1e-12 * variance.max(), variance, 1.0).sqrt().repeat_interleave(len(mean) // blocks)
    scaled = (features - mean) / scale
    weight, bias = features.new_zeros(outputs, features.shape[1]), features.new_zeros(outputs)
    learnt = [bias] if math.isinf(penalty) else [bias, weight]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(learnt, max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss(scaled @ weight.T + bias, actual)
        if not math.isinf(penalty):
            total = total + penalty / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(step)
    weight, bias = weight.detach() / scale, bias.detach()
    return Linear(weight, bias - weight @ mean)


class Choice(NamedTuple):
    """What each penalty loses on samples that it was not fitted to."""

    penalty: float
    losses: dict[float, float]  # by penalty; none where nothing could be left out


def choose_penalty(
    features: Tensor,
    actual: Tensor,
    outputs: int,
    loss: Loss,
    blocks: int,
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    judge: Loss | None = None,
) -> Choice:
    """The penalty that loses least on parts of the samples that are left out in turn; of equals the highest.

    Parameters
    ----------
    features : Tensor (n, F)
    actual : Tensor
    outputs : int
    loss : callable
    blocks : int
        See `penalised`.
    parts : list of pairs of ndarray
        Places of the samples that are learnt from, and of those that are left out.
    judge : callable, optional
        What the latter lose, where that is another loss.
    """
    judge = judge or loss
    if not parts:
        return Choice(_WITHOUT_CHOICE, {})
    lost = dict.fromkeys(PENALTIES, 0.0)
    for learnt, left_out in parts:
        own, others = (features[learnt], actual[learnt]), (features[left_out], actual[left_out])
        for penalty in PENALTIES:
            found = penalised(*own, outputs, loss, blocks, penalty)
            lost[penalty] += float(judge(found(others[0]), others[1])) * len(left_out)
    number = sum(len(left_out) for _, left_out in parts)
    losses = {penalty: total / number for penalty, total in lost.items()}
    return Choice(min(losses, key=losses.__getitem__), losses)


def fit_linear_head(
    config: RunConfig, study: Study, split: NDArray[Any], task: TrainTask, trainer: Trainer, path: Path
) -> dict[str, float | None]:
    """Fit the head to all training samples, in the model and in its file.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
    task : TrainTask
        With a linear head, and the weights of the model file.
    trainer : Trainer
    path : Path
        Of the model file.

    Returns
    -------
    dict
        ``penalty``, None where nothing is better than a guess; ``loss`` of training samples that were left out, and a
        ``guess``'s, where some could be.
    """
    rows = study.rows_of(split, "train")
    predictor, encoder = task.predictor, task.encoder
    read = read_training_samples(
        config, rows, trainer, lambda batch: predictor.features(encoder(batch), batch).to(torch.float32)
    )
    report: dict[str, float | None] = {}
    weights: dict[str, Tensor] | None = None
    if read is not None:
        features = torch.from_numpy(read).to(trainer.device)
        actual = torch.from_numpy(task.target.encode(task.actual[rows])).to(trainer.device)
        loss, judge = (partial(task.target_loss, learning=learning) for learning in (True, False))
        asked = (features, actual, task.target.outputs, loss, LinearHead.BLOCKS)
        choice = choose_penalty(*asked, _parts(config, study, split, task), judge)
        found = penalised(*asked, choice.penalty)
        report = _report(choice)
        file = load_model_file(path)
        head = {"target_head.linear.weight": found.weight.cpu(), "target_head.linear.bias": found.bias.cpu()}
        weights = file.weights | head
        save_model_file(path, weights, file.config, file.header, file.beside)
    load_weights_into(task.model, trainer.processes.broadcast(weights))
    return report


def _parts(
    config: RunConfig, study: Study, split: NDArray[Any], task: TrainTask
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Parts of the training samples, as places among them, whose classes the others have, too."""
    if encoder_knows(config, study, split):
        return []
    train = split == "train"
    try:
        inner = [part[train] for part in inner_splits(config, study, split)]
    except DataError:
        return []
    found = []
    for part in inner:
        learnt, left_out = np.flatnonzero(part == "train"), np.flatnonzero(part == "val")
        known = [
            set(column.known(task.actual[train][left_out])[1]) <= set(column.known(task.actual[train][learnt])[1])
            for column in task.parts
            if isinstance(column.target, ClassTarget)
        ]
        if all(known):
            found.append((learnt, left_out))
    return found


def _report(choice: Choice) -> dict[str, float | None]:
    penalty = None if math.isinf(choice.penalty) else choice.penalty
    if not choice.losses:
        logger.info("the column is read linearly; nothing could be left out to choose a penalty by")
        return {"penalty": penalty}
    loss, guess = choice.losses[choice.penalty], choice.losses[math.inf]
    if penalty is None:
        logger.info("training samples that were left out are predicted no better than by a guess: so all are guessed")
    else:
        logger.info(
            "the column is read linearly, with a penalty of %.3g: training samples that were left out lose %.3g, by a "
            "guess %.3g",
            penalty,
            loss,
            guess,
        )
    return {"penalty": penalty, "loss": loss, "guess": guess}
