"""debug/nan_hunt.py finds what was planted, where it was planted, and nothing in a healthy run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nan_hunt  # debug/, see conftest
import pytest
from training import config_of, ready

from aam.data.biom_loader import load_table
from aam.errors import DataError


@pytest.fixture(params=["train", "pretrain"])
def command(request: pytest.FixtureRequest, training, study) -> list[str]:
    if request.param == "train":
        return training
    return [str(part) for part in [*study.pretrain, "--batch-size", "4", "--device", "cpu"]]


def test_a_healthy_run_is_left_alone(command):
    assert nan_hunt.hunt(command, steps=8) == (None, 8)  # validation after the fifth among them


@pytest.mark.parametrize(
    ("where", "what", "named"),
    [
        ("target_head.layers.0", "output", "target_head.layers.0 (Linear)"),
        ("encoder.asv_encoder.transformer.blocks.0", "output", "encoder.asv_encoder.transformer.blocks.0 "),
        ("target_head.layers.0.weight", "weight", "target_head.layers.0.weight, before the step"),
        ("counts", "input", "the batch, its counts"),
        ("gradient:target_head.layers.3.weight", "gradient", "weight target_head.layers.3.weight"),
        ("gradient:target_head.layers.0.bias", "gradient", "weight target_head.layers.0.bias"),
    ],
)
def test_what_is_planted_is_found_where_and_when_it_was(training, study, where, what, named):
    found, done = nan_hunt.hunt(training, steps=5, poison=where, at_step=3)
    assert found is not None
    assert (found.what, found.step, done) == (what, 3, 2)
    assert named in found.name
    assert set(found.samples) <= set(load_table(study.table).sample_ids)
    assert len(found.samples) == (1 if where in ("counts", "target_head.layers.0") else 4)
    assert any("1 NaN" in line for line in found.lines)
    assert any("the step before" in line for line in found.lines) or what == "input"


def test_steps_that_are_too_large_are_found(training):
    found, done = nan_hunt.hunt([*training, "--lr", "1e30", "--warmup-steps", "0"], steps=20)
    assert found is not None and done < 20
    assert found.what == "input"  # every module's output was finite, and their sum was not
    assert "made between modules: input[0]" in found.name
    assert "NaN" in str(found) or "infinite" in str(found)


def test_the_gradients_way_back_is_told(training):
    found, _ = nan_hunt.hunt(training, steps=2, poison="gradient:target_head.layers.0.weight")
    assert found is not None and "the last finite one on the way back: " in found.name
    assert "target_head" in found.name.partition("way back: ")[2]


def test_a_place_that_is_none_is_refused(training):
    with pytest.raises(DataError, match="--poison nowhere: no weight or module"):
        nan_hunt.hunt(training, steps=1, poison="nowhere")


def test_a_run_directory_says_how_it_was_trained(training, tmp_path: Path):
    config = config_of([*training, "--lr", "0.0123"])
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert config_of([str(tmp_path)]).optim.lr == 0.0123
    assert config_of([str(tmp_path / "config.json"), "--lr", "0.5"]).optim.lr == 0.5
    with pytest.raises(DataError, match="neither a run directory"):
        config_of([str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="asks for several runs"):
        config_of([*training, "--folds", "2"])
    with pytest.raises(DataError, match="No such option '--tabel'"):
        config_of([*training, "--tabel", "t.biom"])
    with pytest.raises(DataError, match="--metadata-column is missing"):
        config_of(["train", "--table", "t.biom"])
    assert not list(tmp_path.rglob("aam.log"))


def test_it_prints_and_says_by_its_exit_code(training, monkeypatch, capsys):
    for extra, code, text in (
        ([], 0, "everything was finite in 1 steps"),
        (["--poison", "counts"], 1, "step 1: input of"),
    ):
        monkeypatch.setattr(sys, "argv", ["nan_hunt.py", "--steps", "1", *extra, "--", *training])
        with pytest.raises(SystemExit) as stop:
            nan_hunt.main()
        assert int(stop.value.code) == code
        assert text in capsys.readouterr().out


def test_weights_are_those_that_the_run_would_have(training):
    one, other = (ready(config_of(training)).trainer.task.model.state_dict() for _ in range(2))
    assert all(one[name].equal(other[name]) for name in one)
