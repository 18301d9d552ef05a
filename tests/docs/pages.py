"""What the README and the manual tell a reader to type: fenced blocks, and the commands of a program in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=fence)\s*$", re.DOTALL | re.MULTILINE)
_SHELL = {"", "bash", "sh"}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command as a page has it."""

    page: str
    line: str
    environment: dict[str, str]
    words: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the program: `aam`, or what torchrun starts as ``-m aam``."""
        return self.words[self.words.index("aam") + 1 :]


def pages() -> list[Path]:
    built = DOCS / "_build"
    return [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if not path.is_relative_to(built))]


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of these languages."""
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if found["language"].strip() in languages:
            yield found["body"]


def lines(page: Path) -> Iterator[str]:
    """Lines of the fenced blocks that a shell could read, continued ones joined."""
    for body in blocks(page, *_SHELL):
        yield from re.sub(r"[ \t]*\\\n[ \t]*", " ", body).splitlines()


def commands(page: Path, *programs: str) -> list[Command]:
    """Commands of these programs; of `aam` also where srun and torchrun start it."""
    found = []
    name = page.relative_to(ROOT).as_posix()
    for line in lines(page):
        if not any(program in line for program in programs):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no command: an output, say
            continue
        for part in _parts(words):
            environment = {}
            while part and (given := _ASSIGNMENT.fullmatch(part[0])):
                environment[given[1]] = given[2]
                part = part[1:]
            if not part:
                continue
            started = part[0] in ("torchrun", "srun") and "aam" in part and "aam" in programs
            if Path(part[0]).name in programs or started:
                part[0] = Path(part[0]).name
                found.append(Command(name, line.strip(), environment, tuple(part)))
    return found


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == "&&":
            yield part
            part = []
        else:
            part.append(word)
    yield part
