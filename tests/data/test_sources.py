"""Every kind of source of rows: folders, lists, tables, shards, saved datasets, patterns, mappings, and streams of each.

A video's brightness is 20 times its number, so that a frame says which video it is of.
"""

import csv
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import datasets
import pytest
from builders import ROOT, load_script, write_gray_video

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import VideoClips, load_video_dataset, processor_for, select_split, sources, video_files
from transformers_lvmae.data.streams import VideoStream
from transformers_lvmae.data.tables import AnnotationError
from transformers_lvmae.data.video_files import VIDEO_ENDINGS
from transformers_lvmae.models.video_io import decode_video


datasets.disable_progress_bars()
TRAIN = {1: "cat", 2: "dog", 3: "cat"}
TEST = {4: "dog"}
Rows = list[tuple[int, str | None]]
Made = tuple[object, dict[str, Rows]]  # what is given to load_video_dataset, and the rows that must come out
WHOLE: dict[str, Rows] = {"train": list(TRAIN.items()), "test": list(TEST.items())}
ONLY_TRAIN: dict[str, Rows] = {"train": list(TRAIN.items())}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    for number in range(1, 7):
        write_gray_video(folder / f"{number}.mp4", 20 * number)
    return folder


class Maker:
    """Puts videos and files into a folder."""

    def __init__(self, root: Path, videos: Path):
        self.root, self.videos = root, videos

    def put(self, *names: str) -> None:
        """Copy the video with the number of each name's stem ("train/cat/1.mp4")."""
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.videos / f"{path.stem.split('_')[-1]}.mp4", path)

    def write(self, name: str, text: str, encoding: str = "utf-8") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path

    def table(self, name: str, numbers: dict[int, str], column: str = "video", separator: str = ",") -> Path:
        """Write a table of videos in the folder `v`, and put them there."""
        self.put(*(f"v/{number}.mp4" for number in numbers))
        folder = os.path.relpath(self.root / "v", (self.root / name).parent)
        text = io.StringIO()
        rows = [(f"{folder}/{number}.mp4", label) for number, label in numbers.items()]
        csv.writer(text, delimiter=separator).writerows([(column, "label"), *rows])
        return self.write(name, text.getvalue())

    def dataset(self, numbers: dict[int, str], with_bytes: bool = True) -> datasets.Dataset:
        self.put(*(f"v/{number}.mp4" for number in numbers))
        cells = [
            {"path": f"{number}.mp4", "bytes": (self.videos / f"{number}.mp4").read_bytes()}
            if with_bytes
            else f"v/{number}.mp4"
            for number in numbers
        ]
        feature = datasets.Video(decode=False) if with_bytes else datasets.Value("string")
        features = datasets.Features({"video": feature, "label": datasets.Value("string")})
        return datasets.Dataset.from_dict({"video": cells, "label": list(numbers.values())}, features=features)

    def tar(self, name: str, numbers: dict[int, str], kind: str = "json", ending: str = "mp4") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as file:
            for number, label in numbers.items():
                text = json.dumps({"label": label, "fps": 10}) if kind == "json" else label
                for member, data in (
                    (f"{number}.{ending}", (self.videos / f"{number}.mp4").read_bytes()),
                    (f"{number}.{kind}", text.encode()),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))


def flat(make: Maker) -> Made:
    make.put("1.mp4", "2.MP4", "3.mov")
    return make.root, {"train": [(1, None), (2, None), (3, None)]}


def classes(make: Maker) -> Made:
    make.put("cat/1.mp4", "dog/2.mp4", "cat/3.mp4")
    return make.root, {"train": [(1, "cat"), (3, "cat"), (2, "dog")]}


def splits_without_classes(make: Maker) -> Made:
    make.put("train/1.mp4", "test/4.mp4")
    return make.root, {"train": [(1, None)], "test": [(4, None)]}


def splits_and_classes(make: Maker, train: str = "train", test: str = "test", top: str = "") -> Made:
    make.put(f"{top}{train}/cat/1.mp4", f"{top}{train}/dog/2.mp4", f"{top}{test}/dog/4.mp4")
    return make.root, {"train": [(1, "cat"), (2, "dog")], "test": [(4, "dog")]}


def endings_in_capitals(make: Maker) -> Made:
    make.put("cat/1.MP4", "dog/2.MOV", "cat/3.MTS", "dog/4.mts", "cat/5.TS", "dog/6.Ts")
    rows = [(1, "cat"), (3, "cat"), (5, "cat"), (2, "dog"), (4, "dog"), (6, "dog")]
    return make.root, {"train": rows}


def nested(make: Maker) -> Made:
    make.put("cat/2024/05/1.mp4", "dog/2.mp4", "cat/2023/3.mp4")
    return make.root, {"train": [(3, "cat"), (1, "cat"), (2, "dog")]}


def nested_splits(make: Maker) -> Made:
    make.put("train/cat/2024/1.mp4", "train/dog/2.mp4", "test/dog/2024/07/4.mp4")
    return make.root, {"train": [(1, "cat"), (2, "dog")], "test": [(4, "dog")]}


def classes_named_almost_as_splits(make: Maker) -> Made:
    """ "training dog" and "test drive" are classes of Kinetics, and no splits."""
    make.put("train/training dog/1.mp4", "train/test drive/2.mp4", "val/training dog/4.mp4")
    return make.root, {"train": [(2, "test drive"), (1, "training dog")], "validation": [(4, "training dog")]}


def numbered_classes(make: Maker) -> Made:
    make.put("0/1.mp4", "2/2.mp4", "10/3.mp4")
    return make.root, {"train": [(1, "0"), (3, "10"), (2, "2")]}


def an_unlabelled_test_folder(make: Maker) -> Made:
    make.put("train/cat/1.mp4", "train/dog/2.mp4", "test/4.mp4")
    return make.root, {"train": [(1, "cat"), (2, "dog")], "test": [(4, None)]}


def splits_in_names(make: Maker) -> Made:
    make.put("train_1.mp4", "test_4.mp4", "train_2.mp4")
    return make.root, {"train": [(1, None), (2, None)], "test": [(4, None)]}


def metadata_csv(make: Maker) -> Made:
    make.put("train/1.mp4", "train/2.MP4", "train/sub/3.mp4", "test/4.mp4")
    make.write("train/metadata.csv", "file_name,label\n1.mp4,cat\nsub/3.mp4,cat\n2.MP4,dog\n")
    make.write("test/metadata.csv", "file_name,label\n4.mp4,dog\n")
    return make.root, {"train": [(1, "cat"), (3, "cat"), (2, "dog")], "test": [(4, "dog")]}


def metadata_of_all_splits(make: Maker) -> Made:
    make.put("train/x/1.mp4", "train/x/2.mp4", "test/x/4.mp4")
    make.write("metadata.csv", "file_name,label\ntrain/x/1.mp4,cat\ntest/x/4.mp4,dog\ntrain/x/2.mp4,dog\n")
    return make.root, {"train": [(1, "cat"), (2, "dog")], "test": [(4, "dog")]}


def metadata_jsonl(make: Maker) -> Made:
    make.put("1.mp4", "2.mp4")
    lines = [{"file_name": "2.mp4", "label": "dog"}, {"file_name": "1.mp4", "label": "cat"}]
    make.write("metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return make.root, {"train": [(2, "dog"), (1, "cat")]}


def metadata_parquet(make: Maker) -> Made:
    make.put("1.mp4", "2.mp4")
    table = datasets.Dataset.from_dict({"file_name": ["1.mp4", "2.mp4"], "label": ["cat", "dog"]})
    table.to_parquet(make.root / "metadata.parquet")
    return make.root, {"train": [(1, "cat"), (2, "dog")]}


def metadata_beside_a_pattern(make: Maker) -> Made:
    make.put("1.mp4", "2.mp4", "3.mov")
    make.write("metadata.csv", "file_name,label\n1.mp4,cat\n2.mp4,dog\n3.mov,cat\n")
    return f"{make.root}/*.mp4", {"train": [(1, "cat"), (2, "dog")]}


def a_list(make: Maker) -> Made:
    make.put("v/1.mp4", "v/2.MOV", "3.mp4")
    return make.write("list.txt", "v/1.mp4\r\n\r\n v/2.MOV \r\n./3.mp4"), {"train": [(1, None), (2, None), (3, None)]}


def a_labelled_list(make: Maker, line: str = "{} {}", name: str = "list.txt") -> Made:
    make.put("my videos/1.mp4", "v/2.MP4", "v/3.mp4")
    files = {"my videos/1.mp4": "0", "v/2.MP4": "2", "v/3.mp4": "10"}
    text = "".join(line.format(*pair) + "\n" for pair in files.items())
    return make.write(name, text), {"train": [(1, "0"), (2, "2"), (3, "10")]}


def a_table(make: Maker, name: str = "table.csv", separator: str = ",") -> Made:
    return make.table(name, TRAIN, separator=separator), ONLY_TRAIN


def a_table_of_excel(make: Maker) -> Made:
    """With a byte order mark, CRLF, blanks around names and cells, quoted commas and line breaks, and an empty line."""
    make.put("a, b/1.mp4", "v/2.mp4")
    text = '\ufeff video , label,note\r\n"a, b/1.mp4", cat ,"x\r\ny"\r\n\r\nv/2.mp4,"dog",\r\n'
    return make.write("table.CSV", text), {"train": [(1, "cat"), (2, "dog")]}


def jsonl(make: Maker, name: str = "table.jsonl") -> Made:
    make.put(*(f"v/{number}.mp4" for number in TRAIN))
    rows = [{"video": f"v/{number}.mp4", "label": label} for number, label in TRAIN.items()]
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    return make.write(name, text), ONLY_TRAIN


def parquet(make: Maker, with_bytes: bool = True) -> Made:
    make.dataset(TRAIN, with_bytes).to_parquet(make.root / "table.parquet")
    return make.root / "table.parquet", ONLY_TRAIN


def parquet_shards(make: Maker, folder: str = "") -> Made:
    shards = {"train-00000-of-00002": [1, 2], "train-00001-of-00002": [3], "test-00000-of-00001": [4]}
    (make.root / folder).mkdir(exist_ok=True)
    for name, numbers in shards.items():
        make.dataset({number: (TRAIN | TEST)[number] for number in numbers}).to_parquet(
            make.root / folder / f"{name}.parquet"
        )
    make.write("README.md", "# Videos")
    shutil.rmtree(make.root / "v")
    return make.root, WHOLE


def shards_of_own_splits(make: Maker) -> Made:
    """The Hub allows splits of any name."""
    for name, numbers in {"train": TRAIN, "hard": TEST}.items():
        make.dataset(numbers).to_parquet(make.root / f"{name}-00000-of-00001.parquet")
    shutil.rmtree(make.root / "v")
    return make.root, {"train": ONLY_TRAIN["train"], "hard": WHOLE["test"]}


def arrow_shards(make: Maker) -> Made:
    for name, numbers in {"train": TRAIN, "test": TEST}.items():
        make.dataset(numbers).save_to_disk(make.root / "saved")
        (file,) = (make.root / "saved").glob("*.arrow")
        shutil.copy(file, make.root / f"{name}.arrow")
        shutil.rmtree(make.root / "saved")
    shutil.rmtree(make.root / "v")
    return make.root, WHOLE


def tables_in_a_folder(make: Maker, ending: str = "csv") -> Made:
    separator = "\t" if ending == "tsv" else ","
    make.table(f"tables/train.{ending}", TRAIN, separator=separator)
    make.table(f"tables/test.{ending}", TEST, separator=separator)
    return make.root / "tables", WHOLE


def tar_shards(make: Maker, kind: str = "json", ending: str = "mp4", folders: bool = False) -> Made:
    names = ("train/0", "train/1", "test/0") if folders else ("train-000000", "train-000001", "test-000000")
    for name, numbers in zip(names, ({1: "cat", 2: "dog"}, {3: "cat"}, TEST)):
        make.tar(f"{name}.tar", numbers, kind, ending)
    return make.root, WHOLE


def numbered_tar_shards(make: Maker) -> Made:
    make.tar("train-0.tar", {1: "0", 2: "10", 3: "2"}, "cls")
    return make.root / "train-0.tar", {"train": [(1, "0"), (2, "10"), (3, "2")]}


def a_saved_dataset(make: Maker) -> Made:
    make.dataset(TRAIN).save_to_disk(make.root / "saved")
    return make.root / "saved", ONLY_TRAIN


def a_saved_dataset_dict(make: Maker) -> Made:
    splits = {"train": make.dataset(TRAIN), "test": make.dataset(TEST)}
    datasets.DatasetDict(splits).save_to_disk(make.root / "saved")
    return make.root / "saved", WHOLE


def a_saved_dataset_with_unlabelled_test(make: Maker) -> Made:
    splits = {"train": make.dataset(TRAIN), "test": make.dataset(TEST).remove_columns("label")}
    datasets.DatasetDict(splits).save_to_disk(make.root / "saved")
    return make.root / "saved", {"train": WHOLE["train"], "test": [(4, None)]}


def pattern_of_videos(make: Maker) -> Made:
    make.put("v/1.mp4", "v/2.mp4", "v/3.mov", "4.mp4")
    return f"{make.root}/v/*.mp4", {"train": [(1, None), (2, None)]}


def pattern_of_classes(make: Maker) -> Made:
    make.put("v/cat/1.mp4", "v/dog/old/2.mp4", "v/dog/3.mov")
    return f"{make.root}/v/**/*.mp4", {"train": [(1, "cat"), (2, "dog")]}


def pattern_of_tars(make: Maker) -> Made:
    tar_shards(make)
    return f"{make.root}/train-*.tar", ONLY_TRAIN


def pattern_of_parquet(make: Maker) -> Made:
    parquet_shards(make)
    return f"{make.root}/*.parquet", WHOLE


def several_files(make: Maker) -> Made:
    one, two = make.table("a.csv", {1: "cat", 2: "dog"}), make.table("b.tsv", {3: "cat"}, separator="\t")
    three = make.table("c.csv", TEST)
    return f"train={one},train={two},test={three}", WHOLE


def mapping_of_files(make: Maker) -> Made:
    one, two = make.table("a.csv", {1: "cat", 2: "dog"}), make.table("b/b.csv", {3: "cat"})
    return {"train": [one, str(two)], "test": make.table("c.csv", TEST)}, WHOLE


def mapping_of_folders(make: Maker) -> Made:
    make.put("a/cat/1.mp4", "a/dog/2.mp4", "b/dog/4.mp4")
    return {"train": make.root / "a", "test": f"{make.root}/b/*/*.mp4"}, {
        "train": [(1, "cat"), (2, "dog")],
        "test": [(4, "dog")],
    }


def an_unlabelled_table(make: Maker) -> Made:
    one, two = make.table("a.csv", TRAIN), make.table("b.csv", {4: ""})
    return {"train": one, "test": two}, {"train": WHOLE["train"], "test": [(4, None)]}


def numbers_as_labels(make: Maker) -> Made:
    """Floats, as pandas writes whole numbers beside an empty cell, are the same classes as whole numbers."""
    one, two = make.table("a.csv", {1: "0.0", 2: "10.0", 3: "2.0"}), make.table("b.csv", {4: "10"})
    return {"train": one, "test": two}, {"train": [(1, "0"), (2, "10"), (3, "2")], "test": [(4, "10")]}


def with_options(function: Callable, *values: object, **options: object) -> Callable[[Maker], Made]:
    return lambda make: function(make, *values, **options)


KINDS: dict[str, Callable[[Maker], Made]] = {
    function.__name__: function
    for function in (
        flat, classes, splits_without_classes, splits_and_classes, endings_in_capitals, nested, nested_splits,
        classes_named_almost_as_splits, numbered_classes, an_unlabelled_test_folder, splits_in_names, metadata_csv,
        metadata_of_all_splits, metadata_jsonl, metadata_parquet, metadata_beside_a_pattern, a_list, a_labelled_list, a_table,
        a_table_of_excel, jsonl, parquet, parquet_shards, shards_of_own_splits, arrow_shards, tables_in_a_folder, tar_shards,
        numbered_tar_shards, a_saved_dataset, a_saved_dataset_dict, a_saved_dataset_with_unlabelled_test, pattern_of_videos,
        pattern_of_classes, pattern_of_tars, pattern_of_parquet, several_files, mapping_of_files, mapping_of_folders,
        an_unlabelled_table, numbers_as_labels,
    )
} | {
    "splits_in_capitals": with_options(splits_and_classes, "Train", "TEST"),
    "other_names_of_splits": with_options(splits_and_classes, "training", "eval"),
    "splits_with_sizes": with_options(splits_and_classes, "k400_train_256", "k400_test_256"),
    "splits_below_a_folder": with_options(splits_and_classes, top="data/videos/"),
    "comma_list": with_options(a_labelled_list, "{},{}"),
    "tab_list": with_options(a_labelled_list, "{}\t{}"),
    "list_named_csv": with_options(a_labelled_list, "{} {}", "train.csv"),
    "tsv": with_options(a_table, "table.tsv", "\t"),
    "TSV": with_options(a_table, "table.TSV", "\t"),
    "json": with_options(jsonl, "table.json"),
    "parquet_of_paths": with_options(parquet, with_bytes=False),
    "parquet_shards_as_on_the_hub": with_options(parquet_shards, "data"),
    "tsv_in_a_folder": with_options(tables_in_a_folder, "tsv"),
    "tar_cls": with_options(tar_shards, "txt"),
    "tar_in_folders": with_options(tar_shards, folders=True),
    "tar_MOV": with_options(tar_shards, ending="MOV"),
    "tar_mpg": with_options(tar_shards, ending="mpg"),
    "tar_mts": with_options(tar_shards, ending="mts"),
}  # fmt: skip


def number_of_frame(video: dict) -> int:
    """Which video it is, from its first frame."""
    frames = decode_video(video["bytes"] or video["path"], lambda metadata: [0])[0]
    return round(frames.float().mean().item() / 20)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_sources(kind, streaming, videos, tmp_path):
    """Splits, order of rows, labels and the first frame of every video are right."""
    name, expected = KINDS[kind](Maker(tmp_path, videos))
    has_labels = any(label is not None for _, label in expected["train"])
    splits = load_video_dataset(name, label_column="label" if has_labels else None, streaming=streaming)
    assert list(splits) == list(expected)
    assert isinstance(splits["train"], datasets.IterableDataset if streaming else datasets.Dataset)
    names = sorted(
        {label for rows in expected.values() for _, label in rows if label}, key=lambda label: (len(label), label)
    )
    for split, rows in expected.items():
        loaded = list(splits[split])
        assert [number_of_frame(row["video"]) for row in loaded] == [number for number, _ in rows]
        labels = [
            None if "label" not in row else splits[split].features["label"].int2str(row["label"]) for row in loaded
        ]
        assert labels == [label for _, label in rows]
        if labels[0] is not None:
            assert splits[split].features["label"].names == (names if names[0].isdigit() else sorted(names))


def test_there_are_many_kinds():
    assert len(KINDS) >= 40
    assert {".mp4", ".mov", ".mts", ".ts", ".m2ts", ".webm", ".mkv", ".gif"} <= VIDEO_ENDINGS


# What is refused: file -> its text, what is loaded, and the error. None as a text copies a video.
REFUSED = {
    "videos beside classes": ({"cat/1.mp4": None, "dog/2.mp4": None, "3.mp4": None}, "", r"3.mp4 lies beside folders of classes"),
    "no folders": ({"1.mp4": None, "2.mp4": None}, "", r"the videos are not in folders of classes, expected SPLIT/CLASS/VIDEO"),
    "one class": ({"cat/2023/1.mp4": None, "cat/2024/2.mp4": None}, "", r"only one folder of a class, 'cat'"),
    "splits below classes": ({"cat/train/1.mp4": None, "dog/test/2.mp4": None}, "", r"Got cat/train/1.mp4 .*, a split below"),
    "some names of shards": ({"train.csv": "x\n1", "more.csv": "x\n1", "test.csv": "x\n1"}, "", r"more.csv .*has no split"),
    "nothing": ({"notes.odt": ""}, "", r"Got .* with 1 files, expected videos .* or shards"),
    "no match": ({"1.mp4": None}, "*.mkv", r"Got pattern .*\*.mkv, expected one that matches a file"),
    "metadata of no file": ({"1.mp4": None, "metadata.csv": "file_name,label\n1.mp4,a\n\n2.mp4,b\n"}, "", r"'2.mp4' in .*metadata.csv, line 4"),
    "metadata that leaves": ({"v/1.mp4": None, "v/metadata.csv": "file_name,label\n../2.mp4,a\n"}, "", r"'../2.mp4' in .*line 2, expected a path below"),
    "metadata of a protocol": ({"1.mp4": None, "metadata.csv": "file_name,label\nhttp://h/1.mp4,a\n"}, "", r"'http://h/1.mp4' in .*line 2"),
    "metadata without names": ({"1.mp4": None, "metadata.csv": "video,label\n1.mp4,a\n"}, "", r"expected 'file_name'"),
    "short metadata": ({"1.mp4": None, "metadata.csv": "file_name,label\n1.mp4\n"}, "", r"1 cells in .*metadata.csv, line 2, expected 2"),
    "unlabelled metadata": ({"1.mp4": None, "2.mp4": None, "metadata.csv": "file_name,label\n1.mp4,a\n2.mp4, \n"}, "", r"Got no label in .*line 3"),
    "short row": ({"t.csv": "video,start,end,label\n1.mp4,0,1,a\n2.mp4,a\n"}, "t.csv", r"2 cells in .*t.csv, line 3, expected 4"),
    "long row": ({"t.csv": "video,label\n1.mp4,a,b\n"}, "t.csv", r"3 cells in .*t.csv, line 2, expected 2"),
    "empty label": ({"t.csv": "video,label\n1.mp4,a\n2.mp4,\n"}, "t.csv", r"Got no label in .*t.csv, line 3"),
    "no label at all": ({"t.csv": "video,label\n1.mp4,\n2.mp4,\n"}, "t.csv", r"Got only empty labels 'label' in split 'train'"),
    "no column": ({"t.csv": "video\n1.mp4\n"}, "t.csv", r"Got columns \['video'\] in split 'train' .*expected 'label'"),
    "empty video": ({"t.csv": "video,label\n1.mp4,a\n ,b\n"}, "t.csv", r"Got no video in .*t.csv, line 3"),
    "end before start": ({"t.csv": "video,start,end,label\n1.mp4,3,2,a\n"}, "t.csv", r"start '3' and end '2' in .*t.csv, line 2"),
    "negative time": ({"t.csv": "video,start,end,label\n1.mp4,-3,2,a\n"}, "t.csv", r"Got time '-3' in .*t.csv, line 2"),
    "no time": ({"t.csv": "video,start,label\n1.mp4,soon,a\n"}, "t.csv", r"Got time 'soon' in .*t.csv, line 2"),
    "label with a fraction": ({"t.csv": "video,label\n1.mp4,0.5\n2.mp4,1\n"}, "t.csv", r"Got label 0.5 in .*t.csv, line 2"),
    "two columns of a name": ({"t.csv": "video,label, label\n1.mp4,a,b\n"}, "t.csv", r"t.csv with the column 'label' twice"),
    "open quote": ({"t.csv": 'video,label\n1.mp4,a\n2.mp4,"b\n'}, "t.csv", r"t.csv, line 3: unexpected end of data"),
    "no rows": ({"t.csv": "video,label\n"}, "t.csv", r"t.csv with no rows"),
    "empty list": ({"t.txt": "\n\n"}, "t.txt", r"t.txt without lines"),
    "half a list": ({"t.txt": "1.mp4 0\n2.mp4\n"}, "t.txt", r"Got '2.mp4' in .*t.txt, line 2, expected one path a line, or"),
    "list of pre-training": ({"t.txt": "1.mp4 0 -1\n"}, "t.txt", r"Got '1.mp4 0 -1' in .*t.txt, line 1"),
    "list of pre-training as csv": ({"t.csv": "1.mp4 0 -1\n"}, "t.csv", r"Got '1.mp4 0 -1' in .*t.csv, line 1"),
    "no JSON": ({"t.jsonl": '{"video": \n'}, "t.jsonl", r"Got .*t.jsonl, expected json"),
    "end before start in JSON": ({"t.jsonl": '{"video": "1.mp4", "start": 2, "end": 1, "label": "a"}\n'}, "t.jsonl", r"row 1 of .*t.jsonl"),
    "empty video in JSON": ({"t.jsonl": '{"video": "1.mp4", "label": "a"}\n{"video": null, "label": "b"}\n'}, "t.jsonl", r"no video in row 2"),
    "empty label in JSON": ({"t.jsonl": '{"video": "1.mp4", "label": "a"}\n{"video": "2.mp4", "label": null}\n'}, "t.jsonl", r"no label in row 2"),
    "no shard": ({"t.parquet": "x"}, "t.parquet", r"Got .*t.parquet, expected parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused(case, videos, tmp_path):
    files, name, message = REFUSED[case]
    make = Maker(tmp_path, videos)
    for file, text in files.items():
        make.put(file) if text is None else make.write(file, text)
    with pytest.raises(AnnotationError, match=message):
        load_video_dataset(tmp_path / name, label_column="label")


@pytest.mark.parametrize("name", ["/nowhere/data", "a/b/c", "list.TXT", "", "s3://bucket/a.csv"])
def test_a_path_that_does_not_exist_is_no_id_on_the_hub(name):
    with pytest.raises(AnnotationError, match=rf"Got '{re.escape(name)}', expected a folder, list, table or pattern"):
        load_video_dataset(name)


@pytest.mark.parametrize("name", ["list.txt", "table.csv", "metadata.csv", "table.jsonl"])
def test_text_that_is_not_utf_8_is_refused(name, videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.put("1.mp4")
    line = '{"video": "caf\u00e9.mp4"}\n' if name.endswith("jsonl") else "caf\u00e9.mp4\n"
    make.write(name, ("" if name.endswith("jsonl") else "file_name\n") + line, "latin-1")
    number = 1 if name.endswith("jsonl") else 2
    with pytest.raises(
        AnnotationError, match=rf"{name}, line {number}, whose byte 0xe9 is not UTF-8, expected UTF-8: convert"
    ):
        load_video_dataset(tmp_path if name.startswith("metadata") else tmp_path / name)


def test_a_time_may_have_hours_and_an_empty_cell_is_none(videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.write("t.csv", "video,start,end\n1.mp4,00:01:02.5,1e2\n2.mp4,,nan\n3.mp4,.5,\n")
    rows = load_video_dataset(tmp_path / "t.csv")["train"]
    assert [(row["start"], row["end"]) for row in rows] == [(62.5, 100.0), (None, None), (0.5, None)]


def test_a_segment_has_an_end_after_its_start(videos, tmp_path):
    make = Maker(tmp_path, videos)
    for times in ("1,1", ",0"):
        make.write("t.csv", f"video,start,end\n1.mp4,{times}\n")
        with pytest.raises(AnnotationError, match=r"in .*t.csv, line 2, expected an end after the start"):
            load_video_dataset(tmp_path / "t.csv")


def test_the_line_of_a_row_counts_the_lines_within_cells(videos, tmp_path):
    Maker(tmp_path, videos).write("t.csv", 'video,label\n1.mp4,"a\nb"\n2.mp4,c,d\n')
    with pytest.raises(AnnotationError, match=r"Got 3 cells in .*t.csv, line 4, expected 2"):
        load_video_dataset(tmp_path / "t.csv")


@pytest.fixture
def warnings(monkeypatch):
    said: list[str] = []
    for module in (sources, video_files):
        monkeypatch.setattr(module.logger, "warning", said.append)
    return said


def test_what_is_ignored_is_counted_and_named_once(videos, tmp_path, warnings):
    make = Maker(tmp_path, videos)
    make.put("train/cat/1.mp4", "train/dog/2.MP4", "train/.hidden_3.mp4", "more/4.mp4", "train/__pycache__/5.mp4")
    for name in ("train/cat/1.srt", "train/cat/2.srt", "notes.txt", "train/LICENSE"):
        make.write(name, "x")
    splits = load_video_dataset(tmp_path, label_column="label")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2}
    others, hidden, outside = warnings
    assert "ignored because they are no video files: " in others
    assert all(part in others for part in ("2 .srt", "1 .txt", "1 no ending", "notes.txt, train/LICENSE"))
    assert "they are hidden: 2 .mp4, such as train/.hidden_3.mp4, train/__pycache__/5.mp4" in hidden
    assert "they lie outside of the folders of the splits: 1 .mp4, such as more/4.mp4" in outside


def test_videos_without_metadata_and_repeated_rows_are_named(videos, tmp_path, warnings):
    make = Maker(tmp_path, videos)
    make.put("1.mp4", "2.mp4")
    make.write("metadata.csv", "file_name,label\n1.mp4,a\n1.mp4,a\n")
    assert len(load_video_dataset(tmp_path)["train"]) == 2
    assert any("1 rows of" in line and "repeat an earlier row" in line for line in warnings)
    assert any("no metadata file names them: 1 .mp4, such as 2.mp4" in line for line in warnings)


def test_folders_of_links_to_one_folder_all_have_their_videos(videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.put("store/cat/1.mp4", "store/dog/2.mp4")
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).symlink_to(tmp_path / "store" / name)
    splits = load_video_dataset(tmp_path / "data", label_column="label")
    assert {split: rows["label"][:] for split, rows in splits.items()} == {"train": [0, 1], "validation": [0, 1]}


def test_minus_one_in_all_rows_of_a_split_is_no_class(videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.put("1.mp4", "2.mp4")
    make.write("train.csv", "video,label\n1.mp4,0\n2.mp4,1\n")
    make.write("test.csv", "video,label\n1.mp4,-1\n2.mp4,-1\n")
    splits = load_video_dataset(f"train={tmp_path}/train.csv,test={tmp_path}/test.csv", label_column="label")
    assert splits["train"].features["label"].names == ["0", "1"]
    assert "label" not in splits["test"].column_names
    make.write("moods.csv", "video,label\n1.mp4,1\n2.mp4,-1\n")
    assert load_video_dataset(tmp_path / "moods.csv", label_column="label")["train"].features["label"].names == [
        "-1",
        "1",
    ]


def test_a_leading_zero_is_part_of_a_name(videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.put("1.mp4")
    make.write("t.csv", "video,id,label\n1.mp4,007,01\n1.mp4,7,1\n1.mp4,08,2\n")
    rows = load_video_dataset(tmp_path / "t.csv", label_column="label")["train"]
    assert rows.features["label"].names == ["01", "1", "2"]
    assert rows["id"][:] == ["007", "7", "08"]


def test_links_are_followed_but_not_in_circles(videos, tmp_path):
    make = Maker(tmp_path, videos)
    make.put("data/cat/1.mp4", "elsewhere/dog/2.mp4")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")  # a circle
    rows = load_video_dataset(tmp_path / "data", label_column="label")["train"]
    assert [Path(row["video"]["path"]).relative_to(tmp_path / "data").parts for row in rows] == [
        ("cat", "1.mp4"),
        ("dog", "2.mp4"),
    ]


def test_classes_have_one_order_for_all_splits(videos, tmp_path):
    """Numbers by value (0, 2, 10), names alphabetically as before, and lists of `ClassLabel` joined by name."""
    make = Maker(tmp_path, videos)
    table = make.table("t.csv", {1: "10", 2: "2", 3: "0"})
    assert load_video_dataset(table, label_column="label")["train"].features["label"].names == ["0", "2", "10"]
    table = make.table("t.csv", {1: "b10", 2: "B", 3: "b2"})
    assert load_video_dataset(table, label_column="label")["train"].features["label"].names == ["B", "b10", "b2"]
    parts = {}
    for split, (numbers, names) in {
        "train": ({1: "cat", 2: "dog"}, ["dog", "cat"]),
        "test": ({4: "cow"}, ["cow"]),
    }.items():
        parts[split] = make.dataset(numbers).cast_column("label", datasets.ClassLabel(names=names))
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        splits = load_video_dataset(tmp_path / "saved", label_column="label", streaming=streaming)
        assert (
            splits["test"].features["label"].names == splits["train"].features["label"].names == ["cat", "cow", "dog"]
        )
        assert [row["label"] for split in splits.values() for row in split] == [0, 2, 1]


@pytest.mark.parametrize("kind", ["tar_shards", "parquet_shards", "classes", "several_files"])
def test_streams_are_shuffled_shared_and_resumed(kind, videos, tmp_path):
    name, expected = KINDS[kind](Maker(tmp_path, videos))
    rows = load_video_dataset(name, label_column="label", streaming=True)["train"]
    numbers = sorted(number for number, _ in expected["train"])
    clips = VideoClips(rows, processor_for(LVMAEConfig(image_size=16, patch_size=8, num_frames=2)), 2, training=True)
    stream = VideoStream(clips, buffer_size=2)
    assert len(list(islice(stream, 2 * len(numbers)))) == 2 * len(numbers)
    parts = [stream.shard(2, index).clips.rows for index in range(2)]
    assert sorted(number_of_frame(row["video"]) for part in parts for row in part) == numbers
    iterator = iter(rows)
    first = number_of_frame(next(iterator)["video"])
    state = rows.state_dict()
    again = load_video_dataset(name, label_column="label", streaming=True)["train"]
    again.load_state_dict(state)
    assert sorted([first, *(number_of_frame(row["video"]) for row in again)]) == numbers


def test_the_documents_name_all_endings():
    text = (ROOT / "docs" / "own_videos.md").read_text(encoding="utf-8")
    listed = re.search(r"are videos, in small letters or capitals: ([\w,\s]+)\.", text)
    assert {f".{ending}" for ending in re.split(r",\s+", listed[1])} == VIDEO_ENDINGS


def test_a_split_without_labels_is_refused_where_labels_are_needed(videos, tmp_path, monkeypatch):
    """Fine-tuning stops before it makes a model."""
    make = Maker(tmp_path, videos)
    name, _ = an_unlabelled_test_folder(make)
    splits = load_video_dataset(name, label_column="label")
    assert len(select_split(splits, "test")) == 1
    with pytest.raises(ValueError, match="Got split 'test' without labels, expected the column 'label'"):
        select_split(splits, "test", label_column="label")
    for options, message in (
        (["--dataset_name", str(name), "--eval_split", "test"], "Got split 'test' without labels"),
        (["--dataset_name", str(tmp_path / "train" / "cat"), "--eval_split", "train"], "not in folders of classes"),
    ):
        monkeypatch.setattr(sys, "argv", ["finetune.py", *options, "--output_dir", str(tmp_path / "run")])
        with pytest.raises((ValueError, SystemExit), match=message):
            load_script("finetune").main()
