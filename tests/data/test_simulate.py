"""The simulated study: what it promises about sequences, tree, communities and files."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from aam.data.simulate import SimulatedStudy, simulate_study, write_study
from aam.errors import DataError


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(samples=60, asvs=80, subjects=15, seed=3)


def test_shapes_and_names(study: SimulatedStudy) -> None:
    assert study.counts.shape == (60, 80)
    assert len(study.sequences) == len(set(study.sequences)) == 80
    assert {len(s) for s in study.sequences} == {150}
    assert set("".join(study.sequences)) == set("ACGT")
    assert list(study.metadata.index) == study.sample_ids
    assert len(set(study.sample_ids)) == 60
    assert list(study.metadata.columns) == ["subject_id", "age", "group", "storage_days"]
    assert study.metadata["subject_id"].value_counts().eq(4).all()
    assert study.metadata["age"].between(0, 24).all()
    assert set(study.metadata["group"]) == {"infant", "toddler", "child"}


def test_no_sample_and_no_asv_is_empty(study: SimulatedStudy) -> None:
    for tiny in (study, simulate_study(samples=2, asvs=8, subjects=1, depth=1, length=20)):
        assert (tiny.counts.sum(axis=0) > 0).all()
        assert (tiny.counts.sum(axis=1) > 0).all()


def test_seed_decides_everything(study: SimulatedStudy) -> None:
    again = simulate_study(samples=60, asvs=80, subjects=15, seed=3)
    other = simulate_study(samples=60, asvs=80, subjects=15, seed=4)
    assert again.tree == study.tree
    assert again.sequences == study.sequences
    np.testing.assert_array_equal(again.counts.toarray(), study.counts.toarray())
    pd.testing.assert_frame_equal(again.metadata, study.metadata)
    assert again.truth == study.truth
    assert other.sequences != study.sequences


def test_sequences_have_evolved_along_the_tree(study: SimulatedStudy) -> None:
    from skbio import TreeNode

    tree = TreeNode.read(StringIO(study.tree))
    assert len(tree.children) == 2
    assert {tip.name for tip in tree.tips()} == set(study.sequences)
    assert all(len(node.children) in (0, 2) for node in tree.traverse())

    along = tree.cophenet().filter(study.sequences).data
    letters = np.array([list(s.encode()) for s in study.sequences])
    apart = (letters[:, None] != letters).mean(axis=2)
    pairs = np.triu_indices(len(letters), 1)
    expected = 0.75 * (1 - np.exp(-4 / 3 * along))  # Jukes & Cantor 1969
    assert np.corrcoef(expected[pairs], apart[pairs])[0, 1] > 0.9
    assert abs((apart - expected)[pairs].mean()) < 0.02
    clade = np.array([a["clade"] for a in study.truth["asvs"]])
    same = (clade[:, None] == clade)[pairs]
    assert apart[pairs][same].mean() < 0.12 < 0.18 < apart[pairs][~same].mean()


def test_responding_clades_follow_the_gradient(study: SimulatedStudy) -> None:
    x = np.array([s["x"] for s in study.truth["samples"]])
    clade = np.array([a["clade"] for a in study.truth["asvs"]])
    responding = [c for c in study.truth["clades"] if c["effect"]]
    assert len(responding) >= 2
    assert sum(c["effect"] > 0 for c in responding) == len(responding) / 2
    counts = study.counts.toarray()
    share = counts / counts.sum(axis=1, keepdims=True)
    for c in responding:
        abundance = share[:, clade == c["clade"]].sum(axis=1)
        present = (counts[:, clade == c["clade"]] > 0).sum(axis=1)
        assert spearmanr(abundance, x).statistic * np.sign(c["effect"]) > 0.5, c
        assert spearmanr(present, x).statistic * np.sign(c["effect"]) > 0.2, c
    assert spearmanr(study.metadata["age"], x).statistic > 0.95
    assert abs(spearmanr(study.metadata["storage_days"], x).statistic) < 0.35


def test_subjects_carry_different_asvs_of_one_clade(study: SimulatedStudy) -> None:
    seen = (study.counts > 0).toarray()
    of_subject = pd.DataFrame(seen, index=study.metadata["subject_id"]).groupby(level=0).any().to_numpy()
    responding = {c["clade"] for c in study.truth["clades"] if c["effect"]}
    chosen = of_subject[:, [a["clade"] in responding for a in study.truth["asvs"]]]
    assert 0.3 < chosen.mean() < 0.7


def test_files(study: SimulatedStudy, tmp_path: Path) -> None:
    import biom

    write_study(study, tmp_path / "new" / "study")
    write_study(study, tmp_path / "again")
    files = sorted(p.name for p in (tmp_path / "again").iterdir())
    assert files == ["metadata.tsv", "table.biom", "tree.nwk", "truth.json", "truth.tsv"]
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "study" / name).read_bytes()

    table = biom.load_table(str(tmp_path / "again" / "table.biom"))
    assert list(table.ids("observation")) == study.sequences
    assert list(table.ids()) == study.sample_ids
    np.testing.assert_array_equal(table.matrix_data.toarray().T, study.counts.toarray())
    metadata = pd.read_csv(tmp_path / "again" / "metadata.tsv", sep="\t", index_col="sample_id")
    pd.testing.assert_frame_equal(metadata, study.metadata)
    assert json.loads((tmp_path / "again" / "truth.json").read_text()) == study.truth
    truth = pd.read_csv(tmp_path / "again" / "truth.tsv", sep="\t")
    assert list(truth.columns) == ["sequence", "clade", "effect", "onset"]
    assert list(truth["sequence"]) == study.sequences
    assert ((truth["effect"] == 0) == truth["onset"].isna()).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"asvs": 3}, "asvs is 3"),
        ({"samples": 5, "subjects": 9}, "9 subjects cannot share 5 samples"),
        ({"depth": 0}, "depth is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulate_study(**sizes)
