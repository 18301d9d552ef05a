"""Time and memory of cutting a large tree down to the ASVs of a table. Imports little, as memory is measured."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aam.benchmarks.memory import fresh_process, highest_memory, stoppable
from aam.benchmarks.simulated_files import simulated_newick
from aam.data.tree_pruner import pruned_tree

__all__ = ["PruneBenchmark", "benchmark_prune"]


@dataclass(frozen=True)
class PruneBenchmark:
    """A simulated tree, read and pruned in a process of its own."""

    tips: int
    kept: int
    file_mb: float
    seconds: float
    peak_memory_mb: float  # the interpreter and its packages included
    memory_before_mb: float  # of these alone

    def to_dict(self) -> dict[str, Any]:
        """Everything, by the names that the table shows."""
        return asdict(self)


def benchmark_prune(tips: int, kept: int, seed: int = 0, work_dir: Path | None = None) -> PruneBenchmark:
    """Write a Newick file of so many tips, then read and prune it.

    Parameters
    ----------
    tips, kept : int
    seed : int
    work_dir : Path, optional
        Where the temporary file goes.
    """
    names = [f"ASV{i:07d}" for i in range(tips)]
    wanted = np.random.default_rng(seed).choice(tips, kept, replace=False)
    with stoppable(), tempfile.TemporaryDirectory(prefix="aam-benchmark-", dir=work_dir) as folder:
        path = Path(folder) / "tree.nwk"
        path.write_text(simulated_newick(names, seed), encoding="ascii")
        with fresh_process() as call:
            seconds, peak, before = call(_prune, path, [names[place] for place in wanted.tolist()])
        return PruneBenchmark(tips, kept, path.stat().st_size / 1e6, seconds, peak / 1e6, before / 1e6)


def _prune(path: Path, names: list[str]) -> tuple[float, int, int]:
    before = highest_memory()
    began = time.perf_counter()
    pruned = pruned_tree(path, names)
    seconds = time.perf_counter() - began
    assert len(pruned.tree.tips) == len(names)
    return seconds, highest_memory(), before
