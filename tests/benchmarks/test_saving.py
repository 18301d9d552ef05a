"""`aam benchmark memory`, on a CPU."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from aam.cli.main import cli


@pytest.mark.slow
def test_what_is_saved_is_measured():
    arguments = ["benchmark", "memory", "--device", "cpu", "--embedding-dim", "32", "--attention-heads", "2"]
    arguments += [
        "--attention-layers",
        "4",
        "--dropout",
        "0",
        "--batch-size",
        "4",
        "--asv-chunk-size",
        "16",
        "--steps",
        "0",
    ]
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    neither, checkpointing, chunks, both = json.loads(result.stdout)
    assert neither["growth_share"] == 1
    for record in (checkpointing, chunks, both):
        assert record["loss"] == pytest.approx(neither["loss"], rel=1e-4)
        assert record["growth_share"] == pytest.approx(record["growth_mb"] / neither["growth_mb"])
        assert record["growth_share"] < 0.7
