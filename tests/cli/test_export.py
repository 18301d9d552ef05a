"""`aam export`: the same answers from ONNX Runtime as from PyTorch, for every task."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

from aam.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from aam.data.batch import Batch
from aam.data.biom_loader import load_table
from aam.data.dataset import BatchKey
from aam.integrations.onnx_graph import ARRAYS, HEADER, READING
from aam.models.base_targets import base_target
from aam.models.sequence_encoder import SequenceEncoder
from aam.networks import TorchNetworks, is_onnx, open_networks
from aam.training.checkpoint import build_model, load_model_file, read_base_targets, save_model_file
from tests.conftest import TinyStudy
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    files_below,
    read_predictions,
    simulate,
    succeed,
)

ONE_EPOCH = ["--epochs", 1, "--group-column", "subject_id"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


def train(study: StudyFiles, path: Path, *options: object) -> Path:
    succeed(*study.train, *ONE_EPOCH, *options, "--output-dir", path)
    return path


@pytest.fixture(scope="module")
def number(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "number"
    return train(study, path, "--metadata-column", "age", "--cal-size", 0.4, "--test-size", 0.2)


@pytest.fixture(scope="module")
def said(study: StudyFiles, number: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file that was checked on the table, alone in its folder, and what was printed of it."""
    output = tmp_path_factory.mktemp("exported") / "number.onnx"
    checked = ("--table", study.table, "--batch-size", 7, "--benchmark", "--num-workers", 0, "--threads", 1)
    return output, succeed("export", "--model", number, "--output", output, *checked).out


@pytest.fixture(scope="module")
def exported(said: tuple[Path, str]) -> Path:
    return said[0]


@pytest.fixture(scope="module")
def ensemble(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folds and seeds, each with covariates, reads and a classical model of its own."""
    options = ["--metadata-column", "age", "--folds", 2, "--seeds", 2, "--join", "linear", "--rarefy-depth", 150]
    options += ["--categorical-columns", "group", "--numeric-columns", "storage_days", "--fusion", "cross-attention"]
    return train(study, tmp_path_factory.mktemp("runs") / "ensemble", *options)


def export(run: Path, output: Path, *options: object) -> Path:
    succeed("export", "--model", run, "--output", output, "--threads", 1, *options)
    return output


def predict(model: Path, study: StudyFiles, output: Path, *options: object) -> tuple[pd.DataFrame, str]:
    files = ["--table", study.table, "--metadata", study.metadata, "--num-workers", 0, "--threads", 1]
    done = succeed("predict", "--model", model, *files, "--output", output, *options)
    return read_predictions(output), done.out.replace(str(output), "OUTPUT") + done.err


def assert_same_predictions(run: Path, model: Path, study: StudyFiles, folder: Path, *options: object) -> pd.DataFrame:
    """Tables and what is said, from both."""
    expected, said = predict(run, study, folder / "torch.tsv", *options)
    found, said_of_onnx = predict(model, study, folder / "onnx.tsv", *options)
    assert said_of_onnx == said
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-5, check_exact=False)
    return found


def graph_inputs(batch: Batch) -> dict[str, np.ndarray]:
    return {
        "tokens": batch.tokens.numpy().astype(np.int64),
        "asv_index": batch.asv_index.numpy(),
        "counts": batch.counts.numpy(),
        "depth": batch.depth.numpy(),
    }


def run_graph(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


class TestNumbers:
    def test_predictions_are_the_same(self, study: StudyFiles, number: Path, exported: Path, tmp_path: Path) -> None:
        table = assert_same_predictions(number, exported, study, tmp_path, "--interval", 0.6)
        assert {"actual", "predicted", "lower", "upper"} <= set(table)
        assert table["predicted"].std() > 0

    def test_familiarity_is_carried(self, study: StudyFiles, number: Path, exported: Path, tmp_path: Path) -> None:
        tables = []
        for name, model in (("torch", number), ("onnx", exported)):
            predict(model, study, tmp_path / "p.tsv", "--familiarity", tmp_path / f"{name}.tsv")
            tables.append(pd.read_csv(tmp_path / f"{name}.tsv", sep="\t"))
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-3)  # of samples that were learnt from, a rounding

    def test_batches_of_any_size(self, study: StudyFiles, exported: Path, tmp_path: Path) -> None:
        whole, _ = predict(exported, study, tmp_path / "whole.tsv")
        single, _ = predict(exported, study, tmp_path / "single.tsv", "--batch-size", 1)
        np.testing.assert_allclose(single["predicted"], whole["predicted"], rtol=1e-4)

    def test_the_file_is_sound_and_says_how_to_read_samples(self, exported: Path, number: Path) -> None:
        onnx.checker.check_model(onnx.load(exported), full_check=True)
        said = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
        header = load_model_file(number / "best_model.safetensors").header
        assert json.loads(said[HEADER])["target"] == header["target"]
        reading = json.loads(said[READING])
        assert reading["target"] == header["target"] and reading["max_bp"] == 300 and reading["token_limit"] > 0
        for place in (number, Path(torch.__file__).parent):  # of the machine it was made on
            assert str(place).encode() not in exported.read_bytes().replace(said[HEADER].encode(), b"")

    def test_without_aam(self, study: StudyFiles, exported: Path, tmp_path: Path) -> None:
        """The table by hand: tokens, places, counts and depths."""
        table = load_table(study.table)
        counts = table.counts.toarray()
        letters = {"A": 1, "C": 2, "G": 3, "T": 4}
        tokens = np.array([[5, *(letters[base] for base in name)] for name in table.feature_ids])
        samples, asvs = counts.shape
        inputs = {
            "tokens": tokens,
            "asv_index": np.tile(np.arange(asvs), (samples, 1)),  # all ASVs, those that a sample lacks with 0 reads
            "counts": counts.astype(np.float32),
            "depth": counts.sum(axis=1).astype(np.float32),
        }
        found = run_graph(exported, inputs)["prediction"][:, 0]
        expected, _ = predict(exported, study, tmp_path / "p.tsv")
        np.testing.assert_allclose(found, expected["predicted"][table.sample_ids], rtol=1e-4)

    def test_what_is_printed(self, said: tuple[Path, str]) -> None:
        output, text = said
        assert "1 model, opset 18" in text and "24 samples in 4 batches" in text
        assert "PyTorch, ms" in text and "32 samples" in text
        assert files_below(output.parent) == {"number.onnx"}
        opsets = [(entry.domain, entry.version) for entry in onnx.load(output).opset_import]
        assert ("", 18) in opsets

    def test_info(self, exported: Path) -> None:
        said = succeed("info", exported).out
        assert "train: age, a number" in said and "ONNX, opset 18" in said and "embedding_dim=16" in said


# Losses, heads, ways of joining abundances and covariates, and base heads, each somewhere; `ensemble` has the rest.
TASKS = {
    "quantiles": [
        *("--metadata-column", "age", "--loss", "quantile", "--target-transform", "log-zscore", "--target-max", 30),
        *("--count-embedding", "film", "--categorical-columns", "group", "--fusion", "concat"),
    ],
    "classes": [
        *(
            "--metadata-column",
            "group",
            "--classifier",
            "--head-width",
            8,
            "--head-width",
            4,
            "--distance-head",
            "clade",
        ),
        *("--count-embedding", "none", "--numeric-columns", "storage_days", "--fusion", "gmu"),
    ],
    "columns": [
        *("--metadata-column", "age", "--metadata-column", "storage_days", "--distance-head", "euclidean"),
        *("--count-embedding", "concat", "--categorical-columns", "group", "--fusion", "add", "--token-limit", 9),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, study: StudyFiles, tmp_path: Path) -> None:
    run = train(study, tmp_path / "run", *TASKS[task])
    opset = {"quantiles": 18, "classes": 20, "columns": 19}[task]
    model = export(run, tmp_path / "m.onnx", "--opset", opset)
    assert opset in {entry.version for entry in onnx.load(model).opset_import if not entry.domain}
    assert_same_predictions(run, model, study, tmp_path)


@pytest.mark.slow
class TestEnsembles:
    def test_one_graph_for_all(self, study: StudyFiles, ensemble: Path, tmp_path: Path) -> None:
        files = ("--table", study.table, "--metadata", study.metadata, "--num-workers", 0, "--threads", 1)
        said = succeed("export", "--model", ensemble, "--output", tmp_path / "m.onnx", *files).out
        assert "4 models in one graph" in said and "joined linear" in said
        graph = onnx.load(tmp_path / "m.onnx").graph
        assert {each.name for each in graph.input} >= {"categories_0", "numbers_3"}
        assert [each.name for each in graph.output] == ["prediction", "embedding", *(f"output_{i}" for i in range(4))]
        assert_same_predictions(ensemble, tmp_path / "m.onnx", study, tmp_path, "--interval", 0.6)
        assert "the mean of 4 models" in succeed("info", tmp_path / "m.onnx").out


BASE_TARGETS = ["unifrac", "weighted_unifrac", "generalized_unifrac", "aitchison", "faith_pd", "taxonomy"]


class TestEncoders:
    def test_every_base_target(self, unequal_study: TinyStudy, study: StudyFiles, tmp_path: Path) -> None:
        """Readings of a network that has learnt nothing, on samples of lengths and numbers that the example has not."""
        targets = [base_target(name, parts=("A", "B", "C"), alpha=0.3) for name in BASE_TARGETS]
        torch.manual_seed(0)
        config = RunConfig(
            command="pretrain",
            data=DataConfig(table=study.table, unifrac_matrix=study.matrix),
            model=ModelConfig(embedding_dim=16, attention_heads=2, attention_layers=1, clades=8, max_bp=20),
            train=TrainConfig(output_dir=tmp_path),
        )
        encoder = build_model(config.model, None, targets).eval()
        assert isinstance(encoder, SequenceEncoder)
        header = {"base_targets": [target.to_dict() for target in targets]}
        save_model_file(tmp_path / "encoder.safetensors", encoder, config, header)
        output = export(tmp_path / "encoder.safetensors", tmp_path / "m.onnx", "--opset", 20)
        dataset = unequal_study.dataset()
        for rows in ([0], [3, 1], [0, 1, 2, 3, 4]):
            batch = dataset[BatchKey(0, np.array(rows))]
            found = run_graph(output, graph_inputs(batch))
            with torch.no_grad():
                encoded = encoder(batch)
                expected = {"embedding": encoded.embedding}
                for target in encoder.targets.values():
                    for name, reading in encoder.read(target, encoded.summary).items():
                        shares = target.kind == "composition"
                        expected[f"{target.name}_{name}"] = reading.exp() if shares else reading
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)

    def test_a_pretrained_run(self, study: StudyFiles, tmp_path: Path) -> None:
        succeed(*study.pretrain, "--epochs", 1, "--output-dir", tmp_path / "run")
        said = succeed("export", "--model", tmp_path / "run", "--output", tmp_path / "m.onnx", "--table", study.table)
        assert "unifrac_clade" in said.out and "unifrac_euclidean" in said.out
        targets = read_base_targets(load_model_file(tmp_path / "run" / "best_model.safetensors").header, tmp_path)
        assert [target.name for target in targets] == ["unifrac"]
        assert "pretrain: distances" in succeed("info", tmp_path / "m.onnx").out
        outcome = aam("predict", "--model", tmp_path / "m.onnx", "--table", study.table, "--output", tmp_path / "p")
        assert_one_line_error(outcome, 1, "predicts no column")


class TestRefusals:
    def test_foreign_and_damaged_files(self, study: StudyFiles, exported: Path, tmp_path: Path) -> None:
        def refuse(model: Path, *words: str) -> None:
            for command in ("predict", "info"):
                files = ["--model", model, "--table", study.table, "--output", tmp_path / "p.tsv"]
                outcome = aam(command, *(files if command == "predict" else [model]))
                assert_one_line_error(outcome, 1, model, *words)

        content = exported.read_bytes()
        for name, damaged in (
            ("empty", b""),
            ("cut", content[: len(content) // 2]),
            ("noise", bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))),
            ("text", b"{}"),
        ):
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(damaged)
            refuse(path, "ONNX")
        foreign = onnx.load(exported)
        del foreign.metadata_props[:]
        onnx.save(foreign, tmp_path / "foreign.onnx")
        refuse(tmp_path / "foreign.onnx", "none of AAM")
        for key, value, words in (
            (HEADER, "{", "not a model file"),
            (HEADER, '{"format_version": 99}', "newer"),
            (ARRAYS, "?", "damaged"),
            (ARRAYS, "AAAA", "damaged"),
        ):
            changed = onnx.load(exported)
            next(entry for entry in changed.metadata_props if entry.key == key).value = value
            onnx.save(changed, tmp_path / "changed.onnx")
            refuse(tmp_path / "changed.onnx", words)
        renamed = onnx.load(exported)
        for node in renamed.graph.node:
            node.output[:] = ["other" if name == "output" else name for name in node.output]
            node.input[:] = ["other" if name == "output" else name for name in node.input]
        next(each for each in renamed.graph.output if each.name == "output").name = "other"
        onnx.save(renamed, tmp_path / "renamed.onnx")
        outcome = aam(
            "predict", "--model", tmp_path / "renamed.onnx", "--table", study.table, "--output", tmp_path / "p"
        )
        assert_one_line_error(outcome, 1, "renamed.onnx", "damaged")

    def test_it_is_known_by_its_content(self, exported: Path, number: Path, tmp_path: Path) -> None:
        other = Path(shutil.copy(exported, tmp_path / "model"))
        assert is_onnx(other) and not is_onnx(number / "best_model.safetensors")

    def test_answers_that_differ_write_nothing(
        self, number: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a tolerance that rounding is beyond."""
        monkeypatch.setattr("aam.export.TOLERANCE", 0.0)
        outcome = aam("export", "--model", number, "--output", tmp_path / "m.onnx")
        assert_one_line_error(outcome, 1, tmp_path / "m.onnx", "not written", "differ in prediction")
        assert not list(tmp_path.iterdir())

    def test_what_cannot_be_written(self, number: Path, study: StudyFiles, tmp_path: Path) -> None:
        def refuse(code: int, output: Path, *words: str, options: tuple[object, ...] = ()) -> None:
            outcome = aam("export", "--model", number, "--output", output, *options)
            assert_one_line_error(outcome, code, *words)

        refuse(1, tmp_path / "absent" / "m.onnx", "cannot be written")
        refuse(1, study.table, "is an input", options=("--table", study.table))
        refuse(2, tmp_path / "m.onnx", "--table", options=("--metadata", study.metadata))
        refuse(2, tmp_path / "m.onnx", "--opset", options=("--opset", 12))
        assert_one_line_error(aam("export", "--model", tmp_path, "--output", tmp_path / "m.onnx"), 1, tmp_path)

    @pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
    def test_a_missing_package(
        self, package: str, number: Path, exported: Path, study: StudyFiles, tmp_path: Path, monkeypatch: Any
    ) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name))
        outcome = aam("export", "--model", number, "--output", tmp_path / "m.onnx")
        assert_one_line_error(outcome, 1, package, "pip install 'aam[onnx]'")
        if package == "onnxruntime":
            outcome = aam("predict", "--model", exported, "--table", study.table, "--output", tmp_path / "p.tsv")
            assert_one_line_error(outcome, 1, package, "pip install 'aam[onnx]'")


def test_predictions_take_no_network_of_torch(
    study: StudyFiles, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was called")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    table, _ = predict(exported, study, tmp_path / "p.tsv")
    assert len(table) == 24


def test_both_are_networks(number: Path, exported: Path) -> None:
    settings = TrainConfig(output_dir=Path(), device="cpu")
    torch_networks = open_networks(number / "best_model.safetensors", settings)
    onnx_networks = open_networks(exported, settings)
    assert isinstance(torch_networks, TorchNetworks) and not isinstance(onnx_networks, TorchNetworks)
    assert onnx_networks.ensemble.header == torch_networks.ensemble.header
    one, other = (networks.ensemble.beside for networks in (torch_networks, onnx_networks))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert len(onnx_networks.ensemble.members) == 1
