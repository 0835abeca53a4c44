"""The generators of the demo sets: deterministic, balanced, true to their metadata, readable by `datasets`."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT
from demo_data import write_videofolder

from transformers_lvmae.models.video_io import decode_video


SMALL = ["--image_size", "32", "--num_frames", "64", "--workers", "1"]


@pytest.fixture(scope="module")
def make_digits():
    return import_script("make_digits")


def import_script(name):
    """A script as a module that worker processes can import as well."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def digits(make_digits, tmp_path_factory):
    """A folder with a small set of each task, made with one worker."""
    folder = tmp_path_factory.mktemp("digits")
    for task in make_digits.CLASSES:
        splits = ["--train", "12", "--validation", "0", "--test", "6"]
        make_digits.write_set(make_digits.parse_args([str(folder / task), "--task", task, *splits, *SMALL]))
    return folder


def read_rows(folder):
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_frames(path):
    """All frames of a file, uint8 (T, H, W, 3)."""
    frames, _ = decode_video(path, lambda metadata: range(metadata.total_num_frames))
    return frames.permute(0, 2, 3, 1).numpy()


def file_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_runs(happens):
    """Number of runs of True in a bool vector (T,)."""
    return int((np.diff(happens.astype(int), prepend=0) == 1).sum())


def write_small_set(make_digits, folder, workers="1", seed="0", train="10"):
    splits = ["--train", train, "--validation", "1", "--test", "1"]
    arguments = [str(folder), "--task", "hop", *splits, *SMALL[:-2], "--seed", seed, "--workers", workers]
    make_digits.write_set(make_digits.parse_args(arguments))


def test_workers_do_not_change_a_byte(make_digits, tmp_path):
    for workers in ("1", "2"):
        write_small_set(make_digits, tmp_path / workers, workers)
    one, two = file_bytes(tmp_path / "1"), file_bytes(tmp_path / "2")
    assert len(one) == 12 + 3 + 1
    assert one == two


@pytest.mark.parametrize("nuisance", ["grain", "flicker", "camera"])
def test_a_nuisance_changes_the_pixels_and_nothing_else(make_digits, nuisance):
    scenes = [make_digits.DigitScene("motion", 64, 16, 0, 0, 3, kind) for kind in (None, nuisance, nuisance)]
    clean, disturbed, again = (scene.render().astype(int) for scene in scenes)
    assert scenes[0].attributes == scenes[1].attributes
    assert np.array_equal(disturbed, again)
    change = disturbed - clean
    if nuisance == "grain":
        rows, columns = (np.flatnonzero(change.any(axis=(0, 3, other))) for other in (2, 1))
        assert len(rows) == len(columns) == 32
        assert np.ptp(rows) == np.ptp(columns) == 31
        assert change.min() >= 0
        assert 120 <= change.max() <= 0.5 * 255 + 1
        noise = change[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, 0]
        assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.6  # new in each frame
    elif nuisance == "flicker":
        lifts = np.median(change, axis=(1, 2, 3))
        assert np.abs(lifts).max() <= 0.12 * 255 + 1
        assert lifts.std() > 8
        inside = (disturbed > 0) & (disturbed < 255)
        assert np.abs(change - lifts[:, None, None, None])[inside].max() <= 1
    else:
        for before, after in zip(clean, disturbed):
            shifted = [np.roll(before, (y, x), axis=(0, 1)) for y in range(-2, 3) for x in range(-2, 3)]
            assert any(np.array_equal(after, frame) for frame in shifted)
        assert change.any()


def test_seed_and_split_change_the_clips(make_digits):
    clips = [make_digits.DigitScene("flash", 32, 64, seed, split, 5) for seed, split in ((0, 0), (1, 0), (0, 1))]
    assert len({json.dumps(clip.attributes) for clip in clips}) == 3
    assert len({clip.render().tobytes() for clip in clips}) == 3


def test_interrupted_run_is_completed(make_digits, tmp_path):
    write_small_set(make_digits, tmp_path / "set")
    whole = file_bytes(tmp_path / "set")
    train = tmp_path / "set" / "train"
    (train / "metadata.csv").unlink()
    (train / "clip_00003.mp4").unlink()
    (train / ".clip_00003.mp4").write_bytes(b"half a file")
    kept = (train / "clip_00002.mp4").stat().st_mtime_ns
    write_small_set(make_digits, tmp_path / "set")
    assert file_bytes(tmp_path / "set") == whole
    assert (train / "clip_00002.mp4").stat().st_mtime_ns == kept


def test_other_arguments_are_refused(make_digits, tmp_path):
    write_small_set(make_digits, tmp_path / "set", train="1")
    with pytest.raises(ValueError, match=r"Got \{'seed': 1\} for .*, expected \{'seed': 0\} .*: choose another folder"):
        write_small_set(make_digits, tmp_path / "set", seed="1", train="1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="a folder with other files in it, expected an empty or a new folder"):
        write_small_set(make_digits, tmp_path / "other")


def test_failing_clip_leaves_no_metadata(tmp_path):
    class Scene:
        attributes = {"label": "a"}

        def render(self):
            raise RuntimeError("no light")

    with pytest.raises(RuntimeError, match="no light"):
        write_videofolder(tmp_path / "set", {"train": 1}, lambda split_number, index: Scene(), {})
    assert [path.name for path in (tmp_path / "set").rglob("*") if path.is_file()] == ["arguments.json"]


def test_too_few_frames_for_the_events(make_digits, tmp_path):
    with pytest.raises(ValueError, match="Got num_frames=32, expected room for 5 events"):
        make_digits.main([str(tmp_path / "set"), "--task", "flash", *SMALL[:2], "--num_frames", "32", "--workers", "1"])


@pytest.mark.parametrize("task", ["motion", "flash", "hop"])
def test_classes_are_balanced_in_every_split(make_digits, digits, task):
    for split in ("train", "test"):
        counts = Counter(row["label"] for row in read_rows(digits / task / split))
        assert set(counts) <= set(make_digits.CLASSES[task])
        assert max(counts.values()) - min(counts.values()) <= (1 if task == "motion" else 0)


@pytest.mark.parametrize("task", ["flash", "hop"])
def test_count_is_the_label_and_events_keep_apart(digits, task):
    for row in read_rows(digits / task / "train"):
        starts = json.loads(row["event_starts"])
        assert len(starts) == int(row["count"]) == int(row["label"].split("_")[1])
        assert all(np.diff(starts) >= 6)
        assert all(4 <= start <= 64 - 4 - 2 for start in starts)


def test_flashes_can_be_counted_in_the_pixels(digits):
    for row in read_rows(digits / "flash" / "train"):
        frames = read_frames(digits / "flash" / "train" / row["file_name"])
        white = (frames.min(axis=-1) > 190).sum(axis=(1, 2)) > 10  # only a flashing digit has white pixels
        starts = json.loads(row["event_starts"])
        assert count_runs(white) == int(row["count"])
        assert np.flatnonzero(white).tolist() == [frame for start in starts for frame in (start, start + 1)]


def test_hops_can_be_counted_in_the_pixels(digits):
    for row in read_rows(digits / "hop" / "train"):
        frames = read_frames(digits / "hop" / "train" / row["file_name"]).astype(float)

        def change(step, frames=frames):
            return np.abs(frames[step:] - frames[:-step]).mean(axis=(1, 2, 3))

        # A hop changes the picture twice within three frames and leaves it as it was; a drift does not.
        there_and_back = np.minimum(change(1)[:-2], change(1)[2:]) / change(3)
        assert (np.flatnonzero(there_and_back > 0.9) + 1).tolist() == json.loads(row["event_starts"])


def test_motion_moves_the_digit_as_named(make_digits):
    def travel(motion):
        path = make_digits.motion_path(motion, 64, 128, np.random.default_rng(0))
        steps = np.diff(path.centre, axis=0)
        turning = (steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]).mean()
        return *np.sign(steps.mean(axis=0).round(1)), np.sign(turning.round(3)), float(np.ptp(path.size))

    assert travel("left")[:3] == (-1, 0, 0)
    assert travel("right")[:3] == (1, 0, 0)
    assert travel("up")[:3] == (0, -1, 0)
    assert travel("down")[:3] == (0, 1, 0)
    # y points down, so clockwise turns from x to y.
    assert travel("clockwise")[2] == 1
    assert travel("counter_clockwise")[2] == -1
    assert travel("pulse")[3] > 10
    assert travel("shake")[3] == 0


def test_nothing_but_the_events_tells_the_count(make_digits):
    """No events and five drawn from the same random numbers give the same pixels at every frame without an event."""

    class NoEvents(make_digits.DigitScene):
        label = 0

    for task in ("flash", "hop"):
        clips, events = [], set()
        for scene in (NoEvents(task, 32, 64, 0, 0, 5), make_digits.DigitScene(task, 32, 64, 0, 0, 5)):
            clips.append(scene.render())
            events |= {start + offset for start in scene.event_starts for offset in (0, 1)}
        differs = (clips[0] != clips[1]).any(axis=(1, 2, 3))
        assert set(np.flatnonzero(differs)) == events
        assert len(events) == 10


def test_splits_show_different_digits(make_digits):
    shown = [
        {make_digits.DigitScene("motion", 32, 32, 0, split, index).image_number for index in range(60)}
        for split in range(3)
    ]
    assert not shown[0] & shown[1]
    assert not shown[0] & shown[2]
    assert not shown[1] & shown[2]


def test_only_long_clips_tell_the_count(make_digits):
    ceilings = {num_seen: make_digits.observer_ceiling(num_seen, num_clips=12000) for num_seen in (16, 32, 128)}
    assert ceilings[16] < 0.30
    assert 1 / 6 < ceilings[32] <= 0.40
    assert ceilings[128] == 1.0


def test_placements_agree_with_enumeration(make_digits):
    num_frames, seen = 20, np.zeros(20, bool)
    seen[2::4] = True
    lit = np.zeros((1, num_frames), bool)
    lit[0, 6:8] = True
    places = range(make_digits.EVENT_MARGIN, num_frames - make_digits.EVENT_MARGIN - 1)
    expected = np.zeros(6)
    for first in places:
        for more in ([], *([second] for second in places if second - first >= make_digits.EVENT_SPACING)):
            frames = np.zeros(num_frames, bool)
            for start in (first, *more):
                frames[start : start + 2] = True
            expected[1 + len(more)] += (frames == lit[0])[seen].all()
    assert np.array_equal(make_digits.placements(lit, seen)[0], expected)


@pytest.mark.parametrize("task", ["motion", "flash"])
def test_datasets_reads_the_folder(digits, task, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("videofolder", data_dir=str(digits / task), cache_dir=str(tmp_path))
    loaded = loaded.cast_column("video", datasets.Video(decode=False))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 12, "test": 6}
    labels = {row["file_name"]: row["label"] for row in read_rows(digits / task / "train")}
    for row in loaded["train"]:
        frames, metadata = decode_video(row["video"], lambda metadata: range(metadata.total_num_frames))
        assert frames.shape == (64, 3, 32, 32)
        assert metadata.total_num_frames == 64
        assert labels[Path(row["video"]["path"]).name] == row["label"]


@pytest.fixture(scope="module")
def make_diving():
    script = import_script("make_diving")
    try:
        script.studio(32)
    except RuntimeError as error:
        pytest.skip(f"MuJoCo cannot draw here: {error}")
    return script


def test_diving_set(make_diving, tmp_path):
    make_diving.main([str(tmp_path / "set"), "--train", "2", "--validation", "0", "--test", "0", *SMALL])
    rows = read_rows(tmp_path / "set" / "train")
    assert [row["label"] for row in rows] == list(make_diving.CLASSES[:2])
    assert list(rows[0].values())[2:] == ["back", "1.5", "0.5", "free"]
    frames = read_frames(tmp_path / "set" / "train" / "clip_00001.mp4")
    assert frames.shape == (64, 32, 32, 3)
    assert frames[0].std() > 10
    assert np.abs(frames[20].astype(int) - frames[30]).mean() > 2


@pytest.mark.parametrize("index", range(24))
def test_diver_turns_as_named(make_diving, index):
    scene = make_diving.DivingScene(32, 64, 0, 0, index)
    stage, attributes = make_diving.studio(32), scene.attributes
    dive = make_diving.Dive(attributes, 64, stage, np.random.default_rng(index))
    turns = dive.somersault[-1] / (2 * np.pi)
    assert abs(turns) == pytest.approx(attributes["somersaults"])
    assert abs(dive.twist[-1]) / (2 * np.pi) == pytest.approx(attributes["twists"])
    assert (turns > 0) == (attributes["takeoff"] in ("forward", "inward"))  # towards the diver's own front
    upright = stage.turned(np.array([0, 0, 1.0]), stage.rotation(dive.yaw, dive.somersault[-1], dive.twist[-1]))
    assert upright[2] == pytest.approx(-1, abs=1e-6)  # head first


def test_tucked_diver_spins_faster(make_diving):
    stage = make_diving.studio(32)
    inertia = {name: stage.measure(np.array(pose))[0] for name, pose in make_diving.POSES.items()}
    assert inertia["tuck"] < 0.9 * inertia["pike"] < 0.5 * inertia["reach"]
    share = make_diving.share_turned(np.array([4.0, 4, 2, 2]), np.array([0.2, 0.4, 0.6, 0.8]))
    assert np.allclose(np.diff(share, prepend=0), [1 / 6, 1 / 6, 1 / 3, 1 / 3])
