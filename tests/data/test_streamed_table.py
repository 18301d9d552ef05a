from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aam.data.biom_loader import load_table
from aam.data.simulate import simulate_study, write_study
from aam.data.streamed_table import StreamedTable
from aam.errors import DataError
from tests.data.test_counts import dense


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(simulate_study(samples=20, asvs=30, subjects=5, length=40, depth=200), folder)
    return folder / "table.biom"


def changed(path: Path, target: Path, change: Callable[[h5py.File], None]) -> Path:
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def set_data(name: str, place: int, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[f"sample/matrix/{name}"][place] = value

    return change


def test_it_is_the_table_that_is_read_whole(path):
    whole, streamed = load_table(path), StreamedTable(path)
    assert streamed.sample_ids == whole.sample_ids and streamed.feature_ids == whole.feature_ids
    assert streamed.shape == whole.shape
    np.testing.assert_array_equal(streamed.depth, whole.counts.sum(axis=1))
    assert streamed.fraction is None
    asked = np.array([7, 3, 4, 5, 19, 0, 7])  # neighbours and repeats among them
    np.testing.assert_array_equal(dense(streamed.rows(asked), 30), whole.counts.toarray()[asked])


@pytest.fixture(params=["copied", "in its file", "no room"], autouse=True)
def _copied_or_not(request, monkeypatch):
    """A table whose chunks hold many samples is copied, unpacked."""
    if request.param == "in its file":
        monkeypatch.setattr("aam.data.streamed_table._SAMPLES_OF_A_CHUNK", 10**9)
    elif request.param == "no room":
        monkeypatch.setenv("TMPDIR", "/nowhere")
        monkeypatch.setattr("tempfile.tempdir", "/nowhere")


def test_features_in_any_order_and_stored_zeros(path, tmp_path):
    def change(file: h5py.File) -> None:
        indptr = file["sample/matrix/indptr"][:]
        for name in ("indices", "data"):
            values = file[f"sample/matrix/{name}"][:]
            values[indptr[2] : indptr[3]] = values[indptr[2] : indptr[3]][::-1]
            if name == "data":
                values[0] = 0
            file[f"sample/matrix/{name}"][:] = values

    found = changed(path, tmp_path / "t.biom", change)
    expected = load_table(found).counts.toarray()
    np.testing.assert_array_equal(dense(StreamedTable(found).rows(np.arange(20)), 30), expected)


def _sums(table: StreamedTable, samples: list[int], results: multiprocessing.Queue) -> None:
    results.put(table.rows(np.array(samples)).counts.sum())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_share_it(path):
    """Each opens the file for itself; the parent has read from it before."""
    table = StreamedTable(path)
    before = table.rows(np.arange(5)).counts.sum()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_sums, args=(table, list(range(5)), results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [before, before]
    for worker in workers:
        worker.join()


def test_a_copy_opens_the_file_again(path):
    table = StreamedTable(path)
    table.rows(np.array([1]))
    copy = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(copy.rows(np.array([1])).counts, table.rows(np.array([1])).counts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_data("data", 5, -1), ["negative"]),
        (set_data("data", 5, np.nan), ["not finite"]),
        (set_data("indices", 3, 99), ["index 99", "30 IDs"]),
        (set_data("indptr", 20, 3), ["indptr"]),
        (set_data("indptr", 0, 1), ["indptr"]),
        (lambda file: file["sample/matrix/indices"].__setitem__(1, file["sample/matrix/indices"][0]), ["twice"]),
        (lambda file: file.__delitem__("sample/matrix"), ["sample/matrix", "--streaming"]),
        (lambda file: file["sample/matrix/data"].__setitem__(slice(None), 0), ["every count is zero"]),
    ],
)
def test_what_is_damaged_is_refused(change, words, path, tmp_path):
    broken = changed(path, tmp_path / "t.biom", change)
    with pytest.raises(DataError) as caught:
        StreamedTable(broken)
    for word in [str(broken), *words]:
        assert word in str(caught.value)


def test_fractions_are_noticed(path, tmp_path):
    assert StreamedTable(changed(path, tmp_path / "t.biom", set_data("data", 3, 1.5))).fraction == 1.5


def test_text_cannot_be_streamed(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("#OTU ID\ta\nACGT\t1\n")
    with pytest.raises(DataError, match=r"--streaming reads BIOM 2\.1"):
        StreamedTable(table)


@given(st.data())
def test_no_bytes_give_anything_but_a_data_error(path, tmp_path_factory, data):
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    broken = tmp_path_factory.mktemp("broken") / "t.biom"
    broken.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with suppress(DataError):
        table = StreamedTable(broken)
        table.rows(np.arange(len(table.sample_ids)))
