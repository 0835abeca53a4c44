"""Export models as folders that hold their own code, or as graphs for ONNX Runtime.

A folder with code loads with transformers and `trust_remote_code=True`. The code files are copies of this package's own.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..models.configuration_fsq_magvit import FSQMagViTConfig
from ..models.configuration_lvmae import LVMAEConfig
from ..models.image_processing_lvmae import LVMAEImageProcessor
from ..models.modeling_fsq_magvit import FSQMagViTModel
from ..models.modeling_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from ..models.video_processing_lvmae import LVMAEVideoProcessor


AUTO_CLASSES: dict[str, dict[str, type]] = {
    "lvmae": {
        "AutoConfig": LVMAEConfig,
        "AutoModel": LVMAEModel,
        "AutoModelForPreTraining": LVMAEForPreTraining,
        "AutoModelForVideoClassification": LVMAEForVideoClassification,
    },
    "fsq_magvit": {"AutoConfig": FSQMagViTConfig, "AutoModel": FSQMagViTModel},
}
MODEL_CLASSES = {
    model.__name__: model
    for classes in AUTO_CLASSES.values()
    for model in classes.values()
    if issubclass(model, PreTrainedModel)
}
QUERIES_AT_ONCE = 1024


def load_any_model(name_or_path: str | os.PathLike) -> PreTrainedModel:
    """Load a checkpoint of either family as the class that it was saved from; raise ValueError for another family."""
    config = AutoConfig.from_pretrained(name_or_path)
    saved_from = (config.architectures or ["no class"])[0]
    if saved_from not in MODEL_CLASSES:
        raise ValueError(
            f"Got a checkpoint of {saved_from}, expected one of {sorted(MODEL_CLASSES)}: convert it first "
            "(scripts/convert_videomae.py), or merge its adapter."
        )
    return MODEL_CLASSES[saved_from].from_pretrained(name_or_path)


def save_with_code(
    model: PreTrainedModel, folder: str | os.PathLike, processor: LVMAEVideoProcessor | None = None
) -> None:
    """Save a model and its processor together with the modules that define them.

    `AutoModel...from_pretrained(folder, trust_remote_code=True)` then needs transformers, torch and einops; the processor also needs
    torchvision and PyAV. This package is not needed. All Auto classes that this package registers work.

    Raises:
        ValueError: a model of neither family.
    """
    if not isinstance(model, tuple(MODEL_CLASSES.values())):
        raise ValueError(f"Got a {type(model).__name__}, expected one of {[*MODEL_CLASSES]}: merge an adapter first.")
    model.save_pretrained(folder)
    _add_auto_map(type(model.config).from_pretrained(folder), AUTO_CLASSES[model.config.model_type], folder)
    custom_object_save(model, folder)
    if processor is not None:
        processor.save_pretrained(folder)
        _add_auto_map(type(processor).from_pretrained(folder), {"AutoVideoProcessor": type(processor)}, folder)
        image_processor = LVMAEImageProcessor.from_pretrained(folder)  # saved with the video processor, and last here
        _add_auto_map(image_processor, {"AutoImageProcessor": LVMAEImageProcessor}, folder)
        custom_object_save(processor, folder)


def _add_auto_map(saved: Any, classes: dict[str, type], folder: str | os.PathLike) -> None:
    """Save a config or processor again with `auto_map`, the place of its code. `register_for_auto_class` would change the class."""
    saved.auto_map = {name: f"{item.__module__.rpartition('.')[2]}.{item.__name__}" for name, item in classes.items()}
    saved.save_pretrained(folder)


def attention_by_parts(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with 1,024 queries at a time: (B, heads, N, d) -> (B, N, heads, d).

    In ONNX, attention is a product, a softmax and a product. At 128 frames the scores of one layer would take 7.5 GB at once.
    """
    parts = query.split(QUERIES_AT_ONCE, dim=2)
    attended = [nn.functional.scaled_dot_product_attention(part, key, value, scale=scaling) for part in parts]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def export_onnx(model: PreTrainedModel, folder: str | os.PathLike) -> Path:
    """Write the model for clips of `config.num_frames` frames of `config.frame_size` as `model.onnx` and `model.onnx.data`.

    The graph takes any number of clips. Positions are constants in it, and all operators are standard. Needs the extra `onnx`.

    Returns:
        The path of `model.onnx`. Its input is `pixel_values_videos` (batch, frames, channels, height, width) in float32; its outputs
        have the names of the model's.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: a model with `token_score_threshold`.
    """
    from transformers.exporters import OnnxExporter
    from transformers.exporters.configs import OnnxConfig

    config = model.config
    if getattr(config, "token_score_threshold", None) is not None:
        raise ValueError(
            f"Got token_score_threshold={config.token_score_threshold}, expected None, because a graph keeps as many tokens of every clip: "
            "load the model with token_score_threshold=None."
        )
    clips = torch.zeros(2, config.num_frames, config.num_channels, *config.frame_size)
    shapes = {"pixel_values_videos": {0: torch.export.Dim("batch")}}
    AttentionInterface.register("by_parts", attention_by_parts)
    implementation = config._attn_implementation
    model.set_attn_implementation("by_parts")
    try:
        settings = OnnxConfig(dynamic_shapes=shapes)
        exported = OnnxExporter().export(model.eval(), {"pixel_values_videos": clips}, config=settings)
    finally:
        model.set_attn_implementation(implementation)
    exported.save_pretrained(Path(folder))
    return Path(folder) / "model.onnx"
