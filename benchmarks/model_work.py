"""Work of models: each function builds a model with random weights and returns (model, one piece of work on one clip).

Inputs are built before the clock starts, on torch's default device. Precision is float32, the batch one clip unless a case says otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch

from transformers_lvmae.models.masking import random_tube_mask, topk_mask, tube_visible_count


Built = tuple[Any, Callable[[], Any]]
ENCODERS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 12},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12},
    "large": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24},
}
DECODERS: dict[str, dict[str, Any]] = {
    "small": {"decoder_hidden_size": 192, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 768},
    "base": {"decoder_hidden_size": 384, "decoder_num_attention_heads": 6, "decoder_intermediate_size": 1536},
    "large": {"decoder_hidden_size": 512, "decoder_num_attention_heads": 8, "decoder_intermediate_size": 2048},
}
LABELS: dict[str, Any] = {"num_labels": 48}  # Diving48's


def lvmae_step(
    size: str,
    frames: int,
    attention: str,
    budget: float = 0.15,
    recompute: bool = True,
    checkpointing: str = "none",
    batch: int = 1,
    compiled: bool = False,
) -> Built:
    """A pre-training step with given codes. `budget` is the share of all tokens that is decoded; 1 decodes every hidden token."""
    from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining

    fields = {"recompute_activations": recompute, "attn_implementation": attention}
    config = LVMAEConfig.from_size(size, num_frames=frames, **fields)  # type: ignore[arg-type]
    model = LVMAEForPreTraining(config).train()
    checkpoint(model, checkpointing)
    if compiled:
        model.compile(fullgraph=True)
    num_decoded = int(budget * config.seq_length)
    masked = random_tube_mask(batch, config.grid_size, config.mask_ratio)
    decoded = masked if budget == 1 else topk_mask(torch.rand(batch, config.seq_length), num_decoded)
    codes = torch.rand(batch, config.seq_length, config.target_size) * 2 - 1
    clips = torch.randn(batch, config.num_frames, 3, 224, 224)
    # The Trainer passes these numbers too, so that no accelerator waits for a count.
    counts = tube_visible_count(config.grid_size, config.mask_ratio), num_decoded
    return model, lambda: model(clips, masked, decoded, codes, *counts).loss


def checkpoint(model: Any, checkpointing: str) -> None:
    if checkpointing != "none":
        model.activation_checkpointing_enable({"mlp_only": checkpointing == "mlp"})


def videomae_model(size: str, frames: int, attention: str) -> Any:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig(num_frames=frames, decoder_num_hidden_layers=4, **ENCODERS[size], **DECODERS[size])
    config._attn_implementation = attention  # before building: VideoMAE's decoder has a config of its own
    return VideoMAEForPreTraining(config).train()


def videomae_step(size: str, frames: int, attention: str, batch: int = 1) -> Built:
    model = videomae_model(size, frames, attention)
    masked = random_tube_mask(batch, (frames // 2, 14, 14), 0.9)
    clips = torch.randn(batch, frames, 3, 224, 224)
    return model, lambda: model(clips, bool_masked_pos=masked).loss


def videomae_v2_step(size: str, frames: int, attention: str) -> Built:
    """VideoMAE V2's dual masking in the layers of transformers' VideoMAE: its decoder gets the visible tokens and half of all tokens.

    As in its code, every tubelet is embedded and the encoder's are selected afterwards. Targets are made for the decoded tokens alone.
    """
    from einops import rearrange

    model = videomae_model(size, frames, attention)
    tokens = model.videomae.embeddings.num_patches
    masked = random_tube_mask(1, (frames // 2, 14, 14), 0.9)
    decoded = topk_mask(torch.rand(1, tokens), tokens // 2)
    clip = torch.randn(1, frames, 3, 224, 224)
    positions = model.position_embeddings

    def work() -> Any:
        encoded = model.encoder_to_decoder(model.videomae(clip, bool_masked_pos=masked).last_hidden_state)
        queries = model.mask_token + positions[decoded][None]
        logits = model.decoder(torch.cat([encoded + positions[~masked][None], queries], dim=1), tokens // 2).logits
        pixels = rearrange(clip, "b (t p) c (h q) (w r) -> b (t h w) (p q r) c", p=2, q=16, r=16)[decoded][None]
        pixels = (pixels - pixels.mean(dim=2, keepdim=True)) / (pixels.std(dim=2, keepdim=True) + 1e-6)
        return torch.nn.functional.mse_loss(logits, pixels.flatten(2))

    return model, work


def lvmae_classifier(
    frames: int,
    layers: int | None,
    training: bool,
    recompute: bool = True,
    checkpointing: str = "none",
    size: str = "base",
    batch: int = 1,
    keep_ratio: float = 1.0,
) -> Built:
    """A classifier with `layers` of its size's layers, or all of them. It looks at a share `keep_ratio` of the tokens, chosen by learned
    scores, which are computed here, in every step."""
    from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification

    fields = {"recompute_activations": recompute, "token_keep_ratio": keep_ratio, **encoder(size, layers), **LABELS}
    model = LVMAEForVideoClassification(LVMAEConfig(num_frames=frames, **fields)).train(training)
    checkpoint(model, checkpointing)
    return classifier_work(model, frames, training, batch)


def encoder(size: str, layers: int | None) -> dict[str, Any]:
    return ENCODERS[size] if layers is None else {**ENCODERS[size], "num_hidden_layers": layers}


def videomae_classifier(frames: int, layers: int | None, training: bool, size: str = "base", batch: int = 1) -> Built:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(num_frames=frames, **encoder(size, layers), **LABELS)
    return classifier_work(VideoMAEForVideoClassification(config).train(training), frames, training, batch)


def vjepa2_classifier(frames: int, layers: int | None, training: bool, size: str = "base", batch: int = 1) -> Built:
    """V-JEPA 2 in a ViT's shape, with its own attentive pooling."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    sizes = {**encoder(size, layers), "mlp_ratio": 4}
    del sizes["intermediate_size"]
    config = VJEPA2Config(frames_per_clip=frames, crop_size=224, **sizes, **LABELS)
    return classifier_work(VJEPA2ForVideoClassification(config).train(training), frames, training, batch)


def classifier_work(model: Any, frames: int, training: bool, batch: int) -> Built:
    clips, labels = torch.randn(batch, frames, 3, 224, 224), torch.zeros(batch, dtype=torch.long)
    if training:
        return model, lambda: model(clips, labels=labels).loss
    return model, lambda: model(clips).logits


def lvmae_fine_tuning(
    frames: int, batch: int = 1, checkpointing: str = "none", lora_rank: int = 0, mixing: bool = False
) -> Built:
    """A whole fine-tuning step with AdamW's update. Its moments exist before the step, as in every step but the first."""
    from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification
    from transformers_lvmae.training.mixing import ClipMixing

    config = LVMAEConfig(num_frames=frames, problem_type="single_label_classification", **LABELS)
    model: Any = LVMAEForVideoClassification(config).train()
    checkpoint(model, checkpointing)
    model = add_lora(model, lora_rank)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    clips, labels = torch.randn(batch, frames, 3, 224, 224), torch.eye(48)[:batch]
    mix = ClipMixing(0.8, 1.0) if mixing else None

    def work() -> Any:
        with torch.enable_grad():
            mixed, shares = (clips, torch.eye(len(clips))) if mix is None else mix(clips)
            model(pixel_values_videos=mixed, labels=shares @ labels).loss.backward()
        optimizer.step()

    return model, work


def add_lora(model: Any, rank: int) -> Any:
    """LoRA on the query and value projections, with a trained classifier; the model itself for rank 0."""
    from peft import LoraConfig, get_peft_model

    layers: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    return get_peft_model(model, LoraConfig(r=rank, **layers)) if rank else model


def tokenizer_encode(frames: int, size: str = "base", batch: int = 1) -> Built:
    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel

    model = FSQMagViTModel(FSQMagViTConfig.from_size(size)).eval()  # type: ignore[arg-type]
    clips = torch.rand(batch, frames, 3, *model.config.frame_size)

    def work() -> Any:
        with torch.autocast(clips.device.type, enabled=False):  # as targets are made
            return model.encode(clips).codes

    return model, work


def tokenizer_step(batch: int = 1) -> Built:
    """A training step of the default tokenizer on clips of one window, without perceptual and adversarial terms."""
    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel

    model = FSQMagViTModel(FSQMagViTConfig()).train()
    clips = torch.rand(batch, model.config.window_size, 3, *model.config.frame_size)
    return model, lambda: model(clips).loss


def cosmos_encode(frames: int) -> Built:
    """The encoder of Cosmos DV 4x8x8 in diffusers' code: that of its continuous tokenizer at 4 frames a slot, Haar patches of 4
    pixels, 128 x (1, 2, 4, 4) channels. The discrete tokenizer's last linear layer and rounding are missing."""
    from diffusers import AutoencoderKLCosmos

    model = AutoencoderKLCosmos(temporal_compression_ratio=4).encoder.eval()
    clip = torch.randn(1, 3, frames, 112, 112)
    return model, lambda: model(clip)


def magvit2_encode(frames: int) -> Built:
    """magvit2-pytorch with the layers of its README, and FSQ."""
    from magvit2_pytorch import VideoTokenizer

    twice = ("consecutive_residual", 2)
    layers = ["residual", "compress_space", twice, "compress_space", twice, "linear_attend_space", "compress_space"]
    layers += [twice, "attend_space", "compress_time", twice, "compress_time", twice, "attend_time"]
    sizes = {"image_size": 112, "init_dim": 64, "max_dim": 512, "layers": tuple(layers)}
    untrained = {"use_gan": False, "perceptual_loss_weight": 0.0}
    model = VideoTokenizer(**sizes, **untrained, use_fsq=True, fsq_levels=[8, 8, 8, 5, 5, 5]).eval()
    clip = torch.rand(1, 3, frames, 112, 112)
    return model, lambda: model.encode(clip, quantize=True)
