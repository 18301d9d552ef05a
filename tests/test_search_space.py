"""The space that `aam tune` searches: what a file says, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aam.config import USUAL_LR, RunConfig
from aam.errors import DataError
from aam.search_space import (
    DEFAULT_SPACE,
    WHERE,
    Choices,
    Range,
    given_options,
    parse_space,
    read_space,
    refused,
    with_values,
)


def config(**sections: dict[str, Any]) -> RunConfig:
    data = {"table": "t.biom", "metadata": "m.tsv", "metadata_column": "age"} | sections.pop("data", {})
    train = {"output_dir": "out"} | sections.pop("train", {})
    return RunConfig(command="train", data=data, train=train, **sections)


numbers = st.floats(1e-6, 1e6, allow_subnormal=False)


@given(low=numbers, high=numbers, log=st.booleans())
def test_ranges_survive_a_file(low: float, high: float, log: bool) -> None:
    text = yaml.safe_dump({"weight-decay": {"low": low, "high": high, "log": log}})
    if low >= high:
        with pytest.raises(DataError, match=r"^weight-decay: low .* is not below high"):
            parse_space(yaml.safe_load(text))
        return
    space = parse_space(yaml.safe_load(text))
    assert space.options == {"weight_decay": Range(low, high, log)}
    assert parse_space(yaml.safe_load(yaml.safe_dump(space.to_dict()))) == space


@given(low=st.integers(1, 1000), more=st.integers(1, 1000), step=st.integers(1, 50))
def test_whole_numbers_stay_so(low: int, more: int, step: int) -> None:
    if step > more:
        return
    option = parse_space({"batch-size": {"low": low, "high": low + more, "step": step}}).options["batch_size"]
    assert isinstance(option, Range)
    tried = option.tried()
    assert {low, low + step} <= set(tried) or step == more
    assert all(isinstance(value, int) and value in range(low, low + more + 1, step) for value in tried)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
        max_leaves=8,
    )
)
def test_anything_else_is_refused_in_words(content: Any) -> None:
    for given_content in (content, {"lr": content}, {"lr": {"low": content, "high": 1}}, {"lr": {"choices": content}}):
        try:
            space = parse_space(given_content)
        except DataError:
            continue
        assert set(space.options) <= set(WHERE)


def test_yaml_takes_1e_4_for_text_and_the_space_does_not(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("lr: {low: 1e-4, high: 1e-2, log: true}\nweight_decay: {choices: [1e-3, 0.1]}\n")
    assert yaml.safe_load(path.read_text())["lr"]["low"] == "1e-4"
    found = read_space(path).options
    assert found == {"lr": Range(1e-4, 1e-2, True), "weight_decay": Choices((1e-3, 0.1))}


def test_the_usual_space_fits_the_usual_configuration() -> None:
    space = read_space(DEFAULT_SPACE)
    assert refused(space, config()) is None
    assert {"lr", "dropout", "embedding_dim", "batch_size"} <= space.options.keys()
    lr = space.options["lr"]
    assert isinstance(lr, Range)
    assert lr.log and math.isclose(lr.low, 1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["holds no options"]),
        ({}, ["holds no options"]),
        ({"learning-rate": {"low": 1, "high": 2}}, ["learning-rate", "no option", "lr"]),
        ({"metadata-column": {"choices": ["a", "b"]}}, ["metadata-column", "same in all trials"]),
        ({"test-size": {"low": 0.1, "high": 0.2}}, ["test-size", "same in all trials"]),
        ({"lr": 0.1}, ["lr", "{low: …, high: …}"]),
        ({"lr": {"low": 0.1}}, ["lr", "{low: …, high: …}"]),
        ({"lr": {"low": 0.1, "high": 0.2, "base": 10}}, ["lr", "base"]),
        ({"lr": {"low": "small", "high": 0.2}}, ["lr", "low 'small' is no number"]),
        ({"lr": {"low": 0.0, "high": 0.2, "log": True}}, ["lr", "no logarithm"]),
        ({"lr": {"low": 0.1, "high": float("inf")}}, ["lr", "high inf"]),
        ({"lr": {"low": 0.1, "high": 0.2, "step": 1}}, ["lr", "step 1"]),
        ({"epochs": {"low": 1.5, "high": 3}}, ["epochs", "whole numbers"]),
        ({"optimizer": {"low": 1, "high": 3}}, ["optimizer", "takes no numbers"]),
        ({"optimizer": {"choices": []}}, ["optimizer", "list"]),
        ({"optimizer": {"choices": ["adam", "adam"]}}, ["optimizer", "adam", "twice"]),
        ({"batch-size": {"choices": [8]}, "batch_size": {"choices": [16]}}, ["batch_size", "twice"]),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(tmp_path: Path, content: Any, words: list[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError) as error:
        read_space(path)
    assert str(error.value).startswith(f"{path}: ")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"dropout": {"low": 0.0, "high": 1.5}}, ["dropout: --dropout 1.5"]),
        ({"optimizer": {"choices": ["adam", "newton"]}}, ["optimizer: --optimizer newton"]),
        ({"swa-start": {"low": 0.5, "high": 0.9}}, ["swa-start: --swa-start 0.5 is for --average swa"]),
        # A step of 1 from 16 on comes to widths that two heads do not divide.
        ({"embedding-dim": {"low": 16, "high": 64}}, ["embedding-dim", "17", "--attention-heads 2"]),
        (
            {"embedding-dim": {"choices": [32, 36]}, "attention-heads": {"choices": [2, 8]}},
            ["embedding-dim with attention-heads", "36", "8"],
        ),
        ({"batch-size": {"choices": [8, "many"]}}, ["batch-size: --batch-size many"]),
    ],
)  # fmt: skip
def test_values_that_the_configuration_refuses(content: Any, words: list[str]) -> None:
    message = refused(parse_space(content), config())
    assert message is not None
    assert all(word in message for word in words), message


def test_a_range_ends_where_its_steps_do() -> None:
    space = parse_space(
        {
            "batch-size": {"low": 8, "high": 130, "step": 20},
            "dropout": {"low": 0, "high": 1, "step": 0.3},
            "nuc-weight": {"low": 0.1, "high": 0.7, "step": 0.2},
        }
    )
    assert [option.high for option in space.options.values()] == [128, 0.9, 0.7]


def test_lists_are_choices() -> None:
    space = parse_space({"head-width": {"choices": [[], [32], [32, 32]]}})
    assert refused(space, config()) is None
    assert with_values(config(), {"head_width": [32, 32]}).model.head_width == (32, 32)


def test_what_a_space_has() -> None:
    space = parse_space(
        {
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "batch-size": {"low": 16, "high": 64, "step": 16},
            "head-width": {"choices": [[], [32]]},
        }
    ).options
    assert space["lr"].has(1e-3) and space["lr"].has(1e-4) and not space["lr"].has(0.1)
    assert space["batch_size"].has(32) and not space["batch_size"].has(40) and not space["batch_size"].has("auto")
    assert space["head_width"].has(()) and space["head_width"].has((32,)) and not space["head_width"].has((16,))


def test_values_leave_the_rest_as_it_was() -> None:
    fixed = config(optim={"weight_decay": 0.3}, model={"clades": 16})
    changed = with_values(fixed, {"lr": 0.5, "dropout": 0.2})
    assert (changed.optim.lr, changed.optim.weight_decay, changed.model.dropout, changed.model.clades) == (
        *(0.5, 0.3, 0.2, 16),
    )
    assert given_options(fixed) == {"weight_decay", "clades"}
    assert given_options(changed) == {"weight_decay", "clades", "lr", "dropout"}
    assert "lr" not in given_options(config(optim={"optimizer": "sgd"}))
    # One that is typed is given, be it the optimizer's own.
    typed = config(optim={"optimizer": "sgd", "lr": USUAL_LR["sgd"]})
    assert typed.optim.lr == config(optim={"optimizer": "sgd"}).optim.lr == USUAL_LR["sgd"]
    assert "lr" in given_options(typed)
