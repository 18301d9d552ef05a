"""debug/prediction_distribution.py reads what `aam train` writes, be it of one column, of several, or of folds."""

from __future__ import annotations

import sys
from pathlib import Path

import prediction_distribution  # debug/, see conftest
import pytest

ONE = "sample_id\tactual\tpredicted\na\t1.0\t2.0\nb\t3.0\t2.0\n"
SEVERAL = (
    "sample_id\tage_actual\tage_predicted\tsite_actual\tsite_predicted\tsite_prob_NA\tsite_prob_gut\n"
    "a\t\t2.0\tNA\tgut\t0.4\t0.6\n"
    "b\t3.0\t2.5\tgut\tgut\t0.1\t0.9\n"
)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path: Path):
    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prediction_distribution.py", str(tmp_path), *arguments])
        prediction_distribution.main()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("split", ["val", "test", "oof"])
def test_the_split_is_one_that_the_run_has(call, tmp_path: Path, split: str):
    (tmp_path / f"{split}_predictions.tsv").write_text(ONE)
    told = call("--plot", str(tmp_path / "p.png"))
    assert f"{split}_predictions.tsv: 2 samples" in told
    assert "spread of predictions over that of the truth: 0.00" in told
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_one_of_several_columns_is_shown(call, tmp_path: Path):
    (tmp_path / "val_predictions.tsv").write_text(SEVERAL)
    assert "1 samples" in call("--column", "age")  # of the other the age is not known
    told = call("--column", "site")
    assert "2 samples" in told and "highest probability of a sample: median 0.750" in told
    with pytest.raises(SystemExit, match="holds age and site; give one of them as --column"):
        call()


def test_a_run_without_predictions_is_refused(call):
    with pytest.raises(SystemExit, match=r"val_predictions\.tsv: no such file"):
        call()
