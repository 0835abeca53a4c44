"""Arguments of the three trainers, and which model they start from."""

import json
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments

from .learning_rates import scaled_learning_rate


def parse_arguments(*dataclass_types: type) -> tuple[Any, ...]:
    """Parse the command line into one instance of each dataclass; an unknown option ends the script with its name."""
    return HfArgumentParser(dataclass_types).parse_args_into_dataclasses()  # type: ignore[arg-type]


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of weights to start from; without it, a new model."}
    )
    config_overrides: str = field(default="{}", metadata={"help": "Config fields as JSON: '{\"image_size\": 64}'."})

    def overrides(self, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
        """Return `config_overrides` as a dict; raise ValueError on fields that the config does not have."""
        former = config_class.attribute_map
        overrides = {former.get(name, name): value for name, value in json.loads(self.config_overrides).items()}
        known = {item.name for item in fields(config_class)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(
                f"Got config_overrides with {unknown}, expected fields of {config_class.__name__}: correct the spelling "
                f"(it has {sorted(known - {item.name for item in fields(PreTrainedConfig)})})."
            )
        return overrides


@dataclass
class VideoTrainingArguments(TrainingArguments):
    """Defaults that the three trainers share."""

    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Clips are made from the video column."})


@dataclass
class FSQMagViTTrainingArguments(VideoTrainingArguments):
    """Defaults of MAGVIT's recipe: Adam (0, 0.99), 1e-4, cosine, no weight decay.

    Terms that cost more time or need another model are off by default: the adversarial term (MAGVIT: `adversarial_weight=0.1`) and
    the perceptual term (MAGVIT: a ResNet-50 as `perceptual_model`). So are averaged weights (MAGVIT: `ema_decay=0.999`), because they
    average over the last thousand steps, and a short run has fewer.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of encoder and decoder."})
    scorer_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the token scorer; without it, the same as the rest."}
    )
    adversarial_weight: float = field(
        default=0.0, metadata={"help": "Weight of the adversarial term (MAGVIT: 0.1); 0 builds no discriminator."}
    )
    adversarial_start_step: int = field(default=0, metadata={"help": "Step at which the adversarial term starts."})
    discriminator_channels: int = field(default=64, metadata={"help": "Discriminator width (MAGVIT-B 64, L 128)."})
    discriminator_multipliers: list[int] = field(
        default_factory=lambda: [2, 4, 4, 4, 4],
        metadata={"help": "The discriminator's width after each halving, as multiples of discriminator_channels."},
    )
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the discriminator; without it, learning_rate."}
    )
    r1_weight: float = field(
        default=10.0, metadata={"help": "Weight of the squared gradient on real clips (twice it is StyleGAN's gamma)."}
    )
    perceptual_model: str | None = field(
        default=None,
        metadata={"help": "Image classifier whose logits are compared: folder or Hub id; by default none."},
    )
    perceptual_weight: float = field(default=0.1, metadata={"help": "Weight of the perceptual term."})
    perceptual_frames: int | None = field(
        default=None, metadata={"help": "Frames of a clip that it compares, drawn in every step; by default all."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of averaged weights, evaluated and saved (MAGVIT: 0.999); 0 keeps none."}
    )
    topk_sigma_end: float | None = field(
        default=None, metadata={"help": "The top-k's noise falls from config.topk_sigma to this; by default it stays."}
    )
    adam_beta1: float = field(default=0.0, metadata={"help": "Adam's first decay."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Adam's second decay."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values_videos"], metadata={"help": "The clip is its own target."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("adversarial_weight", "r1_weight", "perceptual_weight", "adversarial_start_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"Got {name}={getattr(self, name)}, expected at least 0: leave it at 0 for none.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"Got ema_decay={self.ema_decay}, expected a decay in [0, 1): 0 switches it off.")
        if self.perceptual_frames is not None and self.perceptual_frames < 1:
            raise ValueError(f"Got perceptual_frames={self.perceptual_frames}, expected at least 1: raise it.")
        if self.adversarial_weight > 0 and self.fp16:
            raise ValueError(
                f"Got fp16 with adversarial_weight={self.adversarial_weight}, expected bf16 or float32: accelerate's single "
                "loss scale cannot serve two optimizers, so use --bf16."
            )
        if self.topk_sigma_end is not None and self.topk_sigma_end <= 0:
            raise ValueError(f"Got topk_sigma_end={self.topk_sigma_end}, expected a positive number: raise it.")


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

    base_learning_rate: float | None = field(
        default=1.5e-4, metadata={"help": "Learning rate for a batch of 256, scaled to the run's batch."}
    )
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
        if self.base_learning_rate is not None:
            self.learning_rate = scaled_learning_rate(self.base_learning_rate, self)


@dataclass
class LVMAEClassificationArguments(VideoTrainingArguments):
    """Defaults of VideoMAE's fine-tuning recipe: AdamW (0.9, 0.999), decay 0.05, layer decay 0.75, cosine.

    Off by default, because small datasets and short runs do not need them: MixUp, CutMix, `label_smoothing_factor` (VideoMAE: 0.1)
    and averaged weights. Mixing and label smoothing apply to training only. Evaluation uses plain labels.
    """

    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate for a batch of 256, scaled to the run's batch (VideoMAE: 5e-4)."}
    )
    layer_decay: float = field(
        default=0.75, metadata={"help": "An encoder layer's learning rate is this times the next layer's; 1 = equal."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "MixUp's Beta parameter (VideoMAE: 0.8); 0 = none. Needs two clips a device."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "CutMix's Beta parameter (VideoMAE: 1.0); 0 = none. If both, one per batch."}
    )
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of averaged weights (EMA); 0 = off."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, not for biases and norms."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Key of class ids."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"Got layer_decay={self.layer_decay}, expected a factor in (0, 1]: 1 switches it off.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"Got {name}={getattr(self, name)}, expected at least 0: leave it at 0 for none.")
        for name in ("ema_decay", "label_smoothing_factor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Got {name}={getattr(self, name)}, expected a share in [0, 1): 0 switches it off.")
        if self.base_learning_rate is not None:
            self.learning_rate = scaled_learning_rate(self.base_learning_rate, self)
