from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aam.data.metadata import (
    class_target,
    load_metadata,
    numeric_target,
    repeated_columns,
    require_column,
    spelled_alike,
)
from aam.errors import DataError
from tests.real_data import real_data

FILE = Path("metadata.tsv")


def load(tmp_path: Path, content: str | bytes) -> pd.DataFrame:
    path = tmp_path / "metadata.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_metadata(path)


@pytest.mark.parametrize(
    "header",
    [
        *("id", "sampleid", "SampleID", "Sample ID", "sample-id", "sample_id", "Sample Name", "sample_name"),
        *("#SampleID", "#Sample ID", "#OTUID"),
    ],
)
def test_id_headers(tmp_path, header):
    frame = load(tmp_path, f"{header}\tage\ns1\t3\n")
    assert frame.index.name == "sample_id"
    assert frame.to_dict("index") == {"s1": {"age": "3"}}


def test_details(tmp_path):
    content = (
        "# note\n\nsample_id\tage \tplace\n#q2:types\tnumeric\tcategorical\n\n s1\t 3 \t\n# gone\t1\t2\ns2\t4\tlake\t\n"
    )
    frame = load(tmp_path, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert list(frame.columns) == ["age", "place"]
    assert list(frame.index) == ["s1", "s2"]
    assert frame.loc["s1", "age"] == "3"
    assert pd.isna(frame.loc["s1", "place"])
    assert frame.loc["s2", "place"] == "lake"


def test_comma_separated_and_quoted(tmp_path):
    frame = load(tmp_path, 'sample_id,age,"place, exact"\ns1,3,"pond, small"\n')
    assert frame.to_dict("index") == {"s1": {"age": "3", "place, exact": "pond, small"}}


def test_tables_of_r(tmp_path):
    """What R's ``write.table`` and ``write.csv`` write of a data frame with row names, by default but for ``sep``."""
    expected = {"s1": {"age": "3", "sex": "f"}, "s 2": {"age": "NA", "sex": "m"}}
    assert load(tmp_path, '"age"\t"sex"\n"s1"\t3\t"f"\n"s 2"\tNA\t"m"\n').to_dict("index") == expected
    assert load(tmp_path, '"","age","sex"\n"s1",3,"f"\n"s 2",NA,"m"\n').to_dict("index") == expected
    assert load(tmp_path, '"age"\n"s1"\t3\n').to_dict("index") == {"s1": {"age": "3"}}
    assert list(load(tmp_path, "age\tsex\ns1\t3\t\ns2\t4\tf\n").columns) == ["age", "sex"]  # na = ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("subject\tage\ns1\t3\n", "first column is 'subject'.*sample_id"),
        ("subject\tage\ns1\t3\t\n", "first column is 'subject'.*sample_id"),  # empty last cells are no sign of R
        ('age\tsex\ns1\t"3\n', "first column is 'age'"),
        ("sample_id\tage\n", "no samples"),
        (
            "sample_id\tage\ns1\t3\ns1\t4\n",
            r"duplicate sample ID 's1' .*\('3' and '4' in column 'age'\)",
        ),
        ("sample_id\tage\tage\ns1\t3\t4\n", "duplicate column name.*'age'"),
        ("sample_id\tage\ts\ns1\t3\tx\ty\n", "line 2 has 4 cells where the header has 3"),
        ("sample_id\tage\ns1\t3\t4\n", "line 2 has 3 cells"),
        ("sample_id\tage\n\t3\n", "empty sample ID"),
        ('sample_id\tage\ns1\t"3\n', "quotation marks"),
        (b"sample_id\tage\ns\xe9\t3\n", "not UTF-8.*0xe9"),
        ("", "is empty"),
    ],
)
def test_errors(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, content)
    assert str(tmp_path / "metadata.tsv") in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text('ab#,"\t\n', max_size=60).map(str.encode))
def test_any_bytes_give_metadata_or_a_data_error(tmp_path, content):
    for head in (b"", b"sample_id\ta\n", b"id,a\n"):
        try:
            frame = load(tmp_path, head + content)
        except DataError as error:
            message = str(error)
        else:
            assert frame.index.is_unique
            assert len(frame)
            message = ""
        assert "\n" not in message


def test_numeric_target():
    column = pd.Series(["1", " 2.5 ", "-1e3", np.nan, "NA", "not collected", "Missing", "None", "nan", ""])
    np.testing.assert_array_equal(numeric_target(column, "age", FILE), [1, 2.5, -1000] + [np.nan] * 7)
    np.testing.assert_array_equal(numeric_target(pd.Series([1, 2.5, None]), "age", FILE), [1, 2.5, np.nan])


def test_numeric_target_errors():
    with pytest.raises(DataError, match=r"'age' has 5 value.*: 'old', '1,5', '1_0', …; .*--classifier"):
        numeric_target(pd.Series(["1", "old", "1,5", "old", "1_0", "x"]), "age", FILE)
    with pytest.raises(DataError, match=r"1 infinite value.*'1e999'"):
        numeric_target(pd.Series(["1", "1e999"]), "age", FILE)


def test_class_target():
    labels = class_target(pd.Series([" a", "b", "N/A", np.nan, "unknown", "Not Applicable"], index=list("uvwxyz")))
    assert labels.dropna().to_dict() == {"u": "a", "v": "b", "y": "unknown"}  # an answer, if not a number


def test_require_column():
    frame = pd.DataFrame({"host_age": ["1"], "Sex": ["f"]})
    assert list(require_column(frame, "host_age", FILE)) == ["1"]
    with pytest.raises(DataError, match="no column 'hostage'; did you mean 'host_age'"):
        require_column(frame, "hostage", FILE)
    with pytest.raises(DataError, match="did you mean 'Sex'"):
        require_column(frame, "sex", FILE)
    with pytest.raises(DataError, match="it has host_age, Sex"):
        require_column(frame, "qqqqq", FILE)


def test_repeated_columns():
    frame = pd.DataFrame(
        {
            "cage_number": list("112233"),
            "host_age": list("112233"),
            "ghost": list("112233"),
            "host_taxon_id": list("112233"),
            "patientID": list("112233"),
            "mouse": list("123456"),
            "constant_donor": list("111111"),
            "donor": list("111111"),
            "studySubjectId": ["a", "a", "b", "b", "c", np.nan],
        }
    )
    assert repeated_columns(frame, "age") == ["studySubjectId", "patientID", "cage_number"]
    assert repeated_columns(frame, "patientID") == ["studySubjectId", "cage_number"]


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("ecam_infant_age/metadata.tsv", ["host_subject_id"]),
        ("ibd_crohns_2538/metadata.tsv", ["host_subject_id"]),
        ("udca_qza/metadata.tsv", ["host_subject_id"]),
        ("mouse_sleep_apnea_10422/metadata.tsv", ["host_subject_id", "mouse_number", "cage_number"]),
        ("hashed_ids/ecam_map_maturity.txt", []),
    ],
)
def test_real_metadata(file, columns):
    path = real_data(file)
    frame = load_metadata(path)
    reference = pd.read_csv(path, sep="\t", dtype=str, index_col=0)
    assert frame.shape == reference.shape
    assert list(frame.index) == list(reference.index)
    assert repeated_columns(frame, None) == columns


def test_real_target():
    path = real_data("ecam_infant_age/metadata.tsv")
    frame = load_metadata(path)
    ages = numeric_target(require_column(frame, "month_of_life", path), "month_of_life", path)
    assert round(ages.mean(), 2) == 8.59
    with pytest.raises(DataError, match="'Vaginal'"):
        numeric_target(frame["delivery"], "delivery", path)


def test_short_rows_end_in_empty_cells(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("sample_id\tage\tsex\ns1\t3\ns2\t4\tf\n")
    frame = load_metadata(path)
    assert frame.loc["s1", "age"] == "3"
    assert frame["sex"].isna().tolist() == [True, False]


class TestRepeatedRows:
    def test_equal_ones_are_passed_over_and_counted(self, tmp_path):
        path = tmp_path / "m.tsv"
        path.write_text("sample_id\tage\tsex\ns1\t3\t\ns2\t4\tf\ns1\t3\n")
        notes: list[str] = []
        frame = load_metadata(path, notes)
        assert list(frame.index) == ["s1", "s2"]
        assert notes == [f"{path}: 1 row(s) repeat another one cell by cell and were passed over"]
        assert load_metadata(path).equals(frame)

    def test_differing_ones_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"'s1' with differing rows \('3' and '' in column 'age'\); keep one"):
            load(tmp_path, "sample_id\tage\ns1\t3\ns1\t\n")

    def test_white_space(self, tmp_path):
        with pytest.raises(DataError, match="'s1' and 's1 ' differ by white space alone"):
            load(tmp_path, "sample_id\tage\ns1\t3\ns1 \t3\n")


class TestDeclaredTypes:
    def test_numeric(self, tmp_path):
        content = "id\tage\tsex\tcode\n#q2:types\tnumeric\tCategorical\t\ns1\t3\t1\tx\ns2\tNA\t2\t\ns3\t\t\t\n"
        frame = load(tmp_path, content)
        assert list(frame.index) == ["s1", "s2", "s3"]
        with pytest.raises(
            DataError, match=r"'age' has 1 value\(s\) that are not numbers: 'old', but #q2:types declares"
        ):
            load(tmp_path, content.replace("\t3\t", "\told\t"))
        with pytest.raises(DataError, match=r"'sex' has 1 infinite value.*'inf', but #q2:types"):
            load(tmp_path, content.replace("Categorical", "numeric").replace("\t2\t", "\tinf\t"))

    def test_unknown(self, tmp_path):
        with pytest.raises(DataError, match="'age' as 'ordinal'; write numeric, categorical"):
            load(tmp_path, "id\tage\n#q2:types\tordinal\ns1\t3\n")
        with pytest.raises(DataError, match="line 2 has 3 cells"):
            load(tmp_path, "id\tage\n#q2:types\tnumeric\tnumeric\ns1\t3\n")


class TestSeveralFiles:
    def files(self, tmp_path: Path, *contents: str) -> list[Path]:
        paths = [tmp_path / f"{number}.tsv" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content)
        return paths

    def test_are_joined(self, tmp_path):
        paths = self.files(
            tmp_path,
            "id\tage\tsex\nb\t3\t\na\t\tm\n",
            "#SampleID\tsex\tdose\nc\tf\t1\nb\tf\t2\n",
            "id\tage\na\t3.50\nb\t3.0\n",
        )
        frame = load_metadata(paths)
        assert frame.index.name == "sample_id"
        assert list(frame.index) == ["b", "a", "c"]
        assert frame.fillna("?").to_dict("list") == {
            "age": ["3", "3.50", "?"],
            "sex": ["f", "m", "f"],
            "dose": ["2", "?", "1"],
        }
        assert load_metadata(paths[:1]).equals(load_metadata(paths[0]))

    def test_must_agree(self, tmp_path):
        paths = self.files(tmp_path, "id\tage\na\t3\nb\t4\n", "id\tage\nb\t5\n")
        with pytest.raises(DataError, match=r"'5' of sample 'b' in column 'age'.*'4'") as caught:
            load_metadata(paths)
        assert str(caught.value).startswith(f"{paths[1]}: ")
        assert f"where {paths[0]} says" in str(caught.value)

    def test_ids_that_nearly_match_are_noted(self, tmp_path):
        notes: list[str] = []
        frame = load_metadata(self.files(tmp_path, "id\tage\nA\t3\n", "id\tsex\na\tf\n"), notes)
        assert list(frame.index) == ["A", "a"]
        assert "upper and lower case ('a' and 'A')" in notes[0]


def test_encodings(tmp_path):
    frame = load(tmp_path, "\ufeffid\tplace\r\né1\tZürich\r\n")
    assert frame.loc["é1", "place"] == "Zürich"
    with pytest.raises(DataError, match=r"byte 0xfc on line 2\).*iconv -f LATIN1"):
        load(tmp_path, "id\tplace\ns1\tZürich\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["1", "2"], ["1.0", "10.0"], (["1", "2"], ["1", "10"])),
        (["1.0", np.nan], ["3", "4"], (["1", np.nan], ["3", "4"])),
        (["1.0", "2.0"], ["3.0", "4.0"], (["1.0", "2.0"], ["3.0", "4.0"])),
        (["1.5", "2.0"], ["3", "4"], (["1.5", "2.0"], ["3", "4"])),  # measured to a decimal
        (["01", "02"], ["1.0", "2.0"], (["01", "02"], ["1.0", "2.0"])),  # a code
    ],
)
def test_whole_numbers_of_two_tables_are_spelled_alike(first, second, expected):
    others = pd.DataFrame({"a": ["S1"]}, dtype=object)  # of which nothing can be said
    first, second = (pd.DataFrame({"a": values}, dtype=object) for values in (first, second))
    for frame, values in zip(spelled_alike([first, others, second])[::2], expected, strict=True):
        pd.testing.assert_series_equal(frame["a"], pd.Series(values, name="a", dtype=object), check_dtype=False)
