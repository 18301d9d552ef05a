"""Every `aam` command of the README and the manual is run, in the order of its page, on files of the names it uses.

Epochs and networks are made small by options that are appended. What cannot be run here is in `PARSED_ALONE`, with the
reason, and is held against the real options; so an entry that no page has any more is a failure, too.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import pytest
from torch.distributed.run import get_args_parser

from aam.cli.main import COMMANDS, cli
from aam.data.biom_loader import load_table
from tests.data.artifacts import write_artifact
from tests.docs.pages import DOCS, ROOT, Command, blocks, commands, pages
from tests.end_to_end.program import TINY, TINY_MODEL, aam, simulate, succeed

# Beginnings of commands that are checked against the real options and not run, and why.
PARSED_ALONE = {
    "torchrun": "starts processes; tests/end_to_end/test_processes.py does",
    "srun torchrun": "needs SLURM",
    "aam demo": "minutes, and no option makes it smaller; `make demo` runs it",
    "aam benchmark gpu": "needs a GPU to say anything",
    "aam benchmark memory": "a process for each of four networks of full size",
    "aam benchmark quality": "needs real studies, and hours",
    "aam benchmark report": "minutes, and reports of others; tests/benchmarks/test_report.py runs it",
    "aam benchmark optimizers": "16 trainings; tests/benchmarks/test_optimizers.py runs it",
    "WANDB_MODE=offline aam train": "starts a service of its own; tests/integrations/test_trackers.py runs it",
    "MLFLOW_TRACKING_URI=sqlite:///mlflow.db aam train": "imports MLflow, seconds; tests/integrations/test_trackers.py",
}
SMALL = {
    "simulate": ["--samples", "40", "--asvs", "30", "--subjects", "10", "--length", "40"],
    "pretrain": TINY,
    "train": TINY,
    "tune": [*TINY, "--trials", "2", "--folds", "2", "--epochs", "1"],
    "baseline": ["--threads", "1"],
    "predict": ["--num-workers", "0", "--threads", "1"],
    "embed": ["--num-workers", "0", "--threads", "1"],
    "explain": ["--threads", "1", "--max-samples", "12"],
    "benchmark train": [*TINY_MODEL, "--threads", "1", "--num-workers", "0", "--steps", "1"],
    "benchmark devices": [*TINY_MODEL, "--threads", "1", "--num-workers", "0", "--steps", "1"],
}
# What `…` stands for: after an option its value, else the usual inputs of a command.
VALUES = {"--table": "table.biom", "--unifrac-matrix": "unifrac.h5"}
BASE = ["--table", "table.biom", "--unifrac-matrix", "unifrac.h5"]
COLUMN = ["--table", "table.biom", "--metadata", "metadata.tsv", "--metadata-column", "age", "--output-dir", "runs/new"]
INPUTS = {"pretrain": BASE, "benchmark": BASE, "train": COLUMN}
OUTPUTS = {"--output", "--output-dir", "--asvs", "--ordination", "--familiarity", "--plot"}


def name_of(arguments: tuple[str, ...]) -> str:
    return " ".join(arguments[:2]) if arguments[0] == "benchmark" else arguments[0]


def whole(command: Command) -> list[str]:
    """The arguments, with something in place of every `…` and of the variables of the SLURM script."""
    given: list[str] = []
    for word in command.arguments:
        if word == "…":
            given += [VALUES[given[-1]]] if given[-1] in VALUES else INPUTS[command.arguments[0]]
        elif word != "$resume":
            given.append(word.replace("$run", "runs/pretrained"))
    return given


def why_not_run(command: Command) -> str | None:
    """The entry of `PARSED_ALONE` that a command is."""
    written = " ".join([f"{name}={value}" for name, value in command.environment.items()] + list(command.words))
    return next((begin for begin in PARSED_ALONE if written.startswith(begin)), None)


def parse(arguments: list[str]) -> None:
    """Let click read a command without running it."""
    command: click.Command | None = cli
    # With the settings of a real call, for commands keep the names of their help from the first one.
    context = click.Context(cli, info_name="aam", **cli.context_settings)
    while isinstance(command, click.Group) and not arguments[0].startswith("-"):
        command = command.get_command(context, arguments[0])
        arguments = arguments[1:]
    assert command is not None, arguments
    if arguments != ["--version"]:
        command.make_context(command.name, list(arguments), parent=context)


ALL = [command for page in pages() for command in commands(page, "aam")]
# Each command once: what a second page shows has run on the first, and what it writes is in the stock.
FIRST = {(command.words, tuple(command.environment.items())): command for command in reversed(ALL)}
RUN: dict[str, list[Command]] = {}
for one in ALL:
    if one is FIRST[one.words, tuple(one.environment.items())]:
        RUN.setdefault(one.page, []).append(one)


def test_the_pages_have_the_commands() -> None:
    """The parser finds what a reader would: no command of the program is without an example."""
    assert {command.arguments[0] for command in ALL} >= set(COMMANDS)
    assert {command.page for command in ALL} >= {"README.md", "docs/start.md", "docs/slurm.md"}


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.page}:{command.line[:60]}")
def test_every_option_is_one(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()  # an option may insist on a folder that exists
    parse(whole(command))
    if "torchrun" in command.words:
        words = list(command.words[command.words.index("torchrun") + 1 :])
        launched = get_args_parser().parse_args(words[: words.index("aam") + 1])
        assert launched.module and launched.training_script == "aam"


def test_what_is_not_run_is_there() -> None:
    assert {why_not_run(command) for command in ALL} - {None} == PARSED_ALONE.keys()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small study under every name that the pages give to files, and runs on it."""
    folder = tmp_path_factory.mktemp("stock")
    study = simulate(folder, samples=60, subjects=20)
    shutil.copytree(folder, folder / "study")
    rng = np.random.default_rng(0)
    metadata = pd.read_csv(study.metadata, sep="\t")
    metadata["host_subject_id"] = metadata["subject_id"]
    metadata["bmi"] = rng.normal(24, 3, len(metadata)).round(1)
    metadata["sex"] = rng.choice(["female", "male"], len(metadata))
    metadata["diet"] = rng.choice(["vegan", "other"], len(metadata))
    for name in ("metadata.tsv", "new_metadata.tsv", "sample-metadata.tsv"):
        metadata.to_csv(folder / name, sep="\t", index=False)
    for name in ("new.biom", "new_samples.biom"):
        shutil.copy(study.table, folder / name)
    table = load_table(study.table)
    taxa = [f"d__Bacteria; p__P{i % 2}; c__C; o__O; f__F; g__G{i % 5}" for i in range(len(table.feature_ids))]
    pd.DataFrame({"Feature ID": table.feature_ids, "Taxon": taxa}).to_csv(
        folder / "taxonomy.tsv", sep="\t", index=False
    )
    fasta = "".join(f">{name}\n{name}\n" for name in table.feature_ids)
    with h5py.File(study.matrix) as file:
        ids, matrix = [name.decode() for name in file["order"]], file["matrix"][()]
    distances = pd.DataFrame(matrix, ids, ids).to_csv(sep="\t")
    for name, type_, data in (
        ("table.qza", "FeatureTable[Frequency]", {"feature-table.biom": study.table.read_bytes()}),
        ("new-table.qza", "FeatureTable[Frequency]", {"feature-table.biom": study.table.read_bytes()}),
        ("rep-seqs.qza", "FeatureData[Sequence]", {"dna-sequences.fasta": fasta.encode()}),
        ("new-rep-seqs.qza", "FeatureData[Sequence]", {"dna-sequences.fasta": fasta.encode()}),
        (
            "unweighted_unifrac_distance_matrix.qza",
            "DistanceMatrix",
            {"distance-matrix.tsv": distances.encode()},
        ),
    ):
        write_artifact(folder / name, type_, data)
    np.savez(folder / "stripes.npz", matrix=matrix[:, :20], ids=ids, reference_ids=ids[:20])
    runs = folder / "runs"
    succeed(*study.pretrain, "--output-dir", runs / "pretrain")
    train = [*study.train, "--metadata-column", "age"]
    succeed(*train, "--cal-size", 0.3, "--output-dir", runs / "age")
    succeed("export", "--model", runs / "age", "--output", folder / "age.onnx")
    for name in ("a.tsv", "b.tsv"):
        succeed(
            "predict",
            "--model",
            runs / "age",
            "--table",
            study.table,
            "--metadata",
            study.metadata,
            "--num-workers",
            0,
            "--output",
            folder / name,
        )
    return folder


def provide(arguments: list[str], stock: Path) -> None:
    """Put files that a command reads, and no earlier one of the page wrote, where it looks for them."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if (
            before not in OUTPUTS
            and not Path(word).is_absolute()
            and not Path(word).exists()
            and (stock / word).exists()
        ):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (stock / word).is_dir() else shutil.copy)(stock / word, word)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in [command for command in RUN[page] if why_not_run(command) is None]:
        arguments = whole(command)
        if "--version" in arguments:
            continue
        provide(arguments, stock)
        for option, value in pairwise(arguments):
            if option == "--output-dir" and Path(value).exists():  # a page may show two ways to one result
                shutil.rmtree(value)
            if option == "--output":
                Path(value).unlink(missing_ok=True)
        outcome = aam(*arguments, *SMALL.get(name_of(command.arguments), []))
        assert outcome.code == 0, (command.line, outcome.err, outcome.out)


@pytest.mark.skipif(shutil.which("ssu") is None, reason="ssu of unifrac-binaries is not installed")
def test_ssu_and_its_matrices(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page on `ssu`, line by line: parts merge to what one call gives, and AAM reads all of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page = DOCS / "ssu.md"
    for name in ("table.biom", "tree.nwk"):
        shutil.copy(stock / name, name)
    said, made = {}, {}
    for command in commands(page, "ssu", "faithpd"):
        done = subprocess.run(command.words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command.line, done.stderr)
        said[command.line] = done.stdout
        if "unifrac.h5" in command.words:
            with h5py.File("unifrac.h5") as file:
                made[len(made)] = file["matrix"][()]
    bounds = next(out for line, out in said.items() if "partial-report" in line)
    parts = [command.words for command in commands(page, "ssu") if "--start" in command.words]
    documented = [(words[words.index("--start") + 1], words[words.index("--stop") + 1]) for words in parts]
    assert [tuple(line.split()) for line in bounds.splitlines()] == documented
    assert len(made) == 2
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)
    (code,) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), {})  # its own lines, as a reader runs them
    for matrix in ("unifrac.h5", "stripes.npz"):
        succeed("check", "--table", "table.biom", "--unifrac-matrix", matrix)
    succeed(*["check", "--table", "table.biom", "--base-target", "faith_pd"], "--unifrac-matrix", "faith_pd.tsv")


def test_make_has_what_the_pages_call() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if line[:1].isalpha()}
    called = {word for page in pages() for command in commands(page, "make") for word in command.words[1:]}
    assert called and {word for word in called if "=" not in word} <= targets
