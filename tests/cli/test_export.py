"""`aam export`: the same answers from ONNX Runtime as from PyTorch, for every task."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

from aam.config import TrainConfig
from aam.data.batch import Batch
from aam.data.biom_loader import load_table
from aam.data.dataset import BatchKey
from aam.data.targets import ClassTarget, NumericTarget, SeveralTargets, Target, parts_of
from aam.integrations.onnx_graph import ARRAYS, HEADER, READING, _decoded
from aam.models.base_targets import base_target
from aam.models.covariates import CovariateFusion
from aam.models.sequence_encoder import SequenceEncoder
from aam.networks import TorchNetworks, is_onnx, open_networks
from aam.training.checkpoint import build_model, load_model_file, read_base_targets, save_model_file
from aam.training.tasks import answers_of
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
    options = [
        "--loss",
        "quantile",
        "--target-transform",
        "log-zscore",
        "--target-max",
        30,
        "--count-embedding",
        "film",
    ]
    options += ["--cal-size", 0.4, "--test-size", 0.2, "--categorical-columns", "group", "--fusion", "concat"]
    return train(study, path, "--metadata-column", "age", *options)


@pytest.fixture(scope="module")
def said(study: StudyFiles, number: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file that was checked on the table, alone in its folder, and what was printed of it."""
    output = tmp_path_factory.mktemp("exported") / "number.onnx"
    checked = (
        "--table",
        study.table,
        "--metadata",
        study.metadata,
        "--batch-size",
        7,
        "--benchmark",
        "--num-workers",
        0,
        "--threads",
        1,
    )
    return output, succeed("export", "--model", number, "--output", output, *checked).out


@pytest.fixture(scope="module")
def exported(said: tuple[Path, str]) -> Path:
    return said[0]


@pytest.fixture(scope="module")
def ensemble(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folds and seeds, each with covariates, reads and a classical model of its own."""
    options = ["--metadata-column", "age", "--folds", 2, "--seeds", 2, "--join", "linear", "--rarefy-depth", 150]
    options += ["--categorical-columns", "group", "--numeric-columns", "storage_days", "--fusion", "cross-attention"]
    options += ["--distance-head", "clade"]
    return train(study, tmp_path_factory.mktemp("runs") / "ensemble", *options)


def export(run: Path, output: Path, *options: object) -> Path:
    succeed("export", "--model", run, "--output", output, "--threads", 1, *options)
    return output


def predict(model: Path, study: StudyFiles, output: Path, *options: object) -> tuple[pd.DataFrame, str]:
    files = ["--table", study.table, "--metadata", study.metadata, "--num-workers", 0, "--threads", 1]
    done = succeed("predict", "--model", model, *files, "--output", output, *options)
    return read_predictions(output), done.out.replace(str(output), "OUTPUT") + done.err


def assert_same_predictions(run: Path, model: Path, study: StudyFiles, folder: Path, *options: object) -> pd.DataFrame:
    """Tables and what is said, from both, save for what the run directory knows: which samples were learnt from."""
    expected, said = predict(run, study, folder / "torch.tsv", *options)
    found, said_of_onnx = predict(model, study, folder / "onnx.tsv", *options)
    assert said_of_onnx.splitlines() == [line for line in said.splitlines() if "the model has learnt from" not in line]
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
        groups = pd.read_csv(study.metadata, sep="\t", index_col="sample_id")["group"][table.sample_ids]
        said = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
        (known,) = json.loads(said[READING])["covariates"]["categorical"]  # of the training samples
        places = {name: place for place, name in enumerate(known["categories"], 1)}
        inputs["categories"] = np.array([[places.get(group, 0)] for group in groups])
        found = run_graph(exported, inputs)["prediction"][:, 1]  # the median
        expected, _ = predict(exported, study, tmp_path / "p.tsv")
        np.testing.assert_allclose(found, expected["predicted"][table.sample_ids], rtol=1e-4)

    def test_answers_that_differ_write_nothing(
        self, number: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a tolerance that rounding is beyond."""
        monkeypatch.setattr("aam.export.TOLERANCE", 0.0)
        outcome = aam("export", "--model", number, "--output", tmp_path / "m.onnx")
        assert_one_line_error(outcome, 1, tmp_path / "m.onnx", "not written", "differ in prediction")
        assert not list(tmp_path.iterdir())

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


@pytest.mark.slow
def test_several_columns_of_classes(study: StudyFiles, tmp_path: Path) -> None:
    """With what `number` and `ensemble` have not, and as networks were before there were means by abundance."""
    metadata = pd.read_csv(study.metadata, sep="\t", index_col="sample_id")
    metadata["late"] = np.where(metadata["storage_days"] > metadata["storage_days"].median(), "yes", "no")
    metadata.to_csv(tmp_path / "metadata.tsv", sep="\t")
    options = ["--metadata-column", "group", "--metadata-column", "late", "--classifier", "--no-abundance-pooling"]
    options += ["--head-width", 8, "--head-width", 4, "--distance-head", "euclidean", "--count-embedding", "none"]
    options += ["--numeric-columns", "storage_days", "--fusion", "gmu", "--token-limit", 9]
    run = train(study, tmp_path / "run", *options, "--metadata", tmp_path / "metadata.tsv")
    model = export(run, tmp_path / "m.onnx", "--opset", 20)
    assert 20 in {entry.version for entry in onnx.load(model).opset_import if not entry.domain}
    table = assert_same_predictions(run, model, study, tmp_path)
    assert {"group_prob_child", "late_prob_yes"} <= set(table)


NUMBERS = (
    NumericTarget("a", "zscore", 3.0, 2.0),
    NumericTarget("b", "log-minmax", 0.5, 3.0, (0.1, 0.5, 0.9), lower=0.0, upper=20.0),
)


@pytest.mark.parametrize(
    "target", [*NUMBERS, ClassTarget("c", ("x", "y", "z")), SeveralTargets(NUMBERS)], ids=lambda target: target.column
)
def test_answers_are_those_of_predict(target: Target | SeveralTargets) -> None:
    """Each kind of target, and several columns of numbers, in operations of a graph."""
    output = torch.randn(50, target.outputs, generator=torch.Generator().manual_seed(0)) * 2
    parts = [part.target for part in parts_of(target) for _ in range(part.target.outputs)]
    scale, shift = (torch.tensor([getattr(part, name, 1.0) for part in parts]) for name in ("scale", "shift"))
    found = _decoded(target, output, scale, shift)
    np.testing.assert_allclose(found.numpy(), answers_of(target, output.numpy()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["concat", "add", "gmu", "cross-attention"])
def test_every_fusion(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fusion = CovariateFusion(16, 2, [3, 2], 2, kind).eval()
    given = torch.randn(5, 16), torch.randint(0, 3, (5, 2)), torch.randn(5, 2)
    given[2][1, 0] = torch.nan
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(fusion, given, dynamo=True, optimize=False, verbose=False)
        expected = fusion(*given)
    assert program is not None
    program.save(tmp_path / "m.onnx")
    names = [each.name for each in onnx.load(tmp_path / "m.onnx").graph.input]
    (found,) = run_graph(tmp_path / "m.onnx", dict(zip(names, (part.numpy() for part in given), strict=True))).values()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
class TestEnsembles:
    def test_one_graph_for_all(self, study: StudyFiles, ensemble: Path, tmp_path: Path) -> None:
        files = ("--table", study.table, "--metadata", study.metadata, "--num-workers", 0, "--threads", 1)
        model = ("--model", ensemble, "--output", tmp_path / "m.onnx", "--opset", 19)
        said = succeed("export", *model, *files).out
        assert "4 models in one graph, opset 19" in said and "joined linear" in said
        graph = onnx.load(tmp_path / "m.onnx").graph
        assert {each.name for each in graph.input} >= {"categories_0", "numbers_3"}
        assert [each.name for each in graph.output] == ["prediction", "embedding", *(f"output_{i}" for i in range(4))]
        assert_same_predictions(ensemble, tmp_path / "m.onnx", study, tmp_path, "--interval", 0.6)
        assert "the mean of 4 models" in succeed("info", tmp_path / "m.onnx").out


BASE_TARGETS = ["unifrac", "weighted_unifrac", "generalized_unifrac", "aitchison", "faith_pd", "taxonomy"]


def test_encoders(unequal_study: TinyStudy, study: StudyFiles, tmp_path: Path) -> None:
    """A run of `aam pretrain` with heads for every base target, of which all but one have learnt nothing.

    On samples of lengths and numbers that the example has not.
    """
    succeed(*study.pretrain, "--epochs", 1, "--count-embedding", "concat", "--output-dir", tmp_path / "run")
    file = load_model_file(tmp_path / "run" / "best_model.safetensors")
    assert [target.name for target in read_base_targets(file.header, tmp_path)] == ["unifrac"]
    targets = [base_target(name, parts=("A", "B", "C"), alpha=0.3) for name in BASE_TARGETS]
    torch.manual_seed(0)
    encoder = build_model(file.config.model, None, targets).eval()
    assert isinstance(encoder, SequenceEncoder)
    left_out = encoder.load_state_dict(file.weights, strict=False)
    assert not left_out.unexpected_keys and all(name.startswith("target_heads") for name in left_out.missing_keys)
    header = file.header | {"base_targets": [target.to_dict() for target in targets]}
    save_model_file(tmp_path / "encoder.safetensors", encoder, file.config, header)
    output, table = tmp_path / "m.onnx", ("--table", study.table, "--num-workers", 0)
    said = succeed("export", "--model", tmp_path / "encoder.safetensors", "--output", output, "--opset", 20, *table).out
    assert "unifrac_clade" in said and "unifrac_euclidean" in said
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
    assert "pretrain: distances" in succeed("info", output).out
    outcome = aam("predict", "--model", output, "--table", study.table, "--output", tmp_path / "p")
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
