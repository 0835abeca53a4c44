"""The adversarial and the perceptual term against analytic cases, finite differences and the image processor."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor, ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

from transformers_lvmae.training.perceptual_loss import PerceptualLoss
from transformers_lvmae.training.tokenizer_adversary import (
    AdversarialLoss,
    VideoDiscriminator,
    discriminator_loss,
    generator_loss,
    halve,
    r1_penalty,
)


def tiny_discriminator(size=(4, 8, 8), multipliers=(2, 4), channels=4):
    return VideoDiscriminator(size, base_channels=channels, channel_multipliers=multipliers)


def test_halving_takes_means_and_leaves_axes_of_one():
    cube = torch.randn(2, 3, 1, 4, 5)
    halved = halve(cube)
    assert halved.shape == (2, 3, 1, 2, 3)
    torch.testing.assert_close(halved[..., 0, 0, 0], cube[..., 0, :2, :2].mean(dim=(-1, -2)))
    torch.testing.assert_close(halved[..., 0, 1, 2], cube[..., 0, 2:, 4].mean(dim=-1))  # a cell over the edge
    assert halve(cube.bfloat16()).dtype == torch.bfloat16


def test_the_discriminator_is_magvit_s():
    """Written out again with plain functions, at the real layout of five levels on a small clip."""
    model = tiny_discriminator((4, 16, 16), (2, 4, 4, 4, 4), 2)
    clips = torch.rand(3, 4, 3, 16, 16)

    def conv(hidden, layer):
        return nn.functional.conv3d(hidden, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def active(hidden):
        return torch.where(hidden > 0, hidden, 0.2 * hidden)

    hidden = active(conv(clips.movedim(2, 1), model.stem))
    for block in model.blocks:
        residual = active(conv(halve(active(conv(hidden, block.conv1))), block.conv2))
        hidden = (conv(halve(hidden), block.shortcut) + residual) / 2**0.5
    assert hidden.shape == (3, 8, 1, 1, 1)
    hidden = active(model.dense(active(conv(hidden, model.conv)).reshape(3, -1)))
    torch.testing.assert_close(model(clips), model.head(hidden)[:, 0])


@pytest.mark.parametrize(("size", "cells"), [((16, 128, 128), 16), ((16, 112, 112), 16), ((1, 128, 128), 16)])
def test_the_real_size_has_one_halving_a_level(size, cells):
    with torch.device("meta"):
        model = VideoDiscriminator(size)
        logits = model(torch.rand(2, size[0], 3, *size[1:]))
    assert logits.shape == (2,)
    assert model.dense.weight.shape == (256, 256 * cells)
    widths = [block.conv2.out_channels for block in model.blocks]
    assert widths == [128, 256, 256, 256, 256]


def test_a_clip_alone_has_the_logit_that_it_has_in_a_batch():
    model = tiny_discriminator()
    clips = torch.rand(3, 4, 3, 8, 8)
    torch.testing.assert_close(model(clips[1:2]), model(clips)[1:2])


def test_clips_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"Got clips of \(2, 8, 8\) .* expected \(4, 8, 8\): .* or change the config"):
        tiny_discriminator()(torch.rand(1, 2, 3, 8, 8))


def test_the_losses_are_the_cross_entropies():
    real, fake = torch.randn(5), torch.randn(5)
    entropy = nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(generator_loss(fake), entropy(fake, torch.ones(5)))
    expected = entropy(real, torch.ones(5)) + entropy(fake, torch.zeros(5))
    torch.testing.assert_close(discriminator_loss(real, fake), expected)


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights():
    """D(x) = w x has the gradient w everywhere: no factor 1/2, and nothing divided by the number of pixels."""
    weights, clips = torch.randn(48, requires_grad=True), torch.rand(3, 48, requires_grad=True)
    penalty = r1_penalty(clips @ weights, clips)
    torch.testing.assert_close(penalty, weights.square().sum())
    penalty.backward()
    torch.testing.assert_close(weights.grad, 2 * weights.detach())


def test_r1_and_its_gradient_are_finite_differences():
    model = tiny_discriminator((2, 4, 4), (2,), 2).double()
    clips = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(model(clips), clips)
    slopes = torch.zeros(2, clips[0].numel(), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        for pixel in range(slopes.shape[1]):
            change = torch.zeros(slopes.shape[1], dtype=torch.float64)
            change[pixel] = step
            change = change.view_as(clips[0])
            slopes[:, pixel] = (model(clips + change) - model(clips - change)) / (2 * step)
    torch.testing.assert_close(penalty, slopes.square().sum(dim=1).mean(), rtol=1e-6, atol=0)
    penalty.backward()
    for weight in (model.stem.weight, model.blocks[0].conv2.weight, model.dense.weight):
        place = (0,) * weight.ndim
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
            values.append(r1_penalty(model(clips), clips).item())
            with torch.no_grad():
                weight[place] -= sign * step
        assert weight.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_the_discriminator_s_loss_is_the_sum_of_its_weighted_parts():
    losses = AdversarialLoss(tiny_discriminator(), r1_weight=10.0)
    real, fake = torch.rand(2, 4, 3, 8, 8), torch.rand(2, 4, 3, 8, 8, requires_grad=True)
    parts = losses(real, fake)
    real_logits, fake_logits = losses.discriminator(real), losses.discriminator(fake)
    torch.testing.assert_close(parts["discriminator_loss"], discriminator_loss(real_logits, fake_logits).detach())
    expected = parts["discriminator_loss"] + 10 * parts["r1_penalty"]
    torch.testing.assert_close(parts["loss"].detach(), expected)
    torch.testing.assert_close(parts["real_logits"], real_logits.mean().detach())
    parts["loss"].backward()
    assert fake.grad is None
    assert not real.requires_grad
    assert all(parameter.grad is not None for parameter in losses.parameters())
    plain = AdversarialLoss(losses.discriminator, r1_weight=0.0)(real, fake)
    torch.testing.assert_close(plain["loss"], discriminator_loss(real_logits, fake_logits))
    assert "r1_penalty" not in plain


def test_the_generator_s_loss_has_the_right_gradient_and_leaves_the_discriminator_alone():
    losses = AdversarialLoss(tiny_discriminator())
    fake = torch.rand(2, 4, 3, 8, 8, requires_grad=True)
    loss = losses.generator_loss(fake)
    loss.backward()
    assert all(parameter.grad is None for parameter in losses.parameters())
    assert all(parameter.requires_grad for parameter in losses.parameters())
    (expected,) = torch.autograd.grad(generator_loss(losses.discriminator(fake)), fake)
    torch.testing.assert_close(fake.grad, expected)
    assert expected.abs().max() > 0


def test_bfloat16_autocast_stays_near_float32():
    losses = AdversarialLoss(tiny_discriminator())
    real, fake = torch.rand(2, 4, 3, 8, 8), torch.rand(2, 4, 3, 8, 8)
    expected = losses(real, fake)
    # Without oneDNN: in torch 2.14 its bfloat16 Conv3d reads memory that nothing set, for the weights' gradient on a CPU.
    with torch.backends.mkldnn.flags(enabled=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = losses(real, fake)
        parts["loss"].backward()
    assert parts["loss"].dtype == torch.float32
    for name in ("loss", "r1_penalty"):
        print("BF", name, parts[name].item(), expected[name].item(), float(parts[name] / expected[name] - 1))
        torch.testing.assert_close(parts[name], expected[name], rtol=0.05, atol=0.01)
    assert all(torch.isfinite(parameter.grad).all() for parameter in losses.parameters())


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """A ResNet with random weights and its processor, as a folder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    model = ResNetForImageClassification(config)
    for module in model.modules():  # as if it had been trained: statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    model.save_pretrained(path)
    ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=1.0).save_pretrained(path)
    return str(path)


def naive_logits(image_model, frames):
    """Through the processor itself: uint8 frames (N, C, H, W) to logits."""
    processor = AutoImageProcessor.from_pretrained(image_model)
    # The processor keeps the proportions and crops; square frames give it nothing to crop.
    inputs = processor(list(frames), return_tensors="pt", do_center_crop=False)
    model = ResNetForImageClassification.from_pretrained(image_model).eval()
    with torch.no_grad():
        return model(**inputs).logits


def test_the_perceptual_loss_is_that_of_the_processor_s_own_pictures(image_model):
    loss = PerceptualLoss.from_pretrained(image_model)
    clips, others = (torch.randint(0, 256, (2, 3, 3, 40, 40), dtype=torch.uint8) for _ in range(2))
    expected = naive_logits(image_model, clips.flatten(0, 1)) - naive_logits(image_model, others.flatten(0, 1))
    value = loss(others / 255, clips / 255)
    # The processor rounds resized pixels to whole numbers; that is all that differs.
    torch.testing.assert_close(value, expected.square().mean(), rtol=0.05, atol=0)
    exact = PerceptualLoss.from_pretrained(image_model).logits(torch.rand(2, 3, 24, 24))
    assert exact.shape == (2, 10)


def test_at_the_model_s_own_size_nothing_is_rounded(image_model):
    loss = PerceptualLoss.from_pretrained(image_model)
    frames = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(loss.logits(frames / 255), naive_logits(image_model, frames), rtol=1e-4, atol=1e-5)


def test_the_perceptual_network_is_frozen_and_gradients_pass_through_it(image_model):
    loss = PerceptualLoss.from_pretrained(image_model, num_frames=2).train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    reconstruction = torch.rand(2, 4, 3, 32, 32, requires_grad=True)
    loss(reconstruction, torch.rand(2, 4, 3, 32, 32)).backward()
    touched = reconstruction.grad.abs().flatten(2).sum(dim=2) > 0
    assert touched.sum(dim=1).tolist() == [2, 2]
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_frames_are_drawn_anew_without_repeats_and_evenly(image_model):
    loss = PerceptualLoss.from_pretrained(image_model, num_frames=2)
    counts, differ = np.zeros(5), 0
    for _ in range(400):
        drawn = loss.draw_frames(3, 5).numpy()
        assert all(len(set(row)) == 2 for row in drawn)
        counts += np.bincount(drawn.ravel(), minlength=5)
        differ += len({tuple(sorted(row)) for row in drawn}) > 1
    expected = 400 * 3 * 2 / 5
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    assert differ > 350  # each clip has its own frames: three clips have the same ones in 1 of 100 draws
    assert PerceptualLoss.from_pretrained(image_model).draw_frames(2, 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ({"shortest_edge": 256}, {"height": 224, "width": 224}, [224, 224]),
        ({"height": 32, "width": 48}, None, [32, 48]),
    ],
)
def test_the_input_size_is_the_crop_s_where_there_is_one(size, crop, expected, image_model):
    processor = AutoImageProcessor.from_pretrained(image_model)
    processor.size, processor.crop_size, processor.do_center_crop = size, crop, crop is not None
    model = ResNetForImageClassification.from_pretrained(image_model)
    assert PerceptualLoss(model, processor).input_size == expected


def test_a_processor_without_a_fixed_size_is_refused(image_model):
    processor = AutoImageProcessor.from_pretrained(image_model)
    processor.size = {"max_height": 10, "max_width": 10}
    with pytest.raises(
        ValueError, match=r"Got an image processor of size .* expected height and width or shortest_edge"
    ):
        PerceptualLoss(ResNetForImageClassification.from_pretrained(image_model), processor)
