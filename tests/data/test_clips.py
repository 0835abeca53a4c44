"""Clips of videos as model inputs: loading, sampling, seeds, masks."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from builders import FIXTURES
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop, resize
from transformers import default_data_collator

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import (
    ClipAugmentation,
    FrameSampling,
    ImageClips,
    MaskedVideoClips,
    VideoClips,
    VideoReading,
    load_image_dataset,
    load_video_dataset,
    processor_for,
    select_split,
)
from transformers_lvmae.data.clips import seeded
from transformers_lvmae.models import video_io
from transformers_lvmae.models.video_io import decode_video, write_video
from transformers_lvmae.models.video_seeking import VideoReadError


CLIPS = FIXTURES / "clips"
CONFIG = LVMAEConfig(image_size=32, patch_size=8, num_frames=8)


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


def clips_of(rows, kind=VideoClips, **kwargs):
    return kind(rows, processor_for(CONFIG), CONFIG.num_frames, **kwargs)


def masked(rows, **kwargs):
    return clips_of(rows, MaskedVideoClips, grid_size=CONFIG.grid_size, mask_ratio=CONFIG.mask_ratio, **kwargs)


def test_labels_are_the_same_classes_in_every_split(splits):
    names = splits["train"].features["label"].names
    assert names == sorted(names)
    assert all(rows.features["label"].names == names for rows in splits.values())


def test_labels_agree_with_the_metadata(splits):
    lines = (CLIPS / "train" / "metadata.csv").read_text().splitlines()
    header = lines[0].split(",")
    written = {line.split(",")[header.index("file_name")]: line.split(",")[header.index("label")] for line in lines[1:]}
    names = splits["train"].features["label"].names
    for row in splits["train"]:
        assert names[row["label"]] == written[row["video"]["path"].rsplit("/", 1)[1]]


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"Got columns .* expected 'action'.*--label_column"):
        load_video_dataset(CLIPS, label_column="action")


def test_a_missing_split_is_named(splits):
    with pytest.raises(ValueError, match=r"Got split 'validate', expected one of \['test', 'train'\]"):
        select_split(splits, "validate")


def test_an_item_is_the_processed_clip(splits):
    row = splits["test"][0]
    item = clips_of(splits["test"], label_column="label")[0]
    processor = processor_for(CONFIG)
    expected = processor([row["video"]["path"]], num_frames=8, do_sample_frames=True, return_tensors="pt")
    assert torch.equal(item["pixel_values_videos"], expected["pixel_values_videos"][0])
    assert item["labels"] == row["label"]


@pytest.mark.parametrize(("frame", "kept"), [((80, 140), (40, 70)), ((60, 150), (40, 100)), ((80, 90), (62, 70))])
def test_clips_cover_a_model_that_is_not_square_and_no_more(frame, kept, tmp_path):
    """A model of 40 x 70 pixels sees the whole width or the whole height of a frame."""
    frames = np.random.default_rng(0).integers(0, 256, (2, *frame, 3), dtype=np.uint8)
    write_video(tmp_path / "1.mp4", frames)
    config = LVMAEConfig(image_size=(40, 70), patch_size=10, num_frames=2)
    clips = VideoClips(load_video_dataset(tmp_path)["train"], processor_for(config, do_normalize=False), 2)
    shown = decode_video(tmp_path / "1.mp4", lambda metadata: [0, 1])[0]
    expected = center_crop(resize(shown, list(kept), antialias=True), [40, 70])
    torch.testing.assert_close(clips[0]["pixel_values_videos"], expected / 255)


def test_a_row_depends_on_seed_epoch_and_row_alone(splits):
    options = {"training": True, "sampling": FrameSampling(frame_stride=1)}
    options["augmentation"] = ClipAugmentation(min_crop_scale=0.4, horizontal_flip=True)
    torch.manual_seed(1)
    first = masked(splits["train"], seed=5, **options)
    items = [first[number] for number in range(4)]
    torch.manual_seed(2)
    again = masked(splits["train"], seed=5, **options)
    for number in reversed(range(4)):
        for key, value in again[number].items():
            assert torch.equal(value, items[number][key])
    again.set_epoch(1)
    other_seed = masked(splits["train"], seed=6, **options)
    for number in range(4):
        assert not torch.equal(again[number]["noise"], items[number]["noise"])
        assert not torch.equal(other_seed[number]["noise"], items[number]["noise"])


def test_two_rows_of_an_epoch_draw_differently(splits):
    """The same video in several rows: other frames, other crops, other masks."""
    rows = splits["train"].select([3] * 6)
    options = {"sampling": FrameSampling(frame_jitter=True), "augmentation": ClipAugmentation(min_crop_scale=0.3)}
    items = [masked(rows, training=True, **options)[number] for number in range(6)]
    for key in ("pixel_values_videos", "noise", "bool_masked_pos"):
        assert len({item[key].numpy().tobytes() for item in items}) == 6, key


def test_a_dataset_knows_whether_its_clips_differ_from_epoch_to_epoch(splits):
    rows = splits["train"]
    changing = ({"sampling": FrameSampling(frame_stride=2)}, {"augmentation": ClipAugmentation(horizontal_flip=True)})
    for options in changing:
        assert clips_of(rows, training=True, **options).draws_clips
        assert not clips_of(rows, **options).draws_clips
    assert not clips_of(rows, training=True).draws_clips


def test_drawing_an_item_leaves_the_global_generator_alone(splits):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    masked(splits["train"], training=True, augmentation=ClipAugmentation(min_crop_scale=0.5))[0]
    assert torch.equal(torch.rand(4), expected)


def test_seeded_blocks_differ_by_every_number():
    draws = []
    for numbers in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        with seeded(*numbers):
            draws.append(torch.rand(8))
    assert all(not torch.equal(one, other) for i, one in enumerate(draws) for other in draws[:i])


def test_evaluation_does_not_change_with_the_epoch(splits):
    clips = masked(splits["test"])
    before = clips[0]
    clips.set_epoch(3)
    assert all(torch.equal(clips[0][key], value) for key, value in before.items())


def test_masks_hide_whole_tubes(splits):
    hidden = masked(splits["train"], training=True)[0]["bool_masked_pos"].view(CONFIG.grid_size)
    assert torch.equal(hidden, hidden[:1].expand_as(hidden))
    assert hidden[0].sum() == int(0.9 * 16)


@pytest.mark.parametrize(("training", "starts"), [(False, {6}), (True, set(range(13)))])
def test_a_stride_takes_frames_that_far_apart(training, starts):
    seen = set()
    for seed in range(200):
        with seeded(seed):
            indices = FrameSampling(frame_stride=2).sample(27, 8, training)
        assert (np.diff(indices) == 2).all()
        seen.add(int(indices[0]))
    assert seen == starts


def test_random_crops_keep_frames_aligned(splits):
    """A crop is one for all frames: a still clip stays still."""
    augmentation = ClipAugmentation(min_crop_scale=0.3, horizontal_flip=True)
    clips = clips_of(splits["train"], training=True, augmentation=augmentation)
    still = torch.randint(0, 255, (1, 3, 40, 40), dtype=torch.uint8).expand(8, -1, -1, -1)
    crops = set()
    for seed in range(5):
        with seeded(seed):
            view = clips.draw_view()
            cropped = torch.stack([view(frame) for frame in still])
        assert cropped.shape == (8, 3, 32, 32)
        assert torch.equal(cropped, cropped[:1].expand_as(cropped))
        crops.add(tuple(cropped.flatten().tolist()[:50]))
    assert len(crops) == 5


def test_several_clips_come_from_one_decoding(splits, monkeypatch):
    opened = []
    read = video_io.opened_video
    monkeypatch.setattr(video_io, "opened_video", lambda *args: (opened.append(args), read(*args))[1])
    options = {"reading": VideoReading(num_clips=3), "sampling": FrameSampling(frame_jitter=True)}
    options |= {"augmentation": ClipAugmentation(min_crop_scale=0.4), "label_column": "label", "seed": 2}
    clips = masked(splits["train"], training=True, **options)
    items = clips.__getitems__([4, 5])
    assert len(opened) == 2
    assert [item["labels"] for item in items] == [splits["train"][number]["label"] for number in (4, 4, 4, 5, 5, 5)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for key in ("pixel_values_videos", "noise"):
            assert not torch.equal(items[one][key], items[other][key])
    for key, value in clips[5].items():
        assert np.array_equal(value, items[3][key])
    batch = next(iter(DataLoader(clips, batch_size=4, collate_fn=default_data_collator)))
    assert batch["pixel_values_videos"].shape == (12, 8, 3, 32, 32)
    assert len(clips) == 16
    assert masked(splits["train"], **options).num_clips == 1  # evaluation sees each video once


@pytest.mark.parametrize("frames_a_block", [1, 2, 100])
def test_each_of_several_clips_has_its_own_frames(frames_a_block, monkeypatch):
    """One decoding serves clips that ask for other frames, in other views: as decoding for each alone."""
    size = frames_a_block * 176 * 144 * 3
    monkeypatch.setattr(video_io, "Opening", partial(video_io.Opening, block_bytes=size))
    (path,) = (FIXTURES / "odd").glob("carphone*")
    samplers = [lambda metadata: [3, 9, 30], lambda metadata: [30, 2, 2]]
    views = [lambda frames: frames[:, :, :40], lambda frames: frames[:, :1, :, :50].flip(3)]
    together = video_io.decode_clips(path, samplers, views)
    for (clip, metadata), sample, view in zip(together, samplers, views):
        alone, expected = decode_video(path, sample)
        assert torch.equal(clip, view(alone))
        assert metadata == expected


def test_persistent_workers_see_the_epoch(splits):
    clips = masked(splits["train"], training=True)
    loader = DataLoader(clips, batch_size=16, num_workers=1, persistent_workers=True)
    first = next(iter(loader))["noise"]
    clips.set_epoch(1)
    later = next(iter(loader))["noise"]
    assert torch.equal(later[0], clips[0]["noise"])
    assert not torch.equal(first, later)


def test_a_broken_video_is_named(tmp_path):
    shutil.copytree(CLIPS, tmp_path / "clips")
    target = sorted((tmp_path / "clips" / "test").glob("*.mp4"))[0]
    shutil.copy(FIXTURES / "odd" / "noise.mp4", target)
    clips = clips_of(load_video_dataset(tmp_path / "clips")["test"])
    with pytest.raises(VideoReadError, match=rf"{target.name}: got .*expected .*: re-encode or remove it"):
        clips[0]


def test_a_file_of_real_footage_reaches_the_model():
    """Not square, not a multiple of the patch: resized and cropped by the processor."""
    (path,) = (FIXTURES / "odd").glob("carphone*")
    frames, metadata = decode_video(path, lambda metadata: range(metadata.total_num_frames))
    pixels = processor_for(CONFIG)(frames, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, metadata.total_num_frames, 3, 32, 32)
    assert 0.2 < pixels.std() < 3


@pytest.fixture
def pictures(tmp_path):
    """An imagefolder: colour, grey and transparent pictures."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for number, mode in enumerate(("RGB", "L", "RGBA")):
            pixels = rng.integers(0, 256, (40, 48, {"RGB": 3, "L": 1, "RGBA": 4}[mode]), dtype=np.uint8)
            Image.fromarray(pixels.squeeze(), mode).save(tmp_path / split / f"{number}.png")
    return tmp_path


def test_a_picture_is_a_clip_of_one_frame(pictures):
    rows = load_image_dataset(pictures)["train"]
    processor = processor_for(CONFIG, do_normalize=False)
    clips = ImageClips(rows, processor)
    assert len(clips) == 3
    for number, row in enumerate(rows):
        pixels = np.array(row["image"].convert("RGB"))
        expected = processor([pixels[None]], return_tensors="pt")["pixel_values_videos"][0]
        assert expected.shape == (1, 3, 32, 32)
        assert torch.equal(clips[number]["pixel_values_videos"], expected)
    with pytest.raises(ValueError, match=r"Got columns \['image', .* expected 'picture'.*--image_column"):
        load_image_dataset(pictures, image_column="picture")


def test_crops_of_pictures_differ_from_epoch_to_epoch(pictures):
    rows = load_image_dataset(pictures)["train"]
    augmentation = ClipAugmentation(min_crop_scale=0.3, horizontal_flip=True)
    clips = ImageClips(rows, processor_for(CONFIG), training=True, augmentation=augmentation)
    first = clips[0]["pixel_values_videos"]
    assert torch.equal(first, clips[0]["pixel_values_videos"])
    clips.set_epoch(1)
    assert not torch.equal(first, clips[0]["pixel_values_videos"])
