"""Unweighted UniFrac against a plain reference, and the file it is written to."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.sparse import csr_array

from aam.data.distances import unweighted_unifrac, write_distances_h5
from aam.errors import DataError

TREE = "(((A:0.1,C:0.2):0.3,G:0.5):0.15,(T:0.4,N_1:0.25):0.35);"
TIPS = ["A", "C", "G", "T", "N_1"]
#: Every branch of TREE: its length and the tips under it.
BRANCHES = [
    (0.1, "A"),
    (0.2, "C"),
    (0.5, "G"),
    (0.4, "T"),
    (0.25, "N_1"),
    (0.3, "A C"),
    (0.15, "A C G"),
    (0.35, "T N_1"),
]
COUNTS = csr_array(
    np.array([[5, 0, 0, 0, 1], [0, 2, 0, 0, 0], [1, 1, 1, 1, 1], [5, 0, 0, 0, 7], [0, 0, 0, 3, 0]], dtype=np.int32)
)
IDS = ["s1", "s2", "s3", "s4", "s5"]


def reference_unifrac(counts: np.ndarray) -> np.ndarray:
    """Lozupone & Knight 2005, from the definition: branch length of one sample alone over that of either."""
    seen = [{tip for tip, count in zip(TIPS, row, strict=True) if count} for row in counts]
    distances = np.zeros((len(seen), len(seen)))
    for i, first in enumerate(seen):
        for j, second in enumerate(seen):
            alone = either = 0.0
            for length, tips in BRANCHES:
                under_first, under_second = bool(first & set(tips.split())), bool(second & set(tips.split()))
                alone += length * (under_first != under_second)
                either += length * (under_first or under_second)
            distances[i, j] = alone / either
    return distances


def test_equals_the_reference(tmp_path: Path) -> None:
    file = tmp_path / "tree.nwk"
    file.write_text(TREE + "\n")
    expected = reference_unifrac(COUNTS.toarray())
    for tree in (TREE, file, str(file)):
        distances = unweighted_unifrac(COUNTS, TIPS, tree, IDS)
        assert distances.dtype == np.float32
        np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(distances, distances.T)
    np.testing.assert_array_equal(distances.diagonal(), 0)
    assert distances[0, 3] == 0  # abundance does not matter


def test_order_and_extra_tips_do_not_matter() -> None:
    order = [3, 0, 4]
    distances = unweighted_unifrac(COUNTS[:, order][[0, 2, 4]], [TIPS[i] for i in order], TREE, ["s1", "s3", "s5"])
    kept = COUNTS.toarray()[[0, 2, 4]] * np.isin(np.arange(5), order)
    np.testing.assert_allclose(distances, reference_unifrac(kept), atol=1e-6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("((A:1,C:1):1,G:1,(T:1,N_1:1):1);", "not rooted"),
        ("((A:1,C:1):1,(T:1,N_1:1):1);", r"1 of the table's 5 ASVs are not among its tips \('G'\)"),
        ("(((A,C),G),(T,N_1));", "no length"),
        ("(((A:1,C:1):1,G:-1):1,(T:1,N_1:1):1);", "length -1"),
        ("(((A:1,C:1):1,A:1):1,(T:1,N_1:1):1);", r"one name \(A\)"),
        ("(((A:1,C:1):1,G:1", "not a Newick tree"),
        ("(((A:x,C:1):1,G:1):1,(T:1,N_1:1):1);", "not a Newick tree"),
        ("nowhere.nwk", "nowhere.nwk: no such file"),
    ],
)
def test_bad_trees_are_refused(tree: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        unweighted_unifrac(COUNTS, TIPS, tree, IDS)


def test_files_that_are_no_trees_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\x89HDF\r\n\x1a\n\xff\xfe", b"sample\tage\n")):
        file = tmp_path / f"{number}.nwk"
        file.write_bytes(content)
        with pytest.raises(DataError, match=file.name):
            unweighted_unifrac(COUNTS, TIPS, file, IDS)


def test_empty_samples_are_refused() -> None:
    counts = COUNTS.toarray()
    counts[1] = 0
    with pytest.raises(DataError, match="without counts is undefined: s2;"):
        unweighted_unifrac(csr_array(counts), TIPS, TREE, IDS)


def test_agrees_with_ssu_on_mice() -> None:
    import biom

    data = Path(os.environ.get("AAM_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not data.is_dir():
        pytest.skip(f"{data} is missing: real studies are not part of the project (set AAM_DATA)")
    study = data / "mouse_sleep_apnea_10422"
    table = biom.load_table(str(study / "table.biom"))
    ids = list(table.ids())
    counts = csr_array(table.matrix_data.T)
    distances = unweighted_unifrac(counts, list(table.ids("observation")), study / "tree.nwk", ids)
    with h5py.File(data / "ssu_outputs" / "unweighted_pcoa.h5") as handle:
        order = [i.decode() for i in handle["order"]]
        place = [order.index(i) for i in ids]
        np.testing.assert_allclose(distances, handle["matrix"][:][np.ix_(place, place)], atol=1e-6)


def test_file_has_the_layout_of_ssu(tmp_path: Path) -> None:
    matrix = reference_unifrac(COUNTS.toarray())
    file = tmp_path / "unifrac.h5"
    for _ in range(2):  # writing again replaces
        write_distances_h5(file, IDS, matrix)
    with h5py.File(file) as handle:
        assert set(handle) == {"format", "matrix", "order", "version"}
        assert handle["format"][0] == b"BDSM"
        assert list(handle["order"]) == [b"s1", b"s2", b"s3", b"s4", b"s5"]
        assert handle["matrix"].dtype == np.float32
        np.testing.assert_array_equal(handle["matrix"], matrix.astype(np.float32))
