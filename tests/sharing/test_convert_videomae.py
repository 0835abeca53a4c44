"""sharing/convert_videomae.py and its script: the converted model computes the same as VideoMAE."""

import argparse
import json
import sys

import pytest
import torch
from builders import load_script
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEModel,
    VideoMAEVideoProcessor,
    ViTConfig,
    ViTModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel, LVMAEVideoProcessor
from transformers_lvmae.models.masking import topk_mask
from transformers_lvmae.sharing import convert_videomae


def videomae(model_class, path, **overrides):
    """A small VideoMAE with random biases and norms, saved at `path`; everything else as transformers' default, eps too."""
    fields = {
        "image_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    model = model_class(VideoMAEConfig(**{**fields, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter[0].numel() ** -0.5 * torch.randn_like(parameter) if parameter.ndim > 1 else 0.1)
    model.save_pretrained(path)
    return model


def longer(model, num_frames: int):
    """The same weights in a VideoMAE for `num_frames` frames."""
    config = VideoMAEConfig(**{**model.config.to_dict(), "num_frames": num_frames})
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def own_positions(num_frames: int | None) -> dict[str, list[int]]:
    """For more frames, VideoMAE's table goes on. Ours is scaled to the trained clips, unless it is told otherwise."""
    return {} if num_frames in (None, 16) else {"position_grid_size": [num_frames // 2, 2, 2]}


def random_clip(num_frames: int) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.rand(2, num_frames, 3, 32, 32) - mean) / std


@pytest.fixture
def folders(tmp_path):
    return str(tmp_path / "source"), str(tmp_path / "converted")


@pytest.mark.parametrize("num_frames", [None, 128])
@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_hidden_states_are_videomaes(folders, num_frames, use_mean_pooling):
    source = videomae(VideoMAEModel, folders[0], use_mean_pooling=use_mean_pooling)
    convert_videomae.convert(*folders, num_frames=num_frames)
    positions = own_positions(num_frames)
    model, report = AutoModel.from_pretrained(folders[1], output_loading_info=True, **positions)
    assert type(model) is LVMAEModel
    assert not any(report.values())
    frames = num_frames or 16
    assert model.config.num_frames == frames
    clip = random_clip(frames)
    with torch.no_grad():
        expected = longer(source, frames)(clip, output_hidden_states=True)
        outputs = model(clip, output_hidden_states=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 3
    for state, expected_state in zip(outputs.hidden_states, expected.hidden_states):
        torch.testing.assert_close(state, expected_state, atol=1e-5, rtol=1e-5)


# VideoMAE's norms before the heads keep an eps of 1e-5 whatever the config says; LVMAE has one eps for all norms. What that
# comes to is a hundred-thousandth of the logits; with an eps of 1e-5 everywhere, rounding alone.
eps_and_tolerance = pytest.mark.parametrize(("eps", "tolerance"), [(1e-12, 3e-5), (1e-5, 3e-6)])


@eps_and_tolerance
@pytest.mark.parametrize("num_frames", [None, 128])
def test_pretraining_is_videomaes(folders, num_frames, eps, tolerance):
    source = videomae(VideoMAEForPreTraining, folders[0], use_mean_pooling=False, layer_norm_eps=eps)
    convert_videomae.convert(*folders, num_frames=num_frames)
    positions = own_positions(num_frames)
    model, report = AutoModelForPreTraining.from_pretrained(folders[1], output_loading_info=True, **positions)
    assert type(model) is LVMAEForPreTraining
    assert model.config.target_type == "pixels"
    assert not any(report.values())
    clip = random_clip(num_frames or 16)
    tokens = model.config.seq_length
    masked = topk_mask(torch.rand(2, tokens), int(0.9 * tokens))
    with torch.no_grad():
        expected, outputs = longer(source, num_frames or 16)(clip, masked), model(clip, masked)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=tolerance * expected.logits.abs().max(), rtol=0)
    # The eps of 1e-6 under the targets' deviation is added to normalized pixels here, to those in [0, 1] there.
    torch.testing.assert_close(outputs.loss, expected.loss, atol=2e-5, rtol=0)


@eps_and_tolerance
@pytest.mark.parametrize("num_frames", [None, 128])
def test_classification_is_videomaes(folders, num_frames, eps, tolerance):
    labels = {0: "run", 1: "sit", 2: "jump"}
    names = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    source = videomae(VideoMAEForVideoClassification, folders[0], layer_norm_eps=eps, **names)
    convert_videomae.convert(*folders, num_frames=num_frames)
    positions = own_positions(num_frames)
    model, report = AutoModelForVideoClassification.from_pretrained(folders[1], output_loading_info=True, **positions)
    assert type(model) is LVMAEForVideoClassification
    assert model.config.id2label == labels
    assert not any(report.values())
    clip = random_clip(num_frames or 16)
    with torch.no_grad():
        expected, outputs = longer(source, num_frames or 16)(clip), model(clip)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=tolerance * expected.logits.abs().max(), rtol=0)


def test_more_frames_keep_the_trained_positions(folders, tmp_path):
    source = videomae(VideoMAEModel, folders[0], use_mean_pooling=False, layer_norm_eps=1e-6)
    VideoMAEVideoProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folders[0])
    convert_videomae.convert(*folders, num_frames=128)
    torch.save(original_layout(source), tmp_path / "original.pth")
    convert_videomae.convert_original(str(tmp_path / "original.pth"), str(tmp_path / "second"), 128, **HEADS)
    for folder in (folders[1], tmp_path / "second"):
        config = AutoModel.from_pretrained(folder).config
        assert (config.num_frames, config.position_grid) == (128, (8, 2, 2))
    assert AutoModel.from_pretrained(folders[1]).config.image_mean == [0.5] * 3


@pytest.mark.parametrize(
    "overrides", [{"qv_bias": False}, {"patch_size": [8, 8], "image_size": [32, 16], "num_channels": 3}]
)
def test_other_shapes_convert_too(folders, overrides):
    source = videomae(VideoMAEModel, folders[0], **overrides)
    convert_videomae.convert(*folders)
    clip = random_clip(16)[..., : 16 if "image_size" in overrides else 32]
    with torch.no_grad():
        expected, outputs = source(clip), AutoModel.from_pretrained(folders[1])(clip)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_dtype_stays(folders):
    videomae(VideoMAEModel, folders[0]).bfloat16().save_pretrained(folders[0])
    convert_videomae.convert(*folders)
    assert AutoModel.from_pretrained(folders[1]).dtype == torch.bfloat16


@pytest.mark.parametrize("processor_class", [VideoMAEVideoProcessor, VideoMAEImageProcessor])
def test_the_processor_comes_along(folders, processor_class):
    settings = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.3, 0.4, 0.5]}
    videomae(VideoMAEModel, folders[0])
    source = processor_class(**settings)
    source.save_pretrained(folders[0])
    convert_videomae.convert(*folders)
    processor = AutoVideoProcessor.from_pretrained(folders[1])
    assert type(processor) is LVMAEVideoProcessor
    video = torch.randint(0, 256, (16, 3, 40, 50), dtype=torch.uint8)
    frames = video if processor_class is VideoMAEVideoProcessor else [frame.numpy() for frame in video]
    expected = source(frames, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(video, return_tensors="pt")["pixel_values_videos"], expected)


def test_an_old_checkpoints_processor_settings_are_understood(folders, tmp_path):
    videomae(VideoMAEModel, folders[0])
    old = {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": 36, "crop_size": 32, "do_center_crop": True}
    (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(old))
    convert_videomae.convert(*folders)
    processor = AutoVideoProcessor.from_pretrained(folders[1])
    assert processor.size["shortest_edge"] == 36
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (32, 32)
    assert list(processor.image_mean) == list(VideoMAEVideoProcessor.image_mean)  # VideoMAE's default, not LVMAE's


def test_without_a_processor_none_is_written(folders, tmp_path):
    videomae(VideoMAEModel, folders[0])
    convert_videomae.convert(*folders)
    assert {path.name for path in (tmp_path / "converted").iterdir()} == {"config.json", "model.safetensors"}


def test_the_command_line_converts(folders, monkeypatch):
    videomae(VideoMAEModel, folders[0])
    monkeypatch.setattr(sys, "argv", ["convert_videomae.py", *folders, "--num_frames", "32"])
    load_script("convert_videomae").main()
    assert AutoModel.from_pretrained(folders[1]).config.grid_size == (16, 2, 2)


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(folders, tmp_path, fault):
    videomae(VideoMAEModel, folders[0])
    path = tmp_path / "source" / "model.safetensors"
    weights = load_file(path)
    if fault == "missing":
        del weights["encoder.layer.1.output.dense.bias"]
    else:
        weights["encoder.layer.7.output.dense.bias"] = torch.zeros(32)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{fault}_keys.*encoder.layer.*expected exactly the weights of VideoMAEModel: repair"
    ):
        convert_videomae.convert(*folders)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("model_class", "overrides", "message"),
    [
        (VideoMAEModel, {"patch_size": [16, 8]}, r"Got patch_size=\(16, 8\), expected a square.*: retrain"),
        (
            VideoMAEForPreTraining,
            {"norm_pix_loss": False},
            r"Got norm_pix_loss=False.*expected norm_pix_loss=True: .*Convert",
        ),
        (
            VideoMAEForVideoClassification,
            {"use_mean_pooling": False},
            r"use_mean_pooling=False.*expected mean .*: convert",
        ),
    ],
)
def test_models_without_counterpart_are_refused(folders, model_class, overrides, message):
    videomae(model_class, folders[0], **overrides)
    with pytest.raises(ValueError, match=message):
        convert_videomae.convert(*folders)


def test_other_models_are_refused(folders):
    ViTModel(ViTConfig(hidden_size=12, num_hidden_layers=1, intermediate_size=8)).save_pretrained(folders[0])
    with pytest.raises(ValueError, match=r"Got .* with model_type='vit' .*expected 'videomae' and one of .*: give"):
        convert_videomae.convert(*folders)


def original_layout(model) -> dict[str, torch.Tensor]:
    """The weights of a transformers VideoMAE under the names of MCG-NJU/VideoMAE, layer by layer."""
    base = getattr(model, "videomae", model)
    decoder = getattr(model, "decoder", None)
    encoder = "encoder." if decoder is not None else ""
    weights = {
        f"{encoder}patch_embed.proj.weight": base.embeddings.patch_embeddings.projection.weight,
        f"{encoder}patch_embed.proj.bias": base.embeddings.patch_embeddings.projection.bias,
    }
    stacks = [(f"{encoder}blocks", base.encoder.layer)]
    norms = [(f"{encoder}norm", base.layernorm)]
    if decoder is not None:
        stacks.append(("decoder.blocks", decoder.decoder_layers))
        norms += [("decoder.norm", decoder.norm), ("decoder.head", decoder.head)]
        weights |= {"encoder_to_decoder.weight": model.encoder_to_decoder.weight, "mask_token": model.mask_token}
    if hasattr(model, "classifier"):
        norms += [("fc_norm", model.fc_norm), ("head", model.classifier)]
    for prefix, layers in stacks:
        for number, layer in enumerate(layers):
            inner = layer.attention.attention
            name = f"{prefix}.{number}"
            qkv = [inner.query.weight, inner.key.weight, inner.value.weight]
            weights[f"{name}.attn.qkv.weight"] = torch.cat(qkv)
            weights |= {f"{name}.attn.q_bias": inner.query.bias, f"{name}.attn.v_bias": inner.value.bias}
            norms += [
                (f"{name}.norm1", layer.layernorm_before),
                (f"{name}.norm2", layer.layernorm_after),
                (f"{name}.attn.proj", layer.attention.output.dense),
                (f"{name}.mlp.fc1", layer.intermediate.dense),
                (f"{name}.mlp.fc2", layer.output.dense),
            ]
    for name, module in norms:
        if module is not None:
            weights |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


HEADS = {"image_size": 32, "num_attention_heads": 4, "decoder_num_attention_heads": 2}  # of `videomae`
WRAPPINGS = {
    "VideoMAE": lambda weights: {"model": weights, "epoch": 7, "args": argparse.Namespace(lr=1e-3)},
    "VideoMAE V2": lambda weights: {"module": weights},
    "bare": lambda weights: weights,
    "compiled": lambda weights: {"model": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}},
    "detection": lambda weights: {"module": {f"backbone.{name}": tensor for name, tensor in weights.items()}},
}


@pytest.mark.parametrize("num_frames", [None, 128])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_original_encoders_are_videomaes(tmp_path, wrapping, num_frames):
    source = videomae(VideoMAEModel, tmp_path / "source", use_mean_pooling=False, layer_norm_eps=1e-6)
    torch.save(WRAPPINGS[wrapping](original_layout(source)), tmp_path / "original.pth")
    convert_videomae.convert_original(str(tmp_path / "original.pth"), str(tmp_path / "converted"), num_frames, **HEADS)
    positions = own_positions(num_frames)
    model, report = AutoModel.from_pretrained(tmp_path / "converted", output_loading_info=True, **positions)
    assert type(model) is LVMAEModel
    assert model.config.num_frames == (num_frames or 16)
    assert not any(report.values())
    clip = random_clip(
        num_frames or 16
    ).double()  # states of 3 and more: float32 alone is off by 1e-5 at one in thousands
    with torch.no_grad():
        expected = longer(source, num_frames or 16).double()(clip, output_hidden_states=True)
        outputs = model.double()(clip, output_hidden_states=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    for state, expected_state in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, expected_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [16, 128])
def test_original_pretraining_is_videomaes(tmp_path, monkeypatch, num_frames):
    """From the command line; hidden states of the encoder, predictions of the decoder."""
    source = videomae(VideoMAEForPreTraining, tmp_path / "source", use_mean_pooling=False, layer_norm_eps=1e-6)
    torch.save({"model": original_layout(source)}, tmp_path / "original.pth")
    options = [f"--{name}={value}" for name, value in {**HEADS, "num_frames": num_frames}.items()]
    arguments = [str(tmp_path / "original.pth"), str(tmp_path / "converted"), *options]
    monkeypatch.setattr(sys, "argv", ["convert_videomae.py", *arguments])
    load_script("convert_videomae").main()
    positions = own_positions(num_frames)
    model, report = AutoModelForPreTraining.from_pretrained(
        tmp_path / "converted", output_loading_info=True, **positions
    )
    assert type(model) is LVMAEForPreTraining
    assert not any(report.values())
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "converted")
    assert list(processor.image_mean) == IMAGENET_DEFAULT_MEAN
    clip = random_clip(num_frames)
    masked = topk_mask(torch.rand(2, model.config.seq_length), int(0.9 * model.config.seq_length))
    reference = longer(source, num_frames)
    with torch.no_grad():
        expected, outputs = reference(clip, masked), model(clip, masked)
        encoded = reference.videomae(clip, masked).last_hidden_state
        torch.testing.assert_close(model.lvmae(clip, masked).last_hidden_state, encoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=3e-5 * expected.logits.abs().max(), rtol=0)


def test_original_classifiers_are_videomaes(tmp_path):
    source = videomae(VideoMAEForVideoClassification, tmp_path / "source", layer_norm_eps=1e-6, num_labels=5)
    torch.save({"module": original_layout(source)}, tmp_path / "original.pth")
    convert_videomae.convert_original(str(tmp_path / "original.pth"), str(tmp_path / "converted"), **HEADS)
    model, report = AutoModelForVideoClassification.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert type(model) is LVMAEForVideoClassification
    assert not any(report.values())
    assert model.config.num_labels == 5
    clip = random_clip(16)
    with torch.no_grad():
        expected, outputs = source(clip), model(clip)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=3e-5 * expected.logits.abs().max(), rtol=0)


@pytest.mark.parametrize(
    ("width", "patch", "intermediate", "decoder_width", "heads", "decoder_heads"),
    [(768, 16, 3072, 384, 12, 6), (1280, 16, 5120, 640, 16, 8), (1408, 14, 6144, 512, 16, 8)],
)
def test_sizes_are_read_off_the_shapes(width, patch, intermediate, decoder_width, heads, decoder_heads):
    """VideoMAE's base and huge models and VideoMAE V2's giant, without memory."""
    shapes = {"encoder.patch_embed.proj.weight": (width, 3, 2, patch, patch)}
    shapes |= {"encoder_to_decoder.weight": (decoder_width, width), "encoder.norm.weight": (width,)}
    shapes |= {f"encoder.blocks.{number}.norm1.weight": (width,) for number in range(12)}
    shapes |= {f"decoder.blocks.{number}.norm1.weight": (decoder_width,) for number in range(4)}
    shapes |= {"encoder.blocks.0.mlp.fc1.weight": (intermediate, width), "encoder.blocks.0.attn.q_bias": (width,)}
    shapes |= {"decoder.blocks.0.mlp.fc1.weight": (4 * decoder_width, decoder_width)}
    config = convert_videomae.original_config(
        {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    )
    assert (config.hidden_size, config.patch_size, config.intermediate_size) == (width, patch, intermediate)
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (heads, decoder_heads)
    assert (config.num_hidden_layers, config.decoder_num_hidden_layers) == (12, 4)
    assert (config.decoder_hidden_size, config.decoder_intermediate_size) == (decoder_width, 4 * decoder_width)
    assert config.qv_bias
    assert config.final_layer_norm
    assert config.layer_norm_eps == 1e-6


class Harmful:
    def __reduce__(self):
        return print, ("code that a checkpoint must not run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {"model": weights, "hook": Harmful()},
            r"weights_only=True\) refuses .*expected tensors.*: down",
        ),
        (lambda weights: {"weights": weights}, r"without weights at its top, under .*expected a VideoMAE .*: save"),
        (
            lambda weights: {"conv.weight": torch.zeros(1)},
            r"Got .* with \['conv.weight'\], expected VideoMAE's names .*: give",
        ),
        (
            lambda weights: {**weights, "pos_embed": torch.zeros(1)},
            r"of which \['pos_embed'\] have no counterpart .*: convert",
        ),
        (
            lambda weights: {**weights, "patch_embed.proj.weight": torch.zeros(32, 3, 2, 8, 16)},
            r"Got patches of 8 x 16, expected a square, .*: retrain",
        ),
        (
            lambda weights: {**weights, "head.weight": torch.zeros(2, 32)},
            r"reads the first token, expected mean .*: save",
        ),
        (
            lambda weights: {name: value for name, value in weights.items() if "1.mlp.fc2.bias" not in name},
            r"and \['encoder.layers.1.mlp.fc2.bias'\] are missing",
        ),
    ],
)
def test_original_files_that_do_not_fit_are_refused(tmp_path, capsys, change, message):
    source = videomae(VideoMAEModel, tmp_path / "source", use_mean_pooling=False)
    torch.save(change(original_layout(source)), tmp_path / "original.pth")
    with pytest.raises(ValueError, match=message):
        convert_videomae.convert_original(str(tmp_path / "original.pth"), str(tmp_path / "converted"), **HEADS)
    assert "code that" not in capsys.readouterr().out
    assert not (tmp_path / "converted").exists()


def test_unknown_heads_are_asked_for(tmp_path):
    torch.save(original_layout(videomae(VideoMAEModel, tmp_path / "source")), tmp_path / "original.pth")
    with pytest.raises(ValueError, match=r"Got a width of 32, expected one of .*: give --num_attention_heads"):
        convert_videomae.convert_original(str(tmp_path / "original.pth"), str(tmp_path / "converted"))
