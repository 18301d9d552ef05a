"""`aam benchmark data`: its simulated files against other readers, its figures, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import biom
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from skbio import TreeNode

from aam.benchmarks.memory import highest_memory, own_memory, stoppable
from aam.benchmarks.simulated_files import Size, simulated_newick, simulated_sequences, write_matrix, write_table
from aam.cli.main import cli
from aam.data.simulate import simulate_study, write_study
from aam.data.streamed_table import StreamedTable

TINY_MODEL = ["--embedding-dim", "16", "--clades", "4", "--attention-layers", "1", "--batch-size", "6"]


def benchmark(*arguments: str) -> list[dict]:
    result = CliRunner().invoke(cli, ["benchmark", "data", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_study_beside_an_epoch(tmp_path: Path):
    write_study(simulate_study(samples=14, asvs=20, subjects=6, length=40, depth=300, seed=1), tmp_path)
    np.save(tmp_path / "d.npy", np.abs(np.subtract.outer(np.linspace(0, 0.9, 14), np.linspace(0, 0.9, 14))))
    inputs = ["--table", str(tmp_path / "table.biom"), "--unifrac-matrix", str(tmp_path / "d.npy")]
    (found,) = benchmark(*inputs, *TINY_MODEL, "--steps", "1")
    assert (found["samples"], found["batches"]) == (14, 3)
    assert found["epoch_seconds"] == pytest.approx(3 * found["step_seconds"])
    seconds = found["read_seconds"] + found["batches_seconds"]
    assert found["data_share"] == pytest.approx(seconds / found["epoch_seconds"])
    assert found["own_memory_mb"] > 10


def test_a_table_is_what_biom_format_writes(tmp_path: Path):
    size = Size(30, 50, 600)
    sequences = simulated_sequences(50, seed=3)
    write_table(tmp_path / "t.biom", size, sequences, seed=3)
    with h5py.File(tmp_path / "t.biom") as file:
        matrix = file["sample/matrix"]
        assert (np.diff(matrix["indptr"]) == 20).all()
        rows = np.repeat(np.arange(30), 20)
        counts = np.zeros((30, 50))
        np.add.at(counts, (rows, matrix["indices"][:]), matrix["data"][:])
    table = biom.Table(counts.T, [s.decode() for s in sequences], [f"sample{i:07d}" for i in range(30)])
    with h5py.File(tmp_path / "theirs.biom", "w") as theirs:
        table.to_hdf5(theirs, "test")
    ours, expected = (StreamedTable(tmp_path / name) for name in ("t.biom", "theirs.biom"))
    assert (counts > 0).sum() == 600
    assert ours.sample_ids == expected.sample_ids
    assert ours.feature_ids == expected.feature_ids
    np.testing.assert_array_equal(ours.rows(np.arange(30)).asvs, expected.rows(np.arange(30)).asvs)
    with h5py.File(tmp_path / "t.biom") as mine, h5py.File(tmp_path / "theirs.biom") as theirs:
        for name in ("indices", "data"):
            one, other = (file[f"sample/matrix/{name}"] for file in (mine, theirs))
            assert (one.dtype, one.chunks, one.compression) == (other.dtype, other.chunks, other.compression)
            assert (one.compression_opts, one.shuffle) == (other.compression_opts, other.shuffle)


def test_samples_of_both_sizes_are_alike(tmp_path: Path):
    """The same number of ASVs, and one from each class of them."""
    sequences = simulated_sequences(400, seed=0)
    assert len(set(sequences)) == 400
    assert {len(sequence) for sequence in sequences} <= set(range(100, 151))
    means = []
    for samples in (40, 400):
        size = Size(400, 400, 8000).of(samples)
        write_table(tmp_path / f"{samples}.biom", size, sequences, seed=0)
        rows = StreamedTable(tmp_path / f"{samples}.biom").rows(np.arange(samples))
        assert (np.diff(rows.indptr) == 20).all()
        means.append(np.bincount(np.arange(len(rows.asvs)) % 20, weights=rows.asvs) / samples)
    np.testing.assert_allclose(means[0], means[1], atol=10)


def test_a_matrix_is_one_piece_that_takes_no_room(tmp_path: Path):
    write_matrix(tmp_path / "d.h5", 3000)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["matrix"].chunks is None
        assert file["matrix"].id.get_offset() is not None
        assert file["matrix"].shape == (3000, 3000)
        assert len(file["order"]) == 3000
        assert not file["matrix"][::500].any()
    state = (tmp_path / "d.h5").stat()
    assert state.st_size >= 4 * 3000**2
    assert state.st_blocks * 512 < state.st_size / 4


def test_a_tree_has_its_tips_once():
    names = [f"t{i}" for i in range(50)]
    tree = TreeNode.read([simulated_newick(names, seed=1)])
    assert sorted(tip.name for tip in tree.tips()) == sorted(names)
    assert all(len(node.children) in (0, 2) and (node.is_root() or node.length >= 0) for node in tree.traverse())


def test_simulated_sizes_side_by_side(tmp_path: Path):
    arguments = ["--simulate", "40x60x400", "--against", "20", "--work-dir", str(tmp_path), "--steps", "1"]
    smaller, larger = benchmark(*arguments, *TINY_MODEL)
    assert (smaller["samples"], larger["samples"]) == (20, 40)
    assert (smaller["nonzeros"], larger["nonzeros"]) == (200, 400)
    for found in (smaller, larger):
        assert 0 < found["own_memory_before_mb"] <= found["own_memory_mb"] <= found["own_memory_peak_mb"]
        assert min(found[name] for name in ("batch_ms", "counts_ms", "distances_ms", "step_ms")) > 0
    assert not list(tmp_path.iterdir())


def test_pruning(tmp_path: Path):
    (found,) = benchmark("--prune", "2000x50", "--work-dir", str(tmp_path))
    assert (found["tips"], found["kept"]) == (2000, 50)
    assert 0 < found["memory_before_mb"] <= found["peak_memory_mb"] < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--simulate", "10x20"], "SAMPLESxASVSxNONZEROS"),
        (["--simulate", "10x20x-3"], "SAMPLESxASVSxNONZEROS"),
        (["--simulate", "10x20x5"], "5 non-zeros"),
        (["--simulate", "10x20x50", "--against", "11"], "--against 11"),
        (["--prune", "10x20"], "--prune 10x20"),
        (["--prune", "10x5", "--simulate", "10x20x50"], "one of them"),
        ([], "--table"),
    ],
)
def test_sizes_that_cannot_be(arguments, words):
    result = CliRunner().invoke(cli, ["benchmark", "data", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr


def heed_interrupts() -> None:
    """A shell lets what it runs in the background ignore them, tests and all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind_when_it_is_stopped(number, tmp_path: Path):
    arguments = ["benchmark", "data", "--simulate", "4000x2000x400000", "--work-dir", str(tmp_path)]
    command = [sys.executable, "-m", "aam", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_interrupts)
    began = time.monotonic()
    while not list(tmp_path.glob("*/*.biom")) and time.monotonic() < began + 60:
        time.sleep(0.02)
    assert list(tmp_path.iterdir())
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    assert b"Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
@pytest.mark.parametrize(("name", "stop"), [("SIGTERM", SystemExit), ("SIGINT", KeyboardInterrupt)])
def test_a_signal_that_is_lost_comes_again(name, stop):
    """One that arrives while something is let go of that a weak reference watches."""
    said = []

    def work() -> None:
        target = type("Target", (), {})()
        watcher = weakref.ref(target, lambda _: os.kill(os.getpid(), getattr(signal, name)))
        with stoppable():
            del target
            said.append("goes on")
            assert watcher() is None
            time.sleep(30)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    hook, began = sys.unraisablehook, time.monotonic()
    try:
        with pytest.raises(stop):
            work()
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert said == ["goes on"] and time.monotonic() < began + 10
    assert sys.unraisablehook is hook and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_own_memory_grows_with_what_is_held():
    gc.collect()  # what other tests left would be let go of meanwhile
    before = own_memory()
    held = np.ones(2**27, np.uint8)  # 134 MB
    assert own_memory() - before > 0.9 * held.nbytes
    assert highest_memory() >= own_memory()
