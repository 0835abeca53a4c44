"""Convert VideoMAE checkpoints to LVMAE: checkpoints of transformers (a folder or Hub id) and original .pth files.

`VideoMAEModel` becomes `LVMAEModel`, `VideoMAEForPreTraining` becomes `LVMAEForPreTraining` with pixel targets, and
`VideoMAEForVideoClassification` becomes `LVMAEForVideoClassification`. Positions are computed, so `num_frames` changes no weight.

Original files come from MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2, DeepSpeed's mp_rank_00_model_states.pt included. They have neither
a config nor class names: sizes are read from the weights' shapes, and the number of heads follows from the width. Files are read with
weights_only=True.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
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

from ..models.configuration_lvmae import LVMAEConfig
from ..models.modeling_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from ..models.video_processing_lvmae import LVMAEVideoProcessor


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
# The order matters: the attention's output.dense must be renamed before the MLP's.
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
# The original's names, as regular expressions. Its encoder is called "encoder" only in models that also have a decoder.
ORIGINAL_RENAMES = {
    r"^(encoder\.)?patch_embed\.proj\.": "lvmae.embeddings.patch_embeddings.projection.",
    r"^(encoder\.)?blocks\.": "lvmae.encoder.layers.",
    r"^(encoder\.)?norm\.": "lvmae.layernorm.",
    r"^decoder\.blocks\.": "decoder.layers.",
    r"^decoder\.norm\.": "decoder.layernorm.",
    r"^encoder_to_decoder\.": "decoder.embed.",
    r"^mask_token$": "decoder.mask_token",
    r"^head\.": "classifier.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.([qv])_bias$": r".attention.\1_proj.bias",
    r"\.attn\.([qkv])_proj\.": r".attention.\1_proj.",
    r"\.attn\.proj\.": ".attention.out_proj.",
}
# Added by torch.compile, DDP, detection code and remote code.
ORIGINAL_PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.")
# Number of heads by width, of encoders and decoders.
ORIGINAL_HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16}


def architecture_of(config: PreTrainedConfig) -> str | None:
    """Return the name of the class that a checkpoint was saved from."""
    return config.architectures[0] if config.architectures else None


def convert_config(source: VideoMAEConfig, num_frames: int | None = None) -> LVMAEConfig:
    """Return the LVMAE config of the same model; raise ValueError if LVMAE has no counterpart."""
    patch = source.patch_size if isinstance(source.patch_size, int) else tuple(source.patch_size)
    if not isinstance(patch, int) and patch[0] != patch[1]:
        raise ValueError(f"Got patch_size={patch}, expected a square, as LVMAE's patches are: retrain the model.")
    architecture = architecture_of(source)
    if architecture == "VideoMAEForVideoClassification" and not source.use_mean_pooling:
        raise ValueError(
            "Got a classifier with use_mean_pooling=False, which reads the first token, expected mean pooling: convert its "
            "encoder, saved as VideoMAEModel, and train a new classifier."
        )
    if architecture == "VideoMAEForPreTraining" and not source.norm_pix_loss:
        raise ValueError(
            "Got norm_pix_loss=False, so a decoder of pixels in [0, 1], expected norm_pix_loss=True: LVMAE predicts "
            "normalized pixels. Convert its encoder, saved as VideoMAEModel, and train a new decoder."
        )
    fields = {name: getattr(source, name) for name in SAME_FIELDS}
    sides = [source.image_size] * 2 if isinstance(source.image_size, int) else source.image_size
    grid = [side // (patch if isinstance(patch, int) else patch[0]) for side in sides]
    return LVMAEConfig(
        **{**fields, "num_frames": source.num_frames if num_frames is None else num_frames},
        position_grid_size=[source.num_frames // source.tubelet_size, *grid],
        patch_size=patch if isinstance(patch, int) else patch[0],
        position_embedding="flattened",
        final_layer_norm=not source.use_mean_pooling,
        target_type="pixels",
        decoder_mask="none",
    )


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename VideoMAE's weights to LVMAE's names. The 3D convolution becomes a Linear."""
    converted = {}
    for name, tensor in state_dict.items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        is_projection = name.endswith("patch_embeddings.projection.weight")
        converted[name] = tensor.flatten(1) if is_projection else tensor
    return converted


def convert_processor(src: str) -> LVMAEVideoProcessor | None:
    """Return the source's preprocessing as an LVMAE processor, or None if the source has none."""
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    if not any(cached_file(src, name, _raise_exceptions_for_missing_entries=False) for name in names):
        return None
    settings = VideoMAEVideoProcessor.from_pretrained(src).to_dict()
    return LVMAEVideoProcessor(**{name: settings[name] for name in PROCESSOR_FIELDS})


def convert(src: str, dst: str, num_frames: int | None = None) -> None:
    """Convert the transformers checkpoint `src` and write it to the folder `dst`, with the processor if the source has one.

    Args:
        num_frames: frames of the clips that the model is made for; by default the source's.

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
    target_config, processor = convert_config(config, num_frames), convert_processor(src)
    if processor is not None:
        target_config.image_mean, target_config.image_std = processor.image_mean, processor.image_std
    target = target_class(target_config)
    source, report = source_class.from_pretrained(src, output_loading_info=True)
    if faults := {name: sorted(keys) for name, keys in report.items() if keys}:
        raise ValueError(f"Got {src} with {faults}, expected exactly the weights of {architecture}: repair it.")
    target.to(source.dtype).load_state_dict(convert_state_dict(source.state_dict()))
    target.save_pretrained(dst)
    if processor is not None:
        processor.save_pretrained(dst)


def load_original(path: str) -> dict[str, torch.Tensor]:
    """Read the weights of an original checkpoint, without the containers and prefixes around them.

    Raises:
        ValueError: torch.load(weights_only=True) cannot read the file, or there are no weights in it.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the run's arguments, stored with the weights
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"Got {path}, which torch.load(weights_only=True) refuses ({str(error).splitlines()[0]}), expected tensors in plain "
            "containers: download it again, or, if you trust it, load it with weights_only=False and save its weights alone "
            "with torch.save({'model': weights}, path)."
        ) from error
    for key in ("model", "module"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise ValueError(
            f"Got {path} without weights at its top, under 'model' or under 'module', expected a VideoMAE checkpoint: save its "
            "weights with torch.save({'model': weights}, path)."
        )
    weights = dict(checkpoint)
    while prefix := next((p for p in ORIGINAL_PREFIXES if weights and all(n.startswith(p) for n in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if not any(re.match(r"(encoder\.)?patch_embed\.proj\.weight", name) for name in weights):
        raise ValueError(
            f"Got {path} with {sorted(weights)[:5]}, expected VideoMAE's names (patch_embed.proj.weight, blocks.0.norm1.weight, "
            "...): give another checkpoint."
        )
    return weights


def original_config(
    weights: Mapping[str, torch.Tensor],
    num_frames: int = 16,
    image_size: int = 224,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
) -> LVMAEConfig:
    """Derive the LVMAE config of an original model from the shapes of its weights. The original's norms have an eps of 1e-6.

    Raises:
        ValueError: the number of heads follows neither from the width nor from an argument, patches are not square, or the
            classifier reads the first token.
    """
    encoder = "encoder." if "encoder.patch_embed.proj.weight" in weights else ""
    hidden_size, num_channels, tubelet_size, height, width = weights[f"{encoder}patch_embed.proj.weight"].shape
    if height != width:
        raise ValueError(f"Got patches of {height} x {width}, expected a square, as LVMAE's are: retrain the model.")
    if not encoder and "head.weight" in weights and "norm.weight" in weights:
        raise ValueError(
            "Got a classifier with norm.weight and no fc_norm.weight, which reads the first token, expected mean pooling: save its "
            "weights without head.* to convert the encoder, and train a new classifier."
        )
    fields: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_blocks(weights, encoder),
        "num_attention_heads": heads_of(hidden_size, num_attention_heads, "num_attention_heads"),
        "intermediate_size": weights[f"{encoder}blocks.0.mlp.fc1.weight"].shape[0],
        "qv_bias": f"{encoder}blocks.0.attn.q_bias" in weights,
        "final_layer_norm": f"{encoder}norm.weight" in weights,
        "num_labels": weights["head.weight"].shape[0] if "head.weight" in weights else 0,
    }
    if encoder:
        decoder_size = weights["encoder_to_decoder.weight"].shape[0]
        heads = heads_of(decoder_size, decoder_num_attention_heads, "decoder_num_attention_heads")
        fields |= {
            "decoder_hidden_size": decoder_size,
            "decoder_num_hidden_layers": count_blocks(weights, "decoder."),
            "decoder_num_attention_heads": heads,
            "decoder_intermediate_size": weights["decoder.blocks.0.mlp.fc1.weight"].shape[0],
        }
    return LVMAEConfig(
        image_size=image_size,
        patch_size=height,
        num_channels=num_channels,
        num_frames=num_frames,
        tubelet_size=tubelet_size,
        position_embedding="flattened",
        target_type="pixels",
        **fields,
    )


def count_blocks(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Count the transformer layers under `prefix`, which is "" for a model without a decoder."""
    return sum(re.fullmatch(rf"{re.escape(prefix)}blocks\.\d+\.norm1\.weight", name) is not None for name in weights)


def heads_of(width: int, given: int | None, option: str) -> int:
    """Return the given number of attention heads, or by default that of the original models of this width."""
    heads = ORIGINAL_HEADS.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"Got a width of {width}, expected one of {sorted(ORIGINAL_HEADS)}: give --{option}.")
    return heads


def convert_original_state_dict(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the original's weights to LVMAE's names. The joint matrix of query, key and value is split into three."""
    split: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(".attn.qkv.weight"):
            split |= {name.replace(".qkv.", f".{part}_proj."): rows for part, rows in zip("qkv", tensor.chunk(3))}
        else:
            split[name] = tensor.flatten(1) if name.endswith("patch_embed.proj.weight") else tensor
    converted = {}
    for name, tensor in split.items():
        for old, new in ORIGINAL_RENAMES.items():
            name = re.sub(old, new, name)
        converted[name] = tensor.contiguous()
    return converted


def convert_original(src: str, dst: str, num_frames: int | None = None, **options: Any) -> None:
    """Convert the original checkpoint `src` (a file) and write it to the folder `dst`, with a processor for its clips.

    Args:
        num_frames: frames of the clips that the model is made for; by default 16.
        options: as [`original_config`].

    Raises:
        ValueError: as [`load_original`] and [`original_config`], or LVMAE has no counterpart of some weights.
    """
    weights = load_original(src)
    config = original_config(weights, **options)  # the originals were trained on 16 frames
    config.position_grid_size = list(config.grid_size)
    config.num_frames = num_frames or config.num_frames
    config.validate_architecture()
    converted = convert_original_state_dict(weights)
    model: Any
    if "decoder.embed.weight" in converted:
        model = LVMAEForPreTraining(config)
    elif "fc_norm.weight" in converted:
        model = LVMAEForVideoClassification(config)
    else:
        model = LVMAEModel(config)
        converted = {name.removeprefix("lvmae."): tensor for name, tensor in converted.items()}
    names = model.state_dict().keys()
    if faults := sorted(names ^ converted.keys()):
        raise ValueError(
            f"Got {src}, of which {sorted(converted.keys() - names)} have no counterpart in {type(model).__name__} and "
            f"{sorted(names - converted.keys())} are missing ({len(faults)} in all), expected VideoMAE's weights with sines and "
            "cosines as positions, without layer scale and cosine attention: convert another checkpoint."
        )
    model.to(converted[next(iter(names))].dtype).load_state_dict(converted)
    model.save_pretrained(dst)
    crop_size = dict(zip(("height", "width"), config.frame_size))
    LVMAEVideoProcessor(size={"shortest_edge": min(config.frame_size)}, crop_size=crop_size).save_pretrained(dst)
