"""What ``aam tune`` searches: options of ``aam train``, each with a range or with choices, read from YAML."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from aam.config import AugmentationConfig, ModelConfig, OptimConfig, RunConfig, Section, TaskConfig, refusals
from aam.errors import DataError

__all__ = [
    "DEFAULT_SPACE",
    "WHERE",
    "Choices",
    "Range",
    "Space",
    "given_options",
    "label",
    "parse_space",
    "read_space",
    "refused",
    "spelled",
    "with_values",
]

DEFAULT_SPACE = Path(__file__).with_name("default_space.yaml")

Value = Any  # what a field of the configuration takes

# Options that make a model better or worse. Which samples are read, what is predicted and how it is judged stay fixed,
# or values of two trials would not be of one thing.
_FIXED = {
    *("base_target", "unifrac_alpha", "taxonomy_level", "classifier", "lr_find"),
    *("gradient_checkpointing", "asv_chunk_size", "max_bp", "head"),
}
_SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "task": TaskConfig,
    "optim": OptimConfig,
    "augmentation": AugmentationConfig,
}
WHERE = {name: section for section, model in _SECTIONS.items() for name in model.model_fields if name not in _FIXED}
WHERE |= dict.fromkeys(("token_limit", "asv_sampling"), "data")
WHERE |= dict.fromkeys(("epochs", "stop_after", "batch_size", "freeze_asvs_after", "unfreeze_after"), "train")
WHERE |= dict.fromkeys(("freeze_base", "freeze_asv_encoder"), "train")
_MOST_TRIED = 5  # values of a range that are held against the configuration


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def tried(self) -> list[Value]:
        """Some values, among them both ends and the one beside the lower."""
        if not self.whole:
            return [self.low, self.high]
        step = int(self.step or 1)
        last = (int(self.high) - int(self.low)) // step
        places = sorted({0, min(1, last), last // 2, max(0, last - 1), last})
        return [int(self.low) + place * step for place in places][:_MOST_TRIED]

    def has(self, value: Value) -> bool:
        """Whether it is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: tuple[Value, ...]

    def tried(self) -> list[Value]:
        return list(self.values)

    def has(self, value: Value) -> bool:
        """Whether it is one of these values."""
        return value in (*self.values, *(tuple(one) for one in self.values if isinstance(one, list)))


@dataclass(frozen=True)
class Space:
    """Options, by the name of their field, with what each may be."""

    options: Mapping[str, Range | Choices]

    def __len__(self) -> int:
        return len(self.options)

    def without(self, names: set[str]) -> Space:
        return Space({name: option for name, option in self.options.items() if name not in names})

    def to_dict(self) -> dict[str, dict[str, Value]]:
        """As YAML holds it."""
        found: dict[str, dict[str, Value]] = {}
        for name, option in self.options.items():
            if isinstance(option, Choices):
                shown: dict[str, Value] = {"choices": list(option.values)}
            else:
                number = int if option.whole else float
                shown = {"low": number(option.low), "high": number(option.high)}
                shown |= {"log": True} if option.log else {}
                shown |= {} if option.step is None else {"step": number(option.step)}
            found[spelled(name)] = shown
        return found


def read_space(path: Path) -> Space:
    """The search space in a YAML (or JSON) file.

    Raises
    ------
    DataError
        Naming the file, and the option that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give --space an existing file") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is no YAML ({str(error).splitlines()[0]})") from None
    try:
        return parse_space(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def parse_space(content: Any) -> Space:
    """A search space from what a YAML file holds.

    Parameters
    ----------
    content : mapping of str to mapping
        Names of options of ``aam train``, each with ``low`` and ``high`` (``log: true``, ``step``) or with ``choices``.

    Raises
    ------
    DataError
        Naming the option that is wrong.

    Examples
    --------
    >>> parse_space({"lr": {"low": "1e-4", "high": 0.01, "log": True}}).options["lr"]
    Range(low=0.0001, high=0.01, log=True, step=None, whole=False)
    """
    if not isinstance(content, dict) or not content:
        raise DataError("holds no options; write a line `lr: {low: 0.0001, high: 0.01, log: true}`, say")
    options: dict[str, Range | Choices] = {}
    for key, given in content.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in WHERE:
            raise DataError(f"{key}: {_why_not(name)}")
        if name in options:
            raise DataError(f"{key}: is given twice")
        options[name] = _option(name, key, given)
    return Space(options)


def _why_not(name: str) -> str:
    known = {field for part in RunConfig.model_fields.values() for field in _fields_of(part.annotation)}
    if name in known:
        return "says what is learnt or how it is judged, which is the same in all trials; give it to the command"
    return "is no option of `aam train` that can be searched; " + f"there are {', '.join(map(spelled, sorted(WHERE)))}"


def _fields_of(section: Any) -> set[str]:
    return set(section.model_fields) if isinstance(section, type) and issubclass(section, Section) else set()


def _option(name: str, key: Any, given: Any) -> Range | Choices:
    if not isinstance(given, dict) or not ({"choices"} == given.keys() or {"low", "high"} <= given.keys()):
        raise DataError(f"{key}: write {{low: …, high: …}} or {{choices: […]}}")
    if "choices" in given:
        values = given["choices"]
        if not isinstance(values, list) or not values:
            raise DataError(f"{key}: choices are a list, such as [32, 64]")
        values = [_as_number(value) if _takes_numbers(name) else value for value in values]
        labels = [label(value) for value in values]
        repeated = next((one for one in labels if labels.count(one) > 1), None)
        if repeated is not None:
            raise DataError(f"{key}: the choice {repeated} is given twice")
        return Choices(tuple(values))
    unknown = given.keys() - {"low", "high", "log", "step"}
    if unknown:
        raise DataError(f"{key}: {min(map(str, unknown))} is none of low, high, log and step")
    low, high, step = (_as_number(given.get(part)) for part in ("low", "high", "step"))
    for part, value in (("low", low), ("high", high), *((("step", step),) if "step" in given else ())):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{key}: {part} {value!r} is no number")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise DataError(f"{key}: log is true or false, not {log!r}")
    if low >= high:
        raise DataError(f"{key}: low {low:g} is not below high {high:g}")
    if log and low <= 0:
        raise DataError(f"{key}: low {low:g} has no logarithm; raise it, or leave log out")
    if step is not None and (log or not 0 < step <= high - low):
        raise DataError(f"{key}: step {step:g} does not fit; it is above 0, at most high - low, and not with log")
    if not _takes_numbers(name):
        raise DataError(f"{key}: takes no numbers; write {{choices: […]}}")
    whole = not _takes_fractions(name)
    if whole and any(isinstance(value, float) and value % 1 for value in (low, high, step)):
        raise DataError(f"{key}: takes whole numbers; {low:g} to {high:g} are not")
    if step is not None:  # the last value that steps lead to, in the decimals that were written
        first, apart = Decimal(str(low)), Decimal(str(step))
        high = float(first + (Decimal(str(high)) - first) // apart * apart)
    if whole:
        return Range(int(low), int(high), log, None if step is None else int(step), True)
    return Range(float(low), float(high), log, None if step is None else float(step))


def _as_number(value: Any) -> Any:
    """A number that YAML 1.1 takes for text, as it does 1e-4."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _annotation(name: str) -> str:
    section = RunConfig.model_fields[WHERE[name]].annotation
    assert section is not None
    return str(section.model_fields[name].annotation)


def _takes_fractions(name: str) -> bool:
    return "float" in _annotation(name)


def _takes_numbers(name: str) -> bool:
    text = _annotation(name)
    return "tuple" not in text and ("float" in text or "int" in text)


def label(value: Value) -> str | float | int | bool | None:
    """What a choice is called in storages and tables, which hold no lists."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def spelled(name: str) -> str:
    """An option's name as it is written on the command line."""
    return name.replace("_", "-")


def with_values(config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """A configuration with other values of some options; what was not given stays so.

    Parameters
    ----------
    config : RunConfig
    values : mapping of str to any
        By the name of the field.

    Raises
    ------
    DataError
        Where the configuration refuses them, as it would on the command line.
    """
    sections = config.model_dump(exclude_unset=True)
    for name, value in values.items():
        sections.setdefault(WHERE[name], {})[name] = value
    try:
        return RunConfig(**sections)
    except ValidationError as error:
        raise DataError(refusals(error)[0]) from None


def given_options(config: RunConfig) -> set[str]:
    """The options that were given, of those that can be searched."""
    return {name for name, section in WHERE.items() if name in getattr(config, section).model_fields_set}


def refused(space: Space, config: RunConfig) -> str | None:
    """What a configuration refuses of a space, its values tried one by one and in pairs; None where all is well."""
    for values in _combinations(space):
        try:
            with_values(config, values)
        except DataError as error:
            return f"{' with '.join(map(spelled, values))}: {error}"
    return None


def _combinations(space: Space, sizes: tuple[Literal[1, 2], ...] = (1, 2)) -> Iterator[dict[str, Value]]:
    for size in sizes:
        for names in itertools.combinations(space.options, size):
            tried = (space.options[name].tried() for name in names)
            yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*tried))
