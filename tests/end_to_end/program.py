"""The program as a user calls it, in this process or in one that can be killed, and small studies for it to read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from aam.cli.main import main
from aam.data.biom_loader import FeatureTable, load_table
from aam.data.distances import unweighted_unifrac, write_distances_h5
from aam.data.simulate import simulate_study, write_study

TINY_MODEL = ["--embedding-dim", "16", "--attention-heads", "2", "--attention-layers", "1", "--clades", "16"]
QUICK = ["--epochs", "2", "--threads", "1", "--num-workers", "0", "--no-plots"]
TINY = [*TINY_MODEL, *QUICK]


@dataclass(frozen=True)
class Outcome:
    """What a call of the program came to."""

    code: int
    out: str
    err: str


def aam(*arguments: object) -> Outcome:
    """Run `aam` with these arguments; an exception that is not an exit is a bug and is raised."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("aam")
    before = sys.argv, logger.handlers[:], logger.level, logger.propagate
    sys.argv = ["aam", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, logger.handlers[:], logger.level, logger.propagate = before
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Outcome:
    """Run `aam` and insist on success."""
    outcome = aam(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def kill(arguments: Sequence[object], number: int, at: str, *, times: int = 1, after: float = 0.0) -> Outcome:
    """Run `aam` in a process of its own, and send a signal to all of its processes.

    Parameters
    ----------
    arguments : sequence
    number : int
        Of the signal.
    at : str
        Regular expression that a line of what it says begins with.
    times : int
        Which of these lines.
    after : float
        Seconds since.
    """
    command = [sys.executable, "-m", "aam", *map(str, arguments)]
    said, seen = "", 0
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            seen += bool(re.match(at, line))
            if seen == times:
                time.sleep(after)
                os.killpg(process.pid, number)
                break
        said += process.stderr.read()
    return Outcome(process.returncode, "", said)


@dataclass(frozen=True)
class StudyFiles:
    """A study on disk."""

    folder: Path

    @property
    def table(self) -> Path:
        return self.folder / "table.biom"

    @property
    def matrix(self) -> Path:
        return self.folder / "unifrac.h5"

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata.tsv"

    @property
    def pretrain(self) -> list[object]:
        """`aam pretrain` of a tiny model on these files, save for --output-dir."""
        return ["pretrain", "--table", self.table, "--unifrac-matrix", self.matrix, *TINY]

    @property
    def train(self) -> list[object]:
        """`aam train` of a tiny model on these files, save for --metadata-column and --output-dir."""
        return ["train", "--table", self.table, "--metadata", self.metadata, *TINY]


def simulate(folder: Path, samples: int = 24, subjects: int = 8) -> StudyFiles:
    """Samples of some subjects, with 30 ASVs of 40 bases, and UniFrac distances."""
    study = simulate_study(samples=samples, asvs=30, subjects=subjects, length=40, depth=300)
    write_study(study, folder)
    distances = unweighted_unifrac(study.counts, study.sequences, study.tree, study.sample_ids)
    write_distances_h5(folder / "unifrac.h5", study.sample_ids, distances)
    return StudyFiles(folder)


def write_table(path: Path, table: FeatureTable) -> Path:
    """Write a table as BIOM 2.1."""
    import biom

    by_feature = sparse.csr_matrix(table.counts.T)
    with h5py.File(path, "w") as file:
        biom.Table(by_feature, table.feature_ids, table.sample_ids).to_hdf5(file, "tests")
    return path


def permute(study: StudyFiles, folder: Path, seed: int = 0) -> StudyFiles:
    """The same study with samples and ASVs in another order in every file, each file in its own."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    table = load_table(study.table)
    samples, asvs = (rng.permutation(n) for n in table.shape)
    counts = sparse.csr_array(table.counts[samples][:, asvs])
    counts.sort_indices()
    names = [table.sample_ids[i] for i in samples], [table.feature_ids[i] for i in asvs]
    write_table(folder / "table.biom", FeatureTable(counts, *names))
    with h5py.File(study.matrix) as file:
        ids, matrix = [name.decode() for name in file["order"][()]], file["matrix"][()]
    order = rng.permutation(len(ids))
    write_distances_h5(folder / "unifrac.h5", [ids[i] for i in order], matrix[np.ix_(order, order)])
    metadata = pd.read_csv(study.metadata, sep="\t", dtype=str, keep_default_na=False)
    metadata.sample(frac=1, random_state=seed).to_csv(folder / "metadata.tsv", sep="\t", index=False)
    return StudyFiles(folder)


def read_predictions(path: Path) -> pd.DataFrame:
    """Predictions by sample ID."""
    return pd.read_csv(path, sep="\t", index_col="sample_id")


def predict(model: Path, table: Path, output: Path, *options: object) -> pd.DataFrame:
    """Predictions of `aam predict`, by sample ID."""
    succeed("predict", "--model", model, "--table", table, "--num-workers", 0, "--output", output, *options)
    return read_predictions(output)


def read_metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def files_below(folder: Path) -> set[str]:
    """Relative paths of the files below a folder, event files without their time stamp."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name.split(".tfevents")[0] for name in found}


def assert_one_line_error(outcome: Outcome, code: int, *words: str | Sequence[str]) -> None:
    """One line on standard error that begins with `Error:` and holds these words; nothing on standard output."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: "), lines
    for word in words:
        assert str(word) in lines[0], (word, lines[0])
    assert outcome.out == ""
