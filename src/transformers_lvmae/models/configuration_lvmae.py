"""LVMAE's configuration: a VideoMAE-style ViT over 128 frames and its masked decoder."""

import copy
import math
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils.type_validators import interval


# Ranges of the config's numbers, checked whenever one is set. The upper ends stop a damaged config from building for hours.
SIZE, DEPTH = interval(min=1, max=2**16), interval(min=1, max=1000)
SHARE = interval(min=0, max=1, exclude_max=True)
MOST_PARAMETERS = 10**12  # of a model


class DecoderMask(NamedTuple):
    """How the tokens that the decoder reconstructs are chosen.

    Args:
        scores: name of the scores that rank the tokens; None for a mask that decodes every hidden token.
        random_besides: True draws a share `decoder_random_ratio` of the tokens at random from the tokens that the scores did not
            choose. With False, the scores choose this share too, so that all masks decode the same number of tokens.
    """

    scores: str | None
    random_besides: bool = False


# All values of `LVMAEConfig.decoder_mask`. `targets/token_scores.py` computes the scores.
DECODER_MASKS = {
    "none": DecoderMask(None),
    "random": DecoderMask("random"),
    "uniform": DecoderMask("uniform"),
    "motion": DecoderMask("motion", random_besides=True),
    "flow": DecoderMask("flow", random_besides=True),
    "everest": DecoderMask("everest", random_besides=True),
    "adaptive": DecoderMask("learned"),
    "adaptive_random": DecoderMask("learned", random_besides=True),
}


@strict
class LVMAEConfig(PreTrainedConfig):
    r"""
    Configuration of [`LVMAEModel`], [`LVMAEForPreTraining`] and [`LVMAEForVideoClassification`]. The defaults are the
    paper's base model: ViT-B, 128 frames of 224 x 224 pixels, 64 x 14 x 14 = 12,544 tokens, of which pre-training hides
    90 % from the encoder and decodes 15 %. Other sizes: [`LVMAEConfig.from_size`].

    `image_size` and `num_frames` describe the clips that the model is made for. The same weights also take other sizes and lengths,
    because positions are computed. Only `num_channels`, `patch_size` and `tubelet_size` decide the shapes of weights.

    Args:
        image_size (`int` or pair (height, width), defaults to 224): size of a frame in pixels; a multiple of `patch_size`.
        patch_size (`int`, defaults to 16): height and width of a tubelet in pixels.
        num_channels (`int`, defaults to 3): channels of a frame.
        num_frames (`int`, defaults to 128): frames of a clip; a multiple of `tubelet_size`. The video-classification
            pipeline samples this number.
        tubelet_size (`int`, defaults to 2): frames of a tubelet.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: the encoder (ViT-B: 768, 12, 12, 3072).
        hidden_act (`str`, defaults to `"gelu"`): the MLPs' activation.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default 0): dropout in the layers.
        drop_path_rate (`float`, defaults to 0): stochastic depth: the drop rate rises linearly from 0 to this.
        initializer_range (`float`, defaults to 0.02): standard deviation of the weights at the start.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of the LayerNorms, as in the original VideoMAE.
        qv_bias (`bool`, defaults to `True`): biases of the query and value projections; the key projection has none, as in
            VideoMAE.
        position_embedding (`"factorized"` or `"flattened"`, defaults to `"factorized"`): the sines that say where a token lies.

            - `"factorized"`: sines of time, row and column, each in a third of the vector;
            - `"flattened"`: sines of the token's number in the clip (VideoMAE, the paper, and version 0.1). A saved config without
              this field is read as flattened.
        position_grid_size (`tuple[int]`, *optional*): the token grid (t, h, w) that positions are scaled to, by default
            `grid_size`. A clip of any other size and length spans this grid: a token keeps its place in the picture, and its time as
            a share of the clip, which by default spans the whole video. `from_pretrained(..., image_size=...)` and other overrides of
            the clips' size keep the saved model's grid.
        final_layer_norm (`bool`, defaults to `True`): LayerNorm after the encoder. VideoMAE classifiers that pool the mean
            have none; `scripts/convert_videomae.py` sets this field.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size: the
            decoder (384, 4, 6, 1536).
        mask_ratio (`float`, defaults to 0.9): share of the tokens hidden from the encoder.
        encoder_mask (`str`, defaults to `"tube"`): which tokens are hidden; every choice hides the same number.

            - `"tube"`: the same random cells in every time slot (VideoMAE, the paper);
            - `"random"`: random tokens of the whole clip.
        decoder_mask (`str`, defaults to `"adaptive_random"`): which tokens of the whole clip are decoded in [`LVMAEPreTrainer`].
            All choices but `"none"` decode `token_budget` tokens, a share of (1 - `decoder_mask_ratio`) + `decoder_random_ratio`.

            - `"none"`: every hidden token;
            - `"random"`: random tokens;
            - `"uniform"`: whole time slots in bit-reversed order, nearly evenly spaced at every budget. The last one may be in part;
            - `"motion"`, `"flow"`, `"everest"`: the tokens with the largest frame difference, optical flow, or distance of the
              patch embedding from the previous slot's; and a share `decoder_random_ratio` at random;
            - `"adaptive"`: the tokens that are most important to the tokenizer;
            - `"adaptive_random"`: these, and a share `decoder_random_ratio` at random (the paper's choice).
        decoder_mask_ratio (`float`, defaults to 0.9): the tokens with the highest scores are decoded, a share of
            1 - `decoder_mask_ratio` of all tokens (`decoder_mask_ratio` is the paper's rho_d).
        decoder_random_ratio (`float`, defaults to 0.05): share of all tokens that are decoded at random in addition (rho_r).
        target_type (`str`, defaults to `"codes"`): what the decoder predicts.

            - `"codes"`: the tokenizer's codes, by squared error;
            - `"latents"`: the values that the tokenizer rounds to codes, on the same scale, by squared error;
            - `"levels"`: the level of each channel of the code, by cross-entropy in each channel;
            - `"pixels"`: the pixels of the tubelet, by squared error (the paper's baseline).
        levels (`tuple[int]`, defaults to six times 8): FSQ levels of the tokenizer whose codes are predicted. The decoder has
            one output for each channel, or for each level with `target_type="levels"`.
        norm_pix_loss (`bool`, defaults to `True`): standardize each channel of a target tubelet by its own mean and deviation;
            only for pixels.
        pooling (`"mean"` or `"class_attention"`, defaults to `"mean"`): how the classifier pools tokens: their mean, or
            one CaiT class-attention layer (the paper's choice for ViT-L).
        tube_drop_ratio (`float`, defaults to 0.2): share of the tubes that the classifier's encoder does not see in training
            (paper: 0.2 for ViT-B and 0.25 for ViT-L at 128 frames, 0 at 32 and 64). In evaluation it sees all.
        token_keep_ratio (`float`, defaults to 1): share of the tokens that [`LVMAEModel`] and the classifier look at, in training and in
            evaluation; at least one token. Pre-training has its own mask and does not use it.
        token_selection (`str`, defaults to `"learned"`): which tokens are kept with `token_keep_ratio` below 1.

            - `"learned"`: the most important tokens. The tokenizer's scorer becomes part of the model, frozen
              ([`LVMAEModel.set_token_scorer`]);
            - `"motion"`, `"everest"`: the tokens with the largest frame difference, or distance of their pixels from the previous slot's;
            - `"random"`, `"uniform"`: random tokens, or whole time slots, nearly evenly spaced.
        token_random_ratio (`float`, defaults to 0): share of all tokens that are drawn at random. It is a part of `token_keep_ratio`; the
            scores choose the rest.
        token_score_threshold (`float`, *optional*): keep the tokens whose score is at least this, at least one of a clip, so that a clip
            where more happens keeps more. A clip keeps at most a share `token_keep_ratio`; in training, the clips of a batch share
            this budget, and its best tokens are kept. Scores of `"motion"` lie in [0, 1]; learned ones have no
            fixed range.
        scorer_is_trained (`bool`, defaults to `False`): whether the scorer has the weights of a tokenizer ([`LVMAEModel.set_token_scorer`]).
            Training, evaluation and features refuse a model that chooses tokens by random weights.
        scorer_patch_size, scorer_hidden_size (`int`, default 8 and 64): the scorer's pixels per side of a token, and its channels, as in the
            tokenizer's config. Clips are resized for it.
        image_mean, image_std (`list[float]`, default ImageNet's): by what the processor standardizes pixels. Scores need pixels in [0, 1].
        label_sets (`dict[str, list[int]]`, *optional*): for videos with several labels, such as EPIC-Kitchens' verb and noun:
            the name of each set, and the range [first, end) of its classes among the `num_labels` outputs. Together they cover
            all outputs. Without it, a video has one label. [`LVMAEConfig.label_fields`] makes it from class names.
        recompute_activations (`bool`, defaults to `True`): recompute the outputs of norms and activations in backward
            instead of keeping them. This needs a third less memory and 0.5 % more CPU time, and gives bit-equal gradients
            (`python benchmarks/run.py --cases step`, medians of six runs). Switch it off for `torch.func`. Version 0.1 called
            it `rebuild_activations`, which still works.
    """

    model_type = "lvmae"
    attribute_map = {"rebuild_activations": "recompute_activations"}
    # Trainer.predict does not collect them: the first has no axis for clips, and the others say where tokens are.
    keys_to_ignore_at_inference = ["channel_losses", "visible_positions", "token_mask"]

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = SIZE(default=16)
    num_channels: int = SIZE(default=3)
    num_frames: int = SIZE(default=128)
    tubelet_size: int = SIZE(default=2)
    hidden_size: int = SIZE(default=768)
    num_hidden_layers: int = DEPTH(default=12)
    num_attention_heads: int = SIZE(default=12)
    intermediate_size: int = SIZE(default=3072)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = SHARE(default=0.0)
    attention_probs_dropout_prob: float | int = SHARE(default=0.0)
    drop_path_rate: float | int = SHARE(default=0.0)
    initializer_range: float = interval(min=0, max=1)(default=0.02)
    layer_norm_eps: float = interval(min=0, max=1, exclude_min=True)(default=1e-6)
    qv_bias: bool = True
    position_embedding: Literal["factorized", "flattened"] = "factorized"
    position_grid_size: list[int] | tuple[int, ...] | None = None
    final_layer_norm: bool = True
    decoder_hidden_size: int = SIZE(default=384)
    decoder_num_hidden_layers: int = DEPTH(default=4)
    decoder_num_attention_heads: int = SIZE(default=6)
    decoder_intermediate_size: int = SIZE(default=1536)
    mask_ratio: float | int = SHARE(default=0.9)
    encoder_mask: Literal["tube", "random"] = "tube"
    decoder_mask: str = "adaptive_random"
    decoder_mask_ratio: float | int = SHARE(default=0.9)
    decoder_random_ratio: float | int = SHARE(default=0.05)
    target_type: Literal["codes", "latents", "levels", "pixels"] = "codes"
    levels: list[int] | tuple[int, ...] = (8, 8, 8, 8, 8, 8)
    norm_pix_loss: bool = True
    pooling: Literal["mean", "class_attention"] = "mean"
    tube_drop_ratio: float | int = SHARE(default=0.2)
    token_keep_ratio: float | int = interval(min=0, max=1, exclude_min=True)(default=1.0)
    token_selection: Literal["learned", "motion", "everest", "random", "uniform"] = "learned"
    token_random_ratio: float | int = interval(min=0, max=1)(default=0.0)
    token_score_threshold: float | int | None = None
    scorer_is_trained: bool = False
    scorer_patch_size: int = SIZE(default=8)
    scorer_hidden_size: int = SIZE(default=64)
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    label_sets: dict[str, list[int]] | None = None
    recompute_activations: bool = True

    @classmethod
    def from_size(cls, size: Literal["small", "base", "large", "huge"], **overrides) -> "LVMAEConfig":
        """Return the config of a ViT of this size and its decoder (VideoMAE V2's table); `overrides` are fields of the config."""
        if size not in LVMAE_SIZES:
            raise ValueError(f"Got size={size!r}, expected one of {sorted(LVMAE_SIZES)}: choose one of them.")
        return cls(**{**LVMAE_SIZES[size], **overrides})

    def for_frames(self, num_frames: int) -> "LVMAEConfig":
        """Return this config for clips of another length, with as many visible, decoded and chosen tokens as now.

        A step then costs the same, but for what is done to every token: scores and targets. From 128 to 512 frames, `mask_ratio` and
        `decoder_mask_ratio` rise from 0.9 to 0.975, and `decoder_random_ratio` falls from 0.05 to 0.0125. A `token_keep_ratio` of 1 stays.
        Positions stay scaled to the present grid, so that weights of this config fit.
        """
        share = self.num_frames / num_frames
        config = copy.deepcopy(self)
        config.position_grid_size = list(self.position_grid)
        config.num_frames = num_frames
        for name in ("mask_ratio", "decoder_mask_ratio"):
            setattr(config, name, round(1 - (1 - getattr(self, name)) * share, 9))
        chosen = ("token_keep_ratio", "token_random_ratio") if self.token_keep_ratio < 1 else ()
        for name in ("decoder_random_ratio", *chosen):
            setattr(config, name, round(getattr(self, name) * share, 9))
        config.validate_architecture()
        return config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """Build a saved config. Version 0.1 had flattened positions. Overrides of the clips' size, and changes later, keep its grid of positions."""
        saved = {"position_embedding": "flattened", **config_dict}
        trained = cls(**saved).position_grid
        made = super().from_dict(saved, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        if "position_grid_size" not in kwargs:
            config.position_grid_size = list(trained)  # so that it stays, whatever is set later
        return made

    @classmethod
    def from_json_file(cls, json_file: Any) -> "LVMAEConfig":
        """As [`LVMAEConfig.from_dict`], of a file."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @staticmethod
    def label_fields(class_names: dict[str, list[str]]) -> dict[str, Any]:
        """Return the config's fields for {name of a label set: names of its classes}, in the order of the labels' columns.

        For one set, these are `id2label` and `label2id` of an ordinary classifier. For several sets, they include `label_sets`,
        and classes have names such as "verb: cut".
        """
        names = list(next(iter(class_names.values())))
        fields: dict[str, Any] = {}
        if len(class_names) > 1:
            names = [f"{label_set}: {name}" for label_set, classes in class_names.items() for name in classes]
            ends = list(accumulate(len(classes) for classes in class_names.values()))
            fields["label_sets"] = {name: [first, end] for name, first, end in zip(class_names, [0, *ends], ends)}
        return {**fields, "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    @property
    def label_slices(self) -> dict[str, slice]:
        """The slice of the logits for each label set, in the order of the labels' columns; empty without label sets."""
        ranges = sorted((self.label_sets or {}).items(), key=lambda item: item[1])
        return {name: slice(first, end) for name, (first, end) in ranges}

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a clip of `num_frames` frames of `image_size` pixels."""
        height, width = self.frame_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def position_grid(self) -> tuple[int, int, int]:
        """The grid (t, h, w) that positions are scaled to."""
        slots, height, width = self.position_grid_size or self.grid_size
        return slots, height, width

    @property
    def seq_length(self) -> int:
        """Tokens of a clip, N = t * h * w."""
        slots, height, width = self.grid_size
        return slots * height * width

    @property
    def token_budget(self) -> int:
        """Tokens decoded per clip of `num_frames` frames."""
        if self.decoder_mask == "none":
            slots, height, width = self.grid_size
            return slots * int(self.mask_ratio * height * width)
        return sum(self.decoder_token_counts(self.seq_length))

    @property
    def decoder_scores(self) -> str | None:
        """Name of the scores by which `decoder_mask` ranks tokens; None for `"none"`."""
        return DECODER_MASKS[self.decoder_mask].scores

    def decoder_token_counts(self, seq_length: int) -> tuple[int, int]:
        """Return how many of `seq_length` tokens are chosen by scores, and how many at random, both rounded down.

        With `decoder_mask="none"`, the numbers have no meaning: every hidden token is decoded.
        """
        # In floating point 1 - 0.9 is slightly less than 0.1. Round first, or 100 of 1,000 tokens become 99.
        chosen = int(round((1 - self.decoder_mask_ratio) * seq_length, 6))
        drawn = int(round(self.decoder_random_ratio * seq_length, 6))
        return (chosen, drawn) if DECODER_MASKS[self.decoder_mask].random_besides else (chosen + drawn, 0)

    def kept_token_counts(self, candidates: int) -> tuple[int, int]:
        """Return how many of `candidates` tokens are kept by scores, and how many at random, rounded down; at least one in all."""
        kept = max(1, int(round(self.token_keep_ratio * candidates, 6)))
        drawn = int(round(self.token_random_ratio * candidates, 6))
        return kept - drawn, drawn

    @property
    def target_size(self) -> int:
        """How many numbers the decoder predicts for a token."""
        if self.target_type == "pixels":
            return self.tubelet_size * self.patch_size**2 * self.num_channels
        return sum(self.levels) if self.target_type == "levels" else len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of different codes: the product of the levels."""
        return math.prod(self.levels)

    def validate_architecture(self) -> None:
        """Check fields against each other; raise ValueError if they do not fit. Building a model calls this again."""
        self._check_lists()
        if self.decoder_mask not in DECODER_MASKS:
            raise ValueError(f"Got decoder_mask={self.decoder_mask!r}, expected one of {[*DECODER_MASKS]}: choose one.")
        for name, heads in [
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ]:
            size, number = getattr(self, name), getattr(self, heads)
            if size % number or size % 2:
                raise ValueError(
                    f"Got {name}={size} with {heads}={number}, expected an even multiple of it: change one."
                )
            if self.position_embedding == "factorized" and size < 6:
                raise ValueError(
                    f"Got {name}={size} with position_embedding='factorized', expected at least 6, a sine and a cosine for each axis: "
                    "widen it or use 'flattened'."
                )
        height, width = self.frame_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Got image_size={self.image_size} and patch_size={self.patch_size}, expected a multiple of the patch: "
                f"use {height // self.patch_size * self.patch_size} x {width // self.patch_size * self.patch_size} pixels "
                "or another patch_size."
            )
        if self.num_frames % self.tubelet_size:
            raise ValueError(
                f"Got num_frames={self.num_frames} and tubelet_size={self.tubelet_size}, expected a multiple of the "
                f"tubelet: use {self.num_frames // self.tubelet_size * self.tubelet_size} frames."
            )
        self._check_parameters()
        self._check_label_sets()
        if self.token_random_ratio > self.token_keep_ratio:
            raise ValueError(
                f"Got token_random_ratio={self.token_random_ratio} and token_keep_ratio={self.token_keep_ratio}, expected at most as "
                "many random tokens as are kept: lower token_random_ratio."
            )
        if self.token_score_threshold is not None and (self.token_keep_ratio == 1 or self.token_random_ratio > 0):
            raise ValueError(
                f"Got token_score_threshold={self.token_score_threshold} with token_keep_ratio={self.token_keep_ratio} and "
                f"token_random_ratio={self.token_random_ratio}, expected a keep ratio below 1 (the most that a batch keeps) and no random "
                "tokens: change them."
            )
        if self.decoder_random_ratio > self.decoder_mask_ratio:
            raise ValueError(
                f"Got decoder_random_ratio={self.decoder_random_ratio} and decoder_mask_ratio={self.decoder_mask_ratio}, "
                "expected at most as many random tokens as the scores leave out: lower decoder_random_ratio."
            )

    def _check_lists(self) -> None:
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else list(self.image_size)
        if len(sides) != 2 or not all(self.patch_size <= side <= 2**16 for side in sides):
            raise ValueError(
                f"Got image_size={self.image_size}, expected one side or (height, width), from patch_size={self.patch_size} to "
                f"{2**16} pixels: correct it."
            )
        for name in ("image_mean", "image_std"):
            if self.token_keep_ratio < 1 and len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"Got {name}={getattr(self, name)} for {self.num_channels} channels, expected one number a channel: take the "
                    "processor's."
                )
        grid = self.position_grid_size
        if grid is not None and (len(grid) != 3 or not all(1 <= tokens <= 2**16 for tokens in grid)):
            raise ValueError(
                f"Got position_grid_size={grid}, expected the tokens (t, h, w) of a clip: leave it out for those of num_frames and "
                "image_size."
            )
        if not 2 <= min(self.levels, default=0) <= max(self.levels) <= 2**16 or self.codebook_size >= 2**63:
            raise ValueError(
                f"Got levels={tuple(self.levels)}, expected 2 to {2**16} levels in each channel and fewer than 2^63 codes: take the "
                "tokenizer's levels."
            )

    def _check_parameters(self) -> None:
        encoder, decoder = (
            depth * 2 * size * (2 * size + inner)
            for depth, size, inner in (
                (self.num_hidden_layers, self.hidden_size, self.intermediate_size),
                (self.decoder_num_hidden_layers, self.decoder_hidden_size, self.decoder_intermediate_size),
            )
        )
        if encoder + decoder > MOST_PARAMETERS:
            raise ValueError(
                f"Got layers of {encoder + decoder:.0e} parameters, expected at most {MOST_PARAMETERS:.0e}: check the config's sizes."
            )

    def _check_label_sets(self) -> None:
        if self.label_sets is None:
            return
        ranges = sorted(self.label_sets.values())
        ends = [0, *(end for *_, end in ranges)]
        tiled = all(len(pair) == 2 and pair[0] == end < pair[1] for pair, end in zip(ranges, ends))
        if not tiled or len(ranges) < 2 or ends[-1] != self.num_labels:
            raise ValueError(
                f"Got label_sets={self.label_sets} with num_labels={self.num_labels}, expected two or more ranges [first, end) "
                "that follow each other from 0 to num_labels: make them with LVMAEConfig.label_fields."
            )


LVMAE_SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
              "decoder_hidden_size": 192, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 768},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
              "decoder_hidden_size": 512, "decoder_num_attention_heads": 8, "decoder_intermediate_size": 2048},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120,
             "decoder_hidden_size": 512, "decoder_num_attention_heads": 8, "decoder_intermediate_size": 2048},
}  # fmt: skip

__all__ = ["LVMAEConfig"]
