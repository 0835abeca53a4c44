"""What the rows of a dataset may open: the options of the programs."""

import numpy as np
import pytest
from builders import FIXTURES, load_script

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import VideoClips, load_video_dataset, processor_for
from transformers_lvmae.data.arguments import VideoDataArguments
from transformers_lvmae.data.datasets import data_folders
from transformers_lvmae.models.video_io import write_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess


CLIP = FIXTURES / "odd" / "carphone.mp4"
CONFIG = LVMAEConfig(image_size=32, patch_size=16, num_frames=2)


@pytest.fixture
def table(tmp_path):
    """A table in a folder of its own: a video inside, and one outside."""
    (tmp_path / "data").mkdir()
    for name in ("data/inside.mp4", "outside.mp4"):
        write_video(tmp_path / name, np.zeros((4, 32, 32, 3), np.uint8))
    path = tmp_path / "data" / "table.csv"
    path.write_text("video,label\ninside.mp4,a\n../outside.mp4,b\n")
    return path


def test_the_folders_of_a_dataset(table, tmp_path):
    data = str(tmp_path / "data")
    assert data_folders(data) == data_folders(table) == data_folders(f"{data}/*.mp4") == (data,)
    assert (
        data_folders(f"train={table},test={tmp_path}")
        == data_folders({"train": [table], "test": tmp_path})
        == (data, str(tmp_path))
    )
    assert data_folders("user/name") == ()


def test_confine(table):
    rows = load_video_dataset(table)["train"]
    for confine, allowed in ((False, [True, True]), (True, [True, False])):
        arguments = VideoDataArguments(dataset_name=str(table), confine=confine, on_error="raise")
        clips = VideoClips(rows, processor_for(CONFIG), 2, reading=arguments.reading(None))
        for number, is_allowed in enumerate(allowed):
            if is_allowed:
                assert clips[number]["pixel_values_videos"].shape == (2, 3, 32, 32)
            else:
                with pytest.raises(
                    VideoReadError, match=r"outside\.mp4: got a file outside of .*data, expected it there"
                ):
                    clips[number]


def test_limits_and_protocols():
    arguments = VideoDataArguments(dataset_name="data")
    assert arguments.access_to("data") == VideoAccess()
    arguments = VideoDataArguments(
        dataset_name="data", more_protocols=["sftp"], max_video_bytes=10, max_video_seconds=2.5
    )
    access = arguments.access_to("data")
    assert (access.protocols[-1], access.max_bytes, access.max_seconds) == ("sftp", 10, 2.5)
    for wrong in ({"max_video_bytes": 0}, {"max_video_seconds": 0.0}, {"max_video_seconds": float("nan")}):
        with pytest.raises(ValueError, match=r"Got max_video_\w+=.*, expected"):
            VideoDataArguments(dataset_name="data", **wrong)


def test_check_videos_confines(table, capsys):
    """As the other programs that read a dataset."""
    check = load_script("check_videos").main
    assert check([str(table), "--workers", "0"]) == 0
    assert check([str(table), "--workers", "0", "--confine"]) == 1
    assert "train: 1 of 2 videos cannot be read" in capsys.readouterr().out


def test_a_slow_video_does_not_stop_a_run(table, capsys):
    assert load_script("check_videos").main([str(table), "--workers", "0", "--max_video_seconds", "0.000001"]) == 1
    printed = capsys.readouterr().out
    assert "train: 2 of 2 videos cannot be read" in printed
    assert "got no end of decoding within 1e-06 s" in printed
