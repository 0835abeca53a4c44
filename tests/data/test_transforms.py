"""VideoMAE's augmentations: the same draw for all frames, the strengths of timm, MixUp and CutMix against naive loops."""

import math

import numpy as np
import pytest
import torch
from builders import CLIPS, tiny_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from transformers_lvmae.data import ClipAugmentation, VideoClips, load_video_dataset, processor_for
from transformers_lvmae.data.transforms import rand_augment, random_erasing
from transformers_lvmae.targets.cache_writing import ByteClips
from transformers_lvmae.training.mixing import ClipMixing


FILL = [124.0, 116.0, 104.0]


@pytest.fixture(scope="module")
def picture():
    """Smooth colours, so that every operation shows."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (1, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return F.resize(coarse, [40, 48], antialias=True)[0]


def test_frames_of_a_clip_share_every_draw(picture):
    """Frames that were alike stay alike, whatever is drawn."""
    clip = picture.expand(5, -1, -1, -1).contiguous()
    recolor, erase = rand_augment(4, 7, FILL), random_erasing(1.0)
    changed = 0
    for _ in range(40):
        augmented = recolor(clip)
        assert augmented.dtype == torch.uint8
        erased = erase(augmented.float())
        for frames in (augmented, erased):
            assert (frames == frames[:1]).all()
        changed += not torch.equal(augmented, clip)
    assert changed > 30


def test_rand_augment_has_timm_s_strengths(picture):
    """Magnitude 7 of 10: each outcome is one of torchvision's operations at 70 % of its range; half of the clips stay as they are."""
    geometry = {"interpolation": InterpolationMode.BILINEAR, "fill": FILL}
    angle = math.degrees(math.atan(0.21))
    shift = 0.7 * 150 / 331
    still = {"angle": 0.0, "scale": 1.0}
    expected = {
        "rotate": [F.rotate(picture, sign * 21.0, **geometry) for sign in (1, -1)],
        "shear": [
            F.affine(picture, translate=[0, 0], shear=[sign * angle * (axis == 0), sign * angle * (axis == 1)], center=[0, 0],
                     **still, **geometry)
            for sign in (1, -1) for axis in (0, 1)
        ],
        "translate": [
            F.affine(picture, translate=[sign * int(shift * 48) * (axis == 0), sign * int(shift * 40) * (axis == 1)], shear=[0, 0],
                     **still, **geometry)
            for sign in (1, -1) for axis in (0, 1)
        ],
        "brightness": [F.adjust_brightness(picture, 1 + sign * 0.63) for sign in (1, -1)],
        "colour": [F.adjust_saturation(picture, 1 + sign * 0.63) for sign in (1, -1)],
        "contrast": [F.adjust_contrast(picture, 1 + sign * 0.63) for sign in (1, -1)],
        "sharpness": [F.adjust_sharpness(picture, 1 + sign * 0.63) for sign in (1, -1)],
        "posterize": [F.posterize(picture, 5)],
        "solarize": [F.solarize(picture, 255 * 0.3)],
        "autocontrast": [F.autocontrast(picture)],
        "equalize": [F.equalize(picture)],
    }  # fmt: skip
    transform = rand_augment(1, 7, FILL)
    seen, same = set(), 0
    for _ in range(400):
        outcome = transform(picture[None])[0]
        if torch.equal(outcome, picture):
            same += 1
            continue
        names = [
            name
            for name, outcomes in expected.items()
            for other in outcomes
            if (outcome.int() - other.int()).abs().float().mean() < 0.5
        ]
        assert names
        seen.update(names)
    assert seen == set(expected)
    assert same / 400 == pytest.approx(0.5 + 0.5 / 14, abs=0.08)


def test_what_moves_in_has_the_mean_color():
    """White frames, and a color beside them that only moving brings in."""
    recolor = ClipAugmentation(rand_augment_num_ops=4, rand_augment_magnitude=10).recolor([0.2, 0.4, 0.6])
    white = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    corners = {tuple(recolor(white)[0, :, 0, 0].tolist()) for _ in range(60)}
    assert (51, 102, 153) in corners


def test_random_erasing_puts_noise_into_one_box():
    clip = torch.zeros(4, 3, 30, 40)
    for _ in range(10):
        erased = random_erasing(1.0)(clip)
        rows, columns = (erased[0, 0] != 0).nonzero(as_tuple=True)
        box = erased[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box != 0).all()
        assert box.numel() == (erased != 0).sum()
        assert 0.01 < box[0, 0].numel() / 1200 < 0.36
    shares = [random_erasing(0.25)(clip).any().item() for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.1)


def test_mixup_is_a_weighted_sum_of_neighbours():
    clips = torch.randn(5, 4, 3, 6, 8)
    lambdas = []
    for _ in range(20):
        mixed, shares = ClipMixing(mixup_alpha=0.8)(clips)
        assert type(mixed) is torch.Tensor
        lam = shares[0, 0].item()
        for row in range(5):
            expected = [0.0] * 5
            expected[row] += lam
            expected[(row - 1) % 5] += 1 - lam
            assert shares[row].tolist() == pytest.approx(expected)
            torch.testing.assert_close(mixed[row], lam * clips[row] + (1 - lam) * clips[row - 1])
        lambdas.append(lam)
    assert len(set(lambdas)) == 20


def test_cutmix_cuts_height_and_width_of_all_frames():
    """Five axes: a box of the neighbour's pixels, whose share of the picture is its share of the label."""
    clips = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 4, 3, 12, 16).contiguous()
    sizes = []
    for _ in range(30):
        mixed, shares = ClipMixing(cutmix_alpha=1.0)(clips)
        for row in range(5):
            foreign = mixed[row] != row
            assert (mixed[row][foreign] == (row - 1) % 5).all()
            assert (foreign == foreign[:1, :1]).all()
            rows, columns = foreign[0, 0].any(dim=1), foreign[0, 0].any(dim=0)
            assert torch.equal(foreign[0, 0], rows[:, None] & columns)  # one box
            assert shares[row, row - 1].item() == pytest.approx(foreign.float().mean().item(), abs=1e-6)
            assert shares[row].sum().item() == pytest.approx(1.0)
        sizes.append(round(shares[0, 0].item(), 6))
    assert len(set(sizes)) > 10


def test_each_batch_draws_one_of_the_two():
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 8).contiguous()
    mixing = ClipMixing(0.8, 1.0)
    whole = [len(mixing(clips)[0][1].unique()) == 1 for _ in range(60)]  # MixUp blends, CutMix leaves two values
    assert 15 < sum(whole) < 50
    mixed, shares = mixing(clips[:1])
    torch.testing.assert_close(mixed, clips[:1])
    assert shares.item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"Got mixup_alpha=0.0 and cutmix_alpha=0.0, expected a positive number"):
        ClipMixing()


def test_clips_of_one_video_do_not_meet():
    videos, repeats = 3, 2
    clips = torch.arange(6.0).view(6, 1, 1, 1, 1).expand(6, 2, 3, 8, 8).contiguous()  # of videos 0 0 1 1 2 2
    for _ in range(10):
        mixed, shares = ClipMixing(0.8, 1.0, repeats)(clips)
        expected = torch.einsum("ij,jtchw->itchw", shares, clips)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), expected.mean(dim=(1, 2, 3, 4)))
        by_video = shares.view(6, videos, repeats)
        assert ((by_video > 0).sum(dim=2) <= 1).all()
        torch.testing.assert_close(shares.sum(dim=0), torch.ones(6))


def test_a_training_clip_is_the_same_for_the_same_seed_epoch_and_row():
    rows = load_video_dataset(CLIPS, label_column="label")["train"]
    augmentation = ClipAugmentation(
        min_crop_scale=0.5, horizontal_flip=True, rand_augment_num_ops=4, random_erasing_prob=0.5
    )
    clips, again = (
        VideoClips(rows, processor_for(tiny_config()), 8, training=True, augmentation=augmentation, seed=3)
        for _ in range(2)
    )
    first = [clips[number]["pixel_values_videos"] for number in range(4)]
    torch.rand(7)  # what else draws random numbers does not matter
    assert all(torch.equal(again[number]["pixel_values_videos"], first[number]) for number in (2, 0, 3, 1))
    again.set_epoch(1)
    assert not any(torch.equal(again[number]["pixel_values_videos"], first[number]) for number in range(4))
    plain = VideoClips(rows, processor_for(tiny_config()), 8, augmentation=augmentation)
    unchanged = VideoClips(rows, processor_for(tiny_config()), 8)
    assert torch.equal(plain[0]["pixel_values_videos"], unchanged[0]["pixel_values_videos"])  # evaluation draws nothing


def test_rand_augment_sees_frames_of_the_model_s_size():
    """Not those of the file, which may be a hundred times larger."""
    rows = load_video_dataset(CLIPS, label_column="label")["train"]
    clips = VideoClips(
        rows, processor_for(tiny_config()), 8, training=True, augmentation=ClipAugmentation(rand_augment_num_ops=2)
    )
    seen = []
    recolor = clips.recolor
    clips.recolor = lambda frames: seen.append((tuple(frames.shape), frames.dtype)) or recolor(frames)
    assert clips[0]["pixel_values_videos"].shape == (8, 3, 32, 32)
    assert seen == [((8, 3, 32, 32), torch.uint8)]


def test_random_erasing_is_refused_where_pixels_are_not_normalized():
    with pytest.raises(ValueError, match=r"Got random_erasing_prob=0\.25 for uint8 clips, expected 0"):
        ByteClips([], processor_for(tiny_config()), 8, True, augmentation=ClipAugmentation(random_erasing_prob=0.25))
