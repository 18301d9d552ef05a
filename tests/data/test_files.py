from __future__ import annotations

import gzip
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aam.data.files import check_ids, decode_text, near_matches, read_text, strip_ids, written_differently
from aam.errors import DataError
from tests.data.artifacts import write_artifact


class TestText:
    def test_what_is_accepted(self, tmp_path):
        path = tmp_path / "t"
        for content in (b"\xef\xbb\xbfa\r\n\xc3\xa9\r\n", b"a\n\xc3\xa9\n", b"a\r\xc3\xa9\r"):
            for packed in (content, gzip.compress(content)):
                path.write_bytes(packed)
                assert read_text(path, "note") == "a\né\n"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"id\tage\ns\xe9\t3\n", r"byte 0xe9 on line 2\); save the note as UTF-8, or convert it: iconv"),
            ("id\tage\n".encode("utf-16"), "is UTF-16 text.*iconv -f UTF-16"),
            (b"a\0b", "NUL"),
            (b" \n", "is empty"),
            (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, words):
        with pytest.raises(DataError, match=words) as caught:
            decode_text(content, tmp_path / "t", "note")
        assert str(caught.value).startswith(f"{tmp_path / 't'}: ")

    def test_zip(self, tmp_path):
        path = write_artifact(tmp_path / "t.qza", "SampleData[X]", {})
        with pytest.raises(DataError, match=r"QIIME 2 artifact.*; give the text file itself"):
            read_text(path, "metadata file")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("[Content_Types].xml", "<x/>")
        with pytest.raises(DataError, match=r"office program.*as tab-separated text"):
            read_text(path, "metadata file")


def test_ids(tmp_path):
    assert strip_ids([" a", "b\t", "c", "c"], tmp_path) == ["a", "b", "c", "c"]
    with pytest.raises(DataError, match="'a ' and ' a' differ by white space alone"):
        strip_ids(["a ", "b", " a"], tmp_path)
    for ids, words in ((["a", ""], "empty"), (["a\tb"], "tab"), (["a", "a"], "duplicate")):
        with pytest.raises(DataError, match=words):
            check_ids(ids, "sample ID", tmp_path)


class TestNearMatches:
    @pytest.mark.parametrize(
        ("ids", "others", "words"),
        [
            (["S1", "S2"], ["s1", "s2"], "2 of them differ only by upper and lower case ('S1' and 's1')"),
            (["12", "7", "x"], ["012", "007", "x"], "2 of them differ only by leading zeros"),
            (["12.0", "7.0"], ["12", "7"], "leading zeros or a decimal point ('12.0' and '12'); give the IDs as they"),
            (["a "], ["a"], "1 of them differ only by the white space around them ('a ' and 'a')"),
            (["a.b-1", "c"], ["a_b_1", "c"], "1 of them differ only by dots, dashes, underscores or spaces"),
            (["A.1", "B.1"], ["a-1", "b_1"], "2 of them differ only by case and punctuation"),
            (["1.x", "1.y"], ["2538.1.x", "2538.1.y"], "2 of them lack '2538.' in front ('1.x' and '2538.1.x')"),
            (["2538.1.x", "2538.1.y"], ["1.x", "1.y"], "2 of them have '2538.' in front ('2538.1.x' and '1.x')"),
            (["a", "b"], ["a_R1", "b_R1"], "2 of them lack '_R1' at the end"),
            (["a_R1", "b_R1", "c"], ["a", "b"], "2 of them have '_R1' at the end ('a_R1' and 'a')"),
            (["é"], ["É"], "case"),
        ],
    )
    def test_what_is_told(self, ids, others, words):
        assert words in near_matches(ids, others)

    @pytest.mark.parametrize(
        ("ids", "others"),
        [
            ([], []),
            (["a"], ["a"]),
            (["a"], []),
            (["a", "b"], ["c", "d"]),
            (["1", "2"], ["11", "12"]),  # a digit in front is chance
            (["a"], ["xa"]),  # and so is one ID
            (["S1"], ["S1", "s1"]),
        ],
    )
    def test_what_is_not(self, ids, others):
        assert near_matches(ids, others) is None

    def test_values_of_one_column(self):
        values = ["S1", "S2", "s1", "a b", "a_b", "07", "7.0", "S1", "x"]
        assert written_differently(values) == [("S1", "s1"), ("a b", "a_b"), ("07", "7.0")]
        assert written_differently(["1.1", "1.10", "11", "-1", "1", ">5", "<5"]) == []

    def test_the_difference_that_explains_most_is_told(self):
        assert "case" in near_matches(["A", "B", "c.d"], ["a", "b", "c_d"])

    def test_large_files(self):
        ids = [f"{i:06}" for i in range(100_000)]
        start = time.perf_counter()
        assert "100000 of them lack '10317.'" in near_matches(ids, [f"10317.{name}" for name in ids])
        assert near_matches(ids, [f"x{i}y" for i in range(100_000)]) is None
        assert time.perf_counter() - start < 20

    @settings(max_examples=50)
    @given(*[st.lists(st.text("aA0.1_ ", max_size=4), max_size=6)] * 2)
    def test_any_ids(self, ids, others):
        found = near_matches(ids, others)
        assert found is None or "\n" not in found
