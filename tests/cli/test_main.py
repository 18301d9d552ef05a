"""The program as a whole: its commands, its names, its exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aam import __version__
from aam.cli.main import COMMANDS
from tests.end_to_end.program import aam, assert_one_line_error


@pytest.mark.parametrize("command", [*COMMANDS, "benchmark train"])
@pytest.mark.parametrize("spelling", ["--help", "-h"])
def test_every_command_explains_itself(command: str, spelling: str) -> None:
    outcome = aam(*command.split(), spelling)
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: aam {command} [OPTIONS]")
    assert not outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_does(name: str) -> None:
    assert f"  {name} " in aam("--help").out


def test_version() -> None:
    assert aam("--version").out.split()[-1] == __version__


@pytest.mark.parametrize("command", ["evalute", "Train", "5"])
def test_an_unknown_command_is_a_wrong_call_that_lists_the_right_ones(command: str) -> None:
    assert_one_line_error(aam(command), 2, repr(command), *COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "benchmark train"])
def test_an_unknown_option_is_a_wrong_call(command: str) -> None:
    assert_one_line_error(aam(*command.split(), "--colour", "red"), 2, "--colour")


@pytest.mark.parametrize("command", ["pretrain", "train", "predict", "check", "simulate", "info", "benchmark train"])
def test_a_missing_option_is_a_wrong_call(command: str) -> None:
    assert_one_line_error(aam(*command.split()), 2, "Missing")


def test_three_names_are_one_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("aam")
    assert script.is_file() or shutil.which("aam")
    names = ([sys.executable, "-m", "aam"], [sys.executable, "-m", "aam.cli"], [str(script)])
    for arguments, code in ((["--help"], 0), (["train"], 2)):
        done = [
            subprocess.run([*name, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
            for name in names
        ]
        assert {outcome.returncode for outcome in done} == {code}
        assert len({(outcome.stdout, outcome.stderr) for outcome in done}) == 1
