"""What the command line says about the data reaches the objects that read it."""

import pytest

from transformers_lvmae.data import ClipAugmentation, FrameSampling
from transformers_lvmae.data.arguments import VideoDataArguments
from transformers_lvmae.models.video_sources import VideoAccess


def test_every_option_reaches_the_reader(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\n")
    arguments = VideoDataArguments(
        dataset_name=str(tmp_path / "list.txt"),
        confine=True,
        more_protocols=["ftp"],
        max_video_bytes=1000,
        max_video_seconds=2.5,
        frame_stride=3,
        short_videos="loop",
        crop_scales=[1.0, 0.75],
        horizontal_flip=True,
        num_clips=4,
        on_error="raise",
        max_broken_share=0.2,
        video_column="film",
        label_column="verb,noun",
    )
    assert arguments.sampling() == FrameSampling(3, False, "loop")
    assert arguments.augmentation() == ClipAugmentation(crop_scales=[1.0, 0.75], horizontal_flip=True)
    assert arguments.label_columns == ["verb", "noun"]
    reading = arguments.reading("run")
    read = (reading.num_clips, reading.on_error, reading.max_broken_share, reading.broken_folder, reading.video_column)
    assert read == (4, "raise", 0.2, "run/broken_videos", "film")
    assert reading.access == VideoAccess((str(tmp_path),), (*VideoAccess.protocols, "ftp"), 1000, 2.5)
    open_to_all = VideoDataArguments(dataset_name="data", min_crop_scale=0.5, frame_jitter=True)
    assert open_to_all.reading(None).access == VideoAccess()
    assert open_to_all.sampling() == FrameSampling(frame_jitter=True)
    assert open_to_all.augmentation() == ClipAugmentation(0.5, [])
    assert open_to_all.label_columns == "label"


def test_every_number_of_a_list_is_checked():
    with pytest.raises(ValueError, match=r"Got crop_scales=1.5, expected a number in \(0, 1\]"):
        VideoDataArguments(dataset_name="data", crop_scales=[1.0, 1.5])
