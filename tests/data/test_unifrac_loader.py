from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aam.data import unifrac_loader
from aam.data.unifrac_loader import load_distances
from aam.errors import DataError
from tests.real_data import real_data

IDS = ["a", "b", "c"]
VALUES = np.array([[0, 0.25, 0.5], [0.25, 0, 1], [0.5, 1, 0]])


def write(path: Path, kind: str, values=VALUES, ids=IDS) -> Path:
    values = np.asarray(values)
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, values)
    elif kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["order"] = [name.encode() for name in ids]
            file["matrix"] = values
    else:
        rows = ["\t".join([name, *map(str, row)]) for name, row in zip(ids, values.tolist(), strict=False)]
        path.write_text("\n".join(["\t".join(["", *ids]), *rows]) + "\n")
    return path


def refused(path: Path, *words: str, ids=IDS, upper: float | None = 1.0) -> None:
    with pytest.raises(DataError) as caught:
        load_distances(path, ids, upper)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("kind", ["npy", "hdf5", "tsv"])
@pytest.mark.parametrize("dtype", ["f4", ">f8"])
def test_formats(tmp_path, kind, dtype):
    matrix = load_distances(write(tmp_path / "m", kind, VALUES.astype(dtype)), IDS)
    assert matrix.ids == IDS
    assert matrix.values.dtype == np.float32
    np.testing.assert_array_equal(matrix.values, VALUES.astype("f4"))
    np.testing.assert_array_equal(matrix.block([2, 0]), [[0, 0.5], [0.5, 0]])


def test_text_ids_and_numbered_matrix(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["order"] = IDS
        file["matrix:0"] = VALUES
    assert load_distances(path, IDS).ids == IDS
    with h5py.File(path, "a") as file:
        file["matrix:1"] = VALUES
    refused(path, "several matrices")


def test_the_files_order_is_kept(tmp_path):
    assert load_distances(write(tmp_path / "m", "hdf5"), ["c", "other"]).ids == IDS


def test_rounding_is_removed_alike_for_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(unifrac_loader, "_TILE", 3)
    rng = np.random.default_rng(0)
    values = rng.random((8, 8)).astype("f4")
    values = np.triu(values, 1) + np.triu(values, 1).T
    noisy = np.clip(values + rng.uniform(-4e-5, 4e-5, values.shape), -4e-5, 1.00004).astype("f4")
    ids = [f"s{i}" for i in range(8)]
    matrix = load_distances(write(tmp_path / "m.npy", "npy", noisy), ids).values
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(matrix.diagonal(), 0)
    assert matrix.min() == 0
    assert matrix.max() <= 1
    np.testing.assert_allclose(matrix, values, atol=5e-5)
    order = rng.permutation(8)
    permuted = load_distances(write(tmp_path / "p.npy", "npy", noisy[np.ix_(order, order)]), ids).values
    np.testing.assert_array_equal(permuted, matrix[np.ix_(order, order)])


@pytest.mark.parametrize("kind", ["npy", "hdf5", "tsv"])
@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ((0, 2), np.nan, ["'a' and 'c' is nan"]),
        ((0, 2), np.inf, ["'a' and 'c' is inf"]),
        ((0, 2), 1e300, ["inf"]),
        ((1, 0), -0.25, ["'b' and 'a' is -0.25", "negative"]),
        ((1, 0), 0.26, ["not symmetric", "'a'", "'b'", "0.26"]),
        ((1, 0), 1.5, ["unweighted UniFrac is bounded by 1"]),
        ((1, 1), 0.5, ["'b' to itself is 0.5"]),
    ],
)
def test_wrong_values(tmp_path, kind, entry, value, words):
    values = VALUES.copy()
    values[entry] = value
    refused(write(tmp_path / "m", kind, values), *words)


def test_upper_bound_is_an_option(tmp_path):
    path = write(tmp_path / "m", "npy", VALUES * 3)
    assert load_distances(path, IDS, upper=None).values.max() == 3
    refused(path, "bounded by 2", upper=2)


@pytest.mark.parametrize("kind", ["npy", "hdf5", "tsv"])
def test_not_square(tmp_path, kind):
    refused(write(tmp_path / "m", kind, VALUES[:2]), "2 × 3", "not a square")


def test_wrong_ids(tmp_path):
    refused(write(tmp_path / "m", "npy"), "3 rows", "4 samples", ids=[*IDS, "d"])
    refused(write(tmp_path / "m", "hdf5"), "none of its 3 samples", "'x'", ids=["x"])
    refused(write(tmp_path / "m", "hdf5", ids=["a", "b", "a"]), "duplicate sample ID", "'a'")
    refused(write(tmp_path / "m", "hdf5", ids=["a", "b"]), "2 IDs in 'order' for 3 rows")
    path = write(tmp_path / "m", "tsv")
    path.write_text(path.read_text().replace("\nb\t", "\nx\t"))
    refused(path, "row 'x'", "'b'")


def test_not_a_matrix(tmp_path):
    path = tmp_path / "m"
    refused(path, "no such file")
    for value, words in [
        (np.array([["x"]], dtype=object), "Python objects"),
        (np.array([["x"]]), "type <U1"),
        (np.array(1.0), "single value"),
        (np.zeros(3), "3, not a square"),
    ]:
        with path.open("wb") as file:
            np.save(file, value, allow_pickle=True)
        refused(path, words)
    path.write_bytes(pickle.dumps(VALUES))
    refused(path)
    path.write_text("a\tb\n")
    refused(path, "not a square")
    path.write_text("#a\n#b\n")
    refused(path, "not a distance matrix")
    with h5py.File(path, "w") as file:
        file["order"] = IDS
    refused(path, "without 'matrix'")


@pytest.mark.parametrize("kind", ["npy", "hdf5", "tsv"])
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_a_matrix_or_a_data_error(tmp_path, kind, data):
    valid = tmp_path / "valid"
    if not valid.exists():
        write(valid, kind)
    content = bytearray(valid.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        matrix = load_distances(path, IDS)
    except DataError as error:
        message = str(error)
    else:
        np.testing.assert_array_equal(matrix.values, matrix.values.T)
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("name", ["ssu_outputs/unweighted.tsv", "ssu_outputs/unweighted_pcoa.h5"])
def test_what_ssu_writes(name):
    path = real_data("mouse_sleep_apnea_10422/unifrac.h5")
    with h5py.File(path) as file:
        ids = [value.decode() for value in file["order"][()]]
        values = file["matrix"][()]
    matrix = load_distances(real_data(name), ids)
    assert matrix.ids == ids
    np.testing.assert_allclose(matrix.values, values, atol=1e-5)
    np.testing.assert_allclose(load_distances(path, ids).values, values, atol=1e-6)


def test_faith_pd_is_no_matrix():
    refused(real_data("ssu_outputs/faith_pd.tsv"), "not a square matrix")
