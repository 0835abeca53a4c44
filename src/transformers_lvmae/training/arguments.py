"""Arguments of the three trainers, and which model they start from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, TrainingArguments

from ..command_line import CommandLine, check_ranges, json_object
from .learning_rates import scaled_learning_rate


# Ranges of the numbers that transformers' `TrainingArguments` takes.
RANGES = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), "[0, inf)"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), "[0, 1)"),
    **dict.fromkeys(("adam_epsilon", "num_train_epochs", "save_steps", "eval_steps", "logging_steps"), "(0, inf)"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), "[1, inf)"),
    **dict.fromkeys(("gradient_accumulation_steps", "dataloader_prefetch_factor", "save_total_limit"), "[1, inf)"),
    **dict.fromkeys(("seed", "data_seed"), "[0, 4294967296)"),
    "dataloader_num_workers": "[0, inf)",
    "max_steps": "[-1, inf)",
}


def parse_arguments(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse the command line into one instance of each dataclass; a mistake ends the script with one sentence."""
    return CommandLine(dataclass_types).parse_dataclasses(argv)


@dataclass
class ModelArguments:
    """Which model to start from."""

    config_options: ClassVar[tuple[str, ...]] = ()  # options that set a field of the config of the same name

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of weights to start from; without it, a new model."}
    )
    config_overrides: str = field(default="{}", metadata={"help": "Config fields as JSON: '{\"image_size\": 64}'."})

    def __post_init__(self) -> None:
        check_ranges(self)
        json_object("config_overrides", self.config_overrides)

    def overrides(self, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
        """Return `config_overrides` as a dict, with the options of `config_options`; raise ValueError on fields that the config does not have."""
        former = config_class.attribute_map
        overrides = {
            former.get(name, name): value
            for name, value in json_object("config_overrides", self.config_overrides).items()
        }
        known = {item.name for item in fields(config_class)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(
                f"Got config_overrides with {unknown}, expected fields of {config_class.__name__}: correct the spelling "
                f"(it has {sorted(known - {item.name for item in fields(PreTrainedConfig)})})."
            )
        options = {name: getattr(self, name) for name in self.config_options}
        return {**overrides, **{name: value for name, value in options.items() if value is not None}}


@dataclass
class VideoTrainingArguments(TrainingArguments):
    """Defaults that the three trainers share.

    Raises:
        ValueError: a number outside its range; `learning_rate` and `base_learning_rate` together.
    """

    default_rates: ClassVar[dict[str, float]] = {}  # the rate that is taken where none is given

    learning_rate: float = field(  # None until `set_learning_rate`
        default=None,  # type: ignore[assignment]
        metadata={"help": "Peak learning rate; the trainer's class has the default."},
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate for a batch of 256, scaled to the run's batch.", "within": "[0, inf)"},
    )
    allow_changes: bool = field(
        default=False, metadata={"help": "Go on with an interrupted run although its settings or its data differ."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log a number in place of a loss that is not finite. It waits for the device."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Clips are made from the video column."})

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.accelerator_config is None and torch.cuda.is_available() and not self.use_cpu:
            # Pinned batches are copied while the device works on the one before. Else a step waits for its copy.
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        super().__post_init__()
        if self.data_seed is None:
            self.data_seed = self.seed  # the order of the rows is the same on all processes, whatever they draw
        if not torch.cuda.is_available() or self.use_cpu:
            self.dataloader_pin_memory = False  # torch warns of it
        self.set_learning_rate()

    def set_learning_rate(self) -> None:
        """Set `learning_rate`, if `base_learning_rate` gives it, for the batch of a step over all processes."""
        if self.learning_rate is None and self.base_learning_rate is None:
            vars(self).update(self.default_rates)
        if self.base_learning_rate is None:
            return
        scaled = scaled_learning_rate(self.base_learning_rate, self)
        if self.learning_rate not in (None, scaled):
            raise ValueError(
                f"Got learning_rate={self.learning_rate} and base_learning_rate={self.base_learning_rate}, expected one of them: "
                "leave out the other."
            )
        self.learning_rate = scaled


@dataclass
class FSQMagViTTrainingArguments(VideoTrainingArguments):
    """Defaults of MAGVIT's recipe: Adam (0, 0.99), 1e-4, cosine, no weight decay.

    Terms that cost more time or need another model are off by default: the adversarial term (MAGVIT: `adversarial_weight=0.1`) and
    the perceptual term (MAGVIT: a ResNet-50 as `perceptual_model`). So are averaged weights (MAGVIT: `ema_decay=0.999`), because they
    average over the last thousand steps, and a short run has fewer.
    """

    default_rates: ClassVar[dict[str, float]] = {"learning_rate": 1e-4}

    scorer_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the token scorer; without it, the same as the rest.",
            "within": "[0, inf)",
        },
    )
    adversarial_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the adversarial term (MAGVIT: 0.1); 0 builds no discriminator.",
            "within": "[0, inf)",
        },
    )
    adversarial_start_step: int = field(
        default=0, metadata={"help": "Step at which the adversarial term starts.", "within": "[0, inf)"}
    )
    discriminator_channels: int = field(
        default=64, metadata={"help": "Discriminator width (MAGVIT-B 64, L 128).", "within": "[1, inf)"}
    )
    discriminator_multipliers: list[int] = field(
        default_factory=lambda: [2, 4, 4, 4, 4],
        metadata={
            "help": "The discriminator's width after each halving, as multiples of discriminator_channels.",
            "within": "[1, inf)",
        },
    )
    discriminator_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the discriminator; without it, learning_rate.",
            "within": "[0, inf)",
        },
    )
    r1_weight: float = field(
        default=10.0,
        metadata={
            "help": "Weight of the squared gradient on real clips (twice it is StyleGAN's gamma).",
            "within": "[0, inf)",
        },
    )
    perceptual_model: str | None = field(
        default=None,
        metadata={"help": "Image classifier whose logits are compared: folder or Hub id; by default none."},
    )
    perceptual_weight: float = field(
        default=0.1, metadata={"help": "Weight of the perceptual term.", "within": "[0, inf)"}
    )
    perceptual_frames: int | None = field(
        default=None,
        metadata={
            "help": "Frames of a clip that it compares, drawn in every step; by default all.",
            "within": "[1, inf)",
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of averaged weights, evaluated and saved (MAGVIT: 0.999); 0 keeps none.",
            "within": "[0, 1)",
        },
    )
    topk_sigma_end: float | None = field(
        default=None,
        metadata={
            "help": "The top-k's noise falls from config.topk_sigma to this; by default it stays.",
            "within": "(0, inf)",
        },
    )
    adam_beta1: float = field(default=0.0, metadata={"help": "Adam's first decay."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Adam's second decay."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values_videos"], metadata={"help": "The clip is its own target."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.adversarial_weight > 0 and self.fp16:
            raise ValueError(
                f"Got fp16 with adversarial_weight={self.adversarial_weight}, expected bf16 or float32: accelerate's single "
                "loss scale cannot serve two optimizers, so use --bf16."
            )


@dataclass
class SelectionArguments:
    """The scores that choose the tokens that the tokenizer keeps in training."""

    selection: list[str] = field(
        default_factory=lambda: ["learned"],
        metadata={"help": "learned (the scorer), random, uniform, motion, everest, flow; each batch draws one."},
    )


@dataclass
class LVMAEPreTrainingArguments(VideoTrainingArguments):
    """Defaults of VideoMAE's recipe, which the paper follows: AdamW (0.9, 0.95), decay 0.05, 1.5e-4 x batch / 256, no clipping.

    The rate rises for 5 % of the steps (VideoMAE: 40 of 800 epochs) and falls on a cosine to 1/15 of the peak (1e-5 of 1.5e-4).
    """

    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up; below 1, a share of all steps (VideoMAE: 40 epochs)."}
    )
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr",
        metadata={
            "help": "Schedule of the learning rate; this one ends at 1/15 of the peak unless lr_scheduler_kwargs says else."
        },
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest norm of the gradient; 0 = no clipping."})

    default_rates: ClassVar[dict[str, float]] = {"base_learning_rate": 1.5e-4}

    raft_weights: str | None = field(
        default=None,
        metadata={"help": "RAFT-small's weights for decoder_mask=flow; default: torch hub cache, else DIS."},
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, not for biases and norms."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second decay."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation keeps only the loss."})
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "No labels: clips or a cache give targets."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": 1 / 15}


@dataclass
class LVMAEClassificationArguments(VideoTrainingArguments):
    """Defaults of VideoMAE's fine-tuning recipe: AdamW (0.9, 0.999), decay 0.05, layer decay 0.75, cosine.

    Without `learning_rate` and `base_learning_rate` (VideoMAE: 5e-4), the peak learning rate is 5e-5.

    Off by default, because small datasets and short runs do not need them: MixUp, CutMix, `label_smoothing_factor` (VideoMAE: 0.1)
    and averaged weights. Mixing and label smoothing apply to training only. Evaluation uses plain labels.
    """

    default_rates: ClassVar[dict[str, float]] = {"learning_rate": 5e-5}

    layer_decay: float = field(
        default=0.75,
        metadata={
            "help": "An encoder layer's learning rate is this times the next layer's; 1 = equal.",
            "within": "(0, 1]",
        },
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "MixUp's Beta parameter (VideoMAE: 0.8); 0 = none. Needs two clips a device.",
            "within": "[0, inf)",
        },
    )
    cutmix_alpha: float = field(
        default=0.0,
        metadata={
            "help": "CutMix's Beta parameter (VideoMAE: 1.0); 0 = none. If both, one per batch.",
            "within": "[0, inf)",
        },
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of averaged weights (EMA); 0 = off.", "within": "[0, 1)"}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, not for biases and norms."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Key of class ids."})
