from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from biom import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from aam.data.biom_loader import FeatureTable, check_whole_counts, load_table
from aam.data.files import file_sha256
from aam.errors import DataError
from tests.data.artifacts import write_artifact
from tests.real_data import real_data

DENSE = np.array([[5, 0, 1.5], [0, 0, 2], [3, 0, 0], [0, 0, 0]])  # features × samples
FEATURES = ["f0", "f1", "f2", "f3"]
SAMPLES = ["s0", "empty", "s2"]
FORMATS = ["hdf5", "json", "json-dense", "tsv"]
BROKEN = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, kind: str, dense=DENSE, features=FEATURES, samples=SAMPLES) -> Path:
    """Write with biom-format's own writers where it has one."""
    table = Table(np.asarray(dense), features, samples)
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            table.to_hdf5(file, "test")
    elif kind == "json":
        path.write_text(re.sub(r"\b(nan|inf)\b", _as_json, table.to_json("test", creation_date=datetime(2026, 1, 1))))
    elif kind == "json-dense":
        document = json.loads(write(path, "json", DENSE, features, samples).read_text())
        path.write_text(json.dumps(document | {"matrix_type": "dense", "data": np.asarray(dense).tolist()}))
    else:
        path.write_text(table.to_tsv() + "\n")
    return path


def _as_json(match: re.Match[str]) -> str:
    return {"nan": "NaN", "inf": "Infinity"}[match.group()]


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_agrees_with_biom(tmp_path, kind, packed):
    path = write(tmp_path / "table.of.any.name", kind)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
        if kind == "hdf5":
            refused(path, "unpack it")
            return
    table = load_table(path)
    assert table.sample_ids == SAMPLES
    assert table.feature_ids == FEATURES
    assert table.shape == (3, 4)
    np.testing.assert_array_equal(table.counts.toarray(), DENSE.T)
    assert table.counts.dtype == np.float64
    assert table.counts.nnz == 4
    assert table.counts.has_sorted_indices


def test_observation_matrix_is_enough(tmp_path):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        del file["sample/matrix"]
    np.testing.assert_array_equal(load_table(path).counts.toarray(), DENSE.T)


def test_tsv_details(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b"# Constructed from biom file\r\n#OTU ID\ta\tb\ttaxonomy\r\nf\t1\t2\tk__Bacteria; p__\r\n\r\n")
    table = load_table(path)
    assert (table.sample_ids, table.feature_ids) == (["a", "b"], ["f"])
    np.testing.assert_array_equal(table.counts.toarray(), [[1], [2]])
    path.write_text("\ta\tb\nf\t1\t2\n")
    assert load_table(path).shape == (2, 1)


def test_tsv_as_r_writes_it(tmp_path):
    """Cells in quotation marks, and none above the feature IDs."""
    path = tmp_path / "t.tsv"
    path.write_text('"s1"\t"s2"\n"ACGT"\t1\t0\n"CCGT"\t2\t3\n')
    table = load_table(path)
    assert (table.sample_ids, table.feature_ids) == (["s1", "s2"], ["ACGT", "CCGT"])
    np.testing.assert_array_equal(table.counts.toarray(), [[1, 2], [0, 3]])


def test_quotation_marks_within_a_taxon(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('#OTU ID\ts1\ttaxonomy\nACGT\t1\t"Proteobacteria";"Gammaproteobacteria";Pseudomonas\n')
    assert load_table(path).feature_ids == ["ACGT"]


def test_a_column_without_a_name_shifts_no_sample(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("ASV\ts1\ts2\nACGT\t1\t0\t1\n")
    with pytest.raises(DataError, match="line 2 has 4 cells where the header has 3"):
        load_table(path)


def test_fixed_length_ids(tmp_path):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        del file["sample/ids"]
        file["sample/ids"] = np.array(SAMPLES, dtype="S5")
    assert load_table(path).sample_ids == SAMPLES


def test_select_samples():
    table = FeatureTable(sparse.csr_array(DENSE.T), SAMPLES, FEATURES)
    chosen = table.select_samples(np.array([2, 0]))
    assert chosen.sample_ids == ["s2", "s0"]
    np.testing.assert_array_equal(chosen.counts.toarray(), DENSE.T[[2, 0]])


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", FORMATS)
class TestRefused:
    def test_negative(self, tmp_path, kind):
        refused(write(tmp_path / "t", kind, DENSE * [1, 1, -1]), "-1.5", "'f0'", "'s2'", "negative")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, tmp_path, kind, value):
        dense = DENSE.copy()
        dense[2, 0] = value
        refused(write(tmp_path / "t", kind, dense), str(value), "'f2'", "'s0'")

    def test_all_zero(self, tmp_path, kind):
        refused(write(tmp_path / "t", kind, DENSE * 0), "every count is zero")

    def test_truncated(self, tmp_path, kind):
        path = write(tmp_path / "t", kind)
        path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
        refused(path)


def test_duplicate_ids_are_refused(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("#OTU ID\ta\tb\ta\nf\t1\t2\t3\n")
    refused(path, "duplicate sample ID", "'a'")
    path.write_text("#OTU ID\ta\tb\nf\t1\t2\nf\t1\t2\n")
    refused(path, "duplicate feature ID", "'f'")
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        file["sample/ids"][1] = b"s0"
    refused(path, "duplicate sample ID", "'s0'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b">f\nACGT\n", "is not a BIOM"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"\x1f\x8bbroken", "gzip"),
        (b"{", "JSON"),
        (b'{"a": 1}', "'rows'"),
        (b'{"rows": 1, "columns": [], "data": []}', "'rows'"),
        (b'{"rows": [], "columns": [], "data": []}', "no samples"),
        (b'{"rows": [{"id": "f"}], "columns": [{"id": "s"}], "data": [[0, 9, 1]]}', "outside"),
        (b'{"rows": [{"id": "f"}], "columns": [{"id": "s"}], "data": [[0, 0]]}', "'data'"),
        (b'{"rows": [{"id": "f"}], "columns": [{"id": "s"}], "data": [[0, 0, 1], [0, 0, 1]]}', "twice"),
        (b'{"rows": [{"id": "f"}], "columns": [{"id": "s"}], "data": [[0, 0, 1]], "shape": [2, 2]}', "shape"),
        (b"[" * 100_000, "not a BIOM"),
        (b'{"rows":' * 100_000, "JSON"),
        (b"#OTU ID\ts\nf\tmany\n", "'many'"),
        (b"#OTU ID\ts\nf\t1\t2\n", "line 2"),
        (b"#OTU ID\ts\n", "no features"),
        (b"#OTU ID\ttaxonomy\nf\tk__\n", "no samples"),
    ],
)
def test_not_a_table(tmp_path, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(path, words)


def test_unreadable(tmp_path):
    refused(tmp_path / "none.biom", "no such file")
    refused(tmp_path, "directory")
    with pytest.raises(DataError, match="regular file"):
        load_table(Path("/dev/null"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sample/matrix/indices", [9, 9, 9, 9], "index 9"),
        ("sample/matrix/indices", [0, 0, 0, 1], "twice"),
        ("sample/matrix/indices", [0.0, 1, 2, 1], "type float64"),
        ("sample/matrix/indptr", [0, 3, 2, 4], "does not rise"),
        ("sample/matrix/indptr", [0, 4], "indptr has 2"),
        ("sample/matrix/data", [1.0], "4 indices for 1 values"),
        ("sample/matrix/data", [[1.0]], "dimension"),
        ("sample/ids", [b"a", b"b", b"\xff"], "UTF-8"),
        ("sample/ids", [1, 2, 3], "type int64"),
    ],
)
def test_damaged_hdf5(tmp_path, name, value, words):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = value
    refused(path, words)


def test_hdf5_that_reaches_outside_or_claims_too_much(tmp_path):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        del file["sample/matrix/data"]
        file["sample/matrix/data"] = h5py.ExternalLink("/dev/zero", "data")
    refused(path, "points to another file")
    with h5py.File(path, "a") as file:
        del file["sample/matrix/data"]
        file.create_dataset("sample/matrix/data", shape=(10**15,), chunks=(1000,), dtype="f8")
    refused(path, "more than the file holds")


def test_text_reference_that_makes_libhdf5_loop_is_refused(tmp_path):
    path = tmp_path / "t.biom"
    with h5py.File(path, "w") as file:
        file["observation/ids"] = [b"f"]
        file["sample/ids"] = [b"s"]
        offset = file["sample/ids"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 3] = 0xF1
    path.write_bytes(content)
    refused(path, "'sample/ids' is damaged")


@BROKEN
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_table_or_a_data_error(tmp_path, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    try:
        load_table(path)
    except DataError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("kind", FORMATS)
@BROKEN
@given(data=st.data())
def test_mutated_files_give_a_table_or_a_data_error(tmp_path, kind, data):
    valid = tmp_path / "valid"
    if not valid.exists():
        write(valid, kind)
    content = bytearray(valid.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(content)
    try:
        table = load_table(path)
    except DataError as error:
        message = str(error)
    else:
        assert (table.counts.data > 0).all()
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("study", ["mouse_sleep_apnea_10422", "ecam_infant_age"])
def test_real_table_agrees_with_biom(study):
    path = real_data(f"{study}/table.biom")
    table = load_table(path)
    with h5py.File(path) as file:
        reference = Table.from_hdf5(file)
    assert table.sample_ids == list(reference.ids())
    assert table.feature_ids == list(reference.ids(axis="observation"))
    assert abs(table.counts - sparse.csr_array(reference.matrix_data.T)).sum() == 0


DESCRIBED = [{"age": "3", "note": " a "}, {"age": "", "note": "NA"}, {"age": "é", "note": "b"}]


def described(path: Path, kind: str) -> Path:
    table = Table(DENSE, FEATURES, SAMPLES, sample_metadata=DESCRIBED)
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            table.to_hdf5(file, "test")
    else:
        path.write_text(table.to_json("test", creation_date=datetime(2026, 1, 1)))
    return path


@pytest.mark.parametrize("kind", ["hdf5", "json"])
def test_sample_metadata(tmp_path, kind):
    path = described(tmp_path / "t.biom", kind)
    table = load_table(path)
    frame = table.sample_metadata
    assert frame.index.name == "sample_id"
    assert list(frame.index) == SAMPLES
    assert frame.loc["s0"].to_dict() == {"age": "3", "note": "a"}
    assert frame["age"].isna().tolist() == [False, True, False]
    assert frame["note"].tolist() == ["a", "NA", "b"]
    assert frame.loc["s2", "age"] == "é"
    chosen = table.select_samples([2, 0])
    assert list(chosen.sample_metadata.index) == ["s2", "s0"]
    assert load_table(path, sample_metadata=False).sample_metadata is None


def test_no_sample_metadata(tmp_path):
    for kind in FORMATS:
        assert load_table(write(tmp_path / "t", kind)).sample_metadata is None


def test_sample_metadata_of_other_types(tmp_path):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        group = file.require_group("sample/metadata")
        group["a@@SLASH@@b"] = [1, 2, 3]
        group["x"] = [0.5, np.nan, 1e9]
        group["taxa"] = np.zeros((3, 2))
        group["elsewhere"] = h5py.ExternalLink("/dev/zero", "x")
    frame = load_table(path).sample_metadata
    assert {name: frame[name].tolist() for name in frame} == {
        "a/b": ["1", "2", "3"],
        "x": ["0.5", "nan", "1000000000.0"],
    }
    with h5py.File(path, "a") as file:
        file["sample/metadata/short"] = [1, 2]
    refused(path, "'sample/metadata/short' has 2 values for 3 samples")
    document = json.loads(write(tmp_path / "t.json", "json").read_text())
    for entry, cells in zip(document["columns"], [{"n": 1, "l": ["x"]}, None, {"n": None, "m": True}], strict=True):
        entry["metadata"] = cells
    (tmp_path / "t.json").write_text(json.dumps(document))
    frame = load_table(tmp_path / "t.json").sample_metadata
    assert frame["n"].tolist()[0] == "1"
    assert frame["n"].isna().tolist() == [False, True, True]
    assert list(frame.columns) == ["n", "m"]


class TestArtifact:
    @pytest.mark.parametrize("kind", ["hdf5", "json"])
    def test_agrees_with_the_file_inside(self, tmp_path, kind):
        content = described(tmp_path / "t.biom", kind).read_bytes()
        path = write_artifact(tmp_path / "t.qza", "FeatureTable[Frequency]", {"feature-table.biom": content})
        table, reference = load_table(path), load_table(tmp_path / "t.biom")
        assert (table.sample_ids, table.feature_ids, table.kind) == (SAMPLES, FEATURES, "counts")
        assert abs(table.counts - reference.counts).sum() == 0
        pd.testing.assert_frame_equal(table.sample_metadata, reference.sample_metadata)

    def test_kinds(self, tmp_path):
        content = write(tmp_path / "t.biom", "hdf5", DENSE > 0).read_bytes()
        for type_, kind in (("PresenceAbsence", "presence"), ("RelativeFrequency", "relative")):
            path = write_artifact(tmp_path / "t.qza", f"FeatureTable[{type_}]", {"feature-table.biom": content})
            assert load_table(path).kind == kind
        content = write(tmp_path / "t.biom", "hdf5", [[0.2, 0.5, 1], [0.8, 0.5, 0]], ["f", "g"]).read_bytes()
        path = write_artifact(tmp_path / "t.qza", "FeatureTable[Frequency]", {"feature-table.biom": content})
        assert load_table(path).kind == "relative"

    def test_refused(self, tmp_path):
        path = write_artifact(tmp_path / "t.qza", "FeatureTable[Composition]", {"feature-table.biom": b""})
        refused(path, "FeatureTable[Composition]", "FeatureTable[Frequency]")
        refused(write_artifact(path, "DistanceMatrix", {"distance-matrix.tsv": b""}), "--unifrac-matrix")
        refused(write_artifact(path, "FeatureTable[Frequency]", {"feature-table.tsv": b""}), "'feature-table.biom'")
        refused(write_artifact(path, "FeatureTable[Frequency]", {"feature-table.biom": b""}), "is empty")

    @BROKEN
    @given(data=st.data())
    def test_mutated_hdf5_within_gives_a_table_or_a_data_error(self, tmp_path, data):
        content = bytearray(described(tmp_path / "t.biom", "hdf5").read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = write_artifact(tmp_path / "t.qza", "FeatureTable[Frequency]", {"feature-table.biom": bytes(content)})
        try:
            message = "" if (load_table(path).counts.data > 0).all() else "\n"
        except DataError as error:
            message = str(error)
        assert "\n" not in message

    def test_text_reference_that_makes_libhdf5_loop_is_refused(self, tmp_path):
        with h5py.File(tmp_path / "t.biom", "w") as file:
            file["observation/ids"] = [b"f"]
            file["sample/ids"] = [b"s"]
            offset = file["sample/ids"].id.get_offset()
        content = bytearray((tmp_path / "t.biom").read_bytes())
        content[offset + 3] = 0xF1
        path = write_artifact(tmp_path / "t.qza", "FeatureTable[Frequency]", {"feature-table.biom": bytes(content)})
        refused(path, "'sample/ids' is damaged")

    @pytest.mark.parametrize(
        ("file", "shape"), [("udca_qza/table", (952, 4910)), ("hashed_ids/ecam-table-maturity", (875, 3117))]
    )
    def test_real(self, file, shape):
        table = load_table(real_data(f"{file}.qza"))
        assert table.shape == shape
        assert table.kind == "counts"
        assert all(re.fullmatch("[0-9a-f]{32}", name) for name in table.feature_ids)


class TestRelativeFrequencies:
    @pytest.mark.parametrize("total", [1, 100])
    def test_are_told_by_their_sums(self, tmp_path, total):
        dense = np.array([[0.2, 0, 1 / 3], [0.8, 0, 2 / 3]]) * total
        table = load_table(write(tmp_path / "t", "tsv", dense.round(4), ["f", "g"]))
        assert table.kind == "relative"
        assert table.select_samples([0]).kind == "relative"
        with pytest.raises(DataError, match=r"t: --rarefy-depth .* relative frequencies \([0-9.]+ of feature 'f'\)"):
            check_whole_counts(table, tmp_path / "t")

    def test_other_numbers_are_not(self, tmp_path):
        table = load_table(write(tmp_path / "t", "tsv"))
        assert table.kind == "counts"
        with pytest.raises(DataError, match=r"holds 1.5; give raw counts, or leave --depth out"):
            check_whole_counts(table, tmp_path / "t", "--depth")
        whole = load_table(write(tmp_path / "t", "tsv", [[1, 0, 1]], ["f"]))
        assert whole.kind == "counts"
        check_whole_counts(whole, tmp_path / "t")

    def test_presence_has_no_reads_to_draw(self):
        table = FeatureTable(sparse.csr_array(np.eye(2)), list("ab"), list("xy"), "presence")
        with pytest.raises(DataError, match="presence"):
            check_whole_counts(table, Path("t"))


def test_ids_that_differ_by_white_space(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("#OTU ID\ta\tb\ta \nf\t1\t2\t3\n")
    refused(path, "'a' and 'a '", "white space")
    path.write_text("#OTU ID\ta\t b\nf \t1\t2\n")
    table = load_table(path)
    assert (table.sample_ids, table.feature_ids) == (["a", "b"], ["f"])
    refused(write(path, "hdf5", samples=["s", " s", "t"]), "' s'", "white space")
    refused(write(path, "json", samples=["s", " s", "t"]), "' s'", "white space")


def test_links_within_a_file_are_not_followed(tmp_path):
    path = write(tmp_path / "t.biom", "hdf5")
    with h5py.File(path, "a") as file:
        file["out"] = h5py.ExternalLink("/dev/zero", "data")
        del file["sample/matrix/data"]
        file["sample/matrix/data"] = h5py.SoftLink("/out")
    refused(path, "points to another file")


def test_a_compressed_text_needs_no_more_memory_than_it_holds(tmp_path):
    path = write(tmp_path / "t", "tsv")
    path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    load_table(path)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
