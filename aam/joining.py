"""The classical model of ``--join``: fitted beside the network, and weighted by samples that neither has learnt from.

Shapes: ``N`` samples of the study, ``A`` ASVs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from aam.answers import AllAnswers, answer_metrics, write_answers
from aam.config import RunConfig
from aam.data.study import Study
from aam.data.targets import ClassTarget, NumericTarget, SeveralTargets, Target
from aam.errors import DataError
from aam.joined import ClassicalModel, Joined, best_share, counts_as_judged, mixed
from aam.run_directory import RunDirectory

__all__ = [
    "FittedClassical",
    "join_classical",
    "joined_summary",
    "require_unseen",
]

logger = logging.getLogger("aam")

UNSEEN = ("cal", "val")  # samples that neither training nor the test looks at, the first of these that there are


def require_unseen(config: RunConfig, split: NDArray[Any]) -> None:
    """Refuse ``--join`` where no samples of a split (N,) can say what the two are to weigh.

    Raises
    ------
    DataError
    """
    if config.train.join and not np.isin(split, UNSEEN).any():
        raise DataError(
            f"--join {config.train.join} fits its weights on samples that are not learnt from, nor tested on; give "
            "--folds, --val-size or --cal-size"
        )


def join_classical(
    config: RunConfig,
    study: Study,
    split: NDArray[Any],
    known: Mapping[str, AllAnswers],
    directory: RunDirectory,
    metrics: dict[str, Any],
) -> tuple[Joined, dict[str, AllAnswers]]:
    """Fit the classical model of ``--join``, and let it answer with the network.

    The weights are those that do best on the samples for calibration or, where there are none, for validation. What
    each of the two says by itself is written, and told in ``metrics``, where what they say together takes its place.

    Parameters
    ----------
    config : RunConfig
    study : Study
    split : ndarray (N,) of str
    known : mapping of str to AllAnswers
        Of the network, by part.
    directory : RunDirectory
    metrics : dict

    Returns
    -------
    joined : Joined
    answers : dict of str to AllAnswers
    """
    fitted = FittedClassical.of(config, study, [split], next(iter(known.values())).target)
    told = {part: fitted.alone(0, answers) for part, answers in known.items()}
    alone = {part: answers for part, (answers, _) in told.items()}
    unseen = next(part for part in UNSEEN if part in known)
    joined = fitted.joined(fitted.share(known[unseen], alone[unseen]))
    together = {
        part: answers._replace(values=joined.together(answers.values, alone[part].values, told[part][1]))
        for part, answers in known.items()
    }
    judged = [part for part in known if part != "cal"]
    for part in judged:
        metrics[part] = metrics[part] | answer_metrics(together[part])
        write_answers(study, known[part], directory / f"{part}_network_predictions.tsv")
        write_answers(study, alone[part], directory / f"{part}_classical_predictions.tsv")
    metrics["joined"] = joined_summary(
        joined, {part: known[part] for part in judged}, {part: alone[part] for part in judged}
    )
    return joined, together


def joined_summary(
    joined: Joined, network: Mapping[str, AllAnswers], classical: Mapping[str, AllAnswers]
) -> dict[str, Any]:
    """What ``metrics.json`` says of a joined model: the weight, and each of the two by itself."""
    alone = {"network": network, joined.name: classical}
    return {
        "model": joined.name,
        "share_of_network": joined.share,
        "alone": {name: {part: answer_metrics(of) for part, of in parts.items()} for name, parts in alone.items()},
    }


@dataclass(frozen=True)
class FittedClassical:
    """The classical models of ``--join``, of each fold, and what they answer to a study's samples."""

    target: Target
    name: str
    models: tuple[ClassicalModel, ...]
    counts: csr_array  # (N, A)
    sequences: Sequence[str]

    @classmethod
    def of(
        cls, config: RunConfig, study: Study, splits: Sequence[NDArray[Any]], target: Target | SeveralTargets
    ) -> Self:
        """Fit them on the training samples of each split (N,)."""
        from aam.baselines import classical_models

        assert config.train.join is not None
        assert not isinstance(target, SeveralTargets)
        logger.info("fitting %s to predict with the network", config.train.join.replace("_", " "))
        classes = target.classes if isinstance(target, ClassTarget) else ()
        shared = {"seed": config.train.seed, "n_jobs": config.train.threads or -1}
        counts = counts_as_judged(study, config.data, config.train.seed)
        models = classical_models(config.train.join, study, counts, splits, classes=classes, **shared)
        return cls(target, config.train.join, tuple(models), counts, study.sequences)

    def alone(self, place: int, network: AllAnswers) -> tuple[AllAnswers, NDArray[np.bool_]]:
        """What the model of a fold answers to the samples that a network has answered, and of which it knows any ASV.

        Of a network's quantiles the median is the model's, and the others are as far from it as the network's.
        """
        values, known = self.models[place].answers(self.counts[network.rows], self.sequences)
        classes = isinstance(self.target, ClassTarget)
        return network._replace(values=mixed(network.values, values, 0.0, classes)), known

    def share(self, network: AllAnswers, classical: AllAnswers) -> float:
        """See `aam.joined.best_share`."""
        target, actual = self.target, network.actual
        actual = target.encode(actual) if isinstance(target, ClassTarget) else actual
        return best_share(network.values, classical.values, actual, isinstance(target, ClassTarget))

    def joined(self, share: float) -> Joined:
        """What a model file holds."""
        target = self.target
        bounds = (target.lower, target.upper) if isinstance(target, NumericTarget) else (None, None)
        return Joined(self.name, share, self.models, *bounds)
