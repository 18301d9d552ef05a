from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from aam.config import DataConfig
from aam.data.biom_loader import FeatureTable
from aam.data.splits import make_folds, make_splits, write_splits
from aam.data.study import Study, StudyFiles, TableFile, align
from aam.data.study_splits import as_before, fold_study, split_study, thin_parts
from aam.errors import DataError
from tests.conftest import MAX_BP, TinyStudy

METADATA = Path("metadata.tsv")
SAMPLES = 24
TINY = TinyStudy([9] * 6, samples=SAMPLES, seed=2)
FRAME = pd.DataFrame(
    {
        "subject": [f"s{i % 8}" for i in range(SAMPLES)],
        "age": [str(i) for i in range(SAMPLES)],
        "diet": ["meat" if i % 8 < 4 else "plants" for i in range(SAMPLES)],
        "part": ["Train"] * 14 + ["validation"] * 4 + ["test"] * 4 + ["NA", ""],
        "no_val": ["train"] * 16 + ["test"] * 8,
    },
    index=pd.Index(TINY.sample_ids, name="sample_id"),
    dtype=object,
).replace("", np.nan)


def study(classifier: bool = False, **options: Any) -> tuple[Study, DataConfig]:
    """The tiny study under these options."""
    data = DataConfig(table=Path("table.biom"), metadata=METADATA, **options)
    table = FeatureTable(TINY.table, TINY.sample_ids, TINY.sequences)
    files = StudyFiles([TableFile(data.table[0], table, TINY.sequences)], FRAME, {})
    return align(files, data, max_bp=MAX_BP, classifier=classifier), data


def by_name(found: Study, parts: np.ndarray) -> dict[str, Any]:
    return dict(zip(found.sample_ids, parts.tolist(), strict=True))


def test_a_split_by_column():
    found, data = study(split_column="part")
    split = split_study(found, data, 0, validate=True)
    names = {"Train": "train", "validation": "val", "test": "test"}
    expected = FRAME["part"].map(names).dropna().to_dict()
    assert by_name(found, split.parts) == expected
    assert split.notes == []
    assert found.left_out == {"no value of part": ["sample 22", "sample 23"]}


def test_a_column_with_other_values():
    found, data = study(split_column="diet")
    with pytest.raises(DataError, match=r"metadata\.tsv: column 'diet' holds 'meat', 'plants', which name no split"):
        split_study(found, data, 0, validate=True)
    with pytest.raises(DataError, match=r"metadata\.tsv: has no column 'prat'; did you mean 'part'"):
        study(split_column="prat")


def test_validation_samples_come_from_training_where_none_are_named():
    found, data = study(split_column="no_val", group_column="subject", val_size=0.25)
    parts, notes = split_study(found, data, 0, validate=True)
    before = np.array([FRAME["no_val"][name] for name in found.sample_ids])
    assert (parts[before == "test"] == "test").all() and set(parts[before == "train"]) == {"train", "val"}
    groups = found.groups[before == "train"]
    assert len(set(zip(groups, parts[before == "train"], strict=True))) == 8
    assert len(notes) == 1
    assert f"{(parts == 'val').sum()} of its 16 training samples" in notes[0]
    unasked = split_study(found, data, 0, validate=False)
    assert unasked.parts.tolist() == before.tolist() and not unasked.notes


def test_calibration_samples_come_beside():
    found, data = study(group_column="subject", val_size=0.25, test_size=0.25, cal_size=0.25)
    parts = split_study(found, data, 0, validate=True).parts
    without = split_study(found, data.model_copy(update={"cal_size": 0.0}), 0, validate=True).parts
    assert set(parts) == {"train", "val", "test", "cal"}
    assert (parts == np.where(parts == "cal", "cal", without)).all() and (without[parts == "cal"] == "train").all()
    assert len(set(zip(found.groups, parts, strict=True))) == 8
    assert len(set(found.groups[parts == "cal"])) == 2


def test_a_split_from_a_file(tmp_path):
    path = tmp_path / "splits.tsv"
    known = TINY.sample_ids[3:]
    parts = make_splits(known, val_size=0.3, test_size=0.2, seed=5)
    write_splits(path, [*known, "unheard of"], np.array([*parts, "train"]))
    found, data = study(splits=path)
    assert found.left_out == {f"not in {path}": TINY.sample_ids[:3]}
    assert by_name(found, split_study(found, data, 0, validate=True).parts) == dict(
        zip(known, parts.tolist(), strict=True)
    )


def test_a_file_of_folds(tmp_path):
    path = tmp_path / "splits.tsv"
    folds = make_folds(TINY.sample_ids, folds=3, seed=4)
    write_splits(path, TINY.sample_ids, np.full(SAMPLES, "test"), folds)
    found, data = study(splits=path, folds=3)
    repeated = fold_study(found, data, classifier=False, seed=0, validate=True)
    assert by_name(found, repeated.of_sample) == dict(zip(TINY.sample_ids, folds.tolist(), strict=True))
    found, data = study(splits=path, folds=4)
    with pytest.raises(DataError, match="has 3 folds, and --folds 4 is asked for"):
        fold_study(found, data, classifier=False, seed=0, validate=True)
    found, data = study(splits=path)
    with pytest.raises(DataError, match=r"none of these 24 samples is for training.*--folds"):
        split_study(found, data, 0, validate=True)


def test_groups_are_left_out():
    found, data = study(group_column="subject", leave_out=("s1", "s4"))
    parts = split_study(found, data, 0, validate=True).parts
    assert set(found.groups[parts == "test"]) == {"s1", "s4"}
    assert len(set(zip(found.groups, parts, strict=True))) == 8


@pytest.mark.parametrize("classifier", [False, True])
def test_folds(classifier):
    column = "diet" if classifier else "age"
    found, data = study(classifier, group_column="subject", folds=4, metadata_column=column)
    of_sample, splits = fold_study(found, data, classifier=classifier, seed=3, validate=True)
    labels = found.target if classifier else None
    assert (
        of_sample.tolist() == make_folds(found.sample_ids, folds=4, groups=found.groups, labels=labels, seed=3).tolist()
    )
    if classifier:
        splitter = StratifiedGroupKFold(4, shuffle=True, random_state=3)
        parts = [held.tolist() for _, held in splitter.split(np.zeros((24, 1)), found.target, found.groups)]
        assert [np.flatnonzero(of_sample == fold).tolist() for fold in range(4)] == parts
    for fold, parts in enumerate(splits):
        assert ((parts == "test") == (of_sample == fold)).all()
        assert set(parts) == {"train", "val", "test"}
        assert len(set(zip(found.groups, parts, strict=True))) == 8
        if classifier:
            assert set(found.target[parts == "train"]) == {"meat", "plants"}
    assert not (splits[0] == "val")[splits[0] == "test"].any()


def test_one_fold_a_group():
    found, data = study(group_column="subject", leave_one_group_out=True)
    of_sample, splits = fold_study(found, data, classifier=False, seed=0, validate=True)
    assert len(splits) == 8
    assert [set(found.groups[parts == "test"]) for parts in splits] == [{f"s{i}"} for i in range(8)]
    assert of_sample.tolist() == [int(name[1:]) for name in found.groups]


def test_a_class_that_a_fold_lacks():
    """All plant eaters of a fold's training part are one subject, which is held out."""
    groups = ["0" if label == "plants" else str(i) for i, label in enumerate(FRAME["diet"])]
    frame = FRAME.assign(source=groups)
    table = FeatureTable(TINY.table, TINY.sample_ids, TINY.sequences)
    files = StudyFiles([TableFile(Path("t.biom"), table, TINY.sequences)], frame, {})
    data = DataConfig(
        table=Path("table.biom"), metadata=METADATA, metadata_column="diet", group_column="source", folds=3
    )
    found = align(files, data, max_bp=MAX_BP, classifier=True)
    with pytest.raises(DataError, match=r"fold \d: .*'plants' has no training sample, as all of its 12 are held out"):
        fold_study(found, data, classifier=True, seed=0, validate=True)


def test_too_many_folds():
    found, data = study(group_column="subject", folds=9)
    with pytest.raises(DataError, match=r"metadata\.tsv: --folds 9: column 'subject' has 8 groups"):
        fold_study(found, data, classifier=False, seed=0, validate=True)


def test_samples_that_an_earlier_run_did_not_have():
    before = {"sample 0": "test", "sample 1": "val", "elsewhere": "test"}
    alone, _ = study()
    assert by_name(alone, np.array(as_before(alone, before, "train")))["sample 8"] == "train"
    grouped, _ = study(group_column="subject")
    found = by_name(grouped, np.array(as_before(grouped, before, "train")))
    groups = {"s0": "test", "s1": "val"}
    assert found == {name: groups.get(FRAME["subject"][name], "train") for name in found}


@pytest.mark.parametrize("part", ["val", "test", "cal"])
def test_what_held_out_samples_of_one_kind_cannot_say(part):
    """Subjects 0 to 3 eat meat, and one subject is one group."""
    found, data = study(classifier=True, metadata_column="diet", group_column="subject")
    name = {"val": "validation", "test": "test", "cal": "calibration"}[part]

    def told(*subjects: int) -> list[str]:
        parts = np.where(np.isin(found.groups, [f"s{number}" for number in subjects]), part, "train")
        return thin_parts(found, parts, classifier=True, group_column=data.group_column)

    assert told(0, 4) == [] == told()
    (of_class,) = told(0, 1)
    assert f"all 6 {name} samples are meat" in of_class
    both = told(5)
    assert len(both) == 2 and f"all 3 {name} samples are of one subject" in both[1]
