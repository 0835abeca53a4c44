"""Reading and writing video files: whole, unusual and broken ones."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import FIXTURES, ROOT

from transformers_lvmae.models.video_io import decode_video, write_video
from transformers_lvmae.models.video_seeking import VideoReadError


ODD = FIXTURES / "odd"
BROKEN = {
    "truncated.mp4": "Invalid data",
    "truncated_indexed.mp4": "got 12 frames, expected 40",
    "empty.mp4": "got 0 bytes",
    "noise.mp4": "Invalid data",
    "page.mp4": "Invalid data",
    "bit_errors.mp4": "Invalid data",
    "audio_only.mp4": "without a video stream",
}


def all_frames(metadata):
    return range(metadata.total_num_frames)


def frame_numbers(frames):
    """The numbers (T,) that the fixtures' grey levels, 20 + 5 t, stand for."""
    return ((frames.float().mean(dim=(1, 2, 3)) - 20) / 5).round().int().tolist()


def test_every_broken_file_has_its_case():
    whole = {"ten_frames.mp4", "clip.webm", "clip.mkv", "carphone.mp4"}
    assert {path.name for path in ODD.iterdir()} == whole | set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named_with_its_fault_and_a_remedy(name):
    with pytest.raises(VideoReadError) as caught:
        decode_video(ODD / name, all_frames, backend="pyav")
    message = str(caught.value)
    assert message.startswith(f"Cannot read video {ODD / name}: got ")
    assert BROKEN[name] in message
    assert "expected" in message
    assert message.endswith("remove it.")
    assert "Errno" not in message


@pytest.mark.parametrize("name", ["bit_errors.mp4", "empty.mp4", "noise.mp4"])
def test_broken_bytes_raise_too(name):
    with pytest.raises(VideoReadError, match=r"got .*, expected "):
        decode_video({"path": name, "bytes": (ODD / name).read_bytes()}, all_frames, backend="pyav")


def test_missing_file_and_missing_source():
    with pytest.raises(VideoReadError, match=r"nowhere\.mp4: got No such file"):
        decode_video("nowhere.mp4", all_frames, backend="pyav")
    with pytest.raises(VideoReadError, match="got neither a path nor bytes"):
        decode_video({"path": None, "bytes": None}, all_frames)


@pytest.mark.parametrize("name", ["clip.webm", "clip.mkv"])
def test_frames_are_counted_where_the_header_says_none(name):
    frames, metadata = decode_video(ODD / name, all_frames)
    assert metadata.total_num_frames == 40
    assert metadata.fps == 25
    assert metadata.duration == 1.6
    assert frame_numbers(frames) == list(range(40))


@pytest.mark.parametrize("name", ["clip.webm", "clip.mkv"])
def test_frames_come_in_the_order_asked_with_repeats(name):
    asked = [31, 4, 4, 39, 0, 31]
    frames, metadata = decode_video(ODD / name, lambda metadata: asked)
    assert frame_numbers(frames) == asked == metadata.frames_indices


@pytest.mark.parametrize("asked", [[0, 10], [-1], []])
def test_frames_outside_the_video_are_refused(asked):
    with pytest.raises(ValueError, match=r"expected 0\.\.9"):
        decode_video(ODD / "ten_frames.mp4", lambda metadata: asked)


def test_sources_agree():
    path = ODD / "ten_frames.mp4"
    frames, _ = decode_video(path, all_frames)
    assert frames.shape == (10, 3, 64, 64)
    assert frames.dtype == torch.uint8
    data = path.read_bytes()
    with open(path, "rb") as file:
        for source in (str(path), data, file, {"path": str(path), "bytes": None}, {"path": "gone.mp4", "bytes": data}):
            assert torch.equal(decode_video(source, all_frames)[0], frames)


def test_a_pipe_can_be_read():
    path = ODD / "ten_frames.mp4"
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as pipe:
        assert torch.equal(decode_video(pipe.stdout, all_frames)[0], decode_video(path, all_frames)[0])


def test_back_end_must_be_known():
    with pytest.raises(ValueError, match="Got backend='opencv', expected 'torchcodec', 'pyav'"):
        decode_video(ODD / "ten_frames.mp4", all_frames, backend="opencv")
    with pytest.raises(VideoReadError, match="got a ndarray, expected a path"):
        decode_video(np.zeros(3), all_frames, backend="pyav")


@pytest.mark.parametrize("segment", [{"start": 0.1}, {"end": 0.2}])
def test_torchcodec_has_no_segments(segment):
    with pytest.raises(ValueError, match=r"Got a segment from .* s for torchcodec, expected PyAV"):
        decode_video(str(ODD / "ten_frames.mp4"), all_frames, backend="torchcodec", **segment)


def test_real_footage():
    frames, metadata = decode_video(ODD / "carphone.mp4", all_frames)
    assert frames.shape == (40, 3, 144, 176)
    assert (metadata.height, metadata.width) == (144, 176)
    change = (frames[1:].float() - frames[:-1].float()).abs().mean(dim=(1, 2, 3))
    assert (change > 0.1).all()
    assert (change < 20).all()


def test_written_video_is_deterministic_and_close(tmp_path):
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.stack([np.roll(texture, (t, rng.integers(3)), axis=(0, 1)) for t in range(60)])
    files = set()
    for _ in range(4):
        write_video(tmp_path / "clip.mp4", frames)
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1
    decoded, metadata = decode_video(tmp_path / "clip.mp4", all_frames)
    assert metadata.fps == 25
    assert metadata.total_num_frames == 60
    difference = decoded.permute(0, 2, 3, 1).float().mean(dim=-1) - torch.from_numpy(frames).float().mean(dim=-1)
    assert difference.abs().mean() < 8


def test_colours_come_back_in_their_channels(tmp_path):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    frames[np.arange(3), :, :, np.arange(3)] = 200
    write_video(tmp_path / "colours.mp4", frames)
    decoded, _ = decode_video(tmp_path / "colours.mp4", all_frames)
    assert decoded.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 16, 16, 3)),
        np.zeros((2, 3, 16, 16), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((2, 15, 16, 3), np.uint8),
    ],
    ids=["float", "channels first", "one frame", "odd height"],
)
def test_write_video_refuses_other_arrays(frames, tmp_path):
    with pytest.raises(ValueError, match=r"expected uint8 \(T, H, W, 3\), H and W even"):
        write_video(tmp_path / "x.mp4", frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.webm", "clip.mkv", "carphone.mp4"])
def test_a_segment_is_those_frames_of_the_whole_video(name):
    whole, metadata = decode_video(ODD / name, all_frames, backend="pyav")
    rate = metadata.fps
    part, segment = decode_video(ODD / name, all_frames, start=5 / rate, end=12 / rate)
    assert segment.total_num_frames == 7
    assert torch.equal(part, whole[5:12])
    rest, _ = decode_video(ODD / name, all_frames, start=3 / rate)
    assert torch.equal(rest, whole[3:])


def test_a_segment_without_frames_is_refused():
    with pytest.raises(VideoReadError, match=r"got a segment from 100 to None s, expected frames in it"):
        decode_video(ODD / "carphone.mp4", all_frames, start=100)


PEAK = """
import sys
import torch
from measuring import measure
from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import processor_for
from transformers_lvmae.models.video_io import decode_video

torch.set_num_threads(1)
fit = processor_for(LVMAEConfig()).fit
decode_video(sys.argv[2], lambda metadata: [0], view=fit)  # what libraries load at the first use
usage = measure(lambda: decode_video(sys.argv[1], lambda metadata: range(0, 256, 2), view=fit))
print(usage.peak_bytes)
"""


@pytest.mark.slow
def test_a_clip_of_720p_takes_less_than_70_megabytes(tmp_path):
    """128 of 260 frames, kept at 224 pixels: the peak above the start, of a process of its own."""
    texture = np.random.default_rng(0).integers(0, 250, (720, 1600, 3), dtype=np.uint8)
    write_video(tmp_path / "video.mp4", np.stack([texture[:, number : number + 1280] for number in range(260)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    arguments = [sys.executable, "-c", PEAK, str(tmp_path / "video.mp4"), str(ODD / "carphone.mp4")]
    run = {"cwd": ROOT / "benchmarks", "env": environment, "stdout": subprocess.PIPE}  # where measuring.py is
    peak = int(subprocess.run(arguments, **run, text=True, check=True).stdout)
    print(f"{peak / 2**20:.0f} MiB")
    assert peak < 70e6
