"""`aam benchmark gpu`, on a CPU: what it prints, and that a variant which fails does not end it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from aam.benchmarks.gpu import VARIANTS, kind_of_kernel
from aam.cli.main import cli
from aam.data.simulate import simulate_study, write_study

SMALL = [
    *("benchmark", "gpu", "--device", "cpu", "--embedding-dim", "8", "--attention-heads", "2", "--clades", "4"),
    *("--attention-layers", "1", "--feed-forward-factor", "1", "--dropout", "0", "--max-bp", "12"),
    *("--batch-size", "2", "--num-workers", "0", "--seconds", "0"),
]


def records_of(*arguments: str) -> list[dict]:
    result = CliRunner().invoke(cli, [*SMALL, *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_it_measures_what_it_can():
    names = ["fp32", "bf16-mem_efficient", "bf16"]
    records = records_of(*(part for name in names for part in ("--variant", name)))
    ceilings, floors, plain, failed, half, profile, waiting = records
    assert ceilings["kind"] == "ceilings" and ceilings["tf32_flops_per_second"] is None
    assert floors["samples"] == 2 and floors["asvs"] >= floors["distinct_asvs"] > 0
    assert floors["arithmetic_ms"] == pytest.approx(1e3 * floors["flops"] / ceilings["bf16_flops_per_second"])
    assert "no such kernel on cpu" in failed["error"] and failed["step_ms"] is None
    for figures in (plain, half):
        assert figures["error"] is None and figures["steps"] >= 3
        assert figures["samples_per_second"] == pytest.approx(2e3 / figures["step_ms"])
        assert figures["host_ms"] > 0
    assert half["first_loss"] == pytest.approx(plain["first_loss"], rel=0.05)
    assert profile["variant"] == "bf16" and profile["groups"]["matrix products"] > 0
    assert profile["kernels"] >= sum(calls for _, _, calls in profile["top"]) > 0
    assert waiting["kind"] == "waiting" and waiting["step_ms"] > 0


def test_it_measures_a_study(tmp_path: Path):
    write_study(simulate_study(samples=12, asvs=20, subjects=6, length=40, depth=300, seed=1), tmp_path)
    places = np.linspace(0, 0.9, 12)
    np.save(tmp_path / "d.npy", np.abs(np.subtract.outer(places, places)).astype(np.float32))
    files = ["--table", str(tmp_path / "table.biom"), "--unifrac-matrix", str(tmp_path / "d.npy")]
    _, floors, plain, waiting = records_of(*files, "--variant", "fp32")
    assert (floors["samples"], floors["tokens"]) == (2, 13) and 0 < floors["distinct_asvs"] <= 20
    assert plain["error"] is None and waiting["workers"] == 0


def test_it_prints_a_table():
    result = CliRunner().invoke(cli, [*SMALL, "--variant", "bf16"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for text in ("floor by arithmetic", "floor by bytes", "bf16_rate_share", "where bf16 spends a step"):
        assert text in result.stdout


def test_an_unknown_variant_is_named():
    result = CliRunner().invoke(cli, [*SMALL, "--variant", "fp8"])
    assert result.exit_code == 2 and "'fp8' is none of fp32" in result.output


def test_help_names_every_variant():
    text = " ".join(CliRunner().invoke(cli, ["benchmark", "gpu", "--help"]).output.split())
    assert all(name in text for name in VARIANTS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NTN", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(...)", "attention"),
        ("void at::native::multi_tensor_apply_kernel<...FusedAdamMathFunctor...>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("triton_per_fused__to_copy_add_native_layer_norm_7", "elementwise"),
        ("triton_per_fused_add_native_layer_norm_3", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
    ],
)
def test_kernels_are_told_apart(name, kind):
    assert kind_of_kernel(name) == kind
