"""Seeking finds the same frames as decoding from the start, at the same cost for all places in a video."""

from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from builders import FIXTURES

from transformers_lvmae.models import video_io, video_seeking
from transformers_lvmae.models.decoder_process import Opening
from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import MAX_REORDER, VideoReader, VideoReadError


ODD = FIXTURES / "odd"
FRAMES = 90
X264 = "scenecut=0:keyint=10:min-keyint=10:bframes=3:b-pyramid=normal"
X265 = "keyint=10:min-keyint=10:bframes=3:pools=1:frame-threads=1:log-level=none"
UNEVEN = np.cumsum([0, *np.random.default_rng(1).integers(10, 90, FRAMES - 1)])
# name: codec, the codec's options, time stamps in milliseconds, the container's options
VIDEOS = {
    "h264.mp4": ("libx264", {"x264-params": X264}, None, {}),
    "h264_open_gop.mp4": ("libx264", {"x264-params": X264 + ":open-gop=1"}, None, {}),
    "h264_open_gop.mkv": ("libx264", {"x264-params": X264 + ":open-gop=1"}, None, {}),
    "h264_variable_rate.mp4": ("libx264", {"x264-params": X264}, UNEVEN, {}),
    "h264_variable_rate.mkv": ("libx264", {"x264-params": X264}, UNEVEN, {}),
    "h264_starts_late.mp4": ("libx264", {"x264-params": X264}, np.arange(FRAMES) * 40 + 1000, {}),
    "h264_edit_list.mp4": ("libx264", {"x264-params": X264}, np.arange(FRAMES) * 40 - 600, {}),
    "h264_long_edit_list.mp4": ("libx264", {"x264-params": "keyint=60:bframes=3"}, np.arange(FRAMES) * 40 - 720, {}),
    "h264_fragmented.mp4": ("libx264", {"x264-params": X264}, None, {"movflags": "frag_keyframe+empty_moov"}),
    "h264_fragmented_late.mp4": ("libx264", {"x264-params": X264}, None, {"movflags": "frag_keyframe"}),
    "h264_intra_refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}, None, {}),
    "h264.mov": ("libx264", {"x264-params": X264}, None, {}),
    "hevc_open_gop.mp4": ("libx265", {"x265-params": X265 + ":open-gop=1"}, None, {}),
    "hevc.mkv": ("libx265", {"x265-params": X265 + ":open-gop=0"}, None, {}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}, None, {}),
    "vp8.webm": ("libvpx", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "16"}, None, {}),
    "av1.webm": ("libsvtav1", {"g": "10", "preset": "12", "svtav1-params": "lp=1"}, None, {}),
    "av1.mp4": ("libsvtav1", {"g": "10", "preset": "12", "svtav1-params": "lp=1"}, None, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "10", "bf": "2"}, None, {}),
    "mpeg4.mkv": ("mpeg4", {"g": "10", "bf": "2"}, None, {}),
    "mpeg4.avi": ("mpeg4", {"g": "10", "bf": "2"}, None, {}),
    "mpeg2.mpg": ("mpeg2video", {"g": "10", "bf": "2"}, None, {}),
    "h264.ts": ("libx264", {"x264-params": X264}, None, {}),
}
# Where decoding from the start is needed; with an edit list, for what follows the cut alone: its keyframe is cut off.
FROM_THE_START = {
    "mpeg4.avi",
    "mpeg2.mpg",
    "h264.ts",
    "h264_intra_refresh.mp4",
    "h264_edit_list.mp4",
    "h264_long_edit_list.mp4",
}


def write(path, codec, options, stamps=None, container_options=None, frames=FRAMES):
    """A texture that moves and brightens: no two frames are alike."""
    texture = np.random.default_rng(0).integers(0, 128, (48, 64, 3))
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            picture = (np.roll(texture, number, axis=1) + number % 120).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = int(stamps[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Path, and (seconds from the first frame, pixels) of all frames of one plain decoding."""
    folder = tmp_path_factory.mktemp("videos")
    held = {}

    def video(name):
        if name not in held:
            write(folder / name, *VIDEOS[name])
            with av.open(str(folder / name)) as container:
                frames = list(container.decode(video=0))
                base = container.streams.video[0].time_base
                seconds = np.array([float((frame.pts - frames[0].pts) * base) for frame in frames])
                held[name] = folder / name, seconds, [frame.to_ndarray(format="rgb24") for frame in frames]
        return held[name]

    return video


@pytest.fixture
def decoded(monkeypatch):
    """How many frames were decoded, after jumps and from the start."""
    counts = {"jumps": 0, "start": 0}
    decode, from_start = video_seeking._decode, VideoReader._frames_from_start

    def counting(packets):
        for frame in decode(packets):
            counts["jumps"] += 1
            yield frame

    def counting_start(self, wanted):
        counts["start"] += len(wanted)
        return from_start(self, wanted)

    monkeypatch.setattr(video_seeking, "_decode", counting)
    monkeypatch.setattr(VideoReader, "_frames_from_start", counting_start)
    return counts


def reader_of(path, *span, **kwargs):
    return VideoReader(open(path, "rb"), *span, **kwargs)


def assert_same(got, numbers, pictures):
    assert [number for number, _ in got] == list(range(len(numbers)))
    for (_, frame), number in zip(got, numbers):
        assert np.array_equal(frame.to_ndarray(format="rgb24"), pictures[number])


@pytest.mark.parametrize("name", VIDEOS)
def test_segments_are_the_frames_of_those_seconds(name, videos, decoded):
    path, seconds, pictures = videos(name)
    rng = np.random.default_rng(0)
    spans = [(rng.uniform(0, seconds[-1]), rng.uniform(0.1, 0.8)) for _ in range(5)]
    spans += [(seconds[41], 0.2), (0.0, 0.4), (seconds[-1] - 0.2, 9.0)]
    for start, length in spans:
        numbers = np.flatnonzero((seconds >= start - 1e-6) & (seconds < start + length - 1e-6))
        if len(numbers):
            reader = reader_of(path, start, start + length)
            assert reader.total == len(numbers)
            assert_same(list(reader.frames(range(reader.total))), numbers, pictures)
    assert (decoded["start"] > 0) == (name in FROM_THE_START)
    reader = reader_of(path, start=seconds[70])
    assert_same(list(reader.frames(range(reader.total))), range(70, len(pictures)), pictures)


@pytest.mark.parametrize("name", VIDEOS)
def test_chosen_frames_are_those_frames_of_the_whole_video(name, videos, decoded):
    path, _, pictures = videos(name)
    rng = np.random.default_rng(0)
    for choice in ([len(pictures) - 1], [0, 44, 45], rng.permutation(len(pictures))[:5], range(30, 60, 4)):
        reader = reader_of(path)
        assert reader.total == len(pictures)
        got = list(reader.frames(int(number) for number in choice))
        assert [number for number, _ in got] == sorted(choice)
        for number, frame in got:
            assert np.array_equal(frame.to_ndarray(format="rgb24"), pictures[number])
    assert decoded["jumps"] > 0 or name in FROM_THE_START


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    for name in ("long.mp4", "long.mkv"):
        write(folder / name, "libx264", {"x264-params": X264, "preset": "ultrafast"}, frames=1200)
    return folder


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
@pytest.mark.parametrize("whole", [False, True], ids=["segment", "numbers"])
def test_the_cost_does_not_depend_on_the_place(name, whole, long_video, decoded, monkeypatch):
    """25 frames out of 1,200, from each tenth of the video: packets read and frames decoded."""
    packets = []
    add = video_seeking._Timeline._add
    monkeypatch.setattr(video_seeking._Timeline, "_add", lambda self, packet: (packets.append(1), add(self, packet)))
    costs = []
    for tenth in range(1, 10):
        decoded["jumps"] = 0
        packets.clear()
        first = 120 * tenth + 5
        if whole:
            got = list(reader_of(long_video / name).frames(range(first, first + 25)))
        else:
            got = list(reader_of(long_video / name, first / 25, (first + 25) / 25).frames(range(25)))
        assert len(got) == 25
        costs.append((len(packets), decoded["jumps"]))
    read, made = np.array(costs).T
    assert decoded["start"] == 0
    assert made.max() <= 25 + 10 + MAX_REORDER
    if whole and name == "long.mkv":
        assert (read == 1200).all()  # Matroska has no index: its frames are counted by demuxing
    else:
        assert read.max() <= 25 + 10 + 10 + 3 * MAX_REORDER


def test_a_segment_may_begin_before_the_first_frame(videos):
    path, _, pictures = videos("h264.mp4")
    reader = reader_of(path, -1.0, 0.2)
    assert_same(list(reader.frames(range(reader.total))), range(5), pictures)


def test_an_intact_part_of_a_truncated_file_can_be_read(videos, tmp_path):
    write(tmp_path / "whole.mp4", "libx264", {"x264-params": X264}, container_options={"movflags": "faststart"})
    _, _, pictures = videos("h264.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    reader = reader_of(tmp_path / "cut.mp4", 0.8, 1.2)
    assert_same(list(reader.frames(range(reader.total))), range(20, 30), pictures)
    for span in ({}, {"start": 3.2, "end": 3.4}, {"start": 2.0}):
        with pytest.raises(VideoReadError, match=r"got \d+ frames, expected 90 by its index: it is truncated"):
            reader_of(tmp_path / "cut.mp4", **span)


def test_a_codec_without_a_decoder_is_named(tmp_path):
    write(tmp_path / "video.mp4", "libx264", {})
    data = (tmp_path / "video.mp4").read_bytes()
    (tmp_path / "unknown.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoReadError, match=r"unknown\.mp4: got a codec without an FFmpeg decoder"):
        decode_video(tmp_path / "unknown.mp4", lambda metadata: [0])


def test_the_rate_is_that_of_the_time_stamps(videos):
    """A container's rate may be a guess: here that of the shortest distance of two frames."""
    for name in ("h264_variable_rate.mkv", "h264_variable_rate.mp4", "h264.mp4", "vp9.webm", "mpeg4.avi", "h264.ts"):
        path, seconds, pictures = videos(name)
        _, metadata = decode_video(path, lambda metadata: [0])
        assert metadata.duration == pytest.approx(seconds[-1] * len(pictures) / (len(pictures) - 1), rel=0.01)
        assert metadata.fps == pytest.approx(len(pictures) / metadata.duration)
    path, seconds, _ = videos("h264_variable_rate.mkv")
    _, part = decode_video(path, lambda metadata: [0], start=1.0, end=3.0)
    assert part.duration == pytest.approx(2.0, abs=0.15)


# Of a file that was cut, all these play what is left. MPEG-TS shows the loss unless it was cut between two packets.
@pytest.mark.parametrize(
    "name", ["h264.mkv", "vp8.webm", "h264.ts", "h264.flv", "mpeg2.mpg", "mpeg4.avi", "wmv2.wmv", "vp8.ivf"]
)
def test_a_truncated_file_says_so(name, tmp_path):
    codec = {"h264": "libx264", "vp8": "libvpx", "mpeg2": "mpeg2video", "mpeg4": "mpeg4", "wmv2": "wmv2"}[
        name.split(".")[0]
    ]
    write(tmp_path / name, codec, {"g": "10"})
    _, whole = decode_video(tmp_path / name, lambda metadata: [0])
    assert (whole.fault, whole.total_num_frames) == (None, FRAMES)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 7 // 10 // 188 * 188 + 1])
    _, cut = decode_video(tmp_path / name, lambda metadata: [0])
    assert cut.total_num_frames < FRAMES
    assert cut.fault.startswith("got ")
    assert "expected" in cut.fault


def test_damage_that_shows_only_when_its_frame_is_decoded_is_said(tmp_path):
    path = tmp_path / "h264.mkv"
    write(path, "libx264", {"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    _, begun = decode_video(path, lambda metadata: [0])
    assert begun.fault is None
    _, played = decode_video(path, lambda metadata: range(metadata.total_num_frames))
    assert played.fault is not None


@pytest.mark.parametrize("name", ["h264.mkv", "vp8.webm"])
def test_a_segment_that_a_truncated_file_ends_in_says_so(name, tmp_path):
    """Without demuxing the whole file for segments that end before."""
    write(tmp_path / name, {"h264": "libx264", "vp8": "libvpx"}[name.split(".")[0]], {"g": "10"})
    assert reader_of(tmp_path / name, 1.0, 3.6).fault is None
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    for end in (3.0, None):
        _, cut = decode_video(tmp_path / name, lambda metadata: [0], start=1.0, end=end)
        assert cut.total_num_frames < 50
        assert "expected 3.6 s by its header" in cut.fault
    reader = reader_of(tmp_path / name, 0.4, 0.8)
    assert (reader.fault, reader.total, reader._skipped) == (None, 10, None)


@pytest.mark.parametrize("frames_a_block", [1, 2, 3, 100])
def test_views_get_the_frames_as_they_are_decoded(frames_a_block, videos, monkeypatch):
    """As many at once as a block may hold, each once, in order."""
    path, _, pictures = videos("h264.mp4")
    size = frames_a_block * pictures[0].nbytes
    monkeypatch.setattr(video_io, "Opening", partial(Opening, block_bytes=size))
    blocks = []

    def corner(frames):
        blocks.append(frames.permute(0, 2, 3, 1).numpy().copy())
        return frames[:, :, :8, :16]

    clip, metadata = decode_video(path, lambda metadata: [7, 3, 3, 60], view=corner)
    assert np.array_equal(np.concatenate(blocks), np.stack([pictures[number] for number in (3, 7, 60)]))
    assert len(blocks) == -(-3 // frames_a_block)
    assert clip.shape == (4, 3, 8, 16)
    assert metadata.frames_indices == [7, 3, 3, 60]
    expected = np.stack([pictures[number][:8, :16] for number in (7, 3, 3, 60)]).transpose(0, 3, 1, 2)
    assert np.array_equal(clip.numpy(), expected)
