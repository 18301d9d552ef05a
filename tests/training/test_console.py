"""The progress line at every width, and what a terminal is left with."""

from __future__ import annotations

import io
import logging
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from aam.cli.options import _Plain, _Stderr
from aam.training.console import Console, Progress, progress_line
from aam.training.meter import Meter
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer

LOSSES = {"loss": 1.23456, "unifrac_loss": 0.7, "unifrac_euclidean_loss": 0.8, "nuc_loss": 1.3862, "target_loss": 0.5}
UNDER_WAY = Progress(50, 40, 3, 12, LOSSES, 1e-3, 812.4, 12.2, 303.0)
SLOW = Progress(5000, 12000, 1234, 11999, {"loss": 12345.678}, 1.25e-5, 0.42, 4000, 200_000)


@pytest.mark.parametrize("progress", [UNDER_WAY, SLOW, Progress(1, 1), replace(UNDER_WAY, validating=True)])
def test_it_is_never_too_wide(progress: Progress) -> None:
    lines = [progress_line(progress, width) for width in range(1, 240)]
    assert all(len(line) <= width for width, line in enumerate(lines, 1))
    assert all(len(short) <= len(long) for short, long in pairwise(lines) if "samples" in short)


def test_what_it_says() -> None:
    narrow, wide = progress_line(UNDER_WAY, 77), progress_line(UNDER_WAY, 200)
    bar = f"{'━' * 4}{'┄' * 8}"
    assert narrow == f"epoch 3/50 {bar} 12/40  loss 1.2346  lr 1.0e-03  812/s  left 0:13/5:03"
    for text in ("epoch 3/50", "12/40", "loss 1.2346", "lr 1.0e-03"):
        assert text in wide
    assert "812 samples/s  left 0:13, run 5:03" in wide
    assert "unifrac 0.7000  unifrac_euclidean 0.8000  nuc 1.3862  target 0.5000  lr" in wide
    assert f" {'━' * 9}{'┄' * 21} 12/40" in wide
    assert "left 1:06:40, run 2 d 7 h" in progress_line(SLOW, 150)
    assert "0.4 samples/s" in progress_line(SLOW, 150)


@pytest.mark.parametrize(
    ("width", "left_out"), [(79, "/s "), (60, "lr"), (40, "left"), (22, "loss")], ids=["rate", "lr", "left", "loss"]
)
def test_what_matters_least_goes_first(width: int, left_out: str) -> None:
    assert left_out not in progress_line(SLOW, width)


def test_before_anything_is_known() -> None:
    assert progress_line(Progress(2, 3), 60) == f"epoch 1/2 {'┄' * 30} 0/3"
    assert progress_line(replace(UNDER_WAY, validating=True), 60).endswith("12/40  validating")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Speaker(Callback):
    """Says something while the progress line is there."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        logging.getLogger("aam").info("said at step %d", trainer.state.step)


def test_on_a_terminal(
    equal_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is logged stands above the line, whole; the line is gone at the end, and the cursor is back."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    handler = _Stderr()
    handler.setFormatter(_Plain())
    monkeypatch.setattr(logging.getLogger("aam"), "handlers", [handler])
    caplog.set_level(logging.INFO, logger="aam")
    meter = Meter(every_seconds=0)
    console = Console(("r2",), meter)
    trainer = build_trainer(
        equal_study,
        build_task(equal_study, "regression"),
        tmp_path,
        epochs=2,
        callbacks=[meter, console, Speaker()],
    )
    trainer.fit()
    assert console.live is None
    screen = shown(terminal.getvalue())
    said = [line for line in screen if line]
    assert [line for line in said if line.startswith("said")] == [f"said at step {i}" for i in range(1, 7)]
    assert len([line for line in said if line.startswith("epoch")]) == 2  # the log's, and no progress line
    assert "\x1b[?25l" in terminal.getvalue() and terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex(
        "\x1b[?25l"
    )


def shown(written: str) -> list[str]:
    """The lines of a terminal after this was written to it: it knows what rich uses of control sequences."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_without_a_terminal(equal_study: TinyStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter()
    task = build_task(equal_study, "regression")
    with caplog.at_level(logging.INFO, logger="aam"):
        build_trainer(equal_study, task, tmp_path, epochs=2, callbacks=[meter, Console(("r2",), meter)]).fit()
    lines = [record.getMessage() for record in caplog.records]
    number = r"-?\d+\.\d{4}"
    for i, line in enumerate(lines, 1):
        expected = rf"epoch {i}/2  loss {number} / {number}  r2 {number}  [\d.]+ samples/s  \d+\.\d s(  \*)?"
        assert re.fullmatch(expected, line), line
    assert len(lines) == 2
