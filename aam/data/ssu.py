"""UniFrac and Faith's PD by ``ssu`` and ``faithpd`` of unifrac-binaries (Sfiligoi et al. 2022), run as programs.

They read HDF5 BIOM and Newick files, which are written to a directory that is removed again. In these, samples and ASVs
are numbers: what users call them (quotes, spaces, 150 nucleotides) need not survive another program's parsers.

Legend of shapes: ``N`` samples, ``A`` ASVs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aam.data.files import open_hdf5, read_hdf5, read_hdf5_ids, read_text, shown
from aam.data.newick import Tree, write_newick
from aam.errors import DataError

__all__ = ["HOW_TO_INSTALL", "is_installed", "ssu_distances", "ssu_faith_pd"]

HOW_TO_INSTALL = "`conda install -c bioconda unifrac` or `apt-get install unifrac-tools`"


def is_installed(program: str) -> bool:
    """Whether ``ssu`` or ``faithpd`` is on the PATH."""
    return shutil.which(program) is not None


def ssu_distances(
    counts: sparse.csr_array, tree: Tree, tips: NDArray[np.int64], arguments: Sequence[str], threads: int | None = None
) -> NDArray[np.float32]:
    """Distances (N, N) between samples, as ``ssu`` computes them, rounded to single precision.

    Parameters
    ----------
    counts : csr_array of shape (N, A)
    tree : Tree
    tips : ndarray of int64, shape (A,)
        Node of each ASV.
    arguments : sequence of str
        ``-m`` with a method, and what it needs.
    threads : int, optional
        As many as ``OMP_NUM_THREADS`` says, or there are, without.

    Raises
    ------
    DataError
        If the program is missing, fails or gives something else.
    """
    with tempfile.TemporaryDirectory(prefix="aam-") as name:
        output = _run(
            "ssu", counts, tree, tips, Path(name), [*arguments, "--format", "hdf5_fp32", "--pcoa", "0"], threads
        )
        with open_hdf5(output, "distance matrix") as file:
            order = _order(read_hdf5_ids(file, "order", output, what="distance matrix"), counts.shape[0])
            values = read_hdf5(file, "matrix", output, what="distance matrix", kinds="f", ndim=2, dtype=np.float32)
    return values if (order == np.arange(len(order))).all() else values[np.ix_(order, order)]


def ssu_faith_pd(
    counts: sparse.csr_array, tree: Tree, tips: NDArray[np.int64], threads: int | None = None
) -> NDArray[np.float64]:
    """Faith's PD (N,) of samples, as ``faithpd`` computes it; parameters as of `ssu_distances`."""
    with tempfile.TemporaryDirectory(prefix="aam-") as name:
        output = _run("faithpd", counts, tree, tips, Path(name), [], threads)
        rows = [line.split("\t") for line in read_text(output, "output of faithpd").splitlines()[1:]]
    order = _order([row[0] for row in rows], counts.shape[0])
    return np.array([float(row[1]) for row in rows])[order]


def _run(
    program: str,
    counts: sparse.csr_array,
    tree: Tree,
    tips: NDArray[np.int64],
    directory: Path,
    arguments: Sequence[str],
    threads: int | None,
) -> Path:
    if not is_installed(program):
        raise DataError(f"{program} is not on the PATH; install it with {HOW_TO_INSTALL}, or use --engine skbio")
    _write_table(directory / "table.biom", counts)
    (directory / "tree.nwk").write_text(write_newick(_numbered(tree, tips)))
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [program, "-i", "table.biom", "-t", "tree.nwk", "-o", "output", *arguments]
    # subprocess.run kills the program when this one is interrupted.
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False)
    output = directory / "output"
    if done.returncode != 0 or not output.is_file():
        said = " ".join((done.stderr + done.stdout).decode(errors="replace").split())
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        raise DataError(f"{program} ended {how} ({shown(said, 300) if said else 'no message'}); use --engine skbio")
    return output


def _numbered(tree: Tree, tips: NDArray[np.int64]) -> Tree:
    """The tree, its tips named by the places of their ASVs, other nodes without names."""
    labels = [b""] * len(tree)
    for number, node in enumerate(tips.tolist()):
        labels[node] = b"%d" % number
    stop = np.cumsum([len(label) for label in labels])
    start = np.concatenate([[0], stop[:-1]])
    return Tree(tree.depth, tree.length, np.frombuffer(b"".join(labels), np.uint8), start, stop, tree.quoted)


def _write_table(path: Path, counts: sparse.csr_array) -> None:
    """Write counts (N, A) as BIOM 2.1, with numbers for IDs."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"id": "", "type": "OTU table", "format-url": "http://biom-format.org"})
        file.attrs.update({"generated-by": "aam", "creation-date": "2000-01-01T00:00:00", "nnz": counts.nnz})
        file.attrs.update({"format-version": np.array([2, 1]), "shape": np.array(counts.shape[::-1])})
        for axis, matrix in (("sample", counts), ("observation", sparse.csr_array(counts.T))):
            text: Any = h5py.string_dtype()
            file.create_dataset(f"{axis}/ids", data=[str(i) for i in range(matrix.shape[0])], dtype=text)
            file.create_dataset(f"{axis}/matrix/data", data=matrix.data.astype(np.float64))
            file.create_dataset(f"{axis}/matrix/indices", data=matrix.indices.astype(np.int32))
            file.create_dataset(f"{axis}/matrix/indptr", data=matrix.indptr.astype(np.int32))
            file.create_group(f"{axis}/metadata")
            file.create_group(f"{axis}/group-metadata")


def _order(ids: Sequence[str], number: int) -> NDArray[np.int64]:
    """Where in the output the samples (N,) are."""
    place = {name: i for i, name in enumerate(ids)}
    try:
        return np.array([place[str(i)] for i in range(number)], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"the output lacks sample number {error.args[0]}; use --engine skbio") from None
