"""What the options say of the inputs: which base targets are learnt, and from which files."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from aam.config import DataConfig, RunConfig
from aam.data.labels import LabelFiles
from aam.data.study import Study, load_study
from aam.errors import DataError
from aam.models.base_targets import base_target_class, base_target_names

__all__ = ["label_files", "load_inputs"]

logger = logging.getLogger("aam")

_NAMED = re.compile("([a-z][a-z0-9_]*)=(.+)")


def load_inputs(config: RunConfig, *, checksums: bool = True) -> Study:
    """The study of a run; see `aam.data.study.load_study`."""
    return load_study(
        config.data,
        label_files(config.data, config.task.base_target),
        max_bp=config.model.max_bp,
        classifier=config.task.classifier,
        checksums=checksums,
    )


def label_files(data: DataConfig, target: str) -> dict[str, LabelFiles]:
    """The files of ``--unifrac-matrix``, by the base target that they are for.

    Parameters
    ----------
    data : DataConfig
    target : str
        ``--base-target``. One that stands for several takes ``NAME=FILE``; a file without name is of ``unifrac``.

    Raises
    ------
    DataError
        If a name is none, or is of another target than is learnt.
    """
    several = base_target_class(target).kind == "several"
    paths: dict[str, list[Path]] = {}
    for given in data.unifrac_matrix:
        match = None if given.exists() else _NAMED.fullmatch(str(given))
        name, path = (match.group(1), Path(match.group(2))) if match else ("unifrac" if several else target, given)
        if name not in base_target_names():
            known = ", ".join(base_target_names())
            raise DataError(f"--unifrac-matrix {given}: no base target {name!r}; there are {known}")
        if name != target and not several:
            raise DataError(f"--unifrac-matrix {given}: is of {name}, and --base-target is {target}; make them agree")
        if several and not match:
            logger.info("--unifrac-matrix %s: taken for %s; NAME=%s says otherwise", given, name, given)
        paths.setdefault(name, []).append(path)
    found = {}
    for name, files in paths.items():
        kind = base_target_class(name).kind
        if kind != "pairwise" and kind != "value":
            raise DataError(f"--unifrac-matrix {files[0]}: {name} is not learnt from distances; leave it out")
        found[name] = LabelFiles(tuple(files), base_target_class(name).title, kind, base_target_class(name).upper)
    return found
