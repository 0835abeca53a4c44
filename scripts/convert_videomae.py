"""Convert a transformers VideoMAE checkpoint (folder or Hub id) into the LVMAE class that corresponds.

    python scripts/convert_videomae.py MCG-NJU/videomae-base runs/videomae-base-128 --num_frames 128

VideoMAEModel becomes LVMAEModel, VideoMAEForPreTraining LVMAEForPreTraining with pixel targets, and VideoMAEForVideoClassification
LVMAEForVideoClassification; which one, the checkpoint's config says. Positions are computed, so --num_frames changes no weight.
The source's processor comes along where there is one.
"""

import argparse
from typing import Any

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VideoMAEVideoProcessor,
)
from transformers.utils import cached_file

from transformers_lvmae import (
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEModel,
    LVMAEVideoProcessor,
)


CLASSES: dict[str, tuple[Any, Any]] = {
    "VideoMAEModel": (VideoMAEModel, LVMAEModel),
    "VideoMAEForPreTraining": (VideoMAEForPreTraining, LVMAEForPreTraining),
    "VideoMAEForVideoClassification": (VideoMAEForVideoClassification, LVMAEForVideoClassification),
}
SAME_FIELDS = [
    "image_size", "num_channels", "num_frames", "tubelet_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
    "layer_norm_eps", "qv_bias", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads",
    "decoder_intermediate_size", "norm_pix_loss", "id2label", "label2id", "problem_type",
]  # fmt: skip
PROCESSOR_FIELDS = [
    "size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor",
    "do_resize", "do_center_crop", "do_rescale", "do_normalize",
]  # fmt: skip
# In this order: the attention's output.dense must be gone before the MLP's.
RENAMES = {
    "videomae.": "lvmae.",
    "encoder.layer.": "encoder.layers.",
    "decoder.decoder_layers.": "decoder.layers.",
    "decoder.norm.": "decoder.layernorm.",
    "encoder_to_decoder.": "decoder.embed.",
    "mask_token": "decoder.mask_token",
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.out_proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "layer_norm1.",
    "layernorm_after.": "layer_norm2.",
}


def architecture_of(config: PreTrainedConfig) -> str | None:
    """Name of the class that a checkpoint was saved from."""
    return config.architectures[0] if config.architectures else None


def convert_config(source: VideoMAEConfig, num_frames: int | None = None) -> LVMAEConfig:
    """The LVMAE config of the same model; raises ValueError on what LVMAE has no counterpart for."""
    patch = source.patch_size if isinstance(source.patch_size, int) else tuple(source.patch_size)
    if not isinstance(patch, int) and patch[0] != patch[1]:
        raise ValueError(
            f"Got patch_size={patch}, expected a square: LVMAE has square patches only, retrain the model."
        )
    architecture = architecture_of(source)
    if architecture == "VideoMAEForVideoClassification" and not source.use_mean_pooling:
        raise ValueError(
            "Got a classifier with use_mean_pooling=False, which reads the first token, expected mean pooling: convert its "
            "encoder, saved as VideoMAEModel, and train a new classifier."
        )
    if architecture == "VideoMAEForPreTraining" and not source.norm_pix_loss:
        raise ValueError(
            "Got norm_pix_loss=False, so a decoder of pixels in [0, 1], expected norm_pix_loss=True: LVMAE predicts pixels as "
            "they come, normalised. Convert its encoder, saved as VideoMAEModel, and train a new decoder."
        )
    fields = {name: getattr(source, name) for name in SAME_FIELDS}
    return LVMAEConfig(
        **{**fields, "num_frames": source.num_frames if num_frames is None else num_frames},
        patch_size=patch if isinstance(patch, int) else patch[0],
        final_layer_norm=not source.use_mean_pooling,
        target_type="pixels",
        decoder_mask="none",
    )


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """VideoMAE's weights under LVMAE's names; the 3D convolution becomes a Linear."""
    converted = {}
    for name, tensor in state_dict.items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        is_projection = name.endswith("patch_embeddings.projection.weight")
        converted[name] = tensor.flatten(1) if is_projection else tensor
    return converted


def convert_processor(src: str) -> LVMAEVideoProcessor | None:
    """The source's preprocessing as an LVMAE processor, or None where the source has none."""
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    if not any(cached_file(src, name, _raise_exceptions_for_missing_entries=False) for name in names):
        return None
    settings = VideoMAEVideoProcessor.from_pretrained(src).to_dict()
    return LVMAEVideoProcessor(**{name: settings[name] for name in PROCESSOR_FIELDS})


def convert(src: str, dst: str, num_frames: int | None = None) -> None:
    """Read the VideoMAE checkpoint `src` and write the LVMAE checkpoint `dst`, for clips of `num_frames` frames.

    Raises:
        ValueError: `src` is no VideoMAE, has no counterpart in LVMAE, or its weights do not fit its config.
    """
    config = AutoConfig.from_pretrained(src)
    architecture = architecture_of(config)
    if not isinstance(config, VideoMAEConfig) or architecture not in CLASSES:
        raise ValueError(
            f"Got {src} with model_type={config.model_type!r} and architectures={config.architectures}, expected 'videomae' and "
            f"one of {sorted(CLASSES)}: give another checkpoint, or name the class in its config.json."
        )
    source_class, target_class = CLASSES[architecture]
    target = target_class(convert_config(config, num_frames))
    source, report = source_class.from_pretrained(src, output_loading_info=True)
    if faults := {name: sorted(keys) for name, keys in report.items() if keys}:
        raise ValueError(
            f"Got {src} with {faults}, expected the weights of {architecture}, all and no others: repair it."
        )
    target.to(source.dtype).load_state_dict(convert_state_dict(source.state_dict()))
    target.save_pretrained(dst)
    processor = convert_processor(src)
    if processor is not None:
        processor.save_pretrained(dst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", help="folder or Hub id of a transformers VideoMAE")
    parser.add_argument("dst", help="folder to write")
    parser.add_argument("--num_frames", type=int, help="frames of the clips that it is for; by default the source's")
    convert(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
