"""Small annotation files in the official formats of the benchmarks, from reading them to an evaluated model."""

import csv
import itertools
import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from builders import load_script
from datasets import ClassLabel, DatasetDict

from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.data.annotation_files import find_annotations, number_of, unique_names
from transformers_lvmae.data.annotation_formats import BENCHMARKS, compare_with_known, read_annotations
from transformers_lvmae.data.annotations import build_dataset
from transformers_lvmae.data.tables import AnnotationError
from transformers_lvmae.models.video_io import decode_video, write_video


FPS = 10
TINY = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@dataclass
class Made:
    """A benchmark as the tests make it: its folders, the splits, label columns and one row that must come out."""

    annotations: Path
    videos: Path
    splits: dict[str, int]
    classes: dict[str, list[str]]
    first_row: dict[str, object]
    eval_split: str = "validation"


def make_video(path: Path, num_frames: int) -> None:
    """Frame `i` is grey of brightness 5 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.arange(num_frames)[:, None, None, None] * 5
    write_video(path, np.broadcast_to(frames, (num_frames, 16, 24, 3)).astype(np.uint8), fps=FPS)


def write_csv(path: Path, header: str, rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def make_diving48(root: Path, version: str = "V2_") -> Made:
    vocabulary = [
        ["Back", "15som", "05Twis", "FREE"],
        ["Back", "15som", "15Twis", "FREE"],
        ["Forward", "NoTwis", "PIKE"],
    ]
    names = [" ".join(words) for words in vocabulary]
    (root / "Diving48_vocab.json").write_text(json.dumps(vocabulary))
    for split, labels in {"train": [2, 0, 1], "test": [1, 2]}.items():
        clips = [
            {"vid_name": f"-{split}_0{i}", "label": label, "start_frame": 0, "end_frame": 6}
            for i, label in enumerate(labels)
        ]
        (root / f"Diving48_{version}{split}.json").write_text(json.dumps(clips))
        for clip in clips:
            make_video(root / "rgb" / f"{clip['vid_name']}.mp4", 6)
    return Made(root, root, {"train": 3, "test": 2}, {"label": names}, {"video": "-train_00", "label": 2}, "test")


def make_epic_kitchens(root: Path) -> Made:
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    root.mkdir(exist_ok=True)
    verbs, nouns = ["take", "put"], ["tap", "spoon", "board:chopping"]
    for name, classes in {"verb": verbs, "noun": nouns}.items():
        rows = [[i, key, f"['{key}', '{key}-other']", "x"] for i, key in reversed(list(enumerate(classes)))]
        write_csv(root / f"EPIC_100_{name}_classes.csv", "id,key,instances,category", rows)
    for split, video, segments in [
        ("train", "P01_01", [("00:00:01.00", "00:00:01.80", 1, 2), ("00:00:00.20", "00:00:01.50", 0, 1)]),
        ("validation", "P22_107", [("00:00:00.5", "00:00:02.0", 0, 0)]),
    ]:
        rows = [
            [f"{video}_{i}", video[:3], video, start, start, stop, 1, 2, "n", "v", verb, "n", noun, "['n']", "[0]"]
            for i, (start, stop, verb, noun) in enumerate(segments)
        ]
        write_csv(root / f"EPIC_100_{split}.csv", header, rows)
        make_video(root / "EPIC-KITCHENS" / video[:3] / "videos" / f"{video}.MP4", 30)
    row = ["P01_101_0", "P01", "P01_101", "00:00:00.851", "00:00:00.86", "00:00:01.87", 143, 193]
    write_csv(root / "EPIC_100_test_timestamps.csv", header.partition(",narration,")[0], [row])
    make_video(root / "EPIC-KITCHENS" / "P01" / "videos" / "P01_101.MP4", 30)
    ids = {"narration_id": "P01_01_0", "participant_id": "P01"}
    row = {"video": "P01_01", **ids, "start": 1.0, "end": 1.8, "verb": 1, "noun": 2}
    return Made(root, root, {"train": 2, "validation": 1, "test": 1}, {"verb": verbs, "noun": nouns}, row)


def make_something_something(root: Path) -> Made:
    names = ["Holding something next to something", "Pushing something so that it falls"]
    (root / "something-something-v2-labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(names)}))
    templates = ["Holding [something] next to [something]", "Pushing [something] so that it falls"]
    for split, ids in {"train": [78687, 42326, 7], "validation": [74225]}.items():
        clips = [{"id": str(i), "label": "x", "template": templates[i % 2], "placeholders": ["a cup"]} for i in ids]
        (root / f"something-something-v2-{split}.json").write_text(json.dumps(clips))
        for i in ids:
            make_video(root / "20bn-something-something-v2" / f"{i}.mp4", 5)
    (root / "something-something-v2-test.json").write_text(json.dumps([{"id": "1420"}]))
    make_video(root / "20bn-something-something-v2" / "1420.mp4", 5)
    row = {"video": "78687", "id": "78687", "label": 1}
    return Made(root, root, {"train": 3, "validation": 1, "test": 1}, {"label": names}, row)


def make_kinetics(root: Path, text_lists: bool = False) -> Made:
    """The test split is without labels, as DeepMind published it. Kinetics-600 has complete lists only as .txt."""
    header, rows = "label,youtube_id,time_start,time_end,split,is_cc", {}
    rows["train"] = [
        ["washing feet", "--GkrdYZ9Tc", 0, 10, "train", 0],
        ["air drumming", "_bcJuKJQ_s", 104, 114, "train", 1],
    ]
    rows["val"] = [["air drumming", "--nQbRBEz2s", 9, 19, "val", 0]]
    rows["test"] = [["", "-0IErS_cisg", 45, 55, "test", 0]]
    for split, clips in rows.items():
        name = f"{split}.txt" if text_lists and split != "test" else f"{split}.csv"
        first = 1 if split == "test" else 0
        write_csv(root / name, ",".join(header.split(",")[first:5]), [clip[first:5] for clip in clips])
        for label, video, start, end, *_ in clips:
            make_video(root / "videos" / split / label / f"{video}_{start:06d}_{end:06d}.mp4", 6)
    (root / "k600_train_path.txt").write_text("https://example.org/600/train/air drumming.tar.gz\n")
    row = {"video": "--GkrdYZ9Tc_000000_000010", "label": 1}
    return Made(root, root, {"train": 2, "validation": 1, "test": 1}, {"label": ["air drumming", "washing feet"]}, row)


def make_finegym(root: Path) -> Made:
    """Events start at 2 s; the second element is a vault of several stages."""
    names = ["(VT) round-off, flic-flac on", "(FX) switch leap"]
    (root / "gym288_categories.txt").write_text(
        f"Clabel: 0; set: 1; Glabel: 1; {names[0]}\nClabel: 1; set: 21; Glabel: 4; {names[1]}\n"
    )
    times = {"A_0000_0001": [[0.3, 0.9]], "A_0001_0003": [[1.0, 1.2], [1.2, 1.3], [1.3, 2.0]]}
    segments = {element: {"stages": len(stages), "timestamps": stages} for element, stages in times.items()}
    event = {"event": 1, "segments": segments, "timestamps": [[2.0, 4.5]]}
    videos = {"train": "A0xAXXysHUo", "val": "_E_0_fKCK1w"}
    info = {video: {"E_000002_000004": event} for video in videos.values()}
    (root / "finegym_annotation_info_v1.1.json").write_text(json.dumps(info))
    for split, video in videos.items():
        lines = [f"{video}_E_000002_000004_{element} {number}\n" for element, number in zip(reversed(times), (0, 1))]
        name = "gym288_train_element_v1.1.txt" if split == "train" else "gym288_val_element.txt"
        (root / name).write_text("".join(lines))
        make_video(root / "videos" / f"{video}.mp4", 50)
    row = {"video": "A0xAXXysHUo", "start": 2.0, "end": 5.0, "label": 0}
    return Made(root, root, {"train": 2, "validation": 2}, {"label": names}, row)


MAKERS: dict[str, Callable[[Path], Made]] = {
    "diving48": make_diving48,
    "epic_kitchens_100": make_epic_kitchens,
    "something_something_v2": make_something_something,
    "kinetics400": make_kinetics,
    "kinetics600": partial(make_kinetics, text_lists=True),
    "kinetics700": make_kinetics,
    "finegym288": make_finegym,
}


def run(script: str, monkeypatch, *arguments: object) -> None:
    """The `main` of a script, with a command line."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    load_script(script).main()


def naive_metrics(path: Path, columns: list[str]) -> dict[str, float]:
    """The accuracies of a predictions file, row by row and pair by pair."""
    rows = parquet.read_table(path).to_pylist()
    hits: dict[str, list[bool]] = {}
    recalls: dict[str, dict[int, list[bool]]] = {}
    for row in rows:
        scores = {column: row[f"{column}_probabilities" if len(columns) > 1 else "probabilities"] for column in columns}
        ranked = {name: sorted(range(len(part)), key=lambda i: -part[i]) for name, part in scores.items()}
        right: dict[str, object] = {name: row[name] for name in columns}
        if len(columns) > 1:
            pairs = itertools.product(*(range(len(part)) for part in scores.values()))
            product = {pair: math.prod(part[i] for i, part in zip(pair, scores.values())) for pair in pairs}
            ranked["action"] = sorted(product, key=lambda pair: -product[pair])  # type: ignore[assignment]
            right["action"] = tuple(row[name] for name in columns)
        for name, order in ranked.items():
            prefix = f"{name}_" if len(columns) > 1 else ""
            hits.setdefault(f"{prefix}accuracy", []).append(order[0] == right[name])
            hits.setdefault(f"{prefix}top5_accuracy", []).append(right[name] in order[:5])
            if name in columns:
                classes = recalls.setdefault(f"{prefix}mean_class_accuracy", {})
                classes.setdefault(row[name], []).append(order[0] == right[name])
    metrics = {name: sum(found) / len(found) for name, found in hits.items()}
    for name, classes in recalls.items():
        metrics[name] = sum(sum(found) / len(found) for found in classes.values()) / len(classes)
    return metrics


def check_test_split(name: str, made: Made, evaluate: list[object], folder: Path, monkeypatch) -> None:
    """A split without labels has predictions alone, and the benchmark's file is made of them."""
    path = folder / "predictions.parquet"
    run("evaluate_classifier", monkeypatch, *evaluate, "--split", "test", "--output_dir", folder, "--predictions", path)
    (row,) = parquet.read_table(path).to_pylist()
    assert [row[column] for column in made.classes] == [None] * len(made.classes)
    assert not (folder / "results.json").exists()
    if name == "epic_kitchens_100":
        load_script("challenge").main(
            ["epic_submission", str(path), str(folder / "test.zip"), "--sls_pt", "3", "--sls_tl", "3", "--sls_td", "3"]
        )
        with zipfile.ZipFile(folder / "test.zip") as file:
            (segment,) = json.loads(file.read("test.json"))["results"].items()
        assert segment[0] == "P01_101_0"
        assert {part: len(scores) for part, scores in segment[1].items()} == {"verb": 2, "noun": 3, "action": 6}
    elif name == "something_something_v2":
        load_script("challenge").main(["ssv2_submission", str(path), str(folder / "test.csv")])
        best = int(row["probabilities"][1] > row["probabilities"][0])
        assert (folder / "test.csv").read_text() == f"1420;{best};{1 - best}\n"


def test_minus_one_in_all_rows_of_a_test_split_is_no_class(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4,0\nb.mp4,1\n")
    (tmp_path / "test.csv").write_text("a.mp4,-1\nb.mp4,-1\n")
    annotations = read_annotations("csv", [tmp_path])
    assert annotations.classes == {"label": ["0", "1"]}
    assert [clip.labels for clip in annotations.splits["test"]] == [None, None]
    (tmp_path / "train.csv").write_text("a.mp4,-1\nb.mp4,-1\n")
    with pytest.raises(AnnotationError, match=r"Got no \['label'\] in .*train.csv, line 1"):
        read_annotations("csv", [tmp_path])


@pytest.mark.parametrize("name", MAKERS)
def test_prepare_fine_tune_evaluate(name, tmp_path, monkeypatch, capsys):
    """Every official format goes all the way: dataset, one step of training, evaluation with views, predictions and submissions."""
    (tmp_path / "made").mkdir()
    made = MAKERS[name](tmp_path / "made")
    data, model, results = tmp_path / "data", tmp_path / "model", tmp_path / "results"
    run(
        "prepare_dataset",
        monkeypatch,
        name,
        "--annotations",
        made.annotations,
        "--videos",
        made.videos,
        "--output",
        data,
    )
    printed = capsys.readouterr().out
    published = "" if name == "kinetics700" else ", NOT the published"
    assert f"train: {made.splits['train']} annotated clips{published}" in printed
    assert "without" in printed
    assert "missing:" not in printed

    splits = DatasetDict.load_from_disk(str(data))
    assert {split: len(rows) for split, rows in splits.items()} == made.splits
    assert splits["train"].column_names == list(made.first_row)
    if "test" in made.splits and made.eval_split != "test":
        assert splits["test"].column_names == [name for name in made.first_row if name not in made.classes]
    for column, names in made.classes.items():
        assert splits["train"].features[column] == ClassLabel(names=names)
    row = splits["train"][0]
    assert {**row, "video": Path(row["video"]).stem} == made.first_row

    columns = ",".join(made.classes)
    run(
        "finetune",
        monkeypatch,
        *("--dataset_name", data, "--label_column", columns, "--eval_split", made.eval_split, "--output_dir", model),
        *("--config_overrides", json.dumps(TINY), "--max_steps", 1, "--per_device_train_batch_size", 2),
        *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"),
    )
    evaluate = ["--model_name_or_path", model, "--dataset_name", data, "--label_column", columns]
    evaluate += ["--temporal_views", 2, "--spatial_views", 3]
    options = ["--split", made.eval_split, "--output_dir", results, "--predictions", results / "predictions.parquet"]
    run("evaluate_classifier", monkeypatch, *evaluate, *options)
    written = json.loads((results / "results.json").read_text())
    assert written["clips"] == made.splits[made.eval_split] == sum(part["clips"] for part in written["by_length"])
    assert written["metrics"] == pytest.approx(naive_metrics(results / "predictions.parquet", list(made.classes)))
    if "test" in made.splits and made.eval_split != "test":
        check_test_split(name, made, evaluate, tmp_path / "test", monkeypatch)
    config = json.loads((model / "config.json").read_text())
    assert len(config["id2label"]) == sum(map(len, made.classes.values()))
    assert ("label_sets" in config and config["label_sets"] is not None) == (len(made.classes) > 1)


def test_diving48_v1_has_the_same_format(tmp_path):
    annotations = read_annotations("diving48", [make_diving48(tmp_path, version="").annotations])
    assert {split: len(clips) for split, clips in annotations.splits.items()} == {"train": 3, "test": 2}


def test_both_versions_in_one_folder_must_be_named(tmp_path):
    make_diving48(tmp_path), make_diving48(tmp_path, version="")
    with pytest.raises(AnnotationError, match=r"Got \[.*\] for 'train', expected one file: name the files"):
        read_annotations("diving48", [tmp_path])
    files = [tmp_path / name for name in ("Diving48_V2_train.json", "Diving48_vocab.json")]
    assert list(read_annotations("diving48", files).splits) == ["train"]


def test_epic_s_nouns_are_not_those_of_visor(tmp_path):
    """The authors' folder has a second file of nouns, with 305, which belongs to another benchmark."""
    made = make_epic_kitchens(tmp_path)
    other = (tmp_path / "EPIC_100_noun_classes.csv").read_text().replace(",tap,", ",faucet,")
    (tmp_path / "EPIC_100_noun_classes_v2.csv").write_text(other)
    annotations = read_annotations("epic_kitchens_100", [made.annotations])
    assert annotations.classes == made.classes
    assert BENCHMARKS["epic_kitchens_100"].classes == {"verb": 97, "noun": 300}


def test_epic_s_test_split_has_ids_and_times(tmp_path):
    made = make_epic_kitchens(tmp_path)
    (row,) = build_dataset(read_annotations("epic_kitchens_100", [tmp_path]), made.videos).splits["test"]
    assert Path(row.pop("video")).name == "P01_101.MP4"
    assert row == {"narration_id": "P01_101_0", "participant_id": "P01", "start": 0.86, "end": 1.87}


def test_incomplete_lists_of_kinetics_600_are_not_mixed_in(tmp_path):
    make_kinetics(tmp_path, text_lists=True)
    (tmp_path / "train.csv").write_text((tmp_path / "train.txt").read_text())
    with pytest.raises(AnnotationError, match=r"Got .*train.txt and .*train.csv, expected one list a split"):
        read_annotations("kinetics600", [tmp_path])


@pytest.mark.parametrize("line", ["{path} {label}", "{path},{label}", "{path}\t{label}", "{path}"])
def test_kinetics_lists_of_paths(line, tmp_path):
    """VideoMAE's train.csv has a path and a label a line, and no header; other lists have the class as folder."""
    names = {0: "air drumming", 2: "washing feet", 10: "zumba"}
    for split in ("train", "val"):
        paths = {label: f"{split}/{name}/a.MP4" for label, name in names.items()}
        for path in paths.values():
            make_video(tmp_path / "videos" / path, 4)
        ending = "csv" if "label" in line else "txt"
        text = "".join(line.format(path=path, label=label) + "\n" for label, path in paths.items())
        (tmp_path / f"{split}.{ending}").write_text(text)
    annotations = read_annotations("kinetics400", [tmp_path / f"{split}.{ending}" for split in ("train", "val")])
    assert annotations.classes["label"] == (["0", "2", "10"] if "label" in line else list(names.values()))
    built = build_dataset(annotations, tmp_path / "videos")
    assert built.splits["validation"]["label"][:] == [0, 1, 2]
    assert [Path(path).parts[-3:-1] for path in built.splits["train"]["video"]] == [
        ("train", name) for name in names.values()
    ]


def test_kinetics_710_lists(tmp_path):
    """Several lists a split, paths with spaces, commas or blanks before the number; names from the label map."""
    for video in ("k400/train/air drumming/a.mp4", "k600/train/b_000001_000011.mp4", "k400/val/c.mp4"):
        make_video(tmp_path / "videos" / video, 4)
    make_video(tmp_path / "videos" / "k700" / "a.mp4", 4)
    (tmp_path / "k400_train_list_videos.txt").write_text("k400/train/air drumming/a.mp4 1\n")
    (tmp_path / "k600_train_list_videos.txt").write_text("k600/train/b_000001_000011.mp4,709\n")
    (tmp_path / "k400_val_list_videos.txt").write_text("k400/val/c.mp4 0\n")
    annotations = read_annotations("kinetics710", [tmp_path])
    assert annotations.classes["label"] == [str(number) for number in range(710)]
    built = build_dataset(annotations, tmp_path / "videos")
    assert built.splits["train"]["label"][:] == [1, 709]
    assert [Path(path).name for path in built.splits["train"]["video"]] == ["a.mp4", "b_000001_000011.mp4"]
    assert built.splits["train"][0]["video"].endswith("k400/train/air drumming/a.mp4")
    (tmp_path / "label_map_k710.txt").write_text("riding a bike\nmarching\n")
    with pytest.raises(AnnotationError, match=r"Got class '709' in .*k600_train.* expected a number in 0..1"):
        read_annotations("kinetics710", [tmp_path])


def test_a_csv_of_one_s_own(tmp_path):
    write_csv(
        tmp_path / "train.csv", "video,label,start,end", [["a.mp4", "run", "", 0.3], ["sub/b.mp4", "jump", 0.2, ""]]
    )
    for name in ("a.mp4", "sub/b.mp4"):
        make_video(tmp_path / name, 6)
    built = build_dataset(read_annotations("csv", [tmp_path / "train.csv"]), tmp_path)
    first, second = built.splits["train"]
    assert (first["label"], first["start"], first["end"]) == (1, None, 0.3)
    assert (second["label"], second["start"], second["end"]) == (0, 0.2, None)


def test_a_name_must_fit_whole_and_a_class_must_exist(tmp_path):
    for name in ("train.json", "old_train.json", "train.json.txt"):
        (tmp_path / name).write_text("[]")
    assert find_annotations([tmp_path], {"train": r"train\.json"}) == {"train": [tmp_path / "train.json"]}
    assert number_of("place", "2", ["a", "b", "c"]) == 2
    for number in ("3", "-1", "x"):
        with pytest.raises(AnnotationError, match=rf"Got class '{number}' in place, expected a number in 0\.\.2"):
            number_of("place", number, ["a", "b", "c"])


def test_a_split_with_labels_needs_a_video(tmp_path):
    make_video(tmp_path / "other.mp4", 2)
    write_csv(tmp_path / "train.csv", "video,label", [["a", "run"], ["b", "jump"]])
    with pytest.raises(
        AnnotationError, match=r"Got none of the 2 videos of split 'train' in .*, expected names such as 'a'"
    ):
        build_dataset(read_annotations("csv", [tmp_path / "train.csv"]), tmp_path)


def test_classes_of_one_name_get_their_numbers():
    assert unique_names(["jump", "run", "jump"]) == ["jump (0)", "run", "jump (2)"]


def test_verbs_and_nouns_of_a_csv_stay_in_their_columns(tmp_path):
    write_csv(
        tmp_path / "train.csv", "noun,video,verb", [["cup", "a", "wash"], ["pan", "b", "cut"], ["tap", "c", "cut"]]
    )
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", 2)
    built = build_dataset(read_annotations("csv", [tmp_path / "train.csv"]), tmp_path).splits["train"]
    for column, names in {"verb": ["wash", "cut", "cut"], "noun": ["cup", "pan", "tap"]}.items():
        assert [built.features[column].names[number] for number in built[column]] == names


def test_a_path_is_this_path_and_no_other(tmp_path):
    """A missing cam2/0001.mp4 never becomes cam1/0001.mp4, which has another label."""
    for name in ("cam1/0001.mp4", "cam2/0002.mp4", "cam1/clip.MTS", "0003.mp4", "cam1/0004.mp4"):
        make_video(tmp_path / name, 4)
    rows = [
        ["cam1/0001.mp4", "run"],
        ["cam2/0001.mp4", "jump"],
        ["cam2/0002.mp4", "jump"],
        ["clip", "run"],
        ["0004.mp4", "run"],
    ]
    write_csv(tmp_path / "train.csv", "video,label", rows)
    annotations = read_annotations("csv", [tmp_path / "train.csv"])
    built = build_dataset(annotations, tmp_path)
    found = {str(Path(row["video"]).relative_to(tmp_path)): row["label"] for row in built.splits["train"]}
    assert found == {"cam1/0001.mp4": 1, "cam2/0002.mp4": 0, "cam1/clip.MTS": 1}
    assert built.missing_videos == ["0004.mp4", "cam2/0001.mp4"]
    make_video(tmp_path / "cam3" / "clip.mov", 4)
    with pytest.raises(AnnotationError, match=r"Got 2 files for video 'clip', .*clip.MTS and .*clip.mov, expected one"):
        build_dataset(annotations, tmp_path)
    (tmp_path / "cam3" / "clip.mov").unlink()
    (tmp_path / "cam3" / "clip.mov").symlink_to(tmp_path / "cam1" / "clip.MTS")  # the same file
    assert len(build_dataset(annotations, tmp_path).splits["train"]) == 3


ODD_ROWS = [
    ("video,label\na,run,5\n", r"Got 3 cells in .*train.csv, line 2, expected 2"),
    ("video,label\n\na,run\nb\n", r"Got 1 cells in .*train.csv, line 4, expected 2"),
    ("video,label\na,run\nb,\n", r"Got no \['label'\] in .*train.csv, line 3"),
    ("video,label,start,end\na,run,2,1\n", r"Got start '2' and end '1' in .*train.csv, line 2"),
    ("video,label,start,end\na,run,-1,1\n", r"Got time '-1' in .*train.csv, line 2"),
    ("video,label,video\na,run,b\n", r"Got .*train.csv with the column 'video' twice"),
    ('video,label\na,"run\nb,jump\n', r"Got .*train.csv, line 2: unexpected end of data"),
    ("video,label\n", r"Got .*train.csv with no rows"),
    (
        "clips/a.mp4 0 -1\nclips/b.mp4 0 -1\n",
        r"Got 'clips/a.mp4 0 -1' in .*train.csv, line 1, expected one path a line",
    ),
    ("a.mp4,run\nb.avi\n", r"Got 'b.avi' in .*train.csv, line 2, expected one path a line"),
]


@pytest.mark.parametrize(("text", "message"), ODD_ROWS)
def test_a_wrong_row_is_named_with_its_line(text, message, tmp_path):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read_annotations("csv", [tmp_path / "train.csv"])


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    made = make_kinetics(tmp_path)
    text = (tmp_path / "train.csv").read_text().replace("air drumming", "caf\u00e9")
    (tmp_path / "train.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"Got .*train.csv, line 3, whose byte 0xe9 is not UTF-8, expected UTF-8"):
        read_annotations("kinetics400", [made.annotations])
    (tmp_path / "train.csv").write_bytes(
        b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\r\n").replace(b"label,", b" label ,")
    )
    annotations = read_annotations("kinetics400", [made.annotations])
    assert annotations.classes["label"] == ["air drumming", "caf\u00e9", "washing feet"]
    made = make_diving48(tmp_path)
    (tmp_path / "Diving48_vocab.json").write_bytes('[["caf\u00e9"]]'.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"Diving48_vocab.json, line 1, whose byte 0xe9"):
        read_annotations("diving48", [made.annotations])


def test_tables_in_capitals_and_numbers_in_order(tmp_path):
    for label in (0, 2, 10):
        make_video(tmp_path / f"{label}.MOV", 4)
    (tmp_path / "TRAIN.TSV").write_text("video\tlabel\n10\t 10 \n2\t2\n0\t0\n")
    annotations = read_annotations("csv", [tmp_path / "TRAIN.TSV"])
    assert annotations.classes["label"] == ["0", "2", "10"]
    assert build_dataset(annotations, tmp_path).splits["train"]["label"][:] == [2, 1, 0]


def test_segments_are_the_annotated_frames(tmp_path):
    """The first EPIC clip, 1.0 s to 1.8 s at 10 frames a second, is frames 10 to 17 of its video."""
    made = make_epic_kitchens(tmp_path)
    built = build_dataset(read_annotations("epic_kitchens_100", [made.annotations]), made.videos)
    row = built.splits["train"][0]
    frames, metadata = decode_video(
        row["video"], lambda metadata: range(metadata.total_num_frames), start=row["start"], end=row["end"]
    )
    assert metadata.total_num_frames == 8
    assert frames.float().mean(dim=(1, 2, 3)).numpy() == pytest.approx(np.arange(10, 18) * 5, abs=2)


def test_missing_videos_are_counted_and_named(tmp_path, monkeypatch, capsys):
    made = make_kinetics(tmp_path)
    next(made.videos.rglob("--GkrdYZ9Tc*.mp4")).unlink()
    data = tmp_path / "data"
    arguments = ["kinetics400", "--annotations", made.annotations, "--videos", made.videos, "--output", data]
    run("prepare_dataset", monkeypatch, *arguments)
    printed = capsys.readouterr().out
    assert "train: 1 clips with their videos, 1 without" in printed
    assert "1 videos are missing: --GkrdYZ9Tc_000000_000010" in printed
    assert (data / "missing_videos.txt").read_text() == "--GkrdYZ9Tc_000000_000010\n"
    assert len(load_video_dataset(data, label_column="label")["train"]) == 1
    next(made.videos.rglob("_bcJuKJQ_s*.mp4")).unlink()
    with pytest.raises(SystemExit, match=r"Got none of the 2 videos of split 'train' .* '--GkrdYZ9Tc_000000_000010'"):
        run("prepare_dataset", monkeypatch, *arguments)


def test_a_test_split_that_nobody_downloaded_is_left_out(tmp_path, monkeypatch, capsys):
    made = make_epic_kitchens(tmp_path / "made")
    next(made.videos.rglob("P01_101.MP4")).unlink()
    data = tmp_path / "data"
    arguments = ["epic_kitchens_100", "--annotations", made.annotations, "--videos", made.videos, "--output", data]
    run("prepare_dataset", monkeypatch, *arguments)
    printed = capsys.readouterr().out
    assert "test: 1 annotated clips, NOT the published 13,092" in printed
    assert "test: 0 clips with their videos, 1 without" in printed
    assert list(load_video_dataset(data, label_column=["verb", "noun"])) == ["train", "validation"]


def test_published_sizes_are_recognised(tmp_path):
    annotations = read_annotations("diving48", [make_diving48(tmp_path).annotations])
    annotations.splits["train"] *= 15_027 // 3
    annotations.classes["label"] = [str(number) for number in range(48)]
    train, test, classes = compare_with_known("diving48", annotations)
    assert train == "train: 15,027 annotated clips, as published"
    assert test == "test: 2 annotated clips, NOT the published 1,970 or 2,096"
    assert classes == "label: 48 classes, as published"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("diving48", "Diving48_V2_train.json", '"label"', '"class"', r"V2_train.json with .*expected 'label' too"),
        (
            "diving48",
            "Diving48_V2_train.json",
            '"label": 2',
            '"label": 48',
            r"Got class 48 .*expected a number in 0..2",
        ),
        ("diving48", "Diving48_V2_test.json", "[{", "{", r"Got .*V2_test.json, expected JSON"),
        ("epic_kitchens_100", "EPIC_100_train.csv", ",verb_class,", ",verb_id,", r"expected 'verb_class' too"),
        ("epic_kitchens_100", "EPIC_100_noun_classes.csv", "\n2,", "\n5,", r"gaps in numbers, expected 0..2"),
        ("epic_kitchens_100", "EPIC_100_train.csv", "00:00:01.80", "1m", r"Got time '1m' in .*EPIC_100_train.csv"),
        (
            "kinetics400",
            "train.csv",
            ",104,",
            ",,",
            r"Got time '' in .*train.csv, line 3, expected seconds or HH:MM:SS.SS",
        ),
        (
            "something_something_v2",
            "something-something-v2-train.json",
            "[something]",
            "[thing]",
            r"Got template .*thing",
        ),
        ("kinetics400", "train.csv", "label,", "class,", r"train.csv with .*expected 'label' too"),
        ("kinetics400", "train.csv", ",train", ",trainings", r"Got split 'trainings'"),
        (
            "finegym288",
            "gym288_val_element.txt",
            "E_000002",
            "E_000009",
            r"Got element .*E_000009.* whose times are in",
        ),
        ("finegym288", "gym288_categories.txt", "Clabel: 1", "Clabel: 3", r"gaps in numbers, expected 0..1"),
    ],
)
def test_files_of_another_format_are_named(name, file, old, new, message, tmp_path):
    made = MAKERS[name](tmp_path)
    edit(tmp_path / file, old, new)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(name, [made.annotations])


def test_files_that_are_not_there_are_named(tmp_path):
    made = make_epic_kitchens(tmp_path)
    (tmp_path / "EPIC_100_verb_classes.csv").unlink()
    with pytest.raises(AnnotationError, match=r"Got \[\] for 'verb classes', expected one file"):
        read_annotations("epic_kitchens_100", [made.annotations])
    with pytest.raises(AnnotationError, match=r"Got annotations .*/nowhere, expected a file or folder that exists"):
        read_annotations("epic_kitchens_100", [tmp_path / "nowhere"])
    (tmp_path / "EPIC_100_noun_classes_v2.csv").touch()
    with pytest.raises(AnnotationError, match=r"Got annotations .*noun_classes_v2.csv, expected a name that matches"):
        read_annotations("epic_kitchens_100", [tmp_path / "EPIC_100_noun_classes_v2.csv"])
    (tmp_path / "kinetics").mkdir()
    (tmp_path / "empty").mkdir()
    annotations = read_annotations("kinetics400", [make_kinetics(tmp_path / "kinetics").annotations])
    with pytest.raises(AnnotationError, match=r"Got .*/empty, expected videos"):
        build_dataset(annotations, tmp_path / "empty")
    with pytest.raises(AnnotationError, match=r"Got benchmark 'ucf101', expected one of"):
        read_annotations("ucf101", [tmp_path])
    assert set(MAKERS) < set(BENCHMARKS)
