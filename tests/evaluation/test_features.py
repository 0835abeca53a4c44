"""Frozen features: a naive loop over files, sliding clips, shards that survive a kill, several processes."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builders import CLIPS, SCRIPTS, assert_same, load_script, tiny_config
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from transformers_lvmae.command_line import sentence_of
from transformers_lvmae.data import TooManyBrokenVideos, VideoClips, load_video_dataset, processor_for
from transformers_lvmae.data.broken_videos import BrokenVideos
from transformers_lvmae.evaluation.features import (
    TokenFeatures,
    encode_clips,
    load_features,
    sliding_rows,
    sliding_segments,
)
from transformers_lvmae.models.video_io import write_video
from transformers_lvmae.models.video_seeking import VideoReadError


extract = load_script("extract_features").main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "pretrain"
    torch.manual_seed(0)
    model = LVMAEForPreTraining(tiny_config())
    model.save_pretrained(folder)
    processor_for(model.config).save_pretrained(folder)
    return folder


@torch.no_grad()
def naive_tokens(checkpoint, path, **segment):
    """Read a whole file, cut the segment out of its frames by their times, encode it alone."""
    model = LVMAEModel.from_pretrained(checkpoint).eval()
    processor = processor_for(model.config)
    frames, metadata = processor.fetch_videos(path)
    times = np.arange(len(frames)) / metadata.fps
    inside = (times >= segment.get("start", 0) - 1e-6) & (times < segment.get("end", np.inf) - 1e-6)
    frames = frames[torch.from_numpy(inside)]
    frames = frames[np.arange(8) * len(frames) // 8]
    return model(processor(frames, return_tensors="pt")["pixel_values_videos"]).last_hidden_state[0]


def test_clip_features_are_the_mean_of_the_tokens_and_labels_come_along(checkpoint, tmp_path):
    extract([str(checkpoint), str(CLIPS), str(tmp_path), "--batch_size", "3", "--shard_size", "3", "--splits", "test"])
    clips = datasets.load_dataset("parquet", data_files=str(tmp_path / "test-*.parquet"))["train"]
    assert clips.features["features"] == datasets.List(datasets.Value("float32"), length=32)
    rows = load_video_dataset(CLIPS)["test"]
    assert len(list(tmp_path.glob("test-*-of-00003.parquet"))) == 3
    assert clips["row"][:] == list(range(8))
    assert clips["label"][:] == rows["label"][:]
    assert clips["digit_image"][:] == rows["digit_image"][:]
    for number in (0, 4, 7):
        path = rows[number]["video"]["path"]
        assert clips[number]["video"] == path
        expected = naive_tokens(checkpoint, path).mean(dim=0)
        np.testing.assert_allclose(clips[number]["features"], expected, rtol=1e-4, atol=1e-5)


def test_class_labels_keep_their_names(checkpoint, tmp_path):
    splits = load_video_dataset(CLIPS, label_column="label")
    splits.rename_column("video", "film").save_to_disk(tmp_path / "dataset")
    options = ["--splits", "test", "--video_column", "film"]
    extract([str(checkpoint), str(tmp_path / "dataset"), str(tmp_path / "out"), *options])
    clips = load_features(tmp_path / "out", "test")
    assert clips.features["label"] == splits["test"].features["label"]
    assert clips["label"][:] == splits["test"]["label"][:]


def test_sliding_clips_of_long_videos_have_times_and_features_of_their_own(checkpoint, tmp_path):
    arguments = [
        "--splits",
        "test",
        "--clip_seconds",
        "0.5",
        "--stride_seconds",
        "0.3",
        "--tokens",
        "--batch_size",
        "4",
    ]
    extract([str(checkpoint), str(CLIPS), str(tmp_path), *arguments])
    clips = load_features(tmp_path, "test")  # 32 frames, 25 a second: 1.28 s
    assert "features" not in clips.column_names
    times = [(row["start"], row["end"]) for row in clips.select(range(4))]
    np.testing.assert_allclose(times, [(0, 0.5), (0.3, 0.8), (0.6, 1.1), (0.78, 1.28)], atol=1e-9)
    assert clips["row"][:] == [number for number in range(8) for _ in range(4)]
    tokens = TokenFeatures(tmp_path, "test", clips["digit"][:])
    for number in (0, 2, 3, 31):
        row = clips[number]
        expected = naive_tokens(checkpoint, row["video"], start=row["start"], end=row["end"])
        np.testing.assert_allclose(tokens[number]["tokens"], expected, rtol=2e-3, atol=2e-3)
        assert tokens[number]["labels"] == row["digit"]


def test_tokens_of_several_shards_are_read_in_order_in_workers_too(checkpoint, tmp_path):
    arguments = ["--tokens", "--splits", "test", "--shard_size", "3"]
    extract([str(checkpoint), str(CLIPS), str(tmp_path), *arguments])
    tokens = TokenFeatures(tmp_path, "test")
    paths = load_features(tmp_path, "test")["video"][:]
    alone = [tokens[number]["tokens"] for number in range(8)]
    np.testing.assert_allclose(alone[6], naive_tokens(checkpoint, paths[6]), rtol=2e-3, atol=2e-3)
    loaded = torch.cat([batch["tokens"] for batch in DataLoader(tokens, batch_size=3, num_workers=1)])
    assert torch.equal(loaded, torch.stack(alone))
    assert "positions" not in load_features(tmp_path, "test").column_names


def test_chosen_tokens_have_their_positions(tmp_path):
    torch.manual_seed(0)
    model = LVMAEForVideoClassification(tiny_config(token_keep_ratio=0.25, token_selection="motion")).eval()
    model.save_pretrained(tmp_path / "model")
    processor_for(model.config).save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(CLIPS), str(tmp_path / "out"), "--tokens", "--splits", "test"]
    extract([*arguments, "--shard_size", "3"])
    tokens, rows = TokenFeatures(tmp_path / "out", "test"), load_features(tmp_path / "out", "test")
    clips = VideoClips(load_video_dataset(CLIPS)["test"], processor_for(model.config), 8)
    with torch.no_grad():
        outputs = model.lvmae(torch.stack([clips[number]["pixel_values_videos"] for number in range(8)]))
    assert rows["positions"][:] == outputs.visible_positions.tolist()
    found = torch.stack([tokens[number]["tokens"] for number in range(8)])
    torch.testing.assert_close(found, outputs.last_hidden_state, rtol=2e-3, atol=2e-3)
    # Another processor than the model knows would make it choose other tokens.
    processor_for(model.config, image_std=[0.5, 0.5, 0.5]).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="Got a processor with image_mean and image_std"):
        extract([*arguments[:2], str(tmp_path / "other"), "--splits", "test"])


@pytest.mark.parametrize(
    ("segment", "clip", "stride", "expected"),
    [
        ((0, 10), 4, 4, [(0, 4), (4, 8), (6, 10)]),
        ((0, 8), 4, 4, [(0, 4), (4, 8)]),
        ((0, 8.25), 4, 4, [(0, 4), (4, 8), (4.25, 8.25)]),
        ((1, 2), 4, 4, [(1, 2)]),
        ((2, 7), 4, 0.5, [(2, 6), (2.5, 6.5), (3, 7)]),
        ((0, 10), 2, 6, [(0, 2), (6, 8), (8, 10)]),
    ],
)
def test_sliding_segments(segment, clip, stride, expected):
    assert sliding_segments(*segment, clip, stride) == expected


def test_clips_slide_over_a_row_s_part_of_its_video(tmp_path):
    """Of a video of two seconds; a file that cannot be read counts as tried."""
    write_video(tmp_path / "1.mp4", np.zeros((20, 16, 16, 3), np.uint8), fps=10)
    (tmp_path / "broken.mp4").write_bytes(b"no video")

    def clips(start, end, name="1.mp4", broken=None):
        rows = [{"video": str(tmp_path / name), "start": start, "end": end}]
        return [(row["start"], row["end"]) for row in sliding_rows(rows, 1.0, 0.5, broken=broken)]

    np.testing.assert_allclose(clips(None, None), [(0, 1), (0.5, 1.5), (1, 2)])
    np.testing.assert_allclose(clips(0.5, None), [(0.5, 1.5), (1, 2)])
    np.testing.assert_allclose(clips(0.5, 9.0), [(0.5, 1.5), (1, 2)])
    np.testing.assert_allclose(clips(0.5, 1.2), [(0.5, 1.2)])
    broken = BrokenVideos()
    assert clips(None, None, "broken.mp4", broken) == []
    assert (broken.tried, broken.failed) == (1, 1)
    with pytest.raises(VideoReadError, match=r"broken\.mp4"):
        clips(None, None, "broken.mp4")


def test_a_stride_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive numbers of seconds"):
        sliding_segments(0, 10, 4, 0)


class OneClip(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"pixel_values_videos": torch.ones(8, 3, 32, 32)}


def test_features_are_those_of_evaluation():
    """Dropout is for training; a half-open file of numbers that are not finite is for nobody."""
    model = LVMAEModel(tiny_config(hidden_dropout_prob=0.5)).train()
    ((pooled, readable, _),) = encode_clips(model, OneClip(), pool=True)
    with torch.no_grad():
        expected = model.eval()(torch.ones(1, 8, 3, 32, 32)).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(pooled, expected)
    assert readable.tolist() == [True]


def test_features_that_are_not_finite_are_refused():
    model = LVMAEModel(tiny_config())
    torch.nn.init.constant_(model.layernorm.bias, 7e4)
    ((pooled, *_),) = encode_clips(model, OneClip(), pool=True)
    assert pooled.isfinite().all()
    with pytest.raises(ValueError, match=r"Got features up to inf, expected finite numbers below 65,504"):
        list(encode_clips(model, OneClip(), pool=False))  # too large for float16


def test_a_killed_run_goes_on_and_makes_no_finished_shard_again(checkpoint, tmp_path):
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path / "killed"), "--shard_size", "1", "--splits", "train"]
    command = [sys.executable, str(SCRIPTS / "extract_features.py"), *arguments]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
        while len(list((tmp_path / "killed").glob("*.parquet"))) < 2:
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.parquet")}
    assert len(done) < 16
    with pytest.raises(ValueError, match=f"Got {len(done)} shards .* expected 16: run extract_features.py again"):
        load_features(tmp_path / "killed", "train")
    extract(arguments)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    whole = tmp_path / "whole"
    extract([*arguments[:2], str(whole), *arguments[3:]])
    assert load_features(tmp_path / "killed", "train").to_dict() == load_features(whole, "train").to_dict()


def test_other_settings_are_not_mixed_into_a_folder(checkpoint, tmp_path):
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path), "--splits", "test"]
    extract(arguments)
    with pytest.raises(ValueError, match=r"Got frame_stride=2 .* made with frame_stride=None, expected the same"):
        extract([*arguments, "--frame_stride", "2"])
    with pytest.raises(ValueError, match=r"without tokens, expected .safetensors"):
        TokenFeatures(tmp_path, "test")
    with pytest.raises(ValueError, match=r"Got split 'train' .* expected one of \['test'\]"):
        load_features(tmp_path, "train")


def test_other_weights_and_other_rows_under_the_same_names_are_refused(checkpoint, tmp_path):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(checkpoint, model)
    shutil.copytree(CLIPS, data)
    arguments = [str(model), str(data), str(tmp_path / "features"), "--splits", "test"]
    extract(arguments)
    weights = load_file(model / "model.safetensors")
    next(value for name, value in weights.items() if name.startswith("lvmae.")).view(-1)[0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"Got weights='.*' and shards .* expected the same"):
        extract(arguments)
    shutil.copy(checkpoint / "model.safetensors", model / "model.safetensors")
    extract(arguments)
    (data / "test" / "clip_00000.mp4").rename(data / "test" / "clip_10000.mp4")
    text = (data / "test" / "metadata.csv").read_text()
    (data / "test" / "metadata.csv").write_text(text.replace("clip_00000.mp4", "clip_10000.mp4"))
    with pytest.raises(ValueError, match=r"Got rows_digest='.*' and shards .* expected the same"):
        extract(arguments)


def test_all_that_differs_is_listed_and_what_is_not_known_is_said(checkpoint, tmp_path, caplog, monkeypatch):
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path), "--splits", "test"]
    extract(arguments)
    with pytest.raises(
        ValueError,
        match=r"Got clip_seconds=2.0, frame_stride=2 and shards .* with clip_seconds=None, frame_stride=None,",
    ):
        extract([*arguments, "--frame_stride", "2", "--clip_seconds", "2"])
    settings = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps({**settings, "precision": "bf16"}))
    with pytest.raises(ValueError, match="Got precision='no' and shards"):
        extract(arguments)
    monkeypatch.setattr(logging.getLogger("transformers_lvmae"), "propagate", True)
    new = ("config", "precision", "rows", "rows_digest", "weights")
    (tmp_path / "test.json").write_text(
        json.dumps({name: value for name, value in settings.items() if name not in new})
    )
    extract(arguments)
    (message,) = [record.getMessage() for record in caplog.records if "does not say" in record.getMessage()]
    assert "config, precision, rows, rows_digest, weights its shards were made" in message


@pytest.mark.parametrize("options", [[], ["--tokens"]])
def test_damaged_shards_are_refused_by_name_and_made_again(options, checkpoint, tmp_path, caplog, monkeypatch):
    """Half of a file, an empty one, and a flipped bit in 60 places; a bit changes nothing that is read, or the file is named."""
    monkeypatch.setattr(logging.getLogger("transformers_lvmae"), "propagate", True)
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path), "--splits", "test", "--shard_size", "2", *options]
    extract(arguments)

    def read():
        clips = load_features(tmp_path, "test").to_dict()
        return clips, [
            item["tokens"] for item in map(TokenFeatures(tmp_path, "test").__getitem__, range(8))
        ] if options else []

    expected, draw = read(), random.Random(0)
    for suffix in (".parquet", ".safetensors") if options else (".parquet",):
        path = tmp_path / f"test-00001-of-00004{suffix}"
        whole, found = path.read_bytes(), []
        places = [draw.randrange(len(whole)) for _ in range(60)]
        flips = [
            whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :] for place in places
        ]
        for number, damaged in enumerate([whole[: len(whole) // 2], b"", *flips]):
            path.write_bytes(damaged)
            try:
                assert_same(read(), expected)
            except ValueError as error:
                found.append(str(error))
            if number < 2:
                caplog.clear()
                extract(arguments)
                assert any(f"Got a damaged file {path}" in record.getMessage() for record in caplog.records)
                assert path.read_bytes() == whole
        assert len(found) > 20
        assert [message for message in found if f"Got a damaged file {path}, expected" not in message] == []
        path.write_bytes(whole)


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(checkpoint, tmp_path):
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path), "--splits", "test", "--shard_size", "4", "--tokens"]
    full = tmp_path / ".test-00001-of-00002.parquet.part"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        extract(arguments)
    assert sentence_of(raised.value).startswith("Got a full disk (")
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["test-00000-of-00002.parquet"]
    full.unlink(missing_ok=True)
    extract(arguments)
    assert len(TokenFeatures(tmp_path, "test")) == 8


@pytest.fixture
def partly_broken(tmp_path):
    """Eight test videos, of which the first, the fourth and the fifth cannot be read."""
    folder = tmp_path / "partly_broken"
    shutil.copytree(CLIPS / "test", folder / "test")
    for number in (0, 3, 4):
        (folder / "test" / f"clip_{number:05d}.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.parametrize("options", [[], ["--clip_seconds", "0.5", "--num_workers", "1"]])
def test_videos_that_cannot_be_read_are_missing_by_number_and_named(options, checkpoint, partly_broken, tmp_path):
    """Shards of one row, so that some are empty, and of three."""
    options = ["--splits", "test", "--batch_size", "2", *options]
    extract([str(checkpoint), str(CLIPS), str(tmp_path / "whole"), *options])
    whole = load_features(tmp_path / "whole", "test")
    kept = whole.filter(lambda row: row["row"] not in (0, 3, 4))
    assert 5 <= len(kept) < len(whole)
    for size in ("1", "3"):
        output = tmp_path / size
        extract([str(checkpoint), str(partly_broken), str(output), "--shard_size", size, *options])
        found = load_features(output, "test")
        assert found["row"][:] == kept["row"][:]
        assert found["label"][:] == kept["label"][:]
        read = datasets.load_dataset("parquet", data_files=str(output / "test-*.parquet"))["train"]
        assert read["row"][:] == kept["row"][:]
        np.testing.assert_allclose(found["features"][:], kept["features"][:], rtol=1e-5, atol=1e-6)
        named = json.loads((output / "broken_videos.json").read_text())
        assert [Path(name).name for name in named] == [f"clip_{number:05d}.mp4" for number in (0, 3, 4)]
    tokens = tmp_path / "tokens"
    extract([str(checkpoint), str(partly_broken), str(tokens), "--shard_size", "1", "--tokens", *options])
    means = torch.stack(
        [item["tokens"].mean(dim=0) for item in map(TokenFeatures(tokens, "test").__getitem__, range(len(kept)))]
    )
    np.testing.assert_allclose(means, kept["features"][:], atol=2e-3)
    with pytest.raises(ValueError, match=r"expected one of \['test'\]"):
        load_features(output, "train")


def test_extraction_stops_at_too_many_or_at_the_first(checkpoint, tmp_path):
    table = tmp_path / "table.csv"
    videos = [str(CLIPS / "test" / "clip_00000.mp4"), *[str(tmp_path / f"none_{number}.mp4") for number in range(12)]]
    table.write_text("\n".join(["video", *videos]) + "\n")
    options = ["--shard_size", "4", "--batch_size", "4"]
    with pytest.raises(TooManyBrokenVideos, match=r"Got 11 unreadable videos of the 12 .* raise max_broken_share"):
        extract([str(checkpoint), str(table), str(tmp_path / "some"), *options])
    with pytest.raises(VideoReadError, match=r"none_0\.mp4"):
        extract([str(checkpoint), str(table), str(tmp_path / "raise"), "--on_error", "raise", *options])
    extract([str(checkpoint), str(table), str(tmp_path / "all"), "--max_broken_share", "1", *options])
    assert load_features(tmp_path / "all", "train")["row"][:] == [0]


@pytest.mark.slow
def test_two_processes_make_the_shards_of_one(checkpoint, tmp_path):
    launch = [shutil.which("accelerate", path=Path(sys.executable).parent), "launch", "--num_processes", "2", "--cpu"]
    arguments = [str(checkpoint), str(CLIPS), str(tmp_path / "two"), "--shard_size", "3", "--splits", "train"]
    subprocess.run([*launch, str(SCRIPTS / "extract_features.py"), *arguments], check=True, capture_output=True)
    extract([*arguments[:2], str(tmp_path / "one"), *arguments[3:]])
    one, two = load_features(tmp_path / "one", "train"), load_features(tmp_path / "two", "train")
    np.testing.assert_allclose(two["features"][:], one["features"][:], rtol=1e-5, atol=1e-6)
    assert two["video"][:] == one["video"][:]
