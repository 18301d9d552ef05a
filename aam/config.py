"""Every option of a run, declared once: name, type, default, help and bounds.

The command-line options of ``aam pretrain`` and ``aam train`` are made from these fields, ``RUN/config.json`` and the
model file hold them whole, and everything below the command line receives them as frozen values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from aam.errors import DataError

__all__ = [
    "USUAL_STEPS",
    "AugmentationConfig",
    "Command",
    "DataConfig",
    "FrozenPart",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Section",
    "TaskConfig",
    "TrainConfig",
    "UsualEpochs",
    "refusals",
]

Command = Literal["pretrain", "train"]
FrozenPart = Literal["base", "asv_encoder"]


def refusals(error: ValidationError) -> list[str]:
    """What a configuration refuses, in sentences that name the options as they are typed."""
    return [_sentence(problem) for problem in error.errors()]


def _sentence(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    field = problem["loc"][-1] if problem["loc"] else ""
    if problem["type"] == "value_error" or not isinstance(field, str):
        return message
    return f"--{field.replace('_', '-')} {problem['input']}: {message[0].lower()}{message[1:]}"


def option(default: Any, help: str, *, only: Command | None = None, alias: str | None = None, **bounds: Any) -> Any:
    """A field that becomes a command-line option.

    Parameters
    ----------
    default : Any
        ``...`` where the option is required.
    help : str
        What ``--help`` says; the default is added there.
    only : {"pretrain", "train"}, optional
        The one command that has this option; both have it if left out.
    alias : str, optional
        A second spelling of the option.
    **bounds
        pydantic's constraints, such as ``ge=0``.
    """
    return Field(default, description=help, json_schema_extra={"only": only, "alias": alias}, **bounds)


class Section(BaseModel):
    """A frozen group of options that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _as_several(value: Any) -> Any:
    """One value where several are possible, or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_several)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_several)]
Trackers = Annotated[tuple[Literal["mlflow", "wandb"], ...], BeforeValidator(_as_several)]


def _samples_of_a_batch(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"--batch-size {value}: give a whole number from 1 on, or auto")


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_samples_of_a_batch)]


class DataConfig(Section):
    """Which files are read and how samples are drawn from them."""

    table: Paths = option(
        ...,
        "Feature table: BIOM (HDF5 or JSON), QIIME 2 artifact, or tab-separated with features in rows. Several are "
        "added up, or with a --unifrac-matrix for each kept as studies.",
        min_length=1,
    )
    sequences: Paths = option(
        (), "FASTA or QIIME 2 artifact of the features' sequences, where feature IDs are not DNA themselves."
    )
    unifrac_matrix: Paths = option(
        (),
        "Distances between samples: HDF5 or text as ssu writes it, QIIME 2 artifact, .npy or .npz. NAME=FILE says "
        "which base target it is for, with --base-target combined.",
    )
    reference_ids: Path | None = option(
        None, "IDs of the reference samples, one a line, where an N × M matrix does not hold them."
    )
    stripe_references: int = option(
        32, "Reference samples that go with every batch, where distances to these alone are known.", ge=1
    )
    taxonomy: Path | None = option(None, "Taxon of every feature, TSV or QIIME 2 artifact, for --base-target taxonomy.")
    metadata: Paths = option((), "Sample metadata, tab-separated, first column the sample IDs. Several are merged.")
    metadata_column: Names = option(
        (),
        "Column of the metadata to predict. Several, all of numbers or all of classes, are learnt together, and a "
        "sample may lack some of them.",
        only="train",
    )
    categorical_columns: Names = option(
        (), "Column of the metadata, of categories, that the prediction is given beside the sample.", only="train"
    )
    numeric_columns: Names = option(
        (), "Column of the metadata, of numbers, that the prediction is given beside the sample.", only="train"
    )
    group_column: str | None = option(
        None, "Keep samples that share this column (a subject, say) on one side of the split."
    )
    stratify: bool = option(False, "Balance the splits by the target's classes, or by its quantiles.", only="train")
    val_size: float = option(
        0.2,
        "Fraction of the samples held out for validation; with folds of those not tested, and with --patience alone.",
        gt=0,
        lt=1,
    )
    test_size: float = option(0.0, "Fraction of the samples held out for the final test.", ge=0, lt=1)
    cal_size: float = option(
        0.0, "Fraction of the samples kept for calibration alone: see `aam predict --interval`.", ge=0, lt=1
    )
    split_column: str | None = option(
        None, "Column of the metadata that says train, val or test; samples where it is empty are left out."
    )
    splits: Path | None = option(
        None, "The splits.tsv of another run: take its split, or with --folds its folds; samples it lacks are left out."
    )
    leave_out: tuple[str, ...] = option(
        (), "Test on this group of --group-column and learn from the others; may be given several times."
    )
    folds: int | None = option(
        None, "Cross-validation: a run for each of so many folds, which holds that fold out for the test.", ge=2
    )
    leave_one_group_out: bool = option(False, "Cross-validation with a fold for each group of --group-column.")
    rarefy_depth: int | None = option(
        None, "Subsample every sample to this many reads without replacement; shallower ones are left out.", ge=1
    )
    prediction_passes: int = option(
        1,
        "Predict each sample from so many draws of its reads (--rarefy-depth) or ASVs (--asv-sampling random), and "
        "average.",
        ge=1,
        only="train",
    )
    token_limit: int = option(1024, "Most ASVs of a sample that are read.", ge=1)
    asv_sampling: Literal["abundance", "random", "first"] = option(
        "abundance", "Which ASVs are read of a sample that has more: most abundant, random, or first in the table."
    )

    streaming: bool = option(False, "Leave the counts in the table's file (BIOM 2.1) and read them batch by batch.")
    study_batches: Literal["mix", "alternate"] = option(
        "mix", "Batches of several studies: samples of all of them, or of one at a time."
    )
    cache_dir: Path | None = option(None, "Keep what is computed from the inputs here, for later runs on them.")
    cache_size: float = option(10.0, "Largest size of --cache-dir, in GB; what was used longest ago goes first.", gt=0)

    @model_validator(mode="after")
    def _sizes_leave_training_samples(self) -> Self:
        if self.val_size + self.test_size + self.cal_size >= 1:
            kept = f" and --cal-size {self.cal_size}" if self.cal_size else ""
            raise ValueError(
                f"--val-size {self.val_size} and --test-size {self.test_size}{kept} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _passes_differ(self) -> Self:
        if self.prediction_passes > 1 and self.rarefy_depth is None and self.asv_sampling != "random":
            raise ValueError(
                f"--prediction-passes {self.prediction_passes} would all see the same; give --rarefy-depth or "
                "--asv-sampling random, which draw anew for each"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        ways = {
            "--splits": self.splits,
            "--split-column": self.split_column,
            "--leave-out": " ".join(self.leave_out) or None,
            "--test-size": self.test_size or None,
            "--cal-size": self.cal_size or None,
            "--folds": self.folds,
            "--leave-one-group-out": "" if self.leave_one_group_out else None,
        }
        given = {name: f"{name} {value}".strip() for name, value in ways.items() if value is not None}
        if len(given) > 1 and given.keys() not in ({"--splits", "--folds"}, {"--test-size", "--cal-size"}):
            first, second, *_ = given.values()
            raise ValueError(f"{first} and {second} each say which samples are held out; give one of them")
        for name, value in given.items():
            if name in ("--leave-out", "--leave-one-group-out") and self.group_column is None:
                raise ValueError(f"{value} needs --group-column, whose groups are held out")
        if self.split_column is not None:
            for option_name, columns in (("metadata-column", self.columns), ("group-column", (self.group_column,))):
                if self.split_column in columns:
                    raise ValueError(f"--split-column and --{option_name} are both {self.split_column!r}")
        return self

    @model_validator(mode="after")
    def _covariates_are_other_columns(self) -> Self:
        taken: list[tuple[str, str | None]] = [("--metadata-column", column) for column in self.columns]
        taken += [("--group-column", self.group_column), ("--split-column", self.split_column)]
        seen: dict[str, str] = {}
        for option_name in ("categorical_columns", "numeric_columns"):
            given = f"--{option_name.replace('_', '-')}"
            for column in getattr(self, option_name):
                if column in seen:
                    also = "twice" if seen[column] == given else f"and of {seen[column]}, too"
                    raise ValueError(f"{column!r} is a column of {given} {also}; give it once")
                seen[column] = given
                other = next((name for name, value in taken if value == column), None)
                if other is not None:
                    raise ValueError(
                        f"{given} and {other} are both {column!r}: what the prediction is given must be another column"
                    )
        return self

    @model_validator(mode="after")
    def _columns_are_several(self) -> Self:
        repeated = [column for column in self.columns if self.columns.count(column) > 1]
        if repeated:
            raise ValueError(f"--metadata-column {repeated[0]} is given twice")
        if len(self.columns) > 1 and self.stratify:
            raise ValueError(f"--stratify is for one --metadata-column, and {' and '.join(self.columns)} are given")
        return self

    @field_serializer("metadata_column")
    def _one_column_by_its_name(self, columns: tuple[str, ...]) -> Any:
        return columns if len(columns) > 1 else next(iter(columns), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are predicted."""
        return self.metadata_column

    @property
    def covariates(self) -> tuple[str, ...]:
        """The columns that the prediction is given beside the sample."""
        return (*self.categorical_columns, *self.numeric_columns)

    @property
    def cross_validated(self) -> bool:
        """Whether a run for each of several folds is asked for."""
        return self.folds is not None or self.leave_one_group_out


class AugmentationConfig(Section):
    """How training batches, and these alone, are varied from epoch to epoch.

    What is None is settled once the study is read: see `aam.data.augmentation.with_defaults`.
    """

    augment_rarefy: str | None = option(
        None,
        "Rarefy training samples anew each epoch, to this depth or one of MIN:MAX; shallower ones stay as they are.",
    )
    asv_dropout: float | None = option(
        None,
        "Leave each ASV out of a training sample with this probability; by default 0.1 in `aam train`, else 0.",
        ge=0,
        lt=1,
    )
    count_noise: float | None = option(
        None,
        "Multiply counts by log-normal noise of this standard deviation; by default 0.3 in `aam train`, else 0.",
        ge=0,
        le=3,
    )
    mix_samples: float | None = option(
        None,
        "Share of the training samples that are mixed with another one (of the same class); by default 0.3 in "
        "`aam train` of whole counts, else 0.",
        ge=0,
        lt=1,
    )
    base_noise: float = option(0.0, "Substitute each base of an ASV with this probability.", ge=0, lt=1)

    @field_validator("augment_rarefy", mode="before")
    @classmethod
    def _depth_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _depths_are_whole_numbers(self) -> Self:
        if self.augment_rarefy is not None and self.rarefy_depths is None:
            raise ValueError(
                f"--augment-rarefy {self.augment_rarefy} is neither a depth nor MIN:MAX with 1 <= MIN <= MAX; "
                "write 1000 or 500:5000, say"
            )
        return self

    @property
    def draws_reads(self) -> bool:
        """Whether counts have to be whole."""
        return self.augment_rarefy is not None or bool(self.mix_samples)

    @property
    def rarefy_depths(self) -> tuple[int, int] | None:
        """The least and the greatest depth of ``--augment-rarefy``."""
        low, colon, high = (self.augment_rarefy or "").partition(":")
        ends = (low.strip(), (high if colon else low).strip())
        if not all(end.isascii() and end.isdigit() and len(end) < 10 for end in ends):
            return None
        least, greatest = int(ends[0]), int(ends[1])
        return (least, greatest) if 1 <= least <= greatest else None


class ModelConfig(Section):
    """The architecture."""

    embedding_dim: int = option(64, "Width of every embedding.", ge=4)
    attention_heads: int = option(2, "Attention heads of every layer; must divide --embedding-dim.", ge=1)
    attention_layers: int = option(2, "Transformer layers of each of the three encoders.", ge=1)
    feed_forward_factor: int = option(4, "Width of the feed-forward layers, in multiples of --embedding-dim.", ge=1)
    dropout: float = option(0.1, "Dropout in the encoders of samples and in the heads.", ge=0, lt=1)
    max_bp: int = option(300, "Longest sequence read, in bases; longer ones are cut, and that is reported.", ge=1)
    count_embedding: Literal["add", "concat", "film", "none"] = option(
        "add", "How an ASV's abundance joins its embedding."
    )
    abundance_pooling: bool = option(
        True, "Let means of ASV embeddings, weighted by abundance, join what attention pools of a sample."
    )
    distance_head: Literal["both", "clade", "euclidean"] = option(
        "both", "How distances are read: from soft clades of ASVs, from sample embeddings, or from both."
    )
    clades: int = option(256, "Soft clades of the clade head.", ge=1)
    head: Literal["hidden", "linear"] | None = option(
        None,
        "How the column is read: by a hidden layer, learnt together with the base; or linearly, penalised, in the end, "
        "of a base that distances have taught and the column has not. By default linearly where --choose-epochs finds "
        "a weak signal.",
        only="train",
    )
    head_width: tuple[int, ...] = option(
        (), "Width of a residual layer of the target's head; by default it has one plain hidden layer.", only="train"
    )
    fusion: Literal["concat", "add", "gmu", "cross-attention"] = option(
        "concat", "How what --categorical-columns and --numeric-columns say joins the sample's embedding.", only="train"
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: slower, less memory.")
    asv_chunk_size: int | None = option(
        None, "Encode at most this many ASVs at a time, and again in the backward pass: slower, in little memory.", ge=1
    )

    @field_validator("head_width")
    @classmethod
    def _layers_have_a_width(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 for width in value):
            raise ValueError(f"--head-width {min(value)}: a layer has at least one unit")
        return value

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.embedding_dim % self.attention_heads:
            raise ValueError(
                f"--embedding-dim {self.embedding_dim} is not a multiple of --attention-heads {self.attention_heads}"
            )
        return self


class TaskConfig(Section):
    """What is learnt, and how its parts are weighed."""

    base_target: str = option(  # one of aam.models.base_targets, which this module may not know
        "unifrac",
        "What the base model learns of samples, and the distance matrix holds; combined for all that labels are given "
        "for.",
        alias="unifrac-metric",
    )
    unifrac_alpha: float = option(
        0.5, "How much abundant lineages count in generalized_unifrac; 1 is weighted_unifrac.", ge=0, le=1
    )
    taxonomy_level: Literal["domain", "phylum", "class", "order", "family", "genus", "species"] = option(
        "genus", "Rank of the taxa whose shares --base-target taxonomy learns."
    )
    unifrac_weight: float = option(1.0, "Weight of the loss of each base target.", ge=0)
    nuc_weight: float = option(0.1, "Weight of restoring masked nucleotides.", ge=0)
    nuc_mask_ratio: float = option(0.15, "Share of the nucleotides masked in that pass.", gt=0, lt=1)
    nuc_mask_strategy: Literal["random", "span"] = option("random", "Mask single nucleotides, or runs of them.")
    nuc_asv_fraction: float = option(0.1, "Share of a batch's distinct ASVs that this pass reads.", gt=0, le=1)
    classifier: bool = option(False, "Predict classes; without it, a number.", only="train")
    loss: Literal["huber", "mse", "mae", "quantile", "asymmetric"] = option(
        "huber", "Loss of a regression target.", only="train"
    )
    quantile_range: float = option(
        0.9,
        "With --loss quantile: the share between the lower and the upper quantile beside the median.",
        gt=0,
        lt=1,
        only="train",
    )
    overestimate_cost: float = option(
        2.0, "With --loss asymmetric: what an overestimate costs, in underestimates of its size.", gt=0, only="train"
    )
    target_min: float | None = option(
        None,
        "Least value that a regression target can have; predictions end there. By default 0 where no training sample "
        "is below it, else none.",
        only="train",
    )
    target_max: float | None = option(
        None, "Largest value that a regression target can have; predictions end there.", only="train"
    )
    label_smoothing: float = option(
        0.0, "Share of a class's probability that is spread over all of them in training.", ge=0, lt=1, only="train"
    )
    target_transform: Literal["none", "zscore", "minmax", "log-zscore", "log-minmax"] = option(
        "zscore", "Scale in which a regression target is learnt; fitted on the training split.", only="train"
    )
    class_weights: Literal["none", "balanced"] = option(
        "balanced", "Weigh classes by the inverse of their frequency, or not.", only="train"
    )
    target_weight: float = option(1.0, "Weight of the target's loss.", ge=0, only="train")
    count_weight: float = option(0.1, "Weight of restoring masked abundances.", ge=0, only="train")
    count_mask_ratio: float = option(
        0.15, "Share of a sample's abundances masked in that pass.", gt=0, lt=1, only="train"
    )

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        low, high = self.target_min, self.target_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"--target-min {low:g} is not below --target-max {high:g}")
        return self


# Of the optimizers whose step is not about as long as the rate says.
USUAL_LR = {"sgd": 0.1, "lamb": 0.01}


class OptimConfig(Section):
    """The optimizer, its schedule, and averages of the weights. `docs/optimization.md` says what to choose when."""

    optimizer: Literal["adamw", "adam", "sgd", "radam", "lamb", "muon"] = option(
        "adamw", "How weights follow their gradients."
    )
    lookahead: bool = option(False, "Pull the weights half way back to where they were five steps ago, every five.")
    lr: float = option(1e-3, "Peak learning rate; unless given, 0.1 with sgd and 0.01 with lamb.", gt=0)
    head_lr: float | None = option(
        None, "Peak learning rate of the heads that a pre-trained encoder lacks; by default --lr.", gt=0, only="train"
    )
    layer_decay: float | None = option(
        None,
        "Lower --lr by this factor for every layer of a pre-trained encoder, from its heads down to the nucleotides.",
        gt=0,
        le=1,
        only="train",
    )
    weight_decay: float = option(0.01, "Weight decay, on matrices alone.", ge=0)
    schedule: Literal[
        "warmup_cosine", "cosine", "cosine_restarts", "plateau", "onecycle", "exponential", "constant"
    ] = option("warmup_cosine", "How the learning rate changes in the run.")
    warmup_steps: int | None = option(
        None,
        "Optimizer steps of linear warm-up; by default none, but with warmup_cosine a tenth of the run, at most 500.",
        ge=0,
    )
    min_lr: float | None = option(
        None, "Learning rate that the schedule ends at, or never goes below; by default a hundredth of --lr.", ge=0
    )
    cycle_steps: int | None = option(
        None, "Optimizer steps of the first cycle of cosine_restarts; by default such that the run has three.", ge=1
    )
    cycle_growth: int | None = option(
        None, "How many times as long as the one before each cycle of cosine_restarts is; by default 2.", ge=1
    )
    plateau_factor: float | None = option(
        None, "What plateau multiplies the learning rate by, each time; by default 0.3.", gt=0, lt=1
    )
    plateau_patience: int = option(
        5, "Epochs without improvement that are a plateau: it is logged, and plateau goes by it.", ge=1
    )
    restart_on_plateau: bool = option(False, "Begin the schedule anew at a plateau, over what is left of the run.")
    average: Literal["none", "ema", "swa"] | None = option(
        None,
        "Validate and save averaged weights: exponentially, or evenly over the end of the run; by default ema in "
        "`aam train`, else none.",
    )
    ema_decay: float | None = option(
        None,
        "Share of the old average that an optimizer step leaves with --average ema; by default 0.999, or 0.99 where "
        "nobody asks for an average.",
        gt=0,
        lt=1,
    )
    swa_start: float | None = option(
        None, "Share of the epochs run, after which --average swa begins; by default 0.75.", ge=0, lt=1
    )
    lr_find: Literal["none", "apply", "print"] = option(
        "none", "Search the peak learning rate first, to train with it or only to print it."
    )
    gradient_clip: float = option(1.0, "Largest norm of the gradient; 0 for no clipping.", ge=0)
    accumulation_steps: int = option(1, "Batches whose gradients are joined in one optimizer step.", ge=1)
    target_effective_batch_size: int | None = option(
        None, "Samples of an optimizer step: as many batches are joined as come nearest to it.", ge=1
    )

    @model_validator(mode="after")
    def _learning_rate_of_the_optimizer(self) -> Self:
        if "lr" not in self.model_fields_set:  # nor is it then: nobody has given one
            self.__dict__["lr"] = USUAL_LR.get(self.optimizer, self.lr)
        return self

    @model_validator(mode="after")
    def _options_are_of_the_schedule(self) -> Self:
        takers = {
            "warmup_steps": ("warmup_cosine", "cosine_restarts", "plateau", "exponential", "constant"),
            "min_lr": ("warmup_cosine", "cosine", "cosine_restarts", "plateau", "exponential"),
            "cycle_steps": ("cosine_restarts",),
            "cycle_growth": ("cosine_restarts",),
            "plateau_factor": ("plateau",),
        }
        for name, schedules in takers.items():
            if getattr(self, name) is not None and self.schedule not in schedules:
                raise ValueError(f"{self._given(name)} is for --schedule {' or '.join(schedules)}, not {self.schedule}")
        if self.restart_on_plateau and self.schedule in ("plateau", "constant"):
            raise ValueError(f"--restart-on-plateau is for schedules that end low, not for --schedule {self.schedule}")
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ValueError(f"{self._given('min_lr')} is above {self._given('lr')}")
        if self.min_lr == 0 and self.schedule == "exponential":
            raise ValueError("--min-lr 0 is never reached by --schedule exponential; give a small one")
        return self

    @model_validator(mode="after")
    def _options_are_of_the_average(self) -> Self:
        for name, average in (("ema_decay", "ema"), ("swa_start", "swa")):
            by_default = name == "ema_decay" and self.average is None  # see `RunConfig`
            if getattr(self, name) is not None and self.average != average and not by_default:
                raise ValueError(f"{self._given(name)} is for --average {average}, not {self.average or 'none'}")
        return self

    @model_validator(mode="after")
    def _one_way_to_accumulate(self) -> Self:
        if self.target_effective_batch_size is not None and self.accumulation_steps != 1:
            raise ValueError(
                f"{self._given('target_effective_batch_size')} and {self._given('accumulation_steps')} both say how "
                "many batches are joined; give one of them"
            )
        return self

    def _given(self, name: str) -> str:
        value = getattr(self, name)
        return f"--{name.replace('_', '-')} {value:g}"


LEAST_EPOCHS = 12
USUAL_STEPS = 800
_WHOLE_SHARE = 0.45  # of the steps, after which the encoder of ASVs stays as it is


class UsualEpochs(NamedTuple):
    """How long a network learns where nobody says so."""

    epochs: int
    of_asvs: int  # after which the encoder of ASVs stays as it is

    @classmethod
    def of(cls, train_samples: int, samples_of_a_step: int, steps: int = USUAL_STEPS) -> Self:
        """It is steps that a network learns by: small studies need more epochs for as many. See docs/quality.md."""
        of_an_epoch = math.ceil(train_samples / samples_of_a_step)
        whole = max(5, math.ceil(_WHOLE_SHARE * steps / of_an_epoch))
        return cls(max(LEAST_EPOCHS, math.ceil(steps / of_an_epoch)), whole)

    @property
    def large(self) -> bool:
        """Whether the study has so many samples that a network sees each of them a few times at most."""
        return self.epochs == LEAST_EPOCHS


class TrainConfig(Section):
    """The run itself: length, machine, where it is written, where it starts from."""

    output_dir: Path = option(..., "The run directory to write.")
    epochs: int | None = option(
        None,
        "Passes over the training samples; by default as many as make --train-steps, at least 12, or in `aam train` "
        "fewer: see --choose-epochs.",
        ge=1,
    )
    train_steps: int = option(USUAL_STEPS, "Steps to learn for where --epochs is not given.", ge=1)
    choose_epochs: bool | None = option(
        None,
        "Find out first, on parts of the training samples, whether learning for long is worse than a guess, and stop "
        "after the epoch that was best if so. By default where neither --epochs nor --patience is given and epochs are "
        "many.",
        only="train",
    )
    stop_after: int | None = option(
        None, "Stop after so many epochs, without a search; the learning rate is as in a run of --epochs.", ge=1
    )
    batch_size: BatchSize = option(
        32, "Samples of a batch, of all processes together; auto for as many as memory allows."
    )
    max_memory_fraction: float | None = option(
        None,
        "Share of the memory that --batch-size auto may use; by default 0.8 of a GPU's, or 0.5 of what is free.",
        gt=0,
        le=1,
    )
    patience: int | None = option(
        None,
        "Stop after this many epochs without improvement on the validation split, and keep the best; by default every "
        "epoch is run and the last one kept.",
        ge=1,
    )
    seed: int = option(0, "Seed of every random draw.", ge=0, lt=2**32)
    seeds: int = option(
        1,
        "Train so many models, from --seed on, on the same split or in each fold; they predict together.",
        ge=1,
        le=1000,
        only="train",
    )
    parallel: int = option(
        1,
        "Of several runs (--folds, --seeds), train so many at a time, each in a process of its own, with its share of "
        "the cores unless --threads says otherwise.",
        ge=1,
        le=1024,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Where to compute.")
    threads: int | None = option(None, "CPU threads of PyTorch; its own choice by default.", ge=1, le=1024)
    num_workers: int | None = option(
        None, "Processes that build batches; by default the cores there are, at most 4.", ge=0, le=256
    )
    mixed_precision: Literal["none", "bf16", "fp16"] = option(
        "none", "Arithmetic of the encoders; heads, distances and losses stay in single precision."
    )
    tf32: bool = option(False, "Let an NVIDIA GPU round factors of single-precision products to TF32: faster.")
    attn_implementation: Literal["auto", "flash", "mem_efficient", "math"] = option(
        "auto", "PyTorch's kernel of attention; auto takes the best that there is for each call."
    )
    compile_model: bool = option(False, "Compile the transformer blocks: a minute at first, for GPUs.")
    strategy: Literal["auto", "single", "ddp", "fsdp"] = option(
        "auto",
        "One process, or several that torchrun starts, each with a share of every batch and with the whole model (ddp) "
        "or a part of its weights, gradients and optimizer state (fsdp). auto is single or ddp.",
    )
    reshard_after_forward: bool = option(
        True, "With --strategy fsdp: let go of gathered weights between forward and backward pass; slower, less memory."
    )
    sharded_checkpoints: bool = option(
        False, "With --strategy fsdp: each process saves its own part for --resume, beside last.ckpt in shards/."
    )
    pretrained_encoder: Path | None = option(
        None, "Run directory (or model file) of `aam pretrain` to start from; its split is taken over.", only="train"
    )
    freeze_base: bool = option(
        False, "Train the heads alone; the encoder stays as loaded, and encodes samples once.", only="train"
    )
    freeze_asv_encoder: bool = option(
        False, "Train all but the encoder of ASVs; it stays as loaded, and encodes ASVs once.", only="train"
    )
    freeze_asvs_after: int | None = option(
        None,
        "Train the encoder of ASVs for so many epochs and keep it as it is from then on, where an epoch takes a "
        "fraction of the time; by default as many as make 45% of --train-steps, and at least 5. 0 trains it to the "
        "end, as with --strategy fsdp.",
        ge=0,
    )
    unfreeze_after: int | None = option(
        None, "Train what is frozen, too, from the epoch after so many on.", ge=1, only="train"
    )
    encode_once: bool = option(
        True, "Encode what is frozen before the first epoch, and not again for every batch.", only="train"
    )
    allow_pretrained_leak: bool = option(
        False, "Hold out samples that the pre-trained encoder has seen; recorded in metrics.json.", only="train"
    )
    save_every_minutes: float = option(
        10.0, "Save what --resume needs this often, beside after every epoch and at a signal to stop.", gt=0
    )
    baseline: bool = option(
        False, "Fit classical models too (see `aam baseline`), and show them beside the network.", only="train"
    )
    join: Literal["random_forest", "extra_trees", "linear"] | None = option(
        None,
        "Let the network predict together with this classical model of abundances, a mean of the two whose weights are "
        "fitted on samples that neither has seen; both stand in the model file.",
        only="train",
    )
    plots: bool = option(True, "Draw pictures for plots/ and TensorBoard: a second or two, of each run and fold.")
    log_histograms: bool = option(False, "Show the distribution of every weight in TensorBoard, too.")
    log_attention: int | None = option(
        None, "Every so many epochs, draw attention over ASVs of three validation samples in TensorBoard.", ge=1
    )
    profile: int | None = option(None, "Trace so many training steps, and write RUN/profile/.", ge=1, le=1000)
    track: Trackers = option((), "Keep the run there, too; by an extra: pip install 'aam[mlflow]' or 'aam[wandb]'.")
    resume: bool = option(False, "Continue the run in --output-dir.")
    overwrite: bool = option(False, "Replace the run in --output-dir.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.choose_epochs and self.patience is not None:
            raise ValueError(
                f"--choose-epochs and --patience {self.patience} each say when training ends; give one of them"
            )
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it; give one of them")
        encoder = self.pretrained_encoder
        if encoder is not None and self.output_dir.absolute() in (encoder.absolute(), encoder.absolute().parent):
            raise ValueError(
                f"--output-dir {self.output_dir} and --pretrained-encoder {encoder} are one run, which this one would "
                "replace; give another --output-dir"
            )
        if self.strategy != "fsdp":
            for given, name in (
                (not self.reshard_after_forward, "--no-reshard-after-forward"),
                (self.sharded_checkpoints, "--sharded-checkpoints"),
            ):
                if given:
                    raise ValueError(f"{name} is for --strategy fsdp, and --strategy is {self.strategy}")
        elif self.mixed_precision == "fp16":
            raise ValueError(
                "--mixed-precision fp16 needs gradients that no process of --strategy fsdp has whole; use bf16"
            )
        if self.freeze_base and self.pretrained_encoder is None:
            raise ValueError(
                "--freeze-base needs --pretrained-encoder: an encoder that never learnt is not worth freezing"
            )
        if self.max_memory_fraction is not None and self.batch_size != "auto":
            raise ValueError(
                f"--max-memory-fraction {self.max_memory_fraction:g} is for --batch-size auto, and it is "
                f"{self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_parts_fit(self) -> Self:
        if self.freeze_asv_encoder and self.pretrained_encoder is None:
            raise ValueError(
                "--freeze-asv-encoder needs --pretrained-encoder: an encoder that never learnt is not worth freezing"
            )
        if self.freeze_base and self.freeze_asv_encoder:
            raise ValueError("--freeze-base freezes what --freeze-asv-encoder does and more; give one of them")
        if self.freeze_asvs_after:
            given = f"--freeze-asvs-after {self.freeze_asvs_after}"
            if self.frozen_part is not None:
                what = "--freeze-base" if self.freeze_base else "--freeze-asv-encoder"
                raise ValueError(f"{given} and {what} each say when ASVs are no longer learnt; give one of them")
            if self.strategy == "fsdp":
                raise ValueError(
                    f"{given} changes what is trained, which --strategy fsdp settles at the start; use --strategy ddp"
                )
        if not self.encode_once and self.frozen_part is None:
            raise ValueError("--no-encode-once needs something frozen: --freeze-base or --freeze-asv-encoder")
        if self.unfreeze_after is None:
            return self
        if self.frozen_part is None:
            raise ValueError(
                f"--unfreeze-after {self.unfreeze_after} needs something frozen: --freeze-base or --freeze-asv-encoder"
            )
        if self.strategy == "fsdp":
            raise ValueError(
                f"--unfreeze-after {self.unfreeze_after} changes what is trained, which --strategy fsdp settles at the "
                "start; use --strategy ddp, or train in two runs"
            )
        if self.epochs is not None and self.unfreeze_after >= self.epochs:
            raise ValueError(
                f"--unfreeze-after {self.unfreeze_after} leaves none of --epochs {self.epochs} to train what is "
                "frozen; give fewer, or leave it out"
            )
        return self

    @property
    def number_of_epochs(self) -> int:
        """``epochs``, once they are settled.

        Raises
        ------
        DataError
            If they are still to be.
        """
        if self.epochs is None:
            raise DataError("--epochs is settled by the training samples; give a number here")
        return self.epochs

    @property
    def last_epoch(self) -> int:
        """The one that training ends after, unless it stops early."""
        return min(self.number_of_epochs, self.stop_after or self.number_of_epochs)

    @property
    def keeps_last(self) -> bool:
        """Whether the model of the run is that of its last epoch, which no held-out sample has a say in."""
        return self.patience is None

    @property
    def frozen_part(self) -> FrozenPart | None:
        """What is frozen, at first or for the whole run."""
        return "base" if self.freeze_base else "asv_encoder" if self.freeze_asv_encoder else None

    @property
    def samples_per_batch(self) -> int:
        """``batch_size``, once it is a number.

        Raises
        ------
        DataError
            If it is still to be found.
        """
        if self.batch_size == "auto":
            raise DataError("--batch-size auto is for `aam pretrain` and `aam train`; give a number here")
        return self.batch_size


class RunConfig(Section):
    """One whole run of ``aam pretrain`` or ``aam train``."""

    command: Command
    data: DataConfig
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    augmentation: AugmentationConfig = AugmentationConfig()

    @property
    def several_runs(self) -> bool:
        """Whether a run for each of several folds or seeds is asked for."""
        return self.data.cross_validated or self.train.seeds > 1

    @property
    def chooses_by_validation(self) -> bool:
        """Whether validation decides anything: else samples that it has seen are as good as new to the model."""
        return not self.train.keeps_last or self.optim.schedule == "plateau" or self.optim.restart_on_plateau

    @property
    def why_not_linear(self) -> str | None:
        """What stands against a linear head, which reads what distances have taught the base."""
        task, model, train = self.task, self.model, self.train
        reasons = {
            "it reads what distances teach: --unifrac-matrix is missing": not (
                self.data.unifrac_matrix or (self.data.taxonomy and task.base_target in ("taxonomy", "combined"))
            ),
            "it reads what distances teach, and --unifrac-weight is 0": task.unifrac_weight == 0,
            "sample embeddings learn nothing of --distance-head clade": model.distance_head == "clade",
            "it does not go with --freeze-base": train.freeze_base,
            "--head-width is for a hidden one": bool(model.head_width),
            "it does not read --categorical-columns or --numeric-columns": bool(self.data.covariates),
            "it is fitted when all epochs have been run, and --patience stops before": train.patience is not None,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    @property
    def accumulation_steps(self) -> int:
        """Batches of an optimizer step, as asked for or by ``--target-effective-batch-size``."""
        target = self.optim.target_effective_batch_size
        if target is None:
            return self.optim.accumulation_steps
        return max(1, round(target / self.train.samples_per_batch))

    @model_validator(mode="after")
    def _optimizer_fits_the_run(self) -> Self:
        optim, train = self.optim, self.train
        for name in ("head_lr", "layer_decay"):
            value = getattr(optim, name)
            given = f"--{name.replace('_', '-')} {value}"
            if value is not None and train.pretrained_encoder is None:
                raise ValueError(
                    f"{given} needs --pretrained-encoder: without one, everything is new and learns at --lr"
                )
            if value is not None and train.freeze_base and train.unfreeze_after is None:
                raise ValueError(f"{given} and --freeze-base: the heads alone are trained, at --lr {optim.lr:g}")
        target, batch = optim.target_effective_batch_size, train.batch_size
        if target is not None and batch != "auto" and batch > target:
            raise ValueError(f"--batch-size {batch} is more than --target-effective-batch-size {target}; lower it")
        by_plateaus = optim.schedule == "plateau" or optim.restart_on_plateau
        if train.patience is not None and optim.plateau_patience >= train.patience and by_plateaus:
            asks = "--schedule plateau" if optim.schedule == "plateau" else "--restart-on-plateau"
            raise ValueError(
                f"--plateau-patience {optim.plateau_patience} with --patience {train.patience}: training stops before "
                f"{asks} can act; raise --patience"
            )
        if optim.lr_find == "print":
            if self.several_runs:
                asked = f"--folds {self.data.folds}" if self.data.folds else "--leave-one-group-out"
                asked = asked if self.data.cross_validated else f"--seeds {train.seeds}"
                raise ValueError(f"--lr-find print is for one run, and {asked} asks for several")
            if train.resume:
                raise ValueError("--lr-find print trains nothing, and --resume continues a run; give one of them")
        return self

    @model_validator(mode="after")
    def _command_has_its_inputs(self) -> Self:
        if self.command == "pretrain":
            if self.task.base_target == "taxonomy" and self.data.taxonomy is None:
                raise ValueError("--base-target taxonomy learns what --taxonomy says of features; give one")
            if not self.data.unifrac_matrix and self.data.taxonomy is None:
                raise ValueError("`aam pretrain` learns distances: --unifrac-matrix is missing")
            if self.task.unifrac_weight == 0 and self.task.nuc_weight == 0:
                raise ValueError("--unifrac-weight 0 and --nuc-weight 0 leave nothing to learn; raise one of them")
            if self.optim.ema_decay is not None and self.optim.average is None:
                raise ValueError(f"--ema-decay {self.optim.ema_decay} is for --average ema, not none")
        else:
            if self.task.target_weight == 0:
                raise ValueError("--target-weight 0 leaves the column unlearnt; `aam pretrain` learns without one")
            if not (self.data.unifrac_matrix or self.data.taxonomy) and self.task.unifrac_weight not in (
                0,
                TaskConfig().unifrac_weight,
            ):
                raise ValueError(f"--unifrac-weight {self.task.unifrac_weight} needs --unifrac-matrix")
            if not self.task.classifier and self.task.class_weights != TaskConfig().class_weights:
                raise ValueError(f"--class-weights {self.task.class_weights} is for classes; add --classifier")
            if not self.data.columns:
                raise ValueError("`aam train` predicts a column of the metadata: --metadata-column is missing")
        if self.data.group_column in self.data.columns:
            raise ValueError(
                f"--group-column and --metadata-column are both {self.data.group_column!r}: "
                "a column that is predicted cannot also keep samples together"
            )
        if len(self.data.columns) > 1 and self.train.join:
            raise ValueError(
                f"--join {self.train.join} joins models of one --metadata-column, and "
                f"{' and '.join(self.data.columns)} are given"
            )
        if self.train.join and self.chooses_by_validation and not (self.data.cross_validated or self.data.cal_size):
            raise ValueError(
                f"--join {self.train.join} fits its weights on samples that nothing has looked at, and the validation "
                "samples say when training ends; give --folds or --cal-size, or let them not"
            )
        if self.model.head == "linear" and self.why_not_linear is not None:
            raise ValueError(f"--head linear: {self.why_not_linear}")
        if self.model.head == "linear" and self.train.choose_epochs and not self.train.resume:
            raise ValueError("--head linear is fitted when all epochs have been run; leave --choose-epochs out")
        if self.model.fusion != ModelConfig().fusion and not self.data.covariates:
            raise ValueError(
                f"--fusion {self.model.fusion} needs something to join: --categorical-columns or --numeric-columns"
            )
        if self.task.classifier and self.task.target_transform != TaskConfig().target_transform:
            raise ValueError(
                f"--target-transform {self.task.target_transform} is for numbers and --classifier predicts classes"
            )
        if self.task.classifier and self.task.loss != TaskConfig().loss:
            raise ValueError(f"--loss {self.task.loss} is for numbers; --classifier learns by cross-entropy")
        return self

    @model_validator(mode="after")
    def _options_of_a_loss_have_it(self) -> Self:
        task, usual = self.task, TaskConfig()
        for name, bound in (("--target-min", task.target_min), ("--target-max", task.target_max)):
            if task.classifier and bound is not None:
                raise ValueError(f"{name} {bound:g} is for numbers and --classifier predicts classes")
        if not task.classifier and task.label_smoothing != usual.label_smoothing:
            raise ValueError(f"--label-smoothing {task.label_smoothing:g} is for classes; add --classifier")
        for loss, name in (("quantile", "quantile_range"), ("asymmetric", "overestimate_cost")):
            value = getattr(task, name)
            if task.loss != loss and value != getattr(usual, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} {value:g} is for --loss {loss}, and --loss is {task.loss}; "
                    "leave one of them out"
                )
        return self
