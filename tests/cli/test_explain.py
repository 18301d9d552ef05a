"""`aam explain`: what a user is given of the reasons of a model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from aam.data.biom_loader import FeatureTable, load_table
from tests.end_to_end.program import (
    StudyFiles,
    aam,
    assert_one_line_error,
    permute,
    read_predictions,
    simulate,
    succeed,
    write_table,
)

METHODS = ("integrated-gradients", "attention", "permutation")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def taxonomy(study: StudyFiles) -> Path:
    """The clades of the simulation as families, and in each two genera; some ASVs are named no further."""
    truth = pd.read_csv(study.folder / "truth.tsv", sep="\t")
    truth["Taxon"] = [
        f"k__Bacteria; p__P; c__C; o__O; f__{clade}; g__{'' if place % 5 == 0 else clade + 'ab'[place % 2]}"
        for place, clade in enumerate(truth["clade"])
    ]
    path = study.folder / "taxonomy.tsv"
    truth.rename(columns={"sequence": "Feature ID"})[["Feature ID", "Taxon"]].to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture(scope="module")
def trained(study: StudyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "age"
    succeed(*study.train, "--metadata-column", "age", "--output-dir", run)
    return run


def explain(model: Path, study: StudyFiles, output: Path, *options: object) -> list[object]:
    machine = ("--threads", 1, "--device", "cpu")
    return ["explain", "--model", model, "--table", study.table, "--output-dir", output, *machine, *options]


@pytest.fixture(scope="module")
def explained(
    study: StudyFiles, taxonomy: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("explained") / "age"
    options = ("--metadata", study.metadata, "--taxonomy", taxonomy, "--group-column", "subject_id", "--by", "family")
    return output, succeed(*explain(trained, study, output, *options, "--by", "asv")).out


def test_tables(study: StudyFiles, explained: tuple[Path, str]) -> None:
    output, printed = explained
    table = load_table(study.table)
    found = pd.read_csv(output / "importances.tsv", sep="\t")
    assert "24 samples and 30 ASVs" in printed
    assert list(dict.fromkeys(found["method"])) == list(METHODS)
    prevalence = dict(zip(table.feature_ids, (table.counts > 0).mean(axis=0), strict=True))
    for method, block in found.groupby("method"):
        assert sorted(block["feature_id"]) == sorted(table.feature_ids)
        assert (block["importance"].diff().dropna() <= 0).all()  # the highest first
        assert (block["low"] <= block["high"]).all() and (block["importance"] > 0).all()
        np.testing.assert_allclose(block["prevalence"], block["feature_id"].map(prevalence), rtol=1e-4)
        assert set(block["direction"]) <= ({0} if method == "attention" else {-1, 1})
        assert block["error_increase"].notna().all() == (method == "permutation")
        of_qiime = pd.read_csv(output / "qiime2" / f"{method}.tsv", sep="\t", index_col="feature-id")
        assert list(of_qiime.columns) == ["importance"]
        np.testing.assert_allclose(of_qiime.loc[block["feature_id"], "importance"], block["importance"], rtol=1e-4)


def test_what_is_explained_is_what_is_predicted(
    study: StudyFiles, trained: Path, explained: tuple[Path, str], tmp_path: Path
) -> None:
    succeed("predict", "--model", trained, "--table", study.table, "--output", tmp_path / "p.tsv")
    samples = pd.read_csv(explained[0] / "samples.tsv", sep="\t", index_col="sample_id")
    predicted = read_predictions(tmp_path / "p.tsv")["predicted"]
    assert list(samples.index) == list(predicted.index)
    np.testing.assert_allclose(samples["explained"], predicted, rtol=1e-4)


def test_matrices_add_up(study: StudyFiles, explained: tuple[Path, str]) -> None:
    output, _ = explained
    table = load_table(study.table)
    samples = pd.read_csv(output / "samples.tsv", sep="\t", index_col="sample_id")
    found = pd.read_csv(output / "importances.tsv", sep="\t")
    for method in METHODS:
        path = output / "per_sample" / f"{method}.npz"
        matrix = sparse.load_npz(path).toarray()
        with np.load(path) as stored:
            names, ids = stored["names"].tolist(), stored["sample_ids"].tolist()
        assert ids == list(samples.index) and matrix.shape == (24, 30)
        means = found[found["method"] == method].set_index("feature_id")["importance"]
        np.testing.assert_allclose(np.abs(matrix).mean(axis=0), means[names], rtol=1e-3)
        if method == "attention":
            np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
        if method == "integrated-gradients":
            change, missing = (samples[f"{method}_{name}"] for name in ("change", "missing"))
            np.testing.assert_allclose(matrix.sum(axis=1), change - missing, atol=1e-4)
        if method != "permutation":
            counts = pd.DataFrame(table.counts.toarray(), index=table.sample_ids, columns=table.feature_ids)
            assert ((matrix != 0) <= (counts.loc[ids, names].to_numpy() > 0)).all()


def test_taxa(explained: tuple[Path, str], taxonomy: Path) -> None:
    output, _ = explained
    families = pd.read_csv(output / "importances_family.tsv", sep="\t")
    lineages = pd.read_csv(taxonomy, sep="\t", index_col="Feature ID")["Taxon"]
    with np.load(output / "per_sample" / "integrated-gradients.npz") as stored:
        of_asv = stored["names"].tolist()
    matrix = sparse.load_npz(output / "per_sample" / "integrated-gradients.npz").toarray()
    block = families[families["method"] == "integrated-gradients"].set_index("taxon")
    for family in lineages.str.extract("f__([^;]+)")[0].unique():
        own = [f"f__{family};" in lineages[name] for name in of_asv]
        row = block.loc[f"Bacteria;P;C;O;{family}"]
        assert row["asvs"] == sum(own)
        assert row["importance"] == pytest.approx(np.abs(matrix[:, own].sum(axis=1)).mean(), rel=1e-3)
    assert not (output / "importances_genus.tsv").exists()


def test_summary_and_pictures(explained: tuple[Path, str]) -> None:
    output, _ = explained
    summary = json.loads((output / "summary.json").read_text())
    assert summary["explains"] == "predicted age" and summary["models"] == 1
    gradients = summary["methods"]["integrated-gradients"]
    samples = pd.read_csv(output / "samples.tsv", sep="\t")
    change, missing = (samples[f"integrated-gradients_{name}"].abs() for name in ("change", "missing"))
    share = missing / np.maximum(change, summary["sd_of_predictions"])
    assert gradients["largest_share_missing"] == pytest.approx(share.max(), rel=1e-3)
    assert gradients["complete"] == bool((share <= 0.01).all()) and gradients["complete"]
    for method in METHODS:
        deletion = summary["methods"][method]["deletion"]
        beyond = all(top > random for top, random in zip(deletion["top"], deletion["random"], strict=True))
        assert deletion["beyond_random"] == beyond
        for name in (method, f"{method}_family"):
            with Image.open(output / "plots" / f"{name}.png") as image:
                assert image.size[0] > 800 and len(image.convert("RGB").getcolors(2**24)) > 50
    assert (output / "plots" / "deletion.png").is_file()


def test_the_order_of_the_table_does_not_matter(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    """Nor for what is drawn: starting points, exchanges, and which samples where these are many."""
    other = permute(study, tmp_path / "other")
    pytest.importorskip("captum.attr", reason="pip install 'aam[explain]'")
    methods = [item for method in (*METHODS, "gradient-shap") for item in ("--method", method)]
    tables = []
    for name, files in (("one", study), ("two", other)):
        succeed(*explain(trained, files, tmp_path / name, *methods, "--max-samples", 10, "--draws", 5))
        read = pd.read_csv(tmp_path / name / "importances.tsv", sep="\t").set_index(["method", "feature_id"])
        tables.append(read[["importance", "low", "high"]])
    np.testing.assert_allclose(tables[1].loc[tables[0].index], tables[0], rtol=1e-3, atol=1e-6)


def test_classes_and_folds(study: StudyFiles, tmp_path: Path) -> None:
    """Of several models the mean is explained, of a class its log-odds."""
    run = tmp_path / "run"
    succeed(*study.train, "--metadata-column", "group", "--classifier", "--folds", 2, "--output-dir", run)
    method = ("--method", "integrated-gradients")
    printed = succeed(*explain(run, study, tmp_path / "child", *method, "--class", "child")).out
    assert "log-odds of group = child" in printed and "mean of 2 models" in printed
    both = pd.read_csv(tmp_path / "child" / "samples.tsv", sep="\t", index_col="sample_id")
    each = []
    for fold in range(2):
        succeed("predict", "--model", run / f"fold_{fold}", "--table", study.table, "--output", tmp_path / "p.tsv")
        probability = read_predictions(tmp_path / "p.tsv")["prob_child"]
        each.append(np.log(probability / (1 - probability)))
    np.testing.assert_allclose(both["explained"], np.mean(each, axis=0), rtol=1e-3, atol=1e-4)
    succeed(*explain(run, study, tmp_path / "any", *method))
    succeed("predict", "--model", run, "--table", study.table, "--output", tmp_path / "p.tsv")
    named = pd.read_csv(tmp_path / "any" / "samples.tsv", sep="\t", index_col="sample_id")["class"]
    assert (named == read_predictions(tmp_path / "p.tsv")["predicted"]).all()
    outcome = aam(*explain(run, study, tmp_path / "no", *method, "--class", "adult"))
    assert_one_line_error(outcome, 1, "adult", "child, infant, toddler")
    outcome = aam(*explain(run, study, tmp_path / "no", *method, "--split", "train"))
    assert_one_line_error(outcome, 1, "--split", run / "fold_0")


@pytest.mark.parametrize("seeds", [1, 2])
def test_out_of_fold(study: StudyFiles, tmp_path: Path, seeds: int) -> None:
    """Every sample is explained by the models of the fold that held it out: as if by these alone."""
    run = tmp_path / "run"
    given = ("--metadata-column", "age", "--group-column", "subject_id", "--folds", 2, "--seeds", seeds)
    succeed(*study.train, *given, "--output-dir", run)
    methods = [item for name in ("integrated-gradients", "attention", "permutation") for item in ("--method", name)]
    printed = succeed(*explain(run, study, tmp_path / "all", *methods, "--split", "test", "--attention", 2)).out
    assert "the fold that held it out" in printed
    all_samples = pd.read_csv(tmp_path / "all" / "samples.tsv", sep="\t", index_col="sample_id")
    held_out = read_predictions(run / "oof_predictions.tsv")
    np.testing.assert_allclose(
        all_samples["explained"], held_out["predicted"].loc[all_samples.index], rtol=1e-3, atol=1e-4
    )
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["models"] == 2 * seeds
    assert all_samples["integrated-gradients_missing"].abs().max() < 0.02 * all_samples["explained"].std() + 1e-3


def test_split(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    method = ("--method", "attention")
    printed = succeed(*explain(trained, study, tmp_path / "val", *method, "--split", "val")).out
    split = pd.read_csv(trained / "splits.tsv", sep="\t", index_col="sample_id")["split"]
    held_out = set(split.index[split == "val"])
    assert set(pd.read_csv(tmp_path / "val" / "samples.tsv", sep="\t")["sample_id"]) == held_out
    assert f"{len(held_out)} samples" in printed
    assert json.loads((tmp_path / "val" / "summary.json").read_text())["split"] == ["val"]
    outcome = aam(*explain(trained, study, tmp_path / "no", "--split", "test"))
    assert_one_line_error(outcome, 1, "--split test", f"{len(held_out)} val")
    alone = Path(shutil.copy(trained / "best_model.safetensors", tmp_path))
    assert_one_line_error(aam(*explain(alone, study, tmp_path / "no", "--split", "val")), 1, alone, "splits.tsv")


def test_covariates_and_several_columns(study: StudyFiles, tmp_path: Path) -> None:
    """What is explained is what is predicted of the column, with covariates and where there are none."""
    run = tmp_path / "run"
    columns = ("--metadata-column", "age", "--metadata-column", "storage_days", "--categorical-columns", "group")
    succeed(*study.train, *columns, "--target-transform", "minmax", "--output-dir", run)
    method, known = ("--method", "integrated-gradients", "--column", "storage_days"), ("--metadata", study.metadata)
    values = []
    for name, metadata in (("known", known), ("unknown", ())):
        outcome = succeed(*explain(run, study, tmp_path / name, *method, *metadata))
        output = tmp_path / f"{name}.tsv"
        succeed("predict", "--model", run, "--table", study.table, "--output", output, *metadata)
        samples = pd.read_csv(tmp_path / name / "samples.tsv", sep="\t", index_col="sample_id")
        np.testing.assert_allclose(samples["explained"], read_predictions(output)["storage_days_predicted"], rtol=1e-4)
        assert "predicted storage_days" in outcome.out and ("read as unknown" in outcome.err) == (name == "unknown")
        values.append(samples["explained"].to_numpy())
    assert np.abs(values[0] - values[1]).max() > 1e-4
    outcome = aam(*explain(run, study, tmp_path / "no"))
    assert_one_line_error(outcome, 1, "age, storage_days", "--column")


def test_errors_are_of_samples_whose_truth_is_known(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    """The increase over all samples is the mean of those over two parts of them."""
    metadata = pd.read_csv(study.metadata, sep="\t", index_col="sample_id")
    found = []
    for part in (slice(0, 24), slice(0, 6), slice(6, 24)):
        known = metadata.copy()
        known["age"] = known["age"].where(known.index.isin(known.index[part]))
        known.to_csv(tmp_path / "metadata.tsv", sep="\t")
        options = ("--method", "permutation", "--metadata", tmp_path / "metadata.tsv", "--overwrite")
        succeed(*explain(trained, study, tmp_path / "out", *options))
        table = pd.read_csv(tmp_path / "out" / "importances.tsv", sep="\t", index_col="feature_id")
        found.append(table["error_increase"].sort_index())
    np.testing.assert_allclose(found[0], (6 * found[1] + 18 * found[2]) / 24, rtol=1e-3, atol=1e-7)
    assert np.abs(found[1] - found[2]).max() > 1e-4


def test_streaming_and_empty_samples(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    table = load_table(study.table)
    counts = table.counts.toarray()
    counts[3] = 0
    other = write_table(
        tmp_path / "t.biom", FeatureTable(sparse.csr_array(counts), table.sample_ids, table.feature_ids)
    )
    files = StudyFiles(tmp_path)
    (tmp_path / "table.biom").write_bytes(other.read_bytes())
    found = []
    for name, options in (("memory", ()), ("streamed", ("--streaming",))):
        printed = succeed(*explain(trained, files, tmp_path / name, "--method", "integrated-gradients", *options)).out
        assert "1 left out" in printed and table.sample_ids[3] in printed
        samples = pd.read_csv(tmp_path / name / "samples.tsv", sep="\t", index_col="sample_id")
        assert table.sample_ids[3] not in samples.index and len(samples) == 23
        found.append((tmp_path / name / "importances.tsv").read_text())
    assert found[0] == found[1]


def test_gradient_shap_says_how_noisy_it_is(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum.attr", reason="pip install 'aam[explain]'")
    output = tmp_path / "out"
    method = ("--method", "gradient-shap", "--draws", 2)
    outcome = succeed(*explain(trained, study, output, *method))
    assert "standard error" in outcome.out and "give more --draws" in outcome.err
    known = json.loads((output / "summary.json").read_text())["methods"]["gradient-shap"]
    assert known["mean_standard_error"] > 0.1
    samples = pd.read_csv(output / "samples.tsv", sep="\t")
    assert (samples["gradient-shap_missing"] != 0).all()


def test_captum_is_missing(study: StudyFiles, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)  # which Python takes for one that is not there
    outcome = aam(*explain(trained, study, tmp_path / "out", "--method", "gradient-shap"))
    assert_one_line_error(outcome, 1, "--method gradient-shap", "pip install 'aam[explain]'")


def test_what_is_replaced_is_gone(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    method = ("--method", "attention", "--attention", 1)
    succeed(*explain(trained, study, output, *method))
    assert list((output / "attention").iterdir())
    (output / "attention" / "notes.md").write_text("my own")
    succeed(*explain(trained, study, output, "--method", "integrated-gradients", "--overwrite"))
    assert [path.name for path in (output / "attention").iterdir()] == ["notes.md"]
    assert [path.name for path in (output / "per_sample").iterdir()] == ["integrated-gradients.npz"]


def test_what_was_interrupted_can_be_replaced(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    arguments = ("explain", "--model", trained, "--table", study.table, "--method", "attention")
    for name in ("samples.tsv", "importances.tsv"):  # the summary is written last
        (tmp_path / "e").mkdir(exist_ok=True)
        (tmp_path / "e" / name).write_text("begun")
    assert_one_line_error(aam(*arguments, "--output-dir", tmp_path / "e"), 1, "--overwrite")
    (tmp_path / "e" / "mine.txt").write_text("mine")
    assert_one_line_error(aam(*arguments, "--output-dir", tmp_path / "e", "--overwrite"), 1, "holds other files")
    (tmp_path / "e" / "mine.txt").unlink()
    succeed(*arguments, "--output-dir", tmp_path / "e", "--overwrite")


def test_what_is_refused(study: StudyFiles, trained: Path, explained: tuple[Path, str], tmp_path: Path) -> None:
    output = tmp_path / "new"
    for options, words in (
        (("--by", "genus"), ("--by genus", "--taxonomy")),
        (("--layer", 3), ("--layer 3", "2")),
        (("--class", "child"), ("--class child", "number")),
        (("--column", "weight"), ("--column weight", "age")),
        (("--group-column", "subject_id"), ("--group-column", "--metadata")),
    ):
        assert_one_line_error(aam(*explain(trained, study, output, *options)), 1, *words)
    assert_one_line_error(aam(*explain(trained, study, explained[0])), 1, explained[0], "--overwrite")
    assert_one_line_error(aam(*explain(trained, study, trained, "--overwrite")), 1, trained, "other files")
    assert not output.exists()
    assert aam(*explain(trained, study, output, "--method", "guess")).code == 2


def test_fewer_samples(study: StudyFiles, trained: Path, tmp_path: Path) -> None:
    method = ("--method", "attention", "--max-samples", 5)
    for name in ("one", "two"):
        succeed(*explain(trained, study, tmp_path / name, *method))
    one, two = (pd.read_csv(tmp_path / name / "samples.tsv", sep="\t") for name in ("one", "two"))
    assert len(one) == 5 and one.equals(two)


def test_attention_and_bases(study: StudyFiles, trained: Path, taxonomy: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--method", "attention", "--taxonomy", taxonomy, "--attention", 3, "--nucleotides", 4)
    succeed(*explain(trained, study, output, *options))
    maps = sorted((output / "attention").glob("0*.tsv"))
    assert len(maps) == 3
    predicted = pd.read_csv(output / "samples.tsv", sep="\t", index_col="sample_id")["explained"]
    drawn = [path.stem.split("_", 1)[1] for path in maps]
    assert drawn[0] == predicted.idxmin() and drawn[-1] == predicted.idxmax()
    for path in maps:
        sums = pd.read_csv(path, sep="\t").groupby("from")[["layer 1", "layer 2", "rollout"]].sum()
        np.testing.assert_allclose(sums, 1, atol=1e-3)
        assert path.with_suffix(".png").is_file()
    flow = pd.read_csv(output / "attention" / "flow_genus.tsv", sep="\t", index_col="from")
    genera = pd.read_csv(output / "importances_genus.tsv", sep="\t", index_col="taxon")["importance"]
    np.testing.assert_allclose(flow.sum(axis=0), genera[flow.columns], rtol=1e-3)
    bases = pd.read_csv(output / "nucleotides.tsv", sep="\t")
    asvs = pd.read_csv(output / "importances.tsv", sep="\t")["feature_id"].head(4)
    assert bases.groupby("feature_id", sort=False)["base"].sum().to_dict() == {name: name for name in asvs}
    assert (bases.groupby("feature_id")["attention"].sum() < 1).all() and (bases["attribution"] != 0).all()
    for name in ("nucleotides", "nucleotides_attention"):
        assert (output / "plots" / f"{name}.png").is_file()


def test_layers_and_heads_in_any_order(study: StudyFiles, trained: Path, taxonomy: Path, tmp_path: Path) -> None:
    """Each keeps its name, and what is not asked for is read neither into maps nor into the flow between taxa."""
    options = ("--method", "attention", "--taxonomy", taxonomy, "--attention", 1)
    read = {}
    for name, chosen in {
        "all": (),
        "12": ("--layer", 1, "--layer", 2),
        "21": ("--layer", 2, "--layer", 1, "--layer", 1),
        "head": ("--head", 2),
    }.items():
        succeed(*explain(trained, study, tmp_path / name, *options, *chosen))
        folder = tmp_path / name / "attention"
        (drawn,) = folder.glob("0*.tsv")
        flow = pd.read_csv(folder / "flow_genus.tsv", sep="\t", index_col="from")
        read[name] = pd.read_csv(drawn, sep="\t", index_col=["from", "to"]), flow
        genera = pd.read_csv(tmp_path / name / "importances_genus.tsv", sep="\t", index_col="taxon")["importance"]
        np.testing.assert_allclose(flow.sum(axis=0), genera[flow.columns], rtol=1e-3)
    for layer in ("layer 1", "layer 2"):
        for name in ("12", "21"):
            np.testing.assert_allclose(read[name][0][layer], read["all"][0][layer], rtol=1e-4)
    assert not np.allclose(read["12"][0]["layer 1"], read["12"][0]["layer 2"], rtol=0.01)
    np.testing.assert_allclose(read["21"][1], read["12"][1], rtol=1e-4)
    assert not np.allclose(read["head"][1], read["all"][1], rtol=0.01)


def test_what_is_of_the_sequence_and_what_of_the_abundance(explained: tuple[Path, str]) -> None:
    """Neither part of an effect can be larger than both together less the other."""
    found = pd.read_csv(explained[0] / "importances.tsv", sep="\t").set_index("method")
    parts = found[["by_sequence", "by_abundance"]]
    assert parts.loc[["attention", "permutation"]].isna().all(axis=None)
    both = found.loc["integrated-gradients"]
    assert (both["by_sequence"] > 0).all() and (both["by_abundance"] > 0).all()
    assert (both["importance"] <= both["by_sequence"] + both["by_abundance"] + 1e-6).all()
    assert (both["importance"] >= (both["by_sequence"] - both["by_abundance"]).abs() - 1e-6).all()


def test_an_exported_model_is_said_to_be_one(study: StudyFiles, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    assert_one_line_error(aam(*explain(tmp_path / "m.onnx", study, tmp_path / "no")), 1, "m.onnx", "exported")
