from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aam.data import unifrac_loader
from aam.data.unifrac_loader import (
    DistanceMatrix,
    SampleValues,
    StripeMatrix,
    UniFracLoader,
    load_distances,
    load_reference_ids,
)
from aam.errors import DataError
from tests.data.artifacts import write_artifact
from tests.real_data import real_data

IDS = ["a", "b", "c"]
VALUES = np.array([[0, 0.25, 0.5], [0.25, 0, 1], [0.5, 1, 0]])
KINDS = ["npy", "npz", "npz-packed", "hdf5", "hdf5-packed", "tsv", "tsv.gz", "csv", "lsmat", "qza"]
NAMELESS = {"npy"}
ON_DISK = {"npy", "npz", "hdf5", "hdf5-packed"}  # kinds that are read from their file when they are large


def text_table(values, ids, columns, delimiter="\t", corner="") -> str:
    rows = [delimiter.join([name, *map(repr, row)]) for name, row in zip(ids, values.tolist(), strict=False)]
    return "\n".join([delimiter.join([corner, *columns]), *rows]) + "\n"


def write(path: Path, kind: str, values=VALUES, ids=IDS, references=None) -> Path:
    """A matrix in a format; one of stripes where it has references."""
    values = np.asarray(values)
    columns = ids if references is None else references
    named = {} if references is None else {"reference_ids": np.array(references)}
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, values)
    elif kind.startswith("npz"):
        save = np.savez if kind == "npz" else np.savez_compressed
        with path.open("wb") as file:
            save(file, matrix=values, ids=np.array(ids), **named)
    elif kind.startswith("hdf5"):
        with h5py.File(path, "w") as file:
            file["order"] = [name.encode() for name in ids]
            if references is not None:
                file["reference_ids"] = references
            packed = {"chunks": (2, 2), "compression": "gzip", "shuffle": True} if kind == "hdf5-packed" else {}
            file.create_dataset("matrix", data=values, **packed)
    elif kind == "lsmat":
        from skbio import DistanceMatrix as SkbioMatrix

        path.write_text(str(SkbioMatrix(values, ids).write(io.StringIO(), format="lsmat").getvalue()))
    elif kind == "csv":
        pd.DataFrame(values, ids, columns).to_csv(path, na_rep="nan")
    elif kind == "qza":
        write_artifact(path, "DistanceMatrix", {"distance-matrix.tsv": text_table(values, ids, columns).encode()})
    elif kind == "tsv.gz":
        path.write_bytes(gzip.compress(text_table(values, ids, columns).encode()))
    else:
        path.write_text(text_table(values, ids, columns))
    return path


def random_distances(samples: int, seed: int = 0) -> np.ndarray:
    values = np.triu(np.random.default_rng(seed).random((samples, samples), dtype=np.float32), 1)
    return values + values.T


def refused(path: Path, *words: str, ids=IDS, upper: float | None = 1.0, **options) -> None:
    read = UniFracLoader(path, ids, upper=upper, **options).load_matrix if options else None
    with pytest.raises(DataError) as caught:
        load_distances(path, ids, upper) if read is None else read()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f4", ">f8"])
def test_formats(tmp_path, kind, dtype):
    values = random_distances(5).astype(dtype)
    ids = [f"s{i}" for i in range(5)]
    matrix = load_distances(write(tmp_path / "m", kind, values.astype(float) if kind == "lsmat" else values, ids), ids)
    assert matrix.ids == ids
    assert matrix.shape == (5, 5)
    assert matrix.in_memory
    assert matrix.values.dtype == np.float32
    np.testing.assert_array_equal(matrix.values, values.astype("f4"))
    np.testing.assert_array_equal(matrix.block([2, 0]), values[np.ix_([2, 0], [2, 0])].astype("f4"))
    np.testing.assert_array_equal(matrix.block([2, 0], [4]), values[np.ix_([2, 0], [4])].astype("f4"))


@pytest.mark.parametrize("kind", sorted(ON_DISK))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_a_matrix_in_its_file_gives_the_same_blocks(tmp_path, kind, dtype):
    values = random_distances(90).astype(dtype)
    ids = [f"s{i}" for i in range(90)]
    path = write(tmp_path / "m", kind, values, ids)
    lazy = UniFracLoader(path, ids, memory_limit=1000).load_matrix()
    assert isinstance(lazy, DistanceMatrix)
    assert not lazy.in_memory
    whole = load_distances(path, ids)
    rng = np.random.default_rng(0)
    for rows, columns in [
        (rng.permutation(90)[:16], None),
        (rng.integers(0, 90, 20), rng.integers(0, 90, 7)),
        (np.arange(90), None),
        ([], None),
    ]:
        np.testing.assert_array_equal(lazy.block(rows, columns), whole.block(rows, columns))


def test_fortran_order(tmp_path):
    values = np.asfortranarray(random_distances(9))
    ids = [f"s{i}" for i in range(9)]
    stripes, references = np.asfortranarray(values[:, :4]), ids[:4]
    path = write(tmp_path / "m", "npy", stripes)
    for limit in (10, 1000):
        matrix = UniFracLoader(path, ids, reference_ids=references, memory_limit=limit).load_matrix()
        np.testing.assert_array_equal(matrix.block([8, 1, 5], [3, 0]), values[np.ix_([8, 1, 5], [3, 0])])


def test_layouts_of_hdf5(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["order"] = IDS
        file["matrix:0"] = VALUES
        file["pcoa_samples"] = np.zeros((3, 2))
    assert load_distances(path, IDS).ids == IDS
    with h5py.File(path, "a") as file:  # of several rarefactions
        file["matrix:1"] = VALUES / 2
        file["matrix:2"] = VALUES / 4
    for limit in (0, 2**20):
        matrix = UniFracLoader(path, IDS, memory_limit=limit).load_matrix()
        np.testing.assert_allclose(matrix.block([0, 1, 2]), VALUES * 7 / 12, rtol=1e-6)
    with h5py.File(path, "a") as file:
        file["matrix:3"] = VALUES[:2, :2]
    refused(path, "several sizes")
    with h5py.File(path, "w") as file:  # no IDs: the order of the table
        file["matrix"] = VALUES
    assert load_distances(path, IDS).ids == IDS
    refused(path, "3 rows", "4 samples", ids=[*IDS, "d"])
    with h5py.File(path, "w", userblock_size=512) as file:
        file["order"] = np.array(IDS, dtype="S1")
        file["matrix"] = VALUES
    np.testing.assert_array_equal(load_distances(path, IDS).values, VALUES)
    np.testing.assert_array_equal(UniFracLoader(path, IDS, memory_limit=0).load_matrix().block([0, 1, 2]), VALUES)


def test_the_files_order_is_kept(tmp_path):
    assert load_distances(write(tmp_path / "m", "hdf5"), ["c", "other"]).ids == IDS


def test_columns_in_another_order_than_rows(tmp_path):
    order = [2, 0, 1]
    path = tmp_path / "m"
    path.write_text(text_table(VALUES[:, order], IDS, [IDS[i] for i in order]))
    matrix = load_distances(path, IDS)
    assert matrix.ids == IDS
    np.testing.assert_array_equal(matrix.values, VALUES)


def test_text_as_other_programs_write_it(tmp_path):
    path = tmp_path / "m"
    frame = pd.DataFrame(VALUES, IDS, IDS)
    texts = [
        frame.to_csv(),
        frame.to_csv(sep="\t", index_label="#SampleID"),
        frame.to_csv(sep="\t").replace("\n", "\r\n"),
        "\ufeff" + frame.to_csv(sep="\t"),
        "# a comment\n\n" + frame.to_csv(sep="\t"),
        frame.to_csv(quoting=2),  # quotes all that is no number
        "\n".join(["\t".join(f'"{name}"' for name in IDS), *frame.to_csv(sep="\t").splitlines()[1:]]),  # as R does
        frame.rename(lambda name: f" {name} ").to_csv(sep="\t"),
    ]
    for text in texts:
        path.write_text(text)
        matrix = load_distances(path, IDS)
        assert matrix.ids == IDS
        np.testing.assert_array_equal(matrix.values, VALUES)


def test_rounding_is_removed_alike_for_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(unifrac_loader, "_TILE", 3)
    rng = np.random.default_rng(0)
    values = random_distances(8)
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


def test_a_pairs_distance_does_not_depend_on_the_block(tmp_path):
    rng = np.random.default_rng(0)
    noisy = (random_distances(12) + rng.uniform(-4e-5, 4e-5, (12, 12))).astype("f4")
    path = write(tmp_path / "m.npy", "npy", noisy)
    matrix = UniFracLoader(path, [f"s{i}" for i in range(12)], memory_limit=0).load_matrix()
    whole = matrix.block(np.arange(12))
    np.testing.assert_array_equal(whole, whole.T)
    np.testing.assert_array_equal(whole.diagonal(), 0)
    np.testing.assert_array_equal(whole, np.triu(np.clip(noisy, 0, 1), 1) + np.triu(np.clip(noisy, 0, 1), 1).T)
    for rows, columns in [([7, 3], None), ([3], [7]), ([7], [3]), ([5, 5, 1], [1, 5])]:
        np.testing.assert_array_equal(
            matrix.block(rows, columns), whole[np.ix_(rows, rows if columns is None else columns)]
        )


WRONG = [
    ((0, 2), np.nan, ["'a' and 'c' is nan"]),
    ((0, 2), np.inf, ["'a' and 'c' is inf"]),
    ((0, 2), 1e300, ["inf"]),
    ((1, 0), -0.25, ["'b' and 'a' is -0.25", "negative"]),
    ((1, 0), 0.26, ["not symmetric", "'a'", "'b'", "0.26"]),
    ((1, 0), 1.5, ["'b' and 'a' is 1.5", "unweighted UniFrac is bounded by 1", "unnormalised", "weighted_normalized"]),
    ((1, 1), 0.5, ["'b' to itself is 0.5"]),
]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lsmat"])
@pytest.mark.parametrize(("entry", "value", "words"), WRONG)
def test_wrong_values(tmp_path, kind, entry, value, words):
    values = VALUES.copy()
    values[entry] = value
    refused(write(tmp_path / "m", kind, values), *words)
    if kind in ON_DISK:
        refused(tmp_path / "m", *words, memory_limit=0)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "nan"), (-0.5, "negative"), (1.5, "bounded by 1"), (np.inf, "inf")]
)
def test_wrong_values_that_show_only_in_a_block(tmp_path, value, words):
    ids = [f"s{i}" for i in range(400)]
    values = random_distances(400)
    values[7, 301] = values[301, 7] = value
    loader = UniFracLoader(write(tmp_path / "m", "hdf5", values, ids), ids, memory_limit=1000)
    loader.load_matrix()
    np.testing.assert_array_equal(loader.extract_batch_distances(["s9", "s301"]), values[np.ix_([9, 301], [9, 301])])
    with pytest.raises(DataError) as caught:
        loader.extract_batch_distances(["s9", "s301", "s7"])
    assert "'s301' and 's7'" in str(caught.value)
    assert words in str(caught.value)


def test_a_distance_to_itself_that_shows_only_in_a_block(tmp_path):
    ids = [f"s{i}" for i in range(400)]
    values = random_distances(400)
    values[7, 7], values[8, 8] = 0.5, 5e-5
    path = tmp_path / "m"
    for references in (None, ids[:200]):
        stripes = values if references is None else values[:, :200]
        write(path, "hdf5", stripes, ids, references)
        matrix = UniFracLoader(path, ids, memory_limit=1000).load_matrix()
        assert matrix.block([8], [8])[0, 0] == 0
        with pytest.raises(DataError, match="'s7' to itself"):
            matrix.block([3, 7], [9, 7])


def test_upper_bound_is_an_option(tmp_path):
    path = write(tmp_path / "m", "npy", VALUES * 3)
    assert load_distances(path, IDS, upper=None).values.max() == 3
    refused(path, "bounded by 2", upper=2)
    refused(path, "Meta UniFrac is bounded by 1", metric_name="Meta UniFrac")


@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5", "tsv", "csv", "qza"])
def test_not_square(tmp_path, kind):
    references = IDS if kind in ("tsv", "csv", "qza") else None
    refused(write(tmp_path / "m", kind, VALUES[:2], IDS[:2], references), "2 × 3", "not a square")


def test_wrong_ids(tmp_path):
    refused(write(tmp_path / "m", "npy"), "3 rows", "4 samples", ids=[*IDS, "d"])
    refused(write(tmp_path / "m", "hdf5"), "none of its 3 samples", "'x'", ids=["x"])
    refused(write(tmp_path / "m", "hdf5"), "none of its 3 samples", "upper and lower case", ids=["A", "B"])
    refused(write(tmp_path / "m", "hdf5", ids=["a", "b", "a"]), "duplicate sample ID", "'a'")
    refused(write(tmp_path / "m", "hdf5", ids=["a", "b"]), "2 IDs in 'order' for 3 rows")
    refused(write(tmp_path / "m", "npz", ids=["a", "b"]), "2 IDs", "3 rows")
    refused(write(tmp_path / "m", "tsv", ids=["a", "b", ""]), "empty sample ID")
    refused(write(tmp_path / "m", "hdf5", ids=["a", "b", "b "]), "white space")
    refused(write(tmp_path / "m", "tsv", ids=["a", "b", "b "]), "white space")
    path = write(tmp_path / "m", "tsv")
    path.write_text(path.read_text().replace("\nb\t", "\nx\t"))
    refused(path, "row 'x'", "'b'")


def test_not_a_matrix(tmp_path):
    path = tmp_path / "m"
    refused(path, "no such file")
    for value, words in [
        (np.array([["x"]], dtype=object), "Python objects"),
        (np.array([["x"]]), "type <U1"),
        (np.array([[True]]), "type bool"),
        (np.zeros((2, 2), dtype=[("x", "f4")]), "type [('x'"),
        (np.array(1.0), "single value"),
        (np.zeros(3), "3, not a square"),
        (np.zeros((3, 3, 3)), "3 × 3 × 3, not a square"),
        (np.zeros((0, 0)), "0 × 0, not a square"),
    ]:
        with path.open("wb") as file:
            np.save(file, value, allow_pickle=True)
        refused(path, words)
        with path.open("wb") as file:
            np.savez(file, matrix=value, allow_pickle=True)
        refused(path)
    path.write_bytes(pickle.dumps(VALUES))
    refused(path)
    for text, words in [
        ("a\tb\n", "not a square"),
        ("#a\n#b\n", "not a distance matrix"),
        ("3\na 0 .25 .5\nb .25 0 1\nc .5 1 0\n", "PHYLIP"),
        ("\ta\tb\tc\na\t0\nb\t.25\t0\nc\t.5\t1\t0\n", "triangle"),
        ("\ta\tb\tc\na\t0\t0.1\t0.2\nb\t.25\t0\n", "row 'b' has 2 distances for 3"),
        ("\ta\tb\tc\na\t0\t0.1\t0.2\nb\t.25\t0\tx\n", "'x' of sample 'b' is not a number"),
        ('\ta\tb\tc\na\t0\t0.1\t"0.2\n', "quotation marks"),
        ("\ta\tb\0\n", "NUL"),
    ]:
        path.write_text(text)
        refused(path, words)
    path.write_bytes(b"\ta\tb\na\t0\t\xff\n")
    refused(path, "UTF-8")
    path.write_bytes(gzip.compress(text_table(VALUES, IDS, IDS).encode())[:-20])
    refused(path, "cannot be unpacked")
    with h5py.File(path, "w") as file:
        file["order"] = IDS
    refused(path, "without 'matrix'")
    with h5py.File(path, "a") as file:
        file["matrix"] = h5py.ExternalLink("other.h5", "matrix")
    refused(path, "points to another file")
    with h5py.File(path, "w") as file:
        file["order"] = IDS
        file.create_dataset("matrix", (3, 3), "f4", external=[("other.raw", 0, 36)])
    refused(path, "points to another file")
    write_artifact(path, "FeatureData[Taxonomy]", {"taxonomy.tsv": b"x"})
    refused(path, "FeatureData[Taxonomy]", "DistanceMatrix")
    write_artifact(path, "DistanceMatrix", {"distance-matrix.tsv": b"\tfaith_pd\na\t1\n"})
    refused(path, "another kind")


def test_archives_of_arrays_that_lie(tmp_path):
    path = tmp_path / "m.npz"

    def archive(head: bytes, content: bytes, method=zipfile.ZIP_DEFLATED) -> None:
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("matrix.npy", head + content)

    def header(shape: tuple[int, ...]) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return file.getvalue()

    archive(header((3, 3)), np.zeros((3, 3), "f4").tobytes())
    load_distances(path, IDS)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive(header((2**20, 2**20)), bytes(36), method)
        refused(path, "claims")
    archive(header((3, 3)), bytes(36), zipfile.ZIP_LZMA)
    refused(path, "NumPy does not write")
    size = 2**13  # 256 MiB of zeros in 260 KB
    archive(header((size, size)), bytes(4 * size * size))
    refused(path, "claims", memory_limit=2**20)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("matrix.npy", header((3, 3)) + bytes(36))
        file.writestr("code.py", "")
    refused(path, "'code.py'")
    with path.open("wb") as file:
        np.savez(file, one=VALUES, other=VALUES)
    refused(path, "'one', 'other'")
    with path.open("wb") as file:
        np.savez(file, matrix=VALUES, ids=np.arange(3))
    refused(path, "'ids' is not a vector of text")
    with path.open("wb") as file:
        np.savez(file, matrix=VALUES, ids=np.array(IDS, dtype=object))
    refused(path, "'ids' holds Python objects", "np.array(ids, dtype=str)")
    for ids in (np.array(IDS, dtype="S"), np.array(IDS)):
        with path.open("wb") as file:
            np.savez(file, VALUES, sample_ids=ids)
        assert load_distances(path, IDS).ids == IDS


STRIPE_IDS = [f"s{i}" for i in range(8)]
STRIPE_REFERENCES = ["s6", "s1", "s3"]
STRIPES = random_distances(8, 1)[:, [6, 1, 3]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lsmat"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_stripes(tmp_path, kind, limit):
    path = write(tmp_path / "m", kind, STRIPES, STRIPE_IDS, STRIPE_REFERENCES)
    given = STRIPE_REFERENCES if kind in NAMELESS else None
    loader = UniFracLoader(path, STRIPE_IDS, reference_ids=given, memory_limit=limit)
    matrix = loader.load_matrix()
    assert isinstance(matrix, StripeMatrix)
    assert matrix.in_memory is (limit > 0 or kind not in ON_DISK)
    assert matrix.ids == STRIPE_IDS
    assert matrix.reference_ids == STRIPE_REFERENCES
    assert matrix.shape == (8, 3)
    np.testing.assert_array_equal(matrix.block(np.arange(8)), STRIPES)
    np.testing.assert_array_equal(matrix.block([5, 0, 6], [2, 0]), STRIPES[np.ix_([5, 0, 6], [2, 0])])
    found = loader.extract_batch_stripe_distances(["s5", "s6"], ["s3", "s6"])
    np.testing.assert_array_equal(found, STRIPES[np.ix_([5, 6], [2, 0])])
    assert found.dtype == np.float32
    with pytest.raises(DataError, match="not a square matrix"):
        loader.extract_batch_distances(["s5"])
    with pytest.raises(DataError, match=r"1 of 2 references .*'s0'"):
        loader.extract_batch_stripe_distances(["s5"], ["s3", "s0"])
    with pytest.raises(DataError, match=r"1 of 1 samples .*'x'"):
        loader.extract_batch_stripe_distances(["x"], ["s3"])


@pytest.mark.parametrize("kind", ["npy", "hdf5"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_references_of_stripes(tmp_path, kind, limit):
    path = tmp_path / "m"
    if kind == "npy":
        write(path, kind, STRIPES)
    else:
        with h5py.File(path, "w") as file:
            file["order"] = STRIPE_IDS
            file["matrix"] = STRIPES
    good = UniFracLoader(path, STRIPE_IDS, reference_ids=STRIPE_REFERENCES, memory_limit=limit).load_matrix()
    assert good.reference_ids == STRIPE_REFERENCES
    refused(path, "8 × 3, not a square", "--reference-ids", ids=STRIPE_IDS, memory_limit=limit)
    for references, words in [
        (["s6", "s1"], ["3 columns", "names 2"]),
        (["s6", "s1", "s1"], ["duplicate reference ID", "'s1'"]),
        (["s6", "x", "y"], ["2 of its 3 references", "'x', 'y'"]),
        (["s1", "s6", "s3"], ["to itself", "order of the reference IDs"]),
    ]:
        refused(path, *words, ids=STRIPE_IDS, reference_ids=references, memory_limit=limit)
    wrong = STRIPES.copy()
    wrong[2, 1] = np.nan
    write(path, "npy", wrong)
    refused(path, "'s2' and 's1' is nan", ids=STRIPE_IDS, reference_ids=STRIPE_REFERENCES, memory_limit=limit)


def test_references_that_the_file_names_otherwise(tmp_path):
    path = write(tmp_path / "m", "tsv", STRIPES, STRIPE_IDS, STRIPE_REFERENCES)
    refused(path, "names its 3 references itself", ids=STRIPE_IDS, reference_ids=["s0", "s1", "s2"])
    lacking = [name for name in STRIPE_IDS if name != "s6"]
    refused(path, "1 of its 3 references", "'s6'", ids=lacking, memory_limit=0)
    square = write(tmp_path / "square", "tsv")  # has all pairs, so those of any references
    loader = UniFracLoader(square, IDS, reference_ids=["b"])
    assert isinstance(loader.load_matrix(), DistanceMatrix)
    np.testing.assert_array_equal(loader.extract_batch_stripe_distances(["c", "b"], ["b"]), [[1], [0]])


def test_stripes_of_one_reference(tmp_path):
    path = tmp_path / "m"
    path.write_text("\tb\na\t0.25\nb\t0\nc\t1\n")
    matrix = UniFracLoader(path, IDS).load_matrix()
    assert isinstance(matrix, StripeMatrix)
    np.testing.assert_array_equal(matrix.block([0, 1, 2]), [[0.25], [0], [1]])
    path.write_text("\ta\na\t0\n")
    assert load_distances(path, ["a"]).shape == (1, 1)


def test_reference_ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("# references\r\ns1\r\n\r\n s2 \r\n")
    assert load_reference_ids(path) == ["s1", "s2"]
    for text, words in [("s1\ns1\n", "duplicate"), ("# none\n", "no ID"), ("s1\tx\n", "tab")]:
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            load_reference_ids(path)


@pytest.mark.parametrize("header", ["#SampleID\tfaith_pd", "\tfaith_pd", "sample-id\tfaith_pd", "id,faith_pd"])
def test_values_of_samples(tmp_path, header):
    path = tmp_path / "v.tsv"
    mark = "," if "," in header else "\t"
    path.write_text(header + f"\nb{mark}11.51899992553371\na{mark}0.5\n")
    packed = write_artifact(
        tmp_path / "v.qza", "SampleData[AlphaDiversity]", {"alpha-diversity.tsv": path.read_bytes()}
    )
    for source in (path, packed):
        loader = UniFracLoader(source, IDS, upper=None)
        values = loader.load_matrix()
        assert isinstance(values, SampleValues)
        assert values.ids == ["b", "a"]
        assert values.name == "faith_pd"
        assert values.values.dtype == np.float64
        np.testing.assert_array_equal(values.values, [11.51899992553371, 0.5])
        np.testing.assert_array_equal(loader.extract_batch_values(["a", "b", "a"]), [0.5, 11.51899992553371, 0.5])
        with pytest.raises(DataError, match="one value a sample"):
            loader.extract_batch_distances(["a"])
        with pytest.raises(DataError, match="one value a sample"):
            loader.extract_batch_stripe_distances(["a"], ["b"])
    with pytest.raises(DataError, match="holds distances"):
        UniFracLoader(write(tmp_path / "m", "tsv"), IDS).extract_batch_values(["a"])


def test_wrong_values_of_samples(tmp_path):
    path = tmp_path / "v.tsv"
    for value, words in [("nan", "nan"), ("-1", "-1"), ("inf", "inf"), ("x", "not a number"), ("", "not a number")]:
        path.write_text(f"#SampleID\tfaith_pd\na\t1\nb\t{value}\n")
        refused(path, "'b'", words)
    path.write_text("#SampleID\tfaith_pd\nx\t1\n")
    refused(path, "none of its 1 samples")
    path.write_text("#SampleID\tfaith_pd\na\t1\na\t1\n")
    refused(path, "duplicate sample ID")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0, 2**20])
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_a_matrix_or_a_data_error(tmp_path, kind, limit, data):
    valid = tmp_path / "valid"
    if not valid.exists():
        write(valid, kind)
    content = bytearray(valid.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    message = ""
    try:
        matrix = UniFracLoader(path, IDS, memory_limit=limit).load_matrix()
        block = matrix.block(np.arange(len(matrix.ids)))
    except DataError as error:
        message = str(error)
    else:
        assert np.isfinite(block).all()
        if isinstance(matrix, DistanceMatrix):
            np.testing.assert_array_equal(block, block.T)
    assert "\n" not in message


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.text(alphabet='\t\n\r,"#a1.0e-\0', max_size=60) | st.binary(max_size=60))
def test_any_bytes_give_a_matrix_or_a_data_error(tmp_path, content):
    path = tmp_path / "m"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = ""
    try:
        UniFracLoader(path, ["a", "1"]).load_matrix()
    except DataError as error:
        message = str(error)
    assert "\n" not in message


@pytest.fixture
def mouse() -> tuple[list[str], np.ndarray]:
    with h5py.File(real_data("mouse_sleep_apnea_10422/unifrac.h5")) as file:
        return [value.decode() for value in file["order"][()]], file["matrix"][()]


@pytest.mark.parametrize("name", ["unweighted.tsv", "unweighted_pcoa.h5", "../mouse_sleep_apnea_10422/unifrac.h5"])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_what_ssu_writes(mouse, name, limit):
    ids, values = mouse
    loader = UniFracLoader(real_data("ssu_outputs") / name, ids, memory_limit=limit)
    matrix = loader.load_matrix()
    assert matrix.ids == ids
    # ssu computed the text and the fp64 file in another precision.
    np.testing.assert_allclose(matrix.block(np.arange(len(ids))), values, atol=1e-6)
    np.testing.assert_allclose(loader.extract_batch_distances(ids[9:5:-1]), values[9:5:-1, 9:5:-1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_distances_through_every_format(tmp_path, mouse, kind):
    ids, values = mouse
    path = write(tmp_path / "m", kind, values.astype(float) if kind == "lsmat" else values, ids)
    expected = load_distances(real_data("mouse_sleep_apnea_10422/unifrac.h5"), ids).values
    np.testing.assert_array_equal(expected, values)
    np.testing.assert_array_equal(load_distances(path, ids).values, expected)
    lazy = UniFracLoader(path, ids, memory_limit=0).load_matrix()
    np.testing.assert_array_equal(lazy.block(np.arange(len(ids))), expected)


def test_other_metrics_that_ssu_writes(mouse):
    ids, _ = mouse
    with h5py.File(real_data("ssu_outputs/weighted_normalized.h5")) as file:
        values = file["matrix"][()]
    matrix = load_distances(real_data("ssu_outputs/weighted_normalized.h5"), ids)
    np.testing.assert_array_equal(matrix.values, values)
    refused(real_data("ssu_outputs/faith_pd.tsv"), "one value a sample", "not a square matrix", ids=ids)
    loaded = UniFracLoader(real_data("ssu_outputs/faith_pd.tsv"), ids).load_matrix()
    rows = [line.split("\t") for line in real_data("ssu_outputs/faith_pd.tsv").read_text().splitlines()[1:]]
    assert loaded.ids == [row[0] for row in rows]
    assert loaded.values.tolist() == [float(row[1]) for row in rows]
