"""`--log-attention`: pictures in TensorBoard, and a network that has learnt the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from aam.data.batch import arrange
from aam.data.counts import MemoryCounts
from aam.interpret.attention import attention_while
from aam.interpret.attention_figures import attention_figures
from aam.models.sequence_encoder import SequenceEncoder
from aam.models.transformer import through
from tests.conftest import MAX_BP, TinyStudy
from tests.end_to_end.program import StudyFiles, succeed


def pictures(run: Path) -> dict[str, list[int]]:
    """Epochs of each picture."""
    found = EventAccumulator(str(run / "tensorboard" / "attention"), size_guidance={"images": 0})
    found.Reload()
    return {tag: [event.step for event in found.Images(tag)] for tag in found.Tags()["images"]}


def learnt(run: Path) -> str:
    """Of the weights that an interrupted run would go on from, with the optimizer's state."""
    state = torch.load(run / "last.ckpt", weights_only=True)["trainer"]["model"]
    content = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(state.items()))
    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_pictures_and_the_same_weights(command: str, study: StudyFiles, tmp_path: Path) -> None:
    call = [*study.train, "--metadata-column", "age"] if command == "train" else study.pretrain
    succeed(*call, "--epochs", 3, "--output-dir", tmp_path / "plain")
    succeed(*call, "--epochs", 3, "--log-attention", 2, "--output-dir", tmp_path / "drawn")
    assert not (tmp_path / "plain" / "tensorboard" / "attention").exists()
    assert learnt(tmp_path / "drawn") == learnt(tmp_path / "plain")
    for name in ("history.csv", "val_predictions.tsv"):
        path = tmp_path / "plain" / name
        assert not path.exists() or path.read_bytes() == (tmp_path / "drawn" / name).read_bytes()
    found = pictures(tmp_path / "drawn")
    split = (line.split("\t") for line in (tmp_path / "drawn" / "splits.tsv").read_text().splitlines())
    held_out = {name for name, part in split if part == "val"}
    assert len(found) == 3 and {tag.removeprefix("attention/") for tag in found} <= held_out
    assert all(epochs == [2, 3] for epochs in found.values())  # every second epoch, and the last
    # A run that is replaced leaves nothing of it.
    succeed(*call, "--epochs", 1, "--overwrite", "--output-dir", tmp_path / "drawn")
    assert not (tmp_path / "drawn" / "tensorboard" / "attention").exists()


def test_no_hook_is_left(unequal_study: TinyStudy) -> None:
    """Nor where blocks are compiled, which pass over hooks: they are called as they are meanwhile."""
    torch.manual_seed(0)
    encoder = SequenceEncoder(dim=16, heads=2, layers=1, max_bp=MAX_BP, clades=8, targets=()).eval()
    rows = MemoryCounts(unequal_study.table).rows(np.arange(5))
    batch, distinct = arrange(rows, rows.depth(), unequal_study.tokens, np.arange(5))
    before = attention_while(lambda: encoder(batch), encoder, tuple(batch.counts.shape))  # type: ignore[arg-type]

    def refuse(*_: object) -> None:
        raise AssertionError("a compiled block was called")

    encoder.transformer.through = refuse  # type: ignore[assignment]
    encoder.sample_encoder.transformer.blocks[0]._compiled_call_impl = refuse
    labels = [unequal_study.sequences[asv][:6] for asv in distinct]
    figures = attention_figures(encoder, batch, unequal_study.sample_ids, labels)
    assert list(figures) == unequal_study.sample_ids
    after = attention_while(lambda: encoder(batch), encoder, tuple(batch.counts.shape))  # type: ignore[arg-type]
    torch.testing.assert_close(after.weights, before.weights, rtol=0, atol=0)
    assert encoder.transformer.through is refuse and encoder.sample_encoder.transformer.through is through
    assert encoder.sample_encoder.transformer.blocks[0]._compiled_call_impl is refuse
    modules: list[nn.Module] = list(encoder.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    for sample, figure in zip(unequal_study.samples, figures.values(), strict=True):
        rollout = figure.axes[1].images[0].get_array()
        assert rollout is not None and rollout.shape == (len(sample), len(sample))
        pooled = figure.axes[-2].images[0].get_array()
        assert pooled is not None and pooled.sum() == pytest.approx(1, abs=1e-5)
