from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aam.data.qza import is_artifact, read_artifact, read_newick_text
from aam.errors import DataError
from tests.data.artifacts import UUID, members, write_artifact, write_zip
from tests.real_data import real_data

TREE = b"((a:1,b:2):1,c:3);\n"
ROOTED = "Phylogeny[Rooted]"
ON_DISK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, *words: str, types=(ROOTED,), what="rooted tree") -> None:
    def read() -> None:
        artifact = read_artifact(path, types, what)
        artifact.read(artifact.names[0])

    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


def test_what_is_read(tmp_path):
    path = write_artifact(tmp_path / "any name", ROOTED, {"tree.nwk": TREE, "deep/er.txt": b""})
    assert is_artifact(path)
    artifact = read_artifact(path, ("Phylogeny[Unrooted]", ROOTED), "tree")
    assert (artifact.type, artifact.uuid, artifact.names) == (ROOTED, UUID, ("deep/er.txt", "tree.nwk"))
    assert artifact.read("tree.nwk") == TREE
    assert artifact.read("deep/er.txt") == b""
    with artifact.open("tree.nwk") as stream:
        assert list(stream) == [TREE]
    with pytest.raises(DataError, match=r"type Phylogeny\[Rooted\] without 'data.tsv'.*'deep/er.txt', 'tree.nwk'"):
        artifact.read("data.tsv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["any name"]


def test_stored_members_and_folders(tmp_path):
    files = {f"{UUID}/": b"", f"{UUID}/data/": b"", **members(ROOTED, {"tree.nwk": TREE})}
    path = write_zip(tmp_path / "a.qza", files, zipfile.ZIP_STORED)
    assert read_artifact(path, (ROOTED,), "tree").names == ("tree.nwk",)
    assert read_newick_text(path) == TREE.decode()


@pytest.mark.parametrize("properties", [" % Properties('phylogenetic')", " % Properties(['a', 'b'])"])
def test_properties_of_a_type_are_passed_over(tmp_path, properties):
    path = write_artifact(tmp_path / "a.qza", f'"DistanceMatrix{properties}"', {"distance-matrix.tsv": b"x"})
    assert read_artifact(path, ("DistanceMatrix",), "distance matrix").type == "DistanceMatrix"


@pytest.mark.parametrize(
    ("type_", "expected", "words"),
    [
        ("FeatureTable[Frequency]", ROOTED, "of type FeatureTable[Frequency] where a something (Phylogeny[Rooted]) is"),
        ("FeatureTable[Frequency]", ROOTED, "expected; give a something (--table is the option for this one)"),
        ("FeatureTable[Composition]", "FeatureTable[Frequency]", "give the table of counts"),
        ("FeatureTable[Composition]", ROOTED, "expected; give a something"),
        ("FeatureData[AlignedSequence]", "FeatureData[Sequence]", "before alignment"),
        ("Phylogeny[Unrooted]", ROOTED, "midpoint-root"),
        ("SampleData[PairedEndSequencesWithQuality]", "FeatureTable[Frequency]", "denoise"),
        ("PCoAResults", "DistanceMatrix", "give the distances that it was computed from"),
        ("SampleData[AlphaDiversity]", ROOTED, "one value a sample"),
        ("Visualization", ROOTED, "visualization (.qzv) where a something"),
        ("Novelty[" + "x" * 500 + "]", ROOTED, "xx… where a something"),
    ],
)
def test_another_type_is_refused_with_what_to_give(tmp_path, type_, expected, words):
    path = write_artifact(tmp_path / "a.qza", type_, {"index.html": b""})
    refused(path, words, types=(expected,), what="something")


class TestNoArtifact:
    def test_zip_of_files(self, tmp_path):
        refused(write_zip(tmp_path / "a.zip", {"tree.nwk": TREE}), "no QIIME 2 artifact")
        refused(write_zip(tmp_path / "a.zip", {"folder/tree.nwk": TREE}), "no QIIME 2 artifact", "VERSION")

    def test_several_roots(self, tmp_path):
        files = members(ROOTED, {"tree.nwk": TREE})
        refused(write_zip(tmp_path / "a.qza", files | {"__MACOSX/x": b""}), "one folder", "'__MACOSX'")

    def test_other_version(self, tmp_path):
        files = members(ROOTED, {"tree.nwk": TREE}) | {f"{UUID}/VERSION": b"QIIME 1\n"}
        refused(write_zip(tmp_path / "a.qza", files), "VERSION")

    @pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [", b"\xff", b"!!python/object/apply:os.getcwd []", b"1"])
    def test_bad_yaml(self, tmp_path, content):
        files = members(ROOTED, {"tree.nwk": TREE}) | {f"{UUID}/metadata.yaml": content}
        refused(write_zip(tmp_path / "a.qza", files), "metadata.yaml")

    @pytest.mark.parametrize(
        "content",
        [
            b"[" * 16000,
            b"uuid: 1\ntype: " + b"1" * 9000,
            b"- &a0 [x]\n" + b"".join(b"- &a%d [%s]\n" % (i + 1, b"*a%d," % i * 9) for i in range(20)),
            b"a0: &a0 {x: 1}\n"
            + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (i + 1, i + 1, b"*a%d," % i * 9) for i in range(20)),
        ],
    )
    def test_yaml_that_is_meant_to_hurt(self, tmp_path, content):
        files = members(ROOTED, {"tree.nwk": TREE}) | {f"{UUID}/metadata.yaml": content}
        refused(write_zip(tmp_path / "a.qza", files), "metadata.yaml")

    def test_large_yaml(self, tmp_path):
        files = members(ROOTED, {"tree.nwk": TREE}) | {f"{UUID}/metadata.yaml": b"#" * 10**6}
        refused(write_zip(tmp_path / "a.qza", files), "metadata.yaml holds over")

    def test_uuid_of_another(self, tmp_path):
        files = {name.replace(UUID, "other"): content for name, content in members(ROOTED, {"tree.nwk": TREE}).items()}
        refused(write_zip(tmp_path / "a.qza", files), "altered", "'other'")

    def test_numpy_archives_are_not_taken_for_artifacts(self, tmp_path):
        np.savez(tmp_path / "a.npz", matrix=np.eye(2))
        assert not is_artifact(tmp_path / "a.npz")
        (tmp_path / "text").write_text("PK")
        assert not is_artifact(tmp_path / "text")


class TestHostile:
    @pytest.mark.parametrize(
        "name",
        ["../x", f"{UUID}/../../x", "/etc/x", f"{UUID}//x", f"{UUID}\\..\\x", "C:/x", f"{UUID}/./x", f"{UUID}/data/.."],
    )
    def test_names_that_lead_outside(self, tmp_path, name):
        files = members(ROOTED, {"tree.nwk": TREE}) | {name: b"x"}
        refused(write_zip(tmp_path / "a.qza", files), "outside", repr(name)[1:-1])

    def test_name_with_nul(self, tmp_path):
        path = write_zip(tmp_path / "a.qza", members(ROOTED, {"tree.nwk": TREE, "x.nwk": b""}))
        path.write_bytes(path.read_bytes().replace(b"x.nwk", b"x\0nwk"))
        refused(path, "outside")

    def test_two_members_of_one_name(self, tmp_path):
        path = write_zip(tmp_path / "a.qza", members(ROOTED, {"tree.nwk": TREE, "eert.nwk": b""}))
        path.write_bytes(path.read_bytes().replace(b"eert.nwk", b"tree.nwk"))
        refused(path, "two members")

    def test_encrypted(self, tmp_path):
        path = write_artifact(tmp_path / "a.qza", ROOTED, {"tree.nwk": TREE})
        content = bytearray(path.read_bytes())
        entry = content.find(b"PK\x01\x02")
        while entry >= 0:
            content[entry + 8] |= 1
            entry = content.find(b"PK\x01\x02", entry + 1)
        path.write_bytes(content)
        refused(path, "encrypted")

    def test_other_packing(self, tmp_path):
        files = members(ROOTED, {"tree.nwk": TREE})
        refused(write_zip(tmp_path / "a.qza", files, zipfile.ZIP_BZIP2), "method 12")

    def test_bomb(self, tmp_path):
        path = tmp_path / "a.qza"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members(ROOTED, {}).items():
                archive.writestr(name, content)
            with archive.open(f"{UUID}/data/tree.nwk", "w", force_zip64=True) as member:
                for _ in range(64):
                    member.write(bytes(2**20))
        tracemalloc.start()
        refused(path, "zip bomb", str(2**26))
        assert tracemalloc.get_traced_memory()[1] < 2**23
        tracemalloc.stop()

    def test_bomb_that_claims_to_be_small(self, tmp_path):
        path = write_artifact(tmp_path / "a.qza", ROOTED, {"tree.nwk": bytes(2**24)})
        content = path.read_bytes().replace(struct.pack("<I", 2**24), struct.pack("<I", 100))
        path.write_bytes(content)
        tracemalloc.start()
        refused(path, "damaged")
        assert tracemalloc.get_traced_memory()[1] < 2**23
        tracemalloc.stop()

    def test_too_many_members(self, tmp_path):
        path = write_artifact(tmp_path / "a.qza", ROOTED, {"tree.nwk": TREE})
        content = bytearray(path.read_bytes())
        end = content.rfind(b"PK\x05\x06")
        content[end + 12 : end + 16] = struct.pack("<I", 2**31)
        path.write_bytes(content)
        refused(path, "damaged")


@pytest.mark.parametrize("kept", [10, 40, 200, -10, -30])
def test_cut_short(tmp_path, kept):
    path = write_artifact(tmp_path / "a.qza", ROOTED, {"tree.nwk": TREE * 50})
    path.write_bytes(path.read_bytes()[:kept])
    assert is_artifact(path)
    refused(path, "cut short or damaged")


def test_damaged_data(tmp_path):
    path = write_zip(tmp_path / "a.qza", members(ROOTED, {"tree.nwk": TREE}), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(TREE, TREE.replace(b"3", b"4")))
    refused(path, "tree.nwk", "damaged")


def test_newick(tmp_path):
    path = tmp_path / "tree"
    for content in (TREE, gzip.compress(TREE)):
        path.write_bytes(content)
        assert read_newick_text(path) == TREE.decode()
    assert read_newick_text(write_artifact(path, ROOTED, {"tree.nwk": TREE})) == TREE.decode()
    with pytest.raises(DataError, match="needs a root"):
        read_newick_text(write_artifact(path, "Phylogeny[Unrooted]", {"tree.nwk": TREE}))
    with pytest.raises(DataError, match=r"without 'tree.nwk'"):
        read_newick_text(write_artifact(path, ROOTED, {"data.txt": TREE}))


@ON_DISK
@given(data=st.data(), compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_any_bytes_give_the_data_or_a_data_error(tmp_path, data, compression):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members(ROOTED, {"tree.nwk": TREE}).items():
            archive.writestr(name, content)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.qza"
    path.write_bytes(content[: data.draw(st.sampled_from([None, -1, 40]))])
    try:
        found = read_newick_text(path)
    except DataError as error:
        found = str(error)
    assert found == TREE.decode() or "\n" not in found  # the checksum sees to it


@ON_DISK
@given(content=st.binary(max_size=200))
def test_any_bytes_after_the_magic(tmp_path, content):
    path = tmp_path / "a.qza"
    for magic in (b"PK\x03\x04", b"PK\x05\x06"):
        path.write_bytes(magic + content)
        with pytest.raises(DataError):
            read_newick_text(path)


def test_real_tree():
    assert read_newick_text(real_data("udca_qza/rooted-tree.qza")).endswith(";\n")
