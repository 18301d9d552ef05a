"""The Dockerfile, read as Docker reads it; and its builder stage, run where there is no Docker.

    python -m tests.dockerfile FOLDER [--build-arg NAME=VALUE]...

copies what .dockerignore leaves to FOLDER/src and runs the steps of the builder stage there, with FOLDER/opt in place
of /opt: nothing outside of FOLDER is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Instruction(NamedTuple):
    """``RUN …``, say, its lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of the exec form, or split at blanks."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()


class Stage(NamedTuple):
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction]

    def of(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            base, *alias = rest.split()
            found.append(Stage(base, alias[1] if alias else "", []))
        else:
            found[-1].instructions.append(Instruction(name.upper(), rest.strip()))
    return found


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a path out: the last pattern that matches it, or a folder above it, decides."""
    verdict = False
    parts = path.split("/")
    for pattern in patterns:
        keeps = pattern.startswith("!")
        expression = _expression(pattern.lstrip("!").strip("/"))
        if any(expression.fullmatch("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)):
            verdict = not keeps
    return verdict


def _expression(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*")
    return re.compile(escaped.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))


def ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def context() -> list[str]:
    """The tracked files that a build is given."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in tracked.splitlines() if not ignored(path, ignore_patterns())]


def run_builder(folder: Path, arguments: dict[str, str], dockerfile: Path = ROOT / "Dockerfile") -> None:
    """Run the first stage; the first step that fails ends it."""
    source = folder / "src"
    source.mkdir(parents=True)
    given = set(context())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    known: dict[str, str] = {}
    for name, text in stages(dockerfile.read_text(encoding="utf-8"))[0].instructions:
        if name == "ARG":
            key, _, default = text.partition("=")
            known[key] = arguments.get(key, string.Template(default).safe_substitute(known))
        elif name == "ENV":
            key, _, value = text.partition("=")
            environment[key] = string.Template(_moved(value, folder)).safe_substitute(environment)
        elif name == "COPY":
            *sources, _ = text.split()
            for path in given:
                if any(path == one or path.startswith(f"{one}/") for one in sources):
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / path, source / path)
        elif name == "RUN":
            command = _moved(text, folder)
            print(f"RUN {command}", flush=True)
            subprocess.run(["/bin/sh", "-c", command], cwd=source, env=environment | known, check=True)


def _moved(text: str, folder: Path) -> str:
    return text.replace("/opt/aam", str(folder / "opt" / "aam"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    try:
        run_builder(given.folder.resolve(), dict(pair.split("=", 1) for pair in given.build_arg))
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed with exit code {error.returncode}")


if __name__ == "__main__":
    main()
