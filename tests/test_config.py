"""Options are declared once: the command line, the configuration file and the run directory agree with the fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aam.cli.main import cli
from aam.cli.options import SECTIONS, config_options, run_config
from aam.config import AugmentationConfig, Command, DataConfig, RunConfig, Section, TrainConfig
from aam.errors import DataError
from aam.models.base_targets import base_target_names

COMMANDS: tuple[Command, ...] = get_args(Command)
PRETRAIN = ["--table", "t.biom", "--unifrac-matrix", "u.h5", "--output-dir", "run"]
TRAIN = ["--table", "t.biom", "--metadata", "m.tsv", "--metadata-column", "age", "--output-dir", "run"]
BASE = {"pretrain": PRETRAIN, "train": TRAIN}


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for section in SECTIONS:
        for name, field in RunConfig.model_fields[section].annotation.model_fields.items():
            yield section, name, field


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def configure(command: Command, *arguments: object) -> RunConfig:
    """The configuration that a command makes of its arguments."""
    made: list[RunConfig] = []

    @click.command()
    @config_options(command)
    @click.pass_context
    def collect(ctx: click.Context, **_: Any) -> None:
        made.append(run_config(command, ctx))

    collect.main([*map(str, arguments)], standalone_mode=False)
    return made[0]


def refusal(command: Command, *arguments: object) -> str:
    """What a command says to arguments that it refuses as a wrong call."""
    with pytest.raises(click.UsageError) as caught:
        configure(command, *arguments)
    assert caught.value.exit_code == 2
    message = caught.value.format_message()
    assert "\n" not in message
    return message


class TestFields:
    @pytest.mark.parametrize(("name", "field"), [field[1:] for field in fields()])
    def test_every_field_has_help_and_says_which_command_has_it(self, name: str, field: FieldInfo) -> None:
        assert field.description
        assert field.description.endswith(".")
        assert field.description[0].isupper()
        assert field.json_schema_extra["only"] in (None, *COMMANDS)

    def test_names_are_unique_over_sections(self) -> None:
        names = [name for _, name, _ in fields()]
        assert len(set(names)) == len(names)

    def test_fixed_names_are_options(self) -> None:
        fixed = (
            "epochs batch_size lr seed device num_workers embedding_dim attention_heads attention_layers max_bp "
            "token_limit rarefy_depth metadata_column classifier group_column val_size test_size pretrained_encoder "
            "freeze_base freeze_asv_encoder unfreeze_after encode_once mixed_precision gradient_checkpointing resume "
            "overwrite table sequences unifrac_matrix metadata output_dir asv_chunk_size nuc_mask_ratio "
            "nuc_mask_strategy distance_head stratify threads asv_sampling"
        )
        assert set(fixed.split()) <= {name for _, name, _ in fields()}

    def test_configurations_are_frozen_and_refuse_unknown_names(self) -> None:
        data = DataConfig(table=Path("t.biom"))
        with pytest.raises(ValidationError, match="frozen"):
            data.val_size = 0.5  # type: ignore[misc]
        for section in Section.__subclasses__():
            with pytest.raises(ValidationError, match="Extra inputs"):
                section.model_validate({"colour": "red"})


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_lists_the_options_of_the_command_with_their_defaults(self, command: Command) -> None:
        output = CliRunner().invoke(cli, [command, "--help"]).output
        text = "".join(output.split())  # lines are broken within words, too
        for _, name, field in fields():
            applies = field.json_schema_extra["only"] in (None, command)
            assert bool(re.search(rf"^  {flag(name)}(?![\w-])", output, re.MULTILINE)) == applies, name
            if not applies:
                continue
            described, _, after = text.partition("".join(field.description.split()))
            assert described != text, name
            if field.is_required():
                assert after.startswith("[required]"), name
            elif field.default is not None and field.default is not False and field.default != ():
                shown = "on" if field.default is True else field.default
                assert after.startswith(f"[default:{shown}]"), name
            else:
                assert not after.startswith("["), name

    def test_the_other_spelling_of_the_base_target(self) -> None:
        config = configure("pretrain", *PRETRAIN, "--unifrac-metric", "weighted_unifrac")
        assert config.task.base_target == "weighted_unifrac"

    @pytest.mark.parametrize("command", COMMANDS)
    def test_lists_the_base_targets(self, command: Command) -> None:
        text = "".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
        assert f"[{'|'.join(base_target_names())}]" in text


class TestFile:
    def test_nested_and_flat_json_and_yaml_say_the_same(self, tmp_path: Path) -> None:
        flat = {"epochs": 7, "lr": 0.002, "embedding-dim": 64, "max_bp": 90}
        nested = {"train": {"epochs": 7}, "optim": {"lr": 0.002}, "model": {"embedding_dim": 64, "max_bp": 90}}
        made = []
        for number, content in enumerate((flat, nested)):
            for suffix, dump in ((".json", json.dumps), (".yaml", yaml.safe_dump)):
                path = tmp_path / f"{number}{suffix}"
                path.write_text(dump(content))
                made.append(configure("pretrain", *PRETRAIN, "--config", path))
        assert made[0].train.epochs == 7
        assert made[0].optim.lr == 0.002
        assert made[0].model.embedding_dim == 64
        assert all(config == made[0] for config in made)

    def test_what_is_typed_wins(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("epochs: 7\nbatch_size: 5\nnuc_weight: 0.3\ngradient_checkpointing: true\n")
        typed = ["--config", path, "--epochs", "9", "--no-gradient-checkpointing"]
        config = configure("pretrain", *PRETRAIN, *typed)
        assert (config.train.epochs, config.train.batch_size, config.task.nuc_weight) == (9, 5, 0.3)
        assert not config.model.gradient_checkpointing
        # A flag wins even where it says what the default says.
        assert configure("pretrain", *PRETRAIN, "--config", path, "--epochs", "50").train.epochs == 50

    def test_required_options_may_come_from_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("table: t.biom\nunifrac-matrix: u.h5\noutput-dir: run\n")
        assert configure("pretrain", "--config", path) == configure("pretrain", *PRETRAIN)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_stored_configuration_gives_itself_again(self, command: Command, tmp_path: Path) -> None:
        options = [
            "--epochs",
            "3",
            "--lr",
            "2e-4",
            "--distance-head",
            "clade",
            "--rarefy-depth",
            "100",
            "--warmup-steps",
            0,
            "--augment-rarefy",
            "50:200",
            "--mix-samples",
            "0.2",
        ]
        if command == "train":
            options += ["--target-transform", "log-minmax", "--stratify", "--unifrac-weight", "0"]
            options += ["--group-column", "subject", "--leave-out", "a b", "--leave-out", "c"]
        config = configure(command, *BASE[command], *options)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        assert configure(command, "--config", path) == config

    def test_how_a_stored_run_was_begun_is_not_repeated(self, tmp_path: Path) -> None:
        config = configure("pretrain", *PRETRAIN, "--overwrite")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        assert not configure("pretrain", "--config", path).train.overwrite
        assert configure("pretrain", "--config", path, "--resume").train.resume

    @pytest.mark.parametrize("content", ["epoch: 3", "train: {epoch: 3}", "colours: {red: 1}"])
    def test_unknown_keys_are_refused(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(content)
        message = refusal("pretrain", *PRETRAIN, "--config", path)
        assert str(path) in message
        assert "colours" in message or "epoch" in message

    def test_an_option_of_the_other_command_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("classifier: true")
        assert "'classifier'" in refusal("pretrain", *PRETRAIN, "--config", path)
        assert configure("train", *TRAIN, "--config", path).task.classifier


class TestWrongCombinations:
    @pytest.mark.parametrize(
        ("command", "options", "words"),
        [
            ("pretrain", ["--val-size", "0.6", "--test-size", "0.5"], ["--val-size 0.6", "--test-size 0.5"]),
            (
                "pretrain",
                ["--embedding-dim", "30", "--attention-heads", "4"],
                ["--embedding-dim 30", "--attention-heads 4"],
            ),
            ("pretrain", ["--resume", "--overwrite"], ["--resume", "--overwrite"]),
            ("train", ["--freeze-base"], ["--freeze-base", "--pretrained-encoder"]),
            ("train", ["--freeze-asv-encoder"], ["--freeze-asv-encoder", "--pretrained-encoder"]),
            (
                "train",
                ["--pretrained-encoder", "e", "--freeze-base", "--freeze-asv-encoder"],
                ["--freeze-base", "--freeze-asv-encoder"],
            ),
            ("train", ["--pretrained-encoder", "e", "--no-encode-once"], ["--no-encode-once", "--freeze-base"]),
            (
                "train",
                ["--pretrained-encoder", "e", "--unfreeze-after", "3"],
                ["--unfreeze-after 3", "--freeze-base", "--freeze-asv-encoder"],
            ),
            (
                "train",
                ["--pretrained-encoder", "e", "--freeze-base", "--unfreeze-after", "3", "--strategy", "fsdp"],
                ["--unfreeze-after 3", "--strategy fsdp"],
            ),
            (
                "train",
                ["--pretrained-encoder", "e", "--freeze-base", "--unfreeze-after", "3", "--epochs", "3"],
                ["--unfreeze-after 3", "--epochs 3"],
            ),
            (
                "train",
                ["--classifier", "--target-transform", "minmax"],
                ["--classifier", "--target-transform minmax"],
            ),
            ("train", ["--classifier", "--loss", "mae"], ["--classifier", "--loss mae"]),
            ("train", ["--classifier", "--loss", "quantile"], ["--classifier", "--loss quantile"]),
            ("train", ["--classifier", "--target-min", "0"], ["--classifier", "--target-min 0"]),
            ("train", ["--classifier", "--target-max", "9"], ["--classifier", "--target-max 9"]),
            ("train", ["--target-min", "5", "--target-max", "5"], ["--target-min 5", "--target-max 5"]),
            ("train", ["--label-smoothing", "0.1"], ["--label-smoothing 0.1", "--classifier"]),
            ("train", ["--quantile-range", "0.8"], ["--quantile-range 0.8", "--loss quantile", "huber"]),
            (
                "train",
                ["--quantile-range", "0.8", "--loss", "asymmetric"],
                ["--quantile-range 0.8", "--loss quantile", "asymmetric"],
            ),
            ("train", ["--overestimate-cost", "3"], ["--overestimate-cost 3", "--loss asymmetric", "huber"]),
            ("train", ["--head-width", "8", "--head-width", "0"], ["--head-width 0"]),
            ("train", ["--head-lr", "0.1"], ["--head-lr 0.1", "--pretrained-encoder"]),
            ("train", ["--layer-decay", "0.8"], ["--layer-decay 0.8", "--pretrained-encoder"]),
            (
                "train",
                ["--layer-decay", "0.8", "--pretrained-encoder", "e", "--freeze-base"],
                ["--layer-decay 0.8", "--freeze-base"],
            ),
            ("pretrain", ["--warmup-steps", "5", "--schedule", "onecycle"], ["--warmup-steps 5", "onecycle"]),
            ("pretrain", ["--cycle-steps", "5"], ["--cycle-steps 5", "cosine_restarts", "warmup_cosine"]),
            ("pretrain", ["--cycle-growth", "2", "--schedule", "cosine"], ["--cycle-growth 2", "not cosine"]),
            ("pretrain", ["--plateau-factor", "0.5"], ["--plateau-factor 0.5", "plateau", "warmup_cosine"]),
            ("pretrain", ["--min-lr", "1e-5", "--schedule", "constant"], ["--min-lr 1e-05", "constant"]),
            ("pretrain", ["--min-lr", "0.1", "--lr", "0.01"], ["--min-lr 0.1", "--lr 0.01"]),
            ("pretrain", ["--min-lr", "0", "--schedule", "exponential"], ["--min-lr 0", "exponential"]),
            (
                "pretrain",
                ["--restart-on-plateau", "--schedule", "plateau"],
                ["--restart-on-plateau", "--schedule plateau"],
            ),
            (
                "pretrain",
                ["--schedule", "plateau", "--patience", "4"],
                ["--plateau-patience 5", "--patience 4", "--schedule plateau"],
            ),
            ("pretrain", ["--ema-decay", "0.9"], ["--ema-decay 0.9", "--average ema", "none"]),
            ("pretrain", ["--swa-start", "0.9", "--average", "ema"], ["--swa-start 0.9", "--average swa", "ema"]),
            ("pretrain", ["--lr-find", "print", "--folds", "3"], ["--lr-find print", "--folds 3"]),
            ("pretrain", ["--lr-find", "print", "--resume"], ["--lr-find print", "--resume"]),
            (
                "pretrain",
                ["--target-effective-batch-size", "64", "--accumulation-steps", "2"],
                ["--target-effective-batch-size 64", "--accumulation-steps 2"],
            ),
            (
                "pretrain",
                ["--target-effective-batch-size", "8", "--batch-size", "16"],
                ["--target-effective-batch-size 8", "--batch-size 16"],
            ),
            (
                "pretrain",
                ["--max-memory-fraction", "0.3"],
                ["--max-memory-fraction 0.3", "--batch-size auto", "32"],
            ),
            ("train", ["--group-column", "age"], ["--group-column", "--metadata-column", "'age'"]),
            ("train", ["--folds", "5", "--test-size", "0.2"], ["--folds 5", "--test-size 0.2"]),
            ("train", ["--folds", "5", "--split-column", "part"], ["--folds 5", "--split-column part"]),
            ("train", ["--folds", "5", "--leave-one-group-out"], ["--folds 5", "--leave-one-group-out"]),
            ("train", ["--splits", "s.tsv", "--split-column", "part"], ["--splits s.tsv", "--split-column part"]),
            ("train", ["--splits", "s.tsv", "--test-size", "0.2"], ["--splits s.tsv", "--test-size 0.2"]),
            ("train", ["--leave-out", "a", "--leave-out", "b"], ["--leave-out a b", "--group-column"]),
            ("train", ["--leave-one-group-out"], ["--leave-one-group-out", "--group-column"]),
            ("train", ["--split-column", "age"], ["--split-column", "--metadata-column", "'age'"]),
            ("train", ["--split-column", "s", "--group-column", "s"], ["--split-column", "--group-column", "'s'"]),
        ],
    )
    def test_is_a_wrong_call_that_names_both(self, command: Command, options: list[str], words: list[str]) -> None:
        message = refusal(command, *BASE[command], *options)
        assert all(word in message for word in words), message

    @pytest.mark.parametrize(
        ("command", "arguments", "word"),
        [
            ("pretrain", PRETRAIN[:2] + PRETRAIN[4:], "--unifrac-matrix"),
            ("pretrain", PRETRAIN[2:], "--table"),
            ("pretrain", PRETRAIN[:4], "--output-dir"),
            ("train", TRAIN[:4] + TRAIN[6:], "--metadata-column"),
        ],
    )
    def test_a_missing_option_is_named(self, command: Command, arguments: list[str], word: str) -> None:
        assert word in refusal(command, *arguments)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--val-size", "0"], ["--val-size 0"]),
            (["--val-size", "nan"], ["--val-size nan"]),
            (["--lr", "-1"], ["--lr -1"]),
            (["--lr", "inf"], ["--lr inf"]),
            (["--epochs", "0"], ["--epochs 0"]),
            (["--dropout", "1"], ["--dropout 1"]),
            (["--batch-size", "0", "--token-limit", "0"], ["--batch-size 0", "--token-limit 0"]),
            (["--epochs", "many"], ["'many'"]),
            (["--distance-head", "cosine"], ["'cosine'", "clade", "euclidean"]),
            (["--base-target", "unifrag"], ["'unifrag'", "unifrac", "combined"]),
            (["--base-target", "aitchison", "--distance-head", "clade"], ["aitchison", "--distance-head euclidean"]),
            (["--unifrac-alpha", "1.5"], ["--unifrac-alpha 1.5"]),
            (["--colour", "red"], ["--colour"]),
            (["--folds", "1"], ["--folds 1"]),
            (["--augment-rarefy", "0"], ["--augment-rarefy 0"]),
            (["--augment-rarefy", "500:100"], ["--augment-rarefy 500:100"]),
            (["--augment-rarefy", "1e3"], ["--augment-rarefy 1e3"]),
            (["--augment-rarefy", "²"], ["--augment-rarefy ²"]),
            (["--asv-dropout", "1"], ["--asv-dropout 1"]),
            (["--mix-samples", "1"], ["--mix-samples 1"]),
        ],
    )
    def test_a_value_out_of_bounds_is_named(self, options: list[str], words: list[str]) -> None:
        message = refusal("pretrain", *PRETRAIN, *options)
        assert all(word in message for word in words), message

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            (["--loss", "quantile", "--quantile-range", "1"], "--quantile-range 1"),
            (["--loss", "asymmetric", "--overestimate-cost", "0"], "--overestimate-cost 0"),
            (["--classifier", "--label-smoothing", "1"], "--label-smoothing 1"),
            (["--target-max", "inf"], "--target-max inf"),
        ],
    )
    def test_a_value_of_a_loss_out_of_bounds_is_named(self, options: list[str], word: str) -> None:
        assert word in refusal("train", *TRAIN, *options)

    def test_what_a_loss_takes_is_kept(self, tmp_path: Path) -> None:
        found = configure("train", *TRAIN, "--loss", "quantile", "--quantile-range", "0.8", "--target-min", "0")
        assert (found.task.quantile_range, found.task.target_min, found.task.target_max) == (0.8, 0, None)
        assert configure("train", *TRAIN, "--head-width", "8", "--head-width", "4").model.head_width == (8, 4)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(found.model_dump(mode="json")))
        assert configure("train", "--config", path) == found

    def test_a_wrong_value_in_a_file_is_named_by_its_option(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("train: {batch_size: some}\ndistance_head: cosine\n")
        message = refusal("pretrain", *PRETRAIN, "--config", path)
        assert "--batch-size some" in message
        assert "--distance-head cosine" in message


class TestBatchSize:
    def test_is_a_number_or_auto(self, tmp_path: Path) -> None:
        assert configure("pretrain", *PRETRAIN, "--batch-size", "7").train.samples_per_batch == 7
        found = configure("pretrain", *PRETRAIN, "--batch-size", "auto", "--max-memory-fraction", "0.3")
        assert (found.train.batch_size, found.train.max_memory_fraction) == ("auto", 0.3)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(found.model_dump(mode="json")))
        assert configure("pretrain", "--config", path) == found
        with pytest.raises(DataError, match="--batch-size auto is for"):
            _ = found.train.samples_per_batch

    @pytest.mark.parametrize("command", ["check", "predict"])
    def test_is_a_number_where_nothing_is_trained(self, command: str) -> None:
        result = CliRunner().invoke(cli, [command, "--batch-size", "auto"])
        assert result.exit_code == 2 and "'auto' is not a valid integer" in result.output

    @pytest.mark.parametrize(
        ("batch", "target", "batches"), [(32, None, 1), (32, 32, 1), (32, 100, 3), (32, 128, 4), (5, 7, 1), (30, 32, 1)]
    )
    def test_batches_of_a_step(self, batch: int, target: int | None, batches: int) -> None:
        asked = [] if target is None else ["--target-effective-batch-size", target]
        assert configure("pretrain", *PRETRAIN, "--batch-size", batch, *asked).accumulation_steps == batches
        assert configure("pretrain", *PRETRAIN, "--accumulation-steps", 5).accumulation_steps == 5


class TestLearningRate:
    @pytest.mark.parametrize(("optimizer", "usual"), [("adamw", 1e-3), ("muon", 1e-3), ("sgd", 0.1), ("lamb", 0.01)])
    def test_is_the_usual_one_of_the_optimizer(self, optimizer: str, usual: float, tmp_path: Path) -> None:
        found = configure("pretrain", *PRETRAIN, "--optimizer", optimizer)
        assert found.optim.lr == usual
        assert configure("pretrain", *PRETRAIN, "--optimizer", optimizer, "--lr", 0.5).optim.lr == 0.5
        path = tmp_path / "config.json"
        path.write_text(json.dumps(found.model_dump(mode="json")))
        assert configure("pretrain", "--config", path) == found


class TestSplitOptions:
    def test_an_option_may_be_given_several_times(self) -> None:
        config = configure("train", *TRAIN, "--group-column", "subject", "--leave-out", "a b", "--leave-out", "c")
        assert config.data.leave_out == ("a b", "c")
        assert configure("train", *TRAIN).data.leave_out == ()

    def test_folds_may_come_from_a_file(self) -> None:
        data = configure("train", *TRAIN, "--splits", "s.tsv", "--folds", "3").data
        assert (data.splits, data.folds, data.cross_validated) == (Path("s.tsv"), 3, True)


@pytest.mark.parametrize(
    ("given", "depths"), [("100", (100, 100)), (100, (100, 100)), ("100:100", (100, 100)), (" 5 : 70 ", (5, 70))]
)
def test_depths_of_rarefaction(given: object, depths: tuple[int, int]) -> None:
    assert AugmentationConfig.model_validate({"augment_rarefy": given}).rarefy_depths == depths
    assert AugmentationConfig().rarefy_depths is None


def test_machine_defaults_are_left_to_the_run() -> None:
    train = TrainConfig(output_dir=Path("run"))
    assert (train.threads, train.num_workers, train.device) == (None, None, "auto")


class TestCovariates:
    def test_one_and_several(self) -> None:
        found = configure("train", *TRAIN, "--numeric-columns", "bmi", "--categorical-columns", "diet")
        assert found.data.covariates == ("diet", "bmi") and found.model.fusion == "concat"
        several = configure("train", *TRAIN, "--numeric-columns", "bmi", "--numeric-columns", "weight")
        assert several.data.numeric_columns == ("bmi", "weight")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--numeric-columns", "age"], "--numeric-columns and --metadata-column are both 'age'"),
            (["--group-column", "cage", "--categorical-columns", "cage"], "--categorical-columns and --group-column"),
            (["--split-column", "part", "--categorical-columns", "part"], "--categorical-columns and --split-column"),
            (
                ["--categorical-columns", "bmi", "--numeric-columns", "bmi"],
                "'bmi' is a column of --numeric-columns and of --categorical-columns, too; give it once",
            ),
            (["--numeric-columns", "bmi"] * 2, "'bmi' is a column of --numeric-columns twice; give it once"),
            (["--fusion", "gmu"], "--fusion gmu needs something to join"),
        ],
    )
    def test_what_does_not_fit(self, options: list[str], says: str) -> None:
        assert says in refusal("train", *TRAIN, *options)
