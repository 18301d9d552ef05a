from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from aam.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TaskConfig, TrainConfig
from aam.data.dataset import BatchKey
from aam.errors import DataError
from aam.training.checkpoint import (
    FORMAT_VERSION,
    MODEL_NAME,
    ModelFile,
    build_model,
    load_checkpoint,
    load_model_file,
    load_weights,
    model_path,
    read_header,
    save_checkpoint,
    save_model_file,
)
from aam.training.ensemble import Member, load_ensemble, save_ensemble
from tests.conftest import MAX_BP, TinyStudy

ON_DISK = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def config(**model: object) -> RunConfig:
    options = {
        "embedding_dim": 12,
        "attention_heads": 3,
        "attention_layers": 1,
        "feed_forward_factor": 2,
        "dropout": 0.3,
        "max_bp": MAX_BP,
        "count_embedding": "film",
        "distance_head": "both",
        "clades": 7,
        "gradient_checkpointing": True,
        "asv_chunk_size": 4,
    }
    return RunConfig(
        command="train",
        data=DataConfig(table=Path("t.biom"), metadata=Path("m.tsv"), metadata_column="âge", rarefy_depth=5),
        model=ModelConfig(**(options | model)),
        task=TaskConfig(target_transform="log-minmax", loss="mae", nuc_mask_strategy="span"),
        optim=OptimConfig(lr=0.123, accumulation_steps=3),
        train=TrainConfig(output_dir=Path("run"), seed=2**31, mixed_precision="bf16"),
    )


@pytest.mark.parametrize("count_embedding", ["add", "concat", "film", "none"])
@pytest.mark.parametrize("distance_head", ["both", "clade", "euclidean"])
def test_model_file_round_trip(count_embedding, distance_head, unequal_study: TinyStudy, tmp_path):
    saved = config(count_embedding=count_embedding, distance_head=distance_head)
    torch.manual_seed(1)
    model = build_model(saved.model, outputs=2).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.encoder.sample_encoder.abundance.buffers()):
            tensor += 0.1 * torch.rand_like(tensor)
    model.encoder.asv_encoder.set_reference(torch.from_numpy(unequal_study.tokens[:3, 1:]))
    header = {"target": {"kind": "numeric", "shift": 0.1 + 0.2}, "metrics": {"val": {"r2": 1 / 3}}}
    save_model_file(tmp_path / MODEL_NAME, model, saved, header)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_NAME]

    with pytest.raises(DataError, match="has not ended"):
        model_path(tmp_path)
    found = load_model_file(model_path(tmp_path, finished=False))
    assert found.config == saved
    assert found.header == header | {"format_version": FORMAT_VERSION}
    torch.manual_seed(2)
    other = build_model(found.config.model, outputs=2).eval()
    batch = unequal_study.dataset()[BatchKey(0, (0, 2, 1))]
    assert not torch.equal(other(batch).target, model(batch).target)
    other.load_state_dict(found.weights)
    assert torch.equal(other(batch).target, model(batch).target)
    assert torch.equal(other(batch).encoded.embedding, model(batch).encoded.embedding)
    assert model_path(tmp_path / MODEL_NAME) == tmp_path / MODEL_NAME


def write_model(path: Path) -> bytes:
    saved = config(embedding_dim=4, attention_heads=1, feed_forward_factor=1, clades=2)
    save_model_file(path, build_model(saved.model, None), saved, {})
    return path.read_bytes()


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_files_that_are_no_model_are_refused(tmp_path):
    path = tmp_path / "model"
    whole = write_model(path)
    contents = [b"", b"\0" * 8, whole[:5], whole[:200], whole[:-1], whole[: len(whole) // 2], whole + b"x"]
    contents += [np.random.default_rng(0).bytes(3000), pickle.dumps({"a": 1}), b"{" * 100_000]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a model file|damaged"):
            load_model_file(path)
    path.write_bytes(pickle.dumps(Bomb(f"touch {tmp_path}/executed")))
    with pytest.raises(DataError):
        load_model_file(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "[1]",
        "null",
        "{}",
        '{"format_version": "1"}',
        '{"format_version": 1}',
        '{"format_version": 1, "config": {"command": "train"}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_headers_that_are_not_ours_are_refused(header, tmp_path):
    path = tmp_path / "model"
    save_file({"a": torch.zeros(2)}, path, metadata=None if header is None else {"aam": header})
    with pytest.raises(DataError, match="not a model file of AAM"):
        read_header(path)


def test_models_from_before_means_weighted_by_abundance(tmp_path):
    saved = config(abundance_pooling=False)
    model = build_model(saved.model, outputs=2)
    save_model_file(tmp_path / MODEL_NAME, model, saved, {})
    tensors = load_file(tmp_path / MODEL_NAME)
    header = {"format_version": 1, "config": saved.model_dump(mode="json")}
    del header["config"]["model"]["abundance_pooling"]
    save_file(tensors, tmp_path / "old", metadata={"aam": json.dumps(header)})
    found = load_model_file(tmp_path / "old")
    load_weights(build_model(found.config.model, outputs=2), found.weights, tmp_path / "old")
    assert found.config == saved


def test_ensembles_from_before_means_weighted_by_abundance(tmp_path):
    saved = config(abundance_pooling=False)
    model = build_model(saved.model, outputs=2)
    members = []
    for fold in range(2):
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        members.append(Member(f"fold_{fold}", fold, ModelFile(saved, {}, weights, {})))
    save_ensemble(tmp_path / MODEL_NAME, members, saved, {}, {})
    header = read_header(tmp_path / MODEL_NAME)
    for known in (header, *header["members"]):
        del known["config"]["model"]["abundance_pooling"]
    save_file(load_file(tmp_path / MODEL_NAME), tmp_path / "old", metadata={"aam": json.dumps(header)})
    for member in load_ensemble(tmp_path / "old").members:
        load_weights(build_model(member.file.config.model, outputs=2), member.file.weights, tmp_path / "old")
        assert member.file.config == saved


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "model"
    header = {"format_version": FORMAT_VERSION + 1, "config": {"from": "the future"}}
    save_file({"a": torch.zeros(2)}, path, metadata={"aam": json.dumps(header)})
    with pytest.raises(DataError, match="newer than this AAM reads"):
        load_model_file(path)


def test_model_path_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"holds no {MODEL_NAME}"):
        model_path(tmp_path)
    with pytest.raises(DataError, match="no such run"):
        model_path(tmp_path / "nowhere")


def test_a_directory_of_several_runs_says_how_far_they_are(tmp_path):
    for name in ("fold_0", "fold_1"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"none has ended yet; continue .* --resume$"):
        model_path(tmp_path)
    for name in ("metrics.json", MODEL_NAME):
        (tmp_path / "fold_1" / name).touch()
    with pytest.raises(DataError, match=r"1 of those begun have ended.* with --resume, or give .*fold_1 say"):
        model_path(tmp_path)
    (tmp_path / "metrics.json").touch()  # of pre-training
    with pytest.raises(DataError, match=r"no model of them all; give one of them, .*fold_0 say"):
        model_path(tmp_path)


# --------------------------------------------------------------------------------------------------------- checkpoint

STATE = {
    "trainer": {"model": {"w": torch.arange(6.0).view(2, 3)}, "state": {"history": [{"a": 0.5}], "stop": False}},
    "config": {"lr": None, "name": "x"},
}


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    torch.load(path, weights_only=True)
    found = load_checkpoint(path)
    assert torch.equal(found["trainer"]["model"]["w"], STATE["trainer"]["model"]["w"])
    assert found["trainer"]["state"] == STATE["trainer"]["state"] and found["config"] == STATE["config"]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(DataError, match="nothing to resume"):
        load_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_does_not_go_off(zipped, tmp_path):
    path = tmp_path / "last.ckpt"
    bomb = Bomb(f"touch {tmp_path}/executed")
    torch.save({"trainer": bomb, "config": {}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="not a checkpoint of AAM"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(DataError, match="not a checkpoint of AAM"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {"a": 1}, [1, 2], {"trainer": {}}, 5], ids=str)
def test_checkpoints_of_other_programs_are_refused(content, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.raises(DataError, match="not a checkpoint of AAM"):
        load_checkpoint(path)


@ON_DISK
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_read(data, tmp_path):
    path = tmp_path / "last.ckpt"
    zipped = data.draw(st.booleans())
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DataError):
        load_checkpoint(path)


@ON_DISK
@given(data=st.data())
def test_damaged_model_files_are_refused_or_read(data, tmp_path):
    path = tmp_path / "model"
    content = bytearray(write_model(path))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 4000)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DataError):
        load_model_file(path)
