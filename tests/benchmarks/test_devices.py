"""`aam benchmark devices`, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aam.benchmarks.devices import benchmark_devices
from aam.cli.main import cli
from aam.config import RunConfig
from aam.training.distributed import Processes
from tests.end_to_end.program import StudyFiles, simulate
from tests.training.processes import together


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return simulate(tmp_path_factory.mktemp("study"))


def in_processes(processes: Processes, study: StudyFiles) -> dict[str, Any] | None:
    config = RunConfig.model_validate(
        {
            "command": "pretrain",
            "data": {"table": [study.table], "unifrac_matrix": [study.matrix]},
            "model": {"embedding_dim": 16, "attention_heads": 2, "attention_layers": 1, "clades": 16},
            "train": {
                "output_dir": "unused",
                "batch_size": 7,
                "num_workers": 0,
                "device": "cpu",
                "strategy": processes.strategy,
                "threads": 1,
            },
        }
    )
    measured = benchmark_devices(config, steps=4)
    return None if measured is None else measured.to_dict()


def test_two_processes_share_the_state_of_fsdp(study: StudyFiles) -> None:
    options = ["--embedding-dim", "16", "--attention-heads", "2", "--attention-layers", "1", "--clades", "16"]
    machine = ["--batch-size", "7", "--num-workers", "0", "--threads", "1", "--device", "cpu", "--steps", "4"]
    files = ["--table", str(study.table), "--unifrac-matrix", str(study.matrix)]
    printed = CliRunner().invoke(cli, ["benchmark", "devices", *files, *options, *machine, "--json"])
    alone = json.loads(printed.stdout)
    assert (alone["strategy"], alone["processes"], alone["samples"]) == ("single", 1, 7)
    first, second = together(in_processes, 2, "fsdp", study)
    assert second is None and (first["strategy"], first["processes"], first["samples"]) == ("fsdp", 2, 7)
    assert first["state_mb"] == pytest.approx(alone["state_mb"] / 2, rel=0.05)
    for measured in (first, alone):
        assert min(measured[name] for name in ("step_seconds", "samples_per_second", "memory_mb")) > 0


def test_the_table(study: StudyFiles) -> None:
    small = ["--embedding-dim", "16", "--attention-heads", "2", "--steps", "1", "--num-workers", "0"]
    files = ["--table", str(Path(study.table)), "--unifrac-matrix", str(study.matrix)]
    printed = CliRunner().invoke(cli, ["benchmark", "devices", *files, *small])
    assert printed.exit_code == 0 and "samples_per_second" in printed.stdout
