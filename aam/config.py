"""Every option of a run, declared once: name, type, default, help and bounds.

The command-line options of ``aam pretrain`` and ``aam train`` are made from these fields, ``RUN/config.json`` and the
model file hold them whole, and everything below the command line receives them as frozen values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "AugmentationConfig",
    "Command",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Section",
    "TaskConfig",
    "TrainConfig",
]

Command = Literal["pretrain", "train"]


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
    """One path where several are possible, or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_several)]


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
    metadata_column: str | None = option(None, "Column of the metadata to predict.", only="train")
    group_column: str | None = option(
        None, "Keep samples that share this column (a subject, say) on one side of the split."
    )
    stratify: bool = option(False, "Balance the splits by the target's classes, or by its quantiles.", only="train")
    val_size: float = option(
        0.2, "Fraction of the samples held out for validation; with folds, of those that are not tested.", gt=0, lt=1
    )
    test_size: float = option(0.0, "Fraction of the samples held out for the final test.", ge=0, lt=1)
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
        if self.val_size + self.test_size >= 1:
            raise ValueError(
                f"--val-size {self.val_size} and --test-size {self.test_size} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        ways = {
            "--splits": self.splits,
            "--split-column": self.split_column,
            "--leave-out": " ".join(self.leave_out) or None,
            "--test-size": self.test_size or None,
            "--folds": self.folds,
            "--leave-one-group-out": "" if self.leave_one_group_out else None,
        }
        given = {name: f"{name} {value}".strip() for name, value in ways.items() if value is not None}
        if len(given) > 1 and given.keys() != {"--splits", "--folds"}:
            first, second, *_ = given.values()
            raise ValueError(f"{first} and {second} each say which samples are held out; give one of them")
        for name, value in given.items():
            if name in ("--leave-out", "--leave-one-group-out") and self.group_column is None:
                raise ValueError(f"{value} needs --group-column, whose groups are held out")
        if self.split_column is not None:
            if self.metadata is None:
                raise ValueError(f"--split-column {self.split_column!r} needs --metadata")
            for option_name in ("metadata_column", "group_column"):
                if getattr(self, option_name) == self.split_column:
                    raise ValueError(
                        f"--split-column and --{option_name.replace('_', '-')} are both {self.split_column!r}"
                    )
        return self

    @property
    def cross_validated(self) -> bool:
        """Whether a run for each of several folds is asked for."""
        return self.folds is not None or self.leave_one_group_out


class AugmentationConfig(Section):
    """How training batches, and these alone, are varied from epoch to epoch."""

    augment_rarefy: str | None = option(
        None,
        "Rarefy training samples anew each epoch, to this depth or one of MIN:MAX; shallower ones stay as they are.",
    )
    asv_dropout: float = option(0.0, "Leave each ASV out of a training sample with this probability.", ge=0, lt=1)
    count_noise: float = option(0.0, "Multiply counts by log-normal noise of this standard deviation.", ge=0, le=3)
    mix_samples: float = option(
        0.0, "Share of the training samples that are mixed with another one (of the same class).", ge=0, lt=1
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
        return self.augment_rarefy is not None or self.mix_samples > 0

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

    embedding_dim: int = option(128, "Width of every embedding.", ge=4)
    attention_heads: int = option(4, "Attention heads of every layer; must divide --embedding-dim.", ge=1)
    attention_layers: int = option(2, "Transformer layers of each of the three encoders.", ge=1)
    feed_forward_factor: int = option(4, "Width of the feed-forward layers, in multiples of --embedding-dim.", ge=1)
    dropout: float = option(0.1, "Dropout in the encoders of samples and in the heads.", ge=0, lt=1)
    max_bp: int = option(300, "Longest sequence read, in bases; longer ones are cut, and that is reported.", ge=1)
    count_embedding: Literal["add", "concat", "film", "none"] = option(
        "add", "How an ASV's abundance joins its embedding."
    )
    distance_head: Literal["both", "clade", "euclidean"] = option(
        "both", "How distances are read: from soft clades of ASVs, from sample embeddings, or from both."
    )
    clades: int = option(256, "Soft clades of the clade head.", ge=1)
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: slower, less memory.")
    asv_chunk_size: int | None = option(
        None, "Encode at most this many ASVs at a time, and again in the backward pass: slower, in little memory.", ge=1
    )

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
    loss: Literal["huber", "mse", "mae"] = option("huber", "Loss of a regression target.", only="train")
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


class OptimConfig(Section):
    """The optimizer and its schedule."""

    lr: float = option(1e-3, "Peak learning rate of AdamW.", gt=0)
    weight_decay: float = option(0.01, "Weight decay, on matrices alone.", ge=0)
    warmup_steps: int | None = option(
        None,
        "Optimizer steps of linear warm-up before the cosine; by default a tenth of the run, at most 500.",
        ge=0,
    )
    gradient_clip: float = option(1.0, "Largest norm of the gradient; 0 for no clipping.", ge=0)
    accumulation_steps: int = option(1, "Batches whose gradients are joined in one optimizer step.", ge=1)


class TrainConfig(Section):
    """The run itself: length, machine, where it is written, where it starts from."""

    output_dir: Path = option(..., "The run directory to write.")
    epochs: int = option(50, "Most passes over the training samples.", ge=1)
    batch_size: int = option(32, "Samples of a batch.", ge=1)
    patience: int = option(10, "Stop after this many epochs without improvement on the validation split.", ge=1)
    seed: int = option(0, "Seed of every random draw.", ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Where to compute.")
    threads: int | None = option(None, "CPU threads of PyTorch; its own choice by default.", ge=1, le=1024)
    num_workers: int | None = option(
        None, "Processes that build batches; by default the cores there are, at most 4.", ge=0, le=256
    )
    mixed_precision: Literal["none", "bf16", "fp16"] = option("none", "Arithmetic of the encoders.")
    pretrained_encoder: Path | None = option(
        None, "Run directory (or model file) of `aam pretrain` to start from; its split is taken over.", only="train"
    )
    freeze_base: bool = option(False, "Train the heads alone; the encoder stays as loaded.", only="train")
    allow_pretrained_leak: bool = option(
        False, "Hold out samples that the pre-trained encoder has seen; recorded in metrics.json.", only="train"
    )
    save_every_minutes: float = option(
        10.0, "Save what --resume needs this often, beside after every epoch and at a signal to stop.", gt=0
    )
    resume: bool = option(False, "Continue the run in --output-dir.")
    overwrite: bool = option(False, "Replace the run in --output-dir.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite replaces it; give one of them")
        encoder = self.pretrained_encoder
        if encoder is not None and self.output_dir.absolute() in (encoder.absolute(), encoder.absolute().parent):
            raise ValueError(
                f"--output-dir {self.output_dir} and --pretrained-encoder {encoder} are one run, which this one would "
                "replace; give another --output-dir"
            )
        if self.freeze_base and self.pretrained_encoder is None:
            raise ValueError(
                "--freeze-base needs --pretrained-encoder: an encoder that never learnt is not worth freezing"
            )
        return self


class RunConfig(Section):
    """One whole run of ``aam pretrain`` or ``aam train``."""

    command: Command
    data: DataConfig
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _command_has_its_inputs(self) -> Self:
        if self.command == "pretrain":
            if not self.data.unifrac_matrix and self.data.taxonomy is None:
                raise ValueError("`aam pretrain` learns distances: --unifrac-matrix is missing")
            if self.task.unifrac_weight == 0 and self.task.nuc_weight == 0:
                raise ValueError("--unifrac-weight 0 and --nuc-weight 0 leave nothing to learn; raise one of them")
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
            if self.data.metadata_column is None:
                raise ValueError("`aam train` predicts a column of the metadata: --metadata-column is missing")
        if self.data.group_column is not None and self.data.group_column == self.data.metadata_column:
            raise ValueError(
                f"--group-column and --metadata-column are both {self.data.group_column!r}: "
                "a column that is predicted cannot also keep samples together"
            )
        if self.task.classifier and self.task.target_transform != TaskConfig().target_transform:
            raise ValueError(
                f"--target-transform {self.task.target_transform} is for numbers and --classifier predicts classes"
            )
        if self.task.classifier and self.task.loss != TaskConfig().loss:
            raise ValueError(f"--loss {self.task.loss} is for numbers; --classifier learns by cross-entropy")
        return self
