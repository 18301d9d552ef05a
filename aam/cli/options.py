"""Click options made from the fields of `aam.config`, and the configuration made from what was typed."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aam.config import Command, DataConfig, RunConfig, Section, TrainConfig, refusals
from aam.errors import DataError
from aam.launch import Launch

__all__ = [
    "STUDY_OPTIONS",
    "baseline_options",
    "config_options",
    "log_to_console",
    "machine_options",
    "read_config",
    "require_options",
    "run_config",
    "sections_of",
    "study_options",
    "usage_errors",
]

Function = TypeVar("Function", bound=Callable[..., Any])
SECTIONS = ("data", "model", "task", "optim", "train", "augmentation")
# What decides which samples are read, and how much work they are.
STUDY_OPTIONS: dict[str, tuple[str, ...]] = {
    "data": tuple(DataConfig.model_fields),
    "model": (
        *("max_bp", "embedding_dim", "attention_heads", "attention_layers", "feed_forward_factor"),
        *("gradient_checkpointing", "asv_chunk_size"),
    ),
    "task": ("classifier", "target_transform", "target_min", "target_max", "base_target"),
    "train": ("epochs", "train_steps", "batch_size", "seed"),
}


def _section(name: str) -> type[Section]:
    model = RunConfig.model_fields[name].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    return model


def _fields(command: Command) -> Iterator[tuple[str, str, FieldInfo]]:
    """Section, name and field of every option of a command."""
    for section in SECTIONS:
        for name, field in _section(section).model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            if extra["only"] in (None, command):
                yield section, name, field


def _defaults_of_the_other_command(command: Command) -> dict[str, Any]:
    """What the fields hold that are no options of this command."""
    (other,) = set(get_args(Command)) - {command}
    own = {name for _, name, _ in _fields(command)}
    return {name: field.default for _, name, field in _fields(other) if name not in own}


def _alias(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["alias"] or "")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def config_options(command: Command, without: Container[str] = ()) -> Callable[[Function], Function]:
    """Decorate a click command with every option of its configuration, but some."""

    def decorate(function: Function) -> Function:
        for _, name, field in reversed(list(_fields(command))):
            if name not in without:
                function = _click_option(name, field)(function)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, readable=False),
            help="JSON or YAML with these options (a run's config.json is one); what is typed here wins.",
        )(function)

    return decorate


def machine_options(*names: str) -> Callable[[Function], Function]:
    """Decorate a command that only runs a model with options of the machine it runs on: all, or those named."""

    def decorate(function: Function) -> Function:
        for name in reversed(names or ("batch_size", "device", "threads", "num_workers")):
            function = _click_option(name, TrainConfig.model_fields[name], numbers_alone=True)(function)
        return function

    return decorate


def study_options(function: Function) -> Function:
    """Decorate a command that reads a study as a run would, but runs nothing."""
    fields = [
        (name, _section(section).model_fields[name]) for section, names in STUDY_OPTIONS.items() for name in names
    ]
    for name, field in reversed(fields):
        function = _click_option(name, field, numbers_alone=True)(function)
    return function


def baseline_options(function: Function) -> Function:
    """Decorate a command that fits other models to a study with what decides which samples are held out."""
    passed_over = {"max_bp", "token_limit", "asv_sampling", "study_batches", "stripe_references", "taxonomy"}
    passed_over |= {"categorical_columns", "numeric_columns"}
    fields = [("data", name) for name in DataConfig.model_fields if name not in passed_over]
    fields += [("task", "classifier"), ("task", "base_target"), ("train", "seed")]
    for section, name in reversed(fields):
        function = _click_option(name, _section(section).model_fields[name], numbers_alone=True)(function)
    return function


class _NumberOr(click.ParamType):
    """A whole number, or a word in its place."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.name = f"integer|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == self.word else click.INT.convert(value, param, ctx)


def _click_option(name: str, field: FieldInfo, *, numbers_alone: bool = False) -> Callable[[Function], Function]:
    """The option of a field. Its value is None unless typed: defaults are the configuration's own.

    With ``numbers_alone``, a word that a run would find a number for is none of its values.
    """
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    spellings = [_flag(name)] + ([f"--{extra['alias']}"] if extra["alias"] else [])
    kind = _without_none(field.annotation)
    if get_origin(kind) in (Union, types.UnionType):  # a number or a word
        number, word = get_args(kind)
        kind = number if numbers_alone else _NumberOr(get_args(word)[0])
    help_text = (field.description or "") + _default_text(field)
    if kind is bool:
        return click.option(f"{spellings[0]}/--no-{name.replace('_', '-')}", name, default=None, help=help_text)
    several = get_origin(kind) is tuple
    if several:
        kind = get_args(kind)[0]
        help_text += "  (may be given several times)"
    click_type: Any = kind
    metavar = None
    if get_origin(kind) is Literal:
        click_type = click.Choice(list(get_args(kind)))
    elif name == "base_target":
        from aam.models.base_targets import base_target_names  # imports no torch

        click_type = click.Choice(base_target_names())
    if kind is Path:
        click_type, metavar = click.Path(path_type=Path, readable=False), "PATH"
    return click.option(
        *spellings, name, type=click_type, default=None, help=help_text, metavar=metavar, multiple=several
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [part for part in get_args(annotation) if part is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "  [required]"
    if field.default is None or field.default is False or field.default == ():
        return ""
    return f"  [default: {'on' if field.default is True else field.default}]"


def run_config(
    command: Command, ctx: click.Context, output_dir: Path | None = None, preset: Mapping[str, Any] | None = None
) -> RunConfig:
    """The configuration of a run: defaults, then ``--config``, then what was typed.

    Parameters
    ----------
    command : {"pretrain", "train"}
    ctx : click.Context
        Of a command made with `config_options`; its other options are passed over.
    output_dir : Path, optional
        Where ``--output-dir`` may be left out; that of the file of ``--config`` is passed over.
    preset : mapping of str to any, optional
        Options with other defaults than usual.

    Raises
    ------
    click.UsageError
        For a value or a combination that is not allowed.
    DataError
        If the file of ``--config`` cannot be read.
    """
    where = {name: section for section, name, _ in _fields(command)}
    aliases = {_alias(field).replace("-", "_"): name for _, name, field in _fields(command) if _alias(field)}
    typed = {
        name: value
        for name, value in ctx.params.items()
        if name in where and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in (preset or {}).items():
        sections[where[name]][name] = value
    source = ctx.params["config_file"]
    if source is None and typed.get("resume") and "output_dir" in typed:
        own = typed["output_dir"] / "config.json"
        source = own if own.is_file() else None
    if source is not None:
        others = _defaults_of_the_other_command(command)
        for name, value in read_config(source).items():
            if name in others and (tuple(value) if isinstance(value, list) else value) == others[name]:
                continue  # a config.json holds every field
            name = aliases.get(name, name)
            if name not in where:
                raise click.UsageError(f"{source}: `aam {command}` has no option {name!r}")
            sections[where[name]][name] = value
    if output_dir is not None:
        sections["train"]["output_dir"] = output_dir
    for name in ("resume", "overwrite"):  # how that run was begun says nothing of this one
        sections["train"].pop(name, None)
    if typed.get("resume") and not Launch.of_environment().by_torchrun:
        for name in ("strategy", "reshard_after_forward", "sharded_checkpoints"):  # one process may go on
            sections["train"].pop(name, None)
    for name, value in typed.items():
        sections[where[name]][name] = value
    for name in ("table", "output_dir"):
        if name not in sections[where[name]]:
            raise click.UsageError(f"Missing option '{_flag(name)}'.")
    with usage_errors():
        config = RunConfig(command=command, **sections)  # type: ignore[arg-type]
    from aam.models.base_targets import require_readable

    try:
        require_readable(config.task.base_target, config.model.distance_head)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return config


@contextmanager
def usage_errors() -> Iterator[None]:
    """Values that a configuration refuses, as a usage error."""
    try:
        yield
    except ValidationError as error:
        raise click.UsageError("; ".join(refusals(error))) from None


def read_config(path: Path) -> dict[str, Any]:
    """The options in a JSON or YAML file, nested in sections as in ``config.json`` or flat.

    Raises
    ------
    DataError
        If it cannot be read or is something else.
    """
    import yaml

    try:
        content = path.read_text(encoding="utf-8")
        read = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give --config an existing file") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: neither JSON nor YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(read, dict):
        raise DataError(f"{path}: holds no options; write a line `epochs: 20`, say")
    flat: dict[str, Any] = {}
    for name, value in read.items():
        if name in SECTIONS and isinstance(value, dict):
            flat |= {key: entry for key, entry in value.items() if entry is not None}
        elif name != "command":
            flat[str(name).replace("-", "_")] = value
    return flat


def sections_of(options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of `aam train` written as ``name=value``, in sections as in ``config.json``.

    Raises
    ------
    click.UsageError
        If there is no such option.
    """
    import yaml

    where = {name: section for section, name, _ in _fields("train")}
    found: dict[str, dict[str, Any]] = {}
    for option in options:
        name, equals, value = option.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or name not in where:
            raise click.UsageError(f"{option}: write an option of `aam train` as epochs=20, say")
        try:
            found.setdefault(where[name], {})[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.UsageError(f"{option}: the value cannot be read; write one as epochs=20, say") from None
    return found


def require_options(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options of `aam train` that no study can be trained with, before anything is computed for them.

    Raises
    ------
    click.UsageError
    """
    given = {name: dict(part) for name, part in sections.items()}
    of_study = {"table": "t.biom", "metadata": "m.tsv", "metadata_column": "c", "unifrac_matrix": "d.h5"}
    given["data"] = of_study | given.get("data", {})
    given["train"] = {"output_dir": "run"} | given.get("train", {})
    with usage_errors():
        RunConfig.model_validate({"command": "train", **given})


def log_to_console() -> None:
    """Show the log on standard error: plain lines, warnings marked."""
    handler = _Stderr()
    handler.setFormatter(_Plain())
    logger = logging.getLogger("aam")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [handler]


class _Stderr(logging.Handler):
    """Writes to what standard error is by then: a progress line takes it over, to be moved out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = "Warning: " if record.levelno >= logging.WARNING else ""
        return mark + record.getMessage()
