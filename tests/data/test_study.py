from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from aam.config import DataConfig
from aam.data.study import Study, load_study, read_files
from aam.errors import DataError
from aam.inputs import label_files

COUNTS = {  # sample: counts of the four ASVs
    "s5": [1, 0, 9, 0],
    "s1": [5, 5, 0, 0],
    "s3": [0, 0, 7, 3],
    "s2": [0, 6, 0, 4],
    "s4": [2, 0, 0, 0],
    "empty": [0, 0, 0, 0],
}
ASVS = ["TACGGAGGATCCGAGCGTTATCCG", "AACGGAGGATCCGAGCGTTATCCG", "GACGGAGGATCCGAGCGTTATC", "CACGGAGGATCCGAGCGTTATCCGGGA"]
METADATA = {
    "s1": ["3", "yes", "a"],
    "s2": ["1.5", "no", "b"],
    "s3": ["NA", "no", "a"],
    "s4": ["4", "", "b"],
    "s5": ["2", "yes", "not collected"],
    "other": ["9", "yes", "c"],
}


class Files:
    """The files of a study, written in any order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, lines: list[list[object]]) -> Path:
        path = self.directory / name
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
        return path

    def table(self, samples: list[str] | None = None, asvs: list[int] | None = None, scale: float = 1) -> Path:
        samples = samples or list(COUNTS)
        rows = [[ASVS[a], *(COUNTS[s][a] * scale for s in samples)] for a in asvs or range(4)]
        return self.write("table.tsv", [["#OTU ID", *samples], *rows])

    def distances(self, samples: list[str]) -> Path:
        number = {name: sum(map(ord, name)) % 7 for name in samples}
        rows = [[a, *(abs(number[a] - number[b]) / 10 for b in samples)] for a in samples]
        return self.write("distances.tsv", [["", *samples], *rows])

    def metadata(self, samples: list[str] | None = None) -> Path:
        rows = [[name, *METADATA[name]] for name in samples or METADATA]
        return self.write("metadata.tsv", [["sample_id", "age", "diet", "subject_id"], *rows])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def load(files: Files, classifier: bool = False, max_bp: int = 50, **options) -> Study:
    data = DataConfig(**({"table": options.get("table") or files.table()} | options))
    return load_study(data, label_files(data, "unifrac"), max_bp=max_bp, classifier=classifier, checksums=False)


def test_a_table_alone(files):
    study = load(files)
    assert study.sample_ids == ["s1", "s2", "s3", "s4", "s5"]
    assert study.sequences == sorted(ASVS)
    expected = [[COUNTS[s][ASVS.index(a)] for a in sorted(ASVS)] for s in study.sample_ids]
    np.testing.assert_array_equal(study.counts.matrix.toarray(), expected)
    assert study.left_out == {"no reads": ["empty"]}
    assert study.samples_in_table == 6 and len(study) == 5
    assert [ASVS[place] for place in study.table_order] == study.sequences
    assert [list(COUNTS)[place] for place in study.file_order] == study.sample_ids
    assert study.tokens.shape == (4, 28)
    assert not study.labels and study.target is None and study.groups is None and study.metadata is None
    assert study.warnings == []


def test_every_reason(files):
    study = load(
        files,
        unifrac_matrix=files.distances(["s3", "s5", "s1", "empty"]),
        metadata=files.metadata(["s5", "s3", "s1", "s2"]),
        metadata_column="age",
        rarefy_depth=10,
    )
    assert study.left_out == {
        "no reads": ["empty"],
        "fewer reads than --rarefy-depth 10": ["s4"],
        "not in the distance matrix": ["s2"],
        "no value of age": ["s3"],
    }
    assert study.sample_ids == ["s1", "s5"]
    assert study.target.tolist() == [3, 2]
    assert study.labels["unifrac"].values.shape == (2, 2)
    assert study.sequences == sorted(ASVS[:3])  # nobody who is left has the fourth


def test_reasons_of_metadata(files):
    options = {"metadata": files.metadata(["s1", "s2", "s4", "s5"]), "metadata_column": "diet"}
    study = load(files, classifier=True, group_column="subject_id", **options)
    assert study.left_out == {
        "no reads": ["empty"],
        "not in the metadata": ["s3"],
        "no value of diet": ["s4"],
        "no value of subject_id": ["s5"],
    }
    assert study.sample_ids == ["s1", "s2"]
    assert study.target.tolist() == ["yes", "no"] and study.groups.tolist() == ["a", "b"]
    assert study.metadata.age.tolist() == ["3", "1.5"]


def test_unlabelled_samples_can_be_kept(files):
    data = DataConfig(table=files.table(), metadata=files.metadata(["s1", "s3"]), metadata_column="age")
    study = load_study(data, max_bp=50, keep_unlabelled=True)
    assert study.sample_ids == ["s1", "s2", "s3", "s4", "s5"]
    np.testing.assert_array_equal(study.target, [3, np.nan, np.nan, np.nan, np.nan])
    assert study.checksums == {
        name: hashlib.sha256(paths[0].read_bytes()).hexdigest()
        for name, paths in (("table", data.table), ("metadata", data.metadata))
    }


def test_order_in_the_files_does_not_matter(files):
    rng = np.random.default_rng(0)

    def study(shuffle: bool) -> Study:
        def order(names: list) -> list:
            return [names[i] for i in rng.permutation(len(names))] if shuffle else names

        return load(
            files,
            table=files.table(order(list(COUNTS)), order([0, 1, 2, 3])),
            unifrac_matrix=files.distances(order([*COUNTS, "other"])),
            metadata=files.metadata(order(list(METADATA))),
            metadata_column="age",
        )

    expected = study(shuffle=False)
    for _ in range(4):
        found = study(shuffle=True)
        assert found.sample_ids == expected.sample_ids and found.sequences == expected.sequences
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(found.counts.matrix, name), getattr(expected.counts.matrix, name))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.labels["unifrac"].values, expected.labels["unifrac"].values)
        np.testing.assert_array_equal(found.target, expected.target)
        assert {reason: set(names) for reason, names in found.left_out.items()} == {
            reason: set(names) for reason, names in expected.left_out.items()
        }


def test_distances_follow_their_samples(files):
    order = ["s4", "s1", "other", "s5", "s2", "s3"]
    study = load(files, unifrac_matrix=files.distances(order))
    number = np.array([sum(map(ord, name)) % 7 for name in study.sample_ids])
    np.testing.assert_allclose(study.labels["unifrac"].values, np.abs(number[:, None] - number) / 10, rtol=1e-6)
    kept = ["s1", "s2", "s3", "s4", "s5"]
    names = [name for name in COUNTS if name in (*kept, "empty")]
    values = np.arange(6.0)[:, None] - np.arange(6.0)
    np.save(files.directory / "d.npy", np.abs(values) / 10)  # in the order of the table
    study = load(files, unifrac_matrix=files.directory / "d.npy")
    place = np.array([names.index(name) for name in kept])
    np.testing.assert_allclose(study.labels["unifrac"].values, np.abs(place[:, None] - place) / 10, rtol=1e-6)


def test_merged_duplicates_and_cut_sequences_are_reported(files):
    fasta = files.directory / "sequences.fasta"
    fasta.write_text(">a\nACGTACGTAC\n>b\nTTTT\n>c\nACGTACGTAC\n")
    table = files.write("ids.tsv", [["#OTU ID", "x", "y"], ["a", 1, 2], ["b", 4, 0], ["c", 3, 5]])
    study = load(files, table=table, sequences=fasta, max_bp=6)
    assert study.sequences == ["ACGTACGTAC", "TTTT"]
    np.testing.assert_array_equal(study.counts.matrix.toarray(), [[4, 4], [7, 0]])
    assert study.tokens.shape == (2, 7)
    assert study.warnings == [
        "1 features share their sequence with another and were merged into it",
        "1 of 2 sequences are longer than --max-bp 6 and were cut",
    ]


def test_a_repeated_column_is_reported(files):
    options = {"metadata": files.metadata(), "metadata_column": "age"}
    (warning,) = load(files, **options).warnings
    assert "'subject_id' repeats" in warning and "--group-column subject_id" in warning
    assert load(files, group_column="subject_id", **options).warnings == []


def test_values_written_in_two_ways_are_reported(files):
    rows = [["s1", "Yes", "a", "1"], ["s2", "no", "A", "2"], ["s3", "yes", "b", "1.0"], ["s4", "No", "b", "01"]]
    rows += [["s5", "no", "b", ""], ["other", "NO", "B", "3"]]
    options = {"metadata": files.write("m.tsv", [["id", "diet", "site", "subject_id"], *rows])}
    found = load(files, metadata_column="diet", classifier=True, group_column="subject_id", **options).warnings
    (classes, groups) = found
    assert "'diet'" in classes and "('Yes' and 'yes', and 1 more)" in classes
    assert "'subject_id'" in groups and "('1' and '1.0', and 1 more)" in groups
    alike = {"metadata": files.metadata(), "metadata_column": "diet", "group_column": "subject_id"}
    assert load(files, classifier=True, **alike).warnings == []
    (categories,) = load(files, group_column="diet", categorical_columns=["site"], **options).warnings[:1]
    assert "'site'" in categories and "('a' and 'A')" in categories
    data = DataConfig(table=files.table(), group_column="subject_id", **options)
    predicted = load_study(data, max_bp=50, classifier=True, checksums=False, keep_unlabelled=True)
    assert predicted.warnings == []


def test_a_truth_that_is_no_number_is_unknown_where_samples_are_predicted(files):
    rows = [["s1", "3"], ["s2", "1,5"], ["s3", "inf"], ["s4", "NA"], ["s5", "1e300"], ["other", "x"]]
    options = {"metadata": files.write("m.tsv", [["id", "age"], *rows]), "metadata_column": "age"}
    refused(files, "column 'age' has 1 value", **options)
    data = DataConfig(table=files.table(), **options)
    study = load_study(data, max_bp=50, checksums=False, keep_unlabelled=True)
    np.testing.assert_array_equal(study.target, [3, np.nan, np.nan, np.nan, np.nan])
    (warning,) = study.warnings
    assert "column 'age' has 3 value(s)" in warning and "('1e300' of sample 's5', say)" in warning
    rows[3][1] = "unknown"
    files.write("m.tsv", [["id", "age"], *rows])
    assert load_study(data, max_bp=50, checksums=False, keep_unlabelled=True).warnings == [warning]


def refused(files: Files, words: str, **options) -> None:
    with pytest.raises(DataError, match=words):
        load(files, **options)


def test_nothing_in_common(files):
    refused(files, "none of its 2 samples is in the table.*'x'.*'s5'", unifrac_matrix=files.distances(["x", "y"]))
    path = files.write("m.tsv", [["id", "age"], ["x", 1], ["y", 2]])
    refused(files, "m.tsv: names no sample of the table, which has 's5' where it has 'x'", metadata=path)


def test_no_sample_is_left(files):
    refused(files, "no sample is left: 1 no reads; 5 fewer reads than --rarefy-depth 11", rarefy_depth=11)
    distances, metadata = files.distances(["s1"]), files.metadata(["s2"])
    refused(files, "no sample is left: .*not in the distance", unifrac_matrix=distances, metadata=metadata)


def test_the_true_reason_is_named(files):
    """Not that the files share no sample, when it was rarefaction that left none."""
    distances, metadata = files.distances(list(COUNTS)), files.metadata()
    refused(files, "rarefy-depth 11", rarefy_depth=11, unifrac_matrix=distances)
    refused(files, "rarefy-depth 11", rarefy_depth=11, metadata=metadata, metadata_column="age")


def test_targets_that_cannot_serve(files):
    rows = [[name, "NA", "text"] for name in COUNTS]
    metadata = files.write("m.tsv", [["id", "age", "diet"], *rows])
    refused(files, "'age' is empty for every sample", metadata=metadata, metadata_column="age")
    refused(files, "'diet' has 6 .* not numbers: 'text'", metadata=metadata, metadata_column="diet")
    refused(files, "no column 'agee'", metadata=metadata, metadata_column="agee")
    refused(files, "no column 'host'", metadata=metadata, group_column="host")


def test_fractions_cannot_be_rarefied(files):
    refused(files, r"whole reads, but the table holds 0\.5", table=files.table(scale=0.5), rarefy_depth=1)
    assert len(load(files, table=files.table(scale=0.5))) == 5


def test_all_problems_at_once(files):
    broken = files.write("m.tsv", [["color", "age"], ["x", 1]])
    hashed = files.write("t.tsv", [["#OTU ID", "x"], ["4b5eeb300368260019c1fbc7a3c718fc", 1]])
    problems: list[str] = []
    found = read_files(DataConfig(table=hashed, metadata=broken), problems=problems)
    assert len(problems) == 2 and "no sample ID column" in problems[0] and "not DNA" in problems[1]
    assert found.tables[0] is not None and not found.complete and found.metadata is None
    with pytest.raises(DataError):
        read_files(DataConfig(table=hashed))
