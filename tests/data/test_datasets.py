"""Loading rows of videos from folders, lists, tables and datasets."""

import csv
import os
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from builders import FIXTURES

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import VideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.data.datasets import rows_fingerprint
from transformers_lvmae.models.video_io import decode_video


VIDEOS = sorted((FIXTURES / "clips" / "train").glob("*.mp4"))
CONFIG = LVMAEConfig(image_size=32, patch_size=8, num_frames=8)


def paths(rows):
    return [row["video"]["path"] for row in rows]


@pytest.fixture(params=[False, True], ids=["whole", "streaming"])
def streaming(request):
    return request.param


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "start", "end", "label"), *rows])


def test_a_list_has_paths_relative_to_itself(tmp_path, streaming):
    relative = [os.path.relpath(video, tmp_path) for video in VIDEOS[:3]]
    (tmp_path / "videos.txt").write_text("\n".join([*relative, "", str(VIDEOS[3])]) + "\n", encoding="utf-8")
    splits = load_video_dataset(tmp_path / "videos.txt", streaming=streaming)
    assert list(splits) == ["train"]
    assert paths(splits["train"]) == [str(video) for video in VIDEOS[:4]]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_has_segments_and_labels(kind, tmp_path, streaming):
    file = tmp_path / f"videos.{kind}"
    rows = [(os.path.relpath(VIDEOS[0], tmp_path), 0.2, 0.6, "up"), (str(VIDEOS[1]), None, None, "down")]
    table = {name: list(column) for name, column in zip(("video", "start", "end", "label"), zip(*rows))}
    if kind == "csv":
        write_csv(file, rows)
    elif kind == "tsv":
        datasets.Dataset.from_dict(table).to_csv(file, sep="\t")
    else:
        getattr(datasets.Dataset.from_dict(table), {"parquet": "to_parquet", "jsonl": "to_json"}[kind])(file)
    loaded = load_video_dataset(file, label_column="label", streaming=streaming)["train"]
    assert loaded.features["label"].names == ["down", "up"]
    assert [row["label"] for row in loaded] == [1, 0]
    clips = VideoClips(list(loaded), processor_for(CONFIG), 4)
    expected = [
        decode_video(VIDEOS[0], lambda metadata: range(0, 10, 10 // 4)[:4], start=0.2, end=0.6)[0],
        decode_video(VIDEOS[1], lambda metadata: [0, 8, 16, 24])[0],
    ]
    assert [row["video"]["path"] for row in loaded] == [str(VIDEOS[0]), str(VIDEOS[1])]
    assert torch.equal(clips.read_clips(clips.rows[1])[0], expected[1])
    total = decode_video(VIDEOS[0], lambda metadata: range(metadata.total_num_frames), start=0.2, end=0.6)[0]
    indices = [number * len(total) // 4 for number in range(4)]
    assert torch.equal(clips.read_clips(clips.rows[0])[0], total[indices])


def test_several_files_and_splits(tmp_path, streaming):
    for name, videos in (("a", VIDEOS[:2]), ("b", VIDEOS[2:5]), ("c", VIDEOS[5:6])):
        write_csv(tmp_path / f"{name}.csv", [(video, "", "", name) for video in videos])
    name = f"train={tmp_path}/a.csv,train={tmp_path}/b.csv,validation={tmp_path}/c.csv"
    mapping = {"train": [tmp_path / "a.csv", tmp_path / "b.csv"], "validation": tmp_path / "c.csv"}
    for source in (name, mapping):
        splits = load_video_dataset(source, label_column="label", streaming=streaming)
        assert paths(splits["train"]) == [str(video) for video in VIDEOS[:5]]
        assert paths(splits["validation"]) == [str(VIDEOS[5])]
        assert splits["validation"].features["label"].names == ["a", "b", "c"]
    first = select_split(splits, "train", 2)
    assert paths(first) == [str(video) for video in VIDEOS[:2]]


def test_a_folder_may_hold_any_kind_of_video(tmp_path, streaming):
    for name, source in {
        "train/up/a.webm": FIXTURES / "odd" / "clip.webm",
        "train/down/b.mkv": FIXTURES / "odd" / "clip.mkv",
        "train/down/c.m4v": VIDEOS[0],
        "test/up/d.mp4": VIDEOS[1],
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    splits = load_video_dataset(tmp_path, label_column="label", streaming=streaming)
    assert splits["train"].features["label"].names == ["down", "up"]
    found = {Path(row["video"]["path"]).name: row["label"] for row in splits["train"]}
    assert found == {"a.webm": 1, "b.mkv": 0, "c.m4v": 0}
    assert [Path(path).name for path in paths(splits["test"])] == ["d.mp4"]


def test_a_saved_dataset(tmp_path, streaming):
    load_video_dataset(FIXTURES / "clips").save_to_disk(tmp_path / "saved")
    splits = load_video_dataset(tmp_path / "saved", label_column="label", streaming=streaming)
    assert [row["video"]["bytes"] for row in splits["train"]] == [video.read_bytes() for video in VIDEOS]


def test_what_cannot_be_a_table_is_named(tmp_path):
    (tmp_path / "videos.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Got .*videos\.xlsx, expected an existing file that ends in one of"):
        load_video_dataset(tmp_path / "videos.xlsx")
    with pytest.raises(ValueError, match=r"Got .*gone\.csv, expected an existing file"):
        load_video_dataset(f"train={tmp_path}/gone.csv")
    write_csv(tmp_path / "videos.csv", [("a.mp4", 0, 1, "x")])
    with pytest.raises(ValueError, match=r"Got columns \['video', .* expected 'clip'"):
        load_video_dataset(tmp_path / "videos.csv", video_column="clip")


def test_a_fingerprint_tells_rows_apart_wherever_they_lie():
    def fingerprint(paths=("/data/cat/1.mp4", "/data/dog/2.mp4"), ends=(1.0, 2.0), labels=(0, 1), columns="label"):
        cells = {"video": [{"path": path, "bytes": None} for path in paths], "end": list(ends), "label": list(labels)}
        rows = datasets.Dataset.from_dict(cells).cast_column("video", datasets.Video(decode=False))
        return rows_fingerprint(rows, label_column=columns)

    one = fingerprint()
    assert one["rows"] == 2
    assert fingerprint(("/moved/to/cat/1.mp4", "/moved/to/dog/2.mp4")) == one
    others = [
        fingerprint(("/data/cat/1.mp4", "/data/cat/2.mp4")),
        fingerprint(("/data/cat/1.mp4", "/data/dog/3.mp4")),
        fingerprint(ends=(1.0, 3.0)),
        fingerprint(labels=(1, 0)),
        fingerprint(("/data/dog/2.mp4", "/data/cat/1.mp4"), (2.0, 1.0), (1, 0)),
    ]
    assert one not in others
    assert fingerprint(labels=(1, 0), columns=None) == fingerprint(columns=None)


def test_a_label_of_minus_one_is_no_label(tmp_path):
    """As test splits on the Hub have. Beside rows with labels, such a row is named."""
    videos = [{"path": str(video), "bytes": None} for video in VIDEOS[:2]]

    def load(name, **labels):
        splits = {
            split: datasets.Dataset.from_dict({"video": videos, "label": given}) for split, given in labels.items()
        }
        feature = datasets.ClassLabel(names=["a", "b"])
        datasets.DatasetDict(splits).cast_column("label", feature).save_to_disk(tmp_path / name)
        return load_video_dataset(tmp_path / name, label_column="label")

    splits = load("unlabelled", train=[0, 1], test=[-1, -1])
    assert splits["train"]["label"][:] == [0, 1]
    assert splits["test"].column_names == ["video"]
    with pytest.raises(ValueError, match=r"Got no label in row 2 of split 'test'"):
        load("partly", train=[0, 1], test=[0, -1])
