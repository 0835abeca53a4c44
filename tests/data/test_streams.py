"""Streams of clips: split, shuffled, resumed, reproducible."""

import json
import shutil
import sys
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from builders import CLIPS, load_script
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import (
    ClipAugmentation,
    FrameSampling,
    VideoClips,
    VideoReading,
    load_video_dataset,
    processor_for,
)
from transformers_lvmae.data.streams import VideoStream, trainer_dataset


ODD = CLIPS.parent / "odd"
CONFIG = LVMAEConfig(image_size=32, patch_size=8, num_frames=4)


def number(row):
    return int(Path(row["video"]["path"]).stem.removeprefix("clip_"))


class NamedClips(VideoClips):
    """Clips that say which video they are of."""

    def make_item(self, row, clip):
        return {**super().make_item(row, clip), "label": number(row)}


@pytest.fixture(scope="module")
def rows():
    return load_video_dataset(CLIPS, streaming=True)["train"]


def stream(rows, training=True, buffer_size=4, **kwargs):
    return VideoStream(NamedClips(rows, processor_for(CONFIG), 4, training=training, **kwargs), buffer_size)


def names(items):
    return [int(item["label"]) for item in items]


@pytest.fixture(scope="module")
def all_names(rows):
    return [number(row) for row in rows]


def test_training_goes_round_in_ever_other_orders(rows, all_names):
    seen = names(islice(stream(rows), 48))
    epochs = [seen[start : start + 16] for start in (0, 16, 32)]
    assert all(sorted(epoch) == sorted(all_names) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert names(islice(stream(rows), 48)) == seen
    assert names(islice(stream(rows, seed=1), 16)) != seen[:16]


def test_evaluation_is_one_pass_in_order(rows, all_names):
    assert names(stream(rows, training=False)) == all_names


def test_processes_and_workers_share_the_rows(rows, all_names):
    for processes, workers in ((2, 0), (3, 0), (2, 2)):
        parts = []
        for index in range(processes):
            loader = DataLoader(stream(rows), batch_size=2, num_workers=workers)
            prepared = prepare_data_loader(
                loader, num_processes=processes, process_index=index, dispatch_batches=False, put_on_device=False
            )
            assert isinstance(prepared.dataset, VideoStream)
            part = len(all_names) // processes + (index < len(all_names) % processes)
            batches = islice(prepared, -(-part // 2))
            parts.append([name for batch in batches for name in batch["label"].tolist()][:part])
        assert sorted(chain(*parts)) == sorted(all_names)


def test_a_clip_depends_on_seed_epoch_and_video_alone(rows):
    options = {"sampling": FrameSampling(frame_jitter=True), "augmentation": ClipAugmentation(min_crop_scale=0.3)}
    alone = {int(item["label"]): item for item in islice(stream(rows, **options), 16)}
    second = stream(rows, buffer_size=16, **options).shard(2, 1)
    for item in islice(second, 8):
        assert torch.equal(item["pixel_values_videos"], alone[int(item["label"])]["pixel_values_videos"])
    later = list(islice(second, 16))[8:]
    for item in later:
        assert not torch.equal(item["pixel_values_videos"], alone[int(item["label"])]["pixel_values_videos"])


def test_rows_of_a_stream_draw_differently(rows):
    """Other segments of one video, and other videos without a name or with the same, draw other numbers."""
    clips = stream(rows, augmentation=ClipAugmentation(min_crop_scale=0.3)).clips
    row = next(iter(rows))
    others = [row, {**row, "start": 0.2}, {**row, "end": 0.9}]
    videos = [path.read_bytes() for path in sorted(CLIPS.glob("train/*.mp4"))[:2]]
    others += [{"video": {"path": name, "bytes": video}} for name in (None, "clip.mp4") for video in videos]
    seen = []
    for one in others:
        maker = VideoStream(clips, 4)
        clips.try_row = lambda row: [torch.rand(4).tolist()]
        seen.append(tuple(maker._items(0, one)[0]))
    assert len(set(seen)) == len(others)


def test_it_goes_on_where_it_was(rows):
    whole = names(islice(stream(rows, buffer_size=1), 40))
    interrupted = stream(rows, buffer_size=1)
    iterator = iter(interrupted)
    begun = names(islice(iterator, 21))
    resumed = stream(rows, buffer_size=1)
    resumed.load_state_dict(interrupted.state_dict())
    assert begun + names(islice(resumed, 19)) == whole


def test_broken_videos_are_passed_over(tmp_path):
    good = sorted((CLIPS / "train").glob("*.mp4"))[:3]
    listed = [good[0], ODD / "noise.mp4", good[1], ODD / "empty.mp4", good[2]]
    (tmp_path / "videos.txt").write_text("\n".join(map(str, listed)), encoding="utf-8")
    rows = load_video_dataset(tmp_path / "videos.txt", streaming=True)["train"]
    reading = VideoReading(num_clips=2, on_error="skip")
    clips = VideoClips(rows, processor_for(CONFIG), 4, training=True, reading=reading)
    assert len(list(islice(trainer_dataset(clips), 12))) == 12
    assert clips.broken.failed >= 2
    with pytest.raises(ValueError, match="Cannot read video"):
        list(VideoStream(VideoClips(rows, processor_for(CONFIG), 4)))


def pretrain(monkeypatch, output_dir):
    fields = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "intermediate_size": 16, "decoder_hidden_size": 16, "target_type": "pixels"}
    fields |= {"decoder_mask": "none"}
    fields |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    options = ["--streaming", "--shuffle_buffer", "8", "--max_steps", "6", "--per_device_train_batch_size", "4"]
    options += ["--frame_jitter", "--crop_scales", "1", "0.75", "--horizontal_flip", "--num_clips", "2"]
    options += [
        "--save_steps",
        "3",
        "--eval_split",
        "test",
        "--report_to",
        "none",
        "--use_cpu",
        "--disable_tqdm",
        "True",
    ]
    arguments = ["--dataset_name", str(CLIPS), "--output_dir", str(output_dir), *options]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments, "--config_overrides", json.dumps(fields)])
    load_script("pretrain").main()


def test_a_resumed_run_sees_what_the_uninterrupted_one_sees(tmp_path, monkeypatch):
    """`pretrain.py --streaming`, killed after half of its steps; 6 steps of 4 clips are more than half an epoch."""
    pretrain(monkeypatch, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    pretrain(monkeypatch, tmp_path / "resumed")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    metrics = json.loads((tmp_path / "whole" / "all_results.json").read_text())
    assert 0 < metrics["eval_loss"] < 10


def test_clips_with_random_access_stay_as_they_are():
    clips = VideoClips(load_video_dataset(CLIPS)["train"], processor_for(CONFIG), 4)
    assert trainer_dataset(clips) is clips
