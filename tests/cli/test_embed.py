"""`aam embed`: what other programs are given of a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from aam.data.biom_loader import load_table
from aam.training.checkpoint import load_model_file
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    permute,
    read_predictions,
    simulate,
    succeed,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def encoder(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "encoder"
    succeed(*study.pretrain, "--epochs", 1, "--output-dir", run)
    return run


@pytest.fixture(scope="module")
def trained(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    succeed(*study.train, "--metadata-column", "age", "--epochs", 1, "--output-dir", run)
    return run


def embed(model: Path, study: StudyFiles, *options: object) -> list[object]:
    return ["embed", "--model", model, "--table", study.table, "--threads", 1, "--num-workers", 0, *options]


@pytest.mark.parametrize("kind", ["encoder", "trained"])
def test_samples_and_asvs(kind: str, study: StudyFiles, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    table = load_table(study.table)
    out = succeed(*embed(model, study, "--output", tmp_path / "s.tsv", "--asvs", tmp_path / "a.tsv")).out
    assert "24 samples and 30 ASVs in 16 dimensions" in out
    samples = pd.read_csv(tmp_path / "s.tsv", sep="\t", index_col="sample_id")
    asvs = pd.read_csv(tmp_path / "a.tsv", sep="\t", index_col="sequence")
    assert list(samples.index) == table.sample_ids and list(asvs.index) == table.feature_ids
    assert samples.shape == (24, 16) and asvs.shape == (30, 16)
    assert np.isfinite(samples).all(axis=None) and samples.std().min() > 0
    succeed(*embed(model, study, "--output", tmp_path / "s.npz", "--batch-size", 5))
    with np.load(tmp_path / "s.npz") as stored:
        assert stored["sample_ids"].tolist() == table.sample_ids
        np.testing.assert_allclose(stored["samples"], samples.to_numpy(), atol=1e-5)
        np.testing.assert_allclose(stored["asvs"], asvs.to_numpy(), atol=1e-5)


def test_they_are_what_predictions_are_made_of(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    """The target head, by hand, on the embeddings of the samples."""
    succeed(*embed(trained, study, "--output", tmp_path / "s.tsv"))
    predicted = tmp_path / "p.tsv"
    succeed("predict", "--model", trained, "--table", study.table, "--output", predicted)
    samples = torch.from_numpy(pd.read_csv(tmp_path / "s.tsv", sep="\t", index_col=0).to_numpy(dtype=np.float32))
    weights = load_file(trained / "best_model.safetensors")
    layer = {name.removeprefix("target_head.layers."): value for name, value in weights.items()}
    hidden = torch.nn.functional.gelu(samples @ layer["0.weight"].T + layer["0.bias"])
    output = (hidden @ layer["3.weight"].T + layer["3.bias"]).numpy()[:, 0]
    target = load_model_file(trained / "best_model.safetensors").header["target"]
    expected = output * target["scale"] + target["shift"]
    np.testing.assert_allclose(read_predictions(predicted)["predicted"], expected, rtol=1e-4)


def test_the_order_of_the_table_does_not_matter(study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    other = permute(study, tmp_path / "other")
    for name, files in (("one", study), ("two", other)):
        succeed(*embed(encoder, files, "--output", tmp_path / f"{name}.tsv", "--asvs", tmp_path / f"{name}_asvs.tsv"))
    for suffix in ("", "_asvs"):
        one, two = (pd.read_csv(tmp_path / f"{name}{suffix}.tsv", sep="\t", index_col=0) for name in ("one", "two"))
        np.testing.assert_allclose(two.loc[one.index], one, atol=1e-5)


def test_an_ordination_that_scikit_bio_reads(study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    from skbio import OrdinationResults

    succeed(*embed(encoder, study, "--ordination", tmp_path / "o.txt", "--output", tmp_path / "s.tsv"))
    found = OrdinationResults.read(str(tmp_path / "o.txt"))
    samples = pd.read_csv(tmp_path / "s.tsv", sep="\t", index_col=0)
    reference = PCA(10).fit(samples)
    assert list(found.samples.index) == list(samples.index)
    np.testing.assert_allclose(np.abs(found.samples), np.abs(reference.transform(samples)), atol=1e-4)
    np.testing.assert_allclose(found.proportion_explained, reference.explained_variance_ratio_, atol=1e-4)
    np.testing.assert_allclose(found.eigvals, reference.explained_variance_ * 23, rtol=1e-3)


@pytest.mark.parametrize("options", [(), ("--color-column", "age"), ("--color-column", "group", "--layout", "tsne")])
def test_pictures(options: tuple[str, ...], study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    succeed(*embed(encoder, study, "--plot", tmp_path / "p.png", "--metadata", study.metadata, *options))
    with Image.open(tmp_path / "p.png") as image:
        assert image.size[0] > 800 and len(image.convert("RGB").getcolors(2**24)) > 50


def test_samples_of_which_metadata_say_nothing_are_told(study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    lines = study.metadata.read_text().splitlines(keepends=True)
    for file, content in (("few", lines[:-2]), ("others", [lines[0], *("x" + line for line in lines[1:])])):
        (tmp_path / file).write_text("".join(content))
    options = ("--output", tmp_path / "s.tsv", "--metadata")
    assert "has nothing of 2 of 24 samples" in succeed(*embed(encoder, study, *options, tmp_path / "few")).err
    assert "has nothing of 24 of 24 samples" in succeed(*embed(encoder, study, *options, tmp_path / "others")).err


@pytest.mark.skipif(importlib.util.find_spec("anndata") is None, reason="no anndata: pip install '.[h5ad]'")
def test_h5ad(study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    import anndata

    metadata = pd.read_csv(study.metadata, sep="\t")
    metadata["dose mg/kg"] = metadata["age"].mask(metadata.index == 2)
    metadata["site"] = np.where(metadata.index == 2, "", "gut")
    metadata["plate"] = "007"
    metadata.to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    options = ("--output", tmp_path / "s.h5ad", "--asvs", tmp_path / "a.h5ad", "--metadata", tmp_path / "m.tsv")
    succeed(*embed(encoder, study, *options))
    samples, asvs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "sa")
    table = load_table(study.table)
    assert list(samples.obs_names) == table.sample_ids and list(asvs.obs_names) == table.feature_ids
    assert samples.X.shape == (24, 16)
    expected = metadata.set_index("sample_id").loc[table.sample_ids]
    np.testing.assert_allclose(samples.obs["dose mg_kg"], expected["dose mg/kg"])
    np.testing.assert_allclose(samples.obs["age"], expected["age"])
    assert set(samples.obs["plate"]) == {"007"}
    assert samples.obs["site"].isna().sum() == 1 and list(samples.obs["site"].cat.categories) == ["gut"]


def test_what_is_refused(study: StudyFiles, encoder: Path, tmp_path: Path) -> None:
    assert_one_line_error(aam(*embed(encoder, study)), 2, "--output", "--ordination")
    output = tmp_path / "s.xlsx"
    assert_one_line_error(aam(*embed(encoder, study, "--output", output)), 1, output, ".tsv")
    assert_one_line_error(aam(*embed(encoder, study, "--output", study.table)), 1, study.table, "is an input")
    plot = ("--plot", tmp_path / "p.png", "--color-column", "age")
    assert_one_line_error(aam(*embed(encoder, study, *plot)), 2, "--color-column", "--metadata")
    unknown = ("--plot", tmp_path / "p.png", "--color-column", "agee", "--metadata", study.metadata)
    outcome = aam(*embed(encoder, study, *unknown))
    assert outcome.code == 1 and "age" in outcome.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_folds_have_spaces_of_their_own(study: StudyFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(*study.pretrain, "--folds", 2, "--epochs", 1, "--output-dir", run)
    outcome = aam(*embed(run, study, "--output", tmp_path / "s.tsv"))
    assert_one_line_error(outcome, 1, run, run / "fold_0")
    succeed(*embed(run / "fold_1", study, "--output", tmp_path / "s.tsv"))
