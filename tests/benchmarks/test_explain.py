"""A target that a few clades decide, and what finds them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aam.data.simulate import plant_target, simulate_study
from aam.errors import DataError
from tests.end_to_end.program import succeed


def test_a_planted_target_is_that_of_its_clades() -> None:
    drawn = simulate_study(samples=60, asvs=80, subjects=20, length=40, seed=3)
    study, causal = plant_target(drawn, clades=2, noise=0.0, seed=3)
    assert "planted" not in drawn.metadata and 2 <= len(causal) < 30
    clade = {asv["sequence"]: asv["clade"] for asv in study.truth["asvs"]}
    effects = {one["clade"]: one["effect"] for one in study.truth["clades"]}
    chosen = sorted({clade[bases] for bases in causal})
    assert len(chosen) == 2 and all(effects[name] == 0 for name in chosen)
    assert sorted(causal) == sorted(bases for bases, name in clade.items() if name in chosen)
    # Least squares on the two clades' logarithms leaves nothing over; on those of all others it does.
    shares = study.counts.toarray() / study.counts.sum(axis=1)[:, None]
    columns = {
        name: np.log(shares[:, [clade[bases] == name for bases in study.sequences]].sum(axis=1) + 1e-3)
        for name in effects
    }
    planted = study.metadata["planted"].to_numpy()
    for names, fits in ((chosen, True), ([name for name in effects if name not in chosen][:8], False)):
        design = np.stack([np.ones(60), *(columns[name] for name in names)], axis=1)
        left = planted - design @ np.linalg.lstsq(design, planted, rcond=None)[0]
        assert (left.var() < 1e-6) == fits
    with pytest.raises(DataError, match="50 are to be planted"):
        plant_target(drawn, clades=50)


@pytest.mark.slow
def test_methods_find_them() -> None:
    out = succeed("benchmark", "explain", "--samples", 200, "--asvs", 80, "--epochs", 50, "--threads", 1, "--json").out
    found = {record["method"]: record for record in json.loads(out)}
    assert set(found) == {"integrated-gradients", "attention", "permutation"}
    assert found["permutation"]["r2"] > 0.5
    for method in ("integrated-gradients", "permutation"):
        assert found[method]["precision"] >= 0.75 * found[method]["most"] > 2 * found[method]["chance"]
        assert found[method]["auc"] > 0.85
    assert all(record["deletion_ratio"] > 1.3 for record in found.values())
