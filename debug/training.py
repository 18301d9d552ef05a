"""A run, ready to be trained and looked at, with nothing written: what the scripts here share."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import NamedTuple

import click

from aam.assembly import build_task
from aam.cli.main import cli
from aam.cli.options import run_config
from aam.config import RunConfig
from aam.errors import DataError
from aam.loaders import choose_device
from aam.run import prepare
from aam.searches import with_batch_size, with_epochs
from aam.trainer_setup import build_trainer
from aam.training.trainer import Trainer

WHAT = "a run directory, its config.json, or a command: train --table … (put -- before it)"


class Ready(NamedTuple):
    """A trainer that has not begun."""

    trainer: Trainer
    sample_ids: list[str]


def config_of(arguments: list[str]) -> RunConfig:
    """The configuration of ``RUN`` or ``RUN/config.json``, which options may follow, or of ``train --table …``."""
    first, *rest = arguments
    path = Path(first) / "config.json" if Path(first).is_dir() else Path(first)
    name = first
    if name not in ("pretrain", "train"):
        if not path.is_file():
            raise DataError(f"{first}: neither a run directory with a config.json, nor train or pretrain")
        name, rest = json.loads(path.read_text(encoding="utf-8"))["command"], ["--config", str(path), *rest]
    command = importlib.import_module(f"aam.cli.{name}").command
    program = click.Context(cli, info_name="aam", **cli.context_settings)  # click remembers what it is called within
    try:
        with command.make_context(name, list(rest), parent=program) as ctx:
            config = run_config(name, ctx, output_dir=Path("unused"))
    except click.UsageError as error:
        raise DataError(error.format_message()) from None
    if config.several_runs:
        raise DataError(f"{first}: asks for several runs; give one of them, fold_0 or seed_0 say, or leave --folds out")
    return config


def ready(config: RunConfig) -> Ready:
    """What `aam.run.run` would train."""
    device = choose_device(config.train)
    config, study, split, pretrained, _, _ = prepare(config)
    task = build_task(config, study, split, pretrained).to(device)
    config = with_batch_size(config, study, split, task, device)
    config = with_epochs(config, len(study.rows_of(split, "train")))
    return Ready(build_trainer(config, study, split, task, device), study.sample_ids)
