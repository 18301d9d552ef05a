from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from aam.data import lazy_matrix
from aam.data.hdf5_layout import hdf5_layout
from aam.data.lazy_matrix import ChunkedMatrix, LazyMatrix, MappedMatrix, VirtualMatrix, lazy_hdf5
from aam.data.unifrac_loader import UniFracLoader
from aam.errors import DataError

VALUES = np.random.default_rng(0).random((40, 30), dtype=np.float32)
ROWS, COLUMNS = np.array([3, 39, 3, 0]), np.array([29, 0, 11])
KINDS = ["raw", "raw columns", "contiguous", "chunked", "virtual"]


def open_matrix(path: Path, name: str = "matrix") -> LazyMatrix:
    with h5py.File(path) as file:
        return lazy_hdf5(file, name, path, hdf5_layout(file, name, path))


def make(folder: Path, kind: str, values=VALUES) -> LazyMatrix:
    path = folder / "m.h5"
    if kind.startswith("raw"):
        columns = kind == "raw columns"
        path.write_bytes(b"\0" * 7 + (values.T if columns else values).tobytes())  # not aligned
        return MappedMatrix(path, values.shape, values.dtype, 7, column_major=columns)
    with h5py.File(path, "w") as file:
        if kind == "virtual":
            write_virtual(folder, file, values)
        else:
            options = {"chunks": (7, 4), "compression": "gzip"} if kind == "chunked" else {}
            file.create_dataset("matrix", data=values, **options)
    return open_matrix(path)


def write_virtual(folder: Path, file: h5py.File, values: np.ndarray) -> None:
    """Upper rows from a vector each, the lower left from this file, the lower right from another, chunked."""
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    for row in range(5):
        file[f"row {row}"] = values[row]
        layout[row] = h5py.VirtualSource(".", f"row {row}", values.shape[1:])
    file["left"] = values[3:, :14]
    layout[5:, :14] = h5py.VirtualSource(".", "left", (len(values) - 3, 14))[2:]
    with h5py.File(folder / "right.h5", "w") as other:
        other.create_dataset("part", data=values[5:, 14:], chunks=(3, 3))
    layout[5:, 14:] = h5py.VirtualSource("right.h5", "part", values[5:, 14:].shape)
    file.create_virtual_dataset("matrix", layout)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks(tmp_path, kind):
    matrix = make(tmp_path, kind)
    expected = VALUES[np.ix_(ROWS, COLUMNS)]
    np.testing.assert_array_equal(matrix.block(ROWS, COLUMNS), expected)
    np.testing.assert_array_equal(matrix.whole(), VALUES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(matrix)).block(ROWS, COLUMNS), expected)
    assert matrix.block(ROWS, COLUMNS[:0]).shape == (4, 0)
    assert matrix.block(ROWS[:0], COLUMNS).shape == (0, 3)


def test_which_way_a_file_is_read(tmp_path):
    found = {kind: type(make(tmp_path, kind)) for kind in KINDS}
    assert found["contiguous"] is MappedMatrix
    assert found["chunked"] is ChunkedMatrix
    assert found["virtual"] is VirtualMatrix


@pytest.mark.parametrize("kind", KINDS)
def test_large_blocks_go_in_strips(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(lazy_matrix, "_STRIP_ENTRIES", 70)
    monkeypatch.setattr(lazy_matrix, "_RELEASE_AFTER", 50)
    np.testing.assert_array_equal(make(tmp_path, kind).block(np.arange(40), np.arange(30)), VALUES)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i2"])
@pytest.mark.parametrize("span", [64, 2**24])
def test_positioned_reads(tmp_path, monkeypatch, dtype, span):
    monkeypatch.setattr(lazy_matrix, "_SPAN_BYTES", span)
    values = (VALUES * 100).astype(dtype)
    matrix = make(tmp_path, "raw", values)
    matrix.mapping = False
    np.testing.assert_array_equal(matrix.block(ROWS, COLUMNS), values[np.ix_(ROWS, COLUMNS)].astype("f4"))
    np.testing.assert_array_equal(matrix.block(np.arange(40), np.arange(30)), values.astype("f4"))


def _child(matrix: LazyMatrix, queue: multiprocessing.Queue) -> None:
    queue.put(matrix.block(ROWS, COLUMNS))


@pytest.mark.parametrize("kind", ["contiguous", "chunked", "virtual"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(tmp_path, kind, method):
    matrix = make(tmp_path, kind)
    expected = matrix.block(ROWS, COLUMNS)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_child, args=(matrix, queue)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        np.testing.assert_array_equal(queue.get(timeout=60), expected)
        np.testing.assert_array_equal(matrix.block(ROWS, COLUMNS), expected)
    for child in children:
        child.join()
    queue.close()
    queue.join_thread()


@pytest.mark.parametrize("kind", ["raw", "contiguous", "chunked", "virtual"])
@pytest.mark.parametrize("change", ["truncate", "append", "remove"])
def test_a_file_that_changes_is_noticed(tmp_path, kind, change):
    matrix = make(tmp_path, kind)
    matrix.block(ROWS, COLUMNS)
    if change == "remove":
        matrix.path.unlink()
    else:
        os.truncate(matrix.path, matrix.path.stat().st_size + (1 if change == "append" else -100))
    with pytest.raises(DataError, match="cannot be read" if change == "remove" else "changed while"):
        matrix.block(ROWS, COLUMNS)


def test_truncated(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(bytes(100))
    with pytest.raises(DataError, match="truncated"):
        MappedMatrix(path, (5, 5), np.dtype("f4"), 1)


def sparse_file(path: Path, samples: int) -> None:
    """A matrix of zeros that takes no place on the disk."""
    with h5py.File(path, "w") as file:
        file["order"] = [f"s{i}" for i in range(samples)]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((samples, samples))
        h5py.h5d.create(file.id, b"matrix", h5py.h5t.IEEE_F32LE, space, plan)


def test_a_file_with_holes(tmp_path):
    path = tmp_path / "m.h5"
    sparse_file(path, 30_000)  # 3.6 GB
    assert path.stat().st_blocks * 512 < 2**22
    ids = [f"s{i}" for i in range(30_000)]
    loader = UniFracLoader(path, ids)
    assert not loader.load_matrix().in_memory
    np.testing.assert_array_equal(loader.extract_batch_distances(["s5", "s29999", "s0"]), np.zeros((3, 3)))
    with h5py.File(path, "r+") as file:
        file["matrix"][5, 29_999] = file["matrix"][29_999, 5] = 0.5
    found = UniFracLoader(path, ids).extract_batch_distances(["s29999", "s5"])
    np.testing.assert_array_equal(found, [[0, 0.5], [0.5, 0]])


def test_little_address_space(tmp_path):
    path = tmp_path / "m.h5"
    sparse_file(path, 30_000)
    with h5py.File(path, "r+") as file:
        file["matrix"][5, 29_999] = file["matrix"][29_999, 5] = 0.5
    program = f"""
        import resource
        from pathlib import Path
        from aam.data.unifrac_loader import UniFracLoader
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        loader = UniFracLoader(Path({str(path)!r}), [f"s{{i}}" for i in range(30_000)])
        print(loader.extract_batch_distances(["s29999", "s0", "s5"]).tolist())
        print(loader.load_matrix().source.matrix.mapping)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[[0.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]", "False"]


def test_data_sets_that_were_not_written_everywhere(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        for name, chunks in [("chunked", (100, 100)), ("contiguous", None)]:
            file.create_dataset(name, (50_000, 50_000), "f4", chunks=chunks)
        file["chunked"][7, 9_000] = 0.5
    matrix = open_matrix(path, "chunked")
    np.testing.assert_array_equal(matrix.block(np.array([7, 49_999]), np.array([9_000, 3])), [[0.5, 0], [0, 0]])
    np.testing.assert_array_equal(open_matrix(path, "contiguous").block(ROWS, COLUMNS), np.zeros((4, 3)))


def test_damaged_virtual_data_sets(tmp_path):
    path = make(tmp_path, "virtual").path
    content = path.read_bytes()
    mapping = content.index(b"right.h5") + len(b"right.h5\0part\0")  # its selections follow
    for place, byte in [(4, 0xFF), (8, 0x7F), (12, 0xFF), (20, 0xFF), (-3, 0)]:
        damaged = bytearray(content)
        damaged[mapping + place] = byte
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            open_matrix(path)


def test_what_is_refused(tmp_path):
    path = tmp_path / "m.h5"
    elsewhere = tmp_path / "folder"
    elsewhere.mkdir()
    with h5py.File(elsewhere / "other.h5", "w") as file:
        file["part"] = VALUES
    (tmp_path / "link.h5").symlink_to(elsewhere / "other.h5")

    def virtual(name: str, shape=(40, 30), rows=slice(None), take=(slice(None), slice(None))):
        layout = h5py.VirtualLayout((40, 30), "f4")
        layout[rows] = h5py.VirtualSource(name, "part", shape)[take]
        return layout

    cases = {
        "in another folder": virtual("folder/other.h5"),
        "folder": virtual(str(elsewhere / "other.h5")),
        "'link.h5', in another folder": virtual("link.h5"),
        "'../other.h5', in another folder": virtual("../other.h5"),
        "lacks 'missing.h5'": virtual("missing.h5"),
        "lie nowhere": virtual(".", (20, 30), slice(0, 20)),
        "more from '.'": virtual(".", (50, 30), take=(slice(5, 45), slice(None))),
        "not rectangles": virtual(".", (80, 30), take=(slice(0, 80, 2), slice(None))),
        "parts that are virtual": virtual(".", (40, 30)),
    }
    for words, layout in cases.items():
        with h5py.File(path, "w") as file:
            if words == "parts that are virtual":
                file["real"] = VALUES
                inner = h5py.VirtualLayout((40, 30), "f4")
                inner[:] = h5py.VirtualSource(".", "real", (40, 30))
                file.create_virtual_dataset("part", inner)
            else:
                file["part"] = VALUES
            file.create_virtual_dataset("matrix", layout)
        with pytest.raises(DataError, match=words):
            open_matrix(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", (8192, 8192), "f4", chunks=(8192, 8192), compression="gzip")
        file.create_dataset("outside", (40, 30), "f4", external=[("raw", 0, 4800)])
        file["text"] = [["a"]]
        file["link"] = h5py.ExternalLink("folder/other.h5", "part")
        file.create_group("group")
    for name, words in [
        ("matrix", "h5repack -l matrix:CONTI"),
        ("outside", "points to another file"),
        ("link", "points to another file"),
        ("text", "has type object"),
        ("group", "not an array"),
        ("nothing", "without 'nothing'"),
    ]:
        with pytest.raises(DataError, match=words):
            open_matrix(path, name)
