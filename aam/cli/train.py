"""``aam train``."""

from __future__ import annotations

from typing import Any

import click

from aam.cli.options import config_options, log_to_console, run_config
from aam.cli.report import print_folds, print_result

__all__ = ["command"]


@click.command("train")
@config_options("train")
@click.pass_context
def command(ctx: click.Context, **_: Any) -> None:
    """Learn to predict a metadata column: a number, or with --classifier a class.

    With --unifrac-matrix the distances are learnt beside it. --pretrained-encoder starts from a run of `aam pretrain`
    and takes over its split.
    """
    config = run_config("train", ctx)
    log_to_console()
    from aam.folds import asks_for_folds, run_folds
    from aam.run import run

    if asks_for_folds(config):
        print_folds(run_folds(config))
    else:
        print_result(run(config))
