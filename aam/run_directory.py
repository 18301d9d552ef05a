"""The directory of a run: what may be in it, what is written there, and its log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from aam.errors import DataError
from aam.training.checkpoint import MODEL_NAME, runs_within

__all__ = ["RunDirectory", "names_in", "write_json", "write_table"]

logger = logging.getLogger("aam")


class RunDirectory:
    """The directory of a run: what may be in it, and its log."""

    FILES = (
        "config.json",
        "splits.tsv",
        "epochs.tsv",
        "history.csv",
        "speed.csv",
        "metrics.json",
        "val_predictions.tsv",
        "test_predictions.tsv",
        "cal_predictions.tsv",
        "oof_predictions.tsv",
        MODEL_NAME,
        "last.ckpt",
        "tracking.json",
        "aam.log",
    )
    # All that a run leaves that ended before its first checkpoint, beside those of a search for the number of epochs:
    # it may be begun again as if it had not been.
    BEGINNING = frozenset({"aam.log", "config.json", "epochs.tsv", "splits.tsv", "tracking.json"})
    # Of the parts that judge how many epochs are best, each with a checkpoint of its own.
    IN_SEARCH = (
        "search/part_*/last.ckpt",
        "search/part_*/last.ckpt.tmp",
        "search/part_*/shards/step_*/shard-*.safetensors",
    )
    SEARCH_FOLDERS = ("search/part_*/shards/step_*", "search/part_*/shards", "search/part_*", "search")
    # Removed with a run, but no sign of one: `--lr-find print` writes lr_find alone.
    IN_FOLDERS = (
        *("*_network_predictions.tsv", "*_classical_predictions.tsv"),
        *(
            "tensorboard/*/events.out.tfevents.*",
            "plots/history.png",
            "plots/val_*.png",
            "plots/test_*.png",
            "plots/oof_*.png",
        ),
        *("lr_find.tsv", "plots/lr_find.png", "shards/step_*/shard-*.safetensors"),
        *("profile/trace.json.gz", "profile/operations.txt"),
    )
    FOLDERS = (
        *(
            "tensorboard/train",
            "tensorboard/validation",
            "tensorboard/steps",
            "tensorboard/attention",
            "tensorboard",
            "plots",
            "profile",
        ),
        *("shards/step_*", "shards"),
    )

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a directory that holds a run already, or to resume one that is not there.

        Raises
        ------
        DataError
        """
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path}: is a file; give another --output-dir")
        found = {name for name in self.FILES if (self.path / name).exists()}
        nothing_learnt = "aam.log" in found and found <= self.BEGINNING and not self.runs()
        holds_run = bool(found) and not nothing_learnt
        if resume and not nothing_learnt and not (self.path / "last.ckpt").is_file():
            raise DataError(f"{self.path}: holds no last.ckpt to resume from; begin with --overwrite instead")
        if holds_run and not (resume or overwrite):
            raise DataError(
                f"{self.path}: holds a run already; give --overwrite to replace it, --resume to continue it, "
                "or another --output-dir"
            )

    def create(self, *, overwrite: bool) -> None:
        """Make the directory; with ``overwrite``, remove what an earlier run wrote and nothing else."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            return
        for name in self.FILES:
            (self.path / name).unlink(missing_ok=True)
            (self.path / f"{name}.tmp").unlink(missing_ok=True)
        self._remove(self.IN_FOLDERS, self.FOLDERS)
        self.forget_search()
        for run in self.runs():
            RunDirectory(run).create(overwrite=True)
            if not any(run.iterdir()):
                run.rmdir()

    def _remove(self, files: Sequence[str], folders: Sequence[str]) -> None:
        """Remove files by their patterns, and folders in which nothing is left."""
        for path in (path for pattern in files for path in self.path.glob(pattern)):
            path.unlink(missing_ok=True)
        for path in (path for pattern in folders for path in self.path.glob(pattern)):
            with suppress(OSError):  # somebody else's files are in it
                path.rmdir()

    def checkpoint(self) -> Path | None:
        """What a run can be resumed from: its checkpoint, or the first one of its search for a number of epochs."""
        if (self / "last.ckpt").is_file():
            return self / "last.ckpt"
        return min(self.path.glob("search/part_*/last.ckpt"), default=None)

    def search_checkpoint(self, part: int) -> Path:
        """Of the network that a part of the training samples judges while the number of epochs is searched for."""
        return self / f"search/part_{part}/last.ckpt"

    def forget_search(self) -> None:
        """Remove what that search would be resumed from."""
        self._remove(self.IN_SEARCH, self.SEARCH_FOLDERS)

    def runs(self) -> list[Path]:
        """The directories of the runs for each fold or seed of a run that has some, in their order."""
        return runs_within(self.path)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write the log to ``aam.log`` too."""
        handler = logging.FileHandler(self.path / "aam.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        try:
            yield
        except BaseException as error:
            handler.handle(logger.makeRecord("aam", logging.ERROR, __file__, 0, "%r", (error,), None))
            raise
        finally:
            logger.removeHandler(handler)
            handler.close()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def names_in(directory: Path) -> list[str]:
    """What an output directory holds, sorted; nothing where it is yet to be made.

    Raises
    ------
    DataError
        If it is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: is a file; give another --output-dir")
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write tab-separated text whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    frame.to_csv(unfinished, sep="\t", index=False)
    unfinished.replace(path)
