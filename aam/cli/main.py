"""The ``aam`` command. Commands are imported when they are called: ``aam --help`` loads no torch."""

from __future__ import annotations

import importlib
import sys

import click

from aam import __version__

__all__ = ["cli", "main"]

# Name: (module below aam.cli, one line of help). The line is here so that listing commands imports none.
COMMANDS = {
    "pretrain": ("pretrain", "Learn sequences and communities from distances between samples."),
    "train": ("train", "Learn to predict a metadata column."),
    "tune": ("tune", "Search for the options of `aam train` that suit a study."),
    "predict": ("predict", "Predict new samples with a trained model."),
    "evaluate": ("evaluate", "Judge predictions against the truth, and write a report."),
    "embed": ("embed", "Embed samples and ASVs, for other programs."),
    "explain": ("explain", "Say which ASVs the predictions of a model depend on."),
    "export": ("export", "Write a model as ONNX, for programs without PyTorch."),
    "baseline": ("baseline", "Predict a metadata column with classical models."),
    "check": ("check", "Read the inputs as train would and say what was found."),
    "info": ("info", "Say what a run or model file is."),
    "distances": ("distances", "Compute distances between samples, or Faith's PD, once."),
    "simulate": ("simulate", "Write a small study with a real phylogenetic signal."),
    "demo": ("demo", "Simulate a study and take it through the whole program."),
    "benchmark": ("benchmark", "Measure speed and memory."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"aam.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="aam")
def cli() -> None:
    """Attention All Microbes: transformers for 16S amplicon studies.

    `aam COMMAND --help` explains a command; `aam demo` shows the whole program on a small simulated study.
    """


def main() -> None:
    """Run the command line: exit code 2 for a wrong call, 1 for input that cannot be used."""
    from aam.launch import leave, quieten, says_why

    quieten()
    try:
        _run()
    except Exception:  # a bug, or in one of several processes what came of another's
        if not says_why():
            leave(1)
        raise


def _run() -> None:
    from aam.errors import DataError, Interrupted, is_out_of_memory

    try:
        code = cli(prog_name="aam", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        _fail(error.format_message().rstrip(".") + where, error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except Interrupted as stop:
        _fail(f"{stop}; the run is saved, and --resume continues it", 128 + stop.signal, "interrupted")
    except DataError as error:
        _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            if _is_loss_of_another(error):
                _fail("another process of this run has ended without a word: killed, or out of memory")
            raise
        _fail("out of memory; use a smaller --batch-size, --gradient-checkpointing, or a machine with more")


def _is_loss_of_another(error: Exception) -> bool:
    """Whether PyTorch says in words that a process it was connected to has gone."""
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset by peer"))


def _fail(message: str, code: int = 1, event: str = "failed") -> None:
    from aam.launch import leave, says_why

    if says_why(event):
        click.echo(f"Error: {' '.join(message.split())}", err=True)
    leave(code)
