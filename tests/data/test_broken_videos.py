"""Broken videos: they are replaced, counted and named, and too many of them end a run."""

import json
import re
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builders import FIXTURES, load_script
from torch.utils.data import ConcatDataset, DataLoader

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import VideoClips, VideoReading, load_video_dataset, processor_for
from transformers_lvmae.data.broken_videos import BrokenVideos, TooManyBrokenVideos, read_broken_videos
from transformers_lvmae.models.video_io import write_video
from transformers_lvmae.models.video_seeking import VideoReadError


CONFIG = LVMAEConfig(image_size=32, patch_size=8, num_frames=8)
FAULTS = {
    "truncated.mp4": "Invalid data",
    "truncated_indexed.mp4": "it is truncated",
    "empty.mp4": "got 0 bytes",
    "noise.mp4": "Invalid data",
    "unknown_codec.mp4": "a codec without an FFmpeg decoder",
    "audio_only.mp4": "without a video stream",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 videos to train on: six broken, each in its way (5 %), and one of a single frame. Evaluation has whole ones."""
    folder = tmp_path_factory.mktemp("videos")
    whole = sorted((FIXTURES / "clips" / "train").glob("*.mp4"))
    for split, count in (("train", 120 - len(FAULTS) - 1), ("validation", 4)):
        (folder / split).mkdir()
        for number in range(count):
            shutil.copy(whole[number % len(whole)], folder / split / f"clip_{number:03d}.mp4")
    for name in FAULTS:
        if name != "unknown_codec.mp4":
            shutil.copy(FIXTURES / "odd" / name, folder / "train" / name)
    (folder / "train" / "unknown_codec.mp4").write_bytes(whole[0].read_bytes().replace(b"avc1", b"zzzz"))
    write_video(folder / "train" / "one_frame.mp4", np.full((1, 32, 32, 3), 99, np.uint8))
    return folder


def clips_of(folder, seed=0, **kwargs):
    rows = load_video_dataset(folder)["train"]
    reading = VideoReading(on_error="skip", **kwargs)
    return VideoClips(rows, processor_for(CONFIG), CONFIG.num_frames, training=True, reading=reading, seed=seed)


def row_of(clips, name):
    return next(number for number, row in enumerate(clips.rows) if row["video"]["path"].endswith(f"/{name}"))


def test_pretraining_goes_through_and_names_each_file_and_fault(folder, tmp_path, monkeypatch, caplog):
    fields = {"image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 16, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "intermediate_size": 16, "decoder_hidden_size": 16, "target_type": "pixels"}
    fields |= {"decoder_mask": "none"}
    fields |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    options = ["--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "2"]
    options += ["--report_to", "none", "--use_cpu", "--disable_tqdm", "True", "--config_overrides", json.dumps(fields)]
    arguments = ["pretrain.py", "--dataset_name", str(folder), "--output_dir", str(tmp_path / "run"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    load_script("pretrain").main()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 15
    named = json.loads((tmp_path / "run" / "broken_videos.json").read_text())
    assert {Path(path).name for path in named} == set(FAULTS)
    for path, fault in named.items():
        assert path in fault
        assert FAULTS[Path(path).name] in fault
    writers = list((tmp_path / "run" / "broken_videos").iterdir())
    assert len(writers) == 2  # the two workers
    assert named == read_broken_videos(tmp_path / "run" / "broken_videos")


@pytest.mark.parametrize("options", [[], ["--num_frames", "4"]])
def test_check_videos_names_them_beforehand(folder, tmp_path, options, capsys):
    report = tmp_path / "new" / "broken.json"
    status = load_script("check_videos").main([str(folder), "--workers", "0", "--report", str(report), *options])
    assert status == 1
    broken = json.loads(report.read_text())
    assert {Path(path).name for path in broken} == set(FAULTS)
    printed = capsys.readouterr().out
    assert "train: 6 of 120 videos cannot be read" in printed
    assert "validation: 0 of 4 videos cannot be read" in printed
    assert all(fault in printed for fault in broken.values())


def test_videos_without_names_are_counted_one_by_one(tmp_path, capsys):
    """As bytes in a table."""
    rows = datasets.Dataset.from_dict({"video": [b"no", b"not", b"none"]})
    rows.to_parquet(tmp_path / "t.parquet")
    assert load_script("check_videos").main([str(tmp_path / "t.parquet"), "--workers", "0"]) == 1
    assert "train: 3 of 3 videos cannot be read" in capsys.readouterr().out


def test_a_truncated_video_that_plays_is_used_and_named(tmp_path, capsys):
    """Matroska's header still says how long the video was."""
    frames = np.random.default_rng(0).integers(0, 255, (100, 32, 32, 3), np.uint8)
    (tmp_path / "data").mkdir()
    for name in ("cut.mkv", "whole.mkv"):
        write_video(tmp_path / "data" / name, frames)
    data = (tmp_path / "data" / "cut.mkv").read_bytes()
    (tmp_path / "data" / "cut.mkv").write_bytes(data[: len(data) // 2])
    rows = load_video_dataset(tmp_path / "data")["train"]
    for training in (True, False):
        broken = tmp_path / f"broken_{training}"
        reading = VideoReading(on_error="skip", broken_folder=broken)
        clips = VideoClips(rows, processor_for(CONFIG), CONFIG.num_frames, training=training, reading=reading)
        with clips.broken.reported():
            for epoch in range(2):
                clips.set_epoch(epoch)
                assert all(clips[number].get("is_readable", True) for number in range(2))
        assert clips.broken.failed == 0
        (fault,) = json.loads(broken.with_suffix(".json").read_text()).values()
        assert re.search(
            r"cut\.mkv is used, but seems to be truncated or damaged: got \d\.\d s, expected 4\.0 s by its header",
            fault,
        )
    assert load_script("check_videos").main([str(tmp_path / "data"), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    assert "train: 0 of 2 videos cannot be read" in printed
    assert "train: 1 of 2 videos play, but seem to be truncated or damaged" in printed
    assert "whole.mkv" not in printed


def test_that_a_video_cannot_be_read_outweighs_that_it_was_used(tmp_path):
    broken = BrokenVideos(tmp_path / "broken")
    broken.note("a.mp4", "got 3 s, expected 4 s")
    broken.add("a.mp4", VideoReadError("Cannot read video a.mp4: got nothing"))
    broken.note("b.mp4", "got 3 s, expected 4 s")
    faults = read_broken_videos(tmp_path / "broken")
    assert faults["a.mp4"] == "Cannot read video a.mp4: got nothing"
    assert faults["b.mp4"].startswith("b.mp4 is used")


def test_a_record_that_a_killed_process_left_unfinished(tmp_path):
    broken = BrokenVideos(tmp_path / "broken")
    broken.add("a.mp4", VideoReadError("got nothing"))
    file = next((tmp_path / "broken").iterdir())
    file.write_text(file.read_text() + '{"video": "b.mp4", "fau', encoding="utf-8")
    assert read_broken_videos(tmp_path / "broken") == {"a.mp4": "got nothing"}


def test_check_videos_reads_a_configuration_of_a_hub_dataset(folder, monkeypatch, capsys):
    """Two configurations under one id: in one of them the videos can be read."""
    rows = load_video_dataset(folder)["train"]
    broken = [row_of(clips_of(folder), name) for name in FAULTS]
    whole = [number for number in range(len(rows)) if number not in broken][:2]
    parts = {"broken": rows.select(broken), "whole": rows.select(whole)}

    def load_dataset(name, config_name, streaming=False):
        assert name == "user/name"
        return datasets.DatasetDict(train=parts[config_name].rename_column("video", "film"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for config_name, status in {"broken": 1, "whole": 0}.items():
        options = ["--dataset_config_name", config_name, "--video_column", "film", "--workers", "0"]
        assert load_script("check_videos").main(["user/name", *options]) == status
    assert "train: 0 of 2 videos cannot be read" in capsys.readouterr().out


def test_a_replacement_is_drawn_from_seed_epoch_and_row(folder):
    first, again = clips_of(folder, seed=3), clips_of(folder, seed=3)
    broken = row_of(first, "empty.mp4")
    pixels = first[broken]["pixel_values_videos"]
    again[0]
    assert torch.equal(again[broken]["pixel_values_videos"], pixels)
    again.set_epoch(1)
    assert not torch.equal(again[broken]["pixel_values_videos"], pixels)
    assert not torch.equal(clips_of(folder, seed=4)[broken]["pixel_values_videos"], pixels)
    assert first.broken.failed == 1
    assert first.broken.tried == 2


@pytest.mark.parametrize("failures", [10, 11])
def test_ten_replacements_are_tried(failures, folder, monkeypatch):
    clips = clips_of(folder)
    tries = iter([None] * failures + [["item"]])
    monkeypatch.setattr(clips, "try_row", lambda row: next(tries))
    if failures == 10:
        assert clips[0] == "item"
    else:
        with pytest.raises(VideoReadError, match="Got 11 unreadable videos in a row, expected most of 120 to play"):
            clips[0]


def test_a_video_of_one_frame_is_that_frame_repeated(folder):
    clips = clips_of(folder)
    pixels = clips[row_of(clips, "one_frame.mp4")]["pixel_values_videos"]
    assert pixels.shape == (8, 3, 32, 32)
    assert torch.equal(pixels, pixels[:1].expand_as(pixels))
    assert clips.broken.failed == 0


def test_evaluation_raises_by_default(folder):
    clips = VideoClips(load_video_dataset(folder)["train"], processor_for(CONFIG), 8)
    with pytest.raises(VideoReadError, match=r"empty\.mp4: got 0 bytes"):
        clips[row_of(clips, "empty.mp4")]
    with pytest.raises(ValueError, match="Got on_error='ignore', expected 'raise' or 'skip'"):
        VideoReading(on_error="ignore")


def test_too_many_broken_videos_end_the_run(folder, tmp_path):
    rows = load_video_dataset(folder)["train"]
    broken = [row_of(clips_of(folder), name) for name in FAULTS]
    for workers in (0, 1):
        clips = clips_of(folder, max_broken_share=0.02, broken_folder=tmp_path / str(workers))
        clips.rows = rows.select([*broken, *range(20)])
        loader = DataLoader(ConcatDataset([clips] * 3), batch_size=2, num_workers=workers)
        with pytest.raises(TooManyBrokenVideos, match=r"Got 3 unreadable videos .* at most a share of 0\.02: repair"):
            list(loader)
        assert set(read_broken_videos(tmp_path / str(workers))) <= {rows[number]["video"]["path"] for number in broken}
        assert len(read_broken_videos(tmp_path / str(workers))) >= 3


def test_the_share_is_of_the_videos_tried():
    broken = BrokenVideos(max_share=0.1)
    for number in range(50):
        broken.tried += 10
        broken.add(f"{number}.mp4", ValueError("fault"))
    broken.tried = 505
    with pytest.raises(TooManyBrokenVideos, match="Got 51 unreadable videos of the 505"):
        broken.add("51.mp4", ValueError("fault"))


def test_a_video_that_fails_again_counts_again_and_is_named_once(tmp_path):
    broken = BrokenVideos(tmp_path / "broken")
    for _ in range(2):
        broken.note("cut.mp4", "it is truncated")
        broken.note("whole.mp4", None)
        broken.add("a.mp4", ValueError("fault"))
    assert (broken.failed, broken.tried) == (2, 0)
    (file,) = (tmp_path / "broken").iterdir()
    assert [json.loads(line)["video"] for line in file.read_text().splitlines()] == ["cut.mp4", "a.mp4"]


def test_ten_percent_of_the_tried_is_not_too_much():
    broken = BrokenVideos(max_share=0.1)
    broken.tried, broken.failed = 200, 19
    broken.add("20.mp4", ValueError("fault"))
    with pytest.raises(TooManyBrokenVideos, match="Got 21 unreadable videos of the 200"):
        broken.add("21.mp4", ValueError("fault"))
