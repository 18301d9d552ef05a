"""Every metric against its definition, `ssu` and scikit-bio, and the files that they are written to."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from scipy.sparse import csr_array

from aam.data import distances
from aam.data.biom_loader import FeatureTable, load_table
from aam.data.counts import MemoryCounts
from aam.data.dataset import DatasetOptions, SampleDataset
from aam.data.distances import Engine, compute, rarefied, unweighted_unifrac, write_distances_h5, write_result
from aam.data.tokenizer import tokenize
from aam.data.unifrac_loader import load_distances
from aam.errors import DataError
from tests.end_to_end.program import write_table
from tests.real_data import real_data

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
TABLE = FeatureTable(csr_array(COUNTS.astype(np.float64)), IDS, TIPS)

needs_ssu = pytest.mark.skipif(
    shutil.which("ssu") is None or shutil.which("faithpd") is None, reason="ssu and faithpd are not on the PATH"
)
ENGINES = pytest.mark.parametrize("engine", [pytest.param("ssu", marks=needs_ssu), "skbio"])


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
        found = unweighted_unifrac(COUNTS, TIPS, tree, IDS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 0)
    assert found[0, 3] == 0  # abundance does not matter


def test_order_and_extra_tips_do_not_matter() -> None:
    order = [3, 0, 4]
    found = unweighted_unifrac(COUNTS[:, order][[0, 2, 4]], [TIPS[i] for i in order], TREE, ["s1", "s3", "s5"])
    kept = COUNTS.toarray()[[0, 2, 4]] * np.isin(np.arange(5), order)
    np.testing.assert_allclose(found, reference_unifrac(kept), atol=1e-6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("((A:1,C:1):1,G:1,(T:1,N_1:1):1);", "not rooted"),
        ("((A:1,C:1):1,(T:1,N_1:1):1);", r"1 of the table's 5 ASVs are not among its tips \('G'\)"),
        ("(((A,C),G),(T,N_1));", "no length"),
        ("(((A:1,C:1):1,G:-1):1,(T:1,N_1:1):1);", "length -1"),
        ("(((A:1,C:1):1,A:1):1,(T:1,N_1:1):1);", r"one name \('A'\)"),
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


@needs_ssu
@pytest.mark.parametrize("stem", ["%s;", "%s:7;", "(%s:7);", "((%s:7):0.5,(X:1,Y:2):3);", "((%s:7,X:1):8,Y:9):2;"])
def test_pruned_and_whole_trees_agree_through_either_program(stem: str, tmp_path: Path) -> None:
    from skbio import TreeNode
    from skbio.diversity import alpha_diversity, beta_diversity

    text = stem % "(((A:0.1,C:0.2,Z:3):0.3,('o''k':1,G:0.5):0.2):0.15,(T:0.4,N_1:0.25):0.35)"
    whole = TreeNode.read([text], format="newick", convert_underscores=False)
    dense = COUNTS.toarray()
    unifrac = beta_diversity("unweighted_unifrac", dense, IDS, taxa=TIPS, tree=whole).data
    weighted = beta_diversity("weighted_unifrac", dense, IDS, taxa=TIPS, tree=whole, normalized=True).data
    faith = alpha_diversity("faith_pd", dense, IDS, taxa=TIPS, tree=whole)
    for metric, expected in (("unifrac", unifrac), ("weighted_unifrac", weighted), ("faith_pd", faith)):
        np.testing.assert_allclose(compute(metric, TABLE, text, engine="skbio").values, expected, atol=1e-7)

    # `ssu` itself, which cannot read a quote in a name, on the whole tree
    write_table(tmp_path / "table.biom", TABLE)
    (tmp_path / "tree.nwk").write_text(text.replace("'o''k'", "ok"))
    for metric, method in (("unifrac", "unweighted"), ("weighted_unifrac", "weighted_normalized")):
        command = ["ssu", "-i", "table.biom", "-t", "tree.nwk", "-m", f"{method}_fp64", "-o", "out"]
        subprocess.run([*command, "--format", "hdf5_fp64"], cwd=tmp_path, check=True)
        with h5py.File(tmp_path / "out") as file:
            assert [name.decode() for name in file["order"]] == IDS
            np.testing.assert_allclose(compute(metric, TABLE, text, engine="ssu").values, file["matrix"], atol=1e-7)
    subprocess.run(["faithpd", "-i", "table.biom", "-t", "tree.nwk", "-o", "out"], cwd=tmp_path, check=True)
    rows = [line.split("\t") for line in (tmp_path / "out").read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == IDS
    np.testing.assert_allclose(
        compute("faith_pd", TABLE, text, engine="ssu").values, [float(value) for _, value in rows], rtol=1e-8
    )


def test_a_length_of_the_root_is_pointed_out() -> None:
    assert not compute("unifrac", TABLE, TREE, engine="skbio").notes
    (note,) = compute("unifrac", TABLE, TREE.replace(";", ":2;"), engine="skbio").notes
    assert "root has a length of its own (2)" in note


def test_agrees_with_ssu_on_mice() -> None:
    study = real_data("mouse_sleep_apnea_10422")
    outputs = real_data("ssu_outputs")
    table = load_table(study / "table.biom")
    for metric, name in (("unifrac", "unweighted_pcoa.h5"), ("weighted_unifrac", "weighted_normalized.h5")):
        result = compute(metric, table, study / "tree.nwk", engine="skbio")
        assert (result.engine, result.ids) == ("scikit-bio", table.sample_ids)
        with h5py.File(outputs / name) as handle:
            order = [i.decode() for i in handle["order"]]
            place = [order.index(i) for i in result.ids]
            np.testing.assert_allclose(result.values, handle["matrix"][:][np.ix_(place, place)], atol=1e-6)
    result = compute("faith_pd", table, study / "tree.nwk", engine="skbio")
    lines = (outputs / "faith_pd.tsv").read_text().splitlines()[1:]
    reference = {name: float(value) for name, value in (line.split("\t") for line in lines)}
    np.testing.assert_allclose(result.values, [reference[name] for name in result.ids], rtol=1e-6)


@needs_ssu
def test_engines_agree_on_infants() -> None:
    study = real_data("ecam_infant_age")
    table = load_table(study / "table.biom").select_samples(np.arange(0, 689, 6))
    for metric in ("unifrac", "weighted_unifrac", "generalized_unifrac", "faith_pd"):
        by_ssu, other = (compute(metric, table, study / "tree.nwk", engine=engine) for engine in ("ssu", "skbio"))
        assert by_ssu.engine == ("faithpd" if metric == "faith_pd" else "ssu")
        assert by_ssu.ids == other.ids
        np.testing.assert_allclose(by_ssu.values, other.values, atol=1e-6)


@ENGINES
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_generalized_unifrac_is_as_defined(engine: Engine, alpha: float) -> None:
    """Chen et al. 2012, equation 2, branch by branch."""
    dense = COUNTS.toarray()
    shares = dense / dense.sum(axis=1, keepdims=True)
    below = {tips: shares[:, np.isin(TIPS, tips.split())].sum(axis=1) for _, tips in BRANCHES}
    expected = np.zeros((5, 5))
    for i, j in np.ndindex(5, 5):
        terms = [(length, below[tips][i], below[tips][j]) for length, tips in BRANCHES]
        terms = [(length, p, q) for length, p, q in terms if p + q > 0]
        numerator = sum(length * (p + q) ** alpha * abs(p - q) / (p + q) for length, p, q in terms)
        expected[i, j] = numerator / sum(length * (p + q) ** alpha for length, p, q in terms)
    found = compute("generalized_unifrac", TABLE, TREE, engine=engine, alpha=alpha)
    assert found.engine == ("ssu" if engine == "ssu" else "NumPy")
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    if alpha == 1:
        weighted = compute("weighted_unifrac", TABLE, TREE, engine=engine)
        np.testing.assert_allclose(weighted.values, expected, atol=1e-6)


@ENGINES
def test_faith_pd_is_as_defined(engine: Engine) -> None:
    seen = [{tip for tip, count in zip(TIPS, row, strict=True) if count} for row in COUNTS.toarray()]
    expected = [sum(length for length, tips in BRANCHES if tips_seen & set(tips.split())) for tips_seen in seen]
    found = compute("faith_pd", TABLE, TREE, engine=engine)
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, expected, rtol=1e-7)  # faithpd reads lengths in single precision


@pytest.mark.parametrize("strip", [512, 7])
def test_metrics_without_a_tree_agree_with_scikit_bio(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from skbio.diversity import beta_diversity
    from skbio.stats.composition import clr

    monkeypatch.setattr(distances, "_STRIP", strip)
    rng = np.random.default_rng(0)
    dense = rng.poisson(rng.gamma(0.3, 20, (20, 30)))
    dense[:, 0] += 1
    dense[4] = dense[3]  # two equal samples
    ids = [f"s{i}" for i in range(20)]
    table = FeatureTable(csr_array(dense.astype(np.float64)), ids, [f"f{i}" for i in range(30)])
    expected = {
        "bray_curtis": beta_diversity("braycurtis", dense, ids).data,
        "jaccard": beta_diversity("jaccard", dense > 0, ids).data,
        "aitchison": beta_diversity("euclidean", clr(dense + 1.0), ids, validate=False).data,
    }
    for metric, matrix in expected.items():
        found = compute(metric, table)
        assert found.engine == "NumPy"
        np.testing.assert_allclose(found.values, matrix, atol=1e-5 if metric == "aitchison" else 1e-6)
        np.testing.assert_array_equal(found.values, found.values.T)
        assert found.values[3, 4] == 0


def test_samples_and_asvs_that_cannot_take_part() -> None:
    dense = np.array([[5, 0, 2, 0], [0, 0, 0, 0], [1, 3, 0, 0], [0, 0, 7, 0]], dtype=np.float64)
    table = FeatureTable(csr_array(dense), ["a", "b", "c", "d"], ["A", "C", "new", "nobody's"])
    with pytest.raises(DataError, match=r"1 of the table's 3 ASVs are not among its tips \('new'\)"):
        compute("unifrac", table, TREE, engine="skbio")
    found = compute("unifrac", table, TREE, engine="skbio", drop_missing=True)
    assert (found.ids, found.left_out, found.missing) == (["a", "c"], ["b", "d"], ["new"])
    assert "9 of 18 reads" in found.notes[0]
    assert found.values[0, 1] == pytest.approx(0.2 / 0.75)
    assert compute("jaccard", table).left_out == ["b"]
    with pytest.raises(DataError, match=r"1 sample\(s\) have reads; jaccard needs 2"):
        compute("jaccard", table.select_samples([0, 1]))


@ENGINES
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("((A,C),((G,T),N_1));", "8 of the tree's branches to the table's ASVs have no length"),
        ("((A:1,C:1):1,((G:1,T:1):1,N_1):1);", "1 of the tree's branches to the table's ASVs have no length"),
        ("((A:0,C:0):0,((G:0,T:0):0,N_1:0):0);", "of the tree to the table's ASVs has length 0"),
        ("((A:1,C:1):1,G:1,(T:1,N_1:1):1);", "not rooted"),
    ],
)
def test_trees_that_say_nothing_are_refused(tree: str, message: str, engine: Engine) -> None:
    with pytest.raises(DataError, match=message):
        compute("weighted_unifrac", TABLE, tree, engine=engine)


@needs_ssu
def test_undefined_distances_are_refused() -> None:
    table = FeatureTable(csr_array(np.eye(3)), ["x", "y", "z"], ["A", "B", "C"])
    for engine in ("ssu", "skbio"):
        with pytest.raises(DataError, match="generalized_unifrac of 'x' and 'y' is undefined"):
            compute("generalized_unifrac", table, "((A:0,B:0):0,C:1);", engine=engine)


@needs_ssu
def test_names_that_other_programs_cannot_read(tmp_path: Path) -> None:
    names = ["it's", "a b", "(c,d):e;", "é[f]", "g_h"]
    text = TREE
    for tip, name in zip(TIPS, names, strict=True):
        text = text.replace(f"{tip}:", "'" + name.replace("'", "''") + "':")
    table = FeatureTable(TABLE.counts, ["it's 1", "s 2", "é", "(4)", "5"], names)
    for engine in ("ssu", "skbio"):
        found = compute("unifrac", table, text, engine=engine)
        assert found.ids == table.sample_ids
        np.testing.assert_allclose(found.values, reference_unifrac(COUNTS.toarray()), atol=1e-6)
    write_result(tmp_path / "d.h5", found)
    assert load_distances(tmp_path / "d.h5", table.sample_ids).ids == table.sample_ids


def put_on_path(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program `ssu` that does what the script says."""
    program = folder / "ssu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_ssu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="ssu is not on the PATH; install it with `conda install"):
        compute("unifrac", TABLE, TREE, engine="ssu")
    assert compute("unifrac", TABLE, TREE).engine == "scikit-bio"
    assert compute("generalized_unifrac", TABLE, TREE).engine == "NumPy"
    with pytest.raises(DataError, match="ssu has no jaccard"):
        compute("jaccard", TABLE, engine="ssu")
    with pytest.raises(DataError, match="unifrac needs a tree"):
        compute("unifrac", TABLE)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'out of luck' >&2; exit 3", r"ssu ended with exit code 3 \('out of luck'\)"),
        ("kill -11 $$", "ssu ended by signal 11"),
        ("exit 0", r"ssu ended with exit code 0 \(no message\)"),
        ("echo broken > output", "output: cannot be read"),
    ],
)
def test_an_ssu_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    put_on_path(tmp_path, script, monkeypatch)
    with pytest.raises(DataError, match=message):
        compute("unifrac", TABLE, TREE)


def heed_interrupts() -> None:
    """A shell lets what it runs in the background ignore them, tests and all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_stops_ssu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, f"cd {tmp_path}; echo $$ > part; mv part pid; exec sleep 60", monkeypatch)
    code = (
        "import numpy as np; from scipy.sparse import csr_array\n"
        "from aam.data.biom_loader import FeatureTable; from aam.data.distances import compute\n"
        "table = FeatureTable(csr_array(np.eye(2)), ['s', 't'], ['A', 'B'])\n"
        "try: compute('unifrac', table, '(A:1,B:1);')\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate()[0].strip() == "stopped"
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_rarefied_tables_are_those_of_a_run() -> None:
    rng = np.random.default_rng(1)
    names = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(9)]
    dense = rng.integers(0, 30, (6, 9)).astype(np.float64)
    dense[2] = 1
    table = FeatureTable(csr_array(dense), [f"s{i}" for i in range(6)], names)
    found, shallow = rarefied(table, 40, seed=3)
    assert shallow == ["s2"]
    assert found.feature_ids == names
    assert (found.counts.sum(axis=1) == 40).all()
    order = np.argsort(names)
    dataset = SampleDataset(
        MemoryCounts(csr_array(dense[:, order])),
        tokenize([names[i] for i in order], 12),
        table.sample_ids,
        [names[i] for i in order],
        np.arange(9),
        DatasetOptions(seed=3, rarefy_depth=40),
    )
    rows, _ = dataset.drawn(np.array([0, 1, 3, 4, 5]), epoch=0)
    expected = csr_array((rows.counts, rows.asvs, rows.indptr), shape=(5, 9)).toarray()
    np.testing.assert_array_equal(found.counts.toarray()[:, order], expected)
    with pytest.raises(DataError, match="no sample has --rarefy-depth 999 reads"):
        rarefied(table, 999, seed=0)


def test_values_that_are_no_counts() -> None:
    presence = replace(TABLE, kind="presence")
    for metric in ("weighted_unifrac", "generalized_unifrac", "bray_curtis", "aitchison"):
        with pytest.raises(DataError, match=f"{metric} needs counts, and the table holds presence"):
            compute(metric, presence, TREE)
    assert compute("unifrac", presence, TREE, engine="skbio").ids == IDS
    shares = TABLE.counts / TABLE.counts.sum(axis=1)[:, None]
    relative = replace(TABLE, counts=csr_array(shares), kind="relative")
    with pytest.raises(DataError, match="aitchison adds a read to every count, and the table holds relative"):
        compute("aitchison", relative)
    for tree in (TREE, TREE.replace(";", ":7;")):
        expected = compute("weighted_unifrac", TABLE, tree, engine="skbio")
        found = compute("weighted_unifrac", relative, tree, engine="skbio")
        assert (expected.engine, found.engine) == ("scikit-bio", "NumPy")
        np.testing.assert_allclose(found.values, expected.values, atol=1e-7)


@pytest.mark.parametrize("name", ["d.h5", "d.tsv", "d.npy"])
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    result = compute("bray_curtis", TABLE)
    path = tmp_path / "new" / name
    write_result(path, result)
    assert [file.name for file in path.parent.iterdir()] == [name]
    matrix = load_distances(path, IDS)
    assert matrix.ids == IDS
    np.testing.assert_allclose(matrix.values, result.values, atol=1e-7)


def test_other_files(tmp_path: Path) -> None:
    result = compute("bray_curtis", TABLE)
    write_result(tmp_path / "d.npz", result)
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        assert file["ids"].tolist() == IDS
        np.testing.assert_array_equal(file["matrix"], result.values)
    with pytest.raises(DataError, match=r"'\.txt' names no format"):
        write_result(tmp_path / "d.txt", result)
    with pytest.raises(DataError, match=r"\.npy holds no sample IDs"):
        write_result(tmp_path / "d.npy", result, complete=False)
    faith = compute("faith_pd", TABLE, TREE, engine="skbio")
    write_result(tmp_path / "f.tsv", faith)
    lines = [line.split("\t") for line in (tmp_path / "f.tsv").read_text().splitlines()]
    assert lines[0] == ["#SampleID", "faith_pd"]
    assert [name for name, _ in lines[1:]] == IDS
    assert [float(value) for _, value in lines[1:]] == faith.values.tolist()
    with pytest.raises(DataError, match="one value a sample"):
        write_result(tmp_path / "f.h5", faith)


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
