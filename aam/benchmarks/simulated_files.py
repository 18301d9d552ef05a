"""A table and a distance matrix of any size, written piece by piece: what `aam benchmark data` reads.

There is nothing to learn in them; `aam.data.simulate` draws studies with a signal.

Shapes: ``N`` samples, ``A`` ASVs, ``k`` ASVs of a sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["Size", "simulated_newick", "simulated_sequences", "write_matrix", "write_table"]

_LENGTHS = (100, 150)  # bases
_BLOCK = 2**21  # entries written at a time
_SKEW = 0.9  # 0 if all ASVs are equally common
_PAIRED = 0.6  # share of the subtrees that find a partner in a round: less makes deeper trees


class Size(NamedTuple):
    """Of a table: samples, ASVs, and entries that are not zero."""

    samples: int
    asvs: int
    nonzeros: int

    @property
    def per_sample(self) -> int:
        """ASVs of each sample, k."""
        return self.nonzeros // self.samples

    def of(self, samples: int) -> Size:
        """A table of so many samples of this kind."""
        return Size(samples, self.asvs, samples * self.per_sample)


def simulated_sequences(number: int, seed: int) -> list[bytes]:
    """Distinct random DNA of 100 to 150 bases."""
    draws = np.random.default_rng([seed, 0])
    letters = np.frombuffer(b"ACGT", np.uint8)[draws.integers(0, 4, (number, _LENGTHS[1]), dtype=np.uint8)]
    lengths = draws.integers(_LENGTHS[0], _LENGTHS[1] + 1, number).tolist()
    return [row[:length].tobytes() for row, length in zip(letters, lengths, strict=True)]


def write_table(path: Path, size: Size, sequences: list[bytes], seed: int) -> None:
    """Write the samples of a BIOM 2.1 table, in the chunks and with the compression of biom-format.

    Each sample has ``k`` ASVs, one of each of ``k`` classes of ASVs: the larger the class, the rarer its members. So
    the samples of tables that differ in ``N`` alone are alike.

    Parameters
    ----------
    path : Path
    size : Size
        With ``k`` of at least 1 and at most ``A``.
    sequences : list of bytes, length A
        The feature IDs.
    seed : int
    """
    n, a, k = size.samples, size.asvs, size.per_sample
    assert 1 <= k <= a == len(sequences)
    draws = np.random.default_rng([seed, 1, n])
    rank = np.arange(k + 1) / k
    edges = np.arange(k + 1) + ((a - k) * ((1 - _SKEW) * rank + _SKEW * rank**2)).astype(np.int64)
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update({"id": "simulated", "type": "OTU table", "format-url": "http://biom-format.org"})
        file.attrs.update({"generated-by": "aam benchmark data", "creation-date": "2000-01-01T00:00:00"})
        file.attrs.update({"format-version": (2, 1), "nnz": n * k, "shape": (a, n)})
        file.create_dataset("observation/ids", data=np.array(sequences, dtype=object), dtype=text, compression="gzip")
        ids = np.array([f"sample{i:07d}" for i in range(n)], dtype=object)
        file.create_dataset("sample/ids", data=ids, dtype=text, compression="gzip")
        matrix = file.create_group("sample/matrix")
        matrix.create_dataset("indptr", data=np.arange(0, n * k + 1, k, dtype=np.int32), compression="gzip")
        indices = matrix.create_dataset("indices", (n * k,), np.int32, compression="gzip")
        data = matrix.create_dataset("data", (n * k,), np.float64, compression="gzip")
        block = max(1, _BLOCK // k)
        for start in range(0, n, block):
            rows = min(block, n - start)
            asvs = edges[:-1] + (draws.random((rows, k)) * np.diff(edges)).astype(np.int64)  # (rows, k), rising
            span = slice(start * k, (start + rows) * k)
            indices[span] = asvs.ravel()
            data[span] = np.ceil(draws.lognormal(1.0, 1.5, rows * k))


def write_matrix(path: Path, samples: int) -> None:
    """Write distances as `ssu` lays them out (HDF5, one piece), all 0: a sparse file, which takes no room on disk."""
    with h5py.File(path, "w") as file:
        ids = np.array([f"sample{i:07d}" for i in range(samples)], dtype=object)
        file.create_dataset("order", data=ids, dtype=h5py.string_dtype())
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((samples, samples))
        h5py.h5d.create(file.id, b"matrix", h5py.h5t.IEEE_F32LE, space, layout)


def simulated_newick(names: list[str], seed: int) -> str:
    """A rooted tree of these tips with branch lengths, as text; subtrees are joined at random, many at a time."""
    draws = np.random.default_rng([seed, 2])
    trees = names
    while len(trees) > 1:
        order: NDArray[np.int64] = draws.permutation(len(trees))
        pairs = max(1, int(_PAIRED * len(trees) / 2))
        left, right, rest = np.split(order, [pairs, 2 * pairs])
        lengths = draws.exponential(0.05, 2 * pairs).tolist()
        trees = [
            f"({trees[a]}:{x:.5f},{trees[b]}:{y:.5f})"
            for a, b, x, y in zip(left.tolist(), right.tolist(), lengths[:pairs], lengths[pairs:], strict=True)
        ] + [trees[place] for place in rest.tolist()]
    return trees[0] + ";\n"
