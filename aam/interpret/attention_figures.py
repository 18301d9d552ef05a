"""Attention of a network that is being trained, in pictures.

Shapes: ``B`` samples, ``S`` most ASVs of any, ``U`` distinct ASVs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aam.data.batch import Batch
from aam.interpret.attention import attention_while
from aam.interpret.plots import attention_plot
from aam.models.sequence_encoder import SequenceEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_figures"]

_SHOWN = 20


def attention_figures(
    encoder: SequenceEncoder, batch: Batch, names: Sequence[str], labels: Sequence[str]
) -> dict[str, Figure]:
    """Heat maps of each layer's attention and of rollout, by sample, of the ASVs that are attended to most.

    Parameters
    ----------
    encoder : SequenceEncoder
        In evaluation; is left as it was.
    batch : Batch
        On its device.
    names : sequence of str, length B
        Of the samples.
    labels : sequence of str, length U
        Of the ASVs.
    """
    found = attention_while(lambda: encoder(batch), encoder, (batch.counts.shape[0], batch.counts.shape[1]))
    layers = {f"layer {number}": weights.mean(dim=1) for number, weights in enumerate(found.layers, 1)}
    maps = {name: weights.float().cpu().numpy() for name, weights in (layers | {"rollout": found.rollout}).items()}
    weights, asvs, counts = (tensor.cpu().numpy() for tensor in (found.weights, batch.asv_index, batch.counts))
    figures = {}
    for row, name in enumerate(names):
        present = np.flatnonzero(counts[row] > 0)
        top = present[np.argsort(-weights[row, present], kind="stable")[:_SHOWN]]
        figures[name] = attention_plot(
            {layer: of_layer[row][np.ix_(top, top)] for layer, of_layer in maps.items()},
            [labels[asv] for asv in asvs[row, top]],
            weights[row, top].astype(np.float64),
            title=f"{name}: its {len(top)} most attended ASVs of {len(present)}",
        )
    return figures
