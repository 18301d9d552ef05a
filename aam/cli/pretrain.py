"""``aam pretrain``."""

from __future__ import annotations

from typing import Any

import click

from aam.cli.options import config_options, log_to_console, run_config
from aam.cli.report import print_folds, print_result

__all__ = ["command"]


@click.command("pretrain")
@config_options("pretrain")
@click.pass_context
def command(ctx: click.Context, **_: Any) -> None:
    """Learn sequences and communities from distances between samples.

    The encoder learns to reproduce the distance matrix and to restore masked nucleotides; no metadata are needed.
    `aam train --pretrained-encoder RUN` goes on from it.
    """
    config = run_config("pretrain", ctx)
    log_to_console()
    from aam.folds import asks_for_folds, run_folds
    from aam.run import run

    if asks_for_folds(config):
        print_folds(run_folds(config))
    else:
        print_result(run(config))
