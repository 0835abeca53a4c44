"""The frames of a clip, and the part of them that a crop shows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import horizontal_flip, resize

from transformers_lvmae.data import ClipAugmentation, FrameSampling
from transformers_lvmae.data.transforms import MultiScaleCrop, draw_view


def test_even_frames():
    assert FrameSampling().sample(32, 8).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert FrameSampling().sample(8, 8, training=True).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("short_videos", "stride", "expected"),
    [
        ("stretch", None, [0, 0, 1, 1, 2, 3, 3, 4]),
        ("loop", None, [0, 1, 2, 3, 4, 0, 1, 2]),
        ("pad", None, [0, 1, 2, 3, 4, 4, 4, 4]),
        ("stretch", 2, [0, 0, 1, 1, 2, 3, 3, 4]),
        ("loop", 2, [0, 2, 4, 1, 3, 0, 2, 4]),
        ("pad", 2, [0, 2, 4, 4, 4, 4, 4, 4]),
    ],
)
def test_short_videos(short_videos, stride, expected):
    for training in (False, True):
        frames = FrameSampling(stride, short_videos=short_videos).sample(5, 8, training)
        assert frames.tolist() == expected


@pytest.mark.parametrize("short_videos", ["stretch", "loop", "pad"])
@pytest.mark.parametrize("jitter", [False, True])
def test_one_frame_is_repeated(short_videos, jitter):
    assert FrameSampling(None, jitter, short_videos).sample(1, 4, training=True).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("total", "num_frames"), [(30, 8), (128, 128), (300, 128), (9, 8)])
def test_jitter_takes_one_frame_of_each_part(total, num_frames):
    edges = np.arange(num_frames + 1) * total // num_frames
    seen = [set() for _ in range(num_frames)]
    for seed in range(100):
        torch.manual_seed(seed)
        frames = FrameSampling(frame_jitter=True).sample(total, num_frames, training=True)
        assert ((frames >= edges[:-1]) & (frames < edges[1:])).all()
        for part, frame in zip(seen, frames):
            part.add(int(frame))
    assert all(part == set(range(low, high)) for part, (low, high) in zip(seen, pairwise(edges)))
    middle = FrameSampling(frame_jitter=True).sample(total, num_frames)
    assert middle.tolist() == [low + (high - low) // 2 for low, high in pairwise(edges)]


def test_settings_that_exclude_each_other():
    with pytest.raises(ValueError, match=r"Got frame_stride=2 with frame_jitter, expected one"):
        FrameSampling(2, True)
    with pytest.raises(ValueError, match=r"Got short_videos='repeat', expected one of"):
        FrameSampling(short_videos="repeat")
    with pytest.raises(ValueError, match=r"Got frame_stride=0, expected at least 1"):
        FrameSampling(0)
    with pytest.raises(ValueError, match=r"Got min_crop_scale=0.5 with crop_scales=\[1, 0.75\], expected one"):
        ClipAugmentation(0.5, [1, 0.75])
    with pytest.raises(ValueError, match=r"Got crop_scales=\[1, 2\], expected shares"):
        ClipAugmentation(crop_scales=[1, 2])
    with pytest.raises(ValueError, match=r"Got min_crop_scale=0, expected a share"):
        ClipAugmentation(0)
    assert ClipAugmentation().crop((8, 8)) is None


def test_multi_scale_crops_are_videomaes():
    """Every size and place that VideoMAE's GroupMultiScaleCrop can draw, and no other."""
    height, width, scales = 96, 128, (1.0, 0.875, 0.75, 0.66)
    sides = [int(96 * scale) for scale in scales]
    expected = set()
    for i, crop_height in enumerate(sides):
        for j, crop_width in enumerate(sides):
            if abs(i - j) <= 1:
                y, x = (height - crop_height) // 4, (width - crop_width) // 4
                places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
                places += [(1, 1), (1, 3), (3, 1), (3, 3)]
                expected |= {(crop_height, crop_width, top * y, left * x) for top, left in places}
    crop = MultiScaleCrop((16, 16), scales)
    frame = torch.zeros(3, height, width, dtype=torch.uint8)
    drawn = set()
    for _ in range(3000):
        params = crop.make_params([frame])
        steps = {"top": (height - params["height"]) // 4, "left": (width - params["width"]) // 4}
        near = [min(5, abs(params[side])) and round(params[side] / max(step, 1)) * step for side, step in steps.items()]
        assert abs(params["top"] - near[0]) <= 3
        assert abs(params["left"] - near[1]) <= 3
        assert params["top"] + params["height"] <= height
        assert params["left"] + params["width"] <= width
        drawn.add((params["height"], params["width"], near[0], near[1]))
    assert drawn == expected


def test_random_crops_keep_the_shape_of_a_model_that_is_not_square():
    """Of 640 x 360 pixels and a model of 208 x 112: the largest crop is 640 x 344, as of the center crop; things are not squeezed."""
    frame = torch.zeros(3, 360, 640, dtype=torch.uint8)
    scales = (1.0, 0.875, 0.75, 0.66)
    crop = ClipAugmentation(crop_scales=scales).crop((112, 208))
    drawn = {(params["height"], params["width"]) for params in (crop.make_params([frame]) for _ in range(500))}
    heights, widths = ([int(side * scale) for scale in scales] for side in (640 * 112 / 208, 640))
    assert drawn == {(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1}
    resized = ClipAugmentation(0.3).crop((112, 208))
    shapes = [resized.make_params([frame]) for _ in range(300)]
    squeezed = torch.tensor([params["height"] / params["width"] * 208 / 112 for params in shapes])
    assert 0.74 < squeezed.min() < 0.8
    assert 1.25 < squeezed.max() < 1.35


def test_multi_scale_crop_shows_what_it_says():
    frame = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    crop = MultiScaleCrop((16, 16))
    params = {"top": 3, "left": 20, "height": 30, "width": 26}
    expected = resize(frame[:, 3:33, 20:46], [16, 16], antialias=True)
    assert torch.equal(crop.transform(frame, params), expected)
    assert crop(frame).shape == (3, 16, 16)


@pytest.mark.parametrize("crop", [None, v2.RandomResizedCrop(8, scale=(0.3, 1)), MultiScaleCrop((8, 8))])
def test_a_view_is_one_draw_for_all_frames(crop):
    """Frame by frame as on the whole clip, and the same for each."""
    clip = torch.randint(0, 256, (4, 3, 20, 30), dtype=torch.uint8)
    mirrored = []
    for seed in range(12):
        torch.manual_seed(seed)
        view = draw_view(lambda frame: frame[:, :8, :8], crop, flip=True)
        frames = torch.stack([view(frame) for frame in clip])
        torch.manual_seed(seed)
        flip = bool(torch.rand(()) < 0.5)
        expected = clip[..., :8, :8] if crop is None else crop.transform(clip, crop.make_params([clip[0]]))
        assert torch.equal(frames, horizontal_flip(expected) if flip else expected)
        mirrored.append(flip)
    assert set(mirrored) == {False, True}
